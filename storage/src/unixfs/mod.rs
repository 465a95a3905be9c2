//! UnixFS: files, directories and symlinks as dag-pb nodes.
//!
//! Source: the UnixFS specification of the IPFS project. [`Data`] is the protobuf message in a node's data
//! section; [`Node`] is a block understood: which kind it is, and its parts checked against each other (a file's
//! sizes against its links, a shard's fanout and bit field). The importer writes these through [`Data`], the
//! readers take blocks in through [`Node::decode`] only, so no reader sees a node whose parts disagree.

pub mod hamt;
mod murmur;

use bytes::Bytes;
use cid::Cid;
use prost::Message;

use crate::dagpb::{DagPbError, PbLink, PbNode};
use crate::hash;

/// Kinds of [`Data`], by their numbers on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum DataType {
    /// File bytes wrapped in the old way; written as leaves of trickle layouts alone, as Kubo does.
    Raw = 0,
    /// A directory in one block.
    Directory = 1,
    /// A file, or a part of one.
    File = 2,
    /// Reserved.
    Metadata = 3,
    /// A symbolic link.
    Symlink = 4,
    /// A shard of a large directory.
    HamtShard = 5,
}

/// The UnixFS message in the data section of a dag-pb node.
#[derive(Clone, PartialEq, Message)]
pub struct Data {
    /// A [`DataType`]; must be present.
    #[prost(enumeration = "DataType", optional, tag = "1")]
    pub kind: Option<i32>,
    /// File bytes, symlink target or shard bit field.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub data: Option<Bytes>,
    /// Content bytes of a file below this node, own bytes included.
    #[prost(uint64, optional, tag = "3")]
    pub filesize: Option<u64>,
    /// Content bytes below each link.
    #[prost(uint64, repeated, packed = "false", tag = "4")]
    pub blocksizes: Vec<u64>,
    /// Hash function of a shard: murmur3-x64-64.
    #[prost(uint64, optional, tag = "5")]
    pub hash_type: Option<u64>,
    /// Buckets of a shard.
    #[prost(uint64, optional, tag = "6")]
    pub fanout: Option<u64>,
    /// POSIX mode.
    #[prost(uint32, optional, tag = "7")]
    pub mode: Option<u32>,
    /// Time of last modification.
    #[prost(message, optional, tag = "8")]
    pub mtime: Option<UnixTime>,
}

/// A point in time in a UnixFS node.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct UnixTime {
    /// Seconds since 1970, negative before.
    #[prost(int64, optional, tag = "1")]
    pub seconds: Option<i64>,
    /// Nanoseconds, 1 to 999,999,999.
    #[prost(fixed32, optional, tag = "2")]
    pub nanoseconds: Option<u32>,
}

/// What a file system knows of an entry beside its content (UnixFS 1.5). Most nodes have none of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Metadata {
    /// POSIX permission bits, setuid, setgid and sticky included; 0 is not recorded.
    pub mode: Option<u32>,
    /// Time of last modification.
    pub mtime: Option<UnixTime>,
}

/// The bits of a mode that are recorded: permissions, setuid, setgid, sticky.
pub const MODE_BITS: u32 = 0o7777;

impl Metadata {
    /// Whether there is nothing to record.
    pub fn is_empty(&self) -> bool {
        self.mode.is_none() && self.mtime.is_none()
    }

    /// The given parts; a mode of 0 and nanoseconds of 0 are left out, as Kubo leaves them out.
    pub fn new(mode: Option<u32>, mtime: Option<(i64, u32)>) -> Metadata {
        Metadata {
            mode: mode.map(|mode| mode & MODE_BITS).filter(|mode| *mode != 0),
            mtime: mtime.map(|(seconds, nanoseconds)| UnixTime {
                seconds: Some(seconds),
                nanoseconds: (nanoseconds > 0).then_some(nanoseconds),
            }),
        }
    }
}

impl Data {
    /// The same node with these modes and times.
    pub fn with_metadata(self, metadata: &Metadata) -> Data {
        Data { mode: metadata.mode, mtime: metadata.mtime, ..self }
    }

    /// A directory in one block.
    pub fn directory() -> Data {
        Data { kind: Some(DataType::Directory as i32), ..Data::default() }
    }

    /// A symbolic link to `target`.
    pub fn symlink(target: Bytes) -> Data {
        Data { kind: Some(DataType::Symlink as i32), data: Some(target), ..Data::default() }
    }

    /// A file that lies in the links of its node, `blocksizes` content bytes below each.
    pub fn file(filesize: u64, blocksizes: Vec<u64>) -> Data {
        Data { kind: Some(DataType::File as i32), filesize: Some(filesize), blocksizes, ..Data::default() }
    }

    /// The message's bytes.
    pub fn to_bytes(&self) -> Bytes {
        Bytes::from(self.encode_to_vec())
    }
}

