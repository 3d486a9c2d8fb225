//! One row of the wanted table: what lists a chunk, how many copies are wanted, and since when nothing lists it.
//!
//! Rows are derived from the catalogue and from manifests, and hold for each reference which publication it is: to list
//! or unlist twice is to do it once, so that what was cut off half-way is simply done again.

use std::time::Duration;

use libp2p_identity::PeerId;

use crate::{
    key::Key,
    manifest::{ENTRY_BYTES, Entry},
};

/// A time of a node's own clock, in seconds: it goes on while the node runs, never goes back, and is kept on disk.
/// Nobody else's clock is ever compared with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Moment(pub u64);

impl Moment {
    /// So much later.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        // Part of a second counts whole: what waits for a time never acts before it.
        Self(self.0.saturating_add(time.as_secs()).saturating_add(u64::from(time.subsec_nanos() > 0)))
    }
}

/// The most references that a row names. What has more keeps a mark that there were more, which only a rebuild of the
/// table takes off: it is kept too long rather than too short.
pub const MAX_REFERENCES: usize = 16;

/// The copies of a pin's reference: it asks for no copy anywhere, and has the chunk stay on this node. No publication asks
/// for so many.
pub const PIN: u8 = 0x80;

/// One publication that lists a chunk, or one pin of this node that does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Reference {
    /// The first eight bytes of the publication's id, or of the pin's.
    pub publication: u64,
    /// The copies that it wants; [`PIN`]: it is a pin.
    pub copies: u8,
}

impl Reference {
    fn is_pin(&self) -> bool {
        self.copies == PIN
    }
}

/// The flags of a row's bytes.
const MORE: u8 = 1;
const LISTED: u8 = 2;
const MORE_PINS: u8 = 4;
const BROUGHT: u8 = 8;

/// Who brought a chunk, as a row names it: the first eight bytes of the peer's key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Bringer(pub u64);

impl From<&PeerId> for Bringer {
    fn from(peer: &PeerId) -> Self {
        let [a, b, c, d, e, f, g, h, ..] = Key::from(peer).0;
        Self(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }
}

/// What is known of one chunk's being wanted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The chunk.
    pub entry: Entry,
    /// What lists it, at most [`MAX_REFERENCES`].
    references: Vec<Reference>,
    /// There were more references of publications than are named.
    more: bool,
    /// There were more pins than are named.
    more_pins: bool,
    /// Something has listed it, now or earlier.
    listed: bool,
    /// Since when nothing lists it; counts only while nothing does.
    unlisted: Moment,
    /// When it was last acknowledged to somebody, or came.
    renewed: Moment,
    /// The peer that put it here, or counts on it since: as long as nothing lists it, and nothing has.
    brought: Option<Bringer>,
}

/// The copies that a row asks for whose references are not all named.
const MOST_COPIES: u8 = crate::placement::MAX_REPLICAS;

impl Row {
    /// A chunk that came, or is about to be listed, at `now`: nothing lists it yet.
    pub fn new(entry: Entry, now: Moment) -> Self {
        Self {
            entry,
            references: Vec::new(),
            more: false,
            more_pins: false,
            listed: false,
            unlisted: now,
            renewed: now,
            brought: None,
        }
    }

    /// A peer brought its bytes at `now`: what nothing lists is as if it had come now, for whoever it was before.
    pub fn bring(&mut self, who: Bringer, now: Moment) {
        if self.is_needed() {
            return self.renew(now);
        }
        *self = Self { brought: Some(who), ..Self::new(self.entry, now) };
    }

    /// It is acknowledged to a peer at `now`, which brings nothing: what nothing lists, and nothing has, is here for that
    /// peer from now on.
    pub fn renew_for(&mut self, who: Bringer, now: Moment) {
        self.renew(now);
        if !self.listed {
            self.brought = Some(who);
        }
    }

