//! `add` of trees that come over the wire, entry by entry, as Kubo's clients send them.
//!
//! An [`Upload`] is fed by whoever reads the request; one thread of its own imports what comes, in order. Directories
//! are written at the end, when all their entries are known, and only then, once everything is durable, is anything
//! told of it.
//!
//! Without `wrap_with_directory` each first component of a path is a root of its own, and pinned as one. Entries of a
//! directory need not come together, nor behind the directory itself.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use btfs_storage::import::{self, DirBuilder, Imported, Profile};
use btfs_storage::unixfs::Metadata;
use btfs_storage::{Bytes, Cid, Store};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::add::{AddOptions, Target};
use super::files::announce;
use crate::api::call::{Answered, ApiError};
use crate::node::Node;

/// Pieces between the network and the importing thread: the faster one waits after that.
const WAITING: usize = 16;
/// Most entries of one upload: what is told of them is held until the end, when the directories are written.
const MAX_ENTRIES: usize = 1 << 20;
/// Most of them side by side without a directory around them: each is pinned for itself, all in one batch.
const MAX_ROOTS: usize = 1 << 16;
/// Longest target of a symlink, in bytes: what Linux takes.
const MAX_TARGET: usize = 4096;
/// Bytes of a file between two steps of progress, as in Kubo.
const STEP: u64 = 256 << 10;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file; its content follows.
    File,
    /// A directory.
    Directory,
    /// A symlink; its target follows.
    Symlink,
}

/// An entry of the tree, before its content.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The components of its path. A file without any goes by its CID.
    pub path: Vec<String>,
    /// What it is.
    pub kind: EntryKind,
    /// Its permissions.
    pub mode: Option<u32>,
    /// When it was last written to: seconds since 1970 and nanoseconds.
    pub mtime: Option<(i64, u32)>,
}

/// What was added under a path.
#[derive(Clone, Debug)]
pub struct Told {
    /// The path.
    pub name: String,
    /// Its root.
    pub cid: Cid,
    /// Bytes of all its blocks.
    pub dag_size: u64,
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// Is told of a file's path and how many of its bytes are in, on the importing thread.
pub type OnProgress = Box<dyn FnMut(&str, u64) + Send>;

/// A part of an upload on its way to the importing thread.
enum Piece {
    Entry(Entry),
    Content(Bytes),
    /// The content of the current entry is whole.
    EntryEnd,
    /// Nothing follows. An upload that ends without this broke off.
    End,
}

/// An upload under way. Nothing of it is kept unless it is finished.
pub struct Upload {
    node: Arc<Node>,
    announced: bool,
    pieces: mpsc::Sender<Piece>,
    work: JoinHandle<Answered<Done>>,
}

/// What a finished import made.
struct Done {
    told: Vec<Told>,
    roots: Vec<Cid>,
}

impl Upload {
    /// Begins one. `empty_directories`: directories without entries are taken, too.
    pub fn begin(
        node: &Arc<Node>,
        options: AddOptions,
        empty_directories: bool,
        on_progress: OnProgress,
    ) -> Answered<Upload> {
        let given = options.given()?.given();
        let records = options.preserve_mode || options.preserve_mtime || !given.is_empty();
        let profile = options.profile(records)?;
        let tree = DirBuilder::new(&profile).with_metadata(options.preserved(given, None, None));
        let announced = !options.only_hash && !options.private;
        let tree = if empty_directories { tree } else { tree.without_empty() };
        let (pieces, received) = mpsc::channel(WAITING);
        let store = node.store.clone();
        let work = tokio::task::spawn_blocking(move || {
            let target = Target::of(&store, options.only_hash)?;
            let import = Import {
                options,
                profile,
                given,
                target,
                tree,
                tops: BTreeMap::new(),
                groups: Vec::new(),
                unnamed: Vec::new(),
                entries: 0,
                on_progress,
            };
            import.run(Pieces { received, current: Bytes::new(), ended: true }, &store)
        });
        Ok(Upload { node: node.clone(), announced, pieces, work })
    }

