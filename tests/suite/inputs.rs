//! Bad input to a node: each gives a clear error and exit status 1, or 2 for wrong usage, loses nothing and leaves
//! nothing half-written. What the market refuses is in `orders`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use btfs_tests::node::{Node, random_file};
use btfs_tests::peers;
use serde_json::Value;

/// SHA-256 of nothing as a raw leaf, and an empty UnixFS file in the older profile.
const EMPTY_V1: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
const EMPTY_V0: &str = "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH";
/// A valid CID of content that no test makes.
const NOBODYS: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A file with this content; its path.
fn file(node: &Node, name: &str, content: &[u8]) -> String {
    let path = node.file(name);
    std::fs::write(&path, content).expect("a file");
    text(&path).to_owned()
}

/// What a failure must not change: pins, and what is kept for them.
fn kept(node: &Node) -> [Value; 3] {
    node.json(&["repo", "gc"]);
    let mut stat = node.json(&["repo", "stat"]);
    [node.json(&["pin", "ls"]), stat["blocks"].take(), stat["live_bytes"].take()]
}

fn has_all(told: &str, parts: &[&str]) {
    for part in parts {
        assert!(told.contains(part), "no `{part}` in: {told}");
    }
}

/// Names in a directory, sorted.
fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn wrong_usage_is_status_2() {
    let node = Node::init(None);
    for arguments in [
        vec!["nonsense"],
        vec!["add"],
        vec!["add", "--nonsense", "x"],
        vec!["get"],
        vec!["cat", NOBODYS, "--offset", "-1"],
        vec!["add", "--only-hash", "--torrent", "x"],
        vec!["add", "--inline-limit", "40", "x"],
        vec!["store", "add", "x", "--copies", "2", "--redundancy", "2+4"],
        vec!["torrent", "create", NOBODYS, "--name", "x", "--piece-length", "many"],
    ] {
        let output = node.run(&arguments);
        assert_eq!(output.status.code(), Some(2), "btfs {}", arguments.join(" "));
        assert!(!output.stderr.is_empty(), "btfs {}", arguments.join(" "));
    }
}

#[test]
fn empty_and_tiny_files_are_files() {
    let node = Node::init(None);
    let empty = file(&node, "empty", b"");
    let added = node.json(&["add", &empty]);
    assert_eq!((&added["cid"], &added["size"]), (&EMPTY_V1.into(), &0.into()));
    assert_eq!(node.json(&["add", "--profile", "unixfs-v0-2015", &empty])["cid"], EMPTY_V0);
    let tiny = node.json(&["add", &file(&node, "tiny", b"0123456789")]);
    for (cid, content) in
        [(EMPTY_V1, ""), (EMPTY_V0, ""), (tiny["cid"].as_str().expect("a CID"), "0123456789")]
    {
        let got = node.file(cid);
        node.json(&["get", cid, "--output", text(&got)]);
        assert_eq!(std::fs::read_to_string(&got).expect("the file"), content);
        assert_eq!(node.run(&["cat", cid]).stdout, content.as_bytes());
    }
}

/// Options that contradict each other or the input are refused before anything is stored.
#[test]
fn options_that_cannot_be_met() {
    let node = Node::init(None);
    let file = file(&node, "file", b"content");
    let before = kept(&node);
    for (arguments, told) in [
        (&["-w", &file, "-"][..], "add it alone"),
        (&["-w", "--stdin-name", "x", &file], "--stdin-name"),
        (&["--hidden", "-"], "one file"),
        (&["--empty-dirs=false", "-"], "one file"),
        (&["--ignore", "x", "-"], "nothing in it to ignore"),
        (&["--preserve-mode", "-"], "--mode"),
        (&["--nocopy", "-"], "lies in no file"),
        (&["--ignore-rules-path", "/dev/zero", &file], "no regular file"),
        (&["--ignore-rules-path", "/nowhere", &file], "/nowhere"),
    ] {
        has_all(&node.fails(&[&["add"], arguments].concat()), &[told]);
    }
    // Opening it as a reader would wait for ever.
    let pipe = node.file("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .expect("a pipe");
    has_all(&node.fails(&["add", "--ignore-rules-path", text(&pipe), &file]), &["no regular file"]);
    let long = node.file("rules");
    std::fs::write(&long, "x\n".repeat(600_000)).expect("a file");
    has_all(&node.fails(&["add", "--ignore-rules-path", text(&long), &file]), &["longer than"]);
    assert_eq!(kept(&node), before);
}

/// `btfs` on a repo below `dir`, as a user who is not root: root reads everything.
fn as_nobody(dir: &Path, arguments: &[&str]) -> Output {
    let program = dir.join("btfs");
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments).env("BTFS_PATH", dir.join("repo")).current_dir(dir).stdin(Stdio::null());
    command.output().expect("the program runs")
}

