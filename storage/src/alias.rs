//! Foreign hashes (infohashes, piece hashes, v2 pieces roots) to candidate content.
//!
//! An alias says "the content of this hash may be these bytes of this DAG". It is multi-valued and unverified: whoever
//! uses one checks the bytes against the hash. Aliases live as long as some pin has their root: without one they are
//! not found, and a collection removes them.

use cid::Cid;
use serde::{Deserialize, Serialize};

use crate::db::{Batch, DbError, StateDb, Table, head};
use crate::store::is_pinned_root;

/// A foreign multihash, then root and offset of a candidate.
pub(crate) type Key = (Vec<u8>, (Vec<u8>, u64));

/// Candidates -> length.
const ALIASES: Table<Key, u64> = Table::new("storage.alias");

/// The tables of this module.
pub(crate) const TABLES: [&str; 1] = [ALIASES.name()];

/// Most candidates that a look-up returns. A hash that many of our own roots share needs no more to be served.
const CANDIDATES: usize = 64;
/// Aliases removed in one batch.
const DROP_BATCH: usize = 1024;

/// Content that may have a foreign hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The DAG.
    pub root: Cid,
    /// First byte of the content within it.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// Adds a candidate for `hash` (a multihash), with the batch that pins its root.
pub fn add(batch: &mut Batch, hash: &[u8], alias: &Alias) -> Result<(), DbError> {
    batch.put(&ALIASES, &(hash.to_vec(), (alias.root.to_bytes(), alias.offset)), &alias.length)
}

/// The candidates for `hash` whose root is pinned, at most 64.
pub fn lookup(state: &StateDb, hash: &[u8]) -> Result<Vec<Alias>, DbError> {
    let mut found = Vec::new();
    for record in state.scan(&ALIASES, &head(&hash.to_vec())) {
        let ((_, (root, offset)), length) = record?;
        let root = decode_root(&root)?;
        if is_pinned_root(state, &root)? {
            found.push(Alias { root, offset, length });
        }
        if found.len() == CANDIDATES {
            break;
        }
    }
    Ok(found)
}

/// Removes the aliases whose root no pin has any more.
pub(crate) fn drop_unpinned(state: &StateDb) -> Result<(), DbError> {
    let mut unpinned = Vec::new();
    for record in state.scan(&ALIASES, &[]) {
        let (key, _) = record?;
        if !is_pinned_root(state, &decode_root(&key.1.0)?)? {
            unpinned.push(key);
        }
        if unpinned.len() == DROP_BATCH {
            drop_if_unpinned(state, &unpinned)?;
            unpinned.clear();
        }
    }
    drop_if_unpinned(state, &unpinned)
}

/// Removes those whose root still has no pin: it may have got one, and its aliases anew, since it was looked at.
pub(crate) fn drop_if_unpinned(state: &StateDb, aliases: &[Key]) -> Result<(), DbError> {
    state.commit_alone(|batch| {
        for key in aliases {
            if !is_pinned_root(state, &decode_root(&key.1.0)?)? {
                batch.delete(&ALIASES, key)?;
            }
        }
        Ok(())
    })
}

fn decode_root(bytes: &[u8]) -> Result<Cid, DbError> {
    Cid::try_from(bytes)
        .map_err(|e| DbError::Undecodable { table: ALIASES.name(), detail: format!("its root: {e}") })
}
