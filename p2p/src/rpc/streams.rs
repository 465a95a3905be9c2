//! The part of rpc inside the swarm: it negotiates streams and hands them out, and never touches their bytes.
//!
//! Outbound: [`Open`] asks for one stream to one peer; without a connection the peer is dialled first. Inbound:
//! each negotiated stream goes through a bounded channel to the server; if that is full, the stream is reset and
//! counted, so that the caller sees an error at once.
//!
//! The handler also decides which idle connections stay: all of them while there are few, else those to protected
//! peers ([`Keep`]).

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use libp2p::core::transport::PortUse;
use libp2p::core::{Endpoint, UpgradeInfo, upgrade};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, DialError,
    DialFailure, FromSwarm, NetworkBehaviour, NotifyHandler, Stream, StreamProtocol, StreamUpgradeError,
    SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

/// Streams waiting for a connection, over all peers: callers beyond it are told at once.
const MAX_WAITING: usize = 1024;

/// Idle connections are kept while there are no more than this: a small network stays fully connected and needs no
/// redials, a large one lets idle peers go.
const KEEP_ALL_BELOW: usize = 128;

/// A request for one stream.
pub(crate) struct Open {
    pub(crate) protocol: StreamProtocol,
    pub(crate) reply: oneshot::Sender<Result<Stream, OpenError>>,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Open").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// Why a stream was not opened.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// No connection: what the dial said.
    Unreachable(String),
    /// The peer does not speak the protocol.
    Unsupported,
    /// The connection broke while negotiating.
    Io(io::Error),
}

/// An inbound stream on which a peer is about to send a request.
pub(crate) struct Inbound {
    pub(crate) peer: PeerId,
    pub(crate) protocol: StreamProtocol,
    pub(crate) stream: Stream,
}

/// Which idle connections to keep; shared between the host and all handlers.
#[derive(Debug, Default)]
pub(crate) struct Keep {
    connections: AtomicUsize,
    protected: RwLock<HashSet<PeerId>>,
}

impl Keep {
    /// Keeps connections to `peer` however many there are. The caller bounds the set (bootstrap peers).
    pub(crate) fn protect(&self, peer: PeerId) {
        self.protected.write().insert(peer);
    }

    fn wants(&self, peer: &PeerId) -> bool {
        self.connections.load(Ordering::Relaxed) <= KEEP_ALL_BELOW || self.protected.read().contains(peer)
    }
}

