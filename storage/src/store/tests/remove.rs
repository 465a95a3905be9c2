//! Removing single blocks.

use super::*;
use crate::Removal;

#[test]
fn only_what_nothing_needs_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (leaf, held, loose, listed) = (block(1, 10), block(2, 20), block(3, 30), block(4, 40));
    let root = node(5, &[leaf.0]);
    put_all(&store, &[leaf.clone(), held.clone(), loose.clone(), listed.clone(), root.clone()]);
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("own:root", PinKind::Recursive, root.0)).unwrap();
    store.pin_list(&mut batch, &pin("agreement:list", PinKind::List, root.0), &[listed.0]).unwrap();
    store.state().commit(batch).unwrap();
    let inline = hash::cid_from_digest(hash::RAW, hash::IDENTITY, b"inline");
    let absent = block(9, 9).0;
    use Removal::*;
    let all = [leaf.0, root.0, listed.0, loose.0, loose.0, inline, absent];
    let expected = vec![Pinned, Pinned, Pinned, Removed, Absent, Absent, Absent];
    assert_eq!(store.remove_unpinned(&all).unwrap(), expected);
    let left = store.stat().unwrap();
    assert_eq!((left.blocks, left.bytes), (4, 10 + 20 + 40 + root.1.len() as u64));
    assert!(!store.has_unfinished_collection().unwrap());
    // Whatever came in, or was relied upon, since an ingest began may be its own.
    let mut ingest = store.ingest(Class::Own).unwrap();
    assert!(ingest.keep(&held.0).unwrap());
    assert_eq!(store.remove_unpinned(&[held.0]).unwrap(), vec![InUse]);
    drop(ingest);
    assert_eq!(store.remove_unpinned(&[held.0]).unwrap(), vec![Removed]);
    assert_eq!(store.get(&leaf.0).unwrap(), Some(leaf.1), "what is pinned stays");
}

#[test]
fn what_was_put_and_went_again_is_not_taken_for_here() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let leaf = block(1, 10);
    let root = node(2, &[leaf.0]);
    let pinned = || {
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin("own:root", PinKind::Recursive, root.0)).unwrap();
        store.state().commit(batch)
    };
    let ways: [&dyn Fn(); 2] = [&|| assert!(store.remove(&leaf.0).unwrap()), &|| {
        assert_eq!(store.remove_unpinned(&[leaf.0]).unwrap(), vec![Removal::Removed])
    }];
    for goes in ways {
        put_all(&store, &[leaf.clone(), root.clone()]);
        goes();
        let refused = pinned().unwrap_err().to_string();
        assert!(refused.contains(&leaf.0.to_string()), "{refused}");
    }
    put_all(&store, std::slice::from_ref(&leaf));
    pinned().unwrap();
}
