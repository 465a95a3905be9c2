//! The HTTP side of a daemon, its clean end, and that the command line says the same with and without a daemon.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use btfs_tests::api::{Answer, Api};
use btfs_tests::node::{Node, random_file, sha256};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

/// A name that needs percent-encoding, and how it is written in a path.
const ODD_NAME: &str = "größe & 100% <ok>.txt";
const ODD_PATH: &str = "gr%C3%B6%C3%9Fe%20%26%20100%25%20%3Cok%3E.txt";
/// Of more than one leaf, so that ranges cross leaves.
const BIG: u64 = (5 << 20) + 17;

fn path_text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

/// A directory with a page, one without, odd names and a file of several leaves; its CID.
fn add_site(node: &Node) -> String {
    let site = node.file("site");
    std::fs::create_dir_all(site.join("page")).expect("directories");
    std::fs::create_dir_all(site.join("plain")).expect("directories");
    std::fs::write(site.join("page/index.html"), "<h1>hello</h1>").expect("a file");
    std::fs::write(site.join("plain").join(ODD_NAME), "odd").expect("a file");
    random_file(&site.join("big.bin"), BIG, 11);
    cid_of(&node.json(&["add", path_text(&site)]))
}

fn cid_of(answer: &Value) -> String {
    answer["cid"].as_str().expect("a CID").to_owned()
}

#[test]
fn gateway_files_and_ranges() {
    let mut node = Node::init(None);
    let root = add_site(&node);
    node.start();
    let gateway = Api::gateway(&node);
    let content = std::fs::read(node.file("site/big.bin")).expect("the file");
    let big = format!("/ipfs/{root}/big.bin");
    let whole = gateway.get(&big, &[]);
    assert_eq!(whole.status, 200);
    assert!(whole.body == content);
    assert_eq!(whole.header("accept-ranges"), "bytes");
    assert_eq!(whole.header("content-length"), BIG.to_string());
    assert!(whole.header("cache-control").contains("immutable"));
    assert_eq!(whole.header("x-ipfs-path"), big);
    let last = BIG - 1;
    for (range, from, to) in
        [("bytes=0-0", 0, 0), ("bytes=1048570-3145730", 1_048_570, 3_145_730), ("bytes=-7", BIG - 7, last)]
    {
        let part = gateway.get(&big, &[("range", range)]);
        assert_eq!(part.status, 206, "{range}");
        assert_eq!(part.header("content-range"), format!("bytes {from}-{to}/{BIG}"));
        assert_eq!(part.header("content-length"), (to - from + 1).to_string());
        assert!(part.body == content[from as usize..=to as usize], "{range}");
    }
    let beyond = gateway.get(&big, &[("range", &format!("bytes={BIG}-"))]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, format!("bytes */{BIG}").as_str()));
    let head = gateway.send(Method::HEAD, &big, &[], Vec::new());
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), BIG.to_string());
    let tag = whole.header("etag").to_owned();
    assert_eq!(head.header("etag"), tag);
    let same = gateway.get(&big, &[("if-none-match", &tag)]);
    assert_eq!((same.status, same.body.len()), (304, 0));
    assert_eq!(gateway.get(&big, &[("if-none-match", "\"other\"")]).status, 200);
    node.stop();
}

