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
}

/// Writes the bytes, in pieces as big as they come.
pub(super) async fn run(verb: Cat, client: &Client) -> Result<(), Failure> {
    let request = CatRequest { reference: verb.reference, offset: verb.offset, length: verb.length };
    let mut content = client.content(&request).await?;
    warn_of_version(content.version_difference());
    let mut stdout = raw_stdout()?;
    while let Some(bytes) = content.next().await? {
        stdout.write_all(&bytes).map_err(Failure::stdout)?;
    }
    Ok(())
}
