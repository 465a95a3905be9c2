//! What a daemon does for its store by itself: lets expired pins go, ends a collection that was broken off, collects at
//! the watermark, settles its data directories, reads everything again and again to find what rotted, and rebuilds or
//! fetches anew what anybody found damaged.
//!
//! Each is a small step on a timer, so that a daemon that runs for a minute a day does its share too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use btfs_storage::{
    ClassStat, DirectoryStat, DirectoryState, GcOptions, RepoStat, ScrubRound, Store, StoreError,
};

use crate::api::call::Progress;
use crate::calls::directories::{add, drain};
use crate::node::Node;
use crate::parity;
use crate::retrieve::repair;

/// How often expired pins and the watermark are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Blocks read between two pauses of the scrub.
const SCRUB_PAGE: usize = 16;
/// How often it is noted how far the scrub is, for the next daemon: pages of small blocks are done in milliseconds.
const SCRUB_NOTED: Duration = Duration::from_secs(5);
/// Pause of a scrub that has seen everything, or of a store without a block.
const SCRUB_REST: Duration = Duration::from_secs(3600);
/// How soon it is tried again to fetch what nobody gave.
const MEND_AGAIN: Duration = Duration::from_secs(3600);
/// How often damage is looked for that somebody met.
const HEAL_EVERY: Duration = Duration::from_secs(10);
/// Pins made whole in one go, whose names are held in memory.
const MENDED: usize = 100_000;
/// After a collection at the watermark the next one waits until the store has grown by one part in this many: what is
/// pinned cannot be collected, however often.
const GROWTH: u64 = 100;

/// Runs until the daemon stops.
pub async fn run(node: Arc<Node>) {
    let stop = node.stop.clone();
    tokio::select! {
        () = stop.cancelled() => {}
        () = tidy(&node) => {}
        () = settle_directories(&node) => {}
        () = scrub(&node) => {}
        () = heal(&node) => {}
    }
}

async fn tidy(node: &Arc<Node>) {
    match node.store.run(|store| store.has_unfinished_collection()).await {
        Ok(true) => {
            tracing::info!("a collection was broken off; it goes on now");
            collect(node).await;
        }
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "whether a collection was broken off is not known"),
    }
    let mut left_by_last = None;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        let expired = node.store.run(|store| store.expire_pins(unix_now())).await;
        match expired {
            Ok(0) => {}
            Ok(pins) => tracing::info!(pins, "expired pins were removed"),
            Err(error) => tracing::warn!(%error, "expired pins are not removed yet"),
        }
        let Some(watermark) = node.config.storage.gc_watermark else { continue };
        match node.store.run(|store| store.stat()).await {
            Ok(stat) if is_due(&stat, watermark, left_by_last) => left_by_last = collect(node).await,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the store cannot be counted"),
        }
    }
}

/// Goes on with emptying data directories where a stop broke it off, and takes in those that were missing for a while.
async fn settle_directories(node: &Arc<Node>) {
    match node.store.run(|store| store.directories()).await {
        Ok(directories) => {
            for (n, left) in directories.into_iter().enumerate() {
                settle(node, n == 0, left).await;
            }
        }
        Err(error) => tracing::warn!(%error, "which data directories are to be emptied is not known"),
    }
    // All is done, and the daemon goes on.
    std::future::pending().await
}

async fn settle(node: &Arc<Node>, is_own: bool, left: DirectoryStat) {
    let settled = match left.state {
        // The repo's own stays when it is empty.
        DirectoryState::Emptied if !is_own || left.blocks > 0 => {
            tracing::info!(path = %left.path.display(), "emptying a data directory goes on");
            drain(node, left.path.clone(), Progress::default()).await.map(drop)
        }
        DirectoryState::Returned => {
            tracing::info!(path = %left.path.display(), "a data directory that was missing is taken in again");
            add(node, left.path.clone()).await.map(drop)
        }
        DirectoryState::Emptied | DirectoryState::Open | DirectoryState::Missing => return,
    };
    if let Err(error) = settled {
        tracing::warn!(path = %left.path.display(), error = error.message, "a data directory takes no blocks");
    }
}

/// Collects; answers the bytes that were left, also by one that failed.
async fn collect(node: &Arc<Node>) -> Option<u64> {
    let store = node.store.clone();
    let work = move || match store.gc_with(GcOptions::default(), &mut |_| {}) {
        Err(StoreError::CollectionStopped) => None,
        collected => {
            if let Err(error) = collected {
                tracing::warn!(%error, "not all was collected");
            }
            Some(store.stat().ok()?.bytes)
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        tracing::error!(%error, "a collection broke off");
        None
    })
}

/// Whether a class has come to `watermark` percent of its quota, or the store to as much of its disk, and has grown since
/// the last collection, which left `left_by_last` bytes.
fn is_due(stat: &RepoStat, watermark: u8, left_by_last: Option<u64>) -> bool {
    let reached = |used: u64, most: u64| u128::from(used) * 100 >= u128::from(most) * u128::from(watermark);
    let full = |class: &ClassStat| {
        let used = class.bytes.saturating_add(class.reserved_bytes);
        class.quota_bytes.is_some_and(|quota| reached(used, quota))
    };
    let room = stat.disk_free_bytes.saturating_sub(stat.reserve_bytes);
    let due = stat.classes.iter().any(full) || reached(stat.disk_bytes, stat.disk_bytes.saturating_add(room));
    let grown = left_by_last.is_none_or(|left| stat.bytes > left.saturating_add(left / GROWTH));
    stat.bytes > 0 && due && grown
}

