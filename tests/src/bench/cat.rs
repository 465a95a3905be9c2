//! Reading a file that was just added, so that it is in the system's cache: by `btfs cat`, over HTTP, and in process.

use std::time::Instant;

use btfs_storage::import::{Profile, import_path};
use btfs_storage::read::FileReader;
use btfs_storage::{Class, Pin, PinKind, Quota, Store, StoreOptions};

use super::process::{self, median};
use super::report::{Bound, Line, Report};
use super::{MIB, Source};
use crate::api::Api;
use crate::node::Node;

/// Readings of each kind; the middle one counts.
const ROUNDS: usize = 5;
/// MiB a second that a cached file must be read with.
const LEAST: f64 = 2048.0;

pub(super) fn run(source: &Source, report: &mut Report) {
    let mut node = Node::init(None);
    let cid = node.json(&["add", source.path()])["cid"].as_str().expect("a CID").to_owned();
    let runs: Vec<_> =
        (0..ROUNDS).map(|_| process::run_into_nothing(&mut node.command(&["cat", &cid]))).collect();
    tell("cat of a cached file", source.mib(), runs.iter().map(|usage| usage.wall).collect(), true, report);
    let value = median(runs.iter().map(|usage| usage.cpu).collect()) / source.gib();
    report.line(Line {
        name: "cat of a cached file, CPU",
        value,
        unit: "s/GiB",
        yardstick: None,
        bound: Bound::None,
    });

    node.start();
    let api = Api::of(&node);
    let request = format!("cat?reference={cid}");
    let walls = seconds(|| assert_eq!(api.drain(&request), source.bytes, "not all came"));
    tell("the same over HTTP", source.mib(), walls, false, report);
    drop(node);

    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = open(dir.path());
    let root = fill(&store, source);
    let walls = seconds(|| {
        let mut reader = FileReader::open(&store, &root).expect("the file is there");
        let mut bytes = 0;
        while let Some(piece) = reader.next_bytes().expect("the file is read") {
            bytes += piece.len() as u64;
        }
        assert_eq!(bytes, source.bytes, "not all came");
    });
    tell("the same in process, one thread", source.mib(), walls, true, report);
}

fn seconds(mut read: impl FnMut()) -> Vec<f64> {
    let mut one = || {
        let begun = Instant::now();
        read();
        begun.elapsed().as_secs_f64()
    };
    (0..ROUNDS).map(|_| one()).collect()
}

fn tell(name: &str, mib: f64, walls: Vec<f64>, bound: bool, report: &mut Report) {
    let bound = if bound { Bound::AtLeast(LEAST) } else { Bound::None };
    report.line(Line { name, value: mib / median(walls), unit: "MiB/s", yardstick: None, bound });
}

/// A store of this process.
pub(super) fn open(dir: &std::path::Path) -> Store {
    let options = StoreOptions {
        path: dir.to_owned(),
        tables: Vec::new(),
        quota: Quota::default(),
        reserve_bytes: MIB,
    };
    Store::open(options).expect("a store")
}

/// Imports the source and pins it; its root.
pub(super) fn fill(store: &Store, source: &Source) -> btfs_storage::Cid {
    let mut ingest = store.ingest(Class::Own).expect("an ingest");
    let done = import_path(&source.path, &Profile::V1_2025, &Default::default(), &mut ingest, &mut |_| {})
        .expect("an import");
    let mut batch = store.state().batch();
    let pin = Pin {
        id: "source".to_owned().into(),
        kind: PinKind::Recursive,
        root: done.root,
        class: Class::Own,
        name: None,
        expires: None,
    };
    store.pin(&mut batch, &pin).expect("a pin");
    ingest.finish(batch).expect("the import is acknowledged");
    done.root
}
