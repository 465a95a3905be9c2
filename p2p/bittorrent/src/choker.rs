//! Whom to upload to: a pure state machine. Time is seconds since any fixed moment; randomness is passed in.
//!
//! Each round unchokes up to `slots` interested peers. While downloading they are ranked by a [`Ranking`] (by default what they
//! gave us last round), and one slot goes round as an optimistic unchoke. While seeding the slots rotate: a peer keeps its
//! slot until it had its quota and its minimum time, then the peers that waited longest come first; the ranking decides
//! among classes of peers, so that a policy from above (payment, say) can prefer some without starving the rest of their turn.

use std::collections::HashMap;

use crate::picker::ConnId;

/// Seconds between rounds.
pub const ROUND_SECONDS: u64 = 15;
/// Seconds an optimistic unchoke lasts.
pub const OPTIMISTIC_SECONDS: u64 = 30;
/// Pieces a peer may take before its seeding slot is up for others.
pub const QUOTA_PIECES: u64 = 20;
/// Seconds a seeding slot lasts at least.
pub const MIN_SLOT_SECONDS: u64 = 60;

/// What is known of one connected peer at a round.
#[derive(Debug, Clone)]
pub struct PeerView {
    /// Which connection.
    pub conn: ConnId,
    /// Who: the 20 bytes of its handshake.
    pub peer_id: [u8; 20],
    /// It wants data from us.
    pub interested: bool,
    /// It owes us blocks and does not send them.
    pub snubbed: bool,
    /// Bytes it sent us since the last round.
    pub downloaded: u64,
    /// Bytes we sent it in all.
    pub uploaded_total: u64,
}

/// Orders peers for upload slots; higher comes first. Equal ranks share by the built-in rules.
pub trait Ranking: Send + Sync {
    /// The rank of `peer`; `seeding` says whether this torrent is complete.
    fn rank(&self, peer: &PeerView, seeding: bool) -> u64;
}

/// Tit for tat while downloading, equals while seeding.
#[derive(Debug, Default, Clone, Copy)]
pub struct TitForTat;

impl Ranking for TitForTat {
    fn rank(&self, peer: &PeerView, seeding: bool) -> u64 {
        if seeding || peer.snubbed { 0 } else { peer.downloaded }
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    since: u64,
    uploaded_at_start: u64,
}

/// The unchoke decisions of one torrent.
#[derive(Debug)]
pub struct Choker {
    slots: usize,
    quota_bytes: u64,
    held: HashMap<ConnId, Slot>,
    last_held: HashMap<ConnId, u64>,
    optimistic: Option<(ConnId, u64)>,
}

impl Choker {
    /// With `slots` upload slots, for pieces of `piece_length` bytes.
    pub fn new(slots: usize, piece_length: u32) -> Choker {
        Choker {
            slots: slots.max(1),
            quota_bytes: QUOTA_PIECES * u64::from(piece_length),
            held: HashMap::new(),
            last_held: HashMap::new(),
            optimistic: None,
        }
    }

    /// Decides anew. Returns the connections to be unchoked; all others are choked.
    pub fn round(
        &mut self,
        now: u64,
        peers: &[PeerView],
        seeding: bool,
        ranking: &dyn Ranking,
        random: u32,
    ) -> Vec<ConnId> {
        let known: HashMap<ConnId, &PeerView> = peers.iter().map(|p| (p.conn, p)).collect();
        self.last_held.retain(|c, _| known.contains_key(c));
        let mut wanting: Vec<&PeerView> = peers.iter().filter(|p| p.interested).collect();
        let chosen = if wanting.len() <= self.slots {
            self.optimistic = None;
            wanting.iter().map(|p| p.conn).collect()
        } else if seeding {
            self.optimistic = None;
            wanting.sort_by_key(|p| {
                let held = self.held.get(&p.conn).is_some_and(|s| self.keeps(s, p, now));
                let waited_since = self.last_held.get(&p.conn).copied().unwrap_or(0);
                (std::cmp::Reverse(ranking.rank(p, true)), !held, waited_since, p.conn)
            });
            wanting.iter().take(self.slots).map(|p| p.conn).collect()
        } else {
            self.leeching(now, &wanting, ranking, random)
        };
        self.hold(now, &known, chosen)
    }

    /// A peer became interested between rounds: true if a slot is free for it now.
    pub fn admit(&mut self, now: u64, peer: &PeerView) -> bool {
        if self.held.contains_key(&peer.conn) || self.held.len() >= self.slots {
            return self.held.contains_key(&peer.conn);
        }
        self.held.insert(peer.conn, Slot { since: now, uploaded_at_start: peer.uploaded_total });
        self.last_held.insert(peer.conn, now);
        true
    }

    /// A connection ended or lost interest: its slot is free.
    pub fn leave(&mut self, conn: ConnId) {
        self.held.remove(&conn);
    }

