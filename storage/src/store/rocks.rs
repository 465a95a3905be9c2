//! A block database: column families and options with their reasons, reading and writing.

mod budget;
mod damaged;
mod metas;
mod names;
mod orphans;
mod reclaim;
mod records;
mod removal;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBPinnableSlice, DBRecoveryMode, FlushOptions, Options, WriteBatch, WriteOptions,
};

use super::identity::Identity;
use super::pinned;
use crate::Class;
use crate::db::{DbError, quiet_log};
pub(super) use budget::Budget;
pub(super) use metas::Metas;
use names::{Names, Row};
pub(super) use reclaim::BlobSpace;
use records::sum;
pub(super) use records::{Counter, Meta};

/// Name ([`names`]) -> the block's bytes.
const BLOCKS: &str = "blocks";
/// Multihash -> [`Meta`]: answers `has` and `size` without touching the bytes.
const META: &str = "meta";
/// Running totals ([`Counter`]) live in the default family.
const TOTALS: &str = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
/// Where the repo's identity is, among the totals.
const IDENTITY: &[u8] = b"identity";
/// There if every block lies under its name: since the database had none.
const ALL_NAMED: &[u8] = b"named";
/// Every family: they are flushed together, so that none runs ahead of another in a crash.
const FAMILIES: [&str; 3] = [TOTALS, BLOCKS, META];

/// Write buffers of a family in memory, the one being filled included.
const BUFFERS: i32 = 2;
/// Flushed tables that wait to be merged: a look-up asks the filter of each, a merge rewrites the keys of all. With RocksDB's
/// four, merging took an eighth of the time of adding small files, with eight a fifteenth.
const UNSORTED: i32 = 12;
/// Bytes of the first level of sorted tables. Whoever adds files of some megabytes makes a table of a few keys each time, and
/// after [`UNSORTED`] of them that level is written anew. RocksDB's 256 MiB would be all keys of five million blocks: filling
/// a store with a million took a fifth longer, and reads beside a collection, too.
const SORTED: u64 = 8 << 20;
/// Values below this stay in the tree: a blob file entry costs more than it saves for tiny ones.
const MIN_BLOB: u64 = 1 << 10;
/// Largest blob file, in bytes. One live blob pins its whole file, so it must not be large.
pub(super) const BLOB_FILE: u64 = 64 << 20;
/// Filters and indexes are cut into parts of this many bytes. Whole ones grow with their table, to megabytes, which no
/// shard of the cache takes: each look-up then read and checked the whole filter (90 us of CPU a block with 10^6).
const PART: usize = 4 << 10;
/// Share of a write buffer that a filter of its keys takes: whoever puts a block asks first whether it is here, and mostly
/// it is not. The answer came from walking the buffers for a thirtieth of the time of adding small files.
const BUFFER_FILTER: f64 = 0.01;
/// Bytes of log kept before a flush: bounds disk and replay of many small ingests.
const LOG_LIMIT: u64 = 64 << 20;
/// Room in a batch for its header and the totals.
const BATCH_HEADER: usize = 256;
/// Room in a batch for what a block needs beside its bytes: key, name, meta and framing.
const RECORDS: usize = 128;

/// Whether a batch goes through the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Log {
    /// Recorded in the log; durable after [`BlockDb::sync`].
    Write,
    /// Only in memory; durable after [`BlockDb::flush`].
    Skip,
}

/// The open block database.
pub(super) struct BlockDb {
    db: DB,
    path: PathBuf,
    /// How blocks are named; none before the database has the repo's identity.
    names: OnceLock<Names>,
    damage: Damage,
    read_only: bool,
}

/// Changes to the block database.
pub(super) struct Changes<'a> {
    db: &'a BlockDb,
    batch: WriteBatch,
}

/// What opening does about damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    /// A hole in the log refuses the database; a damaged table that a compaction meets stops writes.
    Stops,
    /// Damaged records of the log are left out. A damaged table only stops compactions that are asked for.
    IsPassedOver,
    /// The log is read up to the first damaged record. RocksDB cannot read on behind one that was cut into parts: it
    /// miscounts the next one's checksum.
    EndsTheLog,
}

