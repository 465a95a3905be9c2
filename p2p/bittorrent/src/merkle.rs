//! The hashes of BitTorrent v2 (BEP 52): a Merkle tree over each file.
//!
//! Leaves are the SHA-256 of 16 KiB blocks, the last as short as it is; a node is the SHA-256 of its two children; what is
//! missing up to a power of two are leaves of zeros (zero hashes, not hashes of zeros). A file is named by its root, and
//! its *piece layer* (the nodes that cover one piece each) lets a reader check piece by piece. A file of one piece or
//! less has no piece layer: its root is that of its own blocks, without what would fill the piece.

use sha2::{Digest, Sha256};

/// Bytes of a block.
const BLOCK: usize = 16 << 10;

/// A node of a tree.
pub type Hash = [u8; 32];

/// What BEP 52 says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHashes {
    /// The root; `None` for an empty file.
    pub root: Option<Hash>,
    /// The piece layer, left to right; empty for a file of one piece or less.
    pub layer: Vec<Hash>,
}

/// Hashes one file as it goes by.
#[derive(Debug, Clone)]
pub struct FileHasher {
    /// Blocks of a piece, as a power of two.
    height: u32,
    /// The block that is not full yet.
    block: Sha256,
    filled: usize,
    /// Blocks of the piece that is not full yet.
    blocks: Vec<Hash>,
    pieces: Vec<Hash>,
}

impl FileHasher {
    /// For pieces of `piece_length` bytes; `None` unless that is a power of two of at least 16 KiB, as BEP 52 wants.
    pub fn new(piece_length: u32) -> Option<FileHasher> {
        let blocks = piece_length as usize / BLOCK;
        (piece_length.is_power_of_two() && blocks > 0).then(|| FileHasher {
            height: blocks.ilog2(),
            block: Sha256::new(),
            filled: 0,
            blocks: Vec::new(),
            pieces: Vec::new(),
        })
    }

    /// The next bytes of the file.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let take = bytes.len().min(BLOCK - self.filled);
            self.block.update(&bytes[..take]);
            self.filled += take;
            bytes = &bytes[take..];
            if self.filled == BLOCK {
                self.close_block();
            }
        }
    }

    fn close_block(&mut self) {
        self.blocks.push(self.block.finalize_reset().into());
        self.filled = 0;
        if self.blocks.len() == 1 << self.height {
            self.close_piece();
        }
    }

    fn close_piece(&mut self) {
        self.pieces.push(root(std::mem::take(&mut self.blocks), self.height, 0));
    }

    /// Ends the file; the hasher is as new.
    pub fn finish(&mut self) -> FileHashes {
        if self.filled > 0 {
            self.close_block();
        }
        if self.pieces.is_empty() && !self.blocks.is_empty() {
            let blocks = std::mem::take(&mut self.blocks);
            let height = blocks.len().next_power_of_two().ilog2();
            return FileHashes { root: Some(root(blocks, height, 0)), layer: Vec::new() };
        }
        if !self.blocks.is_empty() {
            self.close_piece();
        }
        let pieces = std::mem::take(&mut self.pieces);
        match pieces.len() {
            0 => FileHashes { root: None, layer: Vec::new() },
            1 => FileHashes { root: Some(pieces[0]), layer: Vec::new() },
            _ => FileHashes { root: Some(root_of_layer(&pieces, self.height)), layer: pieces },
        }
    }
}

/// The root above a piece layer, where a piece has 2^`height` blocks.
fn root_of_layer(layer: &[Hash], height: u32) -> Hash {
    root(layer.to_vec(), layer.len().next_power_of_two().ilog2(), height)
}

/// The node 2^`up` nodes wide above `nodes`, which are themselves `height` above the leaves.
fn root(mut nodes: Vec<Hash>, up: u32, height: u32) -> Hash {
    let mut missing = zeros(height);
    for _ in 0..up {
        if nodes.len() % 2 == 1 {
            nodes.push(missing);
        }
        nodes = nodes.chunks_exact(2).map(|pair| node(&pair[0], &pair[1])).collect();
        missing = node(&missing, &missing);
    }
    nodes.first().copied().unwrap_or(missing)
}

/// The node `height` above leaves that are all missing.
fn zeros(height: u32) -> Hash {
    (0..height).fold([0; 32], |below, _| node(&below, &below))
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update(left).chain_update(right).finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hashes(bytes: &[u8], piece_length: u32) -> FileHashes {
        let mut hasher = FileHasher::new(piece_length).unwrap();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The whole tree written out, as BEP 52 draws it.
    fn plain(bytes: &[u8]) -> Hash {
        let mut nodes: Vec<Hash> = bytes.chunks(BLOCK).map(|block| Sha256::digest(block).into()).collect();
        nodes.resize(nodes.len().next_power_of_two(), [0; 32]);
        while nodes.len() > 1 {
            nodes = nodes.chunks(2).map(|pair| node(&pair[0], &pair[1])).collect();
        }
        nodes[0]
    }

    #[test]
    fn the_root_of_a_short_file_is_its_sha256() {
        let found = hashes(b"hello", 1 << 20);
        assert_eq!(found, FileHashes { root: Some(Sha256::digest(b"hello").into()), layer: vec![] });
        assert_eq!(hashes(b"", 1 << 20), FileHashes { root: None, layer: vec![] });
    }

    #[test]
    fn piece_lengths_are_powers_of_two_from_16_kib() {
        assert!([0, 1 << 13, (1 << 20) + 1, 3 << 14].into_iter().all(|n| FileHasher::new(n).is_none()));
        assert!([1 << 14, 1 << 20, 1 << 26].into_iter().all(|n| FileHasher::new(n).is_some()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        /// Whatever the piece length, the root is that of the tree over all blocks, and the layer adds up to it.
        #[test]
        fn roots_do_not_depend_on_pieces(len in 1usize..400_000, height in 0u32..6, cut in 1usize..70_000) {
            let bytes: Vec<u8> = (0..len).map(|i| (i ^ (i >> 9)) as u8).collect();
            let piece_length = (BLOCK as u32) << height;
            let mut hasher = FileHasher::new(piece_length).unwrap();
            bytes.chunks(cut).for_each(|part| hasher.update(part));
            let found = hasher.finish();
            prop_assert_eq!(found.root, Some(plain(&bytes)));
            let pieces = len.div_ceil(piece_length as usize);
            prop_assert_eq!(found.layer.len(), if pieces > 1 { pieces } else { 0 });
            if pieces > 1 {
                prop_assert_eq!(Some(root_of_layer(&found.layer, height)), found.root);
            }
            // And it begins anew.
            hasher.update(&bytes);
            prop_assert_eq!(hasher.finish(), found);
        }
    }
}
