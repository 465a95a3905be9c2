//! The layout's blocks: DAG-CBOR arrays, strictly read.
//!
//! ```text
//! root = [version, content root (bytes), codec, k, m, shard length, blocks, size, [link to page, ...]]
//! page = [stripe, ...]
//! stripe = [[shard (bytes), ...], parity digests (bytes), [position of an interior node, ...]]
//! ```
//!
//! A shard is the concatenation of its blocks' entries, in the encoding of block lists (`u8 length || CID || u32be
//! size`); a parity digest is the SHA-256 of one raw parity block, 32 bytes. Byte strings keep a stripe compact and
//! let it be read without nesting.

use std::collections::HashSet;

use cid::Cid;
use multihash::Multihash;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{LayoutError, MAX_LAYOUT_BLOCK, MAX_PAGES};
use crate::blocklist::BlockRef;
use crate::erasure::{CODEC, MAX_SHARD_BLOCKS, Shard, StripeSpec, check_width};
use crate::hash::{self, RAW, SHA2_256};
use crate::{Bytes, MAX_BLOCK};

/// Version of this encoding.
const VERSION: u64 = 1;

/// Bytes at which a page is closed. The longest possible stripe, 64 shards of 128 blocks, is below 0.7 MiB and fits a
/// page of its own.
const PAGE_TARGET: usize = 512 << 10;

#[derive(Serialize, Deserialize)]
struct RootTuple(u64, ByteBuf, String, u8, u8, u32, u64, u64, Vec<Cid>);

#[derive(Serialize, Deserialize)]
struct StripeTuple(Vec<ByteBuf>, ByteBuf, Vec<u32>);

/// What follows from the stripes and is stated in the root as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) shard_len: u32,
    pub(super) blocks: u64,
    pub(super) size: u64,
}

impl Totals {
    pub(super) fn of(stripes: &[StripeSpec]) -> Totals {
        Totals {
            // A shard has at most MAX_BLOCK bytes.
            shard_len: stripes.iter().map(StripeSpec::shard_len).max().unwrap_or(0) as u32,
            blocks: stripes.iter().map(|stripe| stripe.blocks().count() as u64).sum(),
            size: stripes.iter().map(StripeSpec::size).sum(),
        }
    }
}

/// Encodes a layout: its blocks, root first.
pub(super) fn encode(
    root: &Cid,
    k: u8,
    m: u8,
    stripes: &[StripeSpec],
) -> Result<Vec<(Cid, Bytes)>, LayoutError> {
    let mut pages: Vec<(Cid, Bytes)> = Vec::new();
    let mut page: Vec<StripeTuple> = Vec::new();
    let mut page_bytes = 0;
    for stripe in stripes {
        let tuple = encode_stripe(stripe);
        let bytes =
            tuple.0.iter().map(|shard| shard.len() + 5).sum::<usize>() + tuple.1.len() + 5 * tuple.2.len();
        if !page.is_empty() && page_bytes + bytes > PAGE_TARGET {
            pages.push(block(&std::mem::take(&mut page))?);
            page_bytes = 0;
        }
        page.push(tuple);
        page_bytes += bytes;
    }
    pages.push(block(&page)?);
    if pages.len() > MAX_PAGES {
        let what = format!("{} pages of at most {MAX_PAGES}", pages.len());
        return Err(LayoutError::TooLarge { what });
    }
    let totals = Totals::of(stripes);
    let links = pages.iter().map(|(cid, _)| *cid).collect();
    let content = ByteBuf::from(root.to_bytes());
    let (length, blocks, size) = (totals.shard_len, totals.blocks, totals.size);
    let tuple = RootTuple(VERSION, content, CODEC.to_owned(), k, m, length, blocks, size, links);
    let mut all = vec![block(&tuple)?];
    all.append(&mut pages);
    Ok(all)
}

