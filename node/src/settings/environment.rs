//! Settings from the environment: `P2P_NODE_` and the option's name. An empty variable says nothing.

use std::{ffi::OsString, path::PathBuf};

use libp2p::Multiaddr;

use super::{
    Partial, multiaddr,
    units::{parse_duration, parse_period, parse_size},
};
use crate::error::{Error, Result};

/// The variable that names the data directory.
pub const DATA_DIR_VARIABLE: &str = "P2P_NODE_DATA_DIR";

/// The settings file that the environment names.
pub(super) fn config(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    variable("P2P_NODE_CONFIG").filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Every setting that the environment gives.
pub(super) fn read(variable: &impl Fn(&str) -> Option<OsString>) -> Result<Partial> {
    Ok(Partial {
        listen: value(variable, "P2P_NODE_LISTEN", addresses)?,
        bootstrap: value(variable, "P2P_NODE_BOOTSTRAP", addresses)?,
        mdns: value(variable, "P2P_NODE_NO_MDNS", switch)?.map(|off| !off),
        replicas: value(variable, "P2P_NODE_REPLICAS", |text| {
            text.trim().parse().map_err(|_| format!("\"{}\" is not a number from 1 to 16", text.escape_debug()))
        })?,
        repair_delay: value(variable, "P2P_NODE_REPAIR_DELAY", parse_duration)?,
        repair_rate: value(variable, "P2P_NODE_REPAIR_RATE", parse_size)?,
        audit_interval: value(variable, "P2P_NODE_AUDIT_INTERVAL", parse_duration)?,
        gc_grace: value(variable, "P2P_NODE_GC_GRACE", parse_duration)?,
        // For tests alone, so that no flag and no line of a file says it.
        probation: value(variable, "P2P_NODE_PROBATION", parse_duration)?,
        scrub_period: value(variable, "P2P_NODE_SCRUB_PERIOD", parse_period)?,
        capacity_bytes: value(variable, "P2P_NODE_CAPACITY", parse_size)?,
        catalogue_entries: value(variable, "P2P_NODE_CATALOGUE_ENTRIES", |text| {
            text.trim().parse().map_err(|_| format!("\"{}\" is not a number", text.escape_debug()))
        })?,
        network: value(variable, "P2P_NODE_NETWORK", |text| Ok(text.to_owned()))?,
        label: value(variable, "P2P_NODE_LABEL", |text| Ok(text.to_owned()))?,
    })
}

fn value<T>(
    variable: &impl Fn(&str) -> Option<OsString>,
    name: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>> {
    let Some(text) = variable(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let outcome = text.to_str().ok_or_else(|| "it is not UTF-8".to_owned()).and_then(read);
    outcome.map(Some).map_err(|why| {
        Error::usage(format!("The environment variable {name} cannot be used: {why}"))
            .hint("correct it, or unset it".to_owned())
    })
}

/// Several addresses stand with commas between them.
fn addresses(text: &str) -> Result<Vec<Multiaddr>, String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(multiaddr).collect()
}

fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("\"{}\" is neither true nor false", text.escape_debug())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn one(name: &'static str, value: &'static str) -> impl Fn(&str) -> Option<OsString> {
        move |asked| (asked == name).then(|| value.into())
    }

    #[test]
    fn every_setting_has_a_variable() -> Result<()> {
        let addresses = "/ip4/127.0.0.1/tcp/1, /ip4/127.0.0.1/tcp/2,";
        assert_eq!(read(&one("P2P_NODE_LISTEN", addresses))?.listen.map(|l| l.len()), Some(2));
        assert_eq!(read(&one("P2P_NODE_BOOTSTRAP", addresses))?.bootstrap.map(|l| l.len()), Some(2));
        assert_eq!(read(&one("P2P_NODE_NO_MDNS", "1"))?.mdns, Some(false));
        assert_eq!(read(&one("P2P_NODE_NO_MDNS", "off"))?.mdns, Some(true));
        assert_eq!(read(&one("P2P_NODE_REPLICAS", "7"))?.replicas, Some(7));
        assert_eq!(read(&one("P2P_NODE_CAPACITY", "1GiB"))?.capacity_bytes, Some(1 << 30));
        assert_eq!(read(&one("P2P_NODE_REPAIR_DELAY", "2m"))?.repair_delay, Some(Duration::from_secs(120)));
        assert_eq!(read(&one("P2P_NODE_REPAIR_RATE", "1MiB"))?.repair_rate, Some(1 << 20));
        assert_eq!(read(&one("P2P_NODE_AUDIT_INTERVAL", "1h"))?.audit_interval, Some(Duration::from_secs(3600)));
        assert_eq!(read(&one("P2P_NODE_PROBATION", "5s"))?.probation, Some(Duration::from_secs(5)));
        assert_eq!(read(&one("P2P_NODE_GC_GRACE", "7d"))?.gc_grace, Some(Duration::from_secs(7 * 86_400)));
        assert_eq!(read(&one("P2P_NODE_SCRUB_PERIOD", "0"))?.scrub_period, Some(Duration::ZERO));
        assert_eq!(read(&one("P2P_NODE_SCRUB_PERIOD", "90d"))?.scrub_period, Some(Duration::from_secs(90 * 86_400)));
        assert_eq!(read(&one("P2P_NODE_NETWORK", "lab"))?.network.as_deref(), Some("lab"));
        assert_eq!(read(&one("P2P_NODE_LABEL", "nas"))?.label.as_deref(), Some("nas"));
        assert_eq!(config(&one("P2P_NODE_CONFIG", "/x")), Some(PathBuf::from("/x")));
        Ok(())
    }

    #[test]
    fn a_bad_value_names_its_variable() {
        for (name, value) in [
            ("P2P_NODE_LISTEN", "localhost"),
            ("P2P_NODE_NO_MDNS", "perhaps"),
            ("P2P_NODE_REPLICAS", "-1"),
            ("P2P_NODE_CAPACITY", "much"),
        ] {
            let refused = read(&one(name, value));
            assert!(refused.is_err_and(|e| e.message.contains(name)), "{name}");
        }
    }
}