#[test]
fn gateway_directories_and_refusals() {
    let mut node = Node::init(None);
    let root = add_site(&node);
    node.start();
    let gateway = Api::gateway(&node);
    let odd = gateway.get(&format!("/ipfs/{root}/plain/{ODD_PATH}"), &[]);
    assert_eq!((odd.status, odd.text().as_str()), (200, "odd"));
    assert_eq!(odd.header("content-type"), "text/plain; charset=utf-8");
    let listing = gateway.get(&format!("/ipfs/{root}/plain/"), &[]);
    assert_eq!(listing.status, 200);
    assert!(listing.text().contains("größe &amp; 100% &lt;ok&gt;.txt"), "{}", listing.text());
    assert!(!listing.text().contains("<ok>"), "a name became markup: {}", listing.text());
    // The link in the listing leads to the file.
    let text = listing.text();
    let link = text.split("href=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a link");
    assert_eq!(gateway.get(&link.replace("&amp;", "&"), &[]).text(), "odd");
    let tag = listing.header("etag").to_owned();
    let again = gateway.get(&format!("/ipfs/{root}/plain/"), &[("if-none-match", &tag)]);
    assert_eq!(again.status, 304);
    // A page is shown below a slash, so that its relative links work.
    let moved = gateway.get(&format!("/ipfs/{root}/page"), &[]);
    assert!(matches!(moved.status, 301 | 308), "{}", moved.status);
    assert_eq!(moved.header("location"), format!("/ipfs/{root}/page/"));
    let page = gateway.get(&format!("/ipfs/{root}/page/"), &[]);
    assert_eq!((page.status, page.text().as_str()), (200, "<h1>hello</h1>"));
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    let raw = gateway.get(&format!("/ipfs/{root}?format=raw"), &[]);
    assert_eq!(raw.header("content-type"), "application/vnd.ipld.raw");
    assert_eq!(raw.body, node.run(&["block", "get", &root]).stdout);
    let accepted = gateway.get(&format!("/ipfs/{root}"), &[("accept", "application/vnd.ipld.raw")]);
    assert_eq!(accepted.body, raw.body);
    assert_eq!(gateway.get(&format!("/ipfs/{root}/nothing/here"), &[]).status, 404);
    assert_eq!(gateway.get(&format!("/ipfs/{root}/big.bin/below"), &[]).status, 404);
    assert_eq!(gateway.get("/ipfs/bafynonsense", &[]).status, 400);
    assert_eq!(gateway.send(Method::POST, &format!("/ipfs/{root}"), &[], Vec::new()).status, 405);
    node.stop();
}

