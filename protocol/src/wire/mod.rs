//! What goes over streams and gossip, byte by byte: pure, total codecs on slices. `SPEC.md` has the tables.

pub mod announce;
pub mod audit;
pub mod frame;
pub mod sync;
pub mod sync_fresh;
pub mod transfer;
pub mod turns;
pub mod version;
