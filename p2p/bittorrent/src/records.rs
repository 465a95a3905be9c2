//! What survives a restart, in the node's state database: the torrents, and how far each download came.
//!
//! [`TORRENTS`] has one record per torrent; its `info` dictionary is a block of its own, CID(torrent-info, sha1), kept by a
//! direct pin. [`LEAVES`] names the durable leaves of unfinished downloads, so that a restart goes on where it was without
//! hashing anything again; the blocks themselves are kept by list pins, one per checkpoint. When a download ends, one
//! batch swaps all of that for a recursive pin of the root.

use std::time::{SystemTime, UNIX_EPOCH};

use btfs_storage::alias::{self, Alias};
use btfs_storage::db::{Batch, Table};
use btfs_storage::{BlockSink, Cid, Class, Ingest, Pin, PinId, PinKind, Store, StoreError};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::infohash::{self, InfoHash};
use crate::metainfo::{FileKind, Info};

/// Torrents by infohash.
pub const TORRENTS: Table<[u8; 20], TorrentRecord> = Table::new("torrents");
/// Durable leaves of unfinished downloads: (infohash, leaf number) to the leaf's SHA-256.
pub const LEAVES: Table<([u8; 20], u64), ByteArray<32>> = Table::new("torrent_leaves");
/// The tables to name in `StoreOptions::tables`.
pub const TABLES: [&str; 2] = ["torrents", "torrent_leaves"];

/// A torrent as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorrentRecord {
    /// Name from the info dictionary, or from the magnet while that is missing.
    pub name: String,
    /// The info dictionary is in the block store.
    pub has_info: bool,
    /// Root of the content, once complete.
    pub root: Option<Cid>,
    /// Tracker URLs.
    pub trackers: Vec<String>,
    /// List pins made for an unfinished download, numbered from 0.
    pub parts: u32,
    /// Seconds since 1970 when it was added.
    pub added: u64,
}

/// The pin of a complete torrent's content.
pub fn root_pin(hash: &InfoHash) -> PinId {
    PinId::from(format!("torrent:{hash}"))
}

/// The pin of the info dictionary.
pub fn info_pin(hash: &InfoHash) -> PinId {
    PinId::from(format!("torrent-info:{hash}"))
}

/// The pin of the leaves of checkpoint `part`.
pub fn part_pin(hash: &InfoHash, part: u32) -> PinId {
    PinId::from(format!("torrent-part:{hash}:{part:08}"))
}

/// A record of a torrent that nothing is stored of yet.
pub fn new_record(name: &str, trackers: &[String]) -> TorrentRecord {
    let added = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    TorrentRecord {
        name: name.to_owned(),
        has_info: false,
        root: None,
        trackers: trackers.to_vec(),
        parts: 0,
        added,
    }
}

/// Keeps the info dictionary: block, pin, and the record that says so.
pub fn put_info(
    store: &Store,
    ingest: &mut Ingest,
    batch: &mut Batch,
    info: &Info,
    record: &mut TorrentRecord,
) -> Result<(), StoreError> {
    let hash = info.hash();
    ingest.put(&hash.cid(), info.raw().clone())?;
    let pin = Pin {
        id: info_pin(&hash),
        kind: PinKind::Direct,
        root: hash.cid(),
        class: Class::Own,
        name: Some(info.name.clone()),
        expires: None,
    };
    store.pin(batch, &pin)?;
    record.has_info = true;
    record.name = info.name.clone();
    Ok(batch.put(&TORRENTS, &hash.0, record)?)
}

/// Pins a torrent's content and adds its alias, and that of its v2 infohash if it has one.
pub fn pin_root(store: &Store, batch: &mut Batch, info: &Info, root: &Cid) -> Result<(), StoreError> {
    let hash = info.hash();
    let pin = Pin {
        id: root_pin(&hash),
        kind: PinKind::Recursive,
        root: *root,
        class: Class::Own,
        name: Some(info.name.clone()),
        expires: None,
    };
    store.pin(batch, &pin)?;
    let length = info.files.iter().filter(|f| f.kind != FileKind::Pad).map(|f| f.length).sum();
    let found = Alias { root: *root, offset: 0, length };
    if let Some(v2) = info.hash_v2() {
        alias::add(batch, &infohash::multihash_v2(&v2), &found)?;
    }
    Ok(alias::add(batch, &hash.multihash(), &found)?)
}

/// Keeps a complete torrent: everything that a later start needs to seed it.
pub fn put_seed(
    store: &Store,
    ingest: &mut Ingest,
    batch: &mut Batch,
    info: &Info,
    root: &Cid,
    trackers: &[String],
) -> Result<(), StoreError> {
    let mut record =
        store.state().get(&TORRENTS, &info.hash().0)?.unwrap_or_else(|| new_record(&info.name, &[]));
    record.root = Some(*root);
    drop_progress(store, batch, &info.hash(), &mut record)?;
    let fresh: Vec<&String> = trackers.iter().filter(|t| !record.trackers.contains(t)).collect();
    let fresh: Vec<String> = fresh.into_iter().cloned().collect();
    record.trackers.extend(fresh);
    put_info(store, ingest, batch, info, &mut record)?;
    pin_root(store, batch, info, root)
}

/// Drops what only an unfinished download needs: list pins and leaf entries.
pub fn drop_progress(
    store: &Store,
    batch: &mut Batch,
    hash: &InfoHash,
    record: &mut TorrentRecord,
) -> Result<(), StoreError> {
    for part in 0..std::mem::take(&mut record.parts) {
        store.unpin(batch, &part_pin(hash, part))?;
    }
    for entry in store.state().scan(&LEAVES, &hash.0) {
        batch.delete(&LEAVES, &entry?.0)?;
    }
    Ok(())
}

/// Removes all that is kept of a torrent. Its content goes with a later collection unless another pin holds it.
pub fn remove(store: &Store, batch: &mut Batch, hash: &InfoHash) -> Result<(), StoreError> {
    if let Some(mut record) = store.state().get(&TORRENTS, &hash.0)? {
        drop_progress(store, batch, hash, &mut record)?;
    }
    store.unpin(batch, &info_pin(hash))?;
    store.unpin(batch, &root_pin(hash))?;
    Ok(batch.delete(&TORRENTS, &hash.0)?)
}
