//! Making torrents: in the same pass as an import, or from content that is stored already.
//!
//! [`Hasher`] watches an import ([`Observer`]) and hashes each leaf while its bytes are hot; files come in the order of
//! the DAG, which is the order of the torrent. [`from_root`] reads a stored DAG back once in the same order and gives the same
//! infohash.
//!
//! A [`Version::Hybrid`] torrent is one of v1 and one of v2 (BEP 52) over the same files: pads (BEP 47) bring every file to
//! the beginning of a piece, so that both cut it alike. They are not content and not part of the DAG.
//!
//! What a v1 torrent cannot say (empty directories, links that leave the tree) is an error that names the entry: a download would
//! not have the CID that the torrent promises.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use btfs_storage::db::Batch;
use btfs_storage::import::{ImportError, ImportOptions, Imported, Leaf, Observer, Profile, survey};
use btfs_storage::read::{self, FileReader, Kind, ReadError};
use btfs_storage::{BlockSource, Cid, Ingest, Store, StoreError};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use crate::assemble::link_text;
use crate::infohash::InfoHash;
use crate::layout::LEAF;
use crate::magnet::Magnet;
use crate::merkle::{self, FileHasher};
use crate::metainfo::{
    FileEntry, FileKind, Info, MAX_PIECE_LENGTH, MAX_TOTAL, MIN_PIECE_LENGTH, Metainfo, MetainfoError,
};
use crate::records;

/// Most pieces that we choose; larger content gets longer pieces.
const MAX_PIECES: u64 = 65_536;
/// Pieces that a tree of small files should have at least, so that peers can share it piece by piece.
const GOOD_PIECES: u64 = 1024;
/// Shortest piece that we choose.
const SHORTEST: u64 = 16 << 10;
/// Directories deep that [`from_root`] follows, as [`Info::parse`] does.
const MAX_DEPTH: usize = 64;