    /// A publication or a pin lists it.
    pub fn list(&mut self, reference: Reference) {
        (self.listed, self.brought) = (true, None);
        if let Some(known) = self.references.iter_mut().find(|known| known.publication == reference.publication) {
            known.copies = reference.copies;
        } else if self.references.len() < MAX_REFERENCES {
            self.references.push(reference);
        } else if !reference.is_pin() {
            self.more = true;
        } else if let Some(known) = self.references.iter_mut().find(|known| !known.is_pin()) {
            // A pin that is not named could not be taken off.
            *known = reference;
            self.more = true;
        } else {
            self.more_pins = true;
        }
    }

    /// A publication or a pin lists it no more, as this node learned at `now`.
    pub fn unlist(&mut self, publication: u64, now: Moment) {
        let before = self.references.len();
        self.references.retain(|reference| reference.publication != publication);
        if self.references.len() < before && !self.is_needed() {
            self.unlisted = now;
        }
    }

    /// It is acknowledged to somebody at `now`, who may count on it for a while.
    pub fn renew(&mut self, now: Moment) {
        self.renewed = self.renewed.max(now);
    }

    /// Whether a publication lists it.
    pub fn is_wanted(&self) -> bool {
        self.more || self.references.iter().any(|reference| !reference.is_pin())
    }

    /// Whether a pin has it stay on this node.
    pub fn is_pinned(&self) -> bool {
        self.more_pins || self.references.iter().any(Reference::is_pin)
    }

    /// Whether a publication lists it, or a pin does: nobody may free it.
    pub fn is_needed(&self) -> bool {
        self.more || self.more_pins || !self.references.is_empty()
    }

    /// Whether something lists it, or has: it is not what an add has brought and not published yet.
    pub fn was_listed(&self) -> bool {
        self.listed
    }

    /// The peer for which it is here, if it is one: nothing lists it, and nothing has.
    pub fn bringer(&self) -> Option<Bringer> {
        self.brought
    }

    /// Whether a peer may renew it at `now`, that brings nothing: for as long as it likes what nothing has ever listed, but
    /// what was withdrawn only within the first `grace` since then. Whoever wants that for longer brings it again.
    pub fn is_renewable(&self, now: Moment, grace: Duration) -> bool {
        self.is_needed() || !self.listed || now < self.unlisted.plus(grace)
    }

    /// Whether a publication, or a pin, is one of those that it names.
    pub fn names(&self, publication: u64) -> bool {
        self.references.iter().any(|reference| reference.publication == publication)
    }

