//! Which chunk is asked of whom: rounds of candidates, a window for each peer, hedging of what is late.
//!
//! Wants come in and each ends exactly once, in [`Output::Found`] or [`Output::NotFound`], whatever the order of the
//! answers: every wait inside has a deadline, so that passing time alone brings an end. Candidates are asked in rounds
//! (the k closest, then k + 4, then twice as many each time), then whoever [`Output::Widen`] brings (publishers and
//! providers), then once more those whose session broke. The windows are additive-increase, multiplicative-decrease
//! (Jacobson, 1988; RFC 5681); hedged requests follow Dean and Barroso, "The Tail at Scale" (2013).

mod peer;
#[cfg(test)]
mod tests;
mod want;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use self::{
    peer::Peer,
    want::{Attempt, Next, Want},
};
use crate::{PeerId, machine::StateMachine};

/// The most asks for one want at the same time: the first, and two that hedge it.
const MAX_ASKS: usize = 3;
/// Of the asks in flight, one in so many may be a hedge (two are always allowed), so that a link that is slow for
/// everybody is not made slower by asking for everything twice.
const HEDGES_ONE_IN: usize = 8;
/// After so long an ask is given up as failed: longer than any session waits for an answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// After so long candidates that did not come are taken to be none: longer than a lookup takes.
const CANDIDATES_TIMEOUT: Duration = Duration::from_secs(30);

/// The name of a want, chosen by the driver and never used twice.
pub type WantId = u64;

/// What happened outside.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Somebody wants a chunk of about so many bytes (a guess is enough: it only weighs the windows).
    Want {
        /// The want.
        want: WantId,
        /// Expected payload bytes.
        bytes: u32,
    },
    /// Nobody wants it any more: it ends without an output.
    Cancel {
        /// The want.
        want: WantId,
    },
    /// The answer to [`Output::Locate`]: as many storing peers as it asked for, nearest first, this node left out; fewer
    /// where no more are known.
    Candidates {
        /// The want.
        want: WantId,
        /// Nearest first.
        peers: Vec<PeerId>,
    },
    /// The answer to [`Output::Widen`]: who else may have it.
    More {
        /// The want.
        want: WantId,
        /// In the order in which to ask.
        peers: Vec<PeerId>,
    },
    /// A peer gave the chunk, and its bytes are right.
    Delivered {
        /// The want.
        want: WantId,
        /// Who gave it.
        peer: PeerId,
    },
    /// A peer does not have it.
    Missing {
        /// The want.
        want: WantId,
        /// Who said so.
        peer: PeerId,
    },
    /// The session broke, could not be opened, or was silent for too long.
    Failed {
        /// The want.
        want: WantId,
        /// Whose it was.
        peer: PeerId,
    },
    /// A peer sent wrong bytes or broke the protocol: it is asked for nothing any more.
    Wrong {
        /// The want.
        want: WantId,
        /// The liar.
        peer: PeerId,
    },
}

/// What the driver is to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Rank the nearest storing peers for this want; answered by [`Input::Candidates`]. Said again, with a greater number,
    /// when those were asked.
    Locate {
        /// The want.
        want: WantId,
        /// How many.
        most: usize,
    },
    /// All of those were asked: find publishers and providers; answered by [`Input::More`].
    Widen {
        /// The want.
        want: WantId,
    },
    /// Ask a peer for the chunk.
    Ask {
        /// The want.
        want: WantId,
        /// The peer.
        peer: PeerId,
    },
    /// The answer to this ask is not needed any more, and is not waited for.
    Abandon {
        /// The want.
        want: WantId,
        /// The peer.
        peer: PeerId,
    },
    /// The want is over: this peer gave it.
    Found {
        /// The want.
        want: WantId,
        /// The peer.
        peer: PeerId,
    },
    /// The want is over: nobody has it.
    NotFound {
        /// The want.
        want: WantId,
        /// How many peers were asked.
        asked: usize,
    },
}

