//! Which part of the keyspace this node keeps rows of, by the copies that publications want, as peers come and go.
//!
//! It has to be where this node is among the k + 4 nearest, and is wider by [`MARGIN`]: while what it has to be stays
//! within it, nothing moves, so that an ordinary departure has no manifest read. It becomes smaller once it is wider than
//! twice the margin would make it.

use std::{collections::BTreeMap, sync::Arc};

use super::{EXTRA, MARGIN, PIN, Spans, reach::Reach};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Parts {
    /// Where this node stands among the peers in view, once that is known.
    reach: Option<Reach>,
    /// At most one for each number of copies that a publication may want, 16.
    by_copies: BTreeMap<u8, Arc<Spans>>,
    /// What pins cover.
    everywhere: Arc<Spans>,
}

/// A part that is another one than it was.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    /// Of publications that want so many copies.
    pub(super) copies: u8,
    /// What it is now.
    pub(super) part: Arc<Spans>,
    /// Nothing came to it: what it was beyond that is not needed any more.
    pub(super) narrowed: bool,
}

impl Parts {
    /// As an earlier run kept them, by copies.
    pub(super) fn new(by_copies: BTreeMap<u8, Arc<Spans>>) -> Self {
        Self { reach: None, by_copies, everywhere: Arc::new(Spans::all()) }
    }

    /// Whether it is known where this node stands.
    pub(super) fn is_known(&self) -> bool {
        self.reach.is_some()
    }

    /// The parts by copies; what pins cover is not among them.
    pub(super) fn by_copies(&self) -> &BTreeMap<u8, Arc<Spans>> {
        &self.by_copies
    }

    /// The part for so many copies, the same allocation until it [moves](Self::moved). Of copies that nothing wanted
    /// before it is nothing as long as it is not known where this node stands.
    pub(super) fn of(&mut self, copies: u8) -> Arc<Spans> {
        if copies == PIN {
            return self.everywhere.clone();
        }
        if let Some(part) = self.by_copies.get(&copies) {
            return part.clone();
        }
        let Some(reach) = &self.reach else { return Arc::default() };
        let part = Arc::new(within(reach, copies, MARGIN));
        self.by_copies.insert(copies, part.clone());
        part
    }

    /// This node stands there now; gives the parts that are others for it.
    pub(super) fn moved(&mut self, reach: Reach) -> Vec<Moved> {
        let mut moved = Vec::new();
        for (&copies, part) in &mut self.by_copies {
            let outgrown = !within(&reach, copies, 0).without(part).is_empty();
            let narrowed = !outgrown && !part.without(&within(&reach, copies, 2 * MARGIN)).is_empty();
            if outgrown || narrowed {
                *part = Arc::new(within(&reach, copies, MARGIN));
                moved.push(Moved { copies, part: part.clone(), narrowed });
            }
        }
        self.reach = Some(reach);
        moved
    }
}

/// Where this node is among the k + 4 nearest, and so many more.
fn within(reach: &Reach, copies: u8, margin: usize) -> Spans {
    reach.within(usize::from(copies) + EXTRA + margin)
}
