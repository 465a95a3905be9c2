//! Whether state and blocks belong together.
//!
//! Both databases carry the repo's identity, a random number. Opening finds out here that one of them is missing (a disk
//! that is not mounted, a directory that was deleted) or comes from elsewhere, and refuses: a node that ran on would
//! count pins without blocks, or collect blocks without pins.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::path::Path;

use super::rocks::BlockDb;
use crate::StoreError;
use crate::db::{DbError, StateDb, Table};

/// The repo's identity, as the state has it.
pub(super) const IDENTITY: Table<(), [u8; 16]> = Table::new("storage.identity");

/// Refuses, before anything is created, if blocks must be there and are not.
pub(super) fn check_before(state: &StateDb, blocks: &Path) -> Result<(), StoreError> {
    if state.contains(&IDENTITY, &())? && !blocks.join("CURRENT").exists() {
        return Err(StoreError::BlocksGone { path: blocks.to_owned() });
    }
    Ok(())
}

/// Refuses databases that do not belong together; gives new ones, and those of builds without identities, one.
pub(super) fn check(state: &StateDb, blocks: &BlockDb, any_blocks: bool) -> Result<(), StoreError> {
    let path = || blocks.path().to_owned();
    let of_blocks = match blocks.identity() {
        // It is written anew.
        Err(DbError::Damaged { .. }) => None,
        found => found?,
    };
    let of_state = state.get(&IDENTITY, &())?;
    let identity = match (of_state, of_blocks) {
        (Some(a), Some(b)) if a == b => return Ok(()),
        (Some(_), Some(_)) => return Err(StoreError::ForeignBlocks { path: path() }),
        // A start that broke off between the two writes below has no blocks yet.
        (None, Some(_)) if any_blocks => return Err(StoreError::StateGone { path: state.path().to_owned() }),
        (Some(known), None) | (None, Some(known)) => known,
        (None, None) => random(),
    };
    blocks.set_identity(&identity)?;
    let mut batch = state.batch();
    batch.put(&IDENTITY, &(), &identity)?;
    Ok(state.commit(batch)?)
}

/// Makes a new, empty block database one of this repo's.
pub(super) fn adopt(state: &StateDb, blocks: &BlockDb) -> Result<(), StoreError> {
    // Opening gave the state one.
    let identity = state.get(&IDENTITY, &())?.unwrap_or_else(random);
    Ok(blocks.set_identity(&identity)?)
}

/// Sixteen bytes that no other repo has: the keys of hash maps are seeded by the system's generator.
fn random() -> [u8; 16] {
    let word = || RandomState::new().hash_one(std::process::id()).to_be_bytes();
    let mut identity = [0; 16];
    identity[..8].copy_from_slice(&word());
    identity[8..].copy_from_slice(&word());
    identity
}
