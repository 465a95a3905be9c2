//! Published CIDs, those that Kubo's own packages made, and what goes wrong.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use super::*;
use crate::hash;
use crate::read::FileReader;
use crate::testing::{MemoryBlocks, Noise};
use proptest::prelude::*;
use serde::Deserialize;

/// Keeps nothing.
struct Discard;

impl BlockSink for Discard {
    fn put(&mut self, _: &Cid, data: Bytes) -> Result<(), StoreError> {
        assert!(data.len() <= crate::MAX_BLOCK);
        Ok(())
    }
}

/// The ChaCha20 key stream of SHA-256(seed): how the published vectors make their content.
struct KeyStream {
    state: [u32; 16],
    block: [u8; 64],
    used: usize,
}

impl KeyStream {
    fn new(seed: &str) -> KeyStream {
        let key = hash::sha256(seed.as_bytes());
        let mut state = [0u32; 16];
        state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
        for (word, bytes) in state[4..12].iter_mut().zip(key.chunks_exact(4)) {
            *word = u32::from_le_bytes(bytes.try_into().unwrap());
        }
        KeyStream { state, block: [0; 64], used: 64 }
    }

    fn refill(&mut self) {
        let mut x = self.state;
        for _ in 0..10 {
            for [a, b, c, d] in [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]] {
                quarter(&mut x, a, b, c, d);
            }
            for [a, b, c, d] in [[0, 5, 10, 15], [1, 6, 11, 12], [2, 7, 8, 13], [3, 4, 9, 14]] {
                quarter(&mut x, a, b, c, d);
            }
        }
        for (out, (x, s)) in self.block.chunks_exact_mut(4).zip(x.iter().zip(&self.state)) {
            out.copy_from_slice(&x.wrapping_add(*s).to_le_bytes());
        }
        self.state[12] += 1;
        self.used = 0;
    }
}

fn quarter(x: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    for (to, from, turn, by) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
        x[to] = x[to].wrapping_add(x[from]);
        x[turn] = (x[turn] ^ x[to]).rotate_left(by);
    }
}

impl Read for KeyStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.used == 64 {
            self.refill();
        }
        let len = out.len().min(64 - self.used);
        out[..len].copy_from_slice(&self.block[self.used..self.used + len]);
        self.used += len;
        Ok(len)
    }
}

/// Builds the file of the first `limit` leaves of what it watches.
struct Prefix {
    builder: Option<FileBuilder>,
    left: u64,
    root: Option<Cid>,
}

impl Observer for Prefix {
    fn leaf(&mut self, leaf: &Leaf) {
        if self.left == 0 {
            return;
        }
        let builder = self.builder.as_mut().unwrap();
        builder.push(leaf.cid, leaf.content.len() as u64, leaf.block_len, &mut Discard).unwrap();
        self.left -= 1;
        if self.left == 0 {
            self.root = Some(self.builder.take().unwrap().finish(&mut Discard).unwrap().root);
        }
    }
}

/// Files of exactly one node of links and of one leaf more, by IPIP-499.
#[test]
fn published_large_files() {
    for (profile, seed, full, over) in [
        (
            Profile::V0_2015,
            "v0-seed",
            "QmUbBALi174SnogsUzLpYbD4xPiBSFANF4iztWCsHbMKh2",
            "QmepeWtdmS1hHXx1oZXsPUv6bMrfRRKfZcoPPU4eEfjnbf",
        ),
        (
            Profile::V1_2025,
            "v1-2025-seed",
            "bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm",
            "bafybeihmzokxxjqwxjcryerhp5ezpcog2wcawfryb2xm64xiakgm4a5jue",
        ),
    ] {
        let links = profile.links_per_node() as u64;
        let size = (links + 1) * profile.chunk_size() as u64;
        let mut prefix = Prefix { builder: Some(FileBuilder::new(&profile)), left: links, root: None };
        let stream = io::BufReader::with_capacity(1 << 16, KeyStream::new(seed)).take(size);
        let mut seen = 0;
        let file =
            import_reader_observed(stream, &profile, &mut Discard, &mut |done| seen = done, &mut prefix)
                .unwrap();
        assert_eq!(prefix.root.unwrap().to_string(), full);
        assert_eq!(file.root.to_string(), over);
        assert_eq!((file.size, seen), (size, size));
        assert_eq!(file.blocks, links + 1 + 3);
    }
}

