//! What survives a crash, and what does not have to.

use super::*;

#[test]
fn finished_ingests_of_any_size_survive_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let small: Vec<_> = (0..20).map(|seed| block(seed, 1 << 10)).collect();
    let large: Vec<_> = (100..112).map(|seed| block(seed, 1 << 20)).collect();
    for (id, blocks) in [("small", &small), ("large", &large)] {
        let leaves: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).collect();
        let (root, data) = node(0, &leaves);
        let mut ingest = store.ingest(Class::Own).unwrap();
        for (cid, data) in blocks {
            ingest.put(cid, data.clone()).unwrap();
        }
        ingest.put(&root, data).unwrap();
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin(id, PinKind::Recursive, root)).unwrap();
        ingest.finish(batch).unwrap();
    }
    let before = store.stat().unwrap();
    let copy = crash_copy(dir.path());
    let store = open(copy.path());
    assert_eq!(store.pins().unwrap().len(), 2);
    store.gc().unwrap();
    for (cid, data) in small.iter().chain(&large) {
        assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
    }
    let after = store.stat().unwrap();
    assert_eq!((after.blocks, after.bytes), (before.blocks, before.bytes));
}

#[test]
fn unfinished_ingests_leave_nothing_behind_a_collection() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blocks: Vec<_> = (0..12).map(|seed| block(seed, 1 << 20)).collect();
    let mut ingest = store.ingest(Class::Own).unwrap();
    for (cid, data) in &blocks {
        ingest.put(cid, data.clone()).unwrap();
    }
    ingest.expose().unwrap();
    assert!(store.has(&blocks[11].0).unwrap());
    // A flush for somebody else makes them durable, yet nobody was told so.
    store.flush().unwrap();
    let copy = crash_copy(dir.path());
    let store = open(copy.path());
    assert_eq!(store.stat().unwrap().blocks, 12);
    let report = store.gc().unwrap();
    assert_eq!((report.freed_blocks, report.freed_bytes), (12, 12 << 20));
    let stat = store.stat().unwrap();
    assert_eq!((stat.blocks, stat.bytes), (0, 0));
    assert!(stat.disk_bytes < 4 << 20, "{} bytes are still on the disk", stat.disk_bytes);
}

#[test]
fn a_small_ingest_that_relies_on_unflushed_blocks_makes_them_durable() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, data) = block(1, 100_000);
    let mut large = store.ingest(Class::Own).unwrap();
    large.put(&cid, data.clone()).unwrap();
    large.expose().unwrap();
    for by_put in [true, false] {
        let mut small = store.ingest(Class::Own).unwrap();
        if by_put {
            small.put(&cid, data.clone()).unwrap();
        } else {
            assert!(small.keep(&cid).unwrap());
        }
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin("p", PinKind::Direct, cid)).unwrap();
        small.finish(batch).unwrap();
        let copy = crash_copy(dir.path());
        let after = open(copy.path());
        assert_eq!(after.get(&cid).unwrap().as_ref(), Some(&data));
        assert_eq!(after.stat().unwrap().bytes, 100_000);
    }
}

#[test]
fn a_pin_makes_durable_what_it_links_in_the_memory_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (leaf, data) = block(1, 100_000);
    let mut large = store.ingest(Class::Own).unwrap();
    large.put(&leaf, data.clone()).unwrap();
    large.expose().unwrap();
    // Neither put nor kept by the one that links it, as when a directory is changed.
    let (root, root_data) = node(0, &[leaf]);
    let mut small = store.ingest(Class::Own).unwrap();
    small.put(&root, root_data).unwrap();
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("p", PinKind::Recursive, root)).unwrap();
    small.finish(batch).unwrap();
    let copy = crash_copy(dir.path());
    let after = open(copy.path());
    after.gc().unwrap();
    assert_eq!(after.get(&leaf).unwrap().as_ref(), Some(&data));
}

