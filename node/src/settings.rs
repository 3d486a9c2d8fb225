//! What the daemon runs with: flags beat the environment, which beats the file.
//!
//! Each source is read into a [`Partial`]; [`Settings::resolve`] lays them over each other and checks the outcome.

mod environment;
mod file;
pub mod units;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use libp2p::{Multiaddr, multiaddr::Protocol};
use p2p_protocol::{Label, catalogue, duty, label::MAX_LABEL_BYTES};

pub use self::{environment::DATA_DIR_VARIABLE, file::CONFIG_FILE};
use crate::error::{Error, Result};

/// The name of the network that a node joins when none is given.
pub const DEFAULT_NETWORK: &str = "main";
/// Copies of each chunk that are asked for when nothing else is said.
pub const DEFAULT_REPLICAS: u8 = 3;
/// Within which every chunk is read again when nothing else is said.
pub const DEFAULT_SCRUB_PERIOD: Duration = Duration::from_secs(30 * 24 * 3600);
/// The port that is tried first.
pub const DEFAULT_PORT: u16 = 4242;
/// The most copies that may be asked for.
pub const MAX_REPLICAS: u8 = p2p_protocol::placement::MAX_REPLICAS;
/// The longest name of a network, in bytes: it is part of every protocol name, and those are short.
pub const MAX_NETWORK_BYTES: usize = 64;

/// How many entries a catalogue may have: some 110 bytes of memory and 500 on the disk each.
pub const CATALOGUE_ENTRIES: std::ops::RangeInclusive<usize> = 16..=4_194_304;

/// Validated settings of a daemon.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The node's state: absolute.
    pub data_dir: PathBuf,
    /// Where peers reach it; empty: the default port on every address (a free, remembered port if it is taken).
    pub listen: Vec<Multiaddr>,
    /// Peers to join through.
    pub bootstrap: Vec<Multiaddr>,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// Copies of each chunk that this node asks for when it adds, 1 to 16.
    pub replicas: u8,
    /// How what this node should hold is kept.
    pub duty: duty::Settings,
    /// Within which every chunk here is read again; zero: never.
    pub scrub_period: Duration,
    /// The most bytes that chunks may take; `None`: 80 % of the free space at the first start, remembered.
    pub capacity_bytes: Option<u64>,
    /// The most entries of the catalogue, each version counting as one; half of them of one publisher.
    pub catalogue_entries: usize,
    /// The network's name.
    pub network: String,
    /// What people call this machine; it may be empty.
    pub label: Label,
}

/// What one source says; `None` where it says nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Partial {
    /// As [`Settings::listen`].
    pub listen: Option<Vec<Multiaddr>>,
    /// As [`Settings::bootstrap`].
    pub bootstrap: Option<Vec<Multiaddr>>,
    /// As [`Settings::mdns`].
    pub mdns: Option<bool>,
    /// As [`Settings::replicas`].
    pub replicas: Option<u8>,
    /// As [`duty::Settings::repair_delay`].
    pub repair_delay: Option<Duration>,
    /// As [`duty::Settings::repair_bytes_per_second`].
    pub repair_rate: Option<u64>,
    /// As [`duty::Settings::audit_interval`].
    pub audit_interval: Option<Duration>,
    /// As [`duty::Settings::grace`].
    pub gc_grace: Option<Duration>,
    /// As [`duty::Settings::probation`].
    pub probation: Option<Duration>,
    /// As [`Settings::scrub_period`].
    pub scrub_period: Option<Duration>,
    /// As [`Settings::capacity_bytes`].
    pub capacity_bytes: Option<u64>,
    /// As [`Settings::catalogue_entries`].
    pub catalogue_entries: Option<usize>,
    /// As [`Settings::network`].
    pub network: Option<String>,
    /// As [`Settings::label`].
    pub label: Option<String>,
}

impl Partial {
    /// What `self` says and, where it says nothing, what `other` says.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            bootstrap: self.bootstrap.or(other.bootstrap),
            mdns: self.mdns.or(other.mdns),
            replicas: self.replicas.or(other.replicas),
            repair_delay: self.repair_delay.or(other.repair_delay),
            repair_rate: self.repair_rate.or(other.repair_rate),
            audit_interval: self.audit_interval.or(other.audit_interval),
            gc_grace: self.gc_grace.or(other.gc_grace),
            probation: self.probation.or(other.probation),
            scrub_period: self.scrub_period.or(other.scrub_period),
            capacity_bytes: self.capacity_bytes.or(other.capacity_bytes),
            catalogue_entries: self.catalogue_entries.or(other.catalogue_entries),
            network: self.network.or(other.network),
            label: self.label.or(other.label),
        }
    }
}