/// The state machine; one reader's. Its size follows the wants that are open, which the driver bounds, and the peers
/// that were ever candidates.
#[derive(Debug)]
pub struct Fetch {
    replicas: usize,
    wants: BTreeMap<WantId, Want>,
    peers: BTreeMap<PeerId, Peer>,
    outputs: VecDeque<Output>,
    /// Asks in flight, and how many of them are hedges.
    asks: usize,
    hedges: usize,
}

impl Fetch {
    /// A machine whose first round is the `replicas` closest.
    pub fn new(replicas: u8) -> Self {
        Self {
            replicas: usize::from(replicas.max(1)),
            wants: BTreeMap::new(),
            peers: BTreeMap::new(),
            outputs: VecDeque::new(),
            asks: 0,
            hedges: 0,
        }
    }

    /// How many wants are open.
    pub fn open(&self) -> usize {
        self.wants.len()
    }

    /// How many asks a peer may have in flight now.
    pub fn window(&self, peer: &PeerId) -> usize {
        self.peers.get(peer).map_or(peer::FIRST_WINDOW, Peer::window)
    }

    /// Takes the ask of `want` to `peer` out of flight; `None` if there is none (an answer that came too late).
    fn take_ask(&mut self, want: WantId, peer: &PeerId) -> Option<Attempt> {
        let attempt = self.wants.get_mut(&want)?.take_attempt(peer)?;
        self.landed(peer, &attempt);
        Some(attempt)
    }

    fn landed(&mut self, peer: &PeerId, attempt: &Attempt) {
        self.asks -= 1;
        self.hedges -= usize::from(attempt.hedge);
        if let Some(state) = self.peers.get_mut(peer) {
            state.landed(attempt.bytes);
        }
    }

    /// Ends a want: its asks are abandoned.
    fn end(&mut self, want: WantId) -> Option<Want> {
        let mut ended = self.wants.remove(&want)?;
        for (peer, attempt) in ended.take_attempts() {
            self.landed(&peer, &attempt);
            self.outputs.push_back(Output::Abandon { want, peer });
        }
        Some(ended)
    }

    /// Gives work to whoever has room for it, oldest want first, until nobody has or nothing is left.
    fn assign(&mut self, now: Instant) {
        self.peers.values_mut().for_each(|peer| peer.forgive(now));
        let open: Vec<WantId> = self.wants.iter().filter(|(_, want)| want.needs_ask()).map(|(id, _)| *id).collect();
        for id in open {
            self.advance(now, id);
        }
    }

    /// Moves one want forward: an ask, the next round, or its end.
    fn advance(&mut self, now: Instant, id: WantId) {
        loop {
            let Some(want) = self.wants.get_mut(&id) else { return };
            if !want.needs_ask() {
                return;
            }
            match want.next(now, &self.peers, self.replicas) {
                Next::Ask(peer) => {
                    self.ask(now, id, peer, false);
                    return;
                }
                Next::Wait => return,
                Next::Widen => self.outputs.push_back(Output::Widen { want: id }),
                Next::Locate { most } => self.outputs.push_back(Output::Locate { want: id, most }),
                Next::Again => {}
                Next::NotFound { asked } => {
                    self.end(id);
                    self.outputs.push_back(Output::NotFound { want: id, asked });
                    return;
                }
            }
        }
    }

    fn ask(&mut self, now: Instant, id: WantId, peer: PeerId, hedge: bool) {
        let Some(want) = self.wants.get_mut(&id) else { return };
        let state = self.peers.entry(peer).or_default();
        let late_at = now + state.patience();
        let attempt = Attempt { asked_at: now, late_at, late: false, hedge, bytes: want.bytes() };
        state.took_off(want.bytes());
        want.begin(peer, attempt);
        self.asks += 1;
        self.hedges += usize::from(hedge);
        self.outputs.push_back(Output::Ask { want: id, peer });
    }

