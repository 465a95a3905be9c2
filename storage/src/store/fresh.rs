//! What was put lately: so that pinning what was just added need not look every block of it up again.
//!
//! A pin is acknowledged only when every block below it is here and carries the stamp of this generation. Of a block that
//! came, or was met, since the generation began that is known without the database: of 100,000 small files the look-ups
//! took a fifth of the time of adding them. A print of its key is kept; what was forgotten, since there is only so much
//! room, or never noted, is looked up.
//!
//! Invariant: what [`Fresh::retain_unknown`] leaves out, the database has. So a key is noted while its stripe is held, after it
//! was written, and all is forgotten when a block goes before its generation does: removed, put aside, or lost with the
//! memory of a database that was reopened.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::ops::Deref;

use parking_lot::RwLock;

/// Most prints that are kept: 5 MB of them.
const MOST: usize = 1 << 18;

/// Prints of keys that carry the stamp of a generation.
#[derive(Default)]
pub(super) struct Fresh {
    /// With a secret of its own, so that nobody can make a key that has another's print.
    hasher: RandomState,
    held: RwLock<Held>,
}

#[derive(Default)]
struct Held {
    generation: u64,
    prints: Prints,
}

/// Prints are hashes already.
type Prints = HashSet<u64, BuildHasherDefault<AsItIs>>;

/// Hashes a number to itself.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("prints are numbers");
    }
}

impl Fresh {
    /// These keys are here with the stamp `generation`; the caller holds their stripes.
    pub fn note<'k>(&self, generation: u64, keys: impl Iterator<Item = &'k [u8]>) {
        let mut held = self.held.write();
        if generation > held.generation {
            *held = Held { generation, prints: Prints::default() };
        }
        if generation == held.generation {
            let room = MOST.saturating_sub(held.prints.len());
            held.prints.extend(keys.take(room).map(|key| self.hasher.hash_one(key)));
        }
    }

    /// Keeps those of `blocks` that are not known to be here with the stamp `generation`.
    pub fn retain_unknown<T, K: Deref<Target = [u8]>>(
        &self,
        generation: u64,
        blocks: &mut Vec<T>,
        key: impl Fn(&T) -> K,
    ) {
        let held = self.held.read();
        if generation == held.generation {
            blocks.retain(|block| !held.prints.contains(&self.hasher.hash_one(&*key(block))));
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.held.write().prints = Prints::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(fresh: &Fresh, generation: u64) -> Vec<u8> {
        let mut blocks: Vec<u8> = (0..4).collect();
        fresh.retain_unknown(generation, &mut blocks, |block| vec![*block]);
        blocks
    }

    #[test]
    fn keys_are_known_in_their_generation_until_all_is_forgotten() {
        let fresh = Fresh::default();
        fresh.note(5, [[1].as_slice(), &[2]].into_iter());
        assert_eq!(unknown(&fresh, 5), [0, 3]);
        assert_eq!((unknown(&fresh, 4).len(), unknown(&fresh, 6).len()), (4, 4));
        fresh.note(4, [[3].as_slice()].into_iter());
        assert_eq!(unknown(&fresh, 5), [0, 3], "a stamp of before is none");
        fresh.note(6, [[3].as_slice()].into_iter());
        assert_eq!((unknown(&fresh, 5).len(), unknown(&fresh, 6)), (4, vec![0, 1, 2]));
        fresh.clear();
        assert_eq!(unknown(&fresh, 6).len(), 4);
    }
}
