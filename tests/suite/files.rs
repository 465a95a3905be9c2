//! What `add` and `get` can be asked for: shapes of the DAG, rules, modes and times, archives, single entries of
//! directories. CIDs in `CIDS` are those of Kubo's own packages for the same options; more of them are in the tests of
//! `btfs_storage`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use btfs_tests::node::{Node, random_file, sha256};

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// The CID of an `add`.
fn cid(node: &Node, arguments: &[&str]) -> String {
    let added = node.json(&[&["add"], arguments].concat());
    added["cid"].as_str().expect("a CID").to_owned()
}

/// Sixty thousand bytes that follow from nothing but their place.
fn numbers() -> Vec<u8> {
    (0..60_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// Options and what they give for [`numbers`].
const CIDS: [(&[&str], &str); 8] = [
    (&["-s", "rabin-512-1024-2048"], "bafybeigi7msuh2xpmddjganwhax6ih4ef4v5dnjkq2e23dvydkej5o6qzq"),
    (
        &["-s", "rabin-512-1024-2048", "--trickle", "--max-file-links", "3"],
        "bafybeidxv745brrwqgfuuavu3az3nevikuoax3oacdwe5wm6ptv7eciogy",
    ),
    (
        &["-s", "size-1000", "--trickle", "--cid-version", "0"],
        "QmQ9MFZ9FFvGufKy6YJNoAQt3qYyVFpFSeNyH7ycoDHRig",
    ),
    (
        &["-s", "size-1000", "--raw-leaves=false"],
        "bafybeicmjb4m2isec7zaq3bkbkxmxc2yzwzywngmkot37lksd42iskrx7y",
    ),
    (
        &["-s", "size-1000", "--cid-version=0", "--raw-leaves"],
        "QmQV9dp4YfDqJ9k6VgEPvpkniDeMQJ8eoWTgwob5vybRvA",
    ),
    (
        &["-s", "size-40", "--inline", "--inline-limit", "40"],
        "bafybeihpakbusb44devbgwfnwa64znkopubjn63yr6xngrhv4f6akjkawi",
    ),
    (
        &["-s", "size-1000", "--mode", "0640", "--mtime", "-5", "--mtime-nsecs", "7"],
        "bafybeiahbwj5k6vocoq7sdx3ybqubfwnh5shpi2n6ut7rvuxtitgzo2mlq",
    ),
    (&["-s", "buzhash"], "bafkreibz5y7j7bzt2fxgys7qoertkxrhi5jx6un4pzuk2mst5jcbj6kihu"),
];

#[test]
fn shapes_are_those_of_kubo() {
    let node = Node::init(None);
    let path = node.file("numbers");
    fs::write(&path, numbers()).expect("a file");
    for (options, expected) in CIDS {
        let added = cid(&node, &[options, &[text(&path)]].concat());
        assert_eq!(added, expected, "{options:?}");
        assert_eq!(cid(&node, &[options, &["--only-hash", text(&path)]].concat()), expected);
        assert!(node.run(&["cat", &added]).stdout == numbers(), "{options:?}");
        let part = node.run(&["cat", &added, "--offset", "31000", "--length", "5000"]).stdout;
        assert!(part == numbers()[31_000..36_000], "{options:?}");
    }
    let fastcdc = cid(&node, &["-s", "fastcdc-1024", text(&path)]);
    assert!(node.run(&["cat", &fastcdc]).stdout == numbers());
}

#[test]
fn standard_input_has_the_same_shapes() {
    let node = Node::init(None);
    let path = node.file("numbers");
    fs::write(&path, numbers()).expect("a file");
    let stdin = |options: &[&str]| {
        let mut child = node
            .command(&[&["add", "-Q"], options, &["-"]].concat())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("btfs runs");
        child.stdin.take().expect("piped").write_all(&numbers()).expect("it reads");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success());
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    for (options, expected) in CIDS {
        assert_eq!(stdin(options), expected, "{options:?}");
    }
    let modes = ["-w", "--mode", "0640", "--mtime", "7"];
    assert_eq!(
        stdin(&[&modes[..], &["--stdin-name", "numbers"]].concat()),
        cid(&node, &[&modes[..], &[text(&path)]].concat())
    );
    let wrapped = cid(&node, &["-w", text(&path)]);
    assert_eq!(stdin(&["-w", "--stdin-name", "numbers"]), wrapped);
    let listed = node.json(&["ls", &wrapped]);
    assert_eq!(listed["entries"][0]["name"], "numbers");
}

#[test]
fn rules_say_what_is_left_out() {
    let node = Node::init(None);
    let root = node.file("tree");
    for directory in ["src/deep", "target/debug", "empty", ".git"] {
        fs::create_dir_all(root.join(directory)).expect("a directory");
    }
    for file in ["src/a.rs", "src/deep/b.rs", "src/deep/b.log", "target/debug/btfs", ".git/HEAD", "keep.log"]
    {
        fs::write(root.join(file), file).expect("a file");
    }
    let names = |arguments: &[&str]| {
        let added = cid(&node, &[arguments, &[text(&root)]].concat());
        let mut found = Vec::new();
        let mut todo = vec![(added, String::new())];
        while let Some((at, path)) = todo.pop() {
            for entry in node.json(&["ls", &at])["entries"].as_array().expect("entries") {
                let path = format!("{path}/{}", entry["name"].as_str().expect("a name"));
                if entry["kind"] == "directory" {
                    todo.push((entry["cid"].as_str().expect("a CID").to_owned(), path.clone()));
                }
                found.push(path);
            }
        }
        found.sort();
        found
    };
    let src = ["/src", "/src/a.rs", "/src/deep", "/src/deep/b.rs"];
    let rules = node.file("rules");
    fs::write(&rules, "# built\n/target/\n*.log\n!keep.log\n").expect("a file");
    let by_file = names(&["--ignore-rules-path", text(&rules), "--empty-dirs=false"]);
    assert_eq!(by_file, [&["/keep.log"][..], &src].concat());
    let given = names(&["--ignore", "target", "--ignore", "*.log"]);
    assert_eq!(given, [&["/empty"][..], &src].concat());
    assert!(names(&["--hidden"]).contains(&"/.git/HEAD".to_owned()));
    let told = node.fails(&["add", "--ignore-rules-path", text(&node.file("absent")), text(&root)]);
    assert!(told.contains("absent") && told.contains("nothing was added"), "{told}");

    symlink("..", root.join("src/up")).expect("a link");
    let told = node.fails(&["add", "--dereference-symlinks", text(&root)]);
    assert!(told.contains("src/up") && told.contains("leads back"), "{told}");
    fs::remove_file(root.join("src/up")).expect("the link goes");
    symlink("a.rs", root.join("src/link.rs")).expect("a link");
    // One that is given itself is stored as it is, too.
    let link = root.join("src/link.rs");
    let [stored, followed] =
        [&[text(&link)][..], &["--dereference-args", text(&link)]].map(|args| cid(&node, args));
    assert_eq!(followed, cid(&node, &[text(&root.join("src/a.rs"))]));
    assert_ne!(stored, followed);
    let followed = cid(&node, &["--dereference-symlinks", text(&root.join("src"))]);
    assert_eq!(node.run(&["cat", &format!("/ipfs/{followed}/link.rs")]).stdout, b"src/a.rs");
}

#[test]
fn modes_and_times_are_kept_and_restored() {
    let node = Node::init(None);
    let root = node.file("tree");
    fs::create_dir(&root).expect("a directory");
    fs::write(root.join("script"), "#!/bin/sh\n").expect("a file");
    fs::set_permissions(root.join("script"), fs::Permissions::from_mode(0o750)).expect("a mode");
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321);
    fs::File::open(root.join("script")).expect("the file").set_modified(time).expect("a time");
    let added = cid(&node, &["--preserve-mode", "--preserve-mtime", text(&root)]);
    let got = node.file("got");
    node.json(&["get", &added, "-o", text(&got)]);
    let metadata = fs::metadata(got.join("script")).expect("the file");
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o750);
    assert_eq!(metadata.modified().expect("a time"), time);
    for refused in [
        &["--preserve-mode", "--raw-leaves"][..],
        &["--mode", "99"],
        &["--chunker", "size-0"],
        &["--max-hamt-fanout", "9"],
        &["--torrent", "--trickle"],
    ] {
        node.fails(&[&["add"], refused, &[text(&root)]].concat());
    }
}

