//! Putting a batch of blocks: dedupe, stamps, books, and what happens when the database fails.
//!
//! The check "is it here already" and the write that follows happen under the stripes of the keys concerned. The sweep of
//! a collection checks and deletes under the same stripes, so a dedupe hit and a deletion can never pass each other.
//!
//! A write goes through the log (small ingests) or skips it (large ones, made durable by a flush). One rule ties the
//! two: a batch that goes through the log may not build on blocks that are only in memory, or a crash would keep the
//! one and lose the other. So a batch with hits skips the log while any skipped write is unflushed.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cid::Cid;
use parking_lot::{Mutex, MutexGuard};

use super::rocks::{BlockDb, Counter, Log, Meta};
use super::volumes::directories::{Directory, DirectoryId};
use super::volumes::opening::How;
use super::volumes::{Changes, Place, Volumes, opening};
use super::{Key, Shared, Slot};
use crate::db::DbError;
use crate::{Class, StoreError};

/// What a database writes at least when it opens, in bytes: manifest, log, options.
const PROBE: usize = 64 << 10;

/// Number of key stripes: enough that concurrent ingests rarely meet on one.
const STRIPES: usize = 64;

/// Blocks looked up at a time.
pub(super) const LOOKED_UP: usize = 128;

/// Locks over the key space.
pub(super) struct Stripes([Mutex<()>; STRIPES]);

impl Default for Stripes {
    fn default() -> Self {
        Stripes([const { Mutex::new(()) }; STRIPES])
    }
}

impl Stripes {
    /// Locks all of them.
    pub fn lock_all(&self) -> Vec<MutexGuard<'_, ()>> {
        self.0.iter().map(Mutex::lock).collect()
    }

    /// Locks the stripes of all `keys`, in ascending order, so that no two callers wait for each other.
    pub fn lock<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) -> Vec<MutexGuard<'_, ()>> {
        // Digests are uniform; their last byte spreads well.
        let stripes: BTreeSet<usize> =
            keys.map(|key| usize::from(key.last().copied().unwrap_or(0)) % STRIPES).collect();
        stripes.into_iter().map(|stripe| self.0[stripe].lock()).collect()
    }
}

/// A block on its way in.
pub(super) struct Incoming {
    pub key: Key,
    pub data: Bytes,
}

/// What a write did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub new_blocks: u64,
    pub new_bytes: u64,
    /// Bytes of it that came from a promise.
    pub drawn: u64,
    /// Whether it was written through the log.
    pub logged: bool,
}

/// A batch being put together under its stripes.
struct Plan<'a> {
    changes: Changes<'a>,
    /// Where new blocks go.
    place: Place,
    class: Class,
    generation: u64,
    written: Written,
    /// Bytes that come onto the books of `class`: new blocks and promotions.
    growth: u64,
    /// Bytes that leave the cache's books.
    promoted: u64,
    /// Whether it builds on blocks that were here.
    hits: bool,
    /// Whether it changes more than stamps.
    matters: bool,
}

impl Plan<'_> {
    fn put(&mut self, block: &Incoming, found: Option<(Place, Meta)>) -> Result<(), StoreError> {
        let size = block.data.len() as u64;
        let Some((place, found)) = found else {
            let (class, generation) = (self.class, self.generation);
            let meta = Meta { size: block.data.len() as u32, class, quarantined: false, generation };
            let changes = self.changes.at(self.place);
            changes.put_block(&block.key, &block.data);
            changes.put_meta(&block.key, meta);
            self.matters = true;
            self.written.new_blocks += 1;
            self.written.new_bytes += size;
            self.growth += size;
            return Ok(());
        };
        self.hits = true;
        let mut meta = Meta { generation: self.generation, ..found };
        if found.quarantined {
            // The right bytes are back; the space was counted all along.
            self.matters = true;
            let changes = self.changes.at(place);
            changes.put_block(&block.key, &block.data);
            changes.add(Counter::Quarantined, -1);
            meta.quarantined = false;
        }
        if found.class == Class::Cache && self.class != Class::Cache {
            self.promote(place, found);
            meta.class = self.class;
        }
        if meta != found {
            self.changes.put_meta(place, &block.key, meta)?;
        }
        Ok(())
    }

    /// Puts the new blocks onto the books: once a batch, since each change of a total is a record of its own.
    fn count(&mut self) {
        let changes = self.changes.at(self.place);
        changes.add(Counter::Blocks(self.class), self.written.new_blocks as i64);
        changes.add(Counter::Bytes(self.class), self.written.new_bytes as i64);
    }

    /// A cached block that someone now wants for good moves to their books.
    fn promote(&mut self, place: Place, found: Meta) {
        self.matters = true;
        let changes = self.changes.at(place);
        for (class, sign) in [(Class::Cache, -1), (self.class, 1)] {
            changes.add(Counter::Blocks(class), sign);
            changes.add(Counter::Bytes(class), sign * i64::from(found.size));
        }
        self.growth += u64::from(found.size);
        self.promoted += u64::from(found.size);
    }
}

