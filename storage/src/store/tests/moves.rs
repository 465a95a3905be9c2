//! Blocks on their way from one data directory to another: what stays, whatever comes between.

use super::super::gc::Collection;
use super::super::rocks::{Budget, Counter, Log, Meta};
use super::super::volumes::copies::book;
use super::super::volumes::directories::{DIRECTORIES, DirectoryId, OWN, State};
use super::super::volumes::drain::Drain;
use super::super::{readonly, volumes::Place};
use super::*;

/// A store with two directories of which the second is being emptied, a block in it, and the drain.
fn begun(class: Class) -> (tempfile::TempDir, Store, (Cid, Bytes), Drain) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let moved = block(1, 5000);
    let mut ingest = store.ingest(class).unwrap();
    ingest.put(&moved.0, moved.1.clone()).unwrap();
    ingest.finish(store.state().batch()).unwrap();
    store.add_directory(&dir.path().join("more")).unwrap();
    let drain = Drain::begin(&store, &dir.path().join("blocks")).unwrap();
    (dir, store, moved, drain)
}

fn place(store: &Store, id: DirectoryId) -> Place {
    store.shared.db().unwrap().0.place_of(id).unwrap()
}

/// What the directories know of a block.
fn metas(store: &Store, cid: &Cid) -> Vec<Meta> {
    store.shared.db().unwrap().0.copies(&key(cid)).unwrap().into_iter().map(|(_, meta)| meta).collect()
}

/// Writes to one directory alone.
fn write(store: &Store, id: DirectoryId, change: impl FnOnce(&mut rocks::Changes<'_>)) {
    let (volumes, _) = store.shared.db().unwrap();
    let mut changes = volumes.changes();
    change(changes.at(place(store, id)));
    store.shared.write(changes, Log::Skip).unwrap();
    drop(volumes);
    store.shared.flush().unwrap();
}

#[track_caller]
fn in_one_and_counted(store: &Store, cid: &Cid, bytes: u64, quarantined: u64) {
    assert_eq!(metas(store, cid).len(), 1, "it is in one directory");
    let stat = store.stat().unwrap();
    assert_eq!((stat.blocks, stat.bytes, stat.quarantined_blocks), (1, bytes, quarantined));
    let each = store.directories().unwrap();
    assert_eq!(each.iter().map(|one| (one.blocks, one.bytes)).max(), Some((1, bytes)));
}

#[test]
fn a_directory_that_was_taken_back_is_not_emptied_on() {
    let (dir, store, (cid, data), mut drain) = begun(Class::Own);
    let own = dir.path().join("blocks");
    let window = drain.copy_next().unwrap();
    store.add_directory(&own).unwrap();
    in_one_and_counted(&store, &cid, 5000, 0);
    // It is hit where it is found first, and its stamp protects it there.
    let mut ingest = store.ingest(Class::Own).unwrap();
    assert!(ingest.keep(&cid).unwrap());
    assert!(matches!(drain.step(), Err(StoreError::DrainStopped { .. })));
    drain.delete_window(&window).unwrap();
    store.gc().unwrap();
    assert_eq!(store.get(&cid).unwrap(), Some(data.clone()));
    assert!(matches!(drain.finish(), Err(StoreError::DrainStopped { .. })));
    assert_eq!(store.directories().unwrap()[0].state, DirectoryState::Open);
    drop(ingest);
    store.close().unwrap();
    assert_eq!(open(dir.path()).get(&cid).unwrap(), Some(data));
}

#[test]
fn a_hit_between_copy_and_deletion_protects_the_copy_that_stays() {
    let (_dir, store, (cid, data), mut drain) = begun(Class::Own);
    let window = drain.copy_next().unwrap();
    assert_eq!(metas(&store, &cid).len(), 2);
    let mut collection = Collection::begin(&store, 0, GcOptions::default()).unwrap();
    let mut ingest = store.ingest(Class::Own).unwrap();
    assert!(ingest.keep(&cid).unwrap());
    assert!(drain.delete_window(&window).unwrap());
    while collection.step(1).unwrap() {}
    assert_eq!(store.get(&cid).unwrap(), Some(data));
    assert_eq!(drain.finish().unwrap(), 5000);
    in_one_and_counted(&store, &cid, 5000, 0);
}

#[test]
fn a_copy_that_goes_hands_over_its_stamp_and_class() {
    let (dir, store, (cid, data), mut drain) = begun(Class::Cache);
    drain.copy_next().unwrap();
    drop(drain);
    // Both take blocks, as if nobody had known of copies: one alone is hit, and becomes somebody's own.
    store.set_directory_state(OWN, State::Open).unwrap();
    let mut ingest = store.ingest(Class::Own).unwrap();
    ingest.put(&cid, data.clone()).unwrap();
    ingest.expose().unwrap();
    let own = metas(&store, &cid)[0];
    assert!(own.class == Class::Own && metas(&store, &cid)[1].class == Class::Cache);
    let mut collection = Collection::begin(&store, 0, GcOptions::default()).unwrap();
    let mut drain = Drain::begin(&store, &dir.path().join("blocks")).unwrap();
    while drain.step().unwrap() {}
    drain.finish().unwrap();
    let left = metas(&store, &cid);
    assert_eq!((left.len(), left[0].class, left[0].generation), (1, Class::Own, own.generation));
    while collection.step(1).unwrap() {}
    assert_eq!(store.get(&cid).unwrap(), Some(data.clone()), "whoever put it holds a lease");
    drop(ingest);
    let stat = store.stat().unwrap();
    let own = stat.classes.iter().find(|class| class.class == Class::Own).unwrap();
    assert_eq!((own.blocks, own.bytes, stat.bytes), (1, 5000, 5000));
}

#[test]
fn a_hit_while_a_block_is_in_two_directories_is_known_to_both() {
    let (_dir, store, (cid, data), mut drain) = begun(Class::Cache);
    drain.copy_next().unwrap();
    let mut ingest = store.ingest(Class::Own).unwrap();
    ingest.put(&cid, data).unwrap();
    ingest.finish(store.state().batch()).unwrap();
    let both = metas(&store, &cid);
    assert!(both.len() == 2 && both[0] == both[1] && both[0].class == Class::Own, "{both:?}");
    while drain.step().unwrap() {}
    drain.finish().unwrap();
    in_one_and_counted(&store, &cid, 5000, 0);
}

#[test]
fn bytes_that_are_wrong_are_put_aside_and_do_not_stay_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, data) = block(1, 5000);
    put_all(&store, &[(cid, block(2, 5000).1)]);
    store.add_directory(&dir.path().join("more")).unwrap();
    store.drain_directory(&dir.path().join("blocks"), &mut |_, _| true).unwrap();
    assert_eq!(store.get(&cid).unwrap(), None);
    in_one_and_counted(&store, &cid, 5000, 1);
    put_all(&store, &[(cid, data.clone())]);
    assert_eq!(store.get(&cid).unwrap(), Some(data));
    in_one_and_counted(&store, &cid, 5000, 0);
}

