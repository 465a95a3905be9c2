//! Changes that become durable together.

use std::sync::Arc;

use rocksdb::{WriteBatch, WriteOptions};
use serde::Serialize;

use super::{DbError, Inner, Table, TableKey};

/// A check that runs when the batch is committed; its error keeps the batch from being written.
type Check = Box<dyn FnOnce() -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send>;

/// Something to do once it is known whether the batch was written.
type Settle = Box<dyn FnOnce(Outcome) + Send>;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It is written and synced.
    Committed,
    /// It was dropped, refused, or its write failed.
    Abandoned,
}

/// Changes to any tables of one [`StateDb`](super::StateDb), written in one synced step or not at all.
///
/// Dropping a batch forgets it.
pub struct Batch {
    inner: Arc<Inner>,
    writes: WriteBatch,
    checks: Vec<Check>,
    last_checks: Vec<Check>,
    barriers: Vec<Check>,
    settle: Vec<Settle>,
}

impl Batch {
    pub(super) fn new(inner: Arc<Inner>) -> Batch {
        Batch {
            inner,
            writes: WriteBatch::default(),
            checks: Vec::new(),
            last_checks: Vec::new(),
            barriers: Vec::new(),
            settle: Vec::new(),
        }
    }

    /// Sets the value under `key`.
    pub fn put<K: TableKey, V: Serialize>(
        &mut self,
        table: &Table<K, V>,
        key: &K,
        value: &V,
    ) -> Result<(), DbError> {
        let bytes = serde_ipld_dagcbor::to_vec(value)
            .map_err(|e| DbError::Unencodable { table: table.name, detail: e.to_string() })?;
        let family = self.inner.table(table.name)?;
        self.writes.put_cf(family, key.encode(), bytes);
        Ok(())
    }

    /// Removes the value under `key`, if there is one.
    pub fn delete<K: TableKey, V>(&mut self, table: &Table<K, V>, key: &K) -> Result<(), DbError> {
        let family = self.inner.table(table.name)?;
        self.writes.delete_cf(family, key.encode());
        Ok(())
    }

    /// Whether nothing was put or deleted.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Runs `check` before the batch is written, maybe while others are being made durable that it builds on: what it finds
    /// is durable only after a [`barrier`](Self::barrier). An error refuses the whole batch.
    pub(crate) fn check_before(&mut self, check: Check) {
        self.checks.push(check);
    }

    /// Runs `check`, which must be short, after all other checks: what it finds then holds until the batch is written, as
    /// far as [`StateDb::commit_alone`](super::StateDb::commit_alone) could change it.
    pub(crate) fn check_last(&mut self, check: Check) {
        self.last_checks.push(check);
    }

    /// Runs `barrier` after the checks: it makes durable what they found.
    pub(crate) fn barrier(&mut self, barrier: Check) {
        self.barriers.push(barrier);
    }

    /// Runs `settle` when the batch is written or given up, whichever comes.
    pub(crate) fn when_settled(&mut self, settle: Settle) {
        self.settle.push(settle);
    }

    pub(super) fn settle(&mut self, outcome: Outcome) {
        for settle in self.settle.drain(..) {
            settle(outcome);
        }
    }

    /// The batch with its checks run, which a commit then does not run again.
    pub(super) fn checked_against(mut self, inner: &Arc<Inner>) -> Result<Batch, DbError> {
        if !Arc::ptr_eq(&self.inner, inner) {
            return Err(DbError::ForeignBatch);
        }
        if !self.writes.is_empty() {
            inner.check_writable()?;
        }
        run(&mut self.checks)?;
        Ok(self)
    }

    pub(super) fn commit_to(self, inner: &Arc<Inner>) -> Result<(), DbError> {
        let mut checked = self.checked_against(inner)?;
        run(&mut checked.barriers)?;
        {
            let _not_alone = inner.writing.read();
            run(&mut checked.last_checks)?;
            checked.write(inner, true)?;
        }
        checked.settle(Outcome::Committed);
        Ok(())
    }

    /// Writes it, and waits for the disk if it is to be synced; whoever calls this holds the lock on writing.
    pub(super) fn write(&mut self, inner: &Inner, sync: bool) -> Result<(), DbError> {
        if self.writes.is_empty() {
            return Ok(());
        }
        inner.check_writable()?;
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        let writes = std::mem::take(&mut self.writes);
        inner.db.write_opt(writes, &options).map_err(|e| inner.failed(e))
    }
}

fn run(checks: &mut Vec<Check>) -> Result<(), DbError> {
    checks.drain(..).try_for_each(|check| check().map_err(DbError::Refused))
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.settle(Outcome::Abandoned);
    }
}
