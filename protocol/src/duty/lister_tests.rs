//! What is read when, told again, unlisted and purged.

use super::*;
use crate::{
    Cid, Codec,
    duty::{EXTRA, MARGIN},
    key::Key,
};

const GRACE: Duration = Duration::from_secs(1000);
const SECOND: Duration = Duration::from_secs(1);

fn listed(publication: u64) -> Listed {
    let listing = Listing::Manifest(Cid::of(Codec::Raw, &publication.to_be_bytes()));
    Listed { publication, listing, chunks: 100, copies: 3, publisher: None }
}

fn live(publication: u64) -> Input {
    Input::Live { listed: listed(publication), covered: Arc::default(), doubtful: false }
}

fn gone(publication: u64) -> Input {
    Input::Gone { publication, listed: Some(listed(publication)) }
}

/// Says what was asked for: these are all that are live.
fn tell(lister: &mut Lister, now: Instant, publications: impl IntoIterator<Item = u64>) {
    publications.into_iter().for_each(|publication| lister.handle(now, live(publication)));
    lister.handle(now, Input::Told);
}

/// Of a node among so many others whose keys are spread evenly.
fn reach(others: u32) -> Reach {
    let key = |at: u32| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&at.wrapping_mul(0x9e37_79b9).to_be_bytes());
        Key(key)
    };
    let others: Vec<Key> = (1..=others).map(key).collect();
    Reach::new(key(0), &others)
}

fn outputs(lister: &mut Lister) -> Vec<Output> {
    std::iter::from_fn(|| lister.poll_output()).collect()
}

fn reads(outputs: &[Output]) -> Vec<(u64, bool)> {
    let read = |output: &Output| match output {
        Output::Read { listed, list, .. } => Some((listed.publication, *list)),
        _ => None,
    };
    outputs.iter().filter_map(read).collect()
}

/// Does all that is to be done; gives what was read.
fn settle(lister: &mut Lister, now: Instant) -> Vec<(u64, bool)> {
    let mut all = Vec::new();
    loop {
        let read = reads(&outputs(lister));
        if read.is_empty() {
            return all;
        }
        for (publication, _) in &read {
            lister.handle(now, Input::Done { publication: *publication, complete: true });
        }
        all.extend(read);
    }
}

#[test]
fn what_is_live_is_read_once_the_place_is_known_a_few_at_a_time() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    (1..=9).for_each(|publication| lister.handle(now, live(publication)));
    let first = outputs(&mut lister);
    assert!(reads(&first).is_empty() && !lister.is_idle());
    assert_eq!(first, [Output::Unread(Some(now + GRACE * SEEN_GRACES))]);
    lister.handle(now, Input::Moved(reach(100)));
    let read = reads(&outputs(&mut lister));
    assert_eq!(read, (1..=4).map(|publication| (publication, true)).collect::<Vec<_>>());
    for (publication, _) in read {
        lister.handle(now, Input::Done { publication, complete: true });
    }
    assert_eq!(settle(&mut lister, now).len(), 5);
    assert!(lister.is_idle() && lister.poll_timeout().is_none(), "and nothing is unread");
    let part = reach(100).within(3 + EXTRA + MARGIN);
    assert_eq!(*lister.parts()[&3], part);
}

