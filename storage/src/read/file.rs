//! File content: which leaves make up a range, and a reader over them.

use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;

use super::{Kind, ReadError, block, decode, node};
use crate::unixfs::{FileNode, Node};
use crate::{BlockSource, hash};

/// Deepest file DAG that is followed. Balanced files of 2^64 bytes need 8 levels; chains come from trickle layouts,
/// which stay far below this too.
const MAX_DEPTH: usize = 64;

/// A part of the wanted range that lies in one block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafSlice {
    /// The block.
    pub cid: Cid,
    /// Where the slice starts in the file.
    pub file_offset: u64,
    /// Where it starts in the block's content.
    pub start: u64,
    /// Its length in bytes, never 0.
    pub len: u64,
    /// Content bytes of the whole block.
    pub leaf_len: u64,
    /// The bytes, when they had to be read to find them: those in dag-pb nodes. Raw leaves are not read.
    pub content: Option<Bytes>,
}

impl LeafSlice {
    /// The slice's bytes; reads the block if [`content`](Self::content) is not there already.
    pub fn bytes(&self, src: &dyn BlockSource) -> Result<Bytes, ReadError> {
        if let Some(content) = &self.content {
            return Ok(content.clone());
        }
        let block = block(src, &self.cid)?;
        if block.len() as u64 != self.leaf_len {
            return Err(wrong_size(&self.cid));
        }
        // In range: a slice lies within `leaf_len`, which is the length of a block.
        Ok(block.slice(self.start as usize..(self.start + self.len) as usize))
    }
}

/// A node on the way down, and which of its parts comes next.
#[derive(Debug, Clone)]
struct Level {
    node: Arc<FileNode>,
    next: usize,
    /// Where that part starts in the file.
    offset: u64,
}

/// The leaves of a byte range of a file, in order, found as they are asked for.
///
/// Made by [`leaf_plan`]. It holds no source: each call is given one, so a caller can fetch what is missing in
/// between and from elsewhere.
#[derive(Debug, Clone)]
pub struct LeafPlan {
    root: Cid,
    size: u64,
    range: Range<u64>,
    /// Bytes of a node that are in the range and not handed out yet.
    inline: Option<LeafSlice>,
    stack: Vec<Level>,
}

/// Plans the reading of `range` of the file at `cid`; only its root block must be here. A range that goes over the
/// file's end is cut there.
pub fn leaf_plan(src: &dyn BlockSource, cid: &Cid, range: Range<u64>) -> Result<LeafPlan, ReadError> {
    Ok(LeafPlan::over(*cid, Arc::new(file_node(src, cid)?), range))
}

pub(super) fn file_node(src: &dyn BlockSource, cid: &Cid) -> Result<FileNode, ReadError> {
    match node(src, cid)? {
        Node::File(file) => Ok(file),
        other => Err(ReadError::NotAFile { cid: *cid, kind: Kind::from(&other) }),
    }
}

fn wrong_size(cid: &Cid) -> ReadError {
    ReadError::Inconsistent { cid: *cid, problem: "its size is not what the node above says" }
}

impl LeafPlan {
    /// The same over a root node that was read already.
    pub(super) fn over(root: Cid, node: Arc<FileNode>, range: Range<u64>) -> LeafPlan {
        let size = node.size;
        let range = range.start.min(size)..range.end.min(size);
        let mut plan = LeafPlan { root, size, range, inline: None, stack: Vec::new() };
        plan.enter(root, node, 0);
        plan
    }

    /// Content bytes of the whole file.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file's root.
    pub fn root(&self) -> Cid {
        self.root
    }

    /// The range, within the file.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Goes down into a node that starts at `offset` of the file.
    fn enter(&mut self, cid: Cid, node: Arc<FileNode>, offset: u64) {
        let inline = node.inline.len() as u64;
        if let Some((start, len)) = self.overlap(offset, inline) {
            let content = node.inline.slice(start as usize..(start + len) as usize);
            self.inline = Some(LeafSlice {
                cid,
                file_offset: offset + start,
                start,
                len,
                leaf_len: inline,
                content: Some(content),
            });
        }
        self.stack.push(Level { node, next: 0, offset: offset + inline });
    }

    /// What of `len` bytes at `offset` of the file is wanted: start within them, and length.
    fn overlap(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let start = self.range.start.max(offset);
        // No overflow: offsets and lengths add up to at most the file's size, which was checked.
        let end = self.range.end.min(offset + len);
        (start < end).then(|| (start - offset, end - start))
    }

    /// The next slice, or `None` at the end of the range.
    ///
    /// After [`ReadError::Missing`] the plan is where it was: fetch the block and ask again.
    pub fn next(&mut self, src: &dyn BlockSource) -> Result<Option<LeafSlice>, ReadError> {
        loop {
            if let Some(slice) = self.inline.take() {
                return Ok(Some(slice));
            }
            let Some(level) = self.stack.last() else { return Ok(None) };
            let (offset, next) = (level.offset, level.next);
            let Some(part) = level.node.parts.get(next).copied() else {
                self.stack.pop();
                continue;
            };
            if offset >= self.range.end {
                self.stack.clear();
                continue;
            }
            let Some((start, len)) = self.overlap(offset, part.size) else {
                self.advance(part.size);
                continue;
            };
            if part.cid.codec() == hash::RAW {
                self.advance(part.size);
                let (cid, leaf_len) = (part.cid, part.size);
                return Ok(Some(LeafSlice {
                    cid,
                    file_offset: offset + start,
                    start,
                    len,
                    leaf_len,
                    content: None,
                }));
            }
            if self.stack.len() == MAX_DEPTH {
                return Err(ReadError::Inconsistent { cid: part.cid, problem: "the file's DAG is too deep" });
            }
            let node = file_node(src, &part.cid)?;
            if node.size != part.size {
                return Err(wrong_size(&part.cid));
            }
            self.advance(part.size);
            self.enter(part.cid, Arc::new(node), offset);
        }
    }

