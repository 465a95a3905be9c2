//! The block store: content-addressed blocks, who keeps them, and how they go.
//!
//! Two databases below the repo's directory: `state/` ([`crate::db`]) with a synced log for small records, and
//! `blocks/` ([`rocks`]) for the blocks and their bookkeeping. One file here per concern:
//!
//! | file | concern |
//! |---|---|
//! | `rocks` | a block database: options, records |
//! | `volumes` | all of them as one: data directories, placement, emptying one |
//! | `pinned` | bytes handed out without a copy |
//! | `hot` | blocks that are read again and again, in memory |
//! | `write` | putting a batch of blocks: dedupe, stamps, books, faults |
//! | `ingest` | a series of puts that is acknowledged as a whole |
//! | `behind` | writing one batch while the next is gathered |
//! | `barrier` | group commit |
//! | `fresh` | what was put lately, for pins |
//! | `lease` | generations, and what a collection must leave alone |
//! | `located` | blocks that are left in files of the user's own |
//! | `pins` | what is kept, and by whom |
//! | `indirect` | what pins keep below their roots |
//! | `quota` | who may use how much |
//! | `gc` | collection: mark, sweep, reclaim |
//! | `schema` | the version on disk, and migrations |
//! | `verify` | what is damaged, and which pins lack what |
//! | `identity` | whether state and blocks belong together |
//! | `backup` | a copy while the store is in use |
//! | `readonly` | a store whose disk can only be read |
//! | `scrub` | damage: finding it, putting it aside, listing blocks |
//! | `round` | how far the background scrub is |
//! | `pool` | threads for blocking calls |
//! | `decoders` | what the fuzzer of `tests/` needs of the above |
//!
//! Lock order: collection lock, key stripes (ascending), books, generations. Nothing waits for a disk sync while it
//! holds a stripe, but for the last step of emptying a directory.
//!
//! What a crash can lose: blocks of ingests that did not finish (nobody was told they are there) and stamps, which only
//! matter while their lease lives. What it cannot: anything for which [`Ingest::finish`] or a commit returned.

mod backup;
mod barrier;
mod behind;
pub mod decoders;
mod fresh;
mod gc;
mod graph;
mod hot;
mod identity;
mod indirect;
mod ingest;
mod lease;
mod located;
mod pinned;
mod pins;
mod pool;
mod quota;
mod readonly;
mod rocks;
mod round;
mod schema;
mod scrub;
mod stat;
#[cfg(test)]
mod tests;
mod verify;
mod volumes;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arrayvec::ArrayVec;
use bytes::Bytes;
use cid::Cid;
use parking_lot::{Mutex, RwLock};

use crate::db::{Batch, Outcome, StateDb, Table};
use crate::{BlockSource, Class, StoreError, alias, hash};
use barrier::Barrier;
use fresh::Fresh;
use hot::HotBlocks;
use lease::Leases;
use located::Places;
use pool::Pool;
use quota::{Promise, Space};
use rocks::{Budget, Counter};
use volumes::opening::How;
use volumes::{Volumes, directories, opening};
use write::{Fault, Stripes};

pub use backup::BackupReport;
use gc::Marks;
pub use gc::{GcOptions, GcPhase, GcProgress, GcReport, Removal};
pub use hot::HotStat;
pub use ingest::{Ingest, Ingested};
pub use located::{InPlace, LocatedBlock};
pub(crate) use pins::is_pinned_root;
pub use pins::{Pin, PinId, PinKind};
pub use quota::Quota;
pub use round::ScrubRound;
pub use scrub::{ScrubPage, StoredBlock};
pub use stat::{ClassStat, RepoStat};
pub use verify::{Incomplete, Verified};
pub use volumes::directories::{DirectoryStat, DirectoryState};
pub use volumes::rebuild::Rebuilt;

/// The generation counter of the store, durable before its value is used.
const GENERATION: Table<(), u64> = Table::new("storage.generation");
/// Promised space, by id.
const PROMISES: Table<String, Promise> = Table::new("storage.promises");

/// The first generation of a new store; 0 stands for "never".
const FIRST_GENERATION: u64 = 1;

/// How to open a [`Store`].
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The repo's directory; `state/` and `blocks/` are made below it.
    pub path: PathBuf,
    /// Names of the tables that other crates keep in the state database.
    pub tables: Vec<&'static str>,
    /// Most bytes per class.
    pub quota: Quota,
    /// Bytes of the disk that must stay free; writes are refused before that.
    pub reserve_bytes: u64,
}

/// The block store. Clones share it; the last one to go closes the databases.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
}

