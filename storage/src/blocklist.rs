//! The block list: what exactly one agreement is about.
//!
//! A list is the *set* of blocks that one host keeps under one agreement. Renter and host compute it apart and
//! both sign its SHA-256, so it has one form only: entries `u8 length || CID || u32be size`, strictly ascending by
//! multihash (a set: each block counts once, however many CIDs name it), no identity and no empty blocks (they
//! carry no bytes that could be lost), at most [`MAX_ENTRIES`]. The proof tree ([`crate::proof`]) runs over the
//! blocks in this order.
//!
//! The renter makes lists with [`BlockList::from_blocks`] and sends them in [`BlockList::pages`]; the host reads
//! pages with [`ListReader`], which checks order, caps and addresses entry by entry and allocates nothing by what a
//! page claims.

use std::collections::HashMap;

use cid::Cid;
use multihash::Multihash;
use sha2::{Digest, Sha256};

use crate::hash;
use crate::{Bytes, MAX_BLOCK};

/// Most entries a list may have: with 1 MiB blocks 64 GiB a host and agreement, and at most about 3 MiB of list.
pub const MAX_ENTRIES: usize = 65_536;

/// Longest CID accepted, in bytes: version, codec and hash function of up to four bytes each, length and a 64-byte
/// digest.
pub const MAX_CID: usize = 80;

/// Longest encoded entry, in bytes.
pub const MAX_ENTRY: usize = 1 + MAX_CID + 4;

/// A block by address and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// The address.
    pub cid: Cid,
    /// Size in bytes: 1 to [`MAX_BLOCK`].
    pub size: u32,
}

/// Why a list was not made or not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Nothing to keep.
    #[error("the block list is empty: there is nothing to store")]
    Empty,
    /// Over [`MAX_ENTRIES`].
    #[error("more than {MAX_ENTRIES} blocks in one agreement; store the content in several parts")]
    TooMany,
    /// A size that no block may have.
    #[error("block {cid} is said to have {size} bytes; a listed block has 1 to {MAX_BLOCK}")]
    Size {
        /// The block.
        cid: Cid,
        /// The size claimed.
        size: u64,
    },
    /// One block under two sizes.
    #[error("block {cid} is listed with {first} and with {second} bytes")]
    Conflict {
        /// The block.
        cid: Cid,
        /// The size it had first.
        first: u32,
        /// The size it had then.
        second: u32,
    },
    /// An entry is no well-formed, canonical `length || CID || size`.
    #[error("block list: the entry at byte {at} is malformed; the list was refused")]
    Malformed {
        /// Offset in the page or buffer.
        at: usize,
    },
    /// An address that blocks are not kept under here.
    #[error("block list: {cid} has no hash function that can be verified; the list was refused")]
    Unverifiable {
        /// The address.
        cid: Cid,
    },
    /// Not strictly ascending.
    #[error("block list: {cid} is out of order or listed twice; the list was refused")]
    Order {
        /// The first entry that is not above its predecessor.
        cid: Cid,
    },
    /// The pages do not add up to the list that was agreed on.
    #[error("block list: its digest is not the agreed one; the list was refused")]
    Digest,
}

impl BlockRef {
    /// A reference with its size checked.
    pub fn new(cid: Cid, size: u64) -> Result<BlockRef, ListError> {
        match u32::try_from(size) {
            Ok(small) if (1..=MAX_BLOCK as u32).contains(&small) => Ok(BlockRef { cid, size: small }),
            _ => Err(ListError::Size { cid, size }),
        }
    }

    /// Appends the entry `u8 length || CID || u32be size`.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let cid = self.cid.to_bytes();
        debug_assert!(cid.len() <= MAX_CID);
        out.push(cid.len() as u8);
        out.extend_from_slice(&cid);
        out.extend_from_slice(&self.size.to_be_bytes());
    }

    /// Reads the entry that begins at `at`, and where the next one begins.
    pub fn decode_at(bytes: &[u8], at: usize) -> Result<(BlockRef, usize), ListError> {
        let malformed = ListError::Malformed { at };
        let rest = bytes.get(at..).ok_or(malformed.clone())?;
        let (&length, rest) = rest.split_first().ok_or(malformed.clone())?;
        let length = usize::from(length);
        if length > MAX_CID || rest.len() < length + 4 {
            return Err(malformed);
        }
        let (cid_bytes, rest) = rest.split_at(length);
        let cid = Cid::try_from(cid_bytes).map_err(|_| malformed.clone())?;
        // One spelling only: a varint with padding would give one block many list digests.
        if cid.to_bytes() != cid_bytes {
            return Err(malformed);
        }
        if !hash::supported(&cid) || hash::inline(&cid).is_some() {
            return Err(ListError::Unverifiable { cid });
        }
        let size = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
        Ok((BlockRef::new(cid, u64::from(size))?, at + 1 + length + 4))
    }

    /// The bytes that lists are sorted by.
    fn order(&self) -> Vec<u8> {
        self.cid.hash().to_bytes()
    }
}