#[test]
fn unreadable_paths() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("the mode is set");
    };
    mode(dir.path(), 0o777);
    // The folder of the program may be closed to others, too.
    let program = dir.path().join("btfs");
    std::fs::hard_link(peers::btfs(), &program)
        .or_else(|_| std::fs::copy(peers::btfs(), &program).map(drop))
        .expect("a copy of the program");
    std::fs::create_dir(dir.path().join("tree")).expect("a directory");
    for name in ["tree/a-open", "tree/b-closed"] {
        std::fs::write(dir.path().join(name), name).expect("a file");
    }
    mode(&dir.path().join("tree/b-closed"), 0);
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).expect("a directory");
    mode(&closed, 0);
    let within = closed.join("x");
    let run = |arguments: &[&str]| as_nobody(dir.path(), arguments);
    assert!(run(&["init", "--local-ports"]).status.success());
    let before = run(&["repo", "stat", "--json"]).stdout;
    for (path, named) in [
        ("tree/b-closed", "b-closed"),
        ("tree", "b-closed"),
        ("tree/c-absent", "c-absent"),
        (text(&within), text(&within)),
    ] {
        let output = run(&["add", path]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{path}: {told}");
        has_all(&told, &["cannot read", named, "nothing was added"]);
    }
    assert!(run(&["repo", "gc"]).status.success());
    let blocks = |stat: &[u8]| {
        let stat: Value = serde_json::from_slice(stat).expect("JSON");
        (stat["blocks"].clone(), stat["pins"].clone())
    };
    assert_eq!(blocks(&run(&["repo", "stat", "--json"]).stdout), blocks(&before));
    assert!(run(&["add", "tree/a-open"]).status.success());
}

#[test]
fn a_file_that_changes_while_it_is_read() {
    let node = Node::init(None);
    let path = node.file("growing");
    random_file(&path, 64 << 20, 21);
    let before = kept(&node);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut growing = File::options().append(true).open(&path).expect("the file");
            while !done.load(Ordering::Relaxed) {
                growing.write_all(b"+").expect("the file is written");
            }
        });
        let output = node.run(&["add", text(&path)]);
        done.store(true, Ordering::Relaxed);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        has_all(&told, &["growing", "changed while it was being read", "nothing was added"]);
    });
    assert_eq!(kept(&node), before);
    node.json(&["add", text(&path)]);
}

#[test]
fn malformed_references() {
    let mut node = Node::init(None);
    let torrent = file(&node, "bad.torrent", b"d4:infod6:lengthi-1eee");
    let before = kept(&node);
    let refused = |node: &Node| {
        let got = node.file("got");
        let to = ["--output", text(&got)];
        let get = |reference: &str| node.fails(&["get", reference, to[0], to[1]]);
        has_all(&get("nonsense"), &["nonsense", "CID"]);
        has_all(&get("bafynonsense"), &["bafynonsense", "CID"]);
        has_all(&get("/ipfs/QmNonsense/a"), &["QmNonsense", "CID"]);
        has_all(&get("/ipns/example.org"), &["/ipns/example.org"]);
        has_all(&get("magnet:?xt=urn:btih:12345"), &["magnet"]);
        has_all(&get("magnet:?dn=name-alone"), &["magnet"]);
        has_all(&get(text(&node.file("absent.torrent"))), &["absent.torrent"]);
        has_all(&get(&torrent), &["bad.torrent"]);
        has_all(&node.fails(&["cat", "nonsense"]), &["nonsense", "CID"]);
        has_all(&node.fails(&["pin", "rm", NOBODYS]), &[NOBODYS, "not pinned"]);
        has_all(&node.fails(&["block", "stat", "nonsense"]), &["nonsense", "CID"]);
        has_all(&node.fails(&["block", "get", "not & a CID"]), &["not & a CID"]);
        has_all(&node.fails(&["add", "-", "--profile", "no & such"]), &["no & such"]);
        assert!(!got.exists());
    };
    refused(&node);
    has_all(&node.fails(&["cat", NOBODYS]), &[NOBODYS, "btfs daemon"]);
    node.start();
    refused(&node);
    has_all(&node.fails(&["torrent", "add", &torrent]), &["torrent"]);
    has_all(&node.fails(&["torrent", "add", "magnet:?xt=urn:btih:12345"]), &["magnet"]);
    assert_eq!(node.json(&["torrent", "ls"])["torrents"], Value::Array(Vec::new()));
    assert_eq!(kept(&node), before);
    node.stop();
}

