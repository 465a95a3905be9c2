//! Cutting a sequence of blocks into shards and stripes. No data is read.

use std::collections::HashSet;

use cid::Cid;
use multihash::Multihash;

use super::{BlockRef, ErasureError, MAX_SHARD_BLOCKS, MAX_STRIPE_MEMORY, SHARD_TARGET, Shard, check_width};
use crate::blocklist::ListError;
use crate::hash;
use crate::layout::Redundancy;

/// How content is going to be laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub(super) k: u8,
    pub(super) m: u8,
    pub(super) shards: Vec<Shard>,
    blocks: u64,
    size: u64,
}

impl Plan {
    /// Data shards a stripe.
    pub fn k(&self) -> u8 {
        self.k
    }

    /// Parity shards a stripe.
    pub fn m(&self) -> u8 {
        self.m
    }

    /// Number of distinct blocks that can be lost.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Their bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The data shards of each stripe, in order.
    pub fn stripes(&self) -> impl ExactSizeIterator<Item = &[Shard]> {
        self.shards.chunks(usize::from(self.k))
    }

    /// Whether this content is coded, or too small for it and copied whole.
    pub fn redundancy(&self) -> Redundancy {
        Redundancy::choose(self.shards.len() as u64, self.k, self.m)
    }

    /// All blocks with their sizes, in depth-first order: what every host of copied content holds.
    pub fn all_blocks(&self) -> impl Iterator<Item = (Cid, u64)> + '_ {
        self.shards.iter().flat_map(|shard| &shard.blocks).map(|block| (block.cid, u64::from(block.size)))
    }
}

/// Lays blocks out for k + m, in the order they come: depth-first over the DAG.
///
/// Repeated blocks count once, where they come first; identity and empty blocks are left out, since nobody can lose
/// them.
///
/// # Errors
/// [`ErasureError::Redundancy`], [`ErasureError::TooWide`], [`ErasureError::Empty`], or a size that no block has.
pub fn plan(blocks: impl IntoIterator<Item = (Cid, u64)>, k: u8, m: u8) -> Result<Plan, ErasureError> {
    check_width(k, m, 0)?;
    // A wide stripe gets shorter shards, as far as the blocks allow.
    let target = SHARD_TARGET.min(MAX_STRIPE_MEMORY / (u64::from(k) + u64::from(m)));
    let mut seen: HashSet<Multihash<64>> = HashSet::new();
    let mut plan = Plan { k, m, shards: Vec::new(), blocks: 0, size: 0 };
    let mut open = Shard::default();
    let mut open_size = 0;
    for (cid, size) in blocks {
        if size == 0 || hash::inline(&cid).is_some() || !seen.insert(*cid.hash()) {
            continue;
        }
        if !hash::supported(&cid) {
            return Err(ListError::Unverifiable { cid }.into());
        }
        let block = BlockRef::new(cid, size)?;
        let full = open_size + size > target || open.blocks.len() == MAX_SHARD_BLOCKS;
        if full && !open.blocks.is_empty() {
            plan.shards.push(std::mem::take(&mut open));
            open_size = 0;
        }
        open.blocks.push(block);
        open_size += size;
        plan.blocks += 1;
        plan.size += size;
    }
    if !open.blocks.is_empty() {
        plan.shards.push(open);
    }
    if plan.shards.is_empty() {
        return Err(ErasureError::Empty);
    }
    check_width(k, m, super::shard_len(&plan.shards))?;
    Ok(plan)
}