    /// Begins the next entry. `false` when the import has failed: what [`finish`](Self::finish) returns says why.
    pub async fn entry(&mut self, entry: Entry) -> bool {
        self.pieces.send(Piece::Entry(entry)).await.is_ok()
    }

    /// The next bytes of the current entry.
    pub async fn content(&mut self, bytes: Bytes) -> bool {
        self.pieces.send(Piece::Content(bytes)).await.is_ok()
    }

    /// The current entry is whole.
    pub async fn entry_end(&mut self) -> bool {
        self.pieces.send(Piece::EntryEnd).await.is_ok()
    }

    /// Writes the directories, makes all of it durable with its pins, and answers what was added: root by root, files
    /// and links in the order they came, behind them the directories, each after those in it.
    pub async fn finish(self) -> Answered<Vec<Told>> {
        // An import that failed has stopped listening.
        let _ = self.pieces.send(Piece::End).await;
        drop(self.pieces);
        let done = self.work.await??;
        if self.announced {
            for root in done.roots {
                announce(&self.node, root).await;
            }
        }
        Ok(done.told)
    }
}

/// The importing side.
struct Import {
    options: AddOptions,
    profile: Profile,
    /// What is recorded of every entry, unless its own is preserved.
    given: Metadata,
    target: Target,
    tree: DirBuilder,
    /// First components of paths, with their places in `groups`.
    tops: BTreeMap<String, usize>,
    /// What is to be told, root by root, in the order they first came.
    groups: Vec<Group>,
    /// Files that came without a name.
    unnamed: Vec<Cid>,
    entries: usize,
    on_progress: OnProgress,
}

/// What is told of one root.
#[derive(Default)]
struct Group {
    name: String,
    told: Vec<Told>,
}

impl Import {
    fn run(mut self, mut pieces: Pieces, store: &Store) -> Answered<Done> {
        while let Some(entry) = pieces.next_entry().map_err(broken_off)? {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(ApiError::bad(format!(
                    "one call adds at most {MAX_ENTRIES} entries; nothing was added"
                )));
            }
            self.take(entry, &mut pieces)?;
        }
        if self.entries == 0 {
            return Err(ApiError::bad("the request has no file part"));
        }
        self.finish(store)
    }

    fn take(&mut self, entry: Entry, pieces: &mut Pieces) -> Answered<()> {
        let metadata = self.options.preserved(self.given, entry.mode, entry.mtime);
        let name = entry.path.join("/");
        let done = match entry.kind {
            EntryKind::Directory => {
                io::copy(pieces, &mut io::sink()).map_err(broken_off)?;
                return self.directory(&entry, metadata);
            }
            EntryKind::Symlink => {
                let mut target = Vec::new();
                pieces.take(MAX_TARGET as u64 + 1).read_to_end(&mut target).map_err(broken_off)?;
                if target.len() > MAX_TARGET {
                    let told = format!(
                        "{name}: symlinks have targets of at most {MAX_TARGET} bytes; nothing was added"
                    );
                    return Err(ApiError::bad(told));
                }
                import::import_symlink(target.into(), &self.profile, &metadata, &mut self.target)?
            }
            EntryKind::File => self.file(&name, metadata, pieces)?,
        };
        self.add(entry.path, done)
    }

    fn file(&mut self, name: &str, metadata: Metadata, pieces: &mut Pieces) -> Answered<Imported> {
        let (on_progress, mut last) = (&mut self.on_progress, 0);
        let mut progress = |bytes: u64| {
            if bytes - last >= STEP {
                last = bytes;
                on_progress(name, bytes);
            }
        };
        let done = import::import_stream(
            pieces,
            &self.profile,
            &metadata,
            &mut self.target,
            &mut progress,
            &mut (),
        )?;
        if done.size > last {
            on_progress(name, done.size);
        }
        Ok(done)
    }

    fn directory(&mut self, entry: &Entry, metadata: Metadata) -> Answered<()> {
        // The directory around everything may be named, as nothing.
        let Some(top) = entry.path.first() else { return Ok(()) };
        self.group(top)?;
        self.tree.add_directory_with(&entry.path, metadata).map_err(ApiError::bad)
    }

