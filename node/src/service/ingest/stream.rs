//! Reading a stream of bytes of unknown length as one file.

use std::io;

use futures::future::BoxFuture;
use p2p_protocol::{
    Cid,
    catalogue::Kind,
    chunker::Chunker,
    dag::{Link, Metadata},
};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{AddError, BATCH_BYTES, Batch, ReadOptions, Reader, Result, leaves::Leaves};
use crate::service::{blocking::Blocking, reason::reason};

/// The read of one stream.
pub(super) struct StreamReader {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    chunker: Chunker,
    leaves: Option<Leaves>,
    root: Option<Link>,
}

impl StreamReader {
    pub(super) fn new(reader: Box<dyn AsyncRead + Send + Unpin>, options: ReadOptions) -> Result<Self> {
        let leaves = Some(Leaves::new(Metadata::default()));
        Ok(Self { reader, chunker: chunker(options)?, leaves, root: None })
    }

    async fn read(mut self, blocking: Blocking) -> Result<(Self, Batch)> {
        let mut leaves = self.leaves.take().unwrap_or_else(|| Leaves::new(Metadata::default()));
        let mut bytes = 0;
        let mut ended = false;
        while !ended && leaves.waiting_bytes() < BATCH_BYTES {
            let read = self.reader.read(self.chunker.spare()).await.map_err(|why| broken(&why))?;
            bytes += read as u64;
            self.chunker.advance(read);
            while let Some(leaf) = self.chunker.next_chunk() {
                leaves.push(leaf);
            }
            ended = read == 0;
        }
        if ended {
            self.chunker.finish().into_iter().for_each(|leaf| leaves.push(leaf));
        }
        let step = move || {
            let mut batch = Batch { bytes, ..Batch::default() };
            if ended {
                self.root = Some(leaves.finish(&mut batch));
            } else {
                leaves.settle(&mut batch);
                self.leaves = Some(leaves);
            }
            (self, batch)
        };
        Ok(blocking.run(step).await?)
    }
}

impl Reader for StreamReader {
    fn next(self, blocking: Blocking) -> BoxFuture<'static, Result<(Self, Batch)>> {
        Box::pin(self.read(blocking))
    }

    fn done(&self) -> bool {
        self.root.is_some()
    }

    fn current(&self) -> Option<String> {
        None
    }

    fn total_bytes(&self) -> Option<u64> {
        None
    }

    fn outcome(self) -> Result<(Link, Kind)> {
        let root = self
            .root
            .ok_or_else(|| AddError::Failed { shown: "-".to_owned(), why: "it was not read to its end".to_owned() })?;
        Ok((root, Kind::File))
    }
}

/// The root of what a blocking reader gives.
pub(super) fn hash_only(reader: &mut dyn io::Read, options: ReadOptions) -> Result<Cid> {
    let mut chunker = chunker(options)?;
    let mut leaves = Leaves::new(Metadata::default());
    loop {
        match reader.read(chunker.spare()) {
            Ok(0) => break,
            Ok(read) => chunker.advance(read),
            Err(why) if why.kind() == io::ErrorKind::Interrupted => {}
            Err(why) => return Err(broken(&why)),
        }
        while let Some(leaf) = chunker.next_chunk() {
            leaves.push(leaf);
        }
        if leaves.waiting_bytes() >= BATCH_BYTES {
            leaves.settle(&mut Batch::default());
        }
    }
    chunker.finish().into_iter().for_each(|leaf| leaves.push(leaf));
    Ok(leaves.finish(&mut Batch::default()).cid)
}

fn chunker(options: ReadOptions) -> Result<Chunker> {
    Chunker::new(options.chunker).map_err(|why| AddError::BadChunker { shown: "-".to_owned(), why: why.to_string() })
}

fn broken(why: &io::Error) -> AddError {
    AddError::Stream(reason(why))
}
