//! The walk over a tree of the file system.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cid::Cid;
use rustix::fs::OFlags;

use super::directory::put_directory;
use super::pipeline::{Failure, Pipeline};
use super::{Counting, FileBuilder, ImportError, ImportOptions, Imported, Leaf, Observer, Profile};
use crate::BlockSink;
use crate::unixfs::{Data, DirLink};

/// One import of a path.
pub(super) struct Importer<'a, 's, 'scope, 'env> {
    pub(super) profile: &'a Profile,
    pub(super) options: &'a ImportOptions,
    pub(super) sink: &'a mut Counting<'s>,
    pub(super) progress: &'a mut dyn FnMut(u64),
    pub(super) observer: &'a mut dyn Observer,
    pub(super) pipeline: Pipeline<'scope, 'env>,
    /// Content bytes of the files that are complete.
    pub(super) done: u64,
}

/// A directory that is being worked through.
struct Frame {
    path: PathBuf,
    /// Entries still to come, in order.
    names: std::vec::IntoIter<String>,
    /// Entries done.
    links: Vec<DirLink>,
}

impl Importer<'_, '_, '_, '_> {
    pub(super) fn import(mut self, path: &Path) -> Result<Imported, ImportError> {
        let read = |source| ImportError::Read { path: path.to_owned(), source };
        let metadata = if self.options.follow_root { fs::metadata(path) } else { fs::symlink_metadata(path) };
        let metadata = metadata.map_err(read)?;
        let (root, dag_size) = if metadata.is_dir() {
            self.directory(path)?
        } else if self.options.follow_root {
            self.entry(&fs::canonicalize(path).map_err(read)?, &metadata, &[])?
        } else {
            self.entry(path, &metadata, &[])?
        };
        Ok(Imported { root, size: self.done, dag_size, blocks: self.sink.blocks })
    }

    /// A directory and all below it, depth first, without recursion: trees may be deep.
    fn directory(&mut self, path: &Path) -> Result<(Cid, u64), ImportError> {
        let mut names: Vec<String> = Vec::new();
        let mut stack = vec![self.open_directory(path.to_owned())?];
        loop {
            let frame = stack.last_mut().expect("the loop returns with its last directory");
            if let Some(name) = frame.names.next() {
                let path = frame.path.join(&name);
                let metadata = fs::symlink_metadata(&path)
                    .map_err(|source| ImportError::Read { path: path.clone(), source })?;
                names.push(name);
                if metadata.is_dir() {
                    stack.push(self.open_directory(path)?);
                    continue;
                }
                let (cid, tsize) = self.entry(&path, &metadata, &names)?;
                let name = names.pop().expect("pushed above");
                frame.links.push(DirLink { name, cid, tsize });
                continue;
            }
            let done = stack.pop().expect("looked at above");
            let (cid, tsize) = put_directory(self.profile, done.links, self.sink)?;
            self.observer.directory(&names, &cid);
            match stack.last_mut() {
                Some(parent) => {
                    let name = names.pop().expect("every directory but the top has a name");
                    parent.links.push(DirLink { name, cid, tsize });
                }
                None => return Ok((cid, tsize)),
            }
        }
    }

    fn open_directory(&self, path: PathBuf) -> Result<Frame, ImportError> {
        let read = |source| ImportError::Read { path: path.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(read)? {
            let name: OsString = entry.map_err(read)?.file_name();
            let name = name.into_string().map_err(|name| ImportError::NotUtf8 { path: path.join(name) })?;
            if self.options.hidden || !name.starts_with('.') {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(Frame { path, names: names.into_iter(), links: Vec::new() })
    }

    /// A file or symlink: its root and cumulative size.
    fn entry(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        names: &[String],
    ) -> Result<(Cid, u64), ImportError> {
        if metadata.is_symlink() {
            return self.symlink(path, names);
        }
        if !metadata.is_file() {
            return Err(ImportError::Kind { path: path.to_owned() });
        }
        let file = self.file(path, names)?;
        Ok((file.root, file.dag_size))
    }

    fn symlink(&mut self, path: &Path, names: &[String]) -> Result<(Cid, u64), ImportError> {
        let target =
            fs::read_link(path).map_err(|source| ImportError::Read { path: path.to_owned(), source })?;
        let target = Bytes::from(target.into_os_string().into_vec());
        let (cid, block) = self.profile.node(Vec::new(), &Data::symlink(target.clone()));
        let tsize = block.len() as u64;
        self.sink.put(&cid, block)?;
        self.observer.symlink(names, &target, &cid);
        Ok((cid, tsize))
    }

    fn file(&mut self, path: &Path, names: &[String]) -> Result<Imported, ImportError> {
        let read = |source: io::Error| ImportError::Read { path: path.to_owned(), source };
        let (mut file, before) = open_file(path)?;
        let size = before.len();
        self.observer.file_start(names, Some(size));
        let mut builder = FileBuilder::new(self.profile);
        let blocks = self.sink.blocks;
        let (sink, observer, progress) = (&mut *self.sink, &mut *self.observer, &mut *self.progress);
        let done = self.done;
        let mut each = |leaf: Leaf, block: Bytes| {
            sink.put(&leaf.cid, block)?;
            observer.leaf(&leaf);
            let len = leaf.content.len() as u64;
            progress(done + leaf.offset + len);
            builder.push(leaf.cid, len, leaf.block_len, sink)
        };
        self.pipeline.run(&mut file, Some(size), &mut each).map_err(|failure| match failure {
            Failure::Read(source) => read(source),
            Failure::Import(error) => error,
        })?;
        let mut imported = builder.finish(self.sink)?;
        let after = file.metadata().map_err(read)?;
        if imported.size != size || state(&before) != state(&after) {
            return Err(ImportError::Changed { path: path.to_owned() });
        }
        imported.blocks = self.sink.blocks - blocks;
        self.done = self.done.checked_add(size).ok_or(ImportError::TooLarge)?;
        self.observer.file_end(&imported);
        Ok(imported)
    }
}

/// Opens a regular file, and nothing that took its place since it was listed.
fn open_file(path: &Path) -> Result<(File, Metadata), ImportError> {
    let read = |source: io::Error| ImportError::Read { path: path.to_owned(), source };
    // Not through a symlink, and without waiting for the other end of a pipe.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.cast_signed());
    let file = options.open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if !metadata.is_file() {
        return Err(ImportError::Kind { path: path.to_owned() });
    }
    Ok((file, metadata))
}

/// What is different after a file was written to.
fn state(metadata: &Metadata) -> (u64, i64, i64) {
    (metadata.len(), metadata.mtime(), metadata.mtime_nsec())
}
