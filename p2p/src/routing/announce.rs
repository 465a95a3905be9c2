//! Which of our own keys to announce when: a queue with a due time for each key.
//!
//! Pure: the caller asks [`Announcements::next`] for a key to announce and reports how it went. A key is announced
//! as soon as it is provided and there is somebody to tell, again every [`REPUBLISH`], and after a failure with a
//! growing delay. The order among due keys is that of their due times, so a restart spreads the republishing as it
//! was spread before.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

/// Records live 48 h with others; announcing every 22 h survives one missed round (libp2p kad-dht spec).
pub const REPUBLISH: Duration = Duration::from_secs(22 * 3600);

/// Keys that a node can provide: about 150 bytes each in memory. The roots of things, not each block.
pub const MAX_OWN_KEYS: usize = 200_000;

/// Announcements at once. Each is a lookup with three requests in flight.
pub(crate) const MAX_IN_FLIGHT: usize = 8;

/// First delay after a failed announcement, in seconds; doubles up to [`LAST_DELAY`].
const FIRST_DELAY: u64 = 5;
/// Longest delay after a failed announcement, in seconds.
const LAST_DELAY: u64 = 600;

#[derive(Debug, Clone, Copy)]
struct Key {
    due: u64,
    failures: u32,
    in_flight: bool,
}

/// The queue. Times are Unix seconds.
#[derive(Debug, Default)]
pub(crate) struct Announcements {
    keys: HashMap<Vec<u8>, Key>,
    due: BTreeSet<(u64, Vec<u8>)>,
    in_flight: usize,
}

/// The table of own keys is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

impl Announcements {
    /// Adds a key that was last announced at `last` (never: `None`). A known key that was announced before is
    /// announced again when it is next due; with `None` it is due now.
    pub(crate) fn add(&mut self, key: Vec<u8>, last: Option<u64>) -> Result<(), Full> {
        let due = last.map_or(0, |last| last + REPUBLISH.as_secs());
        if let Some(known) = self.keys.get_mut(&key) {
            if !known.in_flight && due < known.due {
                self.due.remove(&(known.due, key.clone()));
                known.due = due;
                self.due.insert((due, key));
            }
            return Ok(());
        }
        if self.keys.len() >= MAX_OWN_KEYS {
            return Err(Full);
        }
        self.keys.insert(key.clone(), Key { due, failures: 0, in_flight: false });
        self.due.insert((due, key));
        Ok(())
    }

    /// Ends providing a key. An announcement under way still ends with [`Announcements::done`].
    pub(crate) fn remove(&mut self, key: &[u8]) {
        if let Some(known) = self.keys.remove(key)
            && !known.in_flight
        {
            self.due.remove(&(known.due, key.to_vec()));
        }
    }

    /// The next key to announce at `now`, if one is due and not too many are under way.
    pub(crate) fn next(&mut self, now: u64) -> Option<Vec<u8>> {
        if self.in_flight >= MAX_IN_FLIGHT || self.due.first().is_none_or(|(due, _)| *due > now) {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        self.keys.get_mut(&key)?.in_flight = true;
        self.in_flight += 1;
        Some(key)
    }

    /// An announcement that [`Announcements::next`] gave out has ended.
    pub(crate) fn done(&mut self, key: &[u8], worked: bool, now: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        let Some(known) = self.keys.get_mut(key) else { return };
        // Present only if the key was removed and added again meanwhile.
        self.due.remove(&(known.due, key.to_vec()));
        known.in_flight = false;
        if worked {
            known.failures = 0;
            known.due = now + REPUBLISH.as_secs();
        } else {
            let delay = FIRST_DELAY.saturating_mul(1 << known.failures.min(16)).min(LAST_DELAY);
            known.failures += 1;
            known.due = now + delay;
        }
        self.due.insert((known.due, key.to_vec()));
    }

    /// Peers came into reach: what failed for want of them is due now.
    pub(crate) fn retry_failed(&mut self, now: u64) {
        let failed: Vec<(u64, Vec<u8>)> = self
            .keys
            .iter()
            .filter(|(_, key)| key.failures > 0 && !key.in_flight && key.due > now)
            .map(|(name, key)| (key.due, name.clone()))
            .collect();
        for (due, name) in failed {
            self.due.remove(&(due, name.clone()));
            if let Some(key) = self.keys.get_mut(&name) {
                key.due = now;
            }
            self.due.insert((now, name));
        }
    }

    /// Keys provided.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Keys due at `now` that are not yet announced.
    pub(crate) fn waiting(&self, now: u64) -> usize {
        self.due.iter().take_while(|(due, _)| *due <= now).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Vec<u8> {
        vec![n]
    }

    #[test]
    fn a_key_is_announced_at_once_then_every_round() {
        let mut queue = Announcements::default();
        queue.add(key(1), None).unwrap();
        assert_eq!(queue.next(100), Some(key(1)));
        assert_eq!(queue.next(100), None);
        queue.done(&key(1), true, 100);
        let next = 100 + REPUBLISH.as_secs();
        assert_eq!(queue.next(next - 1), None);
        assert_eq!(queue.next(next), Some(key(1)));
    }

    #[test]
    fn failures_back_off_until_peers_come() {
        let mut queue = Announcements::default();
        queue.add(key(1), None).unwrap();
        let mut now = 100;
        for delay in [5, 10, 20] {
            assert_eq!(queue.next(now), Some(key(1)));
            queue.done(&key(1), false, now);
            assert_eq!(queue.next(now + delay - 1), None);
            now += delay;
        }
        assert_eq!(queue.next(now), Some(key(1)));
        queue.done(&key(1), false, now);
        queue.retry_failed(now);
        assert_eq!(queue.waiting(now), 1);
        assert_eq!(queue.next(now), Some(key(1)));
    }

    #[test]
    fn a_restart_keeps_the_rhythm() {
        let mut queue = Announcements::default();
        queue.add(key(1), Some(1000)).unwrap();
        queue.add(key(2), Some(500)).unwrap();
        queue.add(key(3), None).unwrap();
        assert_eq!(queue.next(600), Some(key(3)));
        let round = REPUBLISH.as_secs();
        assert_eq!(queue.next(600 + round), Some(key(2)));
        assert_eq!(queue.next(600 + round), None);
        assert_eq!(queue.next(1000 + round), Some(key(1)));
    }

    #[test]
    fn the_number_under_way_is_bounded_and_removal_is_safe_at_any_time() {
        let mut queue = Announcements::default();
        for n in 0..20 {
            queue.add(key(n), None).unwrap();
        }
        let out: Vec<_> = std::iter::from_fn(|| queue.next(1)).collect();
        assert_eq!(out.len(), MAX_IN_FLIGHT);
        queue.remove(&out[0]);
        queue.remove(&key(19));
        queue.done(&out[0], true, 1);
        assert_eq!(queue.len(), 18);
        assert_eq!(std::iter::from_fn(|| queue.next(1)).count(), 1);
        assert_eq!(queue.waiting(1), 20 - MAX_IN_FLIGHT - 2);
        // Added again while nothing is known of it: due at once.
        queue.add(key(19), None).unwrap();
        assert_eq!(queue.waiting(1), 20 - MAX_IN_FLIGHT - 1);
    }
}
