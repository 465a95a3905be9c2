//! What can go wrong in the block store.

use cid::Cid;

use crate::hash::HashError;

/// Why the block store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The bytes offered are not the bytes of that CID.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// A block over the cap.
    #[error("block {cid} has {size} bytes; blocks may have {max}; it was refused", max = crate::MAX_BLOCK)]
    TooLarge {
        /// The block's address.
        cid: Cid,
        /// Its size in bytes.
        size: usize,
    },
    /// A stored block no longer matches its checksum or hash. It is quarantined: reported as absent until the right
    /// bytes are put again.
    #[error("block {cid} is damaged on disk and was put aside; other blocks are unaffected; fetch it again")]
    Corrupt {
        /// The block's address.
        cid: Cid,
    },
}
