//! Giving the space of deleted blocks back to the file system.
//!
//! A deletion only hides a block. Its record goes when the tree is compacted ([`BlockDb::settle`]), which also tells
//! how many bytes of each blob file are dead and removes files that are dead altogether. A file that still has live
//! blobs goes when those are written anew ([`BlockDb::relocate`]). Blobs lie in the order they came, keys in that of
//! their hashes, so no part of the key space empties a file: what can be chosen is how many of the oldest files a pass
//! empties, and that bounds the room it needs beside what is there.

use rocksdb::properties::BACKGROUND_ERRORS;
use rocksdb::{BottommostLevelCompaction, CompactOptions};

use super::{BLOCKS, BlockDb, META};
use crate::StoreError;
use crate::db::DbError;

/// The blob files of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlobSpace {
    /// How many.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of them that hold deleted blobs, as far as the tree is settled.
    pub dead: u64,
}

impl BlockDb {
    /// What the blob files hold.
    pub fn blob_space(&self) -> Result<BlobSpace, DbError> {
        let property = |name: &str| {
            let value = self.db.property_int_value_cf(self.family(BLOCKS), name);
            value.map(Option::unwrap_or_default).map_err(|e| self.failed(e))
        };
        Ok(BlobSpace {
            files: property("rocksdb.num-blob-files")?,
            bytes: property("rocksdb.live-blob-file-size")?,
            dead: property("rocksdb.live-blob-file-garbage-size")?,
        })
    }

    /// Drops the records of deleted blocks and every blob file that is wholly dead, of what is flushed. Costs a rewriting
    /// of the keys, some seventy bytes a block; reads and writes go on.
    pub fn settle(&self) -> Result<(), StoreError> {
        [META, BLOCKS].into_iter().try_for_each(|family| self.compact(family))
    }

    /// Writes the live blobs of the `files` oldest blob files anew, so that those files go.
    pub fn relocate(&self, files: u64) -> Result<(), StoreError> {
        let all = self.blob_space()?.files.max(1);
        // RocksDB takes a share of the files and rounds down.
        let share = ((files as f64 + 0.5) / all as f64).min(1.0);
        self.set(&[
            ("enable_blob_garbage_collection", "true"),
            ("blob_garbage_collection_age_cutoff", &share.to_string()),
        ])?;
        let compacted = self.compact(BLOCKS);
        // Collecting while ingesting would rewrite live blobs: amplification up to 1.65.
        self.set(&[("enable_blob_garbage_collection", "false")])?;
        compacted
    }

    /// Removes files that compactions have replaced. RocksDB does it when a compaction ends, but leaves those that somebody was
    /// reading at that moment to the next one: a table of all keys, after a collection beside which blocks are read.
    pub fn remove_replaced(&self) -> Result<(), DbError> {
        let removed = self.db.disable_file_deletions().and_then(|()| self.db.enable_file_deletions());
        removed.map_err(|e| self.failed(e))
    }

    /// Cuts compactions short. Nothing can be written any more: for a process that ends.
    pub fn cancel_background(&self) {
        self.db.cancel_all_background_work(false);
    }

    fn set(&self, options: &[(&str, &str)]) -> Result<(), DbError> {
        self.db.set_options_cf(self.family(BLOCKS), options).map_err(|e| self.failed(e))
    }

    /// RocksDB's interface for C drops what a compaction says of itself; that one failed is told by the count of errors
    /// and, if it stopped writes, by the next one.
    fn compact(&self, family: &str) -> Result<(), StoreError> {
        let errors = || {
            let count = self.db.property_int_value(BACKGROUND_ERRORS);
            count.map(Option::unwrap_or_default).map_err(|e| self.failed(e))
        };
        let before = errors()?;
        let mut force = CompactOptions::default();
        force.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        // Others may compact meanwhile: who adds would be stalled otherwise.
        force.set_exclusive_manual_compaction(false);
        self.db.compact_range_cf_opt(self.family(family), None::<&[u8]>, None::<&[u8]>, &force);
        if errors()? == before {
            return Ok(());
        }
        self.check_writable().map_err(|e| self.failed(e))?;
        if !self.is_stopped_by_damage() {
            let detail = "a table that was to be compacted".to_owned();
            return Err(DbError::Damaged { path: self.path.clone(), detail }.into());
        }
        Err(StoreError::NotReclaimed { path: self.path.clone() })
    }
}
