//! Emptying a directory, so that its disk can be taken away.
//!
//! Blocks are moved in windows, in rounds of three steps: copy to a directory that stays, make that durable, delete here.
//! Each step holds the stripes of the keys it works on, and deletes only what a copy elsewhere [covers](Meta::covers)
//! as it then is; whatever came between (a put, a hit, damage, a reopened database that lost what was in memory) just
//! takes another round. A crash leaves blocks in both directories, and whoever empties or adds this one next goes on.
//! Everything else goes on meanwhile; new blocks go elsewhere from the start.
//!
//! Every window holds the collection lock and looks first whether the directory is still to be emptied: somebody may have
//! taken it in again since the last one.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::MutexGuard;

use super::super::rocks::{BlockDb, Counter, Log, Meta, is_damage};
use super::super::{Shared, Store};
use super::copies::book;
use super::directories::{DirectoryId, Left, OWN, State};
use super::{Changes, Place};
use crate::{StoreError, hash};

/// Bytes copied before they are made durable: several memtables, so that a flush is worth it.
const WINDOW: u64 = 64 << 20;
/// Blocks of a window at most: their keys are held in memory.
const WINDOW_BLOCKS: usize = 16 << 10;
/// Blocks moved under one hold of their stripes,
const BATCH: usize = 32;
/// and their bytes, which are held in memory.
const BATCH_BYTES: u64 = 4 << 20;
/// Rounds of a window. One is enough unless something comes between.
const ROUNDS: usize = 8;

/// A key and the size of its block.
pub(in super::super) type Row = (Vec<u8>, u64);

/// A directory being emptied. Whoever steps it holds the collection lock.
pub(in super::super) struct Drain {
    store: Store,
    id: DirectoryId,
    /// The first key that this pass has not seen.
    next: Vec<u8>,
    /// Whether this pass found anything.
    found: bool,
    /// Bytes moved so far, of all there were.
    moved: u64,
    total: u64,
    /// The databases that the copies of this round are in.
    incarnation: u64,
    /// Bytes of a window.
    pub(in super::super) portion: u64,
}

impl Store {
    /// Moves all blocks of a directory to the others and gives it up; reads and writes go on. `progress` is told bytes done
    /// and in all, and answers whether to go on. The store's own directory stays, without blocks, and takes no new
    /// ones. Bytes moved.
    ///
    /// # Errors
    /// [`StoreError::Directory`] when it is none of the store's, or no other one takes blocks. On any later error, or when
    /// `progress` says no, the directory takes no new blocks but keeps what is left; the next call goes on, and
    /// [`add_directory`](Self::add_directory) takes it in again.
    pub fn drain_directory(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<u64, StoreError> {
        let only = self.shared.collecting.lock();
        let mut drain = Drain::begin(self, path)?;
        drop(only);
        loop {
            let only = self.shared.collecting.lock();
            if !drain.step()? {
                return drain.finish();
            }
            // Collections, copies and whoever wants the directory back have their turn.
            MutexGuard::unlock_fair(only);
            if !progress(drain.moved, drain.total.max(drain.moved)) {
                return Err(drain.stopped());
            }
        }
    }

    /// Removes from a directory what others have too. The collection lock must be held, and it must not take blocks.
    pub(in super::super) fn remove_copies(&self, id: DirectoryId) -> Result<(), StoreError> {
        let mut drain = Drain::of(self, id, 0);
        loop {
            let window = drain.window()?;
            if window.is_empty() {
                return Ok(());
            }
            if self.shared.is_stopping() {
                return Err(drain.stopped());
            }
            let mut copied = Vec::new();
            let (volumes, _) = self.shared.db()?;
            for row in window {
                if volumes.elsewhere(id, &row.0)?.is_some() {
                    copied.push(row);
                }
            }
            drop(volumes);
            if !copied.is_empty() {
                drain.move_window(&copied)?;
            }
        }
    }
}

impl Drain {
    fn of(store: &Store, id: DirectoryId, total: u64) -> Drain {
        Drain {
            store: store.clone(),
            id,
            next: Vec::new(),
            found: false,
            moved: 0,
            total,
            incarnation: 0,
            portion: WINDOW,
        }
    }

    /// From now on the directory takes no new blocks.
    pub fn begin(store: &Store, path: &Path) -> Result<Drain, StoreError> {
        let refused =
            |detail: &str| StoreError::Directory { path: path.to_owned(), detail: detail.to_owned() };
        let id = store.directory_id(path)?;
        let id =
            id.ok_or_else(|| refused("it is none of the data directories of this repo that are open"))?;
        let (volumes, _) = store.shared.db()?;
        store.shared.check_writable(&volumes)?;
        if !volumes.iter().any(|volume| volume.id != id && volume.takes_blocks()) {
            return Err(refused("no other data directory takes blocks; add one first"));
        }
        let total = volumes.get(id).map_or(Ok(0), |volume| volume.db.live())?;
        let (room, disks) = volumes.room(store.shared.reserve_bytes, Some(id))?;
        if room < total {
            let reserve = store.shared.reserve_bytes.saturating_mul(disks);
            let (path, free) = (path.to_owned(), room.saturating_add(reserve));
            return Err(StoreError::DiskFull { path, asked: total, free, reserve });
        }
        drop(volumes);
        store.set_directory_state(id, State::Emptied)?;
        Ok(Drain::of(store, id, total))
    }

