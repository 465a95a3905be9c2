//! Imports into a real store: what is repeated, and what stays in its files.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::*;
use crate::read::FileReader;
use crate::testing::Noise;
use crate::{BlockSource, Class, Ingested, Pin, PinKind, Quota, Store, StoreOptions};

fn open(dir: &Path) -> Store {
    let options = StoreOptions {
        path: dir.join("repo"),
        tables: Vec::new(),
        quota: Quota::default(),
        reserve_bytes: 0,
    };
    Store::open(options).unwrap()
}

fn noise(path: &Path, seed: u64, len: u64) -> Vec<u8> {
    let mut content = Vec::new();
    Noise::new(seed).take(len).read_to_end(&mut content).unwrap();
    fs::write(path, &content).unwrap();
    content
}

fn pin(root: Cid) -> Pin {
    Pin {
        id: "own:test".into(),
        kind: PinKind::Recursive,
        root,
        class: Class::Own,
        name: None,
        expires: None,
    }
}

/// Fails after some blocks, as a disk or a person may.
struct Interrupted {
    ingest: crate::Ingest,
    left: u32,
}

impl BlockSink for Interrupted {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        self.left = self.left.checked_sub(1).ok_or(StoreError::IngestFailed)?;
        self.ingest.put(cid, data)
    }
}

#[test]
fn an_import_that_is_repeated_writes_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let path = dir.path().join("file");
    noise(&path, 1, 24 << 20);
    let options = ImportOptions::default();
    let import = |sink: &mut dyn BlockSink| {
        import_path(&path, &Profile::V1_2025, &options, sink, &mut |_| {}).map(|made| made.root)
    };
    let mut interrupted = Interrupted { ingest: store.ingest(Class::Own).unwrap(), left: 17 };
    assert!(matches!(import(&mut interrupted), Err(ImportError::Store(_))));
    drop(interrupted);
    let whole = || -> Ingested {
        let mut ingest = store.ingest(Class::Own).unwrap();
        let root = import(&mut ingest).unwrap();
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin(root)).unwrap();
        ingest.finish(batch).unwrap()
    };
    let resumed = whole();
    assert_eq!(resumed.blocks, 25);
    assert!(resumed.new_blocks <= 13, "{resumed:?}");
    assert_eq!((whole().new_blocks, whole().new_bytes), (0, 0));
}

/// Imports `path` without copying it, pinned; answers its root.
fn leave_in_place(store: &Store, path: &Path) -> Cid {
    let options = ImportOptions { in_place: true, ..ImportOptions::default() };
    let mut sink = store.in_place(store.ingest(Class::Own).unwrap());
    let made = import_path(path, &Profile::V1_2025, &options, &mut sink, &mut |_| {}).unwrap();
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin(made.root)).unwrap();
    sink.finish(batch).unwrap();
    made.root
}

fn unpin(store: &Store, root: Cid) {
    let mut batch = store.state().batch();
    store.unpin(&mut batch, &pin(root).id).unwrap();
    store.state().commit(batch).unwrap();
}

#[test]
fn places_live_as_long_as_their_pins() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let path = dir.path().join("file");
    let content = noise(&path, 2, (5 << 20) + 1);
    let root = leave_in_place(&store, &path);
    let read = |store: &Store| {
        let mut read = Vec::new();
        FileReader::open(store, &root).and_then(|mut reader| {
            reader
                .read_to_end(&mut read)
                .map_err(|error| crate::read::ReadError::Write { path: path.clone(), source: error })
        })?;
        Ok::<_, crate::read::ReadError>(read)
    };
    assert_eq!(store.located(None, 100).unwrap().len(), 6);
    assert!(store.stat().unwrap().bytes < 1000, "only the root is copied");
    store.gc().unwrap();
    assert!(read(&store).unwrap() == content);
    drop(store);
    let store = open(dir.path());
    assert!(read(&store).unwrap() == content, "places outlive the process");

    // Somebody is at work, who may be about to pin it again: nothing is forgotten.
    unpin(&store, root);
    let lease = store.ingest(Class::Own).unwrap();
    store.gc().unwrap();
    assert_eq!(store.located(None, 100).unwrap().len(), 6);
    drop(lease);
    // The root is an ordinary block and went.
    store.gc().unwrap();
    assert_eq!(store.located(None, 100).unwrap().len(), 0);
    assert!(matches!(read(&store), Err(crate::read::ReadError::Missing(_))));
}

#[test]
fn any_file_that_still_holds_a_block_serves_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let content = noise(&one, 3, 1000);
    fs::copy(&one, &two).unwrap();
    let cid = leave_in_place(&store, &one);
    assert_eq!(leave_in_place(&store, &two), cid);
    let pages: Vec<_> = store.located(None, 1).unwrap();
    assert_eq!(store.located(pages.first(), 10).unwrap().len(), 1, "one place behind the other");
    fs::write(&one, vec![0; 1000]).unwrap();
    assert_eq!(store.get(&cid).unwrap().as_deref(), Some(&content[..]));
    fs::remove_file(&two).unwrap();
    let told = store.get(&cid).unwrap_err().to_string();
    assert!(told.contains("which") && told.contains(&cid.to_string()), "{told}");
    assert_eq!(store.block_size(&cid).unwrap(), Some(1000));
    // A copy in the store needs no file.
    fs::write(&one, &content).unwrap();
    let mut ingest = store.ingest(Class::Own).unwrap();
    ingest.put(&cid, Bytes::from(content.clone())).unwrap();
    ingest.finish(store.state().batch()).unwrap();
    fs::remove_file(&one).unwrap();
    assert_eq!(store.get(&cid).unwrap().as_deref(), Some(&content[..]));
}

#[test]
fn what_others_rent_does_not_hang_on_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let path = dir.path().join("file");
    noise(&path, 4, 100);
    let cid = leave_in_place(&store, &path);
    assert!(store.ingest(Class::Own).unwrap().keep(&cid).unwrap());
    assert!(!store.ingest(Class::Hosted).unwrap().keep(&cid).unwrap());
}
