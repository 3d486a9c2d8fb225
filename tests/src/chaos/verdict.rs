//! What must hold of what all machines say at one time, once all is quiet. Pure: the [`judge`](super::judge) asks them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    COPIES,
    model::{Model, Standing},
};
use crate::process::placement;

/// Role by chunk, a store each.
pub type Stores = Vec<BTreeMap<String, String>>;
/// A catalogue: root, and all else that is said of the entry and is the same everywhere.
pub type Entries = BTreeSet<(String, String)>;
/// Something that does not hold: the name under which it is counted, and what it is.
pub type Complaint = (&'static str, String);

/// What all machines say.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Who is at each place.
    pub peers: Vec<String>,
    /// What each has.
    pub stores: Stores,
    /// What each lists.
    pub listed: Vec<Entries>,
}

/// All that does not hold, what is lost first.
pub fn complaints(model: &Model, seen: &Seen) -> Vec<Complaint> {
    let mut found = Vec::new();
    let chunks = |content: u64| model.content(content).and_then(|content| content.chunks.clone());
    let cid = |content: u64| model.content(content).and_then(|content| content.cid.clone()).unwrap_or_default();

    let catalogue = &seen.listed[0];
    for (place, other) in seen.listed.iter().enumerate().skip(1) {
        if let Some(entry) = other.symmetric_difference(catalogue).next() {
            found.push(("unequal", format!("the catalogues of 0 and {place} differ in {entry:?}")));
        }
    }
    let roots: BTreeSet<&str> = catalogue.iter().map(|entry| entry.0.as_str()).collect();
    for content in model.all(Standing::Kept) {
        if !roots.contains(cid(content).as_str()) {
            found.push(("lost", format!("{} ({content}) was acknowledged and is not listed", cid(content))));
        }
        match chunks(content) {
            None => found.push(("lost", format!("nobody says of what {} ({content}) consists", cid(content)))),
            Some(chunks) => found.extend(wrong_places(content, &chunks, seen)),
        }
    }
    for content in model.all(Standing::Short) {
        // It may be lost; if it is not, it belongs where all else does.
        let wrong = wrong_places(content, &chunks(content).unwrap_or_default(), seen);
        found.extend(if wrong.iter().any(|(kind, _)| *kind == "lost") { vec![] } else { wrong });
    }
    let still = [Standing::Kept, Standing::Short, Standing::Unsure].map(|standing| model.all(standing));
    let listed_still: BTreeSet<String> = still.into_iter().flatten().filter_map(chunks).flatten().collect();
    for content in model.all(Standing::Removed) {
        if roots.contains(cid(content).as_str()) {
            found.push(("left", format!("{} ({content}) was removed and is listed", cid(content))));
        }
        for chunk in chunks(content).unwrap_or_default().difference(&listed_still) {
            let places: Vec<_> =
                (0..seen.stores.len()).filter(|place| seen.stores[*place].contains_key(chunk)).collect();
            if !places.is_empty() {
                found.push(("left", format!("{chunk} of {content}, which was removed, is at {places:?}")));
            }
        }
    }
    for (place, store) in seen.stores.iter().enumerate() {
        // Of what was removed, of an add that ended half-way, of an earlier version: its grace is over.
        found.extend(
            store
                .iter()
                .filter(|(_, role)| *role == "pending")
                .map(|(chunk, _)| ("left", format!("{chunk} is at {place}, and nothing lists it"))),
        );
    }
    found.sort_by_key(|(kind, _)| *kind != "lost");
    found
}

