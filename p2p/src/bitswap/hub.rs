//! What the handles, the behaviour and the peers' tasks share.
//!
//! Locks are held for a few map operations. The map of links is taken before a link's connections or the traffic
//! ledgers; every other lock is taken alone. The client's events are acted upon after its lock is free again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use cid::Cid;
use futures::task::AtomicWaker;
use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};

use super::handle::FetchError;
use super::handler::OpenReply;
use super::ledger::PeerWants;
use super::limits::{
    FRAME_BUDGET_KIB, KEEP_IDLE, MAX_CONNECTIONS_PER_PEER, MAX_SESSIONS, OPEN_QUEUE, RESPONSE_BUDGET_KIB,
};
use super::peer;
use super::session::{Client, Event, SessionId, Ticket, Verdict};
use super::source::BlockReader;
use super::stats::{Stats, Traffic, add};
use super::wire::Key;
use crate::ServePolicy;

type Waiter = oneshot::Sender<Result<Bytes, FetchError>>;

/// The client and those who wait for it.
#[derive(Default)]
pub(super) struct Desk {
    pub client: Client,
    pub waiters: HashMap<Ticket, Waiter>,
    pub starved: HashMap<SessionId, Arc<Notify>>,
    pub closed: bool,
}

/// Everything one node's Bitswap shares.
pub(super) struct Hub {
    desk: Mutex<Desk>,
    links: Mutex<HashMap<PeerId, Arc<Link>>>,
    pub reader: Arc<dyn BlockReader>,
    pub policy: Arc<dyn ServePolicy>,
    pub stats: Stats,
    /// Response bytes held for all peers, in KiB.
    pub budget: Arc<Semaphore>,
    dials: Mutex<VecDeque<PeerId>>,
    waiting: AtomicBool,
    swarm: AtomicWaker,
}

/// One peer, while it is connected.
pub(super) struct Link {
    pub peer: PeerId,
    /// There is something to write, or the link was closed.
    pub wake: Notify,
    /// What it wants from us.
    pub wants: Mutex<PeerWants>,
    /// Bytes it may have half-sent, in KiB.
    pub frames: Semaphore,
    /// Its open inbound streams.
    pub inbound: AtomicUsize,
    pub traffic: Arc<Traffic>,
    closed: AtomicBool,
    connections: Mutex<Vec<(ConnectionId, Option<mpsc::Sender<OpenReply>>)>>,
    last_use: Mutex<Instant>,
}

impl Link {
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Ways to open a stream, newest connection first.
    pub fn openers(&self) -> Vec<mpsc::Sender<OpenReply>> {
        self.connections.lock().iter().rev().filter_map(|(_, opener)| opener.clone()).collect()
    }

    /// Notes that a message passed.
    pub fn touch(&self) {
        *self.last_use.lock() = Instant::now();
    }
}

impl Hub {
    pub fn new(reader: Arc<dyn BlockReader>, policy: Arc<dyn ServePolicy>) -> Arc<Hub> {
        Arc::new(Hub {
            desk: Mutex::default(),
            links: Mutex::default(),
            reader,
            policy,
            stats: Stats::default(),
            budget: Arc::new(Semaphore::new(RESPONSE_BUDGET_KIB as usize)),
            dials: Mutex::default(),
            waiting: AtomicBool::new(false),
            swarm: AtomicWaker::new(),
        })
    }

    /// Works on the client, then does what it asks for.
    pub fn with_desk<T>(&self, work: impl FnOnce(&mut Desk) -> T) -> T {
        let mut refused = Vec::new();
        let mut starved = Vec::new();
        let (result, events, waiting) = {
            let mut desk = self.desk.lock();
            let result = work(&mut desk);
            let events = desk.client.take_events();
            for event in &events {
                match event {
                    Event::Refused(ticket, cid, asked) => {
                        if let Some(waiter) = desk.waiters.remove(ticket) {
                            refused.push((waiter, FetchError::NotFound { cid: *cid, asked: asked.clone() }));
                        }
                    }
                    Event::Starved(session) => starved.extend(desk.starved.get(session).cloned()),
                    Event::Wake(_) | Event::Dial(_) => {}
                }
            }
            (result, events, desk.client.is_waiting())
        };
        for event in events {
            match event {
                Event::Wake(peer) => self.wake(&peer),
                Event::Dial(peer) => self.dial(peer),
                Event::Refused(..) | Event::Starved(_) => {}
            }
        }
        for (waiter, error) in refused {
            // A waiter that is gone does not mind.
            let _ = waiter.send(Err(error));
        }
        starved.iter().for_each(|notify| notify.notify_waiters());
        if self.waiting.swap(waiting, Ordering::AcqRel) != waiting {
            self.swarm.wake();
        }
        result
    }