impl Settings {
    /// Settings from `flags`, then the environment as `variable` gives it, then the file: `config`, which must then
    /// be there, or `config.toml` in `data_dir` if it is there.
    ///
    /// Fails with [`crate::error::Kind::Usage`] and the name of what is wrong.
    pub fn load(
        data_dir: &Path,
        config: Option<&Path>,
        flags: Partial,
        variable: impl Fn(&str) -> Option<std::ffi::OsString>,
    ) -> Result<Self> {
        let environment = environment::read(&variable)?;
        let named = config.map(Path::to_path_buf).or_else(|| environment::config(&variable));
        let file = match named {
            Some(path) => file::read(&path)?.ok_or_else(|| {
                Error::usage(format!("The settings file {} does not exist", path.display()))
                    .hint("give the path of one that does, or leave --config out")
            })?,
            None => file::read(&data_dir.join(CONFIG_FILE))?.unwrap_or_default(),
        };
        Self::resolve(data_dir, flags.or(environment).or(file))
    }

    /// Lays `partial` over the defaults and checks every value.
    pub fn resolve(data_dir: &Path, partial: Partial) -> Result<Self> {
        let data_dir = std::path::absolute(data_dir).map_err(|error| {
            Error::usage(format!("The data directory {} cannot be used: {error}", data_dir.display()))
        })?;
        let duty = duty::Settings::default();
        let duty = duty::Settings {
            repair_delay: partial.repair_delay.unwrap_or(duty.repair_delay),
            repair_bytes_per_second: partial.repair_rate.unwrap_or(duty.repair_bytes_per_second),
            audit_interval: partial.audit_interval.unwrap_or(duty.audit_interval),
            grace: partial.gc_grace.unwrap_or(duty.grace),
            probation: partial.probation.unwrap_or(duty.probation),
        };
        let settings = Self {
            data_dir,
            duty,
            scrub_period: partial.scrub_period.unwrap_or(DEFAULT_SCRUB_PERIOD),
            listen: partial.listen.unwrap_or_default(),
            bootstrap: partial.bootstrap.unwrap_or_default(),
            mdns: partial.mdns.unwrap_or(true),
            replicas: partial.replicas.unwrap_or(DEFAULT_REPLICAS),
            capacity_bytes: partial.capacity_bytes,
            catalogue_entries: partial.catalogue_entries.unwrap_or(catalogue::MAX_ENTRIES),
            network: partial.network.unwrap_or_else(|| DEFAULT_NETWORK.to_owned()),
            label: partial.label.map_or_else(|| Ok(Label::new(&host_name())), |text| check_label(&text))?,
        };
        settings.listen.iter().try_for_each(check_listen)?;
        settings.bootstrap.iter().try_for_each(check_dial)?;
        if !(1..=MAX_REPLICAS).contains(&settings.replicas) {
            return Err(Error::usage(format!("{} copies cannot be asked for", settings.replicas))
                .hint(format!("give --replicas a number from 1 to {MAX_REPLICAS}")));
        }
        if settings.duty.repair_bytes_per_second == 0 {
            return Err(Error::usage("Nothing can be repaired at 0 bytes a second")
                .hint("give --repair-rate a size, such as 64MiB"));
        }
        if settings.duty.audit_interval.is_zero() {
            return Err(Error::usage("Neighbours cannot be compared with all the time")
                .hint("give --audit-interval a duration, such as 10m"));
        }
        if settings.duty.grace.is_zero() {
            return Err(Error::usage("What is added would be freed before it is published")
                .hint("give --gc-grace a duration, such as 24h"));
        }
        if !CATALOGUE_ENTRIES.contains(&settings.catalogue_entries) {
            return Err(Error::usage(format!("A catalogue cannot have {} entries", settings.catalogue_entries)).hint(
                format!(
                    "give --catalogue-entries a number from {} to {}",
                    CATALOGUE_ENTRIES.start(),
                    CATALOGUE_ENTRIES.end()
                ),
            ));
        }
        check_network(&settings.network)?;
        Ok(settings)
    }
}

