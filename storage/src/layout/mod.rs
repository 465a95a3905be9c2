//! The layout: the immutable description of shards, stripes and parity of one stored content.
//!
//! A layout is made once, before any agreement ([`erasure::encode`](crate::erasure::encode)), goes to every host, and
//! its CID is the handle of the stored thing. Whoever has it can rebuild: it names not only the parity blocks but every data block
//! with its size, shard by shard, so that a reader who lost interior nodes too still knows what was where.
//!
//! On disk it is a small DAG of DAG-CBOR blocks, none over 1 MiB: a root with the parameters and links to pages of
//! stripes (`wire.rs`). The described blocks are *named* in it, as byte strings, not linked: a layout describes the
//! content and does not contain it, so pinning or walking a layout takes its own blocks and no others.
//!
//! A layout may come from anyone ("layout of this root?"). It is decoded strictly, under caps that are checked before
//! anything is allocated, and cannot harm if it is false: what is rebuilt by it must hash to its CIDs.
//!
//! Who holds what follows from the layout alone: [`Layout::column`] (`placement.rs`).

mod placement;
mod wire;

pub use placement::{MAX_COPIES, Redundancy};
pub use wire::LayoutRoot;
pub(crate) use wire::check_describable;

use cid::Cid;

use crate::blocklist::ListError;
use crate::erasure::{CODEC, StripeSpec};
use crate::{BlockSource, Bytes, StoreError};

/// Most pages of a layout. With pages of half a MiB that describes about 150 GiB of 1 MiB blocks, more than the
/// block lists of one set of agreements can hold, and bounds a decoded layout to about 100 MB.
pub const MAX_PAGES: usize = 32;

/// Most bytes of a layout block, root or page.
pub const MAX_LAYOUT_BLOCK: usize = 1 << 20;

/// Why a layout was not made or not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A block of the layout itself is not here yet.
    #[error("block {0} of the layout is missing; fetch it and try again")]
    Missing(Cid),
    /// Another version or codec.
    #[error(
        "the layout has version {version} and codec {codec:?}; this program knows version 1 with {CODEC:?}"
    )]
    Unknown {
        /// Its version.
        version: u64,
        /// Its codec.
        codec: String,
    },
    /// Over a cap.
    #[error("the layout is too large: {what}; store the content in several parts")]
    TooLarge {
        /// Which cap, with numbers.
        what: String,
    },
    /// Not what a layout is.
    #[error("layout {cid} is malformed ({reason}); it was refused")]
    Malformed {
        /// The layout.
        cid: Cid,
        /// What is wrong.
        reason: Box<str>,
    },
    /// A wrong entry.
    #[error(transparent)]
    Entry(#[from] ListError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A checked layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    cid: Cid,
    root: Cid,
    k: u8,
    m: u8,
    shard_len: u32,
    blocks: u64,
    size: u64,
    stripes: Vec<StripeSpec>,
    /// The layout's own blocks, root first.
    own: Vec<(Cid, u64)>,
    /// Where each described block is: (first 8 bytes of the digest, stripe), sorted.
    index: Vec<(u64, u32)>,
}

impl Layout {
    /// Makes the layout of coded stripes, and its blocks.
    pub(crate) fn build(
        root: Cid,
        k: u8,
        m: u8,
        stripes: Vec<StripeSpec>,
    ) -> Result<(Layout, Vec<(Cid, Bytes)>), LayoutError> {
        let blocks = wire::encode(&root, k, m, &stripes)?;
        let own = blocks.iter().map(|(cid, data)| (*cid, data.len() as u64)).collect();
        let layout = Layout::assemble(root, k, m, stripes, own)?;
        Ok((layout, blocks))
    }

    /// Reads a layout from `source`. When a block of it is not there, [`LayoutError::Missing`] names it, so that the
    /// caller can fetch it (never more than [`MAX_PAGES`] + 1 of them) and try again.
    pub fn load(cid: &Cid, source: &dyn BlockSource) -> Result<Layout, LayoutError> {
        let get = |cid: &Cid| source.get(cid)?.ok_or(LayoutError::Missing(*cid));
        let bytes = get(cid)?;
        let root = LayoutRoot::decode(cid, &bytes)?;
        let mut own = vec![(*cid, bytes.len() as u64)];
        let mut stripes = Vec::new();
        for page in root.pages() {
            let bytes = get(page)?;
            own.push((*page, bytes.len() as u64));
            wire::decode_page(cid, &root, &bytes, &mut stripes)?;
        }
        root.check(&stripes)?;
        Layout::assemble(root.content(), root.k(), root.m(), stripes, own)
    }

