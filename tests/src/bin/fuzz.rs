//! Fuzzing of the decoders: see [`btfs_tests::fuzz`].
//!
//! usage: fuzz TARGET|all [--seconds N | --inputs N] [--seed N] [--trace] [--save]
//!
//! Each target runs for the time or number of inputs given (default: 10,000 inputs). The first input that panics or
//! allocates too much at once is printed as hex, and the exit status is 1. After a crash of the process itself run it again
//! with the same seed and `--trace`: the last line is the input.

use std::process::ExitCode;
use std::time::Duration;

use btfs_tests::fuzz::{self, MAX_ALLOCATION, Options, TARGETS};

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// The system's allocator, which remembers the largest request.
#[allow(unsafe_code, reason = "a global allocator is an unsafe trait; each call is handed on as it came")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicUsize, Ordering};

    static LARGEST: AtomicUsize = AtomicUsize::new(0);

    /// The largest request since this was asked last.
    pub fn largest() -> usize {
        LARGEST.swap(0, Ordering::Relaxed)
    }

    pub struct Counting;

    // SAFETY: every method passes its arguments to the system's allocator unchanged, and nothing else touches memory.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            LARGEST.fetch_max(size, Ordering::Relaxed);
            unsafe { System.realloc(memory, layout, size) }
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            unsafe { System.dealloc(memory, layout) }
        }
    }
}

/// Inputs of each target if nothing is said.
const INPUTS: u64 = 10_000;

fn parse(arguments: impl Iterator<Item = String>) -> Result<(String, Options), String> {
    let mut options = Options { time: None, inputs: None, seed: 1, trace: false, save: false };
    let mut name = None;
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        let mut number = || {
            let value = arguments.next().and_then(|value| value.parse::<u64>().ok());
            value.ok_or_else(|| format!("{argument} wants a number"))
        };
        match argument.as_str() {
            "--seconds" => options.time = Some(Duration::from_secs(number()?)),
            "--inputs" => options.inputs = Some(number()?),
            "--seed" => options.seed = number()?,
            "--trace" => options.trace = true,
            "--save" => options.save = true,
            other if other.starts_with("--") || name.is_some() => return Err(format!("what is {other}?")),
            other => name = Some(other.to_owned()),
        }
    }
    if options.time.is_none() && options.inputs.is_none() {
        options.inputs = Some(INPUTS);
    }
    Ok((name.ok_or("which target?")?, options))
}

fn main() -> ExitCode {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    let (name, options) = match parse(std::env::args().skip(1)) {
        Ok((name, options)) if name == "all" || names.contains(&name.as_str()) => (name, options),
        other => {
            let problem =
                other.map_or_else(|problem| problem, |(name, _)| format!("there is no target {name}"));
            eprintln!(
                "{problem}\nusage: fuzz {}|all [--seconds N | --inputs N] [--seed N] [--trace] [--save]",
                names.join("|")
            );
            return ExitCode::from(2);
        }
    };
    // A panic is told with its input below.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = false;
    for target in TARGETS.iter().filter(|target| name == "all" || name == target.name) {
        match fuzz::run(target, &options, &counting::largest) {
            Ok(report) => println!(
                "{:<9} {:>9} inputs, {:>5} different answers, largest allocation {:>5.1} of {} MiB",
                target.name,
                report.inputs,
                report.answers,
                report.largest as f64 / f64::from(1 << 20),
                MAX_ALLOCATION >> 20
            ),
            Err(problem) => {
                println!("{problem}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
