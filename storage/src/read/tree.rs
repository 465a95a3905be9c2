//! A walk over names and contents, with the checks that keep what is written out where it belongs.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cid::Cid;
use serde::{Deserialize, Serialize};

use super::{Entries, FileReader, ReadError, node_with_metadata};
use crate::BlockSource;
use crate::unixfs::{Metadata, Node};

/// Most entries that are written out. A DAG can be small and unfold without end, since directories can share parts;
/// this stops it before the file system runs out of inodes.
const MAX_ENTRIES: u64 = 10_000_000;

/// Directories within each other at most, and the entries of all of them that may be held at a time: a path on Linux has
/// at most 4,096 bytes, and a directory of one block some 40,000 entries.
const MAX_DEPTH: usize = 2048;
const MAX_HELD: usize = 1 << 20;
/// Bytes of a name at most, as file systems have it.
const MAX_NAME: usize = 255;
/// Characters of a longer one that an error shows.
const SHOWN: usize = 40;

/// What becomes of symlinks that would lead out of what is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outward {
    /// They end it: the content may be a stranger's.
    #[default]
    Refuse,
    /// They are left out.
    Skip,
    /// They are written as they are. Nothing is ever written through one.
    Keep,
}

/// Takes the entries of a tree. Paths are relative to the root, whose path is empty; every component is one name.
pub(super) trait Visit {
    /// A directory, before what is in it.
    fn directory(&mut self, path: &Path, metadata: &Metadata) -> Result<(), ReadError>;
    /// A file.
    fn file(
        &mut self,
        path: &Path,
        content: FileReader<&dyn BlockSource>,
        metadata: &Metadata,
    ) -> Result<(), ReadError>;
    /// A symlink that stays below the root, or is to be kept all the same.
    fn symlink(&mut self, path: &Path, target: &[u8], metadata: &Metadata) -> Result<(), ReadError>;
}

/// Visits all below `root`, depth first, in the order directories are stored in.
pub(super) fn visit_tree(
    src: &dyn BlockSource,
    root: &Cid,
    outward: Outward,
    visitor: &mut dyn Visit,
) -> Result<(), ReadError> {
    // Of the directories that `path` is in, what comes next.
    let mut open: Vec<Entries<'_>> = Vec::new();
    let mut path = PathBuf::new();
    let mut next = Some(*root);
    let mut entries = 0u64;
    // Nothing may be written through one of these under the same name.
    let mut led_out: HashSet<PathBuf> = HashSet::new();
    loop {
        let Some(cid) = next.take() else {
            let Some(directory) = open.last_mut() else { return Ok(()) };
            match directory.next().transpose()? {
                Some(entry) => {
                    check_name(&entry.name)?;
                    path.push(&entry.name);
                    next = Some(entry.cid);
                }
                None => {
                    open.pop();
                    path.pop();
                }
            }
            continue;
        };
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(ReadError::TooManyEntries(MAX_ENTRIES));
        }
        let (node, metadata) = node_with_metadata(src, &cid)?;
        if led_out.contains(&path) {
            return Err(ReadError::Escapes { name: path.display().to_string() });
        }
        match node {
            Node::File(file) => visitor.file(&path, FileReader::over(src, cid, Arc::new(file)), &metadata)?,
            Node::Symlink(target) => {
                let stays = stays_inside(&target, open.len());
                let writable = !target.is_empty() && !target.contains(&0);
                match outward {
                    _ if stays => visitor.symlink(&path, &target, &metadata)?,
                    Outward::Keep if writable => {
                        led_out.insert(path.clone());
                        if led_out.len() > MAX_HELD {
                            return Err(ReadError::TooManyEntries(MAX_HELD as u64));
                        }
                        visitor.symlink(&path, &target, &metadata)?;
                    }
                    Outward::Skip => {}
                    Outward::Keep | Outward::Refuse => {
                        let target = String::from_utf8_lossy(&target).into_owned();
                        return Err(ReadError::LeadsOut { link: path, target });
                    }
                }
            }
            Node::Directory(_) | Node::Shard(_) => {
                visitor.directory(&path, &metadata)?;
                open.push(Entries::of(src, &cid)?);
                if open.len() > MAX_DEPTH || open.iter().map(Entries::held).sum::<usize>() > MAX_HELD {
                    return Err(ReadError::TooDeep(cid));
                }
                continue;
            }
        }
        path.pop();
    }
}

/// Whether a name is one component that stays in its directory.
fn check_name(name: &str) -> Result<(), ReadError> {
    if name.len() > MAX_NAME {
        return Err(ReadError::LongName { start: name.chars().take(SHOWN).collect(), bytes: name.len() });
    }
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(ReadError::Escapes { name: name.to_owned() });
    }
    Ok(())
}

/// Whether a symlink at `depth` below the root stays inside.
///
/// Only leading `..` are allowed, and no more than its depth: a `..` after a name could climb from wherever another
/// link leads.
fn stays_inside(target: &[u8], depth: usize) -> bool {
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) {
        return false;
    }
    // A link at the root itself is in no directory that is written.
    let mut room = depth.checked_sub(1);
    let mut named = false;
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if named => return false,
            b".." => match room.and_then(|room| room.checked_sub(1)) {
                Some(left) => room = Some(left),
                None => return false,
            },
            _ => named = true,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_stay_inside_are_kept() {
        for (target, depth) in
            [("a", 1), ("a/b", 1), ("../a", 2), ("../../a/./b", 3), ("./a", 1), ("a", 0), ("..", 2)]
        {
            assert!(stays_inside(target.as_bytes(), depth), "{target} at {depth}");
        }
        for (target, depth) in [
            ("/etc/passwd", 1),
            ("..", 1),
            ("../a", 1),
            ("../../a", 2),
            ("a/../b", 3),
            ("./..", 1),
            ("", 1),
            ("a\0", 1),
            ("../a", 0),
        ] {
            assert!(!stays_inside(target.as_bytes(), depth), "{target:?} at {depth}");
        }
    }
}
