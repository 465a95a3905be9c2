//! The host: one libp2p node.
//!
//! [`Host`] is a handle that can be cloned. Behind it, one task (`driver`) owns the swarm and all tables; a handle
//! sends it commands over a bounded channel and waits for the answer. A second task answers rpc streams. Nothing in
//! the swarm's task blocks or waits for a handler, a disk or a caller.
//!
//! Order at the start: tables are read from the state database, listeners are opened (a port that is taken is an
//! error of the start), then bootstrap peers are dialled in the background: no peer needs to be reachable.
//! Order at the end: rpc stops, listeners close, connections close, changes are written.

mod behaviour;
mod command;
mod driver;
mod events;
mod queries;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use btfs_storage::db::DbError;
use cid::Cid;
use futures::Stream;
use libp2p::core::transport::TransportError;
use libp2p::multihash::Multihash;
use libp2p::swarm::{DialError, StreamProtocol};
use libp2p::{Multiaddr, PeerId};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::bitswap::Bitswap;
use crate::config::{HostConfig, MAX_BOOTSTRAP};
use crate::identity::{IdentityError, keypair_from_secret};
use crate::routing::bootstrap::peer_of;
use crate::routing::{persist, unix_now};
use crate::rpc::streams::{Open, OpenError};
use crate::rpc::{self, RpcError, RpcService};
use command::Command;

/// Commands waiting for the swarm's task; callers beyond it wait in line.
const COMMAND_QUEUE: usize = 256;

/// Longest answer taken from a protocol that this node does not serve itself.
const DEFAULT_MAX_RESPONSE: usize = 4 << 20;

/// First pause before a busy peer is asked again; it doubles.
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// Longest such pause.
const LONGEST_BUSY_PAUSE: Duration = Duration::from_secs(1);

/// Most providers that one search reports, whatever was asked for: each may cost a dial.
pub const MAX_PROVIDERS: usize = 100;

/// Why a host did not start. Nothing is left running.
#[derive(Debug, Error)]
pub enum StartError {
    /// The secret key is not valid.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The transports could not be set up.
    #[error("cannot set up the network transports: {0}")]
    Transport(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {reason}; choose another address or port in the configuration")]
    Listen {
        /// The address of the configuration.
        address: Multiaddr,
        /// What the system said.
        reason: String,
    },
    /// More bootstrap peers than [`MAX_BOOTSTRAP`].
    #[error("{0} bootstrap addresses are configured, at most {MAX_BOOTSTRAP} are used")]
    TooManyBootstrap(usize),
    /// The tables could not be read.
    #[error("cannot read the network tables: {0}")]
    State(#[from] DbError),
}

/// Why a peer is not connected.
#[derive(Debug, Clone, Error)]
pub enum ConnectError {
    /// The address or peer is this node.
    #[error("that is this node itself")]
    Oneself,
    /// Every address failed.
    #[error("cannot connect: {0}")]
    Dial(String),
    /// Nobody knows an address of the peer.
    #[error("no address of {0} is known, and the DHT knows none either")]
    NoAddress(PeerId),
    /// The host is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// Why a key is not provided.
#[derive(Debug, Error)]
pub enum ProvideError {
    /// The key could not be made durable.
    #[error("cannot keep the key: {0}")]
    State(#[from] DbError),
    /// The table is full.
    #[error("this node already provides {0} keys, its limit; withdraw some first")]
    Full(usize),
    /// The host is shutting down; the key is kept and announced after the next start.
    #[error("the node is shutting down; the key will be announced after the next start")]
    Closed,
}

/// What became of a provided key. It is kept over restarts and announced again every 22 hours in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provided {
    /// Peers near the key were told.
    Announced,
    /// No peer could be told yet; the first to come will be.
    Queued,
}

/// Which side opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer.
    Inbound,
    /// This node.
    Outbound,
}

/// A connected peer.
#[derive(Debug, Clone)]
pub struct PeerInfo {
    /// Its id.
    pub peer: PeerId,
    /// The address of the newest connection.
    pub addr: Multiaddr,
    /// What it says it runs, once it said so.
    pub agent: Option<String>,
    /// The last ping's round trip.
    pub rtt: Option<Duration>,
    /// Who opened the newest connection.
    pub direction: Direction,
    /// Open connections.
    pub connections: usize,
    /// Protocols it speaks, once it said so.
    pub protocols: Vec<String>,
}

/// How well the node is connected, and how full its tables are.
#[derive(Debug, Clone, Default)]
pub struct BootstrapState {
    /// Connected peers.
    pub peers: usize,
    /// Peers in the routing table; with none, the DHT cannot be used.
    pub routing_peers: usize,
    /// Provider records held for others.
    pub provider_records: usize,
    /// Own keys provided.
    pub provided: usize,
    /// Own keys that wait to be announced.
    pub announcements_waiting: usize,
    /// Inbound rpc streams that were reset because the queue was full.
    pub rpc_streams_refused: u64,
    /// Addresses that peers are told.
    pub announced: Vec<Multiaddr>,
}

/// The part of [`BootstrapState`] that can be waited for, by [`Host::connectivity`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Connectivity {
    /// Connected peers.
    pub peers: usize,
    /// Peers in the routing table.
    pub routing_peers: usize,
    /// Announcements of own keys that reached peers, since the start.
    pub announcements: u64,
}

/// A running node. Clones are handles to the same node; it stops at [`Host::shutdown`] or with the last handle.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    peer_id: PeerId,
    commands: mpsc::Sender<Command>,
    store: btfs_storage::Store,
    services: Vec<RpcService>,
    connectivity: watch::Receiver<Connectivity>,
    bitswap: Bitswap,
    /// When peers that could not be reached were last looked up by a call.
    searched: parking_lot::Mutex<HashMap<PeerId, tokio::time::Instant>>,
}