#[test]
fn a_cid_that_nobody_has() {
    let mut nodes = [Node::init(None), Node::init(None)];
    nodes.iter_mut().for_each(Node::start);
    let [node, other] = &nodes;
    node.json(&["swarm", "connect", &other.address("/tcp/")]);
    let got = node.file("got");
    let told = node.fails(&["get", NOBODYS, "--timeout", "2", "--output", text(&got)]);
    has_all(&told, &[NOBODYS, "within 2 s", &other.peer()]);
    assert!(!got.exists());
    let repo = names(node.repo().parent().expect("the test's directory"));
    assert!(repo.iter().all(|name| !name.contains("part")), "left behind: {repo:?}");
    nodes.iter_mut().for_each(Node::stop);
}

#[test]
fn a_target_that_exists_or_cannot_be() {
    let node = Node::init(None);
    let cid = node.json(&["add", &file(&node, "content", b"content")])["cid"].clone();
    let cid = cid.as_str().expect("a CID");
    let mine = file(&node, "mine", b"mine");
    has_all(&node.fails(&["get", cid, "--output", &mine]), &["mine", "already exists", "nothing"]);
    assert_eq!(std::fs::read(&mine).expect("the file"), b"mine");
    let nowhere = node.file("no/such/folder/got");
    has_all(&node.fails(&["get", cid, "--output", text(&nowhere)]), &["no/such/folder"]);
    assert!(!node.file("no").exists());
    has_all(&node.fails(&["cat", &format!("/ipfs/{cid}/below")]), &[cid]);
    let directory = node.file("directory");
    std::fs::create_dir(&directory).expect("a directory");
    let root = node.json(&["add", text(&directory)])["cid"].clone();
    has_all(&node.fails(&["cat", root.as_str().expect("a CID")]), &["directory", "btfs ls"]);
}

#[test]
fn a_repo_in_use() {
    let mut node = Node::init(None);
    node.start();
    let pid = node.pid().to_string();
    has_all(&node.fails(&["daemon"]), &["in use", &pid, text(&node.repo())]);
    has_all(&node.fails(&["init", "--local-ports"]), &["already is a btfs repo", "nothing was changed"]);
    // Nothing of it disturbed the daemon that runs.
    assert_eq!(node.json(&["id"])["peer"], node.peer());
    has_all(&node.fails(&["ledger", "init", "--supply", "5"]), &["daemon", "btfs shutdown"]);
    node.stop();
    has_all(&node.fails(&["shutdown"]), &["no daemon"]);
    let absent = node.file("absent");
    has_all(&node.fails(&["--repo", text(&absent), "add", "x"]), &["no btfs repo", "btfs init"]);
    assert!(!absent.exists());
}