/// The name goes into protocol names (`/p2p-node/<network>/…`), so it must not hold a slash or a space.
fn check_network(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_NETWORK_BYTES || !name.chars().all(allowed) {
        return Err(Error::usage(format!("\"{}\" cannot be the name of a network", name.escape_debug()))
            .hint(format!("use 1 to {MAX_NETWORK_BYTES} letters (a-z, A-Z), digits, dots, dashes and underscores")));
    }
    Ok(())
}

/// A label is shown to people as it is.
fn check_label(text: &str) -> Result<Label> {
    let label = Label::new(text);
    if label.as_str() == text {
        return Ok(label);
    }
    Err(Error::usage(format!("\"{}\" cannot be the label of a machine", text.escape_debug())).hint(format!(
        "use up to {MAX_LABEL_BYTES} bytes of text, without control characters and without spaces at its ends"
    )))
}

/// The host's name, where the system keeps it in a file; else nothing.
fn host_name() -> String {
    let named =
        ["/proc/sys/kernel/hostname", "/etc/hostname"].into_iter().find_map(|file| std::fs::read_to_string(file).ok());
    named.unwrap_or_default().trim().to_owned()
}

/// A node listens on an IP address, by TCP or by QUIC.
fn check_listen(address: &Multiaddr) -> Result<()> {
    let parts: Vec<_> = address.iter().collect();
    let fits = matches!(
        parts.as_slice(),
        [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Tcp(_)]
            | [Protocol::Ip4(_) | Protocol::Ip6(_), Protocol::Udp(_), Protocol::QuicV1]
    );
    if fits {
        return Ok(());
    }
    Err(Error::usage(format!("A node cannot listen on \"{address}\""))
        .hint("give an address such as /ip4/0.0.0.0/tcp/4242 or /ip6/::/udp/4242/quic-v1"))
}

/// A peer is dialled at an IP address or a DNS name, by TCP or by QUIC, with or without its peer id at the end.
pub fn check_dial(address: &Multiaddr) -> Result<()> {
    let parts: Vec<_> = address.iter().collect();
    let (host, rest) = parts.split_first().map_or((None, &[][..]), |(host, rest)| (Some(host), rest));
    let host_fits = matches!(
        host,
        Some(Protocol::Ip4(_) | Protocol::Ip6(_) | Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_))
    );
    let rest_fits = matches!(
        rest,
        [Protocol::Tcp(_)]
            | [Protocol::Tcp(_), Protocol::P2p(_)]
            | [Protocol::Udp(_), Protocol::QuicV1]
            | [Protocol::Udp(_), Protocol::QuicV1, Protocol::P2p(_)]
    );
    if host_fits && rest_fits {
        return Ok(());
    }
    Err(Error::usage(format!("No peer can be reached at \"{address}\""))
        .hint("give an address such as /ip4/192.0.2.1/tcp/4242 or /dns/example.org/udp/4242/quic-v1, with or without /p2p/PEER at the end"))
}

