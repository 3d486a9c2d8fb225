//! Machines on one cable: network namespaces joined by veth pairs to a bridge in a namespace of its own.
//!
//! libp2p's mDNS leaves the loopback alone, so discovery without configuration can only be seen between real
//! interfaces. Everything here needs root and `ip` (iproute2); [`missing`] says what is not there.

use std::{
    ffi::OsString,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use libtest_mimic::{Completion, Failed, Trial};

use super::{Options, reaper};

/// Which addresses the machines of a [`Lan`] have, beside the link-local ones that IPv6 always makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addresses {
    /// 10.94.0.x/24; IPv6 is switched off.
    V4,
    /// fd94::x/64; no IPv4 at all.
    V6,
}

/// A test that is ignored, and says why, where namespaces cannot be had.
pub fn trial(name: &str, body: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || -> Result<Completion, Failed> {
        if let Some(reason) = missing() {
            return Ok(Completion::ignored_with(reason));
        }
        body();
        Ok(Completion::Completed)
    })
}

/// Why namespaces cannot be had here; `None` where they can.
pub fn missing() -> Option<String> {
    let name = fresh("probe");
    if let Err(reason) = ip(&["netns", "add", &name]) {
        return Some(format!("network namespaces need root and iproute2: {reason}"));
    }
    let veth = ip(&["-n", &name, "link", "add", "probe0", "type", "bridge"]);
    let deleted = ip(&["netns", "del", &name]);
    veth.and(deleted).err().map(|reason| format!("this kernel has no bridge in a namespace: {reason}"))
}

/// Namespaces on one bridge; all deleted when dropped.
#[derive(Debug)]
pub struct Lan {
    bridge: String,
    machines: Vec<String>,
}

impl Lan {
    /// `count` machines with multicast on.
    ///
    /// # Panics
    /// If `ip` fails, with what it said.
    #[track_caller]
    pub fn new(count: usize, addresses: Addresses) -> Self {
        let mut lan = Self { bridge: fresh("bridge"), machines: Vec::new() };
        let bridge = lan.bridge.clone();
        add_namespace(&bridge);
        // Snooping would hold multicast back until it has heard who listens; nothing here asks.
        must(&["-n", &bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0"]);
        must(&["-n", &bridge, "link", "set", "br0", "up"]);
        for place in 0..count {
            let machine = fresh("machine");
            add_namespace(&machine);
            lan.machines.push(machine.clone());
            let port = port(place);
            must(&["-n", &bridge, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &machine]);
            must(&["-n", &bridge, "link", "set", &port, "master", "br0"]);
            must(&["-n", &bridge, "link", "set", &port, "up"]);
            must(&["-n", &machine, "link", "set", "lo", "up"]);
            let host = place + 1;
            match addresses {
                Addresses::V4 => {
                    must(&["netns", "exec", &machine, "sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"]);
                    must(&["-n", &machine, "address", "add", &format!("10.94.0.{host}/24"), "dev", "eth0"]);
                    must(&["-n", &machine, "link", "set", "eth0", "up"]);
                    must(&["-n", &machine, "route", "add", "224.0.0.0/4", "dev", "eth0"]);
                }
                Addresses::V6 => {
                    must(&["-n", &machine, "link", "set", "eth0", "up"]);
                    must(&["-n", &machine, "address", "add", &format!("fd94::{host}/64"), "dev", "eth0", "nodad"]);
                }
            }
        }
        lan
    }

    /// A daemon's options, run in the namespace of the machine at `place`.
    #[must_use]
    pub fn on(&self, place: usize, options: Options) -> Options {
        options.prefix(["ip", "netns", "exec", &self.machines[place]].map(OsString::from))
    }

    /// What `nsenter` takes for the namespace of the machine at `place`.
    pub fn namespace(&self, place: usize) -> OsString {
        format!("--net=/run/netns/{}", self.machines[place]).into()
    }

    /// What a machine has sent over one of its devices (`lo`, `eth0`) since it was made, in bytes, headers included.
    ///
    /// # Panics
    /// If the kernel does not say.
    #[track_caller]
    pub fn sent_bytes(&self, place: usize, device: &str) -> u64 {
        let machine = &self.machines[place];
        // Not /sys/class/net, which shows the devices of whoever mounted it.
        let output = Command::new("ip").args(["netns", "exec", machine, "cat", "/proc/net/dev"]).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let line = text.lines().find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
        // Eight columns of what was received come first.
        let sent = line.and_then(|line| line.split_whitespace().nth(8)).and_then(|bytes| bytes.parse().ok());
        sent.unwrap_or_else(|| panic!("no {device} in {text:?}"))
    }

    /// Pulls the cable of a machine: the switch's end goes down, the machine keeps its addresses.
    #[track_caller]
    pub fn cut(&self, place: usize) {
        must(&["-n", &self.bridge, "link", "set", &port(place), "down"]);
    }

    /// Plugs it in again.
    #[track_caller]
    pub fn heal(&self, place: usize) {
        must(&["-n", &self.bridge, "link", "set", &port(place), "up"]);
    }

    /// Puts these machines on a cable of their own: they reach each other, and nobody else.
    #[track_caller]
    pub fn split(&self, places: &[usize]) {
        let bridge = &self.bridge;
        if ip(&["-n", bridge, "link", "show", "br1"]).is_err() {
            must(&["-n", bridge, "link", "add", "br1", "type", "bridge", "mcast_snooping", "0"]);
            must(&["-n", bridge, "link", "set", "br1", "up"]);
        }
        for place in places {
            must(&["-n", bridge, "link", "set", &port(*place), "master", "br1"]);
        }
    }

    /// Puts these machines on the cable of all again.
    #[track_caller]
    pub fn join(&self, places: &[usize]) {
        for place in places {
            must(&["-n", &self.bridge, "link", "set", &port(*place), "master", "br0"]);
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in self.machines.iter().chain([&self.bridge]) {
            if ip(&["netns", "del", name]).is_ok() {
                reaper::closed(name);
            }
        }
    }
}

fn port(place: usize) -> String {
    format!("port{place}")
}

/// A name that no other run has, and that says whose it was.
fn fresh(label: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("p2p-{}-{label}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[track_caller]
fn add_namespace(name: &str) {
    must(&["netns", "add", name]);
    reaper::opened(name);
}

#[track_caller]
fn must(arguments: &[&str]) {
    if let Err(reason) = ip(arguments) {
        panic!("ip {}: {reason}", arguments.join(" "));
    }
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
