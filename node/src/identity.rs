//! The node's identity: an ed25519 key made at the first start, readable by its owner only, kept for ever.
//!
//! The file holds the key in libp2p's protobuf encoding (libp2p peer-ids spec), so other libp2p tools can read it.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

use libp2p::identity::Keypair;

use crate::error::{Error, Result};

/// Its name in the data directory.
pub const FILE: &str = "identity.key";

/// Reads the key in `directory`, or makes it there if there is none. Whoever calls holds the data directory's lock.
///
/// A file that is damaged, or that others may read, is refused: a new identity would silently orphan what the old one published.
pub fn load_or_make(directory: &Path) -> Result<Keypair> {
    let path = directory.join(FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            let mode = fs::metadata(&path).map_err(|error| failed("read", &path, &error))?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(Error::refused(format!(
                    "{} can be read by others (mode {:o})",
                    path.display(),
                    mode & 0o777
                ))
                .hint(format!("run `chmod 600 {}` if nobody else has had it", path.display())));
            }
            Keypair::from_protobuf_encoding(&bytes).map_err(|_| {
                Error::failed(format!("the identity key {} is damaged", path.display()))
                    .hint("restore it from a backup, or move it away to start as a new peer")
            })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => make(directory, &path),
        Err(error) => Err(failed("read", &path, &error)),
    }
}

fn make(directory: &Path, path: &Path) -> Result<Keypair> {
    let keypair = Keypair::generate_ed25519();
    let bytes = keypair
        .to_protobuf_encoding()
        .map_err(|error| Error::failed(format!("the new identity key cannot be encoded: {error}")))?;
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
    write().map_err(|error| failed("make", path, &error))?;
    Ok(keypair)
}

fn failed(doing: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::failed(format!("cannot {doing} the identity key {}: {error}", path.display()))
        .hint("check that the data directory belongs to you and that its disk is well")
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
        assert_eq!(load_or_make(directory.path()).expect_err("open to others").kind, crate::error::Kind::Refused);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
        fs::write(&path, b"garbage").expect("written");
        assert!(load_or_make(directory.path()).expect_err("damaged").message.contains("damaged"));
        assert_eq!(fs::read(&path).expect("there"), b"garbage");
    }
}