    fn add(&mut self, path: Vec<String>, done: Imported) -> Answered<()> {
        let told = |name| Told { name, cid: done.root, dag_size: done.dag_size, is_directory: false };
        let wrapped = self.options.wrap_with_directory;
        match path.first() {
            Some(top) => {
                let group = self.group(top)?;
                self.groups[group].told.push(told(path.join("/")));
                self.tree.add(&path, &done).map_err(ApiError::bad)
            }
            None => {
                let name = done.root.to_string();
                let group = self.group(&name)?;
                self.groups[group].told.push(told(name.clone()));
                if wrapped {
                    return self.tree.add(&[name], &done).map_err(ApiError::bad);
                }
                self.unnamed.push(done.root);
                Ok(())
            }
        }
    }

    /// Where what is told of the root `top` goes: with a directory around all of them, there is one root.
    fn group(&mut self, top: &str) -> Answered<usize> {
        let name = if self.options.wrap_with_directory { "" } else { top };
        if let Some(group) = self.tops.get(name) {
            return Ok(*group);
        }
        if self.tops.len() == MAX_ROOTS {
            return Err(ApiError::bad(format!(
                "one call adds at most {MAX_ROOTS} entries side by side; nothing was added; put them into a directory, \
                 or let wrap-with-directory do it"
            )));
        }
        self.tops.insert(name.to_owned(), self.groups.len());
        self.groups.push(Group { name: name.to_owned(), told: Vec::new() });
        Ok(self.groups.len() - 1)
    }

    fn finish(self, store: &Store) -> Answered<Done> {
        let Import { options, mut target, tree, groups, unnamed, .. } = self;
        let mut done = Done { told: Vec::new(), roots: Vec::new() };
        let mut tree = Some(tree);
        for Group { name, told } in groups {
            let first = told.first().map(|told| told.cid);
            done.told.extend(told);
            let mut each = |path: &[String], made: &Imported| {
                let name = path.join("/");
                done.told.push(Told { name, cid: made.root, dag_size: made.dag_size, is_directory: true });
            };
            let root = if options.wrap_with_directory {
                tree.take()
                    .map(|tree| tree.finish_each(&mut target, &mut each))
                    .transpose()?
                    .map(|made| made.root)
            } else {
                let tree = tree.as_ref();
                tree.map(|tree| tree.finish_part(&name, &mut target, &mut each)).transpose()?.flatten()
            };
            // What is no directory is the file itself.
            done.roots.extend(root.or(first));
        }
        done.roots.extend(unnamed);
        done.roots.sort_unstable();
        done.roots.dedup();
        let pins = done.roots.iter().filter_map(|root| options.pin(*root, options.pin_name.clone()));
        target.finish(store, pins, None)?;
        Ok(done)
    }
}

fn broken_off(error: io::Error) -> ApiError {
    ApiError::bad(format!("{error}; nothing was added"))
}

/// The pieces of an upload; reads as the content of the current entry.
struct Pieces {
    received: mpsc::Receiver<Piece>,
    current: Bytes,
    /// Whether the current entry's content is all read.
    ended: bool,
}

impl Pieces {
    /// The next piece; an error if the upload broke off.
    fn next(&mut self) -> io::Result<Piece> {
        let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "the upload broke off");
        self.received.blocking_recv().ok_or_else(broken)
    }

    /// The next entry, `None` at the end.
    fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        loop {
            match self.next()? {
                Piece::Entry(entry) => {
                    self.ended = false;
                    return Ok(Some(entry));
                }
                Piece::End => return Ok(None),
                // What an import did not want to read.
                Piece::Content(_) | Piece::EntryEnd => {}
            }
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.next()? {
                Piece::Content(bytes) => self.current = bytes,
                Piece::EntryEnd => self.ended = true,
                Piece::Entry(_) | Piece::End => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the upload broke off"));
                }
            }
        }
        let length = into.len().min(self.current.len());
        into[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}
