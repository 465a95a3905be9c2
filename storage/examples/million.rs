//! What a store of a million blocks costs: start, counting, pins, collection, and what goes on beside it.
//!
//! usage: million [--check] [--dir DIR] [--blocks N] [--sizes LEAST-MOST]
//!
//! `cargo run --release -p btfs-storage --example million` fills a store below DIR (default: `/dev/shm` if it has room,
//! else the temporary directory) with N blocks (10^6) of LEAST to MOST bytes (100 to 8192), in DAGs of a thousand, pins them all
//! and 100,000 single blocks beside, and then lets a third go, twice: once while files are added, once while blocks are
//! read. Each collection is stopped between its steps for as long as it ran, again and again, and what is done beside it
//! is counted by whether it was running: so both rates are of the same minutes, the same store and the same load of the
//! machine by others. The pauses that a collection makes by itself count as its running. Start time and memory are those of
//! a process of its own. `--check` exits 1 if a bound is missed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use btfs_storage::import::{Profile, import_reader};
use btfs_storage::{
    BlockSink, BlockSource, Bytes, Cid, Class, GcOptions, GcPhase, Pin, PinKind, Quota, Store, StoreError,
    StoreOptions, hash,
};
use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

/// Leaves below a root.
const LEAVES: usize = 1000;
/// Single pins.
const PINS: usize = 100_000;
/// A collection runs at least so long before it is stopped for as long,
const WINDOW: Duration = Duration::from_millis(300);
/// or for this, if its step took longer.
const LONGEST_STOP: Duration = Duration::from_secs(3);
/// The file that is added again and again, with a different beginning of each chunk.
const FILE: usize = 8 << 20;
/// Bytes added at most, so that a slow collection does not fill the disk: what was added until then is the figure.
const MOST_ADDED: usize = 3 << 30;
/// Bytes that all of this may take, with room to spare.
const ROOM: u64 = 18 << 30;
/// Between two adds, so that they last for the whole collection: it is their own time that counts.
const BETWEEN_ADDS: Duration = Duration::from_millis(200);
/// Chunk of the default profile.
const CHUNK: usize = 1 << 20;
/// Where the time of a start goes through a process of its own.
const START: &str = "--start";

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

struct Options {
    check: bool,
    dir: PathBuf,
    blocks: usize,
    least: usize,
    most: usize,
}

/// Prints figures and counts those that miss their bounds.
#[derive(Default)]
struct Figures {
    missed: usize,
}

impl Figures {
    fn tell(&mut self, name: &str, value: f64, unit: &str, at_most: Option<f64>) {
        let over = at_most.is_some_and(|most| value > most);
        let bound = at_most.map(|most| format!("<= {most}")).unwrap_or_default();
        println!("{name:<44} {value:>10.3} {unit:<8} {bound:<10} {}", if over { "MISSED" } else { "" });
        self.missed += usize::from(over);
    }

    fn share(&mut self, name: &str, windows: &Windows, unit: &str, at_least: f64) {
        let ((busy, _), (quiet, _)) = (windows.rate(|at| at.is_some()), windows.rate(|at| at.is_none()));
        let share = busy / quiet;
        // A share that is no number, since nothing was done, keeps nothing.
        let kept = share >= at_least;
        println!(
            "{name:<44} {busy:>10.0} {unit:<8} {:.0} % of {quiet:.0}, >= {:.0} %  {}",
            share * 100.0,
            at_least * 100.0,
            if kept { "" } else { "MISSED" }
        );
        self.missed += usize::from(!kept);
        for phase in [GcPhase::Mark, GcPhase::Sweep, GcPhase::Reclaim] {
            let (rate, seconds) = windows.rate(|at| at == Some(phase));
            if seconds == 0.0 {
                continue;
            }
            println!("    {phase:?}: {:.0} % in {seconds:.1} s of it", 100.0 * rate / quiet);
        }
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, dir] = arguments.as_slice()
        && flag == START
    {
        return told(start(Path::new(dir)));
    }
    match options(&arguments).map(|options| (run(&options), options.check)) {
        Ok((Ok(missed), check)) if missed == 0 || !check => ExitCode::SUCCESS,
        Ok((Ok(missed), _)) => told(Err(format!("{missed} bounds missed").into())),
        Ok((Err(error), _)) | Err(error) => told(Err(error)),
    }
}

fn told(outcome: Outcome<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("million: {error}");
            ExitCode::FAILURE
        }
    }
}

