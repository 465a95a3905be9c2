//! Directories: one block, or a trie of shards when it would grow too large.

use std::collections::BTreeMap;

use cid::Cid;

use super::{ImportError, Imported, Profile};
use crate::BlockSink;
use crate::dagpb::PbLink;
use crate::unixfs::{Data, DirLink, Metadata, hamt};

/// Most components of a path given to [`DirBuilder`]. Torrents and other foreign lists bring paths; their depth is
/// the depth of recursion here.
const MAX_COMPONENTS: usize = 256;

/// Writes a directory of these entries, which must have distinct names, and answers its root and cumulative size.
pub(super) fn put_directory(
    profile: &Profile,
    mut entries: Vec<DirLink>,
    metadata: &Metadata,
    sink: &mut dyn BlockSink,
) -> Result<(Cid, u64), ImportError> {
    if profile.shards(&entries, metadata) {
        return hamt::build(profile.fanout(), &entries, metadata, &mut |block| {
            let cid = profile.node_cid(&block);
            sink.put(&cid, block)?;
            Ok(cid)
        });
    }
    entries.sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    let mut tsize = 0u64;
    let mut links = Vec::with_capacity(entries.len());
    for entry in entries {
        tsize = tsize.checked_add(entry.tsize).ok_or(ImportError::TooLarge)?;
        links.push(PbLink { cid: entry.cid, name: Some(entry.name), tsize: Some(entry.tsize) });
    }
    let (cid, block) = profile.node(links, &Data::directory().with_metadata(metadata));
    let tsize = tsize.checked_add(block.len() as u64).ok_or(ImportError::TooLarge)?;
    sink.put(&cid, block)?;
    Ok((cid, tsize))
}

#[derive(Debug)]
enum Branch {
    Directory(Directory),
    Leaf { root: Cid, tsize: u64 },
}

#[derive(Debug, Default)]
struct Directory {
    entries: BTreeMap<String, Branch>,
    /// Its own modes and times; without them it has those of all.
    metadata: Option<Metadata>,
}

/// Is told of a directory that was written, after those below it, with the components of its path.
pub type EachDirectory<'a> = dyn FnMut(&[String], &Imported) + 'a;

/// Builds the directories over files that are already there, as [`import_path`](super::import_path) would have.
#[derive(Debug)]
pub struct DirBuilder {
    profile: Profile,
    metadata: Metadata,
    skip_empty: bool,
    top: Directory,
    size: u64,
}

impl DirBuilder {
    /// An empty directory.
    pub fn new(profile: &Profile) -> DirBuilder {
        let (metadata, top) = (Metadata::default(), Directory::default());
        DirBuilder { profile: *profile, metadata, skip_empty: false, top, size: 0 }
    }

    /// The same, whose directories record these modes and times unless they have their own.
    pub fn with_metadata(self, metadata: Metadata) -> DirBuilder {
        DirBuilder { metadata, ..self }
    }

    /// The same, without directories that nothing was added to, other than the one that is written
    /// ([`ImportOptions::skip_empty_directories`](super::ImportOptions::skip_empty_directories)).
    pub fn without_empty(self) -> DirBuilder {
        DirBuilder { skip_empty: true, ..self }
    }

    /// Adds a file or any other finished DAG at `path`, given as its components; directories on the way are made.
    pub fn add<S: AsRef<str>>(&mut self, path: &[S], entry: &Imported) -> Result<(), ImportError> {
        let refuse = |problem| refused(path, problem);
        let (name, parents) = path.split_last().ok_or_else(|| refuse("it is empty"))?;
        let size = self.size.checked_add(entry.size).ok_or(ImportError::TooLarge)?;
        let directory = self.descend(path, parents)?;
        check_name(name.as_ref()).map_err(refuse)?;
        if directory.entries.contains_key(name.as_ref()) {
            return Err(refuse("there is already an entry of that name"));
        }
        let leaf = Branch::Leaf { root: entry.root, tsize: entry.dag_size };
        directory.entries.insert(name.as_ref().to_owned(), leaf);
        self.size = size;
        Ok(())
    }

    /// Adds a directory at `path` unless it is there.
    pub fn add_directory<S: AsRef<str>>(&mut self, path: &[S]) -> Result<(), ImportError> {
        self.descend(path, path).map(|_| ())
    }

