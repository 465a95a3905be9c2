//! Building the tree in one pass, keeping a bounded part of it, and answering from that part and the blocks.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{LEAF, ProofError, absent, depth, leaf_hash, leaves_of, node_hash};
use crate::blocklist::BlockList;
use crate::{BlockSource, Cid, StoreError};

/// Lowest height whose nodes are kept, where the tree is that deep: 64 leaves, so that the bottom of a path costs the
/// hashing of 64 KiB, well under a millisecond.
const GROUP_HEIGHT: u32 = 6;

/// Most levels kept above the groups: 2^14 group nodes are half a MiB, enough for 1 GiB at [`GROUP_HEIGHT`]. Larger
/// trees get larger groups instead of more nodes, and so stay this small.
const KEPT_LEVELS: u32 = 14;

/// Why an answer could not be given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProveError {
    /// A block that the agreement lists is not here.
    #[error("block {0} of the agreement is missing; the proof cannot be given")]
    Missing(Cid),
    /// A block here does not have the size the list says.
    #[error("block {cid} has {found} bytes where the agreement lists {listed}; the proof cannot be given")]
    Size {
        /// The block.
        cid: Cid,
        /// Its size here.
        found: usize,
        /// Its size in the list.
        listed: u32,
    },
    /// Tree and list are not of the same agreement, or the blocks changed.
    #[error("the kept proof tree has {kept} leaves where the block list has {listed}; build it again")]
    OtherTree {
        /// Leaves of the tree.
        kept: u64,
        /// Leaves of the list.
        listed: u64,
    },
    /// A number out of range.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The height of the kept nodes in a tree of the given depth.
fn group_height(depth: u32) -> u32 {
    GROUP_HEIGHT.max(depth.saturating_sub(KEPT_LEVELS)).min(depth)
}

/// The kept part of a proof tree: the nodes at one height, from which everything above follows.
///
/// Small and bounded (at most half a MiB), whatever it proves; serialises as one value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredTree", into = "StoredTree")]
pub struct ProofTree {
    leaves: u64,
    depth: u32,
    groups: Vec<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct StoredTree(u64, serde_bytes::ByteBuf);

impl From<ProofTree> for StoredTree {
    fn from(tree: ProofTree) -> StoredTree {
        StoredTree(tree.leaves, serde_bytes::ByteBuf::from(tree.groups.concat()))
    }
}

impl TryFrom<StoredTree> for ProofTree {
    type Error = ProofError;

    fn try_from(StoredTree(leaves, nodes): StoredTree) -> Result<ProofTree, ProofError> {
        let depth = depth(leaves)?;
        let (groups, rest) = nodes.as_chunks::<32>();
        if !rest.is_empty() || groups.len() as u64 != leaves.div_ceil(1 << group_height(depth)) {
            return Err(ProofError::Leaves(leaves));
        }
        Ok(ProofTree { leaves, depth, groups: groups.to_vec() })
    }
}

impl ProofTree {
    /// Builds the tree over the blocks of `list`, reading each once from `source`.
    ///
    /// # Errors
    /// [`ProveError::Missing`] or [`ProveError::Size`] for a block that is not as listed.
    pub fn build(list: &BlockList, source: &dyn BlockSource) -> Result<ProofTree, ProveError> {
        let mut builder = TreeBuilder::new(list.leaves())?;
        for entry in list.entries() {
            let data = source.get(&entry.cid)?.ok_or(ProveError::Missing(entry.cid))?;
            if data.len() != entry.size as usize {
                return Err(ProveError::Size { cid: entry.cid, found: data.len(), listed: entry.size });
            }
            builder.push_block(&data)?;
        }
        Ok(builder.finish()?)
    }

    /// The root that both sides sign.
    pub fn root(&self) -> [u8; 32] {
        self.levels().last().and_then(|top| top.first()).copied().unwrap_or_default()
    }