/// The checked, ordered set of blocks of one agreement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockList {
    entries: Vec<BlockRef>,
}

impl BlockList {
    /// The list of the given blocks, in whatever order and with whatever repetition they come.
    ///
    /// Identity and empty blocks are left out: nobody can lose them. Of two CIDs for the same bytes the first given
    /// one stays.
    ///
    /// # Errors
    /// [`ListError::Empty`], [`TooMany`](ListError::TooMany), [`Size`](ListError::Size),
    /// [`Conflict`](ListError::Conflict) or [`Unverifiable`](ListError::Unverifiable).
    pub fn from_blocks(blocks: impl IntoIterator<Item = (Cid, u64)>) -> Result<BlockList, ListError> {
        let mut seen: HashMap<Multihash<64>, u32> = HashMap::new();
        let mut entries = Vec::new();
        for (cid, size) in blocks {
            if hash::inline(&cid).is_some() || size == 0 {
                continue;
            }
            if !hash::supported(&cid) || cid.encoded_len() > MAX_CID {
                return Err(ListError::Unverifiable { cid });
            }
            let entry = BlockRef::new(cid, size)?;
            match seen.insert(*cid.hash(), entry.size) {
                None => entries.push(entry),
                Some(first) if first == entry.size => {}
                Some(first) => return Err(ListError::Conflict { cid, first, second: entry.size }),
            }
            if entries.len() > MAX_ENTRIES {
                return Err(ListError::TooMany);
            }
        }
        if entries.is_empty() {
            return Err(ListError::Empty);
        }
        entries.sort_by_cached_key(BlockRef::order);
        Ok(BlockList { entries })
    }

    /// Reads a whole encoded list, strictly.
    pub fn decode(bytes: &[u8]) -> Result<BlockList, ListError> {
        let mut reader = ListReader::new();
        reader.push(bytes)?;
        reader.finish_unchecked()
    }

    /// The encoded entries.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.entries.len() * 41);
        for entry in &self.entries {
            entry.encode_into(&mut out);
        }
        out
    }

    /// The encoded list cut at entry boundaries into pages of at most `max_bytes` (and at least one entry) each.
    pub fn pages(&self, max_bytes: usize) -> impl Iterator<Item = Bytes> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let mut page = Vec::new();
            let mut entry = Vec::with_capacity(MAX_ENTRY);
            while let Some(block) = self.entries.get(next) {
                entry.clear();
                block.encode_into(&mut entry);
                if !page.is_empty() && page.len() + entry.len() > max_bytes {
                    break;
                }
                page.extend_from_slice(&entry);
                next += 1;
            }
            (!page.is_empty()).then(|| Bytes::from(page))
        })
    }

    /// `blocks` of the agreement: SHA-256 of the encoded entries.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let mut entry = Vec::with_capacity(MAX_ENTRY);
        for block in &self.entries {
            entry.clear();
            block.encode_into(&mut entry);
            digest.update(&entry);
        }
        digest.finalize().into()
    }

    /// `size` of the agreement: the sum of the blocks' sizes, in bytes.
    pub fn size(&self) -> u64 {
        self.entries.iter().map(|entry| u64::from(entry.size)).sum()
    }

    /// `leaves` of the agreement: how many leaves the proof tree over these blocks has.
    pub fn leaves(&self) -> u64 {
        self.entries.iter().map(|entry| crate::proof::leaves_of(u64::from(entry.size))).sum()
    }

    /// The blocks in list order.
    pub fn entries(&self) -> &[BlockRef] {
        &self.entries
    }

    /// The addresses in list order.
    pub fn cids(&self) -> impl Iterator<Item = Cid> + '_ {
        self.entries.iter().map(|entry| entry.cid)
    }

    /// The number of blocks; never 0.
    #[expect(clippy::len_without_is_empty, reason = "an empty list cannot be made")]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry of the block that `cid` names, under whatever CID it is listed.
    pub fn find(&self, cid: &Cid) -> Option<&BlockRef> {
        let wanted = cid.hash().to_bytes();
        let at = self.entries.binary_search_by(|entry| entry.order().cmp(&wanted)).ok()?;
        self.entries.get(at)
    }
}