/// Directories exactly at the sharding threshold and a byte over it, by IPIP-499.
#[test]
fn published_directories_at_the_threshold() {
    const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz01234567890-_";
    for (profile, seed, count, len, last, expected) in [
        (
            Profile::V0_2015,
            "hamt-unixfs-v0-2015",
            4096,
            30,
            30,
            "QmX5GtRk3TSSEHtdrykgqm4eqMEn3n2XhfkFAis5fjyZmN",
        ),
        (
            Profile::V0_2015,
            "hamt-unixfs-v0-2015",
            4033,
            31,
            31,
            "QmeMiJzmhpJAUgynAcxTQYek5PPKgdv3qEvFsdV3XpVnvP",
        ),
        (
            Profile::V1_2025,
            "hamt-unixfs-v1-2025",
            4766,
            11,
            21,
            "bafybeic3h7rwruealwxkacabdy45jivq2crwz6bufb5ljwupn36gicplx4",
        ),
        (
            Profile::V1_2025,
            "hamt-unixfs-v1-2025",
            4766,
            11,
            22,
            "bafybeiegvuterwurhdtkikfhbxcldohmxp566vpjdofhzmnhv6o4freidu",
        ),
    ] {
        let mut stream = KeyStream::new(seed);
        let mut blocks = MemoryBlocks::default();
        let file = import_reader(&b"x"[..], &profile, &mut blocks, &mut |_| {}).unwrap();
        let mut builder = DirBuilder::new(&profile);
        let mut names = BTreeMap::new();
        for index in 0..count {
            let mut name = vec![0u8; if index == count - 1 { last } else { len }];
            stream.read_exact(&mut name).unwrap();
            let name: String = name.iter().map(|b| ALPHABET[*b as usize % ALPHABET.len()] as char).collect();
            builder.add(&[&name], &file).unwrap();
            names.insert(name, file.root);
        }
        let directory = builder.finish(&mut blocks).unwrap();
        assert_eq!(directory.root.to_string(), expected);
        let listed = crate::read::ls(&blocks, &directory.root).unwrap();
        assert!(listed.iter().map(|entry| (&entry.name, &entry.cid)).eq(names.iter()));
    }
}

#[test]
fn published_small_trees() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("links")).unwrap();
    fs::write(dir.path().join("links/foo"), "content\n").unwrap();
    symlink("foo", dir.path().join("links/bar")).unwrap();
    fs::create_dir_all(dir.path().join("two/subdir")).unwrap();
    fs::write(dir.path().join("two/subdir/ascii.txt"), "hello application/vnd.ipld.car\n").unwrap();
    fs::write(dir.path().join("two/subdir/hello.txt"), "hello world\n").unwrap();

    let import = |name: &str, profile| {
        let mut blocks = MemoryBlocks::default();
        let path = dir.path().join(name);
        let made = import_path(&path, &profile, &ImportOptions::default(), &mut blocks, &mut |_| {}).unwrap();
        (made.root.to_string(), blocks)
    };
    assert_eq!(
        import("two", Profile::V1_2025).0,
        "bafybeietjm63oynimmv5yyqay33nui4y4wx6u3peezwetxgiwvfmelutzu"
    );
    let (cid, blocks) = import("links", Profile::V0_2015);
    assert_eq!(cid, "QmWvY6FaqFMS89YAQ9NAPjVP4WZKA1qbHbicc9HeSKQTgt");
    let bar = crate::read::resolve(&blocks, &cid.parse().unwrap(), "bar").unwrap();
    assert_eq!(bar.to_string(), "QmTB8BaCJdCH5H3k7GrxJsxgDNmNYGGR71C58ERkivXoj5");
}

#[test]
fn empty_things() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    for (name, profile, cid) in [
        ("file", Profile::V1_2025, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
        ("file", Profile::V0_2015, "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH"),
        ("dir", Profile::V1_2025, "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"),
        ("dir", Profile::V0_2015, "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"),
    ] {
        let path = dir.path().join(name);
        let made =
            import_path(&path, &profile, &ImportOptions::default(), &mut Discard, &mut |_| {}).unwrap();
        assert_eq!((made.root.to_string().as_str(), made.size, made.blocks), (cid, 0, 1));
        if name == "file" {
            let built = FileBuilder::new(&profile).finish(&mut Discard).unwrap();
            assert_eq!(built, made);
        } else {
            assert_eq!(DirBuilder::new(&profile).finish(&mut Discard).unwrap(), made);
        }
    }
}