#[test]
fn a_departure_within_the_margin_reads_nothing_and_one_beyond_it_what_is_new() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, live(1));
    lister.handle(now, Input::Moved(reach(100)));
    settle(&mut lister, now);
    let before = lister.parts()[&3].clone();
    // The first departure that makes something of it this node's to know.
    let needed = |others| reach(others).within(3 + EXTRA);
    let fewer = (1..100).rev().find(|others| !needed(*others).without(&needed(100)).is_empty());
    lister.handle(now, Input::Moved(reach(fewer.expect("it is far from alone"))));
    let outputs_then = outputs(&mut lister);
    assert!(reads(&outputs_then).is_empty(), "{outputs_then:?}");
    assert_eq!(lister.parts()[&3], before);
    lister.handle(now, Input::Moved(reach(30)));
    let after = lister.parts()[&3].clone();
    let new = after.without(&before);
    assert!(!new.is_empty());
    assert_eq!(outputs(&mut lister), [Output::Unread(Some(now + GRACE * SEEN_GRACES + SECOND)), Output::Tell]);
    tell(&mut lister, now, [1]);
    let spans = outputs(&mut lister).into_iter().find_map(|output| match output {
        Output::Read { spans, .. } => Some(spans),
        _ => None,
    });
    assert_eq!(spans.as_deref(), Some(&new), "only what was not read before");
    lister.handle(now, Input::Done { publication: 1, complete: true });
    lister.handle(now, Input::Moved(reach(1000)));
    let outputs = outputs(&mut lister);
    assert!(matches!(outputs.last(), Some(Output::Narrowed { copies: 3, .. })), "{outputs:?}");
}

#[test]
fn what_cannot_be_read_is_tried_again_and_protects_for_seven_graces() {
    let (start, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(start, Input::Moved(reach(10)));
    lister.handle(start, live(1));
    outputs(&mut lister);
    let mut now = start;
    for wait in [60, 120, 240, 480, 960, 1920] {
        lister.handle(now, Input::Done { publication: 1, complete: false });
        assert!(reads(&outputs(&mut lister)).is_empty());
        now += Duration::from_secs(wait);
        assert_eq!(lister.poll_timeout().map(|(at, _)| at), Some(now));
        lister.handle_timeout(now);
        assert_eq!(reads(&outputs(&mut lister)), [(1, true)]);
    }
    lister.handle_timeout(start + GRACE * SEEN_GRACES);
    assert_eq!(outputs(&mut lister), [Output::Unread(None)]);
    lister.handle(now, Input::Done { publication: 1, complete: true });
    assert!(lister.is_idle());
}

#[test]
fn what_is_gone_is_unlisted_where_it_was_read_or_purged() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, Input::Moved(reach(10)));
    (1..=2).for_each(|publication| lister.handle(now, live(publication)));
    settle(&mut lister, now);
    lister.handle(now, gone(1));
    assert_eq!(settle(&mut lister, now), [(1, false)]);
    lister.handle(now, gone(2));
    assert_eq!(reads(&outputs(&mut lister)), [(2, false)]);
    lister.handle(now, Input::Done { publication: 2, complete: false });
    assert_eq!(outputs(&mut lister), [Output::Purge(vec![2])], "its manifest is gone too");
    // Restored before that is done: it is read anew.
    lister.handle(now, live(2));
    outputs(&mut lister);
    lister.handle(now, Input::Completed(vec![2]));
    assert_eq!(settle(&mut lister, now), [(2, true)]);
    assert!(lister.is_idle());
    lister.handle(now, gone(3));
    assert!(lister.is_idle(), "it never was");
}

#[test]
fn what_rows_name_and_nobody_told_of_is_purged_and_nothing_else() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, Input::Moved(reach(10)));
    (1..=2).for_each(|publication| lister.handle(now, live(publication)));
    settle(&mut lister, now);
    lister.handle(now, gone(2));
    outputs(&mut lister);
    lister.handle(now, Input::Named(vec![1, 2, 7]));
    assert_eq!(outputs(&mut lister), [Output::Purge(vec![7])], "one is live, one is being unlisted");
    // It becomes live before that is done: it is read after it.
    lister.handle(now, live(7));
    assert_eq!(reads(&outputs(&mut lister)), []);
    lister.handle(now, Input::Completed(vec![7]));
    lister.handle(now, Input::Done { publication: 2, complete: true });
    let again = outputs(&mut lister);
    let expected = Output::Read {
        listed: listed(7),
        spans: lister.parts()[&3].clone(),
        list: true,
        covers: lister.parts()[&3].clone(),
    };
    assert!(again.contains(&expected), "as it was said by then: {again:?}");
    lister.handle(now, Input::Done { publication: 7, complete: true });
    assert!(lister.is_idle());
}

