//! Collection: finds what no pin reaches and gives its space back, while everything else goes on.
//!
//! 1. Expired pins go.
//! 2. A new generation begins; what is stamped from now on, or since the oldest lease, is safe.
//! 3. A flush, so that every block that could be swept is durable before its deletion is logged.
//! 4. Mark ([`mark`]): every block that a pin reaches is noted in a set that moves to the disk when it grows
//!    ([`marks`]), so memory does not grow with the store.
//! 5. Sweep ([`sweep`]): unmarked blocks with an old stamp are deleted in small batches, each checked again under its
//!    stripes.
//! 6. Forget ([`Forgetting`]): places of unmarked blocks that lie in files of the user's own.
//! 7. Reclaim ([`reclaim`]): the database gives the space of dead blocks back, in passes of bounded size.
//!
//! A [`Collection`] goes in short steps, so that it can tell how far it is, stop between any two, and be tried with
//! anything happening between them. It runs on a thread of low priority: where others want the processor, they get it.
//!
//! What a crash or a stop leaves: whatever was swept stays swept, marks are thrown away at the next opening, and the
//! state remembers that a collection did not end ([`Store::has_unfinished_collection`]). The next one marks anew, since
//! pins may have come, finds the rest to sweep, and reclaims what the broken one left, since dead bytes are counted by
//! the database and not by the collection that made them.

mod mark;
mod marks;
mod reclaim;
mod remove;
mod sweep;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::located::Forgetting;
use super::write::Fault;
use super::{GENERATION, Shared, Store};
use crate::db::{DbError, Table};
use crate::{StoreError, alias};
use mark::Marking;
pub(super) use marks::Marks;
use reclaim::Reclaiming;
pub use remove::Removal;
use sweep::Sweeping;

/// Whether a collection has begun and not ended: its generation.
pub(super) const UNFINISHED: Table<(), u64> = Table::new("storage.collection");

/// Blocks that a step looks at: some milliseconds of work.
const STEP: usize = 2048;
/// While others use the store, a step of marking or sweeping is followed by a rest so many times as long: each walks
/// through memory and caches that the others want too, and a sweep holds locks that they wait for. With one that was as
/// long as the step, files were added half as fast beside a sweep.
const REST: u32 = 3;
/// Others use the store for so long after their last call: between two of an add are the reading and hashing of 4 MiB.
const LULL: Duration = Duration::from_millis(500);
/// How much less of a busy processor a collection gets than others: about a ninth of their share.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// How a collection goes about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcOptions {
    /// Only count what would go; change nothing.
    pub dry_run: bool,
    /// Give back all space that can be given back, whatever rewriting it takes, instead of leaving a part of it until
    /// that is worth it.
    pub thorough: bool,
}

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GcReport {
    /// Expired pins that were removed.
    pub expired_pins: u64,
    /// Blocks in the store before.
    pub examined_blocks: u64,
    /// Blocks deleted; in a dry run, those that would be.
    pub freed_blocks: u64,
    /// Their bytes.
    pub freed_bytes: u64,
    /// Blocks that lie in files of the user's own and were forgotten; in a dry run, those that would be.
    pub forgotten_places: u64,
    /// Bytes that the files of the block database shrank by; what others added meanwhile is not counted.
    pub returned_bytes: u64,
    /// Whether a damaged table keeps space from being given back.
    pub kept_by_damage: bool,
}

/// What a collection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GcPhase {
    /// Walking what is pinned; counts blocks.
    Mark,
    /// Deleting the rest; counts blocks.
    Sweep,
    /// Giving space back; counts bytes.
    Reclaim,
}

/// How far a collection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GcProgress {
    /// What it is at.
    pub phase: GcPhase,
    /// Blocks or bytes done of it.
    pub done: u64,
    /// Of so many, at most.
    pub total: u64,
}

impl Store {
    /// Collects everything that no pin reaches and no lease protects. Blocks for as long as it takes; reads and writes
    /// go on. A second call waits for the first.
    ///
    /// # Errors
    /// [`StoreError::PinDamaged`] when a pinned DAG cannot be walked: then nothing is swept, since what hangs below the
    /// damaged block is unknown. [`StoreError::CollectionStopped`] after [`stop_collecting`](Self::stop_collecting).
    pub fn gc(&self) -> Result<GcReport, StoreError> {
        self.gc_with(GcOptions::default(), &mut |_| {})
    }

    /// [`gc`](Self::gc) in a chosen way; `progress` is told after every step, on another thread.
    pub fn gc_with(
        &self,
        options: GcOptions,
        progress: &mut (dyn FnMut(GcProgress) + Send),
    ) -> Result<GcReport, StoreError> {
        self.gc_at(now(), options, progress)
    }

