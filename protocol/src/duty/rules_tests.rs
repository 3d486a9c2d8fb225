//! The rules of the [module](super), each by itself: what a node does with one chunk.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p_identity::{Keypair, PeerId};
use proptest::{collection::vec, prelude::*};

use super::{keeper::Role, *};
use crate::{Cid, Codec, chance::Chance, machine::StateMachine as _, placement::Candidate, ranking::Ranking};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const HERE: Said = Said { storing: true, full: false, leaving: false };
const K: u8 = 3;

/// Distinct peers; any 32 bytes are an ed25519 secret key.
fn peers(count: u8) -> Vec<PeerId> {
    let peer = |seed| Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id();
    (1..=count).map(peer).collect()
}

fn entry(name: &str) -> Entry {
    Entry { cid: Cid::of(Codec::Raw, name.as_bytes()), length: 1 << 20 }
}

/// A row that one publication lists since the beginning.
fn listed(entry: Entry) -> Row {
    let mut row = Row::new(entry, Moment(0));
    row.list(Reference { publication: 1, copies: K });
    row
}

/// The peers in the order of their distance to a chunk.
fn nearest(peers: &[PeerId], entry: Entry) -> Vec<PeerId> {
    let ranking = Ranking::new(peers.iter().copied().map(Candidate::from));
    ranking.nearest(&entry.key(), peers.len())
}

/// One node, and the rows of its table.
struct Node {
    keeper: Keeper,
    rows: BTreeMap<Key, Scanned>,
    now: Instant,
    /// Who was compared with, and when.
    audited: Vec<(Instant, PeerId)>,
}

impl Node {
    /// `peers[local]` among all of them, which it has met.
    fn new(peers: &[PeerId], local: PeerId) -> Self {
        Self::set(Settings::default(), peers, local)
    }

    fn set(settings: Settings, peers: &[PeerId], local: PeerId) -> Self {
        let now = Instant::now();
        let keeper = Keeper::new(local, true, settings, now, Moment(0), Chance::new(1));
        let mut node = Self { keeper, rows: BTreeMap::new(), now, audited: Vec::new() };
        node.tell(Input::MostCopies(K));
        for peer in peers.iter().filter(|peer| **peer != local) {
            node.tell(Input::Heard(*peer));
            node.tell(Input::Said(*peer, HERE));
        }
        node
    }

    fn with(mut self, row: Row, held: bool) -> Self {
        let key = row.entry.key();
        self.rows.insert(key, Scanned { key, row, held });
        self.tell(Input::Changed(Span::of(key)));
        self
    }

    /// Takes an input in and answers the scans that follow; gives what else is to be done.
    fn tell(&mut self, input: Input) -> Vec<Output> {
        self.keeper.handle(self.now, input);
        self.outputs()
    }

    /// Time passes, in steps of the node's own timer.
    fn wait(&mut self, time: Duration) -> Vec<Output> {
        let (until, mut outputs) = (self.now + time, self.outputs());
        while let Some((at, _)) = self.keeper.poll_timeout()
            && at <= until
        {
            self.now = self.now.max(at);
            self.keeper.handle_timeout(self.now);
            outputs.extend(self.outputs());
        }
        self.now = until;
        self.keeper.handle_timeout(self.now);
        outputs.extend(self.outputs());
        outputs
    }

    fn outputs(&mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some(output) = self.keeper.poll_output() {
            match output {
                Output::Scan { scan, span } => {
                    let rows = self.rows.values().filter(|row| span.contains(&row.key)).cloned().collect();
                    self.keeper.handle(self.now, Input::Rows { scan, rows, ended: true });
                }
                // Whoever is compared with has what it should.
                Output::Audit(peer) => {
                    self.audited.push((self.now, peer));
                    self.keeper.handle(self.now, Input::Audited(peer, Audited::Equal));
                }
                other => outputs.push(other),
            }
        }
        outputs
    }

    fn role(&self, entry: Entry) -> Role {
        self.keeper.role(self.now, &entry.key(), &listed(entry))
    }
}

fn asks(outputs: &[Output]) -> usize {
    outputs.iter().filter(|output| matches!(output, Output::Ask { .. })).count()
}

