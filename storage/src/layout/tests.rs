//! The layout's encoding and caps, and who holds what.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::Bytes;
use crate::blocklist::{BlockList, BlockRef};
use crate::erasure::{Shard, encode, plan};
use crate::hash::{DAG_CBOR, RAW, cid_v1};
use crate::testing::MemoryBlocks;

/// `leaves` distinct leaves below one root node, coded.
fn stored(leaves: usize, size: usize, k: u8, m: u8) -> (Layout, MemoryBlocks) {
    let mut store = MemoryBlocks::default();
    let mut listed = Vec::new();
    for i in 0..leaves {
        let mut data = vec![i as u8; size];
        data[..4].copy_from_slice(&(i as u32).to_be_bytes());
        let cid = cid_v1(RAW, &data);
        store.0.insert(cid.hash().to_bytes(), Bytes::from(data));
        listed.push((cid, size as u64));
    }
    let cids: Vec<Cid> = listed.iter().map(|(cid, _)| *cid).collect();
    let root = Bytes::from(serde_ipld_dagcbor::to_vec(&cids).unwrap());
    let root_cid = cid_v1(DAG_CBOR, &root);
    listed.insert(0, (root_cid, root.len() as u64));
    store.0.insert(root_cid.hash().to_bytes(), root);
    let plan = plan(listed, k, m).unwrap();
    let mut all = store.clone();
    let layout = encode(&store, &root_cid, &plan, &mut all, &mut |_| ()).unwrap();
    (layout, all)
}

/// Stripes that describe blocks nobody has: for layouts too large to fill with data.
fn made_up(stripes: usize, k: usize, m: usize, blocks_a_shard: usize) -> Vec<StripeSpec> {
    let cid = |number: usize| cid_v1(RAW, &number.to_be_bytes());
    (0..stripes)
        .map(|stripe| {
            let shard = |i: usize| Shard {
                blocks: (0..blocks_a_shard)
                    .map(|b| BlockRef { cid: cid((stripe * k + i) * blocks_a_shard + b), size: 1000 })
                    .collect(),
            };
            let parity = (0..m).map(|j| cid(usize::MAX / 2 + stripe * m + j)).collect();
            StripeSpec { data: (0..k).map(shard).collect(), parity, interior: vec![] }
        })
        .collect()
}

fn kept(blocks: &[(Cid, Bytes)]) -> MemoryBlocks {
    MemoryBlocks(blocks.iter().map(|(cid, data)| (cid.hash().to_bytes(), data.clone())).collect())
}

#[test]
fn a_layout_comes_back_from_its_blocks() {
    let (layout, all) = stored(33, 100_000, 2, 4);
    let again = Layout::load(&layout.cid(), &all).unwrap();
    assert_eq!(again, layout);
    assert_eq!((layout.k(), layout.m(), layout.blocks()), (2, 4, 34));
    assert_eq!(layout.size(), layout.data_blocks().map(|(_, size)| size).sum::<u64>());
    assert_eq!(layout.parity_size(), layout.parity_blocks().map(|(_, size)| size).sum::<u64>());
    for (at, stripe) in layout.stripes().iter().enumerate() {
        for cid in stripe.blocks().map(|block| block.cid).chain(stripe.parity.iter().copied()) {
            assert_eq!(layout.stripe_of(&cid), Some(at));
        }
    }
    assert_eq!(layout.stripe_of(&cid_v1(RAW, b"foreign")), None);
}

#[test]
fn a_layout_links_its_own_blocks_alone() {
    let (layout, all) = stored(33, 100_000, 2, 4);
    let (root, pages) = layout.own_blocks().split_first().unwrap();
    let bytes = all.get(&root.0).unwrap().unwrap();
    let links = crate::dagpb::links(&root.0, &bytes).unwrap();
    assert_eq!(links, pages.iter().map(|(cid, _)| *cid).collect::<Vec<_>>());
    for (page, _) in pages {
        assert!(crate::dagpb::links(page, &all.get(page).unwrap().unwrap()).unwrap().is_empty());
    }
}

#[test]
fn large_layouts_have_pages_below_a_mebibyte_and_name_the_missing_one() {
    let stripes = made_up(900, 10, 20, 3);
    let (layout, blocks) = Layout::build(cid_v1(RAW, b"root"), 10, 20, stripes).unwrap();
    assert!(blocks.len() > 3);
    assert!(blocks.iter().all(|(_, data)| data.len() <= MAX_LAYOUT_BLOCK));
    let mut source = kept(&blocks);
    assert_eq!(Layout::load(&layout.cid(), &source).unwrap(), layout);
    let gone = blocks[2].0;
    source.remove(&gone);
    assert!(matches!(Layout::load(&layout.cid(), &source), Err(LayoutError::Missing(cid)) if cid == gone));
}