fn options(arguments: &[String]) -> Outcome<Options> {
    let shm = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(shm).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let dir = if room >= ROOM { shm.to_owned() } else { std::env::temp_dir() };
    let mut options = Options { check: false, dir, blocks: 1_000_000, least: 100, most: 8192 };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} wants a value"));
        match argument.as_str() {
            "--check" => options.check = true,
            "--dir" => options.dir = value()?.into(),
            "--blocks" => options.blocks = value()?.parse()?,
            "--sizes" => {
                let (least, most) = value()?.split_once('-').ok_or("--sizes wants LEAST-MOST")?;
                (options.least, options.most) = (least.parse()?, most.parse()?);
            }
            other => return Err(format!("there is no option `{other}`").into()),
        }
    }
    Ok(options)
}

fn open(dir: &Path) -> Result<Store, StoreError> {
    Store::open(StoreOptions {
        path: dir.to_owned(),
        tables: Vec::new(),
        quota: Quota::default(),
        reserve_bytes: 0,
    })
}

/// What the child of a start does: opens, counts, tells what it took.
fn start(dir: &Path) -> Outcome<()> {
    let begun = Instant::now();
    let store = open(dir)?;
    let opened = begun.elapsed();
    let begun = Instant::now();
    let stat = store.stat()?;
    let counted = begun.elapsed();
    let memory = peak_memory()?;
    let begun = Instant::now();
    let pins = store.pins()?.len();
    let listed = begun.elapsed();
    println!(
        "{} {} {memory} {} {} {pins} {}",
        opened.as_secs_f64(),
        counted.as_secs_f64(),
        listed.as_secs_f64(),
        stat.blocks,
        peak_memory()?
    );
    Ok(())
}

/// The peak of this process' resident memory in bytes.
fn peak_memory() -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

fn run(options: &Options) -> Outcome<usize> {
    let dir = tempfile::tempdir_in(&options.dir)?;
    println!(
        "{} blocks of {} to {} bytes in {}",
        options.blocks,
        options.least,
        options.most,
        options.dir.display()
    );
    let mut figures = Figures::default();
    let store = open(dir.path())?;
    let begun = Instant::now();
    let leaves = fill(&store, options)?;
    memory(&mut figures, "memory, peak after filling")?;
    figures.tell("filled", begun.elapsed().as_secs_f64(), "s", None);
    let begun = Instant::now();
    pin_many(&store, &leaves)?;
    figures.tell("100,000 single pins made", begun.elapsed().as_secs_f64(), "s", None);
    drop(store);
    starts(dir.path(), &mut figures)?;
    let store = open(dir.path())?;
    let pins = begun_with(&mut figures, &store, &leaves)?;
    memory(&mut figures, "memory, peak before the collections")?;
    disk(&store, "disk over live, before", &mut figures, None)?;
    drop_third(&store, &pins, 0)?;
    let windows = beside(&store, &mut figures, |windows| adding(&store, windows))?;
    figures.share("adds beside a collection", &windows, "MiB/s", 0.8);
    disk(&store, "disk over live, after a third went", &mut figures, Some(1.05))?;
    drop_third(&store, &pins, 1)?;
    let kept: Vec<Cid> = leaves.chunks(LEAVES).skip(2).step_by(3).flatten().copied().collect();
    let windows = beside(&store, &mut figures, |windows| reading(&store, &kept, windows))?;
    figures.share("reads beside a collection", &windows, "/s", 0.9);
    disk(&store, "disk over live, after another third went", &mut figures, Some(1.05))?;
    memory(&mut figures, "memory, peak of all of this")?;
    let begun = Instant::now();
    let report = store.gc()?;
    figures.tell("a collection that finds nothing", begun.elapsed().as_secs_f64(), "s", None);
    assert_eq!(report.freed_blocks, 0, "all that is left is pinned");
    Ok(figures.missed)
}

/// Fills the store; every thousand leaves get a pinned root.
fn fill(store: &Store, options: &Options) -> Outcome<Vec<Cid>> {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut all = Vec::with_capacity(options.blocks);
    while all.len() < options.blocks {
        let mut ingest = store.ingest(Class::Own)?;
        let first = all.len();
        for _ in 0..LEAVES {
            let mut data = vec![0; rng.random_range(options.least..=options.most)];
            rng.fill_bytes(&mut data);
            let cid = hash::cid_v1(hash::RAW, &data);
            ingest.put(&cid, data.into())?;
            all.push(cid);
        }
        let data = Bytes::from(serde_ipld_dagcbor::to_vec(&all[first..])?);
        let root = hash::cid_v1(hash::DAG_CBOR, &data);
        ingest.put(&root, data)?;
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin(format!("dag:{:06}", first / LEAVES), PinKind::Recursive, root))?;
        ingest.finish(batch)?;
    }
    Ok(all)
}