#[test]
fn kubo_rpc() {
    let mut node = Node::init(None);
    let root = add_site(&node);
    node.start();
    let api = Api::of(&node);
    let content = std::fs::read(node.file("site/big.bin")).expect("the file");
    let added =
        api.upload("/api/v0/add?pin=true", vec![("one", b"first".to_vec()), ("two", content.clone())]);
    assert_eq!(added.status, 200, "{}", added.text());
    let lines: Vec<Value> =
        added.text().lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!([&lines[0]["Name"], &lines[1]["Name"]], ["one", "two"]);
    let listed = api.post(&format!("/api/v0/ls?arg={root}")).json();
    let links = listed["Objects"][0]["Links"].as_array().expect("links").clone();
    let big = links.iter().find(|link| link["Name"] == "big.bin").expect("an entry");
    assert_eq!(big["Hash"], lines[1]["Hash"], "the same bytes have the same CID");
    assert_eq!((&big["Size"], &big["Type"]), (&json!(BIG), &json!(2)));
    assert!(links.iter().any(|link| link["Name"] == "plain" && link["Type"] == 1));
    let cid = lines[1]["Hash"].as_str().expect("a CID");
    let part = api.post(&format!("/api/v0/cat?arg={cid}&offset=1048570&length=100"));
    assert!(part.body == content[1_048_570..1_048_670]);
    let whole = api.post(&format!("/api/v0/cat?arg=/ipfs/{root}/big.bin"));
    assert!(whole.body == content);
    assert!(api.post(&format!("/api/v0/cat?arg={cid}&offset={BIG}")).body.is_empty());
    let old = api.upload("/api/v0/add?cid-version=0&only-hash=true", vec![("one", b"hello world".to_vec())]);
    assert_eq!(old.json()["Hash"], "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD");
    let only = json!({ "path": node.file("site"), "torrent": true, "only_hash": true });
    assert_eq!(api.call("add", &only).status, 400);
    let odd = api.upload("/api/v0/add?chunker=size-0", vec![("one", b"x".to_vec())]);
    assert_eq!((odd.status, odd.text().contains("size-0")), (400, true), "{}", odd.text());
    let archive = api.post(&format!("/api/v0/get?arg={root}&archive=true"));
    assert!(archive.body.len() > BIG as usize && archive.body[257..262] == *b"ustar", "{}", archive.status);
    let patched =
        api.post(&format!("/api/v0/object/patch/add-link?arg={root}&arg=a/b&arg={cid}&create=true"));
    let patched = patched.json()["Hash"].as_str().expect("a CID").to_owned();
    assert!(api.post(&format!("/api/v0/cat?arg=/ipfs/{patched}/a/b")).body == content);
    let back = api.post(&format!("/api/v0/object/patch/rm-link?arg={patched}&arg=a"));
    assert_eq!(back.json()["Hash"], root.as_str());
    let kind = || api.post("/api/v0/pin/ls").json()["Keys"][cid]["Type"].clone();
    assert_eq!(kind(), "recursive");
    assert_eq!(api.post(&format!("/api/v0/pin/rm?arg={cid}")).json()["Pins"], json!([cid]));
    assert_eq!(kind(), "indirect", "the site keeps it");
    assert_eq!(api.post(&format!("/api/v0/pin/rm?arg={cid}")).status, 404);
    assert_eq!(api.post(&format!("/api/v0/pin/add?arg={cid}")).json()["Pins"], json!([cid]));
    let block = api.post(&format!("/api/v0/block/get?arg={root}"));
    let stat = api.post(&format!("/api/v0/block/stat?arg={root}")).json();
    assert_eq!((&stat["Key"], &stat["Size"]), (&json!(root), &json!(block.body.len())));
    let id = api.post("/api/v0/id").json();
    assert_eq!(id["ID"], node.peer());
    assert!(id["Addresses"].as_array().is_some_and(|addresses| !addresses.is_empty()));
    let version = api.post("/api/v0/version").json()["Version"].as_str().map(str::to_owned);
    assert!(version.is_some_and(|version| !version.is_empty()));
    assert!(api.post("/api/v0/repo/stat").json()["NumObjects"].as_u64().is_some_and(|blocks| blocks > 5));
    assert_eq!(api.post("/api/v0/swarm/peers").json()["Peers"], json!([]));
    // As Kubo: calls are POST; what fails says so in Kubo's shape.
    assert_eq!(api.get("/api/v0/id", &[]).status, 405);
    let wrong = api.post("/api/v0/block/get?arg=nonsense");
    assert_eq!((wrong.status, &wrong.json()["Type"]), (400, &json!("error")));
    assert!(wrong.json()["Message"].as_str().is_some_and(|text| text.contains("nonsense")));
    node.stop();
}

