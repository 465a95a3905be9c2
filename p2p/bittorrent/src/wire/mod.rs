//! The peer wire: handshake and messages (BEP 3, 6, 10), as bytes in and values out. No sockets here.
//!
//! [`Frames::next`] takes whole messages out of a receive buffer. A length prefix is checked against a cap that depends
//! on the torrent before the buffer may grow to it, so a peer can make us hold at most one message of that cap.

pub mod extended;
pub mod handshake;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::layout::BLOCK;

/// Cap of every message but `bitfield` and extended ones: a `piece` with one block of 16 KiB, twice over for clients with
/// larger blocks.
pub const MAX_MESSAGE: usize = 2 * BLOCK as usize + 9;
/// Cap of extended messages: a `ut_metadata` piece of 16 KiB behind its dictionary; BEP 10 handshakes are far below.
pub const MAX_EXTENDED: usize = 64 << 10;
/// Largest block a peer may request from us; others refuse beyond 16 KiB, a few ask for 32 KiB.
pub const MAX_REQUEST: u32 = 2 * BLOCK;

/// Why a peer's bytes end the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A length prefix above the cap.
    #[error("peer announced a message of {size} bytes where at most {cap} are allowed")]
    TooLong {
        /// Bytes announced.
        size: usize,
        /// Bytes allowed.
        cap: usize,
    },
    /// A message whose length does not fit its kind.
    #[error("peer sent a malformed message of kind {0}")]
    Malformed(u8),
    /// The handshake is not BitTorrent's.
    #[error("peer does not speak BitTorrent")]
    NotBitTorrent,
    /// The extension handshake or an extended message is not bencode.
    #[error("peer sent a malformed extended message: {0}")]
    Extended(#[from] crate::bencode::BencodeError),
    /// Something that the protocol or our bounds forbid.
    #[error("peer broke the protocol: {0}")]
    Protocol(&'static str),
}

/// A block of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRequest {
    /// Piece number.
    pub piece: u32,
    /// First byte within the piece.
    pub begin: u32,
    /// Bytes.
    pub length: u32,
}

/// A peer-wire message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the names are BEP 3's, 6's and 10's
pub enum Message {
    KeepAlive,
    Choke,
    Unchoke,
    Interested,
    NotInterested,
    Have(u32),
    Bitfield(Bytes),
    Request(BlockRequest),
    Piece {
        piece: u32,
        begin: u32,
        data: Bytes,
    },
    Cancel(BlockRequest),
    Port(u16),
    Suggest(u32),
    HaveAll,
    HaveNone,
    Reject(BlockRequest),
    AllowedFast(u32),
    Extended {
        id: u8,
        payload: Bytes,
    },
    /// A kind we do not know; ignored, as BEP 3 clients do.
    Unknown(u8),
}

const REQUEST: u8 = 6;
const PIECE: u8 = 7;
const CANCEL: u8 = 8;
const REJECT: u8 = 16;
const EXTENDED: u8 = 20;

