//! How what a verb gives travels: as JSON lines, or as frames where it is bytes.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    frames,
    wire::{self, Event},
};

/// What an answer is made of.
pub trait Answer: Send + Sized + 'static {
    /// What HTTP calls it.
    const CONTENT_TYPE: &'static str;
    /// The most items that go out as one write, where they are ready at once.
    const AT_ONCE: usize;

    /// The bytes of some events, or of none: then something without a meaning, which finds callers that are gone.
    ///
    /// # Errors
    ///
    /// An item that cannot be written as JSON.
    fn encode(events: Vec<Event<Self>>) -> serde_json::Result<Vec<Bytes>>;
}

impl<T: Serialize + DeserializeOwned + Send + 'static> Answer for T {
    const CONTENT_TYPE: &'static str = "application/x-ndjson";
    const AT_ONCE: usize = 256;

    fn encode(events: Vec<Event<Self>>) -> serde_json::Result<Vec<Bytes>> {
        let mut lines = Vec::new();
        if events.is_empty() {
            lines.push(b'\n');
        }
        events.iter().try_for_each(|event| wire::encode(event, &mut lines))?;
        Ok(vec![lines.into()])
    }
}

/// Bytes of a file, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Piece(pub Bytes);

impl Answer for Piece {
    const CONTENT_TYPE: &'static str = "application/octet-stream";
    // It is as big as a write is to be.
    const AT_ONCE: usize = 1;

    fn encode(events: Vec<Event<Self>>) -> serde_json::Result<Vec<Bytes>> {
        if events.is_empty() {
            return Ok(vec![frames::nothing()]);
        }
        let frames = events.into_iter().flat_map(|event| match event {
            Event::Result(Self(bytes)) => frames::content(bytes),
            Event::Error(error) => frames::error(&error),
            Event::End {} => vec![frames::end()],
            // How far it is, its reader sees.
            Event::Progress(_) => Vec::new(),
        });
        Ok(frames.collect())
    }
}
