//! Writing one file: its leaves out of order at their offsets, those that stand there already kept.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::Arc,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use p2p_protocol::{
    Chunk, Cid, Codec,
    dag::{FileWalker, Step, check_leaf},
};

use super::{Job, Result, WriteError};
use crate::service::{blocking::Unfinished, fetch::ChunkSource};

/// Leaves of one file that are under way at once; the job's window bounds their bytes.
const LEAVES: usize = 64;
/// A larger file is begun only where its disk has room for all of it: a few chunks that link to themselves make a file of a
/// thousand terabytes, and filling the disk with a part of what cannot fit helps nobody. (A file system that compresses
/// might have taken a file that is refused here.)
const ROOM_ASKED_BYTES: u64 = 16 << 20;
/// After so many bytes written what is dirty is sent to the disk, so that the last sync finds little left to do.
const SYNC_EVERY_BYTES: u64 = 64 << 20;

/// Writes the file whose root is `root` into `file`, which may hold an earlier attempt at it. Gives its content bytes.
pub(super) async fn write<S: ChunkSource>(job: &Job<S>, root: &Chunk, file: Arc<File>) -> Result<u64> {
    let mut walker = FileWalker::new(root, 0..u64::MAX).map_err(|why| job.refused(why))?;
    let size = walker.size();
    let (present, held_bytes) = match file.metadata() {
        Ok(found) => (found.len(), found.blocks().saturating_mul(512)),
        Err(why) => return Err(job.io("the partial", &why)),
    };
    if size > ROOM_ASKED_BYTES {
        let disk = file.clone();
        let free = job.blocking.run(move || rustix::fs::fstatvfs(&*disk)).await?;
        let free = free.map_err(|why| job.io("the partial", &why.into()))?;
        let free_bytes = free.f_bavail.saturating_mul(free.f_frsize);
        if size > free_bytes.saturating_add(held_bytes) {
            return Err(WriteError::NoRoom { reference: job.reference.clone(), size, free_bytes });
        }
    }
    let mut writing = FuturesUnordered::new();
    let mut inner: Option<BoxFuture<'_, Result<Chunk>>> = None;
    let mut syncing: Option<BoxFuture<'_, Result<io::Result<()>, Unfinished>>> = None;
    let mut unsynced = 0;
    loop {
        while inner.is_none() && writing.len() < LEAVES {
            match walker.next_step() {
                None => break,
                Some(Step::Inner(cid)) => inner = Some(node(job, cid).boxed()),
                Some(Step::Bytes { offset, bytes }) => {
                    let file = file.clone();
                    writing.push(
                        async move {
                            let length = bytes.len() as u64;
                            write_at(job, file, bytes, offset).await?;
                            Ok(length)
                        }
                        .boxed(),
                    );
                }
                Some(Step::Leaf { cid, offset, length, .. }) => {
                    writing.push(leaf(job, file.clone(), cid, offset, length, present).boxed());
                }
            }
        }
        if writing.is_empty() && inner.is_none() {
            break;
        }
        tokio::select! {
            Some(written) = writing.next() => {
                let written: Result<u64> = written;
                let written = written?;
                unsynced += written;
                if unsynced >= SYNC_EVERY_BYTES && syncing.is_none() {
                    unsynced = 0;
                    let file = file.clone();
                    syncing = Some(job.blocking.run(move || file.sync_data()).boxed());
                }
            }
            Some(chunk) = OptionFuture::from(inner.as_mut()), if inner.is_some() => {
                inner = None;
                walker.expand(&chunk?).map_err(|why| job.refused(why))?;
            }
            Some(synced) = OptionFuture::from(syncing.as_mut()), if syncing.is_some() => {
                syncing = None;
                synced?.map_err(|why| job.io("the partial", &why))?;
            }
        }
    }
    if let Some(syncing) = syncing {
        syncing.await?.map_err(|why| job.io("the partial", &why))?;
    }
    if present != size {
        job.blocking.run(move || file.set_len(size)).await?.map_err(|why| job.io("the partial", &why))?;
    }
    Ok(size)
}

async fn node<S: ChunkSource>(job: &Job<S>, cid: Cid) -> Result<Chunk> {
    let bytes = 64 * 1024;
    let _permit = job.permit(bytes).await?;
    job.chunk(cid, bytes).await
}

/// Has one leaf in its place; gives the bytes that were written for it.
async fn leaf<S: ChunkSource>(
    job: &Job<S>,
    file: Arc<File>,
    cid: Cid,
    offset: u64,
    length: u64,
    present: u64,
) -> Result<u64> {
    let _permit = job.permit(length).await?;
    // A parent may claim any length; no raw leaf over the most that a chunk has is there to be found.
    let fits = length <= p2p_protocol::MAX_CHUNK_BYTES as u64;
    if fits && cid.codec == Codec::Raw && offset < present && offset + length <= present {
        let there = file.clone();
        let kept = job.blocking.run(move || holds(&there, cid, offset, length as usize)).await?;
        if kept {
            job.count_kept(&cid, length)?;
            job.wrote(length);
            return Ok(0);
        }
    }
    let chunk = job.chunk(cid, length).await?;
    let bytes = check_leaf(&chunk, length).map_err(|why| job.refused(why))?;
    write_at(job, file, bytes, offset).await?;
    Ok(length)
}

/// Whether a file has these bytes already. Blocks.
pub(super) fn holds(file: &File, cid: Cid, offset: u64, length: usize) -> bool {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).is_ok() && Chunk::verify(cid, bytes).is_ok()
}

async fn write_at<S: ChunkSource>(job: &Job<S>, file: Arc<File>, bytes: bytes::Bytes, offset: u64) -> Result<()> {
    let length = bytes.len() as u64;
    let written = job.blocking.run(move || file.write_all_at(&bytes, offset)).await?;
    written.map_err(|why| job.io(&job.partial.display().to_string(), &why))?;
    job.wrote(length);
    Ok(())
}