    /// The number of leaves.
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// The length of every path.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// All levels from the groups up to the root.
    fn levels(&self) -> Vec<Vec<[u8; 32]>> {
        levels_above(self.groups.clone(), group_height(self.depth), self.depth)
    }
}

/// The levels from `nodes`, which stand at height `from`, up to `to`. Absent right siblings are filled in.
fn levels_above(nodes: Vec<[u8; 32]>, from: u32, to: u32) -> Vec<Vec<[u8; 32]>> {
    let absent = absent(to);
    let mut levels = vec![nodes];
    for height in from..to {
        let above = levels[(height - from) as usize]
            .chunks(2)
            .map(|pair| node_hash(&pair[0], pair.get(1).unwrap_or(&absent[height as usize])))
            .collect();
        levels.push(above);
    }
    levels
}

/// Takes blocks in list order and folds their leaves as they come.
#[derive(Debug)]
pub struct TreeBuilder {
    leaves: u64,
    depth: u32,
    pushed: u64,
    /// Nodes of the current group that wait for their right sibling, by height.
    pending: Vec<Option<[u8; 32]>>,
    groups: Vec<[u8; 32]>,
}

impl TreeBuilder {
    /// A builder for a tree of exactly `leaves` leaves ([`BlockList::leaves`]).
    ///
    /// # Errors
    /// [`ProofError::Leaves`] where no tree has that many.
    pub fn new(leaves: u64) -> Result<TreeBuilder, ProofError> {
        let depth = depth(leaves)?;
        let pending = vec![None; group_height(depth) as usize];
        Ok(TreeBuilder { leaves, depth, pushed: 0, pending, groups: Vec::new() })
    }

    /// Takes the next block.
    ///
    /// # Errors
    /// [`ProofError::Leaves`] when there are more leaves than the tree was to have.
    pub fn push_block(&mut self, data: &[u8]) -> Result<(), ProofError> {
        if self.pushed + leaves_of(data.len() as u64) > self.leaves {
            return Err(ProofError::Leaves(self.pushed + leaves_of(data.len() as u64)));
        }
        for leaf in data.chunks(LEAF) {
            self.push_leaf(leaf_hash(leaf));
        }
        Ok(())
    }

    fn push_leaf(&mut self, leaf: [u8; 32]) {
        self.pushed += 1;
        let mut node = leaf;
        for waiting in &mut self.pending {
            match waiting.take() {
                Some(left) => node = node_hash(&left, &node),
                None => {
                    *waiting = Some(node);
                    return;
                }
            }
        }
        self.groups.push(node);
    }

    /// The tree.
    ///
    /// # Errors
    /// [`ProofError::Leaves`] when leaves are missing.
    pub fn finish(mut self) -> Result<ProofTree, ProofError> {
        if self.pushed != self.leaves {
            return Err(ProofError::Leaves(self.pushed));
        }
        let absent = absent(self.depth);
        let mut open: Option<[u8; 32]> = None;
        for (waiting, nothing) in self.pending.iter().zip(&absent) {
            open = match (waiting, open) {
                (Some(left), right) => Some(node_hash(left, &right.unwrap_or(*nothing))),
                (None, Some(left)) => Some(node_hash(&left, nothing)),
                (None, None) => None,
            };
        }
        self.groups.extend(open);
        Ok(ProofTree { leaves: self.leaves, depth: self.depth, groups: self.groups })
    }
}

/// Where each leaf lies: from an index to block and offset.
#[derive(Clone, Debug)]
pub struct LeafMap {
    list: Arc<BlockList>,
    /// Index of each block's first leaf.
    starts: Vec<u64>,
    leaves: u64,
}

impl LeafMap {
    /// The map of a list.
    pub fn new(list: Arc<BlockList>) -> LeafMap {
        let mut leaves = 0;
        let starts = list
            .entries()
            .iter()
            .map(|entry| {
                let start = leaves;
                leaves += leaves_of(u64::from(entry.size));
                start
            })
            .collect();
        LeafMap { list, starts, leaves }
    }

    /// The number of leaves.
    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// The list that is mapped.
    pub fn list(&self) -> &BlockList {
        &self.list
    }

    /// The block that holds leaf `index`, and the leaf's byte range in it; `None` beyond the last leaf.
    pub fn locate(&self, index: u64) -> Option<(Cid, std::ops::Range<usize>)> {
        if index >= self.leaves {
            return None;
        }
        let at = self.block_of(index);
        let entry = &self.list.entries()[at];
        let start = (index - self.starts[at]) as usize * LEAF;
        Some((entry.cid, start..(start + LEAF).min(entry.size as usize)))
    }

