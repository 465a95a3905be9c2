//! All block databases of a store as one.
//!
//! A store keeps blocks in its own directory and in any others it was given ([`directories`]). Each holds a whole block
//! database ([`super::rocks`]) with its own log and books, since blob files cannot be spread over several disks. New
//! blocks go where most space is free. A block is in one database; while a directory does not take blocks, because it is
//! emptied ([`drain`]) or was missing for a while ([`opening`]), it may be in that one and another ([`copies`]).
//!
//! Invariants: a [`Place`] means something only with the [`Volumes`] it came from; the set is replaced as a whole, so
//! whoever holds one goes on with it, and who writes takes it anew under the stripes of the keys.

pub(super) mod copies;
pub(super) mod directories;
pub(super) mod drain;
pub(super) mod opening;
pub(super) mod rebuild;

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::rocks::{self, BlockDb, Counter, Log, Meta, Metas};
use crate::db::DbError;
use crate::{Class, StoreError};
use directories::{Directory, DirectoryId, State};

/// One of the databases of a [`Volumes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(usize);

/// A directory and its database.
#[derive(Clone)]
pub(super) struct Volume {
    pub id: DirectoryId,
    pub directory: Directory,
    pub db: Arc<BlockDb>,
}

/// The open block databases.
#[derive(Clone)]
pub(super) struct Volumes {
    /// Those that take no blocks come last.
    all: Vec<Volume>,
}

/// What the disk of a directory has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    /// Tells disks apart.
    disk: u64,
    /// Bytes free, less what is in memory and will be written there.
    free: u64,
}

impl Volumes {
    pub fn new(mut all: Vec<Volume>) -> Volumes {
        all.sort_by_key(|volume| (!volume.takes_blocks(), volume.id));
        Volumes { all }
    }

    /// Closes the databases, or gives them back if anybody still uses one.
    pub fn close(self: Arc<Self>) -> Result<(), Arc<Self>> {
        let all = Arc::try_unwrap(self)?;
        if all.all.iter().all(|volume| Arc::strong_count(&volume.db) == 1) {
            Ok(())
        } else {
            Err(Arc::new(all))
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Volume> {
        self.all.iter()
    }

    pub fn get(&self, id: DirectoryId) -> Option<&Volume> {
        self.all.iter().find(|volume| volume.id == id)
    }

    /// Where blocks of a directory lie.
    pub fn place_of(&self, id: DirectoryId) -> Option<Place> {
        self.all.iter().position(|volume| volume.id == id).map(Place)
    }

    pub fn at(&self, place: Place) -> &Volume {
        &self.all[place.0]
    }

    /// What a database at a place failed with.
    pub fn failed(&self, (place, error): (Place, rocksdb::Error)) -> DbError {
        self.at(place).db.failed(error)
    }

    /// Does something with each database; an error names the one that failed.
    fn each(&self, act: impl Fn(&BlockDb) -> Result<(), rocksdb::Error>) -> Result<(), DbError> {
        self.all.iter().try_for_each(|volume| act(&volume.db).map_err(|error| volume.db.failed(error)))
    }

    /// The first answer of a database. What is moved out of a directory comes to another before it leaves, perhaps
    /// between the looks at the two; so where nothing was found those that stay are asked once more.
    fn first<T, E>(
        &self,
        mut look: impl FnMut(&Volume) -> Result<Option<T>, E>,
    ) -> Result<Option<(Place, T)>, E> {
        let moving = self.all.last().is_some_and(|volume| !volume.takes_blocks());
        let again = self.all.iter().enumerate().filter(|(_, volume)| moving && volume.takes_blocks());
        for (n, volume) in self.all.iter().enumerate().chain(again) {
            if let Some(found) = look(volume)? {
                return Ok(Some((Place(n), found)));
            }
        }
        Ok(None)
    }

    /// What is known of a block, and where it is; where there are two, of the one that is not damaged.
    pub fn find(&self, key: &[u8]) -> Result<Option<(Place, Meta)>, DbError> {
        let mut damaged = None;
        let found = self.first(|volume| {
            let meta = volume.db.meta(key)?;
            if let Some(meta) = meta.filter(|meta| meta.quarantined) {
                damaged.get_or_insert((volume.id, meta));
            }
            Ok::<_, DbError>(meta.filter(|meta| !meta.quarantined))
        })?;
        Ok(found.or_else(|| damaged.and_then(|(id, meta)| Some((self.place_of(id)?, meta)))))
    }

    /// [`find`](Self::find) of many blocks, whose keys are in ascending order.
    pub fn find_all(&self, keys: &[&[u8]]) -> Result<Vec<Option<(Place, Meta)>>, DbError> {
        match self.all.as_slice() {
            [only] => Ok(only.db.metas_of(keys)?.into_iter().map(|meta| Some((Place(0), meta?))).collect()),
            _ => keys.iter().map(|key| self.find(key)).collect(),
        }
    }

    /// What is known of a block.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Meta>, DbError> {
        Ok(self.find(key)?.map(|(_, meta)| meta))
    }

    /// Why what is known of a block cannot be read any more, if that is so, and where.
    pub fn index_damage(&self, key: &[u8]) -> Option<(Place, rocksdb::Error)> {
        self.all.iter().enumerate().find_map(|(n, volume)| Some((Place(n), volume.db.index_damage(key)?)))
    }

    /// A block's bytes, verified against their checksum, without a copy. An error only if no database has them, and which
    /// one failed.
    pub fn block(&self, key: &[u8]) -> Result<Option<Bytes>, (Place, rocksdb::Error)> {
        if let [only] = self.all.as_slice() {
            return only.db.block(key).map_err(|error| (Place(0), error));
        }
        let mut failed = None;
        let found = self.first(|volume| {
            let bytes = volume.db.block(key).unwrap_or_else(|error| {
                failed.get_or_insert((volume.id, error));
                None
            });
            Ok::<_, (Place, rocksdb::Error)>(bytes)
        })?;
        match (found, failed.and_then(|(id, error)| Some((self.place_of(id)?, error)))) {
            (Some((_, bytes)), _) => Ok(Some(bytes)),
            (None, Some(failed)) => Err(failed),
            (None, None) => Ok(None),
        }
    }

    pub fn counter(&self, counter: Counter) -> Result<u64, DbError> {
        self.all.iter().map(|volume| volume.db.counter(counter)).sum()
    }

    /// Bytes of stored blocks, by class.
    pub fn used(&self) -> Result<[u64; 3], DbError> {
        let mut used = [0; 3];
        for class in Class::ALL {
            used[class.index()] = self.counter(Counter::Bytes(class))?;
        }
        Ok(used)
    }

    /// Metadata of every block from key `start` on, in key order.
    pub fn metas(&self, start: &[u8]) -> MergedMetas<'_> {
        // Those that are emptied are looked at first: what leaves them then is seen where it came to.
        let mut parts: Vec<_> =
            self.all.iter().rev().map(|volume| volume.db.metas(start).peekable()).collect();
        parts.reverse();
        MergedMetas { parts }
    }

