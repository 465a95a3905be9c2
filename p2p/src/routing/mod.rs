//! What the node knows of the network and tells it: provider records, its own announcements, peers' addresses.
//!
//! Everything here is a plain table or state machine with the time passed in; the host's task owns them, and
//! [`persist`] writes their changes behind to the state database, so that the swarm never waits for a disk.
//!
//! Invariants: each table is bounded; what is read back after a restart passes the same bounds.

pub mod announce;
pub(crate) mod book;
pub(crate) mod bootstrap;
pub mod persist;
pub(crate) mod records;
pub(crate) mod scope;

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 by the system's clock: the time of everything that outlives the process.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
