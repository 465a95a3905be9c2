//! Erasure coding over the blocks of a DAG: any k of k + m shards of a stripe bring back its data.
//!
//! The distinct blocks of a DAG, in depth-first order, are laid out as *shards*: a shard is a run of consecutive
//! blocks of at most [`SHARD_TARGET`] bytes together, or one larger block. k shards make a *stripe*, to which m *parity
//! shards* of one raw block each are added; the last stripe may have k' < k data shards and still gets m. Data
//! blocks stay ordinary blocks under their own CIDs, so a plain IPFS client fetches the content without knowing of
//! any of this; parity is read only after losses.
//!
//! * [`plan`] cuts a block sequence into stripes (no data is read), [`encode`] reads it, makes the parity blocks and
//!   the [`Layout`](crate::layout::Layout), the immutable record that readers rebuild by.
//! * [`StripeRebuild`] gathers what can be had of one stripe, says when it is enough, and gives the lost blocks back,
//!   each checked against its hash; it does no I/O, so the network code drives it as blocks arrive.
//!   [`reconstruct`] is the same over a local source; [`regenerate`] makes lost parity again from whole data.
//! * [`plan_local`] is for parity beside the content in one store: [`condition`] tells what is lost there and how much
//!   more may be, [`mend`] brings back data and parity as far as it goes.
//!
//! Invariants:
//!
//! * Zero padding exists for coding only, up to the stripe's shard length (its longest shard rounded up to 64
//!   bytes); padding is never stored or sent except as part of parity.
//! * The bytes of parity follow from codec, k', m and shard length alone. They are coded in columns of
//!   [`COLUMN`] bytes, a multiple of the codec's 64: that gives the same bytes as coding whole shards.
//! * No stripe has more than [`MAX_STRIPE_MEMORY`] bytes, and of two that have no more together one may be made while the
//!   other is stored; else one is in memory at a time. Up to 16 MiB of parity wait to be hashed with the next stripe's.
//! * A false layout or a false parity block cannot harm: what does not hash to its CID is an error, never a block.

mod codec;
mod encode;
mod mend;
mod plan;
mod rebuild;

pub use encode::{encode, regenerate};
pub use mend::{Condition, Mended, condition, mend, mend_stripe};
pub use plan::{Plan, plan, plan_local};
pub use rebuild::{StripeRebuild, reconstruct};

use cid::Cid;

pub use crate::blocklist::BlockRef;
use crate::blocklist::ListError;
use crate::layout::LayoutError;
use crate::{MAX_BLOCK, StoreError};

/// Identifies the bytes of parity: Leopard-RS over GF(2^16) in 64-byte columns, as reed-solomon-simd 3 computes them,
/// over the k' data shards of a stripe padded with zeros to its shard length.
pub const CODEC: &str = "leopard-gf16-64/1";

/// Bytes of blocks that share one shard, at most; a larger block is a shard of its own.
pub const SHARD_TARGET: u64 = 1 << 20;

/// Most blocks in one shard, so that the description of a stripe of tiny blocks stays well below a block.
pub const MAX_SHARD_BLOCKS: usize = 128;

/// Most data shards in a stripe.
pub const MAX_K: u8 = 64;

/// Most parity shards in a stripe.
pub const MAX_M: u8 = 192;

/// Most bytes that k + m shards may take, since that is what coding holds in memory: 64 + 192 with 1 MiB blocks, which
/// most content has. What is asked for usually takes far less: 30 MiB for 10 + 20.
pub const MAX_STRIPE_MEMORY: u64 = 256 << 20;

/// Granularity of the codec, in bytes: shard lengths and columns are multiples of it.
pub const ALIGN: usize = 64;

/// Columns are coded one after the other in this many bytes, so that a stripe's working set stays in the cache of a
/// core: 10+20 goes at 980 MiB/s so, at 810 in 64 KiB, and at 360 with whole shards of 1 MiB.
pub const COLUMN: usize = 32 << 10;

/// A run of consecutive blocks that is coded as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// The blocks in depth-first order.
    pub blocks: Vec<BlockRef>,
}

impl Shard {
    /// Bytes of all blocks together, without padding.
    pub fn size(&self) -> u64 {
        self.blocks.iter().map(|block| u64::from(block.size)).sum()
    }
}

/// One stripe as the layout describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StripeSpec {
    /// The data shards: k, or fewer in the last stripe.
    pub data: Vec<Shard>,
    /// The m parity blocks, each of [`shard_len`](Self::shard_len) bytes.
    pub parity: Vec<Cid>,
    /// Positions, among the stripe's blocks counted over all its shards, of blocks that have children: the interior
    /// nodes that every reader needs.
    pub interior: Vec<u32>,
}