    /// The layout's parts with totals and index.
    fn assemble(
        root: Cid,
        k: u8,
        m: u8,
        stripes: Vec<StripeSpec>,
        own: Vec<(Cid, u64)>,
    ) -> Result<Layout, LayoutError> {
        let totals = wire::Totals::of(&stripes);
        let mut index = Vec::new();
        for (at, stripe) in stripes.iter().enumerate() {
            // At most MAX_PAGES pages of stripes: far below 2^32.
            index.extend(stripe.blocks().map(|block| (prefix(&block.cid), at as u32)));
            index.extend(stripe.parity.iter().map(|cid| (prefix(cid), at as u32)));
        }
        index.sort_unstable();
        index.dedup();
        Ok(Layout {
            cid: own[0].0,
            root,
            k,
            m,
            shard_len: totals.shard_len,
            blocks: totals.blocks,
            size: totals.size,
            stripes,
            own,
            index,
        })
    }

    /// The layout's own address: the handle of the stored thing.
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// Root of the content.
    pub fn root(&self) -> Cid {
        self.root
    }

    /// Data shards a stripe; the last stripe may have fewer.
    pub fn k(&self) -> u8 {
        self.k
    }

    /// Parity shards of each stripe.
    pub fn m(&self) -> u8 {
        self.m
    }

    /// Length of the longest coded shard, in bytes. Each stripe has its own, [`StripeSpec::shard_len`].
    pub fn shard_len(&self) -> u32 {
        self.shard_len
    }

    /// Number of distinct data blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Their bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of all parity blocks.
    pub fn parity_size(&self) -> u64 {
        self.stripes.iter().map(|stripe| (stripe.parity.len() * stripe.shard_len()) as u64).sum()
    }

    /// All stripes in order.
    pub fn stripes(&self) -> &[StripeSpec] {
        &self.stripes
    }

    /// The stripe that a data or parity block is in. For parity that equals other parity or data, the first one.
    pub fn stripe_of(&self, cid: &Cid) -> Option<usize> {
        let prefix = prefix(cid);
        let from = self.index.partition_point(|(other, _)| *other < prefix);
        self.index[from..]
            .iter()
            .take_while(|(other, _)| *other == prefix)
            .map(|(_, stripe)| *stripe as usize)
            .find(|stripe| {
                let stripe = &self.stripes[*stripe];
                stripe.blocks().map(|block| &block.cid).chain(&stripe.parity).any(|c| c.hash() == cid.hash())
            })
    }

    /// The layout's own blocks with their sizes, root first.
    pub fn own_blocks(&self) -> &[(Cid, u64)] {
        &self.own
    }

    /// All data blocks with their sizes, in depth-first order.
    pub fn data_blocks(&self) -> impl Iterator<Item = (Cid, u64)> + '_ {
        self.stripes.iter().flat_map(StripeSpec::blocks).map(|block| (block.cid, u64::from(block.size)))
    }

    /// All parity blocks with their sizes, stripe by stripe.
    pub fn parity_blocks(&self) -> impl Iterator<Item = (Cid, u64)> + '_ {
        let sized = |stripe: &StripeSpec| stripe.shard_len() as u64;
        self.stripes.iter().flat_map(move |stripe| {
            let size = sized(stripe);
            stripe.parity.iter().map(move |cid| (*cid, size))
        })
    }
}

/// What the index is sorted by: the digest's first eight bytes.
fn prefix(cid: &Cid) -> u64 {
    let mut bytes = [0; 8];
    for (to, from) in bytes.iter_mut().zip(cid.hash().digest()) {
        *to = *from;
    }
    u64::from_be_bytes(bytes)
}

#[cfg(test)]
mod tests;
