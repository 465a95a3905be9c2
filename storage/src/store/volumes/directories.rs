//! The data directories of a store: which there are, bringing in another, giving one up that is lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::rocks::{BlockDb, Damage};
use super::super::{Shared, Store, identity};
use super::opening::{How, load, open_one};
use super::{Volume, Volumes};
use crate::StoreError;
use crate::db::{StateDb, Table};

/// Names a directory for good.
pub(in super::super) type DirectoryId = u32;

/// The directory below the repo's own. It has no row while it is open.
pub(in super::super) const OWN: DirectoryId = 0;
/// The store's own directory, below the repo's.
pub(in super::super) const OWN_NAME: &str = "blocks";
/// Directories at most: they share one budget of buffers and open files, and a look for what is not here asks each.
const MOST: usize = 8;

/// The directories, but for the store's own while that is open.
pub(in super::super) const DIRECTORIES: Table<DirectoryId, Directory> = Table::new("storage.directories");

/// What becomes of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum State {
    /// It takes new blocks.
    Open,
    /// Its blocks are moved to the others.
    Emptied,
    /// It was missing while the store went on, so others may have what is in it. It takes no blocks until it is added
    /// again.
    Away,
    /// The store's own, when nothing in it is needed any more: the next opening makes it anew.
    Spent,
    /// Nothing in it is needed any more; its files go.
    Gone,
}

/// A data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Directory {
    /// Where it is; a relative path is below the repo's.
    pub path: PathBuf,
    pub state: State,
}

/// A data directory in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryStat {
    /// Where it is.
    pub path: PathBuf,
    /// What it does.
    pub state: DirectoryState,
    /// Blocks in it.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of its files.
    pub disk_bytes: u64,
    /// Bytes that its disk has left.
    pub disk_free_bytes: u64,
}

/// What a data directory does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectoryState {
    /// It takes new blocks.
    Open,
    /// Its blocks are moved to the others, or all were.
    Emptied,
    /// It was missing and is there again; what others have too must be removed before it takes new blocks.
    Returned,
    /// It is not there or cannot be opened. Its blocks are not served, and not counted.
    Missing,
}

/// Where a copy of a directory's blocks lies, below the repo's directory.
pub(in super::super) fn copy_name(id: DirectoryId) -> PathBuf {
    if id == OWN { OWN_NAME.into() } else { format!("{OWN_NAME}-{id}").into() }
}

/// Makes a copy of the state, which must not be open, name the copies of the directories.
pub(in super::super) fn name_copies(state: &Path, volumes: &Volumes) -> Result<(), StoreError> {
    let state = StateDb::open(state, &[DIRECTORIES.name()])?;
    let mut batch = state.batch();
    for row in state.scan(&DIRECTORIES, &[]) {
        let (id, directory) = row?;
        // Its files are none of the copy's business.
        if directory.state == State::Gone {
            batch.delete(&DIRECTORIES, &id)?;
        }
    }
    for volume in volumes.iter().filter(|volume| volume.id != OWN) {
        let directory = Directory { path: copy_name(volume.id), state: volume.directory.state };
        batch.put(&DIRECTORIES, &volume.id, &directory)?;
    }
    Ok(state.commit(batch)?)
}

impl Store {
    /// The data directories, the store's own first.
    pub fn directories(&self) -> Result<Vec<DirectoryStat>, StoreError> {
        self.shared.remove_left()?;
        let (volumes, _) = self.shared.db()?;
        let mut all = load(self.state(), &self.shared.root)?;
        all.retain(|(_, directory)| directory.state != State::Gone);
        all.sort_by_key(|(id, _)| *id);
        let stat = |(id, directory): (DirectoryId, Directory)| match volumes.get(id) {
            Some(volume) => volume.stat(),
            None => Ok(missing(directory.path)),
        };
        all.into_iter().map(stat).collect()
    }

