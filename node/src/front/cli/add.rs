//! `add PATH…`.

use std::path::{Path, PathBuf};

use clap::{Args, builder::RangedI64ValueParser};
use serde::Serialize;
use tokio_util::io::ReaderStream;

use super::{
    absolute,
    args::Global,
    output::{self, Failure, Output, one, warn_of_version},
    progress::Meter,
    text,
};
use crate::{
    error::{Error, Kind, Result},
    front::{
        api::{client::Client, wire::WirePath},
        verbs::add::{AddRequest, AddStreamRequest, read_options},
    },
    report::{AddOptions, Added, ChunkerChoice},
    service::ingest::{self, ReadOptions},
    settings::{MAX_REPLICAS, units::parse_size},
};

/// How much of standard input is sent at once.
const PIECE_BYTES: usize = 256 * 1024;
/// The smallest and the largest fixed size of a chunk.
const CHUNK_SIZES: std::ops::RangeInclusive<u64> = 1024..=p2p_protocol::MAX_CHUNK_BYTES as u64;

/// Arguments of `add`.
#[derive(Args, Clone, Debug)]
pub struct Add {
    /// Files and directories to add; - is standard input
    #[arg(value_name = "PATH", required = true, value_hint = clap::ValueHint::AnyPath)]
    pub paths: Vec<PathBuf>,
    /// Publish under a name; a later add under it is its next version [default: it stands under its CID]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Versions of the name that stay, this one included; 0: all [default: 10]
    #[arg(long, value_name = "N", requires = "name")]
    pub keep: Option<u64>,
    /// Copies of each chunk, 1 to 16 [default: the daemon's setting, which is 3 unless changed]
    #[arg(long, value_name = "K", value_parser = copies())]
    pub replicas: Option<u8>,
    /// How to cut: size-N, every N bytes (a SIZE from 1KiB to 2MiB), or fastcdc, by content, so that versions of a file share chunks
    #[arg(long, value_name = "size-N|fastcdc", value_parser = chunker, default_value = "size-1048576")]
    pub chunker: ChunkerChoice,
    /// Keep modes and modification times too; the CID then differs
    #[arg(long)]
    pub preserve: bool,
    /// Print the CID and store nothing; needs no daemon
    #[arg(long, conflicts_with_all = ["name", "keep", "replicas", "local", "wait"])]
    pub only_hash: bool,
    /// Store here and return; the copies are made in the background
    #[arg(long)]
    pub local: bool,
    /// Return only once every chunk is safe on K peers of its replica set, 1 to 16 [default: all that were asked for, or as many as the network has storing peers]
    #[arg(long, value_name = "K", value_parser = copies(), conflicts_with = "local")]
    pub wait: Option<u8>,
}

fn copies() -> RangedI64ValueParser<u8> {
    clap::value_parser!(u8).range(1..=i64::from(MAX_REPLICAS))
}

/// Reads `size-N` or `fastcdc`.
fn chunker(text: &str) -> Result<ChunkerChoice, String> {
    if text == "fastcdc" {
        return Ok(ChunkerChoice::Fastcdc);
    }
    let size = text.strip_prefix("size-").ok_or("give size-N, such as size-1048576, or fastcdc")?;
    match parse_size(size)? {
        bytes if CHUNK_SIZES.contains(&bytes) => Ok(ChunkerChoice::Size(bytes as u32)),
        _ => Err("N is from 1KiB to 2MiB (1024 to 2097152)".to_owned()),
    }
}

/// Adds each path in turn; a line each. One that fails does not stop the others; the first failure gives the exit code.
pub(super) async fn run(
    verb: Add,
    client: impl Fn() -> Result<Client>,
    global: &Global,
    output: &mut Output,
) -> Result<(), Failure> {
    let streams = verb.paths.iter().filter(|path| is_stream(path)).count();
    if streams > 1 {
        return Err(Error::usage("Standard input (-) can be added only once").into());
    }
    if verb.name.is_some() && verb.paths.len() > 1 {
        return Err(Error::usage("One name cannot be given to several paths")
            .hint("add each path with its own --name, or put them into one directory")
            .into());
    }
    let options = AddOptions {
        name: verb.name,
        replicas: verb.replicas,
        chunker: verb.chunker,
        preserve: verb.preserve,
        local: verb.local,
        wait: verb.wait,
        keep: verb.keep,
    };
    let client = if verb.only_hash { None } else { Some(client()?) };
    if let Some(client) = &client {
        client.check().await?;
    }
    let mut first = None;
    for path in &verb.paths {
        let shown = path.to_string_lossy();
        let failed = match &client {
            Some(client) => {
                let meter = Meter::new("add", &shown, global);
                let outcome = ask(client, path, &shown, &options, &meter).await;
                meter.finish();
                match outcome {
                    Ok(added) => show(&added, output)?,
                    Err(error) => Some(error),
                }
            }
            None => match hash(path, &shown, read_options(verb.chunker, verb.preserve)) {
                Ok(cid) if output.is_json() => output.json(&Hashed { cid, path: &shown }).map(|()| None)?,
                Ok(cid) => output.line(&cid).map(|()| None)?,
                Err(error) => Some(error),
            },
        };
        if let Some(error) = failed {
            output.failure(&error)?;
            first.get_or_insert(error.kind);
        }
    }
    first.map_or(Ok(()), |kind| Err(Failure::Reported(kind)))
}

fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}

async fn ask(client: &Client, path: &Path, shown: &str, options: &AddOptions, meter: &Meter) -> Result<Added> {
    let answer = if is_stream(path) {
        let content = ReaderStream::with_capacity(tokio::io::stdin(), PIECE_BYTES);
        client.call_with(&AddStreamRequest { options: options.clone() }, content).await?
    } else {
        let request = AddRequest { path: WirePath(absolute(path)?), shown: shown.to_owned(), options: options.clone() };
        client.call(&request).await?
    };
    warn_of_version(answer.version_difference());
    one(answer, |now| meter.show(now)).await
}

/// The result line and warnings; gives the failure if copies are missing (what is stored stays).
fn show(added: &Added, output: &mut Output) -> Result<Option<Error>, Failure> {
    if output.is_json() {
        output.json(added)?;
    } else {
        output.line(&text::shown(&added.cid))?;
    }
    output.flush()?;
    for warning in &added.warnings {
        output::warn(warning);
    }
    Ok(added.short.as_ref().map(|why| Error::new(Kind::UnderReplicated, why.clone())))
}

/// What `--only-hash --json` prints: nothing was stored, so nothing is said of copies.
#[derive(Serialize)]
struct Hashed<'a> {
    cid: String,
    path: &'a str,
}

/// The CID, made without a daemon; reading and hashing block, and nothing else waits for this thread.
fn hash(path: &Path, shown: &str, options: ReadOptions) -> Result<String> {
    let cid = if is_stream(path) {
        ingest::hash_only_stream(&mut std::io::stdin().lock(), options)?
    } else {
        ingest::hash_only(&absolute(path)?, shown, options)?
    };
    Ok(cid.to_string())
}
