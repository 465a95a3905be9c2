//! Writing behind: a batch of an ingest goes to the database on a thread of its own while the next one is gathered.
//!
//! Reading, hashing and looking at directories then overlap with looking blocks up and taking them into memory, which is
//! half of the time of many small files. One batch is under way at a time, so an ingest holds at most two.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::Shared;
use super::rocks::Log;
use super::write::{Incoming, Written};
use crate::{Class, StoreError};

/// The thread of one ingest.
pub(super) struct Writer {
    /// `None` once it shall end.
    batches: Option<SyncSender<(u64, Vec<Incoming>)>>,
    written: Receiver<Result<Written, StoreError>>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
}

impl Writer {
    /// Starts a thread that writes batches of `class`, filling a promise if one is named. They skip the log.
    pub fn start(shared: Arc<Shared>, class: Class, draws_on: Option<String>) -> Result<Writer, StoreError> {
        let (batches, queue) = sync_channel::<(u64, Vec<Incoming>)>(1);
        let (done, written) = sync_channel(1);
        let work = move || {
            for (incarnation, batch) in queue {
                let result = shared.put(incarnation, class, &batch, draws_on.as_deref(), Log::Skip);
                drop(batch);
                // An ingest waits for every batch before it ends.
                if done.send(result).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("ingest".into()).spawn(work);
        let thread = Some(thread.map_err(|source| StoreError::Thread { source })?);
        Ok(Writer { batches: Some(batches), written, thread, busy: false })
    }

    /// Hands a batch over. The one before must have been [waited for](Self::wait).
    pub fn begin(&mut self, incarnation: u64, batch: Vec<Incoming>) {
        let batches = self.batches.as_ref().expect("open until it is dropped");
        batches.send((incarnation, batch)).expect("the thread ends after the channel is closed");
        self.busy = true;
    }

    /// Waits for the batch under way; what became of it, or `None` if there is none.
    pub fn wait(&mut self) -> Option<Result<Written, StoreError>> {
        if !std::mem::take(&mut self.busy) {
            return None;
        }
        match self.written.recv() {
            Ok(result) => Some(result),
            // It panicked: so does who waits for it.
            Err(_) => self.end().err().map(|panic| std::panic::resume_unwind(panic)),
        }
    }

    fn end(&mut self) -> std::thread::Result<()> {
        self.batches = None;
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Writer {
    /// Nothing is written after the ingest, and with it its lease, is gone.
    fn drop(&mut self) {
        if self.end().is_err() {
            tracing::error!("the thread of an ingest panicked");
        }
    }
}
