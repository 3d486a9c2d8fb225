//! The machines: daemons that can be killed, wiped, cut off, filled up and damaged, each in its own way.
//!
//! With root each is in a network namespace of its own, all on one cable, and the last has a small disk. Without, all
//! are on the loopback, whoever is cut off is frozen (SIGSTOP), and who is filled up is given a smaller capacity.

use std::{
    collections::BTreeSet,
    fs,
    io::{Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError, TryLockError},
};

use rand::{Rng, rngs::StdRng};
use rustix::process::Signal;

use super::Plan;
use crate::process::{
    Daemon, Output, Scratch,
    mounts::SmallDisk,
    namespace::{self, Addresses, Lan},
};

/// The port of each machine on the cable.
const PORT: u16 = 4242;
/// The small disk: the reserve that a store leaves to others, and room for a share.
const SMALL_DISK_MEBIBYTES: u32 = 512;
/// What the identity's file is called.
const IDENTITY: &str = "identity.key";
/// A capacity that is full with next to nothing.
const NEXT_TO_NOTHING: &str = "1MiB";

/// All machines.
#[derive(Debug)]
pub struct Field {
    nodes: Vec<Mutex<Daemon>>,
    directories: Vec<PathBuf>,
    lan: Option<Lan>,
    small: Option<SmallDisk>,
    frozen: Mutex<BTreeSet<usize>>,
    _scratch: Scratch,
}

/// What a machine is left with when its disk is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Left {
    /// Its identity: the same peer comes back with nothing.
    Identity,
    /// Nothing: another peer comes.
    Nothing,
}

impl Field {
    /// Starts them, and says what cannot be had here.
    pub fn start(plan: &Plan, say: impl Fn(String)) -> Self {
        let scratch = Scratch::new("chaos");
        let lan = match namespace::missing() {
            None => Some(Lan::new(plan.nodes, Addresses::V4)),
            Some(reason) => {
                say(format!("no cables to pull ({reason}): who is cut off is frozen"));
                None
            }
        };
        let small = SmallDisk::new(SMALL_DISK_MEBIBYTES)
            .inspect_err(|reason| say(format!("no small disk ({reason}): who is filled up gets a smaller capacity")))
            .ok();
        let mut directories = Vec::new();
        let mut nodes: Vec<Daemon> = Vec::new();
        for place in 0..plan.nodes {
            let mut options = plan.program.daemon().arguments(plan.settings.iter().cloned());
            let mut prefix = vec![];
            if lan.is_some() {
                options = options.listen([address(place)]);
                for other in (0..plan.nodes).filter(|other| *other != place) {
                    options = options.bootstrap_address(address(other));
                }
            }
            let disk = small.as_ref().filter(|_| place + 1 == plan.nodes);
            let inside = disk.map_or_else(|| scratch.path().to_owned(), |disk| disk.path().to_owned());
            let name = format!("node-{place}");
            options = options.data_dir(inside.join(&name));
            let outside = disk.map_or(inside, SmallDisk::seen_from_outside);
            directories.push(outside.join(&name));
            prefix.extend(disk.map(SmallDisk::namespace));
            prefix.extend(lan.as_ref().map(|lan| lan.namespace(place)));
            if !prefix.is_empty() {
                prefix.insert(0, "nsenter".into());
                options = options.prefix(prefix);
            }
            if lan.is_none() {
                for other in &nodes {
                    options = options.bootstrap(other);
                }
            }
            nodes.push(options.start());
        }
        if lan.is_none() {
            // Everybody is found where everybody was first, whoever it is then.
            let everywhere: Vec<String> =
                nodes.iter().flat_map(|node| node.listen().iter()).map(|address| bare(address)).collect();
            for node in &mut nodes {
                node.stay_put();
                let own: Vec<String> = node.listen().iter().map(|address| bare(address)).collect();
                let mut options = node.options().clone();
                for address in everywhere.iter().filter(|address| !own.contains(address)) {
                    options = options.bootstrap_address(address);
                }
                *node.options() = options;
            }
        }
        let (nodes, frozen) = (nodes.into_iter().map(Mutex::new).collect(), Mutex::default());
        Self { nodes, directories, lan, small, frozen, _scratch: scratch }
    }

    /// Whether each has a cable that can be pulled.
    pub fn has_cables(&self) -> bool {
        self.lan.is_some()
    }

