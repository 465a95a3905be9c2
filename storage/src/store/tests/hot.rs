//! Hot blocks: what comes into memory, and that nothing is answered from there that the store has not.

use super::*;

const ROOM: u64 = 8 << 20;

fn cached(dir: &Path, blocks: &[(Cid, Bytes)]) -> Store {
    let store = open(dir);
    store.cache_hot_blocks(ROOM);
    put_all(&store, blocks);
    store
}

fn heat(store: &Store, blocks: &[(Cid, Bytes)]) {
    for _ in 0..3 {
        blocks.iter().for_each(|(cid, data)| assert_eq!(store.get(cid).unwrap().as_ref(), Some(data)));
    }
}

#[test]
fn a_block_is_kept_from_its_second_reading_on() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = [block(1, 5000), block(2, 300_000)];
    let store = cached(dir.path(), &blocks);
    let one = |cid| {
        store.get(cid).unwrap().unwrap();
        let stat = store.hot_stat();
        (stat.hits, stat.misses, stat.bytes > 0)
    };
    assert_eq!(one(&blocks[0].0), (0, 1, false));
    assert_eq!(one(&blocks[1].0), (0, 2, false));
    assert_eq!(one(&blocks[0].0), (0, 3, true));
    assert_eq!(one(&blocks[0].0), (1, 3, true));
    // Another CID of the same bytes.
    assert_eq!(one(&Cid::new_v0(*blocks[0].0.hash()).unwrap()), (2, 3, true));
    assert_eq!(open(tempfile::tempdir().unwrap().path()).hot_stat(), Default::default());
}

#[test]
fn what_is_deleted_or_put_aside_is_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = [block(1, 5000), block(2, 5000), block(3, 5000)];
    let store = cached(dir.path(), &blocks);
    let mut batch = store.state().batch();
    for (cid, _) in &blocks[1..] {
        store.pin(&mut batch, &pin(&cid.to_string(), PinKind::Direct, *cid)).unwrap();
    }
    store.state().commit(batch).unwrap();
    heat(&store, &blocks);
    assert!(store.hot_stat().hits >= 3);
    assert_eq!(store.gc().unwrap().freed_blocks, 1);
    assert_eq!(store.get(&blocks[0].0).unwrap(), None);
    // Rot that a scrub finds, though the bytes in memory are well.
    store.flush().unwrap();
    drop(store);
    damage::rot(dir.path(), &blocks[1].1);
    let store = open(dir.path());
    store.cache_hot_blocks(ROOM);
    heat(&store, &blocks[2..]);
    store.shared.hot.get().unwrap().keep(&blocks[1].0, &blocks[1].1);
    assert_eq!(store.scrub(None, 10).unwrap().damaged, [blocks[1].0]);
    assert_eq!(store.get(&blocks[1].0).unwrap(), None);
    heat(&store, &blocks[2..]);
    // Healed by the right bytes, it is back.
    put_all(&store, &blocks[1..2]);
    heat(&store, &blocks[1..]);
}

#[test]
fn whatever_is_read_once_drives_nothing_out() {
    let dir = tempfile::tempdir().unwrap();
    let hot: Vec<_> = (0..16).map(|n| block(n, 100_000)).collect();
    let cold: Vec<_> = (100..400).map(|n| block(n, 100_000)).collect();
    let store = cached(dir.path(), &hot);
    put_all(&store, &cold);
    heat(&store, &hot);
    let before = store.hot_stat();
    // Three times what fits, and a scrub of everything.
    cold.iter().for_each(|(cid, _)| assert!(store.get(cid).unwrap().is_some()));
    store.scrub(None, 1000).unwrap();
    heat(&store, &hot);
    let after = store.hot_stat();
    assert_eq!(after.hits - before.hits, 3 * hot.len() as u64);
    assert_eq!((after.misses - before.misses, after.bytes), (cold.len() as u64, before.bytes));
    assert!(after.bytes <= ROOM);
    // Read again and again they do come in, and stay within bounds.
    (0..3).for_each(|_| cold.iter().for_each(|(cid, _)| assert!(store.get(cid).unwrap().is_some())));
    let stat = store.hot_stat();
    assert!(stat.bytes > before.bytes && stat.bytes <= ROOM, "{stat:?}");
}

#[test]
fn large_blocks_that_come_fast_do_not_pass_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let blocks: Vec<_> = (0..40).map(|n| block(n, 1 << 20)).collect();
    let store = cached(dir.path(), &blocks);
    for (cid, _) in &blocks {
        (0..2).for_each(|_| assert!(store.get(cid).unwrap().is_some()));
        assert!(store.shared.hot.get().unwrap().held() <= ROOM);
    }
    assert!(store.hot_stat().bytes > 0);
}

#[test]
fn the_database_can_be_reopened_while_blocks_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = [block(1, 5000)];
    let store = cached(dir.path(), &blocks);
    heat(&store, &blocks);
    reopen(&store);
    heat(&store, &blocks);
}

#[test]
fn what_lies_in_files_is_read_from_there_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("repo"));
    store.cache_hot_blocks(ROOM);
    let (path, (cid, data)) = (dir.path().join("file"), block(1, 5000));
    std::fs::write(&path, &data).unwrap();
    let mut ingest = store.in_place(store.ingest(Class::Own).unwrap());
    let place = crate::Place { path: &path, offset: 0, mtime: (0, 0) };
    ingest.put_located(&cid, data.clone(), &place).unwrap();
    ingest.finish(store.state().batch()).unwrap();
    heat(&store, &[(cid, data)]);
    assert_eq!(store.hot_stat().bytes, 0);
    std::fs::write(&path, "others").unwrap();
    assert!(matches!(store.get(&cid), Err(StoreError::NotInFile { .. })));
}
