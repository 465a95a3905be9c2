//! CAR files: a DAG, or any heap of blocks, as one stream of bytes.
//!
//! Source: the CARv1 and CARv2 specifications, <https://ipld.io/specs/transport/car/>. A CARv1 is a header (DAG-CBOR:
//! version and roots) and then sections of varint length, CID, bytes. A CARv2 puts a fixed header before such a payload
//! and may put an index after it.
//!
//! * [`CarReader`] takes either version apart as a stream: no seeking, at most one section in memory, and no block
//!   leaves it that does not hash to its CID. An index is skipped: it could only say what the sections say themselves.
//! * [`CarWriter`] writes CARv1; [`export`] writes a whole DAG with it, every block once, in the order in which a
//!   depth-first walk meets them. That is what Kubo writes, so the same DAG gives the same bytes.
//! * [`import`] puts all blocks of a CAR into a sink.
//!
//! `btfs dag export` and `btfs dag import` are built on these, and so are `/api/v0/dag/export` and `import`.
//!
//! A CAR is foreign input: every length is checked against a cap before anything is allocated for it, and each way in
//! which a file can be broken has an error of its own that says where.

mod read;
#[cfg(test)]
mod tests;
mod write;

use cid::Cid;
use serde::{Deserialize, Serialize};

pub use read::{CarReader, Imported, import};
pub use write::{CarWriter, export};

use crate::hash::{self, HashError};
use crate::read::ReadError;
use crate::{MAX_BLOCK, StoreError};

/// Longest header that is read, in bytes: room for 25,000 roots. Headers of more roots exist in no tool, and each root
/// would be walked and pinned.
pub const MAX_HEADER: usize = 1 << 20;
/// Longest CID at the head of a section: four varints of at most ten bytes and the digest.
const MAX_CID: usize = 40 + hash::MAX_DIGEST;

/// What a CARv2 begins with: a CARv1 header of version 2 without roots.
const V2_PRAGMA: [u8; 11] = [0x0a, 0xa1, 0x67, b'v', b'e', b'r', b's', b'i', b'o', b'n', 0x02];
/// Length of the header after the pragma: characteristics, data offset, data size, index offset.
const V2_HEADER: usize = 40;
/// The characteristic that says that the index names every section; the first bit of the bit field.
const FULLY_INDEXED: u8 = 0x80;

/// What the beginning of a CAR says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 1 or 2.
    pub version: u8,
    /// Where the DAGs begin that the file was made for. They need not be in it.
    pub roots: Vec<Cid>,
    /// CARv2: whether its writer says that the index names every section.
    pub fully_indexed: bool,
}

/// The header of a CARv1, and of the payload of a CARv2.
#[derive(Debug, Serialize, Deserialize)]
struct HeaderV1 {
    #[serde(default)]
    roots: Option<Vec<Cid>>,
    version: u64,
}

/// Why a CAR was not read or written. Offsets are bytes from the beginning of the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CarError {
    /// The file does not begin like a CAR.
    #[error("not a CAR file: {0}")]
    NotACar(String),
    /// A version that does not exist yet, or one CARv2 inside another.
    #[error("CAR version {0} is not known here; versions 1 and 2 are")]
    Version(u64),
    /// A header over the cap.
    #[error("the CAR's header has {size} bytes; {MAX_HEADER} are read at most; nothing was imported")]
    HeaderTooLarge {
        /// Its length in bytes.
        size: u64,
    },
    /// The file ends inside something.
    #[error("the CAR is cut off at byte {offset}, inside {inside}{}", after(.last))]
    Truncated {
        /// Where it ends.
        offset: u64,
        /// What was being read.
        inside: &'static str,
        /// The last block before that.
        last: Option<Cid>,
    },
    /// What should be a section is none.
    #[error("the CAR has something at byte {offset} that is no block: {problem}{}", after(.last))]
    BadSection {
        /// Where the section begins.
        offset: u64,
        /// What is wrong.
        problem: String,
        /// The last block before that.
        last: Option<Cid>,
    },
    /// Bytes after the payload of a CARv2 that has no index.
    #[error("the CAR goes on after its end at byte {offset}{}; trailing bytes are not read", after(.last))]
    TrailingGarbage {
        /// Where they begin.
        offset: u64,
        /// The last block before them.
        last: Option<Cid>,
    },
    /// A block over the cap.
    #[error("block {cid} at byte {offset} of the CAR has {size} bytes; blocks may have {MAX_BLOCK}")]
    BlockTooLarge {
        /// The block's address.
        cid: Cid,
        /// Where its section begins.
        offset: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// A block whose bytes are not those of its CID, or cannot be checked.
    #[error("the block at byte {offset} of the CAR: {source}")]
    Block {
        /// Where its section begins.
        offset: u64,
        /// What is wrong with it.
        source: HashError,
    },
    /// The stream failed.
    #[error("cannot read the CAR after byte {offset}: {source}")]
    Read {
        /// How far it was read.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The target of an export failed.
    #[error("cannot write the CAR: {0}; what was written is no whole file")]
    Write(std::io::Error),
    /// A block of the exported DAG could not be read.
    #[error(transparent)]
    Dag(#[from] ReadError),
    /// The store did not take or give a block.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The end of a message: which block was the last good one.
fn after(last: &Option<Cid>) -> String {
    last.map(|cid| format!(", after block {cid}")).unwrap_or_default()
}
