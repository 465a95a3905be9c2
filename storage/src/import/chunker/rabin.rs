//! Rabin fingerprints, as Kubo cuts by them.
//!
//! Source: `github.com/whyrusleeping/chunker` with the polynomial of `github.com/ipfs/boxo`, `chunker/rabin.go`. A
//! chunk's first `min - 16` bytes are passed over; from there on a fingerprint is rolled over 16 bytes, and a chunk
//! ends where its low bits are zero. A one that precedes the window keeps leading zero bytes from vanishing.

use super::Bounds;

/// An irreducible polynomial over GF(2), of degree 53.
const POLYNOMIAL: u64 = 17_437_180_132_763_653;
const DEGREE: u32 = 53;
/// Bytes that a fingerprint covers.
pub(super) const WINDOW: usize = 16;

struct Tables {
    /// What a byte has become in the fingerprint when it leaves the window.
    leaving: [u64; 256],
    /// What brings a fingerprint that grew by a byte back below the polynomial, by its top 8 bits.
    reduce: [u64; 256],
}

static TABLES: Tables = Tables::new();

impl Tables {
    const fn new() -> Tables {
        let mut tables = Tables { leaving: [0; 256], reduce: [0; 256] };
        let mut byte = 0;
        while byte < 256 {
            let mut hash = remainder(byte as u64);
            let mut zeros = 1;
            while zeros < WINDOW {
                hash = remainder(hash << 8);
                zeros += 1;
            }
            tables.leaving[byte] = hash;
            let top = (byte as u64) << DEGREE;
            tables.reduce[byte] = remainder(top) | top;
            byte += 1;
        }
        tables
    }
}

/// `value` modulo the polynomial.
const fn remainder(mut value: u64) -> u64 {
    while value >> DEGREE != 0 {
        value ^= POLYNOMIAL << (63 - value.leading_zeros() - DEGREE);
    }
    value
}

/// Length of the chunk that `window` starts with; `bounds.min` is at least [`WINDOW`].
pub(super) fn cut(window: &[u8], bounds: &Bounds) -> usize {
    let end = window.len().min(bounds.max as usize);
    let mask = (1u64 << bounds.average.ilog2()) - 1;
    let start = bounds.min as usize - WINDOW;
    let mut digest = 1u64;
    let mut roll = |byte: u8, leaving: u8| {
        digest ^= TABLES.leaving[usize::from(leaving)];
        let top = (digest >> (DEGREE - 8)) as usize;
        digest = (digest << 8 | u64::from(byte)) ^ TABLES.reduce[top];
        digest & mask == 0
    };
    let rolled = window[start.min(end)..end].iter().enumerate();
    for (at, byte) in rolled {
        let leaving = match at.checked_sub(WINDOW) {
            Some(before) => window[start + before],
            // The one before the window leaves with the sixteenth byte.
            None => u8::from(at == WINDOW - 1),
        };
        if roll(*byte, leaving) && at + 1 >= WINDOW {
            return start + at + 1;
        }
    }
    end
}