    /// Moves a window; `false` when a whole pass found nothing.
    pub fn step(&mut self) -> Result<bool, StoreError> {
        let window = self.copy_next()?;
        if window.is_empty() {
            self.next.clear();
            return Ok(std::mem::take(&mut self.found));
        }
        if !self.delete_window(&window)? {
            self.move_window(&window)?;
        }
        Ok(true)
    }

    /// Copies the next window; what it lists, nothing at the end of a pass.
    pub(in super::super) fn copy_next(&mut self) -> Result<Vec<Row>, StoreError> {
        self.check()?;
        let window = self.window()?;
        if !window.is_empty() {
            self.found = true;
            self.copy_window(&window)?;
        }
        Ok(window)
    }

    /// Refuses unless the directory is still to be emptied.
    fn check(&self) -> Result<(), StoreError> {
        let shared = &self.store.shared;
        let (volumes, _) = shared.db()?;
        let emptied = volumes.get(self.id).is_some_and(|volume| volume.directory.state == State::Emptied);
        if emptied && !shared.is_stopping() { Ok(()) } else { Err(self.stopped()) }
    }

    fn stopped(&self) -> StoreError {
        let volumes = self.store.shared.db().map(|(volumes, _)| volumes);
        let path = volumes.ok().and_then(|all| Some(all.get(self.id)?.directory.path.clone()));
        StoreError::DrainStopped { path: path.unwrap_or_default() }
    }

    /// The next blocks in the directory.
    fn window(&mut self) -> Result<Vec<Row>, StoreError> {
        let (volumes, _) = self.store.shared.db()?;
        let Some(volume) = volumes.get(self.id) else { return Ok(Vec::new()) };
        let (mut window, mut bytes) = (Vec::new(), 0);
        for row in volume.db.metas(&self.next) {
            let (key, meta) = row?;
            let size = u64::from(meta.size);
            bytes += size;
            window.push((key, size));
            if bytes >= self.portion || window.len() == WINDOW_BLOCKS {
                break;
            }
        }
        if let Some((last, _)) = window.last() {
            self.next.clone_from(last);
            // The first key behind it.
            self.next.push(0);
        }
        Ok(window)
    }

    /// Moves what a window lists until the directory has none of it.
    fn move_window(&mut self, window: &[Row]) -> Result<(), StoreError> {
        for _ in 0..ROUNDS {
            self.copy_window(window)?;
            if self.delete_window(window)? {
                return Ok(());
            }
        }
        Err(self.stopped())
    }

    /// Copies blocks durably.
    fn copy_window(&mut self, window: &[Row]) -> Result<(), StoreError> {
        let shared = self.store.shared.clone();
        self.incarnation = shared.db()?.1;
        batches(window).try_for_each(|batch| self.copy(&shared, batch))?;
        shared.flush()
    }

    /// Deletes what was copied; whether nothing is left.
    pub(in super::super) fn delete_window(&mut self, window: &[Row]) -> Result<bool, StoreError> {
        let shared = self.store.shared.clone();
        let mut all = true;
        for batch in batches(window) {
            all &= self.delete(&shared, batch)?;
        }
        Ok(all)
    }

    /// Copies those of a batch that no directory has which takes blocks, and makes what is there as good as what is here.
    fn copy(&mut self, shared: &Shared, batch: &[Row]) -> Result<(), StoreError> {
        let _stripes = shared.stripes.lock(batch.iter().map(|(key, _)| key.as_slice()));
        let (volumes, _) = shared.db()?;
        let (Some(from), Some(here)) = (volumes.get(self.id), volumes.place_of(self.id)) else {
            return Ok(());
        };
        let to = volumes.roomiest()?;
        let mut changes = volumes.changes();
        let mut bytes = 0;
        for (key, _) in batch {
            let Some(meta) = from.db.meta(key)? else { continue };
            let there = volumes.elsewhere(self.id, key)?;
            let place = there.map_or(to, |(place, _)| place);
            let sound = match there {
                Some((place, other)) if !other.quarantined => whole(&volumes.at(place).db, key)?.is_some(),
                _ => false,
            };
            if sound && there.is_some_and(|(_, other)| other.covers(&meta)) {
                continue;
            }
            let data = if sound || meta.quarantined { None } else { whole(&from.db, key)? };
            let quarantined = !sound && data.is_none();
            if quarantined && !meta.quarantined {
                tracing::error!(cid = %Shared::named(key), "a stored block is damaged and was put aside");
                match from.db.index_damage(key) {
                    Some(_) => changes.at(here).delete_block(key),
                    None => put_aside(&mut changes, here, key, meta),
                }
            }
            bytes += data.as_ref().map_or(0, |data| data.len() as u64);
            let new = Meta { quarantined, ..there.map_or(meta, |(_, other)| other.joined(&meta)) };
            put_copy(&mut changes, place, key, there.map(|(_, other)| other), new, data);
        }
        if bytes > 0 {
            shared.check_disk(&volumes, to, bytes)?;
        }
        if !changes.is_empty() {
            shared.write(changes, Log::Skip)?;
        }
        Ok(())
    }

