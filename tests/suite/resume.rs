//! Adding and fetching again what was broken off: what is here already is neither written nor fetched a second time.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Stdio;

use btfs_tests::node::{Node, random_file, sha256};
use serde_json::json;

const MIB: u64 = 1 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// Starts to add the first `len` bytes of a file from standard input, and kills the program once it has taken them.
fn add_a_part(node: &Node, path: &Path, len: u64) {
    let mut part = Vec::new();
    fs::File::open(path).expect("the file").take(len).read_to_end(&mut part).expect("its start");
    let mut command = node.command(&["add", "-Q", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("btfs runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(&part).expect("it reads");
    child.kill().expect("it is killed");
    child.wait().expect("it ends");
}

#[test]
fn an_add_that_was_killed_goes_on_where_it_was() {
    let node = Node::init(None);
    let path = node.file("file");
    random_file(&path, 256 * MIB, 51);
    add_a_part(&node, &path, 224 * MIB);
    assert_eq!(node.json(&["pin", "ls"])["pins"].as_array().map(Vec::len), Some(0));
    let counted = |added: serde_json::Value| (added["new_blocks"].as_u64(), added["new_bytes"].as_u64());
    // What was on its way and what waited in memory was not durable: some tens of MiB.
    let (_, rest) = counted(node.json(&["add", text(&path)]));
    assert!((32 * MIB..160 * MIB).contains(&rest.expect("a count")), "{rest:?}");
    assert_eq!(counted(node.json(&["add", text(&path)])), (Some(0), Some(0)));
    assert_eq!(node.json(&["repo", "verify"])["blocks_damaged"], 0);
}

#[test]
fn what_a_killed_add_left_is_collected() {
    let node = Node::init(None);
    let path = node.file("file");
    random_file(&path, 64 * MIB, 52);
    let before = node.json(&["repo", "stat"])["blocks"].clone();
    add_a_part(&node, &path, 64 * MIB);
    assert!(node.json(&["repo", "stat"])["blocks"].as_u64() > before.as_u64());
    node.json(&["repo", "gc"]);
    assert_eq!(node.json(&["repo", "stat"])["blocks"], before);
}

/// A daemon does not go on with what nobody waits for any more.
#[test]
fn a_client_that_goes_away_ends_its_add() {
    let mut node = Node::init(None);
    node.start();
    let path = node.file("sparse");
    // Takes seconds to hash, and no space.
    fs::File::create(&path).and_then(|file| file.set_len(8 << 30)).expect("a sparse file");
    let lines = node.begin("add", &json!({ "path": path }));
    // While it goes on, nothing that is put is removed.
    let small = node.file("small");
    fs::write(&small, b"a block that nobody needs").expect("a file");
    let added = node.json(&["add", "--no-pin", text(&small)]);
    let block = added["cid"].as_str().expect("a CID");
    let is_held = || {
        let output = node.run(&["block", "rm", block]);
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() || told.contains("being brought in"), "{told}");
        !output.status.success()
    };
    assert!(is_held());
    drop(lines);
    assert!((0..1000).any(|_| !is_held()), "it goes on for nobody");
    assert_eq!(node.json(&["pin", "ls"])["pins"].as_array().map(Vec::len), Some(0));
    node.stop();
}

#[test]
fn a_directory_that_came_in_part_is_fetched_in_part() {
    let mut nodes = [Node::init(None), Node::init(None)];
    let tree = nodes[0].file("tree");
    fs::create_dir(&tree).expect("a directory");
    random_file(&tree.join("first"), 24 * MIB, 53);
    random_file(&tree.join("second"), 8 * MIB, 54);
    nodes.iter_mut().for_each(Node::start);
    let [home, other] = &nodes;
    // A file that is not copied can be out of reach for a while.
    let added = home.json(&["add", "--nocopy", text(&tree)]);
    let root = added["cid"].as_str().expect("a CID");
    let (second, away) = (tree.join("second"), home.file("away"));
    fs::rename(&second, &away).expect("it goes");
    other.json(&["swarm", "connect", &home.address("/tcp/")]);
    let got = other.file("got");
    let told = other.fails(&["get", root, "--timeout", "2", "-o", text(&got)]);
    assert!(told.contains("nobody gave block") && !got.exists(), "{told}");
    fs::rename(&away, &second).expect("it is back");
    let fetched = other.json(&["get", root, "-o", text(&got)])["blocks_fetched"].as_u64();
    assert!((1..=10).contains(&fetched.expect("a count")), "{fetched:?} of 35 blocks");
    for name in ["first", "second"] {
        assert_eq!(sha256(&got.join(name)), sha256(&tree.join(name)));
    }
    nodes.iter_mut().for_each(Node::stop);
}
