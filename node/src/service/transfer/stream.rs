//! Frames on a byte stream: reading them without copying payloads, writing them with few calls.
//!
//! Reads are large, so that many small frames cost one; a payload is read into a buffer of its own, made once, that
//! becomes the chunk. Writes gather small frames, and are flushed only by whoever has nothing more to say.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use p2p_protocol::wire::{
    frame::{HEADER_BYTES, Header},
    transfer::{Greeting, Message, WireError, carries_chunk, limit},
};
use tokio::time::{Instant, timeout};

/// Without a byte for so long in the middle of a frame, or of a write, the other side is gone or hostile.
pub(super) const STALL: Duration = Duration::from_secs(20);
/// A reader's buffer starts so small, because most sessions of a large network are idle …
const BUFFER_START_BYTES: usize = 4 * 1024;
/// … and grows to this while reads fill it: what TLS and the muxer deliver at once.
const BUFFER_MOST_BYTES: usize = 64 * 1024;
/// Small frames, and the head of a large one, are gathered up to so many bytes: one muxer frame.
const GATHER_BYTES: usize = 64 * 1024;
/// Payloads up to this are copied out of the read buffer; larger ones are read where they stay.
const COPY_BYTES: usize = 4 * 1024;

/// Why a stream cannot go on.
#[derive(Debug)]
pub(super) enum StreamError {
    /// It broke, or ended in the middle of a frame.
    Io(io::Error),
    /// What came is no message.
    Wire(WireError),
    /// Nothing moved for [`STALL`].
    Stalled,
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<WireError> for StreamError {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// Bytes of all sessions of a node since its start, of every frame and whatever it says.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) sent_bytes: AtomicU64,
    pub(super) received_bytes: AtomicU64,
}

/// When bytes last moved on a session, in either direction; they are counted as they do.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    last_milliseconds: AtomicU64,
    traffic: Arc<Traffic>,
}

impl Progress {
    pub(super) fn new(traffic: Arc<Traffic>) -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), last_milliseconds: AtomicU64::new(0), traffic })
    }

    fn sent(&self, bytes: usize) {
        self.traffic.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    fn received(&self, bytes: usize) {
        self.traffic.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.touch();
    }

    pub(super) fn touch(&self) {
        let milliseconds = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_milliseconds.store(milliseconds, Ordering::Relaxed);
    }

    pub(super) fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last_milliseconds.load(Ordering::Relaxed))
    }
}

/// Reads frames. One reader a stream.
pub(super) struct FrameReader<R> {
    io: R,
    /// Bytes `start..end` are read and not yet taken.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    progress: Arc<Progress>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(io: R, progress: Arc<Progress>) -> Self {
        Self { io, buffer: vec![0; BUFFER_START_BYTES], start: 0, end: 0, progress }
    }

    /// Waits, however long it takes, for the first byte of a frame; `false` at the end of the stream. Cancel-safe.
    pub(super) async fn ready(&mut self) -> Result<bool, StreamError> {
        Ok(self.start < self.end || self.fill().await? > 0)
    }

    /// Whether a byte is here already.
    pub(super) fn is_ready(&self) -> bool {
        self.start < self.end
    }

    /// Gives the buffer back while nothing comes.
    pub(super) fn rest(&mut self) {
        if self.start == self.end && self.buffer.len() > BUFFER_START_BYTES {
            self.buffer = vec![0; BUFFER_START_BYTES];
            (self.start, self.end) = (0, 0);
        }
    }

    /// The next header, its claim judged. Not cancel-safe.
    pub(super) async fn header(&mut self) -> Result<Header, StreamError> {
        while self.end - self.start < HEADER_BYTES {
            self.fill_or_fail().await?;
        }
        let mut head = [0; HEADER_BYTES];
        head.copy_from_slice(&self.buffer[self.start..self.start + HEADER_BYTES]);
        self.start += HEADER_BYTES;
        Ok(Header::decode(&head, limit).map_err(WireError::from)?)
    }

    /// The bytes of a frame whose header was accepted. Not cancel-safe.
    pub(super) async fn body(&mut self, length: u32) -> Result<Bytes, StreamError> {
        let length = length as usize;
        if length <= COPY_BYTES {
            while self.end - self.start < length {
                self.fill_or_fail().await?;
            }
            let body = Bytes::copy_from_slice(&self.buffer[self.start..self.start + length]);
            self.start += length;
            return Ok(body);
        }
        let mut body = vec![0; length];
        let mut have = self.take(&mut body);
        while have < length {
            let rest = &mut body[have..];
            if rest.len() >= self.buffer.len() {
                let read = within_stall(self.io.read(rest)).await?;
                if read == 0 {
                    return Err(ended());
                }
                self.progress.received(read);
                have += read;
            } else {
                // The last piece goes through the buffer, so that the next header comes with it.
                self.fill_or_fail().await?;
                have += self.take(&mut body[have..]);
            }
        }
        Ok(body.into())
    }

    /// Passes over the bytes of a frame, however many, without keeping them. Not cancel-safe.
    pub(super) async fn skip(&mut self, length: u32) -> Result<(), StreamError> {
        let mut rest = length as usize;
        loop {
            let passed = rest.min(self.end - self.start);
            self.start += passed;
            rest -= passed;
            if rest == 0 {
                return Ok(());
            }
            self.fill_or_fail().await?;
        }
    }

    fn take(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.end - self.start);
        out[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
        self.start += count;
        count
    }

    async fn fill_or_fail(&mut self) -> Result<(), StreamError> {
        match timeout(STALL, self.fill()).await {
            Err(_) => Err(StreamError::Stalled),
            Ok(Ok(0)) => Err(ended()),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(error),
        }
    }

    /// Reads once into the buffer: nothing is lost where it is cancelled.
    async fn fill(&mut self) -> Result<usize, StreamError> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let read = self.io.read(&mut self.buffer[self.end..]).await?;
        self.end += read;
        self.progress.received(read);
        if self.end == self.buffer.len() && self.buffer.len() < BUFFER_MOST_BYTES {
            self.buffer.resize((self.buffer.len() * 2).min(BUFFER_MOST_BYTES), 0);
        }
        Ok(read)
    }
}

