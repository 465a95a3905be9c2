//! What can go wrong in the state database.

use std::path::{Path, PathBuf};

/// Why the state database could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DbError {
    /// The directory could not be made.
    #[error("cannot create the database directory {}: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Someone else has it open.
    #[error(
        "the database in {} is in use by another process; stop that one first, or talk to it over its API",
        path.display()
    )]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// A newer build wrote it.
    #[error(
        "the repo in {} has schema version {found}, this program knows versions up to {known}; \
         use a newer btfs; nothing was changed",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// The version found on disk.
        found: u32,
        /// The newest version this build understands.
        known: u32,
    },
    /// The database's files are damaged.
    #[error("the database in {} is damaged: {detail}", path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What RocksDB said.
        detail: String,
    },
    /// The disk or the database failed.
    #[error("the database in {} failed: {source}", path.display())]
    Rocks {
        /// The database.
        path: PathBuf,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
    /// Its disk can only be read.
    #[error(
        "the disk of {} is read-only: nothing was changed, and what is there can still be read; make it writable, then \
         start again",
        path.display()
    )]
    ReadOnly {
        /// The database.
        path: PathBuf,
    },
    /// Its blocks are named by an identity that is lost, or another repo's.
    #[error(
        "the block database in {} has lost its identity, and the state of this repo does not have the one that its blocks \
         are named by; nothing was changed; restore state and blocks from one backup",
        path.display()
    )]
    Foreign {
        /// The database.
        path: PathBuf,
    },
    /// The table was not named when the database was opened.
    #[error("table {table} was not opened with the database")]
    UnknownTable {
        /// The table's name.
        table: &'static str,
    },
    /// A value does not decode as the table's type.
    #[error("a record of table {table} does not decode: {detail}")]
    Undecodable {
        /// The table's name.
        table: &'static str,
        /// What the decoder said.
        detail: String,
    },
    /// A value does not encode.
    #[error("a record for table {table} does not encode: {detail}; nothing was written")]
    Unencodable {
        /// The table's name.
        table: &'static str,
        /// What the encoder said.
        detail: String,
    },
    /// A batch was committed to another database than it was made for.
    #[error("a batch of one database was committed to another; nothing was written")]
    ForeignBatch,
    /// A check that travelled with the batch said no.
    #[error("{0}; nothing was written")]
    Refused(Box<dyn std::error::Error + Send + Sync>),
}

impl DbError {
    /// Sorts a RocksDB error into those a user can act on and the rest.
    pub(crate) fn from_rocks(path: &Path, source: rocksdb::Error) -> DbError {
        let path = path.to_owned();
        let text = source.as_ref();
        match source.kind() {
            rocksdb::ErrorKind::IOError
                if text.contains("lock hold by current process") || text.contains("While lock file") =>
            {
                DbError::InUse { path }
            }
            rocksdb::ErrorKind::Corruption => DbError::Damaged { path, detail: text.to_owned() },
            _ => DbError::Rocks { path, source },
        }
    }
}
