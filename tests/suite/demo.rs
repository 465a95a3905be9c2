//! `btfs demo`: what it says must be true, for files of every kind of size.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use btfs_ledger::Btt;
use serde_json::Value;

use super::node::{random_file, sha256};
use super::peers;

const MIB: u64 = 1 << 20;
/// Days that hosts are paid for: one loses blocks, two are killed, the others stay well.
const PAID_DAYS: [u64; 6] = [5, 10, 10, 30, 30, 30];
/// Whole copies of what is too little to code.
const COPIES: usize = 4;

/// Runs the demo in a temporary folder of its own.
fn demo(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(peers::btfs())
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .output()
        .expect("btfs runs")
}

/// Runs the demo to its good end; the object of `--json`.
fn told(arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut with_json = arguments.to_vec();
    with_json.push("--json");
    let output = demo(folder.path(), &with_json);
    assert!(output.status.success(), "btfs demo: {}", String::from_utf8_lossy(&output.stderr));
    let left = std::fs::read_dir(folder.path()).expect("the folder").count();
    assert_eq!(left, 0, "the demo leaves nothing behind");
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn amount(value: &Value) -> Btt {
    value.as_str().expect("a decimal string").parse().expect("an amount of BTT")
}

/// Everything the object says that does not depend on the file.
fn holds(report: &Value) {
    assert_eq!(report["fetched_sha256"], report["file_sha256"]);
    assert_eq!(report["torrent_sha256"], report["file_sha256"]);
    assert_eq!(amount(&report["supply_before"]), "1000000".parse().expect("an amount"));
    assert_eq!(report["supply_after"], report["supply_before"]);
    assert!(report["cid"].as_str().is_some_and(|cid| cid.starts_with("baf")), "{report}");
    let infohash = report["infohash"].as_str().expect("an infohash");
    assert!(infohash.len() == 40 && infohash.bytes().all(|b| b.is_ascii_hexdigit()), "{infohash}");
    assert!(report["magnet"].as_str().is_some_and(|magnet| magnet.contains(infohash)), "{report}");
    assert!(report["seconds"].is_u64() && report["leaves_from_parity"].is_u64(), "{report}");
    hosts_hold(report);
}

/// Who was paid for which days, exactly, and that it adds up.
fn hosts_hold(report: &Value) {
    let hosts = report["hosts"].as_array().expect("hosts");
    let mut spent = Btt::ZERO;
    let mut paid_days = Vec::new();
    for host in hosts {
        assert!(host["peer"].as_str().is_some_and(|peer| peer.starts_with("16Uiu2")), "{host}");
        let proven = host["days_proven"].as_u64().expect("a count");
        let failed = host["days_failed"].as_u64().expect("a count");
        assert_eq!(proven + failed, 30, "every day is judged: {host}");
        let (earned, redeemed) = (amount(&host["earned_btt"]), amount(&host["redeemed_btt"]));
        let killed = proven == 10;
        // A killed host may have redeemed a part before; the rest waits in the lock.
        assert!(if killed { redeemed <= earned } else { redeemed == earned }, "{host}");
        assert!(earned > Btt::ZERO, "{host}");
        assert_eq!(earned.units() % u128::from(proven), 0, "a price a day for whole days: {host}");
        spent = spent.checked_add(earned).expect("a small amount");
        paid_days.push(proven);
    }
    assert_eq!(spent, amount(&report["renter_spent_btt"]));
    paid_days.sort_unstable();
    assert_eq!(paid_days, PAID_DAYS[..hosts.len()]);
}

/// The demo on a file of so many bytes.
fn with_file(size: u64) -> Value {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("file");
    random_file(&file, size, size);
    let report = told(&["--file", file.to_str().expect("UTF-8")]);
    assert_eq!(report["file_sha256"], sha256(&file).as_str());
    holds(&report);
    report
}

/// Of fewer shards than a stripe has data columns there is nothing to code: whole copies.
fn copied(report: &Value) {
    assert!(report["layout"].is_null(), "copies need no layout: {report}");
    assert_eq!(report["leaves_from_parity"], 0);
    assert_eq!(report["hosts"].as_array().map(Vec::len), Some(COPIES), "{report}");
}

/// Two data columns and four of parity; the host of the first is dead when the file is fetched.
fn coded(report: &Value) {
    assert!(report["layout"].as_str().is_some_and(|cid| cid.starts_with("baf")), "{report}");
    assert!(report["leaves_from_parity"].as_u64() > Some(0), "a data column is gone: {report}");
    assert_eq!(report["hosts"].as_array().map(Vec::len), Some(PAID_DAYS.len()), "{report}");
}

#[test]
fn the_file_that_the_demo_makes() {
    let report = told(&[]);
    holds(&report);
    coded(&report);
}

/// At once, since a demo mostly waits for hosts that it has killed.
#[test]
fn files_of_few_leaves_and_a_network_that_is_kept() {
    let sizes = [(1, copied as fn(&Value)), (MIB + 1, coded), (3 * MIB, coded), (20 * MIB, coded)];
    std::thread::scope(|scope| {
        for (size, spread) in sizes {
            scope.spawn(move || spread(&with_file(size)));
        }
        scope.spawn(a_network_is_kept);
    });
}

#[test]
fn an_empty_file_is_refused() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("empty");
    std::fs::write(&file, b"").expect("a file");
    let output = demo(folder.path(), &["--json", "--file", file.to_str().expect("UTF-8")]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("empty file has nothing to rent space for"), "{told}");
    assert!(output.stdout.is_empty(), "no success is printed");
}

