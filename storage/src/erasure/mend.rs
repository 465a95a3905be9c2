//! Coded content in one store: what of it is lost there, how much more may be, and bringing back what can be.

use std::collections::HashSet;

use cid::Cid;
use multihash::Multihash;

use super::rebuild::segments;
use super::{ErasureError, StripeRebuild, StripeSpec, regenerate};
use crate::layout::Layout;
use crate::{BlockSink, BlockSource, StoreError};

/// What is lost of a stripe or of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Data blocks that are not here.
    pub lost_data: u64,
    /// Parity blocks that are not here.
    pub lost_parity: u64,
    /// Shards that may be lost besides, whichever they are, where it is worst; negative: so many more have to be found
    /// before what is lost can be rebuilt.
    pub spare: i64,
}

impl StripeSpec {
    /// What of the stripe is not in `source`. No block is read.
    ///
    /// Parity blocks that are equal count as often as they are named when something is rebuilt, but get lost at once:
    /// only different ones are to spare.
    pub fn condition(&self, source: &dyn BlockSource) -> Result<Condition, StoreError> {
        let data: HashSet<Multihash<64>> = self.blocks().map(|block| *block.cid.hash()).collect();
        let parity: HashSet<Multihash<64>> = self.parity.iter().map(|cid| *cid.hash()).collect();
        let mut lost = HashSet::new();
        for cid in self.blocks().map(|block| &block.cid).chain(&self.parity) {
            if !source.has(cid)? {
                lost.insert(*cid.hash());
            }
        }
        let is_here = |cid: &Cid| !lost.contains(cid.hash());
        let worst = segments(self, &is_here).iter().map(|segment| segment.lost.len()).max().unwrap_or(0);
        let usable = self.parity.iter().filter(|cid| is_here(cid)).count();
        let different = parity.difference(&data).filter(|hash| !lost.contains(*hash)).count();
        Ok(Condition {
            lost_data: data.intersection(&lost).count() as u64,
            lost_parity: parity.intersection(&lost).count() as u64,
            spare: match worst > usable {
                true => usable as i64 - worst as i64,
                false => different.saturating_sub(worst) as i64,
            },
        })
    }
}

/// What of coded content is not in `source`: blocks of all stripes, and what the worst of them has to spare.
pub fn condition(layout: &Layout, source: &dyn BlockSource) -> Result<Condition, StoreError> {
    let mut whole = Condition { lost_data: 0, lost_parity: 0, spare: i64::from(layout.m()) };
    for stripe in layout.stripes() {
        let found = stripe.condition(source)?;
        whole.lost_data += found.lost_data;
        whole.lost_parity += found.lost_parity;
        whole.spare = whole.spare.min(found.spare);
    }
    Ok(whole)
}

/// What mending brought back, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mended {
    /// Data blocks that were rebuilt.
    pub data: u64,
    /// Their bytes.
    pub data_bytes: u64,
    /// Parity blocks that were made again.
    pub parity: u64,
    /// Data blocks that stay lost, because too much of their stripes is.
    pub lost: Vec<Cid>,
    /// How many more shards would do where it is worst.
    pub short: usize,
}

impl Mended {
    fn give_up(&mut self, lost: impl IntoIterator<Item = Cid>, short: usize) {
        self.lost.extend(lost);
        self.short = self.short.max(short);
    }
}

/// Rebuilds the data that `source` lacks and makes its lost parity again, stripe by stripe, into `sink`; stripes that
/// lost too much are left as they are. Stripes that lack nothing are not read. `progress` is told the bytes of data
/// looked at since the last call.
///
/// # Errors
/// [`ErasureError::False`] for a layout or parity that does not lead to its content: the first, after all stripes were
/// gone through; what was put stays put.
pub fn mend(
    layout: &Layout,
    source: &dyn BlockSource,
    sink: &mut dyn BlockSink,
    progress: &mut dyn FnMut(u64),
) -> Result<Mended, ErasureError> {
    let (mut mended, mut failed) = (Mended::default(), None);
    for stripe in layout.stripes() {
        let found = stripe.condition(source)?;
        if found.lost_data + found.lost_parity > 0
            && let Err(error) = mend_stripe(stripe, source, sink, &mut mended)
        {
            failed = failed.or(Some(error));
        }
        progress(stripe.size());
    }
    failed.map_or(Ok(mended), Err)
}

