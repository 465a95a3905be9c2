//! Blocks in memory and a reader of them, for the tests of this folder.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use btfs_storage::hash::{RAW, cid_v1};
use btfs_storage::{BlockSource, StoreError};
use bytes::Bytes;
use cid::Cid;
use futures::future::BoxFuture;
use parking_lot::Mutex;

use super::source::{BlockReader, ReadJob};
use super::wire::Key;

/// Blocks by multihash, some of which fail to read.
#[derive(Debug, Default)]
pub struct MemBlocks {
    blocks: Mutex<HashMap<Key, Bytes>>,
    corrupt: Mutex<HashSet<Key>>,
}

impl MemBlocks {
    /// Adds a raw block.
    pub fn add(&self, data: impl Into<Bytes>) -> Cid {
        let data = data.into();
        let cid = cid_v1(RAW, &data);
        self.blocks.lock().insert(*cid.hash(), data);
        cid
    }

    /// Lets reads of `cid` fail.
    pub fn corrupt(&self, cid: Cid) {
        self.corrupt.lock().insert(*cid.hash());
    }
}

impl BlockSource for MemBlocks {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        if self.corrupt.lock().contains(cid.hash()) {
            return Err(StoreError::Corrupt { cid: *cid });
        }
        Ok(self.blocks.lock().get(cid.hash()).cloned())
    }

    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.blocks.lock().contains_key(cid.hash()))
    }

    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        Ok(self.blocks.lock().get(cid.hash()).map(|data| data.len() as u64))
    }
}

/// Reads on the runtime's blocking threads.
pub struct MemReader(pub Arc<MemBlocks>);

impl BlockReader for MemReader {
    fn read(&self, job: ReadJob) -> BoxFuture<'static, ()> {
        let source = self.0.clone();
        Box::pin(async move { tokio::task::spawn_blocking(move || job(&*source)).await.unwrap() })
    }
}
