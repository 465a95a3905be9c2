//! The typed state database: small records that must survive, for every crate of the workspace.
//!
//! Each crate declares its tables as `const`s ([`Table`]) and names them when the repo is opened; each table is a
//! column family of one RocksDB with a write-ahead log. Changes to any number of tables, of any crates, are
//! collected in a [`Batch`] and become durable together in [`StateDb::commit`]: that is how an agreement and its
//! pin move in one step.
//!
//! Invariants:
//!
//! * A committed batch survives power loss: commits are synced (RocksDB groups concurrent ones into one sync, and syncs
//!   with them what was noted before without one).
//! * Recovery tolerates a torn last record, which was never acknowledged, and refuses a hole in the middle: a state
//!   that silently lost a voucher would be worse than one that does not open.
//! * A full disk refuses commits whole and loses nothing; RocksDB goes on by itself within seconds of space returning.
//! * Keys keep their order as bytes, so that scans come in key order. Values are DAG-CBOR.
//! * Tables of other builds are opened and left alone; a repo of a newer schema is refused.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use btfs_storage::db::{StateDb, Table};
//! const AGES: Table<String, u64> = Table::new("example.ages");
//!
//! let dir = tempfile::tempdir()?;
//! let db = StateDb::open(dir.path(), &[AGES.name()])?;
//! let mut batch = db.batch();
//! batch.put(&AGES, &"ada".to_string(), &36)?;
//! db.commit(batch)?;
//! assert_eq!(db.get(&AGES, &"ada".to_string())?, Some(36));
//! # Ok(())
//! # }
//! ```

mod batch;
mod error;
mod key;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use rocksdb::{
    ColumnFamily, ColumnFamilyDescriptor, DB, DBRecoveryMode, InfoLogger, LogLevel, Options, WriteOptions,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use batch::Batch;
pub(crate) use batch::Outcome;
pub use error::DbError;
pub use key::{TableKey, head};

/// Version of the repo's on-disk shape. Raised when an older build must not touch what a newer one wrote; whoever opens
/// a repo then takes older ones there.
pub const SCHEMA: u32 = 3;

/// Where the schema version is kept, in the default column family.
const SCHEMA_KEY: &[u8] = b"schema";

/// One table's write buffer, in bytes. State records are small; the cap that matters is [`ALL_BUFFERS`].
const TABLE_BUFFER: usize = 4 << 20;
/// All tables' write buffers together, in bytes: dozens of tables must not add up to hundreds of MiB.
const ALL_BUFFERS: usize = 16 << 20;
/// Bytes of log kept before the oldest table is flushed: bounds both disk and the replay at start.
const LOG_LIMIT: u64 = 32 << 20;
/// Cache for table blocks, in bytes; the working set of state is small.
const CACHE: usize = 8 << 20;
/// Open table files. Far below the usual descriptor limit of 1,024, which sockets need.
const OPEN_FILES: i32 = 64;

/// A typed table: its name on disk and the types of its keys and values.
///
/// Make it a `const`, and pass its [`name`](Self::name) to [`StateDb::open`]. Names are prefixed with their crate
/// ("ledger.accounts"), so that crates cannot collide.
pub struct Table<K, V> {
    name: &'static str,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Table<K, V> {
    /// The table of that name.
    pub const fn new(name: &'static str) -> Self {
        Table { name, types: PhantomData }
    }

    /// Its name: that of its column family.
    pub const fn name(&self) -> &'static str {
        self.name
    }
}

/// The state database. Clones share it.
#[derive(Clone)]
pub struct StateDb {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    db: DB,
    path: PathBuf,
    /// Whether its disk can only be read.
    read_only: bool,
    /// Held shared while a batch is written, and alone by [`StateDb::commit_alone`].
    writing: RwLock<()>,
}

impl Inner {
    /// The column family of a table.
    fn table(&self, name: &'static str) -> Result<&ColumnFamily, DbError> {
        self.db.cf_handle(name).ok_or(DbError::UnknownTable { table: name })
    }

    fn failed(&self, source: rocksdb::Error) -> DbError {
        DbError::from_rocks(&self.path, source)
    }

