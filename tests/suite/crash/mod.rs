//! `kill -9` at any moment: what was acknowledged is there after the restart, nobody is paid twice, and what was
//! interrupted goes on or says why not.
//!
//! The network that is killed in has a ledger, a renter and three hosts ([`world`]). Moments are of two kinds: a state
//! that is waited for (polled over the API of a node, then killed at once; what the kill really hit is read from the
//! dead node's database by [`durable`]), and a random one. The seed of the random ones is printed, and
//! `BTFS_CRASH_SEED` sets it. A store alone is killed a hundred times in the middle of everything ([`storm`]), or as often
//! as `BTFS_CRASH_KILLS` says. What a kill cannot show, that all was synced, is read from a trace of calls ([`synced`]).

use std::time::{Duration, Instant};

mod adds;
mod durable;
mod renting;
mod storm;
mod synced;
mod world;

/// Whatever is waited for has to happen within this.
const PATIENCE: Duration = Duration::from_secs(120);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// The seed of this run, printed.
fn seed() -> u64 {
    let seed = match std::env::var("BTFS_CRASH_SEED") {
        Ok(text) => text.parse().expect("BTFS_CRASH_SEED is a number"),
        Err(_) => rand::random(),
    };
    println!("seed: BTFS_CRASH_SEED={seed}");
    seed
}

/// Looks again and again until there is something.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(LOOK);
    }
}
