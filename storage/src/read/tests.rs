//! Reading what was imported, and DAGs that nobody should have made.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;
use crate::dagpb::{PbLink, PbNode};
use crate::import::{
    DirBuilder, FileBuilder, ImportOptions, Imported, Overrides, Profile, import_path, import_reader,
};
use crate::testing::MemoryBlocks;
use crate::unixfs::{Data, DataType, UnixTime};
use crate::{BlockSink, hash};

fn bytes(len: usize) -> Vec<u8> {
    // No two leaves alike.
    (0..len).map(|i| (i ^ (i >> 8).wrapping_mul(31)) as u8).collect()
}

fn file(content: &[u8], profile: &Profile, blocks: &mut MemoryBlocks) -> Imported {
    import_reader(content, profile, blocks, &mut |_| {}).unwrap()
}

fn put(data: Data, links: Vec<PbLink>, blocks: &mut MemoryBlocks) -> Cid {
    let block = PbNode { links, data: Some(data.to_bytes()) }.encode();
    let cid = hash::cid_v1(hash::DAG_PB, &block);
    blocks.put(&cid, block).unwrap();
    cid
}

fn link(cid: Cid, name: &str) -> PbLink {
    PbLink { cid, name: Some(name.into()), tsize: Some(1) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn a_file_reads_as_its_bytes(
        len in 0usize..3000,
        chunk in 1usize..40,
        width in 2usize..6,
        v0 in any::<bool>(),
        reads in prop::collection::vec((0u64..3200, 0usize..300), 1..20),
    ) {
        let profile = Profile::tiny(chunk, width, if v0 { Profile::V0_2015 } else { Profile::V1_2025 });
        let content = bytes(len);
        let mut blocks = MemoryBlocks::default();
        let made = file(&content, &profile, &mut blocks);
        let mut reader = FileReader::open(&blocks, &made.root).unwrap();
        prop_assert_eq!(reader.size(), len as u64);
        for (at, count) in reads {
            reader.seek(SeekFrom::Start(at)).unwrap();
            let mut got = Vec::new();
            Read::by_ref(&mut reader).take(count as u64).read_to_end(&mut got).unwrap();
            let start = (at as usize).min(len);
            let end = (start + count).min(len);
            prop_assert_eq!(&got[..], &content[start..end]);

            let mut planned = Vec::new();
            let mut plan = leaf_plan(&blocks, &made.root, at..at + count as u64).unwrap();
            while let Some(slice) = plan.next(&blocks).unwrap() {
                prop_assert_eq!(slice.file_offset, at + planned.len() as u64);
                prop_assert!(slice.len > 0 && slice.len <= chunk as u64);
                planned.extend_from_slice(&slice.bytes(&blocks).unwrap());
            }
            prop_assert_eq!(&planned[..], &content[start..end]);
        }
        reader.seek(SeekFrom::End(0)).unwrap();
        prop_assert_eq!(reader.read(&mut [0; 8]).unwrap(), 0);
    }

    /// Fetching one missing block at a time, as a retrieval does, ends with the same bytes and the same walk.
    #[test]
    fn reading_goes_on_after_what_was_missing(len in 0usize..500, chunk in 8usize..40, v0 in any::<bool>()) {
        let profile = Profile::tiny(chunk, 3, if v0 { Profile::V0_2015 } else { Profile::V1_2025 });
        let content = bytes(len);
        let mut remote = MemoryBlocks::default();
        let made = file(&content, &profile, &mut remote);
        let fetch = |local: &mut MemoryBlocks, cid: &Cid| {
            let data = remote.get(cid).unwrap().unwrap();
            local.put(cid, data).unwrap();
        };

        let mut local = MemoryBlocks::default();
        fetch(&mut local, &made.root);
        let mut plan = leaf_plan(&local, &made.root, 0..u64::MAX).unwrap();
        let mut got = Vec::new();
        loop {
            match plan.next(&local) {
                Ok(Some(slice)) => got.extend_from_slice(&slice.bytes(&remote).unwrap()),
                Ok(None) => break,
                Err(ReadError::Missing(cid)) => {
                    prop_assert_eq!(plan.ahead(4).first().copied(), Some(cid));
                    fetch(&mut local, &cid);
                }
                Err(error) => panic!("{error}"),
            }
        }
        prop_assert_eq!(&got, &content);

        let whole: Vec<(Cid, u64)> = walk(&remote, &made.root).map(Result::unwrap).collect();
        prop_assert_eq!(whole.len(), remote.0.len());
        let mut local = MemoryBlocks::default();
        let mut order = Vec::new();
        // A walk borrows its source; the real store is shared, so here each round starts over.
        loop {
            order.clear();
            let mut missing = None;
            let mut walked = walk(&local, &made.root);
            for step in walked.by_ref() {
                match step {
                    Ok(block) => order.push(block),
                    Err(ReadError::Missing(cid)) => {
                        missing = Some(cid);
                        break;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            prop_assert!(missing.is_none() || walked.ahead(3).first() == missing.as_ref());
            match missing {
                Some(cid) => fetch(&mut local, &cid),
                None => break,
            }
        }
        prop_assert_eq!(order, whole);
    }
}

/// A layout that no profile makes: own bytes in inner nodes, leaves at different depths.
#[test]
fn trickle_like_files_read_by_their_sizes() {
    let mut blocks = MemoryBlocks::default();
    let raw = |text: &'static [u8], blocks: &mut MemoryBlocks| {
        let cid = hash::cid_v1(hash::RAW, text);
        blocks.put(&cid, Bytes::from_static(text)).unwrap();
        cid
    };
    let (b, c, d) = (raw(b"bb", &mut blocks), raw(b"ccc", &mut blocks), raw(b"d", &mut blocks));
    let with = |inline: &'static [u8], sizes: Vec<u64>| Data {
        data: Some(Bytes::from_static(inline)),
        ..Data::file(inline.len() as u64 + sizes.iter().sum::<u64>(), sizes)
    };
    let inner = put(with(b"a", vec![2, 3]), vec![link(b, ""), link(c, "")], &mut blocks);
    let root = put(with(b"A", vec![1, 6, 1]), vec![link(d, ""), link(inner, ""), link(d, "")], &mut blocks);
    let mut reader = FileReader::open(&blocks, &root).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "Adabbcccd");
    reader.seek(SeekFrom::Start(3)).unwrap();
    assert_eq!(reader.next_bytes().unwrap().unwrap(), "bb");
    assert_eq!(walk(&blocks, &root).count(), 5);

    let liar = put(Data::file(5, vec![5]), vec![link(inner, "")], &mut blocks);
    let mut reader = FileReader::open(&blocks, &liar).unwrap();
    assert!(matches!(reader.next_bytes(), Err(ReadError::Inconsistent { .. })));
    let liar = put(Data::file(5, vec![5]), vec![link(b, "")], &mut blocks);
    let mut reader = FileReader::open(&blocks, &liar).unwrap();
    assert!(matches!(reader.next_bytes(), Err(ReadError::Inconsistent { .. })));
}

#[test]
fn chains_too_deep_are_refused() {
    let mut blocks = MemoryBlocks::default();
    let mut at =
        put(Data { data: Some(Bytes::from_static(b"x")), ..Data::file(1, vec![]) }, vec![], &mut blocks);
    for _ in 0..100 {
        at = put(Data::file(1, vec![1]), vec![link(at, "")], &mut blocks);
    }
    let mut reader = FileReader::open(&blocks, &at).unwrap();
    assert!(matches!(reader.next_bytes(), Err(ReadError::Inconsistent { .. })));
    assert_eq!(walk(&blocks, &at).count(), 101);
}

/// Entries of the directory that is large enough for shards, by their long names.
const MANY: usize = 1200;

fn entry_name(i: usize) -> String {
    format!("{}{i:010}", "long".repeat(50))
}

fn sample_tree(at: &Path) {
    fs::create_dir_all(at.join("docs/ü")).unwrap();
    fs::create_dir(at.join("empty")).unwrap();
    fs::write(at.join("docs/ü/größe.txt"), bytes(600_000)).unwrap();
    fs::write(at.join("docs/none"), "").unwrap();
    symlink("ü/größe.txt", at.join("docs/link")).unwrap();
    symlink("../empty", at.join("docs/up")).unwrap();
    fs::create_dir(at.join("many")).unwrap();
    for i in 0..MANY {
        fs::write(at.join(format!("many/{}", entry_name(i))), format!("{}", i % 7)).unwrap();
    }
}

#[test]
fn trees_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    sample_tree(&source);
    for profile in Profile::ALL {
        let mut blocks = MemoryBlocks::default();
        let options = ImportOptions::default();
        let made = import_path(&source, &profile, &options, &mut blocks, &mut |_| {}).unwrap();

        let target = dir.path().join(profile.name());
        let mut written = 0;
        export(&blocks, &made.root, &target, Outward::Refuse, &mut |done| written = done).unwrap();
        assert_eq!(written, made.size);
        assert_eq!(fs::read_link(target.join("docs/up")).unwrap(), Path::new("../empty"));
        let again = import_path(&target, &profile, &options, &mut blocks, &mut |_| {}).unwrap();
        assert_eq!(again, made);
        assert!(matches!(
            export(&blocks, &made.root, &target, Outward::Refuse, &mut |_| {}),
            Err(ReadError::Exists(_))
        ));

        let many = resolve(&blocks, &made.root, "/many/").unwrap();
        assert!(matches!(node(&blocks, &many).unwrap(), Node::Shard(_)));
        let listed = ls(&blocks, &many).unwrap();
        assert_eq!(listed.len(), MANY);
        assert!(listed.iter().all(|entry| entry.kind == Kind::File && entry.size == Some(1)));
        let found = resolve(&blocks, &made.root, &format!("docs/../many/./{}", entry_name(432))).unwrap();
        assert_eq!(found, listed[432].cid);

        let top = ls(&blocks, &made.root).unwrap();
        let kinds: Vec<(&str, Kind)> = top.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
        assert_eq!(kinds, [("docs", Kind::Directory), ("empty", Kind::Directory), ("many", Kind::Directory)]);
        let docs = ls(&blocks, &resolve(&blocks, &made.root, "docs").unwrap()).unwrap();
        assert_eq!((docs[0].name.as_str(), docs[0].kind), ("link", Kind::Symlink));
        let described = stat(&blocks, &made.root).unwrap();
        assert_eq!(
            (described.kind, described.dag_size, described.links),
            (Kind::Directory, made.dag_size, 3)
        );
        let total: u64 = walk(&blocks, &made.root).map(|block| block.unwrap().1).sum();
        assert!(total <= made.dag_size);
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn paths_that_lead_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    sample_tree(dir.path());
    let mut blocks = MemoryBlocks::default();
    let options = ImportOptions::default();
    let made = import_path(dir.path(), &Profile::V1_2025, &options, &mut blocks, &mut |_| {}).unwrap();
    let get = |path: &str| resolve(&blocks, &made.root, path);
    assert!(matches!(get("nope"), Err(ReadError::NotFound { name, .. }) if name == "nope"));
    assert!(matches!(get("many/nope"), Err(ReadError::NotFound { .. })));
    assert!(matches!(get("docs/none/x"), Err(ReadError::NotADirectory { kind: Kind::File, .. })));
    assert!(matches!(get("docs/link/x"), Err(ReadError::NotADirectory { kind: Kind::Symlink, .. })));
    assert!(matches!(get("../x"), Err(ReadError::Path(_))));
    assert!(matches!(FileReader::open(&blocks, &made.root), Err(ReadError::NotAFile { .. })));

    let many = get("many").unwrap();
    let entry = get(&format!("many/{}", entry_name(42))).unwrap();
    blocks.remove(&entry);
    assert_eq!(resolve(&blocks, &many, &entry_name(42)).unwrap(), entry);
    let target = dir.path().join("out");
    assert!(
        matches!(export(&blocks, &made.root, &target, Outward::Refuse, &mut |_| {}), Err(ReadError::Missing(cid)) if cid == entry)
    );
    assert!(fs::read_dir(dir.path()).unwrap().all(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        ["docs", "empty", "many"].contains(&name.as_str())
    }));
    let listed = ls(&blocks, &many).unwrap();
    assert_eq!(listed.len(), MANY);
    blocks.remove(&many);
    assert!(matches!(ls(&blocks, &many), Err(ReadError::Missing(cid)) if cid == many));
    let top = ls(&blocks, &made.root).unwrap();
    assert_eq!((top[2].kind, top[2].size), (Kind::Unknown, None));
}

