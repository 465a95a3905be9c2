//! The task that owns the swarm: commands in, events in, timers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use btfs_storage::Store;
use futures::StreamExt;
use libp2p::core::transport::ListenerId;
use libp2p::identity::Keypair;
use libp2p::kad::QueryId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, StreamProtocol, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::behaviour::{self, AddressSource, Behaviour};
use super::command::Command;
use super::queries::{Lookup, Parked, Search};
use super::{
    BootstrapState, ConnectError, Connectivity, Direction, PeerInfo, ProvideError, Provided, StartError,
    dial_text, expected_peer,
};
use crate::bitswap;
use crate::config::{HostConfig, Network};
use crate::routing::announce::Announcements;
use crate::routing::book::Book;
use crate::routing::bootstrap::{Bootstrap, Dial};
use crate::routing::persist::{self, Changes, Loaded, RecordRow};
use crate::routing::records::Records;
use crate::routing::unix_now;
use crate::rpc::streams::{self, Keep};
use crate::rpc::{self, RpcService};

/// Inbound rpc streams between negotiation and admission.
const INBOUND_QUEUE: usize = 256;

/// How often due work is looked for: dials, announcements.
const TICK: Duration = Duration::from_millis(500);

/// How often changed tables are written, in ticks: what a crash can lose of other peers' records.
const WRITE_TICKS: u64 = 10;

/// How often expired records are dropped, in ticks (ten minutes).
const SWEEP_TICKS: u64 = 1200;

/// Time for the listeners to come up.
const LISTEN_TIME: Duration = Duration::from_secs(10);

/// Time for connections to close in order at the end.
const CLOSE_TIME: Duration = Duration::from_secs(3);

/// Announcements whose callers wait; later callers are told "queued".
const MAX_PROVIDE_WAITERS: usize = 4096;

/// One connection to a peer.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) addr: Multiaddr,
    pub(super) direction: Direction,
}

/// A connected peer; bounded by the connection limits.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) connections: Vec<Connection>,
    pub(super) agent: Option<String>,
    pub(super) rtt: Option<Duration>,
    pub(super) protocols: Vec<String>,
}

pub(super) type DialReply = oneshot::Sender<Result<PeerId, ConnectError>>;
pub(super) type PeerReply = oneshot::Sender<Result<(), ConnectError>>;

/// All state of the task.
pub(super) struct Driver {
    pub(super) swarm: Swarm<Behaviour>,
    commands: mpsc::Receiver<Command>,
    store: Store,
    pub(super) network: Network,
    listen: Vec<Multiaddr>,
    configured_announce: Vec<Multiaddr>,
    announced: HashSet<Multiaddr>,
    pub(super) listening: HashSet<ListenerId>,
    pub(super) book: Arc<Mutex<Book>>,
    pub(super) peers: HashMap<PeerId, Peer>,
    pub(super) bootstrap: Bootstrap,
    pub(super) routing_peers: usize,
    pub(super) announcements: Announcements,
    pub(super) announcing: HashMap<QueryId, Vec<u8>>,
    pub(super) provide_waiters: HashMap<Vec<u8>, Vec<oneshot::Sender<Result<Provided, ProvideError>>>>,
    pub(super) newly_announced: HashMap<Vec<u8>, u64>,
    pub(super) searches: HashMap<QueryId, Search>,
    pub(super) parked: Vec<Parked>,
    pub(super) lookups: HashMap<QueryId, Lookup>,
    pub(super) dials: HashMap<ConnectionId, DialReply>,
    pub(super) peer_dials: HashMap<PeerId, Vec<PeerReply>>,
    writing: Option<JoinHandle<()>>,
    rpc_refused: Arc<AtomicU64>,
    rpc_server: Option<JoinHandle<()>>,
    stop: CancellationToken,
    ticks: u64,
    pub(super) announced_total: u64,
    connectivity: watch::Sender<Connectivity>,
}

