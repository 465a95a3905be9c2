//! Whether state and blocks belong together.
//!
//! Both databases carry the repo's identity, a random number. Opening finds out here that one of them is missing (a disk
//! that is not mounted, a directory that was deleted) or comes from elsewhere, and refuses: a node that ran on would
//! count pins without blocks, or collect blocks without pins.
//!
//! Blocks are also named by it ([`super::rocks`]). So it is a secret: whoever knows it could, with much computing, make two
//! blocks of which this repo can hold only one. And blocks cannot be found without it, so it is in both databases.

use std::path::Path;

use super::rocks::BlockDb;
use crate::StoreError;
use crate::db::{DbError, StateDb, Table};

/// Sixteen bytes that no other repo has.
pub(super) type Identity = [u8; 16];

/// The repo's identity, as the state has it.
pub(super) const IDENTITY: Table<(), Identity> = Table::new("storage.identity");

/// The identity that the state knows.
pub(super) fn known(state: &StateDb) -> Result<Option<Identity>, DbError> {
    match state.get(&IDENTITY, &()) {
        // A repo of a build without identities that is only read.
        Err(DbError::UnknownTable { .. }) => Ok(None),
        known => known,
    }
}

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
    let of_state = known(state)?;
    let of_blocks = match blocks.identity() {
        // Opening has found that the state's fits what is there. It is written anew.
        Err(DbError::Damaged { .. }) if of_state.is_some() => None,
        found => found?,
    };
    let identity = match (of_state, of_blocks) {
        (Some(a), Some(b)) if a == b => return Ok(()),
        (Some(_), Some(_)) => return Err(StoreError::ForeignBlocks { path: path() }),
        // A start that broke off between the two writes below has no blocks yet.
        (None, Some(_)) if any_blocks => return Err(StoreError::StateGone { path: state.path().to_owned() }),
        (Some(known), None) | (None, Some(known)) => known,
        (None, None) => random()?,
    };
    blocks.set_identity(&identity)?;
    let mut batch = state.batch();
    batch.put(&IDENTITY, &(), &identity)?;
    Ok(state.commit(batch)?)
}

/// Makes a new, empty block database one of this repo's.
pub(super) fn adopt(state: &StateDb, blocks: &BlockDb) -> Result<(), StoreError> {
    // Opening gave the state one.
    let identity = known(state)?.map_or_else(random, Ok)?;
    Ok(blocks.set_identity(&identity)?)
}

fn random() -> Result<Identity, StoreError> {
    let mut identity = [0; 16];
    getrandom::fill(&mut identity).map_err(|error| StoreError::Random { detail: error.to_string() })?;
    Ok(identity)
}