    /// The publications and pins that it names.
    pub fn publications(&self) -> impl Iterator<Item = u64> + '_ {
        self.references.iter().map(|reference| reference.publication)
    }

    /// How many copies are wanted; 0 where no publication lists it.
    pub fn copies(&self) -> u8 {
        let publications = self.references.iter().filter(|reference| !reference.is_pin());
        let most = publications.map(|reference| reference.copies).max().unwrap_or(0);
        if self.more { most.max(MOST_COPIES) } else { most }
    }

    /// Since when nothing lists it, no pin either.
    pub fn unlisted(&self) -> Option<Moment> {
        (!self.is_needed()).then_some(self.unlisted)
    }

    /// From when on it may be freed, if nothing changes: nothing has listed it, and nobody was told that it is kept, for
    /// the whole grace. `None` while something lists it, be it a pin.
    pub fn grace_ends(&self, grace: Duration) -> Option<Moment> {
        (!self.is_needed()).then(|| self.unlisted.max(self.renewed).plus(grace))
    }

    /// What the index keeps: the entry, two times of 8 bytes, flags, 8 bytes of who brought it if somebody did, and 9 bytes a
    /// reference.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ENTRY_BYTES + 25 + 9 * self.references.len());
        bytes.extend_from_slice(&self.entry.to_bytes());
        bytes.extend_from_slice(&self.unlisted.0.to_be_bytes());
        bytes.extend_from_slice(&self.renewed.0.to_be_bytes());
        let flags = [(self.more, MORE), (self.listed, LISTED), (self.more_pins, MORE_PINS)];
        let flags = flags.into_iter().chain([(self.brought.is_some(), BROUGHT)]);
        bytes.push(flags.filter(|(is, _)| *is).map(|(_, flag)| flag).sum());
        bytes.extend(self.brought.into_iter().flat_map(|Bringer(who)| who.to_be_bytes()));
        for reference in &self.references {
            bytes.extend_from_slice(&reference.publication.to_be_bytes());
            bytes.push(reference.copies);
        }
        bytes
    }

    /// Reads what the index keeps; `None` where it is not that.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (entry, rest) = bytes.split_first_chunk::<ENTRY_BYTES>()?;
        let (unlisted, rest) = rest.split_first_chunk::<8>()?;
        let (renewed, rest) = rest.split_first_chunk::<8>()?;
        let (flags, rest) = rest.split_first()?;
        let (brought, rest) = match flags & BROUGHT {
            0 => (None, rest),
            _ => rest.split_first_chunk::<8>().map(|(who, rest)| (Some(Bringer(u64::from_be_bytes(*who))), rest))?,
        };
        if *flags > MORE | LISTED | MORE_PINS | BROUGHT || rest.len() > 9 * MAX_REFERENCES || rest.len() % 9 != 0 {
            return None;
        }
        let reference = |bytes: &[u8]| {
            let (publication, copies) = bytes.split_first_chunk::<8>()?;
            Some(Reference { publication: u64::from_be_bytes(*publication), copies: *copies.first()? })
        };
        Some(Self {
            entry: Entry::from_bytes(entry)?,
            references: rest.chunks(9).map(reference).collect::<Option<_>>()?,
            more: flags & MORE != 0,
            more_pins: flags & MORE_PINS != 0,
            listed: flags & LISTED != 0,
            unlisted: Moment(u64::from_be_bytes(*unlisted)),
            renewed: Moment(u64::from_be_bytes(*renewed)),
            brought,
        })
    }
}

/// A change of one row, in a form that can be handed to whoever keeps the rows and made there, whatever the row is by then.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The chunk came, or is acknowledged again, by this node's own doing.
    Renew(Entry, Moment),
    /// A peer brought it.
    Bring(Entry, Bringer, Moment),
    /// It is acknowledged to a peer again, which brought nothing.
    RenewFor(Entry, Bringer, Moment),
    /// A publication lists it.
    List(Entry, Reference, Moment),
    /// A publication lists it no more.
    Unlist(u64, Moment),
    /// The row goes if it is still this one.
    Forget(Vec<u8>),
}

impl Change {
    /// What [`merge`] takes; at most 1 + [`MAX_ROW_BYTES`].
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Renew(entry, now) => [&[0][..], &entry.to_bytes(), &now.0.to_be_bytes()].concat(),
            Self::List(entry, reference, now) => {
                let publication = reference.publication.to_be_bytes();
                [&[1][..], &entry.to_bytes(), &now.0.to_be_bytes(), &publication, &[reference.copies]].concat()
            }
            Self::Unlist(publication, now) => [&[2][..], &publication.to_be_bytes(), &now.0.to_be_bytes()].concat(),
            Self::Forget(row) => [&[3], &row[..]].concat(),
            Self::Bring(entry, who, now) => {
                [&[4][..], &entry.to_bytes(), &who.0.to_be_bytes(), &now.0.to_be_bytes()].concat()
            }
            Self::RenewFor(entry, who, now) => {
                [&[5][..], &entry.to_bytes(), &who.0.to_be_bytes(), &now.0.to_be_bytes()].concat()
            }
        }
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
        let entry = |bytes: &[u8]| Entry::from_bytes(bytes.try_into().ok()?);
        Some(match (kind, rest.len()) {
            (0, 48) => Self::Renew(entry(&rest[..40])?, Moment(number(&rest[40..])?)),
            (1, 57) => {
                let reference = Reference { publication: number(&rest[48..56])?, copies: rest[56] };
                Self::List(entry(&rest[..40])?, reference, Moment(number(&rest[40..48])?))
            }
            (2, 16) => Self::Unlist(number(&rest[..8])?, Moment(number(&rest[8..])?)),
            (3, _) => Self::Forget(rest.to_vec()),
            (4 | 5, 56) => {
                let (entry, who, now) =
                    (entry(&rest[..40])?, Bringer(number(&rest[40..48])?), Moment(number(&rest[48..])?));
                if *kind == 4 { Self::Bring(entry, who, now) } else { Self::RenewFor(entry, who, now) }
            }
            _ => return None,
        })
    }
}

