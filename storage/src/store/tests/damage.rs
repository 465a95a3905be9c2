//! Rot on the disk is found, not served, and healed.

use super::*;
use crate::db::DbError;

/// Flips a bit of the stored bytes of a block, wherever in the files of the database they are.
pub(super) fn rot(dir: &Path, data: &[u8]) {
    let mut hit = 0;
    for entry in std::fs::read_dir(dir.join("blocks")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|ext| ext != "blob" && ext != "sst") {
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(64).position(|window| window == &data[..64]) {
            bytes[at + 10] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            hit += 1;
        }
    }
    assert_eq!(hit, 1, "the block is in one file");
}

/// A closed store with a DAG of a root and two leaves, whose first leaf then rots.
fn rotten() -> (tempfile::TempDir, Cid, [(Cid, Bytes); 2]) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let leaves = [block(1, 5000), block(2, 5000)];
    let (root, data) = node(0, &[leaves[0].0, leaves[1].0]);
    let mut ingest = store.ingest(Class::Own).unwrap();
    for (cid, data) in leaves.iter().cloned().chain([(root, data)]) {
        ingest.put(&cid, data).unwrap();
    }
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("p", PinKind::Recursive, root)).unwrap();
    ingest.finish(batch).unwrap();
    store.close().unwrap();
    rot(dir.path(), &leaves[0].1);
    (dir, root, leaves)
}

#[test]
fn a_flipped_bit_is_reported_once_and_healed_by_the_right_bytes() {
    let (dir, root, leaves) = rotten();
    let store = open(dir.path());
    let [(bad, data), (good, _)] = &leaves;
    assert!(store.has(bad).unwrap());
    assert!(matches!(store.get(bad), Err(StoreError::Corrupt { cid }) if cid == *bad));
    assert!(!store.has(bad).unwrap());
    assert_eq!(store.get(bad).unwrap(), None);
    assert!(store.get(good).unwrap().is_some());
    let stat = store.stat().unwrap();
    assert_eq!(
        (stat.quarantined_blocks, stat.bytes),
        (1, 10_000 + store.block_size(&root).unwrap().unwrap())
    );
    assert_eq!(store.quarantined(10).unwrap()[0].cid, *bad);
    // A lost leaf keeps a new pin out, but not a collection: nothing can hang below it.
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("q", PinKind::Recursive, root)).unwrap();
    assert!(matches!(
        store.state().commit(batch).map_err(StoreError::from),
        Err(StoreError::Missing { cid, .. }) if cid == *bad
    ));
    assert_eq!(store.gc().unwrap().freed_blocks, 0);
    let done = put_all(&store, &[(*bad, data.clone())]);
    assert_eq!(done.new_blocks, 0);
    assert_eq!(store.get(bad).unwrap().as_ref(), Some(data));
    assert_eq!(store.stat().unwrap().quarantined_blocks, 0);
    drop(store);
    assert_eq!(open(dir.path()).get(bad).unwrap().as_ref(), Some(data));
}

#[test]
fn a_scrub_finds_rot_and_bytes_that_were_wrong_from_the_start() {
    let (dir, _, leaves) = rotten();
    let store = open(dir.path());
    let (wrong, _) = block(7, 2000);
    put_all(&store, &[(wrong, block(8, 2000).1)]);
    let (mut damaged, mut checked, mut next) = (Vec::new(), 0, None);
    loop {
        let page = store.scrub(next.as_ref(), 2).unwrap();
        checked += page.checked;
        damaged.extend(page.damaged);
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    assert_eq!(checked, 4);
    let mut expected = vec![wrong, leaves[0].0];
    expected.sort();
    damaged.sort();
    assert_eq!(damaged, expected);
    assert!(!store.has(&wrong).unwrap());
    assert_eq!(store.blocks(None, 100).unwrap().len(), 2);
}

#[test]
fn a_round_of_the_scrub_goes_on_after_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let blocks: Vec<_> = (0..10).map(|seed| block(seed, 1000)).collect();
    put_all(&open(dir.path()), &blocks);
    // By the hour: three pages of three blocks, and one of the last.
    let mut seen = Vec::new();
    for hour in 1..=5 {
        let store = open(dir.path());
        let mut round = store.scrub_round().unwrap();
        assert_eq!(round.is_new(), hour == 1 || hour == 5);
        let page = store.scrub(round.next.as_ref(), 3).unwrap();
        round.count(&page, hour * 3600);
        store.note_scrub_round(&round).unwrap();
        seen.push((round.checked, round.bytes, round.last_ended));
    }
    let ended = Some(4 * 3600);
    assert_eq!(seen, [(3, 3000, None), (6, 6000, None), (9, 9000, None), (0, 0, ended), (3, 3000, ended)]);
}

#[test]
fn a_collection_sweeps_nothing_while_a_pinned_node_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let leaf = block(1, 5000);
    // Large enough to be found in the files.
    let (root, data) = {
        let data = serde_ipld_dagcbor::to_vec(&("x".repeat(3000), [leaf.0])).unwrap();
        (hash::cid_v1(hash::DAG_CBOR, &data), Bytes::from(data))
    };
    put_all(&store, &[leaf.clone(), (root, data.clone())]);
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("p", PinKind::Recursive, root)).unwrap();
    store.state().commit(batch).unwrap();
    store.close().unwrap();
    rot(dir.path(), &data);
    let store = open(dir.path());
    for _ in 0..2 {
        let error = store.gc().unwrap_err();
        assert!(matches!(&error, StoreError::PinDamaged { cid, .. } if *cid == root), "{error}");
    }
    assert!(store.has(&leaf.0).unwrap());
    unpin(&store, "p");
    assert_eq!(store.gc().unwrap().freed_blocks, 2);
    assert_eq!(store.stat().unwrap().quarantined_blocks, 0);
}

