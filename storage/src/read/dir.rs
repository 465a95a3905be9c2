//! Names: paths through directories, and what a directory holds.

use cid::Cid;
use serde::Serialize;

use super::{Kind, ReadError, node};
use crate::unixfs::hamt::{Shard, Slot};
use crate::unixfs::{DirLink, Node};
use crate::{BlockSource, hash};

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirEntry {
    /// Its name: one path component.
    pub name: String,
    /// Its root.
    pub cid: Cid,
    /// What it is; [`Kind::Unknown`] when its root block is not here.
    pub kind: Kind,
    /// Content bytes of a file, length of a symlink's target, 0 for a directory; `None` when its root block is not
    /// here.
    pub size: Option<u64>,
    /// Cumulative size in bytes of its DAG, as the directory claims.
    pub dag_size: u64,
}

/// The CID at `path` below `root`. Components are separated by slashes; empty ones and `.` are skipped, `..` is
/// resolved within the path. Symlinks are not followed.
pub fn resolve(src: &dyn BlockSource, root: &Cid, path: &str) -> Result<Cid, ReadError> {
    let mut components: Vec<&str> = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop().ok_or_else(|| ReadError::Path(path.to_owned()))?;
            }
            name => components.push(name),
        }
    }
    let mut at = *root;
    for name in components {
        at = lookup(src, &at, name)?;
    }
    Ok(at)
}

/// The entry `name` of one directory.
pub(crate) fn lookup(src: &dyn BlockSource, directory: &Cid, name: &str) -> Result<Cid, ReadError> {
    let not_found = || ReadError::NotFound { directory: *directory, name: name.to_owned() };
    let mut shard = match node(src, directory)? {
        // The first of repeated names is the one that counts, by the specification.
        Node::Directory(entries) => {
            let found = entries.into_iter().find(|entry| entry.name == name);
            return found.map(|entry| entry.cid).ok_or_else(not_found);
        }
        Node::Shard(shard) => shard,
        other => return Err(ReadError::NotADirectory { cid: *directory, kind: Kind::from(&other) }),
    };
    // `lookup` finds nothing once the hash has no bits left, so this ends.
    for level in 0.. {
        match shard.lookup(name, level).ok_or_else(not_found)? {
            Slot::Entry(entry) => return Ok(entry.cid),
            Slot::Shard { cid, .. } => shard = sub_shard(src, &cid.clone())?,
        }
    }
    Err(not_found())
}

/// A shard below another, which is never empty.
pub(crate) fn sub_shard(src: &dyn BlockSource, cid: &Cid) -> Result<Shard, ReadError> {
    match node(src, cid)? {
        Node::Shard(shard) if !shard.slots().is_empty() => Ok(shard),
        Node::Shard(_) => {
            Err(ReadError::Inconsistent { cid: *cid, problem: "a shard below another is empty" })
        }
        _ => {
            Err(ReadError::Inconsistent { cid: *cid, problem: "a shard links to something that is no shard" })
        }
    }
}

/// The entries of a directory, in the order it is stored in.
///
/// Of the directory's own blocks all must be here; its entries' need not. Ends with the first error.
pub struct Entries<'a> {
    src: &'a dyn BlockSource,
    /// Entries of a directory in one block.
    plain: std::vec::IntoIter<DirLink>,
    /// Shards on the way to the next entry, each with the slot that comes next.
    stack: Vec<(Cid, Shard, usize)>,
    levels: u32,
}

impl<'a> Entries<'a> {
    /// Those of `directory`; reads its root.
    pub fn of(src: &'a dyn BlockSource, directory: &Cid) -> Result<Entries<'a>, ReadError> {
        let mut entries = Entries { src, plain: Vec::new().into_iter(), stack: Vec::new(), levels: 0 };
        match node(src, directory)? {
            Node::Directory(plain) => entries.plain = plain.into_iter(),
            Node::Shard(top) => {
                entries.levels = top.max_levels();
                entries.stack.push((*directory, top, 0));
            }
            other => {
                return Err(ReadError::NotADirectory { cid: *directory, kind: Kind::from(&other) });
            }
        }
        Ok(entries)
    }

    /// Entries and slots in memory that were not given yet.
    pub(super) fn held(&self) -> usize {
        let left = |(_, shard, next): &(Cid, Shard, usize)| shard.slots().len() - next;
        self.plain.len() + self.stack.iter().map(left).sum::<usize>()
    }

    /// The next entry of the trie.
    fn next_in_trie(&mut self) -> Result<Option<DirLink>, ReadError> {
        let inconsistent = |cid, problem| Err(ReadError::Inconsistent { cid, problem });
        while let Some((cid, shard, next)) = self.stack.last_mut() {
            let Some((bucket, slot)) = shard.slots().get(*next).cloned() else {
                self.stack.pop();
                continue;
            };
            *next += 1;
            match slot {
                Slot::Entry(entry) => {
                    let cid = *cid;
                    let level = (self.stack.len() - 1) as u32;
                    let shard = &self.stack[level as usize].1;
                    if !shard.entry_fits(&entry.name, bucket, level) {
                        return inconsistent(cid, "a shard holds a name of another bucket");
                    }
                    return Ok(Some(entry));
                }
                Slot::Shard { cid: below, .. } => {
                    if self.stack.len() as u32 >= self.levels {
                        return inconsistent(below, "a shard deeper than the hash");
                    }
                    let shard = sub_shard(self.src, &below)?;
                    self.stack.push((below, shard, 0));
                }
            }
        }
        Ok(None)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<DirLink, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(entry) = self.plain.next() {
            return Some(Ok(entry));
        }
        let next = self.next_in_trie();
        if next.is_err() {
            self.stack.clear();
        }
        next.transpose()
    }
}

/// Calls `each` with every entry of a directory, in the order it is stored in, until it fails. See [`Entries`].
pub fn for_each_entry(
    src: &dyn BlockSource,
    directory: &Cid,
    each: &mut dyn FnMut(DirLink) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    Entries::of(src, directory)?.try_for_each(|entry| each(entry?))
}

/// What a directory holds, sorted by name.
pub fn ls(src: &dyn BlockSource, directory: &Cid) -> Result<Vec<DirEntry>, ReadError> {
    let mut entries = Vec::new();
    for_each_entry(src, directory, &mut |link| {
        entries.push(describe(src, link)?);
        Ok(())
    })?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn describe(src: &dyn BlockSource, link: DirLink) -> Result<DirEntry, ReadError> {
    let DirLink { name, cid, tsize } = link;
    let (kind, size) = if cid.codec() == hash::RAW {
        // No need to read it: a raw block is a file.
        (Kind::File, Some(src.block_size(&cid)?.unwrap_or(tsize)))
    } else {
        match super::stat(src, &cid) {
            Ok(stat) => (stat.kind, Some(stat.size)),
            Err(ReadError::Missing(_) | ReadError::UnixFs { .. }) => (Kind::Unknown, None),
            Err(error) => return Err(error),
        }
    };
    Ok(DirEntry { name, cid, kind, size, dag_size: tsize })
}
