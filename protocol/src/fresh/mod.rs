//! Fresh names: how a reader knows that it sees the newest version of a name, whoever is asleep, and without a
//! coordinator.
//!
//! A name of one publisher is a register that only its publisher writes. A write is *settled* when enough peers have it
//! on disk ([`Settling`]); a fresh read asks until enough have answered ([`Inquiry`]). Then the read sees each write
//! that was settled before it began, and may see later ones. It is a regular register (Lamport, "On Interprocess
//! Communication", 1986) over quorums of a set that changes; who counts is [`Members`]'s.
//!
//! # Who counts
//!
//! The *members* are the storing peers seen within [`REMEMBERED`]. Each node has a set of its own; whoever asks or is
//! told merges the other's set, on disk, before it says anything itself. Of `n` members, [`witnesses`]`(n)` have to
//! acknowledge a write, and [`answers`]`(n)` = n − witnesses(n) + 1 have to answer a read: a majority each way in small
//! networks, three acknowledgements and all answers but two in larger ones. The number does not depend on the copies
//! that an add wanted: a reader cannot know what was asked for by a write that it has not seen.
//!
//! Only *complete* members acknowledge and answer; the others count in n. A node is complete when it was *introduced* to
//! enough others, each of which (1) was told of it and added it to its members, on disk, then (2) compared catalogues
//! with it, and (3) was complete itself when (1) happened; *enough* is [`introductions`], or all members without (3). It
//! is reckoned of all members: one that was only heard of may be complete by now. Once a node was complete it is reckoned
//! of those that are known to have been complete: newcomers were introduced to enough of those who were there, so that
//! only members of a network of their own are left to meet. If nobody was ever complete, all begin together after
//! [`FOUNDING`]. A node whose identity was made with its log, and that was given nobody to join, is complete while it
//! knows of no other complete one: the first of a network is. All of it is looked at anew with each member that is learned
//! of, so that a node whose disk was lost is not complete, as soon as it hears of its network, until it has what the
//! others have; what it says is counted after it merged the asker's members.
//!
//! # Why it is enough
//!
//! Let w be a settled write, A(w) its witnesses, and S(w) the writer's members when it looked, after the last
//! acknowledgement, each of which carried its sender's members: |A(w)| ≥ witnesses(|S(w)|). Let Q be the complete
//! members that answered a read that began later, S the reader's members with those of all who answered:
//! |Q| ≥ answers(|S|).
//!
//! 1. *A newcomer has w or is in S(w).* It became complete by introductions C, as many as a read asks. By 3, applied to
//!    C, one of C has w, or will acknowledge it. If that one acknowledged after it was told of the newcomer, its
//!    acknowledgement told the writer, and the newcomer is in S(w); else it had w when they compared catalogues.
//! 2. *S has every complete member of S(w).* That somebody became complete is itself a fact that witnesses(n) members
//!    or more have on disk, and that each later one learns by its introductions: 1 and 3, applied to that fact instead
//!    of w, in the order of becoming complete.
//! 3. *Somebody in Q has w.* Those of Q outside S(w) have it by 1. Of the m = |S ∩ S(w)| others at most
//!    m − witnesses(m) lack it, since A(w) is of complete members, hence of S by 2, and witnesses() never falls as n
//!    grows; that is fewer than answers(m) ≤ answers(|S|) ≤ |Q|.
//!
//! A publisher's own answer is enough for its own names, if it has all that it ever published: its log began with its
//! identity, or it is complete, which gave it back what had been settled. The name alone may have publishers that nobody
//! here has heard of, so that only members' answers are enough for it.
//!
//! # What is assumed
//!
//! - Disks keep what was synced or lose all of it; none goes back to an earlier state (a data directory restored from an
//!   old copy does). Any number of them may be lost as long as one of A(w) remains until those that lost theirs are
//!   complete again: as `introductions` counts the node itself among those that may have had w.
//! - Whoever is away for [`REMEMBERED`] is forgotten; what it acknowledged has reached the others by then, as everything
//!   in the catalogue does within minutes of a connection.
//! - A network began with one node that had nobody to join, or its beginnings have met: what was settled in a network of
//!   its own counts when its nodes are complete in the other.
//! - Answers are signed publications, so that no peer can make a version up; any can hide one, claim to be complete, or
//!   invent members. A hidden version is seen if one of A(w) in Q is honest; invented members make fresh reads fail,
//!   never stale.
//!
//! # What each rule is for
//!
//! `history_tests.rs` attacks the rules with each message as late as chance has it, and `tests/tests/fresh_history.rs`
//! the services on the simulated network. With a rule taken out by hand, so many of 12,000 seeds of the first miss a
//! settled write (none with all of them):
//!
//! | taken out | seeds |
//! | --- | --- |
//! | one acknowledgement fewer settles; one answer fewer is fresh | 2,131; 1,179 |
//! | an acknowledgement, or an answer, of a peer that is not complete counts | 138; 500 |
//! | the writer, or the reader, counts itself though it is not complete | 217; 4,029 |
//! | whoever lost its log is complete while it knows of nobody; vouches for its own names | 3,761; 1,708 |
//! | a publisher that lost its log vouches; another than the publisher does | 100; 501 |
//! | those of whom nobody was complete do not wait before they begin together | 239 |
//! | one introduction is enough | 267 |
//! | an introduction counts whatever the other was; newcomers reckon with the complete alone | 11; 7 |
//! | who is asked does not count who asks; who asks does not count who answers | 50; 4 |
//! | who asks does not learn whom the other counts; a read does not count whom an answer names | 41; 5 |
//!
//! No seed needs that an answer counts only if its sender counts everybody that the reader does, that connected peers
//! count until they have said whether they store, that who is asked learns whom the asker counts, or that catalogues are
//! compared after both were told of each other: two newcomers at once with the same four messages late would, for the
//! last. The tests of `inquiry.rs` hold the first two, and `tests/tests/introductions.rs` the others, whose other side is
//! written by hand.

