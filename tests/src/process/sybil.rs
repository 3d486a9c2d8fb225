//! Peers that come nearest to what they please, and agree to everything: they take what they are given, renew it, claim to
//! have it, find every catalogue and every set equal, and keep nothing.
//!
//! A peer's place follows from its key alone (`SPEC.md`, "Placement"), and keys cost nothing: a few thousand of them are
//! made until one lies where it should.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures::AsyncWriteExt as _;
use libp2p::{PeerId, Stream, identity::Keypair};

use super::{
    evil::{frame, greeting, hello, read_frame},
    placement,
};

/// What such a peer was asked in earnest.
#[derive(Debug, Default)]
pub struct Asked {
    by: Mutex<BTreeMap<PeerId, Counts>>,
}

/// Chunks that one node asked it about.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// To keep them: offers and puts.
    pub kept: u64,
    /// To go on keeping them.
    pub renewed: u64,
    /// Whether it has them.
    pub looked_for: u64,
    /// To prove that it has them.
    pub proved: u64,
}

impl Asked {
    /// What the node of this id, base58, has asked so far.
    pub fn by(&self, peer: &str) -> Counts {
        let peer: PeerId = peer.parse().expect("a peer id");
        self.all().get(&peer).copied().unwrap_or_default()
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<PeerId, Counts>> {
        // Nothing under this lock panics.
        self.by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, peer: PeerId, change: impl FnOnce(&mut Counts)) {
        change(self.all().entry(peer).or_default());
    }
}

/// Keys of `count` peers that lie nearer to each of `chunks` than any of `others`: for one chunk, about one key does of as
/// many as there are others.
///
/// # Panics
/// If a million keys do not do: `others` stand on two sides of the chunks.
pub fn nearest(chunks: &[&str], others: &[&str], count: usize) -> Vec<Keypair> {
    let mut found = Vec::new();
    for _ in 0..1_000_000 {
        if found.len() == count {
            return found;
        }
        let keypair = Keypair::generate_ed25519();
        let peer = keypair.public().to_peer_id().to_string();
        let all = || others.iter().copied().chain([peer.as_str()]);
        if chunks.iter().all(|chunk| placement::closest(chunk, all(), 1) == [peer.as_str()]) {
            found.push(keypair);
        }
    }
    panic!("no key lies nearer to {chunks:?} than {others:?}");
}

/// Of transfer.
const GREETING: u8 = 0x01;
const GREET: u8 = 0x02;
const WANT: u8 = 0x10;
const MISSING: u8 = 0x12;
const HAVE: u8 = 0x20;
const HOLDINGS: u8 = 0x21;
const OFFER: u8 = 0x30;
const PUT: u8 = 0x31;
const KEPT: u8 = 0x32;
const RENEW: u8 = 0x36;
const RENEWED: u8 = 0x37;
/// Of audits and of catch-up: sets are compared.
const COMPARE: u8 = 0x10;
const COMPARED: u8 = 0x11;
/// Of audits.
const PROVE: u8 = 0x20;
const PROOFS: u8 = 0x21;
/// Of catch-up: entries are wanted, or pushed.
const WANT_ENTRIES: u8 = 0x20;
const ENTRIES: u8 = 0x21;
const PUSH: u8 = 0x30;
const TAKEN: u8 = 0x31;
/// Of any protocol.
const UNSUPPORTED: u8 = 0x7f;
const HASH_BYTES: usize = 34;
const OFFER_BYTES: usize = 40;
const NONCE_BYTES: usize = 32;
/// A message of set reconciliation: there is nothing to tell of any key.
const EQUAL: [u8; 2] = [0xff, 0];

/// Serves one stream of a protocol that `asker` opened.
pub(super) async fn agree(mut stream: Stream, protocol: &str, asker: PeerId, asked: &Asked) -> io::Result<()> {
    let greeting = if protocol == "transfer" { greeting() } else { hello() };
    stream.write_all(&greeting).await?;
    stream.flush().await?;
    loop {
        let (kind, request, body) = read_frame(&mut stream).await?;
        let answer = match (protocol, kind) {
            (_, GREETING) => continue,
            ("transfer", GREET) => greeting.clone(),
            ("transfer", _) => take(kind, request, &body, asker, asked),
            ("audit", COMPARE) => frame(COMPARED, request, &[&[0; 5][..], &EQUAL].concat()),
            ("audit", PROVE) => {
                let count = (body.len() - NONCE_BYTES) / HASH_BYTES;
                asked.count(asker, |counts| counts.proved += count as u64);
                // Sixteen bytes that are as good as any.
                frame(PROOFS, request, &[1; 17].repeat(count))
            }
            ("catalogue", COMPARE) => frame(COMPARED, request, &EQUAL),
            ("catalogue", WANT_ENTRIES) => frame(ENTRIES, request, &((body.len() / 32) as u16).to_be_bytes()),
            ("catalogue", PUSH) => frame(TAKEN, request, &entries(&body).to_be_bytes()),
            _ => frame(UNSUPPORTED, request, &[]),
        };
        stream.write_all(&answer).await?;
        stream.flush().await?;
    }
}

/// The answers to one request of the transfer protocol.
fn take(kind: u8, request: u32, body: &[u8], asker: PeerId, asked: &Asked) -> Vec<u8> {
    let each = |kind, count| (0..count as u32).flat_map(move |place| frame(kind, request.wrapping_add(place), &[]));
    let hashes = body.len() / HASH_BYTES;
    match kind {
        OFFER => {
            let count = body.len() / OFFER_BYTES;
            asked.count(asker, |counts| counts.kept += count as u64);
            each(KEPT, count).collect()
        }
        PUT => {
            asked.count(asker, |counts| counts.kept += 1);
            each(KEPT, 1).collect()
        }
        RENEW => {
            asked.count(asker, |counts| counts.renewed += hashes as u64);
            frame(RENEWED, request, &vec![1; hashes])
        }
        HAVE => {
            asked.count(asker, |counts| counts.looked_for += hashes as u64);
            // A MiB of each.
            frame(HOLDINGS, request, &[1, 0, 0, 0, 0, 0x10, 0, 0].repeat(hashes))
        }
        WANT => each(MISSING, hashes).collect(),
        _ => frame(UNSUPPORTED, request, &[]),
    }
}

/// How many entries a *push* has: each is two bytes of length and as many bytes.
fn entries(mut body: &[u8]) -> u16 {
    let mut count = 0;
    while let Some((length, rest)) = body.split_first_chunk::<2>() {
        body = rest.get(usize::from(u16::from_be_bytes(*length))..).unwrap_or_default();
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_that_lie_where_they_should() {
        let chunk = crate::process::forge::raw(&mut Default::default(), b"a chunk").text();
        let others: Vec<String> = (0..8).map(|_| PeerId::random().to_string()).collect();
        let others: Vec<&str> = others.iter().map(String::as_str).collect();
        let found = nearest(&[&chunk], &others, 3);
        let found: Vec<String> = found.iter().map(|key| key.public().to_peer_id().to_string()).collect();
        let all = others.iter().copied().chain(found.iter().map(String::as_str));
        let closest = placement::closest(&chunk, all, 3);
        assert!(closest.iter().all(|peer| found.iter().any(|one| one == peer)), "{closest:?} are not {found:?}");
    }

    #[test]
    fn what_is_pushed_is_counted() {
        assert_eq!(entries(&[]), 0);
        assert_eq!(entries(&[0, 1, 7, 0, 2, 7, 7]), 2);
    }
}
