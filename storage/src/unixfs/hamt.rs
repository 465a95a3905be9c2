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
use super::{Data, DataType, DirLink, Metadata, UnixFsError};
use crate::dagpb::{PbLink, PbNode};

/// Buckets of a shard unless something else is asked for: one byte of the hash a level.
pub const FANOUT: u32 = 256;
/// Multihash code of murmur3-x64-64, the only hash function of shards.
const MURMUR3_X64_64: u64 = 0x22;
/// Most buckets a foreign shard may have, by the specification.
const MAX_FANOUT: u32 = 1024;
/// Fewest buckets a foreign shard may have: the bit field is whole bytes.
const MIN_FANOUT: u32 = 8;

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

/// Whether a shard may have so many buckets: a power of two, whole bytes of bit field, the specification's cap.
pub fn fanout_is_valid(fanout: u32) -> bool {
    fanout.is_power_of_two() && (MIN_FANOUT..=MAX_FANOUT).contains(&fanout)
}

/// Hex digits that name a bucket.
fn prefix_width(fanout: u32) -> usize {
    ((fanout - 1).ilog2() / 4 + 1) as usize
}

/// The block of a shard over `links`, whose buckets are `buckets`. Only the top shard has metadata.
fn shard_block(fanout: u32, buckets: &[u32], links: Vec<PbLink>, metadata: &Metadata) -> Bytes {
    // The bit field is one big-endian number without leading zero bytes.
    let mut bits = vec![0u8; fanout as usize / 8];
    let last = bits.len() - 1;
    for bucket in buckets {
        bits[last - (*bucket / 8) as usize] |= 1 << (*bucket % 8);
    }
    let first = bits.iter().position(|byte| *byte != 0).unwrap_or(last);
    let data = Data {
        kind: Some(DataType::HamtShard as i32),
        data: Some(Bytes::from(bits).slice(first..)),
        hash_type: Some(MURMUR3_X64_64),
        fanout: Some(u64::from(fanout)),
        ..Data::default()
    };
    let data = data.with_metadata(metadata);
    PbNode { links, data: Some(data.to_bytes()) }.encode()
}

/// Writes the shards of a directory, of `fanout` buckets each, and returns the top one with its cumulative size.
///
/// `put` stores a block and answers its CID. Names must be distinct.
///
/// # Panics
/// If the fanout is none that [`fanout_is_valid`] allows.
pub fn build<E: From<Collision>>(
    fanout: u32,
    entries: &[DirLink],
    metadata: &Metadata,
    put: &mut dyn FnMut(Bytes) -> Result<Cid, E>,
) -> Result<(Cid, u64), E> {
    assert!(fanout_is_valid(fanout), "a fanout of {fanout}");
    let mut sorted: Vec<(u64, &DirLink)> =
        entries.iter().map(|entry| (name_hash(&entry.name), entry)).collect();
    sorted.sort_unstable_by_key(|(hash, _)| *hash);
    build_level(fanout, &sorted, 0, metadata, put)
}

/// One shard over entries that share the first `level` parts of their hash. Recursion ends with the hash.
fn build_level<E: From<Collision>>(
    fanout: u32,
    entries: &[(u64, &DirLink)],
    level: u32,
    metadata: &Metadata,
    put: &mut dyn FnMut(Bytes) -> Result<Cid, E>,
) -> Result<(Cid, u64), E> {
    let bits = fanout.trailing_zeros();
    let Some(shift) = u64::BITS.checked_sub((level + 1) * bits) else {
        return Err(Collision { first: entries[0].1.name.clone(), second: entries[1].1.name.clone() }.into());
    };
    let bucket_of = |hash: u64| (hash >> shift) as u32 & (fanout - 1);
    let mut slots = Vec::new();
    for group in entries.chunk_by(|a, b| bucket_of(a.0) == bucket_of(b.0)) {
        let slot = match group {
            [(_, entry)] => Slot::Entry((*entry).clone()),
            several => {
                let (cid, tsize) = build_level(fanout, several, level + 1, &Metadata::default(), put)?;
                Slot::Shard { cid, tsize }
            }
        };
        slots.push((bucket_of(group[0].0), slot));
    }
    put_shard(fanout, &slots, metadata, put)
}

/// What a change leaves of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// One entry, which belongs one level up.
    Entry(DirLink),
    /// A shard, written.
    Shard {
        /// Its CID.
        cid: Cid,
        /// Cumulative size in bytes.
        tsize: u64,
    },
}

