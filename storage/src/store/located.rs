//! Blocks that are not copied: they lie in files of the user's own.
//!
//! `add --nocopy` records for every leaf which part of which file it is. The store answers such a block from its file,
//! and hashes it each time: a file is nobody's to guard, and bytes that are not the block are never handed out. A block
//! may have several places; the first that still holds it serves. They count as nobody's space.
//!
//! A collection forgets places that no pin reaches. Unlike a block's, their stamps are not renewed when they are used
//! again: a collection leaves all of them alone if anybody held a lease when it began, or relied on any since.

use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cid::Cid;
use multihash::Multihash;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::gc::Marks;
use super::{Ingest, Ingested, Shared, Store, key};
use crate::db::{Batch, DbError, StateDb, Table, head};
use crate::{BlockSink, MAX_BLOCK, Place, StoreError, hash};

/// Places of a block: by its multihash and the file's path.
const PLACES: Table<(Vec<u8>, Vec<u8>), Row> = Table::new("storage.places");

/// The tables of this module.
pub(super) const TABLES: [&str; 1] = [PLACES.name()];

/// Places that are committed or forgotten at once: some hundred KiB.
const BATCH: usize = 4096;

/// What is kept of a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    offset: u64,
    len: u32,
    /// Seconds and nanoseconds: when the file was last written to, as it was added.
    mtime: (i64, u32),
    /// The generation it was made in.
    generation: u64,
}

/// How often places were relied upon, so that a collection notices.
#[derive(Debug, Default)]
pub(super) struct Uses(Mutex<u64>);

impl Uses {
    /// How often so far.
    pub fn count(&self) -> u64 {
        *self.0.lock()
    }
}

/// A block and where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocatedBlock {
    /// The block, as the CID of raw bytes.
    pub cid: Cid,
    /// The file.
    pub path: PathBuf,
    /// Where the block starts there, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u32,
}

/// The block of `cid` from the first file that still holds it; `None` if it has no place.
pub(super) fn read(state: &StateDb, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
    let mut problem = None;
    for record in state.scan(&PLACES, &head(&key(cid))) {
        let ((_, path), row) = record?;
        match row.read(cid, &path_of(path)) {
            Ok(block) => return Ok(Some(block)),
            Err(error) => problem = Some(error),
        }
    }
    problem.map_or(Ok(None), Err)
}

/// The length of the block of `cid` if it has a place. The file is not looked at.
pub(super) fn size(state: &StateDb, cid: &Cid) -> Result<Option<u64>, StoreError> {
    let first = state.scan(&PLACES, &head(&key(cid))).next().transpose()?;
    Ok(first.map(|(_, row)| u64::from(row.len)))
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    std::ffi::OsString::from_vec(bytes).into()
}

impl Row {
    /// The block, if it is still there.
    fn read(&self, cid: &Cid, path: &Path) -> Result<Bytes, StoreError> {
        let gone = |problem: String| StoreError::NotInFile { cid: *cid, path: path.to_owned(), problem };
        if self.len as usize > MAX_BLOCK {
            return Err(gone("is recorded with a part larger than a block".into()));
        }
        let mut block = vec![0; self.len as usize];
        let read = File::open(path).and_then(|file| {
            file.read_exact_at(&mut block, self.offset)?;
            file.metadata()
        });
        let metadata = match read {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(gone("is shorter than when it was added".into()));
            }
            Err(error) => return Err(gone(format!("cannot be read: {error}"))),
        };
        if hash::verify(cid, &block).is_ok() {
            return Ok(Bytes::from(block));
        }
        let now = (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0));
        let since = if now == self.mtime { "holds other bytes than" } else { "was written to since" };
        Err(gone(format!("{since} when it was added")))
    }
}

impl Shared {
    /// Relies on a place of the block, if it has one: whether it does.
    pub(super) fn rely_on_place(&self, key: &[u8]) -> Result<bool, StoreError> {
        let mut uses = self.place_uses.0.lock();
        let found = self.state.scan(&PLACES, &head(&key.to_vec())).next().transpose()?.is_some();
        *uses += u64::from(found);
        Ok(found)
    }

    /// Forgets the places that are not marked and were made before `generation`, unless one was relied upon since
    /// `uses` were counted.
    pub(super) fn sweep_places(&self, marks: &Marks, generation: u64, uses: u64) -> Result<(), StoreError> {
        let mut batch = self.state.batch();
        let mut rows = 0;
        for record in self.state.scan(&PLACES, &[]) {
            let (place, row) = record?;
            if row.generation < generation && !marks.contains(&place.0)? {
                batch.delete(&PLACES, &place)?;
                rows += 1;
            }
            if rows == BATCH {
                let full = std::mem::replace(&mut batch, self.state.batch());
                rows = 0;
                if !self.forget_places(full, uses)? {
                    return Ok(());
                }
            }
        }
        self.forget_places(batch, uses).map(drop)
    }

