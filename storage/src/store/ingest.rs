//! A series of puts that is acknowledged as a whole.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;

use super::behind::Writer;
use super::lease::Lease;
use super::rocks::Log;
use super::write::{Incoming, Written};
use super::{Key, Shared, key};
use crate::db::Batch;
use crate::hash;
use crate::{BlockSink, Class, MAX_BLOCK, StoreError};

/// Bytes buffered before they are written. Ingests that never exceed it go through the log in one synced batch: a
/// flush for each of them would leave a table and a blob file per acknowledgement. Larger ones skip the log, and are
/// written [behind](super::behind). Blocks of small files may hold four times their bytes (`import::small`).
const BUFFER: usize = 4 << 20;
/// What a buffered block costs beside its bytes, so that tiny ones cannot pile up without bound.
const BLOCK_OVERHEAD: usize = 256;

/// Blocks on their way into a store.
///
/// Put blocks, then [`finish`](Self::finish) with the state that refers to them: when that returns, all of it is
/// durable. Dropping it instead acknowledges nothing; what was written goes with the next collection.
pub struct Ingest {
    shared: Arc<Shared>,
    class: Class,
    reservation: Option<String>,
    /// Bytes drawn from the reservation and not yet acknowledged.
    drawn: u64,
    incarnation: u64,
    /// What is here can be kept and relied upon; nothing can be put.
    read_only: bool,
    buffer: Vec<Incoming>,
    buffered: usize,
    /// Keys in the buffer, with their sizes.
    waiting: HashMap<Key, u64>,
    /// Writes full buffers; started with the first.
    writer: Option<Writer>,
    /// Keys that are with it, with their sizes.
    with_writer: HashMap<Key, u64>,
    /// Whether blocks were written, or relied upon, that only a flush makes durable.
    needs_flush: bool,
    failed: bool,
    totals: Ingested,
    _lease: Lease,
}

/// What an ingest brought in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ingested {
    /// Blocks put or kept, repeats included.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that were not in the store before.
    pub new_blocks: u64,
    /// Their bytes.
    pub new_bytes: u64,
}

impl Ingest {
    pub(super) fn begin(
        shared: Arc<Shared>,
        class: Class,
        reservation: Option<String>,
    ) -> Result<Ingest, StoreError> {
        shared.recover()?;
        let (db, incarnation) = shared.db()?;
        let read_only = db.is_read_only();
        drop(db);
        let lease = shared.leases.take();
        Ok(Ingest {
            shared,
            class,
            reservation,
            drawn: 0,
            incarnation,
            read_only,
            buffer: Vec::new(),
            buffered: 0,
            waiting: HashMap::new(),
            writer: None,
            with_writer: HashMap::new(),
            needs_flush: false,
            failed: false,
            totals: Ingested::default(),
            _lease: lease,
        })
    }

    /// Takes a block that came from somebody else: the hash is checked first, and nothing is kept on a mismatch.
    pub fn put_verified(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        check_size(cid, &data)?;
        hash::verify(cid, &data)?;
        self.put(cid, data)
    }

    /// Relies on a block that the store may have already: `true` if it does, and then it stays like one that was put.
    pub fn keep(&mut self, cid: &Cid) -> Result<bool, StoreError> {
        if hash::inline(cid).is_some() {
            return Ok(true);
        }
        let key = key(cid);
        if let Some(size) = self.waiting.get(&key).or_else(|| self.with_writer.get(&key)) {
            self.totals.bytes += size;
            self.totals.blocks += 1;
            return Ok(true);
        }
        self.check()?;
        let Some(meta) = self.shared.touch(self.incarnation, &key)? else {
            // What is kept for others must not hang on a file of the user's.
            return Ok(self.class != Class::Hosted && self.shared.rely_on_place(cid)?);
        };
        if meta.class == Class::Cache
            && self.class != Class::Cache
            && !self.read_only
            && let Some(data) = self.shared.read(&self.shared.db()?.0, cid)?
        {
            // It goes onto the books of whoever wants it for good.
            self.put(cid, data)?;
            return Ok(true);
        }
        self.needs_flush |= self.shared.has_unflushed();
        self.totals.blocks += 1;
        self.totals.bytes += u64::from(meta.size);
        Ok(true)
    }

    /// Makes the blocks put so far readable from the store. They are not durable yet.
    pub fn expose(&mut self) -> Result<(), StoreError> {
        self.write_out(Log::Skip)
    }

