//! Where served blocks are read: off the async workers.

use btfs_storage::BlockSource;
use futures::future::BoxFuture;

/// Work on a block source that may block.
pub type ReadJob = Box<dyn FnOnce(&dyn BlockSource) + Send>;

/// Runs reads on threads where they may block. The number that run at once is the implementor's to bound.
pub trait BlockReader: Send + Sync + 'static {
    /// Runs `job` to its end.
    fn read(&self, job: ReadJob) -> BoxFuture<'static, ()>;
}