/// A call whose peer has left its known addresses looks it up for so long, so that it is known to be away well before
/// a usual deadline.
const SEARCH_IN_CALL: Duration = Duration::from_secs(2);
/// A failed lookup is not repeated by calls for so long.
const SEARCH_AGAIN: Duration = Duration::from_secs(60);
/// Peers remembered for that.
const MAX_SEARCHED: usize = 4096;

impl Host {
    /// Starts a node: listens on all configured addresses, then returns; peers are found in the background.
    pub async fn start(config: HostConfig) -> Result<Host, StartError> {
        if config.bootstrap.len() > MAX_BOOTSTRAP {
            return Err(StartError::TooManyBootstrap(config.bootstrap.len()));
        }
        let keypair = keypair_from_secret(&config.secret)?;
        let peer_id = keypair.public().to_peer_id();
        let loaded = config.store.run(|store| persist::load(store.state(), unix_now())).await?;
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let (store, services) = (config.store.clone(), config.rpc.clone());
        let reader = Arc::new(behaviour::StoreReader(config.store.clone()));
        let (bitswap, behaviour) = Bitswap::new(reader, config.serve.clone());
        let (told, connectivity) = watch::channel(Connectivity::default());
        let mut driver = driver::Driver::new(config, keypair, loaded, receiver, told, behaviour)?;
        driver.listen().await?;
        tokio::spawn(driver.run());
        let searched = parking_lot::Mutex::default();
        let inner = Inner { peer_id, commands, store, services, connectivity, bitswap, searched };
        Ok(Host { inner: Arc::new(inner) })
    }

    /// Stops the node: rpc, listeners, connections, in this order, then writes the tables. Waits until done.
    pub async fn shutdown(&self) {
        // "Closed" means that it already stopped.
        let _stopped = self.ask(Command::Shutdown).await;
    }

    /// This node's id.
    pub fn peer_id(&self) -> PeerId {
        self.inner.peer_id
    }

    /// The addresses listened on, without `/p2p/ID`. Empty when stopped.
    pub async fn listeners(&self) -> Vec<Multiaddr> {
        self.ask(Command::Listeners).await.unwrap_or_default()
    }

    /// The connected peers. Empty when stopped.
    pub async fn peers(&self) -> Vec<PeerInfo> {
        self.ask(Command::Peers).await.unwrap_or_default()
    }

    /// How well the node is connected.
    pub async fn bootstrap_state(&self) -> BootstrapState {
        self.ask(Command::State).await.unwrap_or_default()
    }

    /// The block exchange.
    pub fn bitswap(&self) -> &Bitswap {
        &self.inner.bitswap
    }

    /// Follows how well the node is connected: for those who wait for the first peer.
    pub fn connectivity(&self) -> watch::Receiver<Connectivity> {
        self.inner.connectivity.clone()
    }