impl BlockDb {
    /// Opens a database, or makes one. `known` is the repo's identity, if it has one: without it no block can be put before
    /// [`set_identity`](Self::set_identity).
    pub fn open(
        path: &Path,
        damage: Damage,
        budget: &Budget,
        known: Option<Identity>,
    ) -> Result<BlockDb, DbError> {
        std::fs::create_dir_all(path)
            .map_err(|source| DbError::Directory { path: path.to_owned(), source })?;
        let families = FAMILIES.iter().map(|name| {
            let mut options = family_options(name, budget);
            if damage == Damage::IsPassedOver {
                // A table that cannot be compacted would be tried again every second, and those that pile up before it
                // would stop writes in the end. Looking through many tables is slower, and works.
                options.set_disable_auto_compactions(true);
                options.set_level_zero_slowdown_writes_trigger(i32::MAX);
                options.set_level_zero_stop_writes_trigger(i32::MAX);
            }
            ColumnFamilyDescriptor::new(*name, options)
        });
        let mut options = database_options(budget);
        match damage {
            Damage::Stops => {}
            Damage::IsPassedOver => options.set_wal_recovery_mode(DBRecoveryMode::SkipAnyCorruptedRecord),
            Damage::EndsTheLog => options.set_wal_recovery_mode(DBRecoveryMode::PointInTime),
        }
        // What tells the reader of a log to stop at damage is the same as what lets a damaged table stop writes.
        options.set_paranoid_checks(damage != Damage::IsPassedOver);
        let before = orphans::blob_files(path)
            .map_err(|source| DbError::Directory { path: path.to_owned(), source })?;
        let db =
            DB::open_cf_descriptors(&options, path, families).map_err(|e| DbError::from_rocks(path, e))?;
        let db = BlockDb { db, path: path.to_owned(), names: OnceLock::new(), damage, read_only: false };
        db.learn_names(known)?;
        // They only take space, and are looked at again the next time.
        if let Err(error) = db.remove_orphans(&before) {
            tracing::warn!(%error, "what a crash left of blob files could not be removed");
        }
        Ok(db)
    }

    /// Opens a database that is there, on a disk that can only be read.
    pub fn open_read_only(path: &Path, budget: &Budget, known: Option<Identity>) -> Result<BlockDb, DbError> {
        let families =
            FAMILIES.iter().map(|name| ColumnFamilyDescriptor::new(*name, family_options(name, budget)));
        let opened = DB::open_cf_descriptors_read_only(&database_options(budget), path, families, false);
        let db = opened.map_err(|e| DbError::from_rocks(path, e))?;
        let (path, names) = (path.to_owned(), OnceLock::new());
        let db = BlockDb { db, path, names, damage: Damage::Stops, read_only: true };
        db.learn_names(known)?;
        Ok(db)
    }

    /// Whether nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a damaged table that a compaction meets stops writes.
    pub fn is_stopped_by_damage(&self) -> bool {
        self.damage != Damage::IsPassedOver
    }

    /// Opens the database; one whose log has a hole without what was in it. Blocks can be fetched again, and what lacks
    /// them can be named; a store that does not open serves nobody.
    pub fn open_or_mend(path: &Path, budget: &Budget, known: Option<Identity>) -> Result<BlockDb, DbError> {
        let damage = match Self::open(path, Damage::Stops, budget, known) {
            Err(DbError::Damaged { detail, .. }) => detail,
            other => return other,
        };
        let open = |damage| Self::open(path, damage, budget, known);
        let db = open(Damage::IsPassedOver).or_else(|_| open(Damage::EndsTheLog))?;
        let (blocks, bytes) = db.recount()?;
        tracing::error!(
            path = %path.display(), damage, blocks, bytes,
            "the block database was damaged and opened without the damaged records; `btfs repo verify` tells what lacks"
        );
        // What was in the log is in tables now. If it was not the log, a table cannot even be opened.
        drop(db);
        open(Damage::Stops).or_else(|_| open(Damage::IsPassedOver))
    }

    /// Counts all blocks anew: a record that was left out took its share of the totals along, but not what later ones
    /// deducted. Nobody else may write meanwhile. Blocks and bytes.
    pub fn recount(&self) -> Result<(u64, u64), DbError> {
        let (mut blocks, mut bytes, mut quarantined) = ([0i64; 3], [0i64; 3], 0i64);
        for meta in self.metas(&[]) {
            let (_, meta) = meta?;
            blocks[meta.class.index()] += 1;
            bytes[meta.class.index()] += i64::from(meta.size);
            quarantined += i64::from(meta.quarantined);
        }
        let mut batch = WriteBatch::default();
        let mut set = |counter: Counter, value: i64| {
            batch.put_cf(self.family(TOTALS), counter.key(), value.to_le_bytes());
        };
        set(Counter::Quarantined, quarantined);
        for class in Class::ALL {
            set(Counter::Blocks(class), blocks[class.index()]);
            set(Counter::Bytes(class), bytes[class.index()]);
        }
        self.db.write(batch).and_then(|()| self.db.flush_wal(true)).map_err(|e| self.failed(e))?;
        let all = |of: [i64; 3]| u64::try_from(of.iter().sum::<i64>()).unwrap_or(0);
        Ok((all(blocks), all(bytes)))
    }