fn ended() -> StreamError {
    StreamError::Io(io::ErrorKind::UnexpectedEof.into())
}

async fn within_stall<T>(future: impl Future<Output = io::Result<T>>) -> Result<T, StreamError> {
    match timeout(STALL, future).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(StreamError::Stalled),
    }
}

/// Writes frames. One writer a stream; no method is cancel-safe.
pub(super) struct FrameWriter<W> {
    io: W,
    gathered: Vec<u8>,
    progress: Arc<Progress>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    pub(super) fn new(io: W, progress: Arc<Progress>) -> Self {
        Self { io, gathered: Vec::new(), progress }
    }

    /// Takes a frame: a small one waits for company, a large one is written.
    pub(super) async fn push(&mut self, request: u32, message: &Message) -> Result<(), StreamError> {
        let payload = message.encode(request, &mut self.gathered);
        let room = GATHER_BYTES.saturating_sub(self.gathered.len());
        let (head, rest) = payload.split_at(room.min(payload.len()));
        self.gathered.extend_from_slice(head);
        if self.gathered.len() >= GATHER_BYTES {
            write_all(&mut self.io, &self.gathered, &self.progress).await?;
            self.gathered.clear();
        }
        write_all(&mut self.io, rest, &self.progress).await
    }

    /// Writes what waits, and asks the stream to send it on. An idle writer keeps no buffer.
    pub(super) async fn flush(&mut self) -> Result<(), StreamError> {
        let gathered = std::mem::take(&mut self.gathered);
        write_all(&mut self.io, &gathered, &self.progress).await?;
        within_stall(self.io.flush()).await
    }

    /// Ends this direction of the stream.
    pub(super) async fn close(&mut self) -> Result<(), StreamError> {
        self.flush().await?;
        within_stall(self.io.close()).await
    }
}

async fn write_all<W: AsyncWrite + Unpin>(
    io: &mut W,
    mut bytes: &[u8],
    progress: &Progress,
) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let written = within_stall(io.write(bytes)).await?;
        if written == 0 {
            return Err(StreamError::Io(io::ErrorKind::WriteZero.into()));
        }
        progress.sent(written);
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Says `own` and reads the other side's greeting; both speak at once. `None`: it began with something else.
pub(super) async fn greet<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    own: Greeting,
    reader: &mut FrameReader<R>,
    writer: &mut FrameWriter<W>,
) -> Result<Option<Greeting>, StreamError> {
    writer.push(0, &Message::Greeting(own)).await?;
    writer.flush().await?;
    let header = reader.header().await?;
    if carries_chunk(header.kind) {
        return Ok(None);
    }
    match Message::decode(header.kind, reader.body(header.length).await?) {
        Ok(Message::Greeting(greeting)) => Ok(Some(greeting)),
        Ok(_) | Err(WireError::Unsupported { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
