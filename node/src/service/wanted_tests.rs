//! What was acknowledged is not freed while somebody counts on it, and what nobody counts on any more is.

use std::{future::poll_fn, pin::pin};

use futures::{
    StreamExt as _,
    future::{join_all, ready},
    stream::FuturesUnordered,
};
use p2p_protocol::{
    Codec, PeerId,
    duty::{Bringer, PIN, Reference},
};

use super::*;

const GRACE: Duration = Duration::from_secs(3600);

fn chunk(number: u64) -> (Chunk, Entry) {
    let chunk = Chunk::new(Codec::Raw, number.to_be_bytes().to_vec()).expect("it is short");
    let entry = Entry { cid: *chunk.cid(), length: 8 };
    (chunk, entry)
}

/// A table in memory, and so many chunks that came at once.
async fn with(count: u64) -> (Wanted, Vec<Entry>) {
    fill_with(Store::in_memory(1 << 30), count).await
}

/// The same over a store of its own.
async fn fill_with(store: Store, count: u64) -> (Wanted, Vec<Entry>) {
    let wanted = Wanted::open(store).expect("it opens");
    assert!(wanted.make().expect("it is made"));
    let mut entries = Vec::new();
    for number in 0..count {
        let (chunk, entry) = chunk(number);
        assert_eq!(wanted.put(chunk).await.expect("there is room"), Put::New);
        entries.push(entry);
    }
    (wanted, entries)
}

fn hashes(entries: &[Entry]) -> Vec<Multihash> {
    entries.iter().map(|entry| entry.cid.hash).collect()
}

#[tokio::test(start_paused = true)]
async fn what_came_and_was_never_listed_is_freed_when_its_grace_is_over_and_not_before() {
    let (wanted, entries) = with(200).await;
    assert!(wanted.take_news() && !wanted.take_news(), "said once");
    tokio::time::advance(GRACE - Duration::from_secs(2)).await;
    assert_eq!(wanted.free(&entries, GRACE).await.expect("it writes"), 0);
    tokio::time::advance(Duration::from_secs(4)).await;
    assert_eq!(wanted.free(&entries, GRACE).await.expect("it writes"), 200);
    assert!(entries.iter().all(|entry| !wanted.holds(entry).expect("it reads")));
}

#[tokio::test(start_paused = true)]
async fn what_is_renewed_put_again_or_listed_meanwhile_is_not_freed() {
    let (wanted, entries) = with(400).await;
    tokio::time::advance(GRACE * 2).await;
    assert_eq!(wanted.renew(&hashes(&entries[..100])).await.expect("it writes"), vec![true; 100]);
    for number in 100..200 {
        assert_eq!(wanted.put(chunk(number).0).await.expect("it is here"), Put::Known);
    }
    let listed: Vec<_> = entries[200..300].iter().map(|entry| (entry.key(), *entry)).collect();
    wanted.list(Reference { publication: 1, copies: 3 }, &listed).expect("it writes");
    assert_eq!(wanted.free(&entries, GRACE).await.expect("it writes"), 100);
    let held = |entry: &Entry| wanted.holds(entry).expect("it reads");
    assert!(entries[..300].iter().all(held) && !entries[300..].iter().any(held));
    // What is gone is not called renewed, whoever asks; what is not there has no row either.
    let renewed = wanted.renew(&hashes(&entries[250..350])).await.expect("it writes");
    assert_eq!(renewed, [[true; 50], [false; 50]].concat());
    assert!(entries[300..].iter().all(|entry| wanted.row(&entry.key()).expect("it reads").is_none()));
}

