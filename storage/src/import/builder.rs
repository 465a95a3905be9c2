//! A file's interior nodes, made as its leaves go by.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use cid::Cid;

use super::{ImportError, Imported, Layout, Leaf, Profile};
use crate::dagpb::PbLink;
use crate::unixfs::{Data, Metadata};
use crate::{BlockSink, Place};

/// Subtrees of each depth in a trickle layout, before deeper ones follow. Source: Kubo.
const TRICKLE_REPEAT: usize = 4;

/// A finished subtree of a file.
#[derive(Debug, Clone, Copy)]
struct Subtree {
    cid: Cid,
    /// Content bytes below.
    size: u64,
    /// Cumulative block bytes.
    tsize: u64,
}

/// Builds the DAG of a file over leaves that are given one by one, in order.
///
/// Leaves are the caller's to store, and must be cut and wrapped as the profile says ([`Profile::leaf`]); interior
/// nodes go to the sink as they fill up. At most one row of links per level is in memory.
#[derive(Debug)]
pub struct FileBuilder {
    nodes: Nodes,
    tree: Tree,
}

#[derive(Debug)]
enum Tree {
    /// `levels[0]` holds leaves, each further one nodes over the one before.
    ///
    /// Every leaf ends up at the same depth: a level that overflows makes every subtree gain a node, even where it
    /// has a single link.
    Balanced { levels: Vec<Vec<Subtree>> },
    /// The nodes that are open, the root first, each one's parent before it.
    Trickle { open: Vec<Branch> },
}

/// An open node of a trickle layout: leaves, then four subtrees of depth 1, four of depth 2, and so on.
#[derive(Debug, Default)]
struct Branch {
    /// Leaves, and subtrees after them.
    links: Vec<Subtree>,
    /// Subtrees among them.
    subtrees: usize,
    /// Subtrees may be up to so deep, exclusively; `None` for the root, which has no limit.
    depth_limit: Option<usize>,
}

impl Branch {
    /// Depth of the next subtree, if it may have one.
    fn next_depth(&self) -> Option<usize> {
        let depth = 1 + self.subtrees / TRICKLE_REPEAT;
        self.depth_limit.is_none_or(|limit| depth < limit).then_some(depth)
    }
}

/// Writes nodes and counts them.
#[derive(Debug)]
struct Nodes {
    profile: Profile,
    written: u64,
}

impl Nodes {
    /// Writes the node over these subtrees.
    fn put(
        &mut self,
        below: Vec<Subtree>,
        metadata: &Metadata,
        sink: &mut dyn BlockSink,
    ) -> Result<Subtree, ImportError> {
        let (mut size, mut tsize) = (0u64, 0u64);
        let mut links = Vec::with_capacity(below.len());
        let mut sizes = Vec::with_capacity(below.len());
        for child in below {
            size = size.checked_add(child.size).ok_or(ImportError::TooLarge)?;
            tsize = tsize.checked_add(child.tsize).ok_or(ImportError::TooLarge)?;
            sizes.push(child.size);
            links.push(PbLink { cid: child.cid, name: Some(String::new()), tsize: Some(child.tsize) });
        }
        let data = Data::file(size, sizes).with_metadata(metadata);
        let (cid, block) = self.profile.node(links, &data);
        let tsize = tsize.checked_add(block.len() as u64).ok_or(ImportError::TooLarge)?;
        sink.put(&cid, block)?;
        self.written += 1;
        Ok(Subtree { cid, size, tsize })
    }
}

impl FileBuilder {
    /// A file without leaves yet.
    pub fn new(profile: &Profile) -> FileBuilder {
        let tree = match profile.layout() {
            Layout::Balanced => Tree::Balanced { levels: vec![Vec::new()] },
            Layout::Trickle => Tree::Trickle { open: vec![Branch::default()] },
        };
        FileBuilder { nodes: Nodes { profile: *profile, written: 0 }, tree }
    }

