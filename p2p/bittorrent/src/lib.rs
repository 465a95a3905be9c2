//! Torrents over the same blocks: metainfo, peer wire, trackers, and an engine that seeds and downloads straight from and
//! into the block store.
//!
//! A torrent here is not a copy of files: a seed answers peers from the UnixFS leaves that IPFS peers get too, and a
//! download writes every verified leaf to the block store once and ends in the root CID that `btfs add` would have given. The
//! node calls [`create`] while it adds files, and drives an [`Engine`] for everything with peers.
//!
//! Layers, each testable without the one above:
//!
//! - bytes: [`bencode`], [`metainfo`], [`magnet`], [`infohash`], [`wire`];
//! - arithmetic: [`layout`] (pieces over leaves), [`merkle`] (the hashes of v2), [`bitfield`];
//! - decisions: [`picker`] (what to request), [`choker`] (whom to serve), as state machines without clocks or sockets;
//! - storage: [`bridge`] (piece to leaves), [`assemble`] (pieces to leaves to root), [`records`] (what survives a restart),
//!   [`create`];
//! - network: [`tracker`] and [`engine`].
//!
//! Invariants: nothing is stored or announced to peers before its piece hash matched and it is durable; a seed never reads what
//! nobody asked for; every queue, buffer and message has a named cap.

pub mod assemble;
pub mod bencode;
pub mod bitfield;
pub mod bridge;
pub mod choker;
pub mod create;
pub mod depth;
pub mod engine;
pub mod infohash;
pub mod layout;
pub mod magnet;
pub mod merkle;
pub mod metainfo;
pub mod picker;
pub mod records;
pub mod tracker;
pub mod wire;

pub use engine::{Engine, EngineConfig, EngineError, Limits, Phase, TorrentId, TorrentSource, TorrentStatus};
pub use infohash::InfoHash;
pub use magnet::Magnet;
