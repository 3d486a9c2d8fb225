//! `status`.

use super::{
    output::{Failure, Output, one, warn_of_version},
    text,
};
use crate::{
    front::{api::client::Client, verbs::status::StatusRequest},
    report::{Status, Work},
    settings::units::{show_seconds, show_size},
};

/// A short page.
pub(super) async fn run(client: &Client, output: &mut Output) -> Result<(), Failure> {
    let answer = client.call(&StatusRequest {}).await?;
    warn_of_version(answer.version_difference());
    let status: Status = one(answer, |_| {}).await?;
    if output.is_json() { output.json(&status) } else { output.text(&page(&status)) }
}

fn page(status: &Status) -> String {
    let mut rows = vec![
        ("Peer", text::peer(&status.peer_id, status.label.as_deref())),
        ("Network", text::shown(&status.network)),
        ("Version", format!("{}, up {}", text::shown(&status.version), show_seconds(status.uptime))),
    ];
    for (index, address) in status.listen.iter().enumerate() {
        rows.push((if index == 0 { "Listens on" } else { "" }, text::shown(address)));
    }
    let health = match status.replication.under_replicated {
        0 => "every chunk here has its copies, as far as is known".to_owned(),
        1 => "1 chunk here has too few copies".to_owned(),
        some => format!("{some} chunks here have too few copies"),
    };
    if status.draining {
        rows.push((
            "Draining",
            "it hands its share over and takes no more; `p2p-node drain` says when that is done".to_owned(),
        ));
    }
    rows.push(("Peers", format!("{} connected, {} could take a chunk", status.peers, status.known_peers)));
    rows.push(("Chunks", format!("{}, {} of {}", status.chunks, show_size(status.bytes), show_size(status.capacity))));
    let replication = status.replication;
    rows.push(("Copies", format!("{} wanted; {health}; {} being made", replication.factor, replication.in_flight)));
    if status.cautious {
        rows.push(("Away", "over a third of the peers that store: they are waited for eight times as long".to_owned()));
    }
    match status.damaged {
        0 => {}
        1 => rows.push(("Damaged", "1 chunk, which is being fetched again".to_owned())),
        some => rows.push(("Damaged", format!("{some} chunks, which are being fetched again"))),
    }
    if status.catalogue_full {
        let full = "full: some of what others publish is not listed here, nor kept; --catalogue-entries makes room";
        rows.push(("Catalogue", full.to_owned()));
    }
    if !status.complete {
        // Of a network that is older than ten minutes, or of a machine that lost its disk: it passes by itself.
        rows.push(("Names", "not all that others know is here yet: its word does not count for --fresh".to_owned()));
    }
    rows.push((
        "Transfers",
        format!(
            "{} sent, {} received",
            show_size(status.transfers.sent_bytes),
            show_size(status.transfers.received_bytes)
        ),
    ));
    // What waits for its next turn is not under way.
    let busy: Vec<_> = status.work.iter().filter(|work| !matches!(work.state.as_str(), "idle" | "waiting")).collect();
    for (index, work) in busy.iter().enumerate() {
        rows.push((if index == 0 { "Work" } else { "" }, work_line(work)));
    }
    if busy.is_empty() {
        rows.push(("Work", "nothing now".to_owned()));
    }
    text::table(&rows)
}

/// Such as `compact: working, 3 of 12, 1.5 a second`.
fn work_line(work: &Work) -> String {
    let mut line = format!("{}: {}", text::shown(&work.name), text::shown(&work.state));
    // It counts bytes.
    let scrub = work.name == "scrub";
    let amount = |number: u64| if scrub { show_size(number) } else { number.to_string() };
    if work.state == "working" {
        line.push_str(&format!(", {}", amount(work.done)));
        if let Some(total) = work.total {
            line.push_str(&format!(" of {}", amount(total)));
        }
    }
    if let Some(rate) = work.rate {
        let rate = if scrub { show_size(rate as u64) } else { format!("{rate:.1}") };
        line.push_str(&format!(", {rate} a second"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Replication, Transfers};

    #[test]
    fn the_page_says_how_the_node_is() {
        let work = |name: &str, state: &str, done, total, rate| Work {
            name: name.to_owned(),
            state: state.to_owned(),
            done,
            total,
            rate,
        };
        let page = page(&Status {
            peer_id: "12D3".to_owned(),
            label: Some("nas".to_owned()),
            listen: vec!["/ip4/1".to_owned(), "/ip6/1".to_owned()],
            network: "main".to_owned(),
            version: "1.2.3".to_owned(),
            uptime: 61.0,
            peers: 4,
            known_peers: 3,
            chunks: 12,
            bytes: 1 << 20,
            capacity: 1 << 30,
            replication: Replication {
                factor: 3,
                duty: 5,
                missing: 0,
                under_replicated: 2,
                in_flight: 1,
                eta_seconds: None,
            },
            damaged: 0,
            transfers: Transfers { sent_bytes: 1, received_bytes: 2 },
            work: vec![
                work("sync", "idle", 0, None, None),
                work("compact", "working", 3, Some(12), Some(1.5)),
                work("announce", "waiting", 0, None, None),
                work("scrub", "working", 3 << 20, Some(12 << 20), Some(1_048_576.0)),
            ],
            draining: true,
            cautious: true,
            catalogue_full: true,
            complete: false,
        });
        assert_eq!(
            page,
            "Peer        nas (12D3)\nNetwork     main\nVersion     1.2.3, up 1 min 1 s\nListens on  /ip4/1\n            /ip6/1\n\
             Draining    it hands its share over and takes no more; `p2p-node drain` says when that is done\n\
             Peers       4 connected, 3 could take a chunk\nChunks      12, 1.0 MiB of 1.0 GiB\n\
             Copies      3 wanted; 2 chunks here have too few copies; 1 being made\n\
             Away        over a third of the peers that store: they are waited for eight times as long\n\
             Catalogue   full: some of what others publish is not listed here, nor kept; --catalogue-entries makes room\n\
             Names       not all that others know is here yet: its word does not count for --fresh\nTransfers   1 B sent, 2 B received\n\
             Work        compact: working, 3 of 12, 1.5 a second\n\
             \x20           scrub: working, 3.0 MiB of 12.0 MiB, 1.0 MiB a second\n"
        );
    }
}