#[test]
fn a_pin_does_not_outlast_the_database_in_which_its_blocks_were_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, data) = block(1, 1000);
    put_all(&store, &[(cid, data)]);
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("p", PinKind::Direct, cid)).unwrap();
    let reopened = store.clone();
    batch.check_before(Box::new(move || {
        reopen(&reopened);
        Ok(())
    }));
    let error = StoreError::from(store.state().commit(batch).unwrap_err());
    assert!(matches!(error, StoreError::Reopened), "{error}");
    assert_eq!(store.pins().unwrap(), []);
}

#[test]
fn totals_stay_right_when_a_crash_takes_unflushed_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut lost = store.ingest(Class::Own).unwrap();
    let (cid, data) = block(1, 50_000);
    lost.put(&cid, data).unwrap();
    lost.expose().unwrap();
    put_all(&store, &[block(2, 700)]);
    let copy = crash_copy(dir.path());
    let after = open(copy.path());
    let stat = after.stat().unwrap();
    assert_eq!((stat.blocks, stat.bytes), (1, 700));
    assert!(!after.has(&cid).unwrap());
}

#[test]
fn a_checkpoint_keeps_what_came_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let list: Vec<_> = (0..4).map(|seed| block(seed, 400_000)).collect();
    let cids: Vec<Cid> = list.iter().map(|(cid, _)| *cid).collect();
    let mut batch = store.state().batch();
    store.pin_list(&mut batch, &pin("download", PinKind::List, cids[0]), &cids).unwrap();
    store.state().commit(batch).unwrap();
    let mut ingest = store.ingest(Class::Own).unwrap();
    for (cid, data) in &list[..2] {
        ingest.put(cid, data.clone()).unwrap();
    }
    ingest.checkpoint(store.state().batch()).unwrap();
    ingest.put(&list[2].0, list[2].1.clone()).unwrap();
    let copy = crash_copy(dir.path());
    let after = open(copy.path());
    after.gc().unwrap();
    let here: Vec<bool> = cids.iter().map(|cid| after.has(cid).unwrap()).collect();
    assert_eq!(here, [true, true, false, false]);
}

/// The checks of a large ingest run while it is flushed, those of a DAG of many nodes on several threads.
#[test]
fn a_large_ingest_is_refused_for_one_leaf_among_many_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let leaves: Vec<_> = (0..300).map(|n| block(n, 20_000)).collect();
    let below: Vec<_> =
        leaves.iter().enumerate().map(|(n, leaf)| node(n as u64, &[leaf.0, leaf.0, leaves[0].0])).collect();
    let root = node(1000, &below.iter().map(|(cid, _)| *cid).collect::<Vec<_>>());
    for lacks in [Some(290), None] {
        let mut ingest = store.ingest(Class::Own).unwrap();
        for (cid, data) in below.iter().chain([&root]) {
            ingest.put(cid, data.clone()).unwrap();
        }
        for (_, (cid, data)) in leaves.iter().enumerate().filter(|(n, _)| lacks != Some(*n)) {
            ingest.put(cid, data.clone()).unwrap();
        }
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin("p", PinKind::Recursive, root.0)).unwrap();
        let finished = ingest.finish(batch);
        match lacks {
            Some(n) => {
                let error = finished.unwrap_err();
                assert!(matches!(&error, StoreError::Missing { cid, .. } if *cid == leaves[n].0), "{error}");
                assert_eq!(store.pins().unwrap(), []);
            }
            None => drop(finished.unwrap()),
        }
    }
    let copy = crash_copy(dir.path());
    let after = open(copy.path());
    assert_eq!(after.pins().unwrap().len(), 1);
    assert!(leaves.iter().all(|(cid, data)| after.get(cid).unwrap().as_ref() == Some(data)));
}

#[test]
fn nodes_that_many_link_to_are_answered_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let below = node(0, &[]);
    let above: Vec<_> = (1..20).map(|seed| node(seed, &vec![below.0; 1000])).collect();
    put_all(&store, &above);
    put_all(&store, std::slice::from_ref(&below));
    let nodes: Vec<Cid> = above.iter().map(|(cid, _)| *cid).collect();
    let further = store.shared.hold_below(&pin("p", PinKind::Recursive, nodes[0]), &nodes);
    assert_eq!(further.unwrap(), [below.0]);
}