#[test]
fn nothing_is_written_outside() {
    let dir = tempfile::tempdir().unwrap();
    let mut blocks = MemoryBlocks::default();
    let leaf = file(b"x", &Profile::V1_2025, &mut blocks).root;
    let away = put(Data::symlink(Bytes::from_static(b"/tmp")), vec![], &mut blocks);
    let near = put(Data::symlink(Bytes::from_static(b"b")), vec![], &mut blocks);
    let sub = put(Data::directory(), vec![link(leaf, "f")], &mut blocks);
    let target = dir.path().join("out");
    for links in [
        vec![link(leaf, "..")],
        vec![link(leaf, ".")],
        vec![link(leaf, "")],
        vec![link(leaf, "../x")],
        vec![link(leaf, "/x")],
        vec![link(away, "a")],
        // A link, and then a directory of the same name to write through it.
        vec![link(near, "a"), link(sub, "a")],
        vec![link(leaf, "a"), link(leaf, "a")],
    ] {
        let root = put(Data::directory(), links, &mut blocks);
        assert!(export(&blocks, &root, &target, Outward::Refuse, &mut |_| {}).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

/// Each of what an archive must not hold, by itself: the entry is named and no file is left.
#[test]
fn nothing_is_packed_that_unpacks_outside() {
    let dir = tempfile::tempdir().unwrap();
    let mut blocks = MemoryBlocks::default();
    let leaf = file(b"x", &Profile::V1_2025, &mut blocks).root;
    let mut symlink = |target: &'static str| {
        link(put(Data::symlink(Bytes::from_static(target.as_bytes())), vec![], &mut blocks), "a")
    };
    let links = ["/etc/passwd", "..", "../b", "b/../../c", ""].map(&mut symlink);
    let names = ["..", ".", "", "../x", "/x", "a/b", "a\0"].map(|name| link(leaf, name));
    let archive = dir.path().join("out.tar.gz");
    let packing = Packing { tar: true, outward: Outward::Refuse, gzip: Some(6) };
    for entry in links.into_iter().chain(names) {
        let told = format!("{entry:?}");
        let root = put(Data::directory(), vec![entry], &mut blocks);
        let packed = pack_to_file(&blocks, &root, "out", packing, &archive, &mut |_| {});
        let refused = |error| matches!(error, Err(ReadError::Escapes { .. } | ReadError::LeadsOut { .. }));
        assert!(refused(packed), "{told}");
        let exported = export(&blocks, &root, &dir.path().join("out"), Outward::Refuse, &mut |_| {});
        assert!(refused(exported), "{told}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

/// A tree with links that lead out is written without them, or with them, and in no case through them.
#[test]
fn links_that_lead_out_are_left_out_or_kept_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut blocks = MemoryBlocks::default();
    let leaf = file(b"x", &Profile::V1_2025, &mut blocks).root;
    let away = put(Data::symlink(Bytes::from_static(b"/usr/bin/python3")), vec![], &mut blocks);
    let nul = put(Data::symlink(Bytes::from_static(b"/a\0b")), vec![], &mut blocks);
    let sub = put(Data::directory(), vec![link(leaf, "f")], &mut blocks);
    let root = put(Data::directory(), vec![link(away, "python"), link(leaf, "x")], &mut blocks);
    let target = dir.path().join("out");
    let refused = export(&blocks, &root, &target, Outward::Refuse, &mut |_| {}).unwrap_err();
    assert!(refused.to_string().contains("\"python\""), "{refused}");
    export(&blocks, &root, &target, Outward::Skip, &mut |_| {}).unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    fs::remove_dir_all(&target).unwrap();
    export(&blocks, &root, &target, Outward::Keep, &mut |_| {}).unwrap();
    assert_eq!(fs::read_link(target.join("python")).unwrap(), Path::new("/usr/bin/python3"));
    fs::remove_dir_all(&target).unwrap();
    for links in
        [vec![link(away, "a"), link(sub, "a")], vec![link(away, "a"), link(leaf, "a")], vec![link(nul, "a")]]
    {
        let root = put(Data::directory(), links, &mut blocks);
        let packing = Packing { tar: true, outward: Outward::Keep, gzip: None };
        assert!(export(&blocks, &root, &target, Outward::Keep, &mut |_| {}).is_err());
        assert!(pack_to_file(&blocks, &root, "out", packing, &target, &mut |_| {}).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

/// A small DAG whose paths would be long and many is refused without unfolding it.
#[test]
fn names_and_depths_that_no_file_system_has_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut blocks = MemoryBlocks::default();
    let leaf = file(b"x", &Profile::V1_2025, &mut blocks).root;
    let long = put(Data::directory(), vec![link(leaf, &"a".repeat(256))], &mut blocks);
    let mut deep = put(Data::directory(), vec![link(leaf, "x")], &mut blocks);
    for _ in 0..3000 {
        deep = put(Data::directory(), vec![link(deep, "d")], &mut blocks);
    }
    for (root, told) in [(long, "256 bytes"), (deep, "deeper")] {
        let mut out = io::sink();
        let packing = Packing { tar: true, outward: Outward::Refuse, gzip: None };
        let error = pack(&blocks, &root, "out", packing, &mut out, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// What a killed process left of a target goes when it is written again, and not while somebody writes it.
#[test]
fn what_was_left_half_written_goes_with_the_next_try() {
    let dir = tempfile::tempdir().unwrap();
    let mut blocks = MemoryBlocks::default();
    let leaf = file(b"x", &Profile::V1_2025, &mut blocks).root;
    let target = dir.path().join("out");
    let writing = export::Partial::beside(&target).unwrap();
    fs::create_dir(&writing.path).unwrap();
    fs::write(writing.path.join("half"), b"ha").unwrap();
    let busy = export(&blocks, &leaf, &target, Outward::Refuse, &mut |_| {});
    assert!(matches!(busy, Err(ReadError::Busy(_))), "{busy:?}");
    // Killed: its lock goes, its files stay.
    rustix::fs::flock(&writing._locked, rustix::fs::FlockOperation::Unlock).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    export(&blocks, &leaf, &target, Outward::Refuse, &mut |_| {}).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Everything is recorded and written back, but for the bits that let a file run as its owner.
#[test]
fn modes_and_times_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    sample_tree(&source);
    let set = |path: &Path, mode, seconds| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, 123_456_789);
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    };
    set(&source.join("docs/ü/größe.txt"), 0o640, 1_000_000_000);
    set(&source.join("docs/none"), 0o755, 1_100_000_000);
    set(&source.join("many"), 0o711, 1_200_000_000);
    set(&source.join("docs"), 0o550, 1_300_000_000);
    set(&source, 0o700, 1_400_000_000);
    let options = ImportOptions { preserve_mode: true, preserve_mtime: true, ..ImportOptions::default() };
    let overrides = Overrides { metadata: options.records_metadata(), ..Overrides::default() };
    for profile in Profile::ALL {
        let profile = profile.with(&overrides).unwrap();
        let mut blocks = MemoryBlocks::default();
        let made = import_path(&source, &profile, &options, &mut blocks, &mut |_| {}).unwrap();
        let target = dir.path().join("target");
        export(&blocks, &made.root, &target, Outward::Refuse, &mut |_| {}).unwrap();
        let again = import_path(&target, &profile, &options, &mut blocks, &mut |_| {}).unwrap();
        assert_eq!(again, made);
        fs::set_permissions(target.join("docs"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::remove_dir_all(&target).unwrap();
    }
    fs::set_permissions(source.join("docs"), fs::Permissions::from_mode(0o755)).unwrap();

    let mut blocks = MemoryBlocks::default();
    let risky = Data { mode: Some(0o104_755), ..Data::file(0, vec![]) };
    let cid = put(risky, vec![], &mut blocks);
    let target = dir.path().join("risky");
    export(&blocks, &cid, &target, Outward::Refuse, &mut |_| {}).unwrap();
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o7777, 0o755);
    let forever = UnixTime { seconds: Some(0), nanoseconds: Some(1_000_000_000) };
    let cid = put(Data { mtime: Some(forever), ..Data::file(0, vec![]) }, vec![], &mut blocks);
    let refused = export(&blocks, &cid, &dir.path().join("forever"), Outward::Refuse, &mut |_| {});
    assert!(matches!(refused, Err(ReadError::UnixFs { .. })), "{refused:?}");
}

#[test]
fn archives_hold_the_tree() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    sample_tree(&source);
    fs::write(source.join("docs").join("n".repeat(200)), "long").unwrap();
    symlink("x/".repeat(80), source.join("docs/long-link")).unwrap();
    let mut blocks = MemoryBlocks::default();
    let options = ImportOptions::default();
    let made = import_path(&source, &Profile::V1_2025, &options, &mut blocks, &mut |_| {}).unwrap();
    for gzip in [None, Some(1)] {
        let archive = dir.path().join("archive");
        let mut written = 0;
        let packing = Packing { tar: true, outward: Outward::Refuse, gzip };
        pack_to_file(&blocks, &made.root, "top", packing, &archive, &mut |done| written = done).unwrap();
        assert_eq!(written, made.size);
        let again = pack_to_file(&blocks, &made.root, "top", packing, &archive, &mut |_| {});
        assert!(matches!(again, Err(ReadError::Exists(_))));
        let file = fs::File::open(&archive).unwrap();
        let stream: Box<dyn Read> = match gzip {
            Some(_) => Box::new(flate2::read::GzDecoder::new(file)),
            None => Box::new(file),
        };
        tar::Archive::new(stream).unpack(dir.path().join("unpacked")).unwrap();
        let unpacked = dir.path().join("unpacked/top");
        let read = import_path(&unpacked, &Profile::V1_2025, &options, &mut blocks, &mut |_| {}).unwrap();
        assert_eq!(read, made);
        fs::remove_dir_all(dir.path().join("unpacked")).unwrap();
        fs::remove_file(archive).unwrap();
    }
    // A file by itself, compressed and no archive.
    let cid = resolve(&blocks, &made.root, "docs/ü/größe.txt").unwrap();
    let mut packed = Vec::new();
    let packing = Packing { tar: false, outward: Outward::Refuse, gzip: Some(9) };
    pack(&blocks, &cid, "unused", packing, &mut packed, &mut |_| {}).unwrap();
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut text).unwrap();
    assert_eq!(text, bytes(600_000));
    assert!(matches!(
        pack(&blocks, &made.root, "", packing, &mut packed, &mut |_| {}),
        Err(ReadError::NotAFile { .. })
    ));
    blocks.remove(&cid);
    let archive = dir.path().join("archive");
    let packing = Packing { tar: true, outward: Outward::Refuse, gzip: None };
    let missing = pack_to_file(&blocks, &made.root, "top", packing, &archive, &mut |_| {});
    assert!(matches!(missing, Err(ReadError::Missing(lost)) if lost == cid), "{missing:?}");
    assert!(!archive.exists());
}

/// A trie whose shards are shared between buckets would list 256^8 entries.
#[test]
fn forged_tries_are_refused() {
    let mut blocks = MemoryBlocks::default();
    let leaf = file(b"x", &Profile::V1_2025, &mut blocks).root;
    let shard = Data {
        kind: Some(DataType::HamtShard as i32),
        data: Some(Bytes::from_static(&[0xff; 32])),
        hash_type: Some(0x22),
        fanout: Some(256),
        ..Data::default()
    };
    for bottom in [vec![], vec![link(leaf, "00x")]] {
        let mut at = put(shard.clone(), bottom, &mut blocks);
        for _ in 0..7 {
            let links = (0..256).map(|bucket| link(at, &format!("{bucket:02X}"))).collect();
            at = put(shard.clone(), links, &mut blocks);
        }
        assert!(matches!(ls(&blocks, &at), Err(ReadError::Inconsistent { .. })));
        let target = tempfile::tempdir().unwrap();
        assert!(export(&blocks, &at, &target.path().join("out"), Outward::Refuse, &mut |_| {}).is_err());
    }
    let mut at = leaf;
    for _ in 0..20 {
        at = put(shard.clone(), vec![link(at, "00")], &mut blocks);
    }
    assert!(matches!(ls(&blocks, &at), Err(ReadError::Inconsistent { .. })));
}

#[test]
fn one_set_of_bytes_under_two_codecs_is_one_block() {
    let mut blocks = MemoryBlocks::default();
    let leaf = file(b"x", &Profile::V1_2025, &mut blocks).root;
    let directory = put(Data::directory(), vec![link(leaf, "f")], &mut blocks);
    let as_file = Cid::new_v1(hash::RAW, *directory.hash());
    let inlined: Cid = "bafyaabakaieac".parse().unwrap();
    let root = put(
        Data::directory(),
        vec![link(as_file, "a"), link(directory, "b"), link(inlined, "c")],
        &mut blocks,
    );
    let walked: Vec<Cid> = walk(&blocks, &root).map(|block| block.unwrap().0).collect();
    assert_eq!(walked, [root, as_file, leaf]);
}

#[test]
fn builders_of_torrents_make_what_imports_make() {
    let profile = Profile::V1_2025;
    let content = bytes(3 * profile.chunk_size() + 5);
    let mut blocks = MemoryBlocks::default();
    let made = file(&content, &profile, &mut blocks);
    let mut builder = FileBuilder::new(&profile);
    for chunk in content.chunks(profile.chunk_size()) {
        let (cid, block) = profile.leaf(&Bytes::copy_from_slice(chunk));
        builder.push(cid, chunk.len() as u64, block.len() as u64, &mut blocks).unwrap();
    }
    let built = builder.finish(&mut blocks).unwrap();
    assert_eq!((built.root, built.size, built.dag_size), (made.root, made.size, made.dag_size));
    let mut directory = DirBuilder::new(&profile);
    directory.add(&["a", "b"], &built).unwrap();
    let root = directory.finish(&mut blocks).unwrap();
    let found = resolve(&blocks, &root.root, "a/b").unwrap();
    let mut text = Vec::new();
    FileReader::open(&blocks, &found).unwrap().read_to_end(&mut text).unwrap();
    assert_eq!(text, content);
}