/// Reads a multiaddr as a user wrote it.
pub fn multiaddr(text: &str) -> std::result::Result<Multiaddr, String> {
    match text.parse::<Multiaddr>() {
        Ok(address) if !address.is_empty() => Ok(address),
        Ok(_) => Err("the address is empty; one looks like /ip4/192.0.2.1/tcp/4242".to_owned()),
        Err(error) => Err(format!("this is not a multiaddr ({error}); one looks like /ip4/192.0.2.1/tcp/4242")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::error::Kind;

    fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<std::ffi::OsString> + use<> {
        let map: HashMap<String, String> = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        move |name: &str| map.get(name).map(Into::into)
    }

    #[test]
    fn the_defaults_are_the_contracts() -> Result<()> {
        let dir = tempfile::tempdir().map_err(|e| Error::failed(e.to_string()))?;
        let settings = Settings::load(dir.path(), None, Partial::default(), |_| None)?;
        assert!(settings.listen.is_empty() && settings.bootstrap.is_empty() && settings.mdns);
        assert_eq!((settings.replicas, settings.capacity_bytes), (3, None));
        assert_eq!(settings.network, "main");
        Ok(())
    }

    #[test]
    fn flags_beat_the_environment_which_beats_the_file() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::write(
            dir.path().join(CONFIG_FILE),
            "replicas = 4\nnetwork = \"file\"\ncapacity = \"3GiB\"\nno-mdns = true\nlisten = \"/ip4/1.2.3.4/tcp/1\"",
        )?;
        let flags = Partial { replicas: Some(6), ..Partial::default() };
        let env = environment(&[
            ("P2P_NODE_REPLICAS", "5"),
            ("P2P_NODE_NETWORK", "env"),
            ("P2P_NODE_NO_MDNS", "false"),
            ("P2P_NODE_LISTEN", ""),
        ]);
        let settings = Settings::load(dir.path(), None, flags, env).map_err(std::io::Error::other)?;
        assert_eq!(settings.replicas, 6, "the flag");
        assert_eq!(settings.network, "env", "the environment");
        assert!(settings.mdns, "the environment can turn on again what the file turned off");
        assert_eq!(settings.capacity_bytes, Some(3 << 30), "the file");
        assert_eq!(settings.listen.len(), 1, "an empty variable says nothing");
        Ok(())
    }

    #[test]
    fn a_named_file_replaces_the_default_one_and_must_exist() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join(CONFIG_FILE), "replicas = 4")?;
        let other = dir.path().join("other.toml");
        let missing = Settings::load(dir.path(), Some(&other), Partial::default(), |_| None);
        assert_eq!(missing.map_err(|e| e.kind).err(), Some(Kind::Usage));
        std::fs::write(&other, "network = \"x\"")?;
        let path = other.display().to_string();
        let env = environment(&[("P2P_NODE_CONFIG", &path)]);
        let settings = Settings::load(dir.path(), None, Partial::default(), env).map_err(std::io::Error::other)?;
        assert_eq!((settings.replicas, settings.network.as_str()), (3, "x"));
        Ok(())
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        let dir = Path::new("/somewhere");
        let check = |partial: Partial| Settings::resolve(dir, partial).map_err(|e| e.kind).err();
        for replicas in [0, 17] {
            assert_eq!(check(Partial { replicas: Some(replicas), ..Partial::default() }), Some(Kind::Usage));
        }
        let zero = Some(Duration::ZERO);
        for partial in [
            Partial { repair_rate: Some(0), ..Partial::default() },
            Partial { audit_interval: zero, ..Partial::default() },
            Partial { gc_grace: zero, ..Partial::default() },
        ] {
            assert_eq!(check(partial), Some(Kind::Usage));
        }
        for name in ["", "a/b", "a b", "ü", &"x".repeat(65)] {
            let partial = Partial { network: Some(name.to_owned()), ..Partial::default() };
            assert_eq!(check(partial), Some(Kind::Usage), "{name}");
        }
        for (address, listens, dials) in [
            ("/ip4/127.0.0.1/tcp/0", true, true),
            ("/ip6/::1/udp/4242/quic-v1", true, true),
            ("/dns/example.org/tcp/4242", false, true),
            ("/ip4/127.0.0.1/tcp/1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA", false, true),
            ("/ip4/127.0.0.1", false, false),
            ("/ip4/127.0.0.1/udp/5", false, false),
            ("/memory/1", false, false),
        ] {
            let address: Multiaddr = address.parse().expect("the test's addresses are well formed");
            assert_eq!(check_listen(&address).is_ok(), listens, "{address}");
            assert_eq!(check_dial(&address).is_ok(), dials, "{address}");
        }
        assert!(multiaddr("").is_err() && multiaddr("127.0.0.1:4242").is_err());
    }

    #[test]
    fn a_label_is_what_was_given_or_the_hosts_name() {
        let resolve = |label: Option<&str>| {
            let partial = Partial { label: label.map(str::to_owned), ..Partial::default() };
            Settings::resolve(Path::new("/somewhere"), partial).map(|settings| settings.label)
        };
        assert_eq!(resolve(None).ok(), Some(Label::new(&host_name())));
        for good in ["Ann's laptop", "", "Büro 2"] {
            assert_eq!(resolve(Some(good)).map(|label| label.to_string()).ok().as_deref(), Some(good));
        }
        for bad in [" nas", "a\nb", &"x".repeat(65)] {
            assert_eq!(resolve(Some(bad)).map_err(|error| error.kind), Err(Kind::Usage), "{bad}");
        }
    }

    #[test]
    fn a_relative_data_directory_becomes_absolute() {
        let settings = Settings::resolve(Path::new("here"), Partial::default());
        assert!(settings.is_ok_and(|s| s.data_dir.is_absolute() && s.data_dir.ends_with("here")));
    }
}
