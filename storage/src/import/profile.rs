//! The parameters that a CID depends on.

use bytes::Bytes;
use cid::Cid;
use multihash::Multihash;

use super::chunker::{Chunker, ChunkerError};
use crate::dagpb::{self, PbLink, PbNode};
use crate::hash::{self, Function};
use crate::unixfs::{Data, DataType, DirLink, Metadata, hamt};

/// A directory whose size, as its profile estimates it, is above this becomes a trie of shards: 256 KiB.
const SHARD_THRESHOLD: usize = 256 << 10;
/// Most links of a file's node: with the longest numbers each takes 64 bytes of the block, half of what one holds.
const MAX_FILE_LINKS: usize = 16_384;
/// Most entries that a limit on a directory in one block may name; the size decides long before.
const MAX_DIRECTORY_LINKS: usize = 1 << 20;
/// Longest block that can lie in its own CID, in bytes. Kubo reads up to 128, older programs fewer.
const MAX_INLINE: usize = hash::MAX_DIGEST;

/// How a directory's size is estimated before it is compared with the threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DirectorySize {
    /// Length of its block.
    Block,
    /// Lengths of names and CIDs only.
    Links,
}

/// How the leaves of a file are tied together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Every leaf at the same depth: reading anywhere costs the same.
    Balanced,
    /// First leaves near the root, deeper and deeper subtrees after them: made for reading from the start.
    Trickle,
}

/// The parameters that a CID depends on: a named set (source: IPIP-499), or one with [`Overrides`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    name: &'static str,
    chunker: Chunker,
    layout: Layout,
    links_per_node: usize,
    raw_leaves: bool,
    /// Never with another function than SHA2-256.
    cid_v0: bool,
    /// What blocks are named by.
    function: Function,
    /// Blocks of up to this many bytes lie in their own CIDs; `None`: no block does.
    inline: Option<usize>,
    directory_size: DirectorySize,
    /// Entries above which a directory is sharded whatever its size.
    directory_links: Option<usize>,
    /// Buckets of a shard.
    fanout: u32,
}

/// What is asked for in place of a profile's own values; `None` keeps them. The names are those of Kubo's options.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overrides {
    /// How files are cut.
    pub chunker: Option<Chunker>,
    /// How leaves are tied together.
    pub layout: Option<Layout>,
    /// 0 or 1. Without a word on leaves, 1 makes them raw and 0 dag-pb.
    pub cid_version: Option<u8>,
    /// What blocks are named by. Another function than SHA2-256 means version 1.
    pub function: Option<Function>,
    /// Whether leaf blocks are the content itself.
    pub raw_leaves: Option<bool>,
    /// Blocks of up to so many bytes go into their CIDs.
    pub inline: Option<usize>,
    /// Most links of a file's node.
    pub max_file_links: Option<usize>,
    /// Most entries of a directory in one block.
    pub max_directory_links: Option<usize>,
    /// Buckets of a shard of a large directory.
    pub max_hamt_fanout: Option<u32>,
    /// Modes or times are recorded, which only dag-pb has room for: leaves are not raw unless that is asked for.
    pub metadata: bool,
}

/// Why parameters cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// No such CID version.
    #[error("there is no CID version {0}; there are 0 and 1")]
    CidVersion(u8),
    /// CIDv0 does not say which hash function it has.
    #[error(
        "CIDs of version 0 are by sha2-256 alone, not by {0}: take version 1, or leave one of the two out"
    )]
    HashVersion(Function),
    /// A number out of its range.
    #[error("{what} of {value} cannot be; it must be {range}")]
    Range {
        /// Which number.
        what: &'static str,
        /// What was asked for.
        value: usize,
        /// What it may be.
        range: &'static str,
    },
    /// Numbers of a chunker that cannot be.
    #[error(transparent)]
    Chunker(#[from] ChunkerError),
    /// Raw leaves have no room for modes and times.
    #[error("raw leaves cannot record modes or times of modification: leave one of the two out")]
    RawMetadata,
}

impl Profile {
    /// `unixfs-v1-2025`, the default: CIDv1, 1 MiB raw leaves, 1024 links a node.
    pub const V1_2025: Profile = Profile {
        name: "unixfs-v1-2025",
        chunker: Chunker::Size(1 << 20),
        layout: Layout::Balanced,
        links_per_node: 1024,
        raw_leaves: true,
        cid_v0: false,
        function: Function::SHA2_256,
        inline: None,
        directory_size: DirectorySize::Block,
        directory_links: None,
        fanout: hamt::FANOUT,
    };

    /// `unixfs-v0-2015`: CIDv0, 256 KiB leaves in dag-pb, 174 links a node, as Kubo up to 0.39.
    pub const V0_2015: Profile = Profile {
        name: "unixfs-v0-2015",
        chunker: Chunker::Size(256 << 10),
        links_per_node: 174,
        raw_leaves: false,
        cid_v0: true,
        directory_size: DirectorySize::Links,
        ..Profile::V1_2025
    };