    fn keeps(&self, slot: &Slot, peer: &PeerView, now: u64) -> bool {
        let sent = peer.uploaded_total.saturating_sub(slot.uploaded_at_start);
        sent < self.quota_bytes || now.saturating_sub(slot.since) < MIN_SLOT_SECONDS
    }

    fn leeching(
        &mut self,
        now: u64,
        wanting: &[&PeerView],
        ranking: &dyn Ranking,
        random: u32,
    ) -> Vec<ConnId> {
        let mut ranked: Vec<&&PeerView> = wanting.iter().collect();
        ranked.sort_by_key(|p| (std::cmp::Reverse(ranking.rank(p, false)), p.conn));
        let regular = self.slots.saturating_sub(1);
        let mut chosen: Vec<ConnId> = ranked.iter().take(regular).map(|p| p.conn).collect();
        let current = self.optimistic.filter(|(conn, since)| {
            now.saturating_sub(*since) < OPTIMISTIC_SECONDS
                && !chosen.contains(conn)
                && wanting.iter().any(|p| p.conn == *conn)
        });
        let rest = &ranked[regular.min(ranked.len())..];
        self.optimistic =
            current.or_else(|| rest.get(random as usize % rest.len().max(1)).map(|p| (p.conn, now)));
        chosen.extend(self.optimistic.map(|(conn, _)| conn));
        chosen
    }

    fn hold(&mut self, now: u64, known: &HashMap<ConnId, &PeerView>, chosen: Vec<ConnId>) -> Vec<ConnId> {
        let before = std::mem::take(&mut self.held);
        for conn in &chosen {
            let fresh =
                || Slot { since: now, uploaded_at_start: known.get(conn).map_or(0, |p| p.uploaded_total) };
            let slot = before.get(conn).copied();
            // A slot whose quota is used up but that nobody else needs starts a new term.
            let slot = slot.filter(|s| known.get(conn).is_some_and(|p| self.keeps(s, p, now)));
            self.held.insert(*conn, slot.unwrap_or_else(fresh));
            self.last_held.insert(*conn, now);
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(conn: ConnId, downloaded: u64, uploaded_total: u64) -> PeerView {
        PeerView { conn, peer_id: [0; 20], interested: true, snubbed: false, downloaded, uploaded_total }
    }

    #[test]
    fn few_peers_are_all_served() {
        let mut choker = Choker::new(4, 1);
        let mut peers = vec![peer(1, 0, 0), peer(2, 0, 0)];
        peers[1].interested = false;
        assert_eq!(choker.round(0, &peers, false, &TitForTat, 0), [1]);
        peers[1].interested = true;
        assert!(choker.admit(1, &peers[1]));
    }

    #[test]
    fn downloading_rewards_those_who_give_and_tries_one_more() {
        let mut choker = Choker::new(3, 1);
        let mut peers: Vec<PeerView> = (0..6).map(|i| peer(i, u64::from(i) * 10, 0)).collect();
        peers[5].snubbed = true;
        assert_eq!(choker.round(0, &peers, false, &TitForTat, 0), [4, 3, 2]);
        assert_eq!(choker.round(15, &peers, false, &TitForTat, 3), [4, 3, 2]);
        assert_eq!(choker.round(30, &peers, false, &TitForTat, 3), [4, 3, 5]);
        assert!(!choker.admit(31, &peers[0]));
        choker.leave(5);
        assert!(choker.admit(31, &peers[0]));
    }

    #[test]
    fn seeding_goes_round_by_quota_and_time() {
        let mut choker = Choker::new(2, 100);
        let mut peers: Vec<PeerView> = (0..4).map(|i| peer(i, 0, 0)).collect();
        assert_eq!(choker.round(0, &peers, true, &TitForTat, 0), [0, 1]);
        peers[0].uploaded_total = 5000;
        // The quota is used up, the minute is not.
        assert_eq!(choker.round(15, &peers, true, &TitForTat, 0), [0, 1]);
        assert_eq!(choker.round(60, &peers, true, &TitForTat, 0), [1, 2]);
        peers[1].uploaded_total = 5000;
        assert_eq!(choker.round(120, &peers, true, &TitForTat, 0), [2, 3]);
    }

    #[test]
    fn a_policy_from_above_decides_first() {
        struct Prefer(ConnId);
        impl Ranking for Prefer {
            fn rank(&self, peer: &PeerView, _: bool) -> u64 {
                u64::from(peer.conn == self.0)
            }
        }
        let peers: Vec<PeerView> = (0..4).map(|i| peer(i, 0, 0)).collect();
        assert_eq!(Choker::new(1, 1).round(0, &peers, true, &Prefer(3), 0), [3]);
        assert!(Choker::new(2, 1).round(0, &peers, false, &Prefer(3), 0).contains(&3));
    }
}
