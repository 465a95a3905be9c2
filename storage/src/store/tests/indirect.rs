//! What pins keep below their roots, and which of them keeps a block.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::store::indirect::WALKS;

fn sorted(cids: [Cid; 3]) -> Vec<Cid> {
    BTreeSet::from(cids).into_iter().collect()
}

/// The blocks that are told, each with the pin it is told with.
fn told(store: &Store, wanted: &dyn Fn(&Pin) -> bool) -> (BTreeMap<Cid, String>, Result<(), StoreError>) {
    let mut told = BTreeMap::new();
    let ended = store.indirect(wanted, &mut |cid, pin| {
        assert!(told.insert(*cid, pin.id.to_string()).is_none(), "{cid} is told twice");
        true
    });
    (told, ended)
}

/// Pins `a` (over `below` and a leaf), `b` (over `below` and two leaves) and `c`, the leaf of `a` alone; `below` is over
/// the second leaf of `b`, and has other bytes than its hash says if it is `wrong`.
fn pinned(dir: &Path, wrong: bool) -> (Store, [Cid; 3], [Cid; 3]) {
    let store = open(dir);
    let leaves: Vec<_> = (0..3).map(|seed| block(seed, 3000)).collect();
    let [first, second, third] = [leaves[0].0, leaves[1].0, leaves[2].0];
    let mut below = node(1, &[third]);
    if wrong {
        below.1 = node(9, &[third]).1;
    }
    let (a, b) = (node(2, &[below.0, first]), node(3, &[below.0, below.0, second, third]));
    put_all(&store, &[leaves, vec![below.clone(), a.clone(), b.clone()]].concat());
    let mut batch = store.state().batch();
    for (id, kind, root) in
        [("a", PinKind::Recursive, a.0), ("b", PinKind::Recursive, b.0), ("c", PinKind::Direct, first)]
    {
        store.pin(&mut batch, &pin(id, kind, root)).unwrap();
    }
    store.state().commit(batch).unwrap();
    (store, [first, second, third], [below.0, a.0, b.0])
}

#[test]
fn each_block_below_a_root_is_told_once_and_roots_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let (store, [first, second, third], [below, a, b]) = pinned(dir.path(), false);
    let (all, ended) = told(&store, &|_| true);
    ended.unwrap();
    let of = |id: &str| id.to_owned();
    assert_eq!(all, BTreeMap::from([(below, of("a")), (third, of("a")), (second, of("b"))]));
    let (some, _) = told(&store, &|pin| pin.id.0 == "b");
    assert_eq!(some.into_keys().collect::<Vec<_>>(), sorted([below, second, third]));
    let keeper = |cid: &Cid| store.keeper_of(cid, &|_| true).unwrap().map(|pin| pin.id.0);
    assert_eq!(keeper(&second), Some(of("b")));
    // As the leaf of one pin it is kept by that one, whoever else pins it.
    assert_eq!(keeper(&first), Some(of("a")));
    assert_eq!((keeper(&a), keeper(&b), keeper(&block(9, 10).0)), (None, None, None));
    // A listing that ends early is no error.
    let mut count = 0;
    store
        .indirect(&|_| true, &mut |_, _| {
            count += 1;
            count < 2
        })
        .unwrap();
    assert_eq!(count, 2);
}

#[test]
fn what_a_pin_lacks_is_told_after_all_else() {
    let dir = tempfile::tempdir().unwrap();
    let (store, [_, second, third], [below, ..]) = pinned(dir.path(), true);
    assert_eq!(store.scrub(None, 100).unwrap().damaged, [hash::cid_v1(hash::RAW, &node(1, &[third]).1)]);
    let (all, ended) = told(&store, &|_| true);
    assert_eq!(all.into_keys().collect::<Vec<_>>(), sorted([below, second, third]));
    assert!(matches!(ended, Err(StoreError::PinNotWalked { cid, .. }) if cid == below));
    assert!(store.keeper_of(&second, &|_| true).unwrap().is_some(), "what is found is found");
    assert!(matches!(store.keeper_of(&block(9, 10).0, &|_| true), Err(StoreError::PinNotWalked { .. })));
    let mut lacking = Vec::new();
    store
        .check_pins(&mut |pin, lacks| {
            lacking.push((pin.id.0, lacks));
            true
        })
        .unwrap();
    let of = |id: &str, lacks: &[Cid]| (id.to_owned(), lacks.to_vec());
    assert_eq!(lacking, [of("a", &[below]), of("b", &[below]), of("c", &[])]);
}

#[test]
fn walks_are_few_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (store, [first, ..], _) = pinned(dir.path(), false);
    let held: Vec<_> = (0..WALKS).map(|_| store.walk_marks().unwrap()).collect();
    assert!(matches!(store.keeper_of(&first, &|_| true), Err(StoreError::WalksBusy { .. })));
    drop(held);
    store.keeper_of(&first, &|_| true).unwrap();
}