/// What all clones share.
struct Shared {
    state: StateDb,
    slot: RwLock<Slot>,
    /// The repo's directory.
    root: PathBuf,
    /// The store's own directory for blocks.
    blocks_path: PathBuf,
    stripes: Stripes,
    leases: Arc<Leases>,
    fresh: Fresh,
    space: Space,
    reserve_bytes: u64,
    /// Writes that skipped the log, and how many of them a flush has covered.
    skipped: AtomicU64,
    flushed: AtomicU64,
    /// Writes that went through the logs, and how many of them were synced.
    logged: AtomicU64,
    synced: AtomicU64,
    flush_barrier: Barrier,
    sync_barrier: Barrier,
    places: Places,
    /// What the block database last failed with, until it is writable again.
    fault: Mutex<Option<Fault>>,
    /// What reading a damaged table last said, and which database has it.
    damaged_table: Mutex<Option<Fault>>,
    collecting: Mutex<()>,
    /// Directories that were given up, whose blocks somebody may still be reading.
    left: Mutex<Vec<directories::Left>>,
    /// What the block databases may take.
    budget: Budget,
    /// Held by whoever walks the pins to see what they lack.
    examining: Mutex<()>,
    /// Each held by a walk through the pins that somebody asked for.
    walks: [Mutex<()>; indirect::WALKS],
    /// Batches put and blocks read so far, so that a collection notices when others are busy.
    calls: AtomicU64,
    /// Whether collections shall end.
    stopping: AtomicBool,
    /// Where marks of a collection go when they are many.
    marks_path: PathBuf,
    pool: Pool,
    /// Blocks in memory, if that was asked for.
    hot: OnceLock<HotBlocks>,
}

/// The block databases, which can be reopened in place.
struct Slot {
    /// `None` only after a reopening failed.
    db: Option<Arc<Volumes>>,
    /// Raised with every reopening: what was not durable before is gone.
    incarnation: u64,
    /// Raised whenever the set of databases changes.
    set: u64,
}

impl Store {
    /// Opens or creates the store below `options.path`.
    ///
    /// # Errors
    /// [`DbError::InUse`](crate::db::DbError::InUse) when another process has the repo,
    /// [`DbError::Newer`](crate::db::DbError::Newer) when a newer build wrote it.
    ///
    /// On a disk that can only be read it opens too: reads work, all else fails with
    /// [`DbError::ReadOnly`](crate::db::DbError::ReadOnly).
    pub fn open(options: StoreOptions) -> Result<Store, StoreError> {
        let mut tables = options.tables;
        tables.extend([GENERATION.name(), PROMISES.name(), gc::UNFINISHED.name(), round::ROUND.name()]);
        tables.extend([identity::IDENTITY.name(), directories::DIRECTORIES.name()]);
        tables.extend(pins::TABLES);
        tables.extend(located::TABLES);
        tables.extend(alias::TABLES);
        let blocks_path = options.path.join(directories::OWN_NAME);
        let marks_path = options.path.join("marks");
        let budget = Budget::new(1);
        let (state, volumes) = match readonly::is_read_only(&options.path) {
            true => readonly::open(&options.path, &budget)?,
            false => Self::open_writable(&options.path, &marks_path, &tables, &budget)?,
        };
        let used = volumes.used()?;
        let generation = state.get(&GENERATION, &())?.unwrap_or(FIRST_GENERATION);
        let promises = state.scan(&PROMISES, &[]).collect::<Result<Vec<_>, _>>()?;
        let space = Space::new(options.quota, used, promises);
        let places = Places::new(&state)?;
        let pool = Pool::start()
            .map_err(|e| StoreError::Unwritable { path: blocks_path.clone(), detail: e.to_string() })?;
        let shared = Shared {
            state,
            slot: RwLock::new(Slot { db: Some(Arc::new(volumes)), incarnation: 0, set: 0 }),
            root: options.path,
            blocks_path,
            stripes: Stripes::default(),
            leases: Leases::new(generation),
            fresh: Fresh::default(),
            space,
            reserve_bytes: options.reserve_bytes,
            skipped: AtomicU64::new(0),
            flushed: AtomicU64::new(0),
            logged: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            flush_barrier: Barrier::default(),
            sync_barrier: Barrier::default(),
            places,
            fault: Mutex::new(None),
            damaged_table: Mutex::new(None),
            collecting: Mutex::new(()),
            left: Mutex::new(Vec::new()),
            budget,
            examining: Mutex::new(()),
            walks: Default::default(),
            calls: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            marks_path,
            pool,
            hot: OnceLock::new(),
        };
        Ok(Store { shared: Arc::new(shared) })
    }

    /// The databases of a repo that may be new, old, or not have been closed well.
    fn open_writable(
        root: &Path,
        marks: &Path,
        tables: &[&'static str],
        budget: &Budget,
    ) -> Result<(StateDb, Volumes), StoreError> {
        let state = StateDb::open(&root.join("state"), tables)?;
        schema::migrate(&state, &root.join(directories::OWN_NAME))?;
        let walks = (0..indirect::WALKS).map(|slot| indirect::walk_path(marks, slot));
        for left in walks.chain([marks.to_owned(), marks.with_extension("whole")]) {
            if Marks::remove(&left)? {
                tracing::warn!(path = %left.display(), "removed what an interrupted collection left");
            }
        }
        let mut all = opening::load(&state, root)?;
        opening::remove_gone(&state, &all)?;
        opening::renew_spent(&state, &mut all, budget)?;
        let volumes = opening::open(&state, &all, budget, &How::Mending)?;
        Ok((state, volumes))
    }

    /// The state database, where every crate keeps its tables.
    pub fn state(&self) -> &StateDb {
        &self.shared.state
    }

    /// Runs `call`, which may block, on the store's own bounded pool. It runs to its end even if the returned future
    /// is dropped; a panic in it continues here.
    pub async fn run<T: Send + 'static>(&self, call: impl FnOnce(&Store) -> T + Send + 'static) -> T {
        let store = self.clone();
        let call = move || {
            let value = call(&store);
            drop(store);
            value
        };
        self.shared.pool.run(call).await
    }

