//! Kills in the middle of adding, one large file or many small ones: every CID that was given out reads back whole.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use btfs_tests::node::{Node, random_file, sha256};
use btfs_tests::peers;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use super::world::text;

/// Kills of each kind.
const ROUNDS: usize = 4;
/// Well above what is acknowledged by the log alone.
const LARGE: u64 = 64 << 20;
/// Largest of the small ones: acknowledged by the log alone.
const SMALL: u64 = 300_000;
/// Who add small files at once.
const ADDERS: usize = 3;
/// Small files are added for at most so long before the kill.
const ADDING: Duration = Duration::from_secs(1);

/// A file whose CID was given out.
struct Acknowledged {
    cid: String,
    sha256: String,
}

/// `btfs add` on a repo; the CID if it was given out.
fn add(repo: &Path, file: &Path) -> Option<String> {
    add_with(repo, &[], file)
}

/// The same with options.
fn add_with(repo: &Path, options: &[&str], file: &Path) -> Option<String> {
    let output = Command::new(peers::btfs())
        .args(["add", "--json"])
        .args(options)
        .arg(file)
        .env("BTFS_PATH", repo)
        .stdin(Stdio::null())
        .output()
        .expect("btfs runs");
    if !output.status.success() {
        assert!(!output.stderr.is_empty(), "`add` failed without a word");
        return None;
    }
    let added: Value = serde_json::from_slice(&output.stdout).expect("an answer");
    Some(text(&added, "cid").to_owned())
}

/// All that was acknowledged is there, pinned and whole, also after the collector has run.
fn check(node: &Node, all: &[Acknowledged]) {
    node.json(&["repo", "gc"]);
    let pins = node.json(&["pin", "ls"]).to_string();
    let target = node.file("read-back");
    for file in all {
        assert!(pins.contains(&file.cid), "the pin of {} is gone", file.cid);
        node.json(&["get", &file.cid, "--output", &target.display().to_string()]);
        assert_eq!(sha256(&target), file.sha256, "{}", file.cid);
        std::fs::remove_file(&target).expect("the file is there");
    }
    let stat = node.json(&["repo", "stat"]);
    assert_eq!(stat["quarantined_blocks"], 0, "{stat}");
}

/// Adds small files until told to stop or until the node is gone.
fn add_small(repo: &Path, dir: PathBuf, seed: u64, stop: &AtomicBool) -> Vec<Acknowledged> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let file = dir.join(format!("small-{seed}"));
    let mut acknowledged = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        random_file(&file, rng.random_range(1..SMALL), rng.random());
        let Some(cid) = add(repo, &file) else { break };
        acknowledged.push(Acknowledged { cid, sha256: sha256(&file) });
    }
    acknowledged
}

#[test]
fn small_files_that_were_acknowledged_survive_a_kill() {
    let mut rng = SmallRng::seed_from_u64(super::seed());
    let mut node = Node::init(None);
    let mut all = Vec::new();
    for round in 1..=ROUNDS {
        node.start();
        let (repo, dir) = (node.repo(), node.file(""));
        let (seeds, moment) = (rng.random::<u64>(), ADDING.mul_f64(rng.random()));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let (repo, stop) = (&repo, &stop);
            let start = |n: usize| {
                let dir = dir.clone();
                scope.spawn(move || add_small(repo, dir, seeds.wrapping_add(n as u64), stop))
            };
            let adders: Vec<_> = (0..ADDERS).map(start).collect();
            std::thread::sleep(moment);
            node.kill();
            stop.store(true, Ordering::Relaxed);
            adders.into_iter().for_each(|adder| all.extend(adder.join().expect("an adder")));
        });
        println!("kill {round}: after {moment:?} with {} small files acknowledged so far", all.len());
        node.start();
        check(&node, &all);
        node.stop();
    }
    assert!(!all.is_empty(), "nothing was acknowledged in any round");
}

