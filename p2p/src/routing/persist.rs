//! The routing tables on disk: read once at the start, written behind.

use std::collections::HashMap;

use btfs_storage::db::{DbError, StateDb, Table};
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;
use sha2::{Digest, Sha256};

use super::book::FORGET_AFTER;

/// Others' provider records: (key, peer id) to expiry and addresses.
const RECORDS: Table<(Vec<u8>, Vec<u8>), StoredRecord> = Table::new("p2p.records");

/// Our own keys, in Kademlia order (by the SHA-256 of the key), so that a region of the key space is one scan; with the
/// Unix time of the last announcement, 0 for never.
const PROVIDED: Table<([u8; 32], Vec<u8>), u64> = Table::new("p2p.provided");

/// The address book: peer id to addresses.
const PEERS: Table<Vec<u8>, StoredPeer> = Table::new("p2p.peers");

/// The tables of this crate in the state database: for `StoreOptions::tables`.
pub const TABLES: &[&str] = &[RECORDS.name(), PROVIDED.name(), PEERS.name()];

/// Changes put into one batch: a few hundred kilobytes.
const BATCH: usize = 2000;

#[derive(Debug, Serialize, Deserialize)]
struct StoredRecord {
    expires: u64,
    addresses: Vec<ByteBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct StoredPeer {
    seen: u64,
    addresses: Vec<ByteBuf>,
}

/// A provider record on its way to or from disk.
#[derive(Debug)]
pub(crate) struct RecordRow {
    pub(crate) key: Vec<u8>,
    pub(crate) provider: PeerId,
    /// Unix seconds; `None`: the record is gone.
    pub(crate) expires: Option<u64>,
    pub(crate) addresses: Vec<Multiaddr>,
}

/// An address book entry on its way to or from disk; `None`: forgotten.
pub(crate) type PeerRow = (PeerId, Option<(Vec<Multiaddr>, u64)>);

/// What is to be written.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) records: Vec<RecordRow>,
    pub(crate) peers: Vec<PeerRow>,
    /// Own keys that were announced, and when.
    pub(crate) announced: HashMap<Vec<u8>, u64>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.peers.is_empty() && self.announced.is_empty()
    }
}

/// What was read.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) records: Vec<RecordRow>,
    pub(crate) peers: Vec<PeerRow>,
    /// Own keys and the time of their last announcement.
    pub(crate) provided: Vec<(Vec<u8>, Option<u64>)>,
}

fn provided_key(key: &[u8]) -> ([u8; 32], Vec<u8>) {
    (Sha256::digest(key).into(), key.to_vec())
}

fn to_bytes(addresses: &[Multiaddr]) -> Vec<ByteBuf> {
    addresses.iter().map(|a| ByteBuf::from(a.to_vec())).collect()
}

/// Addresses of a kind that this build does not know are left out.
fn from_bytes(addresses: Vec<ByteBuf>) -> Vec<Multiaddr> {
    addresses.into_iter().filter_map(|bytes| Multiaddr::try_from(bytes.into_vec()).ok()).collect()
}

/// Reads everything that is still of use at `now`; deletes the rest. Blocking.
pub(crate) fn load(db: &StateDb, now: u64) -> Result<Loaded, DbError> {
    let mut loaded = Loaded::default();
    let mut stale = db.batch();
    for row in db.scan(&RECORDS, &[]) {
        let (key, record) = row?;
        match PeerId::from_bytes(&key.1) {
            Ok(provider) if record.expires > now => loaded.records.push(RecordRow {
                key: key.0,
                provider,
                expires: Some(record.expires),
                addresses: from_bytes(record.addresses),
            }),
            _ => stale.delete(&RECORDS, &key)?,
        }
    }
    for row in db.scan(&PEERS, &[]) {
        let (key, peer) = row?;
        match PeerId::from_bytes(&key) {
            Ok(id) if peer.seen + FORGET_AFTER > now => {
                loaded.peers.push((id, Some((from_bytes(peer.addresses), peer.seen))));
            }
            _ => stale.delete(&PEERS, &key)?,
        }
    }
    for row in db.scan(&PROVIDED, &[]) {
        let ((_, key), last) = row?;
        loaded.provided.push((key, (last > 0).then_some(last)));
    }
    db.commit(stale)?;
    Ok(loaded)
}