impl Driver {
    /// Builds the swarm and fills the tables; nothing listens or dials yet.
    pub(super) fn new(
        config: HostConfig,
        keypair: Keypair,
        loaded: Loaded,
        commands: mpsc::Receiver<Command>,
        connectivity: watch::Sender<Connectivity>,
        bitswap: bitswap::Behaviour,
    ) -> Result<Self, StartError> {
        let own = keypair.public().to_peer_id();
        let mut records = Records::new(own, unix_now());
        let mut announcements = Announcements::default();
        let mut book = Book::default();
        restore(loaded, &mut records, &mut announcements, &mut book);
        let book = Arc::new(Mutex::new(book));
        let bootstrap = Bootstrap::new(&config.bootstrap, Instant::now());
        let keep = Arc::new(Keep::default());
        bootstrap.peers().for_each(|peer| keep.protect(peer));
        let stop = CancellationToken::new();
        let (rpc, rpc_refused, rpc_server) = start_rpc(config.rpc, keep, stop.clone());
        let parts = Behaviour {
            limits: behaviour::limits(),
            book: AddressSource(book.clone()),
            identify: behaviour::identify(&keypair, config.agent),
            ping: Default::default(),
            kad: behaviour::kademlia(own, &config.network, records),
            rpc,
            bitswap,
        };
        let swarm = behaviour::swarm(keypair, parts)?;
        Ok(Driver {
            swarm,
            commands,
            store: config.store,
            network: config.network,
            listen: config.listen,
            configured_announce: config.announce,
            announced: HashSet::new(),
            listening: HashSet::new(),
            book,
            peers: HashMap::new(),
            bootstrap,
            routing_peers: 0,
            announcements,
            announcing: HashMap::new(),
            provide_waiters: HashMap::new(),
            newly_announced: HashMap::new(),
            searches: HashMap::new(),
            parked: Vec::new(),
            lookups: HashMap::new(),
            dials: HashMap::new(),
            peer_dials: HashMap::new(),
            writing: None,
            rpc_refused,
            rpc_server: Some(rpc_server),
            stop,
            ticks: 0,
            announced_total: 0,
            connectivity,
        })
    }