    /// Brings in a directory for blocks: empty, or not there yet, or one that was being emptied or missing, which then
    /// stays. From now on new blocks go wherever most space is free. Returns its absolute path.
    ///
    /// # Errors
    /// [`StoreError::Directory`] when it cannot be used; then nothing was changed.
    pub fn add_directory(&self, path: &Path) -> Result<PathBuf, StoreError> {
        // Whoever empties it ends after a window, when it takes blocks again.
        let _only = self.shared.collecting.lock();
        let volumes = self.shared.db()?.0;
        self.shared.check_writable(&volumes)?;
        drop(volumes);
        self.shared.remove_left()?;
        let known = load(self.state(), &self.shared.root)?;
        let same = known.iter().filter(|(_, directory)| is_same(&directory.path, path));
        if let Some((id, directory)) = same.clone().find(|(_, directory)| directory.state != State::Gone) {
            self.take_back(*id, directory)?;
            return Ok(directory.path.clone());
        }
        let refused = |detail: String| StoreError::Directory { path: path.to_owned(), detail };
        if known.len() >= MOST {
            return Err(refused(format!("a repo has at most {MOST} data directories")));
        }
        let path = empty_directory(path)?;
        let id = 1 + known.iter().map(|(id, _)| *id).max().unwrap_or(OWN);
        let gone: Vec<DirectoryId> = same.map(|(id, _)| *id).collect();
        let added = BlockDb::open(&path, Damage::Stops, &self.shared.budget.among(known.len() + 1), None)
            .map_err(StoreError::from)
            .and_then(|db| self.adopt(id, &path, db, &gone));
        if let Err(error) = added {
            // It was empty before; the error that is told is the first.
            let _ = BlockDb::destroy(&path);
            return Err(error);
        }
        tracing::info!(path = %path.display(), "a data directory was added");
        Ok(path)
    }

    /// Makes a new database one of the store's. `gone` were at its place before: their files must not go again.
    fn adopt(
        &self,
        id: DirectoryId,
        path: &Path,
        db: BlockDb,
        gone: &[DirectoryId],
    ) -> Result<(), StoreError> {
        identity::adopt(self.state(), &db)?;
        let directory = Directory { path: path.to_owned(), state: State::Open };
        let mut batch = self.state().batch();
        for id in gone {
            batch.delete(&DIRECTORIES, id)?;
        }
        batch.put(&DIRECTORIES, &id, &self.row(&directory))?;
        self.state().commit(batch)?;
        self.shared.replace_volumes(|all| all.push(Volume { id, directory, db: Arc::new(db) }));
        Ok(())
    }

    /// Lets a directory take blocks again that was emptied or missing. The collection lock must be held.
    fn take_back(&self, id: DirectoryId, directory: &Directory) -> Result<(), StoreError> {
        if directory.state == State::Open {
            return Ok(());
        }
        let shared = &self.shared;
        if shared.db()?.0.get(id).is_none() {
            let budget = shared.budget.among(shared.db()?.0.iter().count() + 1);
            let volume = open_one(self.state(), id, directory, &budget, &How::Mending)?;
            shared.replace_volumes(|all| all.push(volume));
            // Whoever writes without knowing of it has done so then.
            let _stripes = shared.stripes.lock_all();
            // Also if it is not taken in to the end.
            shared.space.set_used(shared.db()?.0.used()?);
        }
        self.remove_copies(id)?;
        self.set_directory_state(id, State::Open)?;
        let _stripes = shared.stripes.lock_all();
        shared.space.set_used(shared.db()?.0.used()?);
        Ok(())
    }

    /// Gives up a directory that is lost, with all blocks in it; the store must not be open. Whatever pins need of them
    /// must be fetched again.
    ///
    /// # Errors
    /// [`StoreError::Directory`] when there is no such directory, or it is the store's own.
    pub fn forget_directory(root: &Path, path: &Path) -> Result<(), StoreError> {
        let refused =
            |detail: &str| StoreError::Directory { path: path.to_owned(), detail: detail.to_owned() };
        let state = StateDb::open(&root.join("state"), &[DIRECTORIES.name()])?;
        let all = load(&state, root)?;
        let found = all.iter().find(|(_, directory)| is_same(&directory.path, path));
        let (id, _) = found.ok_or_else(|| refused("it is none of the data directories of this repo"))?;
        if *id == OWN {
            return Err(refused("it is the repo's own; restore the repo from a backup"));
        }
        let mut batch = state.batch();
        batch.delete(&DIRECTORIES, id)?;
        if !all.iter().any(|(other, directory)| other != id && directory.state == State::Open) {
            // Something must take blocks.
            batch.delete(&DIRECTORIES, &OWN)?;
        }
        Ok(state.commit(batch)?)
    }

    /// A directory as the state has it: what is below the repo moves with it.
    fn row(&self, directory: &Directory) -> Directory {
        let root = self.shared.root.canonicalize().unwrap_or_else(|_| self.shared.root.clone());
        let path = &directory.path;
        let below = path.strip_prefix(&self.shared.root).or_else(|_| path.strip_prefix(&root));
        Directory { path: below.unwrap_or(path).to_owned(), state: directory.state }
    }