    /// Deletes those of a batch that another directory has durably; whether that is all of them.
    fn delete(&mut self, shared: &Shared, batch: &[Row]) -> Result<bool, StoreError> {
        let _stripes = shared.stripes.lock(batch.iter().map(|(key, _)| key.as_slice()));
        let (volumes, incarnation) = shared.db()?;
        let (Some(from), Some(here)) = (volumes.get(self.id), volumes.place_of(self.id)) else {
            return Ok(true);
        };
        if incarnation != self.incarnation {
            return Ok(false);
        }
        let mut changes = volumes.changes();
        let (mut all, mut moved) = (true, 0);
        for (key, _) in batch {
            let Some(meta) = from.db.meta(key)? else { continue };
            if !volumes.elsewhere(self.id, key)?.is_some_and(|(_, other)| other.covers(&meta)) {
                all = false;
                continue;
            }
            moved += u64::from(meta.size);
            let part = changes.at(here);
            part.forget(key);
            // Else nobody knows for whom it was counted.
            if from.db.index_damage(key).is_none() {
                book(part, meta, -1);
            }
        }
        // What was changed since the flush may be in memory only; logging the deletion alone would upset the totals.
        let log = if shared.has_unflushed() { Log::Skip } else { Log::Write };
        if !changes.is_empty() {
            shared.write(changes, log)?;
        }
        self.moved += moved;
        Ok(all)
    }

    /// Gives the empty directory up; the bytes that were moved.
    pub fn finish(mut self) -> Result<u64, StoreError> {
        let shared = self.store.shared.clone();
        loop {
            self.check()?;
            let stripes = shared.stripes.lock_all();
            let (volumes, _) = shared.db()?;
            let Some(volume) = volumes.get(self.id) else { return Err(self.stopped()) };
            if volume.db.metas(&[]).next().is_some() {
                // Somebody was still writing when it began.
                drop((volumes, stripes));
                while self.step()? {}
                continue;
            }
            let db = volume.db.clone();
            // What was not known to be counted for somebody is on them still. The totals go through the log, while the
            // last deletions may be in memory only.
            db.flush().map_err(|error| db.failed(error))?;
            db.recount()?;
            // Copies were on the books twice.
            shared.space.set_used(volumes.used()?);
            drop(volumes);
            if self.id == OWN {
                drop(stripes);
                shared.flush()?;
                if BlockDb::is_damaged(db.path()) {
                    // Its tables cannot be compacted any more; they go at the next opening.
                    self.store.set_directory_state(self.id, State::Spent)?;
                } else {
                    db.settle()?;
                }
                return Ok(self.moved);
            }
            BlockDb::give_up(db.path())?;
            self.store.set_directory_state(self.id, State::Gone)?;
            drop(stripes);
            shared.left.lock().push(Left { id: self.id, db });
            shared.remove_left()?;
            return Ok(self.moved);
        }
    }
}

/// A window in parts that are moved at a time.
fn batches(window: &[Row]) -> impl Iterator<Item = &[Row]> {
    let mut rest = window;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |(_, size): &&Row| {
            bytes += size;
            bytes <= BATCH_BYTES
        };
        let many = rest.iter().take(BATCH).take_while(fits).count().max(1).min(rest.len());
        let (batch, left) = rest.split_at(many);
        rest = left;
        (!batch.is_empty()).then_some(batch)
    })
}

/// The bytes of a block in one database, if they can be read and match its hash.
fn whole(db: &Arc<BlockDb>, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
    match db.block(key) {
        Ok(data) => Ok(data.filter(|data| hash::verify(&Shared::named(key), data).is_ok())),
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) => Err(db.failed(error).into()),
    }
}

/// Notes that the copy at a place is damaged, and drops its bytes.
fn put_aside(changes: &mut Changes<'_>, place: Place, key: &[u8], meta: Meta) {
    let part = changes.at(place);
    part.delete_block(key);
    part.put_meta(key, Meta { quarantined: true, ..meta });
    part.add(Counter::Quarantined, 1);
}

/// Writes a copy, whose metadata was `old` if there was one; `data` if its bytes were not there.
fn put_copy(
    changes: &mut Changes<'_>,
    place: Place,
    key: &[u8],
    old: Option<Meta>,
    new: Meta,
    data: Option<Bytes>,
) {
    let part = changes.at(place);
    if let Some(old) = old {
        book(part, old, -1);
    }
    book(part, new, 1);
    part.put_meta(key, new);
    match data {
        Some(data) => part.put_block(key, &data),
        None if new.quarantined => part.delete_block(key),
        None => {}
    }
}
