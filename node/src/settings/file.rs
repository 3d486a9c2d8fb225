//! Settings from a TOML file: the daemon's options without their dashes, an unknown key being an error.

use std::{
    io::{ErrorKind, Read as _},
    path::Path,
    time::Duration,
};

use libp2p::Multiaddr;
use serde::Deserialize;

use super::{
    Partial, multiaddr,
    units::{parse_duration, parse_period, parse_size},
};
use crate::error::{Error, Result};

/// The settings file in the data directory.
pub const CONFIG_FILE: &str = "config.toml";

/// The most that is read of it: a list of a thousand addresses is a tenth of this.
const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    listen: Option<OneOrMany>,
    bootstrap: Option<OneOrMany>,
    #[serde(alias = "no_mdns")]
    no_mdns: Option<bool>,
    replicas: Option<u8>,
    capacity: Option<Size>,
    repair_delay: Option<String>,
    repair_rate: Option<Size>,
    audit_interval: Option<String>,
    gc_grace: Option<String>,
    scrub_period: Option<String>,
    catalogue_entries: Option<usize>,
    network: Option<String>,
    label: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "an address, or a list of them, in quotes")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number of bytes, or a size such as \"10GiB\" in quotes")]
enum Size {
    Bytes(u64),
    Text(String),
}

/// What the file at `path` says; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Partial>> {
    let failed =
        |error: std::io::Error| Error::usage(format!("The settings file {} cannot be read: {error}", path.display()));
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        // Whoever makes the data directory says what is wrong with one that is no directory.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_BYTES).read_to_string(&mut text).map_err(failed)?;
    parse(&text).map(Some).map_err(|why| {
        Error::usage(format!("The settings file {} is not valid: {why}", path.display()))
            .hint("`p2p-node daemon --help` lists the keys")
    })
}

fn parse(text: &str) -> Result<Partial, String> {
    let file: File = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| 1 + text.bytes().take(span.start).filter(|b| *b == b'\n').count());
        let message = error.message().trim_end().replace('\n', ", ");
        line.map_or_else(|| message.clone(), |line| format!("line {line}: {message}"))
    })?;
    Ok(Partial {
        listen: file.listen.map(|list| addresses("listen", list)).transpose()?,
        bootstrap: file.bootstrap.map(|list| addresses("bootstrap", list)).transpose()?,
        mdns: file.no_mdns.map(|off| !off),
        replicas: file.replicas,
        repair_delay: duration("repair-delay", file.repair_delay)?,
        repair_rate: size("repair-rate", file.repair_rate)?,
        audit_interval: duration("audit-interval", file.audit_interval)?,
        gc_grace: duration("gc-grace", file.gc_grace)?,
        scrub_period: file
            .scrub_period
            .map(|text| parse_period(&text).map_err(|why| format!("scrub-period: {why}")))
            .transpose()?,
        capacity_bytes: size("capacity", file.capacity)?,
        probation: None,
        catalogue_entries: file.catalogue_entries,
        network: file.network,
        label: file.label,
    })
}

fn size(key: &str, size: Option<Size>) -> Result<Option<u64>, String> {
    match size {
        None => Ok(None),
        Some(Size::Bytes(bytes)) => Ok(Some(bytes)),
        Some(Size::Text(text)) => parse_size(&text).map(Some).map_err(|why| format!("{key}: {why}")),
    }
}

fn duration(key: &str, text: Option<String>) -> Result<Option<Duration>, String> {
    text.map(|text| parse_duration(&text).map_err(|why| format!("{key}: {why}"))).transpose()
}

fn addresses(key: &str, list: OneOrMany) -> Result<Vec<Multiaddr>, String> {
    let list = match list {
        OneOrMany::One(address) => vec![address],
        OneOrMany::Many(list) => list,
    };
    list.iter().map(|text| multiaddr(text).map_err(|why| format!("{key}: {why}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_key() {
        let partial = parse(
            "listen = ['/ip4/127.0.0.1/tcp/0', '/ip4/127.0.0.1/udp/0/quic-v1']\nbootstrap = '/dns/a.example/tcp/4242'\n\
             no-mdns = true\nreplicas = 2\ncapacity = 1024\nnetwork = 'lab'\n\
             label = 'nas'\n",
        );
        let partial = partial.expect("it is the documented form");
        assert_eq!(partial.listen.map(|l| l.len()), Some(2));
        assert_eq!(partial.bootstrap.map(|l| l.len()), Some(1));
        assert_eq!((partial.mdns, partial.replicas, partial.capacity_bytes), (Some(false), Some(2), Some(1024)));
        assert_eq!((partial.network.as_deref(), partial.label.as_deref()), (Some("lab"), Some("nas")));
        assert_eq!(parse("capacity = '2MiB'").map(|p| p.capacity_bytes), Ok(Some(2 << 20)));
        assert_eq!(parse("scrub-period = '0'").map(|p| p.scrub_period), Ok(Some(Duration::ZERO)));
        assert_eq!(parse("scrub-period = '7d'").map(|p| p.scrub_period), Ok(Some(Duration::from_secs(7 * 86_400))));
        assert_eq!(parse(""), Ok(Partial::default()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, says) in [
            ("replicas = 2\nreplcas = 3", "line 2: unknown field `replcas`"),
            ("replicas = 'x'", "line 1"),
            ("replicas = 300", "line 1"),
            ("capacity = '10GB'", "capacity"),
            ("capacity = -1", "a number of bytes"),
            ("bootstrap = ['localhost:1']", "bootstrap"),
            ("[net]\nlisten = 3", "unknown field `net`"),
            ("listen", "line 1"),
        ] {
            assert!(parse(text).is_err_and(|why| why.contains(says)), "{text}: {:?}", parse(text));
        }
    }
}
