//! Discovery against a model of a network, in an order that a seed decides: whom it dials, when, and that it comes to
//! an end.

use libp2p_identity::Keypair;
use proptest::prelude::*;

use super::{tests::SETTINGS, *};

/// Peers of the model.
const PEERS: u8 = 24;
/// How long all is quiet at the end: longer than the longest wait, its chance included, and an attempt.
const QUIET: Duration = Duration::from_secs(16 * 60);

fn peer(seed: u8) -> PeerId {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key").public().to_peer_id()
}

/// How a peer of the model answers; its address is its number, and so is the one of its bootstrap.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Temper {
    Ours,
    Foreign,
    Away,
    /// A connection comes, and nothing is said on it until it closes.
    Silent,
}

/// What the model knows for itself, and what is on its way.
struct Model {
    machine: Discovery<u16>,
    now: Instant,
    started: Instant,
    chance: Chance,
    ids: Vec<PeerId>,
    tempers: Vec<Temper>,
    /// Whom the user named.
    named: BTreeSet<PeerId>,
    attempts: BTreeMap<AttemptId, Option<PeerId>>,
    connected: BTreeSet<PeerId>,
    foreign: BTreeMap<PeerId, Instant>,
    banned: BTreeMap<PeerId, Instant>,
    /// By time, and then by number.
    coming: BTreeMap<(Instant, u64), Input<u16>>,
    numbers: u64,
    said: Vec<Output<u16>>,
}

impl Model {
    fn new(tempers: &[Temper], bootstraps: &[(u16, bool)], full_mesh: usize, seed: u64) -> Self {
        let ids: Vec<_> = (0..PEERS).map(peer).collect();
        let bootstrap: Vec<_> =
            bootstraps.iter().map(|(at, pinned)| (*at, pinned.then(|| ids[usize::from(*at)]))).collect();
        let mdns_first = seed.is_multiple_of(2).then_some(Duration::from_millis(1500));
        let settings = Settings { full_mesh, mdns_first, ..SETTINGS };
        let now = Instant::now();
        let machine = Discovery::new(peer(255), bootstrap, Vec::new(), settings, Chance::new(seed), now);
        Self {
            machine,
            now,
            started: now,
            chance: Chance::new(!seed),
            named: bootstraps.iter().map(|(at, _)| ids[usize::from(*at)]).collect(),
            ids,
            tempers: tempers.to_vec(),
            attempts: BTreeMap::new(),
            connected: BTreeSet::new(),
            foreign: BTreeMap::new(),
            banned: BTreeMap::new(),
            coming: BTreeMap::new(),
            numbers: 0,
            said: Vec::new(),
        }
    }

    fn temper(&self, peer: &PeerId) -> Temper {
        self.tempers[self.ids.iter().position(|id| id == peer).expect("a peer of the model")]
    }

    fn is_banned(&self, peer: &PeerId) -> bool {
        self.banned.get(peer).is_some_and(|until| *until > self.now)
    }

    fn later(&mut self, most: Duration, input: Input<u16>) {
        let at = self.now + self.chance.part(most);
        self.numbers += 1;
        self.coming.insert((at, self.numbers), input);
    }

    /// Hands an input in, keeping the model's own account of it, and checks and answers what comes of it.
    fn happen(&mut self, input: Input<u16>) {
        let mut followers = Vec::new();
        match &input {
            Input::Established { attempt, peer } => {
                self.attempts.remove(attempt);
                if !self.connected.contains(peer) {
                    followers.push(match self.temper(peer) {
                        Temper::Ours if self.is_banned(peer) => Input::Lost { peer: *peer },
                        Temper::Ours => Input::Connected { peer: *peer, addresses: Vec::new(), source: Source::Manual },
                        Temper::Foreign => Input::Foreign { peer: *peer },
                        Temper::Away | Temper::Silent => Input::Lost { peer: *peer },
                    });
                }
            }
            Input::Failed { attempt, .. } => drop(self.attempts.remove(attempt)),
            Input::Connected { peer, .. } if self.is_banned(peer) => {
                return self.later(Duration::from_millis(500), Input::Lost { peer: *peer });
            }
            Input::Connected { peer, .. } => {
                self.connected.insert(*peer);
                self.foreign.remove(peer);
            }
            Input::Lost { peer } => drop(self.connected.remove(peer)),
            Input::Foreign { peer } => {
                self.foreign.insert(*peer, self.now + FOREIGN_FOR);
                followers.push(Input::Lost { peer: *peer });
            }
            Input::Banned { peer, lasts } => {
                let until = self.now + *lasts;
                let stands = self.banned.entry(*peer).or_insert(until);
                *stands = (*stands).max(until);
                if self.connected.contains(peer) {
                    followers.push(Input::Lost { peer: *peer });
                }
            }
            Input::Learnt { .. } | Input::WrongAddress { .. } | Input::Looked => {}
        }
        self.machine.handle(self.now, input);
        self.act();
        for follower in followers {
            self.later(Duration::from_millis(500), follower);
        }
    }

