//! Backups, torn repos, and damage of every kind: each is told with what it affects, and all else goes on.

use super::*;
use std::path::PathBuf;

/// A root and its leaves.
pub(super) type Dag = (Cid, Vec<(Cid, Bytes)>);

/// A store with three pinned DAGs of a root and eight leaves each, flushed to files between them.
pub(super) fn three(dir: &Path) -> (Store, Vec<Dag>) {
    let store = open(dir);
    let dags = (0..3u64).map(|number| {
        let leaves: Vec<_> = (0..8).map(|leaf| block(100 * (number + 1) + leaf, 5000)).collect();
        let cids: Vec<Cid> = leaves.iter().map(|(cid, _)| *cid).collect();
        let (root, data) = node(number, &cids);
        let mut ingest = store.ingest(Class::Own).unwrap();
        for (cid, data) in leaves.iter().cloned().chain([(root, data)]) {
            ingest.put(&cid, data).unwrap();
        }
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin(&format!("own:{number}"), PinKind::Recursive, root)).unwrap();
        ingest.finish(batch).unwrap();
        store.flush().unwrap();
        (root, leaves)
    });
    let dags = dags.collect();
    (store, dags)
}

/// The files of the block database with that ending.
fn files(dir: &Path, ending: &str) -> Vec<PathBuf> {
    files_in(&dir.join("blocks"), ending)
}

fn files_in(dir: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .collect();
    found.sort();
    found
}

/// The files that hold `data`, and where in them.
fn holding(files: &[PathBuf], data: &[u8]) -> Vec<(PathBuf, usize)> {
    let hits = files.iter().filter_map(|path| {
        let bytes = std::fs::read(path).unwrap();
        Some((path.clone(), bytes.windows(data.len()).position(|window| window == data)?))
    });
    hits.collect()
}

/// The first of them.
fn find(files: &[PathBuf], data: &[u8]) -> (PathBuf, usize) {
    holding(files, data).into_iter().next().expect("it is in a file")
}

/// The tables of the block database in `dir` that list a block, and where: of what is known of it, and of the blocks.
/// Shared with the row before it, the beginning of a row may be left out, and its end may be compressed with what follows.
pub(super) fn tables_of(dir: &Path, (cid, data): &(Cid, Bytes)) -> Vec<(PathBuf, usize)> {
    // The name of a block lies before its bytes.
    let (blobs, at) = find(&files_in(dir, "blob"), &data[..64]);
    let tag = std::fs::read(blobs).unwrap()[at - 11..at - 3].to_vec();
    let tables = files_in(dir, "sst");
    let (known, blocks) = (holding(&tables, &key(cid)[14..30]), holding(&tables, &tag));
    // A small node that links to the block lies in the table of blocks, whichever of the two was made first.
    let alone = known.iter().find(|(path, _)| blocks.iter().all(|(other, _)| other != path));
    [alone.or(known.first()), blocks.first()].map(|found| found.expect("it is in a table").clone()).into()
}

pub(super) fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

/// The pins that lack something, and how many blocks.
pub(super) fn lacking(store: &Store) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    store.examine(&mut |it| found.push((it.pin.id.to_string(), it.lacks.len()))).unwrap();
    found
}

#[test]
fn a_backup_tells_what_it_leaves_in_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("repo"));
    let (left, copied) = (block(1, 5000), block(2, 3000));
    for name in ["file", "again"] {
        let path = dir.path().join(name);
        std::fs::write(&path, [&left.1[..], &copied.1].concat()).unwrap();
        let mut ingest = store.in_place(store.ingest(Class::Own).unwrap());
        for (offset, (cid, data)) in [(0, &left), (5000, &copied)] {
            let place = crate::Place { path: &path, offset, mtime: (0, 0) };
            ingest.put_located(cid, data.clone(), &place).unwrap();
        }
        ingest.finish(store.state().batch()).unwrap();
    }
    // One of them is also added as a copy, which is in the backup.
    put_all(&store, &[copied]);
    let report = store.backup(&dir.path().join("copy")).unwrap();
    assert_eq!((report.blocks, report.bytes), (1, 3000));
    assert_eq!((report.blocks_in_files, report.bytes_in_files), (1, 5000));
}

