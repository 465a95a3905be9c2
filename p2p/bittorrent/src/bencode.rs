//! Bencode (BEP 3): a borrowing parser that keeps the exact bytes of every dictionary, and an owned tree for writing.
//!
//! The exact bytes matter because an infohash is the hash of the `info` dictionary *as received*; re-encoding could change
//! it. The parser never copies string bytes, refuses what has two readings (leading zeros, `-0`, duplicate keys) and accepts
//! unsorted keys, which old torrents and some trackers have. Depth and item count are capped, so that hostile input
//! costs time and memory linear in its length.

use std::collections::BTreeMap;

/// Nesting that real torrents never reach; bounds recursion.
pub const MAX_DEPTH: usize = 48;
/// Values in one document: a torrent of about 200,000 files. Bounds the parsed tree at about 50 MiB.
pub const MAX_VALUES: usize = 1 << 20;

/// Why bytes are not one bencoded value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BencodeError {
    /// The input ends inside a value.
    #[error("bencode ends early at byte {0}")]
    Truncated(usize),
    /// A byte that no value may have there.
    #[error("bencode has an unexpected byte at {0}")]
    Unexpected(usize),
    /// An integer with leading zeros, `-0`, or outside 64 bits.
    #[error("bencode integer at byte {0} is not canonical or does not fit 64 bits")]
    Integer(usize),
    /// The same key twice in a dictionary.
    #[error("bencode dictionary at byte {0} has a key twice")]
    DuplicateKey(usize),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("bencode is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// More values than [`MAX_VALUES`].
    #[error("bencode has more than {MAX_VALUES} values")]
    TooManyValues,
    /// Bytes after the value.
    #[error("bencode has {0} bytes after its end")]
    Trailing(usize),
}

/// A parsed value that borrows from its input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    /// `i…e`
    Int(i64),
    /// `n:…`
    Bytes(&'a [u8]),
    /// `l…e`
    List(Vec<Value<'a>>),
    /// `d…e`
    Dict(Dict<'a>),
}

/// A dictionary: entries in input order and the exact bytes they were read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dict<'a> {
    entries: Vec<(&'a [u8], Value<'a>)>,
    raw: &'a [u8],
}

impl<'a> Dict<'a> {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.entries.iter().find(|(k, _)| *k == key.as_bytes()).map(|(_, v)| v)
    }

    /// The integer of `key`, if it is one.
    pub fn int(&self, key: &str) -> Option<i64> {
        self.get(key)?.as_int()
    }

    /// The string of `key`, if it is one.
    pub fn bytes(&self, key: &str) -> Option<&'a [u8]> {
        self.get(key)?.as_bytes()
    }

    /// The list of `key`, if it is one.
    pub fn list(&self, key: &str) -> Option<&[Value<'a>]> {
        self.get(key)?.as_list()
    }

    /// The dictionary of `key`, if it is one.
    pub fn dict(&self, key: &str) -> Option<&Dict<'a>> {
        self.get(key)?.as_dict()
    }

    /// All entries in input order.
    pub fn entries(&self) -> &[(&'a [u8], Value<'a>)] {
        &self.entries
    }

    /// The exact bytes, from `d` to `e`.
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }
}

impl<'a> Value<'a> {
    /// The integer, if it is one.
    pub fn as_int(&self) -> Option<i64> {
        if let Value::Int(n) = self { Some(*n) } else { None }
    }

    /// The string, if it is one.
    pub fn as_bytes(&self) -> Option<&'a [u8]> {
        if let Value::Bytes(b) = self { Some(b) } else { None }
    }

    /// The list, if it is one.
    pub fn as_list(&self) -> Option<&[Value<'a>]> {
        if let Value::List(l) = self { Some(l) } else { None }
    }

    /// The dictionary, if it is one.
    pub fn as_dict(&self) -> Option<&Dict<'a>> {
        if let Value::Dict(d) = self { Some(d) } else { None }
    }
}

