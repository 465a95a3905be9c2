//! dag-json.
//!
//! Source: <https://ipld.io/specs/codecs/dag-json/spec/>. JSON with two forms of its own, both maps with `/` as their
//! one name: `{"/": "<CID>"}` is a link, `{"/": {"bytes": "<base64 without padding>"}}` is bytes. Other maps may not use
//! the name `/`. A number with a point or an exponent is a float, any other an integer. Written without white space,
//! maps sorted by the bytes of their names.

use std::borrow::Cow;
use std::fmt::Write;

use bytes::Bytes;
use cid::Cid;
use data_encoding::BASE64_NOPAD;

use super::value::{Budget, Value, map};
use super::{MAX_DEPTH, TOO_DEEP};

/// The reserved name.
const RESERVED: &str = "/";
/// Digits of a number, at most: more than any float needs, and little to parse.
const MAX_NUMBER: usize = 400;

/// What bytes add to the depth of the text: `{"/":{"bytes":""}}` is one value.
const RESERVED_DEPTH: usize = 2;

/// Decodes one value and nothing after it but white space.
pub(super) fn decode(text: &[u8], budget: &Budget) -> Result<Value, String> {
    let text =
        std::str::from_utf8(text).map_err(|error| format!("at byte {}: not UTF-8", error.valid_up_to()))?;
    let mut reader = Reader { text, at: 0, budget };
    let value = reader.value(0).and_then(|value| match reader.peek() {
        None if value.is_within(MAX_DEPTH) => Ok(value),
        None => Err(TOO_DEEP.into()),
        Some(_) => Err("something after the end".into()),
    });
    value.map_err(|error| format!("at byte {}: {error}", reader.at))
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    budget: &'a Budget,
}

