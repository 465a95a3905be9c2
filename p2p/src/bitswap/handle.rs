//! The handles that other code holds.

use std::sync::Arc;
use std::time::Instant;

use btfs_storage::hash::{self, HashError};
use bytes::Bytes;
use cid::Cid;
use libp2p::PeerId;
use tokio::sync::{Notify, oneshot};

use super::behaviour::Behaviour;
use super::hub::Hub;
use super::limits::{MAX_SESSIONS, MAX_WANTS};
use super::session::{Patience, Refusal, SessionId, Ticket};
use super::source::BlockReader;
use super::stats::{BitswapStats, PeerTraffic};
use crate::ServePolicy;

/// Why a block was not fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Every peer of the session said that it has not the block, fell silent or cannot be reached.
    #[error("block {cid} was not found; {} peers were asked; add others that may have it", asked.len())]
    NotFound {
        /// The block.
        cid: Cid,
        /// Who was asked for it.
        asked: Vec<PeerId>,
    },
    /// The CID is none that blocks are verified by.
    #[error("{0}; nothing was asked for")]
    Unsupported(#[from] HashError),
    /// The bound on wants was reached.
    #[error("{MAX_WANTS} blocks are wanted already; ask again when some have come")]
    TooManyWants,
    /// The bound on sessions was reached when this one was opened.
    #[error("{MAX_SESSIONS} sessions are open already; ask again when some have ended")]
    TooManySessions,
    /// The host was shut down.
    #[error("the host was shut down; the block was not fetched")]
    Closed,
}

/// A node's Bitswap: opens sessions and tells what happens. Cheap to clone.
#[derive(Clone)]
pub struct Bitswap {
    hub: Arc<Hub>,
}

impl Bitswap {
    /// A new exchange that serves the blocks of `reader` as far as `policy` allows, and the behaviour to put into the
    /// swarm.
    pub fn new(reader: Arc<dyn BlockReader>, policy: Arc<dyn ServePolicy>) -> (Bitswap, Behaviour) {
        let hub = Hub::new(reader, policy);
        (Bitswap { hub: hub.clone() }, Behaviour::new(hub))
    }

    /// Opens a session that fetches from `peers`. Peers that are not connected are dialled when something is wanted.
    pub fn session(&self, peers: Vec<PeerId>) -> Session {
        let starved = Arc::new(Notify::new());
        let id = self.hub.with_desk(|desk| {
            let id = desk.client.open(&peers)?;
            desk.starved.insert(id, starved.clone());
            Some(id)
        });
        Session { inner: Arc::new(Inner { hub: self.hub.clone(), id, starved }) }
    }

    /// Tells peers that wait for any of these blocks that they are in the store now.
    pub fn notify_stored(&self, cids: &[Cid]) {
        self.hub.stored(cids);
    }

    /// Counters since the start.
    pub fn stats(&self) -> BitswapStats {
        let wants = self.hub.with_desk(|desk| desk.client.wants().count());
        self.hub.stats.snapshot(self.hub.links().len(), wants)
    }

    /// What went to and came from one peer, if anything did lately.
    pub fn peer_traffic(&self, peer: &PeerId) -> Option<PeerTraffic> {
        self.hub.stats.peer(peer)
    }

    /// Peers that are connected, whether or not they speak Bitswap.
    pub fn peers(&self) -> Vec<PeerId> {
        self.hub.links().iter().map(|link| link.peer).collect()
    }

    /// The blocks wanted now, by all sessions.
    pub fn wantlist(&self) -> Vec<Cid> {
        self.hub.with_desk(|desk| desk.client.wants().copied().collect())
    }

    /// The blocks that one peer wants from this node.
    pub fn wantlist_of(&self, peer: &PeerId) -> Vec<Cid> {
        self.hub.link(peer).map(|link| link.wants.lock().cids().copied().collect()).unwrap_or_default()
    }
}

