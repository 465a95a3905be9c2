//! Sealed files: content that only who has the key can read, as an ordinary file whose bytes anybody may keep.
//!
//! `btfs add --private` seals a file before it is cut into blocks; `btfs get` and `btfs cat` open it. Everything between
//! (blocks, DAG, parity, proofs, hosts, repair) works on sealed bytes and needs no key. The key is 32 random bytes, made
//! anew for each file, and is only in the link, `CID#key`. It stays in the process that seals or opens: nothing here
//! stores, sends or logs it, no error quotes it, and [`SealKey`] prints as dots.
//!
//! # Format, version 1
//!
//! ```text
//! header   28 bytes: "BTFSSEAL", version 1, nonce prefix of 19 random bytes
//! segment  64 KiB of content, encrypted, then its tag of 16 bytes; the last may be shorter
//! ```
//!
//! Each segment is sealed by XChaCha20-Poly1305 (RFC 8439, with the extended nonce of draft-irtf-cfrg-xchacha-03) under
//!
//! ```text
//! nonce    prefix (19 bytes) || number of the segment (4 bytes, big endian) || 1 for the last segment, else 0 (1 byte)
//! AD       the header
//! ```
//!
//! That is the STREAM construction: Hoang, Reyhanitabar, Rogaway, Vizár, "Online Authenticated-Encryption and its
//! Nonce-Reuse Misuse-Resistance", CRYPTO 2015, section 7. A segment opens only in its place and only if it is the last
//! exactly when it was sealed as the last; so a flipped bit, a cut, and segments left out, doubled, swapped or taken from
//! another file are all refused. No two files share a key, so no nonce is ever used twice. Content without bytes is one
//! empty last segment; otherwise no segment is empty. 2^32 segments are 256 TiB.
//!
//! Reading anywhere: the place of a segment follows from its number. [`Unsealer`] is made from the header and the last
//! segment, whose tag binds the length of the whole, and then opens any other; nothing of a segment is given out before
//! its tag was checked.
//!
//! What it does not hide: the length, and that two links name the same file to who compares CIDs. The same content sealed
//! twice gives two unrelated CIDs, so sealed files are never deduplicated.

mod key;
mod open;
mod seal;
#[cfg(test)]
mod tests;

pub use key::{BadLink, Link, SealKey};
pub use open::{Segment, Unsealer, content_size, last_segment};
pub use seal::{Sealer, sealed_size};

use chacha20poly1305::XNonce;

/// Content bytes of a segment, the last excepted.
pub const SEGMENT: usize = 64 << 10;
/// Bytes by which sealing makes a segment longer.
pub const TAG: usize = 16;
/// Bytes before the first segment.
pub const HEADER: usize = MAGIC.len() + 1 + PREFIX;

/// How sealed files begin.
const MAGIC: &[u8; 8] = b"BTFSSEAL";
/// The format described above.
const VERSION: u8 = 1;
/// Random bytes of the nonce.
const PREFIX: usize = 19;
/// Segments that can be numbered.
const MAX_SEGMENTS: u64 = 1 << 32;

/// Why content was not sealed or opened. Nothing here holds any part of a key or of the content.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SealError {
    /// The content does not begin like a sealed file.
    #[error("this is not a sealed file, so its link should have no key")]
    NotSealed,
    /// Sealed by a later version of the format.
    #[error("the file is sealed in format {0}; this program opens format {VERSION}: use a newer one")]
    Version(u8),
    /// No sealed file has that length.
    #[error("a sealed file cannot have {size} bytes: it is cut off; nothing of it was shown")]
    Length {
        /// Its length in bytes.
        size: u64,
    },
    /// A tag does not match.
    #[error(
        "segment {index} of the sealed file does not open: the key of the link is another, or the content was changed; \
         nothing of the segment was shown"
    )]
    Refused {
        /// Its number, from 0.
        index: u64,
    },
    /// More content than segments can be numbered for.
    #[error("content over 256 TiB cannot be sealed as one file")]
    TooLong,
    /// The system gave no random bytes.
    #[error("no key could be made: {0}")]
    Random(String),
}

/// The nonce of a segment.
fn nonce(header: &[u8; HEADER], index: u32, last: bool) -> XNonce {
    let mut nonce = [0u8; PREFIX + 5];
    nonce[..PREFIX].copy_from_slice(&header[HEADER - PREFIX..]);
    nonce[PREFIX..PREFIX + 4].copy_from_slice(&index.to_be_bytes());
    nonce[PREFIX + 4] = u8::from(last);
    XNonce::from(nonce)
}
