//! Repos of older and newer builds.

use rocksdb::{DB, Options};

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

#[test]
fn a_repo_of_a_newer_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.state().set_schema(SCHEMA + 1).unwrap();
    store.close().unwrap();
    let refused = Store::open(options(dir.path())).err().unwrap();
    assert!(matches!(&refused, StoreError::Db(DbError::Newer { found, .. }) if *found == SCHEMA + 1));
}
