//! The node: a store on disk, a network of equal peers, the services between them, and the command line.
//!
//! Imports go one way: `front → node → service → {store, net} → p2p_protocol`.

pub mod error;
pub mod front;
pub mod identity;
pub mod net;
pub mod node;
pub mod report;
pub mod runner;
pub mod service;
pub mod settings;
pub mod store;