/// Writes the trie below the top shard `top` anew with `entry` under `name`, or with nothing there: what [`build`] would
/// have made of the entries. Only shards that lead to the name are read and written.
///
/// `read` answers the shards below, `put` stores a block and answers its CID.
pub fn change<E: From<Collision>>(
    top: &Shard,
    name: &str,
    entry: Option<&DirLink>,
    metadata: &Metadata,
    read: &mut dyn FnMut(&Cid) -> Result<Shard, E>,
    put: &mut dyn FnMut(Bytes) -> Result<Cid, E>,
) -> Result<Left, E> {
    change_level(top, 0, name, entry, metadata, read, put)
}

/// [`change`] of a shard at `level`. Recursion ends with the hash.
fn change_level<E: From<Collision>>(
    shard: &Shard,
    level: u32,
    name: &str,
    entry: Option<&DirLink>,
    metadata: &Metadata,
    read: &mut dyn FnMut(&Cid) -> Result<Shard, E>,
    put: &mut dyn FnMut(Bytes) -> Result<Cid, E>,
) -> Result<Left, E> {
    let Some(bucket) = shard.bucket(name_hash(name), level) else {
        let first = shard.slots.iter().find_map(|(_, slot)| match slot {
            Slot::Entry(entry) => Some(entry.name.clone()),
            Slot::Shard { .. } => None,
        });
        return Err(Collision { first: first.unwrap_or_default(), second: name.to_owned() }.into());
    };
    let mut slots = shard.slots.clone();
    let place = slots.binary_search_by_key(&bucket, |(bucket, _)| *bucket);
    let occupant = place.ok().map(|at| slots[at].1.clone());
    let slot = match (occupant, entry) {
        (None, entry) => entry.cloned().map(Slot::Entry),
        (Some(Slot::Entry(old)), entry) if old.name == name => entry.cloned().map(Slot::Entry),
        (Some(Slot::Entry(old)), None) => Some(Slot::Entry(old)),
        (Some(Slot::Entry(old)), Some(new)) => {
            let mut both = [(name_hash(&old.name), &old), (name_hash(name), new)];
            both.sort_unstable_by_key(|(hash, _)| *hash);
            let (cid, tsize) = build_level(shard.fanout(), &both, level + 1, &Metadata::default(), put)?;
            Some(Slot::Shard { cid, tsize })
        }
        (Some(Slot::Shard { cid, .. }), entry) => {
            let below = read(&cid)?;
            match change_level(&below, level + 1, name, entry, &Metadata::default(), read, put)? {
                Left::Nothing => None,
                Left::Entry(entry) => Some(Slot::Entry(entry)),
                Left::Shard { cid, tsize } => Some(Slot::Shard { cid, tsize }),
            }
        }
    };
    match (place, slot) {
        (Ok(at), Some(slot)) => slots[at].1 = slot,
        (Ok(at), None) => drop(slots.remove(at)),
        (Err(at), Some(slot)) => slots.insert(at, (bucket, slot)),
        (Err(_), None) => {}
    }
    match slots.as_slice() {
        [] => Ok(Left::Nothing),
        [(_, Slot::Entry(only))] if level > 0 => Ok(Left::Entry(only.clone())),
        _ => {
            let (cid, tsize) = put_shard(shard.fanout(), &slots, metadata, put)?;
            Ok(Left::Shard { cid, tsize })
        }
    }
}

/// Writes one shard of these slots, which are in the order of their buckets.
fn put_shard<E>(
    fanout: u32,
    slots: &[(u32, Slot)],
    metadata: &Metadata,
    put: &mut dyn FnMut(Bytes) -> Result<Cid, E>,
) -> Result<(Cid, u64), E> {
    let width = prefix_width(fanout);
    let link = |(bucket, slot): &(u32, Slot)| match slot {
        Slot::Entry(entry) => (entry.cid, format!("{bucket:0width$X}{}", entry.name), entry.tsize),
        Slot::Shard { cid, tsize } => (*cid, format!("{bucket:0width$X}"), *tsize),
    };
    let mut below = 0u64;
    let links = slots.iter().map(|slot| {
        let (cid, name, tsize) = link(slot);
        below = below.saturating_add(tsize);
        PbLink { cid, name: Some(name), tsize: Some(tsize) }
    });
    let links = links.collect();
    let buckets: Vec<u32> = slots.iter().map(|(bucket, _)| *bucket).collect();
    let block = shard_block(fanout, &buckets, links, metadata);
    let size = below.saturating_add(block.len() as u64);
    Ok((put(block)?, size))
}

