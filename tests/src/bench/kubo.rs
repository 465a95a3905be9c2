//! `btfs add` beside Kubo's `ipfs add`, both without a daemon, of one large file and of many small ones.
//!
//! Both programs make the same blocks (profile `unixfs-v1-2025` in both, and the roots must be equal) in a fresh repo,
//! taking turns; the middle run counts. Kubo's store is its default, flatfs: a file for each block. By default Kubo does
//! not sync these files, and what it has acknowledged may be lost. In memory that makes no difference. On a disk it is
//! measured as it is set up, with the time of a `syncfs` after its end, and with `sync = true`, by which it promises what
//! `btfs add` promises.
//!
//! Asked for is four times Kubo's rate with the large file. Beside stands what the machine can do ([`floor`]): all cores
//! read, hash and write the same bytes, and do nothing else. Where that is not four times as fast as Kubo no program that
//! keeps a copy can be; then the line says so, and the bound is [`SHARE`] of it. The hash alone is told, too. On two cores
//! with AVX-512, in memory: Kubo 0.42 adds 795 to 856 MiB/s, and all that can be done are 2,249 to 2,422 (with the hash alone
//! 3,344 to 3,540), so that three times Kubo is the end.

use std::path::Path;
use std::time::Instant;

use super::process::{self, Usage, median};
use super::report::{Bound, Line, Report};
use super::{MIB, Place, Source, floor};
use crate::ipfs::Ipfs;
use crate::node::Node;

/// Runs of Kubo with the large file; ours run before, between and after.
const ROUNDS: usize = 4;
/// With the small files, which take Kubo half a minute.
const SMALL_ROUNDS: usize = 1;
/// Directories of small files,
const DIRECTORIES: u64 = 100;
/// files in each,
const FILES: u64 = 1000;
/// and bytes of each.
const FILE_SIZE: usize = 4096;

/// Bytes of memory that a run of either takes at most, the files that it writes included.
const ROOM: u64 = 1536 * MIB;

/// How many times Kubo's rate the large file must be added with,
const TIMES: f64 = 4.0;
/// or else this share of what the machine can do: it was 0.47 to 0.55 in eight runs, and less would be a step back.
const SHARE: f64 = 0.45;

/// The large file, in every place.
pub(super) fn run(source: &Source, places: &[Place], report: &mut Report) {
    tell_version();
    let task = Task { name: "add", unit: "MiB/s", path: &source.path, rounds: ROUNDS, times: TIMES };
    for place in places {
        let rate = |wall: f64| source.mib() / wall;
        let turns = task.take_turns(place);
        let middle = |of: &dyn Fn() -> f64| rate(median((0..=ROUNDS).map(|_| of()).collect()));
        let (hashed, copied) =
            (middle(&|| floor::hashed(source)), middle(&|| floor::hashed_and_copied(source, &place.dir)));
        let value = task.tell(place, &turns, Some(copied), &rate, report);
        let name = format!("add, in {}", place.name);
        let bound = Bound::RatioAtLeast(SHARE);
        for (yardstick, bound) in [((copied, "hash+copy"), bound), ((hashed, "hash"), Bound::None)] {
            report.line(Line { name: &name, value, unit: task.unit, yardstick: Some(yardstick), bound });
        }
    }
}

/// The small files, in every place.
pub(super) fn run_small(places: &[Place], report: &mut Report) {
    tell_version();
    let tree = tempfile::tempdir().expect("a temporary directory");
    make_tree(tree.path());
    let path = tree.path();
    let task = Task { name: "add 100,000 files", unit: "files/s", path, rounds: SMALL_ROUNDS, times: 10.0 };
    for place in places {
        let turns = task.take_turns(place);
        task.tell(place, &turns, None, &|wall| (DIRECTORIES * FILES) as f64 / wall, report);
    }
}

/// A tree of small files, no two alike.
pub(super) fn make_tree(tree: &Path) {
    use rand::{Rng, SeedableRng};
    let mut rng = rand::rngs::SmallRng::seed_from_u64(super::SEED);
    let mut content = [0; FILE_SIZE];
    for directory in 0..DIRECTORIES {
        let directory = tree.join(format!("{directory:03}"));
        std::fs::create_dir(&directory).expect("a new directory");
        for file in 0..FILES {
            rng.fill_bytes(&mut content);
            std::fs::write(directory.join(format!("{file:04}")), content).expect("a new file");
        }
    }
}

/// What the runs took.
struct Turns {
    ours: Vec<Usage>,
    kubo: Vec<Usage>,
    /// Kubo with syncs, on a disk.
    synced: Vec<Usage>,
}

