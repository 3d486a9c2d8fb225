//! Who has which chunks: asked of the peers nearest to each, and, for what none of those has, of every storing peer.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use p2p_protocol::{Key, Multihash, PeerId, placement::EXTRA_CANDIDATES};

use super::{locate::Locate, transfer::Transfer};

/// Asks about chunks, a batch after the other. A peer that does not answer is not asked again.
#[derive(Debug)]
pub struct Holders {
    transfer: Transfer,
    locate: Locate,
    silent: BTreeSet<PeerId>,
}

impl Holders {
    /// Nobody was asked yet.
    pub fn new(transfer: Transfer, locate: Locate) -> Self {
        Self { transfer, locate, silent: BTreeSet::new() }
    }

    /// The other peers that say that they have each of these, in their order; `copies` are wanted. A batch of 1024 costs
    /// each peer one question, or two. Cancel-safe.
    pub async fn of(&mut self, hashes: &[Multihash], copies: u8) -> Vec<Vec<PeerId>> {
        let mut found: Vec<BTreeSet<PeerId>> = vec![BTreeSet::new(); hashes.len()];
        if let Some(first) = hashes.first() {
            // In a large network those near to them are found first; of the others as many are known as there are.
            self.locate.ranked(first, 1).await;
        }
        let most = usize::from(copies) + EXTRA_CANDIDATES;
        let locate = self.locate.clone();
        let near = |hash: &Multihash| locate.known(&Key::from(hash), most);
        let questions = asked_of((0..).zip(hashes).map(|(at, hash)| (at, near(hash))));
        self.ask(questions, hashes, &mut found).await;
        let nowhere: Vec<usize> = (0..hashes.len()).filter(|at| found[*at].is_empty()).collect();
        if !nowhere.is_empty() {
            let everybody: Vec<PeerId> =
                self.locate.storing().into_iter().filter(|storing| storing.1).map(|storing| storing.0).collect();
            let beyond = nowhere.iter().map(|at| {
                let asked = near(&hashes[*at]);
                (*at, everybody.iter().copied().filter(|peer| !asked.contains(peer)).collect())
            });
            let questions = asked_of(beyond);
            self.ask(questions, hashes, &mut found).await;
        }
        found.into_iter().map(|peers| peers.into_iter().collect()).collect()
    }

    /// Those that were asked and did not answer.
    pub fn silent(&self) -> &BTreeSet<PeerId> {
        &self.silent
    }

    async fn ask(
        &mut self,
        mut questions: BTreeMap<PeerId, Vec<usize>>,
        hashes: &[Multihash],
        found: &mut [BTreeSet<PeerId>],
    ) {
        let local = self.locate.local();
        questions.retain(|peer, _| *peer != local && !self.silent.contains(peer));
        let mut asking = Vec::with_capacity(questions.len());
        for (peer, places) in &questions {
            let asked = places.iter().map(|at| hashes[*at]).collect();
            asking.push(self.transfer.holdings(*peer, asked));
        }
        let answers = join_all(asking).await;
        for ((peer, places), answer) in questions.iter().zip(answers) {
            match answer {
                Ok(held) => {
                    let has = places.iter().zip(&held).filter(|(_, held)| held.is_some());
                    for (at, _) in has {
                        found[*at].insert(*peer);
                    }
                }
                Err(error) => {
                    tracing::warn!("{peer} did not say what it holds, and is left out: {error}");
                    self.silent.insert(*peer);
                }
            }
        }
    }
}

/// What each peer is asked about.
fn asked_of(peers: impl Iterator<Item = (usize, Vec<PeerId>)>) -> BTreeMap<PeerId, Vec<usize>> {
    let mut questions: BTreeMap<PeerId, Vec<usize>> = BTreeMap::new();
    for (at, peers) in peers {
        peers.into_iter().for_each(|peer| questions.entry(peer).or_default().push(at));
    }
    questions
}
