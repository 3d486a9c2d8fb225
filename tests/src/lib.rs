//! Harnesses: what the suites of this package are built from.

pub mod chaos;
pub mod contract;
pub mod process;
pub mod swarm;
pub mod turns;