/// Reads a list page by page and refuses the first byte that is wrong.
#[derive(Debug, Default)]
pub struct ListReader {
    entries: Vec<BlockRef>,
    last: Vec<u8>,
    size: u64,
    digest: Sha256,
}

impl ListReader {
    /// A reader that expects the first page.
    pub fn new() -> ListReader {
        ListReader::default()
    }

    /// Takes the next page. Entries never cross pages. After an error the reader is of no more use.
    pub fn push(&mut self, page: &[u8]) -> Result<(), ListError> {
        let mut at = 0;
        while at < page.len() {
            if self.entries.len() == MAX_ENTRIES {
                return Err(ListError::TooMany);
            }
            let (entry, next) = BlockRef::decode_at(page, at)?;
            let order = entry.order();
            if order <= self.last {
                return Err(ListError::Order { cid: entry.cid });
            }
            self.last = order;
            self.size += u64::from(entry.size);
            self.entries.push(entry);
            at = next;
        }
        self.digest.update(page);
        Ok(())
    }

    /// Sum of the sizes so far, in bytes: lets a host stop a list that passes what it was asked for.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The list, if it is the agreed one.
    pub fn finish(self, blocks: &[u8; 32]) -> Result<BlockList, ListError> {
        let digest: [u8; 32] = self.digest.clone().finalize().into();
        if digest != *blocks {
            return Err(ListError::Digest);
        }
        self.finish_unchecked()
    }

