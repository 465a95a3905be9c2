//! Generations and leases: what a collection must not touch.
//!
//! Time in the store is a generation number that each collection advances. A block is stamped with the current
//! generation when it is put, and again on every dedupe hit. Whoever brings blocks in, or is about to pin some, holds
//! a lease on the generation in which it began. A collection sweeps only blocks that no pin reaches and whose stamp is
//! below both its own generation and the oldest lease, so nothing that came in since is lost under someone's hands.
//!
//! Leases live in memory: after a crash there are none, and what they protected was never acknowledged. Stamps may be
//! in memory only, too. When the block database is reopened in place they are gone while their leases go on; until the
//! last of those ends, collections sweep nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

pub(super) struct Leases {
    state: Mutex<State>,
}

struct State {
    generation: u64,
    /// Generation -> number of leases on it.
    held: BTreeMap<u64, u64>,
    /// Leases up to this generation were taken before the block database was reopened.
    before_reopening: u64,
}

/// Protects everything stamped since it was taken; ends when dropped.
pub(super) struct Lease {
    leases: Arc<Leases>,
    generation: u64,
}

impl Leases {
    pub fn new(generation: u64) -> Arc<Leases> {
        Arc::new(Leases {
            state: Mutex::new(State { generation, held: BTreeMap::new(), before_reopening: 0 }),
        })
    }

    pub fn take(self: &Arc<Self>) -> Lease {
        let mut state = self.state.lock();
        let generation = state.generation;
        *state.held.entry(generation).or_insert(0) += 1;
        Lease { leases: self.clone(), generation }
    }

    /// The generation to stamp with now.
    pub fn generation(&self) -> u64 {
        self.state.lock().generation
    }

    /// Begins generation `next` and returns the stamp below which unpinned blocks may go. `next` must be durable
    /// already: a later start must not stamp with a number that a collection has used.
    pub fn advance(&self, next: u64) -> u64 {
        let mut state = self.state.lock();
        state.generation = next;
        match state.held.keys().next() {
            Some(oldest) if *oldest <= state.before_reopening => 0,
            oldest => oldest.copied().unwrap_or(next).min(next),
        }
    }

    /// The block database was reopened, and stamps that were in memory only are gone: while a lease of before is held,
    /// nobody can tell what it protects, so nothing may go.
    pub fn reopened(&self) {
        let mut state = self.state.lock();
        state.before_reopening = state.generation;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.state.lock();
        if let Some(count) = state.held.get_mut(&self.generation) {
            *count -= 1;
            if *count == 0 {
                state.held.remove(&self.generation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_lease_bounds_the_sweep() {
        let leases = Leases::new(5);
        assert_eq!(leases.advance(6), 6);
        let old = leases.take();
        assert_eq!(leases.advance(7), 6);
        let new = leases.take();
        drop(old);
        assert_eq!(leases.advance(8), 7);
        drop(new);
        assert_eq!(leases.advance(9), 9);
    }

    #[test]
    fn a_lease_that_outlives_its_database_protects_everything() {
        let leases = Leases::new(5);
        let old = leases.take();
        leases.reopened();
        assert_eq!(leases.advance(6), 0);
        let new = leases.take();
        drop(old);
        assert_eq!(leases.advance(7), 6);
        drop(new);
    }
}
