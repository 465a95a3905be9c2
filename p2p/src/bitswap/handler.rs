//! One connection's part: negotiates streams and hands them to the peer's task.
//!
//! No payload passes here. Inbound streams get a reader of their own at once; outbound streams are opened when the
//! peer's task asks, one at a time.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use libp2p::core::UpgradeInfo;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionHandler, ConnectionHandlerEvent, Stream, StreamProtocol, StreamUpgradeError, SubstreamProtocol,
};
use tokio::sync::{mpsc, oneshot};

use super::hub::{Hub, Link};
use super::limits::{MAX_INBOUND_STREAMS, OPEN_TIMEOUT};
use super::peer;
use super::stats::add;
use super::wire::Version;

/// The protocols, best first.
const PROTOCOLS: [(StreamProtocol, Version); 4] = [
    (StreamProtocol::new("/ipfs/bitswap/1.2.0"), Version::V1_2),
    (StreamProtocol::new("/ipfs/bitswap/1.1.0"), Version::V1_1),
    (StreamProtocol::new("/ipfs/bitswap/1.0.0"), Version::V1_0),
    (StreamProtocol::new("/ipfs/bitswap"), Version::V1_0),
];

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The peer does not speak Bitswap.
    #[error("the peer does not speak Bitswap")]
    Unsupported,
    /// The connection failed or was too slow.
    #[error("the stream could not be opened: {0}")]
    Failed(String),
}

/// Where an opened stream goes.
pub(super) type OpenReply = oneshot::Sender<Result<(Stream, Version), OpenError>>;

/// Negotiates any version of the protocol.
#[derive(Debug, Clone, Copy)]
pub struct Upgrade;

/// One of [`PROTOCOLS`].
#[derive(Debug, Clone)]
pub struct Offered(StreamProtocol, Version);

impl AsRef<str> for Offered {
    fn as_ref(&self) -> &str {
        self.0.as_ref()
    }
}

impl UpgradeInfo for Upgrade {
    type Info = Offered;
    type InfoIter = std::vec::IntoIter<Offered>;

    fn protocol_info(&self) -> Self::InfoIter {
        PROTOCOLS.into_iter().map(|(name, version)| Offered(name, version)).collect::<Vec<_>>().into_iter()
    }
}

impl InboundUpgrade<Stream> for Upgrade {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, _: Offered) -> Self::Future {
        ready(Ok(stream))
    }
}

impl OutboundUpgrade<Stream> for Upgrade {
    type Output = (Stream, Version);
    type Error = Infallible;
    type Future = Ready<Result<(Stream, Version), Infallible>>;

    fn upgrade_outbound(self, stream: Stream, offered: Offered) -> Self::Future {
        ready(Ok((stream, offered.1)))
    }
}

/// See the module.
pub struct Handler {
    hub: Arc<Hub>,
    link: Arc<Link>,
    requests: mpsc::Receiver<OpenReply>,
    opening: Option<OpenReply>,
}

impl Handler {
    pub(super) fn new(hub: Arc<Hub>, link: Arc<Link>, requests: mpsc::Receiver<OpenReply>) -> Self {
        Handler { hub, link, requests, opening: None }
    }

    fn accept(&self, mut stream: Stream) {
        stream.ignore_for_keep_alive();
        if self.link.inbound.fetch_add(1, Ordering::AcqRel) >= MAX_INBOUND_STREAMS {
            self.link.inbound.fetch_sub(1, Ordering::AcqRel);
            add(&self.hub.stats.refused_streams, 1);
            tracing::warn!(peer = %self.link.peer, "more than {MAX_INBOUND_STREAMS} Bitswap streams; one was reset");
            return;
        }
        tokio::spawn(peer::read(self.hub.clone(), self.link.clone(), stream));
    }

    fn opened(&mut self, result: Result<(Stream, Version), OpenError>) {
        let Some(reply) = self.opening.take() else { return };
        // The task gave up waiting: the stream is closed by being dropped, and it will ask again.
        if reply.send(result).is_err() {
            tracing::debug!(peer = %self.link.peer, "a stream was opened too late");
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        SubstreamProtocol::new(Upgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.hub.is_busy(&self.link)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Upgrade, (), Self::ToBehaviour>> {
        if self.opening.is_some() {
            return Poll::Pending;
        }
        match self.requests.poll_recv(cx) {
            Poll::Ready(Some(reply)) => {
                self.opening = Some(reply);
                let protocol = SubstreamProtocol::new(Upgrade, ()).with_timeout(OPEN_TIMEOUT);
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
            }
            // Without a sender nobody asks for streams on this connection any more.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Upgrade, Upgrade>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                self.accept(protocol);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) => {
                let (mut stream, version) = protocol;
                stream.ignore_for_keep_alive();
                self.opened(Ok((stream, version)));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                self.opened(Err(match error {
                    StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                    StreamUpgradeError::Timeout => OpenError::Failed("timed out".into()),
                    StreamUpgradeError::Io(error) => OpenError::Failed(error.to_string()),
                    StreamUpgradeError::Apply(never) => match never {},
                }));
            }
            _ => {}
        }
    }
}
