//! The wanted table drifts from what it should say, in each way that a kill can bring about; a comparison puts it right.
//! On the simulated network and a paused clock.

use std::{io::Cursor, time::Duration};

use bytes::Bytes;
use p2p_node::{
    net::simulated::{Fabric, Link, Topology, eventually, keypair},
    node::{Rooms, Site},
    service::{
        catalogue::Draft,
        ingest::ReadOptions,
        inspect::{Agreement, Checked},
        keep::{Drift, Part},
        progress::Progress,
        replicate::Wish,
        wanted::{Few, Noted, Wanted},
    },
    store::Store,
};
use p2p_protocol::{
    Chunk, Cid, Codec, Key,
    catalogue::{Kind, Publication},
    chunker::ChunkerKind,
    duty::{Reference, Roll, Row, Span, Spans},
    manifest::{Entry, Listing},
};

/// Of simulated time.
const SOON: Duration = Duration::from_secs(120);

struct Alone {
    /// Its network, which nobody else is in.
    _fabric: Fabric,
    rooms: Rooms,
    /// Its table, as another hand.
    wanted: Wanted,
    root: Cid,
    /// As it was published.
    publication_of: Publication,
    /// Rows that its file has, in key order.
    listed: Vec<(Key, Entry)>,
    /// What rows know the file's publication as.
    publication: u64,
    seed: u64,
}

/// A node alone, with a file of 300 chunks and a manifest, all of it in its table.
async fn alone(seed: u64) -> Alone {
    with(seed, 300).await
}

fn site(seed: u64) -> Site<'static> {
    Site::new("drift", seed)
}

async fn with(seed: u64, chunks: u32) -> Alone {
    let fabric = Fabric::new(seed, Topology::Full, Link::LAN);
    let keypair = keypair(seed);
    let (network, store) = (fabric.join(keypair.public().to_peer_id()), Store::in_memory(64 << 20));
    let rooms = Rooms::build(network, store.clone(), keypair, site(seed)).await.expect("the rooms stand");
    eventually("there is a table", SOON, || Wanted::open(store.clone()).is_ok_and(|wanted| wanted.is_made())).await;
    let wanted = Wanted::open(store).expect("it opens");
    // Four bytes of a number each: no two chunks are the same.
    let content: Vec<u8> = (0..chunks * 256).flat_map(u32::to_le_bytes).collect();
    let options = ReadOptions { chunker: ChunkerKind::Fixed { bytes: 1024 }, ..ReadOptions::default() };
    let (wish, progress) =
        (Wish { wanted: 3, wait: None, local: false }, tokio::sync::watch::Sender::new(Progress::default()));
    let added = rooms.ingest.add_stream(Box::new(Cursor::new(content)), wish, options, &progress).await;
    let added = added.expect("it is added");
    let draft = Draft {
        name: None,
        label: "a file".to_owned(),
        root: added.root,
        kind: Kind::File,
        size: added.size,
        replicas: 3,
        chunks: added.chunks,
        listing: added.listing,
        keep: 10,
    };
    let publication = rooms.catalogue.publish(draft).await.expect("it is published");
    assert!(matches!(publication.listing, Listing::Manifest(_)));
    let (root, publication_of) = (publication.root, publication);
    let held = rooms.store.usage().chunks as usize;
    eventually("everything is listed", SOON, || rows(&wanted).iter().filter(|row| row.is_wanted()).count() == held)
        .await;
    let listed: Vec<_> = rows(&wanted).iter().map(|row| (row.entry.key(), row.entry)).collect();
    let publication = rows(&wanted)[0].publications().next().expect("it is listed");
    Alone { _fabric: fabric, rooms, wanted, root, publication_of, listed, publication, seed }
}

fn rows(wanted: &Wanted) -> Vec<Row> {
    let (mut rows, mut next) = (Vec::new(), Some(Span::ALL));
    while let Some(span) = next {
        let page = wanted.rows(&span).expect("it reads");
        rows.extend(page.rows.into_iter().map(|scanned| scanned.row));
        next = page.rest;
    }
    rows
}

fn row(alone: &Alone, key: &Key) -> Option<Row> {
    alone.wanted.row(key).expect("it reads")
}

/// Publishes the same root under another name, with a listing that is not its own.
async fn publish_again(alone: &Alone, listed: Vec<Entry>) {
    let Publication { root, kind, size, .. } = alone.publication_of;
    let draft = Draft {
        name: Some("another".to_owned()),
        label: "another".to_owned(),
        root,
        kind,
        size,
        replicas: 3,
        chunks: listed.len() as u64,
        listing: Listing::Inline(listed),
        keep: 10,
    };
    alone.rooms.catalogue.publish(draft).await.expect("it is published");
}

async fn compare(alone: &Alone) -> Drift {
    alone.rooms.keep.compare().await.expect("the loop runs")
}

