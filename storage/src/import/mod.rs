//! Files and directories to blocks.
//!
//! [`import_path`] walks a tree once, in the order its directories list their entries, and [`import_reader`] takes
//! a stream; both write blocks to a [`BlockSink`] and answer the root. `btfs add` calls them with an ingest of the
//! store, tests and `add --only-hash` with a sink that keeps nothing. [`FileBuilder`] and [`DirBuilder`] make the
//! same nodes from leaves that came in another way, as the pieces of a torrent do: the same content has the same
//! CID however it came.
//!
//! What a CID depends on beside the content is all in [`Profile`] (source: IPIP-499, and Kubo for what deviates from
//! it): how files are cut ([`Chunker`]) and leaves tied together ([`Layout`]), which blocks are raw or lie in their
//! CIDs, when directories are sharded. Modes and times are recorded only if [`ImportOptions`] asks for them.
//!
//! Invariants:
//!
//! * Memory is bounded whatever a file's size: a window of chunks under way ([`pipeline`]) and one row of links per
//!   level of the DAG. A directory's entries are held while it is built.
//! * Every content byte is read once and hashed once here. An [`Observer`] sees it while it is hot.
//! * A file whose size or time of modification changes while it is read is an error, as is any entry that cannot be
//!   read: nothing is left out silently. The sink then holds blocks that nothing refers to; the caller drops it.

mod builder;
mod chunker;
mod directory;
mod edit;
mod options;
mod pipeline;
mod profile;
mod small;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod tests;
mod tree;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cid::Cid;

pub use builder::FileBuilder;
pub use chunker::{Bounds, Chunker, ChunkerError, MAX_CHUNK};
pub use directory::{DirBuilder, EachDirectory};
pub use edit::{Change, EditError, Edited, edit_directory};
pub use options::{IgnoreRules, ImportOptions};
pub use profile::{Layout, Overrides, Profile, ProfileError};
pub use tree::{Survey, survey};

use crate::unixfs::hamt::Collision;
use crate::unixfs::{Data, Metadata};
use crate::{BlockSink, Place, StoreError};
use builder::WholeFile;
use pipeline::Pipeline;

/// What an import made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Root of the DAG.
    pub root: Cid,
    /// Content bytes: those of the file, or of all files below the directory.
    pub size: u64,
    /// Cumulative size of the DAG in bytes, as links to it state (`Tsize`); repeated blocks count each time.
    pub dag_size: u64,
    /// Blocks written to the sink, repetitions included.
    pub blocks: u64,
}

/// A leaf of a file, while its bytes are hot.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// The leaf block's address.
    pub cid: Cid,
    /// Where its content starts in the file, in bytes.
    pub offset: u64,
    /// Its content (without any wrapping of the block); sharing memory with the block.
    pub content: Bytes,
    /// Length of the block in bytes.
    pub block_len: u64,
}

/// Watches an import go by, so that other hashes of the same bytes (a torrent's) are made in the same pass.
///
/// Calls come in order: `file_start`, one `leaf` after another from the file's first byte on (an empty file has
/// one empty leaf), `file_end`. They run on the importing thread and hold it up.
pub trait Observer {
    /// A file begins. `path` holds its components below the imported directory, and is empty when the import is of
    /// this one file; `size` is its length in bytes, or `None` for a stream.
    fn file_start(&mut self, path: &[String], size: Option<u64>) {
        let _ = (path, size);
    }
    /// The next leaf of the current file.
    fn leaf(&mut self, leaf: &Leaf) {
        let _ = leaf;
    }
    /// The current file is complete.
    fn file_end(&mut self, file: &Imported) {
        let _ = file;
    }
    /// A directory was written, after everything in it.
    fn directory(&mut self, path: &[String], root: &Cid) {
        let _ = (path, root);
    }
    /// A symlink was written.
    fn symlink(&mut self, path: &[String], target: &[u8], root: &Cid) {
        let _ = (path, target, root);
    }
}

/// Watches nothing.
impl Observer for () {}