fn frees(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Free(_)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_chunk_is_the_duty_of_the_k_nearest_credible_ones_of_k_and_four(
        count in 1..14_u8, states in vec(0..4_u8, 14), name: u64,
    ) {
        let (all, chunk) = (peers(count), entry(&name.to_string()));
        let order = nearest(&all, chunk);
        let doubtful = |at: usize| states[at] < 2;
        for (rank, local) in order.iter().enumerate() {
            let mut node = Node::new(&all, *local);
            for (at, peer) in order.iter().enumerate().filter(|(at, _)| *at != rank && doubtful(*at)) {
                match states[at] {
                    0 => { node.tell(Input::Said(*peer, Said { full: true, ..HERE })); }
                    _ => { node.tell(Input::Audited(*peer, Audited::Lied(vec![chunk.key()]))); }
                }
            }
            let credible = (0..rank).filter(|at| !doubtful(*at)).count();
            let duty = credible < usize::from(K) && rank < usize::from(K) + EXTRA;
            prop_assert_eq!(node.role(chunk) == Role::Duty, duty, "rank {}", rank);
        }
    }
}

#[test]
fn a_restart_moves_nothing_and_a_departure_leaves_a_chunk_to_one() {
    let (all, chunk) = (peers(9), entry("a chunk"));
    let order = nearest(&all, chunk);
    let mut took = Vec::new();
    for (rank, local) in order.iter().enumerate().filter(|(rank, _)| *rank != 1) {
        let held = rank < usize::from(K);
        let mut node = Node::new(&all, *local).with(listed(chunk), held);
        let left = node.now;
        node.tell(Input::Left(order[1], left));
        assert_eq!(asks(&node.wait(14 * MINUTE)), 0, "rank {rank} moves within the delay");
        let mut back = Node::new(&all, *local).with(listed(chunk), held);
        back.tell(Input::Left(order[1], left));
        back.wait(14 * MINUTE);
        back.tell(Input::Heard(order[1]));
        assert_eq!(asks(&back.wait(HOUR)), 0, "it came back");
        took.extend((asks(&node.wait(2 * MINUTE)) > 0).then_some(rank));
    }
    assert_eq!(took, [usize::from(K)], "the next in line, and nobody else");
}

#[test]
fn who_lacks_a_chunk_counts_until_the_delay_is_over() {
    let (all, chunk) = (peers(9), entry("a chunk"));
    let order = nearest(&all, chunk);
    let mut node = Node::new(&all, order[3]);
    node.tell(Input::Audited(order[0], Audited::Lacks { keys: vec![chunk.key()], filling: false }));
    node.keeper.handle_timeout(node.now + 14 * MINUTE);
    let role = |node: &Node, after: Duration| node.keeper.role(node.now + after, &chunk.key(), &listed(chunk));
    assert_eq!((role(&node, 14 * MINUTE), role(&node, 15 * MINUTE)), (Role::Cached, Role::Duty));
    node.tell(Input::Audited(order[0], Audited::Equal));
    assert_eq!(role(&node, HOUR), Role::Cached);
}

#[test]
fn who_was_no_neighbour_for_a_while_is_not_taken_to_fill_up() {
    let (all, chunk, other) = (peers(9), entry("a chunk"), entry("another"));
    let order = nearest(&all, chunk);
    for (away, role) in [(14 * MINUTE, Role::Cached), (16 * MINUTE, Role::Duty)] {
        let mut node = Node::new(&all, order[3]);
        let lacks = |keys| Input::Audited(order[0], Audited::Lacks { keys, filling: false });
        node.tell(lacks(vec![chunk.key(), other.key()]));
        node.tell(Input::Left(order[0], node.now));
        node.wait(away);
        node.tell(Input::Heard(order[0]));
        node.tell(lacks(vec![chunk.key()]));
        let later = node.now + 2 * MINUTE;
        assert_eq!(node.keeper.role(later, &chunk.key(), &listed(chunk)), role, "away for {away:?}");
    }
}

#[test]
fn who_has_room_again_is_waited_for_anew() {
    let (all, chunk) = (peers(9), entry("a chunk"));
    let order = nearest(&all, chunk);
    let mut node = Node::new(&all, order[3]);
    let said = |node: &mut Node, full| drop(node.tell(Input::Said(order[0], Said { full, ..HERE })));
    let lacks = || Input::Audited(order[0], Audited::Lacks { keys: vec![chunk.key()], filling: false });
    let role = |node: &Node, after| node.keeper.role(node.now + after, &chunk.key(), &listed(chunk));
    said(&mut node, true);
    node.tell(lacks());
    assert_eq!(role(&node, HOUR), Role::Duty);
    said(&mut node, false);
    assert_eq!(role(&node, HOUR), Role::Cached, "it fetches its share itself");
    node.tell(lacks());
    assert_eq!((role(&node, 14 * MINUTE), role(&node, 15 * MINUTE)), (Role::Cached, Role::Duty));
}

