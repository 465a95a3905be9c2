//! Pins beyond keeping and letting go: what they keep below their roots, new versions in the place of old ones, and what
//! they lack.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use btfs_tests::node::{Node, random_file};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

/// Adds a path with more arguments; its CID.
fn add(node: &Node, arguments: &[&str]) -> String {
    let added = node.json(&[&["add"], arguments].concat());
    added["cid"].as_str().expect("a CID").to_owned()
}

/// A directory with a file of several blocks, one of a block, and a directory with the latter again.
fn tree(node: &Node, name: &str) -> std::path::PathBuf {
    let root = node.file(name);
    fs::create_dir_all(root.join("below")).expect("directories");
    random_file(&root.join("large"), 3 << 20, 61);
    for small in ["small", "below/small"] {
        fs::write(root.join(small), format!("of {name}")).expect("a file");
    }
    root
}

/// The pins that `pin ls` lists.
fn pins(node: &Node, arguments: &[&str]) -> Vec<Value> {
    let listed = node.json(&[&["pin", "ls"], arguments].concat());
    listed["pins"].as_array().expect("a list").clone()
}

fn stdout(node: &Node, arguments: &[&str]) -> (bool, String) {
    let output = node.run(arguments);
    (output.status.success(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn blocks_below_roots_are_pinned_indirectly() {
    let mut node = Node::init(None);
    let root = add(&node, &[text(&tree(&node, "tree"))]);
    let other = add(&node, &[text(&node.file("tree/large")), "--pin-name", "alone"]);
    // With a daemon and without one.
    for round in 0..2 {
        let links = stdout(&node, &["refs", "--recursive", "--unique", &root]).1;
        let mut below: BTreeSet<&str> = links.lines().collect();
        // It is a root itself.
        assert!(below.remove(other.as_str()));
        assert_eq!(pins(&node, &[]).len(), 2);
        let indirect = pins(&node, &["--type", "indirect"]);
        let cids: Vec<&str> = indirect.iter().filter_map(|pin| pin["cid"].as_str()).collect();
        assert_eq!(cids.len(), below.len(), "each once");
        assert_eq!(cids.into_iter().collect::<BTreeSet<_>>(), below);
        assert!(indirect.iter().all(|pin| pin["kind"] == "indirect"));
        assert_eq!(pins(&node, &["--type", "all"]).len(), 2 + below.len());
        assert_eq!(pins(&node, &["--type", "indirect", "--name", "nobody"]), [] as [Value; 0]);
        assert_eq!(pins(&node, &["--type", "indirect", "--name", "alone"]).len(), 3);
        let small = format!("/ipfs/{root}/below/small");
        let (well, told) = stdout(&node, &["pin", "ls", &small]);
        assert!(well && told.contains(&format!("  indirect through {root}")), "{told}");
        assert_eq!(pins(&node, &[&other])[0]["kind"], "recursive");
        for kind in ["recursive", "direct", "list"] {
            assert!(node.fails(&["pin", "ls", "--type", kind, &small]).contains("is not pinned"));
        }
        let absent = add(&node, &["--only-hash", "--cid-version", "0", text(&node.file("tree/large"))]);
        assert!(node.fails(&["pin", "ls", &absent]).contains("is not pinned"));
        assert!(node.fails(&["pin", "ls", "--type", "odd"]).contains("there are no `odd` pins"));
        match round {
            0 => node.start(),
            _ => node.stop(),
        }
    }
}

#[test]
fn a_new_version_takes_the_place_of_the_old_one() {
    let node = Node::init(None);
    let versions = ["one", "two", "three"].map(|name| add(&node, &["--no-pin", text(&tree(&node, name))]));
    let [one, two, three] = versions.each_ref().map(String::as_str);
    assert!(node.fails(&["pin", "update", one, two]).contains("not pinned recursively"));
    assert_eq!(pins(&node, &[]), [] as [Value; 0]);
    let pinned = node.json(&["pin", "add", one, "--name", "site", "--expires", "30d"]);
    let updated = node.json(&["pin", "update", one, two]);
    assert_eq!((updated["from"].as_str(), updated["pin"]["cid"].as_str()), (Some(one), Some(two)));
    let all = pins(&node, &[]);
    assert_eq!(all.len(), 1, "{all:?}");
    for kept in ["name", "expires", "kind"] {
        assert_eq!(all[0][kept], pinned[kept], "{kept}");
    }
    // What only the old one kept can be collected, and nothing else.
    node.json(&["repo", "gc"]);
    node.fails(&["ls", one]);
    node.json(&["ls", two]);
    let three = {
        node.fails(&["pin", "update", two, three]);
        add(&node, &["--no-pin", text(&node.file("three"))])
    };
    node.json(&["pin", "update", two, &three, "--unpin=false"]);
    assert_eq!(pins(&node, &["--name", "site"]).len(), 2);
    // To itself it stays as it is.
    node.json(&["pin", "update", two, two]);
    assert_eq!(pins(&node, &["--name", "site"]).len(), 2);
    // A private one stays private.
    let private = |name: &str| {
        let added = node.json(&["add", "--private", text(&node.file(name))]);
        added["cid"].as_str().expect("a CID").to_owned()
    };
    let (old, new) = (private("one/large"), private("two/small"));
    node.json(&["pin", "update", &old, &new]);
    let private = pins(&node, &["--owner", "private"]);
    assert_eq!(private.len(), 1, "{private:?}");
    assert_eq!(private[0]["cid"], new);
}

#[test]
fn pins_that_lack_blocks_are_named() {
    let node = Node::init(None);
    let (whole, left) = (tree(&node, "whole"), tree(&node, "left"));
    let whole = add(&node, &[text(&whole)]);
    let (film, away) = (left.join("large"), node.file("away"));
    let left = add(&node, &["--nocopy", text(&film)]);
    assert_eq!(stdout(&node, &["pin", "verify"]), (true, String::new()));
    let both = BTreeSet::from([format!("{whole} ok"), format!("{left} ok")]);
    let (well, told) = stdout(&node, &["pin", "verify", "--verbose"]);
    assert!(well && told.lines().map(str::to_owned).collect::<BTreeSet<_>>() == both, "{told}");
    // The same bytes as in the other tree are in the store; other ones are not.
    random_file(&film, 3 << 20, 62);
    let left = {
        node.json(&["pin", "rm", &left]);
        add(&node, &["--nocopy", text(&film)])
    };
    fs::rename(&film, &away).expect("it goes");
    assert!(node.fails(&["pin", "verify"]).contains("1 pin lacks blocks"));
    let (well, told) = stdout(&node, &["pin", "verify"]);
    assert!(!well && told.starts_with(&format!("{left} broken\n")), "{told}");
    assert_eq!(told.lines().count(), 1 + 3, "{told}");
    let (_, told) = stdout(&node, &["pin", "verify", "--json", "--verbose"]);
    let checks: Vec<Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let broken: Vec<&Value> = checks.iter().filter(|check| check["complete"] == false).collect();
    assert_eq!((checks.len(), broken.len()), (2, 1));
    assert_eq!(
        (&broken[0]["pin"]["cid"], broken[0]["lacks"].as_array().map(Vec::len)),
        (&left.into(), Some(3))
    );
    fs::rename(&away, &film).expect("it is back");
    assert!(stdout(&node, &["pin", "verify"]).0);
}
