//! The disk task of one download: hashes pieces, hands them to the [`Assembler`], and makes checkpoints.
//!
//! One task per download owns the assembler and moves it into the store's pool for each batch of work, so hashing and
//! writing never run on the async workers, and a slow disk fills the bounded channel, not memory.

use std::sync::Arc;
use std::time::Duration;

use btfs_storage::Store;
use tokio::sync::mpsc;

use super::Inner;
use super::torrent::{Phase, Torrent};
use crate::assemble::{AssembleError, Assembler, Checkpoint, Finished};
use crate::bitfield::Bitfield;
use crate::picker::{CompletePiece, ConnId};

/// Pieces waiting for the task; their bytes are within the picker's budget.
pub const QUEUE: usize = 32;
/// Jobs done in one visit to the pool; their pieces stay in memory until it ends.
const BATCH: usize = 8;
/// Leaves are durable and announced at least this often.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);

/// Work for the disk task.
#[derive(Debug)]
pub enum DiskJob {
    /// A piece to check and keep.
    Piece(CompletePiece),
    /// Leaves whose other pieces are not to be had: drop what waits for them.
    Drop(Vec<u32>),
}

/// What came of a batch.
#[derive(Default)]
struct Outcome {
    verified: Vec<u32>,
    wrong: Vec<(u32, Vec<ConnId>)>,
    checkpoint: Checkpoint,
    finished: Option<Finished>,
}

/// Runs until the download is complete, fails or is cancelled.
pub async fn run(
    inner: Arc<Inner>,
    torrent: Arc<Torrent>,
    mut assembler: Assembler,
    mut jobs: mpsc::Receiver<DiskJob>,
) {
    let mut pulse = tokio::time::interval(CHECKPOINT_EVERY);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut batch = Vec::with_capacity(BATCH);
        // The first pulse comes at once, so a download with nothing left to get finishes without a job.
        let due = tokio::select! {
            () = torrent.cancel.cancelled() => return,
            _ = jobs.recv_many(&mut batch, BATCH) => false,
            _ = pulse.tick() => true,
        };
        let work = move |store: &Store| {
            let outcome = work(store, &mut assembler, batch, due);
            (assembler, outcome)
        };
        let outcome;
        (assembler, outcome) = inner.config.store.run(work).await;
        match outcome {
            Ok(outcome) => {
                if apply(&inner, &torrent, outcome) {
                    return;
                }
            }
            Err(error) => {
                torrent.fail(error.to_string());
                return;
            }
        }
    }
}

fn work(
    store: &Store,
    assembler: &mut Assembler,
    jobs: Vec<DiskJob>,
    due: bool,
) -> Result<Outcome, AssembleError> {
    let mut outcome = Outcome::default();
    for job in jobs {
        match job {
            DiskJob::Piece(piece) if assembler.matches(piece.index, &piece.data) => {
                assembler.accept(store, piece.index, &piece.data)?;
                outcome.verified.push(piece.index);
            }
            DiskJob::Piece(piece) => outcome.wrong.push((piece.index, piece.senders)),
            DiskJob::Drop(leaves) => assembler.drop_waiting(&leaves),
        }
    }
    if assembler.complete() {
        outcome.finished = Some(assembler.finish(store)?);
    } else if assembler.checkpoint_due() || (due && assembler.dirty()) {
        outcome.checkpoint = assembler.checkpoint(store)?;
    }
    Ok(outcome)
}

/// Tells the swarm; true once the download is complete.
fn apply(inner: &Inner, torrent: &Torrent, outcome: Outcome) -> bool {
    let Some(content) = torrent.content() else { return true };
    content.add_leaves(&outcome.checkpoint.leaves);
    let mut guard = torrent.swarm.lock();
    let swarm = &mut *guard;
    if let Some(picker) = &mut swarm.picker {
        outcome.verified.iter().for_each(|p| picker.verified(*p));
    }
    let any_wrong = !outcome.wrong.is_empty();
    for (piece, senders) in outcome.wrong {
        tracing::info!(torrent = %torrent.hash, piece, "a piece did not match its hash and is fetched again");
        for addr in swarm.blame(piece, &senders) {
            tracing::warn!(torrent = %torrent.hash, %addr, "peer banned: it sent wrong data");
        }
    }
    swarm.announce_pieces(&outcome.checkpoint.pieces);
    if any_wrong {
        // A piece that failed may be all that a peer has for us.
        swarm.update_interest_all();
    }
    let Some(finished) = outcome.finished else {
        swarm.refill_all(inner.random());
        return false;
    };
    content.add_leaves(&finished.leaves);
    let all: Vec<u32> = (0..content.layout.piece_count()).collect();
    swarm.announce_pieces(&all);
    swarm.have = Some(Bitfield::full(content.layout.piece_count()));
    swarm.picker = None;
    swarm.update_interest_all();
    swarm.drop_seeds();
    drop(guard);
    tracing::info!(torrent = %torrent.hash, root = %finished.root, "torrent complete");
    torrent.phase.send_replace(Phase::Seeding(finished.root));
    torrent.announce.notify_one();
    true
}
