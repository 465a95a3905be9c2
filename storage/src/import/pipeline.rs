//! Chunks of a file, hashed on all cores and handed on in order.
//!
//! The importing thread reads chunks and gives them to the workers in turn, and takes the hashes back in the same
//! turn, so order needs no bookkeeping. A file of one chunk is hashed on the spot: waking a thread costs more than
//! hashing a small file. The threads start with the first larger file and end with the import.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use bytes::Bytes;
use cid::Cid;

use super::profile::{MAX_LEAF_HEAD, MAX_LEAF_TAIL, leaf_wrapping};
use super::{ImportError, Leaf, Profile};

/// Bytes of chunks that may be between reading and the sink: enough to keep the workers busy while the sink works
/// on a chunk, little enough not to count in a daemon's memory.
const IN_FLIGHT_BYTES: usize = 8 << 20;
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

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Failure {
        Failure::Import(error)
    }
}

/// Takes each leaf with its block, in order.
pub(super) type EachLeaf<'a> = dyn FnMut(Leaf, Bytes) -> Result<(), ImportError> + 'a;

/// A chunk, cut and wrapped: the block and where the content lies in it.
struct Chunk {
    block: Bytes,
    content: Bytes,
}

struct Worker {
    blocks: SyncSender<Bytes>,
    cids: Receiver<Cid>,
}

/// Hashing threads of one import, started when first needed.
pub(super) struct Pipeline<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    profile: Profile,
    workers: Vec<Worker>,
    /// Chunks that may be in flight.
    window: usize,
}

impl<'scope, 'env> Pipeline<'scope, 'env> {
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, profile: &Profile) -> Self {
        let window = (IN_FLIGHT_BYTES / profile.chunk_size()).max(MAX_WORKERS);
        Pipeline { scope, profile: *profile, workers: Vec::new(), window }
    }

    /// Cuts `reader` into leaves up to its end. `size` is its length if that is known: it spares memory and threads
    /// for small files, and nothing depends on it.
    pub(super) fn run(
        &mut self,
        reader: &mut dyn Read,
        size: Option<u64>,
        each: &mut EachLeaf<'_>,
    ) -> Result<(), Failure> {
        let chunk_size = self.profile.chunk_size() as u64;
        let mut left = size.unwrap_or(u64::MAX);
        let first = read_chunk(&self.profile, reader, left)?;
        // A short first chunk is the whole file, empty or not.
        if (first.content.len() as u64) < chunk_size {
            let cid = self.profile.leaf_cid(&first.block);
            return Ok(each(leaf(&first, cid, 0), first.block)?);
        }
        left = left.saturating_sub(chunk_size);
        self.start_workers();
        let mut in_flight: VecDeque<Chunk> = VecDeque::with_capacity(self.window);
        let (mut turn_in, mut turn_out, mut offset) = (0usize, 0usize, 0u64);
        let mut next = Some(first);
        while let Some(chunk) = next {
            let worker = &self.workers[turn_in % self.workers.len()];
            worker.blocks.send(chunk.block.clone()).expect("a hashing thread lives as long as its import");
            turn_in += 1;
            let last = (chunk.content.len() as u64) < chunk_size;
            in_flight.push_back(chunk);
            if in_flight.len() == self.window {
                offset = self.take(&mut in_flight, &mut turn_out, offset, each)?;
            }
            // A stream is not asked again after its end: a terminal would wait for more.
            next = if last { None } else { self.read_next(reader, &mut left)? };
        }
        while !in_flight.is_empty() {
            offset = self.take(&mut in_flight, &mut turn_out, offset, each)?;
        }
        Ok(())
    }

    /// The next chunk, or `None` at the end.
    fn read_next(&self, reader: &mut dyn Read, left: &mut u64) -> Result<Option<Chunk>, Failure> {
        let chunk = read_chunk(&self.profile, reader, *left)?;
        *left = left.saturating_sub(chunk.content.len() as u64);
        Ok((!chunk.content.is_empty()).then_some(chunk))
    }

    /// Hands on the oldest chunk in flight; answers where the next one starts.
    fn take(
        &self,
        in_flight: &mut VecDeque<Chunk>,
        turn_out: &mut usize,
        offset: u64,
        each: &mut EachLeaf<'_>,
    ) -> Result<u64, Failure> {
        let Some(chunk) = in_flight.pop_front() else { return Ok(offset) };
        let worker = &self.workers[*turn_out % self.workers.len()];
        *turn_out += 1;
        let cid = worker.cids.recv().expect("a hashing thread answers every block");
        let len = chunk.content.len() as u64;
        each(leaf(&chunk, cid, offset), chunk.block)?;
        offset.checked_add(len).ok_or(Failure::Import(ImportError::TooLarge))
    }

    fn start_workers(&mut self) {
        if !self.workers.is_empty() {
            return;
        }
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        for _ in 0..count {
            // Sends never block: no worker has more than its share of the window.
            let (blocks, to_hash) = sync_channel::<Bytes>(self.window);
            let (hashed, cids) = sync_channel(self.window);
            let profile = self.profile;
            self.scope.spawn(move || {
                for block in to_hash {
                    // An importer that gave up is not listening any more.
                    if hashed.send(profile.leaf_cid(&block)).is_err() {
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

/// Reads up to a chunk and wraps it where it lies. `expect` bounds what is set aside for it.
fn read_chunk(profile: &Profile, reader: &mut dyn Read, expect: u64) -> Result<Chunk, Failure> {
    let chunk = profile.chunk_size();
    let expect = usize::try_from(expect).map_or(chunk, |expect| expect.min(chunk));
    let (head_room, tail_room) = if profile.raw_leaves() { (0, 0) } else { (MAX_LEAF_HEAD, MAX_LEAF_TAIL) };
    let mut buffer = Vec::with_capacity(head_room + expect + tail_room);
    buffer.resize(head_room, 0);
    Read::take(&mut *reader, chunk as u64).read_to_end(&mut buffer).map_err(Failure::Read)?;
    let len = buffer.len() - head_room;
    if profile.raw_leaves() {
        let block = Bytes::from(buffer);
        return Ok(Chunk { content: block.clone(), block });
    }
    let (head, tail) = leaf_wrapping(len);
    let start = head_room - head.len();
    buffer[start..head_room].copy_from_slice(&head);
    buffer.extend_from_slice(&tail);
    let buffer = Bytes::from(buffer);
    Ok(Chunk { block: buffer.slice(start..), content: buffer.slice(head_room..head_room + len) })
}
