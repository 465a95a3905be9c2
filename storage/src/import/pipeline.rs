//! Chunks of a file, hashed on all cores and handed on in order.
//!
//! The importing thread cuts chunks and gives them to the workers in turn, as many at a time as a processor hashes at
//! once, and takes the hashes back in the same turn, so order needs no bookkeeping. A file of one chunk, and tiny
//! chunks, are hashed on the spot: waking a thread costs more than hashing them. The threads start with the first
//! larger file and end with the import.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use bytes::Bytes;
use cid::Cid;

use super::chunker::{Chunk, Splitter};
use super::{ImportError, Leaf, Profile};
use crate::hash;

/// Bytes of chunks that may be between reading and the sink where chunks are hashed one by one: enough to keep the
/// workers busy while the sink works on a chunk, little enough not to count in a daemon's memory.
const IN_FLIGHT_BYTES: usize = 8 << 20;
/// Most chunks that may be, however small.
const MAX_IN_FLIGHT: usize = 1024;
/// Bytes of chunks that are hashed at once, at most. Two such groups may be between reading and the sink: one is hashed
/// while the other is read or handed on. Less than a processor hashes at once leaves a part of it idle: with 12 MiB of
/// leaves of a megabyte, an add took a twentieth longer.
const GROUP_BYTES: usize = 16 << 20;
/// Chunks of up to so many bytes are hashed by the thread that read them: handing one over takes as long.
const HASHED_ON_THE_SPOT: usize = 8 << 10;
/// Most hashing threads: reading and the sink, on one thread, are then slower than they are.
const MAX_WORKERS: usize = 4;

/// Why a run ended early: the reader or what came after it.
pub(super) enum Failure {
    Read(io::Error),
    Import(ImportError),
}

impl Failure {
    /// As an error of a stream.
    pub(super) fn at_input(self) -> ImportError {
        match self {
            Failure::Read(error) => ImportError::Input(error),
            Failure::Import(error) => error,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Read(error)
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Failure {
        Failure::Import(error)
    }
}

/// Takes each leaf with its block, in order.
pub(super) type EachLeaf<'a> = dyn FnMut(Leaf, Bytes) -> Result<(), ImportError> + 'a;

struct Worker {
    blocks: SyncSender<Vec<Bytes>>,
    cids: Receiver<Vec<Cid>>,
}

/// Hashing threads of one import, started when first needed.
pub(super) struct Pipeline<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    profile: Profile,
    workers: Vec<Worker>,
    /// Chunks that are given to a worker at a time.
    group: usize,
    /// Groups that may be in flight.
    window: usize,
}

/// Chunks of a file that are with the workers, in order.
#[derive(Default)]
struct InFlight {
    groups: VecDeque<Vec<Chunk>>,
    /// Whose turn it is to take a group, and to give one back.
    turn_in: usize,
    turn_out: usize,
    /// Where the next chunk that comes back starts.
    offset: u64,
}

impl<'scope, 'env> Pipeline<'scope, 'env> {
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, profile: &Profile) -> Self {
        let group = (GROUP_BYTES / profile.chunk_size()).clamp(1, profile.leaves_at_once());
        let window = match group {
            1 => (IN_FLIGHT_BYTES / profile.chunk_size()).clamp(MAX_WORKERS, MAX_IN_FLIGHT),
            _ => 2,
        };
        Pipeline { scope, profile: *profile, workers: Vec::new(), group, window }
    }

