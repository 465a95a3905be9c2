//! Values of the data model, and their dag-cbor form.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use bytes::Bytes;
use cid::Cid;
use cid::serde::BytesToCidVisitor;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::{MAX_DEPTH, TOO_DEEP};

/// A value of the IPLD data model.
///
/// Smaller than `ipld_core::ipld::Ipld` (32 bytes instead of 112, and maps without tree nodes), so that what a hostile
/// block makes of itself in memory stays bounded by little more than a list's growth.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Null,
    /// True or false.
    Bool(bool),
    /// An integer between -2^64 and 2^64 - 1.
    Integer(i128),
    /// A finite number.
    Float(f64),
    /// Text.
    String(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// Values in order.
    List(Vec<Value>),
    /// Values by name: sorted by the bytes of the names, each once.
    Map(Vec<(Cow<'static, str>, Value)>),
    /// A link to a block.
    Link(Box<Cid>),
}

impl Value {
    /// Whether no value is inside more than `depth` others.
    pub(super) fn is_within(&self, depth: usize) -> bool {
        match self {
            Value::List(values) => depth > 0 && values.iter().all(|value| value.is_within(depth - 1)),
            Value::Map(entries) => depth > 0 && entries.iter().all(|(_, value)| value.is_within(depth - 1)),
            _ => true,
        }
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Integer(_) => "integer",
            Value::Float(_) => "float",
            Value::String(_) => "string",
            Value::Bytes(_) => "byte string",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Link(_) => "link",
        }
    }

    /// The value of a name in a map.
    pub fn field(&self, name: &str) -> Option<&Value> {
        let Value::Map(entries) = self else { return None };
        let at = entries.binary_search_by(|(key, _)| key.as_bytes().cmp(name.as_bytes())).ok()?;
        Some(&entries[at].1)
    }

    /// Appends every link in it, in order.
    pub(super) fn links(&self, links: &mut Vec<Cid>) {
        match self {
            Value::Link(cid) => links.push(**cid),
            Value::List(values) => values.iter().for_each(|value| value.links(links)),
            Value::Map(entries) => entries.iter().for_each(|(_, value)| value.links(links)),
            _ => {}
        }
    }
}

/// A map from entries in any order; `Err` with the name if one is there twice.
pub(super) fn map(mut entries: Vec<(Cow<'static, str>, Value)>) -> Result<Value, String> {
    entries.sort_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
    match entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(format!("the name {:?} is in one map twice", pair[0].0)),
        None => Ok(Value::Map(entries)),
    }
}

/// Memory that is left for a value under construction.
pub(super) struct Budget(Cell<usize>);

impl Budget {
    /// A value takes its own size, and while a list grows by doubling up to three times that.
    const VALUE: usize = 3 * size_of::<Value>();
    /// The same for an entry of a map.
    const ENTRY: usize = 3 * size_of::<(Cow<'static, str>, Value)>();

    pub fn new(bytes: usize) -> Budget {
        Budget(Cell::new(bytes))
    }

    /// Takes memory for a list element or a lone value with `bytes` of its own.
    pub fn value(&self, bytes: usize) -> Result<(), String> {
        self.take(Self::VALUE.saturating_add(bytes))
    }

    /// Takes memory for a map entry with a name of that length.
    pub fn entry(&self, name: usize) -> Result<(), String> {
        self.take(Self::ENTRY.saturating_add(name))
    }

    /// Takes memory for bytes alone.
    pub fn bytes(&self, bytes: usize) -> Result<(), String> {
        self.take(bytes)
    }

    fn take(&self, bytes: usize) -> Result<(), String> {
        let left = self.0.get().checked_sub(bytes);
        let left = left.ok_or_else(|| "it has more values than are read from one block".to_owned())?;
        self.0.set(left);
        Ok(())
    }
}

/// Decodes dag-cbor. The decoder is strict about numbers, lengths and order, but not about every byte of a link; so the
/// value is encoded again, and only the very same bytes are accepted.
pub(super) fn from_cbor(block: &[u8], budget: &Budget) -> Result<Value, String> {
    let mut decoder = serde_ipld_dagcbor::de::Deserializer::from_slice(block);
    let value = Seed { budget, depth: 0 }.deserialize(&mut decoder).map_err(|error| error.to_string())?;
    decoder.end().map_err(|error| error.to_string())?;
    if to_cbor(&value)? != block {
        return Err("it is not in its deterministic form".into());
    }
    Ok(value)
}

/// Encodes dag-cbor.
pub(super) fn to_cbor(value: &Value) -> Result<Bytes, String> {
    serde_ipld_dagcbor::to_vec(value).map(Bytes::from).map_err(|error| error.to_string())
}

/// Builds a value within a budget.
#[derive(Clone, Copy)]
struct Seed<'a> {
    budget: &'a Budget,
    depth: usize,
}

impl Seed<'_> {
    fn scalar<E: de::Error>(self, value: Value, bytes: usize) -> Result<Value, E> {
        self.budget.value(bytes).map_err(E::custom)?;
        Ok(value)
    }

    fn deeper<E: de::Error>(self) -> Result<Self, E> {
        self.budget.value(0).map_err(E::custom)?;
        if self.depth == MAX_DEPTH {
            return Err(E::custom(TOO_DEEP));
        }
        Ok(Seed { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of the IPLD data model")
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.scalar(Value::Null, 0)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        self.scalar(Value::Bool(value), 0)
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        self.scalar(Value::Integer(value.into()), 0)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        self.scalar(Value::Integer(value.into()), 0)
    }

    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Value, E> {
        self.scalar(Value::Integer(value), 0)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        self.scalar(Value::Float(value), 0)
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.scalar(Value::String(value.to_owned()), value.len())
    }

    fn visit_bytes<E: de::Error>(self, value: &[u8]) -> Result<Value, E> {
        self.scalar(Value::Bytes(value.to_owned()), value.len())
    }

    fn visit_byte_buf<E: de::Error>(self, value: Vec<u8>) -> Result<Value, E> {
        let bytes = value.capacity();
        self.scalar(Value::Bytes(value), bytes)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let cid = deserializer.deserialize_bytes(BytesToCidVisitor)?;
        self.scalar(Value::Link(Box::new(cid)), size_of::<Cid>())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::List(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            self.budget.entry(name.len()).map_err(de::Error::custom)?;
            entries.push((Cow::Owned(name), map.next_value_seed(inner)?));
        }
        super::value::map(entries).map_err(de::Error::custom)
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Null => serializer.serialize_none(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Integer(value) => serializer.serialize_i128(*value),
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::String(value) => serializer.serialize_str(value),
            Value::Bytes(value) => serializer.serialize_bytes(value),
            Value::List(values) => serializer.collect_seq(values),
            Value::Map(entries) => serializer.collect_map(entries.iter().map(|(name, value)| (name, value))),
            Value::Link(cid) => cid.serialize(serializer),
        }
    }
}
