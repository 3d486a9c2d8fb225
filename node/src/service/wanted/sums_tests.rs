//! Sums against a look at every row.

use std::collections::BTreeSet;

use p2p_protocol::{
    Chunk, Cid, Codec,
    duty::{Reference, reach::Reach},
    reconcile::{Initiator, ReconcileLimits, Step, respond},
};

use super::*;
use crate::store::Store;

/// Chunks by number, each of a few bytes.
fn chunk(number: u32) -> Chunk {
    Chunk::new(Codec::Raw, number.to_be_bytes().to_vec()).expect("it is short")
}

fn entry(number: u32) -> Entry {
    Entry { cid: Cid::of(Codec::Raw, &number.to_be_bytes()), length: 4 }
}

/// A key whose first byte this is.
fn place(first: u8) -> Key {
    Key(std::array::from_fn(|at| if at == 0 { first } else { 0 }))
}

async fn table() -> Wanted {
    let wanted = Wanted::open(Store::in_memory(1 << 30)).expect("an empty store");
    assert!(wanted.make().expect("it can be made"));
    wanted
}

/// A chunk comes, as it does from an adder.
async fn keep(wanted: &Wanted, number: u32) {
    wanted.put(chunk(number)).await.expect("there is room");
}

fn list(wanted: &Wanted, numbers: impl IntoIterator<Item = u32>, copies: u8) {
    let entries: Vec<_> = numbers.into_iter().map(|number| (entry(number).key(), entry(number))).collect();
    wanted.list(Reference { publication: u64::from(copies), copies }, &entries).expect("it is listed");
}

/// A range that has gaps and ends within buckets: sixteen peers, two of whom are compared.
fn range(most: u8) -> Common {
    let peers: Vec<Key> = (0..16).map(|at| place(at * 16 + 7)).collect();
    Common::new(&Reach::new(peers[3], &peers), &Reach::new(peers[5], &peers), most)
}

/// Every question is answered as a look at all rows would.
fn same_as_a_look_at_all(wanted: &Wanted, common: &Common, listed: &[(u32, u8)], held: &BTreeSet<u32>) {
    for side in [Side::Wanted, Side::Held] {
        let meant = |(number, copies): &&(u32, u8)| {
            common.contains(&entry(*number).key(), *copies) && (side == Side::Wanted || held.contains(number))
        };
        let model: reconcile::IdSet = listed.iter().filter(meant).map(|(number, _)| entry(*number).key().0).collect();
        let set = wanted.in_range(common, side);
        // Between buckets, and within some that have a row of the range: at it, and right behind it.
        let of_range =
            |(number, copies): &&(u32, u8)| held.contains(number) && common.contains(&entry(*number).key(), *copies);
        let rows: Vec<Key> = listed.iter().filter(of_range).take(2).map(|(number, _)| entry(*number).key()).collect();
        let behind: Vec<Key> = rows.iter().filter_map(span::after).collect();
        let between = [0_u8, 1, 0x37, 0x80, 0xff].map(place);
        let keys: BTreeSet<Key> = [&between[..], &rows, &behind].concat().into_iter().collect();
        let bounds: Vec<Bound> = keys.into_iter().map(|key| Bound::At(key.0)).chain([Bound::End]).collect();
        for (at, from) in bounds.iter().enumerate() {
            for to in &bounds[at..] {
                let span = *from..*to;
                let count = model.count(&span);
                assert_eq!(set.count(&span), count, "{side:?} {span:?}");
                assert_eq!(set.fingerprint(&span), model.fingerprint(&span));
                assert_eq!(set.ids(&span, 7), model.ids(&span, 7));
                for skip in [0, 1, count / 2, count.saturating_sub(1), count] {
                    assert_eq!(set.nth(&span, skip), model.nth(&span, skip), "{skip} of {count}");
                }
            }
        }
        set.check().expect("the table reads");
    }
}

