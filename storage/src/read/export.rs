//! Files and directories, written back to the file system.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cid::Cid;
use rustix::fs::{
    AtFlags, CWD, FlockOperation, RenameFlags, Timespec, Timestamps, UTIME_OMIT, renameat_with, utimensat,
};
use sha2::{Digest, Sha256};

use super::tree::{Outward, Visit, visit_tree};
use super::{FileReader, ReadError};
use crate::BlockSource;
use crate::unixfs::Metadata;

/// The bits of a recorded mode that are restored. Not setuid, setgid and sticky: the content is a stranger's.
pub(super) const RESTORED_MODE: u32 = 0o777;

/// Writes the file, symlink or directory at `cid` to `target`, which must not exist, with the permissions and times
/// that are recorded.
///
/// It is written under another name beside the target and renamed at the end, so the target is either complete or
/// absent. Names that would lead out of the exported directory are refused, and so are symlinks unless `outward` says
/// otherwise. `progress` is called with the content bytes written so far.
pub fn export(
    src: &dyn BlockSource,
    cid: &Cid,
    target: &Path,
    outward: Outward,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ReadError> {
    if fs::symlink_metadata(target).is_ok() {
        return Err(ReadError::Exists(target.to_owned()));
    }
    let partial = Partial::beside(target)?;
    let mut export = Export { base: &partial.path, progress, written: 0, later: Vec::new() };
    let exported = visit_tree(src, cid, outward, &mut export).and_then(|()| export.finish());
    exported.map_err(|error| partial.named(error, target))?;
    partial.rename(target)
}

/// What is being written; removed unless it was renamed.
pub(super) struct Partial {
    pub(super) path: PathBuf,
    lock: PathBuf,
    /// Held as long as somebody writes: what lies there without is left over from a process that was killed.
    pub(super) _locked: File,
}

impl Partial {
    /// A name in the target's directory that belongs to the target; what a killed process left there goes.
    pub(super) fn beside(target: &Path) -> Result<Partial, ReadError> {
        // The target's own name may be as long as names can be.
        let name = target.file_name().unwrap_or_default();
        let digest = hex::encode(&Sha256::digest(name.as_bytes())[..8]);
        let path = target.with_file_name(format!(".btfs-part-{digest}"));
        let lock = path.with_extension("lock");
        let locked = locked(&lock).map_err(|source| failed(target, source))?;
        let locked = locked.ok_or_else(|| ReadError::Busy(target.to_owned()))?;
        let partial = Partial { path, lock, _locked: locked };
        partial.remove().map_err(|source| failed(&partial.path, source))?;
        Ok(partial)
    }

    /// Removes what is there.
    fn remove(&self) -> io::Result<()> {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&self.path),
            Ok(_) => fs::remove_file(&self.path),
            Err(_) => Ok(()),
        }
    }

    /// The same error with the name that was asked for.
    pub(super) fn named(&self, error: ReadError, target: &Path) -> ReadError {
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
    pub(super) fn rename(self, target: &Path) -> Result<(), ReadError> {
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
        let _ = self.remove().and(fs::remove_file(&self.lock));
    }
}

/// Makes a file and locks it; `None` if another process has it locked.
fn locked(path: &Path) -> io::Result<Option<File>> {
    loop {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // Whoever had it before may have removed it since it was opened.
        let (here, there) = (file.metadata()?, fs::symlink_metadata(path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino())) {
            return Ok(Some(file));
        }
    }
}

struct Export<'a> {
    base: &'a Path,
    progress: &'a mut dyn FnMut(u64),
    written: u64,
    /// Directories whose modes and times wait until all below is written: they may forbid it, and writing changes
    /// the time.
    later: Vec<(PathBuf, Metadata)>,
}

impl Export<'_> {
    /// Where an entry goes. Nothing is joined for the root: that would end it with a slash.
    fn at(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() { self.base.to_owned() } else { self.base.join(path) }
    }

    /// Restores what directories record, the deepest first.
    fn finish(self) -> Result<(), ReadError> {
        self.later.iter().rev().try_for_each(|(path, metadata)| restore(path, metadata))
    }
}

impl Visit for Export<'_> {
    fn directory(&mut self, path: &Path, metadata: &Metadata) -> Result<(), ReadError> {
        let path = self.at(path);
        // Fails if the name was there before, so that no entry is ever written through another.
        fs::create_dir(&path).map_err(|source| failed(&path, source))?;
        if !metadata.is_empty() {
            self.later.push((path, *metadata));
        }
        Ok(())
    }

    fn file(
        &mut self,
        path: &Path,
        mut content: FileReader<&dyn BlockSource>,
        metadata: &Metadata,
    ) -> Result<(), ReadError> {
        let path = self.at(path);
        let opened = OpenOptions::new().write(true).create_new(true).open(&path);
        let mut out: File = opened.map_err(|source| failed(&path, source))?;
        while let Some(bytes) = content.next_bytes()? {
            out.write_all(&bytes).map_err(|source| failed(&path, source))?;
            self.written += bytes.len() as u64;
            (self.progress)(self.written);
        }
        drop(out);
        restore(&path, metadata)
    }

    fn symlink(&mut self, path: &Path, target: &[u8], metadata: &Metadata) -> Result<(), ReadError> {
        let path = self.at(path);
        let made = std::os::unix::fs::symlink(OsStr::from_bytes(target), &path);
        made.map_err(|source| failed(&path, source))?;
        // A link has no mode of its own.
        restore(&path, &Metadata { mode: None, ..*metadata })
    }
}

/// Gives what was written the mode and time that are recorded of it.
fn restore(path: &Path, metadata: &Metadata) -> Result<(), ReadError> {
    if let Some(mode) = metadata.mode {
        let permissions = fs::Permissions::from_mode(mode & RESTORED_MODE);
        fs::set_permissions(path, permissions).map_err(|source| failed(path, source))?;
    }
    if let Some(mtime) = metadata.mtime {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec {
                tv_sec: mtime.seconds.unwrap_or(0),
                tv_nsec: mtime.nanoseconds.unwrap_or(0).into(),
            },
        };
        utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|source| failed(path, source.into()))?;
    }
    Ok(())
}

fn failed(path: &Path, source: io::Error) -> ReadError {
    ReadError::Write { path: path.to_owned(), source }
}
