//! The node's identity: an ed25519 key made at the first start, readable by its owner only, kept for ever.
//!
//! The file holds the key in libp2p's protobuf encoding (libp2p peer-ids spec), so other libp2p tools can read it.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use libp2p::identity::Keypair;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Others may read the file.
    #[error("{} can be read by others (mode {mode:o})", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds no key.
    #[error("the identity key {} is damaged", .0.display())]
    Damaged(PathBuf),
    /// A new key has no encoding.
    #[error("the new identity key cannot be encoded: {0}")]
    Encoding(String),
    /// The file cannot be read or made.
    #[error("cannot {doing} the identity key {}: {why}", path.display())]
    Io {
        /// `read` or `make`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        why: std::io::Error,
    },
}

type Result<T, E = IdentityError> = std::result::Result<T, E>;

/// Its name in the data directory.
pub const FILE: &str = "identity.key";

/// Reads the key in `directory`, or makes it there if there is none. Whoever calls holds the data directory's lock.
///
/// A file that is damaged, or that others may read, is refused: a new identity would silently orphan what the old one published.
pub fn load_or_make(directory: &Path) -> Result<Keypair> {
    let path = directory.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            let mode = fs::metadata(&path).map_err(|error| failed("read", &path, error))?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(IdentityError::Open { path, mode: mode & 0o777 });
            }
            Keypair::from_protobuf_encoding(&bytes).map_err(|_| IdentityError::Damaged(path))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => make(directory, &path),
        Err(error) => Err(failed("read", &path, error)),
    }
}

fn make(directory: &Path, path: &Path) -> Result<Keypair> {
    let keypair = Keypair::generate_ed25519();
    let bytes = keypair.to_protobuf_encoding().map_err(|why| IdentityError::Encoding(why.to_string()))?;
    // Written aside and renamed, so that a crash leaves either no key or a whole one.
    let temporary = directory.join(format!("{FILE}.new"));
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(directory)?.sync_all()
    };
    write().map_err(|error| failed("make", path, error))?;
    Ok(keypair)
}

fn failed(doing: &'static str, path: &Path, why: std::io::Error) -> IdentityError {
    IdentityError::Io { doing, path: path.to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_stays() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let first = load_or_make(directory.path()).expect("made");
        let again = load_or_make(directory.path()).expect("read");
        assert_eq!(first.public(), again.public());
        let mode = fs::metadata(directory.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_or_open_key_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        load_or_make(directory.path()).expect("made");
        let path = directory.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
        assert!(matches!(load_or_make(directory.path()), Err(IdentityError::Open { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::write(&path, b"garbage").expect("written");
        assert!(matches!(load_or_make(directory.path()), Err(IdentityError::Damaged(_))));
        assert_eq!(fs::read(&path).expect("there"), b"garbage");
    }
}
