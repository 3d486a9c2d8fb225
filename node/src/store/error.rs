//! Why the store did not do as it was asked.

use std::sync::Arc;

/// Why the store did not do as it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// No room under the capacity, or on the disk.
    #[error("{}", no_space(*needed, reason))]
    NoSpace {
        /// How many were asked for; none where the index fails on a disk that is full, and something was to be read.
        needed: u64,
        /// Whose limit it was.
        reason: String,
    },
    /// Another daemon has it open.
    #[error("another daemon already runs on {0}")]
    Locked(std::path::PathBuf),
    /// Made by a newer version.
    #[error("the data directory has format {found}, and this version reads up to {known}")]
    TooNew {
        /// Its format.
        found: u32,
        /// What is known here.
        known: u32,
    },
    /// Made before the formats were settled.
    #[error("the data directory has format {found}, which no version reads any more; this one makes format {known}")]
    TooOld {
        /// Its format.
        found: u32,
        /// What is made here.
        known: u32,
    },
    /// The system failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, on which file.
        doing: String,
        /// The system's error.
        source: Arc<std::io::Error>,
    },
    /// The index failed and could not be rebuilt.
    #[error("the index failed: {0}")]
    Index(String),
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

fn no_space(needed: u64, reason: &str) -> String {
    if needed == 0 { reason.to_owned() } else { format!("no space for {needed} bytes: {reason}") }
}
