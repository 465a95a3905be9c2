//! Paths through the values of a DAG.

use cid::Cid;

use super::{Codec, IpldError, Value, decode};
use crate::read::{self, ReadError};
use crate::{BlockSource, hash};

/// How names in dag-pb blocks are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// `/ipfs/CID/a/b`: names of directory entries and links first, then fields of the node.
    Files,
    /// `/ipld/CID/Links/0/Hash`: fields of the node alone.
    Data,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The last block on the path.
    pub cid: Cid,
    /// The rest of the path, inside that block; empty for the block itself.
    pub remainder: String,
}

/// Follows `path` from `root`, from block to block. A link at its end is followed, too.
///
/// # Errors
/// [`ReadError::Missing`] inside [`IpldError::Read`] names a block to be fetched before the path can be followed.
pub fn resolve(src: &dyn BlockSource, root: &Cid, path: &str, start: Start) -> Result<Resolved, IpldError> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let (mut cid, mut rest) = (*root, &segments[..]);
    while let Some(first) = rest.first() {
        if start == Start::Files
            && cid.codec() == hash::DAG_PB
            && let Some(child) = named(src, &cid, first)?
        {
            (cid, rest) = (child, &rest[1..]);
            continue;
        }
        let (used, value) = inside(&cid, load(src, &cid)?, rest)?;
        match value {
            Value::Link(link) => (cid, rest) = (*link, &rest[used..]),
            _ => return Ok(Resolved { cid, remainder: rest.join("/") }),
        }
    }
    Ok(Resolved { cid, remainder: String::new() })
}

/// The value that [`resolve`] found.
pub fn get(src: &dyn BlockSource, at: &Resolved) -> Result<Value, IpldError> {
    let segments: Vec<&str> = at.remainder.split('/').filter(|segment| !segment.is_empty()).collect();
    Ok(inside(&at.cid, load(src, &at.cid)?, &segments)?.1)
}

fn load(src: &dyn BlockSource, cid: &Cid) -> Result<Value, IpldError> {
    let codec = Codec::of(cid)?;
    let block = src.get(cid).map_err(ReadError::from)?.ok_or(ReadError::Missing(*cid))?;
    decode(codec, &block)
}

/// The child of a dag-pb block by the name of a directory entry or link; `None` if it has none of that name.
fn named(src: &dyn BlockSource, cid: &Cid, name: &str) -> Result<Option<Cid>, IpldError> {
    match read::resolve(src, cid, name) {
        Ok(child) => Ok(Some(child)),
        Err(ReadError::NotFound { .. } | ReadError::NotADirectory { .. }) => Ok(None),
        // A node that is no UnixFS has links with names all the same.
        Err(ReadError::UnixFs { .. }) => {
            let block = src.get(cid).map_err(ReadError::from)?.ok_or(ReadError::Missing(*cid))?;
            let node = crate::dagpb::PbNode::decode(&block)
                .map_err(|error| IpldError::Decode { codec: Codec::DagPb, detail: error.to_string() })?;
            Ok(node.links.iter().find(|link| link.name.as_deref() == Some(name)).map(|link| link.cid))
        }
        Err(error) => Err(error.into()),
    }
}

/// Goes down into a value as far as the first link; how many segments that took, and what is there.
fn inside(cid: &Cid, mut value: Value, segments: &[&str]) -> Result<(usize, Value), IpldError> {
    for (used, segment) in segments.iter().enumerate() {
        let nothing = |problem| IpldError::NoSuchPath { cid: *cid, segment: (*segment).to_owned(), problem };
        value = match value {
            Value::Link(_) => return Ok((used, value)),
            Value::Map(entries) => {
                let entry = entries.into_iter().find(|(name, _)| name == segment);
                entry.ok_or_else(|| nothing("the map there has no such name"))?.1
            }
            Value::List(values) => {
                let index = segment.parse::<usize>().map_err(|_| nothing("a list is indexed by numbers"))?;
                values.into_iter().nth(index).ok_or_else(|| nothing("the list there is shorter"))?
            }
            _ => return Err(nothing("what is there has no parts")),
        };
    }
    Ok((segments.len(), value))
}