    fn advance(&mut self, len: u64) {
        if let Some(level) = self.stack.last_mut() {
            level.next += 1;
            level.offset += len;
        }
    }

    /// Up to `max` blocks that the rest of the range needs next, in order, as far as the nodes read so far tell:
    /// what to fetch ahead.
    pub fn ahead(&self, max: usize) -> Vec<Cid> {
        let mut cids = Vec::new();
        for level in self.stack.iter().rev() {
            let mut offset = level.offset;
            for part in &level.node.parts[level.next..] {
                if cids.len() == max || offset >= self.range.end {
                    break;
                }
                if self.overlap(offset, part.size).is_some() {
                    cids.push(part.cid);
                }
                offset += part.size;
            }
        }
        cids
    }
}

/// Reads a file from its blocks, with seeking.
///
/// Errors of `Read` carry the [`ReadError`] inside; [`next_bytes`](Self::next_bytes) gives it as it is, and the
/// bytes without copying.
#[derive(Debug)]
pub struct FileReader<S> {
    src: S,
    root: Cid,
    node: Arc<FileNode>,
    position: u64,
    /// Leaves from `position` on, or from the end of `current` if that is set.
    plan: LeafPlan,
    /// The bytes at `position`, read and not handed out.
    current: Bytes,
}

impl<S: BlockSource> FileReader<S> {
    /// Opens the file at `cid`; only its root block must be here.
    pub fn open(src: S, cid: &Cid) -> Result<FileReader<S>, ReadError> {
        let node = Arc::new(match decode(cid, &block(&src, cid)?)? {
            Node::File(file) => file,
            other => return Err(ReadError::NotAFile { cid: *cid, kind: Kind::from(&other) }),
        });
        Ok(Self::over(src, *cid, node))
    }

    /// A reader over a root node that was read already.
    pub(super) fn over(src: S, root: Cid, node: Arc<FileNode>) -> FileReader<S> {
        let plan = LeafPlan::over(root, node.clone(), 0..u64::MAX);
        FileReader { src, root, node, position: 0, plan, current: Bytes::new() }
    }

    /// Content bytes of the file.
    pub fn size(&self) -> u64 {
        self.node.size
    }

    /// The file's root.
    pub fn root(&self) -> Cid {
        self.root
    }

    /// Bytes from the current position on, as many as lie together, or `None` at the end. After
    /// [`ReadError::Missing`] the position is what it was, and the call can be repeated.
    pub fn next_bytes(&mut self) -> Result<Option<Bytes>, ReadError> {
        if !self.fill()? {
            return Ok(None);
        }
        let bytes = std::mem::take(&mut self.current);
        self.position += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// Makes `current` hold the bytes at `position`; `false` at the end.
    fn fill(&mut self) -> Result<bool, ReadError> {
        if !self.current.is_empty() {
            return Ok(true);
        }
        let before = self.plan.clone();
        let Some(slice) = self.plan.next(&self.src)? else { return Ok(false) };
        match slice.bytes(&self.src) {
            Ok(bytes) => {
                self.current = bytes;
                Ok(true)
            }
            Err(error) => {
                self.plan = before;
                Err(error)
            }
        }
    }
}

impl<S: BlockSource> Read for FileReader<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || !self.fill().map_err(io::Error::other)? {
            return Ok(0);
        }
        let len = buffer.len().min(self.current.len());
        buffer[..len].copy_from_slice(&self.current.split_to(len));
        self.position += len as u64;
        Ok(len)
    }
}

/// The position that a reader at `position` of `size` bytes is sent to; behind the end is allowed, before the start not.
pub(super) fn position_of(to: SeekFrom, position: u64, size: u64) -> io::Result<u64> {
    let position = match to {
        SeekFrom::Start(position) => Some(position),
        SeekFrom::End(delta) => size.checked_add_signed(delta),
        SeekFrom::Current(delta) => position.checked_add_signed(delta),
    };
    position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek to a negative position"))
}

impl<S: BlockSource> Seek for FileReader<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = position_of(to, self.position, self.size())?;
        if position != self.position {
            let ahead = position.checked_sub(self.position).and_then(|ahead| usize::try_from(ahead).ok());
            match ahead {
                // Within the bytes at hand.
                Some(ahead) if ahead < self.current.len() => {
                    let _ = self.current.split_to(ahead);
                }
                _ => {
                    self.current = Bytes::new();
                    self.plan = LeafPlan::over(self.root, self.node.clone(), position..u64::MAX);
                }
            }
            self.position = position;
        }
        Ok(position)
    }
}
