//! Keeping a repo well, through the program: damage named and repaired from another node, copies, pins that end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use btfs_storage::{GcOptions, Quota, Store, StoreError, StoreOptions};
use btfs_tests::node::{Node, random_file, sha256};
use btfs_tests::peers;
use serde_json::Value;

/// Whatever is waited for has to happen within this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Several blocks, more than one of them in the blob file that is damaged.
const FILE: u64 = 9 << 20;

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

/// Flips a bit in the middle of the largest blob file.
fn damage(repo: &Path) {
    let blobs = std::fs::read_dir(repo.join("blocks"))
        .expect("the blocks")
        .map(|entry| entry.expect("an entry").path());
    let largest = blobs
        .filter(|path| path.extension().is_some_and(|ending| ending == "blob"))
        .max_by_key(|path| path.metadata().expect("its size").len())
        .expect("a blob file");
    let mut bytes = std::fs::read(&largest).expect("it is read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&largest, bytes).expect("it is written");
}

/// Sets the rate at which daemons look for damage.
fn scrub_at(node: &Node, rate: &str) {
    let path_of = node.repo().join("config.toml");
    let settings = std::fs::read_to_string(&path_of).expect("the settings");
    assert!(!settings.contains("[storage]"), "{settings}");
    let settings = format!("{settings}\n[storage]\nscrub_rate = \"{rate}\"\n");
    std::fs::write(&path_of, settings).expect("the settings are written");
}

#[test]
fn damage_is_named_with_its_pin_and_repaired_from_another_node() {
    let (mut one, mut two) = (Node::init(None), Node::init(None));
    let file = one.file("file");
    random_file(&file, FILE, 11);
    let cid = text(&one.json(&["add", path(&file)])["cid"]).to_owned();
    two.json(&["add", path(&file)]);
    let clean = two.json(&["repo", "verify"]);
    assert_eq!((clean["blocks_damaged"].as_u64(), clean["incomplete_pins"].as_u64()), (Some(0), Some(0)));
    // Or its daemon would mend it first.
    scrub_at(&two, "0B");
    damage(&two.repo());
    let told = two.fails(&["repo", "verify"]);
    assert!(told.contains("1 pin lacks blocks"), "{told}");
    // Without a network nothing can be fetched, and that is said.
    assert!(two.fails(&["repo", "verify", "--repair"]).contains("daemon"));
    one.start();
    two.start();
    two.json(&["swarm", "connect", &one.address("/tcp/")]);
    assert!(two.fails(&["repo", "verify", "--rate", "0B"]).contains("never end"));
    let repaired = two.json(&["repo", "verify", "--repair"]);
    assert_eq!(repaired["repaired_pins"], 1, "{repaired}");
    let pin = &repaired["incomplete"][0];
    assert_eq!((text(&pin["pin"]["cid"]), pin["lacks"].as_array().map(Vec::len)), (cid.as_str(), Some(1)));
    two.stop();
    two.json(&["repo", "verify"]);
    let got = two.file("got");
    two.json(&["get", &cid, "--output", path(&got)]);
    assert_eq!(sha256(&got), sha256(&file));
    one.stop();
}

#[test]
fn a_daemon_mends_what_was_found_damaged() {
    let (mut one, mut two) = (Node::init(None), Node::init(None));
    let file = one.file("file");
    random_file(&file, FILE, 14);
    one.json(&["add", path(&file)]);
    let cid = text(&two.json(&["add", path(&file)])["cid"]).to_owned();
    damage(&two.repo());
    one.start();
    two.start();
    two.json(&["swarm", "connect", &one.address("/tcp/")]);
    // Whoever reads meets it, if the scrub has not, and has it from elsewhere.
    let read = two.run(&["cat", &cid]);
    assert!(read.stdout == std::fs::read(&file).expect("the file"), "another content");
    let deadline = Instant::now() + PATIENCE;
    while two.json(&["repo", "stat"])["quarantined_blocks"] != 0 {
        assert!(Instant::now() < deadline, "what was damaged is not mended");
        std::thread::sleep(LOOK);
    }
    two.stop();
    one.stop();
    let verified = two.json(&["repo", "verify"]);
    assert_eq!((&verified["blocks_damaged"], &verified["incomplete_pins"]), (&0.into(), &0.into()));
}

#[test]
fn a_scrub_goes_on_where_the_last_daemon_was() {
    let mut node = Node::init(None);
    let file = node.file("file");
    random_file(&file, 40 << 10, 15);
    node.json(&["add", "--chunker", "size-1024", path(&file)]);
    // Each daemon reads a page at once, and would read its next one hours later.
    scrub_at(&node, "1B");
    let far = |node: &Node| {
        let stat = node.json(&["repo", "stat"]);
        (stat["scrubbed_blocks"].as_u64().expect("a number"), stat["last_scrub_ended"].as_u64())
    };
    let mut before = far(&node);
    let mut pages = Vec::new();
    while before.1.is_none() {
        node.start();
        let deadline = Instant::now() + PATIENCE;
        let after = loop {
            let after = far(&node);
            if after != before {
                break after;
            }
            assert!(Instant::now() < deadline, "nothing is read");
            std::thread::sleep(LOOK);
        };
        node.kill();
        assert_eq!(far(&node), after, "it is kept");
        pages.push(after.0);
        before = after;
    }
    // The last page ends the round.
    assert_eq!(pages.pop(), Some(0));
    assert!(pages.len() > 1 && pages.windows(2).all(|two| two[0] < two[1]), "{pages:?}");
    let human = String::from_utf8(node.run(&["repo", "stat"]).stdout).expect("text");
    assert!(human.contains("the last whole round ended"), "{human}");
}

#[test]
fn a_backup_of_a_running_node_is_restored_and_verified() {
    let mut node = Node::init(None);
    node.start();
    let file = node.file("file");
    random_file(&file, FILE, 12);
    let added = node.json(&["add", path(&file)]);
    let (copy, restored): (PathBuf, PathBuf) = (node.file("copy"), node.file("restored"));
    let backup = node.json(&["repo", "backup", path(&copy)]);
    assert_eq!(backup["pins"], 1, "{backup}");
    assert!(node.fails(&["repo", "backup", path(&copy)]).contains("not empty"));
    // What comes later is not in it.
    node.json(&["pin", "rm", text(&added["cid"])]);
    node.json(&["repo", "gc"]);
    node.stop();
    let elsewhere = |arguments: &[&str]| {
        let output = Command::new(peers::btfs())
            .args(arguments)
            .env("BTFS_PATH", &restored)
            .output()
            .expect("btfs runs");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (well, told) = elsewhere(&["repo", "restore", path(&copy), "--json"]);
    assert!(well, "{told}");
    let verified: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(verified["incomplete_pins"], 0);
    let got = node.file("got");
    assert!(elsewhere(&["get", text(&added["cid"]), "--output", path(&got)]).0);
    assert_eq!(sha256(&got), sha256(&file));
    assert!(!elsewhere(&["repo", "restore", path(&copy)]).0, "a repo is not restored over");
}

#[test]
fn pins_have_names_owners_and_ends() {
    let node = Node::init(None);
    let mut cids = Vec::new();
    for (number, name) in ["summer holiday", "winter holiday", "work"].iter().enumerate() {
        let file = node.file(name);
        random_file(&file, 10_000, number as u64);
        let cid = text(&node.json(&["add", path(&file)])["cid"]).to_owned();
        node.json(&["pin", "add", &cid, "--name", name]);
        cids.push(cid);
    }
    let count = |arguments: &[&str]| {
        let mut all = vec!["pin", "ls"];
        all.extend(arguments);
        node.json(&all)["pins"].as_array().expect("a list").len()
    };
    assert_eq!(count(&[]), 3);
    assert_eq!(count(&["--name", "holiday"]), 2);
    assert_eq!(count(&["--owner", "own", "--type", "recursive"]), 3);
    assert_eq!(count(&["--type", "direct"]), 0);
    assert_eq!(count(&[&cids[2]]), 1);
    assert!(node.fails(&["pin", "add", "--direct", &cids[0]]).contains("already pinned recursively"));
    assert!(node.fails(&["pin", "add", &cids[0], "--expires", "1s"]).contains("without an end"));
    node.json(&["pin", "rm", &cids[0]]);
    let ends = node.json(&["pin", "add", &cids[0], "--expires", "1h", "--name", "summer holiday"]);
    assert!(ends["expires"].as_u64().is_some(), "{ends}");
    // Nothing that is given later takes a name or time away.
    let sooner = node.json(&["pin", "add", &cids[0], "--expires", "1s"]);
    assert_eq!((&sooner["expires"], text(&sooner["name"])), (&ends["expires"], "summer holiday"));
    let for_good = node.json(&["pin", "add", &cids[0]]);
    assert_eq!((&for_good["expires"], text(&for_good["name"])), (&Value::Null, "summer holiday"));
    // Nothing has ended yet, so nothing would go.
    let dry = node.json(&["repo", "gc", "--dry-run"]);
    assert_eq!((dry["blocks_deleted"].as_u64(), dry["dry_run"].as_bool()), (Some(0), Some(true)));
    node.json(&["pin", "rm", &cids[1]]);
    let dry = node.json(&["repo", "gc", "--dry-run"]);
    assert_eq!(dry["blocks_deleted"], 1);
    assert_eq!(node.json(&["repo", "gc"])["blocks_deleted"], 1);
    assert_eq!(node.json(&["repo", "stat"])["blocks"], 2);
}

#[test]
fn a_collection_that_was_broken_off_goes_on_when_the_daemon_starts() {
    let mut node = Node::init(None);
    let file = node.file("file");
    random_file(&file, FILE, 13);
    let cid = text(&node.json(&["add", path(&file)])["cid"]).to_owned();
    node.json(&["pin", "rm", &cid]);
    // As a process does that ends while it collects.
    let options =
        StoreOptions { path: node.repo(), tables: Vec::new(), quota: Quota::default(), reserve_bytes: 0 };
    let store = Store::open(options).expect("nobody else has it");
    let stopper = store.clone();
    let stopped = store.gc_with(GcOptions::default(), &mut |_| stopper.stop_collecting());
    assert!(matches!(stopped, Err(StoreError::CollectionStopped)));
    drop(stopper);
    store.close().expect("it closes");
    let stat = node.json(&["repo", "stat"]);
    assert_eq!((stat["unfinished_collection"].as_bool(), stat["blocks"] == 0), (Some(true), false));
    node.start();
    let deadline = Instant::now() + PATIENCE;
    while node.json(&["repo", "stat"])["unfinished_collection"] == true {
        assert!(Instant::now() < deadline, "the collection does not go on");
        std::thread::sleep(LOOK);
    }
    assert_eq!(node.json(&["repo", "stat"])["blocks"], 0);
    node.stop();
}