#[test]
fn a_copy_with_wrong_bytes_is_healed_by_the_one_that_would_have_gone() {
    for wrong in [OWN, 1] {
        let (_dir, store, (cid, data), mut drain) = begun(Class::Own);
        drain.copy_next().unwrap();
        write(&store, wrong, |part| part.put_block(&key(&cid), &block(9, 5000).1));
        // The next one begins anew.
        while drain.step().unwrap() {}
        drain.finish().unwrap();
        assert_eq!(store.get(&cid).unwrap(), Some(data), "wrong in {wrong}");
        in_one_and_counted(&store, &cid, 5000, 0);
    }
}

#[test]
fn a_damaged_copy_is_healed_and_counted_once() {
    for damaged in [vec![1], vec![OWN], vec![OWN, 1]] {
        let (_dir, store, (cid, data), mut drain) = begun(Class::Own);
        let window = drain.copy_next().unwrap();
        for id in &damaged {
            let meta = metas(&store, &cid)[0];
            write(&store, *id, |part| {
                part.delete_block(&key(&cid));
                part.put_meta(&key(&cid), Meta { quarantined: true, ..meta });
                part.add(Counter::Quarantined, 1);
            });
        }
        let gone = drain.delete_window(&window).unwrap();
        assert_eq!(gone, damaged != [1], "the only good copy stays");
        while drain.step().unwrap() {}
        drain.finish().unwrap();
        let lost = damaged.len() == 2;
        assert_eq!(store.get(&cid).unwrap(), (!lost).then_some(data));
        in_one_and_counted(&store, &cid, 5000, u64::from(lost));
    }
}

#[test]
fn copies_that_a_reopening_took_are_made_again() {
    let (_dir, store, (cid, data), mut drain) = begun(Class::Own);
    let window = drain.copy_next().unwrap();
    // The one that stays is lost from memory, as if it had never been flushed.
    let meta = metas(&store, &cid)[0];
    write(&store, 1, |part| {
        part.forget(&key(&cid));
        book(part, meta, -1);
    });
    assert!(!drain.delete_window(&window).unwrap());
    reopen(&store);
    assert!(!drain.delete_window(&window).unwrap());
    while drain.step().unwrap() {}
    drain.finish().unwrap();
    assert_eq!(store.get(&cid).unwrap(), Some(data));
    in_one_and_counted(&store, &cid, 5000, 0);
}

