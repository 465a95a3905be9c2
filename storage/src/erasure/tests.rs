//! Parity vectors, any loss of at most m a stripe, and what must be refused.

use std::io::Read;

use proptest::prelude::*;

use super::*;
use crate::hash::{DAG_CBOR, RAW, cid_v1};
use crate::import::{Profile, import_reader};
use crate::layout::{Layout, Redundancy};
use crate::read::{FileReader, walk};
use crate::testing::MemoryBlocks;
use crate::{BlockSource, Bytes};

/// A file imported with a profile, and its distinct blocks in depth-first order.
fn imported(profile: &Profile, len: usize) -> (Cid, Vec<(Cid, u64)>, MemoryBlocks) {
    let mut store = MemoryBlocks::default();
    let file = bytes_of(99, len);
    let root = import_reader(&file[..], profile, &mut store, &mut |_| ()).unwrap().root;
    let listed = walk(&store, &root).collect::<Result<Vec<_>, _>>().unwrap();
    (root, listed, store)
}

/// What of `all` the hosts of the given columns hold.
fn held(layout: &Layout, columns: &[usize], all: &MemoryBlocks) -> MemoryBlocks {
    let mut left = MemoryBlocks::default();
    for (cid, size) in columns.iter().flat_map(|column| layout.column(*column)) {
        let data = all.get(&cid).unwrap().unwrap();
        assert_eq!(data.len() as u64, size);
        left.0.insert(cid.hash().to_bytes(), data);
    }
    left
}

#[test]
fn files_of_both_profiles_come_back_from_any_k_columns() {
    const LEN: usize = 7_000_000;
    for profile in Profile::ALL {
        let (root, listed, store) = imported(&profile, LEN);
        let plan = plan(listed, 2, 3).unwrap();
        let mut all = store.clone();
        let layout = encode(&store, &root, &plan, &mut all, &mut |_| ()).unwrap();
        for pair in [[0, 1], [0, 3], [1, 4], [2, 3], [3, 4]] {
            let mut left = held(&layout, &pair, &all);
            let layout = Layout::load(&layout.cid(), &left).unwrap();
            let missing: Vec<Cid> =
                layout.data_blocks().map(|(cid, _)| cid).filter(|cid| !left.has(cid).unwrap()).collect();
            let mut rebuilt = MemoryBlocks::default();
            reconstruct(&layout, missing, &left, &mut rebuilt).unwrap();
            left.0.extend(rebuilt.0);
            let mut file = Vec::new();
            FileReader::open(&left, &layout.root()).unwrap().read_to_end(&mut file).unwrap();
            assert!(file == bytes_of(99, LEN), "{} from columns {pair:?}", profile.name());
        }
    }
}

/// Bytes that look random and follow from `seed` alone.
fn bytes_of(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    Bytes::from(std::iter::repeat_with(next).take(len).collect::<Vec<u8>>())
}

/// Raw blocks of the given sizes, in order.
fn blocks(sizes: &[usize]) -> (Vec<(Cid, u64)>, MemoryBlocks) {
    let mut store = MemoryBlocks::default();
    let listed = sizes.iter().enumerate().map(|(i, size)| {
        let data = bytes_of(i as u64 + 1, *size);
        let cid = cid_v1(RAW, &data);
        store.0.insert(cid.hash().to_bytes(), data);
        (cid, *size as u64)
    });
    (listed.collect(), store)
}

/// Content coded into the store it lies in.
fn coded(sizes: &[usize], k: u8, m: u8) -> (Layout, MemoryBlocks) {
    let (listed, store) = blocks(sizes);
    let plan = plan(listed, k, m).unwrap();
    let mut sink = store.clone();
    let mut seen = 0;
    let root = cid_v1(RAW, b"root");
    let layout = encode(&store, &root, &plan, &mut sink, &mut |bytes| seen += bytes).unwrap();
    assert_eq!(seen, plan.size());
    (layout, sink)
}

