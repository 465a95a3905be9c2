//! Bringing lost blocks back from what is left of their stripe.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use cid::Cid;
use multihash::Multihash;

use super::codec::{Decoder, Loss, ShardBytes};
use super::{ALIGN, ErasureError, StripeSpec};
use crate::db::DbError;
use crate::layout::Layout;
use crate::{BlockSink, BlockSource, Bytes, StoreError, hash};

/// Gathers blocks of one stripe until the lost ones can be computed. Holds at most that stripe.
///
/// A data shard of which only some blocks are lost still serves where its other blocks lie, and padding is known to
/// be zero; so less than k' whole shards can be enough.
///
/// The driver offers what it finds locally, fetches some of [`wanted`](Self::wanted) until
/// [`ready`](Self::ready), and takes the lost blocks from [`finish`](Self::finish).
#[derive(Clone, Debug)]
pub struct StripeRebuild {
    spec: StripeSpec,
    have: HashMap<Multihash<64>, Bytes>,
    /// What each block of the stripe must measure.
    sizes: HashMap<Multihash<64>, usize>,
}

/// Columns in which the same data shards are lost.
pub(super) struct Segment {
    range: Range<usize>,
    pub(super) lost: Vec<usize>,
}

impl StripeRebuild {
    /// A gathering that has nothing yet.
    pub fn new(spec: StripeSpec) -> StripeRebuild {
        let mut sizes: HashMap<_, _> =
            spec.parity.iter().map(|cid| (*cid.hash(), spec.shard_len())).collect();
        sizes.extend(spec.blocks().map(|block| (*block.cid.hash(), block.size as usize)));
        StripeRebuild { spec, have: HashMap::new(), sizes }
    }

    /// The stripe.
    pub fn spec(&self) -> &StripeSpec {
        &self.spec
    }

    /// What is not here yet, data first: all of it, since what can be fetched is not known here.
    pub fn wanted(&self) -> Vec<Cid> {
        let mut named = HashSet::new();
        self.spec
            .blocks()
            .map(|block| &block.cid)
            .chain(&self.spec.parity)
            .filter(|cid| !self.have.contains_key(cid.hash()) && named.insert(*cid.hash()))
            .copied()
            .collect()
    }

    /// Takes a block whose hash was checked. Says whether it belongs to the stripe and was not known before.
    pub fn offer(&mut self, cid: &Cid, data: Bytes) -> bool {
        self.sizes.get(cid.hash()) == Some(&data.len()) && self.have.insert(*cid.hash(), data).is_none()
    }

    /// The data blocks that are not here.
    pub fn lost(&self) -> impl Iterator<Item = Cid> + '_ {
        self.spec.blocks().map(|block| block.cid).filter(|cid| !self.have.contains_key(cid.hash()))
    }

    /// Whether every lost data block can be computed now.
    pub fn ready(&self) -> bool {
        self.short() == 0
    }

    /// How many more parity shards (or whole data shards) would be enough.
    pub fn short(&self) -> usize {
        let parity = self.parity().len();
        let worst = self.segments().into_iter().map(|segment| segment.lost.len()).max().unwrap_or(0);
        worst.saturating_sub(parity)
    }

    /// The parity blocks that are here.
    fn parity(&self) -> Vec<(usize, Bytes)> {
        let here = |(j, cid): (usize, &Cid)| Some((j, self.have.get(cid.hash())?.clone()));
        self.spec.parity.iter().enumerate().filter_map(here).collect()
    }

    /// [`segments`] of what is not here.
    fn segments(&self) -> Vec<Segment> {
        segments(&self.spec, &|cid| self.have.contains_key(cid.hash()))
    }

    /// Offers what `source` has of the data, and as much of the parity as is needed then. What turns out damaged is as
    /// good as absent.
    pub fn gather(&mut self, source: &dyn BlockSource) -> Result<(), StoreError> {
        let data: Vec<Cid> = self.spec.blocks().map(|block| block.cid).collect();
        for cid in data {
            self.offer_from(source, &cid)?;
        }
        for cid in self.spec.parity.clone() {
            // More would only be read for nothing.
            if self.ready() {
                break;
            }
            self.offer_from(source, &cid)?;
        }
        Ok(())
    }

    fn offer_from(&mut self, source: &dyn BlockSource, cid: &Cid) -> Result<(), StoreError> {
        if self.have.contains_key(cid.hash()) {
            return Ok(());
        }
        match source.get(cid) {
            // What was wrong before its checksum was made would make all that is rebuilt with it wrong, too.
            Ok(Some(block)) if hash::verify(cid, &block).is_ok() => drop(self.offer(cid, block)),
            Ok(_) | Err(StoreError::Corrupt { .. } | StoreError::NotInFile { .. }) => {}
            // What the disk does not give may be had by the rest.
            Err(StoreError::Db(error @ DbError::Rocks { .. })) => {
                tracing::warn!(%cid, %error, "a block cannot be read; what else is lost is rebuilt without it");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Computes every lost data block, each checked against its hash.
    ///
    /// # Errors
    /// [`ErasureError::TooFew`] before [`ready`](Self::ready), [`ErasureError::False`] if a result does not hash to its
    /// CID; nothing is given then.
    pub fn finish(&self) -> Result<Vec<(Cid, Bytes)>, ErasureError> {
        let Some(first) = self.lost().next() else { return Ok(Vec::new()) };
        let short = self.short();
        if short > 0 {
            return Err(ErasureError::TooFew { cid: first, short });
        }
        let mut buffers: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        self.decode(&mut buffers)?;
        let mut rebuilt = Vec::new();
        for (i, buffer) in buffers {
            let whole = Bytes::from(buffer);
            let mut start = 0;
            for block in &self.spec.data[i].blocks {
                let end = start + block.size as usize;
                if !self.have.contains_key(block.cid.hash()) {
                    let data = whole.slice(start..end);
                    hash::verify(&block.cid, &data).map_err(|_| ErasureError::False { cid: block.cid })?;
                    rebuilt.push((block.cid, data));
                }
                start = end;
            }
        }
        Ok(rebuilt)
    }

    /// Decodes all segments into one buffer for each shard that lost something.
    fn decode(&self, buffers: &mut BTreeMap<usize, Vec<u8>>) -> Result<(), ErasureError> {
        let data: Vec<ShardBytes> = self.spec.data.iter().map(|shard| self.bytes_of(&shard.blocks)).collect();
        let parity = self.parity();
        let mut decoder = Decoder::default();
        for Segment { range, lost } in self.segments() {
            for i in &lost {
                let size = self.spec.data[*i].size() as usize;
                buffers.entry(*i).or_insert_with(|| vec![0; size.next_multiple_of(ALIGN)]);
            }
            let loss = Loss { range, data: &data, lost: &lost, parity: &parity, m: self.spec.parity.len() };
            decoder.restore(&loss, &mut |i, start, bytes| {
                if let Some(buffer) = buffers.get_mut(&i) {
                    buffer[start..start + bytes.len()].copy_from_slice(bytes);
                }
            })?;
        }
        Ok(())
    }

    fn bytes_of(&self, blocks: &[super::BlockRef]) -> ShardBytes {
        let mut bytes = ShardBytes::default();
        let mut start = 0;
        for block in blocks {
            if let Some(data) = self.have.get(block.cid.hash()) {
                bytes.push(start, data.clone());
            }
            start += block.size as usize;
        }
        bytes
    }
}

/// What is gathered.
impl BlockSource for StripeRebuild {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        Ok(self.have.get(cid.hash()).cloned())
    }
    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.have.contains_key(cid.hash()))
    }
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        Ok(self.have.get(cid.hash()).map(|block| block.len() as u64))
    }
}