    /// Whether the last has a small disk.
    pub fn has_small_disk(&self) -> bool {
        self.small.is_some()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// A command for the daemon at `place`, and who that is; `None` while it is being started or stopped, or is down.
    pub fn command<S: AsRef<std::ffi::OsStr>>(
        &self,
        place: usize,
        args: impl IntoIterator<Item = S>,
    ) -> Option<(Command, String)> {
        let mut node = match self.nodes[place].try_lock() {
            Ok(node) => node,
            Err(TryLockError::Poisoned(node)) => node.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if !node.is_alive() || self.frozen().contains(&place) {
            return None;
        }
        let mut command = node.command(args);
        command.arg("--json");
        Some((command, node.peer_id().to_owned()))
    }

    /// Runs one.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, place: usize, args: impl IntoIterator<Item = S>) -> Option<Output> {
        self.command(place, args).map(|(command, _)| Output::of(command))
    }

    /// Who is there, in order.
    pub fn peers(&self) -> Vec<String> {
        (0..self.count()).map(|place| self.node(place).peer_id().to_owned()).collect()
    }

    /// The first that is not there, though it should be, with the end of what it said.
    pub fn fallen(&self, should_be_there: impl Fn(usize) -> bool) -> Option<(usize, String)> {
        (0..self.count()).filter(|place| should_be_there(*place)).find_map(|place| {
            let mut node = self.node(place);
            (!node.is_alive()).then(|| (place, ending(&node.log())))
        })
    }

    /// The end of what a daemon said.
    pub fn said(&self, place: usize) -> String {
        ending(&self.node(place).log())
    }

    /// Writes all that each said into a file of its own.
    pub fn keep_logs(&self, directory: &Path) -> std::io::Result<()> {
        fs::create_dir_all(directory)?;
        (0..self.count())
            .try_for_each(|place| fs::write(directory.join(format!("node-{place}.log")), self.node(place).log()))
    }

    /// kill -9.
    pub fn kill(&self, place: usize) {
        self.node(place).kill();
    }

    /// Starts it again.
    ///
    /// # Errors
    /// It did not become ready: how it ended, and what it said.
    pub fn restart(&self, place: usize) -> Result<(), String> {
        self.node(place).try_restart().map_err(|(status, log)| format!("{status}: {}", ending(&log)))
    }

    /// Removes what a daemon that is down has on its disk.
    pub fn wipe(&self, place: usize, left: Left) -> std::io::Result<()> {
        for entry in fs::read_dir(&self.directories[place])? {
            let path = entry?.path();
            if left == Left::Identity && path.file_name().is_some_and(|name| name == IDENTITY) {
                continue;
            }
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        Ok(())
    }

    /// Cuts these off from the others; they still reach each other, where there is a cable.
    pub fn cut(&self, places: &[usize]) {
        match &self.lan {
            Some(lan) => lan.split(places),
            None => {
                self.frozen().extend(places);
                places.iter().for_each(|place| self.node(*place).signal(Signal::STOP));
            }
        }
    }

    /// Undoes that.
    pub fn mend(&self, places: &[usize]) {
        match &self.lan {
            Some(lan) => lan.join(places),
            None => {
                places.iter().for_each(|place| self.node(*place).signal(Signal::CONT));
                self.frozen().retain(|place| !places.contains(place));
            }
        }
    }

    /// The machine that can be filled up: only one disk is small, where there is one.
    pub fn fillable(&self, random: &mut StdRng) -> usize {
        if self.small.is_some() { self.count() - 1 } else { random.random_range(0..self.count()) }
    }

    /// Fills its disk to the last byte; or has it come back with next to no capacity.
    pub fn fill(&self, place: usize) -> Result<(), String> {
        match &self.small {
            Some(disk) => {
                // It ends where there is no room.
                disk.shell(
                    "dd if=/dev/zero of=ballast bs=1M 2>/dev/null; dd if=/dev/zero of=ballast2 bs=1k 2>/dev/null",
                );
                Ok(())
            }
            None => self.with_capacity(place, NEXT_TO_NOTHING),
        }
    }

    /// Undoes that.
    pub fn empty(&self, place: usize) -> Result<(), String> {
        match &self.small {
            Some(disk) => {
                disk.shell("rm -f ballast ballast2");
                Ok(())
            }
            None => self.with_capacity(place, "2GiB"),
        }
    }

    fn with_capacity(&self, place: usize, capacity: &str) -> Result<(), String> {
        {
            let mut node = self.node(place);
            node.kill();
            *node.options() = node.options().clone().capacity(capacity);
        }
        self.restart(place)
    }

    /// Turns a bit of a segment file over, wherever chance has it; where. `None` if there is none yet.
    pub fn flip(&self, place: usize, random: &mut StdRng) -> std::io::Result<Option<String>> {
        let files = segments(&self.directories[place])?;
        let total: u64 = files.iter().map(|(length, _)| length).sum();
        if total == 0 {
            return Ok(None);
        }
        let mut at = random.random_range(0..total);
        for (length, path) in files {
            if at >= length {
                at -= length;
                continue;
            }
            let file = fs::OpenOptions::new().read(true).write(true).open(&path)?;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            byte[0] ^= 1 << random.random_range(0..8);
            file.write_all_at(&byte, at)?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Ok(Some(format!("byte {at} of {length} of {name}")));
        }
        Ok(None)
    }

    /// Overwrites `bytes` wherever they stand in the segments of a daemon that is down; how often.
    pub fn destroy(&self, place: usize, bytes: &[u8]) -> std::io::Result<u64> {
        let mut times = 0;
        for (_, path) in segments(&self.directories[place])? {
            let text = fs::read(&path)?;
            let mut file = fs::OpenOptions::new().write(true).open(&path)?;
            for at in text.windows(bytes.len()).enumerate().filter(|(_, window)| *window == bytes).map(|(at, _)| at) {
                file.seek(SeekFrom::Start(at as u64))?;
                file.write_all(&vec![0x5a; bytes.len()])?;
                times += 1;
            }
        }
        Ok(times)
    }

    fn frozen(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.frozen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, place: usize) -> MutexGuard<'_, Daemon> {
        self.nodes[place].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn address(place: usize) -> String {
    format!("/ip4/10.94.0.{}/tcp/{PORT}", place + 1)
}

/// An address without who is there.
fn bare(address: &str) -> String {
    address.split("/p2p/").next().unwrap_or(address).to_owned()
}

/// The files below the segments of a data directory with their lengths, in the order of their names.
fn segments(directory: &Path) -> std::io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory.join("segments"))? {
        let entry = entry?;
        let kind = entry.metadata()?;
        if kind.is_file() {
            found.push((kind.len(), entry.path()));
        }
    }
    found.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(found)
}

/// The last lines of a log.
fn ending(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
