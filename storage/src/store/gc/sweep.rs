//! Sweeping: deletes what was not marked.

use super::super::rocks::{Counter, Log, Meta};
use super::super::volumes::Volumes;
use super::super::{Store, key};
use super::{GcReport, Marks};
use crate::StoreError;

/// Blocks deleted under one hold of their stripes; small, so that puts hardly wait.
const BATCH: usize = 128;

/// Where sweeping is.
pub(super) struct Sweeping {
    dry_run: bool,
    /// The first key not looked at.
    next: Vec<u8>,
}

impl Sweeping {
    pub fn new(dry_run: bool) -> Sweeping {
        Sweeping { dry_run, next: Vec::new() }
    }

    /// Looks at `blocks` blocks; `false` at the end of the store.
    pub fn step(
        &mut self,
        store: &Store,
        db: &Volumes,
        marks: &Marks,
        oldest: u64,
        blocks: usize,
        report: &mut GcReport,
    ) -> Result<bool, StoreError> {
        let mut dead: Vec<(Vec<u8>, Meta)> = Vec::with_capacity(BATCH.min(blocks));
        let mut left = blocks;
        let mut more = false;
        for block in db.metas(&self.next) {
            let (key, meta) = block?;
            if left == 0 {
                self.next = key;
                more = true;
                break;
            }
            left -= 1;
            report.examined_blocks += 1;
            if meta.generation < oldest && !marks.contains(&key)? {
                dead.push((key, meta));
            }
            if dead.len() == BATCH {
                self.delete(store, db, &mut dead, oldest, report)?;
            }
        }
        self.delete(store, db, &mut dead, oldest, report)?;
        Ok(more)
    }

    /// Deletes those that nobody stamped meanwhile, and empties the list.
    fn delete(
        &self,
        store: &Store,
        db: &Volumes,
        dead: &mut Vec<(Vec<u8>, Meta)>,
        oldest: u64,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        let gone: Vec<Meta> = if self.dry_run {
            dead.iter().map(|(_, meta)| *meta).collect()
        } else {
            let keys: Vec<&[u8]> = dead.iter().map(|(key, _)| key.as_slice()).collect();
            let _stripes = store.shared.stripes.lock(keys.iter().copied());
            store.forget(db, &keys, |meta| meta.generation < oldest)?
        };
        report.freed_blocks += gone.len() as u64;
        report.freed_bytes += gone.iter().map(|meta| u64::from(meta.size)).sum::<u64>();
        dead.clear();
        Ok(())
    }
}

impl Store {
    /// Deletes those of `keys` that are `doomed`, and their books; the caller holds their stripes. Answers what went.
    pub(super) fn forget(
        &self,
        db: &Volumes,
        keys: &[&[u8]],
        doomed: impl Fn(&Meta) -> bool,
    ) -> Result<Vec<Meta>, StoreError> {
        let mut changes = db.changes();
        let mut gone: Vec<Meta> = Vec::with_capacity(keys.len());
        let (generation, mut fresh) = (self.shared.leases.generation(), false);
        for key in keys {
            let copies = db.copies(key)?;
            // Its quarantine may be in memory only; logging the deletion alone would upset the totals in a crash.
            let unsure = copies.iter().any(|(_, meta)| meta.quarantined) && self.shared.has_unflushed();
            if unsure || copies.iter().any(|(_, meta)| !doomed(meta)) {
                continue;
            }
            for (place, meta) in &copies {
                fresh |= meta.generation >= generation;
                let part = changes.at(*place);
                part.forget(key);
                part.add(Counter::Blocks(meta.class), -1);
                part.add(Counter::Bytes(meta.class), -i64::from(meta.size));
                part.add(Counter::Quarantined, -i64::from(meta.quarantined));
            }
            gone.extend(copies.first().map(|(_, meta)| *meta));
        }
        if !changes.is_empty() {
            self.shared.write(changes, Log::Write)?;
            // A collection takes only what has an older stamp, a removal anything.
            if fresh {
                self.shared.fresh.clear();
            }
        }
        for meta in &gone {
            self.shared.space.shrink(meta.class, u64::from(meta.size));
        }
        Ok(gone)
    }

    /// Deletes one block whatever pins say: content that must go by law, or a loss to be tried out. What pins it is
    /// incomplete from then on. `false` when it was not here.
    pub fn remove(&self, cid: &cid::Cid) -> Result<bool, StoreError> {
        self.shared.check_writable(&self.shared.db()?.0)?;
        let key = key(cid);
        let _stripe = self.shared.stripes.lock(std::iter::once(key.as_slice()));
        let (db, _) = self.shared.db()?;
        // A logged deletion of what is only in memory would upset the totals in a crash.
        if self.shared.has_unflushed() {
            self.shared.flush()?;
        }
        let placed = self.shared.forget_places_of(&key, None)?.is_some();
        Ok(!self.forget(&db, &[key.as_slice()], |_| true)?.is_empty() || placed)
    }
}
