//! The dag-pb codec, and the children of a block of any codec known here.
//!
//! Source: the IPLD dag-pb specification. [`PbNode::encode`] writes the canonical bytes (links before data, link
//! fields in order). Decoding is strict: unknown fields, wrong wire types, repeated or interleaved sections and
//! links without a CID are refused, and nothing is allocated beyond what the block's own length allows.
//!
//! [`links`] is what pins, walks and collection use; it cares for CIDs only, so that a third party's node with a
//! name that is not UTF-8 can still be kept.

use bytes::Bytes;
use cid::Cid;
use ipld_core::codec::Links;
use serde_ipld_dagcbor::codec::DagCborCodec;

use crate::{MAX_BLOCK, hash};

/// Field key of a node's links (field 2, length-delimited).
const NODE_LINKS: u8 = 0x12;
/// Field key of a node's data (field 1, length-delimited).
const NODE_DATA: u8 = 0x0a;
/// Field key of a link's CID (field 1, length-delimited).
const LINK_HASH: u8 = 0x0a;
/// Field key of a link's name (field 2, length-delimited).
const LINK_NAME: u8 = 0x12;
/// Field key of a link's cumulative size (field 3, varint).
const LINK_TSIZE: u8 = 0x18;

/// Why bytes are not a dag-pb node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a dag-pb node: {0}")]
pub struct DagPbError(&'static str);

/// Why the children of a block are not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinksError {
    /// A dag-pb block that does not decode.
    #[error(transparent)]
    DagPb(#[from] DagPbError),
    /// A DAG-CBOR block that does not decode.
    #[error("not a DAG-CBOR node: {0}")]
    DagCbor(String),
    /// A DAG-JSON block that does not decode.
    #[error("not a DAG-JSON node: {0}")]
    DagJson(String),
    /// A codec whose links are not understood here, so that what it refers to cannot be kept or walked.
    #[error("codec {0:#x} is not understood here, so its links are unknown")]
    Codec(u64),
}

/// A link of a dag-pb node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PbLink {
    /// What it points to.
    pub cid: Cid,
    /// Its name; links of a file have an empty one.
    pub name: Option<String>,
    /// Cumulative size in bytes of the DAG it points to, as its writer claimed.
    pub tsize: Option<u64>,
}

/// A dag-pb node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PbNode {
    /// Links in wire order.
    pub links: Vec<PbLink>,
    /// The data section; UnixFS keeps its own message there.
    pub data: Option<Bytes>,
}

impl PbNode {
    /// Decodes a block. The data section shares memory with `block`.
    pub fn decode(block: &Bytes) -> Result<PbNode, DagPbError> {
        let mut links = Vec::new();
        let data = visit_node(block, &mut |link| {
            let name = match link.name {
                Some(name) => Some(
                    std::str::from_utf8(name)
                        .map_err(|_| DagPbError("a link's name is not UTF-8"))?
                        .to_owned(),
                ),
                None => None,
            };
            links.push(PbLink { cid: link.cid, name, tsize: link.tsize });
            Ok(())
        })?;
        Ok(PbNode { links, data: data.map(|data| block.slice_ref(data)) })
    }

    /// The canonical bytes of this node; links are written in the order given.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.encoded_len());
        for link in &self.links {
            out.push(NODE_LINKS);
            put_varint(&mut out, link_len(link) as u64);
            put_link(&mut out, link);
        }
        if let Some(data) = &self.data {
            out.push(NODE_DATA);
            put_varint(&mut out, data.len() as u64);
            out.extend_from_slice(data);
        }
        Bytes::from(out)
    }

    /// Length of [`encode`](Self::encode) in bytes, without encoding.
    pub fn encoded_len(&self) -> usize {
        let links: usize = self.links.iter().map(|link| section_len(link_len(link))).sum();
        links + self.data.as_ref().map_or(0, |data| section_len(data.len()))
    }
}

/// Bytes that one link with these parts adds to a node.
pub fn encoded_link_len(name_len: usize, cid: &Cid, tsize: u64) -> usize {
    section_len(section_len(cid.encoded_len()) + section_len(name_len) + 1 + varint_len(tsize))
}

