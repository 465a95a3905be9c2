//! Large directories as a hash array mapped trie of shards.
//!
//! An entry's place is the murmur3 hash of its name, taken from the top bits down, log2(fanout) bits a level. A
//! link's name starts with its bucket in hex; an entry has its own name after that, a link to a deeper shard has
//! nothing more. [`build`] writes the trie for a finished set of entries; [`Shard`] is one block of it, read.
//!
//! Readers check every entry against its place ([`Shard::entry_fits`]): a forged trie that points to one shard from
//! many buckets would otherwise list without end.

use bytes::Bytes;
use cid::Cid;

use super::murmur::murmur3_x64_64;
use super::{Data, DataType, DirLink, UnixFsError};
use crate::dagpb::{PbLink, PbNode};

/// Buckets of a shard that is written here; both profiles use 256, one byte of the hash a level.
const FANOUT: u64 = 256;
/// Levels that the 64-bit hash allows at that fanout.
const MAX_LEVELS: u32 = 8;
/// Multihash code of murmur3-x64-64, the only hash function of shards.
const MURMUR3_X64_64: u64 = 0x22;
/// Most buckets a foreign shard may have, by the specification.
const MAX_FANOUT: u64 = 1024;
/// Fewest buckets a foreign shard may have: the bit field is whole bytes.
const MIN_FANOUT: u64 = 8;

/// What an entry's name hashes to.
pub fn name_hash(name: &str) -> u64 {
    murmur3_x64_64(name.as_bytes())
}

/// Two names with one hash; such a directory cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the names {first:?} and {second:?} have the same 64-bit hash; a directory this large cannot hold both"
)]
pub struct Collision {
    /// One name.
    pub first: String,
    /// The other.
    pub second: String,
}

/// Writes the shards of a directory and returns the top one with its cumulative size.
///
/// `put` stores a block and answers its CID. Names must be distinct.
pub fn build<E: From<Collision>>(
    entries: &[DirLink],
    put: &mut dyn FnMut(Bytes) -> Result<Cid, E>,
) -> Result<(Cid, u64), E> {
    let mut sorted: Vec<(u64, &DirLink)> =
        entries.iter().map(|entry| (name_hash(&entry.name), entry)).collect();
    sorted.sort_unstable_by_key(|(hash, _)| *hash);
    build_level(&sorted, 0, put)
}

/// One shard over entries that share the first `level` bytes of their hash. Recursion ends at [`MAX_LEVELS`].
fn build_level<E: From<Collision>>(
    entries: &[(u64, &DirLink)],
    level: u32,
    put: &mut dyn FnMut(Bytes) -> Result<Cid, E>,
) -> Result<(Cid, u64), E> {
    if level == MAX_LEVELS {
        return Err(Collision { first: entries[0].1.name.clone(), second: entries[1].1.name.clone() }.into());
    }
    let bucket_of = |hash: u64| (hash >> (56 - 8 * level)) as u8;
    let mut links = Vec::new();
    let mut bits = [0u8; FANOUT as usize / 8];
    let mut below = 0u64;
    for group in entries.chunk_by(|a, b| bucket_of(a.0) == bucket_of(b.0)) {
        let bucket = bucket_of(group[0].0);
        // The bit field is one big-endian number.
        bits[31 - usize::from(bucket / 8)] |= 1 << (bucket % 8);
        let link = match group {
            [(_, entry)] => PbLink {
                cid: entry.cid,
                name: Some(format!("{bucket:02X}{}", entry.name)),
                tsize: Some(entry.tsize),
            },
            several => {
                let (cid, tsize) = build_level(several, level + 1, put)?;
                PbLink { cid, name: Some(format!("{bucket:02X}")), tsize: Some(tsize) }
            }
        };
        below += link.tsize.unwrap_or(0);
        links.push(link);
    }
    let first = bits.iter().position(|byte| *byte != 0).unwrap_or(bits.len() - 1);
    let data = Data {
        kind: Some(DataType::HamtShard as i32),
        data: Some(Bytes::copy_from_slice(&bits[first..])),
        hash_type: Some(MURMUR3_X64_64),
        fanout: Some(FANOUT),
        ..Data::default()
    };
    let block = PbNode { links, data: Some(data.to_bytes()) }.encode();
    let size = below + block.len() as u64;
    Ok((put(block)?, size))
}

/// What a link of a shard is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// An entry of the directory.
    Entry(DirLink),
    /// A shard one level down.
    Shard(Cid),
}

/// One shard of a large directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shard {
    /// log2 of the number of buckets.
    bits: u32,
    /// Occupied buckets in ascending order.
    slots: Vec<(u32, Slot)>,
}

