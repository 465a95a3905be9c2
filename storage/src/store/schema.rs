//! The version of a repo's shape on disk, and how an older one becomes today's.
//!
//! The version is kept in the state database. A newer repo is refused there; an older one is taken through [`STEPS`],
//! each of which may be run again after a crash in the middle of it, and whose version is written when it is done.

use std::path::Path;

use super::Store;
use super::rocks::BlockDb;
use crate::StoreError;
use crate::db::{SCHEMA, StateDb};

/// What takes a repo from one version to the next.
struct Step {
    /// The version it leads to.
    to: u32,
    /// What it does, for the log.
    what: &'static str,
    run: fn(&StateDb, &Path) -> Result<(), StoreError>,
}

/// All steps, in order.
const STEPS: [Step; 2] = [
    Step {
        to: 2,
        what: "stamps and marks of blocks leave the block database; expiring pins get an index",
        run: |state, blocks| {
            BlockDb::drop_families(blocks, &["stamps", "marks"])?;
            Ok(Store::index_expiries(state)?)
        },
    },
    Step {
        to: 3,
        what: "new blocks are stored under short names; those that are here stay as they are",
        run: |_, _| Ok(()),
    },
];

/// The last step leads to the version that this build writes.
const _: () = assert!(STEPS[STEPS.len() - 1].to == SCHEMA);

/// Takes the repo to today's version; `blocks` is the block database, which must not be open.
pub(super) fn migrate(state: &StateDb, blocks: &Path) -> Result<(), StoreError> {
    let found = state.schema()?;
    for step in STEPS.iter().filter(|step| step.to > found) {
        tracing::warn!(
            from = step.to - 1,
            to = step.to,
            "the repo is brought to a newer version: {}",
            step.what
        );
        (step.run)(state, blocks)?;
        state.set_schema(step.to)?;
    }
    Ok(())
}
