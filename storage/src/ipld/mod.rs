//! Blocks as values of the IPLD data model: what `btfs dag put`, `get` and `resolve` work on.
//!
//! Source: the IPLD data model and the specifications of its codecs, <https://ipld.io/specs/>. Four codecs are known:
//! raw, dag-pb, dag-cbor and dag-json. [`decode`] and [`encode`] translate between a block's bytes and a [`Value`];
//! [`resolve`] follows a path through the values of a DAG, from block to block.
//!
//! What is written is always the one deterministic form of a value: sorted keys, shortest numbers, no white space.
//! dag-cbor that is not in that form is refused when read, since its CID could not be computed again from its value.
//! dag-json is what people write by hand, so white space and order are free on the way in. dag-pb is read by
//! [`crate::dagpb`], and links are sorted by name when a value becomes a node, as Kubo does it.
//!
//! dag-cbor is decoded by `serde_ipld_dagcbor`. dag-json is decoded here: `serde_ipld_dagjson` 0.2 goes through a JSON
//! reader that turns integers over 64 bits into floats without a word, keeps the last of two equal keys, and writes a
//! map with the reserved key `/` such that it reads back as a link.
//!
//! A block is foreign input. A value costs more memory than its bytes, up to thirty times as much for a list of zeros;
//! decoding stops with an error at [`MAX_VALUE_MEMORY`].

mod json;
mod path;
mod pb;
#[cfg(test)]
mod tests;
mod value;

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use cid::Cid;

pub use path::{Resolved, Start, get, resolve};
pub use value::Value;

use crate::hash;
use crate::read::ReadError;
use value::Budget;

/// Memory that a decoded value may take, in bytes, its growth while it is built included. Half a million list elements
/// or map entries; blocks of real programs stay far below.
pub const MAX_VALUE_MEMORY: usize = 48 << 20;
/// Values inside values, at most: readers recurse, and no sensible data is as deep. The dag-cbor library ends at 128,
/// tags included.
const MAX_DEPTH: usize = 120;
/// What is said of more.
const TOO_DEEP: &str = "values inside values too deep";

/// How a value becomes the bytes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Bytes as they are.
    Raw,
    /// The nodes of UnixFS.
    DagPb,
    /// CBOR in deterministic form, with links.
    DagCbor,
    /// JSON with links and bytes.
    DagJson,
}

impl Codec {
    /// Every codec.
    pub const ALL: [Codec; 4] = [Codec::Raw, Codec::DagPb, Codec::DagCbor, Codec::DagJson];

    /// Its multicodec number.
    pub fn code(self) -> u64 {
        match self {
            Codec::Raw => hash::RAW,
            Codec::DagPb => hash::DAG_PB,
            Codec::DagCbor => hash::DAG_CBOR,
            Codec::DagJson => hash::DAG_JSON,
        }
    }

    /// The codec of a CID.
    pub fn of(cid: &Cid) -> Result<Codec, IpldError> {
        Self::ALL
            .into_iter()
            .find(|codec| codec.code() == cid.codec())
            .ok_or_else(|| IpldError::UnknownCodec(format!("{:#x} of {cid}", cid.codec())))
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Codec::Raw => "raw",
            Codec::DagPb => "dag-pb",
            Codec::DagCbor => "dag-cbor",
            Codec::DagJson => "dag-json",
        })
    }
}

impl FromStr for Codec {
    type Err = IpldError;

    /// By its multicodec name.
    fn from_str(name: &str) -> Result<Codec, IpldError> {
        let codec = Self::ALL.into_iter().find(|codec| codec.to_string() == name);
        codec.ok_or_else(|| IpldError::UnknownCodec(format!("`{name}`")))
    }
}

/// Why a value was not read, written or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IpldError {
    /// A codec that has no decoder here.
    #[error("codec {0} is not known here; raw, dag-pb, dag-cbor and dag-json are")]
    UnknownCodec(String),
    /// Bytes that are not in the codec's form.
    #[error("not {codec}: {detail}")]
    Decode {
        /// What they should be.
        codec: Codec,
        /// What is wrong.
        detail: String,
    },
    /// A value that the codec cannot hold.
    #[error("{codec} cannot hold this value: {detail}")]
    Encode {
        /// The codec.
        codec: Codec,
        /// What does not fit.
        detail: String,
    },
    /// A path that leads nowhere.
    #[error("there is no {segment:?} in {cid}: {problem}")]
    NoSuchPath {
        /// The block in which it ended.
        cid: Cid,
        /// The segment that was not found.
        segment: String,
        /// Why.
        problem: &'static str,
    },
    /// A block on the way could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// The value that a block's bytes stand for.
pub fn decode(codec: Codec, block: &Bytes) -> Result<Value, IpldError> {
    let error = |detail: String| IpldError::Decode { codec, detail };
    let budget = Budget::new(MAX_VALUE_MEMORY);
    match codec {
        Codec::Raw => Ok(Value::Bytes(block.to_vec())),
        Codec::DagPb => pb::decode(block, &budget).map_err(error),
        Codec::DagCbor => value::from_cbor(block, &budget).map_err(error),
        Codec::DagJson => json::decode(block, &budget).map_err(error),
    }
}

/// The bytes of a value in the codec's one deterministic form.
pub fn encode(codec: Codec, value: &Value) -> Result<Bytes, IpldError> {
    let error = |detail: String| IpldError::Encode { codec, detail };
    match (codec, value) {
        (Codec::Raw, Value::Bytes(bytes)) => Ok(Bytes::copy_from_slice(bytes)),
        (Codec::Raw, other) => Err(error(format!("it is a {}, not bytes", other.kind()))),
        (Codec::DagPb, value) => pb::encode(value).map_err(error),
        (Codec::DagCbor, value) => value::to_cbor(value).map_err(error),
        (Codec::DagJson, value) => json::encode(value).map_err(error),
    }
}

/// The CIDs in a dag-json block, in the order of its text.
pub(crate) fn json_links(block: &[u8]) -> Result<Vec<Cid>, String> {
    let value = json::decode(block, &Budget::new(MAX_VALUE_MEMORY))?;
    let mut links = Vec::new();
    value.links(&mut links);
    Ok(links)
}
