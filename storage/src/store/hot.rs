//! Blocks that are asked for again and again, kept in memory.
//!
//! Reading a block that the system has in its cache still copies it out of there and checks it: 0.25 ms for a leaf of a
//! megabyte. What is served over and over need not pay that each time. [`Store::cache_hot_blocks`] turns this on; a
//! daemon does, a command that ends does not.
//!
//! What comes in: a block that is read a second time while its fingerprint is remembered. So whatever is read just once, a
//! whole library on its way out among it, neither costs a copy nor drives anything out. Where space is lacking, what is
//! asked for more often stays (TinyLFU, by `moka`).
//!
//! Invariants: a block is answered from here only if the database has it at that moment, and not put aside, so
//! a deletion need not be told; only copied blocks are kept, never those that lie in files of the user's own; and what is
//! kept is a copy, so that the database can be closed and reopened under it. Collections, scrubs and verifications read
//! past this.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use cid::Cid;
use moka::sync::Cache;

use super::volumes::Volumes;
use super::{Key, Shared, Store, key};
use crate::StoreError;

/// Fingerprints of what was read, each in the place that its hash gives it: what is read again before some 16,000 others
/// were counts as hot.
const REMEMBERED: usize = 16 << 10;
/// Bytes that a block is taken to need beside its own.
const BESIDE: usize = 160;

/// What the cache of hot blocks holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct HotStat {
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes that it holds.
    pub bytes: u64,
    /// Blocks answered from it since the store was opened.
    pub hits: u64,
    /// Blocks read from the database in spite of it.
    pub misses: u64,
}

/// The cache.
pub(super) struct HotBlocks {
    blocks: Cache<Key, Bytes>,
    capacity: u64,
    remembered: Box<[AtomicU64]>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl HotBlocks {
    fn new(capacity: u64) -> HotBlocks {
        let weigh = |key: &Key, block: &Bytes| (key.len() + block.len() + BESIDE) as u32; // at most MAX_BLOCK
        HotBlocks {
            blocks: Cache::builder().max_capacity(capacity).weigher(weigh).build(),
            capacity,
            remembered: (0..REMEMBERED).map(|_| AtomicU64::new(0)).collect(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// Keeps a block, as its second reading does.
    #[cfg(test)]
    pub fn keep(&self, cid: &Cid, block: &Bytes) {
        self.blocks.insert(key(cid), block.clone());
    }

    /// Bytes of the blocks that are in memory, those that are to go among them.
    #[cfg(test)]
    pub fn held(&self) -> u64 {
        self.blocks.iter().map(|(_, block)| block.len() as u64).sum()
    }

    /// Notes that a block was read from the database, and keeps a copy if it was not long ago that it was last.
    fn read(&self, key: Key, block: &Bytes) {
        self.misses.fetch_add(1, Ordering::Relaxed);
        // The end of a digest is as good as random, and never all zeros by chance.
        let Some(end) = key.last_chunk() else { return };
        let print = u64::from_le_bytes(*end);
        let place = &self.remembered[print as usize % REMEMBERED];
        if place.swap(print, Ordering::Relaxed) == print {
            self.blocks.insert(key, Bytes::copy_from_slice(block));
            // Else what is too much goes once some hundred have come: of leaves of a megabyte that is three times what
            // may be kept.
            self.blocks.run_pending_tasks();
        }
    }
}

impl Store {
    /// Keeps blocks that are read again and again in memory from now on, at most `bytes` of them; none by default. Only
    /// the first call counts; 0 changes nothing.
    pub fn cache_hot_blocks(&self, bytes: u64) {
        if bytes > 0 {
            self.shared.hot.get_or_init(|| HotBlocks::new(bytes));
        }
    }

    /// What the cache of hot blocks holds and did; all zero without one.
    pub fn hot_stat(&self) -> HotStat {
        let Some(hot) = self.shared.hot.get() else { return HotStat::default() };
        // What comes and goes is counted a little later otherwise.
        hot.blocks.run_pending_tasks();
        HotStat {
            capacity_bytes: hot.capacity,
            bytes: hot.blocks.weighted_size(),
            hits: hot.hits.load(Ordering::Relaxed),
            misses: hot.misses.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    /// Reads a block for whoever may read it again: from memory, the database, or a file of the user's own.
    pub fn read_hot(&self, db: &Volumes, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        let Some(hot) = self.hot.get() else { return self.read_anywhere(db, cid) };
        let key = key(cid);
        if let Some(block) = hot.blocks.get(&key) {
            if db.meta(&key)?.is_some_and(|meta| !meta.quarantined) {
                hot.hits.fetch_add(1, Ordering::Relaxed);
                return Ok(Some(block));
            }
            hot.blocks.invalidate(&key);
        }
        let Some(block) = self.read(db, cid)? else { return self.read_in_place(cid) };
        hot.read(key, &block);
        Ok(Some(block))
    }
}