#[test]
fn what_is_lacking_is_named_when_no_daemon_runs() {
    let node = Node::init(None);
    let tree = node.file("tree");
    std::fs::create_dir_all(tree.join("below")).expect("directories");
    random_file(&tree.join("below/film"), 3 << 20, 21);
    let root = node.json(&["add", "--no-pin", text(&tree)])["cid"].as_str().expect("a CID").to_owned();
    let below = format!("/ipfs/{root}/below");
    let first = |listing: &Value| listing["entries"][0]["cid"].as_str().expect("a CID").to_owned();
    let directory = first(&node.json(&["ls", &root]));
    let film = first(&node.json(&["ls", &below]));
    let leaves = String::from_utf8(node.run(&["refs", &film]).stdout).expect("text");
    let leaf = leaves.lines().last().expect("a leaf");
    assert!(node.run(&["block", "rm", leaf]).status.success());
    let got = node.file("got");
    for arguments in [&["cat", &format!("{below}/film")][..], &["get", &root, "--output", text(&got)]] {
        has_all(&node.fails(arguments), &[leaf, &root, "btfs daemon"]);
    }
    assert!(node.run(&["block", "rm", &directory]).status.success());
    has_all(&node.fails(&["ls", &below]), &[&directory, &root, "btfs daemon"]);
    assert!(!got.exists());
    has_all(&node.fails(&["ls", &directory]), &[&format!("block {directory} is not in this store")]);
}

/// Writes the schema version of a repo's state database.
fn set_schema(repo: &Path, version: u32) {
    let path = repo.join("state");
    let options = rocksdb::Options::default();
    let families = rocksdb::DB::list_cf(&options, &path).expect("the tables");
    let state = rocksdb::DB::open_cf(&options, &path, families).expect("the state database");
    state.put(b"schema", version.to_be_bytes()).expect("the version is written");
}

#[test]
fn a_repo_of_a_newer_version() {
    let node = Node::init(None);
    let cid = node.json(&["add", &file(&node, "content", b"content")])["cid"].clone();
    set_schema(&node.repo(), 1000);
    for arguments in [&["repo", "stat"][..], &["daemon"], &["cat", cid.as_str().expect("a CID")]] {
        has_all(&node.fails(arguments), &["version 1000", text(&node.repo())]);
    }
    // Nothing was changed: a program that knows the version finds everything.
    set_schema(&node.repo(), 1);
    assert_eq!(node.run(&["cat", cid.as_str().expect("a CID")]).stdout, b"content");
}

#[test]
fn settings_that_cannot_be() {
    let node = Node::init(None);
    let config = node.repo().join("config.toml");
    let before = std::fs::read(&config).expect("the configuration");
    has_all(&node.fails(&["config", "set", "storage.qouta", "1GiB"]), &["qouta"]);
    has_all(&node.fails(&["config", "set", "nosection.key", "1"]), &["nosection"]);
    has_all(&node.fails(&["config", "set", "plain", "1"]), &["plain", "section.name"]);
    has_all(&node.fails(&["config", "set", "storage.quota", "many"]), &["many"]);
    has_all(&node.fails(&["config", "set", "api.listen", "nowhere"]), &["nowhere"]);
    has_all(&node.fails(&["config", "get", "storage.qouta"]), &["qouta"]);
    let network = file(&node, "network.toml", b"name = \"Has Spaces\"");
    has_all(&node.fails(&["config", "network", &network]), &["network.toml", "Has Spaces"]);
    assert_eq!(std::fs::read(&config).expect("the configuration"), before);
    // One broken by hand is named with its line, and nothing runs on a guess.
    std::fs::write(&config, "[storage]\nqouta = 1\n").expect("the configuration is written");
    has_all(&node.fails(&["repo", "stat"]), &["config.toml", "qouta"]);
    std::fs::write(&config, before).expect("the configuration is written");
    node.json(&["repo", "stat"]);
}

#[test]
fn a_wrong_passphrase() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let right = dir.path().join("right");
    let wrong = dir.path().join("wrong");
    std::fs::write(&right, "correct horse\n").expect("a file");
    std::fs::write(&wrong, "battery staple\n").expect("a file");
    let repo = dir.path().join("repo");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(peers::btfs());
        command.args(arguments).env("BTFS_PATH", &repo).stdin(Stdio::null());
        command.output().expect("btfs runs")
    };
    assert!(run(&["init", "--local-ports", "--passphrase-file", text(&right)]).status.success());
    let key = std::fs::read(repo.join("key")).expect("the key");
    for (arguments, parts) in [
        (vec!["daemon", "--passphrase-file", text(&wrong)], vec!["wrong passphrase", "nothing was changed"]),
        (vec!["daemon", "--passphrase-file", "/no/such/file"], vec!["/no/such/file"]),
        (vec!["daemon"], vec!["passphrase", "--passphrase-file"]),
    ] {
        let output = run(&arguments);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        has_all(&told, &parts);
        assert!(!told.contains("battery") && !told.contains("horse"), "a passphrase is shown: {told}");
    }
    assert_eq!(std::fs::read(repo.join("key")).expect("the key"), key);
    // Files need no key.
    assert!(run(&["add", text(&right)]).status.success());
}

