//! What people and programs talk to: the command line and the local API.

pub mod api;
pub mod cli;
