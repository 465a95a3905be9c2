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

#[test]
fn nothing_but_the_file_s_bytes_is_ever_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let path = dir.path().join("file");
    let content = noise(&path, 5, 3000);
    let cid = leave_in_place(&store, &path);
    let problem = || match store.get(&cid) {
        Err(StoreError::NotInFile { cid: named, path: file, problem }) => {
            assert_eq!((named, file.as_path()), (cid, path.as_path()));
            problem
        }
        other => panic!("{other:?}"),
    };
    let examined = || {
        let mut lacks = Vec::new();
        store.examine(&mut |found| lacks.extend(found.lacks)).unwrap();
        lacks
    };
    assert!(examined().is_empty());
    fs::write(&path, &content[..2999]).unwrap();
    assert!(problem().contains("shorter"));
    assert_eq!(examined(), [cid]);
    let again = pin(cid);
    let mut batch = store.state().batch();
    store.pin(&mut batch, &Pin { id: "own:again".into(), ..again }).unwrap();
    assert!(store.state().commit(batch).is_err(), "nobody can rely on it");
    fs::remove_file(&path).unwrap();
    assert!(problem().contains("cannot be read"));
    // Opening it as a reader would wait for ever for a writer.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(problem().contains("no file"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(problem().contains("no file"));
    fs::remove_dir(&path).unwrap();
    // Longer, with the block where it was: what was added is still there.
    fs::write(&path, [&content[..], b"more"].concat()).unwrap();
    assert_eq!(store.get(&cid).unwrap().as_deref(), Some(&content[..]));
    assert!(store.scrub(None, 100).unwrap().damaged.is_empty());
    assert!(examined().is_empty());
}

#[test]
fn places_made_or_relied_upon_survive_a_collection_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let paths = [1u64, 2, 3].map(|n| dir.path().join(n.to_string()));
    let cids = [1u64, 2, 3].map(|n| {
        noise(&paths[n as usize - 1], 10 + n, 1000);
        let cid = leave_in_place(&store, &paths[n as usize - 1]);
        unpin(&store, cid);
        cid
    });
    let count = || store.located(None, 100).unwrap().len();
    let during = |act: &(dyn Fn() + Sync)| {
        let mut acted = false;
        store.gc_with(crate::GcOptions::default(), &mut |_| {
            if !std::mem::replace(&mut acted, true) {
                act();
            }
        })
    };
    assert_eq!(
        store
            .gc_with(crate::GcOptions { dry_run: true, ..Default::default() }, &mut |_| {})
            .unwrap()
            .forgotten_places,
        3
    );
    assert_eq!(count(), 3);
    let report = during(&|| assert_eq!(leave_in_place(&store, &paths[0]), cids[0])).unwrap();
    assert_eq!((report.forgotten_places, count()), (0, 3));
    unpin(&store, cids[0]);
    let report = during(&|| {
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin(cids[1])).unwrap();
        store.state().commit(batch).unwrap();
    });
    assert_eq!((report.unwrap().forgotten_places, count()), (0, 3));
    assert_eq!((store.gc().unwrap().forgotten_places, count()), (2, 1));
    assert!(store.has(&cids[1]).unwrap() && !store.has(&cids[2]).unwrap());
}

#[test]
fn single_blocks_in_files_are_forgotten_on_demand() {
    use crate::Removal::{Absent, Pinned, Removed};
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let path = dir.path().join("file");
    noise(&path, 6, 1000);
    let cid = leave_in_place(&store, &path);
    assert_eq!(store.remove_unpinned(&[cid]).unwrap(), [Pinned]);
    unpin(&store, cid);
    assert_eq!(store.remove_unpinned(&[cid]).unwrap(), [Removed]);
    assert_eq!(store.remove_unpinned(&[cid]).unwrap(), [Absent]);
    leave_in_place(&store, &path);
    assert!(store.remove(&cid).unwrap() && !store.has(&cid).unwrap());
    assert!(path.exists());
}

/// The bytes of a leaf may be a node too, under another CID.
#[test]
fn a_file_that_is_a_node_can_be_pinned_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (child, path) = (dir.path().join("child"), dir.path().join("node"));
    noise(&child, 7, 500);
    let leaf = leave_in_place(&store, &child);
    let link = crate::dagpb::PbLink { cid: leaf, name: Some("child".into()), tsize: Some(500) };
    let data = Data::directory();
    let (node, block) = Profile::V1_2025.node(vec![link], &data);
    fs::write(&path, &block).unwrap();
    let raw = leave_in_place(&store, &path);
    assert_eq!(raw.hash(), node.hash());
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin(node)).unwrap();
    store.state().commit(batch).unwrap();
    assert_eq!(store.gc().unwrap().forgotten_places, 0);
    fs::remove_file(&path).unwrap();
    assert!(matches!(store.gc(), Err(StoreError::PinDamaged { .. })));
}
