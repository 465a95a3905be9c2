//! Deleting single blocks that nothing needs.

use std::iter::once;

use cid::Cid;
use serde::Serialize;

use super::super::{Store, key};
use super::{Collection, GcOptions, STEP, Stage, now};
use crate::{StoreError, hash};

/// What became of a block that was to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Removal {
    /// It is gone.
    Removed,
    /// It was not here; what an identity hash carries never is.
    Absent,
    /// A pin needs it, so it stays.
    Pinned,
    /// Somebody is bringing it in, or about to pin it, so it stays for now.
    InUse,
}

impl Store {
    /// Removes those of `cids` that no pin reaches and no lease protects: a collection that sweeps these blocks alone.
    /// All pins are walked for it. Waits for a running collection.
    pub fn remove_unpinned(&self, cids: &[Cid]) -> Result<Vec<Removal>, StoreError> {
        let _only = self.shared.collecting.lock();
        // Dry: it must leave expired pins and the notes of an unfinished collection alone.
        let options = GcOptions { dry_run: true, ..GcOptions::default() };
        let mut collection = Collection::begin(self, now(), options)?;
        while matches!(collection.stage, Stage::Mark(_)) {
            collection.step(STEP)?;
        }
        cids.iter().map(|cid| self.remove_unmarked(cid, &collection)).collect()
    }

    fn remove_unmarked(&self, cid: &Cid, collection: &Collection) -> Result<Removal, StoreError> {
        if hash::inline(cid).is_some() {
            return Ok(Removal::Absent);
        }
        let key = key(cid);
        // A reopened database has lost stamps that the marks rely upon.
        let (db, incarnation) = self.shared.db()?;
        if incarnation != collection.incarnation {
            return Err(StoreError::Reopened);
        }
        let (copied, placed) = (db.meta(&key)?.is_some(), self.shared.size_in_place(cid)?.is_some());
        if !copied && !placed {
            return Ok(Removal::Absent);
        }
        if collection.marks.contains(&key)? {
            return Ok(Removal::Pinned);
        }
        if placed {
            let alone = collection.oldest == collection.generation;
            if !alone || self.shared.forget_places_of(&key, Some(collection.place_uses))? == Some(false) {
                return Ok(Removal::InUse);
            }
        }
        if !copied {
            return Ok(Removal::Removed);
        }
        let _stripe = self.shared.stripes.lock(once(key.as_slice()));
        let gone = self.forget(&db, &[key.as_slice()], |meta| meta.generation < collection.oldest)?;
        Ok(if gone.is_empty() { Removal::InUse } else { Removal::Removed })
    }
}
