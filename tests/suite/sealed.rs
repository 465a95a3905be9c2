//! Private files: sealed on the way in, opened on the way out, and the key nowhere in between.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use btfs_tests::node::{Node, random_file, sha256};
use serde_json::Value;

/// Many segments and several blocks, and neither ends where the other does.
const SIZE: u64 = 5_000_003;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Adds a private file; its link and its CID.
fn add(node: &Node, file: &Path) -> (String, String) {
    let added = node.json(&["add", "--private", text(file)]);
    let part = |name: &str| added[name].as_str().expect("text").to_owned();
    assert_eq!(added["size"], fs::metadata(file).expect("the file").len());
    (part("link"), part("cid"))
}

/// Whether any file below a directory has these bytes in it.
fn occurs(below: &Path, bytes: &[u8]) -> bool {
    fs::read_dir(below).expect("a directory").any(|entry| {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            return occurs(&path, bytes);
        }
        let content = fs::read(&path).expect("a file");
        content.windows(bytes.len()).any(|window| window == bytes)
    })
}

#[test]
fn who_has_the_link_reads_it_and_nobody_else() {
    let mut node = Node::init(None);
    let file = node.file("secret");
    random_file(&file, SIZE, 11);
    let content = fs::read(&file).expect("the file");
    node.start();
    let (link, cid) = add(&node, &file);
    let (reference, key) = link.split_once('#').expect("a key");
    assert_eq!((reference, key.len()), (cid.as_str(), 43));
    // All of it, and parts.
    let got = node.file("got");
    let told = node.json(&["get", &link, "--output", text(&got)]);
    assert_eq!(told["reference"], cid);
    assert_eq!(sha256(&got), sha256(&file));
    for (offset, length) in
        [(0, 10), (65_530, 20), (4_999_999, 100), (SIZE as usize, 1), (1_000_000, 3_000_000)]
    {
        let (from, to) = (offset.to_string(), length.to_string());
        let part = node.run(&["cat", &link, "--offset", &from, "--length", &to]);
        assert!(part.status.success());
        assert!(part.stdout == content[offset..(offset + length).min(content.len())], "{offset}, {length}");
    }
    // What the network sees.
    let sealed = node.run(&["cat", &cid]).stdout;
    assert!(sealed.starts_with(b"BTFSSEAL") && sealed.len() > content.len());
    assert!(!sealed.windows(32).any(|window| window == &content[..32]));
    // Kept, but told to nobody, now or by the next daemon.
    let pins = node.json(&["pin", "ls"]);
    let ids: Vec<&str> =
        pins["pins"].as_array().expect("pins").iter().filter_map(|pin| pin["id"].as_str()).collect();
    assert_eq!(ids, [format!("private:{cid}")]);
    // The key, as text or as bytes, is in no file of the node and not in its log.
    node.stop();
    let raw = bytes_of(key);
    for bytes in [key.as_bytes(), &raw] {
        assert!(!occurs(&node.repo(), bytes));
        let log = fs::read(node.file("daemon.log")).expect("a log");
        assert!(!log.windows(bytes.len()).any(|window| window == bytes));
    }
    node.json(&["pin", "rm", &cid]);
    assert_eq!(node.json(&["pin", "ls"])["pins"], serde_json::json!([]));
}

/// The bytes of a key.
fn bytes_of(key: &str) -> Vec<u8> {
    let bits = key.bytes().map(|byte| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'-' => 62,
        _ => 63,
    });
    let bits: Vec<bool> = bits.flat_map(|value| (0..6).rev().map(move |bit| value >> bit & 1 == 1)).collect();
    bits.chunks_exact(8).map(|byte| byte.iter().fold(0, |value, bit| value << 1 | u8::from(*bit))).collect()
}

#[test]
fn links_open_over_the_network() {
    let (mut from, mut to) = (Node::init(None), Node::init(None));
    let file = from.file("secret");
    random_file(&file, SIZE, 12);
    from.start();
    to.start();
    let (link, _) = add(&from, &file);
    to.json(&["swarm", "connect", &from.address("/tcp/")]);
    let got = to.file("got");
    to.json(&["get", &link, "--output", text(&got)]);
    assert_eq!(sha256(&got), sha256(&file));
    from.stop();
    to.stop();
}

