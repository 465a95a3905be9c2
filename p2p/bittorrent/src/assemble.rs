//! From verified pieces to a root CID: how a download becomes blocks.
//!
//! A piece whose hash matched hands its bytes to the leaves it covers. A leaf that lies in one piece is a slice of
//! that piece and goes straight to the store; one that straddles pieces waits in memory until its last byte is there (the picker
//! bounds how many wait). Pad files are left out. A checkpoint makes the leaves so far durable together with their entries in
//! [`records::LEAVES`] and a list pin, and only then do their pieces count as stored. When all leaves are there, the
//! interior nodes and directories of the default profile are built over them, which gives the CID that `btfs add` of the same
//! files gives.
//!
//! Everything here blocks and runs on the store's pool; one [`Assembler`] per download, owned by its disk task.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use btfs_storage::dagpb::PbNode;
use btfs_storage::import::{DirBuilder, FileBuilder, ImportError, Imported, Profile};
use btfs_storage::unixfs::Data;
use btfs_storage::{BlockSink, Cid, Class, Ingest, Pin, PinKind, Store, StoreError, hash};
use bytes::{Bytes, BytesMut};
use serde_bytes::ByteArray;
use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::bitfield::Bitfield;
use crate::infohash::InfoHash;
use crate::layout::{Layout, LeafRange};
use crate::metainfo::{FileKind, Info};
use crate::records::{self, LEAVES, TORRENTS};

/// Bytes of fresh leaves after which a checkpoint is due: what a crash may cost again.
pub const CHECKPOINT_BYTES: u64 = 32 << 20;

/// Why a download cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The store refused: quota, full disk, failure.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directories could not be built.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The torrent's record is gone.
    #[error("the torrent was removed")]
    Removed,
}

/// A leaf whose bytes come from several pieces.
struct Waiting {
    bytes: BytesMut,
    /// Pieces whose bytes are in.
    from: Vec<u32>,
}

/// The disk side of one download.
pub struct Assembler {
    info: Info,
    layout: Arc<Layout>,
    digests: Digests,
    waiting: HashMap<u32, Waiting>,
    /// Put, but not durable yet.
    fresh: Vec<(u32, [u8; 32])>,
    fresh_bytes: u64,
    /// Verified pieces that are not wholly durable yet.
    pending: BTreeSet<u32>,
    ingest: Option<Ingest>,
}

/// What a checkpoint made durable.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// Leaves with their digests.
    pub leaves: Vec<(u32, [u8; 32])>,
    /// Pieces of which all leaves are durable now.
    pub pieces: Vec<u32>,
}

/// What a finished download is.
#[derive(Debug)]
pub struct Finished {
    /// Root of the content.
    pub root: Cid,
    /// The leaves that became durable with it.
    pub leaves: Vec<(u32, [u8; 32])>,
}

impl Assembler {
    /// Goes on from what is durable.
    pub fn new(info: Info, layout: Arc<Layout>, digests: Digests) -> Assembler {
        Assembler {
            info,
            layout,
            digests,
            waiting: HashMap::new(),
            fresh: Vec::new(),
            fresh_bytes: 0,
            pending: BTreeSet::new(),
            ingest: None,
        }
    }

    /// Checks a piece's hash.
    pub fn matches(&self, index: u32, data: &[u8]) -> bool {
        let digest: [u8; 20] = Sha1::digest(data).into();
        digest == self.info.piece_hash(index)
    }

    /// Hands the bytes of a verified piece to its leaves.
    pub fn accept(&mut self, store: &Store, index: u32, data: &Bytes) -> Result<(), AssembleError> {
        for range in self.layout.leaf_ranges(index) {
            if self.digests[range.leaf as usize].is_some() {
                continue; // durable or put already: the piece came a second time for another leaf
            }
            let slice = data.slice(range.at as usize..(range.at + range.len) as usize);
            let (_, size) = self.layout.leaf_span(range.leaf);
            if range.len == size {
                self.put_leaf(store, range.leaf, slice)?;
            } else if let Some(leaf) = self.gather(index, range, size, &slice) {
                self.put_leaf(store, range.leaf, leaf)?;
            }
        }
        self.pending.insert(index);
        Ok(())
    }

