//! Files between our node and Kubo, both ways, over TCP and over QUIC: real Bitswap between programs of different
//! makers.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use btfs_tests::ipfs::{Ipfs, IpfsDaemon};
use btfs_tests::node::{Node, random_file, sha256};

/// What each test sends: many blocks and, in either profile, more than one level of the DAG.
const FILE_SIZE: u64 = 64 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

fn kubo_gets_from_us(transport: &str) {
    let mut node = Node::init(None);
    node.start();
    let file = node.file("ours");
    random_file(&file, FILE_SIZE, 1);
    let added = node.json(&["add", text(&file)]);
    let cid = added["cid"].as_str().expect("a CID");
    let kubo = IpfsDaemon::start();
    kubo.ipfs.run(&["swarm", "connect", &node.address(transport)]);
    let got = kubo.ipfs.file("got");
    kubo.ipfs.run(&["get", "-o", text(&got), cid]);
    assert_eq!(sha256(&got), sha256(&file));
    node.stop();
}

fn we_get_from_kubo(transport: &str) {
    let kubo = IpfsDaemon::start();
    let file = kubo.ipfs.file("theirs");
    random_file(&file, FILE_SIZE, 2);
    let cid = kubo.ipfs.text(&["add", "-Q", text(&file)]);
    let mut node = Node::init(None);
    node.start();
    node.json(&["swarm", "connect", &kubo.address(transport)]);
    let got = node.file("got");
    node.json(&["get", &cid, "--output", text(&got)]);
    assert_eq!(sha256(&got), sha256(&file));
    node.stop();
}

#[test]
fn kubo_gets_from_us_over_tcp() {
    kubo_gets_from_us("/tcp/");
}

#[test]
fn kubo_gets_from_us_over_quic() {
    kubo_gets_from_us("/quic-v1");
}

#[test]
fn we_get_from_kubo_over_tcp() {
    we_get_from_kubo("/tcp/");
}

#[test]
fn we_get_from_kubo_over_quic() {
    we_get_from_kubo("/quic-v1");
}

/// Fills `root` with files, directories and links whose names and modes are not all plain.
fn write_tree(root: &Path) {
    for directory in ["empty", "a/b/c", "a/only/empties"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    for (seed, name) in
        ["one", "a/two words", "a/b/c/100% + more", "a/b/été", "a/.hidden"].into_iter().enumerate()
    {
        random_file(&root.join(name), 700_000 * seed as u64, seed as u64);
    }
    random_file(&root.join("a/large"), 5 << 20, 9);
    symlink("../one", root.join("a/link")).expect("a link");
    fs::set_permissions(root.join("one"), fs::Permissions::from_mode(0o4750)).expect("a mode");
    fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o1777)).expect("a mode");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 5_000_007);
    let file = File::options().write(true).open(root.join("one")).expect("a file");
    file.set_modified(time).expect("a time");
}

/// Where Kubo's program finds the API of a running node.
fn api_of(node: &Node) -> String {
    let url: String = node.ready()["api"].as_str().expect("the API").into();
    let (_, port) = url.rsplit_once(':').expect("a port");
    format!("/ip4/127.0.0.1/tcp/{port}")
}

