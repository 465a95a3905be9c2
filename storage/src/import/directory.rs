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
    Directory(BTreeMap<String, Branch>),
    Leaf { root: Cid, tsize: u64 },
}

/// Builds the directories over files that are already there, as [`import_path`](super::import_path) would have.
#[derive(Debug)]
pub struct DirBuilder {
    profile: Profile,
    tree: BTreeMap<String, Branch>,
    size: u64,
}

impl DirBuilder {
    /// An empty directory.
    pub fn new(profile: &Profile) -> DirBuilder {
        DirBuilder { profile: *profile, tree: BTreeMap::new(), size: 0 }
    }

    /// Adds a file or any other finished DAG at `path`, given as its components; directories on the way are made.
    pub fn add<S: AsRef<str>>(&mut self, path: &[S], entry: &Imported) -> Result<(), ImportError> {
        let refuse = |problem| refused(path, problem);
        let (name, parents) = path.split_last().ok_or_else(|| refuse("it is empty"))?;
        let size = self.size.checked_add(entry.size).ok_or(ImportError::TooLarge)?;
        let directory = self.descend(path, parents)?;
        check_name(name.as_ref()).map_err(refuse)?;
        if directory.contains_key(name.as_ref()) {
            return Err(refuse("there is already an entry of that name"));
        }
        directory.insert(name.as_ref().to_owned(), Branch::Leaf { root: entry.root, tsize: entry.dag_size });
        self.size = size;
        Ok(())
    }

    /// Adds a directory at `path` unless it is there.
    pub fn add_directory<S: AsRef<str>>(&mut self, path: &[S]) -> Result<(), ImportError> {
        self.descend(path, path).map(|_| ())
    }

    /// The directory at `parents`, made where missing; `path` is what errors name.
    fn descend<S: AsRef<str>>(
        &mut self,
        path: &[S],
        parents: &[S],
    ) -> Result<&mut BTreeMap<String, Branch>, ImportError> {
        if path.len() > MAX_COMPONENTS {
            return Err(refused(path, "it has more than 256 components"));
        }
        let mut directory = &mut self.tree;
        for name in parents {
            check_name(name.as_ref()).map_err(|problem| refused(path, problem))?;
            let branch = directory
                .entry(name.as_ref().to_owned())
                .or_insert_with(|| Branch::Directory(BTreeMap::new()));
            directory = match branch {
                Branch::Directory(entries) => entries,
                Branch::Leaf { .. } => return Err(refused(path, "it leads through a file")),
            };
        }
        Ok(directory)
    }

    /// Writes every directory and answers the top one. `blocks` counts what was written here.
    pub fn finish(self, sink: &mut dyn BlockSink) -> Result<Imported, ImportError> {
        let mut sink = super::Counting { sink, blocks: 0 };
        let (root, dag_size) = put_branches(&self.profile, self.tree, &mut sink)?;
        Ok(Imported { root, size: self.size, dag_size, blocks: sink.blocks })
    }
}

/// Writes a directory after those below it. Recursion is bounded by [`MAX_COMPONENTS`].
fn put_branches(
    profile: &Profile,
    tree: BTreeMap<String, Branch>,
    sink: &mut dyn BlockSink,
) -> Result<(Cid, u64), ImportError> {
    let mut entries = Vec::with_capacity(tree.len());
    for (name, branch) in tree {
        let (cid, tsize) = match branch {
            Branch::Leaf { root, tsize } => (root, tsize),
            Branch::Directory(tree) => put_branches(profile, tree, sink)?,
        };
        entries.push(DirLink { name, cid, tsize });
    }
    put_directory(profile, entries, &Metadata::default(), sink)
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