    /// The same; it records these modes and times.
    pub fn add_directory_with<S: AsRef<str>>(
        &mut self,
        path: &[S],
        metadata: Metadata,
    ) -> Result<(), ImportError> {
        self.descend(path, path)?.metadata = Some(metadata);
        Ok(())
    }

    /// The directory at `parents`, made where missing; `path` is what errors name.
    fn descend<S: AsRef<str>>(&mut self, path: &[S], parents: &[S]) -> Result<&mut Directory, ImportError> {
        if path.len() > MAX_COMPONENTS {
            return Err(refused(path, "it has more than 256 components"));
        }
        let mut directory = &mut self.top;
        for name in parents {
            check_name(name.as_ref()).map_err(|problem| refused(path, problem))?;
            let branch = directory
                .entries
                .entry(name.as_ref().to_owned())
                .or_insert_with(|| Branch::Directory(Directory::default()));
            directory = match branch {
                Branch::Directory(directory) => directory,
                Branch::Leaf { .. } => return Err(refused(path, "it leads through a file")),
            };
        }
        Ok(directory)
    }

    /// Writes every directory and answers the top one. `blocks` counts what was written here.
    pub fn finish(self, sink: &mut dyn BlockSink) -> Result<Imported, ImportError> {
        self.finish_each(sink, &mut |_, _| {})
    }

    /// [`finish`](Self::finish), telling of every directory; the top one has no components.
    pub fn finish_each(
        self,
        sink: &mut dyn BlockSink,
        each: &mut EachDirectory<'_>,
    ) -> Result<Imported, ImportError> {
        let mut sink = super::Counting { sink, blocks: 0 };
        let done = self.put(&self.top, &mut Vec::new(), &mut sink, each)?;
        Ok(Imported { size: self.size, blocks: sink.blocks, ..done })
    }

    /// Writes the directory `name` of the top one, and all below it, telling of every directory. `None` if there is no
    /// directory of that name.
    pub fn finish_part(
        &self,
        name: &str,
        sink: &mut dyn BlockSink,
        each: &mut EachDirectory<'_>,
    ) -> Result<Option<Cid>, ImportError> {
        let Some(Branch::Directory(directory)) = self.top.entries.get(name) else { return Ok(None) };
        let mut sink = super::Counting { sink, blocks: 0 };
        Ok(Some(self.put(directory, &mut vec![name.to_owned()], &mut sink, each)?.root))
    }

    /// Writes a directory after those below it. Recursion is bounded by [`MAX_COMPONENTS`].
    fn put(
        &self,
        directory: &Directory,
        path: &mut Vec<String>,
        sink: &mut super::Counting<'_>,
        each: &mut EachDirectory<'_>,
    ) -> Result<Imported, ImportError> {
        let before = sink.blocks;
        let mut links = Vec::with_capacity(directory.entries.len());
        for (name, branch) in &directory.entries {
            let (cid, tsize) = match branch {
                Branch::Leaf { root, tsize } => (*root, *tsize),
                Branch::Directory(below) if self.skip_empty && below.entries.is_empty() => continue,
                Branch::Directory(below) => {
                    path.push(name.clone());
                    let done = self.put(below, path, sink, each)?;
                    path.pop();
                    (done.root, done.dag_size)
                }
            };
            links.push(DirLink { name: name.clone(), cid, tsize });
        }
        let metadata = directory.metadata.unwrap_or(self.metadata);
        let (root, dag_size) = put_directory(&self.profile, links, &metadata, sink)?;
        let done = Imported { root, size: 0, dag_size, blocks: sink.blocks - before };
        each(path, &done);
        Ok(done)
    }
}

fn refused<S: AsRef<str>>(path: &[S], problem: &'static str) -> ImportError {
    let components: Vec<&str> = path.iter().take(MAX_COMPONENTS).map(AsRef::as_ref).collect();
    ImportError::Path { path: components.join("/"), problem }
}

pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("a component is empty"),
        "." | ".." => Err("a component is relative"),
        name if name.contains(['/', '\0']) => Err("a component holds a slash or a zero byte"),
        _ => Ok(()),
    }
}
