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
use super::rocks::BlockDb;
use crate::StoreError;
use crate::db::{DbError, StateDb};

/// Whether `path` lies on a disk that can only be read.
pub(super) fn is_read_only(path: &Path) -> bool {
    access(path, Access::WRITE_OK) == Err(Errno::ROFS)
}

/// Opens both databases for reading alone.
pub(super) fn open(state: &Path, blocks: &Path) -> Result<(StateDb, BlockDb), StoreError> {
    let opened = (StateDb::open_read_only(state)?, BlockDb::open_read_only(blocks)?);
    tracing::warn!(path = %blocks.display(), "the disk is read-only: what is there can be read, nothing can be changed");
    Ok(opened)
}

impl Shared {
    /// Refuses what would change something if nothing can be changed.
    pub fn check_writable(&self, db: &BlockDb) -> Result<(), StoreError> {
        match db.is_read_only() {
            true => Err(DbError::ReadOnly { path: db.path().to_owned() }.into()),
            false => Ok(()),
        }
    }
}
