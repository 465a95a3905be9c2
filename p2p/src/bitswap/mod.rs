//! Bitswap: blocks between peers.
//!
//! Our own implementation of version 1.2 (1.1 and 1.0 are understood too), for two reasons: it has to fill a fast link,
//! and everything in it has to be bounded. The parts:
//!
//! - [`wire`]: messages and frames, capped while they are read;
//! - [`ledger`] and [`engine`]: the server; what each peer wants, and the answers;
//! - [`session`]: the client; which block is asked of which peer;
//! - [`behaviour`], [`handler`], [`peer`]: the thin shell in the swarm. Streams are handed to tasks; block bytes never
//!   pass through the swarm's channels;
//! - [`handle`]: [`Bitswap`] and [`Session`], what the rest of the program holds.
//!
//! `ledger`, `engine` and `session` are state machines without I/O or clock, tested as such.
//!
//! ```text
//!   store --respond--> Response --.                       .--> reader --verify--> Client --> Session::get
//!                                 |--> peer task --stream-'
//!   Session::get --> Client --wants                       '--> reader --> PeerWants --> respond
//! ```
//!
//! Each side writes on one stream that it opens, and reads whatever streams the other opens. A message carries wants
//! and blocks alike.
//!
//! Invariants:
//! - a block reaches a waiter only if its bytes hash to what was asked; what nobody asked for is dropped and counted;
//! - a block leaves only if the [`ServePolicy`](crate::ServePolicy) allows it; a withheld one looks absent;
//! - memory per peer, and for all peers together, has the bounds of [`limits`].

mod behaviour;
mod engine;
mod handle;
mod handler;
mod hub;
mod ledger;
pub mod limits;
mod peer;
mod session;
mod source;
mod stats;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod wire;

pub use behaviour::Behaviour;
pub use handle::{Bitswap, FetchError, Session};
pub use handler::{Handler, Offered, OpenError, Upgrade};
pub use source::{BlockReader, ReadJob};
pub use stats::{BitswapStats, PeerTraffic};

use wire::WantKind;