/// Chunks of a content that are nowhere, or are replicas elsewhere than on the k closest.
fn wrong_places(content: u64, chunks: &BTreeSet<String>, seen: &Seen) -> Vec<Complaint> {
    let Seen { peers, stores, .. } = seen;
    let mut found = Vec::new();
    for chunk in chunks {
        if stores.iter().all(|store| !store.contains_key(chunk)) {
            found.push(("lost", format!("{chunk} of {content} is on no disk")));
            continue;
        }
        let wanted = placement::closest(chunk, peers.iter().map(String::as_str), COPIES);
        let is_replica = |place: &usize| stores[*place].get(chunk).is_some_and(|role| role == "replica");
        let there: BTreeSet<usize> = (0..peers.len()).filter(is_replica).collect();
        let belongs: BTreeSet<usize> = (0..peers.len()).filter(|place| wanted.contains(&&*peers[*place])).collect();
        if there != belongs {
            let text = format!("{chunk} of {content} belongs to {belongs:?} and is a replica at {there:?}");
            found.push(("misplaced", text));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair;
    use p2p_protocol::{Cid, Codec};

    use super::*;
    use crate::chaos::model::Ending;

    /// Distinct peers; any 32 bytes are an ed25519 secret key.
    fn peers() -> Vec<String> {
        let peer = |seed| Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes").public().to_peer_id().to_string();
        (1..=6).map(peer).collect()
    }

    fn chunk(content: u64) -> String {
        Cid::of(Codec::Raw, &content.to_be_bytes()).to_string()
    }

    fn add(model: &mut Model, content: u64, ending: Ending) {
        let ticket = model.begin_add(content, [0; 32], ("a".into(), None)).expect("nobody is at it");
        model.end_add(&ticket, ending, Some(chunk(content)));
        model.consists_of(content, [chunk(content)].into());
    }

    /// A kept content, a short and a removed one, and what machines say where all is as it must be; a copy too many is
    /// cached.
    fn fine() -> (Model, Seen) {
        let mut model = Model::new(COPIES);
        add(&mut model, 1, Ending::Done);
        add(&mut model, 2, Ending::Short);
        add(&mut model, 3, Ending::Done);
        let removal = model.begin_removal(3, "a").expect("nobody is at it");
        model.end_removal(&removal, Ending::Done);
        let (peers, mut stores) = (peers(), vec![BTreeMap::new(); 6]);
        for content in [1, 2] {
            let nearest = |count| placement::closest(&chunk(content), peers.iter().map(String::as_str), count);
            for (place, peer) in
                peers.iter().enumerate().filter(|(_, peer)| nearest(COPIES + 1).contains(&peer.as_str()))
            {
                let role = if nearest(COPIES).contains(&peer.as_str()) { "replica" } else { "cache" };
                stores[place].insert(chunk(content), role.to_owned());
            }
        }
        let entries: Entries = [1, 2].into_iter().map(|content| (chunk(content), "as it is".into())).collect();
        (model, Seen { listed: vec![entries; 6], stores, peers })
    }

    /// The kinds of what is complained of once something is otherwise.
    fn kinds(other: impl FnOnce(&mut Model, &mut Seen)) -> Vec<&'static str> {
        let (mut model, mut seen) = fine();
        other(&mut model, &mut seen);
        complaints(&model, &seen).into_iter().map(|(kind, _)| kind).collect()
    }

    /// A place where a chunk has this role.
    fn place(seen: &Seen, content: u64, role: &str) -> usize {
        let has = |store: &BTreeMap<String, String>| store.get(&chunk(content)).is_some_and(|is| is == role);
        seen.stores.iter().position(has).expect("there is one")
    }

    #[test]
    fn nothing_is_said_where_all_is_as_it_must_be() {
        assert!(kinds(|_, _| {}).is_empty());
    }

    #[test]
    fn a_copy_that_is_missing_or_too_many_is_found() {
        for content in [1, 2] {
            let missing = |_: &mut Model, seen: &mut Seen| {
                let place = place(seen, content, "replica");
                seen.stores[place].remove(&chunk(content));
            };
            assert_eq!(kinds(missing), ["misplaced"]);
            let over = |_: &mut Model, seen: &mut Seen| {
                let place = place(seen, content, "cache");
                seen.stores[place].insert(chunk(content), "replica".into());
            };
            assert_eq!(kinds(over), ["misplaced"]);
        }
    }

    #[test]
    fn what_is_on_no_disk_or_not_listed_is_lost_if_it_was_acknowledged() {
        let destroyed = |content: u64| {
            move |_: &mut Model, seen: &mut Seen| {
                seen.stores.iter_mut().for_each(|store| drop(store.remove(&chunk(content))));
            }
        };
        assert_eq!(kinds(destroyed(1)), ["lost"]);
        assert!(kinds(destroyed(2)).is_empty(), "its add said that it was short");
        let unlisted = |_: &mut Model, seen: &mut Seen| {
            seen.listed.iter_mut().for_each(|entries| entries.retain(|(cid, _)| *cid != chunk(1)));
        };
        assert_eq!(kinds(unlisted), ["lost"]);
        let unknown = |model: &mut Model, _: &mut Seen| {
            let ticket = model.begin_add(4, [0; 32], ("a".into(), None)).expect("nobody is at it");
            model.end_add(&ticket, Ending::Done, Some(chunk(1)));
        };
        assert_eq!(kinds(unknown), ["lost"]);
    }

    #[test]
    fn what_was_removed_is_found_wherever_it_is_left() {
        for role in ["replica", "cache"] {
            let on_a_disk = |_: &mut Model, seen: &mut Seen| drop(seen.stores[5].insert(chunk(3), role.into()));
            assert_eq!(kinds(on_a_disk), ["left"]);
        }
        let listed = |_: &mut Model, seen: &mut Seen| {
            seen.listed.iter_mut().for_each(|entries| entries.extend([(chunk(3), "as it was".into())]));
        };
        assert_eq!(kinds(listed), ["left"]);
        // Of an add that never came to its end.
        let by_nobody = |_: &mut Model, seen: &mut Seen| drop(seen.stores[2].insert(chunk(9), "pending".into()));
        assert_eq!(kinds(by_nobody), ["left"]);
    }

    #[test]
    fn catalogues_that_differ_are_found() {
        let more = |_: &mut Model, seen: &mut Seen| seen.listed[4].extend([(chunk(9), "new".into())]);
        assert_eq!(kinds(more), ["unequal"]);
        let less = |_: &mut Model, seen: &mut Seen| drop(seen.listed[5].pop_last());
        assert_eq!(kinds(less), ["unequal"]);
        let other = |_: &mut Model, seen: &mut Seen| {
            seen.listed[3] = seen.listed[3].iter().map(|(cid, _)| (cid.clone(), "otherwise".into())).collect();
        };
        assert_eq!(kinds(other), ["unequal"]);
    }
}
