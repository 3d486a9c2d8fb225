//! A small disk that can be filled, or whose power can be cut: a tmpfs, or an ext4 in a file, in a mount namespace of its own, which a sleeping process holds open.
//!
//! Needs root and util-linux (`unshare`, `nsenter`). Nothing is mounted where anybody else sees it; the mount goes when its
//! holder does.

use std::{
    ffi::{OsStr, OsString},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{Options, Scratch, reaper};

/// A disk of a few MiB.
#[derive(Debug)]
pub struct SmallDisk {
    holder: Child,
    path: PathBuf,
    _scratch: Scratch,
}

impl SmallDisk {
    /// Mounts one of `mebibytes`, or says why that cannot be done here.
    pub fn new(mebibytes: u32) -> Result<Self, String> {
        Self::mount(r#"mount -t tmpfs -o size="$1"m none "$0""#, mebibytes.to_string().as_ref())
    }

    /// Mounts the ext4 in a file, or says why that cannot be done here. What its cache holds is written late, so that a
    /// copy of the file is what a power cut leaves.
    pub fn image(file: &Path) -> Result<Self, String> {
        Self::mount(r#"mount -t ext4 -o loop,commit=300 "$1" "$0""#, file.as_os_str())
    }

    fn mount(command: &str, argument: &OsStr) -> Result<Self, String> {
        let scratch = Scratch::new("disk");
        let path = scratch.path().to_owned();
        let script = format!("{command} && echo mounted && exec sleep 86400");
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .arg(&path)
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("a small disk needs unshare: {error}"))?;
        reaper::born(holder.id());
        let mut line = String::new();
        let pipe = holder.stdout.take().map(BufReader::new);
        let read = pipe.map(|mut pipe| pipe.read_line(&mut line));
        let disk = Self { holder, path, _scratch: scratch };
        if !matches!(read, Some(Ok(1..))) || line.trim() != "mounted" {
            return Err("a small disk needs root, to mount it in a namespace, and one in a file a loop device".into());
        }
        let entered = disk.enter(Command::new("nsenter")).arg("true").status();
        if !entered.is_ok_and(|status| status.success()) {
            return Err("a small disk needs nsenter".into());
        }
        Ok(disk)
    }

    /// Where it is, for those inside.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same directory for those outside, who need root: through the holder's view of the file system.
    pub fn seen_from_outside(&self) -> PathBuf {
        let mut path = OsString::from(format!("/proc/{}/root", self.holder.id()));
        path.push(&self.path);
        path.into()
    }

    /// A daemon's options, run where the disk is seen, its data directory on it.
    #[must_use]
    pub fn on(&self, options: Options) -> Options {
        let namespace = self.namespace();
        options.data_dir(self.path.join("d")).prefix(["nsenter".into(), namespace])
    }

    /// Options run where the disk is seen, their data directory elsewhere.
    #[must_use]
    pub fn seen_by(&self, options: Options) -> Options {
        let namespace = self.namespace();
        options.prefix(["nsenter".into(), namespace])
    }

    /// Runs a shell line where the disk is seen, in its directory; whether it succeeded, and what it printed.
    pub fn shell(&self, line: &str) -> (bool, String) {
        let mut command = self.enter(Command::new("nsenter"));
        let output = command.args(["sh", "-c", r#"cd "$0" && eval "$1""#]).arg(&self.path).arg(line).output();
        output.map_or_else(
            |error| (false, error.to_string()),
            |output| (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned()),
        )
    }

    /// What `nsenter` takes for its namespace.
    pub fn namespace(&self) -> OsString {
        format!("--mount=/proc/{}/ns/mnt", self.holder.id()).into()
    }

    fn enter(&self, mut command: Command) -> Command {
        command.arg(self.namespace());
        command
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        reaper::ended(self.holder.id());
    }
}