impl Message {
    /// Appends the message with its length prefix.
    pub fn encode(&self, out: &mut BytesMut) {
        let plain = |out: &mut BytesMut, id: u8| out.put_slice(&[0, 0, 0, 1, id]);
        let index = |out: &mut BytesMut, id: u8, n: u32| {
            out.put_slice(&[0, 0, 0, 5, id]);
            out.put_u32(n);
        };
        let block = |out: &mut BytesMut, id: u8, r: &BlockRequest| {
            out.put_slice(&[0, 0, 0, 13, id]);
            out.put_u32(r.piece);
            out.put_u32(r.begin);
            out.put_u32(r.length);
        };
        match self {
            Message::KeepAlive => out.put_u32(0),
            Message::Choke => plain(out, 0),
            Message::Unchoke => plain(out, 1),
            Message::Interested => plain(out, 2),
            Message::NotInterested => plain(out, 3),
            Message::Have(n) => index(out, 4, *n),
            Message::Bitfield(bits) => {
                out.put_u32(bits.len() as u32 + 1);
                out.put_u8(5);
                out.put_slice(bits);
            }
            Message::Request(r) => block(out, REQUEST, r),
            Message::Piece { piece, begin, data } => {
                out.put_slice(&piece_header(*piece, *begin, data.len() as u32));
                out.put_slice(data);
            }
            Message::Cancel(r) => block(out, CANCEL, r),
            Message::Port(port) => {
                out.put_slice(&[0, 0, 0, 3, 9]);
                out.put_u16(*port);
            }
            Message::Suggest(n) => index(out, 13, *n),
            Message::HaveAll => plain(out, 14),
            Message::HaveNone => plain(out, 15),
            Message::Reject(r) => block(out, REJECT, r),
            Message::AllowedFast(n) => index(out, 17, *n),
            Message::Extended { id, payload } => {
                out.put_u32(payload.len() as u32 + 2);
                out.put_slice(&[EXTENDED, *id]);
                out.put_slice(payload);
            }
            Message::Unknown(id) => plain(out, *id),
        }
    }
}

/// The 13 bytes before a block of `length` bytes.
pub fn piece_header(piece: u32, begin: u32, length: u32) -> [u8; 13] {
    let mut head = [0; 13];
    head[..4].copy_from_slice(&(length + 9).to_be_bytes());
    head[4] = PIECE;
    head[5..9].copy_from_slice(&piece.to_be_bytes());
    head[9..].copy_from_slice(&begin.to_be_bytes());
    head
}

/// Takes messages out of a receive buffer, with caps.
#[derive(Debug, Clone, Copy)]
pub struct Frames {
    /// Largest bitfield: pieces / 8, or what the largest info dictionary could have while we do not know it.
    pub max_bitfield: usize,
}

impl Frames {
    /// The next whole message, or `None` until more bytes are there. Payloads are slices of the buffer, not copies.
    pub fn next(&self, buf: &mut BytesMut) -> Result<Option<Message>, WireError> {
        let Some(prefix) = buf.get(..4) else { return Ok(None) };
        let size = u32::from_be_bytes(prefix.try_into().expect("4 bytes")) as usize;
        if size == 0 {
            buf.advance(4);
            return Ok(Some(Message::KeepAlive));
        }
        let Some(&id) = buf.get(4) else {
            let cap = self.max_bitfield.max(MAX_EXTENDED) + 1;
            return if size > cap { Err(WireError::TooLong { size, cap }) } else { Ok(None) };
        };
        let cap = match id {
            5 => self.max_bitfield + 1,
            EXTENDED => MAX_EXTENDED,
            _ => MAX_MESSAGE,
        };
        if size > cap {
            return Err(WireError::TooLong { size, cap });
        }
        if buf.len() < 4 + size {
            buf.reserve(4 + size - buf.len());
            return Ok(None);
        }
        buf.advance(4);
        let mut body = buf.split_to(size);
        body.advance(1);
        decode(id, body.freeze()).map(Some)
    }
}

