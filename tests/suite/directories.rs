//! Blocks on several disks, through the program.

use std::path::Path;

use btfs_tests::node::{Node, random_file, sha256};
use serde_json::{Value, json};

/// Several batches of blocks, so that both directories get some.
const FILE: u64 = 24 << 20;
/// Several windows of an emptying in each directory.
const LARGE: u64 = 512 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

fn list(node: &Node) -> Vec<Value> {
    node.json(&["repo", "dir", "ls"])["directories"].as_array().expect("a list").clone()
}

/// A number of each data directory.
fn each(node: &Node, what: &str) -> Vec<u64> {
    list(node).iter().map(|directory| directory[what].as_u64().expect("a number")).collect()
}

fn add(node: &Node, file: &Path) -> String {
    node.json(&["add", text(file)])["cid"].as_str().expect("a CID").to_owned()
}

fn whole(node: &Node, cid: &str, file: &Path) {
    let got = node.file("got");
    node.json(&["get", cid, "--output", text(&got)]);
    assert_eq!(sha256(&got), sha256(file));
    std::fs::remove_file(got).expect("it is removed");
}

#[test]
fn blocks_spread_over_directories_and_leave_one_again() {
    let mut node = Node::init(None);
    let (file, more, copy) = (node.file("file"), node.file("more"), node.file("copy"));
    random_file(&file, FILE, 5);
    node.start();
    node.json(&["repo", "dir", "add", text(&more)]);
    let cid = add(&node, &file);
    assert!(each(&node, "bytes").iter().all(|bytes| *bytes > FILE / 4), "{:?}", list(&node));
    node.json(&["repo", "backup", text(&copy)]);
    node.stop();
    whole(&node, &cid, &file);
    // A disk that is not there is named; what is on others is served, and nothing is lost.
    std::fs::rename(&more, node.file("unplugged")).expect("it is moved");
    node.start();
    assert_eq!(list(&node)[1]["state"], "missing");
    assert!(node.log_tail().contains(text(&more)), "{}", node.log_tail());
    assert!(node.fails(&["repo", "verify"]).contains("1 pin lacks blocks; everything else is whole"));
    let small = node.file("small");
    random_file(&small, 5000, 6);
    let other = add(&node, &small);
    node.stop();
    std::fs::rename(node.file("unplugged"), &more).expect("it is moved back");
    node.start();
    node.json(&["repo", "dir", "add", text(&more)]);
    assert_eq!(list(&node)[1]["state"], "open");
    let (all, there) = (each(&node, "bytes").iter().sum::<u64>(), each(&node, "bytes")[1]);
    let removed = node.json(&["repo", "dir", "rm", text(&more)]);
    assert_eq!(removed["bytes_moved"], there, "{removed}");
    assert_eq!(each(&node, "bytes"), [all]);
    assert!(!more.exists(), "its files are gone");
    whole(&node, &cid, &file);
    whole(&node, &other, &small);
    assert!(node.fails(&["repo", "dir", "rm", text(&node.repo().join("blocks"))]).contains("add one first"));
    node.stop();
    whole(&node, &cid, &file);
    let restored = node.file("restored");
    node.json(&["--repo", text(&restored), "repo", "restore", text(&copy)]);
    let got = node.file("got");
    node.json(&["--repo", text(&restored), "get", &cid, "--output", text(&got)]);
    assert_eq!(sha256(&got), sha256(&file));
}

#[test]
fn new_blocks_go_to_the_disk_that_has_most_room() {
    // Another file system than that of temporary files, where there is one.
    let memory = Path::new("/dev/shm");
    let elsewhere = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let elsewhere = elsewhere.expect("a directory");
    let node = Node::init(None);
    let file = node.file("file");
    random_file(&file, FILE, 7);
    node.json(&["repo", "dir", "add", text(elsewhere.path())]);
    let before = each(&node, "bytes");
    let free = each(&node, "disk_free_bytes");
    let cid = add(&node, &file);
    let grown: Vec<u64> = each(&node, "bytes").iter().zip(before).map(|(now, then)| now - then).collect();
    if free[0].abs_diff(free[1]) > 8 * FILE {
        assert!(grown[usize::from(free[1] > free[0])] > FILE, "free {free:?}, grown by {grown:?}");
    }
    node.json(&["repo", "dir", "rm", text(elsewhere.path())]);
    whole(&node, &cid, &file);
}

#[test]
fn a_node_that_is_killed_while_it_empties_a_directory_goes_on() {
    let mut node = Node::init(None);
    let (file, more) = (node.file("file"), node.file("more"));
    random_file(&file, LARGE, 8);
    node.start();
    node.json(&["repo", "dir", "add", text(&more)]);
    let cid = add(&node, &file);
    let there = each(&node, "bytes")[1];
    let lines = node.begin("repo/dir/rm", &json!({ "path": more }));
    node.kill();
    drop(lines);
    // Nobody needs to ask for the rest, and others read and add meanwhile.
    node.start();
    let left = list(&node);
    assert!(left.len() == 1 || left[1]["state"] == "emptied", "{left:?}");
    assert!(left.get(1).is_none_or(|left| left["bytes"].as_u64().expect("a number") < there), "{left:?}");
    let small = node.file("small");
    let mut added = Vec::new();
    while list(&node).len() > 1 {
        random_file(&small, 50_000, 100 + added.len() as u64);
        added.push((add(&node, &small), sha256(&small)));
        let leaf = node.run(&["cat", &cid, "--offset", "100000000", "--length", "1000000"]);
        assert_eq!(leaf.stdout.len(), 1_000_000);
    }
    assert!(!more.exists(), "its files are gone");
    whole(&node, &cid, &file);
    node.json(&["repo", "gc"]);
    node.kill();
    node.start();
    whole(&node, &cid, &file);
    for (cid, hash) in added {
        let got = node.file("got");
        node.json(&["get", &cid, "--output", text(&got)]);
        assert_eq!(sha256(&got), hash);
        std::fs::remove_file(got).expect("it is removed");
    }
    let verified = node.json(&["repo", "verify"]);
    assert_eq!(
        (&verified["blocks_damaged"], &verified["incomplete_pins"]),
        (&0.into(), &0.into()),
        "{verified}"
    );
    // Taken back, a directory that was to be emptied takes blocks again.
    node.json(&["repo", "dir", "add", text(&more)]);
    let own = node.repo().join("blocks");
    drop(node.begin("repo/dir/rm", &json!({ "path": own })));
    node.json(&["repo", "dir", "add", text(&own)]);
    assert!(list(&node).iter().all(|directory| directory["state"] == "open"));
    whole(&node, &cid, &file);
    let counted = node.json(&["repo", "stat"])["live_bytes"].as_u64().expect("a number");
    assert_eq!(each(&node, "bytes").iter().sum::<u64>(), counted);
    node.stop();
    whole(&node, &cid, &file);
}
