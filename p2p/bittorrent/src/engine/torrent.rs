//! One torrent while the engine runs: its phase, its content once known, and its swarm behind one lock.
//!
//! Phases: `Metadata -> Downloading -> Seeding`, or straight into a later one by what is on disk; `Failed` when the store
//! refuses, `Removed` at the end. The phase is a watch channel, so everybody who waits for it sees the same thing.
//!
//! Lock order: the swarm, then a link's outbox. Nothing awaits while holding either.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use btfs_storage::Cid;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::candidates::Candidates;
use super::disk::DiskJob;
use super::link::Link;
use super::metadata::MetadataFetch;
use crate::bitfield::Bitfield;
use crate::bridge::Content;
use crate::choker::{Choker, PeerView};
use crate::depth::Depth;
use crate::infohash::InfoHash;
use crate::picker::{ConnId, Picker};
use crate::wire::{BlockRequest, Message, WireError};

/// `have` messages remembered of a peer while the metadata, and with it the number of pieces, is unknown.
const MAX_EARLY_HAVES: usize = 10_000;
/// Hash failures of pieces that a peer sent alone, or had a part in, before it is banned.
const MAX_STRIKES: u32 = 2;

/// Where a torrent stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Known by infohash alone; asking peers for the info dictionary.
    Metadata,
    /// Getting pieces.
    Downloading,
    /// Complete: the root of its content.
    Seeding(Cid),
    /// Stopped by an error that needs someone's attention; the text says what to do.
    Failed(String),
    /// Taken out of the engine.
    Removed,
}

/// A tracker's last words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackerStatus {
    /// Its URL.
    pub url: String,
    /// What the last announce came to, for people; `None` before the first.
    pub last: Option<Result<usize, String>>,
}

/// A torrent in the engine.
pub struct Torrent {
    pub(super) hash: InfoHash,
    pub(super) cancel: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) name: Mutex<String>,
    content: OnceLock<Arc<Content>>,
    pub(super) disk: OnceLock<mpsc::Sender<DiskJob>>,
    pub(super) swarm: Mutex<Swarm>,
    pub(super) uploaded: AtomicU64,
    pub(super) downloaded: AtomicU64,
    pub(super) wasted: AtomicU64,
    pub(super) trackers: Mutex<Vec<TrackerStatus>>,
    /// Wakes the announcer: the download finished, or trackers were added.
    pub(super) announce: tokio::sync::Notify,
}

/// The mutable middle of a torrent.
#[derive(Default)]
pub struct Swarm {
    pub(super) peers: HashMap<ConnId, Peer>,
    /// While downloading.
    pub(super) picker: Option<Picker>,
    /// Durable pieces; `None` until the metadata is here.
    pub(super) have: Option<Bitfield>,
    pub(super) choker: Option<Choker>,
    pub(super) candidates: Candidates,
    pub(super) dialling: usize,
    pub(super) rates: Rates,
    /// Second of the last choking round.
    pub(super) last_round: u64,
}

/// Bytes a second, smoothed over a few ticks.
#[derive(Debug, Default, Clone, Copy)]
pub struct Rates {
    pub(super) down: u64,
    pub(super) up: u64,
    pub(super) last_down: u64,
    pub(super) last_up: u64,
}

/// Which pieces a peer has, as far as we can tell yet.
#[derive(Debug)]
pub enum PeerPieces {
    /// Messages kept until the number of pieces is known.
    Early { bitfield: Option<Bytes>, all: bool, haves: Vec<u32> },
    /// Known.
    Known(Bitfield),
}

/// One connected peer.
pub struct Peer {
    pub(super) link: Arc<Link>,
    pub(super) addr: SocketAddr,
    pub(super) dialled: bool,
    pub(super) peer_id: [u8; 20],
    pub(super) client: Option<String>,
    pub(super) pieces: PeerPieces,
    pub(super) am_choking: bool,
    pub(super) am_interested: bool,
    pub(super) peer_choking: bool,
    pub(super) peer_interested: bool,
    /// Requests it has not answered.
    pub(super) owed: HashMap<BlockRequest, Instant>,
    pub(super) depth: Depth,
    pub(super) last_block: Instant,
    pub(super) downloaded: u64,
    pub(super) downloaded_at_round: u64,
    /// Blocks nobody asked for.
    pub(super) useless: u32,
    pub(super) strikes: u32,
    /// Its number for `ut_metadata`.
    pub(super) ut_metadata: Option<u8>,
    pub(super) metadata: Option<MetadataFetch>,
}

impl Peer {
    pub(super) fn view(&self) -> PeerView {
        PeerView {
            conn: self.link.conn,
            peer_id: self.peer_id,
            interested: self.peer_interested,
            snubbed: self.depth.snubbed(),
            downloaded: self.downloaded - self.downloaded_at_round,
            uploaded_total: self.link.uploaded.load(Ordering::Relaxed),
        }
    }

    pub(super) fn field(&self) -> Option<&Bitfield> {
        if let PeerPieces::Known(field) = &self.pieces { Some(field) } else { None }
    }
}

