//! What the machine needs at least: the work that no store can leave out, done on all cores and nothing beside it.
//!
//! A ratio to another program says who is faster, and not how far either is from what can be had. Where a bound asks for
//! more than that, the share of it that is reached counts instead, and the table says both.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use btfs_storage::hash;

use super::{MIB, Source, process};

/// Messages hashed at once: as many as the widest registers have lanes.
const TOGETHER: u64 = 16;

/// Seconds in which all cores read the source from the system's cache, a block of 1 MiB at a time, and hash the blocks.
pub(super) fn hashed(source: &Source) -> f64 {
    through(source, None)
}

/// The same when the bytes are also written to a file in `dir`, and that is synced: what adding takes at least in a
/// store that keeps a copy.
pub(super) fn hashed_and_copied(source: &Source, dir: &Path) -> f64 {
    let copy = tempfile::NamedTempFile::new_in(dir).expect("a file for the copy");
    through(source, Some(copy.as_file()))
}

fn through(source: &Source, copy: Option<&File>) -> f64 {
    rustix::fs::sync();
    process::have_memory(2 * source.bytes);
    let file = File::open(&source.path).expect("the source");
    let next = AtomicU64::new(0);
    let work = || {
        let mut blocks = vec![0; (TOGETHER * MIB) as usize];
        loop {
            let at = next.fetch_add(blocks.len() as u64, Ordering::Relaxed);
            let here = source.bytes.saturating_sub(at).min(blocks.len() as u64) as usize;
            if here == 0 {
                return;
            }
            let blocks = &mut blocks[..here];
            file.read_exact_at(blocks, at).expect("the source is read");
            let messages: Vec<&[u8]> = blocks.chunks(MIB as usize).collect();
            std::hint::black_box(hash::sha256_all(&messages));
            if let Some(copy) = copy {
                copy.write_all_at(blocks, at).expect("the copy is written");
            }
        }
    };
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..cores() {
            scope.spawn(work);
        }
    });
    if let Some(copy) = copy {
        copy.sync_all().expect("the copy is synced");
    }
    begun.elapsed().as_secs_f64()
}

/// Threads that can run at once.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