/// The nodes below a folder that the demo left running. Those that still run are stopped when this is dropped.
struct Kept(Vec<PathBuf>);

impl Kept {
    fn below(folder: &Path) -> Kept {
        let demo = std::fs::read_dir(folder).expect("the folder").next().expect("the demo's folder");
        let entries = std::fs::read_dir(demo.expect("an entry").path()).expect("the demo's folder");
        let repos = entries.map(|entry| entry.expect("an entry").path());
        Kept(repos.filter(|path| path.join("config.toml").exists()).collect())
    }

    /// Stops those that run; how many did.
    fn stop(&mut self) -> usize {
        let running = self.0.drain(..).filter(|repo| btfs(repo, &["shutdown"]).status.success());
        running.count()
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.stop();
    }
}

fn btfs(repo: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(peers::btfs());
    command.args(arguments).env("BTFS_PATH", repo).stdin(Stdio::null()).output().expect("btfs runs")
}

fn a_network_is_kept() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let file = folder.path().join("file");
    random_file(&file, 10, 10);
    let place = folder.path().join("demo");
    std::fs::create_dir(&place).expect("a directory");
    let output = demo(&place, &["--keep", "--json", "--file", file.to_str().expect("UTF-8")]);
    let mut kept = Kept::below(&place);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let report = serde_json::from_slice(&output.stdout).expect("one JSON object");
    holds(&report);
    copied(&report);
    let exports: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("export BTFS_PATH=")).collect();
    assert_eq!(exports.len(), 2, "one for the renter, one for a host: {told}");
    for export in exports {
        let repo = Path::new(export.split_whitespace().next().expect("a path"));
        let stat = btfs(repo, &["repo", "stat", "--json"]);
        assert!(stat.status.success(), "{}", String::from_utf8_lossy(&stat.stderr));
        let stat: Value = serde_json::from_slice(&stat.stdout).expect("JSON");
        assert!(stat["blocks"].is_u64(), "{stat}");
    }
    assert_eq!(kept.stop(), 8, "ten nodes but the two that were killed");
}

#[test]
fn an_interrupted_demo_leaves_nothing_behind() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let mut child = Command::new(peers::btfs())
        .arg("demo")
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("btfs runs");
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut lines = stdout.lines().map(|line| line.expect("a line"));
    assert!(lines.any(|line| line.contains("8 nodes run")));
    let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a process id");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("our own child is there");
    lines.for_each(drop);
    let output = child.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("interrupted"), "{told}");
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0);
}