/// Records what an import shows.
#[derive(Default)]
struct Record {
    events: Vec<String>,
    bytes: Vec<u8>,
}

impl Observer for Record {
    fn file_start(&mut self, path: &[String], size: Option<u64>) {
        self.events.push(format!("{} {}", path.join("/"), size.unwrap()));
        self.bytes.clear();
    }
    fn leaf(&mut self, leaf: &Leaf) {
        assert_eq!(leaf.offset, self.bytes.len() as u64);
        self.bytes.extend_from_slice(&leaf.content);
    }
    fn file_end(&mut self, file: &Imported) {
        self.events.push(format!("read {} of {}", self.bytes.len(), file.size));
    }
    fn directory(&mut self, path: &[String], _: &Cid) {
        self.events.push(format!("dir {}", path.join("/")));
    }
    fn symlink(&mut self, path: &[String], target: &[u8], _: &Cid) {
        self.events.push(format!("link {} {}", path.join("/"), String::from_utf8_lossy(target)));
    }
}

#[test]
fn observers_see_the_tree_in_order_and_builders_make_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir_all(root.join("b/c")).unwrap();
    fs::create_dir(root.join(".git")).unwrap();
    fs::write(root.join("b/c/big"), vec![3u8; 700_000]).unwrap();
    fs::write(root.join("b-file"), "1").unwrap();
    fs::write(root.join(".hidden"), "2").unwrap();
    symlink("b-file", root.join("z")).unwrap();
    for profile in Profile::ALL {
        let mut record = Record::default();
        let mut last = 0;
        let options = ImportOptions::default();
        let mut blocks = MemoryBlocks::default();
        let mut progress = |done| last = done;
        let made =
            import_path_observed(root, &profile, &options, &mut blocks, &mut progress, &mut record).unwrap();
        assert_eq!(
            record.events,
            [
                "b/c/big 700000",
                "read 700000 of 700000",
                "dir b/c",
                "dir b",
                "b-file 1",
                "read 1 of 1",
                "link z b-file",
                "dir "
            ]
        );
        assert_eq!((made.size, last), (700_001, 700_001));

        let file = |path: &str| {
            let path = root.join(path);
            import_path(&path, &profile, &options, &mut Discard, &mut |_| {}).unwrap()
        };
        let mut builder = DirBuilder::new(&profile);
        builder.add(&["z"], &file("z")).unwrap();
        builder.add(&["b", "c", "big"], &file("b/c/big")).unwrap();
        builder.add(&["b-file"], &file("b-file")).unwrap();
        builder.add_directory(&["b", "c"]).unwrap();
        let built = builder.finish(&mut Discard).unwrap();
        assert_eq!((built.root, built.size, built.dag_size), (made.root, made.size, made.dag_size));

        let all = ImportOptions { hidden: true, ..options.clone() };
        let hidden = import_path(root, &profile, &all, &mut Discard, &mut |_| {}).unwrap();
        assert_ne!(hidden.root, made.root);
        assert_eq!(hidden.size, 700_002);
    }
}

#[test]
fn a_link_given_as_the_path_is_kept_or_followed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "hello world").unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    let import = |follow_root| {
        let options = ImportOptions { follow_root, ..ImportOptions::default() };
        import_path(&dir.path().join("link"), &Profile::V1_2025, &options, &mut Discard, &mut |_| {}).unwrap()
    };
    assert_eq!(import(true).root, hash::cid_v1(hash::RAW, b"hello world"));
    assert_eq!(import(false).root.codec(), hash::DAG_PB);
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let options = ImportOptions::default();
    let import = |path: &Path| import_path(path, &Profile::V1_2025, &options, &mut Discard, &mut |_| {});
    let missing = dir.path().join("missing");
    assert!(import(&missing).unwrap_err().to_string().contains("missing"));

    let odd = dir.path().join("odd");
    fs::create_dir(&odd).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(odd.join("socket")).unwrap();
    assert!(matches!(import(&odd), Err(ImportError::Kind { path }) if path.ends_with("socket")));
    drop(socket);
    fs::remove_file(odd.join("socket")).unwrap();
    fs::write(odd.join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
    assert!(matches!(import(&odd), Err(ImportError::NotUtf8 { .. })));
}