/// [`mend`] for one stripe, which is read to find what else is lost; what is done is added to `mended`.
pub fn mend_stripe(
    spec: &StripeSpec,
    source: &dyn BlockSource,
    sink: &mut dyn BlockSink,
    mended: &mut Mended,
) -> Result<(), ErasureError> {
    let found = spec.condition(source)?;
    if found.spare < 0 {
        mended.give_up(
            absent(spec.blocks().map(|block| &block.cid), source)?,
            found.spare.unsigned_abs() as usize,
        );
        return Ok(());
    }
    let mut stripe = StripeRebuild::new(spec.clone());
    stripe.gather(source)?;
    let rebuilt = match stripe.finish() {
        // What was read turned out damaged.
        Err(ErasureError::TooFew { short, .. }) => {
            mended.give_up(stripe.lost(), short);
            return Ok(());
        }
        rebuilt => rebuilt?,
    };
    for (cid, block) in rebuilt {
        mended.data += 1;
        mended.data_bytes += block.len() as u64;
        stripe.offer(&cid, block.clone());
        sink.put(&cid, block)?;
    }
    let mut lost: HashSet<_> = absent(&spec.parity, source)?.iter().map(|cid| *cid.hash()).collect();
    if !lost.is_empty() {
        for (cid, block) in regenerate(spec, &stripe)? {
            if lost.remove(cid.hash()) {
                mended.parity += 1;
                sink.put(&cid, block)?;
            }
        }
    }
    Ok(())
}

