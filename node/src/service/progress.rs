//! How far an add or a get is.

/// Counters only grow.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Progress {
    /// Content bytes that were read (by an add) or written (by a get).
    pub bytes: u64,
    /// Content bytes in all, where that is known.
    pub total_bytes: Option<u64>,
    /// Chunks that are done.
    pub chunks: u64,
    /// Copies on other peers that were acknowledged.
    pub copies: u64,
    /// What is being worked on.
    pub current: Option<String>,
}