    /// [`gc_with`](Self::gc_with) with pins expiring as of `now`, in unix seconds.
    pub fn gc_at(
        &self,
        now: u64,
        options: GcOptions,
        progress: &mut (dyn FnMut(GcProgress) + Send),
    ) -> Result<GcReport, StoreError> {
        let _only = self.shared.collecting.lock();
        let run = || {
            lower_priority();
            match self.collect(now, options, progress) {
                // What the database refuses while the process ends is no news.
                Err(_) if self.shared.is_stopping() => Err(StoreError::CollectionStopped),
                other => other,
            }
        };
        let report = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("collect".into()).spawn_scoped(scope, run);
            let thread = thread.map_err(|source| StoreError::Thread { source })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        tracing::info!(
            freed_blocks = report.freed_blocks,
            freed_bytes = report.freed_bytes,
            expired_pins = report.expired_pins,
            dry_run = options.dry_run,
            "collected"
        );
        Ok(report)
    }

    fn collect(
        &self,
        now: u64,
        options: GcOptions,
        progress: &mut (dyn FnMut(GcProgress) + Send),
    ) -> Result<GcReport, StoreError> {
        let mut collection = Collection::begin(self, now, options)?;
        let mut others = Others::default();
        loop {
            let begun = Instant::now();
            if !collection.step(STEP)? {
                return Ok(collection.report);
            }
            let at_work = others.are_at_work(self.shared.calls.load(Ordering::Relaxed), Instant::now());
            // A step of giving space back pauses by itself.
            if at_work && !collection.reclaims() {
                reclaim::pause(&self.shared, (begun.elapsed() * REST).min(reclaim::LONGEST_PAUSE));
            }
            progress(collection.progress());
        }
    }

    /// Whether a collection was broken off, by a crash or a stop, before it had given all space back.
    pub fn has_unfinished_collection(&self) -> Result<bool, StoreError> {
        Ok(self.state().contains(&UNFINISHED, &())?)
    }

