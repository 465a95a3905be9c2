//! Collection: finds what no pin reaches and gives its space back, while everything else goes on.
//!
//! 1. Expired pins go.
//! 2. A flush, so that every block that could be swept is durable before its deletion is logged.
//! 3. A new generation begins; what is stamped from now on, or since the oldest lease, is safe.
//! 4. Mark: every block that a pin reaches gets a mark of this generation in the database, so memory does not grow with
//!    the store.
//! 5. Sweep: unmarked blocks with an old stamp are deleted in small batches, each checked again under its stripes.
//! 6. Reclaim: the database gives the space of dead blocks back.
//!
//! An interrupted collection leaves marks and stamps of a generation that nobody uses again.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use cid::Cid;

use super::graph::{children, has_links, walk_bit};
use super::rocks::{BlockDb, Counter, Log, Mark, Meta};
use super::{GENERATION, Pin, PinKind, Shared, Store, key};
use crate::{StoreError, alias, hash};

/// Marks collected in memory before they are written: about 300 KB.
const MARK_BATCH: usize = 4096;
/// Blocks deleted under one hold of their stripes; small, so that puts hardly wait.
const SWEEP_BATCH: usize = 128;

/// Space is given back at once when at least one part in this many was freed; less waits for the database's own
/// housekeeping or a later collection, since settling the whole tree for it would cost more than it returns.
const RECLAIM_SHARE: u64 = 50;

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct GcReport {
    /// Expired pins that were removed.
    pub expired_pins: u64,
    /// Blocks in the store before.
    pub examined_blocks: u64,
    /// Blocks deleted.
    pub freed_blocks: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}

impl Store {
    /// Collects everything that no pin reaches and no lease protects. Blocks for as long as it takes; reads and writes
    /// go on. A second call waits for the first.
    ///
    /// # Errors
    /// [`StoreError::PinDamaged`] when a pinned DAG cannot be walked: then nothing is swept, since what hangs below the
    /// damaged block is unknown.
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.gc_at(now)
    }

    /// [`gc`](Self::gc) with pins expiring as of `now`, in unix seconds.
    pub fn gc_at(&self, now: u64) -> Result<GcReport, StoreError> {
        let _only = self.shared.collecting.lock();
        let mut report = GcReport { expired_pins: self.expire(now)?, ..GcReport::default() };
        let db = self.shared.db()?.0;
        self.shared.flush(&db)?;
        let generation = self.shared.leases.generation() + 1;
        let mut batch = self.state().batch();
        batch.put(&GENERATION, &(), &generation)?;
        self.state().commit(batch)?;
        let oldest = self.shared.leases.advance(generation);
        let mut marker = Marker { shared: &self.shared, db: &db, generation, pending: HashMap::new() };
        for pin in self.pins()? {
            marker.pin(&pin)?;
        }
        marker.write()?;
        self.sweep(&db, generation, oldest, &mut report)?;
        alias::drop_unpinned(self.state())?;
        let left = self.stat()?.bytes;
        if report.freed_bytes > 0 && report.freed_bytes >= left / RECLAIM_SHARE {
            db.reclaim()?;
        }
        tracing::info!(
            freed_blocks = report.freed_blocks,
            freed_bytes = report.freed_bytes,
            expired_pins = report.expired_pins,
            "collected"
        );
        Ok(report)
    }

    /// Removes the pins that expired by `now`.
    fn expire(&self, now: u64) -> Result<u64, StoreError> {
        let mut expired = 0;
        let mut batch = self.state().batch();
        for pin in self.pins()? {
            if pin.expires.is_some_and(|expires| expires <= now) && self.unpin(&mut batch, &pin.id)? {
                expired += 1;
            }
        }
        self.state().commit(batch)?;
        Ok(expired)
    }

    /// Deletes the unmarked blocks whose stamp is below `oldest`.
    fn sweep(
        &self,
        db: &BlockDb,
        generation: u64,
        oldest: u64,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let mut dead = Vec::with_capacity(SWEEP_BATCH);
        for block in db.metas(&[]) {
            let (key, _) = block?;
            report.examined_blocks += 1;
            if is_dead(db, &key, generation, oldest)? {
                dead.push(key);
            }
            if dead.len() == SWEEP_BATCH {
                self.delete(db, &mut dead, generation, oldest, report)?;
            }
        }
        self.delete(db, &mut dead, generation, oldest, report)
    }

    /// Deletes those of `keys` that are still dead, and empties it.
    fn delete(
        &self,
        db: &BlockDb,
        keys: &mut Vec<Vec<u8>>,
        generation: u64,
        oldest: u64,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let _stripes = self.shared.stripes.lock(keys.iter().map(Vec::as_slice));
        let mut dead = Vec::with_capacity(keys.len());
        for key in keys.iter() {
            if is_dead(db, key, generation, oldest)? {
                dead.push(key.as_slice());
            }
        }
        for meta in self.forget(db, &dead)? {
            report.freed_blocks += 1;
            report.freed_bytes += u64::from(meta.size);
        }
        keys.clear();
        Ok(())
    }

    /// Deletes blocks and their books; the caller holds their stripes. Answers what was there.
    fn forget(&self, db: &BlockDb, keys: &[&[u8]]) -> Result<Vec<Meta>, StoreError> {
        let mut changes = db.changes();
        let mut gone: Vec<Meta> = Vec::with_capacity(keys.len());
        for key in keys {
            let Some(meta) = db.meta(key)? else { continue };
            // Its quarantine may be in memory only; logging the deletion alone would upset the totals in a crash.
            if meta.quarantined && self.shared.has_unflushed() {
                continue;
            }
            changes.forget(key);
            changes.add(Counter::Blocks(meta.class), -1);
            changes.add(Counter::Bytes(meta.class), -i64::from(meta.size));
            changes.add(Counter::Quarantined, -i64::from(meta.quarantined));
            gone.push(meta);
        }
        if !changes.is_empty() {
            self.shared.write(changes, Log::Write)?;
        }
        for meta in &gone {
            self.shared.space.shrink(meta.class, u64::from(meta.size));
        }
        Ok(gone)
    }

    /// Deletes one block whatever pins say: content that must go by law, or a loss to be tried out. What pins it is
    /// incomplete from then on. `false` when it was not here.
    pub fn remove(&self, cid: &Cid) -> Result<bool, StoreError> {
        let (db, _) = self.shared.db()?;
        let key = key(cid);
        let _stripe = self.shared.stripes.lock(std::iter::once(key.as_slice()));
        Ok(!self.forget(&db, &[key.as_slice()])?.is_empty())
    }
}

