//! Bending inputs: by the byte, and by the lengths and heads that our formats are made of.

use rand::rngs::SmallRng;
use rand::{Rng, RngExt};

/// Numbers at which decoders change their mind.
const EDGES: [u64; 16] = [
    0,
    1,
    0x17,
    0x18,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xffff,
    0x1f_ffff,
    0x20_0000,
    0x20_0001,
    0xffff_ffff,
    0x1_0000_0000,
    i64::MAX as u64,
    u64::MAX,
];

/// Changes `input` in one way; `other` is material to splice in.
pub fn bend(rng: &mut SmallRng, input: &mut Vec<u8>, other: &[u8]) {
    let at = position(rng, input.len());
    match rng.random_range(0..12) {
        0 | 1 => flip(rng, input, at),
        2 => set(input, at, rng.next_u32() as u8),
        3 => insert(input, at, &varint(edge(rng))),
        4 => replace(input, at, 1, &varint(edge(rng))),
        5 => replace(input, at, 1, &cbor_head(rng)),
        6 => {
            let len = 1 + position(rng, 16);
            replace(input, at, len, &[]);
        }
        7 => {
            let bytes: Vec<u8> = (0..1 + position(rng, 8)).map(|_| rng.next_u32() as u8).collect();
            insert(input, at, &bytes);
        }
        8 => repeat(rng, input, at),
        9 => {
            let part = piece(rng, other).to_vec();
            insert(input, at, &part);
        }
        10 => {
            let part = piece(rng, other).to_vec();
            replace(input, at, part.len(), &part);
        }
        _ => input.truncate(at),
    }
}

fn position(rng: &mut SmallRng, len: usize) -> usize {
    if len == 0 { 0 } else { rng.random_range(0..len) }
}

fn edge(rng: &mut SmallRng) -> u64 {
    match rng.random_range(0..3) {
        0 => rng.next_u64() >> rng.random_range(0..64),
        _ => EDGES[rng.random_range(0..EDGES.len())],
    }
}

fn flip(rng: &mut SmallRng, input: &mut [u8], at: usize) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << rng.random_range(0..8);
    }
}

fn set(input: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte = value;
    }
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    replace(input, at, 0, bytes);
}

fn replace(input: &mut Vec<u8>, at: usize, len: usize, bytes: &[u8]) {
    let at = at.min(input.len());
    let end = (at + len).min(input.len());
    input.splice(at..end, bytes.iter().copied());
}

/// Says a stretch again, a few times or very often.
fn repeat(rng: &mut SmallRng, input: &mut Vec<u8>, at: usize) {
    let end = (at + 1 + position(rng, 64)).min(input.len());
    let part = input.get(at..end).unwrap_or_default().to_vec();
    let times = if rng.random_ratio(1, 200) { 200_000 } else { rng.random_range(1..40) };
    // The longest is cut to a block's size later; no more than that is made here.
    let times = times.min((3 << 20) / part.len().max(1));
    insert(input, at, &part.repeat(times));
}

fn piece<'a>(rng: &mut SmallRng, other: &'a [u8]) -> &'a [u8] {
    let from = position(rng, other.len());
    let to = (from + 1 + position(rng, 200)).min(other.len());
    other.get(from..to).unwrap_or_default()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// A head of any major type with any argument, in the shortest form or not.
fn cbor_head(rng: &mut SmallRng) -> Vec<u8> {
    let major = (rng.next_u32() as u8) << 5;
    let value = edge(rng);
    let bytes = value.to_be_bytes();
    match rng.random_range(0..6) {
        0 => vec![major | (value as u8 & 0x1f)],
        1 => vec![major | 24, bytes[7]],
        2 => [&[major | 25][..], &bytes[6..]].concat(),
        3 => [&[major | 26][..], &bytes[4..]].concat(),
        _ => [&[major | 27][..], &bytes[..]].concat(),
    }
}