    /// Removes families that an older build had, with all that is in them; those that are not there are passed over.
    /// The database must not be open.
    pub fn drop_families(path: &Path, names: &[&str]) -> Result<(), DbError> {
        if !path.join("CURRENT").exists() {
            return Ok(());
        }
        let failed = |e| DbError::from_rocks(path, e);
        let budget = Budget::new(1);
        let options = database_options(&budget);
        let there = DB::list_cf(&options, path).map_err(failed)?;
        let families =
            there.iter().map(|name| ColumnFamilyDescriptor::new(name, family_options(name, &budget)));
        let mut db = DB::open_cf_descriptors(&options, path, families).map_err(failed)?;
        for name in names.iter().filter(|name| there.iter().any(|there| there == *name)) {
            db.drop_cf(name).map_err(failed)?;
        }
        Ok(())
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db.cf_handle(name).expect("every family of FAMILIES was opened")
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn failed(&self, error: rocksdb::Error) -> DbError {
        DbError::from_rocks(&self.path, error)
    }

    /// The block's bytes, verified against their checksum, without a copy.
    pub fn block(self: &Arc<Self>, key: &[u8]) -> Result<Option<Bytes>, rocksdb::Error> {
        Ok(self.bytes_of(key)?.map(|slice| pinned::bytes(slice, self.clone())))
    }

    fn bytes_of(&self, key: &[u8]) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error> {
        let mut failed = None;
        for row in self.rows_of(key) {
            match self.db.get_pinned_cf(self.family(BLOCKS), row) {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Where the block of a key may lie, the likeliest first: under its name, and in a database that an older build filled
    /// also under its key. Before there are names nothing has one.
    fn rows_of<'k>(&self, key: &'k [u8]) -> impl Iterator<Item = Row<'k>> {
        let names = self.names.get();
        let older = names.map_or(Some(key), |names| names.older(key));
        names.map(|names| Row::Name(names.of(key))).into_iter().chain(older.map(Row::Key))
    }

    /// Finds out how blocks are named: by the identity that the database has, or else by the one that the repo is `known` to
    /// have, if it fits what is there.
    fn learn_names(&self, known: Option<Identity>) -> Result<(), DbError> {
        let stored = match self.identity() {
            Err(DbError::Damaged { .. }) if known.is_some() => None,
            stored => stored?,
        };
        let Some(identity) = stored.or(known) else {
            return match self.has_names()? {
                true => Err(DbError::Foreign { path: self.path.clone() }),
                false => Ok(()),
            };
        };
        // Where that cannot be read it only costs a second look.
        let marked = matches!(self.record(TOTALS, ALL_NAMED, |_| Some(())), Ok(Some(())));
        let names = Names::new(identity, !marked && !self.is_empty());
        if stored.is_none() && !self.fits(&names)? {
            return Err(DbError::Foreign { path: self.path.clone() });
        }
        // Whoever opens it is alone with it.
        let _ = self.names.set(names);
        Ok(())
    }

    /// Whether there is no row of a block; where that cannot be told there is one.
    fn is_empty(&self) -> bool {
        let mut rows = self.db.raw_iterator_cf(self.family(BLOCKS));
        rows.seek_to_first();
        !rows.valid() && rows.status().is_ok()
    }

    /// Whether any block lies under a name, as far as can be told. Reads all of them if none does.
    fn has_names(&self) -> Result<bool, DbError> {
        let mut rows = self.db.raw_iterator_cf(self.family(BLOCKS));
        rows.seek_to_first();
        while let Some(row) = rows.key() {
            if names::is_name(row) {
                return Ok(true);
            }
            rows.next();
        }
        match rows.status() {
            Err(error) if !is_damage(&error) => Err(self.failed(error)),
            _ => Ok(false),
        }
    }

    /// Whether a block that lies under a name has that name, if any can be read.
    fn fits(&self, names: &Names) -> Result<bool, DbError> {
        let mut rows = self.db.raw_iterator_cf(self.family(BLOCKS));
        rows.seek_to_first();
        while let Some((row, data)) = rows.item() {
            if names::is_name(row)
                && let Some(key) = names::key_of(row, data)
            {
                return Ok(names.of(&key)[..] == *row);
            }
            rows.next();
        }
        match rows.status() {
            Err(error) if !is_damage(&error) => Err(self.failed(error)),
            _ => Ok(true),
        }
    }

    /// What is known of a block. Where the table that says it is damaged, what the block itself tells.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Meta>, DbError> {
        match self.record(META, key, Meta::decode) {
            Err(DbError::Damaged { .. }) => self.meta_of_bytes(key),
            other => other,
        }
    }

    /// [`meta`](Self::meta) of many blocks, whose keys are in ascending order: a third of the work of asking one by one.
    pub fn metas_of(&self, keys: &[&[u8]]) -> Result<Vec<Option<Meta>>, DbError> {
        let found = self.db.batched_multi_get_cf(self.family(META), keys.iter().copied(), true);
        let metas = keys.iter().zip(found).map(|(key, found)| match found {
            Ok(None) => Ok(None),
            Ok(Some(bytes)) => Meta::decode(&bytes).map(Some).ok_or_else(|| self.undecodable(META)),
            // Again, alone: it knows what to do.
            Err(_) => self.meta(key),
        });
        metas.collect()
    }

    /// Why what is known of a block cannot be read any more, if that is so.
    pub fn index_damage(&self, key: &[u8]) -> Option<rocksdb::Error> {
        self.db.get_pinned_cf(self.family(META), key).err().filter(is_damage)
    }

    /// The metadata of a block whose own was lost: whom it was for is not known any more.
    fn meta_of_bytes(&self, key: &[u8]) -> Result<Option<Meta>, DbError> {
        let of = |size: usize, quarantined| Meta {
            size: size as u32,
            class: Class::Own,
            quarantined,
            generation: 0,
        };
        match self.bytes_of(key) {
            Ok(bytes) => Ok(bytes.map(|bytes| of(bytes.len(), false))),
            Err(error) if is_damage(&error) => Ok(Some(of(0, true))),
            Err(error) => Err(self.failed(error)),
        }
    }

    pub fn counter(&self, counter: Counter) -> Result<u64, DbError> {
        let total =
            self.record(TOTALS, &counter.key(), |bytes| bytes.try_into().ok().map(i64::from_le_bytes))?;
        u64::try_from(total.unwrap_or(0)).map_err(|_| DbError::Damaged {
            path: self.path.clone(),
            detail: format!("the total {counter:?} is negative"),
        })
    }

    fn record<T>(
        &self,
        family: &'static str,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, DbError> {
        let found = self.db.get_pinned_cf(self.family(family), key).map_err(|e| self.failed(e))?;
        found.map(|bytes| decode(&bytes).ok_or_else(|| self.undecodable(family))).transpose()
    }

    fn undecodable(&self, table: &'static str) -> DbError {
        DbError::Undecodable { table, detail: "unexpected length or value".into() }
    }

    pub fn changes(&self) -> Changes<'_> {
        Changes { db: self, batch: WriteBatch::default() }
    }