/// `row` and a pin of this node.
fn pinned(mut row: Row) -> Row {
    row.list(Reference { publication: 99, copies: PIN });
    row
}

#[test]
fn a_pinned_chunk_is_a_duty_and_who_leaves_has_no_other() {
    let (all, chunk) = (peers(12), entry("a chunk"));
    let order = nearest(&all, chunk);
    let role = |node: &Node, row: Row| node.keeper.role(node.now, &chunk.key(), &row);
    let far = Node::new(&all, order[11]);
    assert_eq!(role(&far, pinned(listed(chunk))), Role::Duty);
    assert_eq!(role(&far, pinned(Row::new(chunk, Moment(0)))), Role::Duty, "also where nothing lists it");
    assert_eq!(far.role(chunk), Role::Cached);
    let mut near = Node::new(&all, order[0]);
    assert_eq!(near.role(chunk), Role::Duty);
    near.tell(Input::Leaving(true));
    assert_eq!(near.role(chunk), Role::Cached);
    assert_eq!(role(&near, pinned(listed(chunk))), Role::Duty);
}

#[test]
fn a_pinned_chunk_is_fetched_by_whoever_is_far_and_also_where_nothing_lists_it() {
    let (all, chunk) = (peers(12), entry("a chunk"));
    let order = nearest(&all, chunk);
    for row in [pinned(listed(chunk)), pinned(Row::new(chunk, Moment(0)))] {
        let members = usize::from(row.copies()) + EXTRA;
        let mut node = Node::new(&all, order[11]).with(row, false);
        let outputs = node.wait(MINUTE);
        // Its own scan asked in `with`, before anybody could answer.
        assert!(outputs.is_empty(), "{outputs:?}");
        let pulls: Vec<Output> = (1..=members as u64)
            .flat_map(|request| node.tell(Input::Holdings { request, has: Some(vec![request == 1]) }))
            .collect();
        assert!(
            matches!(&pulls[..], [Output::Pull { entry, from }] if *entry == chunk && from.len() == 1),
            "{pulls:?}"
        );
    }
}

#[test]
fn a_pinned_chunk_is_neither_freed_nor_given_up_and_counts_as_duty() {
    let (all, chunk) = (peers(9), entry("a chunk"));
    let order = nearest(&all, chunk);
    let grace = Settings::default().grace;
    let mut node = Node::new(&all, order[8]).with(pinned(Row::new(chunk, Moment(0))), true);
    assert_eq!(node.keeper.duty(), 1, "at once");
    node.wait(2 * MINUTE);
    let known: Vec<_> = order[..8].iter().map(|peer| Input::Reconciled(*peer, node.now)).collect();
    known.into_iter().for_each(|input| assert!(node.tell(input).is_empty()));
    assert!(!frees(&node.wait(3 * grace)));
    assert_eq!(node.keeper.duty(), 1);
    node = node.with(Row::new(chunk, Moment(0)), true);
    assert_eq!(node.keeper.duty(), 0, "unpinned");
    let mut node = Node::new(&all, order[8]).with(pinned(listed(chunk)), true);
    node.wait(25 * HOUR);
    assert!(proofs(&node.tell(Input::Space { used: 92, capacity: 100 })).is_empty());
}

