//! What a block is to the rest of the workspace: where blocks come from, where they go, and who owns them.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use serde::{Deserialize, Serialize};

use crate::StoreError;

/// Largest block that is stored, sent or accepted, in bytes: the cap that Bitswap peers enforce.
pub const MAX_BLOCK: usize = 2 << 20;

/// Somewhere blocks can be read from.
///
/// Blocks are looked up by multihash: a CIDv0 and a CIDv1 of the same bytes name one block. CIDs with an
/// identity hash carry their bytes and resolve in every source.
pub trait BlockSource: Send + Sync {
    /// The block's bytes, or `None` when it is not here.
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError>;
    /// Whether [`get`](Self::get) would find the block; cheaper, since the bytes are not read.
    fn has(&self, cid: &Cid) -> Result<bool, StoreError>;
    /// The block's size in bytes, or `None` when it is not here.
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError>;
}

/// Where the bytes of a block lie in a file.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The file, by an absolute path.
    pub path: &'a Path,
    /// Where they start there, in bytes.
    pub offset: u64,
    /// When the file was last written to: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
}

/// Somewhere blocks can be written to.
pub trait BlockSink {
    /// Takes a block. The caller has hashed `data` and vouches that it matches `cid`.
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError>;

    /// Takes a block that also lies in a file, where it may be left. Whoever does not know how takes a copy.
    fn put_located(&mut self, cid: &Cid, data: Bytes, place: &Place<'_>) -> Result<(), StoreError> {
        let _ = place;
        self.put(cid, data)
    }
}

impl<T: BlockSource + ?Sized> BlockSource for Arc<T> {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        (**self).get(cid)
    }
    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        (**self).has(cid)
    }
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        (**self).block_size(cid)
    }
}

impl<T: BlockSource + ?Sized> BlockSource for &T {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        (**self).get(cid)
    }
    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        (**self).has(cid)
    }
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        (**self).block_size(cid)
    }
}

impl<T: BlockSink + ?Sized> BlockSink for &mut T {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        (**self).put(cid, data)
    }
    fn put_located(&mut self, cid: &Cid, data: Bytes, place: &Place<'_>) -> Result<(), StoreError> {
        (**self).put_located(cid, data, place)
    }
}

/// Whom a block is kept for. Each class has a quota of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// What the user of this node added or fetched to keep.
    Own,
    /// What others rent space for.
    Hosted,
    /// What was fetched in passing and may go at any collection.
    Cache,
}

impl Class {
    /// Every class, in the order of their numbers.
    pub const ALL: [Class; 3] = [Class::Own, Class::Hosted, Class::Cache];

    /// Position in [`Self::ALL`]; also the byte under which the class is stored.
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// The class that [`index`](Self::index) numbers so.
    pub(crate) fn from_index(index: u8) -> Option<Class> {
        Self::ALL.get(usize::from(index)).copied()
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Class::Own => "own",
            Class::Hosted => "hosted",
            Class::Cache => "cache",
        })
    }
}
