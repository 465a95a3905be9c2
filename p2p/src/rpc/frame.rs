//! Frames: an unsigned varint length, then that many bytes. The length is compared with a cap before memory is
//! taken for it, and the body is read in steps, so that a peer pays with bytes for the memory it makes us hold.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use unsigned_varint::{decode, encode};

/// Memory that a declared length alone can take; beyond it the buffer grows with the bytes that arrive.
const FIRST_BUFFER: usize = 64 << 10;

/// Bytes of the longest 64-bit varint.
const MAX_LENGTH_BYTES: usize = 10;

/// What went wrong with a frame.
#[derive(Debug)]
pub(crate) enum FrameError {
    /// Declared longer than the cap. Nothing of the body was read.
    TooLarge(u64),
    /// The stream broke or the length was no minimal varint of 64 bits.
    Io(io::Error),
}

impl From<io::Error> for FrameError {
    fn from(error: io::Error) -> Self {
        FrameError::Io(error)
    }
}

/// Reads one frame of at most `cap` bytes.
pub(crate) async fn read_frame<R: AsyncRead + Unpin>(io: &mut R, cap: usize) -> Result<Vec<u8>, FrameError> {
    let length = read_length(io).await?;
    if length > cap as u64 {
        return Err(FrameError::TooLarge(length));
    }
    let length = length as usize;
    let mut body = Vec::with_capacity(length.min(FIRST_BUFFER));
    io.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(FrameError::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(body)
}

/// Reads an unsigned varint byte by byte: nothing after it may be taken from the stream.
async fn read_length<R: AsyncRead + Unpin>(io: &mut R) -> io::Result<u64> {
    let mut bytes = [0; MAX_LENGTH_BYTES];
    for at in 0..MAX_LENGTH_BYTES {
        io.read_exact(&mut bytes[at..=at]).await?;
        if bytes[at] & 0x80 == 0 {
            let (length, _) = decode::u64(&bytes[..=at])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            return Ok(length);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a frame length of more than ten bytes"))
}

/// Writes `parts` as one frame and flushes it.
pub(crate) async fn write_frame<W: AsyncWrite + Unpin>(io: &mut W, parts: &[&[u8]]) -> io::Result<()> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut buffer = encode::u64_buffer();
    io.write_all(encode::u64(length as u64, &mut buffer)).await?;
    for part in parts {
        io.write_all(part).await?;
    }
    io.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use futures::io::Cursor;

    #[test]
    fn frames_round_trip_and_respect_the_cap() {
        let mut wire = Vec::new();
        block_on(write_frame(&mut wire, &[&[1], &[2; 300]])).unwrap();
        assert_eq!(&wire[..3], &[0xad, 0x02, 1]);
        let body = block_on(read_frame(&mut Cursor::new(&wire), 301)).unwrap();
        assert_eq!(body.len(), 301);
        let error = block_on(read_frame(&mut Cursor::new(&wire), 300)).unwrap_err();
        assert!(matches!(error, FrameError::TooLarge(301)));
    }

    #[test]
    fn short_and_overlong_frames_are_errors() {
        for wire in [&[5u8, 1, 2][..], &[0xff; 12][..], &[0x80, 0x00][..], &[][..]] {
            assert!(matches!(block_on(read_frame(&mut Cursor::new(wire), 100)), Err(FrameError::Io(_))));
        }
    }
}
