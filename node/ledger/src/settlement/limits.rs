//! How much one peer or account may ask: token buckets, pure, in a map of bounded size.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// How much may be asked at once, and how fast that grows back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens of a full bucket.
    pub burst: u32,
    /// Tokens that come back in a second.
    pub per_second: u32,
}

/// A token bucket. Time is passed in, as the duration since any fixed moment.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// In millionths of a token, so that slow rates lose nothing to rounding.
    micro: u64,
    filled: Duration,
}

const MICRO: u64 = 1_000_000;

impl Bucket {
    /// A full bucket.
    pub fn full(rate: Rate, now: Duration) -> Bucket {
        Bucket { micro: u64::from(rate.burst) * MICRO, filled: now }
    }

    /// Takes one token if there is one.
    pub fn take(&mut self, rate: Rate, now: Duration) -> bool {
        self.fill(rate, now);
        match self.micro.checked_sub(MICRO) {
            Some(rest) => {
                self.micro = rest;
                true
            }
            None => false,
        }
    }

    fn fill(&mut self, rate: Rate, now: Duration) {
        let since = now.saturating_sub(self.filled).as_micros();
        let added = u64::try_from(since).unwrap_or(u64::MAX).saturating_mul(u64::from(rate.per_second));
        self.micro = self.micro.saturating_add(added).min(u64::from(rate.burst) * MICRO);
        self.filled = self.filled.max(now);
    }

    fn is_full(&mut self, rate: Rate, now: Duration) -> bool {
        self.fill(rate, now);
        self.micro == u64::from(rate.burst) * MICRO
    }
}

/// Buckets by key. Full ones are forgotten when the map is; if none is full, strangers wait.
#[derive(Debug)]
pub struct Limiter<K> {
    rate: Rate,
    cap: usize,
    buckets: HashMap<K, Bucket>,
}

impl<K: Eq + Hash> Limiter<K> {
    /// No buckets yet; at most `cap` of them later.
    pub fn new(rate: Rate, cap: usize) -> Limiter<K> {
        Limiter { rate, cap, buckets: HashMap::new() }
    }

    /// Takes one token of `key`'s bucket if there is one.
    pub fn admit(&mut self, key: K, now: Duration) -> bool {
        let rate = self.rate;
        if !self.buckets.contains_key(&key) && self.buckets.len() >= self.cap {
            self.buckets.retain(|_, bucket| !bucket.is_full(rate, now));
            if self.buckets.len() >= self.cap {
                return false;
            }
        }
        self.buckets.entry(key).or_insert_with(|| Bucket::full(rate, now)).take(rate, now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate { burst: 3, per_second: 2 };

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = Bucket::full(RATE, at(0));
        assert_eq!((0..5).filter(|_| bucket.take(RATE, at(0))).count(), 3);
        assert!(!bucket.take(RATE, at(499)));
        assert!(bucket.take(RATE, at(500)));
        assert!(!bucket.take(RATE, at(0)), "a clock that goes back gives nothing");
        assert!(bucket.take(RATE, at(1000)));
    }

    #[test]
    fn the_map_is_bounded() {
        let mut limiter = Limiter::new(RATE, 2);
        assert!(limiter.admit("a", at(0)) && limiter.admit("b", at(0)));
        assert!(!limiter.admit("c", at(0)), "no room for a stranger");
        assert!(limiter.admit("a", at(0)));
        assert!(limiter.admit("c", at(5000)), "the others' buckets are full again and forgotten");
        assert!(limiter.buckets.len() <= 2);
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(waits in proptest::collection::vec(0u64..700, 1..200)) {
            let mut bucket = Bucket::full(RATE, at(0));
            let (mut now, mut taken) = (0, 0u64);
            for wait in waits {
                now += wait;
                taken += u64::from(bucket.take(RATE, at(now)));
                prop_assert!(taken * 1000 <= 3000 + now * 2);
            }
        }
    }
}
