//! Walking DAGs inside the store: which blocks hold others, and which.

use cid::Cid;

use super::Shared;
use super::volumes::Volumes;
use crate::{StoreError, dagpb, hash};

/// How a block was walked, as a bit: the same bytes may be linked as a node in one place and as raw data in another.
pub(super) fn walk_bit(codec: u64) -> u8 {
    match codec {
        hash::DAG_PB => 1,
        hash::DAG_CBOR => 2,
        hash::DAG_JSON => 8,
        _ => 4,
    }
}

/// Whether blocks of that codec can link to others.
pub(super) fn has_links(cid: &Cid) -> bool {
    matches!(cid.codec(), hash::DAG_PB | hash::DAG_CBOR | hash::DAG_JSON)
}

/// The children of a block, in order.
pub(super) fn children(cid: &Cid, data: &[u8]) -> Result<Vec<Cid>, StoreError> {
    dagpb::links(cid, data).map_err(|e| StoreError::Undecodable { cid: *cid, detail: e.to_string() })
}

impl Shared {
    /// The children of a node that is here; `None` if it is absent, damaged, or not what its codec says.
    pub fn links(&self, db: &Volumes, cid: &Cid) -> Result<Option<Vec<Cid>>, StoreError> {
        if let Some(data) = hash::inline(cid) {
            return Ok(children(cid, data).ok());
        }
        match self.read_anywhere(db, cid) {
            Ok(data) => Ok(data.and_then(|data| children(cid, &data).ok())),
            Err(StoreError::Corrupt { .. } | StoreError::NotInFile { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
