//! What the driver knows: what was acknowledged, what was removed, and how many copies' worth of harm is not repaired yet.
//!
//! Pure: what happened comes in, what may happen and what must hold comes out. Nothing here asks a node.

use std::collections::{BTreeMap, BTreeSet};

/// Where an entry of the catalogue stands: its publisher, and its name or none.
pub type Spot = (String, Option<String>);

/// What one content is to the network.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Content {
    /// Its root, once an add said it.
    pub cid: Option<String>,
    /// What it must be when it is read.
    pub digest: [u8; 32],
    /// Its chunks and those of its manifest; none until they were asked for.
    pub chunks: Option<BTreeSet<String>>,
    /// The entries that list it, as far as adds and removals returned.
    spots: BTreeSet<Spot>,
    /// An add or a removal ended in between: whether another entry lists it, nobody knows.
    unsure: bool,
    /// It never had all its copies: its add said so.
    short: bool,
    busy: bool,
}

/// What may be said of a content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It was acknowledged and not removed: it must be there.
    Kept,
    /// It is listed, and was acknowledged by fewer than it should: it may be lost.
    Short,
    /// It was removed: it must be gone.
    Removed,
    /// Either.
    Unsure,
}

/// A content that is being added or removed; nobody else touches it meanwhile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// Which.
    pub content: u64,
    spot: Spot,
    /// What stands at the spot so far, and gives way.
    instead_of: Option<u64>,
    /// Its number in the order of beginnings.
    number: u64,
}

/// How an add or a removal ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// It was acknowledged.
    Done,
    /// It was done, with fewer copies than it should.
    Short,
    /// It was not done.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// All of it.
#[derive(Debug)]
pub struct Model {
    copies: usize,
    contents: BTreeMap<u64, Content>,
    running: BTreeSet<u64>,
    next: u64,
    /// Nodes whose disk was harmed, each with the number that adds had reached then.
    harmed: BTreeMap<usize, u64>,
}

impl Model {
    /// Nothing yet, in a network that keeps `copies`.
    pub fn new(copies: usize) -> Self {
        Self { copies, contents: BTreeMap::new(), running: BTreeSet::new(), next: 0, harmed: BTreeMap::new() }
    }

    /// A content, if it is known.
    pub fn content(&self, number: u64) -> Option<&Content> {
        self.contents.get(&number)
    }

    /// What may be said of it.
    pub fn standing(&self, number: u64) -> Standing {
        let Some(content) = self.contents.get(&number) else { return Standing::Unsure };
        match (content.busy, content.spots.is_empty(), content.unsure) {
            (true, true, _) | (_, true, true) => Standing::Unsure,
            (_, false, _) if content.short => Standing::Short,
            (_, false, _) => Standing::Kept,
            (false, true, false) => Standing::Removed,
        }
    }

    /// Whether it must be there, and nobody is at it.
    pub fn is_settled(&self, number: u64) -> bool {
        self.standing(number) == Standing::Kept && !self.is_busy(number)
    }

    /// Those of one standing, in order.
    pub fn all(&self, standing: Standing) -> Vec<u64> {
        self.contents.keys().copied().filter(|number| self.standing(*number) == standing).collect()
    }

    /// Those that an entry of this publisher lists and nobody is at.
    pub fn published_by(&self, peer: &str) -> Vec<u64> {
        let has = |content: &Content| !content.busy && content.spots.iter().any(|(by, _)| by == peer);
        self.contents.iter().filter(|(_, content)| has(content)).map(|(number, _)| *number).collect()
    }

    /// An add begins; `None` where somebody is at this content, or at what it would take the place of, or nobody knows the
    /// chunks of that: they could not be looked for afterwards.
    pub fn begin_add(&mut self, content: u64, digest: [u8; 32], spot: Spot) -> Option<Ticket> {
        let named = spot.1.is_some();
        let instead_of = self
            .contents
            .iter()
            .find(|(number, other)| named && **number != content && other.spots.contains(&spot))
            .map(|(number, _)| *number);
        let unknown = |number: &u64| self.contents.get(number).is_some_and(|content| content.chunks.is_none());
        if instead_of.as_ref().is_some_and(unknown) {
            return None;
        }
        if [Some(content), instead_of].iter().flatten().any(|number| self.is_busy(*number)) {
            return None;
        }
        let entry = self.contents.entry(content).or_default();
        entry.digest = digest;
        entry.busy = true;
        if let Some(other) = instead_of.and_then(|other| self.contents.get_mut(&other)) {
            other.busy = true;
        }
        let number = self.next;
        self.next += 1;
        self.running.insert(number);
        Some(Ticket { content, spot, instead_of, number })
    }