/// The widest code over blocks of the usual size; all data is lost, and as much parity as may be.
#[test]
fn the_widest_code_takes_blocks_of_a_mebibyte() {
    let (layout, mut all) = coded(&[1 << 20; MAX_K as usize], MAX_K, MAX_M);
    let stripe = &layout.stripes()[0];
    assert_eq!((stripe.data.len(), stripe.shard_len()), (usize::from(MAX_K), 1 << 20));
    let data: Vec<Cid> = stripe.data.iter().flat_map(|shard| &shard.blocks).map(|block| block.cid).collect();
    let kept: Vec<Vec<u8>> = data.iter().map(|cid| all.0[&cid.hash().to_bytes()].to_vec()).collect();
    let lost =
        layout.parity_blocks().map(|(cid, _)| cid).take(usize::from(MAX_M - MAX_K)).collect::<Vec<_>>();
    data.iter().chain(&lost).for_each(|cid| drop(all.0.remove(&cid.hash().to_bytes())));
    let mut rebuilt = MemoryBlocks::default();
    assert!(reconstruct(&layout, data.clone(), &all, &mut rebuilt).unwrap() >= u64::from(MAX_K));
    for (cid, bytes) in data.iter().zip(kept) {
        assert!(rebuilt.0[&cid.hash().to_bytes()] == bytes, "{cid} is another");
    }
}

#[test]
fn shards_are_runs_of_blocks_up_to_a_mebibyte() {
    const MIB: usize = 1 << 20;
    let (listed, _) = blocks(&[500_000, 500_000, 500_000, MIB, 10, 2 * MIB, 10, 10]);
    let plan = plan(listed, 2, 4).unwrap();
    let runs: Vec<Vec<u32>> =
        plan.stripes().flatten().map(|shard| shard.blocks.iter().map(|block| block.size).collect()).collect();
    let mib = MIB as u32;
    assert_eq!(
        runs,
        [vec![500_000, 500_000], vec![500_000], vec![mib], vec![10], vec![2 * mib], vec![10, 10]]
    );
    assert_eq!(plan.stripes().len(), 3);
    assert_eq!(plan.blocks(), 8);
    assert_eq!(plan.redundancy(), Redundancy::Coded { k: 2, m: 4 });
}

#[test]
fn a_shard_of_tiny_blocks_is_closed_by_their_number() {
    let (listed, _) = blocks(&[9; 2 * MAX_SHARD_BLOCKS + 1]);
    let plan = plan(listed, 4, 2).unwrap();
    let counts: Vec<usize> = plan.stripes().flatten().map(|shard| shard.blocks.len()).collect();
    assert_eq!(counts, [MAX_SHARD_BLOCKS, MAX_SHARD_BLOCKS, 1]);
    assert_eq!(plan.redundancy(), Redundancy::Copies(3), "three shards do not fill a stripe of four");
}

#[test]
fn repeated_identity_and_empty_blocks_take_no_space() {
    let (mut listed, _) = blocks(&[10, 20]);
    listed.extend(listed.clone());
    listed.push((cid_v1(RAW, b""), 0));
    listed.push((crate::hash::cid_from_digest(RAW, crate::hash::IDENTITY, b"abc"), 3));
    let plan = plan(listed.clone(), 1, 1).unwrap();
    assert_eq!((plan.blocks(), plan.size()), (2, 30));
    assert_eq!(plan.all_blocks().collect::<Vec<_>>(), listed[..2]);
    assert!(matches!(super::plan(listed[4..].to_vec(), 1, 1), Err(ErasureError::Empty)));
}

