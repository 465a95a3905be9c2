//! The admission limit: a token bucket for each peer, asked before a request costs anything.
//!
//! Pure: the time is passed in. The table is bounded; when it is full, buckets that are full again (peers that
//! have been quiet) make room, and if none is, the newcomer is refused.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use libp2p::PeerId;

/// Requests that a peer may send at once: an audit round over a few hundred agreements comes in bursts of this order.
pub const BURST: u32 = 256;

/// Requests a second that a peer may keep up. A busy renter makes some tens at its ledger; a thousand peers at this rate
/// are what the signature checks behind it can stand.
pub const RATE_PER_SECOND: u32 = 64;

/// Peers with a bucket of their own: well above the connections a node holds.
const MAX_BUCKETS: usize = 4096;

/// Token buckets by peer.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    buckets: HashMap<PeerId, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(RATE_PER_SECOND);
        self.tokens = (self.tokens + earned).min(f64::from(BURST));
        self.at = now;
    }
}

impl RateLimit {
    /// Takes one token of `peer`; without one, says after what time there will be one.
    pub(crate) fn admit(&mut self, peer: PeerId, now: Instant) -> Result<(), Duration> {
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&peer) {
            self.buckets.retain(|_, bucket| {
                bucket.refill(now);
                bucket.tokens < f64::from(BURST)
            });
            if self.buckets.len() >= MAX_BUCKETS {
                return Err(Duration::from_secs(1));
            }
        }
        let bucket = self.buckets.entry(peer).or_insert(Bucket { tokens: f64::from(BURST), at: now });
        bucket.refill(now);
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / f64::from(RATE_PER_SECOND)));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let mut limit = RateLimit::default();
        let (peer, start) = (PeerId::random(), Instant::now());
        for _ in 0..BURST {
            limit.admit(peer, start).unwrap();
        }
        let wait = limit.admit(peer, start).unwrap_err();
        assert!(wait <= Duration::from_secs_f64(1.0 / f64::from(RATE_PER_SECOND)));
        limit.admit(PeerId::random(), start).unwrap();
        limit.admit(peer, start + wait + Duration::from_millis(1)).unwrap();
        limit.admit(peer, start + wait + Duration::from_millis(1)).unwrap_err();
    }

    #[test]
    fn the_table_is_bounded_and_quiet_peers_make_room() {
        let mut limit = RateLimit::default();
        let start = Instant::now();
        for _ in 0..MAX_BUCKETS {
            limit.admit(PeerId::random(), start).unwrap();
        }
        limit.admit(PeerId::random(), start).unwrap_err();
        limit.admit(PeerId::random(), start + Duration::from_secs(1)).unwrap();
        assert!(limit.buckets.len() < MAX_BUCKETS);
    }
}