    /// Adds a slice to a waiting leaf; the whole leaf once it is complete.
    fn gather(&mut self, index: u32, range: LeafRange, size: u32, slice: &[u8]) -> Option<Bytes> {
        let pieces = self.layout.pieces_of_leaf(range.leaf);
        let empty = || Waiting { bytes: BytesMut::zeroed(size as usize), from: Vec::new() };
        let leaf = self.waiting.entry(range.leaf).or_insert_with(empty);
        if !leaf.from.contains(&index) {
            leaf.bytes[range.start as usize..(range.start + range.len) as usize].copy_from_slice(slice);
            leaf.from.push(index);
        }
        if leaf.from.len() as u32 <= pieces.end() - pieces.start() {
            return None;
        }
        self.waiting.remove(&range.leaf).map(|leaf| leaf.bytes.freeze())
    }

    fn put_leaf(&mut self, store: &Store, leaf: u32, bytes: Bytes) -> Result<(), AssembleError> {
        let digest: [u8; 32] = Sha256::digest(&bytes).into();
        let cid = hash::cid_from_digest(hash::RAW, hash::SHA2_256, &digest);
        self.fresh_bytes += bytes.len() as u64;
        self.ingest(store)?.put(&cid, bytes)?;
        self.digests[leaf as usize] = Some(digest);
        self.fresh.push((leaf, digest));
        Ok(())
    }

    fn ingest(&mut self, store: &Store) -> Result<&mut Ingest, StoreError> {
        match &mut self.ingest {
            Some(ingest) => Ok(ingest),
            none => Ok(none.insert(store.ingest(Class::Own)?)),
        }
    }

    /// Drops leaves that wait for pieces that are not to be had.
    pub fn drop_waiting(&mut self, leaves: &[u32]) {
        leaves.iter().for_each(|leaf| {
            if let Some(waiting) = self.waiting.remove(leaf) {
                waiting.from.iter().for_each(|piece| {
                    self.pending.remove(piece);
                });
            }
        });
    }

    /// Whether enough came for a checkpoint.
    pub fn checkpoint_due(&self) -> bool {
        self.fresh_bytes >= CHECKPOINT_BYTES
    }

    /// Whether there is anything to make durable.
    pub fn dirty(&self) -> bool {
        !self.pending.is_empty() || !self.fresh.is_empty()
    }

    /// Whether every leaf is here, durable or not.
    pub fn complete(&self) -> bool {
        self.digests.iter().all(Option::is_some)
    }

    /// Makes the fresh leaves durable and answers which pieces are stored by that.
    pub fn checkpoint(&mut self, store: &Store) -> Result<Checkpoint, AssembleError> {
        let hash = self.info.hash();
        if !self.fresh.is_empty() {
            let mut batch = store.state().batch();
            let mut record = store
                .state()
                .get(&TORRENTS, &hash.0)
                .map_err(StoreError::from)?
                .ok_or(AssembleError::Removed)?;
            let mut cids = Vec::with_capacity(self.fresh.len());
            for (leaf, digest) in &self.fresh {
                batch
                    .put(&LEAVES, &(hash.0, u64::from(*leaf)), &ByteArray::new(*digest))
                    .map_err(StoreError::from)?;
                cids.push(hash::cid_from_digest(hash::RAW, hash::SHA2_256, digest));
            }
            let pin = Pin {
                id: records::part_pin(&hash, record.parts),
                kind: PinKind::List,
                root: hash.cid(),
                class: Class::Own,
                name: Some(self.info.name.clone()),
                expires: None,
            };
            store.pin_list(&mut batch, &pin, &cids)?;
            record.parts += 1;
            batch.put(&TORRENTS, &hash.0, &record).map_err(StoreError::from)?;
            self.ingest(store)?.checkpoint(batch)?;
        }
        self.fresh_bytes = 0;
        let leaves = std::mem::take(&mut self.fresh);
        let stored =
            |p: &u32| self.layout.leaf_ranges(*p).iter().all(|r| self.digests[r.leaf as usize].is_some());
        let pieces: Vec<u32> = self.pending.iter().copied().filter(stored).collect();
        pieces.iter().for_each(|p| {
            self.pending.remove(p);
        });
        Ok(Checkpoint { leaves, pieces })
    }