impl<'a> Reader<'a> {
    /// The next byte that is no white space; not consumed.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while matches!(bytes.get(self.at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
        bytes.get(self.at).copied()
    }

    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, wanted: u8) -> Result<(), String> {
        if self.take(wanted) { Ok(()) } else { Err(format!("`{}` is missing", wanted as char)) }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > MAX_DEPTH + RESERVED_DEPTH {
            return Err(TOO_DEEP.into());
        }
        self.budget.value(0)?;
        match self.peek().ok_or("a value is missing")? {
            b'{' => self.map(depth),
            b'[' => self.list(depth),
            b'"' => Ok(Value::String(self.string()?)),
            b'-' | b'0'..=b'9' => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Value, String> {
        let words = [("null", Value::Null), ("true", Value::Bool(true)), ("false", Value::Bool(false))];
        for (word, value) in words {
            if self.text[self.at..].starts_with(word) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err("no value begins so".into())
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        self.expect(b'[')?;
        let mut values = Vec::new();
        if self.take(b']') {
            return Ok(Value::List(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            if !self.take(b',') {
                self.expect(b']')?;
                return Ok(Value::List(values));
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, String> {
        self.expect(b'{')?;
        let mut entries: Vec<(Cow<'static, str>, Value)> = Vec::new();
        if self.take(b'}') {
            return Ok(Value::Map(entries));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err("a name is missing".into());
            }
            let name = self.string()?;
            self.budget.entry(name.len())?;
            self.expect(b':')?;
            entries.push((Cow::Owned(name), self.value(depth + 1)?));
            if !self.take(b',') {
                break;
            }
        }
        self.expect(b'}')?;
        if entries.iter().any(|(name, _)| name == RESERVED) {
            return reserved(entries);
        }
        map(entries)
    }

    fn string(&mut self) -> Result<String, String> {
        self.expect(b'"')?;
        let mut text = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain =
                rest.find(|c: char| c == '"' || c == '\\' || c < ' ').ok_or("a string does not end")?;
            self.budget_text(plain)?;
            text.push_str(&rest[..plain]);
            self.at += plain + 1;
            match rest.as_bytes()[plain] {
                b'"' => return Ok(text),
                b'\\' => text.push(self.escape()?),
                _ => return Err("a control character in a string".into()),
            }
        }
    }

    fn budget_text(&self, bytes: usize) -> Result<(), String> {
        // Growth by doubling included; names are charged again with their entry, which is no harm.
        self.budget.bytes(2 * bytes)
    }

    fn escape(&mut self) -> Result<char, String> {
        let kind = *self.text.as_bytes().get(self.at).ok_or("a string does not end")?;
        self.at += 1;
        Ok(match kind {
            b'"' | b'\\' | b'/' => kind as char,
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex()?;
                let code = match first {
                    0xd800..=0xdbff if self.text[self.at..].starts_with("\\u") => {
                        self.at += 2;
                        let second = self.hex()?;
                        if !(0xdc00..=0xdfff).contains(&second) {
                            return Err("half a surrogate pair".into());
                        }
                        0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00)
                    }
                    code => code,
                };
                char::from_u32(code).ok_or("half a surrogate pair")?
            }
            _ => return Err("an unknown escape".into()),
        })
    }

    fn hex(&mut self) -> Result<u32, String> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.ok_or("\\u wants four hex digits")?;
        self.at += 4;
        Ok(digits.iter().fold(0, |code, digit| code << 4 | (*digit as char).to_digit(16).unwrap_or(0)))
    }

    fn digits(&mut self) -> usize {
        let bytes = &self.text.as_bytes()[self.at..];
        let count = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        count
    }

    /// Whether one of these bytes comes next, without white space; consumed.
    fn next_is(&mut self, any: &[u8]) -> bool {
        let found = self.text.as_bytes().get(self.at).is_some_and(|byte| any.contains(byte));
        self.at += usize::from(found);
        found
    }

    fn number(&mut self) -> Result<Value, String> {
        let start = self.at;
        self.next_is(b"-");
        let zero = self.text.as_bytes().get(self.at) == Some(&b'0');
        let whole = self.digits();
        if whole == 0 || zero && whole > 1 {
            return Err("a number is malformed".into());
        }
        let mut float = false;
        if self.next_is(b".") {
            float = true;
            if self.digits() == 0 {
                return Err("a number is malformed".into());
            }
        }
        if self.next_is(b"eE") {
            float = true;
            self.next_is(b"+-");
            if self.digits() == 0 {
                return Err("a number is malformed".into());
            }
        }
        let text = &self.text[start..self.at];
        if text.len() > MAX_NUMBER {
            return Err("a number has too many digits".into());
        }
        if float {
            let value: f64 = text.parse().map_err(|_| "a number is malformed")?;
            return if value.is_finite() {
                Ok(Value::Float(value))
            } else {
                Err("a number is too large".into())
            };
        }
        let value = text.parse::<i128>().ok().filter(|value| fits(*value));
        Ok(Value::Integer(value.ok_or("an integer is over 64 bits")?))
    }
}

/// Whether the data model has the integer: 64 bits and a sign.
fn fits(value: i128) -> bool {
    (-(1i128 << 64)..1i128 << 64).contains(&value)
}

/// The value of a map with the reserved name.
fn reserved(entries: Vec<(Cow<'static, str>, Value)>) -> Result<Value, String> {
    let mut entries = entries.into_iter();
    match (entries.next(), entries.next()) {
        (Some((_, Value::String(text))), None) => {
            let cid = text.parse::<Cid>().map_err(|error| format!("`{text}` is not a CID: {error}"))?;
            Ok(Value::Link(Box::new(cid)))
        }
        (Some((_, Value::Map(inner))), None) => match inner.as_slice() {
            [(name, Value::String(text))] if name == "bytes" => {
                let bytes = BASE64_NOPAD.decode(text.as_bytes());
                Ok(Value::Bytes(bytes.map_err(|error| format!("bytes are not base64: {error}"))?))
            }
            _ => Err("the name `/` is for links and bytes".into()),
        },
        _ => Err("the name `/` is for links and bytes".into()),
    }
}

/// Encodes a value.
pub(super) fn encode(value: &Value) -> Result<Bytes, String> {
    let mut out = String::new();
    put(&mut out, value, 0)?;
    Ok(Bytes::from(out))
}

fn put(out: &mut String, value: &Value, depth: usize) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err(TOO_DEEP.into());
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Integer(value) if fits(*value) => write(out, format_args!("{value}")),
        Value::Integer(_) => return Err("an integer is over 64 bits".into()),
        // The shortest form that reads back the same, always with a point or an exponent.
        Value::Float(value) if value.is_finite() => write(out, format_args!("{value:?}")),
        Value::Float(_) => return Err("a float is not finite".into()),
        Value::String(text) => put_string(out, text),
        Value::Bytes(bytes) => {
            out.push_str("{\"/\":{\"bytes\":\"");
            BASE64_NOPAD.encode_append(bytes, out);
            out.push_str("\"}}");
        }
        Value::Link(cid) => write(out, format_args!("{{\"/\":\"{cid}\"}}")),
        Value::List(values) => {
            out.push('[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                put(out, value, depth + 1)?;
            }
            out.push(']');
        }
        Value::Map(entries) => {
            out.push('{');
            for (at, (name, value)) in entries.iter().enumerate() {
                if name == RESERVED {
                    return Err("a map has the name `/`, which is for links and bytes".into());
                }
                if at > 0 {
                    out.push(',');
                }
                put_string(out, name);
                out.push(':');
                put(out, value, depth + 1)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn write(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes any text");
}

fn put_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c < ' ' => write(out, format_args!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
}
