//! The `btfs` node: everything below wired into one program.
//!
//! * [`repo`], [`config`] and [`network`]: one directory that is one node, its settings and its network.
//! * [`node`]: an opened repo; [`services`]: what runs on it in a daemon; [`daemon`] starts and stops them in order.
//! * [`calls`]: what a node can be asked, one file an area; [`api`] serves the calls over HTTP beside Kubo's
//!   RPC and the path gateway; [`cli`] makes them from the command line, in process when no daemon runs.
//! * [`retrieve`]: fetching by reference from every network that can have it; [`parity`]: what the own store brings back
//!   by itself.
//! * [`demo`]: a network of real node processes that does all of it.
//!
//! Invariants: the repo's lock is held while its databases are open; secrets stay in files of mode 0600 and
//! never reach logs, errors or arguments; a failure says what is unaffected and what to do.

mod allocator;
pub mod api;
pub mod calls;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod network;
pub mod node;
pub mod parity;
pub mod repo;
pub mod retrieve;
pub mod services;
