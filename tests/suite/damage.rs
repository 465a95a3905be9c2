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
/// Moments at which the building of a database is killed.
const KILLS: u32 = 8;

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
    let tables = tables_of(&node, &content[..LEAF]);
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

/// The tables that list a leaf, and where: of what is known of it, and of the blocks.
fn tables_of(node: &Node, leaf: &[u8]) -> Vec<(PathBuf, usize)> {
    // What it is listed under among the blocks stands before its bytes. Rows that follow each other share their beginnings.
    let (blobs, at) = find(node, "blob", &leaf[..64]).remove(0);
    let tag = std::fs::read(blobs).expect("a blob file")[at - 8..at].to_vec();
    let tables = [&Sha256::digest(leaf)[8..], &tag].map(|end| find(node, "sst", end));
    assert!(tables.iter().all(|tables| !tables.is_empty()), "both list it");
    tables.concat()
}

/// A repo with two files of which one lost a leaf to a bit that flipped in a table, the lost one, and the kept one.
fn with_a_damaged_table(node: &Node) -> (Added, Added) {
    let (kept, lost) = (add(node, "kept", LARGE), add(node, "lost", LARGE));
    let content = std::fs::read(&lost.path).expect("the file");
    let whole = node.file("whole");
    copy(&node.repo(), &whole);
    // One of them is of the blocks; the other, of what is known of them, can be written anew.
    for (table, at) in tables_of(node, &content[..LEAF]) {
        flip(&table, at);
        if !verify(node).1.is_empty() {
            return (kept, lost);
        }
        std::fs::remove_dir_all(node.repo()).expect("it is there");
        copy(&whole, &node.repo());
    }
    panic!("no table lists the leaf's bytes");
}

fn repair(node: &Node) -> Value {
    let output = node.run(&["repo", "verify", "--repair", "--json"]);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

fn count(value: &Value) -> usize {
    value.as_array().expect("a list").len()
}

/// Everything that a database without damage does: collections give space back, and nothing is left of the old one.
fn is_as_new(node: &Node, kept: &Added, lost: &Added) {
    let pin = node.json(&["pin", "ls"]);
    reads_back(node, kept, true);
    heals(node, lost);
    let collected = node.json(&["repo", "gc"]);
    assert_eq!(collected["kept_by_damage"], false, "{pin}");
    let (answer, _) = verify(node);
    assert_eq!((count(&answer["damaged_directories"]), count(&answer["rebuilt"])), (0, 0), "{answer}");
    assert!(!node.repo().join("blocks/DAMAGED").exists());
    let stat = node.json(&["repo", "stat"]);
    let (live, disk) = (stat["live_bytes"].as_u64(), stat["disk_bytes"].as_u64());
    assert!(disk < live.map(|live| live + (1 << 20)), "{stat}");
}

#[test]
fn a_damaged_table_is_built_anew_without_what_it_lost() {
    let node = Node::init(None);
    let (kept, lost) = with_a_damaged_table(&node);
    let answer = repair(&node);
    assert_eq!((count(&answer["rebuilt"]), count(&answer["incomplete"])), (1, 1), "{answer}");
    assert_eq!(answer["incomplete"][0]["pin"]["cid"], lost.cid, "{answer}");
    reads_back(&node, &lost, false);
    is_as_new(&node, &kept, &lost);
}

#[test]
fn a_daemon_builds_a_damaged_table_anew_and_fetches_what_it_lost() {
    let (mut one, mut two) = (Node::init(None), Node::init(None));
    let (kept, lost) = with_a_damaged_table(&two);
    one.json(&["add", text(&lost.path)]);
    one.start();
    two.start();
    two.json(&["swarm", "connect", &one.address("/tcp/")]);
    let answer = repair(&two);
    // The daemon may have fetched it by itself before.
    let left = |name: &str| answer[name].as_u64().expect("a number");
    assert_eq!((count(&answer["rebuilt"]), left("incomplete_pins")), (1, left("repaired_pins")), "{answer}");
    reads_back(&two, &kept, true);
    reads_back(&two, &lost, true);
    add(&two, "fresh", LARGE);
    two.stop();
    is_as_new(&two, &kept, &lost);
    one.stop();
}

#[test]
fn building_anew_goes_on_after_a_kill_at_any_moment() {
    let node = Node::init(None);
    let (kept, lost) = with_a_damaged_table(&node);
    let damaged = node.file("damaged");
    copy(&node.repo(), &damaged);
    let begun = std::time::Instant::now();
    repair(&node);
    let takes = begun.elapsed();
    for part in 1..=KILLS {
        std::fs::remove_dir_all(node.repo()).expect("it is there");
        copy(&damaged, &node.repo());
        for _ in 0..2 {
            let mut child = node.command(&["repo", "verify", "--repair"]).spawn().expect("btfs runs");
            std::thread::sleep(takes * part / (KILLS + 1));
            // Already gone is fine.
            child.kill().unwrap_or_default();
            child.wait().expect("our own child");
        }
        reads_back(&node, &kept, true);
        repair(&node);
        is_as_new(&node, &kept, &lost);
    }
}
