//! What the swarm tells, and what follows from it.

use libp2p::core::ConnectedPoint;
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, identify, kad};

use super::behaviour::BehaviourEvent;
use super::driver::{Connection, Driver, send};
use super::{ConnectError, Direction, dial_text};
use crate::routing::book::MAX_ADDRESSES;
use crate::routing::records::MAX_ADDRESS;
use crate::routing::{scope, unix_now};

/// Longest agent text kept, in bytes.
const MAX_AGENT: usize = 128;
/// Protocols of a peer that are kept.
const MAX_PROTOCOLS: usize = 64;

impl Driver {
    pub(super) fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour_event(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                concurrent_dial_errors,
                ..
            } => {
                for (address, _) in concurrent_dial_errors.into_iter().flatten() {
                    self.book.lock().failed(&peer_id, &address);
                }
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "connection closed");
                if let Some(peer) = self.peers.get_mut(&peer_id) {
                    peer.connections.retain(|connection| connection.id != connection_id);
                    if peer.connections.is_empty() {
                        self.peers.remove(&peer_id);
                    }
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_dial_failed(connection_id, peer_id, &error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "an incoming connection failed");
            }
            SwarmEvent::NewListenAddr { listener_id, address } => {
                tracing::info!(%address, "listening");
                self.listening.insert(listener_id);
                self.refresh_announced();
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                tracing::info!(%address, "no longer listening");
                self.refresh_announced();
            }
            SwarmEvent::ListenerClosed { listener_id, reason, addresses } => {
                self.listening.remove(&listener_id);
                if let Err(error) = reason {
                    tracing::error!(?addresses, %error, "a listener closed; peers cannot reach this node there");
                }
                self.refresh_announced();
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener had an error"),
            _ => {}
        }
    }

    fn on_connected(&mut self, peer_id: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let (addr, direction) = match endpoint {
            ConnectedPoint::Dialer { address, .. } => {
                self.book.lock().add(peer_id, std::slice::from_ref(address), true, unix_now());
                (address.clone(), Direction::Outbound)
            }
            ConnectedPoint::Listener { send_back_addr, .. } => (send_back_addr.clone(), Direction::Inbound),
        };
        tracing::debug!(peer = %peer_id, %addr, ?direction, "connected");
        self.peers.entry(peer_id).or_default().connections.push(Connection { id, addr, direction });
        if let Some(reply) = self.dials.remove(&id) {
            send(reply, Ok(peer_id));
        }
        for reply in self.peer_dials.remove(&peer_id).unwrap_or_default() {
            send(reply, Ok(()));
        }
        self.search_reached(&peer_id);
    }

    fn on_dial_failed(&mut self, id: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        tracing::debug!(?peer, error = dial_text(error), "a dial failed");
        if let Some(reply) = self.dials.remove(&id) {
            send(reply, Err(ConnectError::Dial(dial_text(error))));
        }
        let Some(peer) = peer else { return };
        match error {
            DialError::Transport(failed) => {
                let mut book = self.book.lock();
                failed.iter().for_each(|(address, _)| book.failed(&peer, address));
            }
            DialError::WrongPeerId { address, .. } => self.book.lock().failed(&peer, address),
            _ => {}
        }
        if self.swarm.is_connected(&peer) {
            return;
        }
        for reply in self.peer_dials.remove(&peer).unwrap_or_default() {
            send(reply, Err(ConnectError::Dial(dial_text(error))));
        }
        self.search_missed(&peer);
    }

    fn on_behaviour_event(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.on_identified(peer_id, connection_id, info);
            }
            BehaviourEvent::Identify(identify::Event::Error { peer_id, error, .. }) => {
                tracing::debug!(peer = %peer_id, %error, "a peer did not identify itself");
            }
            BehaviourEvent::Identify(_) => {}
            BehaviourEvent::Ping(ping) => match ping.result {
                Ok(rtt) => {
                    if let Some(peer) = self.peers.get_mut(&ping.peer) {
                        peer.rtt = Some(rtt);
                    }
                }
                Err(libp2p::ping::Failure::Unsupported) => {}
                Err(error) => {
                    // A peer that does not answer pings is gone, whatever its socket says.
                    tracing::debug!(peer = %ping.peer, %error, "ping failed");
                    self.swarm.close_connection(ping.connection);
                }
            },
            BehaviourEvent::Kad(event) => self.on_kad_event(event),
            BehaviourEvent::Limits(never) => match never {},
            BehaviourEvent::Book(never) | BehaviourEvent::Rpc(never) | BehaviourEvent::Bitswap(never) => {
                match never {}
            }
        }
    }

    fn on_identified(&mut self, peer_id: PeerId, connection: ConnectionId, info: identify::Info) {
        let Some(peer) = self.peers.get_mut(&peer_id) else { return };
        let mut agent = info.agent_version;
        agent.truncate(agent.floor_char_boundary(MAX_AGENT));
        peer.agent = Some(agent);
        peer.protocols = info.protocols.iter().take(MAX_PROTOCOLS).map(ToString::to_string).collect();
        let through = peer.connections.iter().find(|c| c.id == connection).map(|c| c.addr.clone());
        let Some(through) = through else { return };
        let told: Vec<Multiaddr> = info
            .listen_addrs
            .into_iter()
            .filter(|address| address.len() <= MAX_ADDRESS && scope::usable(address, &through))
            .take(MAX_ADDRESSES)
            .collect();
        self.book.lock().add(peer_id, &told, false, unix_now());
        let kad = &mut self.swarm.behaviour_mut().kad;
        kad.store_mut().learn_addresses(&peer_id, &told);
        if info.protocols.iter().any(|protocol| kad.protocol_names().contains(protocol)) {
            for address in told {
                kad.add_address(&peer_id, address);
            }
            self.refresh_routing_peers();
        }
    }

    /// Counts the routing table anew; the first peer in it wakes the announcements.
    pub(super) fn refresh_routing_peers(&mut self) {
        let kad = &mut self.swarm.behaviour_mut().kad;
        let count = kad.kbuckets().map(|bucket| bucket.num_entries()).sum();
        let was_empty = self.routing_peers == 0;
        self.routing_peers = count;
        if was_empty && count > 0 {
            self.announcements.retry_failed(unix_now());
            self.announce_due();
            self.start_parked();
        }
    }

    fn on_kad_event(&mut self, event: kad::Event) {
        match event {
            kad::Event::OutboundQueryProgressed { id, result, stats, step } => {
                self.on_query_progress(id, result, &stats, step.last);
            }
            kad::Event::InboundRequest {
                request: kad::InboundRequest::AddProvider { record: Some(record) },
            } => {
                let provider = record.provider;
                let store = self.swarm.behaviour_mut().kad.store_mut();
                if let Err(error) = kad::store::RecordStore::add_provider(store, record) {
                    tracing::debug!(peer = %provider, %error, "a provider record was not taken");
                }
            }
            kad::Event::RoutingUpdated { .. } => self.refresh_routing_peers(),
            _ => {}
        }
    }
}