/// Refuses shards that surely take more than [`MAX_PAGES`] pages to describe, before anything is read or coded.
pub(crate) fn check_describable(shards: &[Shard], k: u8, m: u8) -> Result<(), LayoutError> {
    // Length and size go with each CID, a digest with each parity block.
    let blocks = shards.iter().flat_map(|shard| &shard.blocks).map(|block| block.cid.encoded_len() + 5);
    let stripes = shards.len().div_ceil(usize::from(k));
    let least = (blocks.sum::<usize>() + stripes * usize::from(m) * 32).div_ceil(PAGE_TARGET);
    match least > MAX_PAGES {
        true => Err(LayoutError::TooLarge { what: format!("at least {least} pages of at most {MAX_PAGES}") }),
        false => Ok(()),
    }
}

/// A value as a DAG-CBOR block.
fn block<T: Serialize>(value: &T) -> Result<(Cid, Bytes), LayoutError> {
    let bytes = serde_ipld_dagcbor::to_vec(value)
        .map_err(|error| LayoutError::TooLarge { what: format!("it cannot be encoded: {error}") })?;
    if bytes.len() > MAX_LAYOUT_BLOCK {
        let what = format!("a page of {} bytes, of at most {MAX_LAYOUT_BLOCK}", bytes.len());
        return Err(LayoutError::TooLarge { what });
    }
    Ok((hash::cid_v1(hash::DAG_CBOR, &bytes), Bytes::from(bytes)))
}

fn encode_stripe(stripe: &StripeSpec) -> StripeTuple {
    let shard = |shard: &Shard| {
        let mut bytes = Vec::with_capacity(shard.blocks.len() * 41);
        shard.blocks.iter().for_each(|block| block.encode_into(&mut bytes));
        ByteBuf::from(bytes)
    };
    let parity: Vec<u8> = stripe.parity.iter().flat_map(|cid| cid.hash().digest()).copied().collect();
    StripeTuple(stripe.data.iter().map(shard).collect(), ByteBuf::from(parity), stripe.interior.clone())
}

/// The root block of a layout: parameters, and which pages to fetch for the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayoutRoot {
    cid: Cid,
    content: Cid,
    k: u8,
    m: u8,
    totals: Totals,
    pages: Vec<Cid>,
}

impl LayoutRoot {
    /// Reads a root block. The caller has checked that `bytes` hash to `cid`.
    pub fn decode(cid: &Cid, bytes: &[u8]) -> Result<LayoutRoot, LayoutError> {
        let malformed = |reason: String| LayoutError::Malformed { cid: *cid, reason: reason.into() };
        check_block(cid, bytes)?;
        let RootTuple(version, content, codec, k, m, shard_len, blocks, size, pages) =
            serde_ipld_dagcbor::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if version != VERSION || codec != CODEC {
            return Err(LayoutError::Unknown { version, codec });
        }
        if pages.is_empty() || pages.len() > MAX_PAGES {
            return Err(malformed(format!("{} pages", pages.len())));
        }
        let content = Cid::try_from(&content[..]).map_err(|error| malformed(error.to_string()))?;
        check_width(k, m, shard_len as usize).map_err(|error| malformed(error.to_string()))?;
        let totals = Totals { shard_len, blocks, size };
        Ok(LayoutRoot { cid: *cid, content, k, m, totals, pages })
    }

    /// Root of the content that is described.
    pub fn content(&self) -> Cid {
        self.content
    }

    /// Data shards a stripe.
    pub fn k(&self) -> u8 {
        self.k
    }

    /// Parity shards a stripe.
    pub fn m(&self) -> u8 {
        self.m
    }

    /// Bytes of the described data, as the root states them; checked once the pages are read.
    pub fn size(&self) -> u64 {
        self.totals.size
    }

    /// The pages, to be fetched: 1 to [`MAX_PAGES`].
    pub fn pages(&self) -> &[Cid] {
        &self.pages
    }