impl Shard {
    /// Takes a node apart and checks its shape.
    pub(super) fn new(data: &Data, links: Vec<PbLink>) -> Result<Shard, UnixFsError> {
        if data.hash_type != Some(MURMUR3_X64_64) {
            return Err(UnixFsError::Malformed("a shard with a hash function other than murmur3-x64-64"));
        }
        let fanout = data.fanout.unwrap_or(0);
        if !fanout.is_power_of_two() || !(MIN_FANOUT..=MAX_FANOUT).contains(&fanout) {
            return Err(UnixFsError::Malformed("a shard's fanout is no power of two from 8 to 1024"));
        }
        let width = format!("{:X}", fanout - 1).len();
        let mut slots: Vec<(u32, Slot)> = Vec::with_capacity(links.len());
        for link in links {
            let name = link.name.unwrap_or_default();
            let (prefix, rest) = name
                .split_at_checked(width)
                .filter(|(prefix, _)| prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')))
                .ok_or(UnixFsError::Malformed("a shard's link does not start with its bucket"))?;
            let bucket = u32::from_str_radix(prefix, 16)
                .ok()
                .filter(|bucket| u64::from(*bucket) < fanout)
                .ok_or(UnixFsError::Malformed("a shard's link names a bucket it does not have"))?;
            let slot = match rest {
                "" => Slot::Shard(link.cid),
                rest => Slot::Entry(DirLink {
                    name: rest.to_owned(),
                    cid: link.cid,
                    tsize: link.tsize.unwrap_or(0),
                }),
            };
            slots.push((bucket, slot));
        }
        slots.sort_by_key(|(bucket, _)| *bucket);
        if slots.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(UnixFsError::Malformed("two links of a shard claim one bucket"));
        }
        Ok(Shard { bits: fanout.trailing_zeros(), slots })
    }

    /// Occupied buckets in ascending order.
    pub fn slots(&self) -> &[(u32, Slot)] {
        &self.slots
    }

    /// The bucket of a name hash at `level` (0 at the top), or `None` when the hash has no bits left.
    fn bucket(&self, hash: u64, level: u32) -> Option<u32> {
        let used = level.checked_mul(self.bits)?;
        (used + self.bits <= u64::BITS).then(|| ((hash << used) >> (u64::BITS - self.bits)) as u32)
    }

    /// Whether an entry may lie in `bucket` of this shard, the shard being at `level`.
    pub fn entry_fits(&self, name: &str, bucket: u32, level: u32) -> bool {
        self.bucket(name_hash(name), level) == Some(bucket)
    }

    /// What lies where `name` belongs, the shard being at `level`.
    pub fn lookup(&self, name: &str, level: u32) -> Option<&Slot> {
        let bucket = self.bucket(name_hash(name), level)?;
        let found = self.slots.binary_search_by_key(&bucket, |(bucket, _)| *bucket).ok()?;
        match &self.slots[found].1 {
            Slot::Entry(entry) if entry.name != name => None,
            slot => Some(slot),
        }
    }

    /// Levels that the hash allows at this fanout.
    pub fn max_levels(&self) -> u32 {
        u64::BITS / self.bits
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::hash;
    use crate::unixfs::Node;

    fn shards(names: &[String]) -> (Cid, BTreeMap<Cid, Bytes>) {
        let entries: Vec<DirLink> = names
            .iter()
            .map(|name| DirLink {
                name: name.clone(),
                cid: hash::cid_v1(hash::RAW, name.as_bytes()),
                tsize: 1,
            })
            .collect();
        let mut blocks = BTreeMap::new();
        let (root, _) = build(&entries, &mut |block| {
            let cid = hash::cid_v1(hash::DAG_PB, &block);
            blocks.insert(cid, block);
            Ok::<_, Collision>(cid)
        })
        .unwrap();
        (root, blocks)
    }

    fn shard(cid: &Cid, blocks: &BTreeMap<Cid, Bytes>) -> Shard {
        match Node::decode(cid, &blocks[cid]).unwrap() {
            Node::Shard(shard) => shard,
            other => panic!("{other:?}"),
        }
    }

    fn find(root: Cid, name: &str, blocks: &BTreeMap<Cid, Bytes>) -> Option<Cid> {
        let mut at = root;
        for level in 0.. {
            match shard(&at, blocks).lookup(name, level)? {
                Slot::Entry(entry) => return Some(entry.cid),
                Slot::Shard(next) => at = *next,
            }
        }
        None
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn a_trie_answers_as_a_map(
            names in prop::collection::btree_set("[a-zé]{1,8}", 1..400),
            strangers in prop::collection::vec("[a-zé]{1,8}", 20),
        ) {
            let list: Vec<String> = names.iter().cloned().collect();
            let (root, blocks) = shards(&list);
            for name in list.iter().chain(&strangers) {
                let expected = names.contains(name).then(|| hash::cid_v1(hash::RAW, name.as_bytes()));
                prop_assert_eq!(find(root, name, &blocks), expected);
            }
        }
    }

    #[test]
    fn names_with_one_hash_are_refused() {
        let entry = DirLink { name: "a".into(), cid: hash::cid_v1(hash::RAW, b""), tsize: 0 };
        let twice = [entry.clone(), entry];
        let result = build(&twice, &mut |block| Ok::<_, Collision>(hash::cid_v1(hash::DAG_PB, &block)));
        assert!(result.is_err());
    }

    #[test]
    fn foreign_fanouts_take_their_own_bits() {
        let shard = |fanout: u64| {
            let data = Data {
                kind: Some(DataType::HamtShard as i32),
                hash_type: Some(MURMUR3_X64_64),
                fanout: Some(fanout),
                ..Data::default()
            };
            Shard::new(&data, vec![])
        };
        for bad in [0, 1, 4, 24, 2048, 1 << 40] {
            assert!(shard(bad).is_err(), "{bad}");
        }
        let wide = shard(1024).unwrap();
        assert_eq!(wide.bucket(0xffc0_0000_0000_0000, 0), Some(1023));
        assert_eq!(wide.bucket(0x003f_f000_0000_0000, 1), Some(1023));
        assert_eq!(wide.bucket(u64::MAX, 6), None);
        assert_eq!(wide.max_levels(), 6);
    }
}
