//! Databases with a damaged table, built anew.

use super::health::{Dag, flip, lacking, tables_of, three};
use super::*;

/// A closed store of three DAGs; a bit of a table that has the last one's leaves is flipped: of the `which`th.
fn damaged(which: usize) -> (tempfile::TempDir, Vec<Dag>) {
    let dir = tempfile::tempdir().unwrap();
    let (store, dags) = three(dir.path());
    store.close().unwrap();
    let tables = tables_of(&dir.path().join("blocks"), &dags[2].1[0]);
    flip(&tables[which].0, tables[which].1);
    (dir, dags)
}

/// Everything but what was lost reads, and the books agree.
#[track_caller]
fn is_whole(store: &Store, dags: &[Dag], lost: bool) {
    let kept = if lost { &dags[..2] } else { dags };
    for (cid, data) in kept.iter().flat_map(|(_, leaves)| leaves) {
        assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
    }
    let expected: &[_] = if lost { &[("own:2".to_owned(), 1)] } else { &[] };
    assert_eq!(lacking(store), expected);
}

/// Nothing of the damage is left.
#[track_caller]
fn is_as_new(dir: &Path, dags: &[Dag], lost: bool) {
    let store = open(dir);
    is_whole(&store, dags, lost);
    assert_eq!(store.damaged_directories().unwrap(), [] as [PathBuf; 0]);
    assert!(!dir.join("blocks/DAMAGED").exists());
    let each = store.directories().unwrap();
    assert!(each.iter().all(|directory| directory.state == DirectoryState::Open), "{each:?}");
    assert!(store.shared.db().unwrap().0.damage_passed_over().is_empty());
    put_all(&store, &dags[2].1);
    let cids: Vec<Cid> = dags[2].1.iter().map(|(cid, _)| *cid).collect();
    put_all(&store, &[node(2, &cids)]);
    is_whole(&store, dags, false);
    unpin(&store, "own:0");
    let thorough = GcOptions { thorough: true, ..GcOptions::default() };
    let collected = store.gc_with(thorough, &mut |_| {}).unwrap();
    assert_eq!((collected.freed_blocks, collected.kept_by_damage), (9, false));
    let stat = store.stat().unwrap();
    let directories = store.directories().unwrap();
    assert_eq!(stat.bytes, directories.iter().map(|directory| directory.bytes).sum::<u64>());
    assert_eq!(stat.quarantined_blocks, 0);
}

#[test]
fn a_damaged_database_is_built_anew_with_all_that_can_be_read() {
    let mut losses = Vec::new();
    for which in 0..2 {
        let (dir, dags) = damaged(which);
        let store = open(dir.path());
        let lost = store.verify(None, &mut |_| true).unwrap().damaged > 0;
        losses.push(lost);
        let own = dir.path().join("blocks");
        assert_eq!(store.damaged_directories().unwrap(), [own]);
        let rebuilt = store.rebuild_damaged(&mut |_, _| true).unwrap();
        assert_eq!(rebuilt.len(), 1);
        assert_eq!(rebuilt[0].into, Some(dir.path().join("blocks-1").canonicalize().unwrap()));
        is_whole(&store, &dags, lost);
        assert_eq!(store.damaged_directories().unwrap(), [] as [PathBuf; 0]);
        // Writes go on, elsewhere.
        let more = block(77, 5000);
        put_all(&store, std::slice::from_ref(&more));
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin("more", PinKind::Direct, more.0)).unwrap();
        store.state().commit(batch).unwrap();
        store.close().unwrap();
        is_as_new(dir.path(), &dags, lost);
    }
    losses.sort_unstable();
    assert_eq!(losses, [false, true], "of the blocks, and of what is known of them");
}

#[test]
fn building_anew_goes_on_after_a_crash_at_any_point() {
    for which in 0..2 {
        let (dir, dags) = damaged(which);
        let store = open(dir.path());
        let lost = store.verify(None, &mut |_| true).unwrap().damaged > 0;
        let mut copies = vec![crash_copy(dir.path())];
        store
            .rebuild_damaged(&mut |_, _| {
                copies.push(crash_copy(dir.path()));
                true
            })
            .unwrap();
        copies.push(crash_copy(dir.path()));
        assert!(copies.len() > 2);
        for copy in copies {
            let store = open(copy.path());
            is_whole(&store, &dags, lost);
            store.rebuild_damaged(&mut |_, _| true).unwrap();
            is_whole(&store, &dags, lost);
            drop(store);
            // The opening that makes the own database anew, broken off: its files are gone, in part.
            let again = crash_copy(copy.path());
            let own = again.path().join("blocks");
            if is_spent(again.path()) {
                let first = std::fs::read_dir(&own).unwrap().next().unwrap().unwrap().path();
                std::fs::remove_file(first).unwrap();
            }
            is_as_new(again.path(), &dags, lost);
        }
    }
}

/// Whether the own database is to be made anew at the next opening.
fn is_spent(dir: &Path) -> bool {
    dir.join("blocks/DAMAGED").exists()
}

#[test]
fn without_room_for_both_nothing_is_changed() {
    let (dir, dags) = damaged(0);
    let store = open(dir.path());
    let lost = store.verify(None, &mut |_| true).unwrap().damaged > 0;
    drop(store);
    let store = Store::open(StoreOptions { reserve_bytes: u64::MAX, ..options(dir.path()) }).unwrap();
    assert!(matches!(store.rebuild_damaged(&mut |_, _| true), Err(StoreError::DiskFull { .. })));
    assert_eq!(store.directories().unwrap().len(), 1);
    assert!(!dir.path().join("blocks-1").exists());
    is_whole(&store, &dags, lost);
}