struct Inner {
    hub: Arc<Hub>,
    id: Option<SessionId>,
    starved: Arc<Notify>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let Some(id) = self.id else { return };
        self.hub.with_desk(|desk| {
            desk.starved.remove(&id);
            desk.client.close(id, Instant::now());
        });
    }
}

/// Fetches blocks from a set of peers. Cheap to clone; ends with its last clone.
///
/// Many blocks may be asked for at once, and should be: what is in flight is spread over the peers by their speed.
/// Blocks are verified against their CIDs and not stored; that is the caller's to do.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

impl Session {
    /// Fetches one block, waiting for as long as it takes: the want stays with the peers, and with those that are added
    /// later, until one sends the block. Dropping the future withdraws the want. See [`starved`](Self::starved) for
    /// when to look for more peers.
    pub async fn get(&self, cid: Cid) -> Result<Bytes, FetchError> {
        self.fetch(cid, Patience::Forever).await
    }

    /// Fetches one block, or fails with [`FetchError::NotFound`] as soon as every peer of the session has said no, has
    /// been silent for too long or cannot be reached.
    pub async fn try_get(&self, cid: Cid) -> Result<Bytes, FetchError> {
        self.fetch(cid, Patience::UntilRefused).await
    }

    /// Adds a peer that may be asked from now on. `false` when the session has too many already.
    pub fn add_peer(&self, peer: PeerId) -> bool {
        let Some(id) = self.inner.id else { return false };
        self.inner.hub.with_desk(|desk| desk.client.add_peer(id, peer, Instant::now()))
    }

    /// The peers of the session.
    pub fn peers(&self) -> Vec<PeerId> {
        self.ask_client(|client, id| client.session_peers(id))
    }

    /// The peers that were asked for anything so far.
    pub fn asked(&self) -> Vec<PeerId> {
        self.ask_client(|client, id| client.asked(id))
    }

    /// Resolves when some wanted block has no peer left to ask: at once if that is so already. Time to find more
    /// providers and [`add_peer`](Self::add_peer) them.
    pub async fn starved(&self) {
        loop {
            let notified = self.inner.starved.notified();
            let starving = self
                .inner
                .hub
                .with_desk(|desk| desk.closed || self.inner.id.is_none_or(|id| desk.client.is_starving(id)));
            if starving {
                return;
            }
            notified.await;
        }
    }

    fn ask_client<T: Default>(&self, ask: impl FnOnce(&super::session::Client, SessionId) -> T) -> T {
        self.inner.id.map(|id| self.inner.hub.with_desk(|desk| ask(&desk.client, id))).unwrap_or_default()
    }

    async fn fetch(&self, cid: Cid, patience: Patience) -> Result<Bytes, FetchError> {
        if let Some(bytes) = hash::inline(&cid) {
            return Ok(Bytes::copy_from_slice(bytes));
        }
        hash::check(&cid)?;
        let id = self.inner.id.ok_or(FetchError::TooManySessions)?;
        let (reply, block) = oneshot::channel();
        let ticket = self.inner.hub.with_desk(|desk| {
            if desk.closed {
                return Err(FetchError::Closed);
            }
            let ticket = desk.client.want(id, cid, patience, Instant::now()).map_err(|r| match r {
                Refusal::TooManyWants => FetchError::TooManyWants,
                Refusal::NoSession => FetchError::Closed,
            })?;
            desk.waiters.insert(ticket, reply);
            Ok(ticket)
        })?;
        let mut wait = Wait { hub: &self.inner.hub, ticket: Some(ticket) };
        let result = block.await.unwrap_or(Err(FetchError::Closed));
        wait.ticket = None;
        result
    }
}

/// Withdraws a want when the one who waits goes away.
struct Wait<'a> {
    hub: &'a Hub,
    ticket: Option<Ticket>,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        self.hub.with_desk(|desk| {
            desk.waiters.remove(&ticket);
            desk.client.cancel(ticket, Instant::now());
        });
    }
}