/// It says the same of pins, too.
#[test]
fn pins_that_kubos_client_asks_us_for() {
    let mut node = Node::init(None);
    node.start();
    let api = api_of(&node);
    let kubo = Ipfs::init();
    kubo.run(&["config", "profile", "apply", "unixfs-v1-2025"]);
    // What a new repo has of its own is not ours to have.
    let own = kubo.text(&["pin", "ls", "--quiet"]);
    let own: BTreeSet<&str> = own.lines().collect();
    let sorted = |told: String| {
        let lines = told.lines().filter(|line| !own.contains(line.split(' ').next().unwrap_or_default()));
        lines.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let theirs = |arguments: &[&str]| sorted(kubo.text(arguments));
    let ours = |arguments: &[&str]| sorted(kubo.text(&[&["--api", &api][..], arguments].concat()));
    let root = kubo.file("tree");
    write_tree(&root);
    let mut roots = Vec::new();
    for version in ["", "second"] {
        fs::write(root.join("version"), version).expect("a file");
        let add = ["add", "-r", "-Q", text(&root)];
        assert_eq!(ours(&add), theirs(&add));
        roots.extend(theirs(&add));
    }
    let [old, new] = [roots[0].as_str(), roots[1].as_str()];
    let [one, nothing] = [format!("/ipfs/{new}/version"), format!("/ipfs/{new}/nothing")];
    let [one, nothing] = [one.as_str(), nothing.as_str()];
    // One argument each: Kubo 0.42 gives the answers to several in another order than their names.
    for arguments in [
        &["pin", "ls"][..],
        &["pin", "ls", "--type=recursive"],
        &["pin", "ls", "--type=indirect"],
        &["pin", "ls", "--type=direct"],
        &["pin", "ls", "--stream"],
        &["pin", "ls", "--quiet"],
        &["pin", "ls", old],
        &["pin", "ls", one],
        &["pin", "ls", "--type=indirect", one],
        &["pin", "verify", "--verbose"],
        &["pin", "verify"],
        &["pin", "add", "--name=site", old],
        &["pin", "ls", "--names", old],
        &["pin", "ls", "--type=recursive", "--name=sit"],
        &["pin", "update", "--unpin=false", old, old],
        &["pin", "rm", new],
        &["pin", "update", old, new],
        &["pin", "ls"],
        &["pin", "ls", "--type=all", "--stream"],
        &["pin", "add", "-r=false", one],
        &["pin", "ls", one],
    ] {
        assert_eq!(ours(arguments), theirs(arguments), "{arguments:?}");
    }
    let told = ours(&["pin", "ls", &format!("/ipfs/{new}/a/b")]);
    assert!(told.iter().all(|line| line.ends_with(&format!(" indirect through {new}"))), "{told:?}");
    for refused in [["pin", "ls", old], ["pin", "ls", "--type=odd"], ["pin", "ls", nothing]] {
        for api in [&["--api", api.as_str()][..], &[]] {
            let output = kubo.command(&[api, &refused].concat()).output().expect("ipfs runs");
            assert!(!output.status.success(), "{refused:?}");
        }
    }
    node.stop();
}

/// Kubo's program with our node for a daemon says the same of the same files, line by line, as with its own repo.
#[test]
fn trees_that_kubos_client_adds_to_us() {
    let mut node = Node::init(None);
    node.start();
    let api = api_of(&node);
    let (new, old) = (Ipfs::init(), Ipfs::init());
    new.run(&["config", "profile", "apply", "unixfs-v1-2025"]);
    let root = new.file("tree");
    write_tree(&root);
    let (tree, one, deep) = (text(&root), root.join("one"), root.join("a/b/c"));
    let lines = |kubo: &Ipfs, arguments: &[&str]| kubo.text(&[&["add", "-r"], arguments].concat());
    for options in [
        &[][..],
        &["--progress"],
        &["-w"],
        &["--hidden", "-w"],
        &["--empty-dirs=false"],
        &["--preserve-mode", "--preserve-mtime", "--raw-leaves=false"],
        &["--preserve-mode", "-w", "--raw-leaves=false"],
        &["--mode=0640", "--mtime=1700000000", "--mtime-nsecs=5", "-w", "--raw-leaves=false"],
        &["--trickle", "--raw-leaves=false", "--max-file-links=3", "--chunker=size-100000"],
        &["--chunker=rabin-1000-5000-20000", "--inline"],
        &["--max-directory-links=2", "--max-hamt-fanout=8"],
        &["--cid-version=0"],
        &["--only-hash", "-Q"],
    ] {
        // Its defaults with CIDv0 are those of old.
        let kubo = if options == ["--cid-version=0"] { &old } else { &new };
        for paths in [&[tree][..], &[text(&one)], &[text(&one), text(&deep), tree]] {
            let arguments = [options, paths].concat();
            let theirs = lines(kubo, &arguments);
            let ours = lines(kubo, &[&["--api", &api][..], &arguments].concat());
            if options.iter().any(|option| option.starts_with("--max-directory-links")) {
                // It lists the directories in a sharded one by their hashes.
                let sorted = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
                assert_eq!(sorted(&ours), sorted(&theirs), "{arguments:?}");
                assert_eq!(ours.lines().last(), theirs.lines().last(), "{arguments:?}");
            } else {
                assert_eq!(ours, theirs, "{arguments:?}");
            }
        }
    }
    let refused = new.command(&["--api", &api, "add", "-r", "--nocopy", tree]).output().expect("ipfs runs");
    assert!(!refused.status.success());
    let root = lines(&new, &["-Q", tree]);
    let pins = node.json(&["pin", "ls"]);
    assert!(
        pins["pins"].as_array().expect("pins").iter().any(|pin| pin["cid"] == root.as_str()),
        "{root} in {pins}"
    );
    node.stop();
}