    /// Opens the listeners and waits until each has an address.
    pub(super) async fn listen(&mut self) -> Result<(), StartError> {
        let mut waiting: HashMap<ListenerId, Multiaddr> = HashMap::new();
        for address in self.listen.clone() {
            let reason = |error: &(dyn std::error::Error + 'static)| super::innermost(error);
            match self.swarm.listen_on(address.clone()) {
                Ok(id) => {
                    waiting.insert(id, address);
                }
                Err(error) => return Err(StartError::Listen { address, reason: reason(&error) }),
            }
        }
        let deadline = tokio::time::Instant::now() + LISTEN_TIME;
        while let Some(address) = waiting.values().next().cloned() {
            let Ok(event) = tokio::time::timeout_at(deadline, self.swarm.select_next_some()).await else {
                let reason = format!("no address came up within {} s", LISTEN_TIME.as_secs());
                return Err(StartError::Listen { address, reason });
            };
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => {
                    waiting.remove(listener_id);
                }
                SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                    if let Some(address) = waiting.remove(listener_id) {
                        return Err(StartError::Listen { address, reason: error.to_string() });
                    }
                }
                _ => {}
            }
            self.on_event(event);
        }
        for address in self.configured_announce.clone() {
            self.swarm.add_external_address(address);
        }
        Ok(())
    }

    /// Runs until a shutdown command or the last handle is gone.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let reply = loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(reply)) => break Some(reply),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                _ = tick.tick() => self.on_tick(),
            }
            self.tell_connectivity();
        };
        self.close().await;
        // The caller may open the store anew.
        drop(self);
        if let Some(reply) = reply {
            // A caller that does not wait any more is no error.
            let _ = reply.send(());
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Listeners(reply) => send(reply, self.swarm.listeners().cloned().collect()),
            Command::Peers(reply) => send(reply, self.peer_infos()),
            Command::State(reply) => {
                let state = self.state();
                send(reply, state);
            }
            Command::Dial(address, reply) => self.dial(address, reply),
            Command::DialPeer(peer, addresses, reply) => self.dial_peer(peer, addresses, reply),
            Command::Disconnect(peer, reply) => send(reply, self.swarm.disconnect_peer_id(peer).is_ok()),
            Command::Provide(key, last, reply) => self.provide(key, last, reply),
            Command::Unprovide(key, reply) => {
                self.announcements.remove(&key);
                self.swarm.behaviour_mut().kad.store_mut().set_provided(&key, false);
                send(reply, ());
            }
            Command::FindProviders { key, limit, found } => {
                self.find_providers(Parked::new(key, limit, found))
            }
            Command::FindPeer(peer, reply) => self.find_peer(peer, reply),
            Command::Open(peer, open) => self.swarm.behaviour_mut().rpc.open(peer, open),
            Command::Shutdown(_) => unreachable!("ends the loop"),
        }
    }

    fn dial(&mut self, address: Multiaddr, reply: DialReply) {
        let own = *self.swarm.local_peer_id();
        let opts = match expected_peer(&address, &own) {
            Err(error) => return send(reply, Err(error)),
            Ok(Some(peer)) if self.swarm.is_connected(&peer) => return send(reply, Ok(peer)),
            Ok(Some(peer)) => {
                DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(vec![address]).build()
            }
            Ok(None) => DialOpts::unknown_peer_id().address(address).build(),
        };
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.dials.insert(id, reply);
            }
            Err(error) => send(reply, Err(ConnectError::Dial(dial_text(&error)))),
        }
    }

    fn dial_peer(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, reply: PeerReply) {
        if peer == *self.swarm.local_peer_id() {
            return send(reply, Err(ConnectError::Oneself));
        }
        if self.swarm.is_connected(&peer) {
            return send(reply, Ok(()));
        }
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        match self.swarm.dial(opts) {
            // A dial that is already under way answers this caller too.
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {
                self.peer_dials.entry(peer).or_default().push(reply);
            }
            Err(DialError::NoAddresses) => send(reply, Err(ConnectError::NoAddress(peer))),
            Err(error) => send(reply, Err(ConnectError::Dial(dial_text(&error)))),
        }
    }

    fn provide(
        &mut self,
        key: Vec<u8>,
        last: Option<u64>,
        reply: oneshot::Sender<Result<Provided, ProvideError>>,
    ) {
        if self.announcements.add(key.clone(), last).is_err() {
            return send(reply, Err(ProvideError::Full(self.announcements.len())));
        }
        self.swarm.behaviour_mut().kad.store_mut().set_provided(&key, true);
        if last.is_some() {
            return send(reply, Ok(Provided::Announced));
        }
        if self.routing_peers == 0 || self.provide_waiters.len() >= MAX_PROVIDE_WAITERS {
            return send(reply, Ok(Provided::Queued));
        }
        self.provide_waiters.entry(key).or_default().push(reply);
        self.announce_due();
    }

    fn on_tick(&mut self) {
        self.ticks += 1;
        let now = unix_now();
        let store = self.swarm.behaviour_mut().kad.store_mut();
        store.tick(now);
        if self.ticks.is_multiple_of(SWEEP_TICKS) {
            store.sweep();
        }
        self.refresh_routing_peers();
        self.announce_due();
        self.end_idle_searches();
        self.start_parked();
        self.reconnect();
        if self.ticks.is_multiple_of(WRITE_TICKS) {
            self.write_behind();
        }
    }

    fn reconnect(&mut self) {
        let alone = self.peers.is_empty();
        let book = &self.book;
        let dials = self.bootstrap.due(
            Instant::now(),
            alone,
            |peer| self.peers.contains_key(peer),
            |limit| book.lock().recent(limit),
        );
        let own = *self.swarm.local_peer_id();
        for dial in dials {
            let opts = match dial {
                Dial::Address(_, Some(peer)) | Dial::Known(peer) if peer == own => continue,
                Dial::Address(address, Some(peer)) => DialOpts::peer_id(peer)
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .addresses(vec![address])
                    .build(),
                Dial::Address(address, None) => DialOpts::unknown_peer_id().address(address).build(),
                Dial::Known(peer) => {
                    DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build()
                }
            };
            if let Err(error) = self.swarm.dial(opts) {
                tracing::debug!(error = dial_text(&error), "a bootstrap dial was not started");
            }
        }
    }

    /// Tells peers the listen addresses that are worth telling, and no longer those that are not.
    pub(super) fn refresh_announced(&mut self) {
        let public = !matches!(self.network, Network::Private(_));
        let told = crate::routing::scope::worth_telling(self.swarm.listeners(), public);
        let told: HashSet<Multiaddr> = told.into_iter().collect();
        for gone in self.announced.difference(&told).cloned().collect::<Vec<_>>() {
            if !self.configured_announce.contains(&gone) {
                self.swarm.remove_external_address(&gone);
            }
        }
        for new in told.difference(&self.announced).cloned().collect::<Vec<_>>() {
            self.swarm.add_external_address(new);
        }
        self.announced = told;
    }

    fn tell_connectivity(&self) {
        let now = Connectivity {
            peers: self.peers.len(),
            routing_peers: self.routing_peers,
            announcements: self.announced_total,
        };
        self.connectivity.send_if_modified(|told| std::mem::replace(told, now) != now);
    }

    fn peer_infos(&self) -> Vec<PeerInfo> {
        let info = |(id, peer): (&PeerId, &Peer)| {
            let newest = peer.connections.last()?;
            Some(PeerInfo {
                peer: *id,
                addr: newest.addr.clone(),
                agent: peer.agent.clone(),
                rtt: peer.rtt,
                direction: newest.direction,
                connections: peer.connections.len(),
                protocols: peer.protocols.clone(),
            })
        };
        self.peers.iter().filter_map(info).collect()
    }

    fn state(&mut self) -> BootstrapState {
        BootstrapState {
            peers: self.peers.len(),
            routing_peers: self.routing_peers,
            provider_records: self.swarm.behaviour_mut().kad.store_mut().len(),
            provided: self.announcements.len(),
            announcements_waiting: self.announcements.waiting(unix_now()),
            rpc_streams_refused: self.rpc_refused.load(Ordering::Relaxed),
            announced: self.swarm.external_addresses().cloned().collect(),
        }
    }

    fn take_changes(&mut self) -> Changes {
        let records = self.swarm.behaviour_mut().kad.store_mut();
        let noted = records.take_changes();
        let row = |change: crate::routing::records::RecordChange| RecordRow {
            addresses: records.addresses(&change.provider).to_vec(),
            key: change.key,
            provider: change.provider,
            expires: change.expires,
        };
        Changes {
            records: noted.into_iter().map(row).collect(),
            peers: self.book.lock().take_changes(),
            announced: std::mem::take(&mut self.newly_announced),
        }
    }

    /// Starts writing what changed, unless the last write is still running: then it goes with the next.
    fn write_behind(&mut self) {
        if self.writing.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let changes = self.take_changes();
        if !changes.is_empty() {
            self.writing = Some(tokio::spawn(write(self.store.clone(), changes)));
        }
    }

    /// The end, in order. Callers that still wait are told by their dropped channels.
    async fn close(&mut self) {
        self.stop.cancel();
        if let Some(server) = self.rpc_server.take()
            && let Err(error) = server.await
        {
            tracing::error!(%error, "the rpc server ended badly");
        }
        for id in std::mem::take(&mut self.listening) {
            self.swarm.remove_listener(id);
        }
        for peer in self.swarm.connected_peers().copied().collect::<Vec<_>>() {
            // An error means that it is gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let deadline = tokio::time::Instant::now() + CLOSE_TIME;
        while self.swarm.connected_peers().next().is_some() {
            match tokio::time::timeout_at(deadline, self.swarm.select_next_some()).await {
                Ok(event) => self.on_event(event),
                Err(_) => break,
            }
        }
        if let Some(task) = self.writing.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "writing the network tables ended badly");
        }
        let changes = self.take_changes();
        write(self.store.clone(), changes).await;
    }
}

