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
fn lookup(src: &dyn BlockSource, directory: &Cid, name: &str) -> Result<Cid, ReadError> {
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
            Slot::Shard(next) => shard = sub_shard(src, &next.clone())?,
        }
    }
    Err(not_found())
}

fn sub_shard(src: &dyn BlockSource, cid: &Cid) -> Result<Shard, ReadError> {
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

/// Calls `each` with every entry of a directory, in the order it is stored in, until it fails.
///
/// Of the directory's own blocks all must be here; its entries' need not.
pub fn for_each_entry(
    src: &dyn BlockSource,
    directory: &Cid,
    each: &mut dyn FnMut(DirLink) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let top = match node(src, directory)? {
        Node::Directory(entries) => return entries.into_iter().try_for_each(each),
        Node::Shard(shard) => shard,
        other => return Err(ReadError::NotADirectory { cid: *directory, kind: Kind::from(&other) }),
    };
    let levels = top.max_levels();
    let mut stack: Vec<(Cid, Shard, usize)> = vec![(*directory, top, 0)];
    while let Some((cid, shard, next)) = stack.last_mut() {
        let cid = *cid;
        let Some((bucket, slot)) = shard.slots().get(*next).cloned() else {
            stack.pop();
            continue;
        };
        *next += 1;
        match slot {
            Slot::Entry(entry) => {
                let level = (stack.len() - 1) as u32;
                let shard = &stack.last().expect("looked at above").1;
                if !shard.entry_fits(&entry.name, bucket, level) {
                    return Err(ReadError::Inconsistent {
                        cid,
                        problem: "a shard holds a name of another bucket",
                    });
                }
                each(entry)?;
            }
            Slot::Shard(below) => {
                if stack.len() as u32 >= levels {
                    return Err(ReadError::Inconsistent {
                        cid: below,
                        problem: "a shard deeper than the hash",
                    });
                }
                let shard = sub_shard(src, &below)?;
                stack.push((below, shard, 0));
            }
        }
    }
    Ok(())
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
