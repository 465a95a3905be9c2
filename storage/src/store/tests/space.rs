//! Quotas, promises, reserves, expiry.

use super::*;

fn limited(dir: &Path, hosted: u64) -> Store {
    let quota = Quota { hosted: Some(hosted), ..Quota::default() };
    Store::open(StoreOptions { quota, ..options(dir) }).unwrap()
}

fn usage(store: &Store, class: Class) -> (u64, u64) {
    let stat = store.stat().unwrap().classes[class.index()];
    (stat.bytes, stat.reserved_bytes)
}

fn gc_at(store: &Store, now: u64) -> GcReport {
    store.gc_at(now, GcOptions::default(), &mut |_| {}).unwrap()
}

#[test]
fn the_quota_is_strict_and_refusals_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let store = limited(dir.path(), 1000);
    let (cid, data) = block(1, 1001);
    let mut ingest = store.ingest(Class::Hosted).unwrap();
    ingest.put(&cid, data.clone()).unwrap();
    let error = ingest.finish(store.state().batch()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not enough space: 1001 B asked, 1000 B free of the 1000 B quota for hosted data; nothing was kept"
    );
    assert!(!store.has(&cid).unwrap());
    assert_eq!(usage(&store, Class::Hosted), (0, 0));
    assert!(store.check_space(Class::Hosted, 1001).is_err());
    store.check_space(Class::Hosted, 1000).unwrap();
    // Somebody else's quota is not touched, and a hit costs nothing.
    put_all(&store, &[(cid, data.clone())]);
    let mut ingest = store.ingest(Class::Hosted).unwrap();
    ingest.put(&cid, data).unwrap();
    ingest.finish(store.state().batch()).unwrap();
    assert_eq!(usage(&store, Class::Hosted), (0, 0));
}

#[test]
fn promises_hold_space_across_restarts_until_they_are_filled() {
    let dir = tempfile::tempdir().unwrap();
    let store = limited(dir.path(), 1000);
    let mut batch = store.state().batch();
    store.reserve(&mut batch, "a", Class::Hosted, 600).unwrap();
    // Not committed yet, but nobody else may have it.
    let mut rival = store.state().batch();
    assert!(store.reserve(&mut rival, "b", Class::Hosted, 500).is_err());
    store.state().commit(batch).unwrap();
    let mut abandoned = store.state().batch();
    store.reserve(&mut abandoned, "b", Class::Hosted, 400).unwrap();
    assert_eq!(usage(&store, Class::Hosted), (0, 1000));
    drop(abandoned);
    drop(rival);
    assert_eq!(usage(&store, Class::Hosted), (0, 600));
    drop(store);

    let store = limited(dir.path(), 1000);
    assert_eq!(usage(&store, Class::Hosted), (0, 600));
    let mut ingest = store.ingest_reserved(Class::Hosted, "a").unwrap();
    let (cid, data) = block(1, 600);
    ingest.put(&cid, data.clone()).unwrap();
    ingest.expose().unwrap();
    assert_eq!(usage(&store, Class::Hosted), (600, 0));
    drop(ingest);
    // Given up, the promise is whole again; the second attempt finds its blocks here.
    assert_eq!(usage(&store, Class::Hosted), (600, 600));
    let mut ingest = store.ingest_reserved(Class::Hosted, "a").unwrap();
    ingest.put(&cid, data).unwrap();
    let mut batch = store.state().batch();
    store.pin_list(&mut batch, &pin("agreement:a", PinKind::List, cid), &[cid]).unwrap();
    store.unreserve(&mut batch, "a").unwrap();
    ingest.finish(batch).unwrap();
    assert_eq!(usage(&store, Class::Hosted), (600, 0));
    store.gc().unwrap();
    assert_eq!(usage(&store, Class::Hosted), (600, 0));
    unpin(&store, "agreement:a");
    store.gc().unwrap();
    assert_eq!(usage(&store, Class::Hosted), (0, 0));
}

