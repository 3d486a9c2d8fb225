//! `ls [REF]`.

use clap::Args;

use super::{
    output::{Failure, Output, warn_of_version},
    text::{self, Columns},
};
use crate::{
    front::{
        api::client::Client,
        verbs::{
            Verb,
            ls::{LsInsideRequest, LsRequest},
            pin::LsPinnedRequest,
        },
    },
    report::{CatalogueLine, EntryKind},
    settings::units::show_size,
};

/// Arguments of `ls`.
#[derive(Args, Clone, Debug)]
pub struct Ls {
    /// A directory: CID, CID/path/inside, NAME or PEER/NAME; without it, the whole catalogue: by name, or, of more than 4,096 entries, in the order in which they are read
    #[arg(value_name = "REF")]
    pub reference: Option<String>,
    /// The newest version of the NAME, asked of a majority of the storing peers, or of its publisher (PEER/NAME); where too
    /// few answer, it fails with exit code 4 rather than give an older one
    #[arg(long, requires = "reference")]
    pub fresh: bool,
    /// What is pinned on this node (p2p-node pin)
    #[arg(long, conflicts_with_all = ["reference", "fresh"])]
    pub pinned: bool,
}

/// A line an entry.
pub(super) async fn run(verb: Ls, client: &Client, output: &mut Output) -> Result<(), Failure> {
    match verb.reference {
        None if verb.pinned => catalogue(&LsPinnedRequest {}, client, output).await,
        None => catalogue(&LsRequest {}, client, output).await,
        Some(reference) => directory(LsInsideRequest { reference, fresh: verb.fresh }, client, output).await,
    }
}

async fn catalogue<V>(request: &V, client: &Client, output: &mut Output) -> Result<(), Failure>
where
    V: Verb<Answer = CatalogueLine>,
{
    let mut lines = client.call(request).await?;
    warn_of_version(lines.version_difference());
    let mut columns = Columns::new(&['>', '<', '<', '>', '<', '<', '<']);
    while let Some(line) = lines.next(|_| {}).await? {
        if output.is_json() {
            output.json(&line)?;
        } else {
            columns.row(
                vec![
                    show_size(line.size),
                    kind(line.kind).to_owned(),
                    text::shown(&line.cid),
                    format!("v{}", line.version),
                    text::shown(&line.updated),
                    text::peer(&line.publisher, line.publisher_label.as_deref()),
                    text::shown(&line.name),
                ],
                output,
            )?;
        }
    }
    columns.finish(output)
}

async fn directory(request: LsInsideRequest, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let mut lines = client.call(&request).await?;
    warn_of_version(lines.version_difference());
    let mut columns = Columns::new(&['>', '<', '<', '<']);
    while let Some(line) = lines.next(|_| {}).await? {
        if output.is_json() {
            output.json(&line)?;
        } else {
            let row =
                vec![show_size(line.size), kind(line.kind).to_owned(), text::shown(&line.cid), text::shown(&line.name)];
            columns.row(row, output)?;
        }
    }
    columns.finish(output)
}

/// The kind in a word.
pub(super) fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Directory => "directory",
        EntryKind::Symlink => "symlink",
    }
}
