//! The parts of the swarm and how they are put together.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use btfs_storage::Store;
use futures::future::BoxFuture;
use libp2p::core::Endpoint;
use libp2p::core::transport::{Boxed, PortUse};
use libp2p::identity::Keypair;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, Transport, connection_limits, identify, kad, noise, ping, quic,
    tcp, tls, yamux,
};
use parking_lot::Mutex;

use super::StartError;
use crate::bitswap::{self, BlockReader, ReadJob};
use crate::config::Network;
use crate::lenient::Lenient;
use crate::routing::book::Book;
use crate::routing::records::Records;
use crate::rpc::streams;

/// Connections in all: at some tens of kilobytes each, a few dozen megabytes.
const MAX_CONNECTIONS: u32 = 768;
/// Of these, opened by others: leaves room for dials however many come in.
const MAX_INBOUND: u32 = 512;
/// Half-open connections each way.
const MAX_PENDING: u32 = 256;
/// Connections of one peer: both transports both ways, and room for a race.
const MAX_PER_PEER: u32 = 8;

/// Idle connections close after this, unless they are to be kept (see `rpc::streams::Keep`).
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Time for a connection to be set up, name lookup included.
const SETUP_TIME: Duration = Duration::from_secs(20);
/// Dials of one peer's addresses at once.
const DIAL_CONCURRENCY: u8 = 8;

/// Longest DHT query.
const QUERY_TIME: Duration = Duration::from_secs(60);
/// Requests of a query in flight. go-libp2p uses 10; with 3 a lookup among slow peers takes minutes.
const QUERY_PARALLELISM: usize = 10;
/// Longest Kademlia message taken: 20 peers with addresses are below 16 KiB.
const KAD_MESSAGE: usize = 16 << 10;

/// QUIC flow control: a window of 16 MiB a stream and 24 MiB a connection fills 1 Gbit/s at 130 ms.
const QUIC_STREAM_WINDOW: u32 = 16 << 20;
const QUIC_CONNECTION_WINDOW: u32 = 24 << 20;

/// What identify calls the protocol family; Kubo's word, so that its peers see a familiar one.
const PROTOCOL_FAMILY: &str = "ipfs/0.1.0";

/// All parts of the node that see the swarm.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    /// First, so that a connection above the limits costs the others nothing.
    pub(super) limits: connection_limits::Behaviour,
    pub(super) book: AddressSource,
    pub(super) identify: identify::Behaviour,
    pub(super) ping: ping::Behaviour,
    pub(super) kad: kad::Behaviour<Records>,
    pub(super) rpc: streams::Behaviour,
    pub(super) bitswap: bitswap::Behaviour,
}

/// Bitswap's reads, on the store's own bounded pool.
pub(super) struct StoreReader(pub(super) Store);

impl BlockReader for StoreReader {
    fn read(&self, job: ReadJob) -> BoxFuture<'static, ()> {
        let store = self.0.clone();
        Box::pin(async move { store.run(move |store| job(store)).await })
    }
}

/// Gives the address book's addresses to every dial of a peer by its id.
pub(super) struct AddressSource(pub(super) Arc<Mutex<Book>>);

impl NetworkBehaviour for AddressSource {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        Ok(peer.map(|peer| self.0.lock().addresses(&peer)).unwrap_or_default())
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// The Kademlia part: a server from the start, with our own record table and none of its periodic jobs.
pub(super) fn kademlia(own: PeerId, network: &Network, records: Records) -> kad::Behaviour<Records> {
    let mut config = kad::Config::new(network.kad_protocol());
    config
        .set_query_timeout(QUERY_TIME)
        .set_parallelism(std::num::NonZeroUsize::new(QUERY_PARALLELISM).expect("not zero"))
        .set_max_packet_size(KAD_MESSAGE)
        .set_record_filtering(kad::StoreInserts::FilterBoth)
        .set_provider_record_ttl(Some(crate::routing::records::RECORD_TTL))
        .set_provider_publication_interval(None)
        .set_publication_interval(None)
        .set_replication_interval(None);
    let mut kad = kad::Behaviour::with_config(own, records, config);
    kad.set_mode(Some(kad::Mode::Server));
    kad
}

/// The identify part. Addresses are kept in our own book.
pub(super) fn identify(keypair: &Keypair, agent: String) -> identify::Behaviour {
    let config = identify::Config::new(PROTOCOL_FAMILY.to_owned(), keypair.public())
        .with_agent_version(agent)
        .with_push_listen_addr_updates(true)
        .with_cache_size(0);
    identify::Behaviour::new(config)
}

/// The connection limits.
pub(super) fn limits() -> connection_limits::Behaviour {
    connection_limits::Behaviour::new(
        connection_limits::ConnectionLimits::default()
            .with_max_established(Some(MAX_CONNECTIONS))
            .with_max_established_incoming(Some(MAX_INBOUND))
            .with_max_established_per_peer(Some(MAX_PER_PEER))
            .with_max_pending_incoming(Some(MAX_PENDING))
            .with_max_pending_outgoing(Some(MAX_PENDING)),
    )
}

/// QUIC with windows for long fat paths, and inbound streams that bear with Kubo's haste.
fn quic_transport(keypair: &Keypair) -> Boxed<(PeerId, Lenient<quic::Connection>)> {
    let mut config = quic::Config::new(keypair);
    config.max_stream_data = QUIC_STREAM_WINDOW;
    config.max_connection_data = QUIC_CONNECTION_WINDOW;
    quic::tokio::Transport::new(config).map(|(peer, connection), _| (peer, Lenient(connection))).boxed()
}

/// TCP (TLS, else Noise; yamux) and QUIC, with names resolved as the system says. A machine without a usable resolver
/// configuration (an isolated container) gets a node that dials by number only.
pub(super) fn swarm(keypair: Keypair, behaviour: Behaviour) -> Result<Swarm<Behaviour>, StartError> {
    let failed = |error: &dyn std::fmt::Display| StartError::Transport(error.to_string());
    let transports = |keypair: Keypair| {
        let tcp = SwarmBuilder::with_existing_identity(keypair).with_tokio().with_tcp(
            tcp::Config::default().nodelay(true),
            (tls::Config::new, noise::Config::new),
            yamux::Config::default,
        );
        tcp.map(|builder| match builder.with_other_transport(quic_transport) {
            Ok(builder) => builder,
            Err(never) => match never {},
        })
    };
    let configure = |config: libp2p::swarm::Config| {
        config
            .with_idle_connection_timeout(IDLE_TIME)
            .with_dial_concurrency_factor(std::num::NonZeroU8::new(DIAL_CONCURRENCY).expect("not zero"))
    };
    match transports(keypair.clone()).map_err(|e| failed(&e))?.with_dns() {
        Ok(builder) => Ok(builder
            .with_behaviour(|_| behaviour)
            .map_err(|e| failed(&e))?
            .with_swarm_config(configure)
            .with_connection_timeout(SETUP_TIME)
            .build()),
        Err(error) => {
            tracing::warn!(%error, "no resolver configuration: addresses with names cannot be dialled");
            Ok(transports(keypair)
                .map_err(|e| failed(&e))?
                .with_behaviour(|_| behaviour)
                .map_err(|e| failed(&e))?
                .with_swarm_config(configure)
                .with_connection_timeout(SETUP_TIME)
                .build())
        }
    }
}