/// What a run that was killed had on disk says what time it was.
#[tokio::test(start_paused = true)]
async fn the_clock_is_on_disk_with_the_rows_of_each_second_and_goes_on_from_there() {
    let wanted = Wanted::open(Store::in_memory(1 << 30)).expect("it opens");
    assert!(wanted.make().expect("it is made"));
    let noted = |wanted: &Wanted| {
        let note = wanted.inner.keys.note(CLOCK).expect("it reads").expect("there is one");
        Moment(u64::from_be_bytes(note.as_ref().try_into().expect("eight bytes")))
    };
    for number in 0..200 {
        wanted.put(chunk(number).0).await.expect("there is room");
        let row = wanted.row(&chunk(number).1.key()).expect("it reads").expect("it came");
        assert_eq!((row.grace_ends(Duration::ZERO), noted(&wanted)), (Some(wanted.moment()), wanted.moment()));
        tokio::time::advance(Duration::from_millis(300)).await;
    }
    // A table that is made anew has a note of its own.
    assert!(wanted.make().expect("it is made"));
    tokio::time::advance(Duration::from_secs(1)).await;
    wanted.put(chunk(200).0).await.expect("there is room");
    assert_eq!(noted(&wanted), wanted.moment());
    let later = Wanted::open(wanted.inner.store.clone()).expect("it opens");
    assert_eq!(later.moment(), wanted.moment());
}

/// A run that is killed right behind an answer leaves the time that the answer was given for.
#[tokio::test(start_paused = true)]
async fn what_is_renewed_is_on_disk_before_that_is_said() {
    let (here, left) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let wanted =
        Wanted::open_with(Store::open(here.path(), Some(1 << 30)).expect("it opens"), GRACE).expect("it opens");
    assert!(wanted.make().expect("it is made"));
    let entries: Vec<Entry> = (0..3).map(|number| chunk(number).1).collect();
    for number in 0..3 {
        wanted.put_from(&peer(), chunk(number).0).await.expect("there is room");
    }
    let ends = |wanted: &Wanted, at: usize| {
        let row = wanted.row(&entries[at].key()).expect("it reads").expect("it came");
        row.grace_ends(Duration::ZERO)
    };
    for (at, hour) in [(0, 1), (1, 2)] {
        tokio::time::advance(GRACE).await;
        let renewed = match at {
            0 => wanted.renew(&hashes(&entries[..1])).await,
            _ => wanted.renew_for(&peer(), &hashes(&entries[1..2])).await,
        };
        assert_eq!(renewed.expect("it writes"), [true]);
        let copy = left.path().join(hour.to_string());
        copy_tree(here.path(), &copy);
        let later = Wanted::open(Store::open(&copy, Some(1 << 30)).expect("it opens")).expect("it opens");
        assert_eq!((later.moment(), ends(&later, at)), (wanted.moment(), Some(wanted.moment())));
        assert!(ends(&later, 2) < Some(Moment(60)), "nobody renewed that");
    }
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).expect("it is made");
    for found in std::fs::read_dir(from).expect("it lists") {
        let (path, place) = found.map(|found| (found.path(), to.join(found.file_name()))).expect("it lists");
        if path.is_dir() {
            copy_tree(&path, &place);
        } else {
            std::fs::copy(&path, &place).expect("it is copied");
        }
    }
}

/// Ways to be told that a chunk is kept.
#[derive(Clone, Copy, Debug)]
enum Told {
    Put,
    PutFrom,
    Renew,
    RenewFor,
}

/// Which of these are said to be kept.
async fn told(wanted: &Wanted, how: Told, entries: &[Entry]) -> Vec<bool> {
    let hashes = hashes(entries);
    match how {
        Told::Renew => wanted.renew(&hashes).await.expect("it writes"),
        Told::RenewFor => wanted.renew_for(&peer(), &hashes).await.expect("it writes"),
        Told::Put | Told::PutFrom => join_all((0..entries.len() as u64).map(|number| put(wanted, how, number))).await,
    }
}