#[test]
fn a_lost_blob_file_loses_its_blocks_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (first, second) = (block(1, 5000), block(2, 5000));
    put_all(&store, std::slice::from_ref(&first));
    store.flush().unwrap();
    put_all(&store, std::slice::from_ref(&second));
    store.close().unwrap();
    rot(dir.path(), &first.1);
    let store = open(dir.path());
    assert!(matches!(store.get(&first.0), Err(StoreError::Corrupt { .. })));
    assert_eq!(store.get(&second.0).unwrap(), Some(second.1));
}

/// Flips a bit in every table that has `part` in it.
fn rot_tables(dir: &Path, part: &[u8]) {
    let tables = std::fs::read_dir(dir.join("blocks")).unwrap().map(|entry| entry.unwrap().path());
    let mut hit = 0;
    for path in tables.filter(|path| path.extension().is_some_and(|ending| ending == "sst")) {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(at) = bytes.windows(part.len()).position(|window| window == part) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            hit += 1;
        }
    }
    assert!(hit > 0, "it is in a table");
}

/// The totals and the identity are in one small table: blocks are found and counted without it.
#[test]
fn a_lost_identity_is_that_of_the_state_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blocks: Vec<_> = (0..9).map(|seed| block(seed, 3000)).collect();
    put_all(&store, &blocks);
    let identity = store.shared.db().unwrap().0.iter().next().unwrap().db.identity().unwrap().unwrap();
    store.close().unwrap();
    rot_tables(dir.path(), &identity);
    let reads = |store: &Store| {
        for (cid, data) in &blocks {
            assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
        }
    };
    let whole = crash_copy(dir.path());
    {
        let (state, volumes) = readonly::open(whole.path(), &Budget::new(1)).unwrap();
        assert!(blocks.iter().all(|(cid, data)| volumes.block(&key(cid)).unwrap().as_ref() == Some(data)));
        drop((state, volumes));
        let store = open(whole.path());
        reads(&store);
        assert_eq!(store.stat().unwrap().bytes, 27_000);
        assert_eq!(store.verify(None, &mut |_| true).unwrap().damaged, 0);
        assert_eq!(put_all(&store, &blocks).new_blocks, 0);
        put_all(&store, &[block(77, 3000)]);
        reopen(&store);
        reads(&store);
        drop(store);
        reads(&open(whole.path()));
    }
    // Without the state nobody knows it; another's would find nothing.
    let without = crash_copy(dir.path());
    std::fs::remove_dir_all(without.path().join("state")).unwrap();
    let other = tempfile::tempdir().unwrap();
    open(other.path()).close().unwrap();
    let foreign = crash_copy(other.path());
    std::fs::remove_dir_all(foreign.path().join("blocks")).unwrap();
    std::fs::rename(crash_copy(dir.path()).path().join("blocks"), foreign.path().join("blocks")).unwrap();
    for refused in [&without, &foreign] {
        let error = Store::open(options(refused.path())).err().expect("refused");
        assert!(
            matches!(&error, StoreError::Db(DbError::Foreign { .. } | DbError::Damaged { .. })),
            "{error}"
        );
        let read_only = readonly::open(refused.path(), &Budget::new(1)).err().expect("refused");
        assert!(matches!(&read_only, StoreError::Db(_)), "{read_only}");
    }
    std::fs::remove_dir_all(without.path().join("state")).unwrap();
    std::fs::create_dir(without.path().join("state")).unwrap();
    for entry in std::fs::read_dir(dir.path().join("state")).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), without.path().join("state").join(entry.file_name())).unwrap();
    }
    reads(&open(without.path()));
}

/// Names are in the order of keys only as far as these differ in their first bytes; the listing must be all the same.
#[test]
fn blocks_whose_keys_begin_alike_are_listed_in_order_where_the_metadata_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut first: std::collections::HashMap<Vec<u8>, u64> = std::collections::HashMap::new();
    let mut blocks: Vec<_> = (0..20).map(|seed| block(seed, 2000)).collect();
    for seed in 0.. {
        let data = Bytes::from(format!("{seed:02000}"));
        let cid = hash::cid_v1(hash::RAW, &data);
        if let Some(other) = first.insert(key(&cid)[..6].to_vec(), seed) {
            let data = [seed, other].map(|seed| Bytes::from(format!("{seed:02000}")));
            blocks.extend(data.map(|data| (hash::cid_v1(hash::RAW, &data), data)));
            if blocks.len() >= 24 {
                break;
            }
        }
    }
    put_all(&store, &blocks);
    store.close().unwrap();
    let (table, at) = health::tables_of(&dir.path().join("blocks"), &blocks[0]).remove(0);
    health::flip(&table, at);
    let store = open(dir.path());
    let mut expected: Vec<Key> = blocks.iter().map(|(cid, _)| key(cid)).collect();
    expected.sort();
    let listed = |start: Option<&Cid>| {
        let blocks = store.blocks(start, 100).unwrap();
        blocks.iter().map(|block| key(&block.cid)).collect::<Vec<_>>()
    };
    assert_eq!(listed(None), expected);
    for (at, start) in expected.iter().enumerate() {
        assert_eq!(listed(Some(&Shared::named(start))), expected[at..]);
    }
}
