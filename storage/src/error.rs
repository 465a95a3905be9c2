//! What can go wrong in the block store.

use std::fmt;
use std::path::PathBuf;

use cid::Cid;

use crate::Class;
use crate::db::DbError;
use crate::hash::HashError;

/// Why the block store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The bytes offered are not the bytes of that CID, or its hash function is unknown here.
    #[error(transparent)]
    Hash(#[from] HashError),
    /// A block over the cap.
    #[error("block {cid} has {size} bytes; blocks may have {max}; it was refused", max = crate::MAX_BLOCK)]
    TooLarge {
        /// The block's address.
        cid: Cid,
        /// Its size in bytes.
        size: usize,
    },
    /// A stored block no longer matches its checksum or hash. It is quarantined: reported as absent until the right
    /// bytes are put again.
    #[error("block {cid} is damaged on disk and was put aside; other blocks are unaffected; fetch it again")]
    Corrupt {
        /// The block's address.
        cid: Cid,
    },
    /// A block that a pin needs is not here.
    #[error("block {cid} is not in the store, so {what} is incomplete; nothing was changed; fetch it first")]
    Missing {
        /// The absent block.
        cid: Cid,
        /// What needs it.
        what: String,
    },
    /// A block's links do not decode, so what lies below it is unknown.
    #[error("block {cid} does not decode: {detail}")]
    Undecodable {
        /// The block.
        cid: Cid,
        /// What the decoder said.
        detail: String,
    },
    /// The class's quota does not have that much room.
    #[error(
        "not enough space: {} asked, {} free of the {} quota for {class} data; nothing was kept",
        size(*.asked), size(*.free), size(*.quota)
    )]
    QuotaExceeded {
        /// Whose quota.
        class: Class,
        /// Bytes asked for.
        asked: u64,
        /// Bytes left, promises deducted.
        free: u64,
        /// The quota in bytes.
        quota: u64,
    },
    /// The disk would fall under its reserve.
    #[error(
        "not enough space on the disk of {}: {} asked, {} free, {} of it kept in reserve; nothing was kept; \
         free some space or run gc",
        path.display(), size(*.asked), size(*.free), size(*.reserve)
    )]
    DiskFull {
        /// The block database.
        path: PathBuf,
        /// Bytes asked for.
        asked: u64,
        /// Bytes free on that disk.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// The block database failed; reads go on, writes wait for it to be reopened.
    #[error("the block database in {} cannot be written: {detail}; stored blocks can still be read", path.display())]
    Unwritable {
        /// The block database.
        path: PathBuf,
        /// What it said.
        detail: String,
    },
    /// The block database failed and was reopened while this ingest or collection was under way.
    #[error(
        "the block database was reopened after a failure; what was under way was broken off: start it again"
    )]
    Reopened,
    /// A block that was left in its file is not there any more.
    #[error(
        "block {cid} was not copied: it lies in {}, which {problem}; put the file back as it was, add it again, \
         or let `btfs filestore verify --remove-bad-blocks` forget it and fetch it",
        path.display()
    )]
    NotInFile {
        /// The block.
        cid: Cid,
        /// The file.
        path: PathBuf,
        /// What is the matter with it.
        problem: String,
    },
    /// Nobody is there any more for whom it was done.
    #[error(
        "whoever asked for this went away, so it was broken off; what it stored is reused if it is asked for again"
    )]
    Abandoned,
    /// The ingest already failed; its first error says why.
    #[error("this write failed before and cannot go on; nothing of it was kept")]
    IngestFailed,
    /// A collection cannot tell what a damaged DAG still needs.
    #[error(
        "nothing was collected: pin {pin} is damaged at {cid}, so what it needs below that is unknown; \
         fetch that block again, or remove the pin"
    )]
    PinDamaged {
        /// The pin's id.
        pin: String,
        /// The interior block that cannot be read.
        cid: Cid,
    },
    /// Not all that pins keep could be told.
    #[error(
        "pin {pin} lacks block {cid}, so what it keeps below that is not known; everything else was told; \
         `btfs repo verify --repair` fetches the block"
    )]
    PinNotWalked {
        /// The pin's id.
        pin: String,
        /// The node that is damaged or not here.
        cid: Cid,
    },
    /// Others look through the pins already.
    #[error("{most} others are looking through the pins at this moment; try again when one is done")]
    WalksBusy {
        /// Most at a time.
        most: usize,
    },
    /// The state knows of blocks, and their database is not there.
    #[error(
        "the block database {} of this repo is gone (is its disk mounted?); nothing was changed; \
         put it back, or restore the repo from a backup; a data directory besides the repo's own that is lost \
         is given up by `btfs repo dir forget`",
        path.display()
    )]
    BlocksGone {
        /// Where it should be.
        path: PathBuf,
    },
    /// There are blocks, and the state that goes with them is not there.
    #[error(
        "there are blocks, but the state {} that goes with them is gone or new; nothing was changed; \
         put it back, or restore the repo from a backup",
        path.display()
    )]
    StateGone {
        /// Where it should be.
        path: PathBuf,
    },
    /// The blocks are those of another repo.
    #[error(
        "the block database {} belongs to another repo than the state beside it; nothing was changed; \
         put the right one there",
        path.display()
    )]
    ForeignBlocks {
        /// The block database.
        path: PathBuf,
    },
    /// The system's generator gave no random bytes.
    #[error("the system gave no random bytes for the identity of the repo: {detail}; nothing was changed")]
    Random {
        /// What it said.
        detail: String,
    },
    /// A directory cannot be used for blocks, or not be given up.
    #[error("data directory {}: {detail}; nothing was changed", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is in the way.
        detail: String,
    },
    /// Emptying a directory was broken off.
    #[error(
        "emptying the data directory {} was stopped; it takes no new blocks, what is left in it is served; \
         remove it again to go on, or add it to keep it",
        path.display()
    )]
    DrainStopped {
        /// The directory.
        path: PathBuf,
    },
    /// A copy could not be made.
    #[error("no backup was made in {}: {detail}; the repo is unaffected", path.display())]
    Backup {
        /// Where it should go.
        path: PathBuf,
        /// What went wrong.
        detail: String,
    },
    /// The database could not rewrite its files.
    #[error(
        "deleted blocks are gone, but their space was not given back: a compaction of {} failed, as its file LOG says;          everything else is unaffected; make room if the disk is full, then collect again",
        path.display()
    )]
    NotReclaimed {
        /// The block database.
        path: PathBuf,
    },
    /// The process is about to end.
    #[error(
        "the collection was stopped; what it had not deleted yet is still here; it goes on at the next one"
    )]
    CollectionStopped,
    /// No thread could be had.
    #[error("cannot start a thread: {source}; nothing was changed")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
    /// No pin has that id.
    #[error("there is no pin {0}")]
    NoSuchPin(String),
    /// Free space could not be asked for.
    #[error("cannot read the free space of {}: {source}", path.display())]
    FreeSpace {
        /// The block database.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The state database, or the block database at opening.
    #[error(transparent)]
    Db(DbError),
}

