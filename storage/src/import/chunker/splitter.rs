//! A stream, chunk by chunk, each wrapped as the leaf block that it becomes.

use std::io::{self, Read};

use bytes::Bytes;

use super::Chunker;
use crate::import::Profile;
use crate::import::profile::{MAX_LEAF_HEAD, MAX_LEAF_TAIL};

/// Least bytes that are read at a time when content decides about the cuts; twice the longest chunk if that is more,
/// so that at most half of what is read is moved on to the next buffer.
const READ_AHEAD: usize = 1 << 20;
/// A block that is less than one part in this many of the buffer it lies in moves to one of its own. Who keeps blocks
/// counts their bytes: a few small ones must not hold many large buffers.
const SHARE: usize = 8;

/// A chunk, cut and wrapped: the block and where the content lies in it.
pub(crate) struct Chunk {
    pub(crate) block: Bytes,
    pub(crate) content: Bytes,
}

/// Cuts a stream. Holds no more than one buffer of it: a chunk, or twice the longest where content decides.
pub(crate) struct Splitter<'a> {
    profile: &'a Profile,
    reader: &'a mut dyn Read,
    /// What is left of the length that was announced. It sizes buffers, and nothing else depends on it.
    announced: u64,
    /// Bytes read and not cut yet; fixed sizes need none.
    window: Bytes,
    /// Length of the buffer that the window lies in.
    buffer_len: usize,
    /// The stream said that it ended. It is not asked again: a terminal would wait for more.
    ended: bool,
}

impl<'a> Splitter<'a> {
    /// A splitter of `reader`, whose length is `size` bytes if that is known.
    pub(crate) fn new(profile: &'a Profile, reader: &'a mut dyn Read, size: Option<u64>) -> Splitter<'a> {
        let announced = size.unwrap_or(u64::MAX);
        Splitter { profile, reader, announced, window: Bytes::new(), buffer_len: 0, ended: false }
    }

    /// Whether nothing can follow. It may be that nothing follows and this does not know it yet.
    pub(crate) fn is_done(&self) -> bool {
        self.ended && self.window.is_empty()
    }

    /// The next chunk, never empty, or `None` at the end.
    pub(crate) fn next(&mut self) -> io::Result<Option<Chunk>> {
        match self.profile.chunker() {
            Chunker::Size(size) => self.next_of_size(size as usize),
            chunker => {
                let longest = chunker.max();
                if self.window.len() < longest && !self.ended {
                    self.fill(longest)?;
                }
                if self.window.is_empty() {
                    return Ok(None);
                }
                let len = chunker.cut(&self.window[..self.window.len().min(longest)]);
                let content = self.window.split_to(len);
                Ok(Some(self.wrap(content)))
            }
        }
    }

    /// Makes the window hold a longest chunk, or all that is left.
    fn fill(&mut self, longest: usize) -> io::Result<()> {
        let whole = READ_AHEAD.max(2 * longest);
        let mut buffer = Vec::with_capacity(self.window.len() + self.expected(whole - self.window.len()));
        buffer.extend_from_slice(&self.window);
        self.read(&mut buffer, whole - self.window.len())?;
        self.buffer_len = buffer.capacity();
        self.window = Bytes::from(buffer);
        Ok(())
    }

    /// Reads a chunk where it will lie in its block.
    fn next_of_size(&mut self, size: usize) -> io::Result<Option<Chunk>> {
        if self.ended {
            return Ok(None);
        }
        if self.profile.raw_leaves() {
            let mut buffer = Vec::with_capacity(self.expected(size));
            self.read(&mut buffer, size)?;
            let block = fitting(buffer);
            return Ok((!block.is_empty()).then(|| Chunk { content: block.clone(), block }));
        }
        let mut buffer = Vec::with_capacity(MAX_LEAF_HEAD + self.expected(size) + MAX_LEAF_TAIL);
        buffer.resize(MAX_LEAF_HEAD, 0);
        self.read(&mut buffer, size)?;
        let len = buffer.len() - MAX_LEAF_HEAD;
        let (head, tail) = self.profile.leaf_wrapping(len);
        let start = MAX_LEAF_HEAD - head.len();
        buffer[start..MAX_LEAF_HEAD].copy_from_slice(&head);
        buffer.extend_from_slice(&tail);
        let buffer = fitting(buffer);
        let content = buffer.slice(MAX_LEAF_HEAD..MAX_LEAF_HEAD + len);
        Ok((len > 0).then(|| Chunk { block: buffer.slice(start..), content }))
    }

    /// How much of `most` bytes is likely to come.
    fn expected(&self, most: usize) -> usize {
        usize::try_from(self.announced).map_or(most, |left| left.min(most))
    }

    /// Appends up to `most` bytes of the stream; fewer mean that it ended.
    fn read(&mut self, buffer: &mut Vec<u8>, most: usize) -> io::Result<()> {
        let read = Read::take(&mut *self.reader, most as u64).read_to_end(buffer)?;
        self.ended = read < most;
        self.announced = self.announced.saturating_sub(read as u64);
        Ok(())
    }

    /// The block of a chunk that lies elsewhere.
    fn wrap(&self, content: Bytes) -> Chunk {
        if self.profile.raw_leaves() {
            let is_small = content.len() < self.buffer_len / SHARE;
            let content = if is_small { Bytes::copy_from_slice(&content) } else { content };
            return Chunk { block: content.clone(), content };
        }
        let (head, tail) = self.profile.leaf_wrapping(content.len());
        let block = Bytes::from([&head[..], &content, &tail[..]].concat());
        let content = block.slice(head.len()..head.len() + content.len());
        Chunk { block, content }
    }
}

/// The bytes of a buffer, which gives back what it has not used if that is most of it.
fn fitting(mut buffer: Vec<u8>) -> Bytes {
    if buffer.len() < buffer.capacity() / SHARE {
        buffer.shrink_to_fit();
    }
    Bytes::from(buffer)
}
