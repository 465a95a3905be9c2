//! What stored bytes cost a disk: bytes of its files, bytes written to it, files that many small adds leave, and the
//! memory of an add.
//!
//! Everything lies on the disk, since what is written to memory is not counted anywhere. Bytes written are those that
//! `/proc/PID/io` tells at the process' end, its log and state included; bytes on the disk those of all files of the
//! repo after that. Bytes stored are those of all blocks. Small adds go through one daemon, one after the other, each acknowledged.

use std::path::Path;

use serde_json::json;

use super::process;
use super::report::{Bound, Line, Report};
use super::{MIB, Place, kubo};
use crate::api::Api;
use crate::node::{self, Node};

/// Adds of small files through a daemon,
const ADDS: u64 = 3000;
/// and bytes of each.
const ADD_SIZE: u64 = 10_000;
/// Files that these adds may leave: two flushes of 16 MiB, each of a table a column family and a blob file, in blocks and
/// state, and the logs.
const FILES_LEFT: f64 = 24.0;
/// Bytes on the disk for each byte stored.
const DISK: f64 = 1.03;
/// Bytes written for each byte of large files,
const WRITTEN_LARGE: f64 = 1.15;
/// and of files of 4 KiB.
const WRITTEN_SMALL: f64 = 2.2;

pub(super) fn run(large_mib: u64, disk: &Place, report: &mut Report) {
    let file = tempfile::NamedTempFile::new_in(&disk.dir).expect("a file on the disk");
    node::random_file(file.path(), large_mib * MIB, super::SEED);
    let name = if large_mib.is_multiple_of(1024) {
        format!("{} GiB", large_mib / 1024)
    } else {
        format!("{large_mib} MiB")
    };
    add(file.path(), &format!("add {name}"), WRITTEN_LARGE, disk, report);
    drop(file);
    let tree = tempfile::tempdir().expect("a temporary directory");
    kubo::make_tree(tree.path());
    add(tree.path(), "add 100,000 files", WRITTEN_SMALL, disk, report);
    drop(tree);
    many_adds(disk, report);
}

fn add(path: &Path, name: &str, most_written: f64, disk: &Place, report: &mut Report) {
    let node = Node::init_below(&disk.dir, None);
    let before = disk_bytes(&node.repo());
    let path = path.to_str().expect("a plain name");
    let usage = process::run(&mut node.command(&["add", path, "--json"]));
    let added: serde_json::Value = serde_json::from_slice(&usage.stdout).expect("one JSON object");
    let bytes = added["dag_size"].as_u64().expect("a size");
    report.memory_at_most(&format!("{name}, peak memory"), usage.peak_memory, super::ADD_MEMORY_BOUND);
    let on_disk = disk_bytes(&node.repo()) - before;
    for (what, value, most) in [("disk", on_disk, DISK), ("written", usage.written, most_written)] {
        report.line(Line {
            name: &format!("{name}, {what} a byte"),
            value: value as f64 / bytes as f64,
            unit: "B/B",
            yardstick: None,
            bound: Bound::AtMost(most),
        });
    }
}

fn many_adds(disk: &Place, report: &mut Report) {
    let mut node = Node::init_below(&disk.dir, None);
    node.start();
    let path = node.file("small");
    let (before, written) = (files(&node.repo()), process::written(node.pid()));
    let api = Api::of(&node);
    for seed in 0..ADDS {
        node::random_file(&path, ADD_SIZE, seed);
        let answer = api.call("add", &json!({ "path": path }));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let written = process::written(node.pid()) - written;
    report.line(Line {
        name: "3,000 adds of 10 KB, more files",
        value: files(&node.repo()).saturating_sub(before) as f64,
        unit: "files",
        yardstick: None,
        bound: Bound::AtMost(FILES_LEFT),
    });
    report.line(Line {
        name: "3,000 adds of 10 KB, written a byte",
        value: written as f64 / (ADDS * ADD_SIZE) as f64,
        unit: "B/B",
        yardstick: None,
        bound: Bound::None,
    });
}

/// What all files below `dir` take on the disk.
fn disk_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    walk(dir).iter().map(|metadata| metadata.blocks() * 512).sum()
}

/// How many files there are below `dir`.
fn files(dir: &Path) -> usize {
    walk(dir).len()
}

/// Every file below `dir`.
fn walk(dir: &Path) -> Vec<std::fs::Metadata> {
    let (mut found, mut left) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory of the repo") {
            let path = entry.expect("an entry").path();
            // What a daemon removes meanwhile is not there.
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => left.push(path),
                Ok(metadata) => found.push(metadata),
                Err(_) => {}
            }
        }
    }
    found
}
