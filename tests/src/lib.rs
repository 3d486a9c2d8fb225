//! Harnesses: what the suites of this package are built from.

pub mod fabric;
pub mod process;
