//! Reclaiming: how much space is given back, and in what portions.
//!
//! Settling the tree costs some seventy bytes of writing a block, and giving back the dead part of files that also
//! hold live blocks costs writing those anew. So both wait until they are worth it, unless all is asked for. Each pass
//! empties a part of the files, so that it needs little room and a stop is not far. The database does this on threads of
//! its own at full speed: while others use the store, each pass is followed by a pause, so that on average they hardly
//! notice.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::rocks::{BLOB_FILE, BlobSpace};
use super::super::volumes::directories::DirectoryId;
use super::super::{Shared, Store};
use super::GcReport;
use crate::StoreError;
use crate::db::DbError;

/// Space is given back once at least one part in this many was freed; less waits for a later collection.
const SETTLE_SHARE: u64 = 50;
/// And at least so many bytes.
const SETTLE_LEAST: u64 = 1 << 20;
/// Live blobs are written anew when at least one part in this many of their files is dead.
const LAZY_SHARE: u64 = 5;
/// The same when all space is asked for: keys and headers of blocks of 4 KiB take 3 % beside them, and with what is left
/// dead a store may take 5 %.
const THOROUGH_SHARE: u64 = 200;
/// A pass empties one file in this many: its copies need that much room beside the store,
const PASS_SHARE: u64 = 8;
/// but at least so many: each pass rewrites all keys too.
const PASS_LEAST: u64 = (1 << 30) / BLOB_FILE;
/// Passes at most: every file twice. Files that fill while it goes on are left to a later collection.
const PASSES: u64 = 2 * PASS_SHARE;

/// A pause is so many times as long as the pass before it, which has a core and much of the disk for itself,
const PAUSE: u32 = 8;
/// and at most this.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Calls of others during a pass from which it is followed by a pause: an add makes one for 4 MiB.
const BUSY: u64 = 4;
/// How soon a pause notices that the process is about to end.
const NOTICE: Duration = Duration::from_millis(20);

/// Where reclaiming is: one database after the other.
pub(super) struct Reclaiming {
    left: VecDeque<Volume>,
    /// Bytes given back by those that are done, of all they had.
    done: (u64, u64),
    /// What is damaged; told at the end, when the others have given back what they could.
    damaged: Option<StoreError>,
}

/// Where reclaiming one database is.
struct Volume {
    id: DirectoryId,
    /// Whether the tree is settled.
    settled: bool,
    /// One part in so many may stay dead.
    share: u64,
    passes: u64,
    /// Bytes of the files when it began, and now.
    before: BlobSpace,
    now: BlobSpace,
}

impl Reclaiming {
    /// `resumes`: a collection was broken off before it gave all space back.
    pub fn new(
        shared: &Shared,
        report: &GcReport,
        thorough: bool,
        resumes: bool,
    ) -> Result<Reclaiming, StoreError> {
        let (volumes, _) = shared.db()?;
        let share = if thorough { THOROUGH_SHARE } else { LAZY_SHARE };
        let live: u64 = crate::Class::ALL.iter().map(|class| shared.space.of(*class).1).sum();
        let enough = SETTLE_LEAST.max(live / SETTLE_SHARE);
        let settled = report.freed_bytes < enough && !thorough && !resumes;
        let left = volumes.iter().map(|volume| {
            let now = volume.db.blob_space()?;
            Ok(Volume { id: volume.id, settled, share, passes: 0, before: now, now })
        });
        Ok(Reclaiming { left: left.collect::<Result<_, StoreError>>()?, done: (0, 0), damaged: None })
    }

    /// One settling or one pass; `false` when what is left is not worth another.
    pub fn step(&mut self, shared: &Shared) -> Result<bool, StoreError> {
        let Some(volume) = self.left.front_mut() else { return Ok(false) };
        let more = match volume.step(shared) {
            Err(error @ StoreError::Db(DbError::Damaged { .. })) => {
                self.damaged.get_or_insert(error);
                false
            }
            more => more?,
        };
        if !more {
            let (done, total) = volume.progress();
            self.done = (self.done.0 + done, self.done.1 + total);
            self.left.pop_front();
        }
        match self.damaged.take_if(|_| self.left.is_empty()) {
            Some(error) => Err(error),
            None => Ok(!self.left.is_empty()),
        }
    }

    /// Dead bytes given back, of all there were.
    pub fn progress(&self) -> (u64, u64) {
        let left = self.left.iter().map(Volume::progress);
        left.fold(self.done, |(done, total), volume| (done + volume.0, total + volume.1))
    }
}

impl Volume {
    fn step(&mut self, shared: &Shared) -> Result<bool, StoreError> {
        let (volumes, _) = shared.db()?;
        let Some(volume) = volumes.get(self.id) else { return Ok(false) };
        let db = &volume.db;
        if self.settled && !self.is_worth_it() {
            return Ok(false);
        }
        let (begun, calls) = (Instant::now(), shared.calls.load(Ordering::Relaxed));
        if self.settled {
            let room = volume.disk_free()?.1.saturating_sub(shared.reserve_bytes) / BLOB_FILE / 2;
            db.relocate((self.now.files / PASS_SHARE).max(PASS_LEAST).min(room.max(1)))?;
            self.passes += 1;
            self.now = db.blob_space()?;
        } else {
            // Not all of them: another may be damaged.
            db.flush().map_err(|error| db.failed(error))?;
            db.settle()?;
            self.settled = true;
            self.now = db.blob_space()?;
            self.before = self.now;
        }
        let more = self.is_worth_it();
        if !more {
            db.remove_replaced()?;
        }
        if more && shared.calls.load(Ordering::Relaxed).saturating_sub(calls) > BUSY {
            pause(shared, (begun.elapsed() * PAUSE).min(LONGEST_PAUSE));
        }
        Ok(more)
    }

    fn is_worth_it(&self) -> bool {
        self.passes < PASSES && self.now.dead > 0 && self.now.dead >= self.now.bytes / self.share
    }

    fn progress(&self) -> (u64, u64) {
        (self.before.dead.saturating_sub(self.now.dead), self.before.dead)
    }
}

/// Waits, unless collections shall end.
pub(super) fn pause(shared: &Shared, long: Duration) {
    let until = Instant::now() + long;
    while Instant::now() < until && !shared.is_stopping() {
        std::thread::sleep(NOTICE.min(long));
    }
}

impl Store {
    /// Bytes of the block databases' files.
    pub(in super::super) fn disk_bytes(&self) -> Result<u64, StoreError> {
        self.shared.db()?.0.iter().map(super::super::volumes::Volume::disk_bytes).sum()
    }
}