fn decode(id: u8, mut body: Bytes) -> Result<Message, WireError> {
    let expected = match id {
        0..=3 | 14 | 15 => Some(0),
        4 | 13 | 17 => Some(4),
        REQUEST | CANCEL | REJECT => Some(12),
        9 => Some(2),
        _ => None,
    };
    let short = (id == PIECE && body.len() < 8) || (id == EXTENDED && body.is_empty());
    if short || expected.is_some_and(|n| n != body.len()) {
        return Err(WireError::Malformed(id));
    }
    let block = |mut b: Bytes| BlockRequest { piece: b.get_u32(), begin: b.get_u32(), length: b.get_u32() };
    Ok(match id {
        0 => Message::Choke,
        1 => Message::Unchoke,
        2 => Message::Interested,
        3 => Message::NotInterested,
        4 => Message::Have(body.get_u32()),
        5 => Message::Bitfield(body),
        REQUEST => Message::Request(block(body)),
        PIECE => Message::Piece { piece: body.get_u32(), begin: body.get_u32(), data: body },
        CANCEL => Message::Cancel(block(body)),
        9 => Message::Port(body.get_u16()),
        13 => Message::Suggest(body.get_u32()),
        14 => Message::HaveAll,
        15 => Message::HaveNone,
        REJECT => Message::Reject(block(body)),
        17 => Message::AllowedFast(body.get_u32()),
        EXTENDED => Message::Extended { id: body.get_u8(), payload: body },
        other => Message::Unknown(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAMES: Frames = Frames { max_bitfield: 64 };

    fn message() -> impl Strategy<Value = Message> {
        let block = (any::<u32>(), any::<u32>(), any::<u32>())
            .prop_map(|(piece, begin, length)| BlockRequest { piece, begin, length });
        let bytes = |n| prop::collection::vec(any::<u8>(), 0..n).prop_map(Bytes::from);
        prop_oneof![
            prop::sample::select(vec![
                Message::KeepAlive,
                Message::Choke,
                Message::Unchoke,
                Message::Interested,
                Message::NotInterested,
                Message::HaveAll,
                Message::HaveNone,
            ]),
            any::<u32>().prop_map(Message::Have),
            any::<u32>().prop_map(Message::Suggest),
            any::<u32>().prop_map(Message::AllowedFast),
            any::<u16>().prop_map(Message::Port),
            block.clone().prop_map(Message::Request),
            block.clone().prop_map(Message::Cancel),
            block.prop_map(Message::Reject),
            bytes(64).prop_map(Message::Bitfield),
            (any::<u32>(), any::<u32>(), bytes(3000)).prop_map(|(piece, begin, data)| Message::Piece {
                piece,
                begin,
                data
            }),
            (any::<u8>(), bytes(3000)).prop_map(|(id, payload)| Message::Extended { id, payload }),
        ]
    }

    proptest! {
        /// Any split of the byte stream gives the same messages.
        #[test]
        fn messages_read_back_from_any_chunks(messages in prop::collection::vec(message(), 0..8), chunk in 1usize..700) {
            let mut wire = BytesMut::new();
            messages.iter().for_each(|m| m.encode(&mut wire));
            let (mut buf, mut got) = (BytesMut::new(), vec![]);
            for part in wire.chunks(chunk) {
                buf.extend_from_slice(part);
                while let Some(m) = FRAMES.next(&mut buf).unwrap() {
                    got.push(m);
                }
            }
            prop_assert_eq!(got, messages);
            prop_assert!(buf.is_empty());
        }

        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buf = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = FRAMES.next(&mut buf) {}
        }
    }

    #[test]
    fn lengths_are_capped_before_memory_is_taken() {
        for (id, cap) in [(7u8, MAX_MESSAGE), (5, 65), (EXTENDED, MAX_EXTENDED), (99, MAX_MESSAGE)] {
            let mut buf = BytesMut::new();
            buf.put_u32(cap as u32 + 1);
            buf.put_u8(id);
            assert_eq!(FRAMES.next(&mut buf), Err(WireError::TooLong { size: cap + 1, cap }));
        }
        let mut buf = BytesMut::from(&[0xff, 0xff, 0xff, 0xff][..]);
        assert!(matches!(FRAMES.next(&mut buf), Err(WireError::TooLong { .. })));
        assert!(buf.capacity() < 1024);
    }

    #[test]
    fn wrong_lengths_are_malformed() {
        for bytes in [
            &[0, 0, 0, 2, 0, 0][..],
            &[0, 0, 0, 1, 4],
            &[0, 0, 0, 12, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0, 0, 0, 1, 7],
            &[0, 0, 0, 1, 20],
        ] {
            assert!(matches!(FRAMES.next(&mut BytesMut::from(bytes)), Err(WireError::Malformed(_))));
        }
    }
}
