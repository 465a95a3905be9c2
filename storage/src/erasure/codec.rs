//! Reed-Solomon in columns: the only place that talks to the coding library.
//!
//! Shards are never gathered into one buffer: a column is a slice of a block where it lies within one, and is
//! copied together (with zeros for padding) only where it crosses blocks.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};

use super::COLUMN;
use crate::hash;
use crate::threads::on_threads;

/// The bytes of a data shard as far as they are here: blocks by where they begin, gaps where blocks are lost.
#[derive(Default)]
pub(super) struct ShardBytes {
    blocks: Vec<(usize, Bytes)>,
}

impl ShardBytes {
    /// Adds a block that begins at `start`. Blocks come in ascending order and do not overlap.
    pub(super) fn push(&mut self, start: usize, data: Bytes) {
        self.blocks.push((start, data));
    }

    /// The bytes of `start..start + len`, zero where nothing is, borrowed where they lie in one block.
    fn column<'a>(&'a self, start: usize, len: usize, scratch: &'a mut Vec<u8>) -> &'a [u8] {
        let end = start + len;
        let first = self.blocks.partition_point(|(at, data)| at + data.len() <= start);
        if let Some((at, data)) = self.blocks.get(first)
            && *at <= start
            && at + data.len() >= end
        {
            return &data[start - at..end - at];
        }
        scratch.clear();
        scratch.resize(len, 0);
        for (at, data) in &self.blocks[first..] {
            if *at >= end {
                break;
            }
            let from = start.max(*at);
            let to = end.min(at + data.len());
            scratch[from - start..to - start].copy_from_slice(&data[from - at..to - at]);
        }
        scratch
    }
}

/// The columns of `from..to`.
fn columns(from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> {
    (from..to).step_by(COLUMN).map(move |at| (at, COLUMN.min(to - at)))
}

/// Parity buffers that are kept for reuse, in bytes. Fresh memory costs more than the coding itself (16 MiB in 4+8:
/// 22 ms with new buffers, 7 ms with reused ones), and a sink gives blocks free a few MiB later.
const RECYCLED: usize = 48 << 20;

/// Most threads that code and hash a stripe.
const MAX_LANES: usize = 4;
/// Bytes of parity of a stripe up to which one thread does it: others would take as long to begin.
const CODED_ALONE: usize = 1 << 20;

/// Most bytes of parity that wait to be hashed with the next stripe's.
const WAITING: usize = 16 << 20;

/// Makes parity, on several threads; keeps its working space between stripes.
#[derive(Default)]
pub(super) struct Encoder {
    lanes: Vec<Lane>,
    /// Parity that was handed out: whatever nobody else holds any more is written over.
    given: VecDeque<Bytes>,
}

/// What one thread codes with.
#[derive(Default)]
struct Lane {
    coder: Option<ReedSolomonEncoder>,
    scratch: Vec<u8>,
}

impl Lane {
    /// Codes the columns from `start` on into `parity`: the same range of every parity shard.
    fn code(
        &mut self,
        data: &[ShardBytes],
        start: usize,
        mut parity: Vec<&mut [u8]>,
    ) -> Result<(), reed_solomon_simd::Error> {
        let whole = parity.first().map_or(0, |shard| shard.len());
        for (at, len) in columns(0, whole) {
            let coder = match &mut self.coder {
                Some(coder) => {
                    coder.reset(data.len(), parity.len(), len)?;
                    coder
                }
                none => none.insert(ReedSolomonEncoder::new(data.len(), parity.len(), len)?),
            };
            for shard in data {
                coder.add_original_shard(shard.column(start + at, len, &mut self.scratch))?;
            }
            for (made, whole) in coder.encode()?.recovery_iter().zip(&mut parity) {
                whole[at..at + len].copy_from_slice(made);
            }
        }
        Ok(())
    }
}

impl Encoder {
    /// A buffer of `len` bytes, with anything in it.
    fn buffer(&mut self, len: usize) -> BytesMut {
        for _ in 0..self.given.len() {
            let Some(given) = self.given.pop_front() else { break };
            match given.try_into_mut() {
                Ok(mut buffer) if buffer.capacity() >= len => {
                    buffer.resize(len, 0);
                    return buffer;
                }
                Ok(_) => {}
                Err(held) => self.given.push_back(held),
            }
        }
        BytesMut::zeroed(len)
    }

    /// Hands a parity shard out, and remembers it.
    fn give(&mut self, shard: BytesMut) -> Bytes {
        let shard = shard.freeze();
        if (self.given.len() + 1) * shard.len() <= RECYCLED {
            self.given.push_back(shard.clone());
        }
        shard
    }

    /// The m parity shards of a stripe.
    pub(super) fn parity(
        &mut self,
        data: &[ShardBytes],
        m: usize,
        shard_len: usize,
    ) -> Result<Vec<Bytes>, reed_solomon_simd::Error> {
        let lanes = threads_for(m * shard_len);
        if self.lanes.len() < lanes {
            self.lanes.resize_with(lanes, Lane::default);
        }
        let mut parity: Vec<BytesMut> = (0..m).map(|_| self.buffer(shard_len)).collect();
        // Each lane takes the same number of columns.
        let range = shard_len.div_ceil(lanes).next_multiple_of(COLUMN);
        let mut ranges: Vec<Vec<&mut [u8]>> = Vec::new();
        for shard in &mut parity {
            for (lane, part) in shard.chunks_mut(range).enumerate() {
                if lane == ranges.len() {
                    ranges.push(Vec::with_capacity(m));
                }
                ranges[lane].push(part);
            }
        }
        let jobs = self.lanes.iter_mut().zip(ranges).enumerate();
        let coded =
            on_threads(jobs.map(|(number, (lane, parity))| move || lane.code(data, number * range, parity)));
        coded.into_iter().collect::<Result<(), _>>()?;
        Ok(parity.into_iter().map(|shard| self.give(shard)).collect())
    }
}

/// Threads that so many bytes of parity are worth.
fn threads_for(bytes: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_LANES);
    if bytes <= CODED_ALONE { 1 } else { cores }
}