#[tokio::test(start_paused = true)]
async fn references_to_what_is_not_live_are_taken_off_and_no_others() {
    let alone = alone(1).await;
    assert_eq!(compare(&alone).await, Drift::default());
    // As a node has them that was killed in the middle of a manifest, and was away while its publication was removed.
    let (gone, half) = (0xdead, &alone.listed[40..140]);
    alone.wanted.list(Reference { publication: gone, copies: 5 }, half).expect("it is written");
    assert!(row(&alone, &half[0].0).is_some_and(|row| row.copies() == 5));
    assert_eq!(compare(&alone).await, Drift { rowless: 0, gone: 1 });
    eventually("the references are gone", SOON, || rows(&alone.wanted).iter().all(|row| !row.names(gone))).await;
    assert!(rows(&alone.wanted).iter().all(|row| row.names(alone.publication) && row.copies() == 3));
    assert_eq!(compare(&alone).await, Drift::default());
}

/// Ends the rooms and builds them again on the same network and store, as a node does that is started again; in between
/// its table is changed.
async fn restart(alone: &mut Alone, change: impl FnOnce(&Alone)) {
    alone.rooms.stop(Duration::from_secs(2)).await;
    change(alone);
    let (network, store) = (alone.rooms.network.clone(), alone.rooms.store.clone());
    alone.rooms = Rooms::build(network, store, keypair(alone.seed), site(alone.seed)).await.expect("the rooms stand");
}

#[tokio::test(start_paused = true)]
async fn what_was_half_read_at_a_kill_and_removed_while_the_node_was_down_is_taken_off_at_the_next_start() {
    let mut alone = alone(7).await;
    let gone = 0xdead;
    let reference = Reference { publication: gone, copies: 5 };
    restart(&mut alone, |alone| alone.wanted.list(reference, &alone.listed[40..140]).expect("it is written")).await;
    assert!(rows(&alone.wanted).iter().any(|row| row.names(gone)), "this shows nothing");
    eventually("the references are gone", SOON, || rows(&alone.wanted).iter().all(|row| !row.names(gone))).await;
    assert!(rows(&alone.wanted).iter().all(|row| row.names(alone.publication) && row.copies() == 3));
}

#[tokio::test(start_paused = true)]
async fn what_was_half_read_at_a_kill_and_is_removed_before_it_is_read_again_is_taken_off() {
    let mut alone = alone(8).await;
    // As it stands in the table until all of it was read.
    let half = |alone: &Alone| alone.wanted.set_covered(alone.publication, Some(&Spans::new())).expect("it is written");
    restart(&mut alone, half).await;
    let named = || rows(&alone.wanted).iter().any(|row| row.names(alone.publication));
    assert!(named(), "this shows nothing");
    // Discovery is not over: nothing was read.
    alone.rooms.catalogue.withdraw(alone.publication_of.key()).await.expect("it is removed");
    eventually("the references are gone", SOON, || !named()).await;
}

/// Publishes a chunk that a publication lists itself; gives its entry, and what rows know the publication as.
async fn publish_small(alone: &Alone, number: u64) -> (Entry, u64) {
    let chunk = Chunk::new(Codec::Raw, format!("small {number}").into_bytes()).expect("it is short");
    let entry = Entry { cid: *chunk.cid(), length: chunk.len() as u32 };
    alone.wanted.put(chunk).await.expect("it is kept");
    let draft = Draft {
        name: Some(format!("small {number}")),
        label: format!("small {number}"),
        root: entry.cid,
        kind: Kind::File,
        size: u64::from(entry.length),
        replicas: 3,
        chunks: 1,
        listing: Listing::Inline(vec![entry]),
        keep: 10,
    };
    alone.rooms.catalogue.publish(draft).await.expect("it is published");
    let named = || row(alone, &entry.key()).and_then(|row| row.publications().next());
    eventually("it is listed", SOON, || named().is_some()).await;
    (entry, named().expect("it is listed"))
}

/// What the node has noted of what was live when everything was read, as it finds it when it starts.
fn noted(alone: &Alone) -> Option<Noted> {
    let again = Wanted::open(alone.rooms.store.clone()).expect("it opens");
    again.roll().expect("it reads").filter(|noted| !noted.since)
}

/// A node with a file and some small publications, of which all was noted.
async fn with_small(seed: u64) -> (Alone, Vec<(Entry, u64)>) {
    let alone = alone(seed).await;
    let mut small = Vec::new();
    for number in 0..40 {
        small.push(publish_small(&alone, number).await);
    }
    eventually("it is noted", SOON, || {
        let mut roll = Roll::new(noted(&alone).map_or(0, |noted| noted.roll.salt()));
        small.iter().for_each(|(_, publication)| roll.toggle(*publication));
        roll.toggle(alone.publication);
        noted(&alone).is_some_and(|noted| noted.roll == roll)
    })
    .await;
    (alone, small)
}