/// Parses exactly one value that fills `input`.
pub fn parse(input: &[u8]) -> Result<Value<'_>, BencodeError> {
    let (value, used) = parse_prefix(input)?;
    if used != input.len() {
        return Err(BencodeError::Trailing(input.len() - used));
    }
    Ok(value)
}

/// Parses one value at the start of `input`; returns it and its length. `ut_metadata` puts data behind a dictionary.
pub fn parse_prefix(input: &[u8]) -> Result<(Value<'_>, usize), BencodeError> {
    let mut parser = Parser { input, pos: 0, values: 0 };
    let value = parser.value(0)?;
    Ok((value, parser.pos))
}

struct Parser<'a> {
    input: &'a [u8],
    pos: usize,
    values: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Result<u8, BencodeError> {
        self.input.get(self.pos).copied().ok_or(BencodeError::Truncated(self.pos))
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, BencodeError> {
        if depth > MAX_DEPTH {
            return Err(BencodeError::TooDeep);
        }
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(BencodeError::TooManyValues);
        }
        match self.peek()? {
            b'i' => {
                self.pos += 1;
                self.integer(b'e').map(Value::Int)
            }
            b'l' => {
                self.pos += 1;
                let mut items = Vec::new();
                while self.peek()? != b'e' {
                    items.push(self.value(depth + 1)?);
                }
                self.pos += 1;
                Ok(Value::List(items))
            }
            b'd' => self.dict(depth).map(Value::Dict),
            b'0'..=b'9' => self.string().map(Value::Bytes),
            _ => Err(BencodeError::Unexpected(self.pos)),
        }
    }

    fn dict(&mut self, depth: usize) -> Result<Dict<'a>, BencodeError> {
        let start = self.pos;
        self.pos += 1;
        let mut entries: Vec<(&[u8], Value<'_>)> = Vec::new();
        let mut sorted = true;
        while self.peek()? != b'e' {
            if !self.peek()?.is_ascii_digit() {
                return Err(BencodeError::Unexpected(self.pos));
            }
            let key = self.string()?;
            if let Some((last, _)) = entries.last() {
                sorted &= *last < key;
            }
            let value = self.value(depth + 1)?;
            entries.push((key, value));
        }
        self.pos += 1;
        if !sorted {
            let mut keys: Vec<&[u8]> = entries.iter().map(|(k, _)| *k).collect();
            keys.sort_unstable();
            if keys.windows(2).any(|w| w[0] == w[1]) {
                return Err(BencodeError::DuplicateKey(start));
            }
        }
        Ok(Dict { entries, raw: &self.input[start..self.pos] })
    }

    /// Digits up to `end`, which is consumed.
    fn integer(&mut self, end: u8) -> Result<i64, BencodeError> {
        let start = self.pos;
        let negative = self.peek()? == b'-';
        if negative {
            self.pos += 1;
        }
        let digits = self.pos;
        let mut n: i64 = 0;
        loop {
            let byte = self.peek()?;
            self.pos += 1;
            if byte == end {
                break;
            }
            if !byte.is_ascii_digit() {
                return Err(BencodeError::Unexpected(self.pos - 1));
            }
            let digit = i64::from(byte - b'0');
            let next = n
                .checked_mul(10)
                .and_then(|n| if negative { n.checked_sub(digit) } else { n.checked_add(digit) });
            n = next.ok_or(BencodeError::Integer(start))?;
        }
        let len = self.pos - 1 - digits;
        let leading_zero = self.input[digits] == b'0' && (len > 1 || negative);
        if len == 0 || leading_zero {
            return Err(BencodeError::Integer(start));
        }
        Ok(n)
    }

    fn string(&mut self) -> Result<&'a [u8], BencodeError> {
        let start = self.pos;
        let len = usize::try_from(self.integer(b':')?).map_err(|_| BencodeError::Integer(start))?;
        let end = self.pos.checked_add(len).filter(|e| *e <= self.input.len());
        let end = end.ok_or(BencodeError::Truncated(self.input.len()))?;
        let bytes = &self.input[self.pos..end];
        self.pos = end;
        Ok(bytes)
    }
}