    /// Connects to an address, with or without `/p2p/ID` at its end; a peer that is already connected is not dialled.
    pub async fn connect(&self, addr: Multiaddr) -> Result<PeerId, ConnectError> {
        self.ask(|reply| Command::Dial(addr, reply)).await.unwrap_or(Err(ConnectError::Closed))
    }

    /// Connects to a peer by its known addresses, else by those that the DHT knows.
    pub async fn connect_peer(&self, peer: PeerId) -> Result<(), ConnectError> {
        let dial = |addresses| self.ask(move |reply| Command::DialPeer(peer, addresses, reply));
        let first = dial(Vec::new()).await.unwrap_or(Err(ConnectError::Closed));
        match first {
            Err(ConnectError::Dial(_) | ConnectError::NoAddress(_)) => {}
            other => return other,
        }
        let addresses = self.find_peer(peer).await;
        if addresses.is_empty() {
            return first;
        }
        dial(addresses).await.unwrap_or(Err(ConnectError::Closed))
    }

    /// Closes all connections to a peer; tells whether there were any.
    pub async fn disconnect(&self, peer: PeerId) -> bool {
        self.ask(|reply| Command::Disconnect(peer, reply)).await.unwrap_or(false)
    }

    /// Makes known that this node has what `mh` addresses: now, and again every 22 hours until [`Host::unprovide`],
    /// over restarts. Resolves when peers were told or it is clear that there is nobody to tell yet.
    pub async fn provide(&self, mh: Multihash<64>) -> Result<Provided, ProvideError> {
        let key = mh.to_bytes();
        let stored = key.clone();
        let last = self.inner.store.run(move |store| persist::add_provided(store.state(), &stored)).await?;
        self.ask(|reply| Command::Provide(key, last, reply)).await.unwrap_or(Err(ProvideError::Closed))
    }

    /// No longer provides `mh`. Others forget it within two days.
    pub async fn unprovide(&self, mh: Multihash<64>) -> Result<(), ProvideError> {
        let key = mh.to_bytes();
        let stored = key.clone();
        self.inner.store.run(move |store| persist::remove_provided(store.state(), &stored)).await?;
        self.ask(|reply| Command::Unprovide(key, reply)).await.ok_or(ProvideError::Closed)
    }

    /// Searches peers that provide `cid`, at most `limit` (and at most [`MAX_PROVIDERS`]), this node excepted. Each is
    /// connected when it is reported; those that cannot be reached are left out. The stream ends with the search;
    /// dropping it ends the search.
    pub fn find_providers(&self, cid: Cid, limit: usize) -> impl Stream<Item = PeerId> + Send + use<> {
        let limit = limit.clamp(1, MAX_PROVIDERS);
        let (found, mut receiver) = mpsc::channel(limit);
        let commands = self.inner.commands.clone();
        let key = cid.hash().to_bytes();
        tokio::spawn(async move {
            // A stopped host drops `found`, which ends the stream.
            let _ = commands.send(Command::FindProviders { key, limit, found }).await;
        });
        futures::stream::poll_fn(move |cx| receiver.poll_recv(cx))
    }

    /// Addresses of a peer: those known here and those that the DHT finds. Empty if there are none.
    pub async fn find_peer(&self, peer: PeerId) -> Vec<Multiaddr> {
        self.ask(|reply| Command::FindPeer(peer, reply)).await.unwrap_or_default()
    }