    /// Adds the next leaf: its content bytes and the length of its block (the same for raw leaves).
    pub fn push(
        &mut self,
        cid: Cid,
        content_len: u64,
        block_len: u64,
        sink: &mut dyn BlockSink,
    ) -> Result<(), ImportError> {
        let leaf = Subtree { cid, size: content_len, tsize: block_len };
        match &mut self.tree {
            Tree::Balanced { levels } => grow(&mut self.nodes, levels, 0, leaf, sink),
            Tree::Trickle { open } => {
                make_room(&mut self.nodes, open, sink)?;
                if let Some(branch) = open.last_mut() {
                    branch.links.push(leaf);
                }
                Ok(())
            }
        }
    }

    /// Writes what nodes remain and answers the root: in a balanced layout the only leaf itself, if there was but one.
    ///
    /// A file that got no leaf is empty; its one empty block is written here. `blocks` counts what this builder
    /// wrote, not the leaves.
    pub fn finish(self, sink: &mut dyn BlockSink) -> Result<Imported, ImportError> {
        self.finish_with(&Metadata::default(), sink)
    }

    /// [`finish`](Self::finish), with modes and times in the root. A balanced file of one leaf has no room for them:
    /// [`WholeFile`] sees to that.
    fn finish_with(mut self, metadata: &Metadata, sink: &mut dyn BlockSink) -> Result<Imported, ImportError> {
        let root = match self.tree {
            Tree::Balanced { levels } if levels.iter().all(Vec::is_empty) => {
                return single_leaf(&self.nodes.profile, Bytes::new(), metadata, sink);
            }
            Tree::Balanced { levels } => close_levels(&mut self.nodes, levels, metadata, sink)?,
            Tree::Trickle { mut open } => {
                while open.len() > 1 {
                    close_branch(&mut self.nodes, &mut open, sink)?;
                }
                let root = open.pop().unwrap_or_default();
                self.nodes.put(root.links, metadata, sink)?
            }
        };
        let Subtree { cid, size, tsize } = root;
        Ok(Imported { root: cid, size, dag_size: tsize, blocks: self.nodes.written })
    }
}

/// Puts a subtree on its level. A level that is full by then is written first, and not sooner: as long as nothing
/// follows it may be the root's.
fn grow(
    nodes: &mut Nodes,
    levels: &mut Vec<Vec<Subtree>>,
    mut level: usize,
    mut subtree: Subtree,
    sink: &mut dyn BlockSink,
) -> Result<(), ImportError> {
    loop {
        if level == levels.len() {
            levels.push(Vec::new());
        }
        if levels[level].len() < nodes.profile.links_per_node() {
            levels[level].push(subtree);
            return Ok(());
        }
        let full = std::mem::replace(&mut levels[level], vec![subtree]);
        subtree = nodes.put(full, &Metadata::default(), sink)?;
        level += 1;
    }
}

/// Writes what remains of a balanced file that has a leaf; answers its root.
fn close_levels(
    nodes: &mut Nodes,
    mut levels: Vec<Vec<Subtree>>,
    metadata: &Metadata,
    sink: &mut dyn BlockSink,
) -> Result<Subtree, ImportError> {
    let mut level = 0;
    loop {
        let row = std::mem::take(&mut levels[level]);
        let is_top = levels[level + 1..].iter().all(Vec::is_empty);
        match row.as_slice() {
            [] => {}
            [only] if is_top => return Ok(*only),
            _ if is_top => return nodes.put(row, metadata, sink),
            _ => {
                let subtree = nodes.put(row, &Metadata::default(), sink)?;
                grow(nodes, &mut levels, level + 1, subtree, sink)?;
            }
        }
        level += 1;
    }
}

/// Makes the last open node one that takes a leaf.
fn make_room(nodes: &mut Nodes, open: &mut Vec<Branch>, sink: &mut dyn BlockSink) -> Result<(), ImportError> {
    // The root always takes another subtree, so this ends.
    while let Some(branch) = open.last() {
        if branch.links.len() - branch.subtrees < nodes.profile.links_per_node() {
            break;
        }
        match branch.next_depth() {
            Some(depth) => open.push(Branch { depth_limit: Some(depth), ..Branch::default() }),
            None => close_branch(nodes, open, sink)?,
        }
    }
    Ok(())
}

/// Writes the last open node and gives it to its parent.
fn close_branch(
    nodes: &mut Nodes,
    open: &mut Vec<Branch>,
    sink: &mut dyn BlockSink,
) -> Result<(), ImportError> {
    if let Some(branch) = open.pop() {
        let subtree = nodes.put(branch.links, &Metadata::default(), sink)?;
        if let Some(parent) = open.last_mut() {
            parent.links.push(subtree);
            parent.subtrees += 1;
        }
    }
    Ok(())
}

