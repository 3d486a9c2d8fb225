//! What outlives a test run: nothing.
//!
//! A test process may be killed at any moment and then drops nothing. So a small shell waits on a pipe whose other
//! end only this process holds. When the pipe closes, by a normal end or by `kill -9`, the shell kills
//! the daemons that are still registered, deletes the network namespaces, and removes the run's directory. Rust opens
//! files close-on-exec, so no daemon inherits the pipe.

use std::{
    fs::Permissions,
    io::Write,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

const SCRIPT: &str = r#"
trap '' INT TERM HUP
root=$1
daemons=' '
namespaces=' '
while read -r word name; do
    case $word in
    daemon) daemons="$daemons$name " ;;
    ended) daemons="${daemons%%" $name "*} ${daemons#*" $name "}" ;;
    namespace) namespaces="$namespaces$name " ;;
    closed) namespaces="${namespaces%%" $name "*} ${namespaces#*" $name "}" ;;
    esac
done
for pid in $daemons; do kill -9 "$pid"; done
for name in $namespaces; do ip netns del "$name"; done
rm -rf "$root" || { sleep 1; rm -rf "$root"; }
"#;

struct Reaper {
    shell: Mutex<Child>,
    root: PathBuf,
}

static REAPER: OnceLock<Reaper> = OnceLock::new();

fn reaper() -> &'static Reaper {
    REAPER.get_or_init(|| {
        let root = tempfile::Builder::new()
            .prefix("p2p-tests-")
            // It is the daemons' runtime directory too, which they take only if it is its owner's alone.
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .expect("a test run can make a directory under the system's temporary one")
            .keep();
        let shell = Command::new("sh")
            .args(["-c", SCRIPT, "reaper"])
            .arg(&root)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Its own group: an interrupt of the test run is not an interrupt of its cleaning up.
            .process_group(0)
            .spawn()
            .expect("every Unix has sh");
        Reaper { shell: Mutex::new(shell), root }
    })
}

fn tell(word: &str, name: impl std::fmt::Display) {
    let mut shell = reaper().shell.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // A reaper that somebody killed only means that nothing is cleaned up should this process be killed as well.
    if let Some(pipe) = shell.stdin.as_mut() {
        let _ = writeln!(pipe, "{word} {name}");
    }
}

/// The run's directory: removed when this process ends, however it ends.
pub fn root() -> &'static Path {
    &reaper().root
}

/// A daemon lives; it is killed should this process die before [`ended`].
pub fn born(pid: u32) {
    tell("daemon", pid);
}

/// A daemon was waited for: its number may belong to another process from now on.
pub fn ended(pid: u32) {
    tell("ended", pid);
}

/// A network namespace exists until [`closed`].
pub fn opened(namespace: &str) {
    tell("namespace", namespace);
}

/// A network namespace was deleted.
pub fn closed(namespace: &str) {
    tell("closed", namespace);
}

/// A fresh directory, removed when dropped.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// A directory with `label` in its name.
    pub fn new(label: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let path = root().join(format!("{label}-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir(&path).expect("the run's directory takes a new one");
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A path inside.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now goes with the run's directory.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
