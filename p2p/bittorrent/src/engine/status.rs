//! What can be seen of torrents from outside.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use btfs_storage::Cid;

use super::torrent::{Phase, Torrent, TrackerStatus};
use crate::bitfield::Bitfield;
use crate::infohash::InfoHash;
use crate::magnet::Magnet;

/// A torrent's state at a moment.
#[derive(Debug, Clone)]
pub struct TorrentStatus {
    /// Its infohash.
    pub id: InfoHash,
    /// The v2 infohash of a hybrid; `None` until the metadata is known.
    pub v2: Option<[u8; 32]>,
    /// Its name, or the infohash while that is unknown.
    pub name: String,
    /// Where it stands.
    pub phase: Phase,
    /// Root of the content, once complete.
    pub root: Option<Cid>,
    /// Bytes of all files, pads included; `None` until the metadata is known.
    pub size: Option<u64>,
    /// Number of pieces; `None` until the metadata is known.
    pub pieces: Option<u32>,
    /// Durable pieces.
    pub pieces_stored: u32,
    /// Payload bytes received since the engine started.
    pub downloaded: u64,
    /// Payload bytes sent since the engine started.
    pub uploaded: u64,
    /// Received bytes that were of no use: duplicates, late or wrong ones.
    pub wasted: u64,
    /// Bytes a second.
    pub down_rate: u64,
    /// Bytes a second.
    pub up_rate: u64,
    /// Connected peers.
    pub peers: usize,
    /// Connected peers that have everything.
    pub seeds: usize,
    /// Addresses known.
    pub known_peers: usize,
    /// Trackers and their last words.
    pub trackers: Vec<TrackerStatus>,
}

impl TorrentStatus {
    /// The magnet link.
    pub fn magnet(&self) -> Magnet {
        let trackers = self.trackers.iter().map(|t| t.url.clone()).collect();
        Magnet { trackers, btmh: self.v2, ..Magnet::v1(self.id, Some(self.name.clone())) }
    }
}

/// A connected peer's state at a moment.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its address.
    pub addr: SocketAddr,
    /// We dialled it.
    pub dialled: bool,
    /// The client's name, or its peer id in text.
    pub client: String,
    /// Pieces it has; `None` until the metadata is known.
    pub pieces: Option<u32>,
    /// Payload bytes received from it.
    pub downloaded: u64,
    /// Payload bytes sent to it.
    pub uploaded: u64,
    /// It lets us download.
    pub unchoked_us: bool,
    /// We let it download.
    pub unchoked: bool,
    /// Requests it has not answered.
    pub requests: usize,
}

/// The state of `torrent`.
pub fn of(torrent: &Torrent) -> TorrentStatus {
    let phase = torrent.phase.borrow().clone();
    let content = torrent.content();
    let swarm = torrent.swarm.lock();
    let stored = match (&swarm.picker, &swarm.have) {
        (Some(picker), _) => picker.stored(),
        (None, Some(have)) => have.count(),
        (None, None) => 0,
    };
    TorrentStatus {
        id: torrent.hash,
        v2: content.and_then(|c| c.info.hash_v2()),
        name: torrent.name.lock().clone(),
        root: if let Phase::Seeding(root) = &phase { Some(*root) } else { None },
        phase,
        size: content.map(|c| c.info.total),
        pieces: content.map(|c| c.info.piece_count()),
        pieces_stored: stored,
        downloaded: torrent.downloaded.load(Ordering::Relaxed),
        uploaded: torrent.uploaded.load(Ordering::Relaxed),
        wasted: torrent.wasted.load(Ordering::Relaxed),
        down_rate: swarm.rates.down,
        up_rate: swarm.rates.up,
        peers: swarm.peers.len(),
        seeds: swarm.peers.values().filter(|p| p.field().is_some_and(Bitfield::is_full)).count(),
        known_peers: swarm.candidates.len(),
        trackers: torrent.trackers.lock().clone(),
    }
}

/// The peers of `torrent`.
pub fn peers(torrent: &Torrent) -> Vec<PeerStatus> {
    let swarm = torrent.swarm.lock();
    let mut peers: Vec<PeerStatus> = swarm
        .peers
        .values()
        .map(|p| PeerStatus {
            addr: p.addr,
            dialled: p.dialled,
            client: p.client.clone().unwrap_or_else(|| String::from_utf8_lossy(&p.peer_id[..8]).into_owned()),
            pieces: p.field().map(Bitfield::count),
            downloaded: p.downloaded,
            uploaded: p.link.uploaded.load(Ordering::Relaxed),
            unchoked_us: !p.peer_choking,
            unchoked: !p.am_choking,
            requests: p.owed.len(),
        })
        .collect();
    peers.sort_by_key(|p| p.addr);
    peers
}