/// Why a block is not the UnixFS node it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnixFsError {
    /// Not even dag-pb.
    #[error(transparent)]
    DagPb(#[from] DagPbError),
    /// A codec that UnixFS does not use.
    #[error("codec {0:#x} is neither raw nor dag-pb, so this is no file or directory")]
    Codec(u64),
    /// The data section is absent or no UnixFS message.
    #[error("no UnixFS data in the node: {0}")]
    NoData(String),
    /// The node's parts contradict each other.
    #[error("malformed UnixFS node: {0}")]
    Malformed(&'static str),
}

/// A part of a file: a link and the content bytes below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilePart {
    /// The part's root.
    pub cid: Cid,
    /// Content bytes below it.
    pub size: u64,
}

/// A file node: its own bytes first, then its parts in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileNode {
    /// Content bytes in the node itself.
    pub inline: Bytes,
    /// What follows.
    pub parts: Vec<FilePart>,
    /// Content bytes in all.
    pub size: u64,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirLink {
    /// Its name: one path component.
    pub name: String,
    /// Its root.
    pub cid: Cid,
    /// Cumulative size in bytes of its DAG, as the directory's writer claimed; 0 when not given.
    pub tsize: u64,
}

/// A UnixFS block, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A file or a part of one.
    File(FileNode),
    /// A directory in one block, in wire order.
    Directory(Vec<DirLink>),
    /// A shard of a large directory.
    Shard(hamt::Shard),
    /// A symbolic link and its target.
    Symlink(Bytes),
}

impl Node {
    /// Understands the block of `cid`.
    pub fn decode(cid: &Cid, block: &Bytes) -> Result<Node, UnixFsError> {
        match cid.codec() {
            hash::RAW => Ok(Node::File(FileNode {
                inline: block.clone(),
                parts: Vec::new(),
                size: block.len() as u64,
            })),
            hash::DAG_PB => {
                let (data, links) = open_dag_pb(block)?;
                decode_dag_pb(data, links)
            }
            codec => Err(UnixFsError::Codec(codec)),
        }
    }

    /// [`decode`](Self::decode), with the mode and time that the block records. Raw blocks record none.
    pub fn decode_with_metadata(cid: &Cid, block: &Bytes) -> Result<(Node, Metadata), UnixFsError> {
        if cid.codec() != hash::DAG_PB {
            return Ok((Node::decode(cid, block)?, Metadata::default()));
        }
        let (data, links) = open_dag_pb(block)?;
        let metadata = metadata_of(&data)?;
        Ok((decode_dag_pb(data, links)?, metadata))
    }
}

/// The UnixFS message and the links of a dag-pb block.
fn open_dag_pb(block: &Bytes) -> Result<(Data, Vec<PbLink>), UnixFsError> {
    let node = PbNode::decode(block)?;
    let bytes = node.data.ok_or_else(|| UnixFsError::NoData("the data section is missing".into()))?;
    let data = Data::decode(bytes).map_err(|error| UnixFsError::NoData(error.to_string()))?;
    Ok((data, node.links))
}

fn metadata_of(data: &Data) -> Result<Metadata, UnixFsError> {
    let mtime = match data.mtime {
        None => None,
        Some(UnixTime { seconds: None, .. }) => {
            return Err(UnixFsError::Malformed("a time without seconds"));
        }
        Some(UnixTime { nanoseconds: Some(1_000_000_000..), .. }) => {
            return Err(UnixFsError::Malformed("a time with more than 999,999,999 nanoseconds"));
        }
        Some(UnixTime { seconds: Some(seconds), nanoseconds }) => Some((seconds, nanoseconds.unwrap_or(0))),
    };
    Ok(Metadata::new(data.mode, mtime))
}

fn decode_dag_pb(data: Data, links: Vec<PbLink>) -> Result<Node, UnixFsError> {
    let kind = data.kind.ok_or_else(|| UnixFsError::NoData("the type is missing".into()))?;
    match DataType::try_from(kind) {
        Ok(DataType::File | DataType::Raw) => file_node(data, links).map(Node::File),
        Ok(DataType::Directory) => {
            let entries = links.into_iter().map(|link| DirLink {
                name: link.name.unwrap_or_default(),
                cid: link.cid,
                tsize: link.tsize.unwrap_or(0),
            });
            Ok(Node::Directory(entries.collect()))
        }
        Ok(DataType::HamtShard) => hamt::Shard::new(&data, links).map(Node::Shard),
        Ok(DataType::Symlink) if links.is_empty() => Ok(Node::Symlink(data.data.unwrap_or_default())),
        Ok(DataType::Symlink) => Err(UnixFsError::Malformed("a symlink with links")),
        Ok(DataType::Metadata) => Err(UnixFsError::Malformed("metadata nodes have no content")),
        Err(_) => Err(UnixFsError::Malformed("unknown type")),
    }
}

