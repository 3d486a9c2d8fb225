//! What this node should hold, and what it does about it: one loop for repair, placement and collection.
//!
//! The catalogue is the desired state, the same on every node: which roots are live, with how many copies, and by their
//! manifests which chunks that means. Each node compares what it holds with what it should hold and makes its own part
//! true; nobody coordinates, and every trigger (a publication, a peer that came or went, a damaged record, a restart, a
//! timer) runs the same comparison, over the part of the keyspace that it may have changed.
//!
//! - [`wanted`]: a row for each chunk that is listed in this node's part of the keyspace, or held here. The rows are kept
//!   by whoever drives the machine; they are read by scans, so that nothing here holds a number of them in memory.
//! - [`view`]: who could hold chunks. [`reach`]: how near this node is to a key among them.
//! - [`lister`]: which manifests to read over which part of the keyspace, as publications and peers come and go; `parts`
//!   is that part, `rest` those publications with nothing to do for them.
//! - [`Keeper`]: the loop. `sweep` compares, `pulls` fetches what is missing, `audits` compares with neighbours,
//!   `yields` gives up cached copies after proof; `collection` says when what nothing lists may be freed.
//!
//! # Duty
//!
//! A chunk is this node's duty if something lists it and fewer than k *credible* peers of the view are nearer, and fewer
//! than k + 4 of the view are at all. A peer is credible for a chunk if it has it, or if it is neither full nor has been
//! found to lack it for longer than the repair delay, and was not caught in a lie. Where each audit finds that a peer
//! lacks less than before, or no more and it says that it is fetching, it is filling up, and is waited for up to eight
//! delays: nobody else fetches what it fetches. Of one that was full and has room again what it lacked is forgotten.
//! So a restart moves nothing; a peer that is gone leaves each of its chunks to exactly one other; a full or broken
//! peer's share has an owner; and partial views make too many copies, never too few. What a user pinned here is this
//! node's duty too, whatever its rank and whoever has it. Everything else that is held is cached.
//!
//! # What is freed, and what is given up
//!
//! A chunk that nothing lists, and no pin keeps, is freed when the grace is over since then and since it was last
//! acknowledged to somebody, and when every storing peer seen within seven graces has completed a comparison of catalogues
//! that began after it was unlisted: so that no partition frees what its other side still wants. (Seven graces after it
//! was unlisted nobody is waited for.) A cached copy of a listed chunk is given up only when room is needed, and only once
//! each of the k nearest, in view for a day, proved that it has the bytes.
//!
//! # What each rule is held by
//!
//! Each was taken out by hand, alone. These tests fail without it, of `rules_tests.rs` where no other file is named:
//!
//! | taken out | fails |
//! | --- | --- |
//! | the grace runs since the last acknowledgement too | `the_grace_runs_…` of `wanted.rs`; `an_add_longer_…` and `what_is_added_again_…` of the simulator |
//! | everybody compared catalogues; who did not is waited for, for seven graces and no longer | `what_nothing_lists_is_freed_…`; `a_partition_longer_…` of the simulator |
//! | who left counts for seven graces; a comparison counts from its beginning | `a_comparison_counts_by_its_beginning_…` |
//! | what cannot be read keeps everything, also from `gc`, for seven graces | `what_nothing_lists_is_freed_…`; `what_cannot_be_read_…` of `lister_tests.rs` |
//! | the last look before a chunk is freed | `what_is_added_again_as_it_is_freed_stays` of the simulator |
//! | what is pinned is a duty, by whatever else is known of it | `a_pinned_chunk_is_…`, three |
//! | what is published of a root is read again when its pin ends | `what_is_unpinned_and_published_still_…` of the simulator |
//! | who leaves has no duty, and is not in view | `a_pinned_chunk_is_a_duty_…`; `who_stores_nothing_or_leaves_…` of `view.rs` |
//! | a copy goes when room is needed, each of the k is in view for a day, and none was caught in a lie | `a_cached_copy_goes_only_when_…` |
//! | all of the k prove it; an answer that is short proves nothing | `a_copy_goes_when_each_proved_it_…` of `yields.rs` |
//! | another view makes proofs void | `what_was_proved_counts_no_more_…` |
//! | who could not prove it is not asked again; where there are fewer than k, none goes | `a_copy_stays_where_one_could_not_prove_…` |

pub mod keeper;
pub mod lister;
pub mod reach;
pub mod span;
pub mod view;
pub mod wanted;

mod audits;
mod collection;
mod counts;
mod facts;
mod parts;
mod pulls;
mod rest;
mod roll;
mod sweep;
mod yields;

#[cfg(test)]
mod rules_tests;

use std::time::{Duration, Instant};

use libp2p_identity::PeerId;

pub use keeper::Keeper;
pub use roll::Roll;
pub use span::{Span, Spans};
pub use view::{Said, View};
pub use wanted::{Bringer, Moment, PIN, Reference, Row};

use crate::{key::Key, manifest::Entry};

/// How many peers beyond k may take a chunk whose nearer holders are full or broken.
pub const EXTRA: usize = crate::placement::EXTRA_CANDIDATES;
/// How much wider than k + 4 the part of the keyspace is whose rows are kept, so that an ordinary departure needs no
/// manifest to be read (a guess; the simulator prints what it costs).
pub const MARGIN: usize = 8;

