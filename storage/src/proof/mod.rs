//! Proofs that a host still holds what it was given.
//!
//! The blocks of an agreement, in the order of its [block list](crate::blocklist), are cut into leaves of
//! [`LEAF`] bytes (the last leaf of a block may be shorter) and hashed to one Merkle root, which both sides sign.
//! After each epoch the renter sends a fresh nonce; the host answers with some leaves and their paths. Which leaves
//! is *chained* ([`Indices`]): the second index follows from the first leaf's hash, so a host that keeps nothing
//! cannot fetch all of them from elsewhere at once.
//!
//! * [`ProofTree`] is built once, in one pass over the blocks, and kept by the host. It holds a bounded number of
//!   nodes; the bottom of a path is computed again from the block.
//! * [`Prover`] answers, [`check_answer`] judges. Both are pure over a [`BlockSource`](crate::BlockSource).
//!
//! Hashing: `leaf = SHA256(0x00 || u16be length || data)`, `node = SHA256(0x01 || left || right)`; the depth is the
//! least d with `2^d >= leaves`; an absent node at height h is `Z(h)`, where `Z(0)` is 32 zero bytes and
//! `Z(h+1) = node(Z(h), Z(h))`. A path has exactly d siblings, bottom up; bit h of the index set means that the node
//! at height h is the right child. Prefixes and the bound length make it impossible to pass a node off as a leaf, or a
//! leaf as one of another length; exact depth and index checks leave one valid answer per index.
//!
//! What a proof shows is "retrievable from this host now", not "sealed here".

mod challenge;
mod tree;

pub use challenge::{Challenge, Indices, Purpose, answer, check_answer};
pub use tree::{LeafMap, LeafProof, ProofTree, ProveError, Prover, TreeBuilder};

use sha2::{Digest, Sha256};

/// Leaf length in bytes.
pub const LEAF: usize = 1024;

/// Deepest tree: at most 2^40 leaves, a pebibyte in one agreement.
pub const MAX_DEPTH: u32 = 40;

/// Why a proof was not accepted. Nothing of a refused proof counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// A tree that cannot be.
    #[error("a proof tree has 1 to 2^{MAX_DEPTH} leaves, not {0}")]
    Leaves(u64),
    /// The index is not in the tree.
    #[error("leaf {index} is not one of {leaves}")]
    Index {
        /// The index asked for.
        index: u64,
        /// The number of leaves.
        leaves: u64,
    },
    /// A leaf of a length no leaf has.
    #[error("a leaf of {0} bytes; leaves have 1 to {LEAF}")]
    LeafLength(usize),
    /// Too many or too few siblings.
    #[error("a path of {found} siblings where the tree is {depth} deep")]
    PathLength {
        /// Siblings in the answer.
        found: usize,
        /// Siblings there have to be.
        depth: u32,
    },
    /// Leaf and path lead to another root.
    #[error("leaf {index} with its path does not lead to the agreed root")]
    Root {
        /// The index.
        index: u64,
    },
    /// More or fewer leaves than were asked for.
    #[error("{found} leaves in the answer where {wanted} were asked for")]
    Count {
        /// Leaves in the answer.
        found: usize,
        /// Leaves there have to be.
        wanted: usize,
    },
}

/// How many leaves a block of `size` bytes is cut into.
pub fn leaves_of(size: u64) -> u64 {
    size.div_ceil(LEAF as u64)
}

/// The least d with `2^d >= leaves`.
///
/// # Errors
/// [`ProofError::Leaves`] for none or more than 2^[`MAX_DEPTH`].
pub fn depth(leaves: u64) -> Result<u32, ProofError> {
    if leaves == 0 || leaves > 1 << MAX_DEPTH {
        return Err(ProofError::Leaves(leaves));
    }
    Ok(leaves.next_power_of_two().trailing_zeros())
}

/// The hash of a leaf of 1 to [`LEAF`] bytes.
pub fn leaf_hash(data: &[u8]) -> [u8; 32] {
    debug_assert!(data.len() <= LEAF);
    let mut hash = Sha256::new();
    hash.update([0]);
    hash.update((data.len() as u16).to_be_bytes());
    hash.update(data);
    hash.finalize().into()
}

/// The hash of a node over its children.
pub fn node_hash(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update([1]);
    hash.update(left);
    hash.update(right);
    hash.finalize().into()
}

/// `Z(0)` to `Z(height)`: what stands where no node is.
fn absent(height: u32) -> Vec<[u8; 32]> {
    let mut nodes = vec![[0; 32]];
    for h in 0..height as usize {
        nodes.push(node_hash(&nodes[h], &nodes[h]));
    }
    nodes
}

/// Checks one leaf with its path against the root of a tree of `leaves` leaves, and gives the leaf's hash.
///
/// The index is the caller's, never the answer's.
pub fn verify(
    root: &[u8; 32],
    leaves: u64,
    index: u64,
    data: &[u8],
    path: &[[u8; 32]],
) -> Result<[u8; 32], ProofError> {
    let depth = depth(leaves)?;
    if index >= leaves {
        return Err(ProofError::Index { index, leaves });
    }
    if data.is_empty() || data.len() > LEAF {
        return Err(ProofError::LeafLength(data.len()));
    }
    if path.len() != depth as usize {
        return Err(ProofError::PathLength { found: path.len(), depth });
    }
    let leaf = leaf_hash(data);
    let mut node = leaf;
    for (height, sibling) in path.iter().enumerate() {
        node = if index >> height & 1 == 1 { node_hash(sibling, &node) } else { node_hash(&node, sibling) };
    }
    if node != *root {
        return Err(ProofError::Root { index });
    }
    Ok(leaf)
}

#[cfg(test)]
mod tests;
