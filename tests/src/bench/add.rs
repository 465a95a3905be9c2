//! `btfs add` without a daemon, beside `openssl dgst -sha256`.

use std::process::Command;

use super::Source;
use super::process::{self, Usage};
use super::report::{Bound, Line, Report};
use crate::node::Node;

pub(super) fn run(source: &Source, report: &mut Report) {
    let node = Node::init(None);
    let before = openssl(source);
    let ours = process::run(&mut node.command(&["add", source.path(), "--json"]));
    let after = openssl(source);

    let added: serde_json::Value = serde_json::from_slice(&ours.stdout).expect("one JSON object");
    assert_eq!(added["size"].as_u64(), Some(source.bytes), "not all was added: {added}");
    let mean = |of: fn(&Usage) -> f64| (of(&before) + of(&after)) / 2.0;
    report.line(Line {
        name: "add, CPU",
        value: ours.cpu / source.gib(),
        unit: "s/GiB",
        yardstick: Some((mean(|usage| usage.cpu) / source.gib(), "openssl")),
        bound: Bound::RatioAtMost(4.0),
    });
    report.line(Line {
        name: "add, rate",
        value: source.mib() / ours.wall,
        unit: "MiB/s",
        yardstick: Some((source.mib() / mean(|usage| usage.wall), "openssl")),
        bound: Bound::None,
    });
    report.memory("add, peak memory", ours.peak_memory);
}

fn openssl(source: &Source) -> Usage {
    let mut command = Command::new("openssl");
    let usage = process::run(command.args(["dgst", "-sha256", "-r", source.path()]));
    let told = String::from_utf8_lossy(&usage.stdout);
    assert!(told.starts_with(&source.sha256), "openssl hashed something else: {told}");
    usage
}
