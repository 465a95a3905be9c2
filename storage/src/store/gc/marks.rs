//! The set of blocks that a collection found alive.
//!
//! A mark also tells how a block was walked ([`walk_bit`](super::super::graph::walk_bit)): the same bytes may be linked
//! as raw data in one place and as a node in another, and only as a node do they keep others alive.
//!
//! Marks gather in memory. When there are many they move into a database of their own, without a log: it ends with the
//! collection, and what a crash leaves of it goes when the store is opened. They are kept apart from the blocks because
//! filling a table there flushes all of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Options, WriteBatch, WriteOptions};

use crate::StoreError;
use crate::db::{DbError, quiet_log};

/// Marks in memory, about 100 bytes each; more move to the disk.
const IN_MEMORY: usize = 1 << 17;
/// One write buffer of the database, in bytes; there are at most two.
const BUFFER: usize = 8 << 20;
/// Its cache of index, filter and data blocks, in bytes.
const CACHE: usize = 8 << 20;
/// Filters and indexes are cut into parts of this many bytes, so that the cache can hold what is used of them.
const PART: usize = 4 << 10;

/// Key of a block -> how it was walked.
pub(in super::super) struct Marks {
    path: PathBuf,
    memory: HashMap<Box<[u8]>, u8>,
    disk: Option<DB>,
    count: u64,
}

impl Marks {
    /// An empty set that moves to `path` when it grows.
    pub fn new(path: PathBuf) -> Marks {
        Marks { path, memory: HashMap::new(), disk: None, count: 0 }
    }

    /// Notes that a block was reached, walked in the way of `bit`. `true` if it was not walked that way before.
    pub fn mark(&mut self, key: &[u8], bit: u8) -> Result<bool, StoreError> {
        if let Some(walked) = self.memory.get_mut(key) {
            let new = *walked & bit != bit;
            *walked |= bit;
            return Ok(new);
        }
        let before = self.on_disk(key)?;
        if before.is_some_and(|walked| walked & bit == bit) {
            return Ok(false);
        }
        self.memory.insert(key.into(), before.unwrap_or(0) | bit);
        self.count += u64::from(before.is_none());
        if self.memory.len() >= IN_MEMORY {
            self.spill()?;
        }
        Ok(true)
    }

    /// Whether a block was reached.
    pub fn contains(&self, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.memory.contains_key(key) || self.on_disk(key)?.is_some())
    }

    /// How a block was walked; 0 if it was not reached.
    pub fn walked(&self, key: &[u8]) -> Result<u8, StoreError> {
        match self.memory.get(key) {
            Some(walked) => Ok(*walked),
            None => Ok(self.on_disk(key)?.unwrap_or(0)),
        }
    }

    /// Blocks reached so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Forgets all of them and removes what lies on the disk.
    pub fn clear(&mut self) -> Result<(), StoreError> {
        self.memory = HashMap::new();
        if self.disk.take().is_some() {
            Self::remove(&self.path)?;
        }
        Ok(())
    }

    /// Removes what an earlier process left at `path`; tells whether there was something.
    pub fn remove(path: &Path) -> Result<bool, StoreError> {
        match std::fs::remove_dir_all(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(DbError::Directory { path: path.to_owned(), source }.into()),
        }
    }

    fn on_disk(&self, key: &[u8]) -> Result<Option<u8>, StoreError> {
        let Some(db) = &self.disk else { return Ok(None) };
        let found = db.get_pinned(key).map_err(|e| self.failed(e))?;
        Ok(found.map(|walked| walked.first().copied().unwrap_or(0)))
    }

    fn spill(&mut self) -> Result<(), StoreError> {
        if self.disk.is_none() {
            Self::remove(&self.path)?;
            let opened = DB::open(&options(), &self.path).map_err(|e| self.failed(e))?;
            self.disk = Some(opened);
        }
        let mut batch = WriteBatch::default();
        // In the order of the keys, which is the quickest way into the tree.
        let mut marks: Vec<_> = self.memory.drain().collect();
        marks.sort_unstable();
        for (key, walked) in marks {
            batch.put(key, [walked]);
        }
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        let Some(db) = &self.disk else { return Ok(()) };
        Ok(db.write_opt(batch, &unlogged).map_err(|e| self.failed(e))?)
    }

    fn failed(&self, error: rocksdb::Error) -> DbError {
        DbError::from_rocks(&self.path, error)
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(%error, "the marks of a collection were not removed; the next start does it");
        }
    }
}

fn options() -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(CACHE));
    table.set_cache_index_and_filter_blocks(true);
    table.set_index_type(rocksdb::BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(PART);
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(BUFFER);
    options.set_max_write_buffer_number(2);
    quiet_log(&mut options);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_the_same_in_memory_and_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marks");
        let mut marks = Marks::new(path.clone());
        let keys = || (0..2 * IN_MEMORY as u64 + 5).map(|number| number.to_be_bytes());
        for (round, fresh) in [true, false].into_iter().enumerate() {
            for key in keys() {
                assert_eq!(marks.mark(&key, 1).unwrap(), fresh, "round {round}");
            }
        }
        assert!(path.exists());
        assert_eq!(marks.count(), keys().count() as u64);
        // Walked another way, an old mark is news once.
        let first = 0u64.to_be_bytes();
        assert!(marks.mark(&first, 2).unwrap());
        assert!(!marks.mark(&first, 2).unwrap());
        assert!(!marks.mark(&first, 1).unwrap());
        assert!(marks.contains(&first).unwrap() && !marks.contains(b"absent").unwrap());
        assert_eq!(marks.count(), keys().count() as u64);
        drop(marks);
        assert!(!path.exists());
    }
}
