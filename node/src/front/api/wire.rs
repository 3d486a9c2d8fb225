//! What goes over the socket: routes, requests, events.
//!
//! Requests and answers are those of [`crate::report`]; here is only what carries them. `/v1` changes when an older
//! command line could no longer talk to a newer daemon, or the other way round.

use std::{
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::PathBuf,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use crate::{
    error::Error,
    report::{AddOptions, Placement, Progress, Stat},
};

/// The version of this program, which both sides say in [`VERSION_HEADER`].
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Says the version of who sends it.
pub const VERSION_HEADER: &str = "p2p-node-version";
/// Carries the [`AddOptions`] of `add-stream` as ASCII JSON, for the body is the content.
pub const OPTIONS_HEADER: &str = "p2p-node-options";

/// `add PATH`: [`AddRequest`] → one [`crate::report::Added`].
pub const ADD: &str = "/v1/add";
/// `add -`: the content → one [`crate::report::Added`].
pub const ADD_STREAM: &str = "/v1/add-stream";
/// `get`: [`GetRequest`] → one [`crate::report::Got`].
pub const GET: &str = "/v1/get";
/// `cat`: [`CatRequest`] → [`super::frames`].
pub const CAT: &str = "/v1/cat";
/// `ls`: [`Nothing`] → [`crate::report::CatalogueLine`]s.
pub const LS: &str = "/v1/ls";
/// `ls REF`: [`ReferenceRequest`] → [`crate::report::DirectoryLine`]s.
pub const LS_INSIDE: &str = "/v1/ls-inside";
/// `stat REF`: [`StatRequest`] → one [`StatPart::Stat`], then a [`StatPart::Placement`] a chunk.
pub const STAT: &str = "/v1/stat";
/// `stat --local`: [`Nothing`] → [`crate::report::LocalChunk`]s.
pub const STAT_LOCAL: &str = "/v1/stat-local";
/// `watch`: [`Nothing`] → [`crate::report::Update`]s, until the connection is dropped.
pub const WATCH: &str = "/v1/watch";
/// `peers`: [`Nothing`] → [`crate::report::PeerLine`]s.
pub const PEERS: &str = "/v1/peers";
/// `connect`: [`ConnectRequest`] → the peer id.
pub const CONNECT: &str = "/v1/connect";
/// `status`: [`Nothing`] → one [`crate::report::Status`].
pub const STATUS: &str = "/v1/status";

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

/// A verb without arguments.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Nothing {}

/// `add PATH`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddRequest {
    /// Absolute.
    pub path: WirePath,
    /// As the caller wrote it.
    pub shown: String,
    /// How.
    pub options: AddOptions,
}

/// `get`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GetRequest {
    /// What.
    pub reference: String,
    /// Where to, absolute; `None`: under its label in `directory`.
    pub output: Option<WirePath>,
    /// The caller's current directory.
    pub directory: WirePath,
    /// Replace what is there.
    pub force: bool,
}

/// `cat`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CatRequest {
    /// What.
    pub reference: String,
    /// The first byte.
    pub offset: u64,
    /// How many; `None`: to the end.
    pub length: Option<u64>,
}

/// `ls REF`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReferenceRequest {
    /// What.
    pub reference: String,
}

/// `stat REF`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StatRequest {
    /// What.
    pub reference: String,
    /// Whether each chunk's copies are listed.
    pub placement: bool,
}

/// `connect`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConnectRequest {
    /// A multiaddr.
    pub address: String,
}

/// The answer to `stat REF`, in parts: the placement of a big DAG is far longer than a line may be.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatPart {
    /// All but the placement; `placement` is then empty, or `None` if it was not asked for.
    Stat(Stat),
    /// The copies of one chunk.
    Placement(Placement),
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
