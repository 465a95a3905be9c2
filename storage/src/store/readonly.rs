//! A store whose disk can only be read: mounted so, or turned so by the system after an error.
//!
//! It opens as it is, without what a start otherwise mends: logs are replayed in memory, nothing is migrated, and what
//! a crash left lies there still. Reads work as ever, except that damage is only reported. Whatever would change something
//! is refused before it begins.
//!
//! A store that is open when its disk turns so keeps what it has open ([`Shared::recover`](super::Shared::recover)).

use std::path::Path;

use rustix::fs::{Access, access};
use rustix::io::Errno;

use super::Shared;
use super::rocks::Budget;
use super::volumes::Volumes;
use super::volumes::opening::{self, How};
use crate::StoreError;
use crate::db::{DbError, StateDb};

/// Whether `path` lies on a disk that can only be read.
pub(super) fn is_read_only(path: &Path) -> bool {
    access(path, Access::WRITE_OK) == Err(Errno::ROFS)
}

/// Opens all databases for reading alone.
pub(super) fn open(root: &Path, budget: &Budget) -> Result<(StateDb, Volumes), StoreError> {
    let state = StateDb::open_read_only(&root.join("state"))?;
    let volumes = opening::open(&state, &opening::load(&state, root)?, budget, &How::ReadOnly)?;
    tracing::warn!(path = %root.display(), "the disk is read-only: what is there can be read, nothing can be changed");
    Ok((state, volumes))
}

impl Shared {
    /// Refuses what would change something if nothing can be changed.
    pub fn check_writable(&self, db: &Volumes) -> Result<(), StoreError> {
        match db.iter().find(|volume| volume.db.is_read_only()) {
            Some(volume) => Err(DbError::ReadOnly { path: volume.directory.path.clone() }.into()),
            None => Ok(()),
        }
    }
}
