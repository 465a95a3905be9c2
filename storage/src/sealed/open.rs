//! Opening, anywhere in the file.

use std::ops::Range;

use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};

use super::{HEADER, MAGIC, MAX_SEGMENTS, SEGMENT, SealError, SealKey, TAG, VERSION, nonce};

/// Bytes of a sealed segment, the last excepted.
const SEALED: u64 = (SEGMENT + TAG) as u64;

/// Where the last segment of a sealed file of `size` bytes lies: what [`Unsealer::new`] wants besides the header.
///
/// # Errors
/// [`SealError::Length`] when no sealed file is that long.
pub fn last_segment(size: u64) -> Result<Range<u64>, SealError> {
    let body = size.checked_sub((HEADER + TAG) as u64).ok_or(SealError::Length { size })?;
    // Counted without the tag that every file has, so that a full last segment stays the last.
    let index = match body {
        0 => 0,
        body => (body - 1) / SEALED,
    };
    let start = HEADER as u64 + index * SEALED;
    let content = size - start - TAG as u64;
    // Only content without bytes has an empty segment.
    if index >= MAX_SEGMENTS || content > SEGMENT as u64 || index > 0 && content == 0 {
        return Err(SealError::Length { size });
    }
    Ok(start..size)
}

/// Content bytes of a sealed file of `size` bytes.
///
/// # Errors
/// [`SealError::Length`] when no sealed file is that long.
pub fn content_size(size: u64) -> Result<u64, SealError> {
    let last = last_segment(size)?;
    let index = (last.start - HEADER as u64) / SEALED;
    Ok(index * SEGMENT as u64 + (last.end - last.start) - TAG as u64)
}

/// Opens segments of one sealed file, in any order.
///
/// There is none before the last segment was opened, which shows that the file has the length that it was sealed with.
pub struct Unsealer {
    cipher: XChaCha20Poly1305,
    header: [u8; HEADER],
    /// Content bytes.
    size: u64,
    last: u64,
}

/// A segment, and what of it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number, from 0.
    pub index: u64,
    /// Where its sealed bytes lie in the file.
    pub sealed: Range<u64>,
    /// The wanted part of its content.
    pub wanted: Range<usize>,
}

impl Unsealer {
    /// From the key, the length of the sealed file, its first [`HEADER`] bytes and its last segment (see
    /// [`last_segment`]).
    pub fn new(key: &SealKey, size: u64, header: &[u8], last: Vec<u8>) -> Result<Unsealer, SealError> {
        let header: [u8; HEADER] = header.try_into().map_err(|_| SealError::NotSealed)?;
        if header[..MAGIC.len()] != MAGIC[..] {
            return Err(SealError::NotSealed);
        }
        if header[MAGIC.len()] != VERSION {
            return Err(SealError::Version(header[MAGIC.len()]));
        }
        let place = last_segment(size)?;
        let index = (place.start - HEADER as u64) / SEALED;
        let cipher = XChaCha20Poly1305::new(key.bytes().into());
        let unsealer = Unsealer { cipher, header, size: content_size(size)?, last: index };
        if last.len() as u64 != place.end - place.start {
            return Err(SealError::Refused { index });
        }
        unsealer.open(index, last)?;
        Ok(unsealer)
    }

    /// Content bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The segments that hold up to `length` content bytes from `offset` on.
    pub fn segments(&self, offset: u64, length: u64) -> impl Iterator<Item = Segment> + use<> {
        let end = offset.saturating_add(length).min(self.size);
        let offset = offset.min(end);
        let segment = SEGMENT as u64;
        let (size, last) = (self.size, self.last);
        let numbers = if offset == end { 0..0 } else { offset / segment..(end - 1) / segment + 1 };
        numbers.map(move |index| {
            let start = index * segment;
            let content = if index == last { size - start } else { segment };
            let at = HEADER as u64 + index * SEALED;
            // Both within a segment, so they fit.
            let from = offset.saturating_sub(start) as usize;
            let to = (end - start).min(content) as usize;
            Segment { index, sealed: at..at + content + TAG as u64, wanted: from..to }
        })
    }

    /// Opens a segment: its sealed bytes in, its content out.
    pub fn open(&self, index: u64, mut sealed: Vec<u8>) -> Result<Vec<u8>, SealError> {
        let refused = SealError::Refused { index };
        let number = u32::try_from(index).ok().filter(|_| index <= self.last);
        let Some(number) = number else { return Err(refused) };
        let nonce = nonce(&self.header, number, index == self.last);
        match self.cipher.decrypt_in_place(&nonce, &self.header, &mut sealed) {
            Ok(()) => Ok(sealed),
            Err(_) => Err(refused),
        }
    }
}