    /// Every named profile, the default first.
    pub const ALL: [Profile; 2] = [Profile::V1_2025, Profile::V0_2015];

    /// The profile of that name.
    pub fn by_name(name: &str) -> Option<Profile> {
        Self::ALL.into_iter().find(|profile| profile.name == name)
    }

    /// This profile with other values here and there.
    pub fn with(mut self, overrides: &Overrides) -> Result<Profile, ProfileError> {
        self.function = overrides.function.unwrap_or(self.function);
        let is_foreign = self.function != Function::SHA2_256;
        if is_foreign && overrides.cid_version == Some(0) {
            return Err(ProfileError::HashVersion(self.function));
        }
        if let Some(version) = overrides.cid_version.or(is_foreign.then_some(1)) {
            if version > 1 {
                return Err(ProfileError::CidVersion(version));
            }
            self.cid_v0 = version == 0;
            self.raw_leaves = version == 1;
        }
        if overrides.metadata {
            if overrides.raw_leaves == Some(true) {
                return Err(ProfileError::RawMetadata);
            }
            self.raw_leaves = false;
        }
        self.raw_leaves = overrides.raw_leaves.unwrap_or(self.raw_leaves);
        self.chunker = overrides.chunker.map_or(Ok(self.chunker), Chunker::checked)?;
        self.layout = overrides.layout.unwrap_or(self.layout);
        if let Some(limit) = overrides.inline {
            self.inline = Some(within("an inline limit", limit, 0..=MAX_INLINE, "at most 64 bytes")?);
        }
        if let Some(links) = overrides.max_file_links {
            self.links_per_node =
                within("a number of links in a file's node", links, 2..=MAX_FILE_LINKS, "from 2 to 16384")?;
        }
        if let Some(links) = overrides.max_directory_links {
            let range = 1..=MAX_DIRECTORY_LINKS;
            self.directory_links =
                Some(within("a number of entries in a directory", links, range, "from 1 to 1048576")?);
        }
        if let Some(fanout) = overrides.max_hamt_fanout {
            if !hamt::fanout_is_valid(fanout) {
                let range = "a power of two from 8 to 1024";
                return Err(ProfileError::Range { what: "a fanout", value: fanout as usize, range });
            }
            self.fanout = fanout;
        }
        Ok(self)
    }

    /// The profile that new nodes beside `node` are made by: that of its CID version, with its hash function.
    pub(super) fn beside(node: &Cid) -> Profile {
        match node.version() {
            cid::Version::V0 => Profile::V0_2015,
            cid::Version::V1 => {
                let function = hash::function(node).unwrap_or(Function::SHA2_256);
                Profile { function, ..Profile::V1_2025 }
            }
        }
    }

    /// A profile of small numbers, so that tests reach deep DAGs with few bytes.
    #[cfg(test)]
    pub(crate) fn tiny(chunk: usize, links_per_node: usize, base: Profile) -> Profile {
        Profile { name: "tiny", chunker: Chunker::Size(chunk as u32), links_per_node, ..base }
    }