#[test]
fn pins_refuse_incomplete_dags_and_nothing_of_the_batch_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (leaf, leaf_data) = block(1, 10);
    let (absent, _) = block(2, 10);
    let (root, root_data) = node(0, &[leaf, absent]);
    let mut ingest = store.ingest(Class::Own).unwrap();
    ingest.put(&leaf, leaf_data).unwrap();
    ingest.put(&root, root_data).unwrap();
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("p", PinKind::Recursive, root)).unwrap();
    let error = ingest.finish(batch).unwrap_err();
    assert!(matches!(&error, StoreError::Missing { cid, .. } if *cid == absent), "{error}");
    assert_eq!(store.pins().unwrap(), []);
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("p", PinKind::Direct, root)).unwrap();
    store.state().commit(batch).unwrap();
    assert_eq!(store.pin_get(&"p".into()).unwrap().unwrap().root, root);
}

#[test]
fn many_small_pinned_ingests_share_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let common = block(0, 2000);
    for seed in 1..=60 {
        let own = block(seed, 10_000);
        let (root, data) = node(seed, &[common.0, own.0]);
        let mut ingest = store.ingest(Class::Own).unwrap();
        for (cid, data) in [common.clone(), own, (root, data)] {
            ingest.put(&cid, data).unwrap();
        }
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin(&seed.to_string(), PinKind::Recursive, root)).unwrap();
        ingest.finish(batch).unwrap();
    }
    let files = std::fs::read_dir(dir.path().join("blocks")).unwrap().count();
    assert!(files < 20, "{files} files for 60 ingests of 12 KB");
    let copy = crash_copy(dir.path());
    assert_eq!(open(copy.path()).stat().unwrap().blocks, 121);
}

#[test]
fn a_collection_ends_when_the_database_is_reopened_under_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let known = block(1, 1 << 10);
    put_all(&store, std::slice::from_ref(&known));
    put_all(&store, &[block(2, 1 << 10)]);
    let mut collection = gc::Collection::begin(&store, 0, GcOptions::default()).unwrap();
    while collection.progress().phase == GcPhase::Mark {
        collection.step(1).unwrap();
    }
    // Behind the marks it is asked for again: its stamp alone protects it, and that is in memory only.
    let mut ingest = store.ingest(Class::Own).unwrap();
    ingest.put(&known.0, known.1.clone()).unwrap();
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("late", PinKind::Direct, known.0)).unwrap();
    ingest.finish(batch).unwrap();
    reopen(&store);
    assert!(matches!(collection.step(10), Err(StoreError::Reopened)));
    assert_eq!(store.get(&known.0).unwrap(), Some(known.1));
    assert_eq!(store.gc().unwrap().freed_blocks, 1, "the next one goes its way");
}

#[test]
fn a_block_that_is_only_in_memory_is_not_deleted_from_the_books_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, data) = block(1, 1 << 10);
    let mut ingest = store.ingest(Class::Own).unwrap();
    ingest.put(&cid, data).unwrap();
    ingest.expose().unwrap();
    assert!(store.remove(&cid).unwrap());
    drop(ingest);
    let copy = crash_copy(dir.path());
    let store = open(copy.path());
    let stat = store.stat().unwrap();
    assert_eq!((stat.blocks, stat.bytes), (0, 0));
}

#[test]
fn a_pin_of_blocks_that_are_only_in_memory_makes_them_durable() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, data) = block(1, 5000);
    let mut ingest = store.ingest(Class::Own).unwrap();
    ingest.put(&cid, data.clone()).unwrap();
    ingest.expose().unwrap();
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("own", PinKind::Direct, cid)).unwrap();
    store.state().commit(batch).unwrap();
    let copy = crash_copy(dir.path());
    assert_eq!(open(copy.path()).get(&cid).unwrap(), Some(data));
}
