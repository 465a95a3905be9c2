//! What the test suite and the benches share: the `btfs` program under test as [`node::Node`], and where the peers are.
//!
//! The suite (`suite/`) proves behaviour, one module a subject; `bin/bench.rs` measures. Both drive the program named by
//! `BTFS_BIN` and real peers installed by `tests/peers/install`; a missing program or peer is a failure, never a skip.
//! Everything here panics with a plain message when the program does not do what was asked of it: its callers are tests.

pub mod api;
pub mod bench;
pub mod fuzz;
pub mod ipfs;
pub mod network;
pub mod node;
pub mod peers;
pub mod storm;