    /// Its name; `custom` if anything differs from a named profile.
    pub fn name(&self) -> &'static str {
        if Self::ALL.contains(self) { self.name } else { "custom" }
    }

    /// How files are cut.
    pub fn chunker(&self) -> Chunker {
        self.chunker
    }

    /// Content bytes of the longest leaf.
    pub fn chunk_size(&self) -> usize {
        self.chunker.max()
    }

    /// How leaves are tied together.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Links of a full file node; in a trickle layout, its leaves.
    pub fn links_per_node(&self) -> usize {
        self.links_per_node
    }

    /// Whether a leaf block is the content itself.
    pub fn raw_leaves(&self) -> bool {
        self.raw_leaves
    }

    /// What blocks are named by.
    pub fn function(&self) -> Function {
        self.function
    }

    /// Leaves that are hashed at once: as many as the processor can, if it can with this function.
    pub(super) fn leaves_at_once(&self) -> usize {
        if self.function == Function::SHA2_256 { hash::lanes() } else { 1 }
    }

    /// Buckets of a shard of a large directory.
    pub(super) fn fanout(&self) -> u32 {
        self.fanout
    }

    /// The leaf block of `content` and its CID. `content` may be at most [`chunk_size`](Self::chunk_size) bytes.
    pub fn leaf(&self, content: &Bytes) -> (Cid, Bytes) {
        let block = self.leaf_block(content);
        (self.leaf_cid(&block), block)
    }

    /// The leaf block of `content`.
    pub(super) fn leaf_block(&self, content: &Bytes) -> Bytes {
        if self.raw_leaves {
            content.clone()
        } else {
            let (head, tail) = self.leaf_wrapping(content.len());
            Bytes::from([&head[..], content, &tail[..]].concat())
        }
    }

    /// The CID of a leaf block.
    pub(super) fn leaf_cid(&self, block: &[u8]) -> Cid {
        if self.raw_leaves { self.named(hash::RAW, block, None) } else { self.node_cid(block) }
    }

    /// The CIDs of leaf blocks, which are hashed at once where the processor can.
    pub(super) fn leaf_cids(&self, blocks: &[Bytes]) -> Vec<Cid> {
        if self.function != Function::SHA2_256 {
            return blocks.iter().map(|block| self.leaf_cid(block)).collect();
        }
        let codec = if self.raw_leaves { hash::RAW } else { hash::DAG_PB };
        let messages: Vec<&[u8]> = blocks.iter().map(|block| &block[..]).collect();
        let digests = hash::sha256_all(&messages);
        messages.iter().zip(&digests).map(|(block, digest)| self.named(codec, block, Some(digest))).collect()
    }

    /// The CID of a dag-pb block.
    pub(super) fn node_cid(&self, block: &[u8]) -> Cid {
        self.named(hash::DAG_PB, block, None)
    }

    /// The CID of a block, whose SHA2-256 may be known if that is what names it.
    fn named(&self, codec: u64, block: &[u8], digest: Option<&[u8; 32]>) -> Cid {
        if self.inlines(block) {
            return hash::cid_from_digest(codec, hash::IDENTITY, block);
        }
        let hash = match digest {
            Some(digest) => Multihash::wrap(hash::SHA2_256, digest).expect("32 bytes fit a multihash"),
            None => self.function.multihash(block),
        };
        if self.cid_v0 && codec == hash::DAG_PB {
            return Cid::new_v0(hash).expect("sha2-256 of 32 bytes is what CIDv0 takes");
        }
        Cid::new_v1(codec, hash)
    }

    fn inlines(&self, block: &[u8]) -> bool {
        self.inline.is_some_and(|limit| block.len() <= limit)
    }

    /// The block of a dag-pb node and its CID.
    pub(super) fn node(&self, links: Vec<PbLink>, data: &Data) -> (Cid, Bytes) {
        let block = PbNode { links, data: Some(data.to_bytes()) }.encode();
        (self.node_cid(&block), block)
    }

    /// Whether a directory of these entries is written as a trie of shards.
    pub(super) fn shards(&self, entries: &[DirLink], metadata: &Metadata) -> bool {
        if self.directory_links.is_some_and(|most| entries.len() > most) {
            return true;
        }
        let mut room = self.directory_room(metadata);
        entries.iter().any(|entry| match room.checked_sub(self.entry_size(entry)) {
            Some(left) => {
                room = left;
                false
            }
            None => true,
        })
    }

    /// What the entries of a directory may measure, as [`entry_size`](Self::entry_size) measures them, before it is
    /// sharded.
    pub(super) fn directory_room(&self, metadata: &Metadata) -> usize {
        match self.directory_size {
            DirectorySize::Links => SHARD_THRESHOLD,
            DirectorySize::Block => {
                let data = Data::directory().with_metadata(metadata);
                SHARD_THRESHOLD - PbNode { links: Vec::new(), data: Some(data.to_bytes()) }.encoded_len()
            }
        }
    }

    /// What an entry adds to a directory's size.
    pub(super) fn entry_size(&self, entry: &DirLink) -> usize {
        match self.directory_size {
            DirectorySize::Links => entry.name.len() + entry.cid.encoded_len(),
            DirectorySize::Block => dagpb::encoded_link_len(entry.name.len(), &entry.cid, entry.tsize),
        }
    }

    /// The bytes of a dag-pb leaf before and after its content, so that a chunk can be wrapped where it lies.
    pub(super) fn leaf_wrapping(&self, len: usize) -> (Vec<u8>, Vec<u8>) {
        // As Kubo has it: the leaves of a trickle layout are of the old kind.
        let kind = match self.layout {
            Layout::Balanced => DataType::File,
            Layout::Trickle => DataType::Raw,
        };
        let size = len as u64;
        let mut tail = vec![0x18];
        dagpb::put_varint(&mut tail, size);
        let mut inner = vec![0x08, kind as u8];
        if len > 0 {
            inner.push(0x12);
            dagpb::put_varint(&mut inner, size);
        }
        let mut head = vec![0x0a];
        dagpb::put_varint(&mut head, (inner.len() + len + tail.len()) as u64);
        head.append(&mut inner);
        (head, tail)
    }
}

/// `value`, if it lies in its range.
fn within(
    what: &'static str,
    value: usize,
    allowed: std::ops::RangeInclusive<usize>,
    range: &'static str,
) -> Result<usize, ProfileError> {
    if allowed.contains(&value) { Ok(value) } else { Err(ProfileError::Range { what, value, range }) }
}

/// Most bytes that [`Profile::leaf_wrapping`] puts before the content: two keys, two lengths, the type.
pub(super) const MAX_LEAF_HEAD: usize = 16;
/// Most bytes that it puts after: a key and a length.
pub(super) const MAX_LEAF_TAIL: usize = 8;

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
            let (head, tail) = Profile::V0_2015.leaf_wrapping(len);
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