/// Whether no pin of this collection reached the block and its stamp is older than anything that protects it.
fn is_dead(db: &BlockDb, key: &[u8], generation: u64, oldest: u64) -> Result<bool, StoreError> {
    if db.stamp(key)? >= oldest {
        return Ok(false);
    }
    Ok(db.mark(key)?.is_none_or(|mark| mark.generation != generation))
}

/// Marks what pins reach.
struct Marker<'a> {
    shared: &'a Shared,
    db: &'a std::sync::Arc<BlockDb>,
    generation: u64,
    /// Marks not written yet: key -> bits of how the block was walked.
    pending: HashMap<Vec<u8>, u8>,
}

impl Marker<'_> {
    fn pin(&mut self, pin: &Pin) -> Result<(), StoreError> {
        match pin.kind {
            PinKind::Recursive => self.dag(pin),
            PinKind::Direct => self.mark(&key(&pin.root), 0).map(drop),
            PinKind::List => {
                let shared = self.shared;
                shared.each_listed(&pin.id, |key| self.mark(key, 0).map(drop))
            }
        }
    }

    fn dag(&mut self, pin: &Pin) -> Result<(), StoreError> {
        let mut stack = vec![pin.root];
        while let Some(cid) = stack.pop() {
            let inline = hash::inline(&cid).is_some();
            if !inline && !self.mark(&key(&cid), walk_bit(cid.codec()))? {
                continue;
            }
            if has_links(&cid) {
                stack.extend(self.children(pin, &cid)?);
            }
        }
        Ok(())
    }

    fn children(&self, pin: &Pin, cid: &Cid) -> Result<Vec<Cid>, StoreError> {
        if let Some(data) = hash::inline(cid) {
            return children(cid, data);
        }
        let damaged = || StoreError::PinDamaged { pin: pin.id.to_string(), cid: *cid };
        let data = match self.shared.read(self.db, cid) {
            Ok(Some(data)) => data,
            Ok(None) | Err(StoreError::Corrupt { .. }) => return Err(damaged()),
            Err(error) => return Err(error),
        };
        children(cid, &data).map_err(|_| damaged())
    }

    /// Marks a block as reached, walked in the way of `bit`. `true` if it was not walked that way before.
    fn mark(&mut self, key: &[u8], bit: u8) -> Result<bool, StoreError> {
        if let Some(walked) = self.pending.get_mut(key) {
            let new = *walked & bit != bit;
            *walked |= bit;
            return Ok(new);
        }
        let found = self.db.mark(key)?.filter(|mark| mark.generation == self.generation);
        let walked = found.map(|mark| mark.walked);
        if walked.is_some_and(|walked| walked & bit == bit) {
            return Ok(false);
        }
        self.pending.insert(key.to_vec(), walked.unwrap_or(0) | bit);
        if self.pending.len() >= MARK_BATCH {
            self.write()?;
        }
        Ok(true)
    }

    /// Writes the pending marks. Only a collection writes marks, so no stripes are needed; and they may be lost in a
    /// crash, which ends the collection anyway.
    fn write(&mut self) -> Result<(), StoreError> {
        let mut changes = self.db.changes();
        for (key, walked) in self.pending.drain() {
            changes.mark(&key, Mark { generation: self.generation, walked });
        }
        self.shared.write_hints(changes)
    }
}
