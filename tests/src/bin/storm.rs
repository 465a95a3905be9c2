//! Does everything to one store at once, until it is killed: the process behind `suite::crash::storm`.
//!
//! usage: storm DIR SEED
//!
//! Threads add files, pin and unpin them, run into the quota, collect, scrub, and copy the store, all drawn from SEED.
//! What was acknowledged is told on stdout, one line each, after it was: `A id seed length cid` (added and pinned),
//! `U id` (about to be unpinned), `B path` (a backup is whole); and so that it is known what was tried, `P` (pinned once
//! more), `Q` (refused by the quota), `G` (collected), `S` (scrubbed from end to end). `R` comes first, when the store is
//! open. Files follow from their seed, so that whoever reads the lines can tell what has to be there.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, bail};
use btfs_storage::import::{Profile, import_reader};
use btfs_storage::{Class, GcOptions, Pin, PinKind, Store, StoreError};
use btfs_tests::storm::{content, open};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Who adds at once.
const ADDERS: u64 = 2;
/// Most files are small, and acknowledged by the log alone; one in so many is not.
const LARGE_ONE_IN: u32 = 12;
/// Largest small and large files in bytes.
const SMALL: usize = 200_000;
const LARGE: usize = 6 << 20;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(seed)) = (arguments.next(), arguments.next()) else {
        bail!("usage: storm DIR SEED");
    };
    let (dir, seed) = (PathBuf::from(dir), seed.parse::<u64>().context("SEED is a number")?);
    let store = open(&dir)?;
    tell("R");
    let added: Vec<String> = store.pins()?.into_iter().map(|pin| pin.id.0).collect();
    let added = Mutex::new(added);
    std::thread::scope(|scope| {
        let (store, added, dir) = (&store, &added, dir.as_path());
        let mut workers = Vec::new();
        for number in 0..ADDERS {
            workers.push(scope.spawn(move || add(store, added, seed ^ (number + 1))));
        }
        workers.push(scope.spawn(move || collect(store, seed)));
        workers.push(scope.spawn(move || scrub(store)));
        workers.push(scope.spawn(move || back_up(store, dir)));
        // None of them ends by itself: this process is killed.
        for worker in workers {
            worker.join().expect("no panic")?;
        }
        Ok(())
    })
}

/// One line, whole: what is killed in the middle of it was not told.
fn tell(line: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that went away has killed us, or is about to.
    let _ = out.write_all(format!("{line}\n").as_bytes()).and_then(|()| out.flush());
}

fn add(store: &Store, added: &Mutex<Vec<String>>, seed: u64) -> anyhow::Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    loop {
        let large = rng.random_ratio(1, LARGE_ONE_IN);
        let length = rng.random_range(1..if large { LARGE } else { SMALL });
        let of: u64 = rng.random();
        let id = format!("own:{of:016x}");
        match add_one(store, &id, of, length) {
            Ok(cid) => {
                tell(&format!("A {id} {of} {length} {cid}"));
                added.lock().expect("no panic").push(id);
            }
            Err(StoreError::QuotaExceeded { .. }) => {
                tell("Q");
                for _ in 0..4 {
                    unpin_one(store, added, &mut rng)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        if rng.random_ratio(1, 3) {
            unpin_one(store, added, &mut rng)?;
        }
        if rng.random_ratio(1, 4) {
            pin_again(store, added, &mut rng)?;
        }
    }
}

fn add_one(store: &Store, id: &str, seed: u64, length: usize) -> Result<btfs_storage::Cid, StoreError> {
    let bytes = content(seed, length);
    let mut ingest = store.ingest(Class::Own)?;
    let done = match import_reader(&bytes[..], &Profile::V0_2015, &mut ingest, &mut |_| {}) {
        Ok(done) => done,
        Err(btfs_storage::import::ImportError::Store(error)) => return Err(error),
        Err(other) => panic!("bytes in memory can be read: {other}"),
    };
    let kind = PinKind::Recursive;
    let pin = Pin { id: id.into(), kind, root: done.root, class: Class::Own, name: None, expires: None };
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin)?;
    ingest.finish(batch)?;
    Ok(done.root)
}

fn unpin_one(store: &Store, added: &Mutex<Vec<String>>, rng: &mut SmallRng) -> anyhow::Result<()> {
    let Some(id) = take(added, rng) else { return Ok(()) };
    tell(&format!("U {id}"));
    let mut batch = store.state().batch();
    store.unpin(&mut batch, &id.as_str().into())?;
    Ok(store.state().commit(batch)?)
}

/// Pins something that is pinned once more, under a name: its blocks are stamped, and nothing else changes.
fn pin_again(store: &Store, added: &Mutex<Vec<String>>, rng: &mut SmallRng) -> anyhow::Result<()> {
    // Taken out, so that nobody unpins it meanwhile.
    let Some(id) = take(added, rng) else { return Ok(()) };
    let pin = store.pin_get(&id.as_str().into())?.with_context(|| format!("{id} is gone"))?;
    let mut batch = store.state().batch();
    store.pin(&mut batch, &Pin { name: Some("again".into()), ..pin })?;
    store.state().commit(batch)?;
    tell("P");
    added.lock().expect("no panic").push(id);
    Ok(())
}

fn take(added: &Mutex<Vec<String>>, rng: &mut SmallRng) -> Option<String> {
    let mut added = added.lock().expect("no panic");
    let which = rng.random_range(0..added.len().max(1));
    (which < added.len()).then(|| added.swap_remove(which))
}

fn collect(store: &Store, seed: u64) -> anyhow::Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    loop {
        let options = GcOptions { thorough: rng.random_ratio(1, 3), dry_run: rng.random_ratio(1, 8) };
        store.gc_with(options, &mut |_| {})?;
        tell("G");
    }
}

fn scrub(store: &Store) -> anyhow::Result<()> {
    let mut next = None;
    loop {
        let page = store.scrub(next.as_ref(), 16)?;
        if !page.damaged.is_empty() {
            bail!("damaged: {:?}", page.damaged);
        }
        next = page.next;
        if next.is_none() {
            tell("S");
        }
    }
}

fn back_up(store: &Store, dir: &Path) -> anyhow::Result<()> {
    for number in 0.. {
        let path = dir.with_extension(format!("backup-{}", number % 2));
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        store.backup(&path)?;
        tell(&format!("B {}", path.display()));
    }
    Ok(())
}
