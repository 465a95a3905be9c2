//! CIDs of files and trees, against the reference importer in JavaScript (`tests/peers/unixfs`).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex};

use btfs_storage::import::{
    Chunker, DirBuilder, ImportOptions, Layout, Overrides, Profile, import_path, import_reader,
};
use btfs_storage::{BlockSink, Bytes, Cid, MAX_BLOCK, StoreError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::peers;

const MIB: u64 = 1 << 20;
/// Random trees that are compared, each by parameters of its own.
const TREES: u64 = 500;
/// Seed of the first; the others follow. A failure names its tree's seed.
const SEED: u64 = 0x62_7466_7300;

/// Parameters of an import, for us and for the oracle.
#[derive(Debug, Clone)]
struct Shape {
    profile: Profile,
    overrides: Overrides,
}

impl Shape {
    /// A profile as it is.
    fn plain(profile: Profile) -> Shape {
        Shape { profile, overrides: Overrides::default() }
    }

    /// Every parameter that the oracle knows, at random. It cuts by content otherwise than Kubo does, so that only
    /// fixed sizes can be compared; Kubo's cuts are among the vectors of `btfs_storage`.
    fn random(rng: &mut StdRng) -> Shape {
        let size = [1, 100, 1000, 4096, 262_144][rng.random_range(0..5)];
        let layout = if rng.random() { Layout::Trickle } else { Layout::Balanced };
        let overrides = Overrides {
            chunker: Some(Chunker::Size(size)),
            layout: Some(layout),
            cid_version: Some(rng.random_range(0..2)),
            raw_leaves: Some(rng.random()),
            max_file_links: Some(rng.random_range(2..40)),
            ..Overrides::default()
        };
        Shape { profile: Profile::ALL[rng.random_range(0..2)], overrides }
    }

    fn ours(&self) -> Profile {
        self.profile.with(&self.overrides).expect("parameters that can be")
    }

    fn question(&self) -> Value {
        let Overrides { chunker, layout, cid_version, raw_leaves, max_file_links, max_hamt_fanout, .. } =
            self.overrides;
        let chunker = chunker.map(|chunker| json!({ "size": chunker.max() }));
        json!({
            "profile": self.profile.name(),
            "chunker": chunker,
            "trickle": layout == Some(Layout::Trickle),
            "cidVersion": cid_version,
            "rawLeaves": raw_leaves,
            "links": max_file_links,
            "fanoutBits": max_hamt_fanout.map(u32::trailing_zeros),
        })
    }

    /// Largest files of a random tree: many leaves, but not so many that the oracle takes long.
    fn largest(&self) -> u64 {
        (400 * self.ours().chunk_size() as u64).min(3 * MIB)
    }
}

/// The oracle's process: one question and one answer a line. One for all tests; starting it takes longer than most
/// questions.
struct Oracle {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

static ORACLE: LazyLock<Mutex<Oracle>> = LazyLock::new(|| Mutex::new(Oracle::start()));

impl Oracle {
    fn start() -> Oracle {
        let folder = peers::peer("unixfs/node_modules/ipfs-unixfs-importer");
        let script = folder.ancestors().nth(2).expect("two folders above").join("oracle.js");
        // It ends with its standard input, when this program does.
        let mut child = Command::new("node")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node runs: tests/peers/install sees to it");
        let ask = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Oracle { child, ask, answers }
    }

    /// The CID of what `question` describes.
    fn cid(question: &Value) -> String {
        // A test that failed with the lock held has taken its answer, or the process is gone and says so.
        let mut oracle = ORACLE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        writeln!(oracle.ask, "{question}").expect("the oracle listens");
        let mut line = String::new();
        oracle.answers.read_line(&mut line).expect("the oracle answers");
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            panic!("{error} in the oracle's {line:?} ({:?})", oracle.child.try_wait())
        });
        answer["cid"].as_str().expect("a CID").to_owned()
    }

    /// Compares what both make of `path`; `what` names it in a failure.
    fn agrees_on(path: &Path, shape: &Shape, what: &str) {
        let mut question = shape.question();
        question["path"] = json!(path);
        assert_eq!(ours(path, &shape.ours()).to_string(), Oracle::cid(&question), "{what} by {shape:?}");
    }

    /// Compares both profiles.
    fn agrees(path: &Path, what: &str) {
        for profile in Profile::ALL {
            Oracle::agrees_on(path, &Shape::plain(profile), what);
        }
    }
}

/// Keeps nothing, but looks at what it is given.
struct Discard;

impl BlockSink for Discard {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        assert!(data.len() <= MAX_BLOCK, "{cid} has {} bytes", data.len());
        Ok(())
    }
}

fn ours(path: &Path, profile: &Profile) -> Cid {
    let options = ImportOptions::default();
    import_path(path, profile, &options, &mut Discard, &mut |_| {}).expect("the tree can be read").root
}

/// Makes random trees.
struct Gardener {
    rng: StdRng,
    /// Bytes of the largest files.
    largest: u64,
}

impl Gardener {
    fn name(&mut self) -> String {
        const LETTERS: [char; 16] =
            ['a', 'b', 'Z', '0', '-', '_', ' ', '%', '~', 'é', 'ß', 'я', '語', '\u{fb01}', '🎈', '𝄞'];
        let len = self.rng.random_range(1..12);
        let name: String = (0..len).map(|_| LETTERS[self.rng.random_range(0..LETTERS.len())]).collect();
        // Every tenth is hidden, and must not be seen.
        if self.rng.random_ratio(1, 10) { format!(".{name}") } else { name }
    }

