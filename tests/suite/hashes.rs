//! Blocks named by other hash functions than SHA2-256, beside Kubo's own program: the same roots, blocks both ways.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use btfs_tests::ipfs::{Ipfs, IpfsDaemon};
use btfs_tests::node::{Node, random_file, sha256};
use serde_json::{Value, json};

/// Functions that Kubo hashes by, each with a length of digest or a code of its own.
const FUNCTIONS: [&str; 12] = [
    "sha2-256",
    "sha2-512",
    "sha1",
    "dbl-sha2-256",
    "sha3-224",
    "sha3",
    "keccak-256",
    "shake-256",
    "blake2b-160",
    "blake2b-256",
    "blake2s-256",
    "blake3",
];

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// What a command prints, without the space around it.
fn said(mut command: Command) -> String {
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

/// The same of a command with standard input; `None` if it fails.
fn fed(mut command: Command, input: &[u8]) -> Option<String> {
    use std::io::Write;
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program runs");
    // One that refuses its arguments may be gone before it reads.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("it ends");
    output.status.success().then(|| String::from_utf8(output.stdout).expect("text").trim().to_owned())
}

/// A tree of every kind of entry: nothing in a file or a directory, one block, several levels of them.
fn tree(at: &Path) {
    fs::create_dir_all(at.join("a/b")).expect("directories");
    fs::create_dir(at.join("none")).expect("a directory");
    fs::write(at.join("empty"), b"").expect("a file");
    fs::write(at.join("a/hello"), b"hello world").expect("a file");
    for number in 0..50 {
        fs::write(at.join(format!("a/b/{number}")), format!("number {number}")).expect("a file");
    }
    random_file(&at.join("large"), 5_300_000, 3);
    symlink("a/hello", at.join("link")).expect("a link");
}

fn same_tree(a: &Path, b: &Path) {
    let differences = Command::new("diff").args(["-r", "--no-dereference"]).args([a, b]).output();
    let differences = differences.expect("diff runs");
    assert!(differences.status.success(), "{}", String::from_utf8_lossy(&differences.stdout));
}

/// A Kubo repo that adds as we do.
fn like_us() -> Ipfs {
    let ipfs = Ipfs::init();
    ipfs.run(&["config", "profile", "apply", "unixfs-v1-2025"]);
    ipfs
}

#[test]
fn trees_have_the_roots_that_kubo_gives() {
    let (mut node, ipfs) = (Node::init(None), like_us());
    let from = ipfs.file("tree");
    tree(&from);
    let theirs = |arguments: &[&str]| {
        ipfs.text(&[&["add", "-rQ", "--cid-version", "1"], arguments, &[text(&from)]].concat())
    };
    let ours = |node: &Node, arguments: &[&str]| {
        said(node.command(&[&["add", "-Q"], arguments, &[text(&from)]].concat()))
    };
    for function in FUNCTIONS {
        let arguments = ["--hash", function];
        assert_eq!(ours(&node, &arguments), theirs(&arguments), "{function}");
    }
    for options in [
        &["--hash", "blake3", "--trickle", "--chunker", "size-1000", "--raw-leaves=false"][..],
        &["--hash", "blake2b-256", "--inline", "--chunker", "rabin-1000-5000-20000", "--max-file-links", "3"],
        &["--hash", "sha3-512", "--max-directory-links", "2", "--max-hamt-fanout", "8"],
        &["--hash", "BLAKE3", "--only-hash"],
    ] {
        assert_eq!(ours(&node, options), theirs(options), "{options:?}");
    }
    // Kubo's program with our node for a daemon.
    node.start();
    let url: String = node.ready()["api"].as_str().expect("the API").into();
    let (_, port) = url.rsplit_once(':').expect("a port");
    let api = format!("/ip4/127.0.0.1/tcp/{port}");
    let upload = ipfs.text(&["--api", &api, "add", "-rQ", "--hash", "blake2b-256", text(&from)]);
    assert_eq!(upload, theirs(&["--hash", "blake2b-256"]));
    node.stop();
}

#[test]
fn we_import_what_kubo_exports() {
    let (node, ipfs) = (Node::init(None), like_us());
    let from = ipfs.file("tree");
    tree(&from);
    for function in ["blake3", "blake2b-256"] {
        let root = ipfs.text(&["add", "-rQ", "--cid-version", "1", "--hash", function, text(&from)]);
        let car = ipfs.run(&["dag", "export", "-p=false", &root]).stdout;
        let path = node.file("car");
        fs::write(&path, &car).expect("the CAR is written");
        let told = node.json(&["dag", "import", text(&path)]);
        assert_eq!(told["roots"], json!([{ "cid": root, "pinned": true }]), "{function}");
        let got = node.file(&format!("got {function}"));
        node.json(&["get", &root, "--output", text(&got)]);
        same_tree(&from, &got);
        assert!(node.run(&["dag", "export", &root]).stdout == car, "we write other bytes");
        let mut flipped = car.clone();
        *flipped.last_mut().expect("not empty") ^= 1;
        fs::write(&path, &flipped).expect("the CAR is written");
        assert!(node.fails(&["dag", "import", text(&path)]).contains("do not hash to"));
    }
    assert!(node.run(&["repo", "verify"]).status.success());
}

#[test]
fn blocks_travel_both_ways() {
    let mut node = Node::init(None);
    let file = node.file("file");
    random_file(&file, 5_300_000, 4);
    let ours = said(node.command(&["add", "-Q", "--hash", "blake3", text(&file)]));
    node.start();
    let kubo = IpfsDaemon::start();
    let theirs =
        kubo.ipfs.text(&["add", "-Q", "--hash", "sha3-256", "--chunker", "size-300000", text(&file)]);
    kubo.ipfs.run(&["swarm", "connect", &node.address("/tcp/")]);
    let (here, there) = (node.file("here"), kubo.ipfs.file("there"));
    kubo.ipfs.run(&["get", "-o", text(&there), &ours]);
    assert_eq!(sha256(&there), sha256(&file));
    node.json(&["get", &theirs, "--output", text(&here)]);
    assert_eq!(sha256(&here), sha256(&file));
    node.stop();
}

#[test]
fn single_blocks_have_the_cids_that_kubo_gives() {
    let (node, ipfs) = (Node::init(None), Ipfs::init());
    let mut cases: Vec<(Vec<&str>, bool)> = FUNCTIONS.map(|name| (vec!["--mhtype", name], true)).into();
    cases.extend([
        (vec!["--mhtype", "blake3", "--mhlen", "64"], true),
        (vec!["--mhtype", "blake3", "--mhlen", "20"], true),
        (vec!["--mhtype", "sha2-512", "--mhlen", "32"], true),
        (vec!["--mhtype", "sha2-256", "--mhlen", "20"], true),
        (vec!["--mhtype", "identity", "--mhlen", "11"], true),
        (vec!["--mhtype", "sha2-256", "--mhlen", "19"], false),
        (vec!["--mhtype", "sha2-256", "--mhlen", "33"], false),
        (vec!["--mhtype", "blake2b-152"], false),
        (vec!["--mhtype", "md5"], false),
    ]);
    for (arguments, is_taken) in cases {
        let put = [&["block", "put"], &arguments[..]].concat();
        let ours = fed(node.command(&put), b"hello world");
        assert_eq!(ours.is_some(), is_taken, "{arguments:?}");
        assert_eq!(ours, fed(ipfs.command(&put), b"hello world"), "{arguments:?}");
        if let Some(cid) = ours {
            assert_eq!(node.run(&["block", "get", &cid]).stdout, b"hello world");
        }
    }
    let put = ["dag", "put", "--hash", "blake2b-256"];
    let value = br#"{"a":[1,2]}"#;
    assert_eq!(fed(node.command(&put), value), fed(ipfs.command(&put), value));
    assert!(node.run(&["repo", "verify"]).status.success());
}

#[test]
fn what_goes_with_a_hash_function_and_what_does_not() {
    let node = Node::init(None);
    let path = node.file("file");
    random_file(&path, 3_000_000, 5);
    let content = fs::read(&path).expect("the file");
    for (options, words) in [
        (&["--hash", "blake3", "--cid-version", "0"][..], "version 0"),
        (&["--hash", "blake3", "--torrent"], "sha2-256"),
        (&["--hash", "identity"], "inline"),
        (&["--hash", "md5"], "md5"),
    ] {
        // Before anything is read: there is nothing to be read.
        let told = node.fails(&[&["add"], options, &["/nowhere"]].concat());
        assert!(told.contains(words), "{told}");
    }
    let added = |options: &[&str]| -> Value { node.json(&[&["add"], options, &[text(&path)]].concat()) };
    let plain = added(&["--hash", "blake3"])["cid"].clone();
    let root = plain.as_str().expect("a CID");
    assert!(root.starts_with("bafyb4i"), "{root} is CIDv1, dag-pb, of 32 bytes of BLAKE3");
    assert_eq!(
        added(&[
            "--hash",
            "blake3",
            "--profile",
            "unixfs-v0-2015",
            "-s",
            "size-1048576",
            "--max-file-links",
            "1024"
        ])["cid"],
        plain,
        "either profile gives CIDv1 and raw leaves"
    );
    assert!(node.run(&["cat", root]).stdout == content);
    let in_place = node.json(&["add", "--nocopy", "--hash", "sha3-256", text(&path)]);
    assert_eq!(in_place["new_blocks"], 1, "the leaves stay in the file: {in_place}");
    let root = in_place["cid"].as_str().expect("a CID");
    assert!(node.run(&["cat", root]).stdout == content);
    assert!(node.run(&["filestore", "verify"]).status.success());
    let link = said(node.command(&["add", "--private", "-Q", "--hash", "blake3", text(&path)]));
    assert!(link.starts_with("bafyb4i"), "{link}");
    assert!(node.run(&["cat", &link]).stdout == content);
    // A directory that is edited keeps its function.
    let wrapped = added(&["-w", "--hash", "blake3"])["cid"].clone();
    let wrapped = wrapped.as_str().expect("a CID");
    let edited = node.json(&["object", "patch", "add-link", wrapped, "again", root]);
    let back = node.json(&["object", "patch", "rm-link", edited["cid"].as_str().expect("a CID"), "again"]);
    assert_eq!(back["cid"], wrapped);
}
