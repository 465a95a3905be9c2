//! `btfs add` without a daemon, beside `openssl dgst -sha256`.

use std::process::Command;

use super::Source;
use super::process::{self, Usage, median};
use super::report::{Bound, Line, Report};
use crate::node::Node;

/// Runs of each program, taking turns; the middle one counts.
const ROUNDS: usize = 3;

pub(super) fn run(source: &Source, report: &mut Report) {
    let (mut ours, mut yardsticks) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        yardsticks.push(openssl(source));
        ours.push(add(source, &["add", source.path(), "--json"]));
    }
    let torrent = add(source, &["add", source.path(), "--torrent", "--json"]);
    let hybrid = add(source, &["add", source.path(), "--torrent=hybrid", "--json"]);
    let middle = |of: fn(&Usage) -> f64, all: &[Usage]| median(all.iter().map(of).collect());
    let (cpu, wall) = (|usage: &Usage| usage.cpu, |usage: &Usage| usage.wall);
    let openssl_cpu = middle(cpu, &yardsticks) / source.gib();
    let openssl_rate = source.mib() / middle(wall, &yardsticks);
    for (name, value, bound) in [
        ("add, CPU", middle(cpu, &ours), Bound::RatioAtMost(2.5)),
        ("add --torrent (v1), CPU", torrent.cpu, Bound::None),
        ("add --torrent (v1 and v2), CPU", hybrid.cpu, Bound::None),
    ] {
        let yardstick = Some((openssl_cpu, "openssl"));
        report.line(Line { name, value: value / source.gib(), unit: "s/GiB", yardstick, bound });
    }
    for (name, wall) in [
        ("add, rate", middle(wall, &ours)),
        ("add --torrent (v1), rate", torrent.wall),
        ("add --torrent (v1 and v2), rate", hybrid.wall),
    ] {
        let yardstick = Some((openssl_rate, "openssl"));
        report.line(Line { name, value: source.mib() / wall, unit: "MiB/s", yardstick, bound: Bound::None });
    }
    let peak = ours.iter().map(|usage| usage.peak_memory).max();
    report.memory_at_most("add, peak memory", peak.unwrap_or(0), super::ADD_MEMORY_BOUND);
}

/// One add into a fresh repo, which is gone afterwards.
fn add(source: &Source, arguments: &[&str]) -> Usage {
    let node = Node::init(None);
    process::have_memory(2 * source.bytes);
    let usage = process::run(&mut node.command(arguments));
    let added: serde_json::Value = serde_json::from_slice(&usage.stdout).expect("one JSON object");
    assert_eq!(added["size"].as_u64(), Some(source.bytes), "not all was added: {added}");
    usage
}

fn openssl(source: &Source) -> Usage {
    let mut command = Command::new("openssl");
    let usage = process::run(command.args(["dgst", "-sha256", "-r", source.path()]));
    let told = String::from_utf8_lossy(&usage.stdout);
    assert!(told.starts_with(&source.sha256), "openssl hashed something else: {told}");
    usage
}