/// Why no torrent could be made. The content itself is unaffected.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A v1 torrent has no way to say this.
    #[error(
        "no torrent was made: {path:?} is {what}, which a torrent cannot hold; the content itself is unaffected"
    )]
    Unrepresentable {
        /// The entry, from the root.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// Not the default profile.
    #[error(
        "no torrent was made: a torrent's content has profile unixfs-v1-2025, not {0}; the content itself is unaffected"
    )]
    Profile(&'static str),
    /// The info dictionary would break a rule: too many pieces for 2 MiB, an unusable name.
    #[error("no torrent was made: {0}")]
    Metainfo(#[from] MetainfoError),
    /// The stored content could not be read.
    #[error("no torrent was made: {0}")]
    Read(#[from] ReadError),
    /// The file or directory could not be looked through.
    #[error("no torrent was made: {0}")]
    Survey(#[from] ImportError),
}

/// What a torrent that is made can be read as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// v1 alone, which every client reads.
    #[default]
    V1,
    /// v1 and v2.
    Hybrid,
}

/// A torrent of content that this node has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorrentFile {
    /// Root of the content.
    pub root: Cid,
    /// The info dictionary.
    pub info: Info,
    /// The piece layers of a hybrid, by pieces root.
    layers: Option<BTreeMap<merkle::Hash, Vec<merkle::Hash>>>,
    /// Tracker URLs, to be set by whoever has some.
    pub trackers: Vec<String>,
}

impl TorrentFile {
    /// The v2 infohash of a hybrid, as hex.
    pub fn infohash_v2(&self) -> Option<String> {
        self.info.hash_v2().map(hex::encode)
    }

    /// The v1 infohash.
    pub fn infohash(&self) -> InfoHash {
        self.info.hash()
    }

    /// The magnet link.
    pub fn magnet(&self) -> Magnet {
        Magnet {
            trackers: self.trackers.clone(),
            btmh: self.info.hash_v2(),
            ..Magnet::v1(self.info.hash(), Some(self.info.name.clone()))
        }
    }

    /// The bytes of the `.torrent` file.
    pub fn encode(&self) -> Vec<u8> {
        let metainfo = Metainfo { info: self.info.clone(), trackers: self.trackers.clone() };
        metainfo.encode_with(self.layers.as_ref())
    }

    /// Keeps the torrent with an import: the info dictionary goes to `ingest`; record, pins and alias to `batch`, with which
    /// the ingest must finish. An engine seeds it from its next start, or by
    /// [`Engine::seed`](crate::engine::Engine::seed).
    pub fn record(&self, store: &Store, ingest: &mut Ingest, batch: &mut Batch) -> Result<(), StoreError> {
        records::put_seed(store, ingest, batch, &self.info, &self.root, &self.trackers)
    }
}

/// The piece length for content of `total` bytes: a leaf, doubled while there would be more than 65,536 pieces. Trees of
/// several files get shorter pieces, down to 16 KiB, while there would be fewer than 1,024.
pub fn piece_length(total: u64, files: u64) -> u32 {
    let mut length = LEAF;
    while total.div_ceil(length) > MAX_PIECES && length < u64::from(MAX_PIECE_LENGTH) {
        length *= 2;
    }
    while files > 1 && length > SHORTEST && total.div_ceil(length) < GOOD_PIECES {
        length /= 2;
    }
    length as u32 // at most MAX_PIECE_LENGTH
}

/// The piece length for a file or directory that is about to be imported; only sizes are read.
pub fn piece_length_for_path(path: &Path, options: &ImportOptions) -> Result<u32, CreateError> {
    let found = survey(path, options)?;
    Ok(piece_length(found.bytes, found.files))
}

/// SHA-1 over pieces of a stream.
struct PieceHasher {
    piece_length: u32,
    current: Sha1,
    filled: u32,
    hashes: Vec<u8>,
}

impl PieceHasher {
    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let take = bytes.len().min((self.piece_length - self.filled) as usize);
            self.current.update(&bytes[..take]);
            self.filled += take as u32;
            bytes = &bytes[take..];
            if self.filled == self.piece_length {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.hashes.extend_from_slice(&self.current.finalize_reset());
        self.filled = 0;
    }
}

/// Zeros of pads, for hashing.
static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// What a hybrid has beside v1.
struct Trees {
    current: FileHasher,
    /// Of each file, in step with the list of files.
    roots: Vec<Option<merkle::Hash>>,
    layers: BTreeMap<merkle::Hash, Vec<merkle::Hash>>,
}

/// Hashes the pieces of an import as it goes by. Pass it as the observer, then [`Hasher::finish`].
pub struct Hasher {
    name: String,
    hasher: PieceHasher,
    /// Of a hybrid.
    trees: Option<Trees>,
    files: Vec<FileEntry>,
    multi_file: bool,
    /// Directories that hold something.
    filled: HashSet<Vec<String>>,
    problem: Option<CreateError>,
}

impl Hasher {
    /// For a file or directory that is about to be imported; its piece length follows from its sizes.
    pub fn for_path(
        path: &Path,
        profile: &Profile,
        options: &ImportOptions,
        name: &str,
        version: Version,
    ) -> Result<Hasher, CreateError> {
        if *profile != Profile::V1_2025 {
            return Err(CreateError::Profile(profile.name()));
        }
        Hasher::of(name, piece_length_for_path(path, options)?, version)
    }

    /// [`new`](Self::new) of a version. A hybrid's pieces have a power of two of bytes, at least 16 KiB.
    pub fn of(name: &str, piece_length: u32, version: Version) -> Result<Hasher, CreateError> {
        let mut hasher = Hasher::new(name, piece_length);
        if version == Version::Hybrid {
            let current = FileHasher::new(piece_length).filter(|_| piece_length <= MAX_PIECE_LENGTH);
            let current = current.ok_or_else(|| {
                let rule = "the pieces of a hybrid have a power of two of bytes, from 16 KiB to 64 MiB";
                MetainfoError::Invalid(format!("{rule}, not {piece_length}"))
            })?;
            hasher.trees = Some(Trees { current, roots: Vec::new(), layers: BTreeMap::new() });
        }
        Ok(hasher)
    }

    /// For pieces of `piece_length` bytes (see [`piece_length()`]; for a stream of unknown size, 1 MiB).
    pub fn new(name: &str, piece_length: u32) -> Hasher {
        let piece_length = piece_length.clamp(MIN_PIECE_LENGTH, MAX_PIECE_LENGTH);
        Hasher {
            name: name.to_owned(),
            hasher: PieceHasher { piece_length, current: Sha1::new(), filled: 0, hashes: Vec::new() },
            trees: None,
            files: Vec::new(),
            multi_file: false,
            filled: HashSet::new(),
            problem: None,
        }
    }

    fn begin(&mut self, path: &[String], kind: FileKind) {
        self.mark_filled(path);
        self.push(FileEntry { path: path.to_vec(), length: 0, kind });
    }

    fn push(&mut self, file: FileEntry) {
        self.files.push(file);
        if let Some(trees) = &mut self.trees {
            trees.roots.push(None);
        }
    }

    fn mark_filled(&mut self, path: &[String]) {
        if let Some((_, parent)) = path.split_last() {
            self.filled.insert(parent.to_vec());
        }
    }

    fn bytes(&mut self, content: &[u8]) {
        if content.is_empty() {
            return;
        }
        self.align();
        if let Some(file) = self.files.last_mut() {
            file.length += content.len() as u64;
        }
        self.hasher.update(content);
        if let Some(trees) = &mut self.trees {
            trees.current.update(content);
        }
    }

    /// Before the first bytes of a file of a hybrid: pads up to the next piece.
    fn align(&mut self) {
        let filled = self.hasher.filled;
        if self.trees.is_none() || filled == 0 || self.files.last().is_none_or(|file| file.length > 0) {
            return;
        }
        let mut missing = self.hasher.piece_length - filled;
        let pad = FileEntry { path: Vec::new(), length: missing.into(), kind: FileKind::Pad };
        let Some(file) = self.files.pop() else { return };
        if let Some(trees) = &mut self.trees {
            trees.roots.pop();
        }
        self.push(pad);
        self.push(file);
        while missing > 0 {
            let zeros = &ZEROS[..ZEROS.len().min(missing as usize)];
            self.hasher.update(zeros);
            missing -= zeros.len() as u32;
        }
    }

    fn end(&mut self) {
        let Some(trees) = &mut self.trees else { return };
        let hashes = trees.current.finish();
        if let Some(last) = trees.roots.last_mut() {
            *last = hashes.root;
        }
        if let Some(root) = hashes.root.filter(|_| !hashes.layer.is_empty()) {
            trees.layers.insert(root, hashes.layer);
        }
    }

    fn link(&mut self, path: &[String], target: &[u8]) {
        match resolve_link(path, target) {
            Some(target) => self.begin(path, FileKind::Symlink(target)),
            None => self.refuse(path, "a symlink whose target is not a plain path within the torrent"),
        }
    }

    fn directory_done(&mut self, path: &[String]) {
        self.multi_file = true;
        self.mark_filled(path);
        if !self.filled.contains(path) {
            self.refuse(path, "an empty directory");
        }
    }

    fn refuse(&mut self, path: &[String], what: &'static str) {
        let path = path.join("/");
        self.problem.get_or_insert(CreateError::Unrepresentable { path, what });
    }

    /// The torrent of what went by; `root` is what the import answered.
    pub fn finish(mut self, root: Cid) -> Result<TorrentFile, CreateError> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if self.hasher.filled > 0 {
            self.hasher.close();
        }
        let (length, hashes) = (self.hasher.piece_length, &self.hasher.hashes);
        let (name, files, multi_file) = (&self.name, &self.files, self.multi_file);
        let info = match &self.trees {
            None => Info::build(name, length, files, multi_file, hashes)?,
            Some(trees) => Info::build_hybrid(name, length, files, multi_file, hashes, &trees.roots)?,
        };
        Ok(TorrentFile { root, info, layers: self.trees.map(|trees| trees.layers), trackers: Vec::new() })
    }
}

