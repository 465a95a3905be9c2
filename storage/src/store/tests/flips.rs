//! A thousand flipped bits in live data of blob files: reads and scrub find each, and none is ever served.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Blocks, each of which gets one flipped bit in every round.
const BLOCKS: u64 = 100;
const ROUNDS: usize = 10;

/// Bytes of a blob file before its first record, and after its last (RocksDB, `blob_log_format.h`).
const HEADER: usize = 30;
const FOOTER: usize = 32;
/// Bytes of a record before its name: lengths of name and value, an expiry, two checksums.
const RECORD: usize = 32;

/// Where the record of a block lies.
struct Place {
    file: PathBuf,
    at: usize,
    length: usize,
}

/// The records of a blob file that is whole, by the keys of their blocks.
fn records(file: &Path) -> Vec<(Key, Place)> {
    let bytes = std::fs::read(file).unwrap();
    let mut found = Vec::new();
    let mut at = HEADER;
    while at < bytes.len() - FOOTER {
        let number =
            |at: usize| usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap();
        let (name, value) = (number(at), number(at + 8));
        let length = RECORD + name + value;
        let block = hash::cid_v1(hash::RAW, &bytes[at + RECORD + name..at + length]);
        found.push((key(&block), Place { file: file.to_owned(), at, length }));
        at += length;
    }
    found
}

/// Where the live records are: in the files that were not there before.
fn live(dir: &Path, known: &mut HashSet<PathBuf>) -> HashMap<Key, Place> {
    let entries = std::fs::read_dir(dir.join("blocks")).unwrap().map(|entry| entry.unwrap().path());
    let new = entries.filter(|path| path.extension().is_some_and(|ending| ending == "blob"));
    let new: Vec<PathBuf> = new.filter(|path| known.insert(path.clone())).collect();
    new.iter().flat_map(|file| records(file)).collect()
}

/// Flips one bit somewhere in a record: in its header, its name or its value.
fn flip(place: &Place, rng: &mut SmallRng) {
    let at = (place.at + rng.random_range(0..place.length)) as u64;
    let file = File::options().read(true).write(true).open(&place.file).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << rng.random_range(0..8)], at).unwrap();
}

#[test]
fn each_of_a_thousand_flipped_bits_is_found_and_none_is_served() {
    let seed = rand::random();
    println!("seed: {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let leaves: Vec<_> = (0..BLOCKS).map(|number| block(number, rng.random_range(2000..12_000))).collect();
    let cids: Vec<Cid> = leaves.iter().map(|(cid, _)| *cid).collect();
    let root = node(0, &cids);
    put_all(&store, &[leaves.clone(), vec![root.clone()]].concat());
    let mut batch = store.state().batch();
    store.pin(&mut batch, &pin("own", PinKind::Recursive, root.0)).unwrap();
    store.state().commit(batch).unwrap();
    store.flush().unwrap();
    let lacking = |store: &Store| {
        let mut lacks = Vec::new();
        store.examine(&mut |found| lacks.extend(found.lacks)).unwrap();
        lacks.into_iter().collect::<HashSet<Cid>>()
    };
    let (mut known, mut found) = (HashSet::new(), 0);
    for round in 0..ROUNDS {
        let places = live(dir.path(), &mut known);
        for cid in &cids {
            flip(&places[&key(cid)], &mut rng);
        }
        // Some are asked for before the scrub comes by.
        for cid in cids.iter().filter(|_| rng.random()) {
            assert!(matches!(store.get(cid), Err(StoreError::Corrupt { cid: named }) if named == *cid));
            found += 1;
        }
        found += store.verify(None, &mut |_| true).unwrap().damaged;
        assert_eq!(found, (round as u64 + 1) * BLOCKS);
        for cid in &cids {
            assert_eq!(store.get(cid).unwrap(), None, "damage was served");
        }
        assert_eq!(store.get(&root.0).unwrap().as_ref(), Some(&root.1));
        assert_eq!(lacking(&store), cids.iter().copied().collect(), "what the pin lacks is named");
        put_all(&store, &leaves);
        store.flush().unwrap();
        assert_eq!(lacking(&store), HashSet::new());
        for (cid, data) in &leaves {
            assert_eq!(store.get(cid).unwrap().as_ref(), Some(data));
        }
    }
    assert_eq!(found, 1000);
    assert_eq!(store.stat().unwrap().quarantined_blocks, 0);
}
