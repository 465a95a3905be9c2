//! CIDs as text in JSON (and as CIDs in DAG-CBOR): for what people and programs read of the market.

use btfs_storage::Cid;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub(crate) fn serialize<S: Serializer>(cid: &Cid, to: S) -> Result<S::Ok, S::Error> {
    if to.is_human_readable() { to.collect_str(cid) } else { cid.serialize(to) }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Cid, D::Error> {
    if !from.is_human_readable() {
        return Cid::deserialize(from);
    }
    String::deserialize(from)?.parse().map_err(de::Error::custom)
}

/// The same for a CID that may be absent.
pub(crate) mod option {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(cid: &Option<Cid>, to: S) -> Result<S::Ok, S::Error> {
        match cid {
            Some(cid) if to.is_human_readable() => to.serialize_some(&cid.to_string()),
            cid => cid.serialize(to),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cid>, D::Error> {
        if !from.is_human_readable() {
            return Option::deserialize(from);
        }
        let text: Option<String> = Option::deserialize(from)?;
        text.map(|t| t.parse().map_err(de::Error::custom)).transpose()
    }
}
