//! The walk over a tree of the file system.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use rustix::fs::OFlags;

use super::builder::{WholeFile, one_leaf};
use super::directory::put_directory;
use super::pipeline::{Failure, Pipeline};
use super::small::{Ahead, Queue, Small};
use super::{Counting, ImportError, ImportOptions, Imported, Leaf, Observer, Profile, import_symlink};
use crate::unixfs::DirLink;

/// One import of a path.
pub(super) struct Importer<'a, 's, 'scope, 'env> {
    pub(super) profile: &'a Profile,
    pub(super) options: &'a ImportOptions,
    pub(super) sink: &'a mut Counting<'s>,
    pub(super) progress: &'a mut dyn FnMut(u64),
    pub(super) observer: &'a mut dyn Observer,
    pub(super) pipeline: Pipeline<'scope, 'env>,
    pub(super) ahead: Ahead<'scope, 'env>,
    /// Content bytes of the files that are complete.
    pub(super) done: u64,
}

/// An entry of a directory, as the directory tells it.
pub(super) struct Name {
    pub(super) name: String,
    /// Whether it is a regular file.
    pub(super) is_file: bool,
}

/// A directory that is being worked through.
struct Frame {
    path: PathBuf,
    /// Entries still to come, in order, and how many of them are no files.
    names: std::vec::IntoIter<Name>,
    others: usize,
    /// Small files among them that are being read.
    queue: Queue,
    /// The directory that is the next of them, if it was begun with already, and whether that was tried.
    next: Option<Box<Frame>>,
    tried_next: bool,
    /// Entries done.
    links: Vec<DirLink>,
    metadata: crate::unixfs::Metadata,
    /// Device and inode, to know a directory again that is below itself.
    place: (u64, u64),
}

impl Importer<'_, '_, '_, '_> {
    pub(super) fn import(mut self, path: &Path) -> Result<Imported, ImportError> {
        let (root, dag_size) = self.given(path, &mut Vec::new())?;
        Ok(Imported { root, size: self.done, dag_size, blocks: self.sink.blocks })
    }

    /// Everything given in one directory.
    pub(super) fn import_wrapped(mut self, paths: &[PathBuf]) -> Result<Imported, ImportError> {
        let mut links: BTreeMap<String, DirLink> = BTreeMap::new();
        for path in paths {
            let name = last_component(path)?;
            if links.contains_key(&name) {
                let problem = "another of the given paths ends in the same name";
                return Err(ImportError::Path { path: path.display().to_string(), problem });
            }
            let (cid, tsize) = self.given(path, &mut vec![name.clone()])?;
            links.insert(name.clone(), DirLink { name, cid, tsize });
        }
        let metadata = self.options.given();
        let (root, dag_size) =
            put_directory(self.profile, links.into_values().collect(), &metadata, self.sink)?;
        self.observer.directory(&[], &root);
        Ok(Imported { root, size: self.done, dag_size, blocks: self.sink.blocks })
    }

    /// A path that was asked for; `names` is what it is shown under.
    fn given(&mut self, path: &Path, names: &mut Vec<String>) -> Result<(Cid, u64), ImportError> {
        let read = |source| ImportError::Read { path: path.to_owned(), source };
        let follow = self.options.follow_root || self.options.follow_links;
        let metadata = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
        let metadata = metadata.map_err(read)?;
        if metadata.is_dir() {
            self.directory(path, &metadata, names)
        } else if follow {
            self.entry(&fs::canonicalize(path).map_err(read)?, &metadata, names)
        } else {
            self.entry(path, &metadata, names)
        }
    }

