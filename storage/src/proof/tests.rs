//! The protocol's vectors, and that nothing but the right answer passes.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::blocklist::BlockList;
use crate::hash::{RAW, cid_v1};
use crate::testing::MemoryBlocks;
use crate::{BlockSink, Bytes};

fn bytes32(hex: &str) -> [u8; 32] {
    hex::decode(hex).unwrap().try_into().unwrap()
}

/// Blocks of the given sizes with distinct content, as list and source.
fn blocks(sizes: &[usize]) -> (Arc<BlockList>, MemoryBlocks) {
    let mut store = MemoryBlocks::default();
    let mut listed = Vec::new();
    for (i, size) in sizes.iter().enumerate() {
        let data: Vec<u8> = (0..*size).map(|at| (at / 1000 + at * 7 + i * 131) as u8).collect();
        let data = [&(i as u32).to_be_bytes()[..], &data].concat();
        let cid = cid_v1(RAW, &data);
        listed.push((cid, data.len() as u64));
        store.put(&cid, Bytes::from(data)).unwrap();
    }
    (Arc::new(BlockList::from_blocks(listed).unwrap()), store)
}

fn prover(sizes: &[usize]) -> (Prover, MemoryBlocks) {
    let (list, store) = blocks(sizes);
    let tree = ProofTree::build(&list, &store).unwrap();
    (Prover::new(list, tree).unwrap(), store)
}

fn challenge() -> Challenge {
    Challenge { purpose: Purpose::Audit, seed: [0x33; 32], channel: [0x11; 32], id: [0x22; 32], epoch: 7 }
}

/// The protocol's tree: leaf i is byte i 1024 times, the last has 5 bytes.
fn vector_tree(leaves: u8) -> (ProofTree, Vec<Vec<u8>>) {
    let data: Vec<Vec<u8>> = (0..leaves).map(|i| vec![i; if i + 1 == leaves { 5 } else { LEAF }]).collect();
    let mut builder = TreeBuilder::new(u64::from(leaves)).unwrap();
    builder.push_block(&data.concat()).unwrap();
    (builder.finish().unwrap(), data)
}

#[test]
fn roots_are_those_of_the_protocol() {
    let one = bytes32("d7c67355e053943cdd03786cf33925775a4e0af2a6b4fbb609e4270960713b10");
    let five = bytes32("8aa6f7c559b8560ac0bd446f126877f4bdf2587f9539961fc28dfa9f2a7295c9");
    assert_eq!(vector_tree(1).0.root(), one);
    assert_eq!(vector_tree(5).0.root(), five);
    assert_eq!(vector_tree(1).0.depth(), 0);
    assert_eq!(vector_tree(5).0.depth(), 3);
    assert_eq!(verify(&one, 1, 0, &[0; 5], &[]), Ok(leaf_hash(&[0; 5])));
}

#[test]
fn indices_are_those_of_the_protocol() {
    let (_, data) = vector_tree(5);
    let mut indices = challenge().indices(5).unwrap();
    let mut drawn = Vec::new();
    for _ in 0..5 {
        drawn.push(indices.index());
        indices.advance(&leaf_hash(&data[indices.index() as usize]));
    }
    assert_eq!(drawn, [0, 0, 3, 2, 0]);
}

#[test]
fn every_leaf_of_odd_shapes_is_provable() {
    for sizes in
        [vec![1], vec![1020], vec![1021], vec![5000, 3, 70_000, 1], vec![2000; 40], vec![1 << 20, 77]]
    {
        let (prover, store) = prover(&sizes);
        let tree = prover.tree();
        for index in 0..tree.leaves() {
            let proof = prover.prove(index, &store).unwrap();
            verify(&tree.root(), tree.leaves(), index, &proof.data, &proof.path).unwrap();
            let (cid, range) = prover.map().locate(index).unwrap();
            use crate::BlockSource;
            assert_eq!(proof.data, store.get(&cid).unwrap().unwrap()[range]);
        }
        assert!(prover.prove(tree.leaves(), &store).is_err());
        assert!(prover.map().locate(tree.leaves()).is_none());
    }
}

