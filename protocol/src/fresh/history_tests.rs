//! Attacks on the rules themselves: a few nodes, every message by itself and as late as chance has it, while nodes join,
//! lose their disks and are cut off from each other. A settled write that a later fresh read misses is a violation.
//!
//! `tests/tests/fresh_history.rs` does the same with the services, slower and with far fewer coincidences.

use libp2p_identity::{Keypair, PeerId};

use super::{Begun, Inquiry, Members, Settling, Verdict, witnesses};
use crate::{chance::Chance, wire::sync_fresh::Told};

const NOW: u64 = 1_800_000_000;
/// Nodes of one run at the most: every number of witnesses, and joins beyond.
const MOST: usize = 7;
const STEPS: usize = 300;

/// The greatest version of each node's name that one node has.
type Versions = Vec<u32>;

struct Node {
    members: Members,
    has: Versions,
    /// Another one after each loss of its disk.
    life: u32,
    /// Who hears whom: those of one group.
    group: usize,
}

/// What a peer said and has not arrived yet.
struct Answer {
    peer: usize,
    life: u32,
    told: Told,
    has: Versions,
}

enum Task {
    /// Told of each other already; then they compare.
    Meeting(Answer),
    Write {
        version: u32,
        settling: Settling,
        answers: Vec<Answer>,
    },
    Read {
        publisher: Option<usize>,
        before: Versions,
        inquiry: Box<Inquiry>,
        waiting: Vec<usize>,
        answers: Vec<Answer>,
    },
}

struct Run {
    chance: Chance,
    /// Nodes of this run at the most: what goes wrong among three may never do so among seven.
    most: usize,
    /// Writes, reads and introductions that are under way at once: the more, the later is each message.
    at_once: usize,
    /// Who can hear whom changes once in so many beginnings.
    calm: usize,
    peers: Vec<PeerId>,
    nodes: Vec<Node>,
    /// Whose it is, in which life, and what.
    tasks: Vec<(usize, u32, Task)>,
    settled: Versions,
    log: Vec<String>,
    fresh: usize,
    writes: usize,
}

fn merge(into: &mut Versions, from: &Versions) {
    into.iter_mut().zip(from).for_each(|(one, other)| *one = (*one).max(*other));
}

impl Run {
    fn new(seed: u64) -> Self {
        let id =
            |seed: u8| Keypair::ed25519_from_bytes([seed + 1; 32]).expect("32 bytes are a key").public().to_peer_id();
        let peers = (0..MOST as u8).map(id).collect();
        let mut chance = Chance::new(seed);
        let (most, at_once, calm) = (2 + chance.below(MOST - 1), 2 + chance.below(7), 10 + chance.below(50));
        let mut run = Self {
            chance,
            most,
            at_once,
            calm,
            peers,
            nodes: Vec::new(),
            tasks: Vec::new(),
            settled: vec![0; MOST],
            log: Vec::new(),
            fresh: 0,
            writes: 0,
        };
        run.join();
        run
    }

    fn number(&self, peer: &PeerId) -> usize {
        self.peers.iter().position(|other| other == peer).expect("there are no others")
    }

    fn members(&self, number: usize, begun: Begun, stores: bool) -> Members {
        let mut members = Members::new(self.peers[number], stores, begun, []);
        members.complete(NOW);
        members
    }

    fn join(&mut self) {
        let number = self.nodes.len();
        let begun = if number == 0 { Begun::Founding } else { Begun::Joining };
        let stores = number == 0 || self.chance.below(8) > 0;
        let group = if number == 0 { 0 } else { self.nodes[self.chance.below(number)].group };
        let node = Node { members: self.members(number, begun, stores), has: vec![0; MOST], life: 0, group };
        self.nodes.push(node);
        self.log.push(format!("{number} joins, stores: {stores}"));
    }

    fn hear_each_other(&self, a: usize, b: usize) -> bool {
        a != b && self.nodes[a].group == self.nodes[b].group
    }

