//! What a run counts.

use std::time::Duration;

/// What a run counts, over all nodes.
#[derive(Clone, Default, Debug)]
pub struct Figures {
    /// Chunk copies that repair moved, and their bytes.
    pub pulls: u64,
    /// Their bytes.
    pub pulled_bytes: u64,
    /// Of those, what somebody took who came after [`since`](Self::since), and is one of the k nearest.
    pub joined_bytes: u64,
    /// Of those, what was copied because a holder was away for longer than the repair delay.
    pub absent_bytes: u64,
    /// From when on it is counted.
    pub since: Duration,
    /// Bytes of copies that were lost with disks and peers while somebody wanted them.
    pub lost_copy_bytes: u64,
    /// Chunks of which no copy is left.
    pub lost: u64,
    /// Their bytes, once each.
    pub lost_bytes: u64,
    /// Chunks freed.
    pub freed: u64,
    /// Cached copies given up.
    pub given_up: u64,
    /// Bytes of manifests that were read.
    pub manifest_bytes: u64,
    /// What they would have been with leaves of 1,024 entries, where roots are samples.
    pub wide_manifest_bytes: u64,
    /// Questions who has what, which went to peers that say they are full.
    pub asks_of_full: u64,
    /// Questions who has what.
    pub asks: u64,
    /// Bytes of audits, both ways.
    pub audit_bytes: u64,
    /// Audits.
    pub audits: u64,
    /// Bytes of publications that were gossiped and caught up on.
    pub gossip_bytes: u64,
    /// Bytes of questions who has what.
    pub ask_bytes: u64,
    /// Bytes that restarts within the delay cost their neighbours, and how many there were.
    pub restart_bytes: u64,
    /// Restarts.
    pub restarts: u64,
    /// Look-ups of regions.
    pub lookups: u64,
    /// From the loss of a copy to its being there again.
    pub repairs: Vec<Duration>,
}

impl Figures {
    /// The mean of the repairs, in seconds; 0 without any.
    pub fn repair_mean(&self) -> f64 {
        let all: f64 = self.repairs.iter().map(Duration::as_secs_f64).sum();
        if self.repairs.is_empty() { 0.0 } else { all / self.repairs.len() as f64 }
    }

    /// Bytes that repair moved because copies were lost for good.
    pub fn moved_for_losses(&self) -> u64 {
        self.pulled_bytes - self.joined_bytes - self.absent_bytes
    }

    /// The `percent`th percentile of the repairs, in seconds; 0 without any.
    pub fn repair_percentile(&mut self, percent: usize) -> f64 {
        self.repairs.sort_unstable();
        let at = (self.repairs.len() * percent / 100).min(self.repairs.len().saturating_sub(1));
        self.repairs.get(at).map_or(0.0, Duration::as_secs_f64)
    }
}
