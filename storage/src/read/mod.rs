//! Blocks to files and directories.
//!
//! Everything here works over any [`BlockSource`] and reads any profile and depth: a file is followed by the sizes
//! its nodes state, so trickle and hand-made layouts read like balanced ones.
//!
//! * [`resolve`], [`ls`] and [`stat`] look at names and sizes.
//! * [`LeafPlan`] answers which leaves make up a byte range. [`AheadReader`] reads them ahead, from wherever they come in
//!   their own time; [`FileReader`] reads what is in the store, one after the other, on a thread that may block.
//! * [`Walk`] goes through all blocks of a DAG; [`export`] writes files and directories out, with the modes and times
//!   that they record, [`pack`] makes an archive of them.
//!
//! The store, the gateway and `btfs get` read through these; what is not local comes back as
//! [`ReadError::Missing`] with the CID, and nothing is lost by it: [`LeafPlan::next`] and [`Walk`] go on where they
//! stopped once the block is there, and `ahead` tells which blocks will be wanted next, for read-ahead.
//!
//! DAGs are foreign input. Sizes are checked against each other on the way down, tries against the hashes of their
//! names, depths against a cap; a directory entry with a name that would leave its directory is never written out.

mod ahead;
mod archive;
mod dir;
mod export;
mod file;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use cid::Cid;
use serde::{Deserialize, Serialize};

pub use ahead::{AheadReader, Blocks};
pub use archive::{Packing, pack, pack_to_file};
pub use dir::{DirEntry, Entries, for_each_entry, ls, resolve};
pub use export::export;
pub use file::{FileReader, LeafPlan, LeafSlice, leaf_plan};
pub use tree::Outward;
pub use walk::{Walk, walk};

pub(crate) use dir::{lookup, sub_shard};

use crate::dagpb::LinksError;
use crate::unixfs::{Metadata, Node, UnixFsError};
use crate::{BlockSource, StoreError};

/// Why content could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A block is not here; fetch it and go on.
    #[error("block {0} is not in the local store")]
    Missing(Cid),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A block is not UnixFS.
    #[error("{cid}: {source}")]
    UnixFs {
        /// The block.
        cid: Cid,
        /// What is wrong with it.
        source: UnixFsError,
    },
    /// A block's links are unknown.
    #[error("{cid}: {source}")]
    Links {
        /// The block.
        cid: Cid,
        /// What is wrong with it.
        source: LinksError,
    },
    /// A block contradicts the one that links to it.
    #[error("{cid} does not fit the DAG it is in: {problem}")]
    Inconsistent {
        /// The block.
        cid: Cid,
        /// What is wrong.
        problem: &'static str,
    },
    /// No entry of that name.
    #[error("no {name:?} in directory {directory}")]
    NotFound {
        /// The directory that was searched.
        directory: Cid,
        /// The name.
        name: String,
    },
    /// A path goes on below something that has no entries.
    #[error("{cid} is a {kind}, not a directory")]
    NotADirectory {
        /// What was found.
        cid: Cid,
        /// What it is.
        kind: Kind,
    },
    /// File content was asked of something that has none.
    #[error("{cid} is a {kind}, not a file")]
    NotAFile {
        /// What was found.
        cid: Cid,
        /// What it is.
        kind: Kind,
    },
    /// A path with `..` above its root, or with a zero byte.
    #[error("{0:?} is not a path below its root")]
    Path(String),
    /// An entry's name would lead out of the exported directory.
    #[error("{name:?} would lead out of the directory it is in; nothing was written")]
    Escapes {
        /// The name or target.
        name: String,
    },
    /// A symlink would lead out of what is written.
    #[error(
        "symlink {:?} leads out of what is written, to {target:?}; nothing was written. Such links can be left out or \
         kept (`--symlinks skip` or `keep`)",
        link
    )]
    LeadsOut {
        /// Where it is.
        link: PathBuf,
        /// Where it leads.
        target: String,
    },
    /// Another process writes there.
    #[error("{} is being written by another process; it was left alone", .0.display())]
    Busy(PathBuf),
    /// More entries than [`export`] or [`pack`] write.
    #[error("more than {0} entries; nothing was written")]
    TooManyEntries(u64),
    /// Directories within each other, deeper or fuller than [`export`] or [`pack`] follow.
    #[error("directory {0} lies deeper than any file system allows; what was written so far is not whole")]
    TooDeep(Cid),
    /// A name that no file system takes.
    #[error("the name {start:?}... of {bytes} bytes is too long; what was written so far is not whole")]
    LongName {
        /// How it begins.
        start: String,
        /// Its length in bytes.
        bytes: usize,
    },
    /// The target of an export exists.
    #[error("{} exists already; it was left as it is", .0.display())]
    Exists(PathBuf),
    /// The file system failed.
    #[error("cannot write {}: {source}; nothing was kept", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a DAG is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A file.
    File,
    /// A directory, in one block or sharded.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Not known: its block is not here, or is no UnixFS.
    Unknown,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::File => "file",
            Kind::Directory => "directory",
            Kind::Symlink => "symlink",
            Kind::Unknown => "thing of unknown kind",
        })
    }
}