#[test]
fn what_is_compared_is_read_again_over_all_that_it_covers_and_holds_nothing_up() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, Input::Moved(reach(100)));
    (1..=2).for_each(|publication| lister.handle(now, live(publication)));
    settle(&mut lister, now);
    lister.handle(now, gone(2));
    settle(&mut lister, now);
    lister.handle(now, Input::Compare(vec![1, 2, 3]));
    assert_eq!(outputs(&mut lister), [Output::Tell]);
    tell(&mut lister, now, [1]);
    let all = lister.parts()[&3].clone();
    let expected = Output::Read { listed: listed(1), spans: all.clone(), list: true, covers: all };
    assert_eq!(outputs(&mut lister), [expected], "and what is freed does not wait for it");
    lister.handle(now, Input::Compare(vec![1]));
    lister.handle(now, Input::Done { publication: 1, complete: false });
    assert!(outputs(&mut lister).is_empty());
    lister.handle_timeout(now + FIRST_WAIT);
    assert_eq!(settle(&mut lister, now), [(1, true)]);
    assert!(lister.is_idle());
}

#[test]
fn a_pin_is_read_over_everything_and_is_no_part_that_follows_peers() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    let pin = Listed { copies: PIN, ..listed(7) };
    lister.handle(now, Input::Live { listed: pin.clone(), covered: Arc::default(), doubtful: false });
    lister.handle(now, live(1));
    lister.handle(now, Input::Moved(reach(100)));
    let all = Arc::new(Spans::all());
    let expected = Output::Read { listed: pin.clone(), spans: all.clone(), list: true, covers: all.clone() };
    assert!(outputs(&mut lister).contains(&expected));
    for publication in [1, 7] {
        lister.handle(now, Input::Done { publication, complete: true });
    }
    assert!(lister.is_idle());
    assert_eq!((lister.most_copies(), lister.parts().len()), (3, 1), "nobody makes copies because of it");
    // Who comes and goes makes nothing different.
    for others in [30, 1000] {
        lister.handle(now, Input::Moved(reach(others)));
    }
    assert!(!settle(&mut lister, now).iter().any(|(publication, _)| *publication == 7));
    // Nor does a restart.
    let mut again = Lister::new(GRACE, lister.parts().clone());
    again.handle(now, Input::Live { listed: pin, covered: all.clone(), doubtful: false });
    again.handle(now, Input::Moved(reach(1000)));
    assert_eq!(reads(&outputs(&mut again)), []);
    // Its end takes it off everywhere.
    lister.handle(now, Input::Gone { publication: 7, listed: None });
    let unlisted = outputs(&mut lister).into_iter().find_map(|output| match output {
        Output::Read { listed, spans, list: false, .. } if listed.publication == 7 => Some(spans),
        _ => None,
    });
    assert_eq!(unlisted, Some(all));
}

#[test]
fn what_an_earlier_run_read_is_not_read_again() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, live(1));
    lister.handle(now, Input::Moved(reach(100)));
    settle(&mut lister, now);
    let parts = lister.parts().clone();
    let mut again = Lister::new(GRACE, parts.clone());
    again.handle(now, Input::Live { listed: listed(1), covered: parts[&3].clone(), doubtful: false });
    again.handle(now, Input::Moved(reach(100)));
    assert_eq!(reads(&outputs(&mut again)), []);
    assert!(again.is_idle());
}

#[test]
fn what_was_half_read_in_an_earlier_run_is_purged_though_it_is_gone_before_it_is_read() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    // Where this node stands is not known yet: nothing is read.
    for input in [live(7), Input::Gone { publication: 7, listed: None }, Input::Named(vec![7]), Input::Moved(reach(10))]
    {
        lister.handle(now, input);
    }
    assert!(outputs(&mut lister).contains(&Output::Purge(vec![7])));
    lister.handle(now, Input::Completed(vec![7]));
    assert!(lister.is_idle() && outputs(&mut lister).is_empty());
}