#[test]
fn own_calls_tell_progress() {
    let mut node = Node::init(None);
    node.start();
    let api = Api::of(&node);
    let file = node.file("file");
    random_file(&file, 32 << 20, 12);
    let request = json!({ "path": file });
    let streamed = api.call_with("add", &request, &[("accept", "application/x-ndjson")]);
    assert_eq!(streamed.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> =
        streamed.text().lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let (last, steps) = lines.split_last().expect("lines");
    assert!(!steps.is_empty(), "no progress was told of 32 MiB");
    let mut before = 0;
    for step in steps {
        assert_eq!(
            (&step["progress"]["what"], &step["progress"]["total"]),
            (&json!("adding"), &json!(32 << 20))
        );
        let done = step["progress"]["done"].as_u64().expect("bytes");
        assert!(done >= before, "progress goes back");
        before = done;
    }
    // One answer in either form.
    let plain = api.call("add", &request);
    let mut expected = last["result"].clone();
    assert_eq!((&expected["new_blocks"], &expected["blocks"]), (&json!(33), &json!(33)));
    // Now all of it is here.
    (expected["new_blocks"], expected["new_bytes"]) = (json!(0), json!(0));
    assert_eq!((plain.status, &plain.json()), (200, &expected));
    let failed =
        api.call_with("add", &json!({ "path": "/no/such/file" }), &[("accept", "application/x-ndjson")]);
    let told: Value = serde_json::from_slice(&failed.body).expect("one line");
    assert!(told["error"].as_str().is_some_and(|text| text.contains("/no/such/file")), "{told}");
    node.stop();
}

/// Checks one sample line of the text format: `name{label="value",...} number`.
fn check_sample(line: &str) {
    let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
    value.parse::<f64>().unwrap_or_else(|error| panic!("{error} in {line:?}"));
    let (name, labels) = series.split_once('{').map_or((series, None), |(name, rest)| (name, Some(rest)));
    let fits = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    assert!(name.starts_with("btfs_") && fits(name), "{line:?}");
    let Some(labels) = labels else { return };
    for label in labels.strip_suffix('}').expect("a closing brace").split(',') {
        let (key, value) = label.split_once('=').expect("a label");
        assert!(fits(key) && value.len() >= 2 && value.starts_with('"') && value.ends_with('"'), "{line:?}");
    }
}

#[test]
fn metrics_can_be_scraped() {
    let mut node = Node::init(None);
    add_site(&node);
    node.start();
    let metrics = Api::of(&node).get("/metrics", &[]);
    assert_eq!(metrics.status, 200);
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    let text = metrics.text();
    let (samples, comments): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| !line.starts_with('#'));
    samples.iter().for_each(|line| check_sample(line));
    assert_eq!(comments.last(), Some(&"# EOF"));
    for name in ["btfs_store_blocks ", "btfs_store_live_bytes{", "btfs_swarm_peers 0", "btfs_torrents 0"] {
        assert!(samples.iter().any(|line| line.starts_with(name)), "no {name} in {text}");
    }
    node.stop();
}

/// What the read commands say of a repo that holds the site.
fn answers(node: &Node, root: &str) -> Vec<Value> {
    let big = format!("/ipfs/{root}/big.bin");
    let mut stat = node.json(&["repo", "stat"]);
    // The disk is not the node's alone, and its files change shape when it opens them.
    for moving in [
        "disk_bytes",
        "overhead_bytes",
        "free_bytes",
        "hot_bytes",
        "hot_capacity_bytes",
        "hot_hits",
        "hot_misses",
        "scrubbed_blocks",
        "scrubbed_bytes",
    ] {
        assert!(stat[moving].take().as_u64().is_some(), "{moving} is told");
    }
    // A daemon reads all there is in its first moment, or has not yet.
    stat["last_scrub_ended"].take();
    let cat = node.run(&["cat", &big, "--offset", "1048570", "--length", "100"]);
    assert!(cat.status.success());
    vec![
        node.json(&["ls", root]),
        node.json(&["ls", &format!("/ipfs/{root}/plain")]),
        node.json(&["pin", "ls"]),
        node.json(&["block", "stat", root]),
        stat,
        json!(cat.stdout),
        json!(node.run(&["block", "get", root]).stdout),
        node.json(&["add", "--only-hash", path_text(&node.file("site/big.bin"))]),
        json!(node.fails(&["ls", &format!("/ipfs/{root}/nothing")])),
    ]
}

#[test]
fn offline_and_online_say_the_same() {
    let mut node = Node::init(None);
    let root = add_site(&node);
    let offline = answers(&node, &root);
    let first = node.file("first");
    node.json(&["get", &root, "--output", path_text(&first)]);
    node.start();
    assert_eq!(answers(&node, &root), offline);
    let second = node.file("second");
    node.json(&["get", &root, "--output", path_text(&second)]);
    for name in ["big.bin", "page/index.html"] {
        assert_eq!(sha256(&first.join(name)), sha256(&second.join(name)));
        assert_eq!(sha256(&first.join(name)), sha256(&node.file("site").join(name)));
    }
    // Added and pinned with a daemon, it is there without one; let go without, it is gone with one.
    std::fs::write(node.file("late"), "late").expect("a file");
    let late = cid_of(&node.json(&["add", path_text(&node.file("late"))]));
    node.stop();
    assert_eq!(node.run(&["cat", &late]).stdout, b"late");
    node.json(&["pin", "rm", &late]);
    node.json(&["repo", "gc"]);
    node.start();
    let pins = node.json(&["pin", "ls"]);
    assert!(pins["pins"].as_array().expect("pins").iter().all(|pin| pin["cid"] != late.as_str()));
    assert_eq!(answers(&node, &root), offline);
    node.stop();
}