    fn check_writable(&self) -> Result<(), DbError> {
        match self.read_only {
            true => Err(DbError::ReadOnly { path: self.path.clone() }),
            false => Ok(()),
        }
    }
}

impl StateDb {
    /// Opens or creates the database at `path` with one column family per name in `tables`, and any others that it
    /// already has.
    ///
    /// # Errors
    /// [`DbError::InUse`] when another process (or another handle in this one) has it open, [`DbError::Newer`] when
    /// a newer build wrote it, [`DbError::Damaged`] when its log has a hole.
    pub fn open(path: &Path, tables: &[&'static str]) -> Result<StateDb, DbError> {
        Self::open_as(path, tables, false)
    }

    /// Opens a database that is there, on a disk that can only be read. Every commit is refused.
    pub(crate) fn open_read_only(path: &Path) -> Result<StateDb, DbError> {
        Self::open_as(path, &[], true)
    }

    fn open_as(path: &Path, tables: &[&'static str], read_only: bool) -> Result<StateDb, DbError> {
        std::fs::create_dir_all(path)
            .map_err(|source| DbError::Directory { path: path.to_owned(), source })?;
        let options = database_options();
        let mut names: BTreeSet<String> = tables.iter().map(|name| (*name).to_owned()).collect();
        names.insert(rocksdb::DEFAULT_COLUMN_FAMILY_NAME.to_owned());
        if path.join("CURRENT").exists() {
            let existing = DB::list_cf(&options, path).map_err(|e| DbError::from_rocks(path, e))?;
            names.extend(existing);
        }
        let cache = rocksdb::Cache::new_lru_cache(CACHE);
        let families = names.into_iter().map(|name| ColumnFamilyDescriptor::new(name, table_options(&cache)));
        let db = match read_only {
            true => DB::open_cf_descriptors_read_only(&options, path, families, false),
            false => DB::open_cf_descriptors(&options, path, families),
        };
        let db = db.map_err(|e| DbError::from_rocks(path, e))?;
        let inner = Inner { db, path: path.to_owned(), read_only, writing: RwLock::new(()) };
        let state = StateDb { inner: Arc::new(inner) };
        state.check_schema()?;
        Ok(state)
    }

    /// Refuses a newer repo; stamps a new one.
    fn check_schema(&self) -> Result<(), DbError> {
        let path = &self.inner.path;
        match self.found_schema()? {
            None if self.inner.read_only => Ok(()),
            None => self.set_schema(SCHEMA),
            Some(found) if found > SCHEMA => Err(DbError::Newer { path: path.clone(), found, known: SCHEMA }),
            Some(_) => Ok(()),
        }
    }

    fn found_schema(&self) -> Result<Option<u32>, DbError> {
        let inner = &self.inner;
        let Some(found) = inner.db.get(SCHEMA_KEY).map_err(|e| inner.failed(e))? else { return Ok(None) };
        let found = <[u8; 4]>::try_from(found.as_slice()).map(u32::from_be_bytes);
        let detail = || "the schema version is unreadable".into();
        found.map(Some).map_err(|_| DbError::Damaged { path: inner.path.clone(), detail: detail() })
    }

    /// The version of the repo's shape on disk: at most [`SCHEMA`].
    pub fn schema(&self) -> Result<u32, DbError> {
        Ok(self.found_schema()?.unwrap_or(SCHEMA))
    }

    /// Writes the version that the repo now has.
    pub(crate) fn set_schema(&self, version: u32) -> Result<(), DbError> {
        self.inner.check_writable()?;
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let written = self.inner.db.put_opt(SCHEMA_KEY, version.to_be_bytes(), &synced);
        written.map_err(|e| self.inner.failed(e))
    }

    /// The value under `key`, or `None`.
    pub fn get<K: TableKey, V: Serialize + DeserializeOwned>(
        &self,
        table: &Table<K, V>,
        key: &K,
    ) -> Result<Option<V>, DbError> {
        let family = self.inner.table(table.name)?;
        let found = self.inner.db.get_pinned_cf(family, key.encode()).map_err(|e| self.inner.failed(e))?;
        found.map(|bytes| decode_value(table.name, &bytes)).transpose()
    }

    /// Whether there is a value under `key`.
    pub fn contains<K: TableKey, V>(&self, table: &Table<K, V>, key: &K) -> Result<bool, DbError> {
        let family = self.inner.table(table.name)?;
        let found = self.inner.db.get_pinned_cf(family, key.encode()).map_err(|e| self.inner.failed(e))?;
        Ok(found.is_some())
    }

    /// A new empty batch for this database.
    pub fn batch(&self) -> Batch {
        Batch::new(self.inner.clone())
    }

    /// Runs the batch's checks now instead of at its commit.
    pub(crate) fn checked(&self, batch: Batch) -> Result<Batch, DbError> {
        batch.checked_against(&self.inner)
    }

    /// Runs the batch's checks, writes it as one step and syncs it. On an error nothing of it was written.
    ///
    /// A call blocks for a disk sync: do not make it on an async worker.
    pub fn commit(&self, batch: Batch) -> Result<(), DbError> {
        batch.commit_to(&self.inner)
    }

    /// Commits what `fill` puts into a batch, with no other batch being written from before it reads to after it is
    /// written: for whoever deletes what nothing refers to. `fill` must be short, and its batch has no checks.
    pub(crate) fn commit_alone<T, E: From<DbError>>(
        &self,
        fill: impl FnOnce(&mut Batch) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut batch = self.batch();
        let alone = self.inner.writing.write();
        let done = fill(&mut batch)?;
        batch.write(&self.inner, true)?;
        drop(alone);
        batch.settle(Outcome::Committed);
        Ok(done)
    }

    /// Sets the value under `key` without waiting for the disk: it outlives the process, and is durable with the next
    /// commit. For what only spares work, such as how far something is that can be done again.
    pub(crate) fn note<K: TableKey, V: Serialize>(
        &self,
        table: &Table<K, V>,
        key: &K,
        value: &V,
    ) -> Result<(), DbError> {
        let mut batch = self.batch();
        batch.put(table, key, value)?;
        let _not_alone = self.inner.writing.read();
        batch.write(&self.inner, false)
    }

    /// Writes every buffered record to table files. Nothing depends on it; it shortens the next start.
    pub fn flush(&self) -> Result<(), DbError> {
        if self.inner.read_only {
            return Ok(());
        }
        self.inner.db.flush_wal(true).map_err(|e| self.inner.failed(e))
    }

    /// Copies the database as of now to `path`, which must not be there; links files where it can. The copy is durable.
    pub(crate) fn checkpoint(&self, path: &Path) -> Result<(), rocksdb::Error> {
        rocksdb::checkpoint::Checkpoint::new(&self.inner.db)?.create_checkpoint(path)
    }

    /// The directory of this database.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }
}

/// Reads a value as it was written.
fn decode_value<V: DeserializeOwned>(table: &'static str, bytes: &[u8]) -> Result<V, DbError> {
    serde_ipld_dagcbor::from_slice(bytes).map_err(|e| DbError::Undecodable { table, detail: e.to_string() })
}

/// Options of the database as a whole.
fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_db_write_buffer_size(ALL_BUFFERS);
    options.set_max_total_wal_size(LOG_LIMIT);
    options.set_max_open_files(OPEN_FILES);
    // A table has a file or two. RocksDB would start sixteen threads for those of each, a third of the time of a start.
    options.set_max_file_opening_threads(1);
    quiet_log(&mut options);
    options
}

/// Options of one table.
fn table_options(cache: &rocksdb::Cache) -> Options {
    let mut blocks = rocksdb::BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.set_write_buffer_size(TABLE_BUFFER);
    options.set_compression_type(rocksdb::DBCompressionType::None);
    options.set_block_based_table_factory(&blocks);
    options
}

/// What RocksDB says of itself is told with everything else. In files of its own nobody found it, and they took more than the
/// records of a thousand blocks.
pub(crate) fn quiet_log(options: &mut Options) {
    options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Warn, |level, text| match level {
        // All options, at each opening.
        LogLevel::Header => {}
        LogLevel::Error | LogLevel::Fatal => tracing::warn!(target: "rocksdb", "{}", text.trim_end()),
        _ => tracing::debug!(target: "rocksdb", ?level, "{}", text.trim_end()),
    }));
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
}