    fn act(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match &output {
                Output::DialPeer { attempt, peer, addresses } => {
                    assert!(!self.connected.contains(peer), "dials a connected peer");
                    assert!(!self.attempts.values().any(|of| of.as_ref() == Some(peer)), "dials a peer twice at once");
                    assert!(!self.is_banned(peer), "dials a banned peer");
                    let foreign = self.foreign.get(peer).is_some_and(|until| *until > self.now);
                    assert!(!foreign || self.named.contains(peer), "dials a peer of another network");
                    assert!((1..=MAX_ADDRESSES).contains(&addresses.len()));
                    self.attempts.insert(*attempt, Some(*peer));
                    self.answer(*attempt, *peer);
                }
                Output::DialBootstrap { attempt, address } => {
                    self.attempts.insert(*attempt, None);
                    self.answer(*attempt, self.ids[usize::from(*address)]);
                }
                Output::LookAround { targets } => {
                    for _ in targets {
                        self.later(Duration::from_secs(15), Input::Looked);
                    }
                }
                Output::Unroute { .. } => {}
            }
            assert!(self.attempts.len() <= MAX_ATTEMPTS && self.machine.known() <= MAX_KNOWN);
            self.said.push(output);
        }
        if let Some((at, why)) = self.machine.poll_timeout() {
            assert!(at > self.now, "{why} is due already, and was not done");
            // At any moment before that, nothing is due.
            let mut early = self.machine.clone();
            early.handle_timeout(self.now + self.chance.part(at - self.now));
            assert_eq!(early.poll_output(), None, "something was due before {why}");
            assert_eq!(early.poll_timeout(), Some((at, why)));
            assert_eq!((early.known(), early.discovered()), (self.machine.known(), self.machine.discovered()));
        }
        let over = self.now >= self.started + SETTINGS.first_round;
        assert!(!over || self.machine.discovered(), "the first round is still not over");
    }

    fn answer(&mut self, attempt: AttemptId, peer: PeerId) {
        let failed = |why| Input::Failed { attempt, why };
        match (self.temper(&peer), self.chance.below(12)) {
            (_, 0) => self.later(Duration::ZERO, failed(Failure::Busy)),
            (_, 1) => self.later(Duration::ZERO, failed(Failure::Refused)),
            (Temper::Away, _) => self.later(Duration::from_secs(10), failed(Failure::Unreachable)),
            _ => self.later(Duration::from_secs(3), Input::Established { attempt, peer }),
        }
    }

    /// Something that nobody asked for.
    fn surprise(&mut self) {
        let at = self.chance.below(self.ids.len());
        let peer = self.ids[at];
        let address = u16::try_from(at).expect("few");
        let input = match self.chance.below(8) {
            0 if self.temper(&peer) == Temper::Ours => {
                Input::Connected { peer, addresses: vec![address], source: Source::Incoming }
            }
            1 if self.connected.contains(&peer) => Input::Lost { peer },
            // Some are over before the connection closes.
            2 => {
                let most = [Duration::from_secs(1), Duration::from_secs(300)][self.chance.below(2)];
                Input::Banned { peer, lasts: self.chance.part(most) }
            }
            3 => Input::WrongAddress { peer, address },
            4 | 5 => Input::Learnt { peer, addresses: vec![address], source: Source::Mdns },
            _ => Input::Learnt { peer, addresses: vec![address, address + 100], source: Source::Kademlia },
        };
        self.happen(input);
    }

    /// Goes on to whatever is next, if it comes by `until`.
    fn step(&mut self, until: Instant) -> bool {
        let due = self.machine.poll_timeout().map(|(at, _)| at);
        let coming = self.coming.first_key_value().map(|((at, _), _)| *at);
        let Some(at) = [due, coming].into_iter().flatten().min().filter(|at| *at <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(at);
        if coming.is_some_and(|coming| due.is_none_or(|due| coming <= due)) {
            let (_, input) = self.coming.pop_first().expect("something is coming");
            self.happen(input);
        } else {
            self.machine.handle_timeout(self.now);
            self.act();
        }
        true
    }

    /// Surprises for a while, and then quiet.
    fn run(&mut self, surprises: usize) {
        self.act();
        for _ in 0..surprises {
            let until = self.now + self.chance.part(Duration::from_secs(5));
            while self.step(until) {}
            self.surprise();
        }
        let (quiet, mut steps) = (self.now + QUIET, 0);
        while self.step(quiet) {
            steps += 1;
            assert!(steps < 100_000, "it never comes to rest");
        }
    }
}

fn any_temper() -> impl Strategy<Value = Temper> {
    prop_oneof![3 => Just(Temper::Ours), 1 => Just(Temper::Foreign), 1 => Just(Temper::Away), 1 => Just(Temper::Silent)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whoever_may_be_dialled_is_and_nobody_else_and_the_seed_decides_all(
        tempers in prop::collection::vec(any_temper(), usize::from(PEERS)),
        bootstraps in prop::collection::vec((0..u16::from(PEERS), any::<bool>()), 0..20),
        full_mesh in prop_oneof![Just(6_usize), Just(64)],
        surprises in 0_usize..80,
        seed in any::<u64>(),
    ) {
        let mut model = Model::new(&tempers, &bootstraps, full_mesh, seed);
        model.run(surprises);
        for known in model.machine.nearest().filter(|known| !known.addresses.is_empty()) {
            prop_assert!(known.tried, "{:?} was never tried", known);
            if model.temper(&known.peer) == Temper::Ours {
                prop_assert!(model.connected.contains(&known.peer), "{:?} is not connected", known);
            }
        }
        for (at, _) in &bootstraps {
            let peer = model.ids[usize::from(*at)];
            if model.temper(&peer) == Temper::Ours && !model.is_banned(&peer) {
                prop_assert!(model.connected.contains(&peer), "bootstrap peer {} is not connected", at);
            }
        }
        let mut again = Model::new(&tempers, &bootstraps, full_mesh, seed);
        again.run(surprises);
        prop_assert_eq!(model.said, again.said);
    }
}