#[tokio::test(start_paused = true)]
async fn what_became_live_just_before_a_kill_is_read_at_the_next_start_and_what_was_read_is_not() {
    let (mut alone, small) = with_small(9).await;
    let (unread, other) = (small[0], small[1]);
    let far = |publication: u64| unread.1 >> 58 != publication >> 58;
    let other = if far(other.1) { other } else { *small.iter().find(|(_, id)| far(*id)).expect("ids are spread") };
    let unlisted = |entry: &Entry| rows(&alone.wanted).iter().any(|row| row.entry == *entry && !row.is_wanted());
    // As if it had been killed before the last one was read. A row of another one is gone by what no kill does: that it
    // stays away shows that this one was not read again.
    let mut roll = noted(&alone).expect("it is noted").roll;
    roll.toggle(unread.1);
    for (entry, publication) in [unread, other] {
        alone.wanted.unlist(publication, [entry.key()]).expect("it is written");
        assert!(unlisted(&entry));
    }
    restart(&mut alone, |alone| alone.wanted.note_roll(&roll).expect("it is written")).await;
    let is_listed = |entry: &Entry| row(&alone, &entry.key()).is_some_and(|row| row.is_wanted());
    eventually("it is listed", SOON, || is_listed(&unread.0)).await;
    eventually("all is noted again", SOON, || noted(&alone).is_some_and(|noted| noted.roll != roll)).await;
    assert!(!is_listed(&other.0), "it was read again");
    assert_eq!(small.iter().filter(|(entry, _)| !is_listed(entry)).count(), 1);
    // Without a note everything is.
    restart(&mut alone, |alone| alone.wanted.set_part(9, &Spans::all()).expect("it is written")).await;
    let is_listed = |entry: &Entry| row(&alone, &entry.key()).is_some_and(|row| row.is_wanted());
    eventually("it is listed", SOON, || is_listed(&other.0)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_listed_just_before_a_kill_and_is_not_live_is_taken_off_at_the_next_start() {
    let (mut alone, small) = with_small(10).await;
    let gone = 0xdead << 40;
    let (entry, _) = small[3];
    // Without a note of its own, as of what lists its few chunks itself.
    let few = || {
        [Few { reference: Reference { publication: gone, copies: 5 }, entries: vec![(entry.key(), entry)], list: true }]
    };
    let names = |alone: &Alone| row(alone, &entry.key()).is_some_and(|row| row.names(gone));
    // It came and went since what is live was noted.
    restart(&mut alone, |alone| {
        let again = Wanted::open(alone.rooms.store.clone()).expect("it opens");
        again.note_few(few()).expect("it is written");
        assert!(names(alone) && noted(alone).is_none());
    })
    .await;
    eventually("the reference is gone", SOON, || !names(&alone)).await;
    eventually("all is noted", SOON, || noted(&alone).is_some()).await;
    // It was live then, and had ceased to be when the node was killed.
    restart(&mut alone, |alone| {
        let mut roll = noted(alone).expect("it is noted").roll;
        roll.toggle(gone);
        let again = Wanted::open(alone.rooms.store.clone()).expect("it opens");
        again.note_few(few()).expect("it is written");
        again.note_roll(&roll).expect("it is written");
        assert!(names(alone) && noted(alone).is_some());
    })
    .await;
    eventually("the reference is gone", SOON, || !names(&alone)).await;
    assert!(small.iter().all(|(entry, _)| row(&alone, &entry.key()).is_some_and(|row| row.is_wanted())));
}

#[tokio::test(start_paused = true)]
async fn a_chunk_without_a_row_gets_one() {
    let alone = alone(2).await;
    let chunk = Chunk::new(Codec::Raw, Bytes::from_static(b"put while the table was made")).expect("it is short");
    let (hash, key) = (chunk.cid().hash, Key::from(&chunk.cid().hash));
    alone.rooms.store.put(chunk).await.expect("it is kept");
    assert_eq!(row(&alone, &key), None);
    assert_eq!(compare(&alone).await, Drift { rowless: 1, gone: 0 });
    assert!(row(&alone, &key).is_some_and(|row| !row.is_wanted()), "its grace runs from now on");
    assert_eq!(alone.rooms.keep.parts(vec![hash]).await.expect("it reads"), [(Part::Pending, 0)]);
    assert_eq!(compare(&alone).await, Drift::default());
}

#[tokio::test(start_paused = true)]
async fn what_is_listed_and_not_in_the_table_is_put_in() {
    let alone = alone(3).await;
    // Of a file's chunk that is not here either, no row is left.
    let leaf = alone.listed.iter().find(|(_, entry)| entry.length == 1024).expect("it has leaves");
    alone.rooms.store.remove(vec![leaf.1.cid.hash]).await.expect("it is removed");
    let unlisted: Vec<Key> = alone.listed.iter().step_by(9).map(|(key, _)| *key).chain([leaf.0]).collect();
    alone.wanted.unlist(alone.publication, unlisted.clone()).expect("it is written");
    alone.wanted.rows(&Span::ALL).expect("it reads");
    assert_eq!(row(&alone, &leaf.0), None);
    compare(&alone).await;
    let listed = || unlisted.iter().all(|key| row(&alone, key).is_some_and(|row| row.names(alone.publication)));
    eventually("all are listed again", SOON, listed).await;
    assert_eq!(rows(&alone.wanted).len(), alone.listed.len());
}

async fn check(alone: &Alone) -> Checked {
    let progress = tokio::sync::watch::Sender::new(Progress::default());
    alone.rooms.inspect.check(&alone.root.to_string(), &progress).await.expect("its root is here")
}

/// Of another publisher, or by mistake: a listing that is not what the root has.
#[tokio::test(start_paused = true)]
async fn a_publication_that_lists_other_chunks_than_its_root_has_is_found() {
    let alone = alone(4).await;
    let fine = check(&alone).await;
    assert_eq!((fine.chunks, fine.listing), (alone.publication_of.chunks, Some(Agreement::default())));
    assert_eq!((fine.missing, fine.damaged, fine.wanted), (0, 0, 3));
    // The manifest's own chunks have one copy too.
    assert_eq!(fine.under_replicated, alone.listed.len() as u64);
    let stranger = Chunk::new(Codec::Raw, Bytes::from_static(b"not of this file")).expect("it is short");
    let stranger = Entry { cid: *stranger.cid(), length: stranger.len() as u32 };
    let (_, root) = alone.listed.iter().find(|(_, entry)| entry.cid == alone.root).expect("it is listed");
    let mut entries = vec![*root, stranger];
    entries.sort_unstable_by_key(Entry::key);
    publish_again(&alone, entries).await;
    let found = check(&alone).await;
    let differs = Agreement { unlisted: fine.chunks - 1, surplus: 1, unreadable: false };
    assert_eq!((found.chunks, found.listing), (fine.chunks, Some(differs)));
    assert_eq!(found.missing, 1, "what is listed and nobody has is missing too");
}

#[tokio::test(start_paused = true)]
async fn what_is_below_a_node_that_nobody_has_is_looked_at_by_what_lists_it() {
    let alone = with(5, 1100).await;
    let fine = check(&alone).await;
    assert_eq!((fine.chunks, fine.missing), (1100 + 3, 0), "leaves, two nodes of the file, its root");
    assert_eq!(fine.listing, Some(Agreement::default()), "of more than a batch");
    let nodes = alone.listed.iter().map(|(_, entry)| *entry).filter(|entry| entry.cid.codec == Codec::DagPb);
    // It links to 1024 leaves; the manifest's to nine.
    let inner = nodes.max_by_key(|entry| entry.length).expect("it has nodes");
    alone.rooms.store.remove(vec![inner.cid.hash]).await.expect("it is removed");
    let found = check(&alone).await;
    assert_eq!((found.missing, found.chunks), (1, fine.chunks - 1024), "what is linked, as far as it can be read");
    assert_eq!(found.listing, Some(Agreement { unlisted: 0, surplus: 0, unreadable: false }));
    assert_eq!(found.holders.values().sum::<u64>(), alone.listed.len() as u64 - 1, "the others were asked for");
    // A manifest without its root lists nothing that could be looked at, and is missing itself.
    let Listing::Manifest(manifest) = alone.publication_of.listing else { panic!("it has over eight chunks") };
    alone.rooms.store.remove(vec![manifest.hash]).await.expect("it is removed");
    let found = check(&alone).await;
    assert_eq!(found.missing, 2);
    assert!(found.listing.is_some_and(|listing| listing.unreadable), "{found:?}");
}

/// What a listing says of keys that the other side has not come to yet is compared when it comes to them.
#[tokio::test(start_paused = true)]
async fn a_short_listing_of_a_large_file_is_compared_key_by_key() {
    let alone = with(6, 1100).await;
    let (_, root) = alone.listed.iter().find(|(_, entry)| entry.cid == alone.root).expect("it is listed");
    let (_, last) = alone.listed.iter().rfind(|(_, entry)| entry.length == 1024).expect("it has leaves");
    let mut entries = vec![*root, *last];
    entries.sort_unstable_by_key(Entry::key);
    let chunks = alone.publication_of.chunks;
    publish_again(&alone, entries).await;
    let found = check(&alone).await;
    let differs = Agreement { unlisted: chunks - 2, surplus: 0, unreadable: false };
    assert_eq!((found.chunks, found.listing, found.missing), (chunks, Some(differs), 0));
}