/// Writes `changes` on the store's pool. What is lost on an error is only what others will tell again.
async fn write(store: Store, changes: Changes) {
    if let Err(error) = store.run(move |store| persist::write(store.state(), &changes)).await {
        tracing::error!(%error, "provider records and addresses learned in the last seconds were not written; after a restart they will be missing until peers tell them again");
    }
}

/// Starts the rpc server; its part in the swarm, the count of streams it could not take, and its task.
fn start_rpc(
    services: Vec<RpcService>,
    keep: Arc<Keep>,
    stop: CancellationToken,
) -> (streams::Behaviour, Arc<AtomicU64>, JoinHandle<()>) {
    let (sender, inbound) = mpsc::channel(INBOUND_QUEUE);
    let protocols = services.iter().map(|s| StreamProtocol::new(s.protocol)).collect();
    let refused = Arc::new(AtomicU64::new(0));
    let behaviour = streams::Behaviour::new(protocols, sender, refused.clone(), keep);
    (behaviour, refused, tokio::spawn(rpc::serve(services, inbound, stop)))
}

/// Fills the tables with what was read from disk.
fn restore(loaded: Loaded, records: &mut Records, announcements: &mut Announcements, book: &mut Book) {
    for row in loaded.records {
        records.restore(row.key, row.provider, row.expires.unwrap_or(0), row.addresses);
    }
    // Reading back is no change.
    records.take_changes();
    for (key, last) in loaded.provided {
        if announcements.add(key.clone(), last).is_err() {
            tracing::warn!("more own keys on disk than this node provides; the rest is not announced");
            break;
        }
        records.set_provided(&key, true);
    }
    for (peer, entry) in loaded.peers {
        if let Some((addresses, seen)) = entry {
            book.restore(peer, &addresses, seen);
        }
    }
}

/// Answers a caller; one that does not wait any more is no error.
pub(super) fn send<T>(reply: oneshot::Sender<T>, value: T) {
    let _ = reply.send(value);
}