    /// Commits a batch of deletions, or drops it and answers `false` when a place was relied upon meanwhile.
    fn forget_places(&self, batch: Batch, uses: u64) -> Result<bool, StoreError> {
        let counted = self.place_uses.0.lock();
        if *counted != uses {
            return Ok(false);
        }
        if !batch.is_empty() {
            self.state.commit(batch)?;
        }
        Ok(true)
    }
}

/// An ingest that records where leaves lie instead of copying them. Leaves that the store has already are kept there
/// and get no place.
pub struct InPlace {
    store: Store,
    ingest: Ingest,
    batch: Batch,
    rows: usize,
}

impl InPlace {
    /// What takes the blocks that are copied.
    pub fn ingest(&mut self) -> &mut Ingest {
        &mut self.ingest
    }

    /// Makes places and blocks durable, then commits `state` as [`Ingest::finish`] does.
    pub fn finish(mut self, state: Batch) -> Result<Ingested, StoreError> {
        self.write_out()?;
        self.ingest.finish(state)
    }

    fn write_out(&mut self) -> Result<(), StoreError> {
        let batch = std::mem::replace(&mut self.batch, self.store.state().batch());
        self.rows = 0;
        if batch.is_empty() { Ok(()) } else { Ok(self.store.state().commit(batch)?) }
    }
}

impl BlockSink for InPlace {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        self.ingest.put(cid, data)
    }

    fn put_located(&mut self, cid: &Cid, data: Bytes, place: &Place<'_>) -> Result<(), StoreError> {
        let shared = &self.store.shared;
        let (db, _) = shared.db()?;
        let copied = db.meta(&key(cid))?.is_some_and(|meta| !meta.quarantined);
        if hash::inline(cid).is_some() || (copied && self.ingest.keep(cid)?) {
            return Ok(());
        }
        let row = Row {
            offset: place.offset,
            len: data.len() as u32,
            mtime: place.mtime,
            generation: shared.leases.generation(),
        };
        let path = place.path.as_os_str().as_bytes().to_vec();
        self.batch.put(&PLACES, &(key(cid), path), &row)?;
        self.rows += 1;
        if self.rows == BATCH { self.write_out() } else { Ok(()) }
    }
}

impl Store {
    /// Makes `ingest` one that leaves leaves where they are.
    pub fn in_place(&self, ingest: Ingest) -> InPlace {
        InPlace { store: self.clone(), ingest, batch: self.state().batch(), rows: 0 }
    }

    /// Up to `limit` blocks that lie in files, in the order of their hashes, behind the place `after`.
    pub fn located(
        &self,
        after: Option<&LocatedBlock>,
        limit: usize,
    ) -> Result<Vec<LocatedBlock>, StoreError> {
        let start = after.map(|after| key(&after.cid));
        let from = start.as_ref().map(head).unwrap_or_default();
        let mut found = Vec::new();
        for record in self.state().scan_from(&PLACES, &from) {
            let ((hash, path), row) = record?;
            let path = path_of(path);
            let not_behind =
                |after: &LocatedBlock| path.as_os_str().as_bytes() <= after.path.as_os_str().as_bytes();
            if start.as_ref() == Some(&hash) && after.is_some_and(not_behind) {
                continue;
            }
            if found.len() == limit {
                break;
            }
            let hash = Multihash::from_bytes(&hash)
                .map_err(|error| DbError::Undecodable { table: PLACES.name(), detail: error.to_string() })?;
            let cid = Cid::new_v1(hash::RAW, hash);
            found.push(LocatedBlock { cid, path, offset: row.offset, len: row.len });
        }
        Ok(found)
    }

    /// Checks that a block still lies at its place.
    pub fn check_place(&self, block: &LocatedBlock) -> Result<(), StoreError> {
        let path = block.path.as_os_str().as_bytes().to_vec();
        let row = self.state().get(&PLACES, &(key(&block.cid), path))?;
        // Forgotten meanwhile: nothing is wrong with that.
        row.map_or(Ok(()), |row| row.read(&block.cid, &block.path).map(drop))
    }

    /// Forgets a place.
    pub fn forget_place(&self, block: &LocatedBlock) -> Result<(), StoreError> {
        let mut batch = self.state().batch();
        let path = block.path.as_os_str().as_bytes().to_vec();
        batch.delete(&PLACES, &(key(&block.cid), path))?;
        Ok(self.state().commit(batch)?)
    }
}