/// What a user may set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How long a peer is away before its share is made again elsewhere.
    pub repair_delay: Duration,
    /// Bytes a second that pulls take at most, at least 1.
    pub repair_bytes_per_second: u64,
    /// Between comparisons with a neighbour; it doubles up to [`LONGEST_AUDIT`] while nothing changes.
    pub audit_interval: Duration,
    /// How long a chunk is kept after the last publication that lists it went.
    pub grace: Duration,
    /// How long each of the k has to have been in view before a cached copy is given up to them, and how long a peer that
    /// lied is not counted on. A network under test has shorter days.
    pub probation: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            repair_delay: Duration::from_secs(15 * 60),
            repair_bytes_per_second: 64 << 20,
            audit_interval: Duration::from_secs(10 * 60),
            grace: Duration::from_secs(24 * 3600),
            probation: Duration::from_secs(24 * 3600),
        }
    }
}

/// The longest that a neighbour goes without being compared with.
pub const LONGEST_AUDIT: Duration = Duration::from_secs(6 * 3600);
/// How many graces a storing peer that left still counts for what may be freed, and one that is here and does not compare
/// catalogues.
pub const SEEN_GRACES: u32 = 7;
/// Rows of one scan.
pub const SCAN_ROWS: usize = 1024;
/// Chunks of one question.
pub const ASK_KEYS: usize = 1024;

/// A row as a scan finds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scanned {
    /// The key of the row's chunk.
    pub key: Key,
    /// The row.
    pub row: Row,
    /// Whether the chunk is in this node's store.
    pub held: bool,
}

/// How a pull ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pulled {
    /// It is in the store.
    Kept,
    /// Nobody who was asked had it.
    Failed,
    /// There is no room for it here.
    NoSpace,
}

/// What a comparison with a neighbour found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Audited {
    /// It holds what it should.
    Equal,
    /// It lacks these, which it should hold.
    Lacks {
        /// The chunks.
        keys: Vec<Key>,
        /// It says that it is about to fetch what it lacks.
        filling: bool,
    },
    /// It said that it has these, and could not prove it.
    Lied(Vec<Key>),
    /// Its catalogue or its view is another one, so that nothing follows.
    Apart,
    /// It did not answer.
    Failed,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A storing peer connected, or something was heard of it (once in a while is enough).
    Heard(PeerId),
    /// A peer that was seen in an earlier run, and is not connected.
    Remembered(PeerId),
    /// What a peer says of itself, in its greeting.
    Said(PeerId, Said),
    /// Its last connection ended; the last byte came then.
    Left(PeerId, Instant),
    /// What the chunks in the store take, and may take. Told before [`Pulled::NoSpace`] too, so that it is known at which
    /// use the disk refused.
    Space {
        /// Bytes that are used.
        used: u64,
        /// Bytes that may be: of a disk that others fill as well, what they leave.
        capacity: u64,
    },
    /// The most copies that any live publication wants.
    MostCopies(u8),
    /// The answer to [`Output::Scan`]: rows of the span in key order, after what was asked.
    Rows {
        /// Which scan.
        scan: u64,
        /// At most as many as were asked for.
        rows: Vec<Scanned>,
        /// Nothing of the span follows.
        ended: bool,
    },
    /// The answer to [`Output::Ask`], in its order; `None`: none came.
    Holdings {
        /// Which question.
        request: u64,
        /// Whether the peer has each.
        has: Option<Vec<bool>>,
    },
    /// How [`Output::Pull`] ended.
    Pulled(Key, Pulled),
    /// The answer to [`Output::Prove`], in its order; `None`: none came.
    Proved {
        /// Which question.
        request: u64,
        /// Whether the peer proved each.
        proved: Option<Vec<bool>>,
    },
    /// What [`Output::Audit`] found.
    Audited(PeerId, Audited),
    /// A comparison of catalogues with a peer was completed, which began then.
    Reconciled(PeerId, Instant),
    /// Rows came, or chunks came or went: their part of the keyspace is to be compared again.
    Changed(Span),
    /// Rows that are held were unlisted now, or chunks came that nothing lists.
    Unlisted,
    /// What is freed may be listed by something that could not be read yet: nothing is freed until then.
    Unread(Option<Instant>),
    /// This node is to leave, or not any more: it takes on nothing.
    Leaving(bool),
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Read up to [`SCAN_ROWS`] rows of a span.
    Scan {
        /// Which scan, for the answer.
        scan: u64,
        /// The part of the keyspace.
        span: Span,
    },
    /// Ask a peer which of these it has.
    Ask {
        /// Which question.
        request: u64,
        /// Whom.
        peer: PeerId,
        /// Of what; at most [`ASK_KEYS`].
        entries: Vec<Entry>,
    },
    /// Fetch and keep a chunk; those that said that they have it first, then anybody.
    Pull {
        /// The chunk.
        entry: Entry,
        /// Who said so.
        from: Vec<PeerId>,
    },
    /// Have a peer prove with a fresh nonce that it has the bytes of these, which this node has.
    Prove {
        /// Which question.
        request: u64,
        /// Whom.
        peer: PeerId,
        /// At most [`ASK_KEYS`].
        entries: Vec<Entry>,
    },
    /// Compare with a neighbour what it should hold.
    Audit(PeerId),
    /// Compare catalogues with a peer.
    Compare(PeerId),
    /// Free these if their rows still say so ([`Row::grace_ends`]): the last look belongs to whoever writes.
    Free(Vec<Entry>),
    /// Give these cached copies up: their replica sets proved that they have them.
    GiveUp(Vec<Entry>),
}
