use arrayvec::ArrayVec;
use proptest::prelude::*;

use super::*;

const WORDS: Table<String, u64> = Table::new("test.words");
const PAIRS: Table<(String, u64), String> = Table::new("test.pairs");

fn open(dir: &Path) -> StateDb {
    StateDb::open(dir, &[WORDS.name(), PAIRS.name()]).unwrap()
}

#[test]
fn batches_are_atomic_and_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let mut batch = db.batch();
    batch.put(&WORDS, &"one".into(), &1).unwrap();
    batch.put(&PAIRS, &("a".into(), 7), &"x".into()).unwrap();
    db.commit(batch).unwrap();
    let mut forgotten = db.batch();
    forgotten.put(&WORDS, &"two".into(), &2).unwrap();
    drop(forgotten);
    drop(db);

    let db = open(dir.path());
    assert_eq!(db.get(&WORDS, &"one".into()).unwrap(), Some(1));
    assert_eq!(db.get(&WORDS, &"two".into()).unwrap(), None);
    assert_eq!(db.get(&PAIRS, &("a".into(), 7)).unwrap(), Some("x".into()));
    let mut batch = db.batch();
    batch.delete(&WORDS, &"one".into()).unwrap();
    db.commit(batch).unwrap();
    assert!(!db.contains(&WORDS, &"one".into()).unwrap());
}

#[test]
fn a_note_is_there_at_once_and_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    for value in [1, 2] {
        db.note(&WORDS, &"far".into(), &value).unwrap();
        assert_eq!(db.get(&WORDS, &"far".into()).unwrap(), Some(value));
    }
    drop(db);
    assert_eq!(open(dir.path()).get(&WORDS, &"far".into()).unwrap(), Some(2));
}

#[test]
fn a_refused_check_keeps_the_whole_batch_out() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let mut batch = db.batch();
    batch.put(&WORDS, &"one".into(), &1).unwrap();
    batch.check_before(Box::new(|| Err("no".into())));
    assert!(matches!(db.commit(batch), Err(DbError::Refused(_))));
    assert_eq!(db.get(&WORDS, &"one".into()).unwrap(), None);
}

#[test]
fn scans_keep_to_their_prefix_and_order() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    let mut batch = db.batch();
    for (name, number) in [("b", 2), ("a", 300), ("a", 5), ("a\0", 1), ("ab", 1)] {
        batch.put(&PAIRS, &(name.into(), number), &format!("{name}{number}")).unwrap();
    }
    db.commit(batch).unwrap();
    let keys = |prefix: &[u8]| -> Vec<(String, u64)> {
        db.scan(&PAIRS, prefix).map(|record| record.unwrap().0).collect()
    };
    assert_eq!(keys(&head(&"a".to_string())), [("a".into(), 5), ("a".into(), 300)]);
    let all = keys(&[]);
    assert!(all.is_sorted());
    assert_eq!(all.len(), 5);
    let from: Vec<_> =
        db.scan_from(&PAIRS, &("ab".to_string(), 0u64).encode()).map(|r| r.unwrap().0).collect();
    assert_eq!(from, [("ab".into(), 1), ("b".into(), 2)]);
}

#[test]
fn tables_of_other_builds_are_kept() {
    const OTHER: Table<u64, u64> = Table::new("test.other");
    let dir = tempfile::tempdir().unwrap();
    let db = StateDb::open(dir.path(), &[OTHER.name()]).unwrap();
    let mut batch = db.batch();
    batch.put(&OTHER, &1, &2).unwrap();
    db.commit(batch).unwrap();
    drop(db);
    let db = open(dir.path());
    const UNNAMED: Table<u64, u64> = Table::new("test.unnamed");
    assert!(matches!(db.get(&UNNAMED, &1), Err(DbError::UnknownTable { .. })));
    assert_eq!(db.get(&OTHER, &1).unwrap(), Some(2));
}

#[test]
fn a_newer_schema_and_a_second_opener_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    assert!(matches!(StateDb::open(dir.path(), &[]), Err(DbError::InUse { .. })));
    db.inner.db.put(SCHEMA_KEY, (SCHEMA + 1).to_be_bytes()).unwrap();
    drop(db);
    let error = StateDb::open(dir.path(), &[]).err().unwrap();
    assert!(matches!(error, DbError::Newer { found, known, .. } if found == SCHEMA + 1 && known == SCHEMA));
    let told = format!("schema version {}, this program knows versions up to {SCHEMA}", SCHEMA + 1);
    assert!(error.to_string().contains(&told), "{error}");
}

/// The newest log file of a database.
fn log_file(dir: &Path) -> PathBuf {
    let mut logs: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "log"))
        .collect();
    logs.sort();
    logs.pop().unwrap()
}

/// A database directory with three commits in its log, copied while open as a crash would leave it.
fn crashed() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let db = open(dir.path());
    for (word, number) in [("one", 1), ("two", 2), ("three", 3)] {
        let mut batch = db.batch();
        batch.put(&WORDS, &word.into(), &number).unwrap();
        db.commit(batch).unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    let log = log_file(copy.path());
    (copy, log)
}

#[test]
fn a_torn_tail_of_the_log_is_forgotten() {
    let (dir, log) = crashed();
    let bytes = std::fs::read(&log).unwrap();
    std::fs::write(&log, &bytes[..bytes.len() - 3]).unwrap();
    let db = open(dir.path());
    assert_eq!(db.get(&WORDS, &"two".into()).unwrap(), Some(2));
    assert_eq!(db.get(&WORDS, &"three".into()).unwrap(), None);
}

#[test]
fn a_hole_in_the_log_is_refused() {
    let (dir, log) = crashed();
    let mut bytes = std::fs::read(&log).unwrap();
    let at = bytes.windows(3).position(|window| window == b"two").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&log, &bytes).unwrap();
    assert!(matches!(StateDb::open(dir.path(), &[]), Err(DbError::Damaged { .. })));
}

proptest! {
    #[test]
    fn tuple_keys_come_back_and_keep_their_order(
        a in (proptest::collection::vec(0u8..3, 0..4), any::<u64>()),
        b in (proptest::collection::vec(0u8..3, 0..4), any::<u64>()),
    ) {
        prop_assert_eq!(TableKey::decode(&a.encode()), Some(a.clone()));
        prop_assert_eq!(a.encode().cmp(&b.encode()), a.cmp(&b));
        let (a, b) = ((a.1, a.0.clone(), a.0), (b.1, b.0.clone(), b.0));
        prop_assert_eq!(TableKey::decode(&a.encode()), Some(a.clone()));
        prop_assert_eq!(a.encode().cmp(&b.encode()), a.cmp(&b));
    }

    #[test]
    fn key_decoders_survive_anything(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = <(String, u64)>::decode(&bytes);
        let _ = <(Vec<u8>, String, [u8; 4])>::decode(&bytes);
        let most = ArrayVec::<u8, 20>::decode(&bytes);
        prop_assert_eq!(most.map(|key| key.encode()), (bytes.len() <= 20).then_some(bytes));
    }
}
