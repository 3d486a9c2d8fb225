//! Where the local socket is, who may open it, and how a stale one is replaced.
//!
//! It is `DIR/socket`. A Unix address holds 108 bytes (104 on some systems), so for a data directory with a long path it
//! is in the user's runtime directory instead, and `DIR/socket.path` says where. It is open to its owner only: its
//! mode is 0600, and each side checks the other's user.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

use crate::error::{Error, Kind, Result};

/// The socket in the data directory.
const SOCKET: &str = "socket";
/// The file that says where the socket is when it is elsewhere.
const POINTER: &str = "socket.path";
/// The longest path that is bound: what every Unix takes, with some room.
const MAX_PATH_BYTES: usize = 100;
/// The longest path that is read from [`POINTER`].
const MAX_POINTER_BYTES: u64 = 4096;

/// A bound socket; dropping it removes it from the file system.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
    pointer: Option<PathBuf>,
}

impl Socket {
    /// Binds the socket of `data_dir`, which is absolute and whose lock the caller holds: a socket that is there already
    /// is then stale and is replaced, unless something answers on it.
    pub async fn bind(data_dir: &Path) -> Result<Self> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        Self::bind_with(data_dir, runtime.as_deref(), &std::env::temp_dir()).await
    }

    /// As [`Socket::bind`], with what the environment gave it.
    pub(super) async fn bind_with(data_dir: &Path, runtime: Option<&Path>, temporary: &Path) -> Result<Self> {
        let beside = data_dir.join(SOCKET);
        let marker = data_dir.join(POINTER);
        let path = if fits(&beside) { beside.clone() } else { elsewhere(data_dir, runtime, temporary)? };
        if let Ok(Some(old)) = pointed(&marker) {
            clear(&old).await?;
        }
        clear(&beside).await?;
        clear(&path).await?;
        let cannot =
            |error: io::Error| Error::failed(format!("The local socket {} cannot be made: {error}", path.display()));
        let listener = UnixListener::bind(&path).map_err(cannot)?;
        let mut socket = Self { listener, path: path.clone(), pointer: None };
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(cannot)?;
        if path == beside {
            let _absent = fs::remove_file(&marker);
        } else {
            fs::write(&marker, path.as_os_str().as_bytes())
                .map_err(|error| Error::failed(format!("The file {} cannot be written: {error}", marker.display())))?;
            socket.pointer = Some(marker);
        }
        Ok(socket)
    }

    /// Where it is bound.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next connection of a user who may open it; others are closed and said in the log. Cancel-safe.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if trusted(peer.uid()) => return Ok(stream),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "another user's connection to the local socket was closed")
                }
                Err(error) => tracing::warn!(%error, "a connection whose user is not known was closed"),
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // What is gone already is as wanted, and at the end of a run nobody is left to tell of anything else.
        let _gone = fs::remove_file(&self.path);
        if let Some(pointer) = &self.pointer {
            let _gone = fs::remove_file(pointer);
        }
    }
}

/// Connects to the daemon of `data_dir`; [`Kind::NoDaemon`] if none answers.
pub async fn connect(data_dir: &Path) -> Result<UnixStream> {
    let nobody = || {
        Error::new(Kind::NoDaemon, format!("No daemon answers on the data directory {}", data_dir.display()))
            .hint(format!("start one with: p2p-node daemon --data-dir {}", quoted(data_dir)))
    };
    let path = match pointed(&data_dir.join(POINTER)) {
        Ok(Some(path)) => path,
        Ok(None) => data_dir.join(SOCKET),
        Err(error) => return Err(denied(data_dir, &error).unwrap_or_else(nobody)),
    };
    if !fits(&path) {
        return Err(nobody());
    }
    let stream = UnixStream::connect(&path).await.map_err(|error| denied(data_dir, &error).unwrap_or_else(nobody))?;
    let peer = stream.peer_cred().map_err(|error| Error::failed(format!("The daemon's user is not known: {error}")))?;
    if !trusted(peer.uid()) {
        return Err(Error::refused(format!("What answers on {} belongs to another user", path.display()))
            .hint("do not trust it; stop your daemon and start it again"));
    }
    Ok(stream)
}

/// A data directory that this user may not enter is another failure than a daemon that is not there.
fn denied(data_dir: &Path, error: &io::Error) -> Option<Error> {
    (error.kind() == io::ErrorKind::PermissionDenied).then(|| {
        Error::refused(format!("The data directory {} belongs to another user", data_dir.display()))
            .hint("run this command as the user that runs the daemon, or give your own --data-dir")
    })
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= MAX_PATH_BYTES
}

/// The user itself, or root (who could do anything anyway).
fn trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// What `marker` says, if it is there.
fn pointed(marker: &Path) -> io::Result<Option<PathBuf>> {
    let file = match fs::File::open(marker) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut path = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_POINTER_BYTES), &mut path)?;
    Ok((!path.is_empty()).then(|| PathBuf::from(OsString::from_vec(path))))
}

