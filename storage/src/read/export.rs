//! Files and directories, written back to the file system.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cid::Cid;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{FileReader, ReadError, for_each_entry, node};
use crate::BlockSource;
use crate::unixfs::{FileNode, Node};

/// Most entries one export writes. A DAG can be small and unfold without end, since directories can share parts;
/// this stops it before the file system runs out of inodes.
const MAX_ENTRIES: u64 = 10_000_000;

/// Writes the file, symlink or directory at `cid` to `target`, which must not exist.
///
/// It is written under another name beside the target and renamed at the end, so the target is either complete or
/// absent. Names and symlinks that would lead out of the exported directory are refused. `progress` is called with
/// the content bytes written so far.
pub fn export(
    src: &dyn BlockSource,
    cid: &Cid,
    target: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ReadError> {
    if fs::symlink_metadata(target).is_ok() {
        return Err(ReadError::Exists(target.to_owned()));
    }
    let partial = Partial::beside(target);
    let mut export = Export { src, progress, written: 0, entries: 0 };
    export.run(cid, &partial.path).map_err(|error| partial.named(error, target))?;
    partial.rename(target)
}

/// What is being written; removed unless it was renamed.
struct Partial {
    path: PathBuf,
}

impl Partial {
    /// A name in the target's directory, unused so far.
    fn beside(target: &Path) -> Partial {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = target.with_file_name(format!(".btfs-part-{}-{count}", std::process::id()));
            // One may be left from a process of the same number that was killed.
            if fs::symlink_metadata(&path).is_err() {
                return Partial { path };
            }
        }
    }

    /// The same error with the name that was asked for.
    fn named(&self, error: ReadError, target: &Path) -> ReadError {
        match error {
            ReadError::Write { path, source } => {
                let path = match path.strip_prefix(&self.path) {
                    // Joining nothing would end it with a slash.
                    Ok(below) if below.as_os_str().is_empty() => target.to_owned(),
                    Ok(below) => target.join(below),
                    Err(_) => path,
                };
                ReadError::Write { path, source }
            }
            other => other,
        }
    }

    /// Moves it into place, never over anything.
    fn rename(self, target: &Path) -> Result<(), ReadError> {
        let result = match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            // A file system that cannot refuse to replace: look first.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if fs::symlink_metadata(target).is_ok() {
                    return Err(ReadError::Exists(target.to_owned()));
                }
                fs::rename(&self.path, target)
            }
            other => other.map_err(io::Error::from),
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(ReadError::Exists(target.to_owned()))
            }
            Err(source) => Err(ReadError::Write { path: target.to_owned(), source }),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Nothing is there after the rename. What cannot be removed is not the error to report.
        let _ = match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&self.path),
            Ok(_) => fs::remove_file(&self.path),
            Err(_) => Ok(()),
        };
    }
}

struct Export<'a> {
    src: &'a dyn BlockSource,
    progress: &'a mut dyn FnMut(u64),
    written: u64,
    entries: u64,
}

impl Export<'_> {
    /// Writes all below `root`, depth first. `depth` of an entry is how many directories of the export it is in.
    fn run(&mut self, root: &Cid, path: &Path) -> Result<(), ReadError> {
        let mut stack = vec![(*root, path.to_owned(), 0usize)];
        while let Some((cid, path, depth)) = stack.pop() {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(ReadError::TooManyEntries(MAX_ENTRIES));
            }
            match node(self.src, &cid)? {
                Node::File(file) => self.file(cid, file, &path)?,
                Node::Symlink(target) => {
                    check_link(&target, depth)?;
                    let link = std::os::unix::fs::symlink(OsStr::from_bytes(&target), &path);
                    link.map_err(|source| failed(&path, source))?;
                }
                Node::Directory(_) | Node::Shard(_) => {
                    // Fails if the name was there before, so that no entry is ever written through another.
                    fs::create_dir(&path).map_err(|source| failed(&path, source))?;
                    let first = stack.len();
                    for_each_entry(self.src, &cid, &mut |entry| {
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

    fn file(&mut self, cid: Cid, file: FileNode, path: &Path) -> Result<(), ReadError> {
        let mut out: File = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|source| failed(path, source))?;
        let mut reader = FileReader::over(self.src, cid, Arc::new(file));
        while let Some(bytes) = reader.next_bytes()? {
            out.write_all(&bytes).map_err(|source| failed(path, source))?;
            self.written += bytes.len() as u64;
            (self.progress)(self.written);
        }
        Ok(())
    }
}

fn failed(path: &Path, source: io::Error) -> ReadError {
    ReadError::Write { path: path.to_owned(), source }
}

/// Whether a name is one component that stays in its directory.
fn check_name(name: &str) -> Result<(), ReadError> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(ReadError::Escapes { name: name.to_owned() });
    }
    Ok(())
}

/// Whether a symlink at `depth` below the export's root stays inside.
///
/// Only leading `..` are allowed, and no more than its depth: a `..` after a name could climb from wherever another
/// link leads.
fn check_link(target: &[u8], depth: usize) -> Result<(), ReadError> {
    let escapes = || ReadError::Escapes { name: String::from_utf8_lossy(target).into_owned() };
    if target.is_empty() || target.starts_with(b"/") || target.contains(&0) {
        return Err(escapes());
    }
    // A link at the root itself is in no directory of the export.
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
