//! Seeding to libtorrent and leeching from it, beside libtorrent in the same part towards another libtorrent.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::report::{Bound, Line, Report};
use super::{MIB, Source, process};
use crate::node::Node;
use crate::peers;

/// Piece length of libtorrent's torrents: that of ours, so that both hash and request alike.
const PIECE: u64 = MIB;

/// A torrent that is not there by then hangs.
const LONGEST: Duration = Duration::from_secs(600);

/// How often our daemon is asked whether it has the file: the error of the rate, well below what is measured.
const ASK: Duration = Duration::from_millis(50);

pub(super) fn run(source: &Source, report: &mut Report) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let torrent = dir.path().join("source.torrent");
    let made = one_answer(libtorrent(&["make", source.path(), text(&torrent), &PIECE.to_string()]));
    let infohash = made["infohash"].as_str().expect("an infohash");
    let folder = source.path.parent().expect("a folder");
    let seeder = Seeder::start(&torrent, folder);

    let yardstick = from_libtorrent_to_libtorrent(source, &torrent, &seeder, dir.path());
    let cid = leech(source, report, &torrent, infohash, &seeder, &yardstick);
    drop(seeder);
    seed(source, report, &cid, &yardstick, dir.path());
}

/// What libtorrent needed, both ways: CPU seconds and the seconds of the download.
struct Yardstick {
    seeding: f64,
    leeching: f64,
    seconds: f64,
}

fn from_libtorrent_to_libtorrent(source: &Source, torrent: &Path, seeder: &Seeder, dir: &Path) -> Yardstick {
    let before = process::cpu(seeder.child.id());
    let got = download(source, text(torrent), &seeder.address, dir);
    Yardstick {
        seeding: process::cpu(seeder.child.id()) - before,
        leeching: number(&got, "cpu"),
        seconds: number(&got, "seconds"),
    }
}

/// Our node downloads from libtorrent; the CID of what came.
fn leech(
    source: &Source,
    report: &mut Report,
    torrent: &Path,
    infohash: &str,
    seeder: &Seeder,
    yardstick: &Yardstick,
) -> String {
    let mut node = Node::init(None);
    node.start();
    let before = process::cpu(node.pid());
    let begun = Instant::now();
    node.json(&["torrent", "add", text(torrent), "--peer", &seeder.address]);
    let done = until_seeding(&node, infohash);
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = process::cpu(node.pid()) - before;
    report.line(Line {
        name: "leech from libtorrent, CPU",
        value: cpu / source.gib(),
        unit: "s/GiB",
        yardstick: Some((yardstick.leeching / source.gib(), "libtorrent")),
        bound: Bound::RatioAtMost(2.0),
    });
    report.line(Line {
        name: "leech from libtorrent, rate",
        value: source.mib() / seconds,
        unit: "MiB/s",
        yardstick: Some((source.mib() / yardstick.seconds, "libtorrent")),
        bound: Bound::None,
    });
    report.memory("leech from libtorrent, peak memory", node.peak_memory());
    done["cid"].as_str().expect("the CID of what came").to_owned()
}

/// libtorrent downloads from our node by magnet link.
fn seed(source: &Source, report: &mut Report, cid: &str, yardstick: &Yardstick, dir: &Path) {
    let mut node = Node::init(None);
    let added = node.json(&["add", source.path(), "--torrent"]);
    assert_eq!(
        added["cid"].as_str(),
        Some(cid),
        "what came by BitTorrent has another CID than the added file"
    );
    let magnet = added["magnet"].as_str().expect("a magnet link");
    node.start();
    until_seeding(&node, added["infohash"].as_str().expect("an infohash"));
    let before = process::cpu(node.pid());
    let got = download(source, magnet, &node.bittorrent(), dir);
    let cpu = process::cpu(node.pid()) - before;
    report.line(Line {
        name: "seed to libtorrent, CPU",
        value: cpu / source.gib(),
        unit: "s/GiB",
        yardstick: Some((yardstick.seeding / source.gib(), "libtorrent")),
        bound: Bound::AtMost(1.5),
    });
    report.line(Line {
        name: "seed to libtorrent, rate",
        value: source.mib() / number(&got, "seconds"),
        unit: "MiB/s",
        yardstick: Some((source.mib() / yardstick.seconds, "libtorrent")),
        bound: Bound::None,
    });
    report.memory("seed to libtorrent, peak memory", node.peak_memory());
}

/// Waits until a torrent of our node is complete; its status.
fn until_seeding(node: &Node, infohash: &str) -> Value {
    let begun = Instant::now();
    loop {
        let list = node.json(&["torrent", "status", infohash]);
        let torrent = &list["torrents"][0];
        match torrent["state"].as_str() {
            Some("seeding") => return torrent.clone(),
            Some("failed") => panic!("our torrent failed: {torrent}"),
            _ => assert!(begun.elapsed() < LONGEST, "not complete after {LONGEST:?}: {torrent}"),
        }
        std::thread::sleep(ASK);
    }
}

/// libtorrent downloads the source from one peer; its answer. The copy is compared and deleted.
fn download(source: &Source, reference: &str, peer: &str, dir: &Path) -> Value {
    let folder = dir.join("downloaded");
    let answer = one_answer(libtorrent(&["get", reference, text(&folder), peer]));
    source.must_equal(&folder.join(source.path.file_name().expect("a file")));
    std::fs::remove_dir_all(&folder).expect("the copy is deleted");
    answer
}

/// A libtorrent that seeds until this is dropped.
struct Seeder {
    child: Child,
    address: String,
}

impl Seeder {
    fn start(torrent: &Path, folder: &Path) -> Seeder {
        let mut command = libtorrent(&["seed", text(torrent), text(folder)]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3 runs");
        let mut line = String::new();
        let mut answers = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let mut seeder = Seeder { child, address: String::new() };
        answers.read_line(&mut line).expect("stdout is read");
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"));
        let address = told["address"].as_str().unwrap_or_else(|| panic!("libtorrent does not seed: {told}"));
        seeder.address = address.to_owned();
        seeder
    }
}

impl Drop for Seeder {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `tests/peers/torrents.py ARGUMENTS`, not yet run.
fn libtorrent(arguments: &[&str]) -> Command {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers/torrents.py");
    let mut command = Command::new("python3");
    command.arg(script).args(arguments).env("PYTHONPATH", peers::peer("libtorrent")).stderr(Stdio::null());
    command
}

/// Runs it to its end; the one line it prints.
fn one_answer(mut command: Command) -> Value {
    let output = command.output().expect("python3 runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {told}");
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{command:?} said {told:?}: {error}"))
}

fn number(answer: &Value, name: &str) -> f64 {
    answer[name].as_f64().unwrap_or_else(|| panic!("no {name} in {answer}"))
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary directory has a plain name")
}