#[cfg(test)]
mod history_tests;
mod inquiry;
mod members;

use std::time::Duration;

use libp2p_identity::PeerId;

pub use inquiry::{Inquiry, Verdict};
pub use members::{Begun, Changed, Members, Row, Settling};

/// How long a storing peer that is not seen counts.
pub const REMEMBERED: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// How long nodes look for one that is complete before they begin a network together: longer than it takes to find one
/// that is there (a guess).
pub const FOUNDING: Duration = Duration::from_secs(600);
/// Members that are counted at the most, a frame's worth. In a larger network only publishers' own answers are fresh:
/// to ask a thousand peers for a name is not what anybody wants (a guess).
pub const MAX_MEMBERS: usize = 1024;
/// The most acknowledgements that a write needs: the copies that an add makes where it is not told otherwise.
const MOST_WITNESSES: usize = 3;

/// How many of `members` have to have a write on disk: more than half, three at the most, one at least.
pub const fn witnesses(members: usize) -> usize {
    let majority = members / 2 + 1;
    if majority < MOST_WITNESSES { majority } else { MOST_WITNESSES }
}

/// How many of `members` have to answer a read: so many that the others are fewer than [`witnesses`]. At least one.
pub const fn answers(members: usize) -> usize {
    let others = members + 1 - witnesses(members);
    if others == 0 { 1 } else { others }
}

/// How many complete ones of `others` a node is introduced to before it is complete: as many as answer a read of all of
/// them and itself, because it may have been a witness that lost its disk. They are as many as make its being there known
/// (witnesses(others), never more).
pub const fn introductions(others: usize) -> usize {
    let read = answers(others + 1);
    if read < others { read } else { others }
}

/// A storing peer, as one node tells another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// Who.
    pub peer: PeerId,
    /// How long ago somebody last saw it, rounded up.
    pub ago_seconds: u32,
    /// Whether it was ever complete, as far as the teller knows.
    pub complete: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_meet_in_every_size() {
        for n in 1..200 {
            assert!(witnesses(n) + answers(n) > n && witnesses(n) <= n && answers(n) <= n, "{n}");
            // What the proof needs of them.
            assert!(witnesses(n + 1) >= witnesses(n) && answers(n + 1) >= answers(n), "{n}");
            assert!(introductions(n) <= n && introductions(n) >= witnesses(n).min(n), "{n}");
            // A lost disk was one of the witnesses; one of the others is among those that it is introduced to, even
            // where all but one of them were lost as well.
            let (total, lost) = (n + 1, witnesses(n + 1) - 1);
            let lacking = total - witnesses(total);
            assert!(lost == 0 || introductions(n) > lacking || introductions(n) == n, "{n}");
        }
        let table: Vec<_> = (1..8).map(|n| (witnesses(n), answers(n), introductions(n))).collect();
        assert_eq!(table, [(1, 1, 1), (2, 1, 2), (2, 2, 2), (3, 2, 3), (3, 3, 4), (3, 4, 5), (3, 5, 6)]);
    }
}