/// The CIDs that a block refers to, in order, repetitions included.
///
/// dag-pb, DAG-CBOR and DAG-JSON are looked into; raw blocks and torrent info dicts refer to nothing.
pub fn links(cid: &Cid, data: &[u8]) -> Result<Vec<Cid>, LinksError> {
    match cid.codec() {
        hash::RAW | hash::TORRENT_INFO => Ok(Vec::new()),
        hash::DAG_PB => {
            let mut links = Vec::new();
            visit_node(data, &mut |link| {
                links.push(link.cid);
                Ok(())
            })?;
            Ok(links)
        }
        hash::DAG_CBOR => {
            let links = DagCborCodec::links(data).map_err(|error| LinksError::DagCbor(error.to_string()))?;
            Ok(links.collect())
        }
        hash::DAG_JSON => crate::ipld::json_links(data).map_err(LinksError::DagJson),
        codec => Err(LinksError::Codec(codec)),
    }
}

/// Length of `value` as a varint, in bytes.
pub(crate) fn varint_len(value: u64) -> usize {
    let bits = (64 - value.leading_zeros()).max(1) as usize;
    bits.div_ceil(7)
}

/// Appends `value` as a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Length of a length-delimited field with a one-byte key.
fn section_len(content: usize) -> usize {
    1 + varint_len(content as u64) + content
}

/// Length of a link's own bytes, without key and length.
fn link_len(link: &PbLink) -> usize {
    section_len(link.cid.encoded_len())
        + link.name.as_ref().map_or(0, |name| section_len(name.len()))
        + link.tsize.map_or(0, |tsize| 1 + varint_len(tsize))
}

fn put_link(out: &mut Vec<u8>, link: &PbLink) {
    let cid = link.cid.to_bytes();
    out.push(LINK_HASH);
    put_varint(out, cid.len() as u64);
    out.extend_from_slice(&cid);
    if let Some(name) = &link.name {
        out.push(LINK_NAME);
        put_varint(out, name.len() as u64);
        out.extend_from_slice(name.as_bytes());
    }
    if let Some(tsize) = link.tsize {
        out.push(LINK_TSIZE);
        put_varint(out, tsize);
    }
}

/// A link as it lies in the block.
struct RawLink<'a> {
    cid: Cid,
    name: Option<&'a [u8]>,
    tsize: Option<u64>,
}

/// Takes a node apart: every link goes to `each`, the data section is returned.
fn visit_node<'a>(
    mut block: &'a [u8],
    each: &mut dyn FnMut(RawLink<'a>) -> Result<(), DagPbError>,
) -> Result<Option<&'a [u8]>, DagPbError> {
    if block.len() > MAX_BLOCK {
        return Err(DagPbError("larger than a block may be"));
    }
    let mut data = None;
    // The specification writes links first, but readers accept the data first; only interleaving is refused.
    let mut links_seen = false;
    let mut links_closed = false;
    while let Some(key) = take_byte(&mut block) {
        match key {
            NODE_DATA => {
                if data.is_some() {
                    return Err(DagPbError("two data sections"));
                }
                data = Some(take_section(&mut block)?);
                links_closed = links_seen;
            }
            NODE_LINKS => {
                if links_closed {
                    return Err(DagPbError("links both before and after the data"));
                }
                links_seen = true;
                each(read_link(take_section(&mut block)?)?)?;
            }
            _ => return Err(DagPbError("a field that is neither data nor links")),
        }
    }
    Ok(data)
}

