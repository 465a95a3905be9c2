//! Which host holds what, as far as it follows from the layout alone. Which host *is* column i is the renter's
//! choice and its mutable record.
//!
//! Column i of every stripe goes to one host: for i < k the blocks of data shard i, else parity block i - k. A last
//! stripe of k' < k data shards has nothing in columns k' to k. Interior nodes and the layout are what every reader
//! needs first: while they are small ([`Layout::shared_everywhere`]) every host holds all of them beside its column.
//! Where they are not (trees of many tiny files), interior nodes stay in their columns and are kept by the next two
//! hosts as well, and so is each page of the layout: three keep each. The layout's root goes to all.
//!
//! Content of fewer than k shards is not coded: its parity would be larger than copies of it. Each of a few hosts
//! then holds all of it ([`Redundancy::Copies`]).

use std::collections::HashSet;

use cid::Cid;
use multihash::Multihash;

use super::Layout;
use crate::erasure::StripeSpec;

/// Most copies of content that is not coded. More copies of the same bytes are not more hosts' work: one disk can
/// answer for all of them.
pub const MAX_COPIES: u8 = 4;

/// Interior nodes and layout up to this many bytes go to every host whatever share of the content they are.
const SHARED_FLOOR: u64 = 1 << 20;

/// How many hosts keep each interior node and layout page that is not kept by all.
const KEEPERS: usize = 3;

/// How content survives the loss of hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redundancy {
    /// Any k of k + m columns bring it back; one host each.
    Coded {
        /// Data columns.
        k: u8,
        /// Parity columns.
        m: u8,
    },
    /// So many hosts hold all of it.
    Copies(u8),
}

impl Redundancy {
    /// What k + m becomes for content of `shards` shards: coded if it fills a stripe, else m + 1 copies (which
    /// survive the same m losses), at most [`MAX_COPIES`].
    pub fn choose(shards: u64, k: u8, m: u8) -> Redundancy {
        if shards >= u64::from(k) {
            Redundancy::Coded { k, m }
        } else {
            Redundancy::Copies(m.saturating_add(1).min(MAX_COPIES))
        }
    }

    /// How many hosts are needed.
    pub fn hosts(self) -> usize {
        match self {
            Redundancy::Coded { k, m } => usize::from(k) + usize::from(m),
            Redundancy::Copies(n) => usize::from(n),
        }
    }

    /// How many of them have to be left.
    pub fn needed(self) -> usize {
        match self {
            Redundancy::Coded { k, .. } => usize::from(k),
            Redundancy::Copies(_) => 1,
        }
    }
}

impl std::fmt::Display for Redundancy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Redundancy::Coded { k, m } => write!(f, "{k}+{m}"),
            Redundancy::Copies(1) => f.write_str("1 copy"),
            Redundancy::Copies(n) => write!(f, "{n} copies"),
        }
    }
}

/// Collects blocks, each once.
#[derive(Default)]
struct Holding {
    seen: HashSet<Multihash<64>>,
    blocks: Vec<(Cid, u64)>,
}

impl Holding {
    fn add(&mut self, blocks: impl IntoIterator<Item = (Cid, u64)>) {
        for (cid, size) in blocks {
            if self.seen.insert(*cid.hash()) {
                self.blocks.push((cid, size));
            }
        }
    }
}

impl Layout {
    /// Number of columns, one host each: k + m.
    pub fn columns(&self) -> usize {
        usize::from(self.k) + usize::from(self.m)
    }

    /// Whether every host holds all interior nodes and the whole layout: while those are at most 1 % of the data, or
    /// small anyway.
    pub fn shared_everywhere(&self) -> bool {
        let interior: u64 = self.stripes.iter().flat_map(interior).map(|(_, (_, size))| size).sum();
        let own: u64 = self.own.iter().map(|(_, size)| size).sum();
        interior + own <= (self.size / 100).max(SHARED_FLOOR)
    }

    /// Every block that the host of column `column` holds, each once, with its size in bytes. Never empty for a
    /// column below [`columns`](Self::columns).
    pub fn column(&self, column: usize) -> Vec<(Cid, u64)> {
        let mut holding = Holding::default();
        for stripe in &self.stripes {
            holding.add(shard(stripe, column, usize::from(self.k)));
        }
        if self.shared_everywhere() {
            holding.add(self.stripes.iter().flat_map(interior).map(|(_, block)| block));
            holding.add(self.own.iter().copied());
            return holding.blocks;
        }
        let keeps =
            |owner: usize| (column + self.columns() - owner % self.columns()) % self.columns() < KEEPERS;
        let kept = self.stripes.iter().flat_map(interior).filter(|(owner, _)| keeps(*owner));
        holding.add(kept.map(|(_, block)| block));
        let pages = self.own.iter().enumerate().filter(|(at, _)| *at == 0 || keeps(at - 1));
        holding.add(pages.map(|(_, block)| *block));
        holding.blocks
    }

    /// What an anchor holds: the whole content and the layout, no parity. An anchor serves plain IPFS and BitTorrent
    /// clients alone.
    pub fn anchor(&self) -> Vec<(Cid, u64)> {
        let mut holding = Holding::default();
        holding.add(self.data_blocks());
        holding.add(self.own.iter().copied());
        holding.blocks
    }

    /// Losses that can still be taken: the least, over all stripes, of live shards above the k' that are needed.
    /// Negative when content is lost. `live[i]` says that the host of column i answers; with a live anchor all data
    /// is there.
    pub fn health(&self, live: &[bool], anchor: bool) -> i64 {
        let up = |column: usize| live.get(column).copied().unwrap_or(false);
        let k = usize::from(self.k);
        let parity = (k..self.columns()).filter(|column| up(*column)).count();
        // All stripes but the last are alike.
        let tail = self.stripes.len().saturating_sub(2);
        self.stripes[tail..]
            .iter()
            .map(|stripe| {
                let data = (0..stripe.data.len()).filter(|column| anchor || up(*column)).count();
                (data + parity) as i64 - stripe.data.len() as i64
            })
            .min()
            .unwrap_or(0)
    }
}

/// The blocks of one column in one stripe.
fn shard(stripe: &StripeSpec, column: usize, k: usize) -> Vec<(Cid, u64)> {
    match column.checked_sub(k) {
        Some(j) => stripe.parity.get(j).map(|cid| (*cid, stripe.shard_len() as u64)).into_iter().collect(),
        None => {
            let blocks = stripe.data.get(column).map(|shard| &shard.blocks[..]).unwrap_or_default();
            blocks.iter().map(|block| (block.cid, u64::from(block.size))).collect()
        }
    }
}

/// The interior nodes of a stripe, each with the column it lies in.
fn interior(stripe: &StripeSpec) -> impl Iterator<Item = (usize, (Cid, u64))> + '_ {
    let mut positions = stripe.interior.iter().peekable();
    let columns = stripe.data.iter().enumerate();
    let blocks = columns.flat_map(|(column, shard)| shard.blocks.iter().map(move |block| (column, block)));
    (0u32..).zip(blocks).filter_map(move |(position, (column, block))| {
        positions.next_if(|next| **next == position)?;
        Some((column, (block.cid, u64::from(block.size))))
    })
}
