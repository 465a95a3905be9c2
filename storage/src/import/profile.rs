//! The parameters that a CID depends on.

use bytes::Bytes;
use cid::Cid;
use multihash::Multihash;

use crate::dagpb::{self, PbLink, PbNode};
use crate::hash;
use crate::unixfs::{Data, DataType, DirLink};

/// A directory whose size, as its profile estimates it, is above this becomes a trie of shards: 256 KiB.
const SHARD_THRESHOLD: usize = 256 << 10;

/// How a directory's size is estimated before it is compared with the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DirectorySize {
    /// Length of its block.
    Block,
    /// Lengths of names and CIDs only.
    Links,
}

/// A named set of the parameters that a CID depends on. Source: IPIP-499.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    name: &'static str,
    chunk: usize,
    links_per_node: usize,
    raw_leaves: bool,
    cid_v0: bool,
    directory_size: DirectorySize,
}

impl Profile {
    /// `unixfs-v1-2025`, the default: CIDv1, 1 MiB raw leaves, 1024 links a node.
    pub const V1_2025: Profile = Profile {
        name: "unixfs-v1-2025",
        chunk: 1 << 20,
        links_per_node: 1024,
        raw_leaves: true,
        cid_v0: false,
        directory_size: DirectorySize::Block,
    };

    /// `unixfs-v0-2015`: CIDv0, 256 KiB leaves in dag-pb, 174 links a node, as Kubo up to 0.39.
    pub const V0_2015: Profile = Profile {
        name: "unixfs-v0-2015",
        chunk: 256 << 10,
        links_per_node: 174,
        raw_leaves: false,
        cid_v0: true,
        directory_size: DirectorySize::Links,
    };

    /// Every profile, the default first.
    pub const ALL: [Profile; 2] = [Profile::V1_2025, Profile::V0_2015];

    /// The profile of that name.
    pub fn by_name(name: &str) -> Option<Profile> {
        Self::ALL.into_iter().find(|profile| profile.name == name)
    }

    /// A profile of small numbers, so that tests reach deep DAGs with few bytes.
    #[cfg(test)]
    pub(crate) fn tiny(chunk: usize, links_per_node: usize, base: Profile) -> Profile {
        Profile { name: "tiny", chunk, links_per_node, ..base }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Content bytes of a leaf; only a file's last leaf is shorter.
    pub fn chunk_size(&self) -> usize {
        self.chunk
    }

    /// Links of a full file node.
    pub fn links_per_node(&self) -> usize {
        self.links_per_node
    }

    /// Whether a leaf block is the content itself.
    pub fn raw_leaves(&self) -> bool {
        self.raw_leaves
    }

    /// The leaf block of `content` and its CID. `content` may be at most [`chunk_size`](Self::chunk_size) bytes.
    pub fn leaf(&self, content: &Bytes) -> (Cid, Bytes) {
        let block = if self.raw_leaves {
            content.clone()
        } else {
            let (head, tail) = leaf_wrapping(content.len());
            Bytes::from([&head[..], content, &tail[..]].concat())
        };
        (self.leaf_cid(&block), block)
    }

    /// The CID of a leaf block.
    pub(super) fn leaf_cid(&self, block: &[u8]) -> Cid {
        if self.raw_leaves { hash::cid_v1(hash::RAW, block) } else { self.node_cid(block) }
    }

    /// The CID of a dag-pb block.
    pub(super) fn node_cid(&self, block: &[u8]) -> Cid {
        if self.cid_v0 {
            let hash =
                Multihash::wrap(hash::SHA2_256, &hash::sha256(block)).expect("32 bytes fit a multihash");
            Cid::new_v0(hash).expect("sha2-256 of 32 bytes is what CIDv0 takes")
        } else {
            hash::cid_v1(hash::DAG_PB, block)
        }
    }

    /// The block of a dag-pb node and its CID.
    pub(super) fn node(&self, links: Vec<PbLink>, data: &Data) -> (Cid, Bytes) {
        let block = PbNode { links, data: Some(data.to_bytes()) }.encode();
        (self.node_cid(&block), block)
    }

    /// Whether a directory of these entries is written as a trie of shards.
    pub(super) fn shards(&self, entries: &[DirLink]) -> bool {
        let estimate: usize = match self.directory_size {
            DirectorySize::Links => {
                entries.iter().map(|entry| entry.name.len() + entry.cid.encoded_len()).sum()
            }
            DirectorySize::Block => {
                let links = entries.iter();
                let links =
                    links.map(|entry| dagpb::encoded_link_len(entry.name.len(), &entry.cid, entry.tsize));
                let data = PbNode { links: Vec::new(), data: Some(Data::directory().to_bytes()) };
                data.encoded_len() + links.sum::<usize>()
            }
        };
        estimate > SHARD_THRESHOLD
    }
}

/// Most bytes that [`leaf_wrapping`] puts before the content: two keys, two lengths, the type.
pub(super) const MAX_LEAF_HEAD: usize = 16;
/// Most bytes that it puts after: a key and a length.
pub(super) const MAX_LEAF_TAIL: usize = 8;

/// The bytes of a dag-pb leaf before and after its content, so that a chunk can be wrapped where it lies.
pub(super) fn leaf_wrapping(len: usize) -> (Vec<u8>, Vec<u8>) {
    let size = len as u64;
    let mut tail = vec![0x18];
    dagpb::put_varint(&mut tail, size);
    let mut inner = vec![0x08, DataType::File as u8];
    if len > 0 {
        inner.push(0x12);
        dagpb::put_varint(&mut inner, size);
    }
    let mut head = vec![0x0a];
    dagpb::put_varint(&mut head, (inner.len() + len + tail.len()) as u64);
    head.append(&mut inner);
    (head, tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_in_place_is_the_message() {
        for len in [0usize, 1, 127, 128, 16_383, 16_384, 262_144, 1 << 20] {
            let content = Bytes::from(vec![7u8; len]);
            let data = Data {
                kind: Some(DataType::File as i32),
                data: (len > 0).then(|| content.clone()),
                filesize: Some(len as u64),
                ..Data::default()
            };
            let (cid, block) = Profile::V0_2015.leaf(&content);
            assert_eq!(Profile::V0_2015.node(vec![], &data), (cid, block), "{len}");
            let (head, tail) = leaf_wrapping(len);
            assert!(head.len() <= MAX_LEAF_HEAD && tail.len() <= MAX_LEAF_TAIL);
        }
    }

    #[test]
    fn names_find_profiles() {
        for profile in Profile::ALL {
            assert_eq!(Profile::by_name(profile.name()), Some(profile));
        }
        assert_eq!(Profile::by_name("unixfs"), None);
    }

    #[test]
    fn hello_world() {
        let content = Bytes::from_static(b"hello world");
        let (v1, _) = Profile::V1_2025.leaf(&content);
        assert_eq!(v1.to_string(), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
        let (v0, _) = Profile::V0_2015.leaf(&content);
        assert_eq!(v0.to_string(), "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD");
    }
}
