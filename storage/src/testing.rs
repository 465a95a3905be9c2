//! Blocks in memory, for unit tests of code that only wants a source or a sink.

use std::collections::BTreeMap;

use bytes::Bytes;
use cid::Cid;

use crate::{BlockSink, BlockSource, StoreError, hash};

/// A block source and sink in memory, keyed by multihash as the real store is.
#[derive(Default, Clone, Debug)]
pub(crate) struct MemoryBlocks(pub BTreeMap<Vec<u8>, Bytes>);

impl MemoryBlocks {
    /// Forgets a block, as a lost disk sector would.
    #[allow(dead_code, reason = "each test module uses its own part of this")]
    pub fn remove(&mut self, cid: &Cid) -> Option<Bytes> {
        self.0.remove(&cid.hash().to_bytes())
    }
}

impl BlockSource for MemoryBlocks {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        if let Some(data) = hash::inline(cid) {
            return Ok(Some(Bytes::copy_from_slice(data)));
        }
        Ok(self.0.get(&cid.hash().to_bytes()).cloned())
    }
    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.get(cid)?.is_some())
    }
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        Ok(self.get(cid)?.map(|data| data.len() as u64))
    }
}

impl BlockSink for MemoryBlocks {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        hash::verify(cid, &data)?;
        self.0.insert(cid.hash().to_bytes(), data);
        Ok(())
    }
}
