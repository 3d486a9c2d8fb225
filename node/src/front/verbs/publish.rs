//! What the verbs share that change the catalogue: a change is told once the peers that answer for it have it on disk.

use p2p_protocol::catalogue::Publication;

use crate::{node::Rooms, service::sync::Confirmed};

/// Peers beyond the copies wanted that are asked where others fail: as many as for a chunk.
const SPARE: usize = p2p_protocol::placement::EXTRA_CANDIDATES;

/// Has the storing peers nearest to the entry keep it, `wanted` of them or as many as the network has. What is to be told
/// where fewer did.
pub(super) async fn confirm(rooms: &Rooms, publication: &Publication, wanted: u8) -> Option<String> {
    let address = publication.key().address();
    let candidates = rooms.locate.ranked(&address, usize::from(wanted) + SPARE).await;
    let there = u8::try_from(rooms.locate.seen()).unwrap_or(u8::MAX);
    let expected = wanted.min(there);
    let confirmed = rooms.sync.confirm(publication, candidates, expected).await;
    short(&confirmed, expected)
}

fn short(confirmed: &Confirmed, expected: u8) -> Option<String> {
    let Confirmed { copies, failures } = confirmed;
    if *copies >= expected {
        return None;
    }
    let why: Vec<String> = failures.iter().map(|(peer, reason)| format!("{peer}: {reason}")).collect();
    let because = if why.is_empty() { String::new() } else { format!(" ({})", why.join("; ")) };
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
        let peer = p2p_protocol::PeerId::random();
        let confirmed = |copies| Confirmed { copies, failures: vec![(peer, "no room".to_owned())] };
        assert_eq!((short(&confirmed(3), 3), short(&confirmed(0), 0)), (None, None));
        let told = short(&confirmed(1), 3).expect("two are missing");
        assert!(told.contains("1 of 3") && told.contains(&format!("{peer}: no room")), "{told}");
    }
}
