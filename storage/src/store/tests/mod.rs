//! The store as its callers see it.

mod collect;
mod damage;
mod durability;
mod flips;
mod health;
mod hot;
mod indirect;
mod model;
mod moves;
mod rebuild;
mod remove;
mod schema;
mod space;
mod volumes;

use std::path::Path;

use bytes::Bytes;
use cid::Cid;

use super::*;
use crate::{BlockSink, hash};

fn options(dir: &Path) -> StoreOptions {
    StoreOptions { path: dir.to_owned(), tables: Vec::new(), quota: Quota::default(), reserve_bytes: 0 }
}

fn open(dir: &Path) -> Store {
    Store::open(options(dir)).unwrap()
}

/// `size` bytes that depend on `seed` alone, and their CID.
fn block(seed: u64, size: usize) -> (Cid, Bytes) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(size)
    .collect();
    (hash::cid_v1(hash::RAW, &data), data.into())
}

/// A DAG-CBOR node that links to `children`.
fn node(seed: u64, children: &[Cid]) -> (Cid, Bytes) {
    let data = serde_ipld_dagcbor::to_vec(&(seed, children)).unwrap();
    (hash::cid_v1(hash::DAG_CBOR, &data), data.into())
}

fn pin(id: &str, kind: PinKind, root: Cid) -> Pin {
    Pin { id: id.into(), kind, root, class: Class::Own, name: None, expires: None }
}

/// Puts blocks and acknowledges them, unpinned.
fn put_all(store: &Store, blocks: &[(Cid, Bytes)]) -> Ingested {
    let mut ingest = store.ingest(Class::Own).unwrap();
    for (cid, data) in blocks {
        ingest.put(cid, data.clone()).unwrap();
    }
    ingest.finish(store.state().batch()).unwrap()
}

fn unpin(store: &Store, id: &str) {
    let mut batch = store.state().batch();
    assert!(store.unpin(&mut batch, &id.into()).unwrap());
    store.state().commit(batch).unwrap();
}

/// Closes the block database and opens it again, as after a fault. Nobody else may hold it.
fn reopen(store: &Store) {
    let mut slot = store.shared.slot.write();
    let db = slot.db.take().unwrap();
    assert!(db.close().is_ok(), "somebody holds the database");
    let directories = opening::load(store.state(), &store.shared.root).unwrap();
    store.shared.put_reopened(&mut slot, &directories, &How::Again(Vec::new())).unwrap();
}

/// The directory as a crash at this moment would leave it. Nobody may write meanwhile; the databases may still be about
/// to delete files of theirs, so it is copied again until that is over.
fn crash_copy(dir: &Path) -> tempfile::TempDir {
    loop {
        let copy = tempfile::tempdir().unwrap();
        let before = files_below(dir);
        let copied = before.iter().all(|(file, _)| {
            let target = copy.path().join(file);
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::copy(dir.join(file), target).is_ok()
        });
        if copied && files_below(dir) == before {
            return copy;
        }
    }
}

/// Files below a directory and their sizes, without locks.
fn files_below(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    for part in std::fs::read_dir(dir).unwrap().map(|part| part.unwrap().path()).filter(|part| part.is_dir())
    {
        for entry in std::fs::read_dir(&part).unwrap().map(Result::unwrap) {
            let name = Path::new(part.file_name().unwrap()).join(entry.file_name());
            if entry.file_name() != "LOCK" {
                // One that is deleted just now is copied in vain, and all of them again.
                files.push((name, entry.metadata().map_or(0, |metadata| metadata.len())));
            }
        }
    }
    files.sort();
    files
}

#[test]
fn blocks_come_back_by_any_cid_of_their_hash() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, data) = block(1, 5000);
    let done = put_all(&store, &[(cid, data.clone()), (cid, data.clone())]);
    assert_eq!(done, Ingested { blocks: 2, bytes: 10_000, new_blocks: 1, new_bytes: 5000 });
    let v0 = Cid::new_v0(*cid.hash()).unwrap();
    assert_eq!(store.get(&v0).unwrap(), Some(data.clone()));
    assert_eq!(store.block_size(&v0).unwrap(), Some(5000));
    let (absent, _) = block(2, 10);
    assert_eq!(store.get(&absent).unwrap(), None);
    assert!(!store.has(&absent).unwrap());
    let done = put_all(&store, &[(v0, data)]);
    assert_eq!(done.new_blocks, 0);
}

#[test]
fn identity_cids_resolve_themselves_and_are_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let cid = hash::cid_from_digest(hash::RAW, hash::IDENTITY, b"tiny");
    put_all(&store, &[(cid, Bytes::from_static(b"tiny"))]);
    assert_eq!(store.get(&cid).unwrap().unwrap(), "tiny");
    assert_eq!(store.block_size(&cid).unwrap(), Some(4));
    assert_eq!(store.stat().unwrap().blocks, 0);
}

