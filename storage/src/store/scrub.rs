//! Damage: finding it, putting it aside, and listing what is stored.
//!
//! RocksDB verifies a checksum on every read, so a block that rotted on disk fails to read. It is then quarantined: its
//! bytes are dropped, `has` says no, and the next put of the right bytes heals it. Its space stays on the books until
//! it is collected. The scrub re-hashes blocks in the background and so also finds what was wrong before its checksum
//! was made.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use cid::Cid;

use super::rocks::{BlockDb, Counter, Log, Meta, is_damage};
use super::volumes::{Place, Volumes};
use super::write::Fault;
use super::{Shared, Store, key};
use crate::db::DbError;
use crate::{StoreError, hash};

/// Threads that read and hash a page: while one waits for the disk, others hash.
const CHECKERS: usize = 4;
/// Bytes of a page up to which one thread does it.
const CHECKED_ALONE: u64 = 4 << 20;

/// A block and its size, as listings give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    /// Its address, under the raw codec: the store keeps hashes, not codecs.
    pub cid: Cid,
    /// Bytes.
    pub size: u64,
}

/// One page of a scrub.
#[derive(Clone, Debug, Default)]
pub struct ScrubPage {
    /// Blocks that were read and hashed.
    pub checked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those found damaged; they are put aside.
    pub damaged: Vec<Cid>,
    /// Those that the disk did not give. They are left as they are: it may be a loose cable.
    pub unreadable: u64,
    /// Blocks that are well, but whose metadata was damaged; it is written anew, as that of own data.
    pub reindexed: u64,
    /// Where the next page begins; `None` at the end.
    pub next: Option<Cid>,
}

impl Store {
    /// Up to `limit` stored blocks in the order of their hashes, from `start` on (itself included). Quarantined ones
    /// are left out.
    pub fn blocks(&self, start: Option<&Cid>, limit: usize) -> Result<Vec<StoredBlock>, StoreError> {
        self.page(start, limit, |meta| !meta.quarantined)
    }

    /// Up to `limit` quarantined blocks: to be fetched again.
    pub fn quarantined(&self, limit: usize) -> Result<Vec<StoredBlock>, StoreError> {
        self.page(None, limit, |meta| meta.quarantined)
    }

    fn page(
        &self,
        start: Option<&Cid>,
        limit: usize,
        wanted: impl Fn(&Meta) -> bool,
    ) -> Result<Vec<StoredBlock>, StoreError> {
        let (db, _) = self.shared.db()?;
        let start = start.map(key).unwrap_or_default();
        let mut blocks = Vec::new();
        for row in db.metas(&start) {
            let (key, meta) = row?;
            if blocks.len() == limit {
                break;
            }
            if wanted(&meta) {
                blocks.push(StoredBlock { cid: Shared::named(&key), size: u64::from(meta.size) });
            }
        }
        Ok(blocks)
    }

    /// Reads and hashes up to `limit` blocks from `start` on, and puts aside what does not match.
    pub fn scrub(&self, start: Option<&Cid>, limit: usize) -> Result<ScrubPage, StoreError> {
        let page = self.scrub_page(start, limit)?;
        // A damaged table is no reason to stop writes once a compaction meets it.
        let table = self.shared.damaged_table.lock().clone();
        if let Some(table) = table
            && self.shared.db()?.0.is_stopped_by_damage(&table.path)
            && !self.shared.db()?.0.is_read_only()
        {
            self.shared.leave_damage_alone(table);
        }
        Ok(page)
    }

    fn scrub_page(&self, start: Option<&Cid>, limit: usize) -> Result<ScrubPage, StoreError> {
        let mut blocks = self.blocks(start, limit.saturating_add(1))?;
        let mut page = ScrubPage::default();
        if blocks.len() > limit {
            page.next = blocks.pop().map(|block| block.cid);
        }
        let next = AtomicUsize::new(0);
        let bytes: u64 = blocks.iter().map(|block| block.size).sum();
        let threads = if bytes < CHECKED_ALONE { 1 } else { CHECKERS };
        let parts = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .map(|_| {
                    let thread = std::thread::Builder::new().name("scrub".into());
                    thread.spawn_scoped(scope, || self.check(&blocks, &next))
                })
                .collect();
            let mut parts = vec![self.check(&blocks, &next)];
            for other in others {
                // Where no thread can be had, this one has done it all.
                let Ok(other) = other else { continue };
                parts.push(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            parts
        });
        for part in parts {
            let part = part?;
            page.checked += part.checked;
            page.bytes += part.bytes;
            page.reindexed += part.reindexed;
            page.unreadable += part.unreadable;
            page.damaged.extend(part.damaged);
        }
        page.damaged.sort_unstable();
        Ok(page)
    }

    /// Reads and hashes blocks, each time the next that nobody took, until there are no more.
    fn check(&self, blocks: &[StoredBlock], next: &AtomicUsize) -> Result<ScrubPage, StoreError> {
        let mut page = ScrubPage::default();
        let (db, _) = self.shared.db()?;
        while let Some(block) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            page.reindexed += u64::from(self.shared.reindex(&db, &key(&block.cid))?);
            page.checked += 1;
            page.bytes += block.size;
            // Not `get`: a file that holds the block too says nothing about the copy.
            let damaged = match self.shared.read(&db, &block.cid) {
                Ok(Some(data)) if hash::verify(&block.cid, &data).is_err() => {
                    self.shared.put_aside(&db, &block.cid)?;
                    true
                }
                // Collected meanwhile, or well.
                Ok(_) => false,
                Err(StoreError::Corrupt { .. }) => true,
                Err(StoreError::Db(error @ DbError::Rocks { .. })) => {
                    if page.unreadable == 0 {
                        tracing::error!(cid = %block.cid, %error, "a stored block cannot be read; the others are");
                    }
                    page.unreadable += 1;
                    false
                }
                Err(error) => return Err(error),
            };
            if damaged {
                page.damaged.push(block.cid);
            }
        }
        Ok(page)
    }
}

