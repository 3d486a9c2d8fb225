//! What two peers must agree on, and every decision they make.
//!
//! Pure: no tokio, no sockets, no files, no clock and no entropy. Time and randomness come in as
//! arguments, so that everything here can be tested with properties, vectors and a seed.
//! The byte-by-byte formats are in `SPEC.md` beside this crate.

pub mod audit;
pub mod bucket;
pub mod catalogue;
pub mod catch_up;
pub mod chance;
pub mod chunk;
pub mod chunker;
pub mod cid;
pub mod dag;
pub mod decoders;
pub mod discovery;
pub mod duty;
pub mod fetch;
pub mod fresh;
pub mod key;
pub mod label;
pub mod locate;
pub mod machine;
pub mod manifest;
pub mod placement;
pub mod ranking;
pub mod reconcile;
pub mod replicate;
pub mod wire;

pub use chunk::{Chunk, ChunkError, MAX_CHUNK_BYTES};
pub use cid::{Cid, CidError, Codec, HashCode, Multihash};
pub use key::{Distance, Key};
pub use label::Label;
pub use libp2p_identity::PeerId;
