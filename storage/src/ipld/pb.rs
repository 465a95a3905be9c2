//! dag-pb nodes in the data model: a map of `Data` (bytes, if any) and `Links` (a list of `Hash`, `Name`, `Tsize`).

use std::borrow::Cow;

use bytes::Bytes;

use super::value::{Budget, Value};
use crate::dagpb::{PbLink, PbNode};

pub(super) fn decode(block: &Bytes, budget: &Budget) -> Result<Value, String> {
    // Its own form of a node is bounded by the block's size; only the values are charged.
    let node = PbNode::decode(block).map_err(|error| error.to_string())?;
    let mut links = Vec::with_capacity(node.links.len());
    for link in node.links {
        budget.value(size_of::<cid::Cid>())?;
        let mut entries = vec![(Cow::Borrowed("Hash"), Value::Link(Box::new(link.cid)))];
        budget.entry(0)?;
        if let Some(name) = link.name {
            budget.entry(name.len())?;
            entries.push((Cow::Borrowed("Name"), Value::String(name)));
        }
        if let Some(tsize) = link.tsize {
            budget.entry(0)?;
            entries.push((Cow::Borrowed("Tsize"), Value::Integer(tsize.into())));
        }
        links.push(Value::Map(entries));
    }
    let links = (Cow::Borrowed("Links"), Value::List(links));
    Ok(Value::Map(match node.data {
        Some(data) => vec![(Cow::Borrowed("Data"), Value::Bytes(data.to_vec())), links],
        None => vec![links],
    }))
}

/// A node from a value of exactly that shape; its links sorted by name, those of equal names in their order.
pub(super) fn encode(value: &Value) -> Result<Bytes, String> {
    let [data, links] = fields(value, ["Data", "Links"])?;
    let data = match data {
        None => None,
        Some(Value::Bytes(data)) => Some(Bytes::copy_from_slice(data)),
        Some(other) => return Err(format!("Data is a {}, not bytes", other.kind())),
    };
    let links = match links {
        Some(Value::List(links)) => links.iter().map(link).collect::<Result<Vec<_>, _>>()?,
        Some(other) => return Err(format!("Links is a {}, not a list", other.kind())),
        None => return Err("it has no Links".into()),
    };
    let mut node = PbNode { links, data };
    node.links
        .sort_by(|a, b| a.name.as_deref().unwrap_or_default().cmp(b.name.as_deref().unwrap_or_default()));
    Ok(node.encode())
}

fn link(value: &Value) -> Result<PbLink, String> {
    let [cid, name, tsize] = fields(value, ["Hash", "Name", "Tsize"])?;
    let Some(Value::Link(cid)) = cid else { return Err("a link has no Hash that is a link".into()) };
    let name = match name {
        None => None,
        Some(Value::String(name)) => Some(name.clone()),
        Some(other) => return Err(format!("a link's Name is a {}", other.kind())),
    };
    let tsize = match tsize {
        None => None,
        Some(Value::Integer(size)) => {
            Some(u64::try_from(*size).map_err(|_| "a link's Tsize is negative".to_owned())?)
        }
        Some(other) => return Err(format!("a link's Tsize is a {}", other.kind())),
    };
    Ok(PbLink { cid: **cid, name, tsize })
}

/// The values of these names in a map that has no others.
fn fields<'a, const N: usize>(value: &'a Value, names: [&str; N]) -> Result<[Option<&'a Value>; N], String> {
    let Value::Map(entries) = value else {
        return Err(format!("it has a {} where a map belongs", value.kind()));
    };
    match entries.iter().find(|(name, _)| !names.contains(&name.as_ref())) {
        Some((name, _)) => Err(format!("it has {name:?}, for which there is no place")),
        None => Ok(names.map(|name| value.field(name))),
    }
}
