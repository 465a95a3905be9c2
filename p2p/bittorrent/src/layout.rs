//! Where things lie in a torrent: pieces over the concatenated files, leaves over each file. Pure arithmetic.
//!
//! A torrent is one run of bytes: its files in order, padding included, cut into pieces. The same files as UnixFS DAGs are
//! cut into leaves of [`LEAF`] bytes, starting anew in each file, padding left out. Single files whose piece length is
//! a multiple of the leaf coincide with it; everything else (many small files, 16 KiB pieces, pieces that straddle files) goes through
//! the same two questions: which leaf ranges make up this byte range, and which pieces cover this leaf.
//!
//! Leaves are numbered through the whole torrent in file order. Empty files and links have none.

use std::ops::RangeInclusive;

use crate::metainfo::{FileKind, Info};

/// Leaf length of the default profile `unixfs-v1-2025`, which every torrent's DAG has.
pub const LEAF: u64 = 1 << 20;
/// What peers request at a time (BEP 3).
pub const BLOCK: u32 = 16 << 10;

/// Part of a byte range of the torrent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Segment {
    /// Bytes of a file.
    File {
        /// Index into the file list.
        file: u32,
        /// First byte within the file.
        start: u64,
        /// Bytes; a segment never crosses a file.
        len: u64,
    },
    /// Zeros of a pad file.
    Pad {
        /// Bytes.
        len: u64,
    },
}

/// Part of a byte range that lies in one leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafRange {
    /// Leaf number within the torrent.
    pub leaf: u32,
    /// First byte within the leaf.
    pub start: u32,
    /// Bytes.
    pub len: u32,
    /// Where these bytes begin within the range that was asked for.
    pub at: u32,
}

#[derive(Debug, Clone)]
struct FileSpan {
    start: u64,
    length: u64,
    pad: bool,
    first_leaf: u32,
}

/// The geometry of one torrent.
#[derive(Debug, Clone)]
pub struct Layout {
    piece_length: u32,
    total: u64,
    files: Vec<FileSpan>,
    leaves: u32,
}

impl Layout {
    /// The geometry of `info`. Checked torrents have fewer than 2^32 leaves: at most 1 PiB / 1 MiB, plus one for each file.
    pub fn new(info: &Info) -> Layout {
        let (mut start, mut leaves) = (0u64, 0u32);
        let mut files = Vec::with_capacity(info.files.len());
        for file in &info.files {
            let pad = file.kind == FileKind::Pad;
            files.push(FileSpan { start, length: file.length, pad, first_leaf: leaves });
            start += file.length;
            if !pad {
                leaves += u32::try_from(file.length.div_ceil(LEAF)).expect("total is capped at 1 PiB");
            }
        }
        Layout { piece_length: info.piece_length, total: start, files, leaves }
    }

    /// Number of pieces.
    pub fn piece_count(&self) -> u32 {
        self.total.div_ceil(u64::from(self.piece_length)) as u32 // bounded by the hashes that Info::parse counted
    }

    /// Number of leaves.
    pub fn leaf_count(&self) -> u32 {
        self.leaves
    }

    /// Bytes of the whole torrent, pads included.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of a full piece.
    pub fn piece_length(&self) -> u32 {
        self.piece_length
    }

    /// Bytes of piece `index` (the last is shorter).
    pub fn piece_size(&self, index: u32) -> u32 {
        let start = self.piece_start(index);
        u64::from(self.piece_length).min(self.total.saturating_sub(start)) as u32
    }

    /// First byte of piece `index`.
    pub fn piece_start(&self, index: u32) -> u64 {
        u64::from(index) * u64::from(self.piece_length)
    }

    /// Number of request blocks in piece `index`.
    pub fn blocks(&self, index: u32) -> u32 {
        self.piece_size(index).div_ceil(BLOCK)
    }

    /// Bytes of one block of a piece.
    pub fn block_size(&self, index: u32, block: u32) -> u32 {
        BLOCK.min(self.piece_size(index) - block * BLOCK)
    }

    /// The file segments and pads that make up `len` bytes from `start`, in order; clipped to the torrent.
    pub fn segments(&self, start: u64, len: u64) -> Vec<Segment> {
        let end = start.saturating_add(len).min(self.total);
        let mut out = Vec::new();
        let mut pos = start;
        let mut index = self.files.partition_point(|f| f.start + f.length <= start);
        while pos < end && index < self.files.len() {
            let file = &self.files[index];
            let take = (file.start + file.length).min(end) - pos;
            if take > 0 {
                out.push(match file.pad {
                    true => Segment::Pad { len: take },
                    false => Segment::File { file: index as u32, start: pos - file.start, len: take },
                });
            }
            pos += take;
            index += 1;
        }
        out
    }