#[test]
fn a_cached_block_that_is_wanted_for_good_changes_its_books() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, data) = block(1, 5000);
    let mut ingest = store.ingest(Class::Cache).unwrap();
    ingest.put(&cid, data.clone()).unwrap();
    ingest.finish(store.state().batch()).unwrap();
    assert_eq!(usage(&store, Class::Cache).0, 5000);
    put_all(&store, &[(cid, data)]);
    assert_eq!((usage(&store, Class::Cache).0, usage(&store, Class::Own).0), (0, 5000));
    drop(store);
    let store = open(dir.path());
    assert_eq!((usage(&store, Class::Cache).0, usage(&store, Class::Own).0), (0, 5000));
    assert_eq!(store.stat().unwrap().blocks, 1);
}

#[test]
fn the_disk_keeps_its_reserve() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(StoreOptions { reserve_bytes: u64::MAX, ..options(dir.path()) }).unwrap();
    let (cid, data) = block(1, 10);
    let mut ingest = store.ingest(Class::Own).unwrap();
    ingest.put(&cid, data).unwrap();
    let error = ingest.finish(store.state().batch()).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { asked: 10, .. }), "{error}");
    assert!(!store.has(&cid).unwrap());
}

#[test]
fn expired_pins_go_and_lists_are_replaced_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // More than one page of a list.
    let blocks: Vec<_> = (0..5000).map(|seed| block(seed, 40)).collect();
    let cids: Vec<Cid> = blocks.iter().map(|(cid, _)| *cid).collect();
    put_all(&store, &blocks);
    let rented = Pin { expires: Some(100), ..pin("agreement:1", PinKind::List, cids[0]) };
    let mut batch = store.state().batch();
    store.pin_list(&mut batch, &rented, &cids).unwrap();
    store.state().commit(batch).unwrap();
    assert_eq!(gc_at(&store, 99).freed_blocks, 0);
    // A shorter list lets the rest go; renewing keeps the list.
    let mut batch = store.state().batch();
    store.pin_list(&mut batch, &rented, &cids[..10]).unwrap();
    store.state().commit(batch).unwrap();
    assert_eq!(gc_at(&store, 99).freed_blocks, 4990);
    let mut batch = store.state().batch();
    store.pin(&mut batch, &Pin { expires: Some(200), ..rented.clone() }).unwrap();
    store.state().commit(batch).unwrap();
    assert_eq!(gc_at(&store, 100).freed_blocks, 0);
    let report = gc_at(&store, 200);
    assert_eq!((report.expired_pins, report.freed_blocks), (1, 10));
    assert_eq!(store.pins().unwrap(), []);
    let mut batch = store.state().batch();
    assert!(matches!(store.pin(&mut batch, &rented), Err(StoreError::NoSuchPin(_))));
}

#[test]
fn what_is_kept_moves_from_the_cache_to_whoever_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let quota = Quota { own: Some(6000), ..Quota::default() };
    let store = Store::open(StoreOptions { quota, ..options(dir.path()) }).unwrap();
    let (fits, too_much) = (block(1, 5000), block(2, 5000));
    let mut ingest = store.ingest(Class::Cache).unwrap();
    for (cid, data) in [&fits, &too_much] {
        ingest.put(cid, data.clone()).unwrap();
    }
    ingest.finish(store.state().batch()).unwrap();
    let keep = |cid: &Cid| {
        let mut ingest = store.ingest(Class::Own).unwrap();
        assert!(ingest.keep(cid).unwrap());
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin("p", PinKind::Direct, *cid)).unwrap();
        ingest.finish(batch)
    };
    keep(&fits.0).unwrap();
    assert_eq!((usage(&store, Class::Cache).0, usage(&store, Class::Own).0), (5000, 5000));
    let refused = keep(&too_much.0).unwrap_err();
    assert!(matches!(refused, StoreError::QuotaExceeded { .. }), "{refused}");
    assert_eq!((usage(&store, Class::Cache).0, usage(&store, Class::Own).0), (5000, 5000));
}
