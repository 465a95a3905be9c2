//! Opening the databases of all data directories, without those that are missing.
//!
//! A directory besides the store's own may be missing: its disk is not mounted, fails, or can only be read. The store then
//! goes on without the blocks in it, and says so. That is safe: a collection deletes nothing while it cannot walk what is
//! pinned, and never in a directory that is not open. But what is put meanwhile may be there too, so before anything is
//! written the state remembers that the directory was [away](State::Away): it takes no blocks when it comes back until
//! [`Store::add_directory`](super::super::Store::add_directory) has removed what others have as well.

use std::path::{Path, PathBuf};

use super::super::identity;
use super::super::rocks::{BlockDb, Budget, Damage};
use super::directories::{DIRECTORIES, Directory, DirectoryId, OWN, OWN_NAME, State};
use super::{Volume, Volumes};
use crate::StoreError;
use crate::db::{DbError, StateDb};

/// In which way databases are opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum How {
    /// At a start: what is damaged is mended, and must belong to the state.
    Mending,
    /// Again, in a running process; with the databases whose damaged tables shall not stop writes.
    Again(Vec<PathBuf>),
    /// For reading alone.
    ReadOnly,
}

/// All directories with absolute paths, those that are gone included.
pub(in super::super) fn load(
    state: &StateDb,
    root: &Path,
) -> Result<Vec<(DirectoryId, Directory)>, StoreError> {
    let rows = state.scan(&DIRECTORIES, &[]).collect::<Result<Vec<_>, _>>();
    let mut all = match rows {
        // A repo that no writable start has seen since there are directories.
        Err(DbError::UnknownTable { .. }) => Vec::new(),
        rows => rows?,
    };
    if !all.iter().any(|(id, _)| *id == OWN) {
        all.push((OWN, Directory { path: OWN_NAME.into(), state: State::Open }));
    }
    for (_, directory) in &mut all {
        directory.path = root.join(&directory.path);
    }
    Ok(all)
}

/// Opens the databases of `all` directories that are not gone.
pub(in super::super) fn open(
    state: &StateDb,
    all: &[(DirectoryId, Directory)],
    budget: &Budget,
    how: &How,
) -> Result<Volumes, StoreError> {
    let needed: Vec<_> = all.iter().filter(|(_, directory)| directory.state != State::Gone).collect();
    let budget = budget.among(needed.len());
    let mut volumes = Vec::with_capacity(needed.len());
    let mut missing = Vec::new();
    for (id, directory) in needed {
        match open_one(state, *id, directory, &budget, how) {
            Ok(volume) => volumes.push(volume),
            Err(error) if *id != OWN && can_be_missed(&error) => missing.push((*id, directory, error)),
            Err(error) => return Err(error),
        }
    }
    if *how != How::ReadOnly && !volumes.iter().any(Volume::takes_blocks) {
        // Nothing could be put.
        if let Some((_, _, error)) = missing.into_iter().next() {
            return Err(error);
        }
        return Ok(Volumes::new(volumes));
    }
    for (id, directory, error) in missing {
        tracing::error!(
            path = %directory.path.display(), %error,
            "a data directory is missing: blocks in it are not served, all others are; once its disk is back, \
             `btfs repo dir add` takes it in again; if it is lost, `btfs repo dir forget` gives it up"
        );
        if *how != How::ReadOnly && directory.state == State::Open {
            set_away(state, id)?;
        }
    }
    Ok(Volumes::new(volumes))
}

/// Opens one that must be there.
pub(in super::super) fn open_one(
    state: &StateDb,
    id: DirectoryId,
    directory: &Directory,
    budget: &Budget,
    how: &How,
) -> Result<Volume, StoreError> {
    let path = &directory.path;
    identity::check_before(state, path)?;
    let known = identity::known(state)?;
    let db = match how {
        How::Mending => BlockDb::open_any(path, budget, known)?,
        How::Again(damaged) if damaged.contains(path) => {
            BlockDb::open(path, Damage::IsPassedOver, budget, known)?
        }
        How::Again(_) => BlockDb::open(path, Damage::Stops, budget, known)?,
        How::ReadOnly => BlockDb::open_read_only(path, budget, known)?,
    };
    if *how == How::Mending {
        if let Err(error @ DbError::Damaged { .. }) = db.live() {
            tracing::warn!(path = %path.display(), %error, "the totals are counted anew");
            db.recount()?;
        }
        identity::check(state, &db, db.live()? > 0)?;
    }
    Ok(Volume { id, directory: directory.clone(), db: db.into() })
}

/// Makes the store's own database anew if nothing in the old one is needed any more. Broken off anywhere, the next
/// opening begins again.
pub(in super::super) fn renew_spent(
    state: &StateDb,
    all: &mut [(DirectoryId, Directory)],
    budget: &Budget,
) -> Result<(), StoreError> {
    for (id, directory) in all.iter_mut().filter(|(_, directory)| directory.state == State::Spent) {
        BlockDb::clear(&directory.path)?;
        identity::adopt(state, &BlockDb::open(&directory.path, Damage::Stops, budget, None)?)?;
        let mut batch = state.batch();
        // The store's own has no row while it takes blocks.
        batch.delete(&DIRECTORIES, id)?;
        state.commit(batch)?;
        directory.state = State::Open;
        tracing::info!(path = %directory.path.display(), "a damaged block database was removed");
    }
    Ok(())
}

/// Whether a store is better open without a directory than not at all.
fn can_be_missed(error: &StoreError) -> bool {
    use DbError::{Damaged, Directory, ReadOnly, Rocks};
    match error {
        StoreError::BlocksGone { .. } => true,
        StoreError::Db(error) => {
            matches!(error, Damaged { .. } | Directory { .. } | ReadOnly { .. } | Rocks { .. })
        }
        _ => false,
    }
}

/// Remembers that the store goes on without a directory.
fn set_away(state: &StateDb, id: DirectoryId) -> Result<(), StoreError> {
    let Some(row) = state.get(&DIRECTORIES, &id)? else { return Ok(()) };
    let mut batch = state.batch();
    batch.put(&DIRECTORIES, &id, &Directory { state: State::Away, ..row })?;
    Ok(state.commit(batch)?)
}

/// Removes the files of directories that are no longer needed, and forgets those. What cannot be removed now is left to
/// the next opening.
pub(in super::super) fn remove_gone(
    state: &StateDb,
    all: &[(DirectoryId, Directory)],
) -> Result<(), StoreError> {
    let mut batch = state.batch();
    for (id, directory) in all.iter().filter(|(_, directory)| directory.state == State::Gone) {
        match BlockDb::remove_given_up(&directory.path) {
            Ok(()) => batch.delete(&DIRECTORIES, id)?,
            Err(error) => {
                tracing::warn!(path = %directory.path.display(), %error, "an emptied data directory keeps its files");
            }
        }
    }
    Ok(state.commit(batch)?)
}
