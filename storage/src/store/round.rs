//! How far the background scrub is.
//!
//! A large store takes longer to read than many a daemon runs, so a round of the scrub goes on with the next daemon: its
//! position is a record in the state. It is noted without waiting for the disk: what a power loss takes of it is read once
//! more.

use cid::Cid;
use serde::{Deserialize, Serialize};

use super::Store;
use super::scrub::ScrubPage;
use crate::StoreError;
use crate::db::{DbError, Table};

/// The round that is under way.
pub(super) const ROUND: Table<(), ScrubRound> = Table::new("storage.scrub");

/// One reading of the whole store, page by page, and when the last one ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubRound {
    /// Where its next page begins; `None` while nothing of it was read.
    pub next: Option<Cid>,
    /// Blocks that were read and hashed in it.
    pub checked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the last whole round ended, in unix seconds; `None` before the first has.
    pub last_ended: Option<u64>,
}

impl ScrubRound {
    /// Counts the page that began at `next`. After the last page this is a new round; the old one ended at `now`, in unix
    /// seconds.
    pub fn count(&mut self, page: &ScrubPage, now: u64) {
        *self = match page.next {
            None => ScrubRound { last_ended: Some(now), ..ScrubRound::default() },
            next => ScrubRound {
                next,
                checked: self.checked + page.checked,
                bytes: self.bytes + page.bytes,
                last_ended: self.last_ended,
            },
        };
    }

    /// Whether nothing of it was read yet.
    pub fn is_new(&self) -> bool {
        self.next.is_none()
    }
}

impl Store {
    /// The round as it was last noted.
    pub fn scrub_round(&self) -> Result<ScrubRound, StoreError> {
        match self.state().get(&ROUND, &()) {
            // A repo of an older build on a disk that can only be read.
            Err(DbError::UnknownTable { .. }) => Ok(ScrubRound::default()),
            round => Ok(round?.unwrap_or_default()),
        }
    }

    /// Notes how far the round is. That outlives the process, not a power loss right after it.
    pub fn note_scrub_round(&self, round: &ScrubRound) -> Result<(), StoreError> {
        Ok(self.state().note(&ROUND, &(), round)?)
    }
}