#[test]
fn archives_unpack_to_what_was_added() {
    let node = Node::init(None);
    let root = node.file("tree");
    fs::create_dir_all(root.join("sub")).expect("directories");
    random_file(&root.join("sub/big"), 3 << 20, 31);
    symlink("sub/big", root.join("link")).expect("a link");
    let added = cid(&node, &[text(&root)]);
    let archive = node.file("tree.tar.gz");
    node.json(&["get", &added, "--archive", "--compress", "-o", text(&archive)]);
    let unpacked = node.file("unpacked");
    fs::create_dir(&unpacked).expect("a directory");
    let tar = Command::new("tar").arg("xzf").arg(&archive).arg("-C").arg(&unpacked).status();
    assert!(tar.expect("tar runs").success());
    assert_eq!(cid(&node, &["-n", text(&unpacked.join(&added))]), added);
    node.json(&["get", &format!("/ipfs/{added}/sub/big"), "-C", "-o", text(&node.file("big.gz"))]);
    assert!(Command::new("gunzip").arg(node.file("big.gz")).status().expect("gunzip runs").success());
    assert_eq!(sha256(&node.file("big")), sha256(&root.join("sub/big")));
    assert!(node.fails(&["get", &added, "-a", "-o", text(&archive)]).contains("already exists"));
}

