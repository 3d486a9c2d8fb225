//! `history NAME`.

use clap::Args;

use super::{
    ls,
    output::{Failure, Output, warn_of_version},
    text::{self, Columns},
};
use crate::{
    front::{api::client::Client, verbs::history::HistoryRequest},
    settings::units::show_size,
};

/// Arguments of `history`.
#[derive(Args, Clone, Debug)]
pub struct History {
    /// Whose versions: NAME, PEER/NAME, or the CID of what has no name
    #[arg(value_name = "NAME")]
    pub reference: String,
}

/// A line a version, newest first.
pub(super) async fn run(verb: History, client: &Client, output: &mut Output) -> Result<(), Failure> {
    let mut versions = client.call(&HistoryRequest { reference: verb.reference }).await?;
    warn_of_version(versions.version_difference());
    let mut columns = Columns::new(&['>', '>', '<', '<', '<', '<', '<']);
    while let Some(version) = versions.next(|_| {}).await? {
        if output.is_json() {
            output.json(&version)?;
        } else {
            let row = vec![
                format!("v{}", version.version),
                show_size(version.size),
                if version.removed { "removed" } else { ls::kind(version.kind) }.to_owned(),
                text::shown(&version.cid),
                text::shown(&version.time),
                text::peer(&version.publisher, version.publisher_label.as_deref()),
                text::shown(&version.name),
            ];
            columns.row(row, output)?;
        }
    }
    columns.finish(output)
}