/// The behaviour; see the module text.
pub(crate) struct Behaviour {
    protocols: Arc<[StreamProtocol]>,
    inbound: mpsc::Sender<Inbound>,
    refused: Arc<AtomicU64>,
    keep: Arc<Keep>,
    connected: HashMap<PeerId, Vec<ConnectionId>>,
    waiting: HashMap<PeerId, Vec<Open>>,
    waiting_total: usize,
    events: VecDeque<ToSwarm<Infallible, Open>>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// Serves `protocols`, sending their streams to `inbound`; `refused` counts those it could not take.
    pub(crate) fn new(
        protocols: Arc<[StreamProtocol]>,
        inbound: mpsc::Sender<Inbound>,
        refused: Arc<AtomicU64>,
        keep: Arc<Keep>,
    ) -> Self {
        Behaviour {
            protocols,
            inbound,
            refused,
            keep,
            connected: HashMap::new(),
            waiting: HashMap::new(),
            waiting_total: 0,
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// Opens a stream to `peer`, dialling it if needed; the answer comes through `open.reply`.
    pub(crate) fn open(&mut self, peer: PeerId, open: Open) {
        if let Some(connection) = self.connected.get(&peer).and_then(|all| all.last()) {
            self.notify(peer, *connection, open);
        } else if self.waiting_total >= MAX_WAITING {
            let text = format!("{MAX_WAITING} requests already wait for connections");
            answer(open, Err(OpenError::Unreachable(text)));
        } else {
            let waiting = self.waiting.entry(peer).or_default();
            waiting.push(open);
            self.waiting_total += 1;
            let opts = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
            self.events.push_back(ToSwarm::Dial { opts });
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn notify(&mut self, peer_id: PeerId, connection: ConnectionId, open: Open) {
        let handler = NotifyHandler::One(connection);
        self.events.push_back(ToSwarm::NotifyHandler { peer_id, handler, event: open });
    }

    fn handler(&mut self, peer: PeerId) -> Handler {
        Handler {
            peer,
            protocols: self.protocols.clone(),
            inbound: self.inbound.clone(),
            refused: self.refused.clone(),
            keep: self.keep.clone(),
            opens: VecDeque::new(),
        }
    }

    fn take_waiting(&mut self, peer: &PeerId) -> Vec<Open> {
        let waiting = self.waiting.remove(peer).unwrap_or_default();
        self.waiting_total -= waiting.len();
        waiting
    }
}

/// A caller that has given up in the meantime is no error.
fn answer(open: Open, result: Result<Stream, OpenError>) {
    if open.reply.send(result).is_err() {
        tracing::trace!(protocol = %open.protocol, "the caller of a stream is gone");
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.keep.connections.fetch_add(1, Ordering::Relaxed);
                let peer = established.peer_id;
                self.connected.entry(peer).or_default().push(established.connection_id);
                for open in self.take_waiting(&peer) {
                    self.notify(peer, established.connection_id, open);
                }
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                self.keep.connections.fetch_sub(1, Ordering::Relaxed);
                if let Some(connections) = self.connected.get_mut(&peer_id) {
                    connections.retain(|id| *id != connection_id);
                    if connections.is_empty() {
                        self.connected.remove(&peer_id);
                    }
                }
            }
            // "Condition false" means that another dial is under way, which will report.
            FromSwarm::DialFailure(DialFailure { error: DialError::DialPeerConditionFalse(_), .. }) => {}
            FromSwarm::DialFailure(DialFailure { peer_id: Some(peer), error, .. }) => {
                for open in self.take_waiting(&peer) {
                    answer(open, Err(OpenError::Unreachable(crate::host::dial_text(error))));
                }
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// One connection's side of the behaviour.
pub(crate) struct Handler {
    peer: PeerId,
    protocols: Arc<[StreamProtocol]>,
    inbound: mpsc::Sender<Inbound>,
    refused: Arc<AtomicU64>,
    keep: Arc<Keep>,
    opens: VecDeque<Open>,
}

/// Any of the given protocols, and the negotiated stream as it is.
pub(crate) struct Upgrade(Arc<[StreamProtocol]>);

impl UpgradeInfo for Upgrade {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        Vec::from(&*self.0).into_iter()
    }
}

impl upgrade::InboundUpgrade<Stream> for Upgrade {
    type Output = (Stream, StreamProtocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((stream, protocol)))
    }
}

impl upgrade::OutboundUpgrade<Stream> for Upgrade {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(stream))
    }
}

impl Handler {
    fn hand_over(&self, stream: Stream, protocol: StreamProtocol) {
        if self.inbound.try_send(Inbound { peer: self.peer, protocol, stream }).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(peer = %self.peer, "an rpc stream was reset: the queue is full or closed");
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Open;
    type ToBehaviour = Infallible;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Open;

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        SubstreamProtocol::new(Upgrade(self.protocols.clone()), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep.wants(&self.peer)
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Upgrade, Open, Infallible>> {
        // The swarm polls again after every event it hands in, so no waker is kept.
        match self.opens.pop_front() {
            Some(open) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Upgrade([open.protocol.clone()].into()), open),
            }),
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, open: Open) {
        if !open.reply.is_closed() {
            self.opens.push_back(open);
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<Upgrade, Upgrade, (), Open>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol),
                ..
            }) => {
                self.hand_over(stream, protocol);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info }) => {
                answer(info, Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let error = match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Timeout => OpenError::Io(io::ErrorKind::TimedOut.into()),
                    StreamUpgradeError::Io(e) => OpenError::Io(e),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                answer(info, Err(error));
            }
            _ => {}
        }
    }
}
