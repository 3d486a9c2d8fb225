//! The physical references of `scripts/bench.sh`: hashing alone, and a raw libp2p stream between two processes over
//! the node's own transport. Makes the benchmark's input too. Prints seconds.
//!
//! ```text
//! bench-reference make-file PATH BYTES      incompressible bytes
//! bench-reference make-tree PATH FILES      small files, 100 a directory
//! bench-reference hash PATH                 BLAKE3, one thread, 1 MiB at a time
//! bench-reference serve BYTES               prints its address, sends BYTES to whoever opens a stream, ends
//! bench-reference receive ADDRESS           reads it all
//! bench-reference rank PEERS CHUNKS         places chunks: with a look at every peer, and as the node does
//! ```

use std::{
    error::Error,
    fs::{self, File},
    io::{BufWriter, Read as _, Write as _},
    path::Path,
    time::Instant,
};

use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use p2p_node::net::{self, Config, Driver, Listen, Network, Source, TransportKind};
use p2p_protocol::{
    Key,
    placement::{Candidate, EXTRA_CANDIDATES, closest},
    ranking::Ranking,
};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

const PROTOCOL: &str = "/p2p-node/bench/stream/1";
const PIECE: usize = 1 << 20;
/// Small files: 200 B to 8 KiB, as sources and notes are.
const SMALL: std::ops::Range<u32> = 200..8_192;

fn main() -> Outcome {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make-file", path, bytes] => make_file(Path::new(path), bytes.parse()?),
        ["make-tree", path, files] => make_tree(Path::new(path), files.parse()?),
        ["hash", path] => hash(Path::new(path)),
        ["serve", bytes] => runtime()?.block_on(serve(bytes.parse()?)),
        ["receive", address] => runtime()?.block_on(receive(address.parse()?)),
        ["rank", peers, chunks] => rank(peers.parse()?, chunks.parse()?),
        _ => Err("usage: bench-reference make-file|make-tree|hash|serve|receive|rank …".into()),
    }
}

fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn make_file(path: &Path, bytes: u64) -> Outcome {
    let mut random = StdRng::seed_from_u64(bytes);
    let mut out = BufWriter::with_capacity(PIECE, File::create(path)?);
    let mut piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(PIECE as u64);
        random.fill_bytes(&mut piece);
        out.write_all(&piece[..usize::try_from(now)?])?;
        left -= now;
    }
    out.into_inner()?.sync_all()?;
    Ok(())
}

fn make_tree(path: &Path, files: u64) -> Outcome {
    let mut random = StdRng::seed_from_u64(files);
    for number in 0..files {
        let directory = path.join(format!("{:04}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&directory)?;
        }
        let length = SMALL.start + random.next_u32() % (SMALL.end - SMALL.start);
        let mut content = vec![0; length as usize];
        random.fill_bytes(&mut content);
        fs::write(directory.join(format!("file-{number:06}")), content)?;
    }
    Ok(())
}

fn hash(path: &Path) -> Outcome {
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE];
    let began = Instant::now();
    let mut last = [0; 32];
    let mut reading = std::time::Duration::ZERO;
    loop {
        let before = Instant::now();
        let read = file.read(&mut piece)?;
        reading += before.elapsed();
        if read == 0 {
            break;
        }
        last = *blake3::hash(&piece[..read]).as_bytes();
    }
    std::hint::black_box(last);
    println!("{:.4}", (began.elapsed() - reading).as_secs_f64());
    Ok(())
}

fn rank(peers: usize, chunks: u64) -> Outcome {
    // Three copies, and those who are asked when one of the three refuses.
    const ASKED: usize = 3 + EXTRA_CANDIDATES;
    let everybody: Vec<Candidate> =
        (0..peers).map(|_| Candidate::from(Keypair::generate_ed25519().public().to_peer_id())).collect();
    let keys: Vec<Key> = (0..chunks).map(|chunk| Key(*blake3::hash(&chunk.to_be_bytes()).as_bytes())).collect();
    let timed = |place: &dyn Fn(&Key) -> Vec<PeerId>| {
        let began = Instant::now();
        let last = keys.iter().map(place).last();
        std::hint::black_box(last);
        began.elapsed().as_secs_f64()
    };
    let ranking = Ranking::new(everybody.iter().copied());
    let (all, nearest) = (timed(&|key| closest(key, &everybody, ASKED)), timed(&|key| ranking.nearest(key, ASKED)));
    println!("{all:.4} {nearest:.4}");
    Ok(())
}

async fn node() -> Outcome<(Network, Driver)> {
    let config = Config {
        keypair: Keypair::generate_ed25519(),
        network: "bench".to_owned(),
        listen: Listen::Exact(vec!["/ip4/127.0.0.1/tcp/0".parse()?]),
        bootstrap: Vec::new(),
        known: Vec::new(),
        mdns: false,
        transport: TransportKind::Real,
    };
    Ok(net::start(config).await?)
}

async fn serve(bytes: u64) -> Outcome {
    let (network, driver) = node().await?;
    let mut inbound = network.accept_streams(PROTOCOL, 4).await?;
    let address = network.peers().borrow().listen.first().cloned().ok_or("no address")?;
    println!("{}", address.with(Protocol::P2p(network.local())));
    std::io::stdout().flush()?;
    let (_, mut stream) = inbound.recv().await.ok_or("nobody came")?;
    let mut piece = vec![0; PIECE];
    StdRng::seed_from_u64(1).fill_bytes(&mut piece);
    let piece = Bytes::from(piece);
    stream.write_all(&bytes.to_be_bytes()).await?;
    let mut left = bytes;
    while left > 0 {
        let now = left.min(PIECE as u64);
        stream.write_all(&piece[..usize::try_from(now)?]).await?;
        left -= now;
    }
    stream.flush().await?;
    // The reader says that it has it all, or is gone.
    let _ = stream.read(&mut [0; 1]).await;
    driver.stop().await;
    Ok(())
}

async fn receive(address: Multiaddr) -> Outcome {
    let (network, driver) = node().await?;
    let peer = network.dial(address, Source::Manual).await?;
    let mut stream = network.open_stream(peer, PROTOCOL).await?;
    let mut announced = [0; 8];
    stream.read_exact(&mut announced).await?;
    let began = Instant::now();
    let mut left = u64::from_be_bytes(announced);
    let mut piece = vec![0; PIECE];
    while left > 0 {
        let now = usize::try_from(left.min(PIECE as u64))?;
        stream.read_exact(&mut piece[..now]).await?;
        left -= now as u64;
    }
    println!("{:.4}", began.elapsed().as_secs_f64());
    stream.write_all(&[1]).await?;
    stream.close().await?;
    driver.stop().await;
    Ok(())
}