    /// Makes everything written so far durable.
    pub fn flush(&self) -> Result<(), DbError> {
        self.each(BlockDb::flush)
    }

    /// Makes everything that went through the logs so far durable.
    pub fn sync(&self) -> Result<(), DbError> {
        self.each(BlockDb::sync)
    }

    /// Fails if an error in the background stopped writes to any.
    pub fn check_writable(&self) -> Result<(), DbError> {
        self.each(BlockDb::check_writable)
    }

    /// Cuts compactions short, for a process that ends.
    pub fn cancel_background(&self) {
        self.all.iter().for_each(|volume| volume.db.cancel_background());
    }

    /// Whether nothing can be changed.
    pub fn is_read_only(&self) -> bool {
        self.all.iter().any(|volume| volume.db.is_read_only())
    }

    /// Whether a damaged table of the database at `path` stops writes once a compaction meets it.
    pub fn is_stopped_by_damage(&self, path: &Path) -> bool {
        self.all.iter().any(|volume| volume.db.path() == path && volume.db.is_stopped_by_damage())
    }

    /// The databases whose damaged tables do not stop writes.
    pub fn damage_passed_over(&self) -> Vec<PathBuf> {
        let passed_over = self.all.iter().filter(|volume| !volume.db.is_stopped_by_damage());
        passed_over.map(|volume| volume.db.path().to_owned()).collect()
    }

    pub fn changes(&self) -> Changes<'_> {
        Changes { volumes: self, parts: BTreeMap::new(), moves_books: false }
    }

    /// Where new blocks go: of the directories that take any, the one whose disk has most room, and on one disk the one
    /// that holds least.
    pub fn roomiest(&self) -> Result<Place, StoreError> {
        if self.all.len() == 1 {
            return Ok(Place(0));
        }
        let rooms = self.rooms()?;
        let mut open = Vec::with_capacity(rooms.len());
        for (n, (volume, room)) in self.all.iter().zip(rooms).enumerate() {
            if volume.takes_blocks() {
                open.push((n, room.free, volume.db.live()?));
            }
        }
        Ok(Place(best_of(&open)))
    }

    /// Bytes that may still be written at `place`, its disk's reserve aside.
    pub fn room_at(&self, place: Place) -> Result<u64, StoreError> {
        Ok(self.rooms()?[place.0].free)
    }

    /// Bytes that may still be written to all directories that take blocks but for `but`, without what every disk keeps in
    /// reserve; and how many disks those are.
    pub fn room(&self, reserve: u64, but: Option<DirectoryId>) -> Result<(u64, u64), StoreError> {
        let rooms = self.rooms()?;
        let open = |volume: &Volume| volume.takes_blocks() && Some(volume.id) != but;
        let open = self.all.iter().zip(rooms).filter(|(volume, _)| open(volume));
        let disks: BTreeMap<u64, u64> = open.map(|(_, room)| (room.disk, room.free)).collect();
        let room = disks.values().map(|free| free.saturating_sub(reserve)).fold(0, u64::saturating_add);
        Ok((room, disks.len() as u64))
    }

    /// Bytes free on all disks together that take blocks, and how many those are.
    pub fn disks_free(&self) -> Result<(u64, u64), StoreError> {
        let mut disks = BTreeMap::new();
        for volume in self.all.iter().filter(|volume| volume.takes_blocks()) {
            let (disk, free) = volume.disk_free()?;
            disks.insert(disk, free);
        }
        Ok((disks.values().fold(0, |sum, free| sum.saturating_add(*free)), disks.len() as u64))
    }

    /// The room at each place; directories on one disk share it, and what any of them has in memory.
    fn rooms(&self) -> Result<Vec<Room>, StoreError> {
        let mut rooms = Vec::with_capacity(self.all.len());
        let mut unflushed: BTreeMap<u64, u64> = BTreeMap::new();
        for volume in &self.all {
            let (disk, free) = volume.disk_free()?;
            *unflushed.entry(disk).or_default() += volume.db.unflushed()?;
            rooms.push(Room { disk, free });
        }
        for room in &mut rooms {
            room.free = room.free.saturating_sub(unflushed.get(&room.disk).copied().unwrap_or(0));
        }
        Ok(rooms)
    }
}

