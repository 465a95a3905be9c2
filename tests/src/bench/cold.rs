//! Reading blocks from the disk and checking them against their hashes, beside the hash alone on one core.
//!
//! The pages of the store's files are dropped from the system's cache before. A disk that is slower than the hash bounds
//! the figure: its own speed over the same files, read one after the other, is told beside.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use btfs_storage::hash;

use super::process::median;
use super::report::{Bound, Line, Report};
use super::{MIB, Place, Source, cat};

/// Readings; the middle one counts.
const ROUNDS: usize = 3;
/// Blocks of a page of the scrub.
const PAGE: usize = 256;

pub(super) fn run(source: &Source, disk: &Place, report: &mut Report) {
    let dir = tempfile::tempdir_in(&disk.dir).expect("a temporary directory");
    let store = cat::open(dir.path());
    cat::fill(&store, source);
    store.close().expect("the store is closed");
    let blocks = dir.path().join("blocks");
    let (mut ours, mut alone, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        alone.push(hash_alone(source));
        drop_cached(&files(&blocks));
        plain.push(read_through(&files(&blocks)));
        drop_cached(&files(&blocks));
        ours.push(scrub(dir.path(), source.bytes));
    }
    let rate = |walls: Vec<f64>| source.mib() / median(walls);
    let hash = rate(alone);
    report.line(Line {
        name: "cold blocks read and verified",
        value: rate(ours),
        unit: "MiB/s",
        yardstick: Some((hash, "SHA-256")),
        bound: Bound::RatioAtLeast(0.8),
    });
    report.line(Line {
        name: "the same files read alone",
        value: rate(plain),
        unit: "MiB/s",
        yardstick: Some((hash, "SHA-256")),
        bound: Bound::None,
    });
}

/// Seconds to verify all blocks.
fn scrub(dir: &Path, least: u64) -> f64 {
    let store = cat::open(dir);
    let begun = Instant::now();
    let (mut bytes, mut next) = (0, None);
    loop {
        let page = store.scrub(next.as_ref(), PAGE).expect("the blocks are read");
        assert!(page.damaged.is_empty(), "damaged: {:?}", page.damaged);
        bytes += page.bytes;
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert!(bytes >= least, "only {bytes} bytes were verified");
    seconds
}

/// Seconds to hash the source on one core, a block at a time, without the reading.
fn hash_alone(source: &Source) -> f64 {
    let mut file = std::fs::File::open(&source.path).expect("the source");
    let mut block = vec![0; MIB as usize];
    let (mut seconds, mut left) = (0.0, source.bytes);
    while left > 0 {
        file.read_exact(&mut block).expect("the source is read");
        let begun = Instant::now();
        std::hint::black_box(hash::sha256(&block));
        seconds += begun.elapsed().as_secs_f64();
        left -= MIB;
    }
    seconds
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("the block database");
    entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()).collect()
}

/// Lets the system forget what it has cached of the files.
fn drop_cached(files: &[PathBuf]) {
    for path in files {
        let file = std::fs::File::open(path).expect("a file of the database");
        file.sync_all().expect("only what is on the disk can be forgotten");
        rustix::fs::fadvise(file.as_fd(), 0, None, rustix::fs::Advice::DontNeed).expect("the system forgets");
    }
}

/// Seconds to read the files one after the other.
fn read_through(files: &[PathBuf]) -> f64 {
    let begun = Instant::now();
    let mut buffer = vec![0; MIB as usize];
    for path in files {
        let mut file = std::fs::File::open(path).expect("a file of the database");
        while file.read(&mut buffer).expect("it is read") > 0 {}
    }
    begun.elapsed().as_secs_f64()
}
