//! The JSON of every answer, field by field as the contract has it: scripts and other versions read it.

use std::collections::BTreeMap;

use serde::{Serialize, de::DeserializeOwned};

use super::wire::{Event, WirePath};
use crate::{
    error::{Error, Kind},
    front::verbs::{
        add::AddRequest,
        get::GetRequest,
        pin::{PinRequest, UnpinRequest},
        rm::RmRequest,
        stat::StatPart,
        watch::WatchRequest,
    },
    report::{
        AddOptions, Added, CatalogueLine, Changed, ChunkerChoice, Copies, DirectoryLine, Drained, EntryKind, Freed,
        Got, LocalChunk, Manifest, PeerLine, PinnedBy, PinnedWhole, Placement, Progress, Replication, Stat, StatCopies,
        Status, Transfers, Unpinned, Update, Verified, VerifiedDag, VersionLine, Work,
    },
};

/// `value` is written as `json`, and read back from it.
#[track_caller]
fn golden<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T, json: &str) {
    assert_eq!(serde_json::to_string(value).expect("it encodes"), json);
    assert_eq!(&serde_json::from_str::<T>(json).expect("it is read back"), value);
}

fn copies() -> Copies {
    Copies { wanted: 3, min: 2 }
}

#[test]
fn add_and_get() {
    let mut added = Added {
        cid: "c".into(),
        path: "a.txt".into(),
        size: 1,
        chunks: 2,
        chunks_new: 3,
        replicas: copies(),
        seconds: 0.25,
        warnings: Vec::new(),
        short: None,
    };
    let plain = r#"{"cid":"c","path":"a.txt","size":1,"chunks":2,"chunks_new":3,"replicas":{"wanted":3,"min":2},"seconds":0.25}"#;
    golden(&added, plain);
    added.warnings = vec!["w".into()];
    added.short = Some("s".into());
    golden(&added, &plain.replace("0.25}", r#"0.25,"warnings":["w"],"short":"s"}"#));
    golden(
        &Got {
            cid: "c".into(),
            path: "/p".into(),
            size: 1,
            seconds: 2.5,
            chunks: 3,
            from: BTreeMap::from([("12D3".to_owned(), 4)]),
            labels: BTreeMap::from([("12D3".to_owned(), "nas".to_owned())]),
        },
        r#"{"cid":"c","path":"/p","size":1,"seconds":2.5,"chunks":3,"from":{"12D3":4},"labels":{"12D3":"nas"}}"#,
    );
}

#[test]
fn verify() {
    golden(
        &Verified { chunks: 1, bytes: 2, damaged: 3, repaired: 4, missing: 5, seconds: 0.5, dag: None },
        r#"{"chunks":1,"bytes":2,"damaged":3,"repaired":4,"missing":5,"seconds":0.5}"#,
    );
    let dag = VerifiedDag {
        cid: "c".into(),
        under_replicated: 6,
        wanted: 3,
        holders: BTreeMap::from([("12D3".to_owned(), 7)]),
        labels: BTreeMap::from([("12D3".to_owned(), "nas".to_owned())]),
        manifest: Manifest::Differs,
        unlisted: 8,
        surplus: 9,
    };
    golden(
        &Verified { chunks: 1, bytes: 2, damaged: 3, repaired: 4, missing: 5, seconds: 0.5, dag: Some(dag) },
        r#"{"chunks":1,"bytes":2,"damaged":3,"repaired":4,"missing":5,"seconds":0.5,"cid":"c","under_replicated":6,"wanted":3,"holders":{"12D3":7},"labels":{"12D3":"nas"},"manifest":"differs","unlisted":8,"surplus":9}"#,
    );
}

#[test]
fn stat() {
    let mut stat = Stat {
        cid: "c".into(),
        kind: EntryKind::Directory,
        size: 1,
        chunks: 2,
        replicas: StatCopies { wanted: 3, min: 1, max: 4 },
        holders: BTreeMap::from([("12D3".to_owned(), 2)]),
        labels: BTreeMap::new(),
        placement: None,
    };
    let head = r#"{"cid":"c","kind":"directory","size":1,"chunks":2,"replicas":{"wanted":3,"min":1,"max":4},"holders":{"12D3":2}"#;
    golden(&stat, &format!("{head}}}"));
    let row = Placement { cid: "d".into(), size: 5, holders: vec!["a".into()], cached: vec!["b".into()] };
    let row_json = r#"{"cid":"d","size":5,"holders":["a"],"cached":["b"]}"#;
    golden(&StatPart::Placement(row.clone()), &format!(r#"{{"placement":{row_json}}}"#));
    stat.placement = Some(vec![row]);
    stat.labels.insert("a".into(), "nas".into());
    golden(&stat, &format!(r#"{head},"labels":{{"a":"nas"}},"placement":[{row_json}]}}"#));
    golden(
        &LocalChunk { cid: "c".into(), size: 1, role: "cache".into(), wanted: 3 },
        r#"{"cid":"c","size":1,"role":"cache","wanted":3}"#,
    );
}

#[test]
fn gc_and_drain() {
    golden(
        &Freed { chunks_freed: 1, bytes_freed: 2, kept_in_grace: 3, seconds: 0.5 },
        r#"{"chunks_freed":1,"bytes_freed":2,"kept_in_grace":3,"seconds":0.5}"#,
    );
    golden(
        &Drained { draining: true, chunks: 1, bytes: 2, seconds: 0.5 },
        r#"{"draining":true,"chunks":1,"bytes":2,"seconds":0.5}"#,
    );
}

#[test]
fn status_and_peers() {
    golden(
        &Status {
            peer_id: "12D3".into(),
            label: Some("nas".into()),
            listen: vec!["/ip4/127.0.0.1/tcp/1/p2p/12D3".into()],
            network: "main".into(),
            version: "0.1.0".into(),
            uptime: 1.5,
            peers: 1,
            known_peers: 2,
            chunks: 3,
            bytes: 4,
            capacity: 5,
            replication: Replication {
                factor: 3,
                duty: 8,
                missing: 9,
                under_replicated: 6,
                in_flight: 7,
                eta_seconds: Some(1.5),
            },
            damaged: 10,
            transfers: Transfers { sent_bytes: 8, received_bytes: 9 },
            work: vec![Work { name: "w".into(), state: "working".into(), done: 1, total: None, rate: Some(0.5) }],
            draining: true,
            cautious: true,
            catalogue_full: true,
            complete: true,
        },
        r#"{"peer_id":"12D3","label":"nas","listen":["/ip4/127.0.0.1/tcp/1/p2p/12D3"],"network":"main","version":"0.1.0","uptime":1.5,"peers":1,"known_peers":2,"chunks":3,"bytes":4,"capacity":5,"replication":{"factor":3,"duty":8,"missing":9,"under_replicated":6,"in_flight":7,"eta_seconds":1.5},"damaged":10,"transfers":{"sent_bytes":8,"received_bytes":9},"work":[{"name":"w","state":"working","done":1,"total":null,"rate":0.5}],"draining":true,"cautious":true,"catalogue_full":true,"complete":true}"#,
    );
    let mut peer = PeerLine {
        peer_id: "12D3".into(),
        label: None,
        addresses: vec!["/ip4/1".into()],
        latency: Some(0.002),
        agent: Some("p2p-node/0.1.0".into()),
        source: "mdns".into(),
    };
    golden(
        &peer,
        r#"{"peer_id":"12D3","addresses":["/ip4/1"],"latency":0.002,"agent":"p2p-node/0.1.0","source":"mdns"}"#,
    );
    peer.latency = None;
    peer.agent = None;
    golden(&peer, r#"{"peer_id":"12D3","addresses":["/ip4/1"],"latency":null,"agent":null,"source":"mdns"}"#);
}

#[test]
fn ls_and_watch() {
    let mut line = CatalogueLine {
        name: "n".into(),
        cid: "c".into(),
        kind: EntryKind::File,
        size: 1,
        publisher: "12D3".into(),
        publisher_label: Some("nas".into()),
        version: 2,
        updated: "2026-01-02T03:04:05Z".into(),
        pinned: None,
    };
    let plain = r#"{"name":"n","cid":"c","kind":"file","size":1,"publisher":"12D3","publisher_label":"nas","version":2,"updated":"2026-01-02T03:04:05Z"}"#;
    golden(&line, plain);
    line.pinned = Some(PinnedBy::Name);
    golden(&line, &plain.replace(r#"Z"}"#, r#"Z","pinned":"name"}"#));
    golden(
        &DirectoryLine { name: "n".into(), cid: "c".into(), kind: EntryKind::Symlink, size: 1 },
        r#"{"name":"n","cid":"c","kind":"symlink","size":1}"#,
    );
    golden(
        &Update {
            event: "added".into(),
            cid: "c".into(),
            name: "n".into(),
            size: 1,
            publisher: "12D3".into(),
            publisher_label: None,
            version: 2,
            time: "2026-01-02T03:04:05Z".into(),
            position: 3,
        },
        r#"{"event":"added","cid":"c","name":"n","size":1,"publisher":"12D3","version":2,"time":"2026-01-02T03:04:05Z","position":3}"#,
    );
}

#[test]
fn rm_restore_and_history() {
    let mut changed = Changed { cid: "c".into(), name: "n".into(), version: 2, warnings: Vec::new(), short: None };
    golden(&changed, r#"{"cid":"c","name":"n","version":2}"#);
    changed.short = Some("s".into());
    golden(&changed, r#"{"cid":"c","name":"n","version":2,"short":"s"}"#);
    let mut line = VersionLine {
        name: "n".into(),
        version: 2,
        cid: "c".into(),
        kind: EntryKind::File,
        size: 1,
        publisher: "12D3".into(),
        publisher_label: None,
        time: "2026-01-02T03:04:05Z".into(),
        removed: false,
    };
    let plain =
        r#"{"name":"n","version":2,"cid":"c","kind":"file","size":1,"publisher":"12D3","time":"2026-01-02T03:04:05Z"}"#;
    golden(&line, plain);
    line.removed = true;
    golden(&line, &plain.replace(r#""}"#, r#"","removed":true}"#));
    golden(&RmRequest { references: vec!["a".into(), "b".into()] }, r#"{"references":["a","b"]}"#);
    golden(&WatchRequest { since: Some(7) }, r#"{"since":7}"#);
    assert_eq!(serde_json::from_str::<WatchRequest>("{}").expect("an older client's"), WatchRequest::default());
}

#[test]
fn pin_and_unpin() {
    golden(
        &PinnedWhole {
            cid: "c".into(),
            name: "n".into(),
            pinned: PinnedBy::Cid,
            size: 1,
            chunks: 2,
            bytes: 3,
            seconds: 0.5,
        },
        r#"{"cid":"c","name":"n","pinned":"cid","size":1,"chunks":2,"bytes":3,"seconds":0.5}"#,
    );
    golden(&Unpinned { cid: "c".into(), name: Some("n".into()) }, r#"{"cid":"c","name":"n"}"#);
    golden(&Unpinned { cid: "c".into(), name: None }, r#"{"cid":"c","name":null}"#);
    golden(&PinRequest { reference: "r".into() }, r#"{"reference":"r"}"#);
    golden(&UnpinRequest { reference: "r".into() }, r#"{"reference":"r"}"#);
}

#[test]
fn events_requests_and_failures() {
    golden(&Event::Result("id".to_owned()), r#"{"result":"id"}"#);
    golden(&Event::<String>::End {}, r#"{"end":{}}"#);
    golden(
        &Event::<String>::Progress(Progress { bytes: 1, total_bytes: Some(2), chunks: 3, copies: 4, current: None }),
        r#"{"progress":{"bytes":1,"total_bytes":2,"chunks":3,"copies":4,"current":null}}"#,
    );
    golden(
        &Event::<String>::Error(Error::new(Kind::UnderReplicated, "m").hint("h")),
        r#"{"error":{"kind":"under_replicated","message":"m","hint":"h"}}"#,
    );
    for (kind, name, code) in [
        (Kind::Failed, "failed", 1),
        (Kind::Usage, "usage", 2),
        (Kind::NoDaemon, "no_daemon", 3),
        (Kind::NotFound, "not_found", 4),
        (Kind::UnderReplicated, "under_replicated", 5),
        (Kind::Refused, "refused", 6),
    ] {
        golden(&kind, &format!("\"{name}\""));
        assert_eq!(kind.exit_code(), code);
    }
    golden(
        &AddRequest {
            path: WirePath("/a".into()),
            shown: "a".into(),
            options: AddOptions { chunker: ChunkerChoice::Fastcdc, replicas: Some(2), ..AddOptions::default() },
        },
        r#"{"path":"/a","shown":"a","options":{"name":null,"replicas":2,"chunker":"fastcdc","preserve":false,"local":false,"wait":null}}"#,
    );
    golden(
        &GetRequest {
            reference: "r".into(),
            output: None,
            directory: WirePath("/d".into()),
            force: false,
            fresh: true,
        },
        r#"{"reference":"r","output":null,"directory":"/d","force":false,"fresh":true}"#,
    );
    golden(&ChunkerChoice::Size(1024), r#"{"size":1024}"#);
}