    /// Makes everything put so far durable, then commits `state`, and goes on. When it returns, both survive a crash.
    pub fn checkpoint(&mut self, state: Batch) -> Result<Ingested, StoreError> {
        self.await_writer()?;
        let log = if self.needs_flush { Log::Skip } else { Log::Write };
        self.write_out(log)?;
        let (barrier, state) = match (self.read_only, self.needs_flush) {
            (true, _) => (Ok(()), Ok(state)),
            (false, true) => self.flush_beside(|| self.shared.state.checked(state)),
            (false, false) => (self.shared.sync(), Ok(state)),
        };
        barrier.inspect_err(|_| self.failed = true)?;
        // A database that was reopened meanwhile may have lost what was in memory.
        self.check()?;
        self.shared.state.commit(state?)?;
        self.needs_flush = false;
        self.drawn = 0;
        Ok(self.totals)
    }

    /// Flushes while something else is done, and answers both. Of many small files, the checks of a pin take as long as a
    /// flush; what they find is made durable by a barrier of their own.
    fn flush_beside<T>(&self, work: impl FnOnce() -> T) -> (Result<(), StoreError>, T) {
        let shared = &self.shared;
        std::thread::scope(|scope| {
            let flush = std::thread::Builder::new().name("flush".into());
            let flush = flush.spawn_scoped(scope, || shared.flush());
            let done = work();
            let flushed = match flush {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                // Where no thread can be had, one after the other.
                Err(_) => shared.flush(),
            };
            (flushed, done)
        })
    }

    /// Makes everything durable, commits `state` (the root, its pin, the agreement), and ends. Only after this may
    /// anyone be told that the blocks are here. On an error nothing is acknowledged and `state` is not written.
    pub fn finish(mut self, state: Batch) -> Result<Ingested, StoreError> {
        self.checkpoint(state)
    }

    /// What was put so far. Of blocks that are not written yet it is not known whether they are new.
    pub fn totals(&self) -> Ingested {
        self.totals
    }

    /// Refuses unless the databases are still those this ingest began with.
    fn check(&mut self) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::IngestFailed);
        }
        if self.shared.db()?.1 != self.incarnation {
            self.failed = true;
            return Err(StoreError::Reopened);
        }
        Ok(())
    }

    /// Writes all that is gathered, and waits until it is written.
    fn write_out(&mut self, log: Log) -> Result<(), StoreError> {
        self.await_writer()?;
        self.check()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        let reservation = self.reservation.as_deref();
        let written = self.shared.put(self.incarnation, self.class, &self.buffer, reservation, log);
        self.buffer.clear();
        self.buffered = 0;
        self.waiting.clear();
        self.note(written)
    }

    /// Has a full buffer written while the next one fills.
    fn write_behind(&mut self) -> Result<(), StoreError> {
        self.await_writer()?;
        self.check()?;
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(Writer::start(self.shared.clone(), self.class, self.reservation.clone())?),
        };
        writer.begin(self.incarnation, std::mem::take(&mut self.buffer));
        self.buffered = 0;
        self.with_writer = std::mem::take(&mut self.waiting);
        Ok(())
    }

    /// Waits for the buffer that is being written.
    fn await_writer(&mut self) -> Result<(), StoreError> {
        let Some(written) = self.writer.as_mut().and_then(Writer::wait) else { return Ok(()) };
        self.with_writer.clear();
        self.note(written)
    }

    fn note(&mut self, written: Result<Written, StoreError>) -> Result<(), StoreError> {
        let written = written.inspect_err(|_| self.failed = true)?;
        self.totals.new_blocks += written.new_blocks;
        self.totals.new_bytes += written.new_bytes;
        self.drawn += written.drawn;
        self.needs_flush |= !written.logged;
        Ok(())
    }
}

impl BlockSink for Ingest {
    /// Blocks with an identity hash carry themselves and are not stored.
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::IngestFailed);
        }
        check_size(cid, &data)?;
        hash::check(cid)?;
        self.totals.blocks += 1;
        self.totals.bytes += data.len() as u64;
        if hash::inline(cid).is_some() {
            return Ok(());
        }
        if self.read_only {
            self.check()?;
            self.shared.check_writable(&self.shared.db()?.0)?;
        }
        let key = key(cid);
        let known = self.with_writer.contains_key(&key);
        if !known && self.waiting.insert(key.clone(), data.len() as u64).is_none() {
            self.buffered += data.len() + BLOCK_OVERHEAD;
            self.buffer.push(Incoming { key, data });
        }
        if self.buffered >= BUFFER { self.write_behind() } else { Ok(()) }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        // What was drawn counts in any case; a failure has nobody left to tell, and nothing is acknowledged.
        let _ = self.await_writer();
        if let (Some(id), true) = (&self.reservation, self.drawn > 0) {
            self.shared.space.undraw(id, self.drawn);
        }
    }
}

fn check_size(cid: &Cid, data: &Bytes) -> Result<(), StoreError> {
    if data.len() > MAX_BLOCK {
        return Err(StoreError::TooLarge { cid: *cid, size: data.len() });
    }
    Ok(())
}