#[test]
fn wrong_keys_and_wrong_uses_are_refused_without_telling_the_key() {
    let node = Node::init(None);
    let (file, other) = (node.file("a"), node.file("b"));
    fs::write(&file, b"some content").expect("a file");
    fs::write(&other, b"other content").expect("a file");
    let ((link, cid), (foreign, _)) = (add(&node, &file), add(&node, &other));
    assert_eq!(node.run(&["cat", &link]).stdout, b"some content");
    let key = link.split_once('#').expect("a key").1;
    let wrong = foreign.split_once('#').expect("a key").1;
    let target = node.file("got");
    let target = text(&target);
    let swapped = format!("{cid}#{wrong}");
    let cut = &link[..link.len() - 1];
    let plain = node.json(&["add", text(&file)])["cid"].as_str().expect("a CID").to_owned();
    let not_sealed = format!("{plain}#{key}");
    for (arguments, word) in [
        (vec!["cat", &swapped], "does not open"),
        (vec!["get", &swapped, "--output", target], "does not open"),
        (vec!["cat", cut], "43 characters"),
        (vec!["cat", &not_sealed], "not a sealed file"),
        (vec!["ls", &link], "before the #"),
        (vec!["pin", "add", &link], "before the #"),
        (vec!["dag", "export", &link], "before the #"),
        (vec!["get", &link, "--pin", "--output", target], "--pin"),
    ] {
        let told = node.fails(&arguments);
        assert!(told.contains(word), "{arguments:?}: {told}");
        for secret in [key, wrong] {
            assert!(!told.contains(&secret[..20]), "{arguments:?} tells a key: {told}");
        }
        assert!(!Path::new(target).exists(), "{arguments:?} left a file");
    }
    let told = node.fails(&["add", "--private", text(&node.repo())]);
    assert!(told.contains("tar c"), "{told}");
}

#[test]
fn a_link_needs_to_be_in_no_argument() {
    let node = Node::init(None);
    let (file, link_file, got) = (node.file("secret"), node.file("link"), node.file("got"));
    random_file(&file, 200_000, 13);
    let added = node.json(&["add", "--private", "--link-to", text(&link_file), text(&file)]);
    assert_eq!((added.get("link"), &added["link_file"]), (None, &Value::from(text(&link_file))));
    let mode = fs::metadata(&link_file).expect("the link").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only its owner reads it");
    let link = fs::read_to_string(&link_file).expect("the link");
    let cid = added["cid"].as_str().expect("a CID");
    assert!(link.starts_with(&format!("{cid}#")));
    // From the file, and from standard input.
    node.json(&["get", "--link-file", text(&link_file), "--output", text(&got)]);
    assert_eq!(sha256(&got), sha256(&file));
    for content in [link.clone(), format!("{}\nmore", link.trim())] {
        let part = ["cat", "--link-file", "-", "--offset", "7", "--length", "100000"];
        let child = node.command(&part).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("btfs runs");
        child.stdin.take().expect("piped").write_all(content.as_bytes()).expect("it reads");
        let opened = child.wait_with_output().expect("it ends");
        assert!(opened.stdout == fs::read(&file).expect("the file")[7..100_007]);
    }
}

#[test]
fn link_files_are_neither_overwritten_nor_guessed() {
    let node = Node::init(None);
    let (file, taken, plain) = (node.file("secret"), node.file("taken"), node.file("plain"));
    fs::write(&file, b"some content").expect("a file");
    fs::write(&taken, b"mine").expect("a file");
    let cid = node.json(&["add", text(&file)])["cid"].as_str().expect("a CID").to_owned();
    fs::write(&plain, &cid).expect("a file");
    let pins = node.json(&["pin", "ls"]);
    let (absent, nowhere) = (node.file("absent"), node.file("no/such/directory"));
    for (arguments, word) in [
        (vec!["add", "--private", "--link-to", text(&taken), text(&file)], "already exists"),
        (vec!["add", "--private", "--link-to", text(&nowhere), text(&file)], "nothing was stored"),
        (vec!["add", "--private", "--link-to", text(&absent), text(&file), text(&file)], "one by one"),
        (vec!["cat", "--link-file", text(&plain)], "no key"),
        (vec!["cat", "--link-file", "-"], "no link"),
        (vec!["cat", "--link-file", text(&absent)], "cannot read a link"),
    ] {
        let told = node.fails(&arguments);
        assert!(told.contains(word), "{arguments:?}: {told}");
    }
    assert_eq!(fs::read(&taken).expect("the file"), b"mine");
    assert!(!absent.exists());
    assert_eq!(node.json(&["pin", "ls"]), pins, "nothing was stored");
    for arguments in [vec!["cat"], vec!["cat", &cid, "--link-file", text(&plain)]] {
        assert_eq!(node.run(&arguments).status.code(), Some(2), "{arguments:?} is no usage");
    }
}

#[test]
fn standard_input_is_sealed_too() {
    let node = Node::init(None);
    for content in [&b""[..], b"typed", &vec![3; 200_000]] {
        let mut command = node.command(&["add", "--private", "--json", "-"]);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("btfs runs");
        child.stdin.take().expect("piped").write_all(content).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        let added: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(added["size"], content.len());
        let opened = node.run(&["cat", added["link"].as_str().expect("a link")]);
        assert!(opened.stdout == content);
    }
}
