//! A stream of the simulated network: bytes arrive in order, late by the link's delay, no faster than its bandwidth,
//! and not at all once the link is cut.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex, split},
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::{compat::TokioAsyncReadCompatExt as _, sync::CancellationToken};

use crate::net::Stream;

/// What a link is like, one way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Link {
    /// How late bytes arrive.
    pub latency: Duration,
    /// How many bytes pass in a second.
    pub bytes_per_second: u64,
}

impl Link {
    /// A wired LAN: 0.2 ms, 1 Gbit/s.
    pub const LAN: Self = Self { latency: Duration::from_micros(200), bytes_per_second: 125_000_000 };
    /// Across a continent: 20 ms, 100 Mbit/s.
    pub const WAN: Self = Self { latency: Duration::from_millis(20), bytes_per_second: 12_500_000 };
}

/// Bytes that an end may write before somebody reads them: a socket's buffer.
const BUFFER: usize = 256 * 1024;
/// Pieces on the wire at once; with pieces of 64 KiB, what a long fat link holds.
const ON_THE_WIRE: usize = 64;
const PIECE: usize = 64 * 1024;

/// Two ends of a stream over `link`; both fail when `cut` is cancelled.
pub fn pair(link: Link, cut: CancellationToken) -> (Stream, Stream) {
    let (ours, our_wire) = duplex(BUFFER);
    let (theirs, their_wire) = duplex(BUFFER);
    let (our_reader, our_writer) = split(our_wire);
    let (their_reader, their_writer) = split(their_wire);
    carry(our_reader, their_writer, link, cut.clone());
    carry(their_reader, our_writer, link, cut);
    (Box::new(ours.compat()), Box::new(theirs.compat()))
}

fn carry(mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>, link: Link, cut: CancellationToken) {
    let (wire, mut arrivals) = mpsc::channel::<(Instant, Bytes)>(ON_THE_WIRE);
    let sending = async move {
        let mut free_at = Instant::now();
        let mut buffer = vec![0; PIECE];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let micros = (read as u64).saturating_mul(1_000_000) / link.bytes_per_second.max(1);
            free_at = free_at.max(Instant::now()) + Duration::from_micros(micros);
            let piece = Bytes::copy_from_slice(&buffer[..read]);
            if wire.send((free_at + link.latency, piece)).await.is_err() {
                break;
            }
        }
    };
    let arriving = async move {
        while let Some((at, piece)) = arrivals.recv().await {
            sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        // The end of what was sent, as a closed stream is seen; failing means nobody is there to see it.
        let _ = to.shutdown().await;
    };
    let stop = cut.clone();
    tokio::spawn(stop.run_until_cancelled_owned(sending));
    tokio::spawn(cut.run_until_cancelled_owned(arriving));
}