/// Reads the store at the configured rate, from one end to the other, again and again; first what the last daemon left of
/// its round.
async fn scrub(node: &Arc<Node>) {
    let rate = node.config.storage.scrub_rate.0;
    if rate == 0 {
        return std::future::pending().await;
    }
    let left = node.store.run(|store| store.scrub_round()).await;
    let mut round = left.unwrap_or_else(|error| {
        tracing::warn!(%error, "how far the store was looked through is not known; that begins anew");
        ScrubRound::default()
    });
    let mut note_at = Instant::now();
    loop {
        let from = round.clone();
        let pause = match node.store.run(move |store| scrub_page(store, from)).await {
            Ok((bytes, so_far)) => {
                round = so_far;
                Duration::from_secs_f64(bytes as f64 / rate as f64)
            }
            Err(error) => {
                tracing::warn!(%error, "the store is not looked through any further for now");
                SCRUB_REST
            }
        };
        if round.is_new() || Instant::now() >= note_at {
            note_at = Instant::now() + note(node, round.clone()).await;
        }
        tokio::time::sleep(pause).await;
        if round.is_new() {
            tokio::time::sleep(SCRUB_REST).await;
        }
    }
}

/// Reads the next page of a round: its bytes, and how far the round is then.
fn scrub_page(store: &Store, mut round: ScrubRound) -> Result<(u64, ScrubRound), StoreError> {
    let page = store.scrub(round.next.as_ref(), SCRUB_PAGE)?;
    round.count(&page, unix_now());
    Ok((page.bytes, round))
}

/// Notes how far the scrub is; answers when to do so again. Where nothing can be written it still reads.
async fn note(node: &Arc<Node>, round: ScrubRound) -> Duration {
    match node.store.run(move |store| store.note_scrub_round(&round)).await {
        Ok(()) => SCRUB_NOTED,
        Err(error) => {
            tracing::warn!(%error, "how far the store was looked through is not kept for the next daemon");
            SCRUB_REST
        }
    }
}

/// Mends when blocks were found damaged, by the scrub or by whoever read them, and again now and then while some are.
async fn heal(node: &Arc<Node>) {
    if node.config.storage.scrub_rate.0 == 0 {
        return std::future::pending().await;
    }
    let (mut left, mut tried) = (0, None::<Instant>);
    let mut looks = tokio::time::interval(HEAL_EVERY);
    loop {
        looks.tick().await;
        let damaged = damaged(node).await;
        let again = tried.is_none_or(|tried| tried.elapsed() >= MEND_AGAIN);
        if damaged > 0 && (damaged > left || again) {
            mend(node).await;
            left = self::damaged(node).await;
            tried = Some(Instant::now());
        }
    }
}

/// Blocks that were put aside.
async fn damaged(node: &Arc<Node>) -> u64 {
    node.store.run(|store| store.quarantined_blocks()).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "the store cannot be counted");
        0
    })
}

/// Brings back what pins lack, as far as parity that is here leads to it or the networks have it.
async fn mend(node: &Arc<Node>) {
    let store = node.store.clone();
    let work = move || {
        let layouts = parity::layouts(&store)?;
        for done in parity::mend(&store, &layouts, &Progress::default()).0 {
            if done.blocks() > 0 {
                tracing::info!(root = %done.root, blocks = done.blocks(), "what was damaged is rebuilt from parity");
            }
        }
        let mut found = Vec::new();
        store.examine(&mut |incomplete| {
            if found.len() < MENDED {
                found.push(incomplete.pin.id);
            }
        })?;
        Ok::<_, StoreError>(found)
    };
    let found = match tokio::task::spawn_blocking(work).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return tracing::warn!(%error, "what the damage affects is not known"),
        Err(error) => return tracing::error!(%error, "what the damage affects is not known"),
    };
    if node.host().is_err() {
        return;
    }
    for pin in found {
        match repair(node, &pin, &Progress::default()).await {
            Ok(()) => tracing::info!(%pin, "a damaged pin is whole again"),
            Err(error) => tracing::error!(%pin, %error, "a pin lacks blocks that nobody gave"),
        }
    }
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use btfs_storage::Class;

    use super::*;

    fn stat(cache: u64, quota: Option<u64>, disk: u64, free: u64) -> RepoStat {
        let class =
            ClassStat { class: Class::Cache, blocks: 1, bytes: cache, reserved_bytes: 0, quota_bytes: quota };
        RepoStat {
            blocks: 1,
            bytes: cache,
            classes: vec![class],
            quarantined_blocks: 0,
            pins: 0,
            disk_bytes: disk,
            overhead_bytes: disk - cache,
            disk_free_bytes: free,
            reserve_bytes: 100,
        }
    }

    #[test]
    fn a_collection_is_due_at_the_watermark_of_quota_or_disk() {
        assert!(!is_due(&stat(89, Some(100), 90, 10_000), 90, None));
        assert!(is_due(&stat(90, Some(100), 90, 10_000), 90, None));
        assert!(!is_due(&stat(850, None, 899, 200), 90, None));
        assert!(is_due(&stat(850, None, 900, 200), 90, None));
        // The reserve alone is left.
        assert!(is_due(&stat(850, None, 900, 50), 100, None));
        assert!(!is_due(&stat(0, None, 0, 50), 100, None), "there is nothing to collect");
    }

    #[test]
    fn what_could_not_be_collected_is_not_tried_again_until_there_is_more() {
        let full = stat(9_500, Some(10_000), 9_600, 100_000);
        assert!(!is_due(&full, 90, Some(9_500)));
        assert!(!is_due(&full, 90, Some(9_450)));
        assert!(is_due(&full, 90, Some(9_000)));
    }
}
