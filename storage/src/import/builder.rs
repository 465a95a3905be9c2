//! A file's interior nodes, made as its leaves go by.

use cid::Cid;

use super::{ImportError, Imported, Profile};
use crate::BlockSink;
use crate::dagpb::PbLink;
use crate::unixfs::Data;

/// A finished subtree of a file.
#[derive(Debug, Clone, Copy)]
struct Subtree {
    cid: Cid,
    /// Content bytes below.
    size: u64,
    /// Cumulative block bytes.
    tsize: u64,
}

/// Builds the balanced DAG of a file over leaves that are given one by one, in order.
///
/// Leaves are the caller's to store, and must be cut and wrapped as the profile says ([`Profile::leaf`]); interior
/// nodes go to the sink as they fill up. Every leaf ends up at the same depth: a level that overflows makes every
/// subtree gain a node, even where it has a single link. At most one row of links per level is in memory.
#[derive(Debug)]
pub struct FileBuilder {
    profile: Profile,
    /// `levels[0]` holds leaves, each further one nodes over the one before.
    levels: Vec<Vec<Subtree>>,
    blocks: u64,
}

impl FileBuilder {
    /// A file without leaves yet.
    pub fn new(profile: &Profile) -> FileBuilder {
        FileBuilder { profile: *profile, levels: vec![Vec::new()], blocks: 0 }
    }

    /// Adds the next leaf: its content bytes and the length of its block (the same for raw leaves).
    pub fn push(
        &mut self,
        cid: Cid,
        content_len: u64,
        block_len: u64,
        sink: &mut dyn BlockSink,
    ) -> Result<(), ImportError> {
        self.add(0, Subtree { cid, size: content_len, tsize: block_len }, sink)
    }

    /// Puts a subtree on its level, and closes every level that is full by that.
    fn add(
        &mut self,
        mut level: usize,
        mut subtree: Subtree,
        sink: &mut dyn BlockSink,
    ) -> Result<(), ImportError> {
        loop {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(subtree);
            if self.levels[level].len() < self.profile.links_per_node() {
                return Ok(());
            }
            subtree = self.close(level, sink)?;
            level += 1;
        }
    }

    /// Writes the node over all of a level.
    fn close(&mut self, level: usize, sink: &mut dyn BlockSink) -> Result<Subtree, ImportError> {
        let children = std::mem::take(&mut self.levels[level]);
        let mut size = 0u64;
        let mut tsize = 0u64;
        let mut sizes = Vec::with_capacity(children.len());
        let mut links = Vec::with_capacity(children.len());
        for child in children {
            size = size.checked_add(child.size).ok_or(ImportError::TooLarge)?;
            tsize = tsize.checked_add(child.tsize).ok_or(ImportError::TooLarge)?;
            sizes.push(child.size);
            links.push(PbLink { cid: child.cid, name: Some(String::new()), tsize: Some(child.tsize) });
        }
        let (cid, block) = self.profile.node(links, &Data::file(size, sizes));
        let tsize = tsize.checked_add(block.len() as u64).ok_or(ImportError::TooLarge)?;
        sink.put(&cid, block)?;
        self.blocks += 1;
        Ok(Subtree { cid, size, tsize })
    }

    /// Writes what nodes remain and answers the root: the only leaf itself, if there was but one.
    ///
    /// A file that got no leaf is empty; its one empty leaf is written here. `blocks` counts what this builder
    /// wrote, not the leaves.
    pub fn finish(mut self, sink: &mut dyn BlockSink) -> Result<Imported, ImportError> {
        if self.levels.iter().all(Vec::is_empty) {
            let (cid, block) = self.profile.leaf(&bytes::Bytes::new());
            let tsize = block.len() as u64;
            sink.put(&cid, block)?;
            self.blocks += 1;
            self.push(cid, 0, tsize, sink)?;
        }
        let mut level = 0;
        loop {
            let top = self.levels[level + 1..].iter().all(Vec::is_empty);
            match self.levels[level].as_slice() {
                [] => level += 1,
                [root] if top => {
                    let Subtree { cid, size, tsize } = *root;
                    return Ok(Imported { root: cid, size, dag_size: tsize, blocks: self.blocks });
                }
                _ => {
                    let subtree = self.close(level, sink)?;
                    level += 1;
                    if level == self.levels.len() {
                        self.levels.push(Vec::new());
                    }
                    // Not `add`: this level is closed next, full or not.
                    self.levels[level].push(subtree);
                }
            }
        }
    }
}