    /// Position in the list of the block that holds leaf `index`.
    fn block_of(&self, index: u64) -> usize {
        self.starts.partition_point(|start| *start <= index) - 1
    }
}

/// One leaf and the siblings on its way to the root, bottom up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafProof {
    /// The leaf's bytes: 1 to [`LEAF`].
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// The siblings; in CBOR one byte string.
    #[serde(with = "path_bytes")]
    pub path: Vec<[u8; 32]>,
}

mod path_bytes {
    use serde::{Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(path: &[[u8; 32]], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(path.as_flattened())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<[u8; 32]>, D::Error> {
        let bytes: Vec<u8> = serde_bytes::deserialize(from)?;
        let (path, rest) = bytes.as_chunks::<32>();
        if !rest.is_empty() || path.len() > super::super::MAX_DEPTH as usize {
            return Err(D::Error::custom("a path is at most 40 hashes of 32 bytes"));
        }
        Ok(path.to_vec())
    }
}

/// Answers for one agreement: its list, its kept tree, and whatever source the blocks are in.
#[derive(Clone, Debug)]
pub struct Prover {
    map: LeafMap,
    tree: ProofTree,
    /// From the groups up to the root.
    levels: Vec<Vec<[u8; 32]>>,
}

impl Prover {
    /// A prover over a list and the tree that was built from it.
    ///
    /// # Errors
    /// [`ProveError::OtherTree`] if the two cannot belong together.
    pub fn new(list: Arc<BlockList>, tree: ProofTree) -> Result<Prover, ProveError> {
        let map = LeafMap::new(list);
        if map.leaves() != tree.leaves() {
            return Err(ProveError::OtherTree { kept: tree.leaves(), listed: map.leaves() });
        }
        let levels = tree.levels();
        Ok(Prover { map, tree, levels })
    }

    /// The tree.
    pub fn tree(&self) -> &ProofTree {
        &self.tree
    }

    /// Where leaves lie.
    pub fn map(&self) -> &LeafMap {
        &self.map
    }

    /// The leaf at `index` and its path; reads the blocks of the leaf's group only.
    ///
    /// # Errors
    /// [`ProveError::Missing`] or [`ProveError::Size`] for a block of the group that is not as listed, and
    /// [`ProofError::Index`] beyond the last leaf.
    pub fn prove(&self, index: u64, source: &dyn BlockSource) -> Result<LeafProof, ProveError> {
        let leaves = self.tree.leaves();
        if index >= leaves {
            return Err(ProofError::Index { index, leaves }.into());
        }
        let height = group_height(self.tree.depth);
        let group = index >> height;
        let first = group << height;
        let last = ((group + 1) << height).min(leaves);
        let (hashes, data) = self.leaf_hashes(first..last, index, source)?;

        let absent = absent(self.tree.depth);
        let mut path = Vec::with_capacity(self.tree.depth as usize);
        let bottom = levels_above(hashes, 0, height);
        for (h, absent) in absent.iter().enumerate().take(self.tree.depth as usize) {
            let (level, base) = match (h as u32).checked_sub(height) {
                Some(above) => (&self.levels[above as usize], 0),
                None => (&bottom[h], first >> h),
            };
            let sibling = ((index >> h) ^ 1).checked_sub(base).and_then(|at| level.get(at as usize));
            path.push(*sibling.unwrap_or(absent));
        }
        Ok(LeafProof { data, path })
    }

    /// The hashes of a run of leaves, and the bytes of the one at `wanted`.
    fn leaf_hashes(
        &self,
        run: std::ops::Range<u64>,
        wanted: u64,
        source: &dyn BlockSource,
    ) -> Result<(Vec<[u8; 32]>, Vec<u8>), ProveError> {
        let mut hashes = Vec::with_capacity((run.end - run.start) as usize);
        let mut data = Vec::new();
        let mut at = self.map.block_of(run.start);
        let mut next = run.start;
        while next < run.end {
            let entry = &self.map.list().entries()[at];
            let block = source.get(&entry.cid)?.ok_or(ProveError::Missing(entry.cid))?;
            if block.len() != entry.size as usize {
                return Err(ProveError::Size { cid: entry.cid, found: block.len(), listed: entry.size });
            }
            let skip = (next - self.map.starts[at]) as usize;
            for leaf in block.chunks(LEAF).skip(skip).take((run.end - next) as usize) {
                if next == wanted {
                    data = leaf.to_vec();
                }
                hashes.push(leaf_hash(leaf));
                next += 1;
            }
            at += 1;
        }
        Ok((hashes, data))
    }
}