#[test]
fn signals_end_it_well_and_a_restart_keeps_everything() {
    let mut node = Node::init(None);
    let root = add_site(&node);
    let (token, peer) =
        (std::fs::read(node.repo().join("api-token")).expect("the token"), node.json(&["id"]));
    let before = answers(&node, &root);
    for signal in [Signal::INT, Signal::TERM] {
        node.start();
        assert_eq!(answers(&node, &root), before);
        // An open connection to the API does not keep it alive.
        let api = Api::of(&node);
        assert_eq!(api.get("/api/v1/ready", &[]).status, 401, "even this wants the token");
        node.stop_by(signal);
        assert!(!node.repo().join("api").exists(), "the address of a daemon that is gone");
    }
    assert_eq!(answers(&node, &root), before);
    assert_eq!(node.json(&["id"]), peer);
    assert_eq!(std::fs::read(node.repo().join("api-token")).expect("the token"), token);
}

#[test]
fn only_who_may_calls() {
    let mut node = Node::init(None);
    node.start();
    let api = Api::of(&node);
    let call = |headers: &[(&str, &str)], path: &str| {
        let answer = api.send(Method::POST, path, headers, b"{}".to_vec());
        let told = answer.json()["Message"].as_str().unwrap_or_default().to_owned();
        (answer.status, told)
    };
    for path in
        ["/api/v1/shutdown", "/api/v1/wallet/send", "/api/v0/shutdown", "/api/v1/config", "/api/v1/add"]
    {
        let (status, told) = call(&[], path);
        assert!(status == 401 && told.contains("api-token"), "{path}: {status} {told}");
        assert_eq!(call(&[("authorization", "Bearer 0000")], path).0, 401);
    }
    let (status, told) = call(&[("host", "evil.example:5101")], "/api/v0/id");
    assert!(status == 403 && told.contains("Host"), "{status} {told}");
    let (status, told) = call(&[("origin", "http://evil.example")], "/api/v0/id");
    assert!(status == 403 && told.contains("origin"), "{status} {told}");
    // A page cannot use the token's lack of a preflight either: the origin is refused first.
    let token = std::fs::read_to_string(node.repo().join("api-token")).expect("the token");
    let bearer = format!("Bearer {}", token.trim());
    let page = [("authorization", bearer.as_str()), ("origin", "http://evil.example")];
    assert_eq!(call(&page, "/api/v1/shutdown").0, 403);
    // It is all still there.
    assert_eq!(api.post("/api/v0/id").status, 200);
    assert_eq!(api.post("/api/v0/id").json()["ID"], node.peer());
    let mode = std::fs::metadata(node.repo().join("api-token")).expect("the token").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    node.stop();
}

/// A form whose parts have these heads and contents.
fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (head, content) in parts {
        body.extend_from_slice(
            format!("--frontier\r\nContent-Disposition: form-data; {head}\r\n\r\n").as_bytes(),
        );
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--frontier--\r\n");
    body
}

