//! `stat REF` and `stat --local`.

use clap::Args;

use super::{
    ls,
    output::{Failure, Output, warn_of_version},
    text::{self, Columns},
};
use crate::{
    error::Error,
    front::{
        api::client::{Client, Events},
        verbs::stat::{StatLocalRequest, StatPart, StatRequest},
    },
    report::{self, Placement},
    settings::units::show_size,
};

/// Arguments of `stat`.
#[derive(Args, Clone, Debug)]
pub struct Stat {
    /// What to look at: CID, CID/path/inside, NAME or PEER/NAME
    #[arg(value_name = "REF", required_unless_present = "local", conflicts_with = "local")]
    pub reference: Option<String>,
    /// List every chunk in this node's own store instead, asking nobody
    #[arg(long)]
    pub local: bool,
    /// Leave out the list of chunks and their copies
    #[arg(long, conflicts_with = "local")]
    pub no_placement: bool,
    /// The newest version of the NAME, asked of a majority of the storing peers, or of its publisher (PEER/NAME); where too
    /// few answer, it fails with exit code 4 rather than give an older one
    #[arg(long, conflicts_with = "local")]
    pub fresh: bool,
}

/// A table, or a line a chunk.
pub(super) async fn run(verb: Stat, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let Some(reference) = verb.reference else { return local(client, output).await };
    let request = StatRequest { reference, placement: !verb.no_placement, fresh: verb.fresh };
    let mut parts = client.call(&request).await?;
    warn_of_version(parts.version_difference());
    let Some(StatPart::Stat(stat)) = parts.next(|_| {}).await? else {
        return Err(Error::failed("The daemon's answer cannot be read: it lacks the summary").into());
    };
    if output.is_json() { json(&stat, &mut parts, output).await } else { human(&stat, &mut parts, output).await }
}

/// One object, its list written as it comes: a big DAG has a row for each of a million chunks.
async fn json(stat: &report::Stat, parts: &mut Events<StatPart>, output: &mut Output) -> Result<(), Failure> {
    let head = output.encode(&report::Stat { placement: None, ..stat.clone() })?;
    if stat.placement.is_none() {
        // Reading to the end makes sure that nothing failed after it.
        next(parts).await?;
        return output.line(&head);
    }
    let open = head.strip_suffix('}').unwrap_or(&head);
    output.text(open)?;
    output.text(",\"placement\":[")?;
    let mut first = true;
    while let Some(placement) = next(parts).await? {
        if !first {
            output.text(",")?;
        }
        first = false;
        let row = output.encode(&placement)?;
        output.text(&row)?;
    }
    output.line("]}")
}

async fn human(stat: &report::Stat, parts: &mut Events<StatPart>, output: &mut Output) -> Result<(), Failure> {
    let copies = stat.replicas;
    let there =
        if copies.min == copies.max { copies.min.to_string() } else { format!("{} to {}", copies.min, copies.max) };
    let mut rows = vec![
        ("CID", text::shown(&stat.cid)),
        ("Kind", ls::kind(stat.kind).to_owned()),
        ("Size", format!("{} ({} bytes)", show_size(stat.size), stat.size)),
        ("Chunks", stat.chunks.to_string()),
        ("Copies", format!("{there} of each chunk, {} wanted", copies.wanted)),
    ];
    for (index, (peer, chunks)) in stat.holders.iter().enumerate() {
        let peer = text::peer(peer, stat.labels.get(peer).map(String::as_str));
        rows.push((if index == 0 { "Holders" } else { "" }, format!("{peer} {}", text::chunks(*chunks))));
    }
    output.text(&text::table(&rows))?;
    let mut columns = Columns::new(&['<', '>', '<']);
    let mut first = true;
    while let Some(placement) = next(parts).await? {
        if std::mem::take(&mut first) {
            output.line("")?;
        }
        columns.row(vec![text::shown(&placement.cid), show_size(placement.size), copies_of(&placement)], output)?;
    }
    columns.finish(output)
}

fn copies_of(placement: &Placement) -> String {
    let cached = placement.cached.iter().map(|peer| format!("({})", text::shown(peer)));
    let all: Vec<String> = placement.holders.iter().map(|peer| text::shown(peer)).chain(cached).collect();
    if all.is_empty() { "nobody".to_owned() } else { all.join(" ") }
}

async fn next(parts: &mut Events<StatPart>) -> Result<Option<Placement>, Failure> {
    Ok(match parts.next(|_| {}).await? {
        Some(StatPart::Placement(placement)) => Some(placement),
        Some(StatPart::Stat(_)) => return Err(Error::failed("The daemon's answer cannot be read").into()),
        None => None,
    })
}

async fn local(client: &Client, output: &mut Output) -> Result<(), Failure> {
    let mut chunks = client.call(&StatLocalRequest {}).await?;
    warn_of_version(chunks.version_difference());
    let mut columns = Columns::new(&['<', '>', '<', '<']);
    while let Some(chunk) = chunks.next(|_| {}).await? {
        if output.is_json() {
            output.json(&chunk)?;
        } else {
            let wanted = format!("{} wanted", chunk.wanted);
            columns
                .row(vec![text::shown(&chunk.cid), show_size(chunk.size), text::shown(&chunk.role), wanted], output)?;
        }
    }
    columns.finish(output)
}
