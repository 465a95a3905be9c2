//! One clock for all torrents: a tick a second dials peers, times requests out, adapts windows, measures rates, and turns
//! the choker. A timer for each torrent or peer would cost more with every one of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::disk::DiskJob;
use super::torrent::{Phase, Swarm, Torrent};
use super::{Inner, conn};
use crate::choker::ROUND_SECONDS;

/// Without a block for so long, a peer that owes some is snubbing us.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections being opened at a time, per torrent.
const MAX_DIALLING: usize = 10;

/// Ticks until the engine ends.
pub async fn run(inner: Arc<Inner>) {
    let mut clock = tokio::time::interval(Duration::from_secs(1));
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = inner.cancel.cancelled() => return,
            _ = clock.tick() => {}
        }
        let torrents: Vec<Arc<Torrent>> = inner.torrents.lock().values().cloned().collect();
        for torrent in torrents {
            if !torrent.cancel.is_cancelled() {
                tick(&inner, &torrent);
            }
        }
    }
}

fn tick(inner: &Arc<Inner>, torrent: &Arc<Torrent>) {
    let now = inner.seconds();
    let mut swarm = torrent.swarm.lock();
    measure(torrent, &mut swarm);
    if !swarm.peers.is_empty() {
        windows(&mut swarm);
        if now >= swarm.last_round + ROUND_SECONDS {
            swarm.last_round = now;
            swarm.choke_round(now, inner.config.ranking.as_ref(), inner.random());
        }
        swarm.update_interest_all();
        swarm.refill_all(inner.random());
    }
    let stuck = match &mut swarm.picker {
        Some(picker) if picker.stuck() => picker.evict(),
        _ => Vec::new(),
    };
    drop(swarm);
    if let (false, Some(disk)) = (stuck.is_empty(), torrent.disk.get()) {
        tracing::info!(torrent = %torrent.hash, leaves = stuck.len(), "nobody has the rest of some leaves: going on elsewhere");
        let (disk, torrent) = (disk.clone(), torrent.clone());
        torrent.tasks.clone().spawn(async move {
            tokio::select! {
                () = torrent.cancel.cancelled() => {}
                _ = disk.send(DiskJob::Drop(stuck)) => {}
            }
        });
    }
    dial(inner, torrent);
}

fn measure(torrent: &Torrent, swarm: &mut Swarm) {
    let (down, up) = (torrent.downloaded.load(Ordering::Relaxed), torrent.uploaded.load(Ordering::Relaxed));
    let rates = &mut swarm.rates;
    // A quarter of the new second each time: steady enough to show, quick enough to follow.
    rates.down = (3 * rates.down + (down - rates.last_down)) / 4;
    rates.up = (3 * rates.up + (up - rates.last_up)) / 4;
    (rates.last_down, rates.last_up) = (down, up);
}

fn windows(swarm: &mut Swarm) {
    let now = Instant::now();
    let mut late = Vec::new();
    for (conn, peer) in &mut swarm.peers {
        peer.depth.on_second();
        if !peer.owed.is_empty() && now.duration_since(peer.last_block) > REQUEST_TIMEOUT {
            peer.depth.snub();
            peer.last_block = now;
            late.push(*conn);
        }
    }
    late.into_iter().for_each(|conn| swarm.release(conn));
}

/// Opens connections while there are addresses and room.
pub fn dial(inner: &Arc<Inner>, torrent: &Arc<Torrent>) {
    if matches!(*torrent.phase.borrow(), Phase::Failed(_) | Phase::Removed) || torrent.cancel.is_cancelled() {
        return;
    }
    loop {
        let mut swarm = torrent.swarm.lock();
        if swarm.dialling >= MAX_DIALLING
            || swarm.peers.len() + swarm.dialling >= inner.config.limits.per_torrent
        {
            return;
        }
        let Ok(permit) = inner.slots.clone().try_acquire_owned() else { return };
        let Some(addr) = swarm.candidates.next(Instant::now()) else { return };
        swarm.dialling += 1;
        drop(swarm);
        torrent.tasks.spawn(conn::dial(inner.clone(), torrent.clone(), addr, permit));
    }
}
