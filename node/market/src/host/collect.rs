//! Giving back the space of agreements that are over.
//!
//! A collection of a large store takes minutes, which no round may wait for: it runs beside them, one at a time. What a
//! tick has freed is told when a collection that began after it has succeeded. Its time counts as worked through then
//! too, or as soon as there is nothing to do but to wait.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use btfs_storage::{GcReport, StoreError};
use tokio::task::JoinError;

use super::{HostService, Inner};
use crate::events::MarketEvent;

/// Least time between two collections after agreements that never began: whoever delivers and withdraws without end
/// must not keep the disk busy. Those that were paid for are collected at once. Also after a collection that failed.
const COLLECT_PAUSE: Duration = Duration::from_secs(60);

/// What waits for a collection.
#[derive(Default)]
pub(super) struct Collecting {
    /// When this process last collected, and whether that failed.
    last: Option<(Instant, bool)>,
    /// To be told when the space is free; one event an agreement, so no more than there are agreements.
    freed: Vec<MarketEvent>,
    /// Settlement time until which all is done but for the collection.
    through: u64,
}

/// What is to be done about garbage.
enum Next {
    Collect,
    /// There is none.
    Tell,
    /// There is some, and it waits for a later tick.
    Wait,
}

impl HostService {
    /// Waits until no collection runs.
    pub async fn collected(&self) {
        // The sender lives as long as this service.
        let _ = self.0.collects.subscribe().wait_for(|collects| !collects).await;
    }
}

impl Inner {
    /// Takes note of what a tick has `freed`, and that all but collecting is done `through` a time. Begins a collection if
    /// one is due and none runs.
    pub(super) fn collect_soon(self: &Arc<Self>, freed: Vec<MarketEvent>, through: Option<u64>) {
        let mut due = self.collecting.lock();
        due.freed.extend(freed);
        due.through = due.through.max(through.unwrap_or(0));
        if *self.collects.borrow() {
            return;
        }
        match self.next(&due) {
            Next::Collect => {
                self.collects.send_replace(true);
                tokio::spawn(self.clone().collect());
            }
            Next::Tell => self.tell_freed(std::mem::take(&mut due.freed), due.through),
            Next::Wait => self.tell_freed(Vec::new(), due.through),
        }
    }

    fn next(&self, due: &Collecting) -> Next {
        let pause = due.freed.is_empty() || due.last.is_some_and(|(_, failed)| failed);
        let soon = due.last.is_some_and(|(at, _)| at.elapsed() < COLLECT_PAUSE);
        match self.garbage.load(Ordering::Relaxed) {
            true if pause && soon => Next::Wait,
            true => Next::Collect,
            false => Next::Tell,
        }
    }

    fn tell_freed(&self, freed: Vec<MarketEvent>, through: u64) {
        freed.into_iter().for_each(|event| self.events.send(event));
        self.worked_through.send_modify(|t| *t = through.max(*t));
    }

    /// Collects until nothing is due.
    async fn collect(self: Arc<Self>) {
        loop {
            let (freed, through) = {
                let mut due = self.collecting.lock();
                (std::mem::take(&mut due.freed), due.through)
            };
            self.garbage.store(false, Ordering::Relaxed);
            let store = self.store.clone();
            // Not on the store's own threads, which serve blocks: it may take minutes.
            let success = succeeded(tokio::task::spawn_blocking(move || store.gc()).await);
            let mut due = self.collecting.lock();
            due.last = Some((Instant::now(), !success));
            if success {
                self.tell_freed(freed, through);
            } else {
                self.garbage.store(true, Ordering::Relaxed);
                due.freed.extend(freed);
            }
            match self.next(&due) {
                Next::Collect => continue,
                Next::Tell => self.tell_freed(std::mem::take(&mut due.freed), due.through),
                Next::Wait => self.tell_freed(Vec::new(), due.through),
            }
            self.collects.send_replace(false);
            return;
        }
    }
}

/// Whether a collection did its work; says why not.
fn succeeded(collected: Result<Result<GcReport, StoreError>, JoinError>) -> bool {
    let error: &dyn std::error::Error = match &collected {
        Ok(Ok(_)) => return true,
        // The process ends.
        Ok(Err(StoreError::CollectionStopped)) => return false,
        Ok(Err(error)) => error,
        // It panicked. Rounds go on, and a later one may succeed.
        Err(error) => error,
    };
    tracing::warn!(error, "the space of ended agreements is not collected yet");
    false
}