    /// Those that a node hears, in an order of their own.
    fn around(&self, number: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|other| self.hear_each_other(number, *other)).collect()
    }

    /// What a peer answers that was asked.
    fn ask(&mut self, from: usize, peer: usize) -> Answer {
        let (stores, told) = (self.nodes[from].members.stores(), self.nodes[from].members.told(NOW, |_| true));
        let (id, node) = (self.peers[from], &mut self.nodes[peer]);
        node.members.learn(NOW, &told);
        if stores {
            node.members.saw(NOW, id, false);
        }
        node.members.complete(NOW);
        let members = &node.members;
        let told = Told {
            complete: members.is_complete(),
            own: members.has_own(),
            stores: members.stores(),
            members: members.told(NOW, |_| true),
            ..Told::default()
        };
        self.log.push(format!("{peer} answers {from}, complete: {}, counts {}", told.complete, told.members.len()));
        Answer { peer, life: node.life, told, has: node.has.clone() }
    }

    /// Takes in what a peer said.
    fn hear(&mut self, number: usize, answer: &Answer) {
        let (peer, members) = (self.peers[answer.peer], &mut self.nodes[number].members);
        members.learn(NOW, &answer.told.members);
        if answer.told.stores {
            members.saw(NOW, peer, answer.told.complete);
        }
        members.complete(NOW);
    }

    /// Fewer lost their disk and are not complete than there are witnesses of anything, and each settled write is at
    /// another that can answer for it: what is assumed of disks.
    fn may_lose(&self, number: usize) -> bool {
        let others = || self.nodes.iter().enumerate().filter(|(other, _)| *other != number).map(|(_, node)| node);
        let lost = others().filter(|node| node.life > 0 && !node.members.is_complete()).count();
        let storing = self.nodes.iter().filter(|node| node.members.stores()).count();
        let answers = |node: &&Node| node.members.stores() && node.members.is_complete();
        let elsewhere = |(publisher, version)| others().filter(answers).any(|node| node.has[publisher] >= version);
        lost + 1 < witnesses(storing) && self.settled.iter().copied().enumerate().all(elsewhere)
    }

    fn begin(&mut self) {
        let count = self.nodes.len();
        let number = self.chance.below(count);
        let life = self.nodes[number].life;
        if self.chance.below(self.calm) == 0 {
            let groups = 1 + self.chance.below(3);
            for node in 0..count {
                self.nodes[node].group = self.chance.below(groups);
            }
            let groups: Vec<usize> = self.nodes.iter().map(|node| node.group).collect();
            self.log.push(format!("who hears whom: {groups:?}"));
            return;
        }
        match self.chance.below(40) {
            0..3 if count < self.most => self.join(),
            3..5 if self.may_lose(number) => {
                let stores = self.nodes[number].members.stores();
                let members = self.members(number, Begun::Lost, stores);
                let node = &mut self.nodes[number];
                (node.members, node.has, node.life) = (members, vec![0; MOST], life + 1);
                self.log.push(format!("{number} loses its disk"));
            }
            5 if self.nodes.iter().all(|node| !node.members.is_complete()) => {
                let members = &mut self.nodes[number].members;
                members.waited();
                members.complete(NOW);
            }
            _ if self.tasks.len() >= self.at_once => {}
            6..12 if self.nodes[number].members.has_own() => {
                let node = &mut self.nodes[number];
                node.has[number] += 1;
                let (version, settling) = (node.has[number], Settling::begin(&node.members));
                self.log.push(format!("{number} writes {version}"));
                self.tasks.push((number, life, Task::Write { version, settling, answers: Vec::new() }));
            }
            12..22 => {
                let publisher = (self.chance.below(3) > 0).then(|| self.chance.below(count));
                let connected: Vec<PeerId> = self.around(number).into_iter().map(|peer| self.peers[peer]).collect();
                let id = publisher.map(|publisher| self.peers[publisher]);
                let inquiry = Box::new(Inquiry::new(id, &self.nodes[number].members, connected));
                let before = self.settled.clone();
                self.log.push(format!("{number} reads {publisher:?}, to see {before:?}"));
                let (waiting, answers) = (Vec::new(), Vec::new());
                self.tasks.push((number, life, Task::Read { publisher, before, inquiry, waiting, answers }));
            }
            _ => {
                let around = self.around(number);
                if around.is_empty() {
                    return;
                }
                let peer = around[self.chance.below(around.len())];
                let met = self.nodes[number].members.get(&self.peers[peer]);
                if met.is_none_or(|row| row.introduced != Some(true)) {
                    let answer = self.ask(number, peer);
                    self.hear(number, &answer);
                    if answer.told.stores {
                        self.tasks.push((number, life, Task::Meeting(answer)));
                    }
                }
            }
        }
    }

    /// One message of one task arrives, or is lost.
    fn advance(&mut self) -> Result<(), String> {
        let at = self.chance.below(self.tasks.len());
        let (number, life, task) = self.tasks.swap_remove(at);
        if self.nodes[number].life != life {
            return Ok(());
        }
        let around = self.around(number);
        match task {
            Task::Meeting(answer) => {
                let peer = answer.peer;
                if self.hear_each_other(number, peer) && self.nodes[peer].life == answer.life {
                    let theirs = self.nodes[peer].has.clone();
                    merge(&mut self.nodes[number].has, &theirs);
                    let own = self.nodes[number].has.clone();
                    merge(&mut self.nodes[peer].has, &own);
                    let members = &mut self.nodes[number].members;
                    members.introduced(self.peers[peer], answer.told.complete);
                    members.complete(NOW);
                    self.log.push(format!("{number} compares with {peer}, complete: {}", members.is_complete()));
                }
            }
            Task::Write { version, mut settling, mut answers } => {
                let late = !answers.is_empty() && self.chance.below(2) == 0;
                if late {
                    let answer = answers.swap_remove(self.chance.below(answers.len()));
                    if self.hear_each_other(number, answer.peer) {
                        self.hear(number, &answer);
                        settling.acknowledged(self.peers[answer.peer], answer.told.complete);
                    }
                } else if !around.is_empty() {
                    let peer = around[self.chance.below(around.len())];
                    if self.nodes[peer].members.stores() {
                        self.nodes[peer].has[number] = self.nodes[peer].has[number].max(version);
                        let answer = self.ask(number, peer);
                        answers.push(answer);
                    }
                }
                if settling.missing(&self.nodes[number].members) == 0 {
                    self.settled[number] = self.settled[number].max(version);
                    self.log.push(format!("{number} settled {version}"));
                    self.writes += 1;
                } else if self.chance.below(12) > 0 {
                    self.tasks.push((number, life, Task::Write { version, settling, answers }));
                }
            }
            Task::Read { publisher, before, mut inquiry, mut waiting, mut answers } => {
                let asked = inquiry.ask();
                waiting.extend(asked.iter().map(|peer| self.number(peer)));
                match inquiry.verdict(&self.nodes[number].members) {
                    Verdict::Open => {}
                    Verdict::Short { .. } => return Ok(()),
                    Verdict::Fresh => {
                        let has = &self.nodes[number].has;
                        self.log.push(format!("{number} has read {publisher:?}: {has:?}"));
                        self.fresh += 1;
                        let missed = (0..MOST).filter(|of| publisher.is_none_or(|publisher| publisher == *of));
                        let missed: Vec<usize> = missed.filter(|of| has[*of] < before[*of]).collect();
                        return match missed[..] {
                            [] => Ok(()),
                            _ => Err(format!("node {number} misses what {missed:?} wrote: {before:?}, not {has:?}")),
                        };
                    }
                }
                if !answers.is_empty() && (waiting.is_empty() || self.chance.below(2) == 0) {
                    let answer = answers.swap_remove(self.chance.below(answers.len()));
                    let peer = self.peers[answer.peer];
                    if self.hear_each_other(number, answer.peer) {
                        merge(&mut self.nodes[number].has, &answer.has);
                        self.hear(number, &answer);
                        inquiry.told(peer, &answer.told);
                    } else {
                        inquiry.failed(peer);
                    }
                } else if !waiting.is_empty() {
                    let peer = waiting.swap_remove(self.chance.below(waiting.len()));
                    if self.hear_each_other(number, peer) {
                        let answer = self.ask(number, peer);
                        answers.push(answer);
                    } else {
                        inquiry.failed(self.peers[peer]);
                    }
                }
                self.tasks.push((number, life, Task::Read { publisher, before, inquiry, waiting, answers }));
            }
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            if self.tasks.is_empty() || self.chance.below(3) == 0 {
                self.begin();
            } else {
                self.advance()?;
            }
        }
        Ok(())
    }
}

#[test]
fn a_fresh_read_sees_what_was_settled_before_it_began_however_late_each_message_is() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("P2P_TEST_SEED").unwrap_or(1);
    let runs = number("P2P_TEST_RUNS").unwrap_or(if number("P2P_TEST_SEED").is_some() { 1 } else { 3000 });
    let (mut fresh, mut writes) = (0, 0);
    for seed in first..first + runs {
        let mut run = Run::new(seed);
        if let Err(what) = run.run() {
            panic!("seed {seed}: {what}\n  {}", run.log.join("\n  "));
        }
        (fresh, writes) = (fresh + run.fresh, writes + run.writes);
    }
    assert!(runs < 1000 || (fresh > 10_000 && writes > 5000), "too little was seen: {fresh} reads, {writes} writes");
}