    /// Changes with room for `blocks` blocks of `bytes` in all and their records. A batch that grows by doubling copies
    /// what it holds with every step: a tenth of an import's time.
    pub fn changes_for(&self, blocks: usize, bytes: usize) -> Changes<'_> {
        let room = BATCH_HEADER + bytes + blocks * RECORDS;
        Changes { db: self, batch: WriteBatch::with_capacity_bytes(room) }
    }

    /// Makes everything written with [`Log::Write`] so far durable.
    pub fn sync(&self) -> Result<(), rocksdb::Error> {
        self.db.flush_wal(true)
    }

    /// Makes everything written so far durable, as one step over all families.
    pub fn flush(&self) -> Result<(), rocksdb::Error> {
        let families: Vec<&ColumnFamily> = FAMILIES.iter().map(|name| self.family(name)).collect();
        self.db.flush_cfs_opt(&families, &FlushOptions::default())
    }

    /// Fails if an error in the background stopped writes. A flush does not tell: with nothing to flush it succeeds.
    pub fn check_writable(&self) -> Result<(), rocksdb::Error> {
        self.changes().write(Log::Skip)
    }

    /// The repo's identity, once it has one.
    pub fn identity(&self) -> Result<Option<Identity>, DbError> {
        self.record(TOTALS, IDENTITY, |bytes| bytes.try_into().ok())
    }

    /// Writes the repo's identity durably. Blocks can be put from then on.
    pub fn set_identity(&self, identity: &Identity) -> Result<(), DbError> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(TOTALS), IDENTITY, identity);
        if self.is_empty() {
            batch.put_cf(self.family(TOTALS), ALL_NAMED, []);
        }
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        self.db.write_opt(batch, &synced).map_err(|e| self.failed(e))?;
        if self.names.get().is_none() { self.learn_names(None) } else { Ok(()) }
    }

    /// How many rows of blocks there are.
    #[cfg(test)]
    pub fn rows(&self) -> usize {
        self.db.iterator_cf(self.family(BLOCKS), rocksdb::IteratorMode::Start).count()
    }

    /// Copies the database as of now to `path`, which must not be there; links files where it can.
    pub fn checkpoint(&self, path: &Path) -> Result<(), rocksdb::Error> {
        Checkpoint::new(&self.db)?.create_checkpoint(path)
    }

    /// Bytes of its blocks.
    pub fn live(&self) -> Result<u64, DbError> {
        Class::ALL.iter().map(|class| self.counter(Counter::Bytes(*class))).sum()
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> Result<u64, DbError> {
        Class::ALL.iter().map(|class| self.counter(Counter::Blocks(*class))).sum()
    }

    /// Bytes in memory that a flush will bring to the disk.
    pub fn unflushed(&self) -> Result<u64, DbError> {
        let property = "rocksdb.cur-size-all-mem-tables";
        let size =
            self.db.property_int_value_cf(self.family(BLOCKS), property).map_err(|e| self.failed(e))?;
        Ok(size.unwrap_or(0))
    }
}

