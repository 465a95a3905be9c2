//! Cutting a sequence of blocks into shards and stripes. No data is read.

use std::collections::HashSet;

use cid::Cid;
use multihash::Multihash;

use super::{
    BlockRef, ErasureError, MAX_K, MAX_SHARD_BLOCKS, MAX_STRIPE_MEMORY, SHARD_TARGET, Shard, check_width,
};
use crate::blocklist::ListError;
use crate::hash;
use crate::layout::{Redundancy, check_describable};

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

    /// Bytes of all parity blocks that it takes.
    pub fn parity_size(&self) -> u64 {
        self.stripes().map(|data| u64::from(self.m) * super::shard_len(data) as u64).sum()
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
    let plan = cut(blocks, k, m, longest_shard(k, m))?;
    check_width(k, m, super::shard_len(&plan.shards))?;
    Ok(plan)
}

/// [`plan`] for parity that lies in the store of the content itself, where no copy helps: a store keeps each block once,
/// and the parity of a single data shard is that shard again.
///
/// So content too small for k shards is cut into shorter ones, as far as its blocks allow, and what still has fewer than
/// k of them becomes one stripe as narrow as it is. And k gives way, by as little as will do, where it would leave one
/// shard alone in the last stripe.
///
/// # Errors
/// Those of [`plan`]; [`ErasureError::Copies`] for k = 1, [`ErasureError::Single`] for content of one block, and
/// [`LayoutError::TooLarge`](crate::layout::LayoutError::TooLarge) if no layout could describe it.
pub fn plan_local(blocks: impl IntoIterator<Item = (Cid, u64)>, k: u8, m: u8) -> Result<Plan, ErasureError> {
    check_width(k, m, 0)?;
    if k == 1 {
        return Err(ErasureError::Copies { m });
    }
    let target = longest_shard(k, m);
    let mut plan = cut(blocks, k, m, target)?;
    if plan.shards.len() < usize::from(k) {
        let shorter = plan.size.div_ceil(u64::from(k)).min(target);
        plan = cut(plan.all_blocks().collect::<Vec<_>>(), k, m, shorter)?;
    }
    if let [only] = &plan.shards[..] {
        return Err(ErasureError::Single(only.blocks[0].cid));
    }
    let longest = super::shard_len(&plan.shards);
    check_width(k.min(fitting(plan.shards.len())), m, longest)?;
    plan.k = width(plan.shards.len(), k, &|k| check_width(k, m, longest).is_ok());
    check_describable(&plan.shards, plan.k, m)?;
    Ok(plan)
}

/// A number of shards as a k.
fn fitting(shards: usize) -> u8 {
    u8::try_from(shards).unwrap_or(u8::MAX)
}

/// The k nearest to the one asked for that is possible and leaves no shard of two or more alone in the last stripe. A
/// larger one is tried first: it takes no more parity.
fn width(shards: usize, k: u8, possible: &dyn Fn(u8) -> bool) -> u8 {
    let k = k.min(fitting(shards));
    let nearest = (0..=MAX_K).flat_map(|by| [k.checked_add(by), k.checked_sub(by)]).flatten();
    let fits = |k: &u8| (2..=MAX_K).contains(k) && shards % usize::from(*k) != 1 && possible(*k);
    // If there is none, the last stripe has less to spare, as its condition tells.
    nearest.into_iter().find(fits).unwrap_or(k)
}

/// A wide stripe gets shorter shards, as far as the blocks allow.
fn longest_shard(k: u8, m: u8) -> u64 {
    SHARD_TARGET.min(MAX_STRIPE_MEMORY / (u64::from(k) + u64::from(m)))
}

/// Cuts blocks into shards of up to `target` bytes, or one larger block.
fn cut(
    blocks: impl IntoIterator<Item = (Cid, u64)>,
    k: u8,
    m: u8,
    target: u64,
) -> Result<Plan, ErasureError> {
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
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_shard_is_alone_in_the_last_stripe() {
        let any = |_: u8| true;
        for (shards, k, chosen) in [
            (2, 32, 2),
            (31, 32, 31),
            (32, 32, 32),
            (33, 32, 33),
            (34, 32, 32),
            (65, 32, 33),
            (129, 64, 63),
            (3, 2, 3),
            // 3 leaves one of seven alone as well.
            (7, 2, 4),
        ] {
            assert_eq!(width(shards, k, &any), chosen, "{shards} shards in stripes of {k}");
        }
        assert_eq!(width(33, 32, &|k| k <= 32), 31, "one more is not possible");
        for shards in 2..5_000 {
            for k in 2..=MAX_K {
                let chosen = usize::from(width(shards, k, &any));
                assert!(chosen >= 2 && shards % chosen != 1, "{shards} shards in stripes of {k}");
            }
        }
    }
}
