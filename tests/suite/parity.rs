//! Parity beside the content in one store: what rots comes back from it, without hosts and without a daemon.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use btfs_storage::layout::Layout;
use btfs_storage::{BlockSource, Cid, Quota, Store, StoreOptions};
use btfs_tests::node::{Node, random_file, sha256};
use serde_json::Value;

/// Nine leaves and a root: in 4+2 two stripes of four shards and one of two.
const FILE: u64 = 9 << 20;
/// Whatever is waited for has to happen within this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);
/// The smallest blocks that lie in blob files, where the bits of each can be flipped alone.
const IN_BLOB: u32 = 1 << 10;

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

fn number(value: &Value, name: &str) -> i64 {
    value[name].as_i64().unwrap_or_else(|| panic!("{name} of {value}"))
}

/// Adds a path with more arguments; its CID.
fn add(node: &Node, arguments: &[&str]) -> String {
    let added = node.json(&[&["add"], arguments].concat());
    added["cid"].as_str().expect("a CID").to_owned()
}

/// Makes parity; what that answers, and the layout.
fn make(node: &Node, root: &str, redundancy: &str) -> (Value, Layout) {
    let made = node.json(&["parity", "make", root, "--redundancy", redundancy]);
    let cid: Cid = made["layout"].as_str().expect("a CID").parse().expect("a CID");
    let layout = with_store(node, |store| Layout::load(&cid, store).expect("the layout"));
    assert_eq!(number(&made, "stripes"), layout.stripes().len() as i64);
    (made, layout)
}

/// A file of random bytes with parity 4+2: its CID, and the layout.
fn protected(node: &Node, path: &Path) -> (String, Layout) {
    random_file(path, FILE, 81);
    let root = add(node, &[text(path)]);
    let (made, layout) = make(node, &root, "4+2");
    assert_eq!((number(&made, "k"), number(&made, "m"), number(&made, "spare")), (4, 2, 2), "{made}");
    assert_eq!((number(&made, "stripes"), &made["pinned"]), (3, &Value::Bool(false)), "{made}");
    (root, layout)
}

/// Looks into the store while no process has it.
fn with_store<T>(node: &Node, look: impl FnOnce(&Store) -> T) -> T {
    let options =
        StoreOptions { path: node.repo(), tables: Vec::new(), quota: Quota::default(), reserve_bytes: 0 };
    let store = Store::open(options).expect("nobody else has it");
    let seen = look(&store);
    store.close().expect("it closes");
    seen
}

/// Flips a bit in the middle of each block where it lies in its file.
fn rot(node: &Node, cids: &[Cid]) {
    let blocks = with_store(node, |store| {
        let block = |cid| store.get(cid).expect("it is read").expect("it is here").to_vec();
        cids.iter().map(block).collect::<Vec<_>>()
    });
    let files = fs::read_dir(node.repo().join("blocks")).expect("the blocks");
    let files = files.map(|entry| entry.expect("an entry").path());
    let files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "blob")).collect();
    let mut found = 0;
    for path in files {
        let mut bytes = fs::read(&path).expect("it is read");
        let places: Vec<usize> = blocks
            .iter()
            .filter_map(|block| {
                let at = bytes.windows(block.len()).position(|window| window == block);
                at.map(|at| at + block.len() / 2)
            })
            .collect();
        places.iter().for_each(|at| bytes[*at] ^= 1);
        if !places.is_empty() {
            fs::write(&path, bytes).expect("it is written");
        }
        found += places.len();
    }
    assert_eq!(found, blocks.len(), "each lies in one place");
}

/// The data blocks of a shard.
fn shard(layout: &Layout, stripe: usize, shard: usize) -> Vec<Cid> {
    layout.stripes()[stripe].data[shard].blocks.iter().map(|block| block.cid).collect()
}

/// What `parity ls` tells of the only parity.
fn listed(node: &Node) -> Value {
    let list = node.json(&["parity", "ls"]);
    assert_eq!(list["unreadable"].as_array().map(Vec::len), Some(0), "{list}");
    let layouts = list["layouts"].as_array().expect("a list");
    assert_eq!(layouts.len(), 1, "{list}");
    layouts[0].clone()
}

