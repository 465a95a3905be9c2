//! CAR files and IPLD values between our program and Kubo's own, both ways, byte by byte.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use btfs_tests::api::Api;
use btfs_tests::ipfs::Ipfs;
use btfs_tests::node::{Node, random_file, sha256};
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A tree of every shape: nested, empty, small, of several levels of blocks.
fn tree(at: &Path) {
    fs::create_dir_all(at.join("a/b/c")).expect("directories");
    fs::create_dir(at.join("none")).expect("a directory");
    fs::write(at.join("empty"), b"").expect("a file");
    fs::write(at.join("a/hello"), b"hello world").expect("a file");
    fs::write(at.join("a/b/again"), b"hello world").expect("a file");
    for number in 0..200 {
        fs::write(at.join(format!("a/b/c/{number}")), format!("number {number}")).expect("a file");
    }
    random_file(&at.join("large"), 5_300_000, 3);
}

fn same_tree(a: &Path, b: &Path) {
    let differences = Command::new("diff").arg("-r").arg(a).arg(b).output().expect("diff runs");
    assert!(differences.status.success(), "{}", String::from_utf8_lossy(&differences.stdout));
}

/// Runs a command with standard input; what it printed.
fn fed(mut command: Command, input: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the program runs");
    let mut pipe = child.stdin.take().expect("piped");
    pipe.write_all(input).expect("it reads");
    drop(pipe);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn trimmed(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text").trim().to_owned()
}

#[test]
fn kubo_imports_what_we_export() {
    let (node, ipfs) = (Node::init(None), Ipfs::init());
    let from = node.file("tree");
    tree(&from);
    for profile in ["unixfs-v1-2025", "unixfs-v0-2015"] {
        let added = node.json(&["add", "--profile", profile, text(&from)]);
        let root = added["cid"].as_str().expect("a CID");
        let car = node.run(&["dag", "export", root]).stdout;
        let path = ipfs.file(&format!("{profile}.car"));
        fs::write(&path, &car).expect("the CAR is written");
        let told = ipfs.text(&["dag", "import", "--stats", text(&path)]);
        assert!(told.contains(root) && told.contains("success"), "{told}");
        let got = ipfs.file(&format!("{profile} tree"));
        ipfs.run(&["get", "-o", text(&got), root]);
        same_tree(&from, &got);
        assert!(ipfs.run(&["dag", "export", "-p=false", root]).stdout == car, "Kubo writes other bytes");
    }
}

#[test]
fn we_import_what_kubo_exports() {
    let (node, ipfs) = (Node::init(None), Ipfs::init());
    let from = ipfs.file("tree");
    tree(&from);
    let mut cars = Vec::new();
    let mut roots = Vec::new();
    for (name, version) in [("v0", "--cid-version=0"), ("v1", "--cid-version=1")] {
        let root = ipfs.text(&["add", "-rQ", version, text(&from)]);
        let car = ipfs.run(&["dag", "export", "-p=false", &root]).stdout;
        let path = node.file(name);
        fs::write(&path, &car).expect("the CAR is written");
        cars.push((path, car));
        roots.push(root);
    }
    let files: Vec<&str> = cars.iter().map(|(path, _)| text(path)).collect();
    let told = node.json(&["dag", "import", files[0], files[1]]);
    for (at, root) in roots.iter().enumerate() {
        assert_eq!(told["roots"][at], json!({ "cid": root, "pinned": true }));
        let got = node.file(&format!("got {at}"));
        node.json(&["get", root, "--output", text(&got)]);
        same_tree(&from, &got);
        assert!(node.run(&["dag", "export", root]).stdout == cars[at].1, "we write other bytes");
    }
    let pins = node.json(&["pin", "ls"]);
    assert_eq!(pins["pins"].as_array().map(Vec::len), Some(2));
    // Kubo gives what an identity hash carries a section of its own; it is taken, and not stored.
    let inline = trimmed(fed(ipfs.command(&["block", "put", "--mhtype", "identity"]), b"inline"));
    let value = json!({ "inline": { "/": inline }, "tree": { "/": roots[1] } });
    let root = trimmed(fed(ipfs.command(&["dag", "put"]), value.to_string().as_bytes()));
    let car = ipfs.run(&["dag", "export", "-p=false", &root]).stdout;
    let told: Value =
        serde_json::from_slice(&fed(node.command(&["dag", "import", "--json"]), &car)).expect("JSON");
    assert_eq!(told["roots"], json!([{ "cid": root, "pinned": true }]));
    assert_eq!(
        node.run(&["dag", "get", &format!("{root}/tree/a/hello"), "--output-codec", "raw"]).stdout,
        b"hello world"
    );
    assert_eq!(node.run(&["block", "get", &inline]).stdout, b"inline");
}

#[test]
fn values_have_the_same_cids() {
    let (node, ipfs) = (Node::init(None), Ipfs::init());
    let link = json!({ "/": "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e" });
    let values = [
        (
            "dag-cbor",
            json!({ "zz": [1, -1, 1.5, null, true], "a": { "b": link }, "é": { "/": { "bytes": "AQID" } } }),
        ),
        ("dag-json", json!({ "b": "\u{1}\n\"\\ ü", "aa": [], "a": { "b": link } })),
        (
            "dag-pb",
            json!({ "Data": { "/": { "bytes": "CAE" } }, "Links": [
            { "Hash": link, "Name": "z", "Tsize": 11 }, { "Hash": link, "Name": "a", "Tsize": 11 } ] }),
        ),
        ("raw", json!({ "/": { "bytes": "aGVsbG8gd29ybGQ" } })),
        ("dag-cbor", json!(9_007_199_254_740_993_i64)),
    ];
    for (codec, value) in values {
        let input = value.to_string();
        let put = ["dag", "put", "--store-codec", codec];
        let theirs = trimmed(fed(ipfs.command(&put), input.as_bytes()));
        let ours = trimmed(fed(node.command(&put), input.as_bytes()));
        assert_eq!(ours, theirs, "{input} in {codec}");
        let same = |arguments: &[&str]| {
            let theirs = trimmed(ipfs.run(arguments).stdout);
            assert_eq!(trimmed(node.run(arguments).stdout), theirs, "{arguments:?}");
        };
        assert_eq!(node.run(&["block", "get", &ours]).stdout, ipfs.run(&["block", "get", &ours]).stdout);
        same(&["dag", "get", &ours]);
        // What comes out goes in again, through either codec.
        let block = node.run(&["block", "get", &ours]).stdout;
        let again = ["dag", "put", "--input-codec", codec, "--store-codec", codec];
        assert_eq!(trimmed(fed(node.command(&again), &block)), ours);
    }
    for (arguments, bytes) in [
        (&["block", "put", "--cid-codec", "dag-cbor"][..], &b"\xf6"[..]),
        (&["block", "put", "--format", "v0"], b"\x0a\0"),
        (&["block", "put", "--mhtype", "sha2-512"], b"x"),
    ] {
        assert_eq!(fed(node.command(arguments), bytes), fed(ipfs.command(arguments), bytes), "{arguments:?}");
    }
    assert!(
        node.fails(&["dag", "get", "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e/x"])
            .contains("no")
    );
}

#[test]
fn broken_cars_are_refused_and_pin_nothing() {
    let node = Node::init(None);
    let from = node.file("tree");
    tree(&from);
    let root = node.json(&["add", "--no-pin", text(&from)])["cid"].clone();
    let root = root.as_str().expect("a CID");
    let car = node.run(&["dag", "export", root]).stdout;
    let other = Node::init(None);
    let path = other.file("broken.car");
    let refused = |bytes: &[u8], words: &[&str]| {
        fs::write(&path, bytes).expect("the CAR is written");
        let told = other.fails(&["dag", "import", text(&path)]);
        for word in words {
            assert!(told.contains(word), "no {word:?} in {told}");
        }
        assert_eq!(other.json(&["pin", "ls"])["pins"], json!([]));
    };
    refused(&car[..car.len() - 7], &["cut off", "nothing was pinned"]);
    let mut flipped = car.clone();
    *flipped.last_mut().expect("not empty") ^= 1;
    refused(&flipped, &["do not hash to"]);
    refused(b"\x05hello", &["not a CAR"]);
    // Whole sections that are missing: everything is taken, and the root cannot be pinned.
    let kept = car.len() / 2;
    let first = node.run(&["block", "get", root]).stdout.len();
    assert!(first < kept);
    fs::write(&path, &car[..59 + 38 + first]).expect("the CAR is written");
    let told = other.fails(&["dag", "import", text(&path)]);
    assert!(told.contains(root) && told.contains("not in the store"), "{told}");
    fs::write(&path, &car).expect("the CAR is written");
    other.json(&["dag", "import", "--pin-roots=false", text(&path)]);
    assert_eq!(other.json(&["pin", "ls"])["pins"], json!([]));
    other.json(&["dag", "import", text(&path)]);
    let got = other.file("large");
    other.json(&["get", &format!("{root}/large"), "--output", text(&got)]);
    assert_eq!(sha256(&got), sha256(&from.join("large")));
}

/// The lines of a streamed answer.
fn lines(body: &[u8]) -> Vec<Value> {
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect()
}

#[test]
fn the_api_answers_as_kubo_does() {
    let ipfs = Ipfs::init();
    let from = ipfs.file("tree");
    tree(&from);
    let root = ipfs.text(&["add", "-rQ", "--cid-version=1", text(&from)]);
    let car = ipfs.run(&["dag", "export", "-p=false", &root]).stdout;
    let mut node = Node::init(None);
    node.start();
    let api = Api::of(&node);
    let imported = lines(&api.upload("/api/v0/dag/import?stats=true", vec![("tree.car", car.clone())]).body);
    assert_eq!(imported[0], json!({ "Root": { "Cid": { "/": root }, "PinErrorMsg": "" } }));
    assert!(imported[1]["Stats"]["BlockCount"].as_u64().is_some_and(|blocks| blocks > 200));
    let exported = api.post(&format!("/api/v0/dag/export?arg={root}"));
    assert_eq!(exported.header("content-type"), "application/vnd.ipld.car");
    assert!(exported.body == car);
    // Links.
    for (options, switches) in [
        ("", &[][..]),
        ("&recursive=true", &["-r"]),
        ("&recursive=true&unique=true", &["-r", "-u"]),
        ("&recursive=true&max-depth=2&edges=true", &["-r", "--max-depth=2", "-e"]),
        ("&format=%3Clinkname%3E+%3Cdst%3E", &["--format", "<linkname> <dst>"]),
    ] {
        let ours = lines(&api.post(&format!("/api/v0/refs?arg={root}{options}")).body);
        let ours: Vec<&str> = ours.iter().map(|line| line["Ref"].as_str().expect("a link")).collect();
        let mut arguments = vec!["refs"];
        arguments.extend(switches);
        arguments.push(&root);
        assert_eq!(ours.join("\n"), ipfs.text(&arguments), "{options}");
        let with_cli = trimmed(node.run(&arguments).stdout);
        assert_eq!(with_cli, ours.join("\n"));
    }
    let local = trimmed(node.run(&["refs", "local"]).stdout);
    let unique = ipfs.text(&["refs", "-r", "-u", &root]);
    // The root, and all below it but the empty block, which is not stored.
    assert_eq!(local.lines().count(), unique.lines().count());
    // Sizes and paths.
    let theirs: Value =
        serde_json::from_str(&ipfs.text(&["dag", "stat", "-p=false", "--enc=json", &root])).expect("JSON");
    assert_eq!(api.post(&format!("/api/v0/dag/stat?arg={root}")).json(), theirs);
    for path in ["", "/a/b", "/large", "/Data"] {
        let reference = format!("{root}{path}");
        let Ok(theirs) = serde_json::from_slice::<Value>(
            &ipfs.command(&["dag", "resolve", "--enc=json", &reference]).output().expect("ipfs runs").stdout,
        ) else {
            continue;
        };
        assert_eq!(api.post(&format!("/api/v0/dag/resolve?arg={reference}")).json(), theirs);
    }
    let put = api.upload("/api/v0/dag/put?pin=true", vec![("value", br#"{"a":[1,{"b":2}]}"#.to_vec())]);
    let value = put.json()["Cid"]["/"].as_str().expect("a CID").to_owned();
    assert_eq!(api.post(&format!("/api/v0/dag/get?arg={value}/a/1")).text(), r#"{"b":2}"#);
    assert_eq!(
        api.post(&format!("/api/v0/dag/resolve?arg={value}/a/1/b")).json(),
        json!({ "Cid": { "/": value }, "RemPath": "a/1/b" })
    );
    assert_eq!(api.post(&format!("/api/v0/dag/get?arg={value}/a/2")).status, 404);
    assert_eq!(api.post("/api/v0/dag/get").status, 400);
    let block =
        api.upload("/api/v0/block/put", vec![("one", b"hello world".to_vec()), ("two", b"x".to_vec())]);
    let block = lines(&block.body);
    assert_eq!(
        block[0],
        json!({ "Key": "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e", "Size": 11 })
    );
    assert_eq!(block.len(), 2);
    node.stop();
}
