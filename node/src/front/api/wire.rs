//! What goes over the socket, whatever the verb: headers, events, paths.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use crate::{error::Error, report::Progress};

/// The version of this program, which both sides say in [`VERSION_HEADER`].
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Says the version of who sends it.
pub const VERSION_HEADER: &str = "p2p-node-version";
/// Carries the request as ASCII JSON, where the body is [content](crate::front::verbs::Verb::SENDS_CONTENT).
pub const OPTIONS_HEADER: &str = "p2p-node-options";
/// Stands before the path of each verb. It changes when an older command line could no longer talk to a newer daemon, or
/// the other way round.
pub const PREFIX: &str = "/v1/";

/// A line of an answer. [`Event::End`] and [`Event::Error`] are last.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event<T> {
    /// How far it is.
    Progress(Progress),
    /// The result, or one of many.
    Result(T),
    /// It failed.
    Error(Error),
    /// That was all of it.
    End {},
}

/// Reads one line of an answer.
pub(super) fn decode<T: DeserializeOwned>(line: &[u8]) -> serde_json::Result<Event<T>> {
    serde_json::from_slice(line)
}

/// One line of an answer, its newline included.
pub(super) fn encode<T: Serialize>(event: &Event<T>, into: &mut Vec<u8>) -> serde_json::Result<()> {
    serde_json::to_writer(&mut *into, event)?;
    into.push(b'\n');
    Ok(())
}

/// A path in JSON: text where it is UTF-8, else a list of its bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WirePath(pub PathBuf);

impl Serialize for WirePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_seq(self.0.as_os_str().as_bytes()),
        }
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a path")]
        enum Form {
            Text(String),
            Bytes(Vec<u8>),
        }
        Ok(Self(match Form::deserialize(deserializer)? {
            Form::Text(text) => PathBuf::from(text),
            Form::Bytes(bytes) => PathBuf::from(OsString::from_vec(bytes)),
        }))
    }
}
