//! Names in directories: one path component, and never a way out of the directory.

use super::DagError;

/// The most bytes of a name that this node writes into a directory: a shard of 256 such names is still a valid chunk,
/// and every common file system has shorter ones. Longer names are read.
pub const MAX_NAME_BYTES: usize = 1024;

/// Checks a name as it came from outside: UTF-8, not empty, neither `.` nor `..`, without `/` and NUL.
pub fn check_name(bytes: &[u8]) -> Result<&str, DagError> {
    let refuse = |why| {
        let shown = &bytes[..bytes.len().min(MAX_NAME_BYTES)];
        Err(DagError::Name { name: String::from_utf8_lossy(shown).into_owned(), why })
    };
    let Ok(name) = std::str::from_utf8(bytes) else { return refuse("it is not UTF-8") };
    match name {
        "" => refuse("it is empty"),
        "." | ".." => refuse("it means a directory itself or the one above"),
        _ if name.contains('/') => refuse("it contains a slash"),
        _ if name.contains('\0') => refuse("it contains a NUL byte"),
        _ => Ok(name),
    }
}