/// Parity on its way to its names. A processor may hash many messages in the time of some, so shards that are too few wait
/// for those of the next stripe: of 10+20 that spares a seventh of the hashing, of 4+2 half.
pub(super) struct Hashing {
    waiting: Vec<Bytes>,
    /// Messages that are hashed at once.
    lanes: usize,
}

impl Default for Hashing {
    fn default() -> Hashing {
        Hashing { waiting: Vec::new(), lanes: hash::lanes() }
    }
}

impl Hashing {
    /// Takes more shards; all that are hashed now, each with its SHA-256, in the order in which they came. After the
    /// `last` none is left.
    pub(super) fn hash(&mut self, shards: Vec<Bytes>, last: bool) -> Vec<([u8; 32], Bytes)> {
        self.waiting.extend(shards);
        let whole = self.waiting.len() - self.waiting.len() % self.lanes;
        let bytes = |shards: &[Bytes]| shards.iter().map(Bytes::len).sum::<usize>();
        let wait = !last && bytes(&self.waiting[whole..]) <= WAITING;
        let left = if wait { self.waiting.split_off(whole) } else { Vec::new() };
        let ready = std::mem::replace(&mut self.waiting, left);
        if ready.is_empty() {
            return Vec::new();
        }
        let together = together(ready.len(), threads_for(bytes(&ready)), self.lanes);
        let hashed = on_threads(ready.chunks(together).map(|shards| {
            let shards: Vec<&[u8]> = shards.iter().map(|shard| &shard[..]).collect();
            move || hash::sha256_all(&shards)
        }));
        hashed.into_iter().flatten().zip(ready).collect()
    }
}

/// How many of some shards a thread hashes.
fn together(shards: usize, threads: usize, lanes: usize) -> usize {
    let share = shards.div_ceil(threads);
    if shards < lanes { share } else { share.next_multiple_of(lanes) }
}

/// What a decoder is given for a range of columns.
pub(super) struct Loss<'a> {
    /// The range, in multiples of 64 bytes.
    pub(super) range: std::ops::Range<usize>,
    /// All data shards; the lost ones are not read.
    pub(super) data: &'a [ShardBytes],
    /// Which data shards are lost in this range, ascending.
    pub(super) lost: &'a [usize],
    /// Parity shards here, by index; at least as many as are lost.
    pub(super) parity: &'a [(usize, Bytes)],
    /// Parity shards a stripe has.
    pub(super) m: usize,
}

/// Brings data back; keeps its working space between ranges and stripes.
#[derive(Default)]
pub(super) struct Decoder {
    coder: Option<ReedSolomonDecoder>,
    scratch: Vec<u8>,
}

impl Decoder {
    /// Rebuilds the lost shards in a range: `restored(shard, offset, bytes)` is called for each column of each.
    pub(super) fn restore(
        &mut self,
        loss: &Loss<'_>,
        restored: &mut dyn FnMut(usize, usize, &[u8]),
    ) -> Result<(), reed_solomon_simd::Error> {
        for (start, len) in columns(loss.range.start, loss.range.end) {
            let coder = match &mut self.coder {
                Some(coder) => {
                    coder.reset(loss.data.len(), loss.m, len)?;
                    coder
                }
                none => none.insert(ReedSolomonDecoder::new(loss.data.len(), loss.m, len)?),
            };
            for (i, shard) in loss.data.iter().enumerate() {
                if loss.lost.binary_search(&i).is_err() {
                    coder.add_original_shard(i, shard.column(start, len, &mut self.scratch))?;
                }
            }
            for (j, shard) in loss.parity.iter().take(loss.lost.len()) {
                coder.add_recovery_shard(*j, &shard[start..start + len])?;
            }
            for (i, bytes) in coder.decode()?.restored_original_iter() {
                restored(i, start, bytes);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_hashed_in_order_and_few_bytes_wait() {
        for (len, many) in [(640, 5), (1 << 20, 5), (5 << 20, 5), (64, 40), (2 << 20, 17)] {
            for lanes in [1, 4, 16] {
                let shard = |number: usize| Bytes::from(vec![number as u8; len]);
                let (mut hashing, mut given) = (Hashing { lanes, ..Hashing::default() }, 0);
                for stripe in 0..5 {
                    let shards = (stripe * many..(stripe + 1) * many).map(shard).collect();
                    for (digest, found) in hashing.hash(shards, stripe == 4) {
                        assert!(found == shard(given) && digest == hash::sha256(&found), "{given} of {len}");
                        given += 1;
                    }
                    let waiting = (stripe + 1) * many - given;
                    assert!(waiting < lanes && waiting * len <= WAITING, "{waiting} of {len} wait");
                }
                assert_eq!(given, 5 * many);
            }
        }
        assert!(Hashing::default().hash(Vec::new(), true).is_empty());
    }
}