/// Lost blocks of data and of parity, and how many shards are to spare.
fn condition(node: &Node) -> (i64, i64, i64) {
    let info = listed(node);
    (number(&info, "lost_data_blocks"), number(&info, "lost_parity_blocks"), number(&info, "spare"))
}

/// Everything verifies, and the content is what it was.
fn is_whole(node: &Node, root: &str, file: &Path) {
    let verified = node.json(&["repo", "verify"]);
    assert_eq!((number(&verified, "blocks_damaged"), number(&verified, "incomplete_pins")), (0, 0));
    let got = node.file("got");
    node.json(&["get", root, "--output", text(&got)]);
    assert_eq!(sha256(&got), sha256(file));
    fs::remove_file(&got).expect("it is there");
}

/// Runs a command that may fail; its answer.
fn answered(node: &Node, arguments: &[&str]) -> (bool, Value) {
    let output = node.run(&[arguments, &["--json"]].concat());
    let told = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
    (output.status.success(), answer)
}

#[test]
fn as_many_shards_of_each_stripe_as_it_has_parity_come_back() {
    let node = Node::init(None);
    let file = node.file("file");
    let (root, layout) = protected(&node, &file);
    let parity = |stripe: usize| layout.stripes()[stripe].parity.clone();
    let mut lost = [shard(&layout, 0, 1), shard(&layout, 0, 3), shard(&layout, 1, 0)].concat();
    lost.extend([parity(1)[1], parity(2)[0], parity(2)[1]]);
    rot(&node, &lost);
    // Nobody has looked yet.
    assert_eq!(condition(&node), (0, 0, 2));
    assert!(node.fails(&["repo", "verify"]).contains("2 pins lack blocks"));
    assert_eq!(condition(&node), (3, 3, 0));
    let repaired = node.json(&["parity", "repair", &root]);
    let done = &repaired["layouts"][0];
    let counts = ["data_blocks", "data_bytes", "parity_blocks", "lost_blocks", "short"];
    assert_eq!(counts.map(|name| number(done, name)), [3, 3 << 20, 3, 0, 0], "{repaired}");
    assert_eq!(condition(&node), (0, 0, 2));
    is_whole(&node, &root, &file);
}