/// What no client of Kubo sends, but others do.
#[test]
fn odd_uploads() {
    let mut node = Node::init(None);
    node.start();
    let api = Api::of(&node);
    let add = |query: &str, parts: &[(&str, &[u8])]| {
        let kind = [("content-type", "multipart/form-data; boundary=frontier")];
        api.send(Method::POST, &format!("/api/v0/add?{query}"), &kind, form(parts))
    };
    let told = |answer: &Answer| {
        let line = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            (
                line["Name"].as_str().expect("a name").to_owned(),
                line["Hash"].as_str().unwrap_or_default().to_owned(),
            )
        };
        answer.text().lines().map(line).collect::<Vec<_>>()
    };
    let directory = "Content-Type: application/x-directory";
    let in_order = add(
        "",
        &[
            (&format!("name=\"dir\"; filename=\"d\"\r\n{directory}"), b""),
            ("name=\"file\"; filename=\"d%2Fa\"", b"1"),
            ("name=\"file\"; filename=\"d%2Fb\"", b"2"),
            ("name=\"file\"; filename=\"f\"", b"3"),
        ],
    );
    assert_eq!(
        told(&in_order).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["d/a", "d/b", "d", "f"]
    );
    let scattered = add(
        "",
        &[
            ("name=\"file\"; filename=\"d%2Fb\"", b"2"),
            ("name=\"file\"; filename=\"f\"", b"3"),
            ("name=\"file\"; filename=\"/d/./a\"", b"1"),
            (&format!("name=\"dir\"; filename=\"d\"\r\n{directory}"), b""),
        ],
    );
    assert_eq!(
        told(&scattered)[2],
        told(&in_order)[2],
        "a directory is its entries, in whatever order they come"
    );
    let recorded = add(
        "preserve-mode=true&preserve-mtime=true",
        &[("name=\"file?mode=0640&mtime=-5&mtime-nsecs=7\"; filename=\"x\"", b"content")],
    );
    let file = node.file("x");
    std::fs::write(&file, b"content").expect("a file");
    let given =
        ["add", "--mode", "0640", "--mtime", "-5", "--mtime-nsecs", "7", file.to_str().expect("UTF-8")];
    assert_eq!(told(&recorded)[0].1, node.json(&given)["cid"]);
    let wrapped = add(
        "wrap-with-directory=true",
        &[
            ("name=\"f\"; filename=\"a%20b\"", b"1"),
            ("name=\"f\"; filename=\"x%2Fy\"", b"2"),
            ("name=\"f\"; filename=\"z\"", b"3"),
        ],
    );
    let wrapped = told(&wrapped);
    assert_eq!(
        wrapped.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["a b", "x/y", "z", "x", ""]
    );
    assert_eq!(api.post(&format!("/api/v0/cat?arg=/ipfs/{}/x/y", wrapped[4].1)).body, b"2");
    let unnamed = told(&add("", &[("name=\"file\"", b"content")]));
    assert_eq!(unnamed[0].0, unnamed[0].1, "a file without a name goes by its CID");

    let before = node.json(&["pin", "ls"]);
    for (query, parts, problem) in [
        ("", &[][..], "no file part"),
        ("", &[("name=\"f\"; filename=\"..%2Fx\"", &b"1"[..])], "leads out"),
        ("", &[("name=\"f\"; filename=\"%ff\"", b"1")], "UTF-8"),
        ("", &[("name=\"f\"; filename=\"x\"", b"1"), ("name=\"f\"; filename=\"x\"", b"2")], "already"),
        (
            "",
            &[("name=\"f\"; filename=\"x\"", b"1"), ("name=\"f\"; filename=\"x/y\"", b"2")],
            "through a file",
        ),
        ("", &[("name=\"f?mtime=soon\"; filename=\"x\"", b"1")], "mtime=soon"),
        ("mode=rw", &[("name=\"f\"; filename=\"x\"", b"1")], "mode=rw"),
        ("nocopy", &[("name=\"f\"; filename=\"x\"", b"1")], "no file"),
    ] {
        let answer = add(query, parts);
        assert_eq!((answer.status, answer.text().contains(problem)), (400, true), "{}", answer.text());
    }
    assert_eq!(node.json(&["pin", "ls"]), before, "what fails leaves nothing pinned");
    node.stop();
}