impl From<&Node> for Kind {
    fn from(node: &Node) -> Kind {
        match node {
            Node::File(_) => Kind::File,
            Node::Directory(_) | Node::Shard(_) => Kind::Directory,
            Node::Symlink(_) => Kind::Symlink,
        }
    }
}

/// What is known of a DAG from its root block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// The root.
    pub cid: Cid,
    /// What it is.
    pub kind: Kind,
    /// Content bytes of a file, length of a symlink's target, 0 for a directory.
    pub size: u64,
    /// Cumulative bytes of the DAG, as the root's links claim.
    pub dag_size: u64,
    /// Bytes of the root block.
    pub block_size: u64,
    /// Links of the root block.
    pub links: u64,
}

/// Describes a file, directory or symlink by its root block alone.
pub fn stat(src: &dyn BlockSource, cid: &Cid) -> Result<Stat, ReadError> {
    let block = block(src, cid)?;
    let node = decode(cid, &block)?;
    let size = match &node {
        Node::File(file) => file.size,
        Node::Symlink(target) => target.len() as u64,
        Node::Directory(_) | Node::Shard(_) => 0,
    };
    let block_size = block.len() as u64;
    let (mut links, mut dag_size) = (0u64, block_size);
    if cid.codec() == crate::hash::DAG_PB {
        let node = crate::dagpb::PbNode::decode(&block)
            .map_err(|source| ReadError::UnixFs { cid: *cid, source: source.into() })?;
        links = node.links.len() as u64;
        for link in &node.links {
            dag_size = dag_size.saturating_add(link.tsize.unwrap_or(0));
        }
    }
    Ok(Stat { cid: *cid, kind: Kind::from(&node), size, dag_size, block_size, links })
}

/// A block that must be here.
fn block(src: &dyn BlockSource, cid: &Cid) -> Result<Bytes, ReadError> {
    src.get(cid)?.ok_or(ReadError::Missing(*cid))
}

fn decode(cid: &Cid, block: &Bytes) -> Result<Node, ReadError> {
    Node::decode(cid, block).map_err(|source| ReadError::UnixFs { cid: *cid, source })
}

/// The node of a block that must be here.
fn node(src: &dyn BlockSource, cid: &Cid) -> Result<Node, ReadError> {
    decode(cid, &block(src, cid)?)
}

/// [`node`], with the mode and time it records.
pub(crate) fn node_with_metadata(src: &dyn BlockSource, cid: &Cid) -> Result<(Node, Metadata), ReadError> {
    let block = block(src, cid)?;
    Node::decode_with_metadata(cid, &block).map_err(|source| ReadError::UnixFs { cid: *cid, source })
}
