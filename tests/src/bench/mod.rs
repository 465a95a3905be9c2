//! What the `btfs` program costs, each figure beside a yardstick taken in the same run on the same machine.
//!
//! `bin/bench.rs` calls [`run`]; `make bench` prints the table and `make bench CHECK=1` fails where a bound is missed.
//! All benches drive the built program over one pseudo-random file of 1 GiB, in temporary directories, on loopback:
//!
//! * `add`: user and system time of a `btfs add` process without a daemon, from its first instruction to its end, beside
//!   `openssl dgst -sha256` of the same file, which reads and hashes and does nothing else. They take turns; the middle
//!   runs count. `add --torrent` is told beside.
//! * `kubo`: the same file by `btfs add` and by Kubo's `ipfs add`, in memory and on a disk, beside what the machine can do.
//! * `small`: 100,000 files of 4 KiB by both.
//! * `cat`: reading a file that is in the system's cache.
//! * `cold`: reading blocks that are in no cache and checking their hashes, beside the hash alone.
//! * `erasure`: making parity of stored content, beside the coding library alone.
//! * `space`: bytes on the disk and written to it for each byte stored, memory, files left by many small adds.
//! * `get`: MiB a second of `btfs get CID` between two daemons connected over TCP, from the start of the command until
//!   the file is written, beside one raw libp2p stream over the same transports (`raw`: TCP, TLS, yamux, writes of
//!   256 KiB), which runs before and after; the mean counts. The result is compared with the source.
//! * `torrent`: user and system time of our daemon while libtorrent downloads the file from it by magnet link, and while it
//!   downloads the file from libtorrent, beside libtorrent in the same part towards another libtorrent.
//! * `demo`: `btfs demo` with the file: the largest peak of any of its processes.
//!
//! What is timed finds the memory there that it will need ([`process::have_memory`]).
//! A running process' time is what `/proc/PID/stat` says after, minus before; a peak of memory is `VmHWM`, caches
//! included. Files and repos lie in memory (`/dev/shm`) where there is room for them, so that the figures are the
//! program's and not the disk's: on one machine the same `add` took 2.3 s of CPU there and 4 s on its busy disk, most of
//! the difference in the file system. The table says where they were; what is about a disk lies below `--disk`. The source
//! is in the page cache and on the disk before the first bench. A program that fails, a peer that is missing or a file that
//! comes out different ends the run: no figure is better than a wrong one.

use std::path::{Path, PathBuf};

use crate::node;

mod add;
mod cat;
mod cold;
mod demo;
mod erasure;
mod floor;
mod get;
mod kubo;
mod process;
mod raw;
mod report;
mod space;
mod torrent;

pub use process::peak_memory;
use report::Report;

/// The benches, in the order they run.
pub const NAMES: [&str; 10] =
    ["add", "kubo", "small", "cat", "cold", "erasure", "space", "get", "torrent", "demo"];

/// Most bytes that any process may have resident at its peak: what leaves a machine with 1 GiB its use.
const MEMORY_BOUND: f64 = 300e6;
/// The same for an add, however large the file.
const ADD_MEMORY_BOUND: f64 = 150e6;

/// A file system in memory that Linux systems have.
const IN_MEMORY: &str = "/dev/shm";
/// Copies of the file that may lie there at once: the demo keeps the source, the renter's blocks, three times its size
/// with the hosts, and two readers' blocks and results; the rest is for the processes.
const COPIES: u64 = 12;

/// The same pseudo-random file in every run.
const SEED: u64 = 0x6265_6e63_6821;

const MIB: u64 = 1 << 20;

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether a missed bound is a failure.
    pub check: bool,
    /// Size of the file in MiB.
    pub mib: u64,
    /// Where files and repos lie; chosen by the room there is, if not given.
    pub dir: Option<PathBuf>,
    /// Where things lie that are about a disk.
    pub disk: PathBuf,
    /// Size in MiB of the file whose space is measured there.
    pub large_mib: u64,
    /// Names out of [`NAMES`].
    pub chosen: Vec<String>,
}

impl Options {
    /// Reads the arguments after the program's name; an error says what is wrong with them.
    pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options {
            check: false,
            mib: 1024,
            dir: None,
            disk: std::env::temp_dir(),
            large_mib: 2048,
            chosen: Vec::new(),
        };
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--check" => options.check = true,
                "--mib" | "--large-mib" => {
                    let size = arguments.next().and_then(|size| size.parse().ok()).filter(|mib| *mib > 0);
                    let size = size.ok_or_else(|| format!("{argument} wants a number of MiB above 0"))?;
                    *(if argument == "--mib" { &mut options.mib } else { &mut options.large_mib }) = size;
                }
                "--dir" | "--disk" => {
                    let dir = arguments.next().map(PathBuf::from).filter(|dir| dir.is_dir());
                    let dir = dir.ok_or_else(|| format!("{argument} wants a directory that is there"))?;
                    if argument == "--dir" { options.dir = Some(dir) } else { options.disk = dir }
                }
                name if NAMES.contains(&name) => options.chosen.push(argument),
                other => return Err(format!("there is no bench `{other}`")),
            }
        }
        if options.chosen.is_empty() {
            options.chosen = NAMES.map(str::to_owned).to_vec();
        }
        Ok(options)
    }
}