    /// Builds the DAG over the leaves, and swaps the download's bookkeeping for a pin of the root, in one batch.
    pub fn finish(&mut self, store: &Store) -> Result<Finished, AssembleError> {
        let hash = self.info.hash();
        let mut ingest = match self.ingest.take() {
            Some(ingest) => ingest,
            None => store.ingest(Class::Own)?,
        };
        let root = self.build(&mut ingest)?;
        let mut batch = store.state().batch();
        let state = store.state();
        let mut record =
            state.get(&TORRENTS, &hash.0).map_err(StoreError::from)?.ok_or(AssembleError::Removed)?;
        records::drop_progress(store, &mut batch, &hash, &mut record)?;
        records::pin_root(store, &mut batch, &self.info, &root.root)?;
        record.root = Some(root.root);
        batch.put(&TORRENTS, &hash.0, &record).map_err(StoreError::from)?;
        ingest.finish(batch)?;
        self.fresh_bytes = 0;
        self.pending.clear();
        Ok(Finished { root: root.root, leaves: std::mem::take(&mut self.fresh) })
    }

    fn build(&self, ingest: &mut Ingest) -> Result<Imported, AssembleError> {
        let profile = Profile::V1_2025;
        let mut directory = DirBuilder::new(&profile);
        for (index, file) in self.info.files.iter().enumerate() {
            let entry = match &file.kind {
                FileKind::Pad => continue,
                FileKind::Symlink(target) => put_link(&file.path, target, ingest)?,
                FileKind::Regular => self.build_file(index, &profile, ingest)?,
            };
            if !self.info.multi_file {
                return Ok(entry);
            }
            directory.add(&file.path, &entry)?;
        }
        Ok(directory.finish(ingest)?)
    }

    fn build_file(
        &self,
        index: usize,
        profile: &Profile,
        ingest: &mut Ingest,
    ) -> Result<Imported, AssembleError> {
        let mut builder = FileBuilder::new(profile);
        for leaf in self.layout.leaves_of_file(index) {
            let (_, size) = self.layout.leaf_span(leaf);
            let digest = self.digests[leaf as usize].expect("finish is called once complete");
            let cid = hash::cid_from_digest(hash::RAW, hash::SHA2_256, &digest);
            builder.push(cid, u64::from(size), u64::from(size), ingest)?;
        }
        Ok(builder.finish(ingest)?)
    }
}

/// The target text of a link at `path` that points to `target`, both from the torrent's root.
pub fn link_text(path: &[String], target: &[String]) -> String {
    let parents = &path[..path.len().saturating_sub(1)];
    let common = parents.iter().zip(target).take_while(|(a, b)| a == b).count();
    let common = common.min(target.len().saturating_sub(1));
    let up = parents.len() - common;
    let parts = std::iter::repeat_n("..", up).chain(target[common..].iter().map(String::as_str));
    parts.collect::<Vec<_>>().join("/")
}

fn put_link(path: &[String], target: &[String], ingest: &mut Ingest) -> Result<Imported, AssembleError> {
    let data = Data::symlink(link_text(path, target).into()).to_bytes();
    let block = PbNode { links: Vec::new(), data: Some(data) }.encode();
    let cid = hash::cid_v1(hash::DAG_PB, &block);
    let dag_size = block.len() as u64;
    ingest.put(&cid, block)?;
    Ok(Imported { root: cid, size: 0, dag_size, blocks: 1 })
}

/// SHA-256 of each leaf, by number, as far as it is known.
pub type Digests = Vec<Option<[u8; 32]>>;

/// The digests of a download's durable leaves, and which of its pieces are wholly stored.
pub fn resume(store: &Store, hash: &InfoHash, layout: &Layout) -> Result<(Digests, Bitfield), StoreError> {
    let mut digests = vec![None; layout.leaf_count() as usize];
    for entry in store.state().scan(&LEAVES, &hash.0) {
        let ((_, leaf), digest) = entry?;
        if let Some(slot) = usize::try_from(leaf).ok().and_then(|l| digests.get_mut(l)) {
            *slot = Some(digest.into_array());
        }
    }
    let mut stored = Bitfield::empty(layout.piece_count());
    for piece in 0..layout.piece_count() {
        if layout.leaf_ranges(piece).iter().all(|r| digests[r.leaf as usize].is_some()) {
            stored.set(piece);
        }
    }
    Ok((digests, stored))
}