    /// A directory and all below it, depth first, without recursion: trees may be deep.
    fn directory(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        names: &mut Vec<String>,
    ) -> Result<(Cid, u64), ImportError> {
        let given = names.len();
        let mut stack = vec![self.open_directory(path.to_owned(), metadata, &[])?];
        loop {
            let frame = stack.last_mut().expect("the loop returns with its last directory");
            let small = self.ahead.next(&mut frame.queue, &frame.path, frame.names.as_slice());
            let (entry, next) = (frame.names.next(), frame.next.take());
            frame.tried_next = false;
            frame.others -= usize::from(entry.as_ref().is_some_and(|entry| !entry.is_file));
            if entry.as_ref().is_none_or(|entry| entry.is_file) {
                self.look_further(&mut stack, &names[given..]);
            }
            let frame = stack.last_mut().expect("as before");
            if let Some(Name { name, .. }) = entry {
                names.push(name);
                let (cid, tsize) = match (small, next) {
                    (Some(small), _) => {
                        let file = self.small(small, names)?;
                        (file.root, file.dag_size)
                    }
                    (None, Some(next)) => {
                        self.enter(&mut stack, *next, names)?;
                        continue;
                    }
                    (None, None) => {
                        let path = frame.path.join(names.last().expect("pushed above"));
                        let metadata = self.options.look_at(&path)?;
                        if metadata.is_dir() {
                            let next = self.open_directory(path, &metadata, &names[given..])?;
                            self.enter(&mut stack, next, names)?;
                            continue;
                        }
                        self.entry(&path, &metadata, names)?
                    }
                };
                let name = names.pop().expect("pushed above");
                frame.links.push(DirLink { name, cid, tsize });
                continue;
            }
            let done = stack.pop().expect("looked at above");
            let (cid, tsize) = put_directory(self.profile, done.links, &done.metadata, self.sink)?;
            self.observer.directory(names, &cid);
            match stack.last_mut() {
                Some(parent) => {
                    let name = names.pop().expect("every directory but the top has a name");
                    parent.links.push(DirLink { name, cid, tsize });
                }
                None => return Ok((cid, tsize)),
            }
        }
    }

    /// Goes on with a directory, whose name is the last of `names`.
    fn enter(&self, stack: &mut Vec<Frame>, next: Frame, names: &mut Vec<String>) -> Result<(), ImportError> {
        if stack.iter().any(|above| above.place == next.place) {
            return Err(ImportError::Loop { path: next.path });
        }
        if next.names.len() == 0 && self.options.skip_empty_directories {
            names.pop();
        } else {
            stack.push(next);
        }
        Ok(())
    }

    /// Begins with the directory that comes after the one at the end of the stack once what is left of this one are files
    /// that are all being read: else the readers would have nothing to do until its last files are stored and the next is
    /// listed. Whatever is wrong with it, the walk finds when it comes there. `below` are the components that lead to the one
    /// at the end.
    fn look_further(&mut self, stack: &mut [Frame], below: &[String]) {
        let [.., parent, frame] = stack else { return };
        if frame.others > 0 || !self.ahead.has_given_out(&frame.queue, frame.names.len()) {
            return;
        }
        if !std::mem::replace(&mut parent.tried_next, true) {
            parent.next = self.open_next(parent, &below[..below.len() - 1]);
        }
        if let Some(next) = &mut parent.next {
            self.ahead.give_out(&mut next.queue, &next.path, next.names.as_slice());
        }
    }

    fn open_next(&self, parent: &Frame, below: &[String]) -> Option<Box<Frame>> {
        let next = parent.names.as_slice().first().filter(|next| !next.is_file)?;
        let path = parent.path.join(&next.name);
        let metadata = self.options.look_at(&path).ok().filter(Metadata::is_dir)?;
        let below = [below, std::slice::from_ref(&next.name)].concat();
        self.open_directory(path, &metadata, &below).ok().map(Box::new)
    }