    /// Begins to bring in blocks for `class`. From now on nothing it puts or keeps is collected, until it is finished
    /// or dropped.
    ///
    /// # Errors
    /// [`StoreError::Unwritable`] while the block database has failed and cannot be reopened yet.
    pub fn ingest(&self, class: Class) -> Result<Ingest, StoreError> {
        Ingest::begin(self.shared.clone(), class, None)
    }

    /// Like [`ingest`](Self::ingest), filling the promise `reservation` (see [`reserve`](Self::reserve)): its bytes are
    /// taken from there first.
    pub fn ingest_reserved(&self, class: Class, reservation: &str) -> Result<Ingest, StoreError> {
        Ingest::begin(self.shared.clone(), class, Some(reservation.to_owned()))
    }

    /// Refuses if `bytes` more of `class` would not fit, by quota or by the disk; to be asked before a long ingest of
    /// known size.
    pub fn check_space(&self, class: Class, bytes: u64) -> Result<(), StoreError> {
        self.shared.space.check(class, bytes)?;
        self.shared.check_disks(bytes)
    }

    /// Promises `bytes` of `class` under `id`, with the batch. The space counts as used at once, so that two promises
    /// made side by side cannot both take the last of it; it is released again if the batch is not committed.
    pub fn reserve(&self, batch: &mut Batch, id: &str, class: Class, bytes: u64) -> Result<(), StoreError> {
        let promise = Promise { class, bytes };
        batch.put(&PROMISES, &id.to_owned(), &promise)?;
        let old = self.shared.space.promise(id, promise)?;
        let (shared, id) = (self.shared.clone(), id.to_owned());
        batch.when_settled(Box::new(move |outcome| {
            if outcome == Outcome::Abandoned {
                shared.space.restore(&id, old);
            }
        }));
        Ok(())
    }

    /// Takes the promise `id` back, with the batch.
    pub fn unreserve(&self, batch: &mut Batch, id: &str) -> Result<(), StoreError> {
        batch.delete(&PROMISES, &id.to_owned())?;
        let (shared, id) = (self.shared.clone(), id.to_owned());
        batch.when_settled(Box::new(move |outcome| {
            if outcome == Outcome::Committed {
                shared.space.restore(&id, None);
            }
        }));
        Ok(())
    }

    /// Sets the quotas from now on. What is over a lowered one stays; only new bytes are refused.
    pub fn set_quota(&self, quota: Quota) {
        self.shared.space.set_quota(quota);
    }

    /// Makes everything written so far durable and shortens the next start.
    pub fn flush(&self) -> Result<(), StoreError> {
        let (db, _) = self.shared.db()?;
        if db.is_read_only() {
            return Ok(());
        }
        self.shared.flush()?;
        Ok(self.shared.state.flush()?)
    }

    /// Flushes and lets go of this handle. The databases are closed once every clone, ingest, batch and handed-out
    /// block is gone.
    ///
    /// After [`stop_collecting`](Self::stop_collecting) a running collection has ended when this returns.
    pub fn close(self) -> Result<(), StoreError> {
        self.flush()?;
        self.end_collecting()
    }
}

impl BlockSource for Store {
    /// Verified against the checksum it was written with. A damaged block is put aside and reported once as
    /// [`StoreError::Corrupt`]; after that it is absent.
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        if let Some(data) = hash::inline(cid) {
            return Ok(Some(Bytes::copy_from_slice(data)));
        }
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        self.shared.look(|db| self.shared.read_hot(db, cid))
    }

    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.block_size(cid)?.is_some())
    }

    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        if let Some(data) = hash::inline(cid) {
            return Ok(Some(data.len() as u64));
        }
        let meta = self.shared.look(|db| Ok(db.meta(&key(cid))?.filter(|meta| !meta.quarantined)))?;
        match meta {
            Some(meta) => Ok(Some(u64::from(meta.size))),
            None => self.shared.size_in_place(cid),
        }
    }
}

/// Most bytes of a key: a code of 64 bits, a length of up to 127, and the digest.
const MOST_KEY: usize = 11 + hash::MAX_DIGEST;

/// What a block is known by. It is made, copied and dropped for every block that comes, mostly by different threads:
/// allocations made them wait for each other.
type Key = ArrayVec<u8, MOST_KEY>;

/// The key of a block: its multihash, so that all CIDs of the same bytes name one block.
fn key(cid: &Cid) -> Key {
    let mut bytes = [0; MOST_KEY];
    let len = cid.hash().write(bytes.as_mut_slice()).expect("there is room for any that a CID can have");
    let mut key = ArrayVec::from(bytes);
    key.truncate(len);
    key
}
