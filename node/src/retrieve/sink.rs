//! Where fetched blocks go: one ingest on a thread of its own, behind a short queue.

use btfs_storage::db::Batch;
use btfs_storage::{BlockSink, Bytes, Cid, Class, Ingest, Ingested, Store, StoreError};
use tokio::sync::mpsc;

/// What the writer does next.
enum Next {
    Put(Cid, Bytes),
    /// The store had it a moment ago; the bytes are for when it has not any more.
    Keep(Cid, Bytes),
    /// All is there.
    End,
}

/// An open ingest.
pub struct Sink {
    queue: mpsc::Sender<Next>,
    writer: tokio::task::JoinHandle<Result<Ingest, StoreError>>,
    store: Store,
}

impl Sink {
    /// Blocks waiting to be written: the network waits for the disk after that.
    const WAITING: usize = 8;

    /// Opens an ingest for `class`.
    pub fn start(store: &Store, class: Class) -> Result<Self, StoreError> {
        let mut ingest = store.ingest(class)?;
        let (queue, mut blocks) = mpsc::channel(Self::WAITING);
        let writer = tokio::task::spawn_blocking(move || {
            while let Some(next) = blocks.blocking_recv() {
                match next {
                    Next::Put(cid, block) => ingest.put(&cid, block)?,
                    Next::Keep(cid, _) if ingest.keep(&cid)? => {}
                    Next::Keep(cid, block) => ingest.put(&cid, block)?,
                    Next::End => return Ok(ingest),
                }
            }
            // The fetch was broken off. What came is not fetched again if it is begun anew.
            ingest.expose()?;
            Ok(ingest)
        });
        Ok(Self { queue, writer, store: store.clone() })
    }

    /// Queues a block that was hashed: by the session, the rebuild, or when it came into the store. Hashing it here once
    /// more would be a sixth of a fetch's time.
    pub async fn put(&self, cid: Cid, block: Bytes) {
        // A closed queue means that the writer failed; `finish` says how.
        let _ = self.queue.send(Next::Put(cid, block)).await;
    }

    /// Queues a block that came out of the store, which is not written once more: it may lie in a file of the user's.
    pub async fn keep(&self, cid: Cid, block: Bytes) {
        // The same.
        let _ = self.queue.send(Next::Keep(cid, block)).await;
    }

    /// Whether the writer has failed, so that fetching on is useless.
    pub fn is_broken(&self) -> bool {
        self.queue.is_closed()
    }

    /// Waits until all is on disk, together with what `state` adds to the state.
    pub async fn finish(
        self,
        state: impl FnOnce(&mut Batch) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<Ingested, StoreError> {
        // The same.
        let _ = self.queue.send(Next::End).await;
        drop(self.queue);
        let ingest =
            self.writer.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let mut batch = self.store.state().batch();
        state(&mut batch)?;
        self.store.run(move |_| ingest.finish(batch)).await
    }
}
