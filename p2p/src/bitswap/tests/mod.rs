//! Bitswap between real swarms over TCP on loopback.

mod exchange;
mod hostile;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use libp2p::swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, SwarmBuilder, noise, tcp, yamux};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::testing::{MemBlocks, MemReader};
use super::{Bitswap, FetchError, Session};
use crate::ServePolicy;

/// Nothing here takes that long; a test that hangs fails instead.
const LIMIT: Duration = Duration::from_secs(60);

/// Serves all but some, and remembers who wanted what.
#[derive(Default)]
struct Policy {
    withheld: Mutex<HashSet<Cid>>,
    wanted: Mutex<Vec<(PeerId, Cid)>>,
}

impl ServePolicy for Policy {
    fn may_serve(&self, _: &PeerId, cid: &Cid) -> bool {
        !self.withheld.lock().contains(cid)
    }

    fn wanted(&self, peer: &PeerId, cid: &Cid) {
        self.wanted.lock().push((*peer, *cid));
    }
}

enum Order {
    Dial(Multiaddr),
    Hang(PeerId),
}

/// A swarm in a task of its own.
struct Swarming {
    peer: PeerId,
    addr: Multiaddr,
    orders: mpsc::Sender<Order>,
    connected: watch::Receiver<HashSet<PeerId>>,
}

impl Swarming {
    async fn start<B: NetworkBehaviour + Send>(behaviour: B) -> Swarming
    where
        B::ToSwarm: std::fmt::Debug,
    {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_| behaviour)
            .unwrap()
            .build();
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
        let peer = *swarm.local_peer_id();
        let (listening, addr) = oneshot::channel();
        let (orders, inbox) = mpsc::channel(16);
        let (seen, connected) = watch::channel(HashSet::new());
        tokio::spawn(drive(swarm, listening, inbox, seen));
        Swarming { peer, addr: addr.await.unwrap(), orders, connected }
    }

    async fn connect(&self, other: &Swarming) {
        self.orders.send(Order::Dial(other.addr.clone())).await.unwrap();
        self.until(|peers| peers.contains(&other.peer)).await;
        other.until(|peers| peers.contains(&self.peer)).await;
    }

    async fn hang_up(&self, other: &Swarming) {
        self.orders.send(Order::Hang(other.peer)).await.unwrap();
        self.until(|peers| !peers.contains(&other.peer)).await;
        other.until(|peers| !peers.contains(&self.peer)).await;
    }

    async fn until(&self, holds: impl Fn(&HashSet<PeerId>) -> bool) {
        self.connected.clone().wait_for(|peers| holds(peers)).await.unwrap();
    }
}

async fn drive<B: NetworkBehaviour>(
    mut swarm: Swarm<B>,
    listening: oneshot::Sender<Multiaddr>,
    mut orders: mpsc::Receiver<Order>,
    seen: watch::Sender<HashSet<PeerId>>,
) {
    let mut listening = Some(listening);
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Dial(addr)) => swarm.dial(addr).unwrap(),
                Some(Order::Hang(peer)) => swarm.disconnect_peer_id(peer).unwrap(),
                None => return,
            },
            event = swarm.select_next_some() => match event {
                SwarmEvent::NewListenAddr { address, .. } => {
                    if let Some(listening) = listening.take() {
                        listening.send(address).unwrap();
                    }
                }
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    seen.send_modify(|peers| {
                        peers.insert(peer_id);
                    });
                }
                SwarmEvent::ConnectionClosed { peer_id, num_established: 0, .. } => {
                    seen.send_modify(|peers| {
                        peers.remove(&peer_id);
                    });
                }
                _ => {}
            },
        }
    }
}

/// A node with Bitswap over blocks in memory.
struct Node {
    swarm: Swarming,
    bitswap: Bitswap,
    blocks: Arc<MemBlocks>,
    policy: Arc<Policy>,
}

impl Node {
    async fn start() -> Node {
        let (blocks, policy) = (Arc::new(MemBlocks::default()), Arc::new(Policy::default()));
        let reader = Arc::new(MemReader(blocks.clone()));
        let (bitswap, behaviour) = Bitswap::new(reader, policy.clone());
        Node { swarm: Swarming::start(behaviour).await, bitswap, blocks, policy }
    }

    fn peer(&self) -> PeerId {
        self.swarm.peer
    }

    /// Adds `count` blocks of `size` bytes that differ by `seed` and place.
    fn fill(&self, seed: u64, count: usize, size: usize) -> Vec<Cid> {
        (0..count).map(|n| self.blocks.add(block(seed, n, size))).collect()
    }
}

fn block(seed: u64, n: usize, size: usize) -> Vec<u8> {
    let mut data = vec![0; size];
    data[..8].copy_from_slice(&seed.to_le_bytes());
    data[8..16].copy_from_slice(&(n as u64).to_le_bytes());
    data
}

/// Fetches all with up to `at_once` gets; verifies each.
async fn fetch_all(session: &Session, cids: &[Cid], at_once: usize) -> Result<usize, FetchError> {
    let mut bytes = 0;
    let mut gets = FuturesUnordered::new();
    let mut left = cids.iter();
    loop {
        while gets.len() < at_once
            && let Some(cid) = left.next()
        {
            gets.push(async move { (cid, session.get(*cid).await) });
        }
        let Some((cid, data)) = gets.next().await else { return Ok(bytes) };
        let data: Bytes = data?;
        btfs_storage::hash::verify(cid, &data).unwrap();
        bytes += data.len();
    }
}

/// Runs a test body with a limit, on two workers as in the node.
fn run(body: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LIMIT, body).await.expect("the test hangs") });
}

/// Gives way until `holds`.
async fn eventually(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}