impl Torrent {
    pub(super) fn new(
        hash: InfoHash,
        name: String,
        trackers: Vec<String>,
        cancel: CancellationToken,
    ) -> Torrent {
        let trackers = trackers.into_iter().map(|url| TrackerStatus { url, last: None }).collect();
        Torrent {
            hash,
            cancel,
            tasks: TaskTracker::new(),
            phase: watch::Sender::new(Phase::Metadata),
            name: Mutex::new(name),
            content: OnceLock::new(),
            disk: OnceLock::new(),
            swarm: Mutex::new(Swarm::default()),
            uploaded: AtomicU64::new(0),
            downloaded: AtomicU64::new(0),
            wasted: AtomicU64::new(0),
            trackers: Mutex::new(trackers),
            announce: tokio::sync::Notify::new(),
        }
    }

    /// The content, once its metadata is known.
    pub(super) fn content(&self) -> Option<&Arc<Content>> {
        self.content.get()
    }

    /// The metadata is here: peers' early messages get their meaning. `picker`: what is still to be downloaded.
    pub(super) fn begin(&self, content: Arc<Content>, have: Bitfield, picker: Option<Picker>, slots: usize) {
        *self.name.lock() = content.info.name.clone();
        let count = content.layout.piece_count();
        let choker = Choker::new(slots, content.layout.piece_length());
        if self.content.set(content).is_err() {
            return; // two peers delivered the metadata at once: the first one counts
        }
        let mut swarm = self.swarm.lock();
        swarm.choker = Some(choker);
        swarm.have = Some(have);
        swarm.picker = picker;
        let conns: Vec<ConnId> = swarm.peers.keys().copied().collect();
        for conn in conns {
            if let Err(error) = swarm.settle_early(conn, count) {
                tracing::debug!(torrent = %self.hash, conn, %error, "peer dropped");
                swarm.drop_peer(conn);
            }
        }
    }

    /// Ends all connections and marks the torrent.
    pub(super) fn fail(&self, text: String) {
        tracing::warn!(torrent = %self.hash, error = %text, "torrent stopped");
        self.phase.send_replace(Phase::Failed(text));
        self.cancel.cancel();
    }
}

impl Swarm {
    /// Ends a connection; its task cleans up.
    pub(super) fn drop_peer(&self, conn: ConnId) {
        if let Some(peer) = self.peers.get(&conn) {
            peer.link.cancel.cancel();
        }
    }

    /// Turns what a peer said before the metadata was known into a bitfield.
    pub(super) fn settle_early(&mut self, conn: ConnId, count: u32) -> Result<(), WireError> {
        let Some(peer) = self.peers.get_mut(&conn) else { return Ok(()) };
        let PeerPieces::Early { bitfield, all, haves } = &mut peer.pieces else { return Ok(()) };
        let mut field = match bitfield.take() {
            _ if *all => Bitfield::full(count),
            Some(bytes) => {
                Bitfield::from_wire(&bytes, count).ok_or(WireError::Protocol("bitfield of a wrong length"))?
            }
            None => Bitfield::empty(count),
        };
        haves.drain(..).for_each(|n| {
            field.set(n);
        });
        if let Some(picker) = &mut self.picker {
            picker.peer_has(&field);
        }
        peer.pieces = PeerPieces::Known(field);
        self.update_interest(conn);
        Ok(())
    }

    /// A peer told all its pieces at once.
    pub(super) fn set_pieces(
        &mut self,
        conn: ConnId,
        told: Option<Bytes>,
        everything: bool,
    ) -> Result<(), WireError> {
        let count = self.have.as_ref().map(Bitfield::len);
        let Some(peer) = self.peers.get_mut(&conn) else { return Ok(()) };
        if let (PeerPieces::Known(old), Some(picker)) = (&peer.pieces, &mut self.picker) {
            picker.peer_left(conn, old); // a second bitfield replaces the first
        }
        peer.pieces = PeerPieces::Early { bitfield: told, all: everything, haves: Vec::new() };
        match count {
            Some(count) => self.settle_early(conn, count),
            None => Ok(()),
        }
    }