#[test]
fn large_trees_keep_larger_groups() {
    // Heights up to the deepest allowed tree keep no more than half a MiB.
    for leaves in [1u64, 64, 65, 1 << 20, (1 << 20) + 1, 1 << 40] {
        let depth = depth(leaves).unwrap();
        let stored = StoredProbe(leaves, depth);
        assert!(stored.groups() <= 1 << 14);
    }
    // The same root whichever height is kept: a tree of 2^15 leaves against the plain definition.
    let leaves = 33_000u64;
    let mut builder = TreeBuilder::new(leaves).unwrap();
    let mut level: Vec<[u8; 32]> = Vec::new();
    for i in 0..leaves {
        let leaf = i.to_be_bytes();
        builder.push_block(&leaf).unwrap();
        level.push(leaf_hash(&leaf));
    }
    for z in absent(depth(leaves).unwrap()).iter().take(16) {
        level = level.chunks(2).map(|pair| node_hash(&pair[0], pair.get(1).unwrap_or(z))).collect();
    }
    assert_eq!(builder.finish().unwrap().root(), level[0]);
}

struct StoredProbe(u64, u32);
impl StoredProbe {
    fn groups(&self) -> u64 {
        self.0.div_ceil(1 << 6u32.max(self.1.saturating_sub(14)).min(self.1))
    }
}

#[test]
fn a_kept_tree_comes_back_as_it_was() {
    let (prover, _) = prover(&[100_000, 30_000, 8]);
    let bytes = serde_ipld_dagcbor::to_vec(prover.tree()).unwrap();
    assert_eq!(serde_ipld_dagcbor::from_slice::<ProofTree>(&bytes).unwrap(), *prover.tree());
    let wrong = serde_ipld_dagcbor::to_vec(&(5u64, serde_bytes::Bytes::new(&[0; 64]))).unwrap();
    assert!(serde_ipld_dagcbor::from_slice::<ProofTree>(&wrong).is_err());
}

#[test]
fn answers_pass_and_survive_their_encoding() {
    let (prover, store) = prover(&[300_000, 5, 90_000]);
    let (root, leaves) = (prover.tree().root(), prover.tree().leaves());
    let proofs = answer(&prover, &challenge(), 30, &store).unwrap();
    let wire = serde_ipld_dagcbor::to_vec(&proofs).unwrap();
    let proofs: Vec<LeafProof> = serde_ipld_dagcbor::from_slice(&wire).unwrap();
    assert_eq!(check_answer(&root, leaves, &challenge(), 30, &proofs), Ok(()));
    assert_eq!(
        check_answer(&root, leaves, &challenge(), 31, &proofs),
        Err(ProofError::Count { found: 30, wanted: 31 })
    );
}

#[test]
fn small_trees_are_asked_for_all_they_have() {
    let (prover, store) = prover(&[2000]);
    let proofs = answer(&prover, &challenge(), 30, &store).unwrap();
    assert_eq!(proofs.len(), 2);
    assert_eq!(check_answer(&prover.tree().root(), 2, &challenge(), 30, &proofs), Ok(()));
}