/// Grows the file it watches.
struct Meddler(PathBuf);

impl Observer for Meddler {
    fn leaf(&mut self, _: &Leaf) {
        fs::write(&self.0, "longer than it was").unwrap();
    }
}

#[test]
fn a_file_that_changes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, "short").unwrap();
    let options = ImportOptions::default();
    let mut meddler = Meddler(path.clone());
    let result =
        import_path_observed(&path, &Profile::V1_2025, &options, &mut Discard, &mut |_| {}, &mut meddler);
    assert!(matches!(result, Err(ImportError::Changed { path: changed }) if changed == path));
}

#[test]
fn a_sink_that_refuses_ends_the_import() {
    struct Full(u32);
    impl BlockSink for Full {
        fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
            self.0 = self.0.checked_sub(1).ok_or(StoreError::TooLarge { cid: *cid, size: data.len() })?;
            Ok(())
        }
    }
    let stream = io::repeat(0).take(64 << 20);
    let result = import_reader(stream, &Profile::V1_2025, &mut Full(3), &mut |_| {});
    assert!(matches!(result, Err(ImportError::Store(_))));
}

#[test]
fn builders_refuse_paths_that_are_none() {
    let mut builder = DirBuilder::new(&Profile::V1_2025);
    let file = FileBuilder::new(&Profile::V1_2025).finish(&mut Discard).unwrap();
    builder.add(&["a", "b"], &file).unwrap();
    let deep = vec!["x"; 300];
    for path in
        [&["a"][..], &["a", "b"], &["a", "b", "c"], &[""], &["a", ".."], &["x/y"], &["x\0"], &[], &deep]
    {
        assert!(matches!(builder.add(path, &file), Err(ImportError::Path { .. })), "{path:?}");
    }
}

/// A file that Kubo's packages (boxo v0.43.0) made: options that differ from the default profile's, and the CID.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct Vector {
    size: u64,
    seed: u64,
    chunker: String,
    trickle: bool,
    cid_version: Option<u8>,
    raw_leaves: Option<bool>,
    inline: Option<usize>,
    max_file_links: Option<usize>,
    mode: Option<u32>,
    mtime: Option<i64>,
    mtime_nsecs: u32,
    cid: String,
    dag_size: u64,
}

impl Default for Vector {
    fn default() -> Vector {
        Vector {
            size: 0,
            seed: 0,
            chunker: "size-1048576".into(),
            trickle: false,
            cid_version: None,
            raw_leaves: None,
            inline: None,
            max_file_links: None,
            mode: None,
            mtime: None,
            mtime_nsecs: 0,
            cid: String::new(),
            dag_size: 0,
        }
    }
}

#[test]
fn files_are_those_of_kubo() {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("kubo.json")).unwrap();
    assert!(vectors.len() > 80);
    for vector in vectors {
        let metadata = Metadata::new(vector.mode, vector.mtime.map(|seconds| (seconds, vector.mtime_nsecs)));
        let overrides = Overrides {
            chunker: Some(vector.chunker.parse().unwrap()),
            layout: vector.trickle.then_some(Layout::Trickle),
            cid_version: vector.cid_version,
            raw_leaves: vector.raw_leaves,
            inline: vector.inline,
            max_file_links: vector.max_file_links,
            metadata: !metadata.is_empty(),
            ..Overrides::default()
        };
        let profile = Profile::V1_2025.with(&overrides).unwrap();
        let mut blocks = MemoryBlocks::default();
        let content = Noise::new(vector.seed).take(vector.size);
        let made = import_stream(content, &profile, &metadata, &mut blocks, &mut |_| {}, &mut ()).unwrap();
        assert_eq!(
            (made.root.to_string(), made.dag_size),
            (vector.cid.clone(), vector.dag_size),
            "{vector:?}"
        );
        let (mut expected, mut read) = (Vec::new(), Vec::new());
        Noise::new(vector.seed).take(vector.size).read_to_end(&mut expected).unwrap();
        FileReader::open(&blocks, &made.root).unwrap().read_to_end(&mut read).unwrap();
        assert!(read == expected, "{vector:?} reads back otherwise");
    }
}

