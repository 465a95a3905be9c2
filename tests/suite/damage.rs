//! Every kind of damage to the block database: what it affects is named by its pin, and everything else goes on.

use std::path::{Path, PathBuf};
use std::process::Command;

use btfs_tests::node::{Node, random_file, sha256};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Several blocks, flushed into files of their own when they are added.
const LARGE: u64 = 5 << 20;
/// Acknowledged by the log alone.
const SMALL: u64 = 100_000;
/// Bytes of a large file's first leaf.
const LEAF: usize = 1 << 20;

/// A file that was added.
struct Added {
    path: PathBuf,
    cid: String,
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

fn add(node: &Node, name: &str, size: u64) -> Added {
    let path = node.file(name);
    random_file(&path, size, u64::from(name.as_bytes()[0]));
    let cid = node.json(&["add", text(&path)])["cid"].as_str().expect("a CID").to_owned();
    Added { path, cid }
}

/// The files of the block database with that ending in which `bytes` occur, and where.
fn find(node: &Node, ending: &str, bytes: &[u8]) -> Vec<(PathBuf, usize)> {
    let entries = std::fs::read_dir(node.repo().join("blocks")).expect("the blocks");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let files = paths.filter(|path| path.extension().is_some_and(|found| found == ending));
    let at = |path: &Path| {
        let all = std::fs::read(path).expect("it is read");
        all.windows(bytes.len()).position(|window| window == bytes)
    };
    files.filter_map(|path| at(&path).map(|at| (path, at))).collect()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).expect("it is read");
    bytes[at] ^= 1;
    std::fs::write(path, bytes).expect("it is written");
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(copied.success());
}

/// What a verification answers, and the CIDs of the pins that it names.
fn verify(node: &Node) -> (Value, Vec<String>) {
    let output = node.run(&["repo", "verify", "--json"]);
    let told = String::from_utf8_lossy(&output.stderr);
    let answer: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
    let pins = answer["incomplete"].as_array().expect("a list");
    let pins: Vec<String> =
        pins.iter().map(|found| found["pin"]["cid"].as_str().expect("a CID").to_owned()).collect();
    assert_eq!(output.status.success(), pins.is_empty(), "it fails if something is lacking: {told}");
    (answer, pins)
}

/// That a file reads back, or is refused.
fn reads_back(node: &Node, added: &Added, whole: bool) {
    let target = node.file("read-back");
    let arguments = ["get", &added.cid, "--output", text(&target)];
    if whole {
        node.json(&arguments);
        assert_eq!(sha256(&target), sha256(&added.path));
        std::fs::remove_file(&target).expect("it is there");
    } else {
        node.fails(&arguments);
        assert!(!target.exists(), "half a file is none");
    }
}

/// The lost file is added again, and all is well.
fn heals(node: &Node, lost: &Added) {
    node.json(&["add", text(&lost.path)]);
    assert_eq!(verify(node).1, [] as [&str; 0]);
    reads_back(node, lost, true);
    add(node, "new", SMALL);
}

#[test]
fn a_lost_blob_file() {
    let node = Node::init(None);
    let (kept, lost) = (add(&node, "kept", LARGE), add(&node, "lost", LARGE));
    let content = std::fs::read(&lost.path).expect("the file");
    let (blobs, _) = find(&node, "blob", &content[..64]).remove(0);
    std::fs::remove_file(blobs).expect("it was there");
    assert_eq!(verify(&node).1, [lost.cid.as_str()]);
    reads_back(&node, &kept, true);
    reads_back(&node, &lost, false);
    heals(&node, &lost);
}

#[test]
fn a_flipped_bit_in_each_table() {
    let node = Node::init(None);
    let (kept, lost) = (add(&node, "kept", LARGE), add(&node, "lost", LARGE));
    let content = std::fs::read(&lost.path).expect("the file");
    let leaf = Sha256::digest(&content[..LEAF]);
    // Keys that follow each other share their beginnings.
    let tables = find(&node, "sst", &leaf[8..]);
    assert!(tables.len() >= 2, "of the blocks, and of what is known of them");
    let whole = node.file("whole");
    copy(&node.repo(), &whole);
    let (mut reindexed, mut lacking) = (0, 0);
    for (table, at) in &tables {
        flip(table, *at);
        let (answer, pins) = verify(&node);
        if pins.is_empty() {
            reindexed += answer["blocks_reindexed"].as_u64().expect("a number");
        } else {
            assert_eq!(pins, [lost.cid.as_str()]);
            lacking += 1;
        }
        reads_back(&node, &kept, true);
        reads_back(&node, &lost, pins.is_empty());
        heals(&node, &lost);
        std::fs::remove_dir_all(node.repo()).expect("it is there");
        copy(&whole, &node.repo());
    }
    assert!(reindexed > 0 && lacking > 0, "one table can be written anew, the other cannot");
}

#[test]
fn a_flipped_bit_in_the_log() {
    let mut node = Node::init(None);
    node.start();
    let [before, lost, after] = ["before", "lost", "after"].map(|name| add(&node, name, SMALL));
    node.kill();
    let content = std::fs::read(&lost.path).expect("the file");
    let (log, at) = find(&node, "log", &content[..64]).remove(0);
    flip(&log, at);
    let (_, pins) = verify(&node);
    // At worst what came after it, too.
    assert!(pins.contains(&lost.cid) && !pins.contains(&before.cid), "{pins:?}");
    reads_back(&node, &before, true);
    reads_back(&node, &lost, false);
    reads_back(&node, &after, !pins.contains(&after.cid));
    node.json(&["add", text(&after.path)]);
    heals(&node, &lost);
}