impl Observer for Hasher {
    fn file_start(&mut self, path: &[String], _size: Option<u64>) {
        self.begin(path, FileKind::Regular);
    }

    fn leaf(&mut self, leaf: &Leaf) {
        self.bytes(&leaf.content);
    }

    fn file_end(&mut self, _file: &Imported) {
        self.end();
    }

    fn directory(&mut self, path: &[String], _root: &Cid) {
        self.directory_done(path);
    }

    fn symlink(&mut self, path: &[String], target: &[u8], _root: &Cid) {
        if path.is_empty() {
            self.refuse(path, "a symlink");
        } else {
            self.link(path, target);
        }
    }
}

/// The torrent of a stored file or directory, under `name`; reads all of it once. `piece_length`: chosen by size
/// if `None`. `progress` is called with the content bytes done so far.
pub fn from_root(
    src: &dyn BlockSource,
    root: &Cid,
    name: &str,
    version: Version,
    piece_length: Option<u32>,
    progress: &mut dyn FnMut(u64),
) -> Result<TorrentFile, CreateError> {
    let mut entries = Vec::new();
    list(src, root, &mut Vec::new(), &mut entries)?;
    let sizes = entries.iter().filter_map(|e| if let What::File(size) = e.what { Some(size) } else { None });
    let (total, files) = sizes.fold((0u64, 0u64), |(total, n), size| (total.saturating_add(size), n + 1));
    let length = piece_length.unwrap_or_else(|| self::piece_length(total.min(MAX_TOTAL), files));
    let mut maker = Hasher::of(name, length, version)?;
    let mut done = 0;
    for entry in entries {
        match entry.what {
            What::Directory => maker.directory_done(&entry.path),
            What::Link(target) => maker.symlink(&entry.path, &target, &entry.cid),
            What::File(_) => {
                maker.begin(&entry.path, FileKind::Regular);
                let mut reader = FileReader::open(src, &entry.cid)?;
                while let Some(bytes) = reader.next_bytes()? {
                    maker.bytes(&bytes);
                    done += bytes.len() as u64;
                    progress(done);
                }
                maker.end();
            }
        }
        if let Some(problem) = maker.problem {
            return Err(problem);
        }
    }
    maker.finish(*root)
}

