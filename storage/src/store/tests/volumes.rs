//! Several data directories.

use std::sync::atomic::{AtomicBool, Ordering};

use super::super::volumes::drain::Drain;
use super::*;

/// A store with a second directory below the repo, and blocks in both.
fn spread() -> (tempfile::TempDir, Store, Vec<(Cid, Bytes)>) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.add_directory(&dir.path().join("more")).unwrap();
    let blocks: Vec<_> = (0..40).map(|seed| block(seed, 10_000 + seed as usize)).collect();
    for some in blocks.chunks(4) {
        put_all(&store, some);
    }
    for (number, (cid, _)) in blocks.iter().enumerate() {
        keep(&store, &number.to_string(), *cid);
    }
    (dir, store, blocks)
}

fn keep(store: &Store, id: &str, cid: Cid) {
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin(id, PinKind::Direct, cid)).unwrap();
    store.state().commit(batch).unwrap();
}

#[track_caller]
fn all_here(store: &Store, blocks: &[(Cid, Bytes)]) {
    for (cid, data) in blocks {
        assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
        assert_eq!(store.block_size(cid).unwrap(), Some(data.len() as u64));
    }
    let mut keys: Vec<_> = blocks.iter().map(|(cid, _)| key(cid)).collect();
    keys.sort();
    let listed: Vec<_> = store.blocks(None, 1000).unwrap().iter().map(|block| key(&block.cid)).collect();
    assert_eq!(listed, keys, "each is listed once, in order");
}

#[track_caller]
fn counted(store: &Store, blocks: &[(Cid, Bytes)]) {
    let bytes = blocks.iter().map(|(_, data)| data.len() as u64).sum();
    let stat = store.stat().unwrap();
    assert_eq!((stat.blocks, stat.bytes), (blocks.len() as u64, bytes));
    let each = store.directories().unwrap();
    assert_eq!(each.iter().map(|directory| directory.bytes).sum::<u64>(), bytes);
    assert_eq!(each.iter().map(|directory| directory.blocks).sum::<u64>(), blocks.len() as u64);
}

#[test]
fn blocks_spread_over_directories_and_are_found_counted_and_collected_in_all() {
    let (dir, store, mut blocks) = spread();
    let each = store.directories().unwrap();
    assert!(each.len() == 2 && each.iter().all(|directory| directory.bytes > 100_000), "{each:?}");
    all_here(&store, &blocks);
    assert_eq!(put_all(&store, &blocks).new_blocks, 0, "a block is known wherever it is");
    store.close().unwrap();
    let store = open(dir.path());
    all_here(&store, &blocks);
    counted(&store, &blocks);
    for number in 20..40 {
        unpin(&store, &number.to_string());
    }
    assert_eq!(store.gc().unwrap().freed_blocks, 20);
    blocks.truncate(20);
    all_here(&store, &blocks);
    counted(&store, &blocks);
}

#[test]
fn a_directory_is_emptied_and_given_up() {
    let (dir, store, blocks) = spread();
    let more = dir.path().join("more");
    let held = store.directories().unwrap()[1].bytes;
    let mut told = 0;
    let moved = store.drain_directory(&more, &mut |done, total| {
        assert!(done <= total && total == held);
        told = done;
        true
    });
    assert_eq!((moved.unwrap(), told), (held, held));
    assert_eq!(store.directories().unwrap().len(), 1);
    assert!(!more.exists(), "nothing of it is left");
    all_here(&store, &blocks);
    counted(&store, &blocks);
    store.close().unwrap();
    let store = open(dir.path());
    all_here(&store, &blocks);
    counted(&store, &blocks);
}

#[test]
fn the_store_s_own_directory_can_be_emptied_and_taken_in_again() {
    let (dir, store, blocks) = spread();
    let own = dir.path().join("blocks");
    store.drain_directory(&own, &mut |_, _| true).unwrap();
    let each = store.directories().unwrap();
    assert!(
        each[0].state == DirectoryState::Emptied
            && each[0].bytes == 0
            && each[1].state == DirectoryState::Open,
        "{each:?}"
    );
    store.close().unwrap();
    let store = open(dir.path());
    let more = block(99, 5000);
    put_all(&store, std::slice::from_ref(&more));
    assert_eq!(store.directories().unwrap()[0].blocks, 0, "it takes no new blocks");
    all_here(&store, &[blocks, vec![more]].concat());
    store.add_directory(&own).unwrap();
    put_all(&store, &[block(100, 5000)]);
    assert_eq!(store.directories().unwrap()[0].blocks, 1);
}