/// Writes a file that is one block.
fn single_leaf(
    profile: &Profile,
    content: Bytes,
    metadata: &Metadata,
    sink: &mut dyn BlockSink,
) -> Result<Imported, ImportError> {
    let size = content.len() as u64;
    let (cid, block) = if metadata.is_empty() {
        profile.leaf(&content)
    } else {
        let data = Data { data: (size > 0).then_some(content), ..Data::file(size, Vec::new()) };
        profile.node(Vec::new(), &data.with_metadata(metadata))
    };
    let dag_size = block.len() as u64;
    sink.put(&cid, block)?;
    Ok(Imported { root: cid, size, dag_size, blocks: 1 })
}

/// A file of one leaf, which comes with its block.
pub(super) fn one_leaf(
    profile: &Profile,
    metadata: Metadata,
    leaf: &Leaf,
    block: Bytes,
    sink: &mut dyn BlockSink,
) -> Result<Imported, ImportError> {
    if profile.layout() == Layout::Balanced && metadata.is_empty() {
        sink.put(&leaf.cid, block)?;
        let size = leaf.content.len() as u64;
        return Ok(Imported { root: leaf.cid, size, dag_size: leaf.block_len, blocks: 0 });
    }
    let mut whole = WholeFile::new(profile, metadata);
    whole.leaf(leaf, block, sink)?;
    whole.finish(sink)
}

/// A file as an import makes it: leaves are stored, too, and modes and times recorded in the root.
pub(super) struct WholeFile {
    builder: FileBuilder,
    metadata: Metadata,
    /// The first leaf, until another says that it is not the root: with modes and times the root's block is another.
    first: Option<(Leaf, Bytes)>,
    leaves: u64,
    /// The file and when it was last written to, if its leaves are to stay there.
    home: Option<(PathBuf, (i64, u32))>,
}

impl WholeFile {
    pub(super) fn new(profile: &Profile, metadata: Metadata) -> WholeFile {
        WholeFile { builder: FileBuilder::new(profile), metadata, first: None, leaves: 0, home: None }
    }

    /// The same file, whose leaves stay where they are.
    pub(super) fn in_place(self, path: &Path, mtime: (i64, u32)) -> WholeFile {
        WholeFile { home: Some((path.to_owned(), mtime)), ..self }
    }

    /// Takes the next leaf with its block.
    pub(super) fn leaf(
        &mut self,
        leaf: &Leaf,
        block: Bytes,
        sink: &mut dyn BlockSink,
    ) -> Result<(), ImportError> {
        self.leaves += 1;
        let may_be_root = self.builder.nodes.profile.layout() == Layout::Balanced;
        if self.leaves == 1 && may_be_root && !self.metadata.is_empty() {
            self.first = Some((leaf.clone(), block));
            return Ok(());
        }
        if let Some((first, block)) = self.first.take() {
            self.add(&first, block, sink)?;
        }
        self.add(leaf, block, sink)
    }

    fn add(&mut self, leaf: &Leaf, block: Bytes, sink: &mut dyn BlockSink) -> Result<(), ImportError> {
        // A trickle layout has nodes for whatever there is; nothing needs no leaf.
        if leaf.content.is_empty() && self.builder.nodes.profile.layout() == Layout::Trickle {
            return Ok(());
        }
        match &self.home {
            Some((path, mtime)) if self.builder.nodes.profile.raw_leaves() => {
                sink.put_located(&leaf.cid, block, &Place { path, offset: leaf.offset, mtime: *mtime })?;
            }
            _ => sink.put(&leaf.cid, block)?,
        }
        self.builder.push(leaf.cid, leaf.content.len() as u64, leaf.block_len, sink)
    }

    /// The finished file; `blocks` counts its interior nodes.
    pub(super) fn finish(self, sink: &mut dyn BlockSink) -> Result<Imported, ImportError> {
        match self.first {
            Some((first, _)) => single_leaf(&self.builder.nodes.profile, first.content, &self.metadata, sink),
            None => self.builder.finish_with(&self.metadata, sink),
        }
    }
}
