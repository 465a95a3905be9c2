//! A walk over names and contents, with the checks that keep what is written out where it belongs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cid::Cid;

use super::{FileReader, ReadError, for_each_entry, node_with_metadata};
use crate::BlockSource;
use crate::unixfs::{Metadata, Node};

/// Most entries that are written out. A DAG can be small and unfold without end, since directories can share parts;
/// this stops it before the file system runs out of inodes.
const MAX_ENTRIES: u64 = 10_000_000;

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
    /// A symlink that stays below the root.
    fn symlink(&mut self, path: &Path, target: &[u8], metadata: &Metadata) -> Result<(), ReadError>;
}

/// Visits all below `root`, depth first, in the order directories are stored in.
pub(super) fn visit_tree(
    src: &dyn BlockSource,
    root: &Cid,
    visitor: &mut dyn Visit,
) -> Result<(), ReadError> {
    // The number is of directories that the entry is in.
    let mut stack = vec![(*root, PathBuf::new(), 0usize)];
    let mut entries = 0u64;
    while let Some((cid, path, depth)) = stack.pop() {
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(ReadError::TooManyEntries(MAX_ENTRIES));
        }
        let (node, metadata) = node_with_metadata(src, &cid)?;
        match node {
            Node::File(file) => visitor.file(&path, FileReader::over(src, cid, Arc::new(file)), &metadata)?,
            Node::Symlink(target) => {
                check_link(&target, depth)?;
                visitor.symlink(&path, &target, &metadata)?;
            }
            Node::Directory(_) | Node::Shard(_) => {
                visitor.directory(&path, &metadata)?;
                let first = stack.len();
                for_each_entry(src, &cid, &mut |entry| {
                    check_name(&entry.name)?;
                    stack.push((entry.cid, path.join(&entry.name), depth + 1));
                    Ok(())
                })?;
                stack[first..].reverse();
            }
        }
    }
    Ok(())
}

/// Whether a name is one component that stays in its directory.
fn check_name(name: &str) -> Result<(), ReadError> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(ReadError::Escapes { name: name.to_owned() });
    }
    Ok(())
}

/// Whether a symlink at `depth` below the root stays inside.
///
/// Only leading `..` are allowed, and no more than its depth: a `..` after a name could climb from wherever another
/// link leads.
fn check_link(target: &[u8], depth: usize) -> Result<(), ReadError> {
    let escapes = || ReadError::Escapes { name: String::from_utf8_lossy(target).into_owned() };
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) {
        return Err(escapes());
    }
    // A link at the root itself is in no directory that is written.
    let mut room = depth.checked_sub(1);
    let mut named = false;
    for component in target.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." if named => return Err(escapes()),
            b".." => room = Some(room.and_then(|room| room.checked_sub(1)).ok_or_else(escapes)?),
            _ => named = true,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_stay_inside_are_kept() {
        for (target, depth) in
            [("a", 1), ("a/b", 1), ("../a", 2), ("../../a/./b", 3), ("./a", 1), ("a", 0), ("..", 2)]
        {
            assert!(check_link(target.as_bytes(), depth).is_ok(), "{target} at {depth}");
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
            assert!(check_link(target.as_bytes(), depth).is_err(), "{target:?} at {depth}");
        }
    }
}