    /// It ended; an add that was at least published says its root.
    pub fn end_add(&mut self, ticket: &Ticket, ending: Ending, cid: Option<String>) {
        self.running.remove(&ticket.number);
        let published = matches!(ending, Ending::Done | Ending::Short);
        if let Some(other) = ticket.instead_of.and_then(|other| self.contents.get_mut(&other)) {
            other.busy = false;
            if ending != Ending::Refused {
                other.spots.remove(&ticket.spot);
                other.unsure |= ending == Ending::Unknown;
            }
        }
        let content = self.contents.entry(ticket.content).or_default();
        content.busy = false;
        content.cid = content.cid.take().or(cid);
        if published {
            // Whoever lists it already has it with all its copies: fewer take nothing away.
            content.short = ending == Ending::Short && (content.short || content.spots.is_empty());
            content.spots.insert(ticket.spot.clone());
        }
        content.unsure |= ending == Ending::Unknown;
    }

    /// All that this publisher has of a content is removed; `None` where somebody is at it.
    pub fn begin_removal(&mut self, content: u64, peer: &str) -> Option<Ticket> {
        let entry = self.contents.get_mut(&content).filter(|entry| !entry.busy)?;
        entry.busy = true;
        Some(Ticket { content, spot: (peer.to_owned(), None), instead_of: None, number: u64::MAX })
    }

    /// It ended.
    pub fn end_removal(&mut self, ticket: &Ticket, ending: Ending) {
        let content = self.contents.entry(ticket.content).or_default();
        content.busy = false;
        if ending != Ending::Refused {
            content.spots.retain(|(peer, _)| *peer != ticket.spot.0);
            // Who confirmed a removal too seldom may be alone with it, and lose it with its disk.
            content.unsure |= ending != Ending::Done;
        }
    }

    /// The chunks of a content are known.
    pub fn consists_of(&mut self, content: u64, chunks: BTreeSet<String>) {
        if let Some(content) = self.contents.get_mut(&content) {
            content.chunks = Some(chunks);
        }
    }

    /// Whether a copy may be destroyed on this node: never more than k − 1 copies' worth within one repair.
    pub fn may_harm(&self, node: usize) -> bool {
        self.harmed.contains_key(&node) || self.harmed.len() + 1 < self.copies
    }

    /// Copies are destroyed on this node.
    pub fn harm(&mut self, node: usize) {
        self.harmed.insert(node, self.next);
    }

    /// The nodes whose harm is not known to be repaired.
    pub fn harmed(&self) -> Vec<usize> {
        self.harmed.keys().copied().collect()
    }

    /// Whether no add is under way that began before the last harm: its first chunks may have been on that disk, and are
    /// looked after by nobody until it is published.
    pub fn may_look(&self) -> bool {
        let latest = self.harmed.values().max().copied().unwrap_or_default();
        self.running.first().is_none_or(|number| *number >= latest)
    }

    /// Everything that is kept was seen on all nodes where it belongs, and `placed` of what was short.
    pub fn repaired(&mut self, placed: &[u64]) {
        self.harmed.clear();
        for number in placed {
            if let Some(content) = self.contents.get_mut(number) {
                content.short = false;
            }
        }
    }

