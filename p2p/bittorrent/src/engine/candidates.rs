//! The addresses a torrent may dial: known, bounded, tried again after growing pauses. Pure; time is passed in.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::Instant;

/// Addresses kept per torrent; more than anyone connects to.
const MAX_KNOWN: usize = 1000;
/// Failures in a row after which an address is forgotten.
const MAX_FAILURES: u32 = 8;
/// The pause after the first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Banned addresses remembered per torrent.
const MAX_BANNED: usize = 1000;

#[derive(Debug)]
struct Known {
    failures: u32,
    not_before: Instant,
    active: bool,
}

/// Addresses of one torrent's swarm.
#[derive(Debug, Default)]
pub struct Candidates {
    known: HashMap<SocketAddr, Known>,
    banned: HashSet<SocketAddr>,
    banned_ips: HashSet<IpAddr>,
}

impl Candidates {
    /// Learns of a peer.
    pub fn add(&mut self, addr: SocketAddr, now: Instant) {
        if self.known.len() < MAX_KNOWN && !self.is_banned(&addr) {
            self.known.entry(addr).or_insert(Known { failures: 0, not_before: now, active: false });
        }
    }

    /// The next address to dial; it counts as active until [`Candidates::ended`].
    pub fn next(&mut self, now: Instant) -> Option<SocketAddr> {
        let due = |k: &Known| !k.active && k.not_before <= now;
        let addr = self
            .known
            .iter()
            .filter(|(_, k)| due(k))
            .min_by_key(|(_, k)| (k.failures, k.not_before))
            .map(|(a, _)| *a)?;
        self.known.get_mut(&addr)?.active = true;
        Some(addr)
    }

    /// The connection to `addr` ended. `useful`: data or metadata came over it, so it is worth another try soon.
    pub fn ended(&mut self, addr: &SocketAddr, useful: bool, now: Instant) {
        let Some(known) = self.known.get_mut(addr) else { return };
        known.active = false;
        known.failures = if useful { 1 } else { known.failures + 1 };
        if known.failures > MAX_FAILURES {
            self.known.remove(addr);
            return;
        }
        known.not_before = now + FIRST_PAUSE * 2u32.pow(known.failures - 1);
    }

    /// Never again: it sent bad data.
    pub fn ban(&mut self, addr: SocketAddr) {
        self.known.remove(&addr);
        if self.banned.len() < MAX_BANNED {
            self.banned.insert(addr);
            // Many peers share the loopback address; elsewhere a new port is no new peer.
            if !addr.ip().is_loopback() {
                self.banned_ips.insert(addr.ip());
            }
        }
    }

    /// A connection turned out to lead back to this node: its address is never dialled again.
    pub fn ban_self(&mut self, addr: SocketAddr, dialled: bool) {
        if dialled {
            self.known.remove(&addr);
            if self.banned.len() < MAX_BANNED {
                self.banned.insert(addr);
            }
        }
    }

    /// Whether `addr` is banned.
    pub fn is_banned(&self, addr: &SocketAddr) -> bool {
        self.banned.contains(addr) || self.banned_ips.contains(&addr.ip())
    }

    /// Number of known addresses.
    pub fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn failures_pause_longer_and_longer() {
        let now = Instant::now();
        let mut candidates = Candidates::default();
        candidates.add(addr(1), now);
        assert_eq!((candidates.next(now), candidates.next(now)), (Some(addr(1)), None));
        candidates.ended(&addr(1), false, now);
        assert_eq!(candidates.next(now), None);
        assert_eq!(candidates.next(now + FIRST_PAUSE), Some(addr(1)));
        candidates.ended(&addr(1), false, now);
        assert_eq!(candidates.next(now + FIRST_PAUSE), None);
        for _ in 0..MAX_FAILURES {
            candidates.ended(&addr(1), false, now);
        }
        assert_eq!(candidates.len(), 0);
    }

    #[test]
    fn banned_peers_do_not_come_back() {
        let now = Instant::now();
        let mut candidates = Candidates::default();
        candidates.ban(addr(1));
        candidates.add(addr(2), now);
        assert_eq!(candidates.next(now), None);
        let local = SocketAddr::from(([127, 0, 0, 1], 1));
        candidates.ban(local);
        assert!(
            candidates.is_banned(&local) && !candidates.is_banned(&SocketAddr::from(([127, 0, 0, 1], 2)))
        );
    }
}