/// Starts to add a file and kills who does it, by turns the command itself and the daemon, within the time that it takes;
/// what was acknowledged nevertheless.
fn killed_add(
    node: &mut Node,
    rng: &mut SmallRng,
    round: usize,
    options: &[&str],
    file: &Path,
    takes: Duration,
) -> Option<Acknowledged> {
    let by_daemon = round.is_multiple_of(2);
    if by_daemon {
        node.start();
    }
    let path = file.display().to_string();
    let mut child = node
        .command(&[&["add", "--json"], options, &[&path]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("btfs runs");
    let moment = takes.mul_f64(rng.random());
    std::thread::sleep(moment);
    match by_daemon {
        true => node.kill(),
        // Already gone is fine.
        false => child.kill().unwrap_or_default(),
    }
    let output = child.wait_with_output().expect("our own child");
    let added = output.status.success();
    println!("kill {round}: after {moment:?}; acknowledged: {added}");
    added.then(|| {
        let added: Value = serde_json::from_slice(&output.stdout).expect("an answer");
        Acknowledged { cid: text(&added, "cid").to_owned(), sha256: sha256(file) }
    })
}

/// The file, if it was added although nobody heard so.
fn unheard(node: &Node, all: &[Acknowledged], file: &Path) -> Option<Acknowledged> {
    let pins = node.json(&["pin", "ls"]);
    let pinned = pins["pins"].as_array().expect("pins").iter().map(|pin| text(pin, "cid"));
    let mut unheard = pinned.filter(|cid| all.iter().all(|known| known.cid != *cid));
    let found = unheard.next().map(|cid| Acknowledged { cid: cid.to_owned(), sha256: sha256(file) });
    assert!(unheard.next().is_none(), "one file is added at a time: {pins}");
    found
}

#[test]
fn what_stays_in_its_file_is_whole_or_not_acknowledged() {
    let mut rng = SmallRng::seed_from_u64(super::seed());
    let mut node = Node::init(None);
    let (mut all, mut takes) = (Vec::new(), Duration::ZERO);
    for round in 0..=ROUNDS {
        let file = node.file(&format!("library-{round}"));
        random_file(&file, LARGE, rng.random());
        if round == 0 {
            let began = Instant::now();
            let cid = add_with(&node.repo(), &["--nocopy"], &file).expect("undisturbed, it is added");
            takes = began.elapsed();
            all.push(Acknowledged { cid, sha256: sha256(&file) });
        } else {
            all.extend(killed_add(&mut node, &mut rng, round, &["--nocopy"], &file, takes));
        }
        node.start();
        // What was done before its answer could be heard is all there, as its pin says.
        all.extend(unheard(&node, &all, &file));
        check(&node, &all);
        // Of what was not done nothing is left.
        let leaves = LARGE / (1 << 20) * all.len() as u64;
        assert_eq!(node.json(&["filestore", "ls"])["count"], leaves);
        node.json(&["filestore", "verify"]);
        node.stop();
    }
}

#[test]
fn a_large_file_is_whole_or_not_acknowledged() {
    let mut rng = SmallRng::seed_from_u64(super::seed());
    let mut node = Node::init(None);
    let file = node.file("large");
    random_file(&file, LARGE, rng.random());
    let began = Instant::now();
    let cid = add(&node.repo(), &file).expect("undisturbed, it is added");
    let takes = began.elapsed();
    let mut all = vec![Acknowledged { cid, sha256: sha256(&file) }];
    for round in 1..=ROUNDS {
        random_file(&file, LARGE, rng.random());
        all.extend(killed_add(&mut node, &mut rng, round, &[], &file, takes));
        node.start();
        check(&node, &all);
        // What was broken off is just added again.
        let again = add(&node.repo(), &file).expect("it is added");
        all.push(Acknowledged { cid: again, sha256: sha256(&file) });
        node.stop();
    }
    check(&node, &all);
}
