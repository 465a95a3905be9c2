//! Blocks that are not copied: they lie in files of the user's own.
//!
//! `add --nocopy` records for every leaf which part of which file it is. The store answers such a block from its file,
//! and hashes it each time: a file is nobody's to guard, and bytes that are not the block are never handed out. A block
//! may have several places; the first that still holds it serves. They count as nobody's space.
//!
//! A collection forgets places that no pin reaches. Unlike a block's, their stamps are not renewed when they are used
//! again: a collection leaves all of them alone if anybody held a lease when it began, or made or relied on any since.

use std::fs::{Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use cid::Cid;
use multihash::Multihash;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::gc::Marks;
use super::volumes::Volumes;
use super::{Ingest, Ingested, Key, Shared, Store, key};
use crate::db::{Batch, DbError, StateDb, Table, TableKey, head};
use crate::{BlockSink, MAX_BLOCK, Place, StoreError, hash};

/// What a place is kept under: the block's multihash and the file's path.
pub(super) type PlaceKey = (Key, Vec<u8>);

/// Every place.
const PLACES: Table<PlaceKey, Row> = Table::new("storage.places");

/// The tables of this module.
pub(super) const TABLES: [&str; 1] = [PLACES.name()];

/// Places that are committed or forgotten at once: some hundred KiB.
const BATCH: usize = 4096;

/// What is kept of a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) offset: u64,
    pub(super) len: u32,
    /// Seconds and nanoseconds: when the file was last written to, as it was added.
    pub(super) mtime: (i64, u32),
    /// The generation it was made in.
    pub(super) generation: u64,
}

/// What is known of the places without reading them.
#[derive(Debug)]
pub(super) struct Places {
    /// Whether there may be any: where nothing was ever left in its file, a block that is not here costs no look at
    /// the table.
    any: AtomicBool,
    /// How often places were made or relied upon, so that a collection notices. Held while any go.
    uses: Mutex<u64>,
}

impl Places {
    /// What the table says.
    pub fn new(state: &StateDb) -> Result<Places, StoreError> {
        let any = state.scan(&PLACES, &[]).next().transpose()?.is_some();
        Ok(Places { any: AtomicBool::new(any), uses: Mutex::new(0) })
    }

    /// How often so far.
    pub fn uses(&self) -> u64 {
        *self.uses.lock()
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

/// When a file was last written to: seconds and nanoseconds.
fn modified(metadata: &Metadata) -> (i64, u32) {
    (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0))
}

fn place_key(block: &LocatedBlock) -> PlaceKey {
    (key(&block.cid), block.path.as_os_str().as_bytes().to_vec())
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    std::ffi::OsString::from_vec(bytes).into()
}

impl Row {
    /// Whether the file is as it was added, going by what the file system says of it.
    fn is_untouched(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|found| {
            let is_whole = found.len() >= self.offset.saturating_add(self.len.into());
            found.is_file() && is_whole && modified(&found) == self.mtime
        })
    }

    /// The block, if it is still there.
    fn read(&self, cid: &Cid, path: &Path) -> Result<Bytes, StoreError> {
        let gone = |problem: String| StoreError::NotInFile { cid: *cid, path: path.to_owned(), problem };
        if self.len as usize > MAX_BLOCK {
            return Err(gone("is recorded with a part larger than a block".into()));
        }
        let mut block = vec![0; self.len as usize];
        // Not waiting for the other end of a pipe that took its place.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let read = OpenOptions::new().read(true).custom_flags(flags).open(path).and_then(|file| {
            let metadata = file.metadata()?;
            if metadata.is_file() {
                file.read_exact_at(&mut block, self.offset)?;
            }
            Ok(metadata)
        });
        let metadata = match read {
            Ok(metadata) if !metadata.is_file() => return Err(gone("is no file any more".into())),
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(gone("is shorter than when it was added".into()));
            }
            Err(error) => return Err(gone(format!("cannot be read: {error}"))),
        };
        if hash::verify(cid, &block).is_ok() {
            return Ok(Bytes::from(block));
        }
        let since =
            if modified(&metadata) == self.mtime { "holds other bytes than" } else { "was written to since" };
        Err(gone(format!("{since} when it was added")))
    }
}