#[test]
fn the_widest_stripe_of_the_longest_addresses_fits_a_page() {
    let mut stripes = made_up(2, 64, 192, 128);
    for block in stripes.iter_mut().flat_map(|stripe| &mut stripe.data).flat_map(|shard| &mut shard.blocks) {
        let digest = [block.cid.hash().digest(), block.cid.hash().digest()].concat();
        block.cid = crate::hash::cid_from_digest(0x0129, crate::hash::SHA2_512, &digest);
    }
    let (_, blocks) = Layout::build(cid_v1(RAW, b"root"), 64, 192, stripes).unwrap();
    assert_eq!(blocks.len(), 3);
}

#[test]
fn a_layout_over_its_cap_is_refused_when_made() {
    let stripes = made_up(320, 64, 1, 128);
    assert!(matches!(Layout::build(cid_v1(RAW, b"root"), 64, 1, stripes), Err(LayoutError::TooLarge { .. })));
}

#[test]
fn wrong_layouts_are_refused() {
    let root = cid_v1(RAW, b"root");
    let load = |k, m, stripes: Vec<StripeSpec>| {
        let blocks = wire::encode(&root, k, m, &stripes).unwrap();
        Layout::load(&blocks[0].0, &kept(&blocks))
    };
    let good = made_up(3, 2, 2, 2);
    load(2, 2, good.clone()).unwrap();
    let refused = |stripes: Vec<StripeSpec>| {
        matches!(load(2, 2, stripes), Err(LayoutError::Malformed { .. } | LayoutError::Entry(_)))
    };
    assert!(refused(vec![]), "no stripes");
    let changed = |change: &dyn Fn(&mut Vec<StripeSpec>)| {
        let mut stripes = good.clone();
        change(&mut stripes);
        refused(stripes)
    };
    assert!(changed(&|stripes| drop(stripes[0].data.pop())), "a short stripe before the last");
    assert!(!changed(&|stripes| drop(stripes[2].data.pop())), "a short last stripe is fine");
    assert!(changed(&|stripes| stripes[2].data.clear()), "no data");
    assert!(changed(&|stripes| stripes[1].data.push(made_up(9, 2, 2, 1)[8].data[0].clone())), "k + 1 shards");
    assert!(changed(&|stripes| stripes[1].data[0].blocks.clear()), "an empty shard");
    assert!(changed(&|stripes| stripes[1].parity.truncate(1)), "parity missing");
    assert!(changed(&|stripes| stripes[1].interior = vec![1, 1]), "a position twice");
    assert!(changed(&|stripes| stripes[1].interior = vec![4]), "a position beyond the stripe");
    assert!(changed(&|stripes| stripes[1].data[0].blocks[0] = stripes[0].data[0].blocks[0]), "a block twice");
    assert!(changed(&|stripes| stripes[1].data[0].blocks[0].size = 0), "an empty block");
    assert!(
        changed(&|stripes| {
            let block = BlockRef { cid: cid_v1(RAW, b"large"), size: 2 << 20 };
            stripes[1].data[0].blocks.push(block);
        }),
        "a shard over a block's size"
    );
    assert!(load(0, 2, good.clone()).is_err() && load(65, 2, good.clone()).is_err(), "parameters");
}

#[test]
fn other_versions_are_refused_by_name() {
    let root = (2u64, serde_bytes::ByteBuf::new(), "other", 2u8, 4u8, 64u32, 1u64, 1u64, Vec::<Cid>::new());
    let bytes = serde_ipld_dagcbor::to_vec(&root).unwrap();
    let cid = cid_v1(DAG_CBOR, &bytes);
    let error = LayoutRoot::decode(&cid, &bytes).unwrap_err();
    assert!(error.to_string().contains("version 2 and codec \"other\""), "{error}");
    let long = vec![0; MAX_LAYOUT_BLOCK + 1];
    assert!(matches!(LayoutRoot::decode(&cid, &long), Err(LayoutError::Malformed { .. })));
}

/// How many hosts hold each block.
fn holders(layout: &Layout) -> HashMap<Cid, usize> {
    let mut holders = HashMap::new();
    for column in 0..layout.columns() {
        for (cid, _) in layout.column(column) {
            *holders.entry(cid).or_default() += 1;
        }
    }
    holders
}