    fn finish_unchecked(self) -> Result<BlockList, ListError> {
        if self.entries.is_empty() {
            return Err(ListError::Empty);
        }
        Ok(BlockList { entries: self.entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{RAW, cid_from_digest, cid_v1};
    use proptest::prelude::*;

    fn some_blocks() -> Vec<(Cid, u64)> {
        (0..50u8).map(|i| (cid_v1(RAW, &[i]), 1 + 37 * u64::from(i))).collect()
    }

    #[test]
    fn order_and_repetition_of_the_input_do_not_matter() {
        let mut blocks = some_blocks();
        let list = BlockList::from_blocks(blocks.clone()).unwrap();
        blocks.reverse();
        blocks.extend(some_blocks());
        assert_eq!(BlockList::from_blocks(blocks).unwrap(), list);
        assert_eq!(list.len(), 50);
        assert_eq!(list.size(), some_blocks().iter().map(|(_, size)| size).sum::<u64>());
        assert_eq!(BlockList::decode(&list.encode()).unwrap(), list);
        assert_eq!(list.digest(), hash::sha256(&list.encode()));
        let keys: Vec<_> = list.entries().iter().map(BlockRef::order).collect();
        assert!(keys.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn one_block_under_two_cids_counts_once() {
        let v0 = Cid::new_v0(*cid_v1(hash::DAG_PB, b"x").hash()).unwrap();
        let list = BlockList::from_blocks([(v0, 9), (cid_v1(RAW, b"x"), 9)]).unwrap();
        assert_eq!(list.len(), 1);
        assert!(list.find(&cid_v1(RAW, b"x")).is_some());
        let twice = BlockList::from_blocks([(v0, 9), (cid_v1(RAW, b"x"), 8)]);
        assert!(matches!(twice, Err(ListError::Conflict { first: 9, second: 8, .. })));
    }

    #[test]
    fn identity_and_empty_blocks_are_no_part_of_a_list() {
        let inline = cid_from_digest(RAW, hash::IDENTITY, b"abc");
        assert_eq!(
            BlockList::from_blocks([(inline, 3), (cid_v1(RAW, b""), 0)]),
            Err(ListError::Empty),
            "nothing is left"
        );
        let mut entry = Vec::new();
        BlockRef { cid: inline, size: 3 }.encode_into(&mut entry);
        assert_eq!(BlockList::decode(&entry), Err(ListError::Unverifiable { cid: inline }));
        let mut entry = Vec::new();
        BlockRef { cid: cid_v1(RAW, b""), size: 1 }.encode_into(&mut entry);
        assert!(matches!(BlockList::decode(&entry), Err(ListError::Unverifiable { .. })));
        let mut entry = Vec::new();
        BlockRef { cid: cid_v1(RAW, b"x"), size: 0 }.encode_into(&mut entry);
        assert!(matches!(BlockList::decode(&entry), Err(ListError::Size { size: 0, .. })));
    }

    #[test]
    fn oversize_blocks_and_lists_are_refused() {
        let big = BlockList::from_blocks([(cid_v1(RAW, b"x"), MAX_BLOCK as u64 + 1)]);
        assert!(matches!(big, Err(ListError::Size { .. })));
        let many = (0..=MAX_ENTRIES as u32).map(|i| (cid_v1(RAW, &i.to_be_bytes()), 4));
        assert_eq!(BlockList::from_blocks(many), Err(ListError::TooMany));
        let full = (0..MAX_ENTRIES as u32).map(|i| (cid_v1(RAW, &i.to_be_bytes()), 4));
        let list = BlockList::from_blocks(full).unwrap();
        let mut reader = ListReader::new();
        for page in list.pages(60_000) {
            assert!(page.len() <= 60_000);
            reader.push(&page).unwrap();
        }
        assert_eq!(reader.size(), list.size());
        assert_eq!(reader.finish(&list.digest()).unwrap(), list);
    }

    #[test]
    fn swapped_repeated_and_cut_entries_are_refused() {
        let list = BlockList::from_blocks(some_blocks()).unwrap();
        let entry = |i: usize| {
            let mut out = Vec::new();
            list.entries()[i].encode_into(&mut out);
            out
        };
        let order = Err(ListError::Order { cid: list.entries()[0].cid });
        assert_eq!(BlockList::decode(&[entry(1), entry(0)].concat()), order);
        assert_eq!(BlockList::decode(&[entry(0), entry(0)].concat()), order);
        let mut across = ListReader::new();
        across.push(&entry(1)).unwrap();
        assert_eq!(across.push(&entry(0)).map(|()| unreachable!()), order);
        let bytes = list.encode();
        assert!(BlockList::decode(&bytes[..bytes.len() - 1]).is_err());
        let mut other = ListReader::new();
        other.push(&bytes).unwrap();
        assert_eq!(other.finish(&[7; 32]), Err(ListError::Digest));
    }

    #[test]
    fn a_cid_has_one_spelling() {
        let cid = cid_v1(RAW, b"x").to_bytes();
        // The version as a padded varint.
        let padded = [&[cid.len() as u8 + 1, 0x81, 0x00][..], &cid[1..], &[0, 0, 0, 1]].concat();
        assert_eq!(BlockList::decode(&padded), Err(ListError::Malformed { at: 0 }));
    }

    proptest! {
        #[test]
        fn any_list_survives_its_pages(sizes in prop::collection::vec(1u64..=MAX_BLOCK as u64, 1..200), page in 1usize..500) {
            let blocks = sizes.iter().enumerate().map(|(i, size)| (cid_v1(RAW, &i.to_be_bytes()), *size));
            let list = BlockList::from_blocks(blocks).unwrap();
            let mut reader = ListReader::new();
            for bytes in list.pages(page) {
                reader.push(&bytes).unwrap();
            }
            prop_assert_eq!(reader.finish(&list.digest()).unwrap(), list);
        }

        #[test]
        fn whatever_decodes_is_canonical(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(list) = BlockList::decode(&bytes) {
                prop_assert_eq!(list.encode(), bytes);
            }
        }

        #[test]
        fn a_changed_byte_never_passes_the_digest(at in any::<prop::sample::Index>(), change in 1u8..) {
            let list = BlockList::from_blocks(some_blocks()).unwrap();
            let mut bytes = list.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            let mut reader = ListReader::new();
            let refused = reader.push(&bytes).is_err() || reader.finish(&list.digest()).is_err();
            prop_assert!(refused);
        }
    }
}
