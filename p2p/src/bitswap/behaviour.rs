//! Bitswap in the swarm: connections in, dials out, and the clock of the client.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::time::Sleep;

use super::handler::Handler;
use super::hub::Hub;
use super::limits::TICK;

/// The [`NetworkBehaviour`] of a node's Bitswap. It reports no events; results go to the sessions. Dropping it ends
/// the exchange: waiting gets fail, tasks stop.
pub struct Behaviour {
    hub: Arc<Hub>,
    connections: HashMap<ConnectionId, PeerId>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Behaviour {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Behaviour { hub, connections: HashMap::new(), timer: None }
    }

    fn establish(&mut self, id: ConnectionId, peer: PeerId) -> Handler {
        let (link, requests) = self.hub.connect(peer, id);
        self.connections.insert(id, peer);
        Handler::new(self.hub.clone(), link, requests)
    }

    fn lost(&mut self, id: ConnectionId) {
        if let Some(peer) = self.connections.remove(&id) {
            self.hub.disconnect(&peer, id);
        }
    }

    /// Lets time pass for the client while anything is wanted.
    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        if !self.hub.is_waiting() {
            self.timer = None;
            return;
        }
        loop {
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(TICK)));
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.timer = None;
            self.hub.with_desk(|desk| desk.client.tick(Instant::now()));
        }
    }
}

impl Drop for Behaviour {
    fn drop(&mut self) {
        self.hub.shut_down();
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.establish(id, peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _addr: &Multiaddr,
        _role: Endpoint,
        _port: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        Ok(self.establish(id, peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) if event.other_established == 0 => {
                self.hub.with_desk(|desk| desk.client.peer_up(event.peer_id, Instant::now()));
            }
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                remaining_established,
                ..
            }) => {
                self.lost(connection_id);
                if remaining_established == 0 {
                    self.hub.with_desk(|desk| desk.client.peer_down(peer_id, Instant::now()));
                }
            }
            FromSwarm::ListenFailure(failure) => self.lost(failure.connection_id),
            FromSwarm::DialFailure(failure) => {
                self.lost(failure.connection_id);
                // Another dial to the peer is under way, or it is connected: that one decides.
                let other = matches!(failure.error, DialError::DialPeerConditionFalse(_));
                if let Some(peer) = failure.peer_id.filter(|_| !other) {
                    self.hub.with_desk(|desk| desk.client.dial_failed(peer, Instant::now()));
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, Infallible>> {
        self.poll_timer(cx);
        match self.hub.next_dial(cx.waker()) {
            Some(peer) => {
                let opts =
                    DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
                Poll::Ready(ToSwarm::Dial { opts })
            }
            None => Poll::Pending,
        }
    }
}