#[test]
fn small_interior_nodes_and_the_layout_go_to_every_host() {
    let (layout, _) = stored(75, 100_000, 2, 4);
    assert!(layout.shared_everywhere());
    let holders = holders(&layout);
    assert_eq!(holders[&layout.root()], 6);
    for (cid, _) in layout.own_blocks() {
        assert_eq!(holders[cid], 6);
    }
    for (cid, _) in
        layout.data_blocks().filter(|(cid, _)| *cid != layout.root()).chain(layout.parity_blocks())
    {
        assert_eq!(holders[&cid], 1, "{cid}");
    }
    // Lists can be made of every column, also of one that the last stripe has nothing for.
    for column in 0..6 {
        BlockList::from_blocks(layout.column(column)).unwrap();
    }
    let anchor: HashSet<Cid> = layout.anchor().into_iter().map(|(cid, _)| cid).collect();
    assert_eq!(anchor.len() as u64, layout.blocks() + layout.own_blocks().len() as u64);
}

#[test]
fn large_interior_nodes_and_layouts_are_kept_by_three() {
    let mut stripes = made_up(400, 2, 3, 128);
    for stripe in &mut stripes {
        stripe.interior = vec![0, 200];
    }
    let (layout, _) = Layout::build(cid_v1(RAW, b"root"), 2, 3, stripes).unwrap();
    assert!(!layout.shared_everywhere());
    let holders = holders(&layout);
    assert_eq!(holders[&layout.cid()], 5, "the layout's root goes to all");
    for (page, _) in &layout.own_blocks()[1..] {
        assert_eq!(holders[page], 3);
    }
    for stripe in layout.stripes() {
        for (position, block) in stripe.blocks().enumerate() {
            let expected = if stripe.interior.contains(&(position as u32)) { 3 } else { 1 };
            assert_eq!(holders[&block.cid], expected);
        }
    }
}

#[test]
fn health_counts_the_losses_that_can_still_be_taken() {
    // 1 + 64 blocks of 1 MiB in shards of one: 33 stripes, the last with one data shard (k' = 1).
    let (layout, _) = stored(64, 1 << 20, 2, 4);
    assert_eq!(layout.stripes().last().unwrap().data.len(), 1);
    assert_eq!(layout.health(&[true; 6], false), 4);
    assert_eq!(layout.health(&[false, true, true, true, true, true], false), 3);
    assert_eq!(layout.health(&[false, false, true, true, false, false], false), 0);
    assert_eq!(layout.health(&[false, false, false, true, false, false], false), -1);
    assert_eq!(layout.health(&[false; 6], true), 0);
    assert_eq!(layout.health(&[], false), -2);
}

#[test]
fn content_that_fills_no_stripe_is_copied() {
    assert_eq!(Redundancy::choose(1, 2, 4), Redundancy::Copies(4));
    assert_eq!(Redundancy::choose(2, 2, 4), Redundancy::Coded { k: 2, m: 4 });
    assert_eq!(Redundancy::choose(9, 10, 1), Redundancy::Copies(2));
    assert_eq!(Redundancy::Coded { k: 10, m: 20 }.hosts(), 30);
    assert_eq!(Redundancy::Coded { k: 10, m: 20 }.needed(), 10);
    assert_eq!(Redundancy::Coded { k: 10, m: 20 }.to_string(), "10+20");
    assert_eq!(Redundancy::Copies(3).to_string(), "3 copies");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_layout_survives_its_encoding(
        stripes in 1usize..40, k in 1usize..8, m in 1usize..9, blocks in 1usize..20, short in 0usize..8,
    ) {
        let mut described = made_up(stripes, k, m, blocks);
        described.last_mut().unwrap().data.truncate(k.saturating_sub(short).max(1));
        described[0].interior = vec![0];
        let (layout, encoded) = Layout::build(cid_v1(RAW, b"r"), k as u8, m as u8, described.clone()).unwrap();
        let again = Layout::load(&layout.cid(), &kept(&encoded)).unwrap();
        prop_assert_eq!(again.stripes(), &described[..]);
        prop_assert_eq!(again, layout);
    }

    #[test]
    fn a_changed_byte_gives_another_layout_or_none(at in any::<prop::sample::Index>(), change in 1u8..) {
        let (layout, encoded) = Layout::build(cid_v1(RAW, b"r"), 3, 2, made_up(4, 3, 2, 2)).unwrap();
        for which in 0..encoded.len() {
            let mut source = kept(&encoded);
            let mut bytes = encoded[which].1.to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            source.0.insert(encoded[which].0.hash().to_bytes(), Bytes::from(bytes));
            prop_assert!(Layout::load(&layout.cid(), &source).map_or(true, |other| other != layout));
        }
    }
}
