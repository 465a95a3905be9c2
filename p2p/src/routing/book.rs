//! The address book: where known peers can be reached, kept over restarts.
//!
//! Filled by what peers say of themselves (identify), by dials that worked and by the caller; asked by the swarm
//! whenever it dials a peer by its id. Bounded: the peers seen longest ago make room.

use std::collections::{BTreeSet, HashMap, HashSet};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use super::persist::PeerRow;

/// Peers remembered; about a kilobyte each.
pub(crate) const MAX_PEERS: usize = 4096;

/// Addresses remembered for each: both transports over a few interfaces.
pub(crate) const MAX_ADDRESSES: usize = 8;

/// Failed dials in a row after which an address is forgotten.
const MAX_FAILURES: u8 = 3;

/// A peer not seen for this long is forgotten at the next start, in seconds.
pub(crate) const FORGET_AFTER: u64 = 30 * 24 * 3600;

/// How often a peer that stays around is written to disk again, in seconds: its time of last sight need not be exact.
const SEEN_STEP: u64 = 3600;

#[derive(Debug)]
struct Entry {
    addresses: Vec<Known>,
    seen: u64,
}

#[derive(Debug)]
struct Known {
    address: Multiaddr,
    failures: u8,
}

/// The book. Times are Unix seconds.
#[derive(Debug, Default)]
pub(crate) struct Book {
    peers: HashMap<PeerId, Entry>,
    by_age: BTreeSet<(u64, PeerId)>,
    dirty: HashSet<PeerId>,
}

/// `address` without a trailing `/p2p/ID`: the id is the entry's key.
pub(crate) fn without_peer(address: &Multiaddr) -> Multiaddr {
    match address.iter().last() {
        Some(Protocol::P2p(_)) => {
            let parts = address.iter().count() - 1;
            address.iter().take(parts).collect()
        }
        _ => address.clone(),
    }
}

impl Book {
    /// Remembers `addresses` of `peer`, seen at `now`. Those that worked (`proven`) come first.
    pub(crate) fn add(&mut self, peer: PeerId, addresses: &[Multiaddr], proven: bool, now: u64) {
        if addresses.is_empty() {
            return;
        }
        self.touch(peer, now);
        let Some(entry) = self.peers.get_mut(&peer) else { return };
        let mut changed = false;
        for address in addresses.iter().map(without_peer) {
            let at = entry.addresses.iter().position(|known| known.address == address);
            match at {
                Some(at) if proven => {
                    changed |= at != 0;
                    let mut known = entry.addresses.remove(at);
                    known.failures = 0;
                    entry.addresses.insert(0, known);
                }
                Some(_) => {}
                None => {
                    let at = if proven { 0 } else { entry.addresses.len() };
                    entry.addresses.insert(at, Known { address, failures: 0 });
                    changed = true;
                }
            }
        }
        entry.addresses.truncate(MAX_ADDRESSES);
        if changed {
            self.dirty.insert(peer);
        }
    }

    /// A dial of `address` failed.
    pub(crate) fn failed(&mut self, peer: &PeerId, address: &Multiaddr) {
        let Some(entry) = self.peers.get_mut(peer) else { return };
        let address = without_peer(address);
        if let Some(at) = entry.addresses.iter().position(|known| known.address == address) {
            entry.addresses[at].failures += 1;
            if entry.addresses[at].failures >= MAX_FAILURES {
                entry.addresses.remove(at);
                self.dirty.insert(*peer);
                if entry.addresses.is_empty() {
                    self.remove(peer);
                }
            }
        }
    }

    /// Where `peer` can be reached, the best first.
    pub(crate) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let known = self.peers.get(peer).into_iter().flat_map(|entry| &entry.addresses);
        known.map(|known| known.address.clone()).collect()
    }

    /// The peers seen last, newest first.
    pub(crate) fn recent(&self, limit: usize) -> Vec<PeerId> {
        self.by_age.iter().rev().take(limit).map(|(_, peer)| *peer).collect()
    }

    /// Takes the peers whose entries changed, with what is known of them now: nothing, if they were forgotten.
    pub(crate) fn take_changes(&mut self) -> Vec<PeerRow> {
        let dirty = std::mem::take(&mut self.dirty);
        let entry = |peer: &PeerId| self.peers.get(peer).map(|entry| (self.addresses(peer), entry.seen));
        dirty.into_iter().map(|peer| (peer, entry(&peer))).collect()
    }

    /// Puts an entry back that was read from disk.
    pub(crate) fn restore(&mut self, peer: PeerId, addresses: &[Multiaddr], seen: u64) {
        self.add(peer, addresses, false, seen);
        self.dirty.remove(&peer);
    }

    fn touch(&mut self, peer: PeerId, now: u64) {
        match self.peers.get_mut(&peer) {
            Some(entry) => {
                if now >= entry.seen + SEEN_STEP {
                    self.dirty.insert(peer);
                    self.by_age.remove(&(entry.seen, peer));
                    entry.seen = now;
                    self.by_age.insert((now, peer));
                }
            }
            None => {
                if self.peers.len() >= MAX_PEERS
                    && let Some((_, oldest)) = self.by_age.first().copied()
                {
                    self.remove(&oldest);
                }
                self.peers.insert(peer, Entry { addresses: Vec::new(), seen: now });
                self.by_age.insert((now, peer));
                self.dirty.insert(peer);
            }
        }
    }

    fn remove(&mut self, peer: &PeerId) {
        if let Some(entry) = self.peers.remove(peer) {
            self.by_age.remove(&(entry.seen, *peer));
            self.dirty.insert(*peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn proven_addresses_come_first_and_failing_ones_go() {
        let (mut book, peer) = (Book::default(), PeerId::random());
        book.add(peer, &[addr(1), addr(2)], false, 0);
        let with_id = addr(3).with(Protocol::P2p(peer));
        book.add(peer, &[with_id], true, 0);
        assert_eq!(book.addresses(&peer), [addr(3), addr(1), addr(2)]);
        for _ in 0..MAX_FAILURES {
            book.failed(&peer, &addr(1));
        }
        assert_eq!(book.addresses(&peer), [addr(3), addr(2)]);
        book.add(peer, &(10..30).map(addr).collect::<Vec<_>>(), false, 0);
        assert_eq!(book.addresses(&peer).len(), MAX_ADDRESSES);
    }

    #[test]
    fn the_oldest_peer_makes_room_and_is_noted_as_gone() {
        let mut book = Book::default();
        let peers: Vec<_> = (0..=MAX_PEERS).map(|_| PeerId::random()).collect();
        for (at, peer) in peers[..MAX_PEERS].iter().enumerate() {
            book.add(*peer, &[addr(1)], true, at as u64);
        }
        book.take_changes();
        // The first is seen again, so the second is now the oldest.
        book.add(peers[0], &[addr(1)], true, 1_000_000);
        book.add(peers[MAX_PEERS], &[addr(1)], true, 1_000_001);
        assert!(book.addresses(&peers[1]).is_empty());
        assert_eq!(book.addresses(&peers[0]).len(), 1);
        assert_eq!(book.recent(2), [peers[MAX_PEERS], peers[0]]);
        let changes = book.take_changes();
        assert_eq!(changes.len(), 3);
        assert!(changes.iter().any(|(peer, entry)| *peer == peers[1] && entry.is_none()));
    }
}
