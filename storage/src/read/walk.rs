//! All blocks of a DAG, once each.

use std::collections::HashSet;

use cid::Cid;
use multihash::Multihash;

use super::{ReadError, block};
use crate::{BlockSource, dagpb, hash};

/// Codecs under which one set of bytes can be met.
const CODECS: [u64; 5] = [hash::RAW, hash::DAG_PB, hash::DAG_CBOR, hash::DAG_JSON, hash::TORRENT_INFO];

/// Walks the distinct blocks of the DAG at `root`, parents before children and children in the order of their
/// links: the order that shards are cut in.
pub fn walk<S: BlockSource>(src: S, root: &Cid) -> Walk<S> {
    Walk { src, stack: vec![*root], seen: HashSet::new() }
}

/// An iterator over the blocks of a DAG with their sizes in bytes; see [`walk`].
///
/// Blocks are told apart by multihash. CIDs with an identity hash are followed but are no blocks, so they are not
/// listed. Raw blocks are not read, only looked up.
///
/// After an error the walk is where it was: once the block of a [`ReadError::Missing`] is there, it goes on. Memory
/// grows by about 100 bytes for each block, not by their content.
#[derive(Debug)]
pub struct Walk<S> {
    src: S,
    /// Blocks to come, the next one last.
    stack: Vec<Cid>,
    seen: HashSet<(u64, Multihash<64>)>,
}

impl<S: BlockSource> Walk<S> {
    /// Up to `max` distinct blocks that come next, in order, as far as those read so far tell: what to fetch ahead.
    pub fn ahead(&self, max: usize) -> Vec<Cid> {
        let mut cids: Vec<Cid> = Vec::new();
        for cid in self.stack.iter().rev() {
            if cids.len() == max {
                break;
            }
            if !self.seen.contains(&(cid.codec(), *cid.hash())) && !cids.contains(cid) {
                cids.push(*cid);
            }
        }
        cids
    }

    /// The source that is walked.
    pub fn source(&self) -> &S {
        &self.src
    }

    /// Looks at the next CID, which is new: its block's size. Its children are put on the stack.
    fn visit(&mut self, cid: &Cid) -> Result<u64, ReadError> {
        if matches!(cid.codec(), hash::RAW | hash::TORRENT_INFO) {
            let size = self.src.block_size(cid)?.ok_or(ReadError::Missing(*cid))?;
            self.stack.pop();
            return Ok(size);
        }
        let block = block(&self.src, cid)?;
        let children = dagpb::links(cid, &block).map_err(|source| ReadError::Links { cid: *cid, source })?;
        self.stack.pop();
        self.stack.extend(children.into_iter().rev());
        Ok(block.len() as u64)
    }
}

impl<S: BlockSource> Iterator for Walk<S> {
    type Item = Result<(Cid, u64), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let cid = *self.stack.last()?;
            if self.seen.contains(&(cid.codec(), *cid.hash())) {
                self.stack.pop();
                continue;
            }
            // The same bytes under another codec: its children are new, the block is not.
            let listed = CODECS.iter().any(|codec| self.seen.contains(&(*codec, *cid.hash())));
            match self.visit(&cid) {
                Ok(size) => {
                    self.seen.insert((cid.codec(), *cid.hash()));
                    if !listed && cid.hash().code() != hash::IDENTITY {
                        return Some(Ok((cid, size)));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }
}
