//! A copy of the store while it is in use.
//!
//! Both databases are copied as checkpoints: tables and blob files never change once written, so they are linked where
//! the copy lies on the same file system, and copied otherwise. The state goes first and no collection runs meanwhile,
//! so whatever a copied pin needs is among the copied blocks. What was not acknowledged when the copy was made may be
//! in it, as after a crash, and goes with its first collection.
//!
//! What lies in files of the user's own ([`super::located`]) stays there: the copy knows the places, and whoever keeps it
//! has to keep the files. The report says how much that is.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Store;
use super::volumes::directories::{DirectoryState, copy_name, name_copies};
use crate::StoreError;

/// What was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BackupReport {
    /// Blocks in the copy.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Pins in the copy.
    pub pins: u64,
    /// Blocks that are not in the copy, since they lie in files of the user's own.
    pub blocks_in_files: u64,
    /// Their bytes.
    pub bytes_in_files: u64,
}

impl Store {
    /// Copies the store below `dir`, which must be empty or not there: `dir` opens as a store. Reads
    /// and writes go on; a running collection is waited for. The copy is durable when this returns.
    ///
    /// # Errors
    /// [`StoreError::Backup`]; what was copied until then is removed.
    pub fn backup(&self, dir: &Path) -> Result<BackupReport, StoreError> {
        let failed =
            |source: std::io::Error| StoreError::Backup { path: dir.to_owned(), detail: source.to_string() };
        std::fs::create_dir_all(dir).map_err(failed)?;
        if std::fs::read_dir(dir).map_err(failed)?.next().is_some() {
            let detail = "the directory is not empty".to_owned();
            return Err(StoreError::Backup { path: dir.to_owned(), detail });
        }
        let _no_collection = self.shared.collecting.lock();
        let copied = self.copy_to(dir);
        if copied.is_err() {
            let names =
                self.shared.db().map(|(db, _)| db.iter().map(|volume| copy_name(volume.id)).collect());
            let names: Vec<PathBuf> = names.unwrap_or_default();
            for part in names.into_iter().chain([PathBuf::from("state")]) {
                // The error that is told is the one that ended the copy.
                let _ = std::fs::remove_dir_all(dir.join(part));
            }
        }
        copied
    }

    fn copy_to(&self, dir: &Path) -> Result<BackupReport, StoreError> {
        let failed = |e: rocksdb::Error| StoreError::Backup { path: dir.to_owned(), detail: e.to_string() };
        let (db, _) = self.shared.db()?;
        if let Some(missing) = self.directories()?.iter().find(|one| one.state == DirectoryState::Missing) {
            let detail = format!("the data directory {} is missing", missing.path.display());
            return Err(StoreError::Backup { path: dir.to_owned(), detail });
        }
        self.state().checkpoint(&dir.join("state")).map_err(failed)?;
        let stat = self.stat()?;
        for volume in db.iter() {
            volume.db.checkpoint(&dir.join(copy_name(volume.id))).map_err(failed)?;
        }
        name_copies(&dir.join("state"), &db)?;
        std::fs::File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|e| StoreError::Backup { path: dir.to_owned(), detail: e.to_string() })?;
        let (blocks_in_files, bytes_in_files) = self.shared.only_in_files(&db)?;
        let (blocks, bytes, pins) = (stat.blocks, stat.bytes, stat.pins);
        Ok(BackupReport { blocks, bytes, pins, blocks_in_files, bytes_in_files })
    }
}
