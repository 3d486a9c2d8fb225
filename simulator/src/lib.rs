//! A whole network of the repair loop, on simulated time: the real machines, and a model that knows everything.
//!
//! [`world`] runs nodes, each a [`Keeper`](p2p_protocol::duty::Keeper) and a
//! [`Lister`](p2p_protocol::duty::lister::Lister) over a disk in memory, and a network that delays, cuts and loses.
//! [`trace`] is what befalls them, from a seed: joins, restarts, nightly sleep, departures, wiped disks, full ones, cut
//! links and partitions, adds and removals, pins, liars. [`model`] knows the whole network and checks it at each step.
//! The same seed gives the same run. Nothing here reads a clock, a file or a socket.

pub mod catalogue;
pub mod churn;
pub mod content;
pub mod figures;
pub mod model;
pub mod node;
pub mod sampled;
pub mod trace;
pub mod world;

mod audit;
mod client;
mod drive;
mod pins;
mod queries;
