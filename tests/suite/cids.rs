//! CIDs of files and trees, against the reference importer in JavaScript (`tests/peers/unixfs`).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use btfs_storage::import::{ImportOptions, Profile, import_path};
use btfs_storage::{BlockSink, Bytes, Cid, MAX_BLOCK, StoreError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::peers;

const MIB: u64 = 1 << 20;
/// Random trees that are compared, each by both profiles.
const TREES: u64 = 104;
/// Seed of the first; the others follow. A failure names its tree's seed.
const SEED: u64 = 0x62_7466_7300;

/// The oracle's process: one question and one answer a line.
struct Oracle {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Oracle {
    fn start() -> Oracle {
        let folder = peers::peer("unixfs/node_modules/ipfs-unixfs-importer");
        let script = folder.ancestors().nth(2).expect("two folders above").join("oracle.js");
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

    fn cid(&mut self, path: &Path, profile: &Profile) -> String {
        let question = serde_json::json!({ "path": path, "profile": profile.name() });
        writeln!(self.ask, "{question}").expect("the oracle listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("the oracle answers");
        let answer: serde_json::Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in the oracle's {line:?}"));
        answer["cid"].as_str().expect("a CID").to_owned()
    }

    /// Compares both profiles; `what` names the tree in a failure.
    fn agrees(&mut self, path: &Path, what: &str) {
        for profile in Profile::ALL {
            let expected = self.cid(path, &profile);
            assert_eq!(ours(path, &profile).to_string(), expected, "{what} by {}", profile.name());
        }
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
        let size = match self.rng.random_range(0..10) {
            0 => EDGES[self.rng.random_range(0..EDGES.len())] + self.rng.random_range(0..3),
            1 => self.rng.random_range(0..3 * MIB),
            _ => self.rng.random_range(0..5000),
        };
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
    let mut oracle = Oracle::start();
    for seed in SEED..SEED + TREES {
        let (_dir, root) = scratch();
        Gardener { rng: StdRng::seed_from_u64(seed) }.fill(&root, 0, &mut 60);
        oracle.agrees(&root, &format!("the tree of seed {seed:#x}"));
    }
}

#[test]
fn directories_of_ten_thousand() {
    let mut oracle = Oracle::start();
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
    oracle.agrees(&root.join("plain"), "10,000 entries");
    oracle.agrees(&root, "a directory above 10,000 entries");
}

#[test]
fn single_files_links_and_empty_things() {
    let mut oracle = Oracle::start();
    let (_dir, root) = scratch();
    fs::create_dir(&root).expect("the directory is made");
    oracle.agrees(&root, "an empty directory");
    for size in [0, 1, 10, MIB / 4 - 1, MIB / 4, MIB / 4 + 1, MIB - 1, MIB, MIB + 1, 3 * MIB] {
        let path = root.join(format!("{size}"));
        sparse(&path, size, &mut StdRng::seed_from_u64(size));
        oracle.agrees(&path, &format!("a file of {size} bytes"));
    }
    symlink("nowhere/ü", root.join("link")).expect("the link is made");
    oracle.agrees(&root.join("link"), "a symlink");
    oracle.agrees(&root, "all of them");
}

/// Files with two levels of interior nodes: over 44 MiB in the old profile, over 1 GiB in the new one.
#[test]
fn files_of_several_levels() {
    let mut oracle = Oracle::start();
    let (_dir, path) = scratch();
    for size in [174 * MIB / 4, 174 * MIB / 4 + 1, 60 * MIB + 77, 1024 * MIB + 1, 1300 * MIB + 12_345] {
        sparse(&path, size, &mut StdRng::seed_from_u64(size));
        oracle.agrees(&path, &format!("a file of {size} bytes"));
    }
}