#[test]
fn a_backup_made_while_others_write_is_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, dags) = three(dir.path());
    let to = tempfile::tempdir().unwrap();
    let copy = to.path().join("copy");
    // On its way while the copy is made: in memory only, and never acknowledged.
    let mut open_ingest = store.ingest(Class::Own).unwrap();
    let (late, data) = block(9, 6000);
    open_ingest.put(&late, data).unwrap();
    open_ingest.expose().unwrap();
    let report = store.backup(&copy).unwrap();
    assert_eq!((report.blocks, report.pins, report.blocks_in_files), (28, 3, 0));
    assert!(matches!(store.backup(&copy), Err(StoreError::Backup { .. })));
    drop(open_ingest);
    unpin(&store, "own:0");
    store.gc().unwrap();
    drop(store);

    let store = open(&copy);
    assert_eq!(store.verify(None, &mut |_| true).unwrap().damaged, 0);
    assert_eq!(lacking(&store), []);
    store.gc().unwrap();
    assert_eq!(store.stat().unwrap().blocks, 27);
    for (cid, data) in dags.iter().flat_map(|(_, leaves)| leaves) {
        assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
    }
}

#[test]
fn halves_of_repos_are_refused_by_name() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &two] {
        three(dir.path()).0.close().unwrap();
    }
    let refused = |dir: &Path| Store::open(options(dir)).err().expect("refused");
    let swap = |part: &str| {
        let aside = one.path().join("aside");
        std::fs::rename(one.path().join(part), &aside).unwrap();
        std::fs::rename(two.path().join(part), one.path().join(part)).unwrap();
        std::fs::rename(aside, two.path().join(part)).unwrap();
    };
    swap("blocks");
    assert!(matches!(refused(one.path()), StoreError::ForeignBlocks { .. }));
    swap("blocks");
    let aside = one.path().join("aside");
    for part in ["blocks", "state"] {
        std::fs::rename(one.path().join(part), &aside).unwrap();
        match (part, refused(one.path())) {
            ("blocks", StoreError::BlocksGone { .. }) => {
                assert!(!one.path().join("blocks").exists(), "nothing was created");
            }
            ("state", StoreError::StateGone { .. }) => {
                std::fs::remove_dir_all(one.path().join("state")).unwrap();
            }
            (part, other) => panic!("without {part}: {other}"),
        }
        std::fs::rename(&aside, one.path().join(part)).unwrap();
    }
    assert_eq!(lacking(&open(one.path())), []);
}

#[test]
fn a_deleted_blob_file_loses_its_blocks_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let (store, dags) = three(dir.path());
    store.close().unwrap();
    let (file, _) = find(&files(dir.path(), "blob"), &dags[1].1[0].1[..64]);
    std::fs::remove_file(file).unwrap();
    let store = open(dir.path());
    assert_eq!(store.verify(None, &mut |_| true).unwrap().damaged, 8);
    assert_eq!(lacking(&store), [("own:1".to_owned(), 8)]);
    for (number, (_, leaves)) in dags.iter().enumerate() {
        for (cid, data) in leaves {
            assert_eq!(store.get(cid).unwrap().as_ref(), (number != 1).then_some(data));
        }
    }
    // The right bytes heal it; others come and go meanwhile.
    put_all(&store, &dags[1].1);
    assert_eq!(lacking(&store), []);
    unpin(&store, "own:0");
    let thorough = GcOptions { thorough: true, ..GcOptions::default() };
    assert_eq!(store.gc_with(thorough, &mut |_| {}).unwrap().freed_blocks, 9);
    put_all(&store, &[block(7, 5000)]);
    store.flush().unwrap();
}