impl Shared {
    /// The places of a block, by path.
    fn places_of(&self, key: &[u8]) -> impl Iterator<Item = Result<(PlaceKey, Row), DbError>> + use<'_> {
        let some = self.places.any.load(Ordering::SeqCst);
        some.then(|| self.state.scan(&PLACES, &head(&key.to_vec()))).into_iter().flatten()
    }

    /// The block of `cid` from the first file that still holds it; `None` if it has no place.
    pub(super) fn read_in_place(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        let mut problem = None;
        for record in self.places_of(&key(cid)) {
            let ((_, path), row) = record?;
            match row.read(cid, &path_of(path)) {
                Ok(block) => return Ok(Some(block)),
                Err(error) => problem = Some(error),
            }
        }
        problem.map_or(Ok(None), Err)
    }

    /// The length of the block of `cid` if it has a place. The file is not looked at.
    pub(super) fn size_in_place(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        let first = self.places_of(&key(cid)).next().transpose()?;
        Ok(first.map(|(_, row)| u64::from(row.len)))
    }

    /// How many blocks there are in files alone, and their bytes. The files are not looked at.
    pub(super) fn only_in_files(&self, db: &Volumes) -> Result<(u64, u64), StoreError> {
        let (mut blocks, mut bytes, mut last) = (0, 0, Key::new());
        for record in self.state.scan(&PLACES, &[]) {
            let ((key, _), row) = record?;
            // Places of one block lie side by side.
            if key != last && db.meta(&key)?.is_none_or(|meta| meta.quarantined) {
                blocks += 1;
                bytes += u64::from(row.len);
            }
            last = key;
        }
        Ok((blocks, bytes))
    }

    /// Relies on a place that still holds the block: whether there is one.
    pub(super) fn rely_on_place(&self, cid: &Cid) -> Result<bool, StoreError> {
        // First the mark, then the look: nothing goes in between.
        if self.places.any.load(Ordering::SeqCst) {
            *self.places.uses.lock() += 1;
        }
        self.is_in_place(cid)
    }

    /// Whether a place still holds the block, as far as that can be known without reading files that nobody wrote to.
    pub(super) fn is_in_place(&self, cid: &Cid) -> Result<bool, StoreError> {
        for record in self.places_of(&key(cid)) {
            let ((_, path), row) = record?;
            let path = path_of(path);
            if row.is_untouched(&path) || row.read(cid, &path).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Commits new places.
    fn make_places(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        // A collection that read an older row of the same place must not delete this one.
        let mut uses = self.places.uses.lock();
        *uses += 1;
        self.places.any.store(true, Ordering::SeqCst);
        Ok(self.state.commit(batch)?)
    }

    /// Commits a batch of deletions, or drops it and answers `false` when a place was made or relied upon since `uses`
    /// were counted; `None` commits in any case.
    fn forget_places(&self, batch: Batch, uses: Option<u64>) -> Result<bool, StoreError> {
        let counted = self.places.uses.lock();
        if uses.is_some_and(|uses| *counted != uses) {
            return Ok(false);
        }
        if !batch.is_empty() {
            self.state.commit(batch)?;
        }
        Ok(true)
    }

    /// Forgets all places of a block, unless any place was made or relied upon since `uses` were counted. `None` if it
    /// has none.
    pub(super) fn forget_places_of(&self, key: &[u8], uses: Option<u64>) -> Result<Option<bool>, StoreError> {
        let mut batch = self.state.batch();
        for record in self.places_of(key) {
            batch.delete(&PLACES, &record?.0)?;
        }
        if batch.is_empty() { Ok(None) } else { self.forget_places(batch, uses).map(Some) }
    }
}

/// The part of a collection that forgets places.
pub(super) struct Forgetting {
    dry_run: bool,
    /// Places of this generation and later ones stay.
    generation: u64,
    /// How often places had been relied upon when the collection began.
    uses: u64,
    /// Where the next step begins, as an encoded key.
    next: Vec<u8>,
    /// Places that went; in a dry run, that would.
    pub forgotten: u64,
}

impl Forgetting {
    pub fn new(dry_run: bool, generation: u64, uses: u64) -> Forgetting {
        Forgetting { dry_run, generation, uses, next: Vec::new(), forgotten: 0 }
    }

    /// Looks at some places; `false` when it is through.
    pub fn step(&mut self, shared: &Shared, marks: &Marks) -> Result<bool, StoreError> {
        let mut batch = shared.state.batch();
        let (mut rows, mut last) = (0, None);
        for record in shared.state.scan_from(&PLACES, &self.next).take(BATCH) {
            let (place, row) = record?;
            if row.generation < self.generation && !marks.contains(&place.0)? {
                batch.delete(&PLACES, &place)?;
                rows += 1;
            }
            last = Some(place);
        }
        if !self.dry_run && !shared.forget_places(batch, Some(self.uses))? {
            return Ok(false);
        }
        self.forgotten += rows;
        if let Some(last) = &last {
            self.next = behind(last);
        }
        Ok(last.is_some())
    }
}

/// The first encoded key that can follow a place's.
fn behind(place: &PlaceKey) -> Vec<u8> {
    let mut start = place.encode();
    start.push(0);
    start
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
        self.store.shared.make_places(batch)
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
        let from = after.map(|after| behind(&place_key(after))).unwrap_or_default();
        let mut found = Vec::new();
        for record in self.state().scan_from(&PLACES, &from).take(limit) {
            let ((hash, path), row) = record?;
            let hash = Multihash::from_bytes(&hash)
                .map_err(|error| DbError::Undecodable { table: PLACES.name(), detail: error.to_string() })?;
            let cid = Cid::new_v1(hash::RAW, hash);
            found.push(LocatedBlock { cid, path: path_of(path), offset: row.offset, len: row.len });
        }
        Ok(found)
    }

    /// Checks that a block still lies at its place, and forgets the place if it does not and it is to be removed, unless
    /// somebody came to rely on a place meanwhile.
    pub fn check_place(&self, block: &LocatedBlock, remove: bool) -> Result<(), StoreError> {
        let uses = self.shared.places.uses();
        // Forgotten meanwhile: nothing is wrong with that.
        let Some(row) = self.state().get(&PLACES, &place_key(block))? else { return Ok(()) };
        let checked = row.read(&block.cid, &block.path).map(drop);
        if remove && matches!(checked, Err(StoreError::NotInFile { .. })) {
            let mut batch = self.state().batch();
            batch.delete(&PLACES, &place_key(block))?;
            self.shared.forget_places(batch, Some(uses))?;
        }
        checked
    }
}
