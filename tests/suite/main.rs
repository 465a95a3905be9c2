//! Whole-node tests: one binary, one module a subject.
//!
//! They drive the `btfs` program named by `BTFS_BIN` and real peers installed by `tests/peers/install`; a missing
//! program or peer is a failure, never a skip.

pub use btfs_tests::{node, peers};

mod car;
mod cids;
mod crash;
mod damage;
mod demo;
mod directories;
mod disks;
mod files;
mod fuzz;
mod hashes;
mod health;
mod http;
mod inputs;
mod kubo;
mod market;
mod orders;
mod parity;
mod pins;
mod resume;
mod sealed;
mod torrents;