#[tokio::test]
async fn sums_are_those_of_a_look_at_every_row_whatever_changed() {
    let wanted = table().await;
    let mut listed: Vec<(u32, u8)> = (0..600).map(|number| (number, if number % 5 == 0 { 2 } else { 3 })).collect();
    list(&wanted, listed.iter().filter(|(_, copies)| *copies == 3).map(|(number, _)| *number), 3);
    list(&wanted, listed.iter().filter(|(_, copies)| *copies == 2).map(|(number, _)| *number), 2);
    let mut held: BTreeSet<u32> = (100..500).collect();
    for &number in &held {
        keep(&wanted, number).await;
    }
    same_as_a_look_at_all(&wanted, &range(3), &listed, &held);
    same_as_a_look_at_all(&wanted, &range(2), &listed, &held);
    // Each kind of change: listed, unlisted, put, removed from the store behind the table's back.
    list(&wanted, 600..650, 3);
    listed.extend((600..650).map(|number| (number, 3)));
    wanted.unlist(3, (1..40).map(|number| entry(number).key())).expect("it is unlisted");
    listed.retain(|(number, copies)| !(1..40).contains(number) || *copies == 2);
    keep(&wanted, 620).await;
    held.insert(620);
    let gone: Vec<_> = (200..260).map(|number| entry(number).cid.hash).collect();
    wanted.inner.store.remove(gone).await.expect("it can be removed");
    held.retain(|number| !(200..260).contains(number));
    same_as_a_look_at_all(&wanted, &range(3), &listed, &held);
    // A range whose border is in the midst of a bucket that has a row: the audited peer is nearest to what is on its own
    // side of the twenty-first bit, and seven others are nearer to the row. Everything else is far from both.
    let row = entry(610).key();
    let flipped = |mut key: Key, bit: usize| {
        key.0[bit / 8] ^= 0x80 >> (bit % 8);
        key
    };
    let far = (0..20).flat_map(|bit| (40..48).map(move |other| flipped(flipped(row, bit), other)));
    let peers: Vec<Key> = [20].into_iter().chain(30..37).map(|bit| flipped(row, bit)).chain(far).collect();
    let split = Common::new(&Reach::new(peers[7], &peers), &Reach::new(peers[0], &peers), 3);
    assert!(!split.contains(&row, 3) && split.contains(&peers[0], 3));
    same_as_a_look_at_all(&wanted, &split, &listed, &held);
    // A table that is made again has other rows.
    assert!(wanted.make().expect("it can be made"));
    same_as_a_look_at_all(&wanted, &range(3), &[], &held);
}

#[tokio::test]
async fn a_question_about_what_did_not_change_scans_nothing() {
    let wanted = table().await;
    list(&wanted, 0..500, 3);
    let all = Common::new(&Reach::new(place(1), &[]), &Reach::new(place(2), &[]), 3);
    let whole = Bound::START..Bound::End;
    assert_eq!(wanted.in_range(&all, Side::Wanted).count(&whole), 500);
    let before = wanted.scanned();
    assert_eq!(before, 1 << 16);
    for _ in 0..3 {
        assert_eq!(wanted.in_range(&all, Side::Held).count(&whole), 0);
    }
    assert_eq!(wanted.scanned(), before);
    keep(&wanted, 7).await;
    assert_eq!(wanted.in_range(&all, Side::Held).count(&whole), 1);
    assert_eq!(wanted.scanned(), before + 1, "only the part that changed");
}

#[tokio::test]
async fn a_range_that_has_gaps_is_summed_by_scans_of_its_ends_alone() {
    let wanted = table().await;
    list(&wanted, 0..5000, 3);
    let (part, whole) = (range(3), Bound::START..Bound::End);
    let first = wanted.in_range(&part, Side::Wanted).count(&whole);
    assert!((500..4500).contains(&first), "{first} of 5,000 are in it");
    let before = wanted.scanned();
    assert_eq!(wanted.in_range(&part, Side::Wanted).count(&whole), first);
    wanted.in_range(&part, Side::Held).fingerprint(&whole);
    let scanned = wanted.scanned() - before;
    // Sixteen peers make no more borders than there are pairs of them, each of a bucket that hardly ever has a row.
    assert!(scanned <= 20, "{scanned} scans of some 5,000 buckets that have rows");
}

#[tokio::test]
async fn two_tables_find_their_difference_by_a_few_messages() {
    let (here, there) = (table().await, table().await);
    let all = Common::new(&Reach::new(place(1), &[]), &Reach::new(place(2), &[]), 3);
    for wanted in [&here, &there] {
        list(wanted, 0..800, 3);
    }
    for number in (0..800).filter(|number| number % 100 != 7) {
        keep(&there, number).await;
    }
    let mut initiator = Initiator::new(ReconcileLimits { message_bytes: 8192, ..ReconcileLimits::default() });
    let mine = here.in_range(&all, Side::Wanted);
    let mut message = initiator.initiate(&mine);
    loop {
        let response = respond(&there.in_range(&all, Side::Held), &message, 8192).expect("a good message");
        match initiator.handle(&mine, &response).expect("a good response") {
            Step::Send(next) => message = next,
            Step::Done => break,
        }
    }
    let mut lacking: Vec<Id> = (0..8).map(|at| entry(at * 100 + 7).key().0).collect();
    lacking.sort_unstable();
    let mut found = initiator.have().to_vec();
    found.sort_unstable();
    assert_eq!((found, initiator.need()), (lacking, &[][..]));
}

#[tokio::test]
async fn a_question_remembers_the_rows_of_a_few_buckets_at_once() {
    let wanted = table().await;
    list(&wanted, 0..500, 3);
    let all = Common::new(&Reach::new(place(1), &[]), &Reach::new(place(2), &[]), 3);
    let set = wanted.in_range(&all, Side::Wanted);
    assert_eq!(set.ids(&(Bound::START..Bound::End), 1000).len(), 500);
    let remembered = set.rows.borrow().len();
    assert!((1..=REMEMBERED).contains(&remembered), "{remembered}");
}