#[test]
fn impossible_parameters_are_refused() {
    let (listed, _) = blocks(&[10]);
    for (k, m) in [(0, 1), (1, 0), (MAX_K + 1, 1), (1, MAX_M + 1)] {
        assert!(matches!(plan(listed.clone(), k, m), Err(ErasureError::Redundancy { .. })));
    }
    let (large, _) = blocks(&[2 << 20]);
    assert!(matches!(plan(large, MAX_K, MAX_M), Err(ErasureError::TooWide { .. })));
    assert!(plan(listed, MAX_K, MAX_M).is_ok());
}

#[test]
fn parity_bytes_are_what_they_always_were() {
    // CIDs of the parity of blocks of fixed content: other bytes would make old layouts useless.
    let vectors = [
        (vec![1000, 64, 70_000], 2, 4, PARITY_2_4),
        (vec![100_000; 7], 4, 8, PARITY_4_8),
        (vec![300_000; 11], 10, 20, PARITY_10_20),
    ];
    let (made, expected): (Vec<String>, Vec<&str>) = vectors
        .into_iter()
        .map(|(sizes, k, m, expected)| {
            let (layout, _) = coded(&sizes, k, m);
            let parity = layout.parity_blocks().map(|(cid, _)| cid.to_bytes()).collect::<Vec<_>>().concat();
            (hex::encode(crate::hash::sha256(&parity)), expected)
        })
        .unzip();
    assert_eq!(made, expected);
}

const PARITY_2_4: &str = "91580379f406b7224c06a0e27f312dc50e68dc316da25b3a80e601207e78b1ab";
const PARITY_4_8: &str = "b7ef8b30198b333f2764b380533d1d90a6ffd66d1f388d7cd37031554c674ac1";
const PARITY_10_20: &str = "2d926a648f9705d02c3d7bead95f9197ff9ed8967861c9b7002bf80541fcc6ad";

#[test]
fn columns_give_the_parity_of_whole_shards() {
    let (layout, all) = coded(&[300_000, 800_000, 900_001, 1_000_000], 3, 5);
    let stripe = &layout.stripes()[0];
    let padded = stripe.data.iter().map(|shard| {
        let mut bytes: Vec<u8> =
            shard.blocks.iter().flat_map(|block| all.get(&block.cid).unwrap().unwrap()).collect();
        bytes.resize(stripe.shard_len(), 0);
        bytes
    });
    let whole = reed_solomon_simd::encode(stripe.data.len(), 5, padded).unwrap();
    let cids: Vec<Cid> = whole.iter().map(|bytes| cid_v1(RAW, bytes)).collect();
    assert_eq!(cids, stripe.parity);
}

#[test]
fn a_single_data_shard_has_itself_as_parity() {
    let (layout, _) = coded(&[640], 1, 3);
    let stripe = &layout.stripes()[0];
    assert!(stripe.parity.iter().all(|cid| *cid == stripe.data[0].blocks[0].cid));
    assert_eq!(layout.stripe_of(&stripe.parity[0]), Some(0));
    // Not a multiple of 64: the parity is the padded shard.
    let (layout, mut all) = coded(&[600], 1, 3);
    let lost = layout.stripes()[0].data[0].blocks[0].cid;
    let block = all.remove(&lost).unwrap();
    let mut sink = MemoryBlocks::default();
    assert_eq!(reconstruct(&layout, [lost], &all, &mut sink).unwrap(), 1);
    assert_eq!(sink.get(&lost).unwrap(), Some(block));
}