fn pin(id: String, kind: PinKind, root: Cid) -> Pin {
    Pin { id: id.into(), kind, root, class: Class::Own, name: None, expires: None }
}

/// Pins single blocks that a recursive pin keeps to the end.
fn pin_many(store: &Store, leaves: &[Cid]) -> Outcome<()> {
    let kept: Vec<Cid> = leaves.chunks(LEAVES).skip(2).step_by(3).flatten().copied().take(PINS).collect();
    for some in kept.chunks(1000) {
        let mut batch = store.state().batch();
        for cid in some {
            let named =
                Pin { name: Some("holiday.mp4".into()), ..pin(format!("own:{cid}"), PinKind::Direct, *cid) };
            store.pin(&mut batch, &named)?;
        }
        store.state().commit(batch)?;
    }
    Ok(())
}

/// Starts of a process of its own.
fn starts(dir: &Path, figures: &mut Figures) -> Outcome<()> {
    let output = Command::new(std::env::current_exe()?).arg(START).arg(dir).output()?;
    let text = String::from_utf8(output.stdout)?;
    let values: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [opened, counted, memory, listed, _, pins, listing] = values[..] else {
        return Err(format!("the start said {text:?} {}", String::from_utf8_lossy(&output.stderr)).into());
    };
    figures.tell("start", opened, "s", Some(1.0));
    figures.tell("repo stat after it", counted, "s", Some(1.0));
    figures.tell("memory, peak of both", memory / 1e6, "MB", Some(150.0));
    figures.tell(&format!("{pins} pins listed"), listed, "s", Some(1.0));
    figures.tell("memory, peak with the list", listing / 1e6, "MB", None);
    Ok(())
}

/// One pin more and less among all the others. Answers the ids of the DAGs' pins.
fn begun_with(figures: &mut Figures, store: &Store, leaves: &[Cid]) -> Outcome<Vec<Pin>> {
    let begun = Instant::now();
    let rounds = 200;
    for _ in 0..rounds {
        let one = pin("one".into(), PinKind::Direct, leaves[0]);
        let mut batch = store.state().batch();
        store.pin(&mut batch, &one)?;
        store.state().commit(batch)?;
        let mut batch = store.state().batch();
        store.unpin(&mut batch, &one.id)?;
        store.state().commit(batch)?;
    }
    let each = begun.elapsed().as_secs_f64() / f64::from(rounds) * 1e3;
    figures.tell("a pin and unpin among 100,000", each, "ms", None);
    Ok(store.pins_with_prefix("dag:")?)
}

/// What was done beside a collection, by whether it was running, and at what.
struct Windows {
    /// `None`: it is stopped.
    at: Mutex<Option<GcPhase>>,
    ended: AtomicBool,
    /// By what it was at: seconds and amount.
    done: Mutex<Vec<(Option<GcPhase>, f64, f64)>>,
}

impl Windows {
    fn new() -> Windows {
        Windows { at: Mutex::new(Some(GcPhase::Mark)), ended: AtomicBool::new(false), done: Mutex::default() }
    }

    fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::Relaxed)
    }

    fn at(&self) -> MutexGuard<'_, Option<GcPhase>> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something of an amount. It counts to the state in which it began.
    fn count<T>(&self, amount: f64, work: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        let (begun, at) = (Instant::now(), *self.at());
        let answer = work()?;
        let mut done = self.done.lock().map_err(|_| "a worker panicked")?;
        let took = begun.elapsed().as_secs_f64();
        match done.iter_mut().find(|(of, ..)| *of == at) {
            Some((_, seconds, amounts)) => {
                *seconds += took;
                *amounts += amount;
            }
            None => done.push((at, took, amount)),
        }
        Ok(answer)
    }

    /// Amount a second, and seconds, of what began in those states.
    fn rate(&self, which: impl Fn(Option<GcPhase>) -> bool) -> (f64, f64) {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let those = done.iter().filter(|(at, ..)| which(*at));
        let (seconds, amount) = those
            .fold((0.0, 0.0), |(seconds, amounts), (_, took, amount)| (seconds + took, amounts + amount));
        (amount / seconds, seconds)
    }

    /// Stops the caller, a collection between two steps, for as long as it ran since `since`.
    fn stop(&self, phase: GcPhase, since: &mut Instant) {
        let ran = since.elapsed();
        if ran >= WINDOW {
            *self.at() = None;
            std::thread::sleep(ran.min(LONGEST_STOP));
            *since = Instant::now();
        }
        *self.at() = Some(phase);
    }
}