#[test]
fn answers_for_anything_else_are_refused() {
    let (prover, store) = prover(&[300_000, 5, 90_000]);
    let (root, leaves) = (prover.tree().root(), prover.tree().leaves());
    let proofs = answer(&prover, &challenge(), 30, &store).unwrap();
    let refused = |challenge: Challenge| check_answer(&root, leaves, &challenge, 30, &proofs).is_err();
    assert!(refused(Challenge { purpose: Purpose::Claim, ..challenge() }));
    assert!(refused(Challenge { seed: [0x34; 32], ..challenge() }));
    assert!(refused(Challenge { channel: [0x12; 32], ..challenge() }));
    assert!(refused(Challenge { id: [0x23; 32], ..challenge() }));
    assert!(refused(Challenge { epoch: 8, ..challenge() }));

    let check = |proofs: &[LeafProof]| check_answer(&root, leaves, &challenge(), 30, proofs);
    let mut swapped = proofs.clone();
    swapped.swap(0, 1);
    assert!(check(&swapped).is_err());
    let mut long = proofs.clone();
    long[3].path.push([0; 32]);
    assert!(matches!(check(&long), Err(ProofError::PathLength { .. })));
    let mut short = proofs.clone();
    short[3].path.pop();
    assert!(matches!(check(&short), Err(ProofError::PathLength { .. })));
    let mut empty = proofs.clone();
    empty[3].data.clear();
    assert_eq!(check(&empty), Err(ProofError::LeafLength(0)));
    let mut over = proofs.clone();
    over[3].data = vec![0; LEAF + 1];
    assert_eq!(check(&over), Err(ProofError::LeafLength(LEAF + 1)));
    assert!(check_answer(&[9; 32], leaves, &challenge(), 30, &proofs).is_err());
    assert!(check_answer(&root, leaves + 1, &challenge(), 30, &proofs).is_err());
}

#[test]
fn an_inner_node_is_no_leaf() {
    let (tree, data) = vector_tree(2);
    let children = [leaf_hash(&data[0]), leaf_hash(&data[1])].concat();
    assert!(verify(&tree.root(), 1, 0, &children, &[]).is_err());
    assert!(verify(&tree.root(), 2, 2, &data[0], &[leaf_hash(&data[1])]).is_err(), "index beyond the tree");
}

#[test]
fn a_lost_or_changed_block_gives_no_answer() {
    let (list, mut store) = blocks(&[300_000, 90_000]);
    let tree = ProofTree::build(&list, &store).unwrap();
    let prover = Prover::new(list.clone(), tree).unwrap();
    let gone = list.entries()[0].cid;
    let block = store.remove(&gone).unwrap();
    assert!(matches!(prover.prove(0, &store), Err(ProveError::Missing(cid)) if cid == gone));
    assert!(matches!(ProofTree::build(&list, &store), Err(ProveError::Missing(cid)) if cid == gone));
    store.0.insert(gone.hash().to_bytes(), block.slice(1..));
    assert!(matches!(prover.prove(0, &store), Err(ProveError::Size { .. })));
    assert!(matches!(ProofTree::build(&list, &store), Err(ProveError::Size { .. })));
    let other = BlockList::from_blocks([(gone, 5)]).unwrap();
    assert!(matches!(
        Prover::new(Arc::new(other), prover.tree().clone()),
        Err(ProveError::OtherTree { listed: 1, .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn proofs_of_any_shape_verify_and_changed_ones_do_not(
        sizes in prop::collection::vec(1usize..20_000, 1..30),
        pick in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        change in 1u8..,
        elsewhere in any::<prop::sample::Index>(),
    ) {
        let (prover, store) = prover(&sizes);
        let (root, leaves) = (prover.tree().root(), prover.tree().leaves());
        let index = pick.index(leaves as usize) as u64;
        let proof = prover.prove(index, &store).unwrap();
        prop_assert!(verify(&root, leaves, index, &proof.data, &proof.path).is_ok());
        let other = elsewhere.index(leaves as usize) as u64;
        prop_assert_eq!(verify(&root, leaves, other, &proof.data, &proof.path).is_ok(), other == index);

        let mut changed = proof.clone();
        let total = changed.data.len() + 32 * changed.path.len();
        let at = at.index(total);
        match at.checked_sub(changed.data.len()) {
            None => changed.data[at] ^= change,
            Some(at) => changed.path[at / 32][at % 32] ^= change,
        }
        prop_assert!(verify(&root, leaves, index, &changed.data, &changed.path).is_err());
        let mut shorter = proof.data.clone();
        shorter.pop();
        prop_assert!(verify(&root, leaves, index, &shorter, &proof.path).is_err());
    }
}