impl StripeSpec {
    /// Length of each coded shard and of each parity block, in bytes: the longest data shard rounded up to [`ALIGN`].
    pub fn shard_len(&self) -> usize {
        shard_len(&self.data)
    }

    /// All data blocks in depth-first order.
    pub fn blocks(&self) -> impl Iterator<Item = &BlockRef> + '_ {
        self.data.iter().flat_map(|shard| &shard.blocks)
    }

    /// Bytes of data, without padding.
    pub fn size(&self) -> u64 {
        self.data.iter().map(Shard::size).sum()
    }
}

/// See [`StripeSpec::shard_len`].
pub(crate) fn shard_len(data: &[Shard]) -> usize {
    let longest = data.iter().map(Shard::size).max().unwrap_or(0);
    // A shard holds at most MAX_BLOCK bytes; the plan and the layout's decoder see to it.
    (longest as usize).next_multiple_of(ALIGN)
}

/// Why content was not planned, coded or rebuilt. Stored blocks are never affected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErasureError {
    /// Parameters out of range.
    #[error("redundancy {k}+{m} is not possible: 1 to {MAX_K} data and 1 to {MAX_M} parity shards")]
    Redundancy {
        /// Data shards.
        k: u8,
        /// Parity shards.
        m: u8,
    },
    /// Nothing to code.
    #[error("there is nothing to store: the content has no bytes outside its address")]
    Empty,
    /// Parity that would be copies, for the store of the content itself.
    #[error(
        "1+{m} would be copies, and a store keeps each block once; choose at least 2 data shards, such as 2+1"
    )]
    Copies {
        /// Parity shards.
        m: u8,
    },
    /// One block, of which parity would be a copy, for the store of the content itself.
    #[error(
        "the content is the one block {0}, of which parity would be a copy, and a store keeps each block once; make \
         parity of a directory with more in it, or add the file in smaller blocks (`btfs add --chunker size-N`)"
    )]
    Single(Cid),
    /// A stripe would not fit in memory.
    #[error(
        "{k}+{m} shards of {shard_len} bytes pass the {MAX_STRIPE_MEMORY} bytes that coding may take; choose fewer shards"
    )]
    TooWide {
        /// Data shards.
        k: u8,
        /// Parity shards.
        m: u8,
        /// The longest shard.
        shard_len: usize,
    },
    /// A size that no block may have.
    #[error(transparent)]
    Block(#[from] ListError),
    /// A data block is needed and not there.
    #[error("block {0} is missing; parity cannot be made without it")]
    Missing(Cid),
    /// A block does not have the size that was planned with.
    #[error("block {cid} has {found} bytes where {listed} were planned")]
    Size {
        /// The block.
        cid: Cid,
        /// Bytes found.
        found: usize,
        /// Bytes planned.
        listed: usize,
    },
    /// A node that cannot be read.
    #[error("block {cid} is no well-formed node: {reason}")]
    Node {
        /// The block.
        cid: Cid,
        /// What the decoder said.
        reason: Box<str>,
    },
    /// Too much of a stripe is lost.
    #[error(
        "block {cid} cannot be rebuilt: {short} more shards of its stripe are needed; find more of its hosts"
    )]
    TooFew {
        /// One of the lost blocks.
        cid: Cid,
        /// How many more shards would do, where it is worst.
        short: usize,
    },
    /// What came out is not the block.
    #[error("block {cid} did not come out right: the layout or a parity block is false; try another layout")]
    False {
        /// The block that was wanted.
        cid: Cid,
    },
    /// The block is not described by the layout.
    #[error("block {0} is not part of this layout")]
    Foreign(Cid),
    /// The coding library refused, which checked parameters should make impossible.
    #[error("coding failed: {0}")]
    Codec(#[from] reed_solomon_simd::Error),
    /// The layout could not be made.
    #[error(transparent)]
    Layout(Box<LayoutError>),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<LayoutError> for ErasureError {
    fn from(error: LayoutError) -> ErasureError {
        ErasureError::Layout(Box::new(error))
    }
}

/// Checks k, m and the longest shard against the limits.
pub(crate) fn check_width(k: u8, m: u8, shard_len: usize) -> Result<(), ErasureError> {
    if !(1..=MAX_K).contains(&k) || !(1..=MAX_M).contains(&m) {
        return Err(ErasureError::Redundancy { k, m });
    }
    let width = u64::from(k) + u64::from(m);
    if shard_len > MAX_BLOCK || width * shard_len as u64 > MAX_STRIPE_MEMORY {
        return Err(ErasureError::TooWide { k, m, shard_len });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
