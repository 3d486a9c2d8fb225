//! What people and programs talk to: the command line, the local API, and the verbs of both.

pub mod api;
pub mod cli;
pub mod verbs;
mod words;