/// An answer that has begun cannot take its status back: it ends with the error, and without an end.
#[test]
fn an_upload_that_fails_late_breaks_off() {
    let mut node = Node::init(None);
    node.start();
    let address = node.ready()["api"].as_str().expect("the API").trim_start_matches("http://").to_owned();
    let big = vec![7; 3 << 20];
    let ask = |last: &str| {
        let body = form(&[
            ("name=\"f\"; filename=\"big\"", &big),
            (&format!("name=\"f\"; filename=\"{last}\""), b"1"),
        ]);
        let mut stream = TcpStream::connect(&address).expect("it listens");
        let head = format!(
            "POST /api/v0/add?progress=true HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n\
             Content-Type: multipart/form-data; boundary=frontier\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat()).expect("it reads");
        let mut answer = Vec::new();
        // Broken off, it may be reset.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).expect("text")
    };
    let good = ask("small");
    assert!(
        good.contains(r#""Bytes":"#) && good.contains(r#""Hash":"#) && good.ends_with("0\r\n\r\n"),
        "{good}"
    );
    let bad = ask("big");
    assert!(bad.contains("200 OK") && bad.contains("already an entry"), "{bad}");
    assert!(!bad.contains(r#""Hash":"#) && !bad.ends_with("0\r\n\r\n"), "{bad}");
    node.stop();
}

#[test]
fn the_gateway_says_what_content_is() {
    let mut node = Node::init(None);
    node.start();
    let gateway = Api::gateway(&node);
    for (name, content, media) in [
        ("picture", &b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], "image/png"),
        ("note", "größe".as_bytes(), "text/plain; charset=utf-8"),
        ("data", b"\0\x01\x02", "application/octet-stream"),
    ] {
        let file = node.file(name);
        std::fs::write(&file, content).expect("a file");
        let added = node.json(&["add", path_text(&file)]);
        let path = format!("/ipfs/{}", added["cid"].as_str().expect("a CID"));
        for range in [&[][..], &[("range", "bytes=1-2")]] {
            let answer = gateway.get(&path, range);
            assert_eq!(answer.header("content-type"), media, "{name}");
            assert_eq!(answer.body, if range.is_empty() { content } else { &content[1..3] });
        }
        assert_eq!(gateway.send(Method::HEAD, &path, &[], Vec::new()).header("content-type"), media);
    }
    node.stop();
}

#[test]
fn blocks_in_files_are_told_as_kubo_tells_them() {
    let mut node = Node::init(None);
    node.json(&["config", "set", "fetch.timeout_secs", "1"]);
    node.start();
    let (api, gateway) = (Api::of(&node), Api::gateway(&node));
    let file = node.file("library");
    random_file(&file, (1 << 20) + 9, 61);
    let added = node.json(&["add", "--nocopy", path_text(&file)]);
    let root = added["cid"].as_str().expect("a CID");
    let told = |path: &str| {
        let answer = api.post(&format!("/api/v0/filestore/{path}"));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let line = |line: &str| serde_json::from_str(line).expect("a line of JSON");
        answer.text().lines().map(line).collect::<Vec<Value>>()
    };
    let all = told("ls");
    let mut sizes: Vec<_> = all.iter().map(|line| (line["Offset"].as_u64(), line["Size"].as_u64())).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [(Some(0), Some(1 << 20)), (Some(1 << 20), Some(9))]);
    assert!(all.iter().all(|line| line["Status"] == 0 && line["FilePath"] == path_text(&file)), "{all:?}");
    assert_eq!(told("verify"), all);
    let one = all[0]["Key"]["/"].as_str().expect("a CID");
    assert_eq!(told(&format!("ls?arg={one}")), all[..1]);
    assert_eq!(told(&format!("ls?arg={root}"))[0]["Status"], 30, "the root is copied");
    std::fs::write(&file, "something else").expect("a file");
    assert!(told("verify").iter().all(|line| line["Status"] == 12));
    std::fs::remove_file(&file).expect("it goes");
    assert!(told("verify").iter().all(|line| line["Status"] == 11 && line["ErrorMsg"] != ""));
    // Strangers on the web are not told where the user has files.
    let answer = gateway.get(&format!("/ipfs/{root}?format=raw"), &[]);
    assert_eq!(answer.status, 200);
    let answer = gateway.get(&format!("/ipfs/{one}?format=raw"), &[]);
    assert_eq!((answer.status, answer.text().contains("library")), (500, false), "{}", answer.text());
    node.stop();
}