/// Where repos may lie.
struct Place {
    /// What it is called in the table.
    name: &'static str,
    dir: PathBuf,
    /// Whether syncs matter there.
    is_disk: bool,
}

/// The file that is moved.
struct Source {
    _dir: tempfile::TempDir,
    path: PathBuf,
    bytes: u64,
    sha256: String,
}

impl Source {
    fn make(mib: u64) -> Source {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("source.bin");
        let bytes = mib * MIB;
        node::random_file(&path, bytes, SEED);
        // On the disk now: its write-back would otherwise fall into the first bench.
        std::fs::File::open(&path).and_then(|file| file.sync_all()).expect("the file is synced");
        let sha256 = node::sha256(&path);
        Source { _dir: dir, path, bytes, sha256 }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("a temporary directory has a plain name")
    }

    fn gib(&self) -> f64 {
        self.bytes as f64 / (1024 * MIB) as f64
    }

    fn mib(&self) -> f64 {
        self.bytes as f64 / MIB as f64
    }

    /// Panics unless `copy` has the same content.
    fn must_equal(&self, copy: &Path) {
        assert_eq!(node::sha256(copy), self.sha256, "{} differs from its source", copy.display());
    }
}

/// Runs what was chosen, prints the table line by line as figures come, and tells how many bounds were missed.
pub fn run(options: &Options) -> usize {
    let dir = options.dir.clone().unwrap_or_else(|| place(options.mib * MIB));
    let memory =
        if dir == Path::new(IN_MEMORY) { "memory" } else { "a file system whose time is in the figures" };
    println!("{} MiB, in {}: {memory}", options.mib, dir.display());
    tempfile::env::override_temp_dir(&dir).expect("set once");
    let source = Source::make(options.mib);
    let name = if dir == Path::new(IN_MEMORY) { "memory" } else { "files" };
    let places = [
        Place { name, dir, is_disk: false },
        Place { name: "disk", dir: options.disk.clone(), is_disk: true },
    ];
    let disk = &places[1];
    let mut report = Report::begin();
    for name in NAMES.iter().filter(|name| options.chosen.iter().any(|chosen| chosen == *name)) {
        match *name {
            "add" => add::run(&source, &mut report),
            "kubo" => kubo::run(&source, &places, &mut report),
            "small" => kubo::run_small(&places, &mut report),
            "cat" => cat::run(&source, &mut report),
            "cold" => cold::run(&source, disk, &mut report),
            "erasure" => erasure::run(&mut report),
            "space" => space::run(options.large_mib, disk, &mut report),
            "get" => get::run(&source, &mut report),
            "torrent" => torrent::run(&source, &mut report),
            _ => demo::run(&source, &mut report),
        }
    }
    report.over()
}

/// Where files and repos for a file of `bytes` go: into memory, if they fit there and leave the rest its room.
fn place(bytes: u64) -> PathBuf {
    let fits = |free: u64| free / COPIES >= bytes;
    let room = rustix::fs::statvfs(IN_MEMORY).is_ok_and(|stat| fits(stat.f_bavail * stat.f_frsize));
    if room && memory_available().is_some_and(fits) { IN_MEMORY.into() } else { std::env::temp_dir() }
}

/// Bytes of memory that the system could give without swapping.
fn memory_available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, String> {
        Options::parse(arguments.iter().map(|argument| (*argument).to_owned()))
    }

    #[test]
    fn without_names_all_run() {
        let options = parse(&["--check"]).expect("valid");
        assert!(options.check);
        assert_eq!((options.mib, options.chosen.len()), (1024, NAMES.len()));
    }

    #[test]
    fn names_choose_and_nonsense_is_refused() {
        let options = parse(&["get", "--mib", "64", "--large-mib", "128", "--disk", "/"]).expect("valid");
        let expected = Options {
            check: false,
            mib: 64,
            dir: None,
            disk: "/".into(),
            large_mib: 128,
            chosen: vec!["get".into()],
        };
        assert_eq!(options, expected);
        assert!(parse(&["--mib"]).is_err());
        assert!(parse(&["--large-mib"]).is_err());
        assert!(parse(&["--mib", "0"]).is_err());
        assert!(parse(&["--dir", "/no/such/place"]).is_err());
        assert!(parse(&["gets"]).unwrap_err().contains("gets"));
    }
}