    /// The id of an open directory by its path.
    pub(in super::super) fn directory_id(&self, path: &Path) -> Result<Option<DirectoryId>, StoreError> {
        let (volumes, _) = self.shared.db()?;
        Ok(volumes.iter().find(|volume| is_same(&volume.directory.path, path)).map(|volume| volume.id))
    }

    /// Sets what becomes of a directory, durably, and for every write from now on.
    pub(in super::super) fn set_directory_state(
        &self,
        id: DirectoryId,
        state: State,
    ) -> Result<(), StoreError> {
        let mut batch = self.state().batch();
        let (volumes, _) = self.shared.db()?;
        let Some(volume) = volumes.get(id) else { return Ok(()) };
        let mut directory = volume.directory.clone();
        directory.state = state;
        match (id, state) {
            (OWN, State::Open) => batch.delete(&DIRECTORIES, &id)?,
            _ => batch.put(&DIRECTORIES, &id, &self.row(&directory))?,
        }
        drop(volumes);
        self.state().commit(batch)?;
        self.shared.replace_volumes(|all| match state {
            State::Gone => all.retain(|volume| volume.id != id),
            _ => all.iter_mut().filter(|volume| volume.id == id).for_each(|v| v.directory.state = state),
        });
        Ok(())
    }
}

/// Makes sure that an empty directory is at `path`; its real path.
fn empty_directory(path: &Path) -> Result<PathBuf, StoreError> {
    let refused = |detail: String| StoreError::Directory { path: path.to_owned(), detail };
    let io = |error: std::io::Error| refused(error.to_string());
    std::fs::create_dir_all(path).map_err(io)?;
    let real = path.canonicalize().map_err(io)?;
    if real.to_str().is_none() {
        return Err(refused("its name is not UTF-8".into()));
    }
    for entry in std::fs::read_dir(&real).map_err(io)? {
        // A new file system has that one.
        if entry.map_err(io)?.file_name() != "lost+found" {
            return Err(refused("it is not empty".into()));
        }
    }
    Ok(real)
}

/// Whether two paths name one directory, that need not be there.
fn is_same(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    a == b || matches!((real(a), real(b)), (Ok(a), Ok(b)) if a == b)
}

fn missing(path: PathBuf) -> DirectoryStat {
    let state = DirectoryState::Missing;
    DirectoryStat { path, state, blocks: 0, bytes: 0, disk_bytes: 0, disk_free_bytes: 0 }
}

impl Volume {
    fn stat(&self) -> Result<DirectoryStat, StoreError> {
        Ok(DirectoryStat {
            path: self.directory.path.clone(),
            state: match self.directory.state {
                State::Open => DirectoryState::Open,
                State::Emptied | State::Spent | State::Gone => DirectoryState::Emptied,
                State::Away => DirectoryState::Returned,
            },
            blocks: self.db.blocks()?,
            bytes: self.db.live()?,
            disk_bytes: self.disk_bytes()?,
            disk_free_bytes: self.disk_free()?.1,
        })
    }
}

/// A directory that was given up, whose blocks somebody may still be reading.
pub(in super::super) struct Left {
    pub id: DirectoryId,
    pub db: Arc<BlockDb>,
}

impl Shared {
    /// Replaces the set of databases by a changed one. While there is none, the next one is opened by what the state says.
    fn replace_volumes(&self, change: impl FnOnce(&mut Vec<Volume>)) {
        let mut slot = self.slot.write();
        let Some(old) = &slot.db else { return };
        let mut all: Vec<Volume> = old.iter().cloned().collect();
        change(&mut all);
        slot.db = Some(Arc::new(Volumes::new(all)));
        slot.set += 1;
    }

    /// Removes the files of directories that were given up and nobody reads any more. The others are looked at later, at
    /// the next opening at the latest.
    pub fn remove_left(&self) -> Result<(), StoreError> {
        let mut left = self.left.lock();
        let mut still = Vec::new();
        for Left { id, db } in left.drain(..) {
            let path = db.path().to_owned();
            if let Err(db) = Arc::try_unwrap(db).map(drop) {
                still.push(Left { id, db });
                continue;
            }
            if let Err(error) = BlockDb::remove_given_up(&path) {
                tracing::warn!(path = %path.display(), %error, "an emptied data directory keeps its files for now");
                continue;
            }
            let mut batch = self.state.batch();
            batch.delete(&DIRECTORIES, &id)?;
            self.state.commit(batch)?;
        }
        *left = still;
        Ok(())
    }
}
