//! How the C library's allocator is set up.
//!
//! glibc gives each thread that meets a lock an arena of its own, up to eight a core, and an arena rarely shrinks:
//! blocks of a megabyte that pass through many threads then stay resident several times over. With few arenas an
//! order of 1 GiB peaks at 170 MB instead of 250 MB, at the same CPU time.
//!
//! Buffers of a megabyte come and go with every block. By default each is memory fresh from the system, which has to be
//! zeroed page by page first: `cat` of a cached file then took 134,000 page faults for 1 GiB and 0.64 s of CPU, and takes
//! 12,000 and 0.42 s when free memory is kept for the next one.
//!
//! Threads that share an arena wait for each other: adding 100,000 files of 4 KiB made 15,000 calls to the system for that,
//! and 2,300 with eight arenas, at 4 % less time. What ends by itself has few threads, and an import of 1 GiB peaked at 127 MB
//! with two arenas and with eight: only a daemon, through whose many threads blocks pass for days, has few arenas.

/// How long the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// Until it is ended.
    On,
    /// For one thing.
    Once,
}

/// Most arenas: one for each thread that an import keeps busy.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const ARENAS: usize = 8;

/// Free memory that an arena keeps, in bytes: as many blocks as are under way at once.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 32 << 20;

/// Keeps the number of arenas small, and lets them keep some free memory. To be called before the first thread is
/// started; elsewhere than on glibc it does nothing.
#[cfg_attr(not(all(target_os = "linux", target_env = "gnu")), expect(unused_variables))]
pub fn set_up(runs: Runs) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[allow(unsafe_code)]
    {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let arenas = match runs {
            Runs::On => (cores / 4).clamp(2, ARENAS),
            Runs::Once => ARENAS,
        };
        for (option, value) in [
            (libc::M_ARENA_MAX, arenas as libc::c_int),
            // The largest that it takes.
            (libc::M_MMAP_THRESHOLD, KEPT),
            (libc::M_TRIM_THRESHOLD, KEPT),
        ] {
            // SAFETY: sets a number inside the allocator, which locks for it; no memory of ours is involved.
            let set = unsafe { libc::mallopt(option, value) };
            debug_assert_eq!(set, 1, "glibc knows option {option}");
        }
    }
}