/// What a block database last failed with.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub path: PathBuf,
    pub detail: String,
}

impl Fault {
    /// `own` is the path of the store's own database, for what does not name one.
    pub fn of(error: DbError, own: &Path) -> Fault {
        match error {
            DbError::Damaged { path, detail } => Fault { path, detail },
            DbError::Rocks { path, source } => Fault { path, detail: source.to_string() },
            error => Fault { path: own.to_owned(), detail: error.to_string() },
        }
    }

    fn told(&self, detail: &str) -> StoreError {
        StoreError::Unwritable { path: self.path.clone(), detail: detail.to_owned() }
    }
}

/// Whether a directory can be written to.
fn probe(directory: &Path) -> std::io::Result<()> {
    let path = directory.join("probe");
    let written = std::fs::File::create(&path).and_then(|mut file| {
        file.write_all(&[0; PROBE])?;
        file.sync_all()
    });
    let removed = match std::fs::remove_file(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    written.and(removed)
}

impl Shared {
    /// The block databases and their incarnation.
    pub fn db(&self) -> Result<(Arc<Volumes>, u64), StoreError> {
        let (db, incarnation, _) = self.set()?;
        Ok((db, incarnation))
    }

    /// The block databases, their incarnation, and the number of their set.
    fn set(&self) -> Result<(Arc<Volumes>, u64, u64), StoreError> {
        let slot = self.slot.read();
        match &slot.db {
            Some(db) => Ok((db.clone(), slot.incarnation, slot.set)),
            None => {
                let (path, detail) = (self.blocks_path.clone(), "it could not be reopened".to_owned());
                Err(StoreError::Unwritable { path, detail })
            }
        }
    }

    /// Writes a batch of blocks of `class`, each of which hashes to its key and is there once. Visible when this returns, durable after
    /// the barrier that [`Written::logged`] names.
    pub fn put(
        &self,
        incarnation: u64,
        class: Class,
        blocks: &[Incoming],
        draws_on: Option<&str>,
        log: Log,
    ) -> Result<Written, StoreError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let _stripes = self.stripes.lock(blocks.iter().map(|block| block.key.as_slice()));
        let db = self.db_of(incarnation)?;
        let bytes = blocks.iter().map(|block| block.data.len()).sum();
        let place = db.roomiest()?;
        let mut changes = db.changes();
        changes.expect(place, blocks.len(), bytes);
        let generation = self.leases.generation();
        let mut plan = Plan {
            changes,
            place,
            class,
            generation,
            written: Written::default(),
            growth: 0,
            promoted: 0,
            hits: false,
            matters: false,
        };
        // In the order of the keys, in which the database finds and takes them quickest.
        let mut blocks: Vec<&Incoming> = blocks.iter().collect();
        blocks.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        for some in blocks.chunks(LOOKED_UP) {
            let keys: Vec<&[u8]> = some.iter().map(|block| block.key.as_slice()).collect();
            for (block, found) in some.iter().zip(db.find_all(&keys)?) {
                plan.put(block, found)?;
            }
        }
        plan.count();
        let log = if plan.hits && self.has_unflushed() { Log::Skip } else { log };
        let only_hits = !plan.matters;
        let Plan { changes, mut written, growth, promoted, .. } = plan;
        if written.new_bytes > 0 {
            self.check_disk(&db, place, written.new_bytes)?;
        }
        written.logged = log == Log::Write;
        written.drawn = self.space.grow(class, growth, draws_on)?;
        let result = if only_hits { self.write_hints(changes) } else { self.write(changes, log) };
        if let Err(error) = result {
            // Of several databases some may have theirs: then the books say too much until they are read anew.
            if db.iter().count() == 1 {
                self.space.shrink(class, growth);
            }
            if let Some(id) = draws_on {
                self.space.undraw(id, written.drawn);
            }
            return Err(error);
        }
        self.space.shrink(Class::Cache, promoted);
        self.fresh.note(generation, blocks.iter().map(|block| block.key.as_slice()));
        Ok(written)
    }

    /// Stamps a block that is here, so that the holder of a lease can rely on it. What is known of it, or `None` if it is
    /// not here.
    pub fn touch(&self, incarnation: u64, key: &[u8]) -> Result<Option<Meta>, StoreError> {
        let _stripe = self.stripes.lock(std::iter::once(key));
        let db = self.db_of(incarnation)?;
        let Some((place, found)) = db.find(key)?.filter(|(_, meta)| !meta.quarantined) else {
            return Ok(None);
        };
        let generation = self.leases.generation();
        if found.generation != generation && !db.is_read_only() {
            let mut changes = db.changes();
            changes.put_meta(place, key, Meta { generation, ..found })?;
            self.write_hints(changes)?;
        }
        Ok(Some(found))
    }

    /// Writes changes; the stripes of their keys must be held, so that whoever then finds one of them also finds it
    /// counted as unflushed.
    pub fn write(&self, changes: Changes<'_>, log: Log) -> Result<(), StoreError> {
        changes.write(log).map_err(|e| self.note_fault(e))?;
        let count = if log == Log::Skip { &self.skipped } else { &self.logged };
        count.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Writes stamps alone. A crash may lose them: it ends the leases they are for. So they skip the log and nobody
    /// needs a flush on their account.
    pub fn write_hints(&self, changes: Changes<'_>) -> Result<(), StoreError> {
        if changes.is_empty() {
            return Ok(());
        }
        if changes.moves_books {
            return self.write(changes, Log::Skip);
        }
        changes.write(Log::Skip).map_err(|e| self.note_fault(e))
    }

    /// Whether there are writes that only a flush makes durable.
    pub fn has_unflushed(&self) -> bool {
        self.skipped.load(Ordering::SeqCst) > self.flushed.load(Ordering::SeqCst)
    }

    /// Whether there are writes in the logs that were not synced yet.
    pub fn has_unsynced(&self) -> bool {
        self.logged.load(Ordering::SeqCst) > self.synced.load(Ordering::SeqCst)
    }

    /// Barrier: everything written before is durable when this returns.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.flush_barrier.pass(|| {
            // In this order, within the run: what is counted went to databases that are flushed.
            let covered = self.skipped.load(Ordering::SeqCst);
            let (db, _) = self.db()?;
            db.flush().map_err(|e| self.note_fault(e))?;
            self.flushed.fetch_max(covered, Ordering::SeqCst);
            Ok(())
        })
    }

    /// Barrier: everything that went through the log before is durable when this returns.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.sync_barrier.pass(|| {
            let covered = self.logged.load(Ordering::SeqCst);
            self.db()?.0.sync().map_err(|e| self.note_fault(e))?;
            self.synced.fetch_max(covered, Ordering::SeqCst);
            Ok(())
        })
    }

    /// Looks for a block; again, if it was not found and the set of databases changed meanwhile.
    pub fn look<T>(
        &self,
        look: impl Fn(&Volumes) -> Result<Option<T>, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        loop {
            let (db, _, set) = self.set()?;
            let found = look(&db)?;
            // As long as somebody holds it, it cannot be reopened.
            drop(db);
            if found.is_some() || self.slot.read().set == set {
                return Ok(found);
            }
        }
    }

    /// The block databases, if they are still those of that incarnation. To be asked under the stripes of what is then
    /// written: the set of directories does not change meanwhile.
    fn db_of(&self, incarnation: u64) -> Result<Arc<Volumes>, StoreError> {
        let (db, now) = self.db()?;
        if now == incarnation { Ok(db) } else { Err(StoreError::Reopened) }
    }

    /// Refuses if `asked` more bytes at `place` would bring its disk under the reserve, buffers included.
    pub fn check_disk(&self, db: &Volumes, place: Place, asked: u64) -> Result<(), StoreError> {
        let (free, reserve) = (db.room_at(place)?, self.reserve_bytes);
        if free >= reserve.saturating_add(asked) {
            return Ok(());
        }
        let path = db.at(place).directory.path.clone();
        Err(StoreError::DiskFull { path, asked, free, reserve })
    }

    /// Refuses if `asked` more bytes do not fit on the disks of all directories together.
    pub fn check_disks(&self, asked: u64) -> Result<(), StoreError> {
        let (db, _) = self.db()?;
        let (room, disks) = db.room(self.reserve_bytes, None)?;
        if room >= asked {
            return Ok(());
        }
        let reserve = self.reserve_bytes.saturating_mul(disks);
        let (path, free) = (self.blocks_path.clone(), room.saturating_add(reserve));
        Err(StoreError::DiskFull { path, asked, free, reserve })
    }

    /// Remembers that a block database failed; the next ingest tries to bring it back.
    pub fn note_fault(&self, error: DbError) -> StoreError {
        let fault = Fault::of(error, &self.blocks_path);
        tracing::error!(path = %fault.path.display(), error = fault.detail, "the block database failed");
        BlockDb::mark_damaged(&fault.path, &fault.detail);
        let told = fault.told(&fault.detail);
        *self.fault.lock() = Some(fault);
        told
    }

    /// Reopens the databases so that a damaged table does not stop writes when a compaction meets it. If that is not
    /// possible now, the next ingest does it.
    pub fn leave_damage_alone(&self, fault: Fault) {
        tracing::error!(
            path = %fault.path.display(), damage = fault.detail,
            "a table of the block database is damaged: the space of what it lists cannot be given back; \
             `btfs repo verify` tells what is affected"
        );
        BlockDb::mark_damaged(&fault.path, &fault.detail);
        *self.fault.lock() = Some(fault);
        if let Err(error) = self.recover() {
            tracing::warn!(%error, "the block database is reopened at the next write");
        }
    }

    /// Brings a failed block database back: asks it whether it recovered by itself, else reopens all in place. Ingests
    /// from before a reopening fail with [`StoreError::Reopened`]; handed-out blocks stay valid, but while any is held
    /// the old database cannot be closed, and this fails for now.
    pub fn recover(&self) -> Result<(), StoreError> {
        let mut fault = self.fault.lock();
        let Some(found) = fault.clone() else { return Ok(()) };
        let mut slot = self.slot.write();
        // Before anything is closed: without it nothing can be opened again.
        let directories = opening::load(&self.state, &self.root)?;
        let damaged = found.detail.contains("Corruption");
        // A compaction that met a damaged table: from now on it is left alone.
        let mut passed_over: Vec<PathBuf> = damaged.then(|| found.path.clone()).into_iter().collect();
        if let Some(db) = slot.db.take() {
            passed_over.extend(db.damage_passed_over());
            let flushed = db.flush().and_then(|()| db.check_writable()).is_ok();
            if flushed && !(damaged && db.is_stopped_by_damage(&found.path)) {
                slot.db = Some(db);
                *fault = None;
                return Ok(());
            }
            // Closed, it could not be opened again, and now it can be read.
            let unwritable = db.iter().find_map(|volume| {
                let error = probe(volume.db.path()).err()?;
                Some(Fault { path: volume.db.path().to_owned(), detail: error.to_string() })
            });
            if let Some(fault) = unwritable {
                slot.db = Some(db);
                return Err(fault.told(&fault.detail));
            }
            if let Err(held) = db.close() {
                slot.db = Some(held);
                if flushed {
                    *fault = None;
                    return Ok(());
                }
                return Err(found.told(&found.detail));
            }
        }
        if let Err(error) = self.put_reopened(&mut slot, &directories, &How::Again(passed_over)) {
            // Better read alone than not at all; the next ingest tries again.
            if let Err(unreadable) = self.put_reopened(&mut slot, &directories, &How::ReadOnly) {
                tracing::warn!(error = %unreadable, "the block database cannot be read either");
            }
            return Err(found.told(&error.to_string()));
        }
        *fault = None;
        tracing::warn!(path = %found.path.display(), after = found.detail, "the block database was reopened");
        Ok(())
    }

    /// Opens the databases of `directories`, which were closed, into their slot.
    pub fn put_reopened(
        &self,
        slot: &mut Slot,
        directories: &[(DirectoryId, Directory)],
        how: &How,
    ) -> Result<(), StoreError> {
        let db = opening::open(&self.state, directories, &self.budget, how)?;
        self.space.set_used(db.used()?);
        slot.db = Some(Arc::new(db));
        slot.incarnation += 1;
        slot.set += 1;
        self.leases.reopened();
        self.fresh.clear();
        self.flushed.store(self.skipped.load(Ordering::SeqCst), Ordering::SeqCst);
        self.synced.store(self.logged.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(())
    }

    /// The CID under which a stored key is reported: raw, since the store does not know codecs.
    pub fn named(key: &[u8]) -> Cid {
        match multihash::Multihash::from_bytes(key) {
            Ok(hash) => Cid::new_v1(crate::hash::RAW, hash),
            // Keys are written by `key` alone; a damaged one is still worth naming.
            Err(_) => crate::hash::cid_v1(crate::hash::RAW, key),
        }
    }
}
