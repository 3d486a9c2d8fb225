//! `cat REF`.

use std::io::Write as _;

use clap::Args;

use super::output::{Failure, raw_stdout, warn_of_version};
use crate::{
    front::{api::client::Client, verbs::cat::CatRequest},
    settings::units::parse_size,
};

/// Arguments of `cat`.
#[derive(Args, Clone, Debug)]
pub struct Cat {
    /// A file: CID, CID/path/inside, NAME or PEER/NAME
    #[arg(value_name = "REF")]
    pub reference: String,
    /// Skip so many bytes at the start (a SIZE)
    #[arg(long, value_name = "N", value_parser = parse_size, default_value = "0")]
    pub offset: u64,
    /// Write at most so many bytes (a SIZE) [default: to the end]
    #[arg(long, value_name = "N", value_parser = parse_size)]
    pub length: Option<u64>,
    /// The newest version of the NAME, asked of a majority of the storing peers, or of its publisher (PEER/NAME); where too
    /// few answer, it fails with exit code 4 rather than give an older one
    #[arg(long)]
    pub fresh: bool,
}

/// Writes the bytes, in pieces as big as they come.
pub(super) async fn run(verb: Cat, client: &Client) -> Result<(), Failure> {
    let request = CatRequest { reference: verb.reference, offset: verb.offset, length: verb.length, fresh: verb.fresh };
    let mut content = client.content(&request).await?;
    warn_of_version(content.version_difference());
    let mut stdout = raw_stdout()?;
    while let Some(bytes) = content.next().await? {
        stdout.write_all(&bytes).map_err(Failure::stdout)?;
    }
    Ok(())
}