#[test]
fn blocks_may_be_named_by_other_functions() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (sha2, data) = block(1, 5000);
    let named = |name: &str, data: &[u8]| {
        Cid::new_v1(hash::RAW, name.parse::<hash::Function>().unwrap().multihash(data))
    };
    let names = ["sha2-512", "sha3-256", "blake2b-256", "blake3"];
    let mut blocks = vec![(sha2, data.clone())];
    blocks.extend(names.map(|name| (named(name, &data), data.clone())));
    assert_eq!(put_all(&store, &blocks).new_blocks, 5, "each name is a block of its own");
    assert!(blocks.iter().all(|(cid, _)| store.get(cid).unwrap().as_ref() == Some(&data)));
    let empty = names.map(|name| (named(name, b""), Bytes::new()));
    assert_eq!(put_all(&store, &empty).new_blocks, 0, "nothing is not stored, whatever its name");
    assert!(empty.iter().all(|(cid, _)| store.get(cid).unwrap().is_some_and(|data| data.is_empty())));
    let mut ingest = store.ingest(Class::Cache).unwrap();
    for (cid, _) in &blocks {
        assert!(matches!(ingest.put_verified(cid, data.slice(1..)), Err(StoreError::Hash(_))));
        let cut = hash::cid_from_digest(hash::RAW, cid.hash().code(), &cid.hash().digest()[..19]);
        assert!(matches!(ingest.put(&cut, data.clone()), Err(StoreError::Hash(_))));
    }
}

#[test]
fn foreign_bytes_are_checked_at_the_door() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, _) = block(1, 100);
    let (_, other) = block(2, 100);
    let mut ingest = store.ingest(Class::Cache).unwrap();
    assert!(matches!(ingest.put_verified(&cid, other), Err(StoreError::Hash(_))));
    let big = Bytes::from(vec![0; crate::MAX_BLOCK + 1]);
    let big_cid = hash::cid_v1(hash::RAW, &big);
    assert!(matches!(ingest.put_verified(&big_cid, big.clone()), Err(StoreError::TooLarge { .. })));
    assert!(matches!(ingest.put(&big_cid, big), Err(StoreError::TooLarge { .. })));
    let root = hash::cid_from_digest(hash::RAW, hash::BT_PIECES_ROOT, &[7; 32]);
    assert!(matches!(ingest.put(&root, Bytes::new()), Err(StoreError::Hash(_))));
    let (cid, data) = block(3, 100);
    ingest.put_verified(&cid, data).unwrap();
    assert_eq!(ingest.finish(store.state().batch()).unwrap().new_blocks, 1);
}

#[test]
fn handed_out_bytes_outlive_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (cid, data) = block(1, 300_000);
    put_all(&store, &[(cid, data.clone())]);
    store.flush().unwrap();
    let held = store.get(&cid).unwrap().unwrap();
    let part = held.slice(1000..2000);
    drop((held, store));
    assert_eq!(part, data.slice(1000..2000));
}

#[test]
fn aliases_live_as_long_as_a_pin_of_their_root() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (root, data) = block(1, 100);
    let found = alias::Alias { root, offset: 16, length: 7 };
    let mut ingest = store.ingest(Class::Own).unwrap();
    ingest.put(&root, data).unwrap();
    let mut batch = store.state().batch();
    for id in ["a", "b"] {
        store.pin(&mut batch, &pin(id, PinKind::Recursive, root)).unwrap();
    }
    alias::add(&mut batch, b"infohash", &found).unwrap();
    alias::add(&mut batch, b"infohash", &alias::Alias { offset: 0, ..found }).unwrap();
    ingest.finish(batch).unwrap();
    let lookup = || alias::lookup(store.state(), b"infohash").unwrap();
    assert_eq!(lookup(), [alias::Alias { offset: 0, ..found }, found]);
    assert_eq!(alias::lookup(store.state(), b"infohas").unwrap(), []);
    unpin(&store, "a");
    assert_eq!(lookup().len(), 2);
    unpin(&store, "b");
    assert_eq!(lookup(), []);
    store.gc().unwrap();
    // Pinned again, the root is a stranger to the hash.
    put_all(&store, &[block(1, 100)]);
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("c", PinKind::Direct, root)).unwrap();
    store.state().commit(batch).unwrap();
    assert_eq!(lookup(), []);
}

#[tokio::test]
async fn calls_run_on_the_pool_and_panics_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = store.run(|_| std::thread::current().name().map(str::to_owned)).await;
    assert!(name.unwrap().starts_with("store-"));
    let many = (0..1000u64).map(|number| store.run(move |_| number));
    let sum: u64 = futures::future::join_all(many).await.into_iter().sum();
    assert_eq!(sum, 499_500);
    let store = store.clone();
    let failed = tokio::spawn(async move { store.run(|_| panic!("boom")).await }).await;
    assert!(failed.unwrap_err().is_panic());
}
