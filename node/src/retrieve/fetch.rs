//! One session with the networks: who is asked, how long, and the walk over a DAG.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use btfs_p2p::Host;
use btfs_p2p::bitswap::Session;
use btfs_storage::read::ReadError;
use btfs_storage::{Bytes, Cid, StoreError, dagpb};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::RetrieveError;
use super::parity::Parity;
use super::sink::Sink;
use crate::api::call::Progress;
use crate::node::Node;

/// A running fetch.
pub struct Fetch {
    node: Arc<Node>,
    session: Arc<Session>,
    parity: Parity,
    timeout: Duration,
    last_block: Arc<Mutex<Instant>>,
    from_network: AtomicU64,
    _search: AbortOnDropHandle<()>,
}

/// Where a block came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It was here.
    Local,
    /// A peer gave it.
    Network,
    /// It was computed.
    Parity,
}

/// Adds providers of the root, and peers that connect, to the session for as long as it runs.
async fn search(host: Host, root: Cid, session: Arc<Session>) {
    let mut connectivity = host.connectivity();
    loop {
        let mut providers = std::pin::pin!(host.find_providers(root, Fetch::PROVIDERS));
        while let Some(peer) = providers.next().await {
            session.add_peer(peer);
        }
        for info in host.peers().await.into_iter().take(Fetch::FIRST_PEERS) {
            session.add_peer(info.peer);
        }
        tokio::select! {
            () = tokio::time::sleep(Fetch::SEARCH_EVERY) => {}
            // A node that has just started finds its first peers in a moment.
            Ok(()) = connectivity.changed() => {}
        }
    }
}

impl Fetch {
    /// Blocks of a DAG in flight: 32 MiB of the largest common leaves.
    const IN_FLIGHT: usize = 32;
    /// Connected peers asked before the DHT has answered.
    const FIRST_PEERS: usize = 32;
    /// Providers asked for a root.
    const PROVIDERS: usize = 64;
    /// The DHT is asked again so often while blocks are missing.
    const SEARCH_EVERY: Duration = Duration::from_secs(5);
    /// Parity is tried for a block that nobody gave for so long; shorter once it has helped.
    const PARITY_AFTER: Duration = Duration::from_secs(3);
    const PARITY_AGAIN: Duration = Duration::from_millis(300);

    /// Opens a session for `root` with the connected peers and looks for its providers.
    pub async fn start(node: Arc<Node>, root: Cid, timeout: Duration) -> Result<Self, RetrieveError> {
        let host = node.host().map_err(|_| RetrieveError::Offline { cid: root, root })?.clone();
        let connected =
            host.peers().await.into_iter().map(|info| info.peer).take(Self::FIRST_PEERS).collect();
        let session = Arc::new(host.bitswap().session(connected));
        let search = tokio::spawn(search(host, root, session.clone()));
        Ok(Self {
            parity: Parity::new(node.clone(), root, session.clone()),
            node,
            session,
            timeout,
            last_block: Arc::new(Mutex::new(Instant::now())),
            from_network: AtomicU64::new(0),
            _search: AbortOnDropHandle::new(search),
        })
    }

    /// One block: from the store, a peer, or parity.
    pub async fn block(&self, cid: Cid) -> Result<(Bytes, Origin), RetrieveError> {
        match super::stored(&self.node.store, cid).await {
            Ok(Some(block)) => return Ok((block, Origin::Local)),
            // One that is no longer in its file is as good as absent.
            Ok(None) | Err(StoreError::NotInFile { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            biased;
            found = self.peers_or_parity(cid) => {
                *self.last_block.lock() = Instant::now();
                let found = found?;
                if found.1 == Origin::Network {
                    self.from_network.fetch_add(1, Ordering::Relaxed);
                }
                Ok(found)
            }
            error = self.stalled(cid) => Err(error),
        }
    }

    /// Asks the peers; when all have said no, or are slow, tries parity while the want stays with them and with those
    /// that are found later.
    async fn peers_or_parity(&self, cid: Cid) -> Result<(Bytes, Origin), RetrieveError> {
        let after = if self.parity.has_helped() { Self::PARITY_AGAIN } else { Self::PARITY_AFTER };
        if let Ok(Ok(block)) = tokio::time::timeout(after, self.session.try_get(cid)).await {
            return Ok((block, Origin::Network));
        }
        tokio::select! {
            block = self.session.get(cid) => match block {
                Ok(block) => Ok((block, Origin::Network)),
                Err(error) => Err(RetrieveError::Exchange(error)),
            },
            block = self.parity.rebuild(cid) => Ok((block?, Origin::Parity)),
        }
    }

    /// Ends when no block at all came for the timeout.
    async fn stalled(&self, cid: Cid) -> RetrieveError {
        let begun = Instant::now();
        loop {
            let last = begun.max(*self.last_block.lock());
            let Some(left) = self.timeout.checked_sub(last.elapsed()).filter(|left| !left.is_zero()) else {
                let asked = self.session.asked().iter().map(ToString::to_string).collect();
                return RetrieveError::NotFound { cid, timeout_secs: self.timeout.as_secs(), asked };
            };
            tokio::time::sleep(left).await;
        }
    }

    /// Walks the DAG below `root`, depth first, many blocks at once, into `sink`.
    /// Answers how many blocks came over the network and how many from parity.
    pub async fn whole(
        &self,
        root: Cid,
        sink: &Sink,
        progress: &Progress,
    ) -> Result<(u64, u64), RetrieveError> {
        let mut waiting = vec![root];
        // By codec too: bytes that were met as a raw block may be met again as a node with children.
        let mut named = HashSet::from([(root.codec(), *root.hash())]);
        let mut in_flight = FuturesUnordered::new();
        let (mut bytes, mut from_parity) = (0u64, 0u64);
        let before = self.from_network.load(Ordering::Relaxed);
        loop {
            while in_flight.len() < Self::IN_FLIGHT
                && let Some(cid) = waiting.pop()
            {
                in_flight.push(async move { (cid, self.block(cid).await) });
            }
            let Some((cid, found)) = in_flight.next().await else { break };
            let (block, origin) = found?;
            bytes += block.len() as u64;
            from_parity += u64::from(origin == Origin::Parity);
            progress.step("fetching", bytes, None);
            let children = dagpb::links(&cid, &block)
                .map_err(|error| RetrieveError::Read(ReadError::Links { cid, source: error }))?;
            waiting.extend(
                children.into_iter().rev().filter(|child| named.insert((child.codec(), *child.hash()))),
            );
            if named.len() > super::MAX_DAG_BLOCKS {
                return Err(RetrieveError::TooManyBlocks(root));
            }
            match origin {
                Origin::Local => sink.keep(cid, block).await,
                Origin::Network | Origin::Parity => sink.put(cid, block).await,
            }
            if sink.is_broken() {
                break;
            }
        }
        let from_network = self.from_network.load(Ordering::Relaxed) - before;
        Ok((from_network, from_parity))
    }
}
