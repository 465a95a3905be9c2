//! Sealing, as a stream.

use std::io::{self, Read};

use chacha20poly1305::XChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit};

use super::{HEADER, MAGIC, MAX_SEGMENTS, PREFIX, SEGMENT, SealError, SealKey, TAG, VERSION, nonce};

/// Bytes of a sealed file with that much content.
pub fn sealed_size(content: u64) -> u64 {
    let segments = content.div_ceil(SEGMENT as u64).max(1);
    HEADER as u64 + content + segments * TAG as u64
}

/// Seals what it reads: a reader of the sealed bytes of another reader. Memory: two segments.
///
/// Errors of the content come out of `read` as they are, [`SealError`]s inside an [`io::Error`].
pub struct Sealer<R> {
    content: R,
    cipher: XChaCha20Poly1305,
    header: [u8; HEADER],
    /// The segment after the one in `out`: read ahead to know which is the last.
    ahead: Vec<u8>,
    /// Sealed bytes that were not asked for yet, from `given` on.
    out: Vec<u8>,
    given: usize,
    index: u64,
    done: bool,
}

impl<R: Read> Sealer<R> {
    /// Seals `content` under `key`, which must not be used for anything else.
    pub fn new(content: R, key: &SealKey) -> Result<Sealer<R>, SealError> {
        let mut prefix = [0; PREFIX];
        getrandom::fill(&mut prefix).map_err(|error| SealError::Random(error.to_string()))?;
        Ok(Self::with_prefix(content, key, prefix))
    }

    /// Seals under a nonce prefix that is given: for the vectors of the format.
    pub(super) fn with_prefix(content: R, key: &SealKey, prefix: [u8; PREFIX]) -> Sealer<R> {
        let mut header = [0; HEADER];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        header[MAGIC.len()] = VERSION;
        header[HEADER - PREFIX..].copy_from_slice(&prefix);
        let cipher = XChaCha20Poly1305::new(key.bytes().into());
        let out = header.to_vec();
        Sealer { content, cipher, header, ahead: Vec::new(), out, given: 0, index: 0, done: false }
    }

    /// Makes the next segment, or leaves `out` empty at the end.
    fn next_segment(&mut self) -> io::Result<()> {
        self.out.clear();
        self.given = 0;
        if self.done {
            return Ok(());
        }
        if self.index == 0 {
            self.ahead = segment(&mut self.content)?;
        }
        if self.index == MAX_SEGMENTS {
            return Err(io::Error::other(SealError::TooLong));
        }
        let mut this = std::mem::take(&mut self.ahead);
        // A short one is the last in any case; a full one if nothing comes after it.
        if this.len() == SEGMENT {
            self.ahead = segment(&mut self.content)?;
        }
        self.done = self.ahead.is_empty();
        let nonce = nonce(&self.header, self.index as u32, self.done);
        self.cipher
            .encrypt_in_place(&nonce, &self.header, &mut this)
            .map_err(|_| io::Error::other("a segment could not be sealed"))?;
        self.index += 1;
        self.out = this;
        Ok(())
    }
}

/// Reads a full segment, or less at the end.
fn segment(content: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(SEGMENT + TAG);
    content.take(SEGMENT as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl<R: Read> Read for Sealer<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        if self.given == self.out.len() {
            self.next_segment()?;
        }
        let part = &self.out[self.given..];
        let len = part.len().min(into.len());
        into[..len].copy_from_slice(&part[..len]);
        self.given += len;
        Ok(len)
    }
}
