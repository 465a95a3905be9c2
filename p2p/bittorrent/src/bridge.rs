//! From a piece to bytes in the block store: how a seed answers.
//!
//! A request names a byte range of the torrent; [`Layout`] turns it into ranges of files, and a file's bytes lie in the
//! leaves of its UnixFS DAG. Files are read in *windows* of one leaf length ([`LEAF`]): with the default profile a window is
//! exactly one leaf, so the store is asked once per leaf, not once per 16 KiB block, and the answer is slices
//! of the block itself. Content with other leaf sizes works the same way with a few slices per window.
//!
//! Nothing is hashed here: blocks in the store were checked on the way in.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use btfs_storage::read::{self, ReadError};
use btfs_storage::{BlockSource, Cid, Store, StoreError, hash};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::assemble::Digests;
use crate::infohash::InfoHash;
use crate::layout::{LEAF, Layout, Segment};
use crate::metainfo::Info;

/// Bytes of windows that all torrents of an engine keep at hand: 32 leaves, so a few dozen peers reading in different places
/// each find the leaf they are in.
const CACHE_BYTES: usize = 32 << 20;
/// Zeros of pad files are sliced from here; a request is at most 32 KiB.
static ZEROS: [u8; 32 << 10] = [0; 32 << 10];
/// File roots remembered per torrent; beyond it they are resolved anew.
const MAX_FILE_ROOTS: usize = 16 << 10;