impl Shared {
    /// Reads a block; damage is put aside and reported.
    pub fn read(&self, db: &Volumes, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        let key = key(cid);
        match db.block(&key) {
            Ok(Some(data)) => Ok(Some(data)),
            Ok(None) if db.meta(&key)?.is_none_or(|meta| meta.quarantined) => Ok(None),
            Ok(None) => self.look_again(db, cid),
            Err((_, error)) if is_damage(&error) => self.look_again(db, cid),
            Err(failed) => Err(db.failed(failed).into()),
        }
    }

    /// Reads a block, from a file of the user's own if it is not copied.
    pub fn read_anywhere(&self, db: &Volumes, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        match self.read(db, cid)? {
            Some(block) => Ok(Some(block)),
            None => self.read_in_place(cid),
        }
    }

    /// Remembers that a table is damaged, if that is what an error says.
    pub fn note_table(&self, db: &Volumes, (place, error): (Place, rocksdb::Error)) {
        if error.kind() == rocksdb::ErrorKind::Corruption && error.as_ref().contains(".sst") {
            let path = db.at(place).db.path().to_owned();
            if !db.is_read_only() {
                BlockDb::mark_damaged(&path, error.as_ref());
            }
            *self.damaged_table.lock() = Some(Fault { path, detail: error.to_string() });
        }
    }

    /// A second look, under the stripe: a put or a collection may have come between.
    fn look_again(&self, db: &Volumes, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        let key = key(cid);
        {
            let _stripe = self.stripes.lock(std::iter::once(key.as_slice()));
            match db.block(&key) {
                Ok(Some(data)) => return Ok(Some(data)),
                Ok(None) if db.meta(&key)?.is_none_or(|meta| meta.quarantined) => return Ok(None),
                Ok(None) => {}
                Err(failed) if is_damage(&failed.1) => self.note_table(db, failed),
                Err(failed) => return Err(db.failed(failed).into()),
            }
            if db.is_read_only() {
                return Err(StoreError::Corrupt { cid: *cid });
            }
            self.quarantine(db, &key, |bytes| bytes.is_some())?;
        }
        tracing::error!(%cid, "a stored block is damaged and was put aside");
        Err(StoreError::Corrupt { cid: *cid })
    }

    /// Writes the metadata of a block anew if it cannot be read; tells whether that was so.
    fn reindex(&self, db: &Volumes, key: &[u8]) -> Result<bool, StoreError> {
        let Some((place, error)) = db.index_damage(key).filter(|_| !db.is_read_only()) else {
            return Ok(false);
        };
        self.note_table(db, (place, error));
        let _stripe = self.stripes.lock(std::iter::once(key));
        let Some(meta) = db.at(place).db.meta(key)? else { return Ok(false) };
        tracing::error!(cid = %Self::named(key), "the metadata of a block was damaged and is written anew");
        let mut changes = db.changes();
        changes.at(place).put_meta(key, Meta { generation: self.leases.generation(), ..meta });
        let log = if self.has_unflushed() { Log::Skip } else { Log::Write };
        self.write(changes, log)?;
        Ok(true)
    }

    /// Quarantines a block whose bytes read well but do not hash to its address.
    fn put_aside(&self, db: &Volumes, cid: &Cid) -> Result<(), StoreError> {
        if db.is_read_only() {
            return Ok(());
        }
        let key = key(cid);
        let _stripe = self.stripes.lock(std::iter::once(key.as_slice()));
        self.quarantine(db, &key, |bytes| bytes.is_some_and(|bytes| hash::verify(cid, bytes).is_ok()))?;
        tracing::error!(%cid, "a stored block does not match its hash and was put aside");
        Ok(())
    }

    /// Drops the copies of a block that are not `well`, by their bytes as far as they can be read, and notes that they are
    /// damaged; its stripe must be held. Through the log only when what it builds on is durable; it would be found
    /// again otherwise.
    fn quarantine(
        &self,
        db: &Volumes,
        key: &[u8],
        well: impl Fn(Option<&[u8]>) -> bool,
    ) -> Result<(), StoreError> {
        let mut changes = db.changes();
        for (place, meta) in db.copies(key)? {
            if meta.quarantined {
                continue;
            }
            let bytes = match db.at(place).db.block(key) {
                Err(error) if is_damage(&error) => None,
                Err(error) => return Err(db.failed((place, error)).into()),
                Ok(bytes) => bytes,
            };
            if well(bytes.as_deref()) {
                continue;
            }
            let part = changes.at(place);
            part.delete_block(key);
            part.put_meta(key, Meta { quarantined: true, ..meta });
            part.add(Counter::Quarantined, 1);
        }
        let log = if self.has_unflushed() { Log::Skip } else { Log::Write };
        if changes.is_empty() {
            return Ok(());
        }
        self.write(changes, log)?;
        self.fresh.clear();
        Ok(())
    }
}