/// Of (number, free bytes, bytes held): the one with most free, then the one that holds least.
fn best_of(open: &[(usize, u64, u64)]) -> usize {
    let best = open.iter().max_by_key(|(n, free, held)| (*free, std::cmp::Reverse((*held, *n))));
    best.map_or(0, |(n, ..)| *n)
}

impl Volume {
    /// Whether new blocks may go there.
    pub fn takes_blocks(&self) -> bool {
        self.directory.state == State::Open
    }

    /// Which disk the directory is on, and the bytes that one has left.
    pub fn disk_free(&self) -> Result<(u64, u64), StoreError> {
        let path = self.db.path();
        let failed = |source| StoreError::FreeSpace { path: path.to_owned(), source };
        let stat = rustix::fs::statvfs(path).map_err(|e| failed(e.into()))?;
        let disk = rustix::fs::stat(path).map_err(|e| failed(e.into()))?.st_dev;
        Ok((disk, stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    /// Bytes of the database's files.
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        super::stat::directory_bytes(self.db.path())
            .map_err(|source| StoreError::FreeSpace { path: self.db.path().to_owned(), source })
    }
}

/// Changes to any of the databases.
pub(super) struct Changes<'a> {
    volumes: &'a Volumes,
    parts: BTreeMap<usize, rocks::Changes<'a>>,
    /// Whether a block's other copy changed its class, so that more than stamps is written.
    pub moves_books: bool,
}

impl<'a> Changes<'a> {
    /// Changes at a place.
    pub fn at(&mut self, place: Place) -> &mut rocks::Changes<'a> {
        let volumes = self.volumes;
        self.parts.entry(place.0).or_insert_with(|| volumes.at(place).db.changes())
    }

    /// Makes room for `blocks` new blocks of `bytes` in all.
    pub fn expect(&mut self, place: Place, blocks: usize, bytes: usize) {
        self.parts.insert(place.0, self.volumes.at(place).db.changes_for(blocks, bytes));
    }

    pub fn is_empty(&self) -> bool {
        self.parts.values().all(rocks::Changes::is_empty)
    }

    /// Writes what there is for each database; after an error some may have theirs.
    pub fn write(self, log: Log) -> Result<(), DbError> {
        let volumes = self.volumes;
        for (n, part) in self.parts.into_iter().filter(|(_, part)| !part.is_empty()) {
            part.write(log).map_err(|error| volumes.failed((Place(n), error)))?;
        }
        Ok(())
    }
}

/// Iterator of [`Volumes::metas`]: each block once.
pub(super) struct MergedMetas<'a> {
    parts: Vec<Peekable<Metas<'a>>>,
}

impl Iterator for MergedMetas<'_> {
    type Item = Result<(Vec<u8>, Meta), DbError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let [only] = self.parts.as_mut_slice() {
            return only.next();
        }
        let mut least: Option<Vec<u8>> = None;
        for part in &mut self.parts {
            match part.peek() {
                None => {}
                Some(Err(_)) => return part.next(),
                Some(Ok((key, _))) if least.as_ref().is_none_or(|least| key < least) => {
                    least = Some(key.clone());
                }
                Some(Ok(_)) => {}
            }
        }
        let least = least?;
        let at = |row: &Result<(Vec<u8>, Meta), DbError>| row.as_ref().is_ok_and(|(key, _)| *key == least);
        let copies: Vec<_> = self.parts.iter_mut().filter_map(|part| part.next_if(at)).collect();
        copies.into_iter().next()
    }
}

#[cfg(test)]
mod tests {
    use super::best_of;

    #[test]
    fn new_blocks_go_where_most_is_free_and_on_one_disk_where_least_is_held() {
        assert_eq!(best_of(&[(0, 10, 0), (1, 20, 99)]), 1);
        assert_eq!(best_of(&[(0, 20, 5), (2, 20, 4)]), 2);
        assert_eq!(best_of(&[(0, 20, 5), (1, 20, 5)]), 0);
    }
}
