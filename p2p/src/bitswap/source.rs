//! Where served blocks are read: off the async workers.

use std::sync::Arc;

use btfs_storage::BlockSource;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;

/// Work on a block source that may block.
pub type ReadJob = Box<dyn FnOnce(&dyn BlockSource) + Send>;

/// Runs reads on threads where they may block. The number that run at once is the implementor's to bound.
pub trait BlockReader: Send + Sync + 'static {
    /// Runs `job` to its end.
    fn read(&self, job: ReadJob) -> BoxFuture<'static, ()>;
}

/// Any block source, read on the runtime's blocking threads, a few at a time.
pub struct PooledReader<S> {
    source: Arc<S>,
    slots: Arc<Semaphore>,
}

impl<S: BlockSource + 'static> PooledReader<S> {
    /// Reads of `source`, at most `at_once` at a time.
    pub fn new(source: S, at_once: usize) -> Self {
        PooledReader { source: Arc::new(source), slots: Arc::new(Semaphore::new(at_once)) }
    }
}

impl<S: BlockSource + 'static> BlockReader for PooledReader<S> {
    fn read(&self, job: ReadJob) -> BoxFuture<'static, ()> {
        let (source, slots) = (self.source.clone(), self.slots.clone());
        Box::pin(async move {
            // The semaphore lives as long as the reader and is never closed.
            let _slot = slots.acquire().await;
            if let Err(error) = tokio::task::spawn_blocking(move || job(&*source)).await {
                tracing::error!(%error, "a block read ended early; its wants are answered later");
            }
        })
    }
}