#[test]
fn overrides_that_cannot_be_are_refused() {
    let refused = |overrides| Profile::V1_2025.with(&overrides).unwrap_err().to_string();
    let none = Overrides::default();
    assert!(refused(Overrides { cid_version: Some(2), ..none }).contains("CID version 2"));
    assert!(refused(Overrides { inline: Some(65), ..none }).contains("at most 64"));
    assert!(refused(Overrides { max_file_links: Some(1), ..none }).contains("from 2"));
    assert!(refused(Overrides { max_file_links: Some(16_385), ..none }).contains("16384"));
    assert!(refused(Overrides { max_hamt_fanout: Some(12), ..none }).contains("power of two"));
    assert!(refused(Overrides { max_directory_links: Some(0), ..none }).contains("from 1"));
    let blake3: hash::Function = "blake3".parse().unwrap();
    let old = Overrides { function: Some(blake3), cid_version: Some(0), ..none };
    assert_eq!(Profile::V1_2025.with(&old), Err(ProfileError::HashVersion(blake3)));
    let both = Overrides { raw_leaves: Some(true), metadata: true, ..none };
    assert_eq!(Profile::V1_2025.with(&both), Err(ProfileError::RawMetadata));
    assert_eq!(Profile::V1_2025.with(&none), Ok(Profile::V1_2025));
    assert_eq!(Profile::V1_2025.with(&Overrides { cid_version: Some(0), ..none }).unwrap().name(), "custom");
}

fn any_profile() -> impl Strategy<Value = Profile> {
    let chunker = prop_oneof![
        (1u32..300).prop_map(Chunker::Size),
        (16u32..40, 1u32..60, 1u32..90).prop_map(|(min, to_average, to_max)| {
            let average = min + to_average;
            Chunker::Rabin(Bounds { min, average, max: average + to_max })
        }),
        Just("fastcdc-64-256-1024".parse().unwrap()),
        Just(Chunker::Buzhash),
    ];
    let layout = prop_oneof![Just(Layout::Balanced), Just(Layout::Trickle)];
    // A function goes with CIDv1 alone.
    let named = prop_oneof![
        (0u8..2).prop_map(|version| (Some(version), None::<hash::Function>)),
        prop::sample::select(vec!["sha2-512", "sha3-224", "blake2s-160", "blake3"])
            .prop_map(|name| (None, Some(name.parse().unwrap()))),
    ];
    (chunker, layout, named, any::<bool>(), prop::option::of(0usize..=64), 2usize..9).prop_map(
        |(chunker, layout, (cid_version, function), raw, inline, links)| {
            let overrides = Overrides {
                chunker: Some(chunker),
                layout: Some(layout),
                cid_version,
                function,
                raw_leaves: Some(raw),
                inline,
                max_file_links: Some(links),
                ..Overrides::default()
            };
            Profile::V1_2025.with(&overrides).unwrap()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever the parameters, a file reads back as the bytes it was, from any position.
    #[test]
    fn any_layout_reads_back(
        profile in any_profile(),
        seed: u64,
        size in 0u64..30_000,
        reads in prop::collection::vec((0u64..31_000, 0usize..3000), 1..20),
    ) {
        let mut content = Vec::new();
        Noise::new(seed).take(size).read_to_end(&mut content).unwrap();
        let mut blocks = MemoryBlocks::default();
        let made = import_reader(&content[..], &profile, &mut blocks, &mut |_| {}).unwrap();
        prop_assert_eq!(made.size, size);
        let mut reader = FileReader::open(&blocks, &made.root).unwrap();
        prop_assert_eq!(reader.size(), size);
        for (at, len) in reads {
            reader.seek(io::SeekFrom::Start(at)).unwrap();
            let mut read = Vec::new();
            Read::by_ref(&mut reader).take(len as u64).read_to_end(&mut read).unwrap();
            let from = (at as usize).min(content.len());
            prop_assert_eq!(&read[..], &content[from..(from + len).min(content.len())]);
        }
        let stat = crate::read::stat(&blocks, &made.root).unwrap();
        prop_assert_eq!((stat.size, stat.dag_size), (size, made.dag_size));
        let walked: Result<Vec<_>, _> = crate::read::walk(&blocks, &made.root).collect();
        prop_assert!(walked.is_ok());
    }
}