impl Changes<'_> {
    pub fn put_block(&mut self, key: &[u8], data: &[u8]) {
        let names = self.db.names.get().expect("a database has an identity before blocks are put");
        self.batch.put_cf(self.db.family(BLOCKS), names.of(key), data);
    }

    pub fn delete_block(&mut self, key: &[u8]) {
        for row in self.db.rows_of(key) {
            self.batch.delete_cf(self.db.family(BLOCKS), row);
        }
    }

    pub fn put_meta(&mut self, key: &[u8], meta: Meta) {
        self.batch.put_cf(self.db.family(META), key, meta.encode());
    }

    /// Removes the block and all that is known of it.
    pub fn forget(&mut self, key: &[u8]) {
        self.delete_block(key);
        self.batch.delete_cf(self.db.family(META), key);
    }

    pub fn add(&mut self, counter: Counter, delta: i64) {
        if delta != 0 {
            self.batch.merge_cf(self.db.family(TOTALS), counter.key(), delta.to_le_bytes());
        }
    }

    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    pub fn write(self, log: Log) -> Result<(), rocksdb::Error> {
        let mut options = WriteOptions::default();
        options.disable_wal(log == Log::Skip);
        self.db.db.write_opt(self.batch, &options)
    }
}

/// Whether an error says that bytes are lost, rather than that reading failed for now.
pub(super) fn is_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => true,
        // A blob file is gone.
        rocksdb::ErrorKind::IOError => error.as_ref().contains("No such file"),
        _ => false,
    }
}

fn database_options(budget: &Budget) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_atomic_flush(true);
    options.set_max_total_wal_size(LOG_LIMIT);
    options.set_max_open_files(budget.open_files());
    options.set_max_background_jobs(2);
    // Of each family; with one, a disk that seeks would be waited for table by table.
    options.set_max_file_opening_threads(4);
    // Dirty pages go out as they are made instead of all at the barrier.
    options.set_bytes_per_sync(1 << 20);
    quiet_log(&mut options);
    options
}

fn family_options(name: &str, budget: &Budget) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(budget.cache());
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(PART);
    table.set_pin_top_level_index_and_filter(true);
    // Whole-key filters answer a peer's want for a block that is not here without a disk read.
    table.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    // Hashes cannot be made shorter, but half of a row is none: a sixth of a table of keys, a quarter of one of blocks.
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(budget.buffer());
    options.set_max_write_buffer_number(BUFFERS);
    options.set_level_zero_file_num_compaction_trigger(UNSORTED);
    options.set_max_bytes_for_level_base(SORTED);
    match name {
        BLOCKS => {
            options.set_enable_blob_files(true);
            options.set_min_blob_size(MIN_BLOB);
            options.set_blob_file_size(BLOB_FILE);
            options.set_blob_compression_type(DBCompressionType::None);
            // `reclaim` switches it on.
            options.set_enable_blob_gc(false);
        }
        META => {
            options.set_memtable_whole_key_filtering(true);
            options.set_memtable_prefix_bloom_ratio(BUFFER_FILTER);
        }
        TOTALS => options.set_merge_operator_associative("sum", sum),
        _ => {}
    }
    options
}