/// Adds files beside a collection; counts MiB.
fn adding(store: &Store, windows: &Windows) -> Outcome<()> {
    let mut file = vec![0; FILE];
    let mut rng = SmallRng::seed_from_u64(rand::random());
    rng.fill_bytes(&mut file);
    let mut bytes = 0;
    while windows.goes_on() {
        std::thread::sleep(BETWEEN_ADDS);
        if bytes >= MOST_ADDED {
            continue;
        }
        for chunk in file.chunks_mut(CHUNK) {
            rng.fill_bytes(&mut chunk[..32]);
        }
        windows.count(FILE as f64 / f64::from(1 << 20), || add(store, &file))?;
        bytes += FILE;
    }
    let mut batch = store.state().batch();
    for pin in store.pins_with_prefix("added:")? {
        store.unpin(&mut batch, &pin.id)?;
    }
    Ok(store.state().commit(batch)?)
}

fn add(store: &Store, file: &[u8]) -> Outcome<()> {
    let mut ingest = store.ingest(Class::Own)?;
    let done = import_reader(file, &Profile::V1_2025, &mut ingest, &mut |_| {})?;
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin(format!("added:{}", done.root), PinKind::Recursive, done.root))?;
    ingest.finish(batch)?;
    Ok(())
}

/// Reads blocks at random; counts them.
fn reading(store: &Store, of: &[Cid], windows: &Windows) -> Outcome<()> {
    const SOME: usize = 100;
    let mut rng = SmallRng::seed_from_u64(rand::random());
    while windows.goes_on() {
        windows.count(SOME as f64, || {
            for _ in 0..SOME {
                let cid = &of[rng.random_range(0..of.len())];
                if store.get(cid)?.is_none() {
                    return Err(format!("{cid} is lost").into());
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn drop_third(store: &Store, pins: &[Pin], which: usize) -> Outcome<()> {
    let mut batch = store.state().batch();
    for pin in pins.iter().skip(which).step_by(3) {
        store.unpin(&mut batch, &pin.id)?;
    }
    Ok(store.state().commit(batch)?)
}

/// Runs `work` beside a collection, and tells of that.
fn beside(
    store: &Store,
    figures: &mut Figures,
    work: impl FnOnce(&Windows) -> Outcome<()> + Send,
) -> Outcome<Windows> {
    let windows = Windows::new();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(&windows));
        let begun = Instant::now();
        let mut since = begun;
        let options = GcOptions { thorough: true, ..GcOptions::default() };
        let report = store.gc_with(options, &mut |progress| windows.stop(progress.phase, &mut since));
        windows.ended.store(true, Ordering::Relaxed);
        let took = begun.elapsed().as_secs_f64();
        figures.tell("collection, with that beside it, and stops", took, "s", None);
        println!("    {:?}", report?);
        worker.join().map_err(|_| "the worker panicked")?
    })?;
    Ok(windows)
}

/// The peak so far, less what this program itself keeps: the addresses of all blocks, and a file.
fn memory(figures: &mut Figures, name: &str) -> Outcome<()> {
    figures.tell(name, peak_memory()? as f64 / 1e6, "MB", None);
    Ok(())
}

fn disk(store: &Store, name: &str, figures: &mut Figures, at_most: Option<f64>) -> Outcome<()> {
    let stat = store.stat()?;
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for directory in store.directories()? {
        for entry in std::fs::read_dir(directory.path)? {
            let entry = entry?;
            let kind = entry.path().extension().unwrap_or_default().to_string_lossy().into_owned();
            *kinds.entry(kind).or_default() += entry.metadata()?.len();
        }
    }
    let each = stat.overhead_bytes as f64 / stat.blocks.max(1) as f64;
    figures.tell(name, stat.disk_bytes as f64 / stat.bytes.max(1) as f64, "x", at_most);
    println!(
        "    {} blocks, {} live, {} on disk, {each:.0} bytes over a block",
        stat.blocks, stat.bytes, stat.disk_bytes
    );
    println!("    in bytes by the endings of files: {kinds:?}");
    Ok(())
}