struct Listed {
    path: Vec<String>,
    cid: Cid,
    what: What,
}

enum What {
    File(u64),
    Directory,
    Link(Bytes),
}

/// All entries below `cid` in the order of an import: by name, a directory after what is in it.
fn list(
    src: &dyn BlockSource,
    cid: &Cid,
    path: &mut Vec<String>,
    out: &mut Vec<Listed>,
) -> Result<(), CreateError> {
    let stat = read::stat(src, cid)?;
    let what = match stat.kind {
        Kind::File => What::File(stat.size),
        Kind::Symlink => What::Link(link_target(src, cid)?),
        Kind::Unknown => return Err(ReadError::NotAFile { cid: *cid, kind: stat.kind }.into()),
        Kind::Directory => {
            if path.len() >= MAX_DEPTH {
                return Err(CreateError::Unrepresentable { path: path.join("/"), what: "nested too deeply" });
            }
            let mut names = Vec::new();
            read::for_each_entry(src, cid, &mut |link| {
                names.push((link.name, link.cid));
                Ok(())
            })?;
            names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
            for (name, child) in names {
                path.push(name);
                list(src, &child, path, out)?;
                path.pop();
            }
            What::Directory
        }
    };
    out.push(Listed { path: path.clone(), cid: *cid, what });
    Ok(())
}

fn link_target(src: &dyn BlockSource, cid: &Cid) -> Result<Bytes, CreateError> {
    let block = src.get(cid).map_err(ReadError::from)?.ok_or(ReadError::Missing(*cid))?;
    match btfs_storage::unixfs::Node::decode(cid, &block)
        .map_err(|source| ReadError::UnixFs { cid: *cid, source })?
    {
        btfs_storage::unixfs::Node::Symlink(target) => Ok(target),
        _ => Err(ReadError::NotAFile { cid: *cid, kind: Kind::Unknown }.into()),
    }
}

/// The path that a link at `path` leads to, from the root; `None` unless the torrent's form of it gives the same
/// text back, since the text is part of the CID.
fn resolve_link(path: &[String], target: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(target).ok()?;
    let mut resolved: Vec<String> = path[..path.len().saturating_sub(1)].to_vec();
    for part in text.split('/') {
        match part {
            "" | "." => return None,
            ".." => {
                resolved.pop()?;
            }
            name => resolved.push(name.to_owned()),
        }
    }
    (!resolved.is_empty() && link_text(path, &resolved) == text).then_some(resolved)
}

#[cfg(test)]
mod tests;
