//! What the local API asks of a node. A trait, so that the API is tested against one that fails on demand.

use std::{future::Future, path::PathBuf};

use bytes::Bytes;
use futures::stream::BoxStream;
use libp2p::Multiaddr;
use tokio::{io::AsyncRead, sync::watch};

use crate::{
    error::Result,
    node::Node,
    report::{
        AddOptions, Added, CatalogueLine, DirectoryLine, GetOptions, Got, LocalChunk, PeerLine, Progress, Stat, Status,
        Update,
    },
};

/// The verbs of [`Node`]; dropping a future or a stream cancels the verb.
pub trait Verbs: Clone + Send + Sync + 'static {
    /// [`Node::add_path`].
    fn add_path(
        &self,
        path: PathBuf,
        shown: String,
        options: AddOptions,
        progress: watch::Sender<Progress>,
    ) -> impl Future<Output = Result<Added>> + Send;
    /// [`Node::add_stream`].
    fn add_stream(
        &self,
        reader: Box<dyn AsyncRead + Send + Unpin>,
        options: AddOptions,
        progress: watch::Sender<Progress>,
    ) -> impl Future<Output = Result<Added>> + Send;
    /// [`Node::get`].
    fn get(&self, options: GetOptions, progress: watch::Sender<Progress>) -> impl Future<Output = Result<Got>> + Send;
    /// [`Node::cat`].
    fn cat(
        &self,
        reference: String,
        offset: u64,
        length: Option<u64>,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Bytes>>>> + Send;
    /// [`Node::ls`].
    fn ls(&self) -> impl Future<Output = Vec<CatalogueLine>> + Send;
    /// [`Node::ls_inside`].
    fn ls_inside(&self, reference: String) -> impl Future<Output = Result<Vec<DirectoryLine>>> + Send;
    /// [`Node::stat`].
    fn stat(&self, reference: String, placement: bool) -> impl Future<Output = Result<Stat>> + Send;
    /// [`Node::stat_local`].
    fn stat_local(&self) -> BoxStream<'static, Result<LocalChunk>>;
    /// [`Node::watch`].
    fn watch(&self) -> BoxStream<'static, Update>;
    /// [`Node::peers`].
    fn peers(&self) -> Vec<PeerLine>;
    /// [`Node::connect`].
    fn connect(&self, address: Multiaddr) -> impl Future<Output = Result<String>> + Send;
    /// [`Node::status`].
    fn status(&self) -> impl Future<Output = Status> + Send;
}

impl Verbs for Node {
    fn add_path(
        &self,
        path: PathBuf,
        shown: String,
        options: AddOptions,
        progress: watch::Sender<Progress>,
    ) -> impl Future<Output = Result<Added>> + Send {
        Self::add_path(self, path, shown, options, progress)
    }

    fn add_stream(
        &self,
        reader: Box<dyn AsyncRead + Send + Unpin>,
        options: AddOptions,
        progress: watch::Sender<Progress>,
    ) -> impl Future<Output = Result<Added>> + Send {
        Self::add_stream(self, reader, options, progress)
    }

    fn get(&self, options: GetOptions, progress: watch::Sender<Progress>) -> impl Future<Output = Result<Got>> + Send {
        Self::get(self, options, progress)
    }

    fn cat(
        &self,
        reference: String,
        offset: u64,
        length: Option<u64>,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Bytes>>>> + Send {
        Self::cat(self, reference, offset, length)
    }

    fn ls(&self) -> impl Future<Output = Vec<CatalogueLine>> + Send {
        Self::ls(self)
    }

    fn ls_inside(&self, reference: String) -> impl Future<Output = Result<Vec<DirectoryLine>>> + Send {
        Self::ls_inside(self, reference)
    }

    fn stat(&self, reference: String, placement: bool) -> impl Future<Output = Result<Stat>> + Send {
        Self::stat(self, reference, placement)
    }

    fn stat_local(&self) -> BoxStream<'static, Result<LocalChunk>> {
        Self::stat_local(self)
    }

    fn watch(&self) -> BoxStream<'static, Update> {
        Self::watch(self)
    }

    fn peers(&self) -> Vec<PeerLine> {
        Self::peers(self)
    }

    fn connect(&self, address: Multiaddr) -> impl Future<Output = Result<String>> + Send {
        Self::connect(self, address)
    }

    fn status(&self) -> impl Future<Output = Status> + Send {
        Self::status(self)
    }
}