    fn file(&mut self, path: &Path) {
        // Around the chunk sizes of both profiles, and small ones.
        const EDGES: [u64; 6] = [0, 1, MIB / 4, MIB / 2, MIB, 2 * MIB];
        let size = match self.rng.random_range(0..20) {
            0 => EDGES[self.rng.random_range(0..EDGES.len())] + self.rng.random_range(0..3),
            1 => self.rng.random_range(0..self.largest),
            _ => self.rng.random_range(0..5000),
        };
        let size = size.min(self.largest);
        let mut content = vec![0u8; size as usize];
        self.rng.fill(&mut content[..]);
        fs::write(path, content).expect("the file is written");
    }

    /// Fills a directory; `left` bounds the entries of the whole tree.
    fn fill(&mut self, directory: &Path, depth: u32, left: &mut u32) {
        fs::create_dir(directory).expect("the directory is made");
        for _ in 0..self.rng.random_range(0..8) {
            let path = directory.join(self.name());
            if *left == 0 || fs::symlink_metadata(&path).is_ok() {
                continue;
            }
            *left -= 1;
            match self.rng.random_range(0..10) {
                0 => symlink(self.name(), &path).expect("the link is made"),
                1..=3 if depth < 5 => self.fill(&path, depth + 1, left),
                _ => self.file(&path),
            }
        }
    }
}

/// A file of `size` bytes that takes little disk: zeros with a random page here and there.
fn sparse(path: &Path, size: u64, rng: &mut StdRng) {
    let file = File::create(path).expect("the file is made");
    file.set_len(size).expect("the file has room");
    let mut page = [0u8; 4096];
    for offset in (0..size).step_by(MIB as usize / 4) {
        rng.fill(&mut page[..]);
        let len = page.len().min((size - offset) as usize);
        file.write_all_at(&page[..len], offset).expect("the page is written");
    }
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("tree");
    (dir, path)
}

#[test]
fn random_trees() {
    for seed in SEED..SEED + TREES {
        let mut rng = StdRng::seed_from_u64(seed);
        let shape = match seed % 5 {
            0 => Shape::plain(Profile::V1_2025),
            1 => Shape::plain(Profile::V0_2015),
            _ => Shape::random(&mut rng),
        };
        let (_dir, root) = scratch();
        Gardener { rng, largest: shape.largest() }.fill(&root, 0, &mut 40);
        Oracle::agrees_on(&root, &shape, &format!("the tree of seed {seed:#x}"));
    }
}

#[test]
fn directories_of_ten_thousand() {
    let (_dir, root) = scratch();
    let mut rng = StdRng::seed_from_u64(SEED);
    fs::create_dir_all(root.join("plain")).expect("the directory is made");
    for i in 0..10_000 {
        let path = root.join(format!("plain/{i}-ü{:x}", rng.random::<u32>()));
        match i % 100 {
            0 => symlink(format!("{i}"), path).expect("the link is made"),
            1 => fs::write(path, "").expect("the file is written"),
            _ => fs::write(path, format!("{}", i % 50)).expect("the file is written"),
        }
    }
    Oracle::agrees(&root.join("plain"), "10,000 entries");
    Oracle::agrees(&root, "a directory above 10,000 entries");
}

/// A directory of `count` files; nothing of it is on a disk.
fn listed(count: u32, shape: &Shape) {
    let names: Vec<String> = (0..count).map(|i| format!("{i}-\u{fc}")).collect();
    let profile = shape.ours();
    let file = import_reader(&b"text"[..], &profile, &mut Discard, &mut |_| {}).expect("a file");
    let mut directory = DirBuilder::new(&profile);
    for name in &names {
        directory.add(&[name], &file).expect("distinct names");
    }
    let made = directory.finish(&mut Discard).expect("a directory").root.to_string();
    let mut question = shape.question();
    question["names"] = json!(names);
    question["text"] = json!("text");
    assert_eq!(made, Oracle::cid(&question), "{count} entries by {shape:?}");
}

#[test]
fn a_directory_of_a_hundred_thousand() {
    listed(100_000, &Shape::plain(Profile::V1_2025));
}

#[test]
fn shards_of_other_widths() {
    for fanout in [8, 64, 1024] {
        let overrides = Overrides { max_hamt_fanout: Some(fanout), ..Overrides::default() };
        listed(7000, &Shape { profile: Profile::V1_2025, overrides });
    }
}

#[test]
fn single_files_links_and_empty_things() {
    let (_dir, root) = scratch();
    fs::create_dir(&root).expect("the directory is made");
    Oracle::agrees(&root, "an empty directory");
    for size in [0, 1, 10, MIB / 4 - 1, MIB / 4, MIB / 4 + 1, MIB - 1, MIB, MIB + 1, 3 * MIB] {
        let path = root.join(format!("{size}"));
        sparse(&path, size, &mut StdRng::seed_from_u64(size));
        Oracle::agrees(&path, &format!("a file of {size} bytes"));
    }
    symlink("nowhere/ü", root.join("link")).expect("the link is made");
    Oracle::agrees(&root.join("link"), "a symlink");
    Oracle::agrees(&root, "all of them");
}

/// Files with two levels of interior nodes: over 44 MiB in the old profile, over 1 GiB in the new one.
#[test]
fn files_of_several_levels() {
    let (_dir, path) = scratch();
    for size in [174 * MIB / 4, 174 * MIB / 4 + 1, 60 * MIB + 77, 1024 * MIB + 1, 1300 * MIB + 12_345] {
        sparse(&path, size, &mut StdRng::seed_from_u64(size));
        Oracle::agrees(&path, &format!("a file of {size} bytes"));
    }
}
