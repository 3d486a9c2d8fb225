//! Writes gathered between two turns of a connection's task, so that what is said at once goes as one packet.
//!
//! Yamux writes the twelve bytes of a frame's header by themselves and flushes after each frame, and a connection begins
//! with a dozen short streams: written one by one, each piece is a record of TLS (22 bytes more) and a packet (66 more). A
//! flush is held back here until the task that asks for it has done all that it can do now. In a connection's first second
//! it is held back a moment longer: both sides have much to say then, and nobody waits for any of it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures::{
    AsyncRead, AsyncWrite,
    io::{BufWriter, IoSliceMut},
    task::AtomicWaker,
};
use tokio::time::sleep;

use crate::runner::now;

/// What is gathered at the most. The bodies of chunks are longer, and go as they are.
const GATHERED_BYTES: usize = 4096;
/// How long a connection is young: its handshakes, greetings and first comparisons are over then.
const YOUNG: Duration = Duration::from_secs(1);
/// How long a flush of a young connection waits for more: longer than two peers on one network take to answer each other.
const MOMENT: Duration = Duration::from_millis(3);

/// A turn that was asked for: another task, which the runtime runs once this one has nothing left to do.
#[derive(Debug, Default)]
struct Turn {
    over: AtomicBool,
    waker: AtomicWaker,
}

/// A stream whose small writes are gathered. Lives in a tokio runtime.
pub(super) struct Gather<S> {
    inner: BufWriter<S>,
    turn: Option<Arc<Turn>>,
    began: Instant,
}

impl<S: AsyncWrite> Gather<S> {
    /// Nothing was written yet.
    pub fn new(stream: S) -> Self {
        Self { inner: BufWriter::with_capacity(GATHERED_BYTES, stream), turn: None, began: now() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.inner.get_mut()).poll_read(context, buffer)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.inner.get_mut()).poll_read_vectored(context, buffers)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.inner.buffer().is_empty() {
            let wait = if now().duration_since(self.began) < YOUNG { MOMENT } else { Duration::ZERO };
            let turn = self.turn.get_or_insert_with(|| {
                let turn = Arc::new(Turn::default());
                let ending = turn.clone();
                tokio::spawn(async move {
                    if !wait.is_zero() {
                        sleep(wait).await;
                    }
                    ending.over.store(true, Ordering::Release);
                    ending.waker.wake();
                });
                turn
            });
            turn.waker.register(context.waker());
            if !turn.over.load(Ordering::Acquire) {
                return Poll::Pending;
            }
        }
        ready!(Pin::new(&mut self.inner).poll_flush(context))?;
        self.turn = None;
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::{AsyncWriteExt as _, poll};

    use super::*;

    /// What reached the stream: each write by itself.
    #[derive(Default)]
    struct Pieces(Vec<usize>);

    impl AsyncWrite for Pieces {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.0.push(bytes.len());
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_is_said_in_one_turn_goes_at_once() {
        let mut stream = Gather::new(Pieces::default());
        // As Yamux does: a flush that has to wait keeps it from nothing.
        std::future::poll_fn(|context| {
            for _ in 0..5 {
                assert!(Pin::new(&mut stream).poll_write(context, &[0; 12]).is_ready());
                assert!(Pin::new(&mut stream).poll_flush(context).is_pending());
            }
            Poll::Ready(())
        })
        .await;
        stream.flush().await.expect("it takes everything");
        assert_eq!(stream.inner.get_ref().0, [60]);
        // The next turn is another one.
        stream.write_all(&[0; 12]).await.expect("it takes everything");
        stream.flush().await.expect("it takes everything");
        assert_eq!(stream.inner.get_ref().0, [60, 12]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_young_connection_waits_a_moment_and_an_older_one_does_not() {
        let mut stream = Gather::new(Pieces::default());
        for (age, waits) in [(Duration::ZERO, true), (YOUNG, false)] {
            sleep(age).await;
            stream.write_all(&[0; 12]).await.expect("it takes everything");
            let asked = poll!(stream.flush());
            assert!(asked.is_pending());
            // Whatever else is to be done is done.
            sleep(MOMENT / 2).await;
            assert_eq!(poll!(stream.flush()).is_pending(), waits, "{age:?}");
            stream.flush().await.expect("it takes everything");
        }
        assert_eq!(stream.inner.get_ref().0, [12, 12]);
    }

    #[tokio::test]
    async fn long_writes_are_not_held_back() {
        let mut stream = Gather::new(Pieces::default());
        stream.write_all(&[0; 12]).await.expect("it takes everything");
        stream.write_all(&[0; 16_384]).await.expect("it takes everything");
        assert_eq!(stream.inner.get_ref().0, [12, 16_384]);
        assert!(stream.flush().await.is_ok());
    }
}