/// The most bytes of a row.
pub const MAX_ROW_BYTES: usize = ENTRY_BYTES + 25 + 9 * MAX_REFERENCES;

/// The row after a change: of what is kept now, and of [`Change::to_bytes`]. A row that cannot be read is none: it is made
/// again from what lists it. What is no change leaves the row as it is.
pub fn merge(current: Option<&[u8]>, change: &[u8]) -> Option<Vec<u8>> {
    let row = current.and_then(Row::from_bytes);
    let changed = match (row, Change::from_bytes(change)) {
        (_, Some(Change::Forget(seen))) if current == Some(&seen[..]) => None,
        (Some(mut row), Some(Change::Renew(_, now))) => {
            row.renew(now);
            // This node counts on it itself.
            row.brought = None;
            Some(row)
        }
        (row, Some(Change::Bring(entry, who, now))) => {
            let mut row = row.unwrap_or_else(|| Row::new(entry, now));
            row.bring(who, now);
            Some(row)
        }
        (row, Some(Change::RenewFor(entry, who, now))) => {
            let mut row = row.unwrap_or_else(|| Row::new(entry, now));
            row.renew_for(who, now);
            Some(row)
        }
        (None, Some(Change::Renew(entry, now))) => Some(Row::new(entry, now)),
        (row, Some(Change::List(entry, reference, now))) => {
            let mut row = row.unwrap_or_else(|| Row::new(entry, now));
            row.list(reference);
            Some(row)
        }
        (Some(mut row), Some(Change::Unlist(publication, now))) => {
            row.unlist(publication, now);
            Some(row)
        }
        (row, _) => row,
    };
    changed.map(|row| row.to_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use libp2p_identity::Keypair;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{Cid, Codec};

    const GRACE: Duration = Duration::from_secs(100);

    fn row() -> Row {
        Row::new(Entry { cid: Cid::of(Codec::Raw, b"a chunk"), length: 7 }, Moment(10))
    }

    proptest! {
        /// Against a map of references, with any of it done twice. Up to 16 copies are a publication's, 17 is a pin.
        #[test]
        fn a_row_is_a_set_of_references(
            steps in vec((0..20_u64, 0..=17_u8, any::<bool>()), 0..60),
        ) {
            let (mut row, mut model, mut over) = (row(), BTreeMap::new(), false);
            for (at, (publication, copies, twice)) in (11..).zip(steps) {
                let copies = if copies > 16 { PIN } else { copies };
                for _ in 0..=u8::from(twice) {
                    if copies == 0 {
                        let before = model.len();
                        model.remove(&publication);
                        row.unlist(publication, Moment(at));
                        if before == 1 && model.is_empty() && !over {
                            prop_assert_eq!(row.unlisted(), Some(Moment(at)));
                        }
                    } else {
                        over |= model.len() == MAX_REFERENCES && !model.contains_key(&publication);
                        if model.len() < MAX_REFERENCES || model.contains_key(&publication) {
                            model.insert(publication, copies);
                        }
                        row.list(Reference { publication, copies });
                        if copies == PIN {
                            prop_assert!(row.is_pinned(), "whatever else lists it");
                        }
                    }
                }
                prop_assert_eq!(row.is_needed(), over || !model.is_empty());
                prop_assert_eq!(row.unlisted().is_none(), row.is_needed());
                if !over {
                    let publications = || model.values().copied().filter(|copies| *copies != PIN);
                    prop_assert_eq!(row.copies(), publications().max().unwrap_or(0));
                    prop_assert_eq!(row.is_wanted(), publications().count() > 0);
                    prop_assert_eq!(row.is_pinned(), model.values().any(|copies| *copies == PIN));
                }
                prop_assert_eq!(Row::from_bytes(&row.to_bytes()), Some(row.clone()));
            }
        }
    }

    #[test]
    fn a_pin_asks_for_no_copy_and_ends_whatever_else_lists_the_chunk() {
        let pin = |publication| Reference { publication, copies: PIN };
        let mut row = row();
        row.list(pin(1));
        assert!(row.is_pinned() && row.is_needed() && !row.is_wanted());
        assert_eq!((row.copies(), row.grace_ends(GRACE)), (0, None));
        row.unlist(1, Moment(20));
        assert_eq!((row.is_pinned(), row.grace_ends(GRACE)), (false, Some(Moment(120))), "from the end of the pin on");
        // A full row names it all the same, in the place of a publication.
        (1..=20).for_each(|publication| row.list(Reference { publication, copies: 3 }));
        row.list(pin(30));
        assert!(row.names(30) && row.is_pinned());
        row.unlist(30, Moment(30));
        assert!(!row.is_pinned() && row.is_wanted() && row.copies() == MOST_COPIES);
        // One too many of them stays until the table is made anew.
        (40..60).for_each(|publication| row.list(pin(publication)));
        (40..60).for_each(|publication| row.unlist(publication, Moment(40)));
        assert!(row.is_pinned() && Row::from_bytes(&row.to_bytes()).is_some_and(|row| row.is_pinned()));
    }

    #[test]
    fn the_grace_runs_from_the_later_of_unlisted_and_renewed_and_never_while_it_is_listed() {
        let mut row = row();
        assert_eq!(row.grace_ends(GRACE), Some(Moment(110)), "what came and was never listed");
        row.list(Reference { publication: 1, copies: 3 });
        assert_eq!(row.grace_ends(GRACE), None);
        row.unlist(2, Moment(20));
        assert_eq!(row.grace_ends(GRACE), None, "another's removal");
        row.unlist(1, Moment(30));
        row.unlist(1, Moment(50));
        assert_eq!(row.grace_ends(GRACE), Some(Moment(130)), "told twice, it counts from the first time");
        row.renew(Moment(70));
        row.renew(Moment(60));
        assert_eq!(row.grace_ends(GRACE), Some(Moment(170)));
        assert_eq!(Moment(1).plus(Duration::from_millis(1)), Moment(2));
    }

    #[test]
    fn changes_are_made_to_the_row_that_there_is_by_then() {
        let (entry, one) = (row().entry, Reference { publication: 1, copies: 3 });
        let after = |row: Option<&[u8]>, change: Change| merge(row, &change.to_bytes());
        let came = after(None, Change::Renew(entry, Moment(10)));
        assert_eq!(came, Some(row().to_bytes()));
        let listed = after(came.as_deref(), Change::List(entry, one, Moment(20))).expect("a row");
        assert_eq!(Row::from_bytes(&listed).map(|row| row.copies()), Some(3));
        assert_eq!(
            after(Some(&listed), Change::Forget(row().to_bytes())),
            Some(listed.clone()),
            "it is another by now"
        );
        let unlisted = after(Some(&listed), Change::Unlist(1, Moment(30))).expect("a row");
        assert_eq!(Row::from_bytes(&unlisted).and_then(|row| row.unlisted()), Some(Moment(30)));
        assert_eq!(after(Some(&unlisted), Change::Forget(unlisted.clone())), None);
        assert_eq!(after(None, Change::Unlist(1, Moment(30))), None, "nothing is made by taking away");
        assert_eq!(merge(Some(&listed), &[9, 9]), Some(listed.clone()), "what is no change");
        assert_eq!(after(Some(&[1, 2]), Change::Unlist(1, Moment(1))), None, "what is no row is none");
        const { assert!(MAX_ROW_BYTES < 256) };
    }

    #[test]
    fn it_is_here_for_whoever_brought_it_or_renewed_it_last_until_something_lists_it() {
        let (entry, one) = (row().entry, Reference { publication: 1, copies: 3 });
        let (a, b) = (Bringer(7), Bringer(8));
        let after = |row: Option<&[u8]>, change: Change| merge(row, &change.to_bytes());
        let read = |bytes: &Option<Vec<u8>>| Row::from_bytes(bytes.as_deref().expect("a row")).expect("a row");
        let brought = after(None, Change::Bring(entry, a, Moment(10)));
        assert_eq!((read(&brought).bringer(), read(&brought).unlisted()), (Some(a), Some(Moment(10))));
        let taken = after(brought.as_deref(), Change::RenewFor(entry, b, Moment(50)));
        assert_eq!((read(&taken).bringer(), read(&taken).grace_ends(GRACE)), (Some(b), Some(Moment(150))));
        assert!(read(&taken).is_renewable(Moment(10_000), GRACE), "an add may take as long as it likes");
        let own = after(taken.as_deref(), Change::Renew(entry, Moment(60)));
        assert_eq!(read(&own).bringer(), None, "this node counts on it itself");

        let listed = after(taken.as_deref(), Change::List(entry, one, Moment(70)));
        let again = after(listed.as_deref(), Change::RenewFor(entry, a, Moment(80)));
        let once_more = after(listed.as_deref(), Change::Bring(entry, a, Moment(80)));
        assert_eq!(again, once_more);
        assert_eq!((read(&again).bringer(), read(&again).is_wanted()), (None, true));
        assert!(read(&again).is_renewable(Moment(10_000), GRACE));

        let removed = after(again.as_deref(), Change::Unlist(1, Moment(100)));
        assert!(read(&removed).is_renewable(Moment(199), GRACE) && !read(&removed).is_renewable(Moment(200), GRACE));
        let renewed = after(removed.as_deref(), Change::RenewFor(entry, a, Moment(199)));
        assert_eq!((read(&renewed).bringer(), read(&renewed).grace_ends(GRACE)), (None, Some(Moment(299))));
        assert!(!read(&renewed).is_renewable(Moment(200), GRACE), "a renewal does not count as a removal");
        let back = after(renewed.as_deref(), Change::Bring(entry, a, Moment(250)));
        assert_eq!(read(&back), read(&after(None, Change::Bring(entry, a, Moment(250)))), "as if it had come now");
    }

    #[test]
    fn a_row_and_who_brought_it_are_the_bytes_of_the_specification() {
        let peer = Keypair::ed25519_from_bytes([1; 32]).expect("32 bytes").public().to_peer_id();
        let mut row = row();
        row.renew_for(Bringer::from(&peer), Moment(11));
        let hex: String = row.to_bytes()[ENTRY_BYTES..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "000000000000000a000000000000000b082ea99e04b7226ebb");
        row.list(Reference { publication: 0x0102_0304_0506_0708, copies: 3 });
        let hex: String = row.to_bytes()[ENTRY_BYTES..].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "000000000000000a000000000000000b02010203040506070803");
    }

    #[test]
    fn what_is_not_a_row_is_none() {
        let bytes = row().to_bytes();
        assert!((0..bytes.len()).all(|cut| Row::from_bytes(&bytes[..cut]).is_none()));
        let mut brought = row();
        brought.bring(Bringer(9), Moment(10));
        let bytes_of_it = brought.to_bytes();
        assert_eq!(Row::from_bytes(&bytes_of_it), Some(brought));
        assert!((0..bytes_of_it.len()).all(|cut| Row::from_bytes(&bytes_of_it[..cut]).is_none()));
        assert_eq!(Row::from_bytes(&[&bytes[..], &[0; 8]].concat()), None);
        assert_eq!(Row::from_bytes(&[&bytes[..], &[0; 9 * 17]].concat()), None);
    }
}