#[test]
fn what_nothing_lists_is_freed_after_the_grace_once_everybody_knows() {
    let (all, chunk) = (peers(3), entry("a chunk"));
    let grace = Settings::default().grace;
    let fresh = || Node::new(&all, all[0]).with(Row::new(chunk, Moment(0)), true);
    let known = |node: &mut Node| all[1..].iter().map(|peer| Input::Reconciled(*peer, node.now)).collect::<Vec<_>>();
    // Nobody is heard of: it asks, and keeps it.
    let mut node = fresh();
    let outputs = node.wait(grace + HOUR);
    assert!(!frees(&outputs) && outputs.iter().any(|output| matches!(output, Output::Compare(_))));
    // Nobody ever tells, though all are here: it is waited for no longer than for somebody who left.
    assert!(!frees(&node.wait(6 * grace - HOUR - MINUTE)));
    assert!(frees(&node.wait(20 * MINUTE)));
    // Both know, before the grace is over.
    let mut node = fresh();
    node.wait(2 * MINUTE);
    known(&mut node).into_iter().for_each(|input| assert!(node.tell(input).is_empty()));
    assert!(!frees(&node.wait(grace - 3 * MINUTE)));
    assert!(frees(&node.wait(3 * MINUTE)), "within two minutes");
    // One of them was compared with before it was unlisted.
    let mut node = fresh();
    node.tell(Input::Reconciled(all[1], node.now));
    node.wait(MINUTE);
    node.tell(Input::Reconciled(all[2], node.now));
    assert!(!frees(&node.wait(grace + HOUR)));
    // What cannot be read may list it.
    let mut node = fresh();
    node.wait(MINUTE);
    known(&mut node).into_iter().for_each(|input| assert!(node.tell(input).is_empty()));
    let until = node.now + 2 * grace;
    node.tell(Input::Unread(Some(until)));
    assert!(!frees(&node.wait(2 * grace - MINUTE)));
    assert_eq!(node.keeper.freeable_before(node.now), None, "whoever asks");
    assert!(frees(&node.wait(2 * MINUTE)) && node.keeper.freeable_before(node.now).is_some(), "not for ever");
    // It is listed again.
    let mut node = fresh().with(listed(chunk), true);
    node.wait(MINUTE);
    known(&mut node).into_iter().for_each(|input| assert!(node.tell(input).is_empty()));
    assert!(!frees(&node.wait(3 * grace)));
}

#[test]
fn a_comparison_counts_by_its_beginning_and_who_left_lately_is_waited_for() {
    let (all, chunk) = (peers(3), entry("a chunk"));
    let grace = Settings::default().grace;
    // Two comparisons began before it was withdrawn, and end after that: what they brought may be older.
    let mut node = Node::new(&all, all[0]);
    node.wait(MINUTE);
    let begun = node.now;
    node.wait(HOUR);
    let mut row = listed(chunk);
    row.unlist(1, Moment(61 * 60));
    let mut node = node.with(row, true);
    node.wait(MINUTE);
    all[1..].iter().for_each(|peer| assert!(node.tell(Input::Reconciled(*peer, begun)).is_empty()));
    assert!(!frees(&node.wait(grace + HOUR)));
    all[1..].iter().for_each(|peer| drop(node.tell(Input::Reconciled(*peer, node.now))));
    assert!(frees(&node.wait(MINUTE)));
    // One that is not here any more may come back with something that lists it, for seven graces after it was seen.
    let mut node = Node::new(&all, all[0]);
    node.wait(2 * grace);
    node.tell(Input::Left(all[2], node.now));
    let mut node = node.with(Row::new(chunk, Moment(2 * grace.as_secs())), true);
    node.wait(2 * MINUTE);
    assert!(node.tell(Input::Reconciled(all[1], node.now)).is_empty());
    let outputs = node.wait(7 * grace - 4 * MINUTE);
    assert!(!frees(&outputs));
    assert!(frees(&node.wait(20 * MINUTE)));
}

#[test]
fn what_has_a_short_grace_is_not_waited_for_much_longer() {
    let (all, chunk) = (peers(3), entry("a chunk"));
    let grace = Duration::from_secs(5);
    let settings = Settings { grace, ..Settings::default() };
    let mut node = Node::set(settings, &all, all[0]).with(Row::new(chunk, Moment(0)), true);
    let compares = |outputs: Vec<Output>| outputs.iter().filter(|output| matches!(output, Output::Compare(_))).count();
    // Nobody answers: each is asked again, and not at once.
    assert_eq!(compares(node.wait(grace * 3 - Duration::from_millis(1))), 2);
    assert_eq!(compares(node.wait(grace * 2)), 4);
    all[1..].iter().for_each(|peer| assert!(node.tell(Input::Reconciled(*peer, node.now)).is_empty()));
    assert!(frees(&node.wait(grace)));
    // Looks at every row stay apart, however short it is.
    let settings = Settings { grace: Duration::ZERO, ..settings };
    let mut node = Node::set(settings, &all, all[0]).with(Row::new(chunk, Moment(0)), true);
    let (until, mut times) = (node.now + Duration::from_secs(10), 0);
    while let Some((at, _)) = node.keeper.poll_timeout()
        && at <= until
        && times < 1000
    {
        node.now = node.now.max(at);
        node.keeper.handle_timeout(node.now);
        node.outputs();
        times += 1;
    }
    assert!(times < 50, "{times}");
}

