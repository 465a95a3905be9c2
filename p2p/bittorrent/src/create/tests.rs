use std::collections::HashMap;

use btfs_storage::import::{Profile, import_path_observed, import_reader_observed};
use btfs_storage::{BlockSink, StoreError};

use super::*;

#[derive(Default)]
struct Memory(HashMap<Vec<u8>, Bytes>);

impl BlockSink for Memory {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        self.0.insert(cid.hash().to_bytes(), data);
        Ok(())
    }
}

impl BlockSource for Memory {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.get(&cid.hash().to_bytes()).cloned())
    }
    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.0.contains_key(&cid.hash().to_bytes()))
    }
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        Ok(self.get(cid)?.map(|b| b.len() as u64))
    }
}

fn text(path: &[&str]) -> Vec<String> {
    path.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn piece_lengths_follow_size_and_shape() {
    assert_eq!(piece_length(10, 1), 1 << 20);
    assert_eq!(piece_length(10, 2), 16 << 10);
    assert_eq!(piece_length(1 << 30, 5), 1 << 20);
    assert_eq!(piece_length(100 << 20, 5), 64 << 10);
    assert_eq!(piece_length(64 << 30, 1), 1 << 20);
    assert_eq!(piece_length((64 << 30) + 1, 1), 2 << 20);
    assert_eq!(piece_length(u64::MAX, 1), MAX_PIECE_LENGTH);
}

#[test]
fn a_stream_is_hashed_in_pieces() {
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    let (mut memory, mut maker) = (Memory::default(), Hasher::new("data", 1 << 20));
    let imported =
        import_reader_observed(&data[..], &Profile::V1_2025, &mut memory, &mut |_| {}, &mut maker).unwrap();
    let info = maker.finish(imported.root).unwrap().info;
    assert_eq!((info.total, info.piece_count(), info.multi_file), (3_000_000, 3, false));
    let expected: [u8; 20] = Sha1::digest(&data[1 << 20..2 << 20]).into();
    assert_eq!(info.piece_hash(1), expected);
    let again = from_root(&memory, &imported.root, "data", Version::V1, Some(1 << 20), &mut |_| {}).unwrap();
    assert_eq!(again.infohash(), info.hash());
}

#[test]
fn a_tree_gives_the_same_torrent_from_disk_and_from_blocks() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("b/c")).unwrap();
    for (name, size) in [("a", 20_000), ("b/c/deep", 40_000), ("b.txt", 0), ("z", 1_100_000), (".hidden", 5)]
    {
        std::fs::write(dir.path().join(name), vec![name.len() as u8; size]).unwrap();
    }
    std::os::unix::fs::symlink("../a", dir.path().join("b/link")).unwrap();
    let options = ImportOptions::default();
    let length = piece_length_for_path(dir.path(), &options).unwrap();
    assert_eq!(length, 16 << 10);
    let (mut memory, mut maker) = (Memory::default(), Hasher::new("tree", length));
    let imported =
        import_path_observed(dir.path(), &Profile::V1_2025, &options, &mut memory, &mut |_| {}, &mut maker)
            .unwrap();
    let info = maker.finish(imported.root).unwrap().info;
    let paths: Vec<String> = info.files.iter().map(|f| f.path.join("/")).collect();
    assert_eq!(paths, ["a", "b/c/deep", "b/link", "b.txt", "z"]);
    assert_eq!(info.files[2].kind, FileKind::Symlink(text(&["a"])));
    let mut last = 0;
    let again =
        from_root(&memory, &imported.root, "tree", Version::V1, None, &mut |done| last = done).unwrap();
    assert_eq!((again.infohash(), last), (info.hash(), info.total));
}

#[test]
fn what_a_torrent_cannot_hold_is_named() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("full/empty")).unwrap();
    std::fs::write(dir.path().join("full/file"), b"x").unwrap();
    let (mut memory, mut maker) = (Memory::default(), Hasher::new("t", 16 << 10));
    let options = ImportOptions::default();
    let imported =
        import_path_observed(dir.path(), &Profile::V1_2025, &options, &mut memory, &mut |_| {}, &mut maker)
            .unwrap();
    for error in [
        maker.finish(imported.root).unwrap_err(),
        from_root(&memory, &imported.root, "t", Version::V1, None, &mut |_| {}).unwrap_err(),
    ] {
        assert!(matches!(error, CreateError::Unrepresentable { path, .. } if path == "full/empty"));
    }
}

#[test]
fn links_keep_their_text_or_are_refused() {
    let resolve = |path: &[&str], target: &str| resolve_link(&text(path), target.as_bytes());
    assert_eq!(resolve(&["d", "l"], "x"), Some(text(&["d", "x"])));
    assert_eq!(resolve(&["d", "l"], "../x/y"), Some(text(&["x", "y"])));
    assert_eq!(resolve(&["d", "e", "l"], "../x"), Some(text(&["d", "x"])));
    for bad in ["/etc/passwd", "../../x", "./x", "x//y", "../d/x", "", "..", "x/"] {
        assert_eq!(resolve(&["d", "l"], bad), None, "{bad}");
    }
}