/// What a link of a shard is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// An entry of the directory.
    Entry(DirLink),
    /// A shard one level down.
    Shard {
        /// Its CID.
        cid: Cid,
        /// Cumulative size in bytes of what is below, as its writer claimed.
        tsize: u64,
    },
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
        let fanout = u32::try_from(data.fanout.unwrap_or(0)).unwrap_or(0);
        if !fanout_is_valid(fanout) {
            return Err(UnixFsError::Malformed("a shard's fanout is no power of two from 8 to 1024"));
        }
        let width = prefix_width(fanout);
        let mut slots: Vec<(u32, Slot)> = Vec::with_capacity(links.len());
        for link in links {
            let name = link.name.unwrap_or_default();
            let (prefix, rest) = name
                .split_at_checked(width)
                .filter(|(prefix, _)| prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F')))
                .ok_or(UnixFsError::Malformed("a shard's link does not start with its bucket"))?;
            let bucket = u32::from_str_radix(prefix, 16)
                .ok()
                .filter(|bucket| *bucket < fanout)
                .ok_or(UnixFsError::Malformed("a shard's link names a bucket it does not have"))?;
            let slot = match rest {
                "" => Slot::Shard { cid: link.cid, tsize: link.tsize.unwrap_or(0) },
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

    /// Buckets of the shard.
    pub fn fanout(&self) -> u32 {
        1 << self.bits
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

    fn shards(fanout: u32, names: &[String]) -> (Cid, BTreeMap<Cid, Bytes>) {
        let entries: Vec<DirLink> = names
            .iter()
            .map(|name| DirLink {
                name: name.clone(),
                cid: hash::cid_v1(hash::RAW, name.as_bytes()),
                tsize: 1,
            })
            .collect();
        let mut blocks = BTreeMap::new();
        let (root, _) = build(fanout, &entries, &Metadata::default(), &mut |block| {
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
                Slot::Shard { cid, .. } => at = *cid,
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
            fanout in prop::sample::select(vec![8u32, 16, 256, 1024]),
        ) {
            let list: Vec<String> = names.iter().cloned().collect();
            let (root, blocks) = shards(fanout, &list);
            for name in list.iter().chain(&strangers) {
                let expected = names.contains(name).then(|| hash::cid_v1(hash::RAW, name.as_bytes()));
                prop_assert_eq!(find(root, name, &blocks), expected);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
        /// Additions, replacements and removals one by one end where building anew ends.
        #[test]
        fn changes_give_what_building_gives(
            fanout in prop::sample::select(vec![8u32, 16, 256]),
            edits in prop::collection::vec(("[a-c]{1,4}", prop::option::of(0u8..3)), 1..250),
        ) {
            let mut model = BTreeMap::new();
            let mut at = None;
            let blocks = std::cell::RefCell::new(BTreeMap::new());
            let mut put = |block: Bytes| {
                let cid = hash::cid_v1(hash::DAG_PB, &block);
                blocks.borrow_mut().insert(cid, block);
                Ok::<_, Collision>(cid)
            };
            for (name, value) in edits {
                let entry = value.map(|value| DirLink {
                    name: name.clone(),
                    cid: hash::cid_v1(hash::RAW, &[value]),
                    tsize: u64::from(value),
                });
                let empty = || Shard { bits: fanout.trailing_zeros(), slots: Vec::new() };
                let top = at.map_or_else(empty, |cid| shard(&cid, &blocks.borrow()));
                let mut read = |cid: &Cid| Ok(shard(cid, &blocks.borrow()));
                let left =
                    change(&top, &name, entry.as_ref(), &Metadata::default(), &mut read, &mut put).unwrap();
                match entry {
                    Some(entry) => drop(model.insert(name, entry)),
                    None => drop(model.remove(&name)),
                }
                let entries: Vec<DirLink> = model.values().cloned().collect();
                at = match left {
                    Left::Shard { cid, tsize } => {
                        let built = build(fanout, &entries, &Metadata::default(), &mut put).unwrap();
                        prop_assert_eq!((cid, tsize), built);
                        Some(cid)
                    }
                    Left::Nothing => {
                        prop_assert!(entries.is_empty());
                        None
                    }
                    Left::Entry(_) => panic!("the top shard is never an entry"),
                };
            }
        }
    }

    #[test]
    fn names_with_one_hash_are_refused() {
        let entry = DirLink { name: "a".into(), cid: hash::cid_v1(hash::RAW, b""), tsize: 0 };
        let twice = [entry.clone(), entry];
        for fanout in [8, 256, 1024] {
            let mut put = |block: Bytes| Ok::<_, Collision>(hash::cid_v1(hash::DAG_PB, &block));
            assert!(build(fanout, &twice, &Metadata::default(), &mut put).is_err());
        }
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