#[test]
fn what_is_at_rest_is_asked_for_again_once_where_it_is_to_be_read() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, Input::Moved(reach(100)));
    (1..=100).for_each(|publication| lister.handle(now, live(publication)));
    assert_eq!(settle(&mut lister, now).len(), 100);
    assert!(lister.publications.is_empty(), "what they list is not kept");
    // Told again, as after a lag: nothing is to be done.
    tell(&mut lister, now, 1..=100);
    assert_eq!(outputs(&mut lister), []);
    lister.handle(now, Input::Moved(reach(30)));
    let asked = outputs(&mut lister);
    assert_eq!(asked.iter().filter(|output| **output == Output::Tell).count(), 1, "{asked:?}");
    assert!(matches!(asked[..], [Output::Unread(Some(_)), Output::Tell]), "nothing is freed until then: {asked:?}");
    // It moves on while it is told: it is asked for once more, afterwards.
    lister.handle(now, live(1));
    lister.handle(now, Input::Moved(reach(10)));
    assert!(!outputs(&mut lister).contains(&Output::Tell) && !lister.is_idle());
    tell(&mut lister, now, 2..=100);
    assert!(outputs(&mut lister).contains(&Output::Tell));
    (2..=4).for_each(|publication| lister.handle(now, Input::Done { publication, complete: true }));
    tell(&mut lister, now, 1..=100);
    settle(&mut lister, now);
    lister.handle(now, Input::Done { publication: 1, complete: true });
    settle(&mut lister, now);
    assert!(lister.is_idle() && lister.publications.is_empty() && lister.unread.is_none());
    assert!((1..=100).all(|id| lister.rest.get(id).is_some_and(|cover| cover.covered == lister.parts()[&3])));
}

#[test]
fn of_what_ceased_at_rest_the_references_go_by_what_it_listed_or_by_one_look_for_all() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, Input::Moved(reach(100)));
    (1..=100).for_each(|publication| lister.handle(now, live(publication)));
    settle(&mut lister, now);
    lister.handle(now, gone(1));
    let part = lister.parts()[&3].clone();
    let unlist = Output::Read { listed: listed(1), spans: part, list: false, covers: Arc::default() };
    assert_eq!(outputs(&mut lister), [unlist]);
    for publication in 2..=100 {
        lister.handle(now, Input::Gone { publication, listed: None });
    }
    let mut purged = BTreeSet::new();
    let mut looks = 0;
    while let Some(output) = lister.poll_output() {
        let Output::Purge(ids) = output else { panic!("{output:?}") };
        looks += 1;
        purged.extend(&ids);
        lister.handle(now, Input::Completed(ids));
    }
    assert_eq!(purged, (2..=100).collect());
    assert!(looks <= MOST_READS, "{looks} looks at every row");
    lister.handle(now, Input::Done { publication: 1, complete: true });
    assert!(lister.is_idle() && lister.publications.is_empty());
}

fn inline(publication: u64) -> Listed {
    Listed { listing: Listing::Inline(Vec::new()), chunks: 0, ..listed(publication) }
}

#[test]
fn what_lists_its_few_entries_itself_is_read_by_hundreds_and_waits_for_no_manifest() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, Input::Moved(reach(100)));
    (0..3).for_each(|publication| lister.handle(now, live(publication)));
    for publication in 1000..2000 {
        lister.handle(now, Input::Live { listed: inline(publication), covered: Arc::default(), doubtful: false });
    }
    let read = reads(&outputs(&mut lister));
    assert_eq!(read.len(), MOST_AT_ONCE, "three manifests are being read meanwhile");
    lister
        .handle(now, Input::Completed(read.iter().map(|(publication, _)| *publication).filter(|id| *id > 3).collect()));
    let again = reads(&outputs(&mut lister));
    assert_eq!(again.len(), MOST_AT_ONCE - 3);
    // What could not be noted is tried again, and only that.
    let failed: Vec<u64> = again.into_iter().map(|(publication, _)| publication).collect();
    lister.handle(now, Input::Failed(failed.clone()));
    let rest: BTreeSet<u64> = settle(&mut lister, now).into_iter().map(|(publication, _)| publication).collect();
    assert!(rest.is_disjoint(&failed.iter().copied().collect()), "not at once");
    lister.handle_timeout(now + FIRST_WAIT);
    let tried: BTreeSet<u64> = reads(&outputs(&mut lister)).into_iter().map(|(publication, _)| publication).collect();
    assert!(!tried.is_empty() && tried.is_subset(&failed.into_iter().collect()));
}