impl From<DbError> for StoreError {
    /// A refusal by one of the store's own checks comes back as the error it was.
    fn from(error: DbError) -> Self {
        match error {
            DbError::Refused(cause) => match cause.downcast::<StoreError>() {
                Ok(cause) => *cause,
                Err(cause) => StoreError::Db(DbError::Refused(cause)),
            },
            error => StoreError::Db(error),
        }
    }
}

/// A byte count as people read it: `512 B`, `3.1 GiB`.
pub fn size(bytes: u64) -> impl fmt::Display {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    fmt::from_fn(move |f| {
        if bytes < 1024 {
            return write!(f, "{bytes} B");
        }
        let exponent = (63 - bytes.leading_zeros()) / 10;
        let tenths = u128::from(bytes) * 10 / (1u128 << (10 * exponent));
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[exponent as usize - 1])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        let text = |bytes| size(bytes).to_string();
        assert_eq!(text(0), "0 B");
        assert_eq!(text(1023), "1023 B");
        assert_eq!(text(1024), "1.0 KiB");
        assert_eq!(text(12 << 30), "12.0 GiB");
        assert_eq!(text((3 << 30) + (1 << 27)), "3.1 GiB");
        assert_eq!(text(u64::MAX), "15.9 EiB");
    }

    #[test]
    fn quota_errors_say_what_was_asked_and_what_is_left() {
        let error = StoreError::QuotaExceeded {
            class: Class::Hosted,
            asked: 12 << 30,
            free: (3 << 30) + (1 << 27),
            quota: 50 << 30,
        };
        assert_eq!(
            error.to_string(),
            "not enough space: 12.0 GiB asked, 3.1 GiB free of the 50.0 GiB quota for hosted data; nothing was kept"
        );
    }
}
