//! A hundred kills in the middle of everything that a store does: adding, pinning, unpinning, running into the quota,
//! collecting, scrubbing, copying (`bin/storm.rs` does it all at once).
//!
//! After each the store is opened here and must have every file whose pin was acknowledged and not taken back, byte for
//! byte; then, after a collection, nothing beside what pins explain. The last copy that was told to be whole must be.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use btfs_storage::read::{self, FileReader};
use btfs_storage::{Cid, GcOptions, Store};
use btfs_tests::storm::{content, open};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Kills, unless `BTFS_CRASH_KILLS` says more.
const KILLS: usize = 100;
/// The longest that a storm lasts, from when its store is open.
const LONGEST: Duration = Duration::from_millis(250);
/// One kill in so many is counted from the start of the process, and so may hit what it mends when it opens.
const EARLY_ONE_IN: u32 = 5;
/// What has to be told, and how often at least, for all to have been tried (see `bin/storm.rs`).
const TRIED: [(char, usize); 7] =
    [('A', 100), ('U', 50), ('P', 25), ('Q', 10), ('G', 25), ('S', 25), ('B', 5)];
/// Times as many kills as wanted, at most.
const MOST: usize = 4;
/// A copy is looked into after every so many kills.
const COPY_EVERY: usize = 10;

/// A file that was acknowledged.
#[derive(Clone, Debug)]
struct File {
    seed: u64,
    length: usize,
    cid: Cid,
}

/// What was told so far.
#[derive(Default)]
struct Told {
    files: BTreeMap<String, File>,
    /// The unpinning of these was announced: they may be there or not.
    doubtful: BTreeMap<String, File>,
    copy: Option<PathBuf>,
    counts: HashMap<char, usize>,
}

impl Told {
    /// What was told too seldom.
    fn lacks(&self) -> Option<char> {
        let seldom = |(what, least): &&(char, usize)| self.counts.get(what).is_none_or(|count| count < least);
        TRIED.iter().find(seldom).map(|(what, _)| *what)
    }

    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let mut word = || words.next().expect("a whole line");
        let what = word().chars().next().expect("a letter");
        *self.counts.entry(what).or_default() += 1;
        match what {
            'A' => {
                let (id, seed, length, cid) = (word(), word(), word(), word());
                let seed = seed.parse().expect("a seed");
                let length = length.parse().expect("a length");
                let file = File { seed, length, cid: cid.parse().expect("a CID") };
                self.files.insert(id.to_owned(), file);
            }
            'U' => {
                let id = word();
                if let Some(file) = self.files.remove(id) {
                    self.doubtful.insert(id.to_owned(), file);
                }
            }
            'B' => self.copy = Some(PathBuf::from(word())),
            'R' | 'P' | 'Q' | 'G' | 'S' => {}
            other => panic!("the storm said {other}"),
        }
    }
}

/// Runs a storm, kills it after `moment`, or that early after its start, and hears what it told.
fn storm(dir: &Path, seed: u64, moment: Duration, early: bool, told: &mut Told) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_storm"))
        .arg(dir)
        .arg(seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the storm starts");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    if !early {
        let mut first = String::new();
        lines.read_line(&mut first).expect("stdout is read");
        assert_eq!(first, "R\n", "the storm did not begin");
    }
    // A copy of the store before this storm is in the way of the next, or being written.
    told.copy = None;
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut line = String::new();
        while lines.read_line(&mut line).expect("stdout is read") > 0 {
            // What was cut short was not told.
            all.extend(line.strip_suffix('\n').map(str::to_owned));
            line.clear();
        }
        all
    });
    std::thread::sleep(moment);
    let ended = child.try_wait().expect("our own child");
    assert!(ended.is_none(), "the storm ended by itself: {ended:?}");
    child.kill().expect("our own child can be killed");
    child.wait().expect("our own child ends");
    for line in reader.join().expect("the lines were read") {
        told.hear(&line);
    }
}

