//! Counters of the exchange.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libp2p::PeerId;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::limits::MAX_REMEMBERED_PEERS;

/// What went to and came from one peer.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub blocks_received: AtomicU64,
    pub bytes_received: AtomicU64,
    pub blocks_sent: AtomicU64,
    pub bytes_sent: AtomicU64,
    pub messages_received: AtomicU64,
    pub messages_sent: AtomicU64,
    pub wants_received: AtomicU64,
}

/// The ledger of one peer: blocks and bytes are block payload, without framing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerTraffic {
    /// Blocks that the peer sent us.
    pub blocks_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Blocks that we sent it.
    pub blocks_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Messages from it.
    pub messages_received: u64,
    /// Messages to it.
    pub messages_sent: u64,
    /// Wants that it sent, without cancels.
    pub wants_received: u64,
}

impl Traffic {
    fn snapshot(&self) -> PeerTraffic {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerTraffic {
            blocks_received: read(&self.blocks_received),
            bytes_received: read(&self.bytes_received),
            blocks_sent: read(&self.blocks_sent),
            bytes_sent: read(&self.bytes_sent),
            messages_received: read(&self.messages_received),
            messages_sent: read(&self.messages_sent),
            wants_received: read(&self.wants_received),
        }
    }
}

/// Everything the exchange counts, since the node started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BitswapStats {
    /// Connected peers.
    pub peers: u64,
    /// Blocks wanted now.
    pub wants: u64,
    /// Sums over all peers.
    pub traffic: PeerTraffic,
    /// Blocks that came a second time, asked of more than one peer.
    pub duplicate_blocks: u64,
    /// Their bytes.
    pub duplicate_bytes: u64,
    /// Blocks nobody asked for; dropped.
    pub unrequested_blocks: u64,
    /// Wants and other entries over a cap; dropped.
    pub dropped_entries: u64,
    /// Frames that were malformed, over the cap or cut off.
    pub refused_frames: u64,
    /// Inbound streams over the cap; reset.
    pub refused_streams: u64,
    /// Blocks that could not be read from the store and were answered as absent.
    pub read_errors: u64,
}

/// The counters behind [`BitswapStats`].
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub total: Traffic,
    pub duplicate_blocks: AtomicU64,
    pub duplicate_bytes: AtomicU64,
    pub unrequested_blocks: AtomicU64,
    pub dropped_entries: AtomicU64,
    pub refused_frames: AtomicU64,
    pub refused_streams: AtomicU64,
    pub read_errors: AtomicU64,
    peers: Mutex<HashMap<PeerId, Arc<Traffic>>>,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

impl Stats {
    /// The ledger of `peer`, which outlives its connections. When too many are known, one of a peer that is gone makes
    /// room; it is of no account which.
    pub fn traffic_of(&self, peer: PeerId) -> Arc<Traffic> {
        let mut peers = self.peers.lock();
        if !peers.contains_key(&peer) && peers.len() >= MAX_REMEMBERED_PEERS {
            let gone = peers.iter().find(|(_, traffic)| Arc::strong_count(traffic) == 1).map(|(id, _)| *id);
            if let Some(gone) = gone {
                peers.remove(&gone);
            }
        }
        peers.entry(peer).or_default().clone()
    }

    /// The ledger of one peer, if it is known.
    pub fn peer(&self, peer: &PeerId) -> Option<PeerTraffic> {
        self.peers.lock().get(peer).map(|traffic| traffic.snapshot())
    }

    /// Everything, with the two gauges that are kept elsewhere.
    pub fn snapshot(&self, peers: usize, wants: usize) -> BitswapStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        BitswapStats {
            peers: peers as u64,
            wants: wants as u64,
            traffic: self.total.snapshot(),
            duplicate_blocks: read(&self.duplicate_blocks),
            duplicate_bytes: read(&self.duplicate_bytes),
            unrequested_blocks: read(&self.unrequested_blocks),
            dropped_entries: read(&self.dropped_entries),
            refused_frames: read(&self.refused_frames),
            refused_streams: read(&self.refused_streams),
            read_errors: read(&self.read_errors),
        }
    }
}
