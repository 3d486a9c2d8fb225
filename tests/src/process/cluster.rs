//! Several daemons of one network on the loopback, joined through the first.

use std::sync::{Condvar, Mutex, PoisonError};

use super::{Daemon, Options, Program};

/// Clusters that run at once in one test process, whatever the number of test threads: five daemons each want memory
/// and sockets, and mostly wait (two cores are a tenth busy with two clusters of the suite that scrubs).
const AT_ONCE: usize = 4;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// Daemons that know each other.
#[derive(Debug)]
pub struct Cluster {
    /// The daemons, in the order of their start.
    pub nodes: Vec<Daemon>,
    // Given back after the daemons are gone: fields are dropped in order.
    _turn: Turn,
}

impl Cluster {
    /// Starts `count` daemons that meet through the first, and waits until each knows all others.
    #[track_caller]
    pub fn start(program: Program, count: usize) -> Self {
        Self::start_with(program, count, |_, options| options)
    }

    /// The same, each daemon's options changed by `change` (its place in the row is given).
    #[track_caller]
    pub fn start_with(program: Program, count: usize, change: impl Fn(usize, Options) -> Options) -> Self {
        let turn = Turn::take();
        let mut nodes: Vec<Daemon> = Vec::with_capacity(count);
        for place in 0..count {
            let mut options = change(place, program.daemon());
            if let Some(first) = nodes.first() {
                options = options.bootstrap(first);
            }
            nodes.push(options.start());
        }
        let cluster = Self { nodes, _turn: turn };
        cluster.meet();
        cluster
    }

    /// Waits until each running daemon knows all other running ones.
    #[track_caller]
    pub fn meet(&self) {
        for node in &self.nodes {
            node.wait_for_peers(self.nodes.len() - 1);
        }
    }

    /// One more daemon, joined through the first; it is known to all when this returns.
    #[track_caller]
    pub fn join(&mut self, options: Options) -> &Daemon {
        let first = self.nodes.first().expect("a cluster has a node");
        let daemon = options.bootstrap(first).start();
        self.nodes.push(daemon);
        self.meet();
        self.nodes.last().expect("one was pushed")
    }

    /// Kills a daemon and removes its disk: it is gone for good.
    pub fn lose(&mut self, place: usize) {
        let mut lost = self.nodes.remove(place);
        lost.kill();
    }

    /// The peer ids, in order.
    pub fn peer_ids(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.peer_id().to_owned()).collect()
    }
}

impl std::ops::Index<usize> for Cluster {
    type Output = Daemon;

    fn index(&self, place: usize) -> &Daemon {
        &self.nodes[place]
    }
}

impl std::ops::IndexMut<usize> for Cluster {
    fn index_mut(&mut self, place: usize) -> &mut Daemon {
        &mut self.nodes[place]
    }
}

/// The right to run a cluster.
#[derive(Debug)]
struct Turn;

impl Turn {
    fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = ENDED.wait_while(running, |count| *count >= AT_ONCE).unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}