    fn wake(&self, peer: &PeerId) {
        if let Some(link) = self.link(peer) {
            link.wake.notify_one();
        }
    }

    fn dial(&self, peer: PeerId) {
        let mut dials = self.dials.lock();
        if dials.len() < MAX_SESSIONS && !dials.contains(&peer) {
            dials.push_back(peer);
            self.swarm.wake();
        }
    }

    /// The next peer to dial; registers the swarm's task for the next one.
    pub fn next_dial(&self, waker: &std::task::Waker) -> Option<PeerId> {
        self.swarm.register(waker);
        self.dials.lock().pop_front()
    }

    /// Whether timeouts have to be looked for.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    pub fn link(&self, peer: &PeerId) -> Option<Arc<Link>> {
        self.links.lock().get(peer).cloned()
    }

    pub fn links(&self) -> Vec<Arc<Link>> {
        self.links.lock().values().cloned().collect()
    }

    /// A connection is about to be established: its link, and where requests for streams arrive.
    pub fn connect(
        self: &Arc<Self>,
        peer: PeerId,
        id: ConnectionId,
    ) -> (Arc<Link>, mpsc::Receiver<OpenReply>) {
        let (opener, requests) = mpsc::channel(OPEN_QUEUE);
        let mut links = self.links.lock();
        let link = links.entry(peer).or_insert_with(|| {
            let link = Arc::new(Link {
                peer,
                wake: Notify::new(),
                wants: Mutex::default(),
                frames: Semaphore::new(FRAME_BUDGET_KIB as usize),
                inbound: AtomicUsize::new(0),
                traffic: self.stats.traffic_of(peer),
                closed: AtomicBool::new(false),
                connections: Mutex::default(),
                last_use: Mutex::new(Instant::now()),
            });
            tokio::spawn(peer::run(self.clone(), link.clone()));
            link
        });
        let mut connections = link.connections.lock();
        let opener = (connections.len() < MAX_CONNECTIONS_PER_PEER).then_some(opener);
        connections.push((id, opener));
        drop(connections);
        (link.clone(), requests)
    }

    /// A connection is gone, or never came to be.
    pub fn disconnect(&self, peer: &PeerId, id: ConnectionId) {
        let mut links = self.links.lock();
        let Some(link) = links.get(peer) else { return };
        let mut connections = link.connections.lock();
        connections.retain(|(connection, _)| *connection != id);
        if connections.is_empty() {
            drop(connections);
            link.close();
            links.remove(peer);
        }
    }

    /// Whether a connection to this peer is worth keeping for Bitswap.
    pub fn is_busy(&self, link: &Link) -> bool {
        link.last_use.lock().elapsed() < KEEP_IDLE
            || link.wants.lock().is_busy()
            || self.desk.lock().client.is_busy_with(&link.peer)
    }

    /// A block that hashes to `key` came from `from`.
    pub fn deliver(&self, from: &Link, key: Key, data: Bytes) {
        for traffic in [&self.stats.total, &*from.traffic] {
            add(&traffic.blocks_received, 1);
            add(&traffic.bytes_received, data.len());
        }
        let waiters: Vec<Waiter> = self.with_desk(|desk| {
            let verdict = desk.client.on_block(from.peer, key, Instant::now());
            // Counted before anyone can learn of it.
            match verdict {
                Verdict::Wanted(tickets) => tickets.iter().filter_map(|t| desk.waiters.remove(t)).collect(),
                Verdict::Duplicate => {
                    add(&self.stats.duplicate_blocks, 1);
                    add(&self.stats.duplicate_bytes, data.len());
                    Vec::new()
                }
                Verdict::Unrequested => {
                    add(&self.stats.unrequested_blocks, 1);
                    Vec::new()
                }
            }
        });
        for waiter in waiters {
            // A waiter that is gone does not mind.
            let _ = waiter.send(Ok(data.clone()));
        }
    }

    /// Blocks came into the store: peers that wait for them get them.
    pub fn stored(&self, cids: &[Cid]) {
        let keys: HashSet<Key> = cids.iter().map(|cid| *cid.hash()).collect();
        for link in self.links() {
            if link.wants.lock().stored(&keys) {
                link.wake.notify_one();
            }
        }
    }

    /// The swarm is gone: every wait ends with [`FetchError::Closed`], every task ends.
    pub fn shut_down(&self) {
        let waiters = self.with_desk(|desk| {
            desk.closed = true;
            desk.starved.values().for_each(|notify| notify.notify_waiters());
            std::mem::take(&mut desk.waiters)
        });
        for (_, waiter) in waiters {
            let _ = waiter.send(Err(FetchError::Closed));
        }
        for (_, link) in self.links.lock().drain() {
            link.close();
        }
    }
}