#[test]
fn what_lost_more_than_its_parity_is_named_and_all_else_comes_back() {
    let node = Node::init(None);
    let file = node.file("file");
    let (root, layout) = protected(&node, &file);
    let lost = [1, 2, 3].map(|at| shard(&layout, 0, at)).concat();
    rot(&node, &[&lost[..], &shard(&layout, 2, 1)].concat());
    node.fails(&["repo", "verify"]);
    assert_eq!(condition(&node), (4, 0, -1));
    let (whole, repaired) = answered(&node, &["parity", "repair", &layout.cid().to_string()]);
    let done = &repaired["layouts"][0];
    assert!(!whole, "{repaired}");
    let counts = ["data_blocks", "parity_blocks", "lost_blocks", "short"];
    assert_eq!(counts.map(|name| number(done, name)), [1, 0, 3, 1], "{repaired}");
    let named: Vec<Cid> = done["lost"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|cid| cid.as_str().expect("a CID").parse().expect("a CID"))
        .collect();
    assert_eq!(named, lost);
    let told = node.fails(&["parity", "repair", &root]);
    assert!(told.contains("short of 1 of its shards"), "{told}");
    assert!(node.fails(&["repo", "verify", "--repair"]).contains("daemon"));
    node.fails(&["get", &root, "--output", text(&node.file("got"))]);
    assert_eq!(condition(&node), (3, 0, -1), "nothing else was lost");
    // One block from elsewhere is enough for the other two.
    let leaf = node.file("leaf");
    fs::write(&leaf, &fs::read(&file).expect("the file")[..1 << 20]).expect("a leaf");
    let mut put = node.command(&["block", "put", "--json"]);
    let output = put.stdin(fs::File::open(&leaf).expect("the leaf")).output().expect("btfs runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let repaired = node.json(&["repo", "verify", "--repair"]);
    assert_eq!(number(&repaired, "blocks_from_parity"), 2, "{repaired}");
    is_whole(&node, &root, &file);
}

#[test]
fn verifying_repairs_and_reading_rebuilds_without_a_daemon() {
    let node = Node::init(None);
    let file = node.file("file");
    let (root, layout) = protected(&node, &file);
    let parity = layout.stripes()[2].parity[0];
    let lost = [&[parity][..], &shard(&layout, 0, 2), &shard(&layout, 1, 1), &shard(&layout, 1, 2)].concat();
    rot(&node, &lost);
    let repaired = node.json(&["repo", "verify", "--repair"]);
    let counts = ["blocks_damaged", "blocks_from_parity", "incomplete_pins", "repaired_pins"];
    assert_eq!(counts.map(|name| number(&repaired, name)), [4, 4, 2, 2], "{repaired}");
    assert_eq!(condition(&node), (0, 0, 2));
    is_whole(&node, &root, &file);
    // Nobody has looked before somebody reads.
    rot(&node, &lost);
    let read = node.run(&["cat", &root]);
    assert!(read.stdout == fs::read(&file).expect("the file"), "another content");
    assert_eq!(condition(&node), (0, 0, 2), "parity that rotted is not known yet");
    node.fails(&["repo", "verify"]);
    assert_eq!(condition(&node), (0, 1, 1));
    // What is known to be lost is rebuilt before it is written out, the rest as it is met.
    for looks in [true, false] {
        rot(&node, &lost[1..]);
        assert!(!looks || !node.run(&["repo", "verify"]).status.success());
        let target = node.file(if looks { "known" } else { "met" });
        let got = node.json(&["get", &root, "--output", text(&target)]);
        assert_eq!(number(&got, "leaves_from_parity"), 3, "{got}");
        assert_eq!(sha256(&target), sha256(&file));
    }
}

#[test]
fn a_daemon_makes_parity_and_mends_by_it_alone() {
    let mut node = Node::init(None);
    let file = node.file("file");
    random_file(&file, FILE, 82);
    node.start();
    let root = add(&node, &[text(&file)]);
    let made = node.json(&["parity", "make", &root]);
    // Ten shards in one stripe.
    let counts = ["k", "m", "stripes", "spare"];
    assert_eq!(counts.map(|name| number(&made, name)), [10, 4, 1, 4], "{made}");
    assert_eq!(number(&listed(&node), "parity_bytes"), 4 << 20);
    node.stop();
    let cid: Cid = made["layout"].as_str().expect("a CID").parse().expect("a CID");
    let layout = with_store(&node, |store| Layout::load(&cid, store).expect("the layout"));
    let lost = [&shard(&layout, 0, 3)[..], &shard(&layout, 0, 9), &layout.stripes()[0].parity[1..3]].concat();
    rot(&node, &lost);
    node.start();
    // Its scrub may be first, and what it found may be mended already.
    node.run(&["repo", "verify"]);
    let deadline = Instant::now() + PATIENCE;
    while node.json(&["repo", "stat"])["quarantined_blocks"] != 0 || condition(&node) != (0, 0, 4) {
        assert!(Instant::now() < deadline, "what rotted is not mended: {}", listed(&node));
        std::thread::sleep(LOOK);
    }
    is_whole(&node, &root, &file);
    node.json(&["parity", "repair", &root]);
    node.json(&["parity", "rm", &cid.to_string()]);
    assert_eq!(node.json(&["parity", "ls"])["layouts"], serde_json::json!([]));
    node.stop();
}

/// Small files of different bytes, in two directories, one of them large.
fn small_files(root: &Path) -> Vec<String> {
    fs::create_dir_all(root.join("large")).expect("directories");
    let names = (0..400).map(|i| format!("large/{i}")).chain((0..9).map(|i| format!("of {i}")));
    let names: Vec<String> = names.collect();
    for (seed, name) in (0..).zip(&names) {
        random_file(&root.join(name), 1_100 + 7 * seed, seed);
    }
    names
}

#[test]
fn directories_of_small_files_come_back_sharded_or_not() {
    for sharded in [false, true] {
        let node = Node::init(None);
        let tree = node.file("tree");
        let names = small_files(&tree);
        let shape: &[&str] =
            if sharded { &["--max-directory-links", "100", "--max-hamt-fanout", "64"] } else { &[] };
        let root = add(&node, &[&["-r"], shape, &[text(&tree)]].concat());
        let (made, layout) = make(&node, &root, "8+3");
        assert_eq!((number(&made, "spare"), number(&made, "m")), (3, 3), "{made}");
        assert!(made["overhead"].as_f64().is_some_and(|overhead| overhead < 0.9), "{made}");
        for stripe in layout.stripes() {
            let shards = stripe.data.iter().rev().take(3).flat_map(|shard| &shard.blocks);
            let large = shards.filter(|block| block.size > IN_BLOB).map(|block| block.cid);
            rot(&node, &large.collect::<Vec<_>>());
        }
        let repaired = node.json(&["repo", "verify", "--repair"]);
        assert!(number(&repaired, "blocks_from_parity") > 50, "{repaired}");
        let got = node.file("got");
        node.json(&["get", &root, "--output", text(&got)]);
        for name in &names {
            assert_eq!(sha256(&got.join(name)), sha256(&tree.join(name)), "{name}");
        }
        assert!(node.run(&["repo", "verify"]).status.success());
    }
}

#[test]
fn repeated_blocks_and_zeros_come_back() {
    const LEAF: usize = 1 << 20;
    let node = Node::init(None);
    let (file, part) = (node.file("file"), node.file("part"));
    random_file(&part, 2 << 20, 83);
    let random = fs::read(&part).expect("the part");
    let (one, other) = random.split_at(LEAF);
    let zeros = vec![0; LEAF];
    fs::write(&file, [one, one, &zeros, &zeros, other, &zeros[..500_000]].concat()).expect("the file");
    let root = add(&node, &[text(&file)]);
    let (made, layout) = make(&node, &root, "3+2");
    assert_eq!((layout.blocks(), number(&made, "spare")), (5, 2), "{made}");
    // Where the shorter zeros lie cannot be told, since they are a part of the others.
    for (stripe, whole) in layout.stripes().iter().zip([2, 1]) {
        let leaves = stripe.blocks().filter(|block| block.size as usize == LEAF);
        rot(&node, &leaves.map(|block| block.cid).collect::<Vec<_>>());
        let repaired = node.json(&["repo", "verify", "--repair"]);
        assert_eq!(number(&repaired, "blocks_from_parity"), whole, "{repaired}");
    }
    is_whole(&node, &root, &file);
}

#[test]
fn what_was_written_over_in_a_file_that_was_left_in_place_comes_back() {
    let node = Node::init(None);
    let file = node.file("file");
    random_file(&file, FILE, 87);
    let root = add(&node, &["--nocopy", text(&file)]);
    make(&node, &root, "4+2");
    let whole = fs::read(&file).expect("the file");
    let mut other = whole.clone();
    for (round, at) in [100, 5 << 20].into_iter().enumerate() {
        other[at] ^= 1;
        fs::write(&file, &other).expect("the file");
        if round == 0 {
            let repaired = node.json(&["repo", "verify", "--repair"]);
            let counts = ["incomplete_pins", "repaired_pins"];
            assert_eq!(counts.map(|name| number(&repaired, name)), [1, 1], "{repaired}");
        } else {
            let got = node.json(&["get", &root, "--output", text(&node.file("got"))]);
            assert_eq!(number(&got, "leaves_from_parity"), 1, "{got}");
            fs::remove_file(node.file("got")).expect("it is there");
        }
        assert!(node.run(&["cat", &root]).stdout == whole, "another content");
    }
}

#[test]
fn made_again_it_is_the_same_and_let_go_its_space_returns() {
    let node = Node::init(None);
    let file = node.file("file");
    random_file(&file, FILE, 84);
    let root = add(&node, &[text(&file)]);
    let held = |node: &Node| {
        let stat = node.json(&["repo", "stat"]);
        (number(&stat, "blocks"), number(&stat, "live_bytes"))
    };
    let before = held(&node);
    let (first, layout) = make(&node, &root, "4+2");
    let with_parity = held(&node);
    assert_eq!(with_parity.1 - before.1, number(&first, "new_bytes"));
    assert!(number(&first, "new_bytes") > number(&first, "parity_bytes"), "the layout is a part of it");
    let (again, _) = make(&node, &root, "4+2");
    assert_eq!((&again["layout"], number(&again, "new_bytes")), (&first["layout"], 0));
    // Collections leave it alone.
    assert_eq!(number(&node.json(&["repo", "gc"]), "blocks_deleted"), 0);
    assert_eq!((held(&node), condition(&node)), (with_parity, (0, 0, 2)));
    // It makes again what rotted of itself.
    rot(&node, &layout.stripes()[0].parity);
    node.fails(&["repo", "verify"]);
    make(&node, &root, "4+2");
    assert_eq!(condition(&node), (0, 0, 2));
    let other = make(&node, &root, "5+1").1.cid().to_string();
    let layout = layout.cid().to_string();
    for name in [&other, &layout] {
        node.json(&["parity", "rm", name]);
        assert!(node.fails(&["parity", "rm", name]).contains("nothing was changed"));
    }
    assert!(node.fails(&["parity", "repair", &root]).contains("no parity"));
    node.json(&["repo", "gc"]);
    assert_eq!(held(&node), before);
    is_whole(&node, &root, &file);
}

#[test]
fn content_is_pinned_for_it_and_named_by_path() {
    let node = Node::init(None);
    let tree = node.file("tree");
    fs::create_dir_all(tree.join("below")).expect("directories");
    random_file(&tree.join("below/file"), 3 << 20, 85);
    let root = add(&node, &["-r", "--pin=false", text(&tree)]);
    let made = node.json(&["parity", "make", &format!("/ipfs/{root}/below/file")]);
    assert_eq!(made["pinned"], true, "{made}");
    let pins = node.json(&["pin", "ls"]);
    let owners: Vec<&str> =
        pins["pins"].as_array().expect("a list").iter().filter_map(|pin| pin["owner"].as_str()).collect();
    assert_eq!(owners, ["own", "parity"], "{pins}");
    node.json(&["repo", "gc"]);
    assert_eq!(condition(&node), (0, 0, 4));
    // Without the content its parity is told to be of no use, and that is all.
    node.json(&["pin", "rm", made["root"].as_str().expect("a CID")]);
    node.json(&["repo", "gc"]);
    let (lost, _, spare) = condition(&node);
    assert_eq!((lost, spare), (4, 0), "four of four shards come back from four of parity");
    node.json(&["parity", "repair", made["root"].as_str().expect("a CID")]);
    assert_eq!(condition(&node), (0, 0, 4));
}

#[test]
fn what_cannot_be_made_is_refused_with_the_reason() {
    let node = Node::init(None);
    let [whole, file] = ["whole", "file"].map(|name| node.file(name));
    random_file(&whole, 100_000, 85);
    random_file(&file, 100_000, 86);
    let single = add(&node, &[text(&whole)]);
    let cut = add(&node, &["--chunker", "size-2048", text(&file)]);
    let before = node.json(&["repo", "stat"])["blocks"].clone();
    for (root, redundancy, words) in [
        (&single, "4+2", "--chunker"),
        (&cut, "1+2", "copies"),
        (&cut, "0+2", "not possible"),
        (&cut, "65+1", "not possible"),
        (&cut, "4+193", "not possible"),
        (&cut, "4", "such as 4+8"),
    ] {
        let told = node.fails(&["parity", "make", root, "--redundancy", redundancy]);
        assert!(told.contains(words), "{told}");
    }
    assert_eq!(node.json(&["repo", "stat"])["blocks"], before);
    assert_eq!(node.json(&["parity", "ls"])["layouts"], serde_json::json!([]));
    // The widest there is.
    let (made, layout) = make(&node, &cut, "64+192");
    assert_eq!((number(&made, "spare"), layout.stripes().len()), (192, 1), "{made}");
    let data = layout.data_blocks().filter(|(_, size)| *size > u64::from(IN_BLOB));
    rot(&node, &data.map(|(cid, _)| cid).collect::<Vec<_>>());
    let human = node.run(&["repo", "verify", "--repair"]);
    assert!(human.status.success(), "{}", String::from_utf8_lossy(&human.stderr));
    is_whole(&node, &cut, &file);
}