/// What is added, by whom and how often.
struct Task<'a> {
    name: &'a str,
    unit: &'a str,
    path: &'a Path,
    rounds: usize,
    /// Ours over Kubo's rate at least, where both promise the same.
    times: f64,
}

impl Task<'_> {
    /// Tells rates and CPU of both, and answers our rate. `most` is the rate that the machine can do, if that is known.
    fn tell(
        &self,
        place: &Place,
        Turns { ours, kubo, synced }: &Turns,
        most: Option<f64>,
        rate: &dyn Fn(f64) -> f64,
        report: &mut Report,
    ) -> f64 {
        let middle = |all: &[Usage], of: fn(&Usage) -> f64| median(all.iter().map(of).collect());
        let (name, value) =
            (format!("{}, in {}", self.name, place.name), rate(middle(ours, |usage| usage.wall)));
        let mut line = |kubo: &[Usage], yardstick: &str, counts: bool| {
            let kubo = rate(middle(kubo, |usage| usage.wall));
            let bound = match counts {
                true if most.is_some_and(|most| most < kubo * self.times) => Bound::RatioBeyond(self.times),
                true => Bound::RatioAtLeast(self.times),
                false => Bound::None,
            };
            let yardstick = Some((kubo, yardstick));
            report.line(Line { name: &name, value, unit: self.unit, yardstick, bound });
        };
        if synced.is_empty() {
            line(kubo, "Kubo", true);
        } else {
            line(synced, "Kubo, sync", true);
            line(kubo, "Kubo+syncfs", false);
        }
        let yardstick = Some((middle(kubo, |usage| usage.cpu), "Kubo"));
        let (name, cpu) = (format!("{name}, CPU"), middle(ours, |usage| usage.cpu));
        report.line(Line { name: &name, value: cpu, unit: "s", yardstick, bound: Bound::None });
        value
    }

    fn take_turns(&self, place: &Place) -> Turns {
        let (first, root) = ours(self.path, &place.dir);
        let mut turns = Turns { ours: vec![first], kubo: Vec::new(), synced: Vec::new() };
        let same = |other: &str| assert_eq!(root, other, "the programs made different blocks");
        for _ in 0..self.rounds {
            for (runs, sync) in [(&mut turns.kubo, false), (&mut turns.synced, true)] {
                if sync && !place.is_disk {
                    continue;
                }
                let (kubo, root) = kubo(self.path, place, sync);
                same(&root);
                runs.push(kubo);
            }
            let (ours, root) = ours(self.path, &place.dir);
            same(&root);
            turns.ours.push(ours);
        }
        turns
    }
}

fn ours(path: &Path, dir: &Path) -> (Usage, String) {
    let node = Node::init_below(dir, None);
    // What others left to be written is not on our account.
    rustix::fs::sync();
    process::have_memory(ROOM);
    let path = path.to_str().expect("a plain name");
    let usage = process::run(&mut node.command(&["add", "--quieter", path]));
    let root = String::from_utf8_lossy(&usage.stdout).trim().to_owned();
    (usage, root)
}

fn kubo(path: &Path, place: &Place, sync: bool) -> (Usage, String) {
    let ipfs = Ipfs::init_below(&place.dir);
    ipfs.run(&["config", "profile", "apply", "unixfs-v1-2025"]);
    if sync {
        sync_blocks(&ipfs);
    }
    rustix::fs::sync();
    process::have_memory(ROOM);
    let path = path.to_str().expect("a plain name");
    let mut usage = process::run(&mut ipfs.command(&["add", "-r", "-Q", "--offline", path]));
    if place.is_disk && !sync {
        let begun = Instant::now();
        let repo = std::fs::File::open(ipfs.file("repo")).expect("Kubo's repo");
        rustix::fs::syncfs(&repo).expect("the file system is synced");
        usage.wall += begun.elapsed().as_secs_f64();
    }
    let root = String::from_utf8_lossy(&usage.stdout).trim().to_owned();
    (usage, root)
}

/// Lets Kubo sync each block's file. How it stores is recorded beside its configuration, too, without what does not
/// change the files, so this setting is in the one alone.
fn sync_blocks(ipfs: &Ipfs) {
    let spec = ipfs.text(&["config", "Datastore.Spec"]);
    let synced = spec.replacen("\"sync\": false", "\"sync\": true", 1);
    assert_ne!(spec, synced, "Kubo's store has no such setting: {spec}");
    ipfs.run(&["config", "--json", "Datastore.Spec", &synced]);
}

/// Says which Kubo it is.
fn tell_version() {
    let version = Ipfs::init_below(&tempfile::env::temp_dir()).text(&["version", "--number"]);
    println!("Kubo {version}, blocks in flatfs, which syncs only where that is said");
}
