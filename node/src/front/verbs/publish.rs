//! What the verbs share that change the catalogue: a change is told once the peers that answer for it have it on disk.

use p2p_protocol::{PeerId, catalogue::Publication};

use crate::{node::Rooms, service::sync::Confirmed};

/// Peers beyond the copies wanted that are asked where others fail: as many as for a chunk.
const SPARE: usize = p2p_protocol::placement::EXTRA_CANDIDATES;

/// Peers that a message names at the most.
const MAX_NAMED: usize = 16;

/// What is to be told of how a change of the catalogue is kept.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Told {
    /// What makes the exit code 5: fewer peers have it on disk than should.
    pub(super) short: Option<String>,
    /// A read elsewhere that asks for what is newest may not see it yet.
    pub(super) warning: Option<String>,
}

/// Has the storing peers nearest to the entry keep it, `wanted` of them or as many as the network has, and of a name so
/// many more that whoever asks for its newest version sees it.
pub(super) async fn confirm(rooms: &Rooms, publication: &Publication, wanted: u8) -> Told {
    let address = publication.key().address();
    let candidates = rooms.locate.ranked(&address, usize::from(wanted) + SPARE).await;
    let there = u8::try_from(rooms.locate.seen()).unwrap_or(u8::MAX);
    let expected = wanted.min(there);
    let confirmed = rooms.sync.confirm(publication, candidates, expected).await;
    Told { short: short(&confirmed, &rooms.locate.missing(), expected), warning: unsettled(&confirmed) }
}

fn unsettled(confirmed: &Confirmed) -> Option<String> {
    let more = match confirmed.unsettled {
        0 => return None,
        1 => "1 storing peer".to_owned(),
        more => format!("{more} storing peers"),
    };
    Some(format!(
        "{more} more would have to know this version before each read with --fresh on another node sees it; they learn \
         of it when they are back"
    ))
}

/// Who did not take a copy and why, in parentheses; `missing` are the storing peers seen lately that cannot be reached
/// now, whom nobody asked. Nothing where there is nobody.
pub(super) fn because<R: std::fmt::Display>(failures: &[(PeerId, R)], missing: &[PeerId]) -> String {
    let failed = failures.iter().map(|(peer, reason)| {
        let (peer, reason) = (peer.to_string(), reason.to_string());
        // Many a reason names the peer itself.
        if reason.contains(&peer) { reason } else { format!("{peer}: {reason}") }
    });
    let away = missing.iter().filter(|peer| failures.iter().all(|(failed, _)| failed != *peer));
    let away = away.take(MAX_NAMED).map(|peer| format!("{peer}: seen within the last hour, not reachable now"));
    let reasons: Vec<String> = failed.chain(away).collect();
    if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) }
}

fn short(confirmed: &Confirmed, missing: &[PeerId], expected: u8) -> Option<String> {
    let Confirmed { copies, failures, .. } = confirmed;
    if *copies >= expected {
        return None;
    }
    let because = because(failures, missing);
    Some(format!(
        "only {copies} of {expected} peers that are to answer for it have the entry of the catalogue on disk{because}; \
         the others get it from these"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_did_not_take_it_is_named() {
        let (peer, away) = (PeerId::random(), PeerId::random());
        let confirmed = |copies| Confirmed { copies, failures: vec![(peer, "no room".to_owned())], unsettled: 0 };
        assert_eq!((short(&confirmed(3), &[away], 3), short(&confirmed(0), &[], 0)), (None, None));
        let told = short(&confirmed(1), &[away, peer], 3).expect("two are missing");
        assert_eq!(unsettled(&confirmed(1)), None);
        let told_of_two = unsettled(&Confirmed { unsettled: 2, ..confirmed(3) }).expect("two are missing");
        assert!(told_of_two.contains("2 storing peers more"), "{told_of_two}");
        assert!(told.contains("1 of 3") && told.contains(&format!("{peer}: no room")), "{told}");
        assert!(told.contains(&format!("{away}: seen within the last hour")), "{told}");
        assert_eq!(told.matches(&peer.to_string()).count(), 1, "{told}");
    }
}
