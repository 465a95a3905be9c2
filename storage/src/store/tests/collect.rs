//! What crosses the way of a collection, and what ends one.

use super::*;
use crate::alias::{self, Alias};
use crate::store::gc::Collection;

#[test]
fn stamps_that_a_reopening_took_cost_no_block() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let known = block(1, 2000);
    put_all(&store, std::slice::from_ref(&known));
    store.gc_with(GcOptions { dry_run: true, ..GcOptions::default() }, &mut |_| {}).unwrap();
    // A pin in the making: it found its block and stamped it, and is not committed yet.
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("late", PinKind::Direct, known.0)).unwrap();
    let (_, incarnation) = store.shared.db().unwrap();
    assert!(store.shared.touch(incarnation, &key(&known.0)).unwrap().is_some());
    reopen(&store);
    assert_eq!(store.gc().unwrap().freed_blocks, 0);
    store.state().commit(batch).unwrap();
    assert_eq!(store.gc().unwrap().freed_blocks, 0);
    assert_eq!(store.get(&known.0).unwrap(), Some(known.1));
    unpin(&store, "late");
    assert_eq!(store.gc().unwrap().freed_blocks, 1, "nothing is held for longer than its lease");
}

#[test]
fn space_that_a_broken_collection_left_is_given_back_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // Too small for blob files: they must not hide that a file is dead.
    put_all(&store, &(0..400).map(|seed| block(seed, 1000)).collect::<Vec<_>>());
    for seed in 0..400 {
        let mut batch = store.state().batch();
        let id = seed.to_string();
        store.pin(&mut batch, &pin(&id, PinKind::Direct, block(seed, 1000).0)).unwrap();
        store.state().commit(batch).unwrap();
    }
    store.flush().unwrap();
    put_all(&store, &[block(1000, 100_000), block(1001, 100_000)]);
    store.flush().unwrap();
    let dead =
        |store: &Store| store.shared.db().unwrap().0.iter().next().unwrap().db.blob_space().unwrap().bytes;
    assert!(dead(&store) > 200_000);
    let mut collection = Collection::begin(&store, 0, GcOptions::default()).unwrap();
    while collection.progress().phase != GcPhase::Reclaim {
        assert!(collection.step(1000).unwrap());
    }
    assert_eq!(collection.report.freed_blocks, 2);
    drop(collection);
    store.close().unwrap();
    let store = open(dir.path());
    assert!(store.has_unfinished_collection().unwrap());
    assert_eq!(store.gc().unwrap().freed_blocks, 0);
    assert_eq!(dead(&store), 0);
    assert!(!store.has_unfinished_collection().unwrap());
}

#[test]
fn a_collection_that_is_stopped_goes_on_in_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put_all(&store, &(0..5).map(|seed| block(seed, 3000)).collect::<Vec<_>>());
    let stopper = store.clone();
    let stopped = store.gc_with(GcOptions::default(), &mut |_| stopper.stop_collecting());
    assert!(matches!(stopped, Err(StoreError::CollectionStopped)));
    drop(stopper);
    store.close().unwrap();
    let store = open(dir.path());
    assert!(store.has_unfinished_collection().unwrap());
    assert_eq!(store.gc().unwrap().freed_blocks, 5);
    assert!(!store.has_unfinished_collection().unwrap());
}

#[test]
fn closing_waits_for_a_stopped_collection() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put_all(&store, &[block(1, 3000)]);
    let (running, begun) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let collector = store.clone();
    let thread = std::thread::spawn(move || {
        let mut step = move |_| {
            running.send(()).unwrap();
            wait.recv().unwrap();
        };
        collector.gc_with(GcOptions::default(), &mut step).map(drop)
    });
    begun.recv().unwrap();
    store.stop_collecting();
    go_on.send(()).unwrap();
    store.clone().close().unwrap();
    assert!(store.shared.collecting.try_lock().is_some());
    assert!(matches!(thread.join().unwrap(), Err(StoreError::CollectionStopped)));
}

#[test]
fn an_alias_that_came_back_with_its_pin_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (root, data) = block(1, 3000);
    put_all(&store, &[(root, data)]);
    let alias = Alias { root, offset: 0, length: 3000 };
    let add = |pinned: bool| {
        let mut batch = store.state().batch();
        alias::add(&mut batch, b"foreign", &alias).unwrap();
        if pinned {
            store.pin(&mut batch, &pin("own", PinKind::Direct, root)).unwrap();
        }
        store.state().commit(batch).unwrap();
    };
    let row = [(b"foreign".to_vec(), (root.to_bytes(), 0))];
    add(false);
    // A collection saw it without a pin, and deletes it only now.
    add(true);
    alias::drop_if_unpinned(store.state(), &row).unwrap();
    assert_eq!(alias::lookup(store.state(), b"foreign").unwrap(), [alias]);
    unpin(&store, "own");
    alias::drop_if_unpinned(store.state(), &row).unwrap();
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("own", PinKind::Direct, root)).unwrap();
    store.state().commit(batch).unwrap();
    assert_eq!(alias::lookup(store.state(), b"foreign").unwrap(), []);
}

#[test]
fn a_pin_that_is_renewed_does_not_expire_with_its_old_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (root, data) = block(1, 3000);
    put_all(&store, &[(root, data)]);
    let until = |end: u64| Pin { expires: Some(end), ..pin("own", PinKind::Direct, root) };
    let renew = |end: u64| {
        let mut batch = store.state().batch();
        store.pin(&mut batch, &until(end)).unwrap();
        store.state().commit(batch).unwrap();
    };
    renew(100);
    // Its row was read, and it is renewed before it goes.
    renew(200);
    assert_eq!(store.expire(&[(100, "own".into())]).unwrap(), 0);
    assert_eq!(store.pin_get(&"own".into()).unwrap(), Some(until(200)));
    assert_eq!(store.expire_pins(200).unwrap(), 1);
}

#[test]
fn a_list_that_expired_while_it_was_renewed_is_not_renewed_without_its_list() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (root, data) = block(1, 3000);
    put_all(&store, &[(root, data)]);
    let until = |end: u64| Pin { expires: Some(end), ..pin("agreement", PinKind::List, root) };
    let mut batch = store.state().batch();
    store.pin_list(&mut batch, &until(100), &[root]).unwrap();
    store.state().commit(batch).unwrap();
    let mut renewal = store.state().batch();
    store.pin(&mut renewal, &until(200)).unwrap();
    assert_eq!(store.expire_pins(100).unwrap(), 1);
    let refused = store.state().commit(renewal).unwrap_err().to_string();
    assert!(refused.contains("agreement"), "{refused}");
    assert_eq!(store.pins().unwrap(), []);
    assert_eq!(store.gc().unwrap().freed_blocks, 1);
}
