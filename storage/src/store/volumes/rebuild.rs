//! Building a database anew that has a damaged table.
//!
//! No compaction gets past such a table, so its database never gives space back again. RocksDB's own repair drops
//! whole tables, and blob files with them. Here everything that can still be read is moved to a fresh database
//! beside it, in the way a directory is emptied (see [`super::drain`]): each block is checked against its hash, what is
//! lost is put aside and known to be as far as its key can be told, reads and writes go on, and a crash at any point leaves every block in one of the
//! two. Then the damaged database goes with its directory; the store's own is made anew at the next opening.

use std::path::{Path, PathBuf};

use super::super::Store;
use super::super::rocks::BlockDb;
use super::super::write::Fault;
use super::directories::State;
use crate::StoreError;

/// Names that are tried for the fresh directory.
const NAMES: u32 = 1000;

/// A database that was built anew.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rebuilt {
    /// The directory of the damaged one.
    pub path: PathBuf,
    /// The directory that was made for what could be read; none if others were there already.
    pub into: Option<PathBuf>,
    /// Bytes moved.
    pub bytes: u64,
}

impl Store {
    /// The data directories whose databases have a damaged table, as far as anybody met it: a
    /// [verification](Self::verify) meets all that matter to reads.
    pub fn damaged_directories(&self) -> Result<Vec<PathBuf>, StoreError> {
        let (volumes, _) = self.shared.db()?;
        let spent = |state| state == State::Spent;
        let damaged = volumes
            .iter()
            .filter(|volume| !spent(volume.directory.state) && BlockDb::is_damaged(volume.db.path()));
        Ok(damaged.map(|volume| volume.directory.path.clone()).collect())
    }

    /// Moves what can be read of each [damaged](Self::damaged_directories) database to a fresh one on the same disk and
    /// gives it up. `progress` is as for [`drain_directory`](Self::drain_directory), and so is what is left to the
    /// next call when it is broken off.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`] if the disk has no room for both at once; then nothing was changed.
    pub fn rebuild_damaged(
        &self,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<Vec<Rebuilt>, StoreError> {
        let mut rebuilt = Vec::new();
        for path in self.damaged_directories()? {
            self.pass_over(&path)?;
            let into = self.room_beside(&path)?;
            let moved = self.drain_directory(&path, progress);
            if let (Err(StoreError::DiskFull { .. }), Some(into)) = (&moved, &into) {
                // Nothing is in it.
                self.drain_directory(into, &mut |_, _| true)?;
            }
            let bytes = moved?;
            tracing::warn!(path = %path.display(), bytes, "a damaged block database was built anew");
            rebuilt.push(Rebuilt { path, into, bytes });
        }
        Ok(rebuilt)
    }

    /// Sees to it that the damage does not stop writes.
    fn pass_over(&self, path: &Path) -> Result<(), StoreError> {
        if self.shared.db()?.0.is_stopped_by_damage(path) {
            let detail = "Corruption: a table was found damaged".to_owned();
            self.shared.leave_damage_alone(Fault { path: path.to_owned(), detail });
        }
        Ok(())
    }

    /// A fresh directory beside `path`, unless what is in there is being moved elsewhere already.
    fn room_beside(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let id = self.directory_id(path)?;
        let (volumes, _) = self.shared.db()?;
        let begun = id.and_then(|id| volumes.get(id)).is_some_and(|volume| !volume.takes_blocks());
        if begun && volumes.iter().any(|volume| volume.takes_blocks()) {
            return Ok(None);
        }
        drop(volumes);
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let free = (1..NAMES).map(|n| path.with_file_name(format!("{name}-{n}"))).find(|path| !path.exists());
        let free = free.unwrap_or_else(|| path.with_file_name(format!("{name}-{NAMES}")));
        self.add_directory(&free).map(Some)
    }
}