#[test]
fn a_cached_copy_goes_only_when_room_is_needed_and_each_of_the_k_proved_it_after_a_day() {
    let (all, chunk) = (peers(9), entry("a chunk"));
    let order = nearest(&all, chunk);
    let mut node = Node::new(&all, order[8]).with(listed(chunk), true);
    assert!(proofs(&node.wait(25 * HOUR)).is_empty(), "there is room");
    let mut asked = proofs(&node.tell(Input::Space { used: 92, capacity: 100 }));
    asked.sort_by_key(|(_, peer)| order.iter().position(|other| other == peer));
    assert_eq!(asked.iter().map(|(_, peer)| *peer).collect::<Vec<_>>(), order[..3]);
    let proved = |at: usize, proved| Input::Proved { request: asked[at].0, proved };
    assert!(node.tell(proved(0, Some(vec![true]))).is_empty() && node.tell(proved(1, Some(vec![true]))).is_empty());
    assert_eq!(node.tell(proved(2, Some(vec![true]))), [Output::GiveUp(vec![chunk])]);
    // They came less than a day ago.
    let mut young = Node::new(&all, order[8]).with(listed(chunk), true);
    young.wait(23 * HOUR);
    assert!(proofs(&young.tell(Input::Space { used: 92, capacity: 100 })).is_empty());
    assert!(proofs(&young.wait(HOUR - MINUTE)).is_empty());
    assert_eq!(proofs(&young.wait(2 * MINUTE)).len(), 3, "as soon as it is a day");
    // One of them was caught in a lie.
    let mut node = Node::new(&all, order[8]).with(listed(chunk), true);
    node.wait(25 * HOUR);
    node.tell(Input::Audited(order[1], Audited::Lied(vec![])));
    assert!(proofs(&node.tell(Input::Space { used: 92, capacity: 100 })).is_empty());
}

#[test]
fn a_copy_stays_where_one_could_not_prove_its_own_or_where_there_are_fewer_than_k() {
    let (all, chunk) = (peers(9), entry("a chunk"));
    let order = nearest(&all, chunk);
    let mut node = Node::new(&all, order[8]).with(listed(chunk), true);
    node.wait(25 * HOUR);
    let asked = proofs(&node.tell(Input::Space { used: 92, capacity: 100 }));
    for (at, (request, _)) in asked.into_iter().enumerate() {
        assert!(node.tell(Input::Proved { request, proved: Some(vec![at != 1]) }).is_empty());
    }
    // A look at everything, before an audit says otherwise.
    node.tell(Input::Space { used: 50, capacity: 100 });
    assert!(proofs(&node.tell(Input::Space { used: 92, capacity: 100 })).is_empty(), "it is known to lack it");
    // One that takes no share itself, and two others.
    let mut node = Node::new(&[], order[8]);
    node.keeper = Keeper::new(order[8], false, Settings::default(), node.now, Moment(0), Chance::new(1));
    node.tell(Input::MostCopies(K));
    for peer in &order[..2] {
        node.tell(Input::Heard(*peer));
        node.tell(Input::Said(*peer, HERE));
    }
    let mut node = node.with(listed(chunk), true);
    node.wait(25 * HOUR);
    assert!(proofs(&node.tell(Input::Space { used: 92, capacity: 100 })).is_empty());
    // With a third there are k who may have it.
    node.tell(Input::Heard(order[2]));
    node.tell(Input::Said(order[2], HERE));
    assert_eq!(proofs(&node.wait(25 * HOUR)).len(), 3);
}

fn proofs(outputs: &[Output]) -> Vec<(u64, PeerId)> {
    let proof = |output: &Output| match output {
        Output::Prove { request, peer, .. } => Some((*request, *peer)),
        _ => None,
    };
    outputs.iter().filter_map(proof).collect()
}