/// Those that are not in `source`.
fn absent<'a>(
    cids: impl IntoIterator<Item = &'a Cid>,
    source: &dyn BlockSource,
) -> Result<Vec<Cid>, StoreError> {
    let mut absent = Vec::new();
    for cid in cids {
        if !source.has(cid)? {
            absent.push(*cid);
        }
    }
    Ok(absent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erasure::{encode, plan_local};
    use crate::hash::{RAW, cid_v1};
    use crate::testing::MemoryBlocks;
    use crate::{Bytes, layout::LayoutError};

    /// Blocks of the given sizes, each with multiples of a byte, coded into the store they lie in.
    fn coded(blocks: &[(u8, usize)], k: u8, m: u8) -> Result<(Layout, MemoryBlocks), ErasureError> {
        let mut store = MemoryBlocks::default();
        let mut listed = Vec::new();
        for (fill, size) in blocks {
            let data: Bytes = (0..*size).map(|at| fill.wrapping_mul((at * at % 251) as u8)).collect();
            let cid = cid_v1(RAW, &data);
            listed.push((cid, *size as u64));
            store.put(&cid, data)?;
        }
        let plan = plan_local(listed.clone(), k, m)?;
        let mut all = store.clone();
        let layout = encode(&store, &listed[0].0, &plan, &mut all, &mut |_| ())?;
        let size: u64 = layout.parity_blocks().map(|(_, size)| size).sum();
        assert_eq!(plan.parity_size(), size);
        Ok((layout, all))
    }

    fn numbered(count: u8, size: usize) -> Vec<(u8, usize)> {
        (1..=count).map(|fill| (fill, size)).collect()
    }

    /// Mends in place; what that did.
    fn mend_all(layout: &Layout, all: &mut MemoryBlocks) -> Mended {
        let (source, mut seen) = (all.clone(), 0);
        let mended = mend(layout, &source, all, &mut |bytes| seen += bytes).unwrap();
        assert_eq!(seen, layout.size());
        mended
    }

    #[test]
    fn losses_are_counted_until_too_much_is_lost_and_come_back_before() {
        let (layout, whole) = coded(&numbered(8, 600_000), 4, 2).unwrap();
        let stripe = &layout.stripes()[1];
        let lost = [stripe.data[1].blocks[0].cid, stripe.parity[0], stripe.data[3].blocks[0].cid];
        let mut left = whole.clone();
        for (taken, cid) in lost.iter().enumerate() {
            let found = condition(&layout, &left).unwrap();
            assert_eq!((found.lost_data + found.lost_parity, found.spare), (taken as u64, 2 - taken as i64));
            left.remove(cid).unwrap();
        }
        let found = condition(&layout, &left).unwrap();
        assert_eq!(found, Condition { lost_data: 2, lost_parity: 1, spare: -1 });
        // Another stripe is brought back all the same.
        left.remove(&layout.stripes()[0].data[0].blocks[0].cid).unwrap();
        let mended = mend_all(&layout, &mut left);
        assert_eq!((mended.data, mended.data_bytes, mended.parity, mended.short), (1, 600_000, 0, 1));
        assert_eq!(mended.lost, [lost[0], lost[2]]);
        // With one of them it is enough for all.
        left.put(&lost[0], whole.get(&lost[0]).unwrap().unwrap()).unwrap();
        let mended = mend_all(&layout, &mut left);
        assert_eq!((mended.data, mended.parity, mended.lost.len()), (1, 1, 0));
        assert_eq!(left.0, whole.0);
        assert_eq!(mend_all(&layout, &mut left), Mended::default());
    }

    #[test]
    fn small_content_is_cut_until_it_fills_a_stripe() {
        let (layout, whole) = coded(&numbered(40, 1_000), 10, 3).unwrap();
        assert_eq!((layout.stripes().len(), layout.k()), (1, 10));
        assert!(layout.parity_size() < layout.size() / 2, "three of ten");
        // As many whole shards as there is parity.
        let mut left = whole.clone();
        for shard in &layout.stripes()[0].data[2..5] {
            shard.blocks.iter().for_each(|block| drop(left.remove(&block.cid)));
        }
        assert_eq!(condition(&layout, &left).unwrap().spare, 0);
        assert_eq!(mend_all(&layout, &mut left).data, 12);
        assert_eq!(left.0, whole.0);
        let (layout, _) = coded(&numbered(3, 1_000), 10, 3).unwrap();
        assert_eq!((layout.stripes().len(), layout.k(), layout.m()), (1, 3, 3));
    }

    #[test]
    fn every_stripe_can_lose_as_many_as_it_has_parity() {
        for blocks in 2..20 {
            let (layout, whole) = coded(&numbered(blocks, 1 << 20), 4, 2).unwrap();
            assert_eq!(condition(&layout, &whole).unwrap().spare, 2, "of {blocks} blocks");
        }
    }

    #[test]
    fn equal_parity_is_to_spare_once() {
        // Zeros of different lengths: all parity is the longest of them.
        let (layout, mut all) = coded(&[(0, 640), (0, 64)], 2, 2).unwrap();
        assert_eq!(condition(&layout, &all).unwrap().spare, 0);
        all.remove(&layout.stripes()[0].data[1].blocks[0].cid).unwrap();
        assert_eq!(mend_all(&layout, &mut all).data, 1);
        let (layout, mut all) = coded(&[(0, 600), (0, 64)], 2, 2).unwrap();
        assert_eq!(condition(&layout, &all).unwrap().spare, 1);
        layout.data_blocks().for_each(|(cid, _)| drop(all.remove(&cid)));
        assert_eq!(condition(&layout, &all).unwrap().spare, 0, "it is named twice");
        assert_eq!(mend_all(&layout, &mut all).data, 2);
    }

    #[test]
    fn what_would_be_copies_is_refused() {
        let single = coded(&[(1, 640), (1, 640)], 4, 2);
        assert!(matches!(single, Err(ErasureError::Single(_))));
        assert!(matches!(coded(&numbered(4, 640), 1, 2), Err(ErasureError::Copies { m: 2 })));
        assert!(matches!(coded(&[(1, 0)], 4, 2), Err(ErasureError::Empty)));
    }

    #[test]
    fn what_no_layout_describes_is_refused_before_it_is_coded() {
        let cids = (0u32..450_000).map(|i| cid_v1(RAW, &i.to_be_bytes()));
        let planned = plan_local(cids.map(|cid| (cid, 4)), 32, 4);
        let Err(ErasureError::Layout(error)) = planned else { panic!("it is planned") };
        assert!(matches!(*error, LayoutError::TooLarge { .. }));
    }
}