    fn is_busy(&self, number: u64) -> bool {
        self.contents.get(&number).is_some_and(|content| content.busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(peer: &str, name: Option<&str>) -> Spot {
        (peer.into(), name.map(str::to_owned))
    }

    fn add(model: &mut Model, content: u64, at: Spot, ending: Ending) {
        let ticket = model.begin_add(content, [0; 32], at).expect("nobody is at it");
        model.end_add(&ticket, ending, None);
        model.consists_of(content, [content.to_string()].into());
    }

    fn remove(model: &mut Model, content: u64, peer: &str, ending: Ending) {
        let ticket = model.begin_removal(content, peer).expect("nobody is at it");
        model.end_removal(&ticket, ending);
    }

    #[test]
    fn what_two_published_is_removed_by_both() {
        let mut model = Model::new(3);
        add(&mut model, 1, spot("a", None), Ending::Done);
        add(&mut model, 1, spot("b", None), Ending::Done);
        remove(&mut model, 1, "a", Ending::Done);
        assert_eq!(model.standing(1), Standing::Kept);
        remove(&mut model, 1, "b", Ending::Done);
        assert_eq!(model.standing(1), Standing::Removed);
        add(&mut model, 1, spot("a", None), Ending::Short);
        assert_eq!(model.standing(1), Standing::Short);
        model.repaired(&[1]);
        assert_eq!(model.standing(1), Standing::Kept);
    }

    #[test]
    fn a_name_has_one_content_and_the_one_before_is_removed() {
        let mut model = Model::new(3);
        add(&mut model, 1, spot("a", Some("n")), Ending::Done);
        add(&mut model, 1, spot("b", None), Ending::Done);
        add(&mut model, 2, spot("a", Some("n")), Ending::Done);
        assert_eq!((model.standing(1), model.standing(2)), (Standing::Kept, Standing::Kept));
        remove(&mut model, 1, "b", Ending::Done);
        assert_eq!(model.standing(1), Standing::Removed);
        add(&mut model, 3, spot("a", Some("n")), Ending::Unknown);
        assert_eq!((model.standing(2), model.standing(3)), (Standing::Unsure, Standing::Unsure));
        // What nobody knows the chunks of is not replaced.
        let unknown = model.begin_add(6, [0; 32], spot("b", Some("n"))).expect("nobody is at it");
        model.end_add(&unknown, Ending::Done, None);
        assert_eq!(model.begin_add(7, [0; 32], spot("b", Some("n"))), None);
        // Two without a name stand side by side.
        add(&mut model, 4, spot("a", None), Ending::Done);
        add(&mut model, 5, spot("a", None), Ending::Done);
        assert_eq!((model.standing(4), model.standing(5)), (Standing::Kept, Standing::Kept));
    }

    #[test]
    fn what_ended_in_between_is_unsure_and_what_is_under_way_is_left_alone() {
        let mut model = Model::new(3);
        add(&mut model, 1, spot("a", None), Ending::Done);
        add(&mut model, 1, spot("b", None), Ending::Unknown);
        assert_eq!(model.standing(1), Standing::Kept);
        remove(&mut model, 1, "a", Ending::Done);
        assert_eq!(model.standing(1), Standing::Unsure);
        add(&mut model, 2, spot("a", None), Ending::Done);
        remove(&mut model, 2, "a", Ending::Refused);
        assert_eq!(model.standing(2), Standing::Kept);
        let removal = model.begin_removal(2, "a").expect("nobody is at it");
        assert_eq!(model.begin_add(2, [0; 32], spot("a", None)), None);
        assert_eq!(model.begin_removal(2, "a"), None);
        assert!(model.published_by("a").is_empty());
        model.end_removal(&removal, Ending::Unknown);
        assert_eq!(model.standing(2), Standing::Unsure);
    }

    #[test]
    fn no_more_than_one_copy_less_than_there_are_is_destroyed_within_a_repair() {
        let mut model = Model::new(3);
        model.harm(0);
        assert!(model.may_harm(4));
        model.harm(4);
        assert!(!model.may_harm(1) && model.may_harm(4));
        assert_eq!(model.harmed(), [0, 4]);
        model.repaired(&[]);
        assert!(model.may_harm(1));
    }

    #[test]
    fn an_add_that_began_before_a_harm_ends_before_the_repair_does() {
        let mut model = Model::new(3);
        let before = model.begin_add(1, [0; 32], spot("a", None)).expect("nobody is at it");
        model.harm(0);
        let after = model.begin_add(2, [0; 32], spot("a", None)).expect("nobody is at it");
        assert!(!model.may_look());
        model.end_add(&before, Ending::Done, None);
        assert!(model.may_look());
        model.end_add(&after, Ending::Done, None);
        assert!(model.may_look());
    }
}
