//! What goes over streams, byte by byte: pure, total codecs on slices. `SPEC.md` has the tables.

pub mod frame;
pub mod transfer;
