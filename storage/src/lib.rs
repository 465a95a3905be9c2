//! Bytes to blocks to RocksDB: import, block store, pins, erasure coding, proof trees.
//!
//! What lives here and who calls it:
//!
//! * [`Store`] keeps content-addressed blocks and their bookkeeping (pins, quota, collection) in two RocksDB
//!   databases below one directory. The network crates read from it through [`BlockSource`]; imports, downloads
//!   and pulls write through an [`Ingest`], a [`BlockSink`] that is acknowledged only once it is on disk.
//! * [`db`] is the typed state database. Every crate of the workspace keeps its own tables in it, so that one
//!   synced batch can move an agreement and its pins together.
//! * [`import`], [`unixfs`], [`dagpb`] and [`read`] turn files into DAGs of blocks and back; [`car`] carries DAGs from
//!   one program to another, and [`ipld`] reads blocks as values of the IPLD data model.
//! * [`sealed`] encrypts content before it becomes blocks; everything else works on the sealed bytes.
//! * [`erasure`], [`layout`], [`blocklist`] and [`proof`] cut a DAG into shards, add parity, rebuild what was
//!   lost, and prove that a host still holds what it was given.
//!
//! Invariants of the whole crate:
//!
//! * No block is stored or handed out unless its bytes hash to its address ([`hash::verify`] at the door,
//!   checksums on each read, and a bounded scrub).
//! * What was acknowledged survives `kill -9` and power loss.
//! * No allocation is sized by foreign input before a cap was checked; memory is bounded whatever a file's size.
//!
//! No network and no money is known here.

pub use bytes::Bytes;
pub use cid::Cid;

pub mod alias;
pub mod blocklist;
pub mod car;
pub mod dagpb;
pub mod db;
pub mod erasure;
pub mod hash;
pub mod import;
pub mod ipld;
pub mod layout;
pub mod proof;
pub mod read;
pub mod sealed;
pub mod unixfs;

mod block;
mod error;
mod store;
#[cfg(test)]
pub(crate) mod testing;
mod threads;

pub use block::{BlockSink, BlockSource, Class, MAX_BLOCK, Place};
pub use error::{StoreError, size};
#[doc(hidden)]
pub use store::decoders;
pub use store::{
    BackupReport, ClassStat, DirectoryStat, DirectoryState, GcOptions, GcPhase, GcProgress, GcReport,
    HotStat, InPlace, Incomplete, Ingest, Ingested, LocatedBlock, Pin, PinId, PinKind, Quota, Rebuilt,
    Removal, RepoStat, ScrubPage, ScrubRound, Store, StoreOptions, StoredBlock, Verified,
};