    /// Lets a running collection, and any later one, end after its step: the process is about to end.
    pub fn stop_collecting(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits until no collection runs. After [`stop_collecting`](Self::stop_collecting) that is soon: what the database
    /// does in its background is cut short.
    pub(super) fn end_collecting(&self) -> Result<(), StoreError> {
        if !self.shared.is_stopping() {
            return Ok(());
        }
        if self.shared.collecting.try_lock().is_none() {
            self.shared.db()?.0.cancel_background();
            drop(self.shared.collecting.lock());
        }
        Ok(())
    }
}

/// Who else uses the store, as far as the count of their calls tells.
#[derive(Default)]
struct Others {
    /// Their calls when it was last looked at, and when they were last found to be more.
    calls: Option<u64>,
    last: Option<Instant>,
}

impl Others {
    /// Whether there was a call in the last [`LULL`], or one came since it was last asked.
    fn are_at_work(&mut self, calls: u64, now: Instant) -> bool {
        if self.calls.replace(calls).is_some_and(|before| before != calls) {
            self.last = Some(now);
        }
        self.last.is_some_and(|last| now.duration_since(last) < LULL)
    }
}

/// Gives way to others. Only Linux has priorities of single threads; elsewhere this would concern the whole process.
fn lower_priority() {
    // Where it is refused the collection just competes with the others.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Unix time in seconds.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A collection under way. One at a time: whoever steps it holds the collection lock, or is the store's only user.
pub(super) struct Collection {
    store: Store,
    options: GcOptions,
    /// The block database that it began with. A reopened one has lost the stamps of hits, so nothing is swept in it.
    incarnation: u64,
    /// Unmarked blocks with a stamp below this go.
    oldest: u64,
    /// Its own generation, and how often places of blocks had been relied upon when it began.
    generation: u64,
    place_uses: u64,
    marks: Marks,
    /// Whether the one before it was broken off, with space not given back.
    resumes: bool,
    stage: Stage,
    /// Bytes of the files when it began.
    disk_before: u64,
    pub report: GcReport,
}

enum Stage {
    Mark(Box<Marking>),
    Sweep(Sweeping),
    Forget(Forgetting),
    Reclaim(Reclaiming),
    Done,
}

impl Collection {
    /// Removes expired pins and begins a generation.
    pub fn begin(store: &Store, now: u64, options: GcOptions) -> Result<Collection, StoreError> {
        let shared = &store.shared;
        if shared.is_stopping() {
            return Err(StoreError::CollectionStopped);
        }
        shared.check_writable(&shared.db()?.0)?;
        let mut report = GcReport::default();
        let resumes = store.has_unfinished_collection()?;
        if !options.dry_run {
            report.expired_pins = store.expire_pins(now)?;
        }
        let (_, incarnation) = shared.db()?;
        let place_uses = shared.places.uses();
        let generation = shared.leases.generation() + 1;
        let mut batch = store.state().batch();
        batch.put(&GENERATION, &(), &generation)?;
        if !options.dry_run {
            batch.put(&UNFINISHED, &(), &generation)?;
        }
        store.state().commit(batch)?;
        let oldest = shared.leases.advance(generation);
        // After the generation: whatever is written later has its stamp, or that of a lease which `oldest` respects.
        if shared.has_unflushed() {
            shared.flush()?;
        }
        Ok(Collection {
            store: store.clone(),
            options,
            incarnation,
            oldest,
            generation,
            place_uses,
            marks: Marks::new(shared.marks_path.clone()),
            resumes,
            stage: Stage::Mark(Box::new(Marking::new(options.dry_run.then_some(now)))),
            disk_before: store.disk_bytes()?,
            report,
        })
    }

    /// Does about `blocks` blocks' worth of work; `false` when all is done.
    pub fn step(&mut self, blocks: usize) -> Result<bool, StoreError> {
        let shared = self.store.shared.clone();
        if shared.is_stopping() {
            return Err(StoreError::CollectionStopped);
        }
        // Held for the whole step, so that the database is not reopened within it.
        let (db, incarnation) = shared.db()?;
        if incarnation != self.incarnation {
            return Err(StoreError::Reopened);
        }
        let more = match &mut self.stage {
            Stage::Mark(marking) => marking.step(&self.store, &db, &mut self.marks, blocks)?,
            Stage::Sweep(sweeping) => {
                sweeping.step(&self.store, &db, &self.marks, self.oldest, blocks, &mut self.report)?
            }
            Stage::Forget(forgetting) => {
                let more = forgetting.step(&shared, &self.marks)?;
                self.report.forgotten_places = forgetting.forgotten;
                more
            }
            Stage::Reclaim(reclaiming) => match reclaiming.step(&shared) {
                // What was swept is swept, and another collection would do no better.
                Err(StoreError::Db(error @ DbError::Damaged { .. })) => {
                    drop(db);
                    self.report.kept_by_damage = true;
                    shared.leave_damage_alone(Fault::of(error, &shared.blocks_path));
                    false
                }
                Err(StoreError::Db(error @ DbError::Rocks { .. })) => return Err(shared.note_fault(error)),
                more => more?,
            },
            Stage::Done => return Ok(false),
        };
        if !more {
            // A compaction that was cut short looks like one that found nothing.
            if shared.is_stopping() {
                return Err(StoreError::CollectionStopped);
            }
            self.next_stage()?;
        }
        Ok(!matches!(self.stage, Stage::Done))
    }

    fn next_stage(&mut self) -> Result<(), StoreError> {
        let shared = &self.store.shared;
        self.stage = match self.stage {
            Stage::Mark(_) => Stage::Sweep(Sweeping::new(self.options.dry_run)),
            // Somebody was at work when it began, who may rely on any of them.
            Stage::Sweep(_) if self.oldest == self.generation => {
                Stage::Forget(Forgetting::new(self.options.dry_run, self.generation, self.place_uses))
            }
            Stage::Sweep(_) | Stage::Forget(_) if self.options.dry_run => Stage::Done,
            Stage::Sweep(_) | Stage::Forget(_) => {
                self.marks.clear()?;
                alias::drop_unpinned(self.store.state())?;
                Stage::Reclaim(Reclaiming::new(shared, &self.report, self.options.thorough, self.resumes)?)
            }
            Stage::Reclaim(_) | Stage::Done => {
                let mut batch = self.store.state().batch();
                batch.delete(&UNFINISHED, &())?;
                self.store.state().commit(batch)?;
                self.report.returned_bytes = self.disk_before.saturating_sub(self.store.disk_bytes()?);
                Stage::Done
            }
        };
        Ok(())
    }

    /// Whether it is giving space back.
    fn reclaims(&self) -> bool {
        matches!(self.stage, Stage::Reclaim(_))
    }

    /// How far it is.
    pub fn progress(&self) -> GcProgress {
        let total = self.store.shared.blocks_now().max(self.report.examined_blocks);
        let (phase, done, total) = match &self.stage {
            Stage::Mark(_) => (GcPhase::Mark, self.marks.count(), total.max(self.marks.count())),
            Stage::Sweep(_) | Stage::Forget(_) => (GcPhase::Sweep, self.report.examined_blocks, total),
            Stage::Reclaim(reclaiming) => {
                let (done, total) = reclaiming.progress();
                (GcPhase::Reclaim, done, total)
            }
            Stage::Done => (GcPhase::Reclaim, 1, 1),
        };
        GcProgress { phase, done, total }
    }

    /// Unmarked blocks with a stamp below this go.
    #[cfg(test)]
    pub fn oldest(&self) -> u64 {
        self.oldest
    }
}

impl Shared {
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Blocks in the store, for a progress bar: 0 while the database cannot say.
    fn blocks_now(&self) -> u64 {
        let Ok((db, _)) = self.db() else { return 0 };
        crate::Class::ALL.iter().map(|class| db.counter(super::Counter::Blocks(*class)).unwrap_or(0)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_at_work_until_a_while_after_their_last_call() {
        let (mut others, begun) = (Others::default(), Instant::now());
        let after = |lulls: f64| begun + LULL.mul_f64(lulls);
        // What was before the collection is not known to be recent.
        assert!(!others.are_at_work(7, after(0.0)));
        assert!(others.are_at_work(8, after(2.0)));
        assert!(others.are_at_work(8, after(2.9)));
        assert!(!others.are_at_work(8, after(3.0)));
        assert!(others.are_at_work(9, after(9.0)));
    }
}