/// What a flipped bit in each table that has the first leaf's key does: in one, and then in the other.
#[test]
fn a_flipped_bit_in_a_table_is_found_and_all_else_goes_on() {
    let mut hit = [false; 2];
    let whole = tempfile::tempdir().unwrap();
    let (store, dags) = three(whole.path());
    store.close().unwrap();
    for which in 0..2 {
        let dir = crash_copy(whole.path());
        let tables = tables_of(&dir.path().join("blocks"), &dags[2].1[0]);
        flip(&tables[which].0, tables[which].1);
        let store = open(dir.path());
        let verified = store.verify(None, &mut |_| true).unwrap();
        for (cid, data) in dags[..2].iter().flat_map(|(_, leaves)| leaves) {
            assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
        }
        // The whole of so small a table is damaged.
        if verified.damaged > 0 {
            hit[0] = true;
            assert_eq!((verified.damaged, verified.reindexed), (9, 0));
            assert_eq!(lacking(&store), [("own:2".to_owned(), 1)], "what is below the root is not known");
            assert!(dags[2].1.iter().all(|(cid, _)| store.get(cid).unwrap().is_none()));
        } else {
            hit[1] = true;
            assert_eq!(verified.reindexed, 9);
            assert_eq!(lacking(&store), []);
            assert!(dags[2].1.iter().all(|(cid, data)| store.get(cid).unwrap().as_ref() == Some(data)));
        }
        // The right bytes heal it, and nothing else is disturbed by what lies in the table still.
        put_all(&store, &dags[2].1);
        let cids: Vec<Cid> = dags[2].1.iter().map(|(cid, _)| *cid).collect();
        put_all(&store, &[node(2, &cids)]);
        assert_eq!(lacking(&store), []);
        assert_eq!(store.verify(None, &mut |_| true).unwrap().reindexed, 0);
        unpin(&store, "own:0");
        let thorough = GcOptions { thorough: true, ..GcOptions::default() };
        let collected = store.gc_with(thorough, &mut |_| {}).unwrap();
        assert_eq!((collected.freed_blocks, collected.kept_by_damage), (9, true));
        assert!(!store.has_unfinished_collection().unwrap());
        // Tables pile up before one that cannot be compacted: more of them than RocksDB allows by default.
        for seed in 0..50 {
            put_all(&store, &[block(1000 + seed, 5000)]);
            store.flush().unwrap();
        }
    }
    assert_eq!(hit, [true, true]);
}

#[test]
fn a_flipped_bit_in_the_log_loses_nothing_before_it_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let blocks: Vec<_> = (0..9).map(|seed| block(seed, 40_000)).collect();
    for (number, each) in blocks.iter().enumerate() {
        let mut ingest = store.ingest(Class::Own).unwrap();
        ingest.put(&each.0, each.1.clone()).unwrap();
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin(&format!("own:{number}"), PinKind::Recursive, each.0)).unwrap();
        ingest.finish(batch).unwrap();
    }
    let copy = crash_copy(dir.path());
    let (file, at) = find(&files(copy.path(), "log"), &blocks[4].1[..64]);
    flip(&file, at + 20_000);
    let store = open(copy.path());
    let lost: Vec<String> = lacking(&store).into_iter().map(|(pin, _)| pin).collect();
    // At worst, what came after it in the log.
    let after: Vec<String> = (4..9).map(|number| format!("own:{number}")).collect();
    assert!(lost.contains(&after[0]) && lost.iter().all(|pin| after.contains(pin)), "{lost:?}");
    let stat = store.stat().unwrap();
    let left = (blocks.len() - lost.len()) as u64;
    assert_eq!((stat.blocks, stat.bytes), (left, left * 40_000), "the books fit what is here");
    for (number, (cid, data)) in blocks.iter().enumerate() {
        let expected = (!lost.contains(&format!("own:{number}"))).then_some(data);
        assert_eq!(store.get(cid).unwrap().as_ref(), expected);
    }
}

#[test]
fn what_a_crash_left_of_a_blob_file_goes_and_a_damaged_one_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (store, dags) = three(dir.path());
    store.close().unwrap();
    let files = || files(dir.path(), "blob");
    let live = files();
    // Half of a file that a flush did not finish.
    let half = std::fs::read(&live[0]).unwrap();
    std::fs::write(dir.path().join("blocks/000003.blob"), &half[..half.len() / 2]).unwrap();
    let store = open(dir.path());
    assert_eq!(files(), live);
    store.close().unwrap();
    // A live file that lost its footer is damaged, and not left over.
    let bytes = std::fs::read(&live[1]).unwrap();
    std::fs::write(&live[1], &bytes[..bytes.len() - 7]).unwrap();
    let store = open(dir.path());
    assert_eq!(files(), live);
    assert!(store.verify(None, &mut |_| true).unwrap().damaged > 0);
    assert_eq!(lacking(&store), [("own:1".to_owned(), 8)]);
    assert_eq!(store.get(&dags[0].1[0].0).unwrap().as_ref(), Some(&dags[0].1[0].1));
}