    fn open_directory(
        &self,
        path: PathBuf,
        metadata: &Metadata,
        below: &[String],
    ) -> Result<Frame, ImportError> {
        let names = list(&path, self.options, below)?;
        Ok(Frame {
            others: names.iter().filter(|name| !name.is_file).count(),
            names: names.into_iter(),
            path,
            queue: Queue::default(),
            next: None,
            tried_next: false,
            links: Vec::new(),
            metadata: self.options.metadata(metadata),
            place: (metadata.dev(), metadata.ino()),
        })
    }

    /// A file or symlink: its root and cumulative size.
    fn entry(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        names: &[String],
    ) -> Result<(Cid, u64), ImportError> {
        if metadata.is_symlink() {
            return self.symlink(path, metadata, names);
        }
        if !metadata.is_file() {
            return Err(ImportError::Kind { path: path.to_owned() });
        }
        let file = self.file(path, names)?;
        Ok((file.root, file.dag_size))
    }

    fn symlink(
        &mut self,
        path: &Path,
        metadata: &Metadata,
        names: &[String],
    ) -> Result<(Cid, u64), ImportError> {
        let target =
            fs::read_link(path).map_err(|source| ImportError::Read { path: path.to_owned(), source })?;
        let target = Bytes::from(target.into_os_string().into_vec());
        let metadata = self.options.metadata(metadata);
        let done = import_symlink(target.clone(), self.profile, &metadata, self.sink)?;
        self.observer.symlink(names, &target, &done.root);
        Ok((done.root, done.dag_size))
    }

    /// A small file that was read ahead.
    fn small(&mut self, file: Small, names: &[String]) -> Result<Imported, ImportError> {
        let size = file.leaf.content.len() as u64;
        self.observer.file_start(names, Some(size));
        let metadata = self.options.metadata_of(&file.state);
        let blocks = self.sink.blocks;
        let mut imported = one_leaf(self.profile, metadata, &file.leaf, file.block, self.sink)?;
        self.observer.leaf(&file.leaf);
        imported.blocks = self.sink.blocks - blocks;
        self.done = self.done.checked_add(size).ok_or(ImportError::TooLarge)?;
        (self.progress)(self.done);
        self.observer.file_end(&imported);
        Ok(imported)
    }

