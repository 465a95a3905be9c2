//! Blocks in memory and bytes without end, for unit tests of code that only wants a source, a sink or a stream.

use std::collections::BTreeMap;
use std::io::Read;

use bytes::Bytes;
use cid::Cid;

use crate::{BlockSink, BlockSource, StoreError, hash};

/// A block source and sink in memory, keyed by multihash as the real store is.
#[derive(Default, Clone, Debug)]
pub(crate) struct MemoryBlocks(pub BTreeMap<Vec<u8>, Bytes>);

impl MemoryBlocks {
    /// Forgets a block, as a lost disk sector would.
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

/// Bytes that look random and follow from a seed: the numbers of SplitMix64, lowest byte first. Other programs make
/// the same from the same seed, for vectors.
#[derive(Clone, Debug)]
pub(crate) struct Noise {
    state: u64,
    word: [u8; 8],
    left: usize,
}

impl Noise {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Noise {
        Noise { state: seed, word: [0; 8], left: 0 }
    }
}

impl Read for Noise {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        for byte in &mut *into {
            if self.left == 0 {
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
                self.word = (z ^ z >> 31).to_le_bytes();
                self.left = 8;
            }
            *byte = self.word[8 - self.left];
            self.left -= 1;
        }
        Ok(into.len())
    }
}
