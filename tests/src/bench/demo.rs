//! The whole demo with the file: what its largest process had resident.

use std::process::Command;

use super::report::{Bound, Line, Report};
use super::{Source, process};
use crate::peers;

pub(super) fn run(source: &Source, report: &mut Report) {
    let mut command = Command::new(peers::btfs());
    command.args(["demo", "--json", "--file", source.path()]).env("TMPDIR", tempfile::env::temp_dir());
    let usage = process::run(&mut command);
    let told: serde_json::Value = serde_json::from_slice(&usage.stdout).expect("one JSON object");
    assert_eq!(
        told["fetched_sha256"].as_str(),
        Some(source.sha256.as_str()),
        "the demo fetched something else"
    );
    report.line(Line {
        name: "demo, six hosts, duration",
        value: usage.wall,
        unit: "s",
        yardstick: None,
        bound: Bound::None,
    });
    // The demo looks at each daemon before it ends; the demo itself and its short commands were looked at from here.
    let of_daemons = told["peak_memory_kib"].as_u64().expect("the demo tells its daemons' peak") * 1024;
    report.memory("demo, six hosts, largest process", usage.peak_memory.max(of_daemons));
}