#[test]
fn a_missing_directory_is_named_and_comes_back_without_double_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let (more, unplugged) = (dir.path().join("more"), dir.path().join("unplugged"));
    let store = open(dir.path());
    store.add_directory(&more).unwrap();
    let blocks: Vec<_> = (0..8).map(|seed| block(seed, 5000)).collect();
    for one in &blocks {
        put_all(&store, std::slice::from_ref(one));
    }
    let held = store.directories().unwrap()[1].blocks;
    assert!((1..8).contains(&held));
    for (n, (cid, _)) in blocks.iter().enumerate() {
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin(&n.to_string(), PinKind::Direct, *cid)).unwrap();
        store.state().commit(batch).unwrap();
    }
    store.close().unwrap();
    std::fs::rename(&more, &unplugged).unwrap();
    let store = open(dir.path());
    assert_eq!(store.directories().unwrap()[1].state, DirectoryState::Missing);
    assert!(!more.exists(), "nothing is made at a place where a disk should be");
    let refused = store.backup(&dir.path().join("copy")).unwrap_err().to_string();
    assert!(refused.contains("more is missing"), "{refused}");
    assert!(std::fs::read_dir(dir.path().join("copy")).unwrap().next().is_none());
    store.gc().unwrap();
    assert_eq!(store.stat().unwrap().blocks, 8 - held);
    // What is missing is fetched again.
    assert_eq!(put_all(&store, &blocks).new_blocks, held);
    store.close().unwrap();
    std::fs::rename(&unplugged, &more).unwrap();
    let store = open(dir.path());
    assert_eq!(store.directories().unwrap()[1].state, DirectoryState::Returned);
    put_all(&store, &blocks);
    store.add_directory(&more).unwrap();
    store.gc().unwrap();
    let each = store.directories().unwrap();
    assert_eq!((each[0].blocks, each[1].blocks, each[1].state), (8, 0, DirectoryState::Open));
    assert_eq!(store.stat().unwrap().bytes, 40_000);
    assert!(blocks.iter().all(|(cid, data)| store.get(cid).unwrap().as_ref() == Some(data)));
}

#[test]
fn a_directory_that_comes_back_is_taken_in_while_the_store_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let (more, unplugged) = (dir.path().join("more"), dir.path().join("unplugged"));
    let store = open(dir.path());
    store.add_directory(&more).unwrap();
    let blocks: Vec<_> = (0..4).map(|seed| block(seed, 5000)).collect();
    for one in &blocks {
        put_all(&store, std::slice::from_ref(one));
    }
    store.close().unwrap();
    std::fs::rename(&more, &unplugged).unwrap();
    let store = open(dir.path());
    assert!(store.add_directory(&more).is_err());
    std::fs::rename(&unplugged, &more).unwrap();
    store.add_directory(&more).unwrap();
    assert!(blocks.iter().all(|(cid, data)| store.get(cid).unwrap().as_ref() == Some(data)));
    assert_eq!(store.stat().unwrap().blocks, 4);
}

#[test]
fn the_directory_that_fails_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let more = dir.path().join("more");
    store.add_directory(&more).unwrap();
    store.drain_directory(&dir.path().join("blocks"), &mut |_, _| true).unwrap();
    put_all(&store, &[block(1, 5000)]);
    std::fs::remove_dir_all(&more).unwrap();
    let told = store.flush().unwrap_err().to_string();
    assert!(told.contains(more.to_str().unwrap()), "{told}");
}

/// Whichever of the tables that have a certain key is damaged, in one directory.
#[test]
fn damage_in_one_directory_does_not_keep_the_space_of_another() {
    const SIZE: usize = 100_000;
    let whole = tempfile::tempdir().unwrap();
    let store = open(whole.path());
    store.add_directory(&whole.path().join("more")).unwrap();
    let blocks: Vec<_> = (0..60).map(|seed| block(seed, SIZE)).collect();
    for some in blocks.chunks(2) {
        put_all(&store, some);
    }
    let each = store.directories().unwrap();
    assert!(each.iter().all(|one| one.bytes > 2_000_000), "{each:?}");
    let damaged = &blocks[0];
    let place = store.shared.db().unwrap().0.find(&key(&damaged.0)).unwrap().unwrap().0;
    let which = store.shared.db().unwrap().0.at(place).directory.path.clone();
    store.close().unwrap();
    for (table, at) in health::tables_of(&which, damaged) {
        let dir = crash_copy(whole.path());
        health::flip(&dir.path().join(table.strip_prefix(whole.path()).unwrap()), at);
        let store = open(dir.path());
        let thorough = GcOptions { thorough: true, ..GcOptions::default() };
        let collected = store.gc_with(thorough, &mut |_| {}).unwrap();
        assert!(collected.kept_by_damage && collected.freed_blocks == 60, "{collected:?}");
        let well =
            store.directories().unwrap().into_iter().find(|one| one.path.file_name() != which.file_name());
        let well = well.unwrap();
        assert!(well.disk_bytes < 1_000_000, "{well:?}");
        put_all(&store, &blocks);
        assert!(blocks.iter().all(|(cid, data)| store.get(cid).unwrap().as_ref() == Some(data)));
    }
}

#[test]
fn a_repo_from_before_there_were_directories_opens_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    put_all(&store, &[block(1, 5000)]);
    store.close().unwrap();
    let (state, options) = (dir.path().join("state"), rocksdb::Options::default());
    let tables = rocksdb::DB::list_cf(&options, &state).unwrap();
    let mut db = rocksdb::DB::open_cf(&options, &state, tables).unwrap();
    db.drop_cf(DIRECTORIES.name()).unwrap();
    drop(db);
    let (state, volumes) = readonly::open(dir.path(), &Budget::new(1)).unwrap();
    assert!(volumes.block(&key(&block(1, 5000).0)).unwrap().is_some());
    drop((state, volumes));
    assert!(open(dir.path()).has(&block(1, 5000).0).unwrap());
}
