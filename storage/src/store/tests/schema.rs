//! Repos of older and newer builds.

use rocksdb::{ColumnFamilyDescriptor, DB, IteratorMode, Options};

use super::*;
use crate::db::{DbError, SCHEMA};

/// Families of a database's blocks, as a build of another version sees them.
fn families(dir: &Path) -> Vec<String> {
    DB::list_cf(&Options::default(), dir.join("blocks")).unwrap()
}

#[test]
fn a_repo_of_the_first_version_is_brought_to_todays_and_keeps_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, data) = block(1, 5000);
    put_all(&store, &[(cid, data.clone())]);
    let mut batch = store.state().batch();
    store.pin(&mut batch, &Pin { expires: Some(100), ..pin("p", PinKind::Direct, cid) }).unwrap();
    store.state().commit(batch).unwrap();
    // What the first version had besides: stamps and marks in the block database, and no index of expiries.
    store.forget_expiries();
    store.state().set_schema(1).unwrap();
    store.close().unwrap();
    let mut options = Options::default();
    options.create_missing_column_families(true);
    options.set_merge_operator_associative("sum", |_, base, _| base.map(<[u8]>::to_vec));
    let mut names = families(dir.path());
    names.extend(["stamps".to_owned(), "marks".to_owned()]);
    drop(DB::open_cf(&options, dir.path().join("blocks"), &names).unwrap());

    let store = open(dir.path());
    assert_eq!(store.state().schema().unwrap(), SCHEMA);
    assert_eq!(store.get(&cid).unwrap(), Some(data));
    assert_eq!(store.expire_pins(99).unwrap(), 0);
    assert_eq!(store.expire_pins(100).unwrap(), 1);
    store.close().unwrap();
    let names = families(dir.path());
    assert!(!names.iter().any(|name| name == "stamps" || name == "marks"), "{names:?}");
}

/// Makes the block database what a build of the second version left: blocks under their keys, longer records.
fn age(dir: &Path, blocks: &[(Cid, Bytes)]) {
    let family = |name: &str| {
        let mut options = Options::default();
        match name {
            "blocks" => {
                options.set_enable_blob_files(true);
                options.set_min_blob_size(1024);
            }
            "default" => options.set_merge_operator_associative("sum", |_, base, _| base.map(<[u8]>::to_vec)),
            _ => {}
        }
        ColumnFamilyDescriptor::new(name, options)
    };
    let path = dir.join("blocks");
    let db =
        DB::open_cf_descriptors(&Options::default(), path, families(dir).iter().map(|name| family(name)));
    let db = db.unwrap();
    let rows = db.cf_handle("blocks").unwrap();
    let named: Vec<_> = db.iterator_cf(rows, IteratorMode::Start).map(|row| row.unwrap().0).collect();
    assert!(named.len() == blocks.len() && named.iter().all(|name| name.len() == 14));
    named.iter().for_each(|name| db.delete_cf(rows, name).unwrap());
    db.flush_cf(rows).unwrap();
    // Their file goes.
    db.compact_range_cf(rows, None::<&[u8]>, None::<&[u8]>);
    for (cid, data) in blocks {
        db.put_cf(rows, key(cid), data).unwrap();
        let size = (data.len() as u32).to_be_bytes();
        let record = [&size[..], &[Class::Own.index() as u8, 0, 1]].concat();
        db.put_cf(db.cf_handle("meta").unwrap(), key(cid), record).unwrap();
    }
    db.delete(b"named").unwrap();
}

/// Rows of blocks in each directory; those that take blocks first.
fn rows(store: &Store) -> Vec<usize> {
    store.shared.db().unwrap().0.iter().map(|volume| volume.db.rows()).collect()
}

/// Blocks that an older build stored and such as come now are read, met again, put aside, healed and collected alike.
#[test]
fn blocks_under_their_keys_and_under_names_live_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let old: Vec<_> = (0..20).map(|seed| block(seed, 3000)).collect();
    put_all(&store, &old);
    store.state().set_schema(2).unwrap();
    store.close().unwrap();
    age(dir.path(), &old);

    let store = open(dir.path());
    assert_eq!(store.state().schema().unwrap(), SCHEMA);
    let new: Vec<_> = (20..40).map(|seed| block(seed, 3000)).collect();
    assert_eq!(put_all(&store, &old[..10]).new_blocks, 0, "they are met again");
    assert_eq!(put_all(&store, &new).new_blocks, 20);
    let reads = |store: &Store| {
        for (cid, data) in old.iter().chain(&new) {
            assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
        }
    };
    reads(&store);
    assert_eq!(store.verify(None, &mut |_| true).unwrap().checked, 40);
    store.close().unwrap();
    for (_, data) in [&old[3], &new[3]] {
        damage::rot(dir.path(), data);
    }
    let store = open(dir.path());
    assert_eq!(store.verify(None, &mut |_| true).unwrap().damaged, 2);
    assert_eq!(store.stat().unwrap().quarantined_blocks, 2);
    put_all(&store, &[old[3].clone(), new[3].clone()]);
    reads(&store);
    assert_eq!(rows(&store), [40], "what was healed has one row");
    reopen(&store);
    reads(&store);
    store.close().unwrap();
    let (state, volumes) = readonly::open(dir.path(), &Budget::new(1)).unwrap();
    for (cid, data) in old.iter().chain(&new) {
        assert_eq!(volumes.block(&key(cid)).unwrap().as_ref(), Some(data));
    }
    drop((state, volumes));
    // Where the metadata cannot be read either kind of row tells what it is.
    let whole = crash_copy(dir.path());
    let (table, at) = health::tables_of(&whole.path().join("blocks"), &old[7]).remove(0);
    health::flip(&table, at);
    let damaged = open(whole.path());
    reads(&damaged);
    let mut all: Vec<Key> = old.iter().chain(&new).map(|(cid, _)| key(cid)).collect();
    all.sort();
    let listed: Vec<_> = damaged.blocks(None, 100).unwrap().iter().map(|block| key(&block.cid)).collect();
    assert_eq!(listed, all);
    drop(damaged);
    let store = open(dir.path());
    // Moved to another directory, all have names.
    store.add_directory(&dir.path().join("more")).unwrap();
    let own = store.directories().unwrap()[0].path.clone();
    store.drain_directory(&own, &mut |_, _| true).unwrap();
    reads(&store);
    assert_eq!(rows(&store), [40, 0]);
    store.add_directory(&own).unwrap();
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("kept", PinKind::Direct, old[0].0)).unwrap();
    store.state().commit(batch).unwrap();
    assert_eq!(store.gc().unwrap().freed_blocks, 39);
    assert_eq!(store.blocks(None, 9).unwrap().len(), 1);
    assert_eq!(rows(&store).iter().sum::<usize>(), 1);
    assert_eq!(store.get(&old[0].0).unwrap().as_ref(), Some(&old[0].1));
}

#[test]
fn a_repo_of_a_newer_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.state().set_schema(SCHEMA + 1).unwrap();
    store.close().unwrap();
    let refused = Store::open(options(dir.path())).err().unwrap();
    assert!(matches!(&refused, StoreError::Db(DbError::Newer { found, .. }) if *found == SCHEMA + 1));
}