    /// The leaf ranges that piece `index` covers, in order; pads are left out.
    pub fn leaf_ranges(&self, index: u32) -> Vec<LeafRange> {
        let mut out = Vec::new();
        let mut at = 0u64;
        for segment in self.segments(self.piece_start(index), u64::from(self.piece_size(index))) {
            let (file, mut start, len) = match segment {
                Segment::Pad { len } => {
                    at += len;
                    continue;
                }
                Segment::File { file, start, len } => (file, start, len),
            };
            let end = start + len;
            while start < end {
                let in_leaf = start % LEAF;
                let take = (LEAF - in_leaf).min(end - start);
                let leaf = self.files[file as usize].first_leaf + (start / LEAF) as u32;
                out.push(LeafRange { leaf, start: in_leaf as u32, len: take as u32, at: at as u32 });
                start += take;
                at += take;
            }
        }
        out
    }

    /// First byte and length of `leaf` within the torrent.
    pub fn leaf_span(&self, leaf: u32) -> (u64, u32) {
        let file = &self.files[self.file_of_leaf(leaf)];
        let within = u64::from(leaf - file.first_leaf) * LEAF;
        (file.start + within, LEAF.min(file.length - within) as u32)
    }

    /// The file that `leaf` belongs to.
    fn file_of_leaf(&self, leaf: u32) -> usize {
        // Files without leaves share `first_leaf` with the next file that has some, so the last candidate owns the leaf.
        self.files.partition_point(|f| f.first_leaf <= leaf) - 1
    }

    /// The pieces that cover `leaf`.
    pub fn pieces_of_leaf(&self, leaf: u32) -> RangeInclusive<u32> {
        let (start, len) = self.leaf_span(leaf);
        let piece = u64::from(self.piece_length);
        (start / piece) as u32..=((start + u64::from(len) - 1) / piece) as u32
    }

    /// The leaves of file `index`, as a range of leaf numbers.
    pub fn leaves_of_file(&self, index: usize) -> std::ops::Range<u32> {
        let file = &self.files[index];
        let count = if file.pad { 0 } else { file.length.div_ceil(LEAF) as u32 };
        file.first_leaf..file.first_leaf + count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::FileEntry;
    use proptest::prelude::*;

    fn info(piece: u32, files: &[(u64, bool)]) -> Info {
        let entries: Vec<FileEntry> = files
            .iter()
            .enumerate()
            .map(|(i, (length, pad))| FileEntry {
                path: if *pad { vec![] } else { vec![i.to_string()] },
                length: *length,
                kind: if *pad { FileKind::Pad } else { FileKind::Regular },
            })
            .collect();
        let total: u64 = files.iter().map(|f| f.0).sum();
        let pieces = vec![0; total.div_ceil(u64::from(piece)) as usize * 20];
        Info::build("t", piece, &entries, true, &pieces).unwrap()
    }

    #[test]
    fn piece_and_leaf_coincide_in_aligned_single_files() {
        let layout = Layout::new(&info(1 << 20, &[((3 << 20) + 5, false)]));
        assert_eq!((layout.piece_count(), layout.leaf_count()), (4, 4));
        assert_eq!(layout.leaf_ranges(3), vec![LeafRange { leaf: 3, start: 0, len: 5, at: 0 }]);
        assert_eq!(layout.pieces_of_leaf(2), 2..=2);
        assert_eq!(layout.leaf_span(3), (3 << 20, 5));
    }

    proptest! {
        /// Every content byte lies in exactly one leaf range of exactly one piece, in order, and the reverse map agrees.
        #[test]
        fn pieces_tile_the_leaves(
            piece in prop::sample::select(vec![16_384u32, 100_000, 262_144, 1 << 20, 4 << 20, 3_000_001]),
            files in prop::collection::vec((prop_oneof![Just(0u64), 1u64..50_000, 1u64..5_000_000], prop::bool::weighted(0.2)), 1..12),
        ) {
            let info = info(piece, &files);
            let layout = Layout::new(&info);
            let mut filled = vec![0u64; layout.leaf_count() as usize];
            for index in 0..layout.piece_count() {
                for range in layout.leaf_ranges(index) {
                    prop_assert_eq!(filled[range.leaf as usize], u64::from(range.start));
                    filled[range.leaf as usize] += u64::from(range.len);
                    prop_assert!(layout.pieces_of_leaf(range.leaf).contains(&index));
                    let (leaf_start, _) = layout.leaf_span(range.leaf);
                    prop_assert_eq!(layout.piece_start(index) + u64::from(range.at), leaf_start + u64::from(range.start));
                }
                let bytes: u64 = layout.segments(layout.piece_start(index), u64::from(layout.piece_size(index))).iter()
                    .map(|s| match s { Segment::File { len, .. } | Segment::Pad { len } => *len }).sum();
                prop_assert_eq!(bytes, u64::from(layout.piece_size(index)));
            }
            for (leaf, filled) in filled.iter().enumerate() {
                prop_assert_eq!(*filled, u64::from(layout.leaf_span(leaf as u32).1));
            }
            for (index, (length, pad)) in files.iter().enumerate() {
                let covered: u64 = layout.leaves_of_file(index).map(|l| u64::from(layout.leaf_span(l).1)).sum();
                prop_assert_eq!(covered, if *pad { 0 } else { *length });
            }
        }
    }
}