/// Why an import failed. Nothing was pinned; what the import had written is not kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A file, link or directory could not be read.
    #[error("cannot read {}: {source}; nothing was added", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The stream given failed.
    #[error("cannot read the input: {0}; nothing was added")]
    Input(io::Error),
    /// A file was written to while it was read.
    #[error("{} changed while it was being read; nothing was added; add it again when it is at rest", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// A name that UnixFS cannot hold.
    #[error("the name of {} is not UTF-8, which UnixFS cannot hold; nothing was added; rename it", path.display())]
    NotUtf8 {
        /// Which.
        path: PathBuf,
    },
    /// Neither file, directory nor symlink.
    #[error(
        "{} is neither a file, a directory nor a symlink; nothing was added; remove it or add its neighbours one by \
         one", path.display()
    )]
    Kind {
        /// Which.
        path: PathBuf,
    },
    /// A path given to [`DirBuilder`] that is no path.
    #[error("{path:?} is not a usable path: {problem}")]
    Path {
        /// The components, joined.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A directory that is below itself, by a symlink that is followed.
    #[error("{} leads back to a directory it is in; nothing was added; keep symlinks as they are, or remove it", path.display())]
    Loop {
        /// The entry that leads back.
        path: PathBuf,
    },
    /// Rules of what to leave out that cannot be read or parsed.
    #[error("the rules of what to ignore cannot be used: {0}; nothing was added")]
    Rules(String),
    /// Two names of a large directory have the same hash.
    #[error(transparent)]
    Collision(#[from] Collision),
    /// Sizes that overflow 64 bits.
    #[error("the content exceeds 2^64 bytes")]
    TooLarge,
    /// The store refused a block.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Imports a file, a symlink or a directory with all below it.
///
/// `progress` is called with the content bytes done so far.
pub fn import_path(
    path: &Path,
    profile: &Profile,
    options: &ImportOptions,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
) -> Result<Imported, ImportError> {
    import_path_observed(path, profile, options, sink, progress, &mut ())
}

/// [`import_path`], with an observer of every leaf.
pub fn import_path_observed(
    path: &Path,
    profile: &Profile,
    options: &ImportOptions,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
    observer: &mut dyn Observer,
) -> Result<Imported, ImportError> {
    observed(profile, options, sink, progress, observer, |importer| importer.import(path))
}

/// Imports files, symlinks or directories into one directory that holds each under the last component of its path.
pub fn import_wrapped(
    paths: &[PathBuf],
    profile: &Profile,
    options: &ImportOptions,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
) -> Result<Imported, ImportError> {
    observed(profile, options, sink, progress, &mut (), |importer| importer.import_wrapped(paths))
}

/// Runs an importer on threads that end with it.
fn observed(
    profile: &Profile,
    options: &ImportOptions,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
    observer: &mut dyn Observer,
    run: impl FnOnce(tree::Importer<'_, '_, '_, '_>) -> Result<Imported, ImportError>,
) -> Result<Imported, ImportError> {
    std::thread::scope(|scope| {
        let mut sink = Counting { sink, blocks: 0 };
        let pipeline = Pipeline::new(scope, profile);
        let ahead = small::Ahead::new(scope, profile, options);
        let sink = &mut sink;
        run(tree::Importer { profile, options, sink, progress, observer, pipeline, ahead, done: 0 })
    })
}

/// Imports a stream as one file. `progress` is called with the bytes done so far.
pub fn import_reader(
    reader: impl Read + Send,
    profile: &Profile,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
) -> Result<Imported, ImportError> {
    import_reader_observed(reader, profile, sink, progress, &mut ())
}

/// [`import_reader`], with an observer of every leaf.
pub fn import_reader_observed(
    reader: impl Read + Send,
    profile: &Profile,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
    observer: &mut dyn Observer,
) -> Result<Imported, ImportError> {
    import_stream(reader, profile, &Metadata::default(), sink, progress, observer)
}

/// [`import_reader_observed`], with a mode and a time to record.
pub fn import_stream(
    mut reader: impl Read + Send,
    profile: &Profile,
    metadata: &Metadata,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
    observer: &mut dyn Observer,
) -> Result<Imported, ImportError> {
    std::thread::scope(|scope| {
        let mut sink = Counting { sink, blocks: 0 };
        let mut pipeline = Pipeline::new(scope, profile);
        observer.file_start(&[], None);
        let mut file = WholeFile::new(profile, *metadata);
        let mut each = |leaf: Leaf, block: Bytes| {
            file.leaf(&leaf, block, &mut sink)?;
            observer.leaf(&leaf);
            progress(leaf.offset + leaf.content.len() as u64);
            Ok(())
        };
        pipeline.run(&mut reader, None, &mut each).map_err(|failure| failure.at_input())?;
        let mut file = file.finish(&mut sink)?;
        file.blocks = sink.blocks;
        observer.file_end(&file);
        Ok(file)
    })
}

/// Writes a symlink.
pub fn import_symlink(
    target: Bytes,
    profile: &Profile,
    metadata: &Metadata,
    sink: &mut dyn BlockSink,
) -> Result<Imported, ImportError> {
    // A link has no permissions of its own.
    let metadata = Metadata { mode: None, ..*metadata };
    let (root, block) = profile.node(Vec::new(), &Data::symlink(target).with_metadata(&metadata));
    let dag_size = block.len() as u64;
    sink.put(&root, block)?;
    Ok(Imported { root, size: 0, dag_size, blocks: 1 })
}

/// A sink that counts what goes through.
struct Counting<'a> {
    sink: &'a mut dyn BlockSink,
    blocks: u64,
}

impl BlockSink for Counting<'_> {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        self.blocks += 1;
        self.sink.put(cid, data)
    }

    fn put_located(&mut self, cid: &Cid, data: Bytes, place: &Place<'_>) -> Result<(), StoreError> {
        self.blocks += 1;
        self.sink.put_located(cid, data, place)
    }
}
