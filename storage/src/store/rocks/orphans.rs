//! Blob files that a crash left half written.
//!
//! A flush or a relocation that is killed leaves a blob file without its footer, which no table refers to. RocksDB
//! (11.8) removes other leftovers when it opens, and keeps these for good: some kinds of writing that are not used here
//! could still want them. A store that was killed often enough would fill its disk with them, so they are removed here.
//!
//! A file counts as left over only if the numbers agree: exactly as many files lack a footer as there are more files
//! than the database knows. A live file whose footer was damaged is so never taken for one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::BlockDb;
use crate::db::DbError;

/// Bytes of a blob file's footer, and the little-endian number it begins with (RocksDB, `blob_log_format.h`).
const FOOTER: u64 = 32;
const MAGIC: u32 = 2_395_959;

/// The blob files in a directory; none where there is no directory.
pub(super) fn blob_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "blob") {
            files.push(path);
        }
    }
    Ok(files)
}

/// Whether a blob file was never finished.
fn lacks_footer(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let Some(at) = file.metadata()?.len().checked_sub(FOOTER) else { return Ok(true) };
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, at)?;
    Ok(u32::from_le_bytes(magic) != MAGIC)
}

impl BlockDb {
    /// Removes what a crash left of blob files. `before` are those that were there before the database was opened: what
    /// came since is being written.
    pub(super) fn remove_orphans(&self, before: &[PathBuf]) -> Result<(), DbError> {
        if before.is_empty() {
            return Ok(());
        }
        let failed = |source| DbError::Directory { path: self.path.clone(), source };
        let known = self.blob_space()?.files;
        let extra = (blob_files(&self.path).map_err(failed)?.len() as u64).saturating_sub(known);
        if extra == 0 {
            return Ok(());
        }
        let mut orphans = Vec::new();
        for file in before {
            match lacks_footer(file) {
                Ok(true) => orphans.push(file),
                Ok(false) => {}
                // RocksDB removed it when it opened.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if orphans.len() as u64 != extra {
            tracing::warn!(
                path = %self.path.display(), extra, unfinished = orphans.len(),
                "there are blob files that nothing refers to; they are left alone, since some may be damaged ones"
            );
            return Ok(());
        }
        for file in orphans {
            std::fs::remove_file(file).map_err(failed)?;
            tracing::warn!(file = %file.display(), "removed a blob file that a crash left half written");
        }
        Ok(())
    }
}
