//! What the lister is told, and what it has done.

use std::{sync::Arc, time::Instant};

use super::Roll;
use crate::{
    PeerId,
    duty::{Spans, reach::Reach},
    manifest::Listing,
};

/// What a live publication lists, or a pin, by what it is known as in rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The first eight bytes of its id.
    pub publication: u64,
    /// What it lists.
    pub listing: Listing,
    /// Distinct chunks of its DAG.
    pub chunks: u64,
    /// Copies that it wants; [`PIN`](crate::duty::PIN): it is a pin.
    pub copies: u8,
    /// Who published it, and may be asked for its manifest; `None`: that is not known.
    pub publisher: Option<PeerId>,
}

impl Listed {
    /// One of which nobody knows any more what it listed.
    pub(super) fn unknown(publication: u64, copies: u8) -> Self {
        Self { publication, listing: Listing::Inline(Vec::new()), chunks: 0, copies, publisher: None }
    }
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A publication became live, or is told again. `covered`: what rows say of it already, from an earlier run.
    Live {
        /// Which.
        listed: Listed,
        /// What it was read over.
        covered: Arc<Spans>,
        /// An earlier run read it over that if what was live then is what is live now: [`Doubt`](Self::Doubt) says so.
        doubtful: bool,
    },
    /// A publication is not live any more.
    Gone {
        /// Which.
        publication: u64,
        /// What it listed, if that is known.
        listed: Option<Listed>,
    },
    /// All that is live is told from now on, from the start.
    Telling,
    /// All that is live was told: what was told before [`Telling`](Self::Telling) and not since is not live any more.
    Told,
    /// All that is known to be live is asked for.
    Look,
    /// Rows name these publications: those that nobody told of are to be taken off.
    Named(Vec<u64>),
    /// What rows say of these publications is to be compared with what they list, over all that they cover.
    Compare(Vec<u64>),
    /// What was live when everything was read, in an earlier run: what is live now and is not of it, among that of which it
    /// was doubtful whether it was read, was not. Comes once, behind [`Told`](Self::Told).
    Doubt(Box<Roll>),
    /// Where this node stands among the peers in view changed.
    Moved(Reach),
    /// [`Output::Purge`] of these is done, or their [`Output::Read`], all of it.
    Completed(Vec<u64>),
    /// Their [`Output::Read`] could not be done.
    Failed(Vec<u64>),
    /// [`Output::Read`] is done, its rows are written; or it could not be read.
    Done {
        /// Which.
        publication: u64,
        /// Whether all of it was read.
        complete: bool,
    },
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Read what it lists, and its manifest's own chunks, over these parts of the keyspace and over what is held here
    /// outside of them; list all of it in the rows (or unlist it), and write down what it covers then.
    Read {
        /// Which.
        listed: Listed,
        /// The parts.
        spans: Arc<Spans>,
        /// List it; else unlist.
        list: bool,
        /// What it covers once that is done.
        covers: Arc<Spans>,
    },
    /// Their manifests cannot be read any more: take the references to them off by a look at every row.
    Purge(Vec<u64>),
    /// Say of everything that is live that it is, between [`Input::Telling`] and [`Input::Told`]: something of it is to be
    /// read.
    Tell,
    /// All that is live, pins too, ascending: 8 bytes each.
    Live(Vec<u64>),
    /// Rows may name what is not live: they are to be compared with what is.
    Drifted,
    /// Rows outside of these parts, of publications that want so many copies, are not needed where nothing is held.
    Narrowed {
        /// Copies.
        copies: u8,
        /// What stays.
        spans: Arc<Spans>,
    },
    /// Not everything that is live could be read: nothing is freed until then; `None`: everything was.
    Unread(Option<Instant>),
}