    /// Checks what only all pages together show.
    pub(super) fn check(&self, stripes: &[StripeSpec]) -> Result<(), LayoutError> {
        let malformed = |reason: &str| LayoutError::Malformed { cid: self.cid, reason: reason.into() };
        let Some((_, full)) = stripes.split_last() else { return Err(malformed("no stripes")) };
        if full.iter().any(|stripe| stripe.data.len() != usize::from(self.k)) {
            return Err(malformed("a stripe before the last has fewer than k data shards"));
        }
        if Totals::of(stripes) != self.totals {
            return Err(malformed("the root's totals are not those of its stripes"));
        }
        let mut seen: HashSet<&Multihash<64>> = HashSet::new();
        if stripes.iter().flat_map(StripeSpec::blocks).any(|block| !seen.insert(block.cid.hash())) {
            return Err(malformed("a data block is described twice"));
        }
        Ok(())
    }
}

/// Caps the size of a layout block before it is decoded.
fn check_block(cid: &Cid, bytes: &[u8]) -> Result<(), LayoutError> {
    if bytes.len() > MAX_LAYOUT_BLOCK {
        return Err(LayoutError::Malformed {
            cid: *cid,
            reason: format!("a block of {} bytes", bytes.len()).into(),
        });
    }
    Ok(())
}

/// Reads a page and appends its stripes.
pub(super) fn decode_page(
    cid: &Cid,
    root: &LayoutRoot,
    bytes: &[u8],
    stripes: &mut Vec<StripeSpec>,
) -> Result<(), LayoutError> {
    check_block(cid, bytes)?;
    let tuples: Vec<StripeTuple> = serde_ipld_dagcbor::from_slice(bytes)
        .map_err(|error| LayoutError::Malformed { cid: *cid, reason: error.to_string().into() })?;
    for tuple in tuples {
        stripes.push(decode_stripe(cid, root, tuple)?);
    }
    Ok(())
}

fn decode_stripe(cid: &Cid, root: &LayoutRoot, tuple: StripeTuple) -> Result<StripeSpec, LayoutError> {
    let malformed = |reason: &str| LayoutError::Malformed { cid: *cid, reason: reason.into() };
    let StripeTuple(shards, parity, interior) = tuple;
    if shards.is_empty() || shards.len() > usize::from(root.k) {
        return Err(malformed("a stripe has no or more than k data shards"));
    }
    let data = shards.iter().map(|bytes| decode_shard(bytes)).collect::<Result<Vec<_>, _>>()?;
    for shard in &data {
        if shard.blocks.is_empty() || shard.blocks.len() > MAX_SHARD_BLOCKS || shard.size() > MAX_BLOCK as u64
        {
            return Err(malformed("a shard has no or too many blocks or bytes"));
        }
    }
    let (digests, rest) = parity.as_chunks::<32>();
    if !rest.is_empty() || digests.len() != usize::from(root.m) {
        return Err(malformed("a stripe does not have m parity digests"));
    }
    let parity = digests.iter().map(|digest| hash::cid_from_digest(RAW, SHA2_256, digest)).collect();
    let count: usize = data.iter().map(|shard| shard.blocks.len()).sum();
    if !interior.is_sorted_by(|a, b| a < b) || interior.last().is_some_and(|last| *last as usize >= count) {
        return Err(malformed("positions of interior nodes are out of order or range"));
    }
    Ok(StripeSpec { data, parity, interior })
}

fn decode_shard(bytes: &[u8]) -> Result<Shard, LayoutError> {
    let mut shard = Shard::default();
    let mut at = 0;
    // One more than allowed is read, so that the caller sees that there are too many.
    while at < bytes.len() && shard.blocks.len() <= MAX_SHARD_BLOCKS {
        let (block, next) = BlockRef::decode_at(bytes, at)?;
        shard.blocks.push(block);
        at = next;
    }
    Ok(shard)
}