/// Blocks stay in the files; what reads them says so when a file is not what it was.
#[test]
fn files_that_are_not_copied() {
    let node = Node::init(None);
    let root = node.file("library");
    fs::create_dir(&root).expect("a directory");
    random_file(&root.join("film"), (8 << 20) + 5, 41);
    fs::write(root.join("note"), "short").expect("a file");
    let copied = cid(&node, &["-n", text(&root)]);
    let before = node.json(&["repo", "stat"])["live_bytes"].as_u64().expect("bytes");
    let added = cid(&node, &["--nocopy", text(&root)]);
    assert_eq!(added, copied, "the CIDs are those of copies");
    let after = node.json(&["repo", "stat"])["live_bytes"].as_u64().expect("bytes");
    assert!(after - before < 10_000, "{before} {after}");
    let listed = node.json(&["filestore", "ls"]);
    assert_eq!((&listed["count"], &listed["bytes"]), (&10.into(), &((8 << 20) + 10).into()));
    let film = fs::read(root.join("film")).expect("the film");
    let path = format!("/ipfs/{added}/film");
    node.json(&["repo", "gc"]);
    assert!(node.run(&["cat", &path]).stdout == film);
    let got = node.file("got");
    node.json(&["get", &added, "-o", text(&got)]);
    assert_eq!(sha256(&got.join("film")), sha256(&root.join("film")));
    assert_eq!(node.json(&["filestore", "verify"])["count"], 0);
    let backup = node.json(&["repo", "backup", text(&node.file("copy"))]);
    assert_eq!((&backup["blocks_in_files"], &backup["bytes_in_files"]), (&listed["count"], &listed["bytes"]));
    let told = node.run(&["repo", "backup", text(&node.file("another copy"))]).stdout;
    let told = String::from_utf8(told).expect("text");
    assert!(told.contains("10 more blocks"), "{told}");

    // Another tail: the first megabytes are still served, the rest is refused by name.
    let mut changed = film.clone();
    changed[5 << 20] ^= 1;
    fs::write(root.join("film"), &changed).expect("the film changes");
    assert!(node.run(&["cat", &path, "--length", "4194304"]).stdout == film[..4 << 20]);
    let told = node.fails(&["cat", &path]);
    assert!(told.contains("library/film") && told.contains("was written to"), "{told}");
    let told = node.fails(&["filestore", "verify"]);
    assert!(told.contains("1 of 10"), "{told}");
    fs::remove_file(root.join("film")).expect("the film goes");
    let told = node.fails(&["get", &path, "-o", text(&node.file("got2"))]);
    assert!(told.contains("library/film") && told.contains("cannot be read"), "{told}");
    fs::write(root.join("film"), &film).expect("the film is back");
    assert!(node.run(&["cat", &path]).stdout == film);

    node.json(&["pin", "rm", &added]);
    node.json(&["repo", "gc"]);
    assert_eq!(node.json(&["filestore", "ls"])["count"], 0, "what no pin keeps is forgotten");
    node.fails(&["cat", &path]);
    assert_eq!(fs::read(root.join("note")).expect("the note"), b"short", "files are never touched");
    for refused in [&["--raw-leaves=false"][..], &["--preserve-mtime"], &["--only-hash"]] {
        let arguments = [&["add", "--nocopy"], refused, &[text(&root)]].concat();
        assert!(!node.run(&arguments).status.success(), "{refused:?}");
    }
}

