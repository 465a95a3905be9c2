//! Announces one torrent to its trackers: `started`, then by their interval, `completed` when a download ends, `stopped` when
//! the torrent leaves. Trackers are tried in order; the first that answers serves until it fails (BEP 12).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use super::tick;
use super::torrent::{Phase, Torrent, TrackerStatus};
use crate::tracker::{self, Announce, Event};

/// The pause after the first round in which no tracker answered; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(15);
/// The longest pause after failures.
const MAX_PAUSE: Duration = Duration::from_secs(1800);
/// A tracker has this long to take the farewell.
const FAREWELL: Duration = Duration::from_secs(2);

/// Announces until the torrent ends.
pub async fn run(inner: Arc<Inner>, torrent: Arc<Torrent>) {
    let mut event = Event::Started;
    let mut pause = FIRST_PAUSE;
    let mut was_complete = matches!(*torrent.phase.borrow(), Phase::Seeding(_));
    loop {
        let wait = match round(&inner, &torrent, event).await {
            Some(interval) => {
                event = Event::None;
                pause = FIRST_PAUSE;
                interval
            }
            None => {
                let wait = pause;
                pause = (pause * 2).min(MAX_PAUSE);
                wait
            }
        };
        tokio::select! {
            () = torrent.cancel.cancelled() => break,
            () = torrent.announce.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
        let complete = matches!(*torrent.phase.borrow(), Phase::Seeding(_));
        if complete && !was_complete && event != Event::Started {
            event = Event::Completed;
        }
        was_complete = complete;
    }
    if event != Event::Started {
        let _ = tokio::time::timeout(FAREWELL, farewell(&inner, &torrent)).await; // the tracker may be gone; so are we
    }
}

/// Tries the trackers in order; the interval of the first that answers.
async fn round(inner: &Arc<Inner>, torrent: &Arc<Torrent>, event: Event) -> Option<Duration> {
    let urls: Vec<String> = torrent.trackers.lock().iter().map(|t| t.url.clone()).collect();
    let announce = announcement(inner, torrent, event);
    for url in urls {
        let answered = tokio::select! {
            () = torrent.cancel.cancelled() => return None,
            answered = tracker::announce(&inner.http, &url, &announce) => answered,
        };
        let mut trackers = torrent.trackers.lock();
        let last = match &answered {
            Ok(answer) => Ok(answer.peers.len()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = &last {
            tracing::info!(torrent = %torrent.hash, error, "tracker announce failed");
        }
        if let Some(status) = trackers.iter_mut().find(|t| t.url == url) {
            status.last = Some(last);
        }
        drop(trackers);
        if let Ok(answer) = answered {
            let now = Instant::now();
            let mut swarm = torrent.swarm.lock();
            answer.peers.into_iter().for_each(|addr| swarm.candidates.add(addr, now));
            drop(swarm);
            tick::dial(inner, torrent);
            return Some(answer.interval);
        }
    }
    None
}

async fn farewell(inner: &Inner, torrent: &Torrent) {
    let announce = announcement(inner, torrent, Event::Stopped);
    let answered: Vec<TrackerStatus> = torrent.trackers.lock().clone();
    for tracker in answered.iter().filter(|t| matches!(t.last, Some(Ok(_)))) {
        if let Err(error) = tracker::announce(&inner.http, &tracker.url, &announce).await {
            tracing::debug!(torrent = %torrent.hash, %error, "tracker did not take the farewell");
        }
    }
}

fn announcement(inner: &Inner, torrent: &Torrent, event: Event) -> Announce {
    let left = match torrent.content() {
        // Unknown: anything but 0, which would say "seed".
        None => 1,
        Some(content) => {
            let swarm = torrent.swarm.lock();
            let stored = swarm.have.as_ref().map_or(0, |h| u64::from(h.count()));
            let total = content.layout.total();
            if stored == u64::from(content.layout.piece_count()) {
                0
            } else {
                total.saturating_sub(stored * u64::from(content.layout.piece_length())).max(1)
            }
        }
    };
    Announce {
        info_hash: torrent.hash,
        peer_id: inner.peer_id,
        port: inner.local_addr.map_or(0, |a| a.port()),
        uploaded: torrent.uploaded.load(Ordering::Relaxed),
        downloaded: torrent.downloaded.load(Ordering::Relaxed),
        left,
        event,
    }
}