    /// Marks what is late, asks a second peer for it where the budget allows, and gives up what is silent.
    fn check_asks(&mut self, now: Instant) {
        let mut late = Vec::new();
        let mut silent = Vec::new();
        for (id, want) in &mut self.wants {
            for (peer, attempt) in want.attempts_mut() {
                if now >= attempt.asked_at + ASK_TIMEOUT {
                    silent.push((*id, *peer));
                } else if now >= attempt.late_at {
                    late.push((*id, *peer));
                }
            }
        }
        for (id, peer) in silent {
            self.outputs.push_back(Output::Abandon { want: id, peer });
            self.fail(now, id, peer);
        }
        for (id, peer) in late {
            let Some(want) = self.wants.get_mut(&id) else { continue };
            let Some(attempt) = want.attempt_mut(&peer) else { continue };
            // Looked at again after as long as it has taken already: each time there may be a peer with room.
            attempt.late_at = now + (now - attempt.asked_at).max(Duration::from_millis(50));
            if !attempt.late {
                attempt.late = true;
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.was_late();
                }
            }
            let allowed = (self.asks / HEDGES_ONE_IN).max(2);
            if want.in_flight() < MAX_ASKS
                && self.hedges < allowed
                && let Some(second) = want.second(&self.peers)
            {
                self.ask(now, id, second, true);
            }
        }
    }

    fn fail(&mut self, now: Instant, want: WantId, peer: PeerId) {
        if self.take_ask(want, &peer).is_some() {
            if let Some(state) = self.peers.get_mut(&peer) {
                state.failed(now);
            }
            if let Some(want) = self.wants.get_mut(&want) {
                want.failed(peer);
            }
        }
    }
}

impl StateMachine for Fetch {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Want { want, bytes } => {
                if self.wants.contains_key(&want) {
                    return;
                }
                let open = Want::new(bytes, self.replicas, now + CANDIDATES_TIMEOUT);
                self.outputs.push_back(Output::Locate { want, most: open.most() });
                self.wants.insert(want, open);
            }
            Input::Cancel { want } => drop(self.end(want)),
            Input::Candidates { want, peers } => {
                if let Some(open) = self.wants.get_mut(&want) {
                    open.candidates(peers);
                }
            }
            Input::More { want, peers } => {
                if let Some(open) = self.wants.get_mut(&want) {
                    open.more(peers);
                }
            }
            Input::Delivered { want, peer } => {
                if let Some(attempt) = self.take_ask(want, &peer) {
                    if let Some(state) = self.peers.get_mut(&peer) {
                        state.delivered(now, attempt.asked_at, attempt.late);
                    }
                    self.end(want);
                    self.outputs.push_back(Output::Found { want, peer });
                }
            }
            Input::Missing { want, peer } => {
                if self.take_ask(want, &peer).is_some()
                    && let Some(state) = self.peers.get_mut(&peer)
                {
                    state.answered();
                }
            }
            Input::Failed { want, peer } => self.fail(now, want, peer),
            Input::Wrong { want, peer } => {
                // Late or not, whoever lies once is out.
                self.peers.entry(peer).or_default().ban();
                self.take_ask(want, &peer);
            }
        }
        self.assign(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        for want in self.wants.values_mut() {
            want.give_up_waiting(now);
        }
        self.check_asks(now);
        self.assign(now);
    }

    fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let waits = self.wants.values().filter_map(|want| want.deadline().map(|at| (at, "candidates")));
        let asks = self
            .wants
            .values()
            .flat_map(Want::attempts)
            .map(|attempt| (attempt.late_at.min(attempt.asked_at + ASK_TIMEOUT), "late ask"));
        let put_off = self
            .wants
            .values()
            .filter(|want| want.needs_ask())
            .filter_map(|want| want.put_off_until(&self.peers).map(|at| (at, "put-off peer")));
        waits.chain(asks).chain(put_off).min_by_key(|(at, _)| *at)
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }
}