/// Whether a file is there, whole; panics if it is there and another.
fn must_be_whole(store: &Store, id: &str, file: &File) {
    let pin = store.pin_get(&id.into()).expect("the pins are read").unwrap_or_else(|| panic!("{id} is lost"));
    assert_eq!(pin.root, file.cid);
    let mut reader = FileReader::open(store.clone(), &file.cid).unwrap_or_else(|e| panic!("{id}: {e}"));
    let mut bytes = Vec::with_capacity(file.length);
    while let Some(some) = reader.next_bytes().unwrap_or_else(|e| panic!("{id}: {e}")) {
        bytes.extend_from_slice(&some);
    }
    assert!(bytes == content(file.seed, file.length), "{id} is another");
}

/// Everything that was acknowledged is there, and after a collection nothing else.
fn check(dir: &Path, told: &mut Told) {
    let store = open(dir).expect("the store opens");
    for (id, file) in std::mem::take(&mut told.doubtful) {
        if store.pin_get(&id.as_str().into()).expect("the pins are read").is_some() {
            told.files.insert(id, file);
        }
    }
    for (id, file) in &told.files {
        must_be_whole(&store, id, file);
    }
    // Pins beside those that were told are whole, too: the storm was killed before it could tell.
    store.gc_with(GcOptions { thorough: true, ..GcOptions::default() }, &mut |_| {}).expect("it collects");
    let incomplete = store.examine(&mut |found| println!("{found:?}")).expect("the pins are walked");
    assert_eq!(incomplete, 0);
    let mut explained = HashMap::new();
    for pin in store.pins().expect("the pins are read") {
        for block in read::walk(&store, &pin.root) {
            let (cid, size) = block.expect("pinned blocks are here");
            explained.insert(cid.hash().to_bytes(), size);
        }
    }
    explained.retain(|_, size| *size > 0);
    let stat = store.stat().expect("it is counted");
    let bytes: u64 = explained.values().sum();
    assert_eq!((stat.blocks, stat.bytes), (explained.len() as u64, bytes), "space that no pin explains");
    assert_eq!(stat.quarantined_blocks, 0);
    // Blob files hold what is live and little else: headers, and what is not worth another writing.
    let most = bytes + bytes / 8 + (4 << 20);
    // Files go a moment after they are let go.
    super::until("dead space is returned", || {
        let disk_bytes = store.stat().expect("it is counted").disk_bytes;
        (disk_bytes <= most).then_some(())
    });
    store.close().expect("it closes");
}

/// A copy that was told to be whole is.
fn check_copy(path: &Path) {
    let store = open(path).expect("the copy opens");
    let verified = store.verify(None, &mut |_| true).expect("the copy is read");
    assert_eq!(verified.damaged, 0);
    let incomplete = store.examine(&mut |found| println!("{found:?}")).expect("the pins are walked");
    assert_eq!(incomplete, 0, "the copy lacks blocks");
}

#[test]
fn a_store_keeps_what_it_acknowledged_through_a_hundred_kills() {
    let mut rng = SmallRng::seed_from_u64(super::seed());
    // A kill loses nothing that was written, synced or not, so a disk adds nothing but time.
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let parent = tempfile::tempdir_in(parent).expect("a temporary directory");
    let dir = parent.path().join("store");
    let mut told = Told::default();
    let kills = match std::env::var("BTFS_CRASH_KILLS") {
        Ok(text) => text.parse().expect("BTFS_CRASH_KILLS is a number"),
        Err(_) => KILLS,
    };
    let mut kill = 0;
    // On a busy machine a storm does little before its kill, so it goes on until everything was tried.
    while kill < kills || (told.lacks().is_some() && kill < MOST * kills) {
        kill += 1;
        let (seed, moment) = (rng.random(), LONGEST.mul_f64(rng.random()));
        storm(&dir, seed, moment, rng.random_ratio(1, EARLY_ONE_IN), &mut told);
        check(&dir, &mut told);
        if kill % COPY_EVERY == 0
            && let Some(copy) = &told.copy
        {
            check_copy(copy);
        }
    }
    println!("{kill} kills; told: {:?}; {} files in the end", told.counts, told.files.len());
    assert_eq!(told.lacks(), None, "too little of it was tried");
}
