//! The node: builds the rooms bottom-up, answers the verbs, stops top-down. SKELETON.

use std::path::PathBuf;

use bytes::Bytes;
use futures::stream::BoxStream;
use libp2p::Multiaddr;
use tokio::{io::AsyncRead, sync::watch};

use crate::{
    error::Result,
    report::{
        AddOptions, Added, CatalogueLine, DirectoryLine, GetOptions, Got, LocalChunk, PeerLine, Progress, Stat, Status,
        Update,
    },
    settings::Settings,
};

/// A running node: clone the handle freely.
#[derive(Clone, Debug)]
pub struct Node {}

/// What a daemon says when it serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ready {
    /// This node.
    pub peer_id: String,
    /// Real addresses, `/p2p/…` at the end.
    pub listen: Vec<String>,
}

#[allow(unused_variables, clippy::unimplemented, clippy::unused_async, missing_docs)]
impl Node {
    /// Opens the store (taking the data directory's lock first), joins the network, starts the services.
    pub async fn start(settings: Settings) -> Result<Self> {
        unimplemented!()
    }
    /// What `ready` says.
    pub fn ready(&self) -> Ready {
        unimplemented!()
    }
    /// Takes no more work, ends what is under way, closes the store. Within 10 s.
    pub async fn stop(&self) -> Result<()> {
        unimplemented!()
    }
    /// `add PATH`: `path` absolute, `shown` as the caller wrote it.
    pub async fn add_path(
        &self,
        path: PathBuf,
        shown: String,
        options: AddOptions,
        progress: watch::Sender<Progress>,
    ) -> Result<Added> {
        unimplemented!()
    }
    /// `add -`.
    pub async fn add_stream(
        &self,
        reader: Box<dyn AsyncRead + Send + Unpin>,
        options: AddOptions,
        progress: watch::Sender<Progress>,
    ) -> Result<Added> {
        unimplemented!()
    }
    /// `get`.
    pub async fn get(&self, options: GetOptions, progress: watch::Sender<Progress>) -> Result<Got> {
        unimplemented!()
    }
    /// `cat`: the bytes in order; the outer error is what is known before the first byte.
    pub async fn cat(
        &self,
        reference: String,
        offset: u64,
        length: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        unimplemented!()
    }
    /// `ls`.
    pub async fn ls(&self) -> Vec<CatalogueLine> {
        unimplemented!()
    }
    /// `ls REF`; of a file: the one line that it is.
    pub async fn ls_inside(&self, reference: String) -> Result<Vec<DirectoryLine>> {
        unimplemented!()
    }
    /// `stat REF`.
    pub async fn stat(&self, reference: String, placement: bool) -> Result<Stat> {
        unimplemented!()
    }
    /// `stat --local`.
    pub fn stat_local(&self) -> BoxStream<'static, Result<LocalChunk>> {
        unimplemented!()
    }
    /// `watch`: from now on, until dropped.
    pub fn watch(&self) -> BoxStream<'static, Update> {
        unimplemented!()
    }
    /// `peers`.
    pub fn peers(&self) -> Vec<PeerLine> {
        unimplemented!()
    }
    /// `connect`.
    pub async fn connect(&self, address: Multiaddr) -> Result<String> {
        unimplemented!()
    }
    /// `status`.
    pub async fn status(&self) -> Status {
        unimplemented!()
    }
}
