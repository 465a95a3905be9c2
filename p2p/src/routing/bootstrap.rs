//! When to dial whom, to get into the network and stay in it.
//!
//! Pure: [`Bootstrap::due`] names the dials due now. Bootstrap peers are dialled at the start and again whenever they
//! are not connected, each with a growing delay; while there is no connection at all, peers of the address book are
//! tried too, and the delays stay short.

use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

/// First delay after a dial.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Longest delay while the node is alone: a network that comes back is noticed within it.
const ALONE_DELAY: Duration = Duration::from_secs(30);
/// Longest delay while other peers are connected.
const COMPANY_DELAY: Duration = Duration::from_secs(300);
/// Peers of the address book tried in one round.
const BOOK_PEERS: usize = 8;

/// A bootstrap peer.
#[derive(Debug)]
struct Entry {
    address: Multiaddr,
    peer: Option<PeerId>,
    retry: Retry,
}

/// A delay that doubles.
#[derive(Debug, Clone, Copy)]
struct Retry {
    at: Instant,
    delay: Duration,
}

impl Retry {
    fn new(now: Instant) -> Self {
        Retry { at: now, delay: FIRST_DELAY }
    }

    /// Whether it is time; if so, the next time is set.
    fn due(&mut self, now: Instant, longest: Duration) -> bool {
        // A node that was left alone does not sit out a long delay set in company.
        self.at = self.at.min(now + longest);
        if now < self.at {
            return false;
        }
        self.at = now + self.delay;
        self.delay = (self.delay * 2).min(longest);
        true
    }
}

/// One dial to make.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dial {
    /// An address of the configuration.
    Address(Multiaddr, Option<PeerId>),
    /// A peer of the address book.
    Known(PeerId),
}

/// See the module text.
#[derive(Debug)]
pub(crate) struct Bootstrap {
    entries: Vec<Entry>,
    book: Retry,
}

impl Bootstrap {
    /// All bootstrap peers are due at once.
    pub(crate) fn new(addresses: &[Multiaddr], now: Instant) -> Self {
        let entry = |address: &Multiaddr| Entry {
            peer: peer_of(address),
            address: address.clone(),
            retry: Retry::new(now),
        };
        Bootstrap { entries: addresses.iter().map(entry).collect(), book: Retry::new(now) }
    }

    /// The bootstrap peers known by id.
    pub(crate) fn peers(&self) -> impl Iterator<Item = PeerId> {
        self.entries.iter().filter_map(|entry| entry.peer)
    }

    /// Whether no bootstrap peer is configured.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The dials due at `now`. `recent` names peers of the address book and is asked only if it matters.
    pub(crate) fn due(
        &mut self,
        now: Instant,
        alone: bool,
        connected: impl Fn(&PeerId) -> bool,
        recent: impl FnOnce(usize) -> Vec<PeerId>,
    ) -> Vec<Dial> {
        let longest = if alone { ALONE_DELAY } else { COMPANY_DELAY };
        let mut dials = Vec::new();
        for entry in &mut self.entries {
            // An entry without an id cannot be recognised, so it matters only to a node that is alone.
            let there = entry.peer.map_or(!alone, |peer| connected(&peer));
            if there {
                entry.retry = Retry { at: now + FIRST_DELAY, delay: FIRST_DELAY };
            } else if entry.retry.due(now, longest) {
                dials.push(Dial::Address(entry.address.clone(), entry.peer));
            }
        }
        if !alone {
            self.book = Retry::new(now);
        } else if self.book.due(now, longest) {
            dials.extend(recent(BOOK_PEERS).into_iter().map(Dial::Known));
        }
        dials
    }
}

/// The peer id at the end of an address.
pub(crate) fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_a_lost_connection_is_retried_soon() {
        let (peer, friend) = (PeerId::random(), PeerId::random());
        let address: Multiaddr = format!("/ip4/10.0.0.1/tcp/1/p2p/{peer}").parse().unwrap();
        let start = Instant::now();
        let mut bootstrap = Bootstrap::new(std::slice::from_ref(&address), start);
        let dial = || Dial::Address(address.clone(), Some(peer));
        let mut alone = |at: f64, recent: Vec<PeerId>| {
            bootstrap.due(start + Duration::from_secs_f64(at), true, |_| false, |_| recent)
        };
        assert_eq!(alone(0.0, vec![friend]), [dial(), Dial::Known(friend)]);
        assert_eq!(alone(0.5, vec![friend]), []);
        assert_eq!(alone(1.0, vec![]), [dial()]);
        assert_eq!(alone(2.5, vec![]), []);
        assert_eq!(alone(3.0, vec![]), [dial()]);
        // Connected, then lost.
        let later = start + Duration::from_secs(100);
        assert_eq!(bootstrap.due(later, false, |_| true, |_| vec![]), []);
        let lost = later + Duration::from_secs(2);
        assert_eq!(bootstrap.due(lost, true, |_| false, |_| vec![]), [dial()]);
    }

    #[test]
    fn a_long_delay_is_cut_when_the_node_is_left_alone() {
        let address: Multiaddr = "/ip4/10.0.0.1/tcp/1".parse().unwrap();
        let peer = PeerId::random();
        let address = address.with(Protocol::P2p(peer));
        let start = Instant::now();
        let mut bootstrap = Bootstrap::new(&[address], start);
        let mut now = start;
        for _ in 0..12 {
            bootstrap.due(now, false, |_| false, |_| vec![]);
            now += COMPANY_DELAY;
        }
        bootstrap.due(now, false, |_| false, |_| vec![]);
        assert!(bootstrap.due(now + Duration::from_secs(1), true, |_| false, |_| vec![]).is_empty());
        assert_eq!(bootstrap.due(now + Duration::from_secs(32), true, |_| false, |_| vec![]).len(), 1);
    }
}
