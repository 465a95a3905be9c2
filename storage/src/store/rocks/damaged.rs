//! Remembering that a table of a database is damaged.
//!
//! A compaction that meets such a table stops writes until the database is reopened with compactions off. Whoever opens it
//! next does not wait for that: a file beside those of the database says so.

use std::path::Path;

use super::super::identity::Identity;
use super::{BlockDb, Budget, Damage};
use crate::db::DbError;

/// The name of that file; it holds what was told of the damage.
const MARK: &str = "DAMAGED";

impl BlockDb {
    /// Notes that a table of the database at `path` is damaged, if that is what `detail` says. Where it cannot be noted
    /// the next to open the database finds out anew.
    pub fn mark_damaged(path: &Path, detail: &str) {
        let names_a_table = detail.contains("Corruption") && detail.contains(".sst");
        if !names_a_table || Self::is_damaged(path) {
            return;
        }
        if let Err(error) = std::fs::write(path.join(MARK), detail) {
            tracing::warn!(path = %path.display(), %error, "cannot note that a table is damaged");
        }
    }

    /// Whether that was noted.
    pub fn is_damaged(path: &Path) -> bool {
        path.join(MARK).exists()
    }

    /// Opens the database as [`open_or_mend`](Self::open_or_mend) does; one with a damaged table so that this stops
    /// nobody.
    pub fn open_any(path: &Path, budget: &Budget, known: Option<Identity>) -> Result<BlockDb, DbError> {
        let db = Self::open_or_mend(path, budget, known)?;
        if !db.is_stopped_by_damage() || !Self::is_damaged(path) {
            return Ok(db);
        }
        drop(db);
        Self::open(path, Damage::IsPassedOver, budget, known)
    }

    /// Removes all files of a database that is not open, whatever state they are in, and keeps the directory.
    pub fn clear(path: &Path) -> Result<(), DbError> {
        let failed = |source| DbError::Directory { path: path.to_owned(), source };
        let entries = match std::fs::read_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(failed)?,
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file() {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }
}