    /// Asks `peer` over an rpc protocol, connecting to it if needed: by its known addresses, and if these fail, by those
    /// that the DHT knows. A busy peer, which has read nothing, is asked again. `timeout` covers everything.
    pub async fn call(
        &self,
        peer: PeerId,
        protocol: &'static str,
        request: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, RpcError> {
        let late = tokio::time::Instant::now() + timeout;
        let timed_out = || RpcError::Timeout { peer, protocol, after: timeout };
        let mut pause = BUSY_PAUSE;
        let soon = || tokio::time::Instant::now() + SEARCH_IN_CALL;
        let mut searched = false;
        loop {
            let attempt = self.call_once(peer, protocol, &request);
            match tokio::time::timeout_at(late, attempt).await {
                Err(_) => return Err(timed_out()),
                Ok(Err(RpcError::Unreachable { .. })) if !searched && self.may_search(peer) => {
                    searched = true;
                    let search = tokio::time::timeout_at(late.min(soon()), self.connect_peer(peer)).await;
                    let reason = match search {
                        Ok(Ok(())) => {
                            self.inner.searched.lock().remove(&peer);
                            continue;
                        }
                        Ok(Err(error)) => error.to_string(),
                        Err(_) => "not at its known addresses, and the DHT told no other in time".to_owned(),
                    };
                    return Err(RpcError::Unreachable { peer, reason });
                }
                Ok(Err(RpcError::Busy { .. })) if tokio::time::Instant::now() + pause < late => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_BUSY_PAUSE);
                }
                Ok(result) => {
                    if result.is_ok() {
                        self.inner.searched.lock().remove(&peer);
                    }
                    return result;
                }
            }
        }
    }

    /// Whether a peer that cannot be reached is looked up in the DHT now: not again soon after a search that failed.
    fn may_search(&self, peer: PeerId) -> bool {
        let now = tokio::time::Instant::now();
        let mut searched = self.inner.searched.lock();
        if searched.get(&peer).is_some_and(|last| now.duration_since(*last) < SEARCH_AGAIN) {
            return false;
        }
        if searched.len() >= MAX_SEARCHED {
            searched.retain(|_, last| now.duration_since(*last) < SEARCH_AGAIN);
        }
        if searched.len() < MAX_SEARCHED {
            searched.insert(peer, now);
        }
        true
    }

    async fn call_once(
        &self,
        peer: PeerId,
        protocol: &'static str,
        request: &[u8],
    ) -> Result<Vec<u8>, RpcError> {
        let service = self.inner.services.iter().find(|service| service.protocol == protocol);
        if let Some(cap) = service.map(|s| s.max_request)
            && request.len() > cap
        {
            return Err(RpcError::TooLarge { what: "request", bytes: request.len() as u64, cap });
        }
        let max_response = service.map_or(DEFAULT_MAX_RESPONSE, |s| s.max_response);
        let stream = self.open_stream(peer, protocol).await?;
        rpc::exchange(stream, peer, request, max_response).await
    }

    async fn open_stream(
        &self,
        peer: PeerId,
        protocol: &'static str,
    ) -> Result<libp2p::swarm::Stream, RpcError> {
        let (reply, opened) = oneshot::channel();
        let open = Open { protocol: StreamProtocol::new(protocol), reply };
        if self.inner.commands.send(Command::Open(peer, open)).await.is_err() {
            return Err(RpcError::Closed);
        }
        let unreachable = |reason| RpcError::Unreachable { peer, reason };
        match opened.await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(OpenError::Unreachable(reason))) => Err(unreachable(reason)),
            Ok(Err(OpenError::Unsupported)) => Err(RpcError::Unsupported { peer, protocol }),
            Ok(Err(OpenError::Io(source))) => Err(RpcError::Stream { peer, source }),
            Err(_) => Err(unreachable("the connection closed before a stream was open".to_owned())),
        }
    }

    /// Sends a command and waits for its answer; nothing if the host has stopped.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.inner.commands.send(command(reply)).await.ok()?;
        answer.await.ok()
    }
}

/// A failed dial in one line, with the reason of each address.
pub(crate) fn dial_text(error: &DialError) -> String {
    match error {
        DialError::Transport(failed) => {
            let reasons = failed.iter().map(|(address, error)| {
                let reason = match error {
                    TransportError::MultiaddrNotSupported(_) => "unsupported kind of address".to_owned(),
                    TransportError::Other(error) => innermost(error),
                };
                format!("{address}: {reason}")
            });
            reasons.collect::<Vec<_>>().join("; ")
        }
        DialError::NoAddresses => "no address of the peer is known".to_owned(),
        DialError::WrongPeerId { obtained, address } => format!("{address}: {obtained} answered instead"),
        DialError::LocalPeerId { .. } => "the address is this node's own".to_owned(),
        DialError::Denied { cause } => innermost(cause),
        other => other.to_string(),
    }
}

/// The last error of a chain: the layers above it only repeat that the dial failed.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// The id at the end of an address, and whether it is `own`.
fn expected_peer(address: &Multiaddr, own: &PeerId) -> Result<Option<PeerId>, ConnectError> {
    match peer_of(address) {
        Some(peer) if peer == *own => Err(ConnectError::Oneself),
        peer => Ok(peer),
    }
}