    fn file(&mut self, path: &Path, names: &[String]) -> Result<Imported, ImportError> {
        let read = |source: io::Error| ImportError::Read { path: path.to_owned(), source };
        let (mut file, before) = open_file(path, self.options.follow_links)?;
        let size = before.len();
        self.observer.file_start(names, Some(size));
        let mut whole = WholeFile::new(self.profile, self.options.metadata(&before));
        if self.options.in_place {
            let nanoseconds = u32::try_from(before.mtime_nsec()).unwrap_or(0);
            whole = whole.in_place(path, (before.mtime(), nanoseconds));
        }
        let blocks = self.sink.blocks;
        let (sink, observer, progress) = (&mut *self.sink, &mut *self.observer, &mut *self.progress);
        let done = self.done;
        let mut each = |leaf: Leaf, block: Bytes| {
            whole.leaf(&leaf, block, sink)?;
            observer.leaf(&leaf);
            progress(done + leaf.offset + leaf.content.len() as u64);
            Ok(())
        };
        self.pipeline.run(&mut file, Some(size), &mut each).map_err(|failure| match failure {
            Failure::Read(source) => read(source),
            Failure::Import(error) => error,
        })?;
        let mut imported = whole.finish(self.sink)?;
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

impl ImportOptions {
    /// What is at `path`, as the tree is to be seen.
    fn look_at(&self, path: &Path) -> Result<Metadata, ImportError> {
        let found = if self.follow_links { fs::metadata(path) } else { fs::symlink_metadata(path) };
        found.map_err(|source| ImportError::Read { path: path.to_owned(), source })
    }
}

/// Names in a directory that are taken, sorted. `below` are the components that lead to it from the path given.
fn list(path: &Path, options: &ImportOptions, below: &[String]) -> Result<Vec<Name>, ImportError> {
    let read = |source| ImportError::Read { path: path.to_owned(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        let name: OsString = entry.file_name();
        let name = name.into_string().map_err(|name| ImportError::NotUtf8 { path: path.join(name) })?;
        // Whether it is a directory matters to rules alone, and what cannot be looked at is told when it is opened.
        let is_dir = || options.look_at(&entry.path()).is_ok_and(|metadata| metadata.is_dir());
        if options.takes(below, &name, is_dir) {
            // Without asking the file system, where that is told with the names.
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            names.push(Name { name, is_file });
        }
    }
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(names)
}

/// What an import of a path would take in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Survey {
    /// Regular files.
    pub files: u64,
    /// Their content bytes.
    pub bytes: u64,
}

/// A directory whose entries a survey looks at; they share it.
struct Surveyed {
    path: PathBuf,
    /// Its components below the path given.
    below: Vec<String>,
    /// Device and inode.
    place: (u64, u64),
    /// The directory it is in.
    parent: Option<Arc<Surveyed>>,
}

impl Surveyed {
    /// Whether it is that directory, or below it.
    fn is_within(&self, place: (u64, u64)) -> bool {
        let mut at = Some(self);
        while let Some(directory) = at {
            if directory.place == place {
                return true;
            }
            at = directory.parent.as_deref();
        }
        false
    }
}

/// Counts what [`import_path`](super::import_path) would take in, without reading any of it.
pub fn survey(path: &Path, options: &ImportOptions) -> Result<Survey, ImportError> {
    let read = |source| ImportError::Read { path: path.to_owned(), source };
    let start = if options.follow_root { fs::canonicalize(path).map_err(read)? } else { path.to_owned() };
    let mut found = Survey::default();
    // The entries still to look at: their names, and the directory they are in.
    let mut todo: Vec<(Option<Arc<Surveyed>>, String)> = vec![(None, String::new())];
    while let Some((parent, name)) = todo.pop() {
        let path = parent.as_ref().map_or_else(|| start.clone(), |parent| parent.path.join(&name));
        let metadata = options.look_at(&path)?;
        if metadata.is_dir() {
            let place = (metadata.dev(), metadata.ino());
            if parent.as_ref().is_some_and(|parent| parent.is_within(place)) {
                return Err(ImportError::Loop { path });
            }
            let below = parent.as_ref().map_or_else(Vec::new, |parent| [&parent.below[..], &[name]].concat());
            let directory = Arc::new(Surveyed { path, below, place, parent });
            let names = list(&directory.path, options, &directory.below)?;
            todo.extend(names.into_iter().map(|name| (Some(directory.clone()), name.name)));
        } else if metadata.is_file() {
            found.files += 1;
            found.bytes = found.bytes.saturating_add(metadata.len());
        }
    }
    Ok(found)
}

/// The name that a path ends in, for what is known by it.
fn last_component(path: &Path) -> Result<String, ImportError> {
    let read = |source| ImportError::Read { path: path.to_owned(), source };
    let named = match path.file_name() {
        Some(_) => path.to_owned(),
        None => fs::canonicalize(path).map_err(read)?,
    };
    let name = named.file_name().unwrap_or_default().to_owned();
    let name = name.into_string().map_err(|_| ImportError::NotUtf8 { path: path.to_owned() })?;
    if name.is_empty() {
        let problem = "it has no name to be known by in a directory";
        return Err(ImportError::Path { path: path.display().to_string(), problem });
    }
    Ok(name)
}

/// Opens a regular file, and nothing that took its place since it was listed.
fn open_file(path: &Path, follow: bool) -> Result<(File, Metadata), ImportError> {
    let read = |source: io::Error| ImportError::Read { path: path.to_owned(), source };
    // Not through a symlink unless links are followed, and without waiting for the other end of a pipe.
    let flags = if follow { OFlags::NONBLOCK } else { OFlags::NOFOLLOW | OFlags::NONBLOCK }.bits();
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