#[test]
fn a_catalogue_that_was_never_read_waits_as_numbers_and_all_of_it_is_read() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    let all = 0..5 * MOST_PENDING as u64;
    let say = |lister: &mut Lister| {
        for publication in all.clone() {
            lister.handle(now, Input::Live { listed: inline(publication), covered: Arc::default(), doubtful: false });
        }
        lister.handle(now, Input::Told);
    };
    say(&mut lister);
    assert!(lister.publications.len() <= MOST_PENDING, "{} are kept with what they list", lister.publications.len());
    assert!(lister.unread.is_some_and(|until| until >= now + GRACE * SEEN_GRACES), "nothing is freed meanwhile");
    lister.handle(now, Input::Moved(reach(100)));
    let (mut read, mut told) = (BTreeSet::new(), 0);
    loop {
        let outputs = outputs(&mut lister);
        let now_read: Vec<u64> = reads(&outputs).into_iter().map(|(publication, _)| publication).collect();
        let tell = outputs.contains(&Output::Tell);
        if now_read.is_empty() && !tell {
            break;
        }
        lister.handle(now, Input::Completed(now_read.clone()));
        read.extend(now_read);
        if tell {
            told += 1;
            say(&mut lister);
        }
    }
    assert_eq!((read.len() as u64, lister.is_idle(), lister.unread), (all.end, true, None), "told again {told} times");
}

#[test]
fn what_is_not_told_any_more_is_not_live() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, Input::Moved(reach(100)));
    lister.handle(now, Input::Telling);
    tell(&mut lister, now, 0..10);
    lister.handle(
        now,
        Input::Live { listed: Listed { copies: PIN, ..listed(99) }, covered: Arc::default(), doubtful: false },
    );
    settle(&mut lister, now);
    // One is told once more though it is being read by then, one becomes live meanwhile, one is told twice.
    lister.handle(now, Input::Compare(vec![3]));
    lister.handle(now, Input::Telling);
    [live(3), live(10), live(4), live(4)].into_iter().for_each(|input| lister.handle(now, input));
    lister.handle(now, Input::Told);
    lister.handle(now, Input::Look);
    let outputs = outputs(&mut lister);
    assert!(outputs.contains(&Output::Live(vec![3, 4, 10, 99])), "pins are not told so: {outputs:?}");
    let purged: Vec<u64> = outputs
        .iter()
        .flat_map(|output| match output {
            Output::Purge(ids) => ids.clone(),
            _ => Vec::new(),
        })
        .collect();
    assert!(!purged.is_empty() && purged.iter().all(|id| [0, 1, 2, 5, 6, 7, 8, 9].contains(id)), "{purged:?}");
    // A telling that was broken off says nothing of what it did not come to.
    lister.handle(now, Input::Telling);
    lister.handle(now, live(3));
    lister.handle(now, Input::Telling);
    tell(&mut lister, now, [3, 4, 10]);
    lister.handle(now, Input::Look);
    let last = std::iter::from_fn(|| lister.poll_output()).last();
    assert_eq!(last, Some(Output::Live(vec![3, 4, 10, 99])));
}

/// As an earlier run left it: read over all that it should cover, if it was live then.
fn doubtful(publication: u64, parts: &BTreeMap<u8, Arc<Spans>>) -> Input {
    Input::Live { listed: inline(publication), covered: parts[&3].clone(), doubtful: true }
}