/// Writes `changes`, in batches. Blocking.
pub(crate) fn write(db: &StateDb, changes: &Changes) -> Result<(), DbError> {
    for rows in changes.records.chunks(BATCH) {
        let mut batch = db.batch();
        for row in rows {
            let key = (row.key.clone(), row.provider.to_bytes());
            match row.expires {
                Some(expires) => {
                    let record = StoredRecord { expires, addresses: to_bytes(&row.addresses) };
                    batch.put(&RECORDS, &key, &record)?;
                }
                None => batch.delete(&RECORDS, &key)?,
            }
        }
        db.commit(batch)?;
    }
    for rows in changes.peers.chunks(BATCH) {
        let mut batch = db.batch();
        for (peer, entry) in rows {
            match entry {
                Some((addresses, seen)) => {
                    let stored = StoredPeer { seen: *seen, addresses: to_bytes(addresses) };
                    batch.put(&PEERS, &peer.to_bytes(), &stored)?;
                }
                None => batch.delete(&PEERS, &peer.to_bytes())?,
            }
        }
        db.commit(batch)?;
    }
    let mut batch = db.batch();
    for (key, at) in &changes.announced {
        // A key that was withdrawn meanwhile must not come back.
        let key = provided_key(key);
        if db.get(&PROVIDED, &key)?.is_some() {
            batch.put(&PROVIDED, &key, at)?;
        }
    }
    db.commit(batch)
}

/// Makes an own key durable, before it is announced; tells when it was last announced. Blocking.
pub(crate) fn add_provided(db: &StateDb, key: &[u8]) -> Result<Option<u64>, DbError> {
    let key = provided_key(key);
    if let Some(last) = db.get(&PROVIDED, &key)? {
        return Ok((last > 0).then_some(last));
    }
    let mut batch = db.batch();
    batch.put(&PROVIDED, &key, &0)?;
    db.commit(batch)?;
    Ok(None)
}

/// Forgets an own key. Blocking.
pub(crate) fn remove_provided(db: &StateDb, key: &[u8]) -> Result<(), DbError> {
    let mut batch = db.batch();
    batch.delete(&PROVIDED, &provided_key(key))?;
    db.commit(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &tempfile::TempDir) -> StateDb {
        StateDb::open(dir.path(), TABLES).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back_and_what_expired_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let peer = PeerId::random();
        let addresses: Vec<Multiaddr> = vec!["/ip4/10.0.0.1/tcp/1".parse().unwrap()];
        let row = |key: u8, expires| RecordRow {
            key: vec![key],
            provider: peer,
            expires: Some(expires),
            addresses: addresses.clone(),
        };
        let db = open(&dir);
        assert_eq!(add_provided(&db, b"one").unwrap(), None);
        assert_eq!(add_provided(&db, b"two").unwrap(), None);
        let changes = Changes {
            records: vec![row(1, 100), row(2, 300)],
            peers: vec![(peer, Some((addresses.clone(), 150)))],
            announced: [(b"one".to_vec(), 77), (b"withdrawn".to_vec(), 77)].into(),
        };
        write(&db, &changes).unwrap();
        drop(db);

        let db = open(&dir);
        let loaded = load(&db, 200).unwrap();
        assert_eq!(loaded.records.len(), 1);
        assert_eq!((loaded.records[0].expires, &loaded.records[0].addresses), (Some(300), &addresses));
        assert_eq!(loaded.peers, [(peer, Some((addresses, 150)))]);
        let mut provided = loaded.provided;
        provided.sort();
        assert_eq!(provided, [(b"one".to_vec(), Some(77)), (b"two".to_vec(), None)]);
        assert_eq!(add_provided(&db, b"one").unwrap(), Some(77));

        remove_provided(&db, b"one").unwrap();
        let gone = RecordRow { key: vec![2], provider: peer, expires: None, addresses: vec![] };
        write(&db, &Changes { records: vec![gone], peers: vec![(peer, None)], ..Changes::default() })
            .unwrap();
        let loaded = load(&db, 200).unwrap();
        assert!(loaded.records.is_empty() && loaded.peers.is_empty());
        assert_eq!(loaded.provided.len(), 1);
    }
}