/// Whoever is told that a chunk is kept counts on it for a grace, also where it was over and is being freed.
#[tokio::test(start_paused = true)]
async fn nothing_is_freed_of_which_is_said_at_the_same_time_that_it_is_kept() {
    for how in [Told::Put, Told::PutFrom, Told::Renew, Told::RenewFor] {
        for freed_first in [true, false] {
            // On a disk: in memory each is done at once, before the other looks.
            let directory = tempfile::tempdir().expect("a directory");
            let store = Store::open(directory.path(), Some(1 << 30)).expect("it opens");
            let (wanted, entries) = fill_with(store, 40).await;
            tokio::time::advance(GRACE * 2).await;
            let (freed, told) = if freed_first {
                tokio::join!(biased; wanted.free(&entries, GRACE), told(&wanted, how, &entries))
            } else {
                let (told, freed) = tokio::join!(biased; told(&wanted, how, &entries), wanted.free(&entries, GRACE));
                (freed, told)
            };
            assert!(freed.is_ok());
            let kept = |(entry, told): (&Entry, bool)| !told || wanted.holds(entry).expect("it reads");
            assert!(entries.iter().zip(told).all(kept), "{how:?}, freed first: {freed_first}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_to_be_told_that_a_chunk_is_kept_holds_up_what_is_freed() {
    for how in [Told::Put, Told::PutFrom, Told::Renew, Told::RenewFor] {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), Some(1 << 30)).expect("it opens");
        let (wanted, entries) = fill_with(store, 1).await;
        let (mut telling, mut waits) = (pin!(told(&wanted, how, &entries)), 0);
        let can_be_freed = || wanted.inner.acknowledging.try_write().is_ok();
        let told = poll_fn(|context| {
            let told = telling.as_mut().poll(context);
            if told.is_pending() {
                waits += 1;
                assert!(!can_be_freed(), "{how:?}");
            }
            told
        });
        assert_eq!(told.await, [true]);
        assert!(waits > 0 && can_be_freed(), "{how:?}: it waited for the disk {waits} times");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_freed_that_is_put_again_meanwhile() {
    for how in [Told::Put, Told::PutFrom] {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path(), Some(1 << 30)).expect("it opens");
        let (wanted, entries) = fill_with(store, 300).await;
        tokio::time::advance(GRACE * 2).await;
        let one = |number| put(&wanted, how, number);
        let mut puts: FuturesUnordered<_> = (0..300).map(one).collect();
        // Some are done, some wait for the disk, and some were not looked at.
        assert_eq!(puts.next().await, Some(true));
        let (freed, put) = tokio::join!(biased; wanted.free(&entries, GRACE), puts.filter(|put| ready(*put)).count());
        assert_eq!((freed.is_ok(), put), (true, 299));
        let held = |entry: &Entry| wanted.holds(entry).expect("it reads");
        assert!(entries.iter().all(held), "{how:?}");
    }
}

/// Whether it is kept.
async fn put(wanted: &Wanted, how: Told, number: u64) -> bool {
    match how {
        Told::Put => wanted.put(chunk(number).0).await.is_ok(),
        _ => wanted.put_from(&peer(), chunk(number).0).await.is_ok(),
    }
}

/// Pins one of these chunks.
fn pin(wanted: &Wanted, entry: &Entry) {
    wanted.list(Reference { publication: 7, copies: PIN }, &[(entry.key(), *entry)]).expect("it writes");
}

#[tokio::test(start_paused = true)]
async fn what_is_pinned_is_neither_freed_nor_given_up_nor_left_out_whatever_was_decided_before() {
    let (wanted, entries) = with(4).await;
    let listed: Vec<_> = entries.iter().map(|entry| (entry.key(), *entry)).collect();
    // The first is here and nothing else lists it; the second is listed too; the third is to come; nothing is of the last.
    pin(&wanted, &entries[0]);
    wanted.list(Reference { publication: 1, copies: 3 }, &listed[1..2]).expect("it writes");
    pin(&wanted, &entries[1]);
    pin(&wanted, &entries[2]);
    wanted.inner.store.remove(hashes(&entries[2..])).await.expect("it writes");
    tokio::time::advance(GRACE * 3).await;
    assert_eq!(wanted.free(&entries, GRACE).await.expect("it writes"), 1, "the last");
    assert_eq!(wanted.give_up(&entries, |_, _| true).await.expect("it writes"), 0);
    wanted.narrow(&Spans::new()).expect("it writes");
    let (rows, _) = wanted.scan(&Span::ALL).expect("it reads");
    let mut found: Vec<_> = rows.iter().map(|one| (one.row.entry, one.held, one.row.is_pinned())).collect();
    found.sort_by_key(|(entry, ..)| entries.iter().position(|other| other == entry));
    assert_eq!(found, [(entries[0], true, true), (entries[1], true, true), (entries[2], false, true)]);
    assert_eq!(wanted.not_pinned(&entries[..3]).await.expect("it reads"), (vec![entries[2]], 0));
    // Without the pin all of that happens: the grace runs from its end.
    wanted.unlist(7, entries.iter().map(Entry::key)).expect("it writes");
    assert_eq!(wanted.not_pinned(&entries[..2]).await.expect("it reads"), (vec![], 2));
    assert_eq!(wanted.free(&entries, GRACE).await.expect("it writes"), 0);
    assert_eq!(wanted.give_up(&entries, |_, _| false).await.expect("it reads"), 0, "its place is another by now");
    let is_cached = |key: &Key, copies| *key == entries[1].key() && copies == 3;
    assert_eq!(wanted.give_up(&entries, is_cached).await.expect("it writes"), 1);
    tokio::time::advance(GRACE + Duration::from_secs(2)).await;
    assert_eq!(wanted.free(&entries[..1], GRACE).await.expect("it writes"), 1);
    assert!(entries.iter().all(|entry| !wanted.holds(entry).expect("it reads")));
}

fn peer() -> PeerId {
    PeerId::random()
}

/// A chunk of a hundredth of a MiB, and so a share of a store of ten of them.
fn large(number: u64) -> (Chunk, Entry) {
    let bytes = number.to_be_bytes().repeat(1310);
    let entry = |chunk: &Chunk| Entry { cid: *chunk.cid(), length: chunk.len() as u32 };
    let chunk = Chunk::new(Codec::Raw, bytes).expect("it is short");
    let its = entry(&chunk);
    (chunk, its)
}

/// Has a peer bring chunks until it is refused: how many came.
async fn fill(wanted: &Wanted, peer: &PeerId, numbers: std::ops::Range<u64>) -> Vec<Entry> {
    let mut came = Vec::new();
    for number in numbers {
        let (chunk, entry) = large(number);
        match wanted.put_from(peer, chunk).await {
            Ok(put) => assert_eq!(put, Put::New),
            Err(error) => {
                assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
                break;
            }
        }
        came.push(entry);
    }
    came
}

#[tokio::test(start_paused = true)]
async fn what_nothing_lists_fills_the_share_of_who_brought_it_and_no_more() {
    let store = Store::in_memory(1 << 20);
    let wanted = Wanted::open(store.clone()).expect("it opens");
    assert!(wanted.make().expect("it is made"));
    let (a, b, c, d) = (peer(), peer(), peer(), peer());
    let first = fill(&wanted, &a, 0..100).await;
    assert!((45..=50).contains(&first.len()), "half of it: {}", first.len());
    let room = wanted.room_for(&a, &large(999).1.cid.hash).await.expect("it reads");
    assert!(room < 11_000, "{room} bytes are left of its share");
    // However many keys somebody has.
    assert!(fill(&wanted, &b, 100..200).await.len() + fill(&wanted, &c, 200..300).await.len() < 3);
    let renewed = wanted.renew_for(&c, &hashes(&first[..20])).await.expect("it writes");
    assert!(renewed.iter().filter(|renewed| **renewed).count() < 3, "not beyond the share");

    // Who was met before is none.
    wanted.met([d]);
    let known = fill(&wanted, &d, 300..400).await;
    assert!((44..=53).contains(&known.len()), "all that is free: {}", known.len());
    assert_eq!(wanted.put_from(&a, large(30).0).await.expect("it is here"), Put::Known, "what it brought it may again");

    // A table that is opened again finds it out.
    let again = Wanted::open(store).expect("it opens");
    again.met([d]);
    again.free(&known, Duration::ZERO).await.expect("it writes");
    assert!(!again.holds(&known[0]).expect("it reads"));
    assert!(fill(&again, &a, 400..500).await.len() + fill(&again, &c, 500..600).await.len() < 3, "there is room");
    // What is listed counts no more.
    let listed: Vec<_> = first.iter().map(|entry| (entry.key(), *entry)).collect();
    again.list(Reference { publication: 1, copies: 3 }, &listed).expect("it writes");
    let more = fill(&again, &b, 600..700).await.len();
    assert!((20..=27).contains(&more), "half of what is free by then: {more}");
}

/// A chunk that was damaged and is brought again counts twice.
#[tokio::test(start_paused = true)]
async fn a_share_that_is_reached_is_counted_anew_and_not_all_the_time() {
    let store = Store::in_memory(1 << 20);
    let wanted = Wanted::open(store.clone()).expect("it opens");
    assert!(wanted.make().expect("it is made"));
    let a = peer();
    let first = fill(&wanted, &a, 0..20).await;
    store.remove(hashes(&first)).await.expect("it writes");
    assert_eq!((first.len(), fill(&wanted, &a, 0..20).await.len()), (20, 20));
    let reached = 20 + fill(&wanted, &a, 100..200).await.len();
    assert!(reached < 42, "{reached} of some 97 are here, and 20 counted twice");
    assert_eq!(fill(&wanted, &a, 200..300).await.len(), 0);
    tokio::time::advance(Duration::from_secs(60)).await;
    let all = reached + fill(&wanted, &a, 300..400).await.len();
    assert!((45..=50).contains(&all), "half of it: {all}");
}

#[tokio::test(start_paused = true)]
async fn who_stores_for_long_is_no_stranger_and_not_before() {
    let wanted = Wanted::open(Store::in_memory(1 << 20)).expect("it opens");
    assert!(wanted.make().expect("it is made"));
    let a = peer();
    wanted.acquaint([(Bringer::from(&a), now() + GRACE)]);
    let before = fill(&wanted, &a, 0..100).await.len();
    assert!(before <= 50, "{before}");
    tokio::time::advance(GRACE).await;
    let after = before + fill(&wanted, &a, 100..200).await.len();
    assert!((70..=76).contains(&after), "three quarters: {after}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_renews_what_it_counts_on_and_what_was_withdrawn_for_one_grace() {
    let store = Store::in_memory(1 << 30);
    let wanted = Wanted::open_with(store, GRACE).expect("it opens");
    assert!(wanted.make().expect("it is made"));
    let (a, b) = (peer(), peer());
    let entries = fill(&wanted, &a, 0..3).await;
    let bringer = |entry: &Entry| wanted.row(&entry.key()).expect("it reads").expect("a row").bringer();
    assert_eq!(bringer(&entries[0]), Some(Bringer::from(&a)));
    for _ in 0..5 {
        tokio::time::advance(GRACE / 2).await;
        assert_eq!(wanted.renew_for(&b, &hashes(&entries)).await.expect("it writes"), [true; 3]);
        assert_eq!(wanted.free(&entries, GRACE).await.expect("it writes"), 0, "an add takes as long as it likes");
    }
    assert_eq!(bringer(&entries[0]), Some(Bringer::from(&b)), "it is here for who counts on it now");

    let listed = [(entries[0].key(), entries[0])];
    wanted.list(Reference { publication: 1, copies: 3 }, &listed).expect("it writes");
    tokio::time::advance(GRACE * 3).await;
    assert_eq!(wanted.renew_for(&b, &hashes(&entries[..1])).await.expect("it writes"), [true]);
    wanted.unlist(1, [entries[0].key()]).expect("it writes");
    tokio::time::advance(GRACE - Duration::from_secs(1)).await;
    assert_eq!(wanted.renew_for(&b, &hashes(&entries[..1])).await.expect("it writes"), [true], "to restore it");
    tokio::time::advance(GRACE / 2).await;
    assert_eq!(wanted.renew_for(&b, &hashes(&entries[..1])).await.expect("it writes"), [false]);
    assert_eq!(wanted.free(&entries[..1], GRACE).await.expect("it writes"), 0, "what was said is kept");
    tokio::time::advance(GRACE / 2).await;
    assert_eq!(wanted.free(&entries[..1], GRACE).await.expect("it writes"), 1);
}