/// An owned value for writing; dictionaries are sorted by construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owned {
    /// An integer.
    Int(i64),
    /// A byte string.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Owned>),
    /// A dictionary.
    Dict(BTreeMap<Vec<u8>, Owned>),
    /// One value already encoded: an `info` dictionary whose bytes must not change.
    Raw(Vec<u8>),
}

impl Owned {
    /// A byte string from text.
    pub fn text(s: &str) -> Owned {
        Owned::Bytes(s.as_bytes().to_vec())
    }

    /// A dictionary from pairs in any order.
    pub fn dict<const N: usize>(pairs: [(&str, Owned); N]) -> Owned {
        Owned::Dict(pairs.into_iter().map(|(k, v)| (k.as_bytes().to_vec(), v)).collect())
    }

    /// The canonical bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Owned::Int(n) => out.extend_from_slice(format!("i{n}e").as_bytes()),
            Owned::Bytes(b) => write_string(b, out),
            Owned::List(items) => {
                out.push(b'l');
                items.iter().for_each(|i| i.write(out));
                out.push(b'e');
            }
            Owned::Dict(map) => {
                out.push(b'd');
                for (key, value) in map {
                    write_string(key, out);
                    value.write(out);
                }
                out.push(b'e');
            }
            Owned::Raw(bytes) => out.extend_from_slice(bytes),
        }
    }
}

fn write_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{}:", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn to_owned(v: &Value<'_>) -> Owned {
        match v {
            Value::Int(n) => Owned::Int(*n),
            Value::Bytes(b) => Owned::Bytes(b.to_vec()),
            Value::List(l) => Owned::List(l.iter().map(to_owned).collect()),
            Value::Dict(d) => {
                Owned::Dict(d.entries().iter().map(|(k, v)| (k.to_vec(), to_owned(v))).collect())
            }
        }
    }

    fn tree() -> impl Strategy<Value = Owned> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Owned::Int),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Owned::Bytes),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Owned::List),
                prop::collection::btree_map(prop::collection::vec(any::<u8>(), 0..8), inner, 0..6)
                    .prop_map(Owned::Dict),
            ]
        })
    }

    proptest! {
        #[test]
        fn written_trees_read_back(value in tree()) {
            let bytes = value.encode();
            prop_assert_eq!(to_owned(&parse(&bytes).unwrap()), value);
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn damaged_trees_never_panic(value in tree(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = value.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = parse(&bytes);
            let _ = parse(&bytes[..at]);
        }
    }

    #[test]
    fn a_dictionary_keeps_its_exact_bytes() {
        let input = b"d4:infod1:bi1e1:ai2eee";
        let top = parse(input).unwrap();
        let info = top.as_dict().unwrap().dict("info").unwrap();
        assert_eq!(info.raw(), b"d1:bi1e1:ai2ee");
        assert_eq!(info.int("a"), Some(2));
    }

    #[test]
    fn two_readings_are_refused() {
        for bad in [
            "i01e",
            "i-0e",
            "ie",
            "i-e",
            "01:a",
            "-1:a",
            "d1:ai1e1:ai2ee",
            "i9223372036854775808e",
            "di1ei2ee",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(parse(b"i-9223372036854775808e").unwrap(), Value::Int(i64::MIN));
        assert_eq!(parse(b"0:").unwrap(), Value::Bytes(b""));
        assert_eq!(parse(b"i1ei2e"), Err(BencodeError::Trailing(3)));
        assert_eq!(parse(b"9999999999:a"), Err(BencodeError::Truncated(12)));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let mut bytes = vec![b'l'; 10_000];
        bytes.extend(vec![b'e'; 10_000]);
        assert_eq!(parse(&bytes), Err(BencodeError::TooDeep));
    }
}