#[test]
fn what_is_over_is_given_up_in_turns_until_a_full_node_is_roomy_and_who_is_silent_is_asked_seldom() {
    let all = peers(4);
    // Of the four, the three others are nearer.
    let cached = |name: u32| Some(entry(&name.to_string())).filter(|entry| nearest(&all, *entry)[3] == all[0]);
    let mut node = Node::new(&all, all[0]);
    for chunk in (0..).filter_map(cached).take(ASK_KEYS + 10) {
        node = node.with(listed(chunk), true);
    }
    node.wait(25 * HOUR);
    let mut asked = proofs(&node.tell(Input::Space { used: 96, capacity: 100 }));
    assert_eq!(asked.len(), 3);
    // One of them says nothing.
    let (silent, others) = (asked[0], asked.split_off(1));
    assert!(node.tell(Input::Proved { request: silent.0, proved: None }).is_empty());
    for (request, _) in others {
        assert!(node.tell(Input::Proved { request, proved: Some(vec![true; ASK_KEYS]) }).is_empty());
    }
    assert!(proofs(&node.wait(9 * MINUTE)).is_empty(), "not asked again at once");
    // Still full, at less than what makes a roomy node give anything up.
    node.tell(Input::Space { used: 88, capacity: 100 });
    let (mut asked, mut gone) = (proofs(&node.wait(2 * MINUTE)), 0);
    for turn in [ASK_KEYS, 10] {
        assert_eq!(asked.len(), 3, "three prove {turn}");
        let mut next = Vec::new();
        for (request, _) in asked {
            for output in node.tell(Input::Proved { request, proved: Some(vec![true; turn]) }) {
                match output {
                    Output::GiveUp(entries) => gone += entries.len(),
                    other => next.extend(proofs(&[other])),
                }
            }
        }
        asked = next;
    }
    // Their rows are still held here, so that they are asked about again: what was given up was each of them.
    assert_eq!(gone, ASK_KEYS + 10);
}

#[test]
fn what_was_proved_counts_no_more_when_the_replica_set_is_another_one() {
    let (all, chunk) = (peers(9), entry("a chunk"));
    let order = nearest(&all, chunk);
    let mut node = Node::new(&all, order[8]).with(listed(chunk), true);
    node.wait(25 * HOUR);
    let asked = node.tell(Input::Space { used: 92, capacity: 100 });
    let requests: Vec<u64> = asked
        .iter()
        .filter_map(|output| match output {
            Output::Prove { request, .. } => Some(*request),
            _ => None,
        })
        .collect();
    let proved = |at: usize| Input::Proved { request: requests[at], proved: Some(vec![true]) };
    assert!(node.tell(proved(0)).is_empty() && node.tell(proved(1)).is_empty());
    // Somebody of the set hands over its share: the fourth is one of the k now, and nobody knows whether it has it.
    node.tell(Input::Said(order[0], Said { leaving: true, ..HERE }));
    let outputs = node.tell(proved(2));
    assert!(!outputs.iter().any(|output| matches!(output, Output::GiveUp(_))), "{outputs:?}");
}

#[test]
fn a_full_node_fetches_nothing_until_there_is_room() {
    let (all, chunk) = (peers(3), entry("a chunk"));
    let mut node = Node::new(&all, all[0]);
    node.tell(Input::Space { used: 95, capacity: 100 });
    assert!(node.keeper.is_full());
    let mut node = node.with(listed(chunk), false);
    assert_eq!(asks(&node.wait(7 * HOUR)), 0);
    assert_eq!(asks(&node.tell(Input::Space { used: 90, capacity: 100 })), 0, "it is full until there is much room");
    assert!(asks(&node.tell(Input::Space { used: 85, capacity: 100 })) > 0 && !node.keeper.is_full());
    let mut node = Node::new(&all, all[0]);
    node.tell(Input::Space { used: 0, capacity: 0 });
    assert!(node.keeper.is_full(), "no room at all");
}

#[test]
fn a_node_is_full_from_95_percent_on_until_85_and_gives_up_what_is_cached_from_90_on() {
    let (all, chunk) = (peers(9), entry("a chunk"));
    let order = nearest(&all, chunk);
    let mut node = Node::new(&all, order[8]).with(listed(chunk), true);
    node.wait(25 * HOUR);
    assert!(proofs(&node.tell(Input::Space { used: 89, capacity: 100 })).is_empty());
    assert_eq!(proofs(&node.tell(Input::Space { used: 90, capacity: 100 })).len(), usize::from(K));
    let mut node = Node::new(&all, order[8]);
    for (used, full) in [(94, false), (95, true), (94, true), (86, true), (85, false), (94, false), (95, true)] {
        node.tell(Input::Space { used, capacity: 100 });
        assert_eq!(node.keeper.is_full(), full, "{used} %");
    }
}