/// What stays in a file is served like any other block, over Bitswap and BitTorrent, and nothing else in its place.
#[test]
fn files_that_are_not_copied_are_served() {
    let (mut home, mut torrents, mut other) = (Node::init(None), Node::init(None), Node::init(None));
    let path = home.file("film");
    random_file(&path, (6 << 20) + 7, 43);
    [&mut home, &mut torrents, &mut other].into_iter().for_each(Node::start);
    let added = home.json(&["add", "--nocopy", "--torrent", text(&path)]);
    let (root, magnet) = (added["cid"].as_str().expect("a CID"), added["magnet"].as_str().expect("a magnet"));
    let [first, second, third] = ["first", "second", "third"].map(|name| other.file(name));
    torrents.json(&["get", magnet, "--peer", &home.bittorrent(), "-o", text(&first)]);
    assert_eq!(sha256(&first), sha256(&path));
    torrents.stop();
    other.json(&["swarm", "connect", &home.address("/tcp/")]);
    let film = fs::read(&path).expect("the film");
    let mut changed = film.clone();
    changed[3 << 20] ^= 1;
    fs::write(&path, &changed).expect("the film changes");
    let told = other.fails(&["get", root, "--timeout", "2", "-o", text(&second)]);
    assert!(told.contains("nobody gave block") && !second.exists(), "{told}");
    fs::write(&path, &film).expect("the film is back");
    let got = other.json(&["get", root, "-o", text(&third)]);
    assert!(got["blocks_fetched"].as_u64() > Some(0), "{got}");
    assert_eq!(sha256(&third), sha256(&path));
    home.stop();
    other.stop();
}

/// A directory of more entries than fit one block, changed entry by entry, is what an import of the result is.
#[test]
fn entries_of_directories_come_and_go() {
    let node = Node::init(None);
    let root = node.file("tree");
    fs::create_dir(&root).expect("a directory");
    for i in 0..6000 {
        fs::write(root.join(format!("{i:05}-entry")), "x").expect("a file");
    }
    let large = cid(&node, &[text(&root)]);
    let other = node.file("other");
    fs::write(&other, "other").expect("a file");
    let added = cid(&node, &[text(&other)]);
    let patch = |arguments: &[&str]| {
        let patched = node.json(&[&["object", "patch"], arguments].concat());
        patched["cid"].as_str().expect("a CID").to_owned()
    };
    let changed = patch(&["add-link", &large, "new/deep/name", &added, "--create", "--pin"]);
    fs::create_dir_all(root.join("new/deep")).expect("directories");
    fs::copy(&other, root.join("new/deep/name")).expect("a file");
    assert_eq!(changed, cid(&node, &["-n", text(&root)]));
    let changed = patch(&["rm-link", &changed, "00007-entry"]);
    fs::remove_file(root.join("00007-entry")).expect("the file goes");
    assert_eq!(changed, cid(&node, &["-n", text(&root)]));
    assert_eq!(node.run(&["cat", &format!("/ipfs/{changed}/new/deep/name")]).stdout, b"other");
    let told = node.fails(&["object", "patch", "rm-link", &changed, "absent"]);
    assert!(told.contains("absent"), "{told}");
    let told = node.fails(&["object", "patch", "add-link", &changed, "no/such", &added]);
    assert!(told.contains("no"), "{told}");
}
