//! What the node does: each file owns one subject and its own state.

pub mod audit;
pub mod blocking;
pub mod catalogue;
pub mod distinct;
pub mod export;
pub mod fetch;
pub mod holders;
pub mod ingest;
pub mod inspect;
pub mod keep;
pub mod locate;
pub mod pin;
pub mod progress;
pub mod reason;
pub mod remember;
pub mod replicate;
#[cfg(test)]
pub(crate) mod rig;
pub mod scrub;
pub mod sync;
pub mod transfer;
mod turns;
pub mod wanted;
pub mod worker;
