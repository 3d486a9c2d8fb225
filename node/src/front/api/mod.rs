//! The local API: how the command line, and whatever else runs as the same user, talks to the daemon.
//!
//! HTTP/1.1 over a Unix socket that only its owner can open. Every [verb](super::verbs) is `POST /v1/<verb>` with a small
//! JSON body; the answer is a stream of JSON lines ([`wire::Event`]), of which `end` or `error` is the last, so that an
//! answer that was cut off is told from a whole one. `cat` answers in frames ([`frames`]) for the same reason. Dropping
//! the connection cancels the verb.
//!
//! [`socket`] says where the socket is, [`server`] serves it, [`client`] asks.

pub mod answer;
pub mod client;
pub mod frames;
mod routes;
pub mod server;
pub mod socket;
pub mod wire;

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod tests;
