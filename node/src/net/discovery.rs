//! Discovery at the swarm: its attempts become dials of libp2p, its addresses are cleaned, its looks become lookups.
//!
//! What is decided, is decided in [`p2p_protocol::discovery`].

use std::{collections::HashMap, time::Instant};

use libp2p::{
    Multiaddr, PeerId, Swarm,
    swarm::{
        ConnectionId, DialError,
        dial_opts::{DialOpts, PeerCondition},
    },
};
use p2p_protocol::{
    chance::Chance,
    discovery::{AttemptId, Discovery as Machine, Failure, Input, Output, Settings, Source},
};

use super::{Config, Tuning, address, behaviour::Behaviour, dht::Dht};
use crate::runner::Runner;

/// The machine, its timer, and the swarm's names of its attempts.
pub(super) struct Discovery {
    runner: Runner<Machine<Multiaddr>>,
    /// Bounded by the attempts that the machine makes at once.
    attempts: HashMap<ConnectionId, AttemptId>,
}

impl Discovery {
    /// Starts with what the settings and an earlier run know.
    pub fn new(local: PeerId, config: &Config, tuning: &Tuning, chance: Chance, now: Instant) -> Self {
        let bootstrap = config.bootstrap.iter().map(address::split_peer).collect();
        let clean = |(peer, addresses): &(PeerId, Vec<Multiaddr>)| (*peer, address::usable(addresses.clone(), true));
        let known = config.known.iter().map(clean).collect();
        let settings = Settings {
            full_mesh: tuning.full_mesh,
            mdns_first: config.mdns.then_some(tuning.mdns_first),
            first_round: tuning.first_round,
            redial_least: tuning.redial_least,
            redial_most: tuning.redial_most,
        };
        let machine = Machine::new(local, bootstrap, known, settings, chance, now);
        Self { runner: Runner::new(machine), attempts: HashMap::new() }
    }

    /// The machine, to look at.
    pub fn machine(&self) -> &Machine<Multiaddr> {
        self.runner.machine()
    }

    /// Tells the machine what happened; addresses are cleaned by the other methods.
    pub fn handle(&mut self, input: Input<Multiaddr>) {
        self.runner.handle(input);
    }

    /// Waits until something is due. Cancel-safe.
    pub async fn due(&mut self) {
        self.runner.due().await;
    }

    /// Somebody named a peer and its addresses.
    pub fn learn(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, source: Source) {
        self.handle(Input::Learnt { peer, addresses: address::usable(addresses, true), source });
    }

    /// A connection is up, of a dial of discovery's or not.
    pub fn on_established(&mut self, id: ConnectionId, peer: PeerId) {
        if let Some(attempt) = self.attempts.remove(&id) {
            self.handle(Input::Established { attempt, peer });
        }
    }

    /// A dial failed, discovery's or not.
    pub fn on_failed(&mut self, id: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        if let (Some(peer), DialError::WrongPeerId { address, .. }) = (peer, error) {
            let address = address::bare(address);
            if self.machine().bootstraps(&peer).any(|bootstrap| *bootstrap == address) {
                tracing::warn!(%address, %peer, "another peer answers at this bootstrap address");
            }
            self.handle(Input::WrongAddress { peer, address });
        }
        if let Some(attempt) = self.attempts.remove(&id) {
            let own = matches!(error, DialError::LocalPeerId { .. });
            let why = if own { Failure::OwnAddress } else { Failure::Unreachable };
            self.handle(Input::Failed { attempt, why });
        }
    }

    /// A peer is of another network.
    pub fn on_foreign(&mut self, peer: PeerId) {
        for address in self.machine().bootstraps(&peer) {
            tracing::warn!(%address, "a node of another network answers there");
        }
        self.handle(Input::Foreign { peer });
    }

    /// Does what was decided.
    pub fn act(&mut self, swarm: &mut Swarm<Behaviour>, dht: &mut Dht) {
        while let Some(output) = self.runner.poll_output() {
            match output {
                Output::DialPeer { attempt, peer, addresses } => {
                    let options = DialOpts::peer_id(peer)
                        .condition(PeerCondition::DisconnectedAndNotDialing)
                        .addresses(addresses)
                        .allocate_new_port();
                    self.dial(swarm, attempt, options.build());
                }
                Output::DialBootstrap { attempt, address } => {
                    self.dial(swarm, attempt, DialOpts::unknown_peer_id().address(address).allocate_new_port().build());
                }
                Output::Unroute { peer } => drop(swarm.behaviour_mut().kad.remove_peer(&peer)),
                Output::LookAround { targets } => {
                    for target in targets {
                        dht.look_around(&mut swarm.behaviour_mut().kad, target);
                    }
                }
            }
        }
    }

    fn dial(&mut self, swarm: &mut Swarm<Behaviour>, attempt: AttemptId, options: DialOpts) {
        let id = options.connection_id();
        match swarm.dial(options) {
            Ok(()) => drop(self.attempts.insert(id, attempt)),
            Err(error) => {
                let busy = matches!(error, DialError::DialPeerConditionFalse(_));
                let why = if busy { Failure::Busy } else { Failure::Refused };
                self.handle(Input::Failed { attempt, why });
            }
        }
    }
}