/// Where something is lost of a stripe, cut so that within a segment each shard is either lost or whole.
pub(super) fn segments(spec: &StripeSpec, is_here: &dyn Fn(&Cid) -> bool) -> Vec<Segment> {
    // Per shard, the lost ranges widened to the codec's granularity.
    let mut losses: Vec<(usize, Range<usize>)> = Vec::new();
    for (i, shard) in spec.data.iter().enumerate() {
        let mut start = 0;
        for block in &shard.blocks {
            let end = start + block.size as usize;
            if !is_here(&block.cid) {
                losses.push((i, start / ALIGN * ALIGN..end.next_multiple_of(ALIGN)));
            }
            start = end;
        }
    }
    let mut cuts: Vec<usize> = losses.iter().flat_map(|(_, range)| [range.start, range.end]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut lost: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (shard, range) in &losses {
        let from = cuts.partition_point(|cut| *cut < range.start);
        for cut in cuts[from..].iter().take_while(|cut| **cut < range.end) {
            let shards = lost.entry(*cut).or_default();
            if shards.last() != Some(shard) {
                shards.push(*shard);
            }
        }
    }
    let next = |cut: usize| cuts[cuts.partition_point(|other| *other <= cut)];
    lost.into_iter().map(|(cut, lost)| Segment { range: cut..next(cut), lost }).collect()
}

/// Rebuilds `missing` blocks of a layout from what `source` still has, and puts them, with whatever else of their
/// stripes was lost, into `sink`. Gives the number of blocks that were rebuilt. One stripe is in memory at a time.
///
/// # Errors
/// [`ErasureError::Foreign`] for a block that the layout does not describe, [`ErasureError::TooFew`] where too much
/// is lost; blocks of earlier stripes are in the sink by then.
pub fn reconstruct(
    layout: &Layout,
    missing: impl IntoIterator<Item = Cid>,
    source: &dyn BlockSource,
    sink: &mut dyn BlockSink,
) -> Result<u64, ErasureError> {
    let mut stripes = Vec::new();
    for cid in missing {
        stripes.push(layout.stripe_of(&cid).ok_or(ErasureError::Foreign(cid))?);
    }
    stripes.sort_unstable();
    stripes.dedup();
    let mut rebuilt = 0;
    for stripe in stripes {
        let mut lost = StripeRebuild::new(layout.stripes()[stripe].clone());
        lost.gather(source)?;
        for (cid, data) in lost.finish()? {
            sink.put(&cid, data)?;
            rebuilt += 1;
        }
    }
    Ok(rebuilt)
}