fn file_node(data: Data, links: Vec<PbLink>) -> Result<FileNode, UnixFsError> {
    if links.len() != data.blocksizes.len() {
        return Err(UnixFsError::Malformed("a file's sizes do not match its links in number"));
    }
    let inline = data.data.unwrap_or_default();
    let mut size = inline.len() as u64;
    let mut parts = Vec::with_capacity(links.len());
    for (link, part) in links.into_iter().zip(data.blocksizes) {
        if link.name.is_some_and(|name| !name.is_empty()) {
            return Err(UnixFsError::Malformed("a part of a file has a name"));
        }
        size = size.checked_add(part).ok_or(UnixFsError::Malformed("a file over 2^64 bytes"))?;
        parts.push(FilePart { cid: link.cid, size: part });
    }
    if data.filesize.unwrap_or(0) != size {
        return Err(UnixFsError::Malformed("a file's size is not the sum of its parts"));
    }
    Ok(FileNode { inline, parts, size })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pb(data: &Data) -> (Cid, Bytes) {
        let block = PbNode { links: vec![], data: Some(data.to_bytes()) }.encode();
        (hash::cid_v1(hash::DAG_PB, &block), block)
    }

    #[test]
    fn well_known_nodes() {
        let (cid, block) = pb(&Data::directory());
        assert_eq!(cid.to_string(), "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354");
        assert_eq!(
            Cid::new_v0(*cid.hash()).unwrap().to_string(),
            "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
        );
        assert_eq!(Node::decode(&cid, &block), Ok(Node::Directory(vec![])));

        let inlined: Cid = "bafyaabakaieac".parse().unwrap();
        let block = Bytes::copy_from_slice(hash::inline(&inlined).unwrap());
        assert_eq!(Node::decode(&inlined, &block), Ok(Node::Directory(vec![])));

        let (cid, block) = pb(&Data::file(0, vec![]));
        assert_eq!(cid.to_string(), "bafybeif7ztnhq65lumvvtr4ekcwd2ifwgm3awq4zfr3srh462rwyinlb4y");
        assert!(matches!(Node::decode(&cid, &block), Ok(Node::File(FileNode { size: 0, .. }))));

        let (cid, block) = pb(&Data::symlink(Bytes::from_static(b"foo")));
        assert_eq!(block.len(), 9);
        assert_eq!(
            Cid::new_v0(*cid.hash()).unwrap().to_string(),
            "QmTB8BaCJdCH5H3k7GrxJsxgDNmNYGGR71C58ERkivXoj5"
        );
        assert_eq!(Node::decode(&cid, &block), Ok(Node::Symlink(Bytes::from_static(b"foo"))));
    }

    #[test]
    fn a_single_block_file_in_dag_pb() {
        let content = Bytes::from_static(b"Hello from IPFS Gateway Checker\n");
        let data = Data {
            kind: Some(DataType::File as i32),
            data: Some(content.clone()),
            filesize: Some(32),
            ..Data::default()
        };
        let (cid, block) = pb(&data);
        assert_eq!(block.len(), 40);
        assert_eq!(cid.to_string(), "bafybeifx7yeb55armcsxwwitkymga5xf53dxiarykms3ygqic223w5sk3m");
        assert_eq!(
            Node::decode(&cid, &block),
            Ok(Node::File(FileNode { inline: content, parts: vec![], size: 32 }))
        );
    }

    /// The invalid vectors of the specification's appendix, and parts that contradict each other.
    #[test]
    fn invalid_nodes_are_refused() {
        for hex in [
            "",
            "0a00",
            "12240a2212207521fe19c374a97759226dc5c0c8e674e73950e81b211f7dd3b6b30883a08a51",
            "0a050001020304",
            "120b0a09015500050001020304",
            "12160a090155000500010203041209736f6d65206e616d65",
            "120d0a090155000500010203041200",
            "12140a0901550005000102030418ffffffffffffff0f",
            "120d0a090155000500010203041800",
            "0a03010203",
            "120b0a0901550005000102030412100a09015500050001020304120362617212100a090155000500010203041203666f6f",
            "120e0a09015500050001020304120161120e0a09015500050001020304120161",
        ] {
            let block = Bytes::from(hex::decode(hex).unwrap());
            let cid = hash::cid_v1(hash::DAG_PB, &block);
            assert!(Node::decode(&cid, &block).is_err(), "{hex}");
        }
        for data in [
            Data { kind: None, ..Data::directory() },
            Data { kind: Some(9), ..Data::directory() },
            Data::file(1, vec![]),
            Data::file(1, vec![1]),
            Data { kind: Some(DataType::Metadata as i32), ..Data::default() },
        ] {
            let (cid, block) = pb(&data);
            assert!(Node::decode(&cid, &block).is_err(), "{data:?}");
        }
        let cid = hash::cid_v1(hash::DAG_CBOR, b"");
        assert_eq!(Node::decode(&cid, &Bytes::new()), Err(UnixFsError::Codec(hash::DAG_CBOR)));
    }
}