    /// A peer has one more piece.
    pub(super) fn add_piece(&mut self, conn: ConnId, piece: u32) -> Result<(), WireError> {
        let count = self.have.as_ref().map(Bitfield::len);
        if count.is_some_and(|n| piece >= n) {
            return Err(WireError::Protocol("have beyond the last piece"));
        }
        let Some(peer) = self.peers.get_mut(&conn) else { return Ok(()) };
        match &mut peer.pieces {
            PeerPieces::Early { haves, .. } => {
                if count.is_none() && haves.len() >= MAX_EARLY_HAVES {
                    return Err(WireError::Protocol("too many haves before the metadata"));
                }
                haves.push(piece);
                return count.map_or(Ok(()), |count| self.settle_early(conn, count));
            }
            PeerPieces::Known(field) => {
                if field.set(piece)
                    && let Some(picker) = &mut self.picker
                {
                    picker.peer_gained(piece);
                    if picker.wants(piece) && !peer.am_interested {
                        peer.am_interested = true;
                        peer.link.send(&Message::Interested);
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells a peer whether we want anything it has, if that changed.
    pub(super) fn update_interest(&mut self, conn: ConnId) {
        let Some(peer) = self.peers.get_mut(&conn) else { return };
        let wanted = match (&self.picker, peer.field()) {
            (Some(picker), Some(field)) => picker.interesting(field),
            _ => false,
        };
        if wanted != peer.am_interested {
            peer.am_interested = wanted;
            peer.link.send(if wanted { &Message::Interested } else { &Message::NotInterested });
        }
    }

    /// [`Swarm::update_interest`] for everyone.
    pub(super) fn update_interest_all(&mut self) {
        let conns: Vec<ConnId> = self.peers.keys().copied().collect();
        conns.into_iter().for_each(|conn| self.update_interest(conn));
    }

    /// Requests as many blocks from a peer as its window has room for.
    pub(super) fn refill(&mut self, conn: ConnId, random: u32) {
        let (Some(picker), Some(peer)) = (&mut self.picker, self.peers.get_mut(&conn)) else { return };
        let room = peer.depth.get().saturating_sub(peer.owed.len());
        let PeerPieces::Known(field) = &peer.pieces else { return };
        if peer.peer_choking || !peer.am_interested || room == 0 {
            return;
        }
        let picked = picker.pick(conn, field, room, random);
        if picked.is_empty() {
            return;
        }
        let now = Instant::now();
        if peer.owed.is_empty() {
            peer.last_block = now; // its time to answer starts here
        }
        peer.owed.extend(picked.iter().map(|r| (*r, now)));
        let messages: Vec<Message> = picked.into_iter().map(Message::Request).collect();
        peer.link.send_all(&messages);
    }

    /// [`Swarm::refill`] for everyone.
    pub(super) fn refill_all(&mut self, random: u32) {
        let conns: Vec<ConnId> = self.peers.keys().copied().collect();
        conns.into_iter().for_each(|conn| self.refill(conn, random));
    }

    /// What a peer owes is free for others.
    pub(super) fn release(&mut self, conn: ConnId) {
        if let Some(picker) = &mut self.picker {
            picker.release_all(conn);
        }
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.owed.clear();
        }
    }

    /// Pieces became durable: everyone hears of it.
    pub(super) fn announce_pieces(&mut self, pieces: &[u32]) {
        if let Some(picker) = &mut self.picker {
            pieces.iter().for_each(|p| picker.mark_stored(*p));
        }
        let Some(have) = &mut self.have else { return };
        let fresh: Vec<Message> =
            pieces.iter().filter(|p| have.set(**p)).map(|p| Message::Have(*p)).collect();
        self.peers.values().for_each(|peer| peer.link.send_all(&fresh));
    }

    /// A piece did not match its hash. Whoever sent all of it is struck; among several nobody can be named yet, and the
    /// picker takes the piece from one alone next time. Answers the addresses that are banned now.
    pub(super) fn blame(&mut self, piece: u32, senders: &[ConnId]) -> Vec<SocketAddr> {
        if let Some(picker) = &mut self.picker {
            picker.failed(piece);
        }
        let [sender] = senders else { return Vec::new() };
        let Some(peer) = self.peers.get_mut(sender) else { return Vec::new() };
        peer.strikes += 1;
        if peer.strikes < MAX_STRIKES {
            return Vec::new();
        }
        let addr = peer.addr;
        peer.link.cancel.cancel();
        self.candidates.ban(addr);
        vec![addr]
    }

    /// Decides anew who is served; called each round.
    pub(super) fn choke_round(&mut self, now: u64, ranking: &dyn crate::choker::Ranking, random: u32) {
        let seeding = self.picker.is_none();
        let views: Vec<PeerView> = self.peers.values().map(Peer::view).collect();
        let Some(choker) = &mut self.choker else { return };
        let unchoked = choker.round(now, &views, seeding, ranking, random);
        for (conn, peer) in &mut self.peers {
            peer.downloaded_at_round = peer.downloaded;
            let choke = !unchoked.contains(conn);
            if choke != peer.am_choking {
                peer.am_choking = choke;
                if choke { peer.link.choke() } else { peer.link.send(&Message::Unchoke) }
            }
        }
    }

    /// A peer's interest changed between rounds.
    pub(super) fn interest_changed(&mut self, conn: ConnId, interested: bool, now: u64) {
        let Some(peer) = self.peers.get_mut(&conn) else { return };
        peer.peer_interested = interested;
        let Some(choker) = &mut self.choker else { return };
        if !interested {
            choker.leave(conn);
            if !peer.am_choking {
                peer.am_choking = true;
                peer.link.choke();
            }
        } else if choker.admit(now, &peer.view()) && peer.am_choking {
            peer.am_choking = false;
            peer.link.send(&Message::Unchoke);
        }
    }

    /// Two complete peers have nothing to say to each other.
    pub(super) fn drop_seeds(&self) {
        let seeds = self.peers.values().filter(|p| p.field().is_some_and(|f| f.is_full() && !f.is_empty()));
        seeds.for_each(|p| p.link.cancel.cancel());
    }
}
