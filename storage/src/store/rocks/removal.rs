//! Removing the files of a database that nobody needs any more.
//!
//! Files at a place are removed only if a mark lies there which says so: another database may have come there since.
//! The mark goes last, so that a removal that is broken off can be repeated.

use std::io::ErrorKind;
use std::path::Path;

use rocksdb::DB;

use super::{BlockDb, Budget, database_options};
use crate::db::DbError;

/// The mark.
const GIVEN_UP: &str = "GIVEN-UP";

fn failed(path: &Path) -> impl Fn(std::io::Error) -> DbError {
    move |source| DbError::Directory { path: path.to_owned(), source }
}

impl BlockDb {
    /// Says on the disk that nothing in a directory is needed any more.
    pub fn give_up(path: &Path) -> Result<(), DbError> {
        std::fs::File::create(path.join(GIVEN_UP)).and_then(|file| file.sync_all()).map_err(failed(path))?;
        std::fs::File::open(path).and_then(|dir| dir.sync_all()).map_err(failed(path))
    }

    /// Removes the files of a database that was given up and is not open, and its directory unless something else is in
    /// there. Nothing is done where there is no mark.
    pub fn remove_given_up(path: &Path) -> Result<(), DbError> {
        if path.join(GIVEN_UP).exists() { Self::destroy(path) } else { Ok(()) }
    }

    /// Removes the files of a database that is not open.
    pub fn destroy(path: &Path) -> Result<(), DbError> {
        DB::destroy(&database_options(&Budget::new(1)), path).map_err(|e| DbError::from_rocks(path, e))?;
        match std::fs::remove_file(path.join(GIVEN_UP)) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(path)(error)),
            _ => {}
        }
        // A mount point stays, and so does what holds anything else.
        let _ = std::fs::remove_dir(path);
        Ok(())
    }
}