#[test]
fn lost_interior_nodes_come_back_too() {
    // A root with links, as CBOR, before its leaves.
    let (mut listed, mut store) = blocks(&[90_000; 30]);
    let cids: Vec<Cid> = listed.iter().map(|(cid, _)| *cid).collect();
    let root = Bytes::from(serde_ipld_dagcbor::to_vec(&cids).unwrap());
    let root_cid = cid_v1(DAG_CBOR, &root);
    store.0.insert(root_cid.hash().to_bytes(), root.clone());
    listed.insert(0, (root_cid, root.len() as u64));
    let plan = plan(listed.clone(), 2, 4).unwrap();
    let mut all = store.clone();
    let layout = encode(&store, &root_cid, &plan, &mut all, &mut |_| ()).unwrap();
    assert_eq!(layout.stripes()[0].interior, [0]);
    // The hosts of two parity columns alone are left.
    let mut left = MemoryBlocks::default();
    for (cid, _) in layout.column(2).into_iter().chain(layout.column(5)) {
        left.0.insert(cid.hash().to_bytes(), all.get(&cid).unwrap().unwrap());
    }
    left.remove(&root_cid);
    let layout = Layout::load(&layout.cid(), &left).unwrap();
    let mut sink = MemoryBlocks::default();
    let missing: Vec<Cid> = layout.data_blocks().map(|(cid, _)| cid).collect();
    assert_eq!(reconstruct(&layout, missing, &left, &mut sink).unwrap(), 31);
    for (cid, _) in listed {
        assert_eq!(sink.get(&cid).unwrap(), store.get(&cid).unwrap());
    }
}

#[test]
fn too_much_lost_is_said_with_what_is_short() {
    let (layout, mut all) = coded(&[400_000; 8], 3, 2);
    let stripe = layout.stripes()[0].clone();
    let lost = stripe.data[0].blocks[0].cid;
    for shard in &stripe.data {
        all.remove(&shard.blocks[0].cid);
    }
    let mut gather = StripeRebuild::new(stripe.clone());
    for cid in gather.wanted() {
        if let Some(data) = all.get(&cid).unwrap() {
            assert!(gather.offer(&cid, data.clone()));
            assert!(!gather.offer(&cid, data), "known already");
        }
    }
    assert!(!gather.ready());
    assert_eq!(gather.short(), 1);
    assert!(matches!(gather.finish(), Err(ErasureError::TooFew { cid, short: 1 }) if cid == lost));
    let foreign = cid_v1(RAW, b"foreign");
    assert!(!gather.offer(&foreign, Bytes::from_static(b"foreign")));
    assert!(matches!(
        reconstruct(&layout, [foreign], &all, &mut MemoryBlocks::default()),
        Err(ErasureError::Foreign(cid)) if cid == foreign
    ));
}

#[test]
fn a_partly_lost_shard_serves_where_it_is_whole() {
    // Two shards of ten blocks; one parity left. Different blocks of both shards are lost: no shard is whole, but
    // at each place only one of them is lost.
    let (layout, mut all) = coded(&[100_000; 20], 2, 1);
    let stripe = layout.stripes()[0].clone();
    assert_eq!(stripe.data[0].blocks.len(), 10);
    let lost = [stripe.data[0].blocks[0].cid, stripe.data[1].blocks[5].cid];
    let kept: Vec<Option<Bytes>> = lost.iter().map(|cid| all.remove(cid)).collect();
    let mut sink = MemoryBlocks::default();
    assert_eq!(reconstruct(&layout, lost, &all, &mut sink).unwrap(), 2);
    for (cid, block) in lost.iter().zip(kept) {
        assert_eq!(sink.get(cid).unwrap(), block);
    }
}

#[test]
fn false_parity_is_noticed() {
    let (layout, mut all) = coded(&[5000, 70_000, 640], 1, 2);
    let stripe = layout.stripes()[0].clone();
    let lost = stripe.data[0].blocks[0].cid;
    all.remove(&lost);
    let mut gather = StripeRebuild::new(stripe.clone());
    gather.offer(&stripe.parity[0], Bytes::from(vec![1; stripe.shard_len()]));
    assert!(matches!(gather.finish(), Err(ErasureError::False { cid }) if cid == lost));
}

