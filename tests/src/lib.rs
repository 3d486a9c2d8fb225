//! Harnesses.

pub mod fabric;