#[test]
fn quota_and_reserve_are_kept() {
    let node = Node::init(None);
    let big = node.file("big");
    random_file(&big, 4 << 20, 22);
    let cid = node.json(&["add", &file(&node, "small", b"small")])["cid"].clone();
    let before = kept(&node);
    let config = node.repo().join("config.toml");
    let settings = std::fs::read(&config).expect("the configuration");
    for (key, value, named) in [("storage.quota", "1MiB", "quota"), ("storage.reserve", "1000TiB", "reserve")]
    {
        node.json(&["config", "set", key, value]);
        has_all(&node.fails(&["add", text(&big)]), &[named]);
        assert_eq!(kept(&node), before);
        assert_eq!(node.run(&["cat", cid.as_str().expect("a CID")]).stdout, b"small");
        std::fs::write(&config, &settings).expect("the configuration is written");
    }
    node.json(&["add", text(&big)]);
}

/// Runs in a mount namespace of its own, so that nobody else sees its small disks and they end with it. Each step
/// leaves what it said and how it ended in `$out`.
const FULL_DISKS: &str = r#"
mkdir "$out/disk" "$out/tiny"
mount -t tmpfs -o size=64m none "$out/disk" && mount -t tmpfs -o size=4m none "$out/tiny" || exit 9
export BTFS_PATH="$out/disk/repo"
step() {
    name="$1"; shift
    "$@" > "$out/$name.stdout" 2> "$out/$name.stderr"
    echo $? > "$out/$name.status"
}
step init "$btfs" init --local-ports
step reserve "$btfs" config set storage.reserve 0
step small "$btfs" add --json "$out/small"
cid=$(sed 's/.*"cid":"\([^"]*\)".*/\1/' "$out/small.stdout")
step full "$btfs" add "$out/big"
step gc "$btfs" repo gc
step again "$btfs" add --json "$out/small"
step out "$btfs" get "$cid" --output "$out/tiny/got"
step left ls -A "$out/tiny"
step cat "$btfs" cat "$cid"
step pins "$btfs" pin ls
"#;

#[test]
fn a_full_disk() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    random_file(&dir.path().join("small"), 6 << 20, 23);
    random_file(&dir.path().join("big"), 96 << 20, 24);
    // Root may always; others where the system gives users namespaces.
    let mut own = Command::new("unshare");
    own.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        own.args(["--user", "--map-root-user"]);
    }
    own.args(["sh", "-c", FULL_DISKS]).env("out", dir.path()).env("btfs", peers::btfs());
    let output = own.output().expect("unshare runs");
    assert!(
        output.status.success(),
        "this test mounts small disks in a namespace of its own, which the system refuses here; run it as root: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let told = |step: &str, part: &str| {
        std::fs::read_to_string(dir.path().join(format!("{step}.{part}"))).expect("every step was made")
    };
    for step in ["init", "reserve", "small", "gc", "again", "left", "cat", "pins"] {
        assert_eq!(told(step, "status"), "0\n", "{step}: {}", told(step, "stderr"));
    }
    for (step, parts) in [("full", ["disk", "space"]), ("out", ["tiny/got", "space"])] {
        assert_eq!(told(step, "status"), "1\n", "{step}: {}", told(step, "stderr"));
        has_all(&told(step, "stderr"), &parts);
    }
    assert_eq!(told("left", "stdout"), "", "the target's disk keeps half of a file");
    let small = std::fs::read(dir.path().join("small")).expect("the file");
    assert!(std::fs::read(dir.path().join("cat.stdout")).expect("the step was made") == small);
    assert_eq!(told("pins", "stdout").lines().count(), 1, "only what was acknowledged is pinned");
}