/// Ids of which each has a part of its own.
fn apart(number: u64) -> u64 {
    number << 58 | number
}

#[test]
fn what_was_live_when_everything_was_read_is_not_read_again_and_what_became_so_since_is() {
    let now = Instant::now();
    let mut lister = Lister::new(GRACE, BTreeMap::new()).salted(7);
    lister.handle(now, Input::Moved(reach(100)));
    (0..20).for_each(|number| {
        lister.handle(now, Input::Live { listed: inline(apart(number)), covered: Arc::default(), doubtful: false });
    });
    settle(&mut lister, now);
    let (left, parts) = (lister.roll().clone(), lister.parts().clone());
    let again = |told: std::ops::Range<u64>, left: &Roll| {
        let mut again = Lister::new(GRACE, parts.clone()).salted(left.salt());
        told.for_each(|number| again.handle(now, doubtful(apart(number), &parts)));
        for input in [Input::Told, Input::Doubt(Box::new(left.clone()))] {
            again.handle(now, input);
        }
        again
    };
    let mut same = again(0..20, &left);
    same.handle(now, Input::Moved(reach(100)));
    assert!(same.is_idle() && outputs(&mut same).is_empty());

    // Three more: they are read before anything is freed, and whoever is of another part is not.
    let mut more = again(0..23, &left);
    more.handle(now, Input::Moved(reach(100)));
    let said = outputs(&mut more);
    assert!(said.contains(&Output::Drifted) && said.contains(&Output::Tell), "{said:?}");
    assert!(said.iter().any(|output| matches!(output, Output::Unread(Some(_)))), "nothing is freed: {said:?}");
    (0..23).for_each(|number| more.handle(now, doubtful(apart(number), &parts)));
    more.handle(now, Input::Told);
    let read = settle(&mut more, now);
    let all = |spans: &Spans| *spans == *parts[&3];
    assert_eq!(read.iter().map(|(id, _)| *id).collect::<Vec<_>>(), (20..23).map(apart).collect::<Vec<_>>());
    assert!(more.is_idle() && more.rest.ids().all(|id| all(&more.rest.get(id).expect("it is there").covered)));
    assert_eq!(more.roll().differing(again(0..23, &left).roll()), 0);

    // One that is gone: rows may name it.
    let mut fewer = again(1..20, &left);
    fewer.handle(now, Input::Moved(reach(100)));
    let said = outputs(&mut fewer);
    assert!(said.contains(&Output::Drifted) && fewer.is_idle(), "{said:?}");
    // Of parts that were taken back nothing is known.
    let mut taken = left.clone();
    taken.forget([apart(4)]);
    let mut taken = again(0..20, &taken);
    assert!(!taken.is_idle() && outputs(&mut taken).contains(&Output::Drifted));
    // Another salt: nothing is.
    assert!(!again(0..20, &Roll::new(8)).is_idle());
}

#[test]
fn the_roll_is_that_of_what_is_live_whatever_becomes_of_it() {
    let (now, mut lister) = (Instant::now(), Lister::new(GRACE, BTreeMap::new()));
    lister.handle(now, Input::Moved(reach(100)));
    let mut number = 1_u64;
    for _ in 0..600 {
        // The steps are those of a generator of numbers, the same each time.
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let id = apart(number >> 33 & 15);
        match number >> 40 & 7 {
            0..=2 => lister.handle(now, live(id)),
            3 => lister.handle(now, gone(id)),
            4 => lister.handle(now, Input::Named(vec![id])),
            5 => lister.handle(now, Input::Gone { publication: id, listed: None }),
            6 => drop(settle(&mut lister, now)),
            _ => tell(&mut lister, now, (0..16).filter(|other| *other != id).map(apart).take(3)),
        }
        let mut roll = Roll::new(0);
        let unread = lister.publications.iter().filter(|(_, known)| !known.gone).map(|(id, _)| *id);
        unread.chain(lister.rest.ids()).for_each(|id| roll.toggle(id));
        assert_eq!(*lister.roll(), roll);
    }
}
