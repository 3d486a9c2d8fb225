//! `get REF`.

use std::path::PathBuf;

use clap::Args;

use super::{
    absolute,
    args::Global,
    output::{Failure, Output, one, warn_of_version},
    progress::Meter,
};
use crate::{
    error::Error,
    front::{
        api::{client::Client, wire::WirePath},
        verbs::get::GetRequest,
    },
    report::Got,
};

/// Arguments of `get`.
#[derive(Args, Clone, Debug)]
pub struct Get {
    /// What to fetch: CID, CID/path/inside, NAME or PEER/NAME
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Where to write it; into an existing directory it is put inside [default: the current directory, under its label or CID]
    #[arg(short, long, value_name = "PATH", value_hint = clap::ValueHint::AnyPath)]
    pub output: Option<PathBuf>,
    /// Replace what is there
    #[arg(long)]
    pub force: bool,
    /// The newest version of the NAME, asked of a majority of the storing peers, or of its publisher (PEER/NAME); where too
    /// few answer, it fails with exit code 4 rather than give an older one
    #[arg(long)]
    pub fresh: bool,
}

/// Fetches, and prints the path that was written.
pub(super) async fn run(verb: Get, client: &Client, global: &Global, output: &mut Output) -> Result<(), Failure> {
    let directory = std::env::current_dir()
        .map_err(|error| Error::failed(format!("The current directory cannot be used: {error}")))?;
    let request = GetRequest {
        output: verb.output.as_deref().map(absolute).transpose()?.map(WirePath),
        directory: WirePath(directory),
        reference: verb.reference,
        force: verb.force,
        fresh: verb.fresh,
    };
    let answer = client.call(&request).await?;
    warn_of_version(answer.version_difference());
    let meter = Meter::new("get", &request.reference, global);
    let got: Result<Got, _> = one(answer, |now| meter.show(now)).await;
    meter.finish();
    let got = got?;
    if output.is_json() { output.json(&got) } else { output.path(&got.path) }
}