    /// Cuts `reader` into leaves up to its end; an empty one has a single empty leaf. `size` is its length if that is
    /// known: it spares memory for small files, and nothing depends on it.
    pub(super) fn run(
        &mut self,
        reader: &mut dyn Read,
        size: Option<u64>,
        each: &mut EachLeaf<'_>,
    ) -> Result<(), Failure> {
        let profile = self.profile;
        let mut splitter = Splitter::new(&profile, reader, size);
        let Some(first) = splitter.next()? else {
            let content = Bytes::new();
            let (cid, block) = profile.leaf(&content);
            return Ok(each(leaf(&Chunk { block: block.clone(), content }, cid, 0), block)?);
        };
        if splitter.is_done() || profile.chunk_size() <= HASHED_ON_THE_SPOT {
            return self.run_here(splitter, first, each);
        }
        self.start_workers();
        let mut in_flight = InFlight::default();
        let mut group = vec![first];
        while let Some(chunk) = splitter.next()? {
            if group.len() == self.group {
                self.give(&mut in_flight, std::mem::take(&mut group), each)?;
            }
            group.push(chunk);
        }
        // Too few to be hashed at once go to all workers.
        let alone = group.len() < hash::WORTH;
        let part = if alone { group.len().div_ceil(self.workers.len()) } else { group.len() };
        while !group.is_empty() {
            let rest = group.split_off(part.min(group.len()));
            self.give(&mut in_flight, std::mem::replace(&mut group, rest), each)?;
        }
        while !in_flight.groups.is_empty() {
            self.take(&mut in_flight, each)?;
        }
        Ok(())
    }

    /// Hashes all chunks on this thread.
    fn run_here(
        &self,
        mut splitter: Splitter<'_>,
        first: Chunk,
        each: &mut EachLeaf<'_>,
    ) -> Result<(), Failure> {
        let mut offset = 0u64;
        let mut next = Some(first);
        while let Some(chunk) = next {
            let cid = self.profile.leaf_cid(&chunk.block);
            let len = chunk.content.len() as u64;
            each(leaf(&chunk, cid, offset), chunk.block)?;
            offset = offset.checked_add(len).ok_or(ImportError::TooLarge)?;
            next = splitter.next()?;
        }
        Ok(())
    }

    /// Has a group of chunks hashed, when there is room for it.
    fn give(
        &self,
        in_flight: &mut InFlight,
        group: Vec<Chunk>,
        each: &mut EachLeaf<'_>,
    ) -> Result<(), Failure> {
        let worker = &self.workers[in_flight.turn_in % self.workers.len()];
        let blocks = group.iter().map(|chunk| chunk.block.clone()).collect();
        worker.blocks.send(blocks).expect("a hashing thread lives as long as its import");
        in_flight.turn_in += 1;
        in_flight.groups.push_back(group);
        if in_flight.groups.len() < self.window { Ok(()) } else { self.take(in_flight, each) }
    }

    /// Hands on the oldest group in flight.
    fn take(&self, in_flight: &mut InFlight, each: &mut EachLeaf<'_>) -> Result<(), Failure> {
        let Some(group) = in_flight.groups.pop_front() else { return Ok(()) };
        let worker = &self.workers[in_flight.turn_out % self.workers.len()];
        in_flight.turn_out += 1;
        let cids = worker.cids.recv().expect("a hashing thread answers every group");
        for (chunk, cid) in group.into_iter().zip(cids) {
            let len = chunk.content.len() as u64;
            each(leaf(&chunk, cid, in_flight.offset), chunk.block)?;
            in_flight.offset = in_flight.offset.checked_add(len).ok_or(ImportError::TooLarge)?;
        }
        Ok(())
    }

    fn start_workers(&mut self) {
        if !self.workers.is_empty() {
            return;
        }
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        for _ in 0..count {
            // Sends never block: no worker has more than its share of the window.
            let (blocks, to_hash) = sync_channel::<Vec<Bytes>>(self.window);
            let (hashed, cids) = sync_channel(self.window);
            let profile = self.profile;
            self.scope.spawn(move || {
                for blocks in to_hash {
                    // An importer that gave up is not listening any more.
                    if hashed.send(profile.leaf_cids(&blocks)).is_err() {
                        return;
                    }
                }
            });
            self.workers.push(Worker { blocks, cids });
        }
    }
}

fn leaf(chunk: &Chunk, cid: Cid, offset: u64) -> Leaf {
    Leaf { cid, offset, content: chunk.content.clone(), block_len: chunk.block.len() as u64 }
}
