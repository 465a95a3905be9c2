//! Block bytes handed out over RocksDB's own buffer, without a copy.
//!
//! The one place with `unsafe` in this crate. A [`DBPinnableSlice`] borrows the database it came from; to give
//! `Bytes` that outlive the call, its lifetime is extended and the database is kept open beside it.
//!
//! Invariant: in [`Pinned`] the slice is declared, and so dropped, before the handle that keeps its database open;
//! and the slice never leaves `Pinned`, so nothing can see it outlive the handle.
#![allow(unsafe_code)]

use std::sync::Arc;

use bytes::Bytes;
use rocksdb::DBPinnableSlice;

use super::rocks::BlockDb;

struct Pinned {
    slice: DBPinnableSlice<'static>,
    _open: Arc<BlockDb>,
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        &self.slice
    }
}

/// The slice's bytes. `open` must be the database that `slice` was read from.
pub(super) fn bytes(slice: DBPinnableSlice<'_>, open: Arc<BlockDb>) -> Bytes {
    // SAFETY: only the lifetime changes. The slice stays valid as long as its database is open, which `open`
    // guarantees until after the slice is dropped (see the invariant above).
    let slice = unsafe { std::mem::transmute::<DBPinnableSlice<'_>, DBPinnableSlice<'static>>(slice) };
    Bytes::from_owner(Pinned { slice, _open: open })
}