/// Why a range of a torrent could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The range is not within the torrent, or longer than a request may be.
    #[error("the torrent has no such range")]
    OutOfRange,
    /// Not downloaded yet.
    #[error("leaf {0} of the torrent is not here yet")]
    NotYet(u32),
    /// A block of a complete torrent is gone.
    #[error("content of the torrent cannot be read: {0}")]
    Read(#[from] ReadError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where the bytes of a torrent are.
#[derive(Debug)]
enum Place {
    /// Leaves of the default profile by number, as far as they are durable: a download, also after its end.
    Leaves(Digests),
    /// A stored DAG.
    Dag {
        root: Cid,
        /// Roots of the files asked for so far.
        files: HashMap<u32, Cid>,
    },
}

/// A torrent's content: what it is, how it is cut, and where its bytes are.
#[derive(Debug)]
pub struct Content {
    /// The checked info dictionary.
    pub info: Info,
    /// Its geometry.
    pub layout: Arc<Layout>,
    place: RwLock<Place>,
}

/// A window's bytes, in order.
type Window = Arc<Vec<Bytes>>;
/// Torrent, file and window number.
type WindowKey = (InfoHash, u32, u64);

/// The windows read last, over all torrents of an engine.
#[derive(Debug, Default)]
pub struct WindowCache {
    recent: Mutex<VecDeque<(WindowKey, usize, Window)>>,
}

impl WindowCache {
    fn get(&self, key: &WindowKey) -> Option<Window> {
        let mut recent = self.recent.lock();
        let at = recent.iter().rposition(|(k, ..)| k == key)?;
        let window = recent[at].2.clone();
        // Recency only matters once the queue is long; moving on every hit would cost more than it saves.
        if at + 8 < recent.len()
            && let Some(entry) = recent.remove(at)
        {
            recent.push_back(entry);
        }
        Some(window)
    }

    fn put(&self, key: WindowKey, window: Window) {
        let size: usize = window.iter().map(Bytes::len).sum();
        let mut recent = self.recent.lock();
        recent.push_back((key, size, window));
        let mut total: usize = recent.iter().map(|(_, size, _)| size).sum();
        while total > CACHE_BYTES
            && let Some((_, size, _)) = recent.pop_front()
        {
            total -= size;
        }
    }

    /// Forgets a torrent.
    pub fn forget(&self, hash: &InfoHash) {
        self.recent.lock().retain(|((h, ..), ..)| h != hash);
    }
}

impl Content {
    /// Content that is stored as a whole below `root`.
    pub fn stored(info: Info, root: Cid) -> Content {
        let layout = Arc::new(Layout::new(&info));
        Content { info, layout, place: RwLock::new(Place::Dag { root, files: HashMap::new() }) }
    }

    /// Content that is being downloaded; `leaves` are the digests of those that are durable.
    pub fn partial(info: Info, layout: Arc<Layout>, leaves: Digests) -> Content {
        Content { info, layout, place: RwLock::new(Place::Leaves(leaves)) }
    }

    /// More leaves of a download are durable.
    pub fn add_leaves(&self, fresh: &[(u32, [u8; 32])]) {
        if let Place::Leaves(leaves) = &mut *self.place.write() {
            fresh.iter().for_each(|(leaf, digest)| leaves[*leaf as usize] = Some(*digest));
        }
    }

    /// The bytes of `len` from `begin` of `piece`, as slices of stored blocks.
    pub async fn read(
        self: &Arc<Self>,
        store: &Store,
        cache: &WindowCache,
        piece: u32,
        begin: u32,
        len: u32,
    ) -> Result<Vec<Bytes>, BridgeError> {
        let inside = piece < self.layout.piece_count()
            && u64::from(begin) + u64::from(len) <= u64::from(self.layout.piece_size(piece));
        if !inside || len == 0 || len as usize > ZEROS.len() {
            return Err(BridgeError::OutOfRange);
        }
        let mut out = Vec::with_capacity(1);
        for segment in self.layout.segments(self.layout.piece_start(piece) + u64::from(begin), u64::from(len))
        {
            match segment {
                Segment::Pad { len } => out.push(Bytes::from_static(&ZEROS[..len as usize])),
                Segment::File { file, start, len } => {
                    self.read_file(store, cache, file, start, len, &mut out).await?
                }
            }
        }
        Ok(out)
    }

    async fn read_file(
        self: &Arc<Self>,
        store: &Store,
        cache: &WindowCache,
        file: u32,
        mut start: u64,
        len: u64,
        out: &mut Vec<Bytes>,
    ) -> Result<(), BridgeError> {
        let end = start + len;
        while start < end {
            let number = start / LEAF;
            let window = self.window(store, cache, file, number).await?;
            let until = end.min((number + 1) * LEAF);
            let mut offset = number * LEAF;
            for part in window.iter() {
                let part_end = offset + part.len() as u64;
                if start < part_end && offset < until {
                    let to = part_end.min(until);
                    out.push(part.slice((start - offset) as usize..(to - offset) as usize));
                    start = to;
                }
                offset = part_end;
            }
            if start < until {
                return Err(BridgeError::OutOfRange); // the stored file is shorter than the torrent says
            }
        }
        Ok(())
    }

    async fn window(
        self: &Arc<Self>,
        store: &Store,
        cache: &WindowCache,
        file: u32,
        number: u64,
    ) -> Result<Window, BridgeError> {
        let key = (self.info.hash(), file, number);
        if let Some(window) = cache.get(&key) {
            return Ok(window);
        }
        let content = self.clone();
        let parts = store.run(move |store| content.load(store, file, number)).await?;
        let window = Arc::new(parts);
        cache.put(key, window.clone());
        Ok(window)
    }

    /// Reads one window from the store; blocks.
    fn load(&self, store: &Store, file: u32, number: u64) -> Result<Vec<Bytes>, BridgeError> {
        if let Place::Leaves(leaves) = &*self.place.read() {
            let leaf = self.layout.leaves_of_file(file as usize).start + number as u32;
            let digest = leaves.get(leaf as usize).copied().flatten().ok_or(BridgeError::NotYet(leaf))?;
            let cid = hash::cid_from_digest(hash::RAW, hash::SHA2_256, &digest);
            let block = store.get(&cid)?.ok_or(ReadError::Missing(cid))?;
            return Ok(vec![block]);
        }
        let root = self.file_root(store, file)?;
        let mut plan = read::leaf_plan(store, &root, number * LEAF..(number + 1) * LEAF)?;
        let mut parts = Vec::new();
        while let Some(slice) = plan.next(store)? {
            parts.push(slice.bytes(store)?);
        }
        Ok(parts)
    }

    fn file_root(&self, store: &Store, file: u32) -> Result<Cid, BridgeError> {
        let root = match &*self.place.read() {
            Place::Dag { root, files } => match files.get(&file) {
                Some(cid) => return Ok(*cid),
                None => *root,
            },
            Place::Leaves(_) => return Err(BridgeError::OutOfRange),
        };
        let path = self.info.files.get(file as usize).ok_or(BridgeError::OutOfRange)?.path.join("/");
        let cid = read::resolve(store, &root, &path)?;
        if let Place::Dag { files, .. } = &mut *self.place.write() {
            if files.len() >= MAX_FILE_ROOTS {
                files.clear();
            }
            files.insert(file, cid);
        }
        Ok(cid)
    }
}