fn read_link(mut bytes: &[u8]) -> Result<RawLink<'_>, DagPbError> {
    let mut cid = None;
    let mut name = None;
    let mut tsize = None;
    while let Some(key) = take_byte(&mut bytes) {
        match key {
            LINK_HASH if cid.is_none() && name.is_none() && tsize.is_none() => {
                cid = Some(read_cid(take_section(&mut bytes)?)?);
            }
            LINK_NAME if name.is_none() && tsize.is_none() => name = Some(take_section(&mut bytes)?),
            LINK_TSIZE if tsize.is_none() => tsize = Some(take_varint(&mut bytes)?),
            LINK_HASH | LINK_NAME | LINK_TSIZE => {
                return Err(DagPbError("link fields repeated or out of order"));
            }
            _ => return Err(DagPbError("a link has an unknown field")),
        }
    }
    Ok(RawLink { cid: cid.ok_or(DagPbError("a link without a CID"))?, name, tsize })
}

fn read_cid(bytes: &[u8]) -> Result<Cid, DagPbError> {
    let cid = Cid::try_from(bytes).map_err(|_| DagPbError("a link's CID does not parse"))?;
    if cid.encoded_len() != bytes.len() {
        return Err(DagPbError("bytes after a link's CID"));
    }
    Ok(cid)
}

fn take_byte(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, DagPbError> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(bytes).ok_or(DagPbError("cut off"))?;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            break;
        }
        value |= part << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(DagPbError("a number over 64 bits"))
}