/// Where the socket of a data directory with a long path is: a name made of that path, in a directory that only this user can enter.
fn elsewhere(data_dir: &Path, runtime: Option<&Path>, temporary: &Path) -> Result<PathBuf> {
    let hash = blake3::hash(data_dir.as_os_str().as_bytes()).to_hex();
    let name = format!("p2p-node-{}.socket", &hash[..16]);
    if let Some(path) = runtime.filter(|dir| private(dir)).map(|dir| dir.join(&name)).filter(|path| fits(path)) {
        return Ok(path);
    }
    let own = temporary.join(format!("p2p-node-{}", rustix::process::geteuid().as_raw()));
    match fs::DirBuilder::new().mode(0o700).create(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::failed(format!("The directory {} cannot be made: {error}", own.display())));
        }
        _ => {}
    }
    let path = own.join(&name);
    if !private(&own) {
        return Err(Error::refused(format!(
            "The directory {} for the local socket is open to other users",
            own.display()
        ))
        .hint("remove it, or choose a data directory with a shorter path"));
    }
    if !fits(&path) {
        return Err(Error::usage(format!("The path of the data directory {} is too long", data_dir.display()))
            .hint(format!("choose one under {} bytes", MAX_PATH_BYTES - SOCKET.len())));
    }
    Ok(path)
}

/// A real directory of this user's that nobody else can enter.
fn private(dir: &Path) -> bool {
    dir.is_absolute()
        && fs::symlink_metadata(dir).is_ok_and(|meta| {
            meta.is_dir() && meta.uid() == rustix::process::geteuid().as_raw() && meta.mode() & 0o077 == 0
        })
}

/// Removes a socket on which nobody answers; what is not a socket is left alone, and is an error.
async fn clear(path: &Path) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(Error::failed(format!("The local socket cannot be made: {} is something else", path.display()))
            .hint("move it away"));
    }
    if fits(path) && UnixStream::connect(path).await.is_ok() {
        return Err(Error::failed(format!("Another daemon already answers on {}", path.display()))
            .hint("stop it first, or give this one its own --data-dir"));
    }
    fs::remove_file(path)
        .map_err(|error| Error::failed(format!("The stale socket {} cannot be removed: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).map(|m| m.mode() & 0o777).unwrap_or_default()
    }

    #[tokio::test]
    async fn it_is_made_for_its_owner_answers_and_goes_away() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::failed(e.to_string()))?;
        let refused = connect(dir.path()).await.map_err(|e| (e.kind, e.hint.is_some()));
        assert_eq!(refused.err(), Some((Kind::NoDaemon, true)));
        let socket = Socket::bind(dir.path()).await?;
        assert_eq!(mode(socket.path()), 0o600);
        let (near, far) = tokio::join!(connect(dir.path()), socket.accept());
        assert!(near.is_ok() && far.is_ok());
        let path = socket.path().to_owned();
        drop(socket);
        assert!(!path.exists());
        Ok(())
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::failed(e.to_string()))?;
        let path = dir.path().join(SOCKET);
        // A listener that is closed without removing its file is what a killed daemon leaves.
        drop(UnixListener::bind(&path).map_err(|e| Error::failed(e.to_string()))?);
        assert!(path.exists());
        assert_eq!(connect(dir.path()).await.map_err(|e| e.kind).err(), Some(Kind::NoDaemon));
        let live = Socket::bind(dir.path()).await?;
        let second = Socket::bind(dir.path()).await;
        assert!(second.is_err_and(|e| e.kind == Kind::Failed && e.message.contains("Another daemon")));
        assert!(connect(dir.path()).await.is_ok(), "the first one still answers");
        drop(live);
        fs::write(&path, "mine").map_err(|e| Error::failed(e.to_string()))?;
        assert!(Socket::bind(dir.path()).await.is_err(), "a file of the user's is not removed");
        assert!(path.exists());
        Ok(())
    }

    #[tokio::test]
    async fn a_long_path_moves_it_to_a_private_directory() -> Result<()> {
        let failed = |e: io::Error| Error::failed(e.to_string());
        let dir = tempfile::tempdir().map_err(failed)?;
        let temporary = dir.path().join("t");
        let long = dir.path().join("d".repeat(120));
        for made in [&temporary, &long] {
            fs::create_dir(made).map_err(failed)?;
        }
        let socket = Socket::bind_with(&long, None, &temporary).await?;
        assert!(socket.path().starts_with(&temporary) && fits(socket.path()));
        assert_eq!(socket.path().parent().map(mode), Some(0o700));
        assert!(connect(&long).await.is_ok());
        let marker = long.join(POINTER);
        assert!(marker.exists());
        drop(socket);
        assert!(!marker.exists());

        let runtime = dir.path().join("r");
        fs::DirBuilder::new().mode(0o700).create(&runtime).map_err(failed)?;
        let socket = Socket::bind_with(&long, Some(&runtime), &temporary).await?;
        assert!(socket.path().starts_with(&runtime));
        drop(socket);

        let own = temporary.join(format!("p2p-node-{}", rustix::process::geteuid().as_raw()));
        fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).map_err(failed)?;
        let open = Socket::bind_with(&long, None, &temporary).await;
        assert_eq!(open.map_err(|e| e.kind).err(), Some(Kind::Refused));
        Ok(())
    }

    #[test]
    fn a_path_is_quoted_for_the_shell() {
        assert_eq!(quoted(Path::new("/a/b-c.d")), "/a/b-c.d");
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }
}