#[test]
fn emptying_goes_on_after_a_crash_at_any_point() {
    let (dir, store, blocks) = spread();
    let more = dir.path().join("more");
    let mut drain = Drain::begin(&store, &more).unwrap();
    drain.portion = 50_000;
    let mut copies = Vec::new();
    loop {
        let window = drain.copy_next().unwrap();
        all_here(&store, &blocks);
        copies.push(crash_copy(dir.path()));
        assert!(drain.delete_window(&window).unwrap());
        all_here(&store, &blocks);
        copies.push(crash_copy(dir.path()));
        if window.is_empty() {
            break;
        }
    }
    drain.finish().unwrap();
    counted(&store, &blocks);
    for copy in copies {
        let store = open(copy.path());
        all_here(&store, &blocks);
        // What was in two places is deleted in both.
        unpin(&store, "7");
        store.gc().unwrap();
        let left: Vec<_> =
            blocks.iter().enumerate().filter(|(n, _)| *n != 7).map(|(_, b)| b.clone()).collect();
        all_here(&store, &left);
        store.drain_directory(&copy.path().join("more"), &mut |_, _| true).unwrap();
        all_here(&store, &left);
        counted(&store, &left);
    }
}

/// Ends the other threads, also when this one panics.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn whoever_adds_and_reads_does_not_notice_an_emptying() {
    let (dir, store, blocks) = spread();
    let more = dir.path().join("more");
    let done = AtomicBool::new(false);
    let added = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut added = Vec::new();
            while !done.load(Ordering::SeqCst) && added.len() < 2000 {
                let new = block(1000 + added.len() as u64, 3000);
                put_all(&store, &[new.clone(), blocks[added.len() % blocks.len()].clone()]);
                keep(&store, &format!("new {}", added.len()), new.0);
                added.push(new);
            }
            added
        });
        let reader = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                for (cid, data) in &blocks {
                    assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
                    assert!(store.has(cid).unwrap());
                }
            }
        });
        let end = End(&done);
        for _ in 0..5 {
            let mut drain = Drain::begin(&store, &more).unwrap();
            drain.portion = 30_000;
            while drain.step().unwrap() {}
            drain.finish().unwrap();
            // As long as a reader holds the old one its files stay.
            while store.add_directory(&more).is_err() {
                std::thread::yield_now();
            }
            put_all(&store, &(0..20).map(|seed| block(500 + seed, 20_000)).collect::<Vec<_>>());
        }
        drop(end);
        reader.join().unwrap();
        writer.join().unwrap()
    });
    store.gc().unwrap();
    let all = [blocks, added].concat();
    all_here(&store, &all);
    counted(&store, &all);
}

#[test]
fn what_cannot_be_a_directory_is_refused_and_nothing_changes() {
    let (dir, store, blocks) = spread();
    let elsewhere = tempfile::tempdir().unwrap();
    let refused = |result: Result<PathBuf, StoreError>, why: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("nothing was changed"), "{error}");
    };
    std::fs::write(elsewhere.path().join("a file"), "of somebody").unwrap();
    refused(store.add_directory(elsewhere.path()), "not empty");
    refused(store.add_directory(&elsewhere.path().join("a file")), "exists");
    let drained = |path: &Path| store.drain_directory(path, &mut |_, _| true).map(|_| PathBuf::new());
    refused(drained(elsewhere.path()), "none of the data directories");
    drained(&dir.path().join("blocks")).unwrap();
    refused(drained(&dir.path().join("more")), "no other data directory takes blocks");
    all_here(&store, &blocks);
    // Stopped half-way it can be taken in again.
    store.add_directory(&dir.path().join("blocks")).unwrap();
    let stopped = store.drain_directory(&dir.path().join("more"), &mut |_, _| false);
    assert!(matches!(stopped, Err(StoreError::DrainStopped { .. })));
    assert_eq!(store.directories().unwrap()[1].state, DirectoryState::Emptied);
    store.add_directory(&dir.path().join("more")).unwrap();
    assert_eq!(store.directories().unwrap()[1].state, DirectoryState::Open);
    all_here(&store, &blocks);
}

#[test]
fn a_directory_that_is_gone_is_named_and_can_be_given_up() {
    let (dir, store, blocks) = spread();
    let more = dir.path().join("more");
    let lost = store.directories().unwrap()[1].blocks;
    store.close().unwrap();
    std::fs::rename(&more, dir.path().join("unplugged")).unwrap();
    let store = open(dir.path());
    let each = store.directories().unwrap();
    assert_eq!((each[1].state, &each[1].path), (DirectoryState::Missing, &more));
    store.close().unwrap();
    std::fs::rename(dir.path().join("unplugged"), &more).unwrap();
    all_here(&open(dir.path()), &blocks);
    std::fs::remove_dir_all(&more).unwrap();
    assert!(Store::forget_directory(dir.path(), &dir.path().join("blocks")).is_err());
    Store::forget_directory(dir.path(), &more).unwrap();
    let store = open(dir.path());
    assert_eq!(store.stat().unwrap().blocks, blocks.len() as u64 - lost);
    let mut incomplete = 0;
    store.examine(&mut |_| incomplete += 1).unwrap();
    assert_eq!(incomplete, lost);
}

#[test]
fn a_copy_of_several_directories_opens_by_itself() {
    let (dir, store, blocks) = spread();
    let target = tempfile::tempdir().unwrap();
    let copy = target.path().join("copy");
    store.backup(&copy).unwrap();
    store.close().unwrap();
    drop(dir);
    let store = open(&copy);
    all_here(&store, &blocks);
    counted(&store, &blocks);
}