fn take_section<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], DagPbError> {
    let len = usize::try_from(take_varint(bytes)?).map_err(|_| DagPbError("cut off"))?;
    let (section, rest) = bytes.split_at_checked(len).ok_or(DagPbError("cut off"))?;
    *bytes = rest;
    Ok(section)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(hex: &str) -> Result<PbNode, DagPbError> {
        PbNode::decode(&Bytes::from(hex::decode(hex).unwrap()))
    }

    /// Fixtures of the IPLD codec suite: decode, encode to the same bytes, and hash to the fixture's name.
    #[test]
    fn codec_fixtures_round_trip() {
        let fixtures = [
            ("", "bafybeihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
            (
                "12240a2212207521fe19c374a97759226dc5c0c8e674e73950e81b211f7dd3b6b30883a08a51",
                "bafybeihyivpglm6o6wrafbe36fp5l67abmewk7i2eob5wacdbhz7as5obe",
            ),
            (
                "12340a2212208ab7a6c5e74737878ac73863cb76739d15d4666de44e5756bf55a2f9e9ab5f431209736f6d65206c696e6b\
                 1880c2d72f12370a2212208ab7a6c5e74737878ac73863cb76739d15d4666de44e5756bf55a2f9e9ab5f44120f736f6d65\
                 206f74686572206c696e6b18080a09736f6d652064617461",
                "bafybeibh647pmxyksmdm24uad6b5f7tx4dhvilzbg2fiqgzll4yek7g7y4",
            ),
            ("0a050001020304", "bafybeibazl2z4vqp2tmwcfag6wirmtpnomxknqcgrauj7m2yisrz3qjbom"),
            ("0a00", "bafybeiaqfni3s5s2k2r6rgpxz4hohdsskh44ka5tk6ztbjerqpvxwfkwaq"),
            ("120b0a09015500050001020304", "bafybeia53f5n75ituvc3yupuf7tdnxf6fqetrmo2alc6g6iljkmk7ys5mm"),
            (
                "12160a090155000500010203041209736f6d65206e616d65",
                "bafybeifq4hcxma3kjljrpxtunnljtc6tvbkgsy3vldyfpfbx2lij76niyu",
            ),
            ("120d0a090155000500010203041200", "bafybeie7fstnkm4yshfwnmpp7d3mlh4f4okmk7a54d6c3ffr755q7qzk44"),
            (
                "12140a0901550005000102030418ffffffffffffff0f",
                "bafybeiezymjvhwfuharanxmzxwuomzjjuzqjewjolr4phaiyp6l7qfwo64",
            ),
            ("120d0a090155000500010203041800", "bafybeichjs5otecmbvwh5azdr4jc45mp2qcofh2fr54wjdxhz4znahod2i"),
            ("0a03010203", "bafybeia2qk4u55f2qj7zimmtpulejgz7urp7rzs44cvledcaj42gltkk3u"),
        ];
        for (hex, cid) in fixtures {
            let node = decode(hex).unwrap();
            let bytes = node.encode();
            assert_eq!(hex::encode(&bytes), hex);
            assert_eq!(node.encoded_len(), bytes.len());
            assert_eq!(hash::cid_v1(hash::DAG_PB, &bytes).to_string(), cid);
            let children: Vec<Cid> = node.links.iter().map(|link| link.cid).collect();
            assert_eq!(links(&hash::cid_v1(hash::DAG_PB, &bytes), &bytes).unwrap(), children);
        }
    }

    #[test]
    fn malformed_nodes_are_refused() {
        let link = "120b0a09015500050001020304";
        for hex in [
            "0a",                                       // no length
            "0a05",                                     // cut off
            "0a000a00",                                 // two data sections
            &format!("{link}0a00{link}"),               // interleaved
            "1a00",                                     // unknown field
            "0800",                                     // wrong wire type
            "1200",                                     // a link without a CID
            "120f0a0901550005000102030400000000",       // unknown link field
            "120c0a0a01550005000102030400",             // bytes after the CID
            "120d120009015500050001020304",             // name before CID, then junk
            "1219180118010a09015500050001020304120161", // fields out of order
            "0affffffffffffffffff7f",                   // absurd length
            "0affffffffffffffffffff01",                 // varint over 64 bits
        ] {
            assert!(decode(hex).is_err(), "{hex}");
        }
        let mut bad_name = hex::decode("120e0a09015500050001020304120161").unwrap();
        *bad_name.last_mut().unwrap() = 0xff;
        assert!(PbNode::decode(&Bytes::from(bad_name.clone())).is_err());
        // Its children are known all the same.
        assert_eq!(links(&hash::cid_v1(hash::DAG_PB, &bad_name), &bad_name).unwrap().len(), 1);
    }

    #[test]
    fn data_may_come_first() {
        let node = decode("0a0568656c6c6f120b0a09015500050001020304").unwrap();
        assert_eq!(node.data.as_deref(), Some(&b"hello"[..]));
        assert_eq!(node.links.len(), 1);
    }

    #[test]
    fn dag_cbor_links_are_found_at_any_depth() {
        let child = hash::cid_v1(hash::RAW, b"x");
        let value = ipld_core::ipld!({ "a": [1, { "b": child }], "c": child, "d": null });
        let bytes = serde_ipld_dagcbor::to_vec(&value).unwrap();
        let cid = hash::cid_v1(hash::DAG_CBOR, &bytes);
        assert_eq!(links(&cid, &bytes).unwrap(), vec![child, child]);
        assert!(matches!(links(&cid, &bytes[..bytes.len() - 1]), Err(LinksError::DagCbor(_))));
        let deep = vec![0x81u8; 1 << 20];
        assert!(matches!(links(&cid, &deep), Err(LinksError::DagCbor(_))));
    }

    #[test]
    fn unknown_codecs_are_named() {
        let cid = hash::cid_v1(0x78, b"tree");
        assert_eq!(links(&cid, b"tree"), Err(LinksError::Codec(0x78)));
        assert_eq!(links(&hash::cid_v1(hash::TORRENT_INFO, b"de"), b"de"), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn any_node_round_trips(
            names in prop::collection::vec(prop::option::of(".{0,20}"), 0..20),
            tsize in any::<Option<u64>>(),
            data in prop::option::of(prop::collection::vec(any::<u8>(), 0..200)),
        ) {
            let links = names
                .into_iter()
                .map(|name| PbLink { cid: hash::cid_v1(hash::RAW, b"x"), name, tsize })
                .collect::<Vec<_>>();
            for link in &links {
                if let (Some(name), Some(tsize)) = (&link.name, link.tsize) {
                    prop_assert_eq!(encoded_link_len(name.len(), &link.cid, tsize), section_len(link_len(link)));
                }
            }
            let node = PbNode { links, data: data.map(Bytes::from) };
            prop_assert_eq!(PbNode::decode(&node.encode()).unwrap(), node);
        }

        #[test]
        fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = PbNode::decode(&Bytes::from(bytes));
        }
    }
}