#[test]
fn lost_parity_is_made_again() {
    let (layout, all) = coded(&[250_000; 9], 2, 4);
    for stripe in layout.stripes() {
        let made = regenerate(stripe, &all).unwrap();
        assert_eq!(made.iter().map(|(cid, _)| *cid).collect::<Vec<_>>(), stripe.parity);
        for (cid, data) in made {
            assert_eq!(cid_v1(RAW, &data), cid);
        }
    }
    let mut stripe = layout.stripes()[0].clone();
    stripe.parity.swap(0, 1);
    assert!(matches!(regenerate(&stripe, &all), Err(ErasureError::False { .. })));
    let mut without = all.clone();
    let gone = stripe.data[0].blocks[0].cid;
    without.remove(&gone);
    assert!(matches!(regenerate(&stripe, &without), Err(ErasureError::Missing(cid)) if cid == gone));
}

/// Parity that waits for that of later stripes gets the names that it would have had at once, whatever the lengths.
#[test]
fn parity_hashed_across_stripes_is_that_of_each_stripe() {
    let sizes: Vec<usize> = (0..24).map(|i| (1 << 20) - 64 * (i * i % 350)).collect();
    for (k, m) in [(2, 1), (4, 3), (10, 20), (3, 17)] {
        let (layout, all) = coded(&sizes, k, m);
        assert_eq!(layout.stripes().len(), sizes.len().div_ceil(usize::from(k)));
        for stripe in layout.stripes() {
            assert_eq!(stripe.parity.len(), usize::from(m));
            let made = regenerate(stripe, &all).unwrap();
            assert!(made.iter().all(|(cid, data)| all.0[&cid.hash().to_bytes()] == data), "{k}+{m}");
        }
    }
}

#[test]
fn a_block_of_another_size_than_planned_is_an_error() {
    let (listed, mut store) = blocks(&[1000, 1000]);
    let plan = plan(listed.clone(), 2, 2).unwrap();
    store.0.insert(listed[1].0.hash().to_bytes(), Bytes::from_static(b"short"));
    let coded = encode(&store, &listed[0].0, &plan, &mut MemoryBlocks::default(), &mut |_| ());
    assert!(matches!(coded, Err(ErasureError::Size { found: 5, listed: 1000, .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_loss_of_at_most_m_shards_a_stripe_is_rebuilt(
        sizes in prop::collection::vec(prop_oneof![1usize..3000, 100_000usize..700_000], 1..14),
        k in 1u8..6,
        m in 1u8..7,
        seed in any::<u64>(),
    ) {
        let (layout, all) = coded(&sizes, k, m);
        let layout = {
            let again = Layout::load(&layout.cid(), &all).unwrap();
            prop_assert_eq!(&again, &layout);
            again
        };
        let mut left = all.clone();
        let mut lost = Vec::new();
        for (at, stripe) in layout.stripes().iter().enumerate() {
            // A pseudo-random choice of m of the stripe's shards is lost.
            let width = stripe.data.len() + stripe.parity.len();
            let mut order: Vec<usize> = (0..width).collect();
            order.sort_by_key(|i| bytes_of(seed ^ (at * 1000 + i) as u64, 8));
            for i in &order[..usize::from(m)] {
                match i.checked_sub(stripe.data.len()) {
                    // One data shard has m copies of itself as parity: losing some of them leaves the others.
                    Some(_) if stripe.data.len() == 1 => {}
                    Some(j) => { left.remove(&stripe.parity[j]); }
                    None => lost.extend(stripe.data[*i].blocks.iter().map(|block| block.cid)),
                }
            }
        }
        for cid in &lost {
            left.remove(cid);
        }
        // A single data shard of a multiple of 64 bytes is its own parity; here both are one entry of the store.
        let alike = lost.iter().any(|cid| layout.parity_blocks().any(|(parity, _)| parity.hash() == cid.hash()));
        prop_assume!(!alike);
        let mut sink = MemoryBlocks::default();
        reconstruct(&layout, lost.clone(), &left, &mut sink).unwrap();
        for cid in lost {
            prop_assert_eq!(sink.get(&cid).unwrap(), all.get(&cid).unwrap());
        }
    }
}
