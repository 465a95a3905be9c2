//! Making parity 10+20 through the whole pipeline, beside the coding library alone.
//!
//! The pipeline: blocks are read from a store, coded, parity is hashed and written into the store, and the layout is
//! acknowledged. Alone: the library's encoder, made once, codes the same bytes, which lie in memory, and throws the
//! parity away; shard by shard as its documentation shows, which is what the bound is about. Told beside: the columns in
//! which it is fastest, and what the machine can do, since each byte of data is read, and two bytes of parity are hashed
//! and stored for it: all cores read the data from a file, code in columns, hash the parity and write it to a file, and do
//! nothing else. Where that is below the bound, nobody who stores parity can keep it, and the line says so; a share of that
//! rate is asked for in any case.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use btfs_storage::erasure::{self, COLUMN};
use btfs_storage::{Class, hash, read};
use reed_solomon_simd::ReedSolomonEncoder;

use super::process::{self, median};
use super::report::{Bound, Line, Report};
use super::{MIB, Source, cat, floor};

/// Data and parity shards.
const SHARDS: (u8, u8) = (10, 20);
/// MiB of data that are coded; parity takes twice that.
const DATA_MIB: u64 = 512;
/// Share of the codec's own rate that is asked for,
const TIMES: f64 = 0.7;
/// and of what the machine can do.
const SHARE: f64 = 0.5;
/// Runs of each; the middle one counts.
const ROUNDS: usize = 3;

pub(super) fn run(report: &mut Report) {
    let source = Source::make(DATA_MIB);
    let (mut ours, mut alone, mut columns, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut roof = Vec::new();
    for _ in 0..ROUNDS {
        alone.push(library(&source, MIB as usize));
        columns.push(library(&source, COLUMN));
        roof.push(read_coded_hashed_and_written(&source));
        let (seconds, spent) = pipeline(&source);
        ours.push(seconds);
        cpu.push(spent);
    }
    let rate = |seconds: Vec<f64>| source.mib() / median(seconds);
    let (value, alone, columns, roof) = (rate(ours), rate(alone), rate(columns), rate(roof));
    let bound = match roof < TIMES * alone {
        true => Bound::RatioBeyond(TIMES),
        false => Bound::RatioAtLeast(TIMES),
    };
    for (rate, name, bound) in [
        (alone, "codec alone", bound),
        (columns, "in columns", Bound::None),
        (roof, "read+code+hash+write", Bound::RatioAtLeast(SHARE)),
    ] {
        report.line(Line {
            name: "parity 10+20, whole pipeline",
            value,
            unit: "MiB/s",
            yardstick: Some((rate, name)),
            bound,
        });
    }
    report.line(Line {
        name: "parity 10+20, whole pipeline, CPU",
        value: median(cpu) / source.gib(),
        unit: "s/GiB",
        yardstick: None,
        bound: Bound::None,
    });
}

/// Wall and CPU seconds from stored blocks to stored parity.
fn pipeline(source: &Source) -> (f64, f64) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = cat::open(dir.path());
    let root = cat::fill(&store, source);
    process::have_memory(4 * source.bytes);
    let (begun, before) = (Instant::now(), process::cpu(std::process::id()));
    let blocks = read::walk(&store, &root).map(|block| block.expect("the DAG is whole"));
    let plan = erasure::plan(blocks, SHARDS.0, SHARDS.1).expect("a plan");
    let mut ingest = store.ingest(Class::Own).expect("an ingest");
    let layout = erasure::encode(&store, &root, &plan, &mut ingest, &mut |_| {}).expect("parity");
    ingest.finish(store.state().batch()).expect("parity is acknowledged");
    assert!(layout.stripes().len() as u64 >= source.bytes / MIB / u64::from(SHARDS.0), "parity is missing");
    (begun.elapsed().as_secs_f64(), process::cpu(std::process::id()) - before)
}

/// Seconds that the library takes for the same bytes, in columns of so many bytes.
fn library(source: &Source, column: usize) -> f64 {
    let (k, m) = (usize::from(SHARDS.0), usize::from(SHARDS.1));
    let mut file = std::fs::File::open(&source.path).expect("the source");
    let mut stripe = vec![0; k * MIB as usize];
    let mut coder = ReedSolomonEncoder::new(k, m, column).expect("a coder");
    let (mut seconds, mut left) = (0.0, source.bytes);
    while left > 0 {
        // The last stripe is padded with what was there.
        let here = (left as usize).min(stripe.len());
        file.read_exact(&mut stripe[..here]).expect("the source is read");
        let begun = Instant::now();
        for at in (0..MIB as usize).step_by(column) {
            coder.reset(k, m, column).expect("the same shape");
            for shard in stripe.chunks(MIB as usize) {
                coder.add_original_shard(&shard[at..at + column]).expect("a shard");
            }
            std::hint::black_box(coder.encode().expect("parity").recovery_iter().count());
        }
        // A last stripe counts for what it has.
        seconds += begun.elapsed().as_secs_f64() * here as f64 / stripe.len() as f64;
        left -= here as u64;
    }
    seconds
}

/// Seconds in which all cores read the bytes, code them in columns, hash the parity, and write it to a file.
fn read_coded_hashed_and_written(source: &Source) -> f64 {
    let (k, m) = (usize::from(SHARDS.0), usize::from(SHARDS.1));
    let stripes = source.bytes / (k as u64 * MIB);
    let (next, ready) = (AtomicU64::new(0), Barrier::new(floor::cores() + 1));
    let stored = tempfile::tempfile().expect("a file for the parity");
    process::have_memory(3 * source.bytes);
    let work = || {
        let mut stripe = vec![0; k * MIB as usize];
        let mut parity = vec![0; m * MIB as usize];
        let file = std::fs::File::open(&source.path).expect("the source");
        let mut coder = ReedSolomonEncoder::new(k, m, COLUMN).expect("a coder");
        ready.wait();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= stripes {
                return;
            }
            file.read_exact_at(&mut stripe, number * k as u64 * MIB).expect("the source is read");
            for at in (0..MIB as usize).step_by(COLUMN) {
                coder.reset(k, m, COLUMN).expect("the same shape");
                for shard in stripe.chunks(MIB as usize) {
                    coder.add_original_shard(&shard[at..at + COLUMN]).expect("a shard");
                }
                let coded = coder.encode().expect("parity");
                for (made, whole) in coded.recovery_iter().zip(parity.chunks_mut(MIB as usize)) {
                    whole[at..at + COLUMN].copy_from_slice(made);
                }
            }
            let messages: Vec<&[u8]> = parity.chunks(MIB as usize).collect();
            std::hint::black_box(hash::sha256_all(&messages));
            stored.write_all_at(&parity, number * parity.len() as u64).expect("the parity is written");
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..floor::cores()).map(|_| scope.spawn(work)).collect();
        ready.wait();
        let begun = Instant::now();
        for thread in threads {
            thread.join().expect("parity is coded");
        }
        // What is behind the last whole stripe counts, too.
        begun.elapsed().as_secs_f64() * source.bytes as f64 / (stripes * k as u64 * MIB) as f64
    })
}
