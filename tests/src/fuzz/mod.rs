//! Fuzzing of everything that decodes bytes from elsewhere.
//!
//! One function a decoder ([`targets`]) takes any bytes, checks what must hold of them (no panic, what decodes encodes
//! again, walks end) and answers a number that stands for how it went. Inputs come from the saved corpus
//! (`tests/fuzz/TARGET.hex`, an input a line) and seeds that our own encoders make; [`mutate`] bends and splices them.
//!
//! An input whose answer is new joins the pool that later ones are made from. That is guidance by behaviour, not by
//! coverage: libFuzzer wants its instrumentation in RUSTFLAGS, which on this workspace means RocksDB once more for every
//! change of mind. Error messages of the decoders are specific, so there are hundreds of different answers.
//!
//! `cargo run --release -p btfs-tests --bin fuzz -- TARGET --seconds 600` runs for as long as it is told; the suite runs
//! the same program for a bounded number of inputs. The program counts allocations: none may be above
//! [`MAX_ALLOCATION`]. Runs are repeatable: the same seed gives the same inputs.

pub mod mutate;
pub mod targets;

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

pub use targets::{TARGETS, Target};

/// Largest single allocation that a decoder may make, in bytes.
pub const MAX_ALLOCATION: usize = 64 << 20;
/// Inputs from which others are made, at most.
const POOL: usize = 4096;
/// Longest input: a little over the largest block, so that the limit itself is tried.
const MAX_INPUT: usize = (2 << 20) + (64 << 10);
/// Longest input that joins the pool; longer ones come from seeds alone, and slow everything down.
const MAX_POOLED: usize = 16 << 10;
/// Longest input that is saved into the corpus.
const MAX_SAVED: usize = 512;
/// Inputs of one target that are saved, at most: the corpus is in the repository.
const SAVED: usize = 48;

/// How long, and with what.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ends after this time,
    pub time: Option<Duration>,
    /// or after this many inputs.
    pub inputs: Option<u64>,
    /// Where the sequence begins.
    pub seed: u64,
    /// Print every input before it runs: for what ends the process itself, such as a stack overflow.
    pub trace: bool,
    /// Add short inputs with new answers to the saved corpus.
    pub save: bool,
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Inputs tried.
    pub inputs: u64,
    /// Different answers.
    pub answers: usize,
    /// The largest single allocation, in bytes.
    pub largest: usize,
}

/// The saved corpus of a target.
pub fn corpus_path(target: &Target) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(format!("{}.hex", target.name))
}

/// The inputs in it; every line must be hex.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let path = corpus_path(target);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => panic!("cannot read {}: {error}", path.display()),
    };
    let line = |line: &str| hex::decode(line).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(line).collect()
}

/// Runs a target. `largest` answers the largest allocation since it was asked last.
///
/// # Errors
/// Says how the first bad input failed, and gives it as hex.
pub fn run(target: &Target, options: &Options, largest: &dyn Fn() -> usize) -> Result<Report, String> {
    let begun = Instant::now();
    let mut rng = SmallRng::seed_from_u64(options.seed);
    let mut report = Report::default();
    let mut answers = HashSet::new();
    let mut pool: Vec<Vec<u8>> = Vec::new();
    let mut large: Vec<Vec<u8>> = Vec::new();
    let saved = corpus(target);
    let kept = saved.len();
    let mut fresh: Vec<Vec<u8>> = Vec::new();
    let first: Vec<Vec<u8>> = saved.into_iter().chain((target.seeds)()).collect();
    let mut first = first.into_iter();
    loop {
        let seed = first.next();
        let given = seed.is_some();
        let over = options.inputs.is_some_and(|inputs| report.inputs >= inputs)
            || options.time.is_some_and(|time| begun.elapsed() >= time);
        // The corpus and the seeds are always tried to their end.
        if over && !given {
            break;
        }
        let input = seed.unwrap_or_else(|| next(&mut rng, target, &pool, &large));
        let answer = one(target, &input, options.trace, largest, &mut report)?;
        let new = answers.insert(answer);
        if given && input.len() > MAX_POOLED {
            large.push(input);
        } else if given || new && input.len() <= MAX_POOLED {
            if new && !given && input.len() <= MAX_SAVED && kept + fresh.len() < SAVED {
                fresh.push(input.clone());
            }
            if pool.len() == POOL {
                let at = rng.random_range(0..POOL);
                pool.swap_remove(at);
            }
            pool.push(input);
        }
    }
    report.answers = answers.len();
    if options.save {
        save(target, &fresh)?;
    }
    Ok(report)
}

/// The next input: one of the pool, bent.
fn next(rng: &mut SmallRng, target: &Target, pool: &[Vec<u8>], large: &[Vec<u8>]) -> Vec<u8> {
    let empty = Vec::new();
    let pick = |rng: &mut SmallRng| match pool.len() {
        // Now and then: they take a thousand times as long.
        _ if !large.is_empty() && rng.random_ratio(1, 1000) => &large[rng.random_range(0..large.len())],
        0 => &empty,
        // Later ones more often: they are the new ones.
        len => &pool[rng.random_range(0..len).max(rng.random_range(0..len))],
    };
    let mut input = pick(rng).clone();
    let other = pick(rng);
    for _ in 0..1 + rng.next_u32() % 4 {
        mutate::bend(rng, &mut input, other);
    }
    input.truncate(MAX_INPUT);
    if let Some(mend) = target.mend
        && rng.random_bool(0.7)
    {
        mend(&mut input);
    }
    input
}

/// Tries one input.
fn one(
    target: &Target,
    input: &[u8],
    trace: bool,
    largest: &dyn Fn() -> usize,
    report: &mut Report,
) -> Result<u64, String> {
    if trace {
        eprintln!("{}", hex::encode(input));
    }
    largest();
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let allocated = largest();
    report.inputs += 1;
    report.largest = report.largest.max(allocated);
    let failed =
        |what: String| format!("{}: {what}; input {}: {}", target.name, report.inputs, hex::encode(input));
    if allocated > MAX_ALLOCATION {
        return Err(failed(format!("{allocated} bytes were allocated at once")));
    }
    outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        failed(format!("panicked: {}", text.unwrap_or_default()))
    })
}

/// Appends inputs to the saved corpus.
fn save(target: &Target, inputs: &[Vec<u8>]) -> Result<(), String> {
    use std::io::Write;
    let path = corpus_path(target);
    let written = || {
        std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
        let mut file = std::fs::File::options().create(true).append(true).open(&path)?;
        for input in inputs {
            writeln!(file, "{}", hex::encode(input))?;
        }
        Ok(())
    };
    written().map_err(|error: std::io::Error| format!("cannot write {}: {error}", path.display()))
}