#[test]
fn what_is_in_hand_as_a_node_fills_up_is_not_fetched() {
    let (all, chunk) = (peers(3), entry("a chunk"));
    let mut node = Node::new(&all, all[0]).with(listed(chunk), false);
    assert_eq!(node.keeper.in_hand().0, 1);
    node.tell(Input::Space { used: 95, capacity: 100 });
    for request in 1..all.len() as u64 {
        assert!(node.tell(Input::Holdings { request, has: Some(vec![true]) }).is_empty());
    }
    assert_eq!(node.keeper.in_hand().0, 0);
}

#[test]
fn a_full_peer_counts_for_what_it_has() {
    let (all, chunk) = (peers(9), entry("a chunk"));
    let order = nearest(&all, chunk);
    for has in [true, false] {
        let mut node = Node::new(&all, order[3]).with(listed(chunk), false);
        let asked = node.tell(Input::Said(order[0], Said { full: true, ..HERE }));
        assert!(asks(&asked) > 2 && node.role(chunk) == Role::Duty, "nobody knows yet what it has");
        let mut pulls = 0;
        for output in asked {
            let Output::Ask { request, peer, .. } = output else { panic!("{output:?}") };
            let said = vec![has || peer != order[0]];
            pulls += node.tell(Input::Holdings { request, has: Some(said) }).len();
        }
        let expected = if has { (Role::Cached, 0) } else { (Role::Duty, 1) };
        assert_eq!((node.role(chunk), pulls), expected);
    }
}

#[test]
fn a_neighbour_that_comes_has_everybody_compared_within_the_first_interval() {
    let all = peers(6);
    let mut node = Node::new(&all[..5], all[0]);
    node.wait(48 * HOUR);
    node.audited.clear();
    let came = node.now;
    node.tell(Input::Heard(all[5]));
    node.tell(Input::Said(all[5], HERE));
    node.wait(HOUR);
    let first = Settings::default().audit_interval;
    for other in &all[1..] {
        let compared = |(at, peer): &(Instant, PeerId)| peer == other && *at <= came + first;
        assert!(node.audited.iter().any(compared), "{:?}", node.audited);
    }
}

#[test]
fn a_disk_that_refuses_is_full_for_ten_minutes_whatever_its_capacity_says() {
    let (all, chunk) = (peers(3), entry("a chunk"));
    let mut node = Node::new(&all, all[0]).with(listed(chunk), false);
    node.tell(Input::Space { used: 50, capacity: 100 });
    node.tell(Input::Pulled(chunk.key(), Pulled::NoSpace));
    node.tell(Input::Space { used: 50, capacity: 100 });
    assert!(node.keeper.is_full(), "the disk knows better");
    node.tell(Input::Space { used: 40, capacity: 100 });
    assert!(!node.keeper.is_full(), "there is more room than when it refused");
    node.tell(Input::Pulled(chunk.key(), Pulled::NoSpace));
    node.wait(9 * MINUTE);
    assert!(node.keeper.is_full());
    node.wait(2 * MINUTE);
    assert!(!node.keeper.is_full(), "it is tried again");
}

#[test]
fn a_disk_that_others_filled_has_room_again_as_soon_as_they_make_some() {
    let (all, chunk) = (peers(3), entry("a chunk"));
    // What is told of its use is of a minute ago, or of now: both end with the room that comes.
    for told in [100, 10] {
        let mut node = Node::new(&all, all[0]);
        node.tell(Input::Space { used: 10, capacity: told });
        node.tell(Input::Pulled(chunk.key(), Pulled::NoSpace));
        node.tell(Input::Space { used: 10, capacity: 10 });
        assert!(node.keeper.is_full());
        let mut node = node.with(listed(chunk), false);
        assert_eq!(asks(&node.wait(5 * MINUTE)), 0, "told {told}");
        assert!(asks(&node.tell(Input::Space { used: 10, capacity: 100 })) > 0, "told {told}");
        assert!(!node.keeper.is_full(), "told {told}");
    }
}
