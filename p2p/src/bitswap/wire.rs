//! Bitswap messages on the wire: protobuf in varint-length frames.
//!
//! The outer message is decoded by hand, field by field, so that every repeated field is capped while it is read: a
//! frame of 4 MiB could otherwise hold two million empty entries. Block bytes are never copied: a decoded block is a
//! slice of its frame, an encoded one a segment of its own.
//!
//! Source: the Bitswap specification, versions 1.0 to 1.2.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use cid::{Cid, Version as CidVersion};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use multihash::Multihash;
use prost::Message as _;
use prost::encoding::{self, DecodeContext, WireType};
use std::io;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::limits::{FRAME_BUDGET_KIB, MAX_CID, MAX_ENTRIES_PER_MESSAGE, MAX_MESSAGE, STALL_TIMEOUT};
use btfs_storage::hash::{self, Function};

/// The hash part of a CID: what a block is known by here, whatever codec or version it was asked with.
pub type Key = Multihash<64>;

/// What the other side understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `/ipfs/bitswap/1.0.0` and `/ipfs/bitswap`: bare blocks, CIDv0 only.
    V1_0,
    /// `/ipfs/bitswap/1.1.0`: blocks with a CID prefix.
    V1_1,
    /// `/ipfs/bitswap/1.2.0`: want-have, HAVE and DONT_HAVE.
    V1_2,
}

/// Whether a peer wants the block itself or only to know who has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WantKind {
    /// Tell me whether you have it.
    Have,
    /// Send it.
    Block,
}

/// One line of a wantlist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantEntry {
    /// What is wanted.
    pub cid: Cid,
    /// Higher is sooner.
    pub priority: i32,
    /// The want is withdrawn; the other fields mean nothing then.
    pub cancel: bool,
    /// The block or only its presence.
    pub kind: WantKind,
    /// Whether the absence of the block is to be answered.
    pub send_dont_have: bool,
}

/// The part of a CID that a block travels with: everything but the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// CID version, 0 or 1.
    pub version: u64,
    /// Codec of the block.
    pub codec: u64,
    /// Multihash code.
    pub mh_code: u64,
    /// Digest length in bytes.
    pub mh_len: u64,
}

impl Prefix {
    /// The prefix of `cid`.
    pub fn of(cid: &Cid) -> Prefix {
        Prefix {
            version: if cid.version() == CidVersion::V0 { 0 } else { 1 },
            codec: cid.codec(),
            mh_code: cid.hash().code(),
            mh_len: u64::from(cid.hash().size()),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8);
        for value in [self.version, self.codec, self.mh_code, self.mh_len] {
            encoding::encode_varint(value, &mut out);
        }
        out
    }

    fn decode(mut bytes: &[u8]) -> Option<Prefix> {
        let mut next = || encoding::decode_varint(&mut bytes).ok();
        Some(Prefix { version: next()?, codec: next()?, mh_code: next()?, mh_len: next()? })
    }

    /// Hashes `data` by the prefix's function. `None` for functions that blocks may not be addressed by here, for digests
    /// that are too short for it, and for the identity, which nobody asks for.
    pub fn key_of(&self, data: &[u8]) -> Option<Key> {
        let length = usize::try_from(self.mh_len).ok()?;
        Function::by_code(self.mh_code)?.multihash_of_length(data, length)
    }
}

/// The prefix of a 1.0 block, which has none: CIDv0.
const V0_PREFIX: Prefix = Prefix { version: 0, codec: hash::DAG_PB, mh_code: hash::SHA2_256, mh_len: 32 };

/// Whether a peer has a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It does.
    Have,
    /// It does not, or does not serve it to us.
    DontHave,
}

/// A decoded message.
#[derive(Debug, Default)]
pub struct Message {
    /// The wants replace all earlier ones.
    pub full: bool,
    /// New and cancelled wants.
    pub wants: Vec<WantEntry>,
    /// Blocks, not hashed yet.
    pub blocks: Vec<(Prefix, Bytes)>,
    /// Who has what.
    pub presences: Vec<(Cid, Presence)>,
    /// Entries that were over a cap or malformed, and left out.
    pub dropped: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EntryProto {
    #[prost(bytes = "bytes", tag = "1")]
    block: Bytes,
    #[prost(int32, tag = "2")]
    priority: i32,
    #[prost(bool, tag = "3")]
    cancel: bool,
    #[prost(int32, tag = "4")]
    want_type: i32,
    #[prost(bool, tag = "5")]
    send_dont_have: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BlockProto {
    #[prost(bytes = "bytes", tag = "1")]
    prefix: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    data: Bytes,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PresenceProto {
    #[prost(bytes = "bytes", tag = "1")]
    cid: Bytes,
    #[prost(int32, tag = "2")]
    kind: i32,
}

/// Why a frame could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed.
    #[error("stream: {0}")]
    Io(#[from] io::Error),
    /// The announced length is over the cap; nothing was allocated for it.
    #[error("a frame of {0} bytes was announced; the cap is {MAX_MESSAGE}")]
    Oversize(u64),
    /// The frame is not a Bitswap message.
    #[error("malformed message: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// No progress within the time allowed.
    #[error("no progress for {} s", STALL_TIMEOUT.as_secs())]
    Stalled,
}

impl Message {
    /// Decodes one frame.
    pub fn decode(mut frame: Bytes) -> Result<Message, prost::DecodeError> {
        let mut message = Message::default();
        while frame.has_remaining() {
            let (tag, wire) = encoding::decode_key(&mut frame)?;
            match (tag, wire) {
                (1, WireType::LengthDelimited) => message.decode_wantlist(take(&mut frame)?)?,
                (2, WireType::LengthDelimited) => message.push_block(V0_PREFIX, take(&mut frame)?),
                (3, WireType::LengthDelimited) => {
                    let block = BlockProto::decode(take(&mut frame)?)?;
                    match Prefix::decode(&block.prefix) {
                        Some(prefix) => message.push_block(prefix, block.data),
                        None => message.dropped += 1,
                    }
                }
                (4, WireType::LengthDelimited) => message.push_presence(take(&mut frame)?)?,
                _ => encoding::skip_field(wire, tag, &mut frame, DecodeContext::default())?,
            }
        }
        Ok(message)
    }

    fn decode_wantlist(&mut self, mut list: Bytes) -> Result<(), prost::DecodeError> {
        while list.has_remaining() {
            let (tag, wire) = encoding::decode_key(&mut list)?;
            match (tag, wire) {
                (1, WireType::LengthDelimited) => {
                    let entry = EntryProto::decode(take(&mut list)?)?;
                    match cid_from(&entry.block) {
                        Some(cid) if self.wants.len() < MAX_ENTRIES_PER_MESSAGE => {
                            self.wants.push(WantEntry {
                                cid,
                                priority: entry.priority,
                                cancel: entry.cancel,
                                kind: if entry.want_type == 1 { WantKind::Have } else { WantKind::Block },
                                send_dont_have: entry.send_dont_have,
                            })
                        }
                        _ => self.dropped += 1,
                    }
                }
                (2, WireType::Varint) => self.full = encoding::decode_varint(&mut list)? != 0,
                _ => encoding::skip_field(wire, tag, &mut list, DecodeContext::default())?,
            }
        }
        Ok(())
    }

    fn push_block(&mut self, prefix: Prefix, data: Bytes) {
        if self.blocks.len() < MAX_ENTRIES_PER_MESSAGE {
            self.blocks.push((prefix, data));
        } else {
            self.dropped += 1;
        }
    }

    fn push_presence(&mut self, bytes: Bytes) -> Result<(), prost::DecodeError> {
        let presence = PresenceProto::decode(bytes)?;
        let kind = if presence.kind == 0 { Presence::Have } else { Presence::DontHave };
        match cid_from(&presence.cid) {
            Some(cid) if self.presences.len() < MAX_ENTRIES_PER_MESSAGE => self.presences.push((cid, kind)),
            _ => self.dropped += 1,
        }
        Ok(())
    }
}

/// The CID in a want or presence; `None` when it is over the cap or not one.
fn cid_from(bytes: &[u8]) -> Option<Cid> {
    (bytes.len() <= MAX_CID).then(|| Cid::try_from(bytes).ok()).flatten()
}

/// Takes a length-delimited field without copying it.
fn take(buf: &mut Bytes) -> Result<Bytes, prost::DecodeError> {
    let mut field = Bytes::new();
    encoding::bytes::merge(WireType::LengthDelimited, &mut field, buf, DecodeContext::default())?;
    Ok(field)
}

/// A message in the making: a list of segments, so that block bytes are written from where they are.
#[derive(Debug, Default)]
pub struct Outgoing {
    segments: Vec<Bytes>,
    open: BytesMut,
    len: usize,
}

impl Outgoing {
    /// Blocks shorter than this are copied into the surrounding segment: one write instead of three.
    const COPY_BELOW: usize = 8 << 10;

    /// Whether nothing was put in.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a wantlist.
    pub fn wantlist(&mut self, entries: &[WantEntry], full: bool) {
        let mut list = BytesMut::with_capacity(entries.len() * 56 + 2);
        for entry in entries {
            let proto = EntryProto {
                block: entry.cid.to_bytes().into(),
                priority: entry.priority,
                cancel: entry.cancel,
                want_type: i32::from(entry.kind == WantKind::Have),
                send_dont_have: entry.send_dont_have,
            };
            encoding::message::encode(1, &proto, &mut list);
        }
        if full {
            encoding::bool::encode(2, &true, &mut list);
        }
        self.field(1, list.len());
        self.push(list.freeze());
    }

    /// Adds a block under the CID it was asked by.
    pub fn block(&mut self, cid: &Cid, data: Bytes, version: Version) {
        if version == Version::V1_0 {
            self.field(2, data.len());
            return self.push(data);
        }
        let prefix = Prefix::of(cid).encode();
        let inner = 1
            + encoding::encoded_len_varint(prefix.len() as u64)
            + prefix.len()
            + 1
            + encoding::encoded_len_varint(data.len() as u64)
            + data.len();
        self.field(3, inner);
        self.field(1, prefix.len());
        self.push(prefix.into());
        self.field(2, data.len());
        self.push(data);
    }

    /// Adds a HAVE or DONT_HAVE.
    pub fn presence(&mut self, cid: &Cid, presence: Presence) {
        let proto =
            PresenceProto { cid: cid.to_bytes().into(), kind: i32::from(presence == Presence::DontHave) };
        let before = self.open.len();
        encoding::message::encode(4, &proto, &mut self.open);
        self.len += self.open.len() - before;
    }

    fn field(&mut self, tag: u32, len: usize) {
        let before = self.open.len();
        encoding::encode_key(tag, WireType::LengthDelimited, &mut self.open);
        encoding::encode_varint(len as u64, &mut self.open);
        self.len += self.open.len() - before;
    }

    fn push(&mut self, data: Bytes) {
        self.len += data.len();
        if data.len() < Self::COPY_BELOW {
            self.open.put(data);
        } else {
            self.segments.push(self.open.split().freeze());
            self.segments.push(data);
        }
    }

    /// Writes the message as one frame and flushes.
    pub async fn write<S: AsyncWrite + Unpin>(mut self, stream: &mut S) -> Result<(), FrameError> {
        debug_assert!(self.len <= MAX_MESSAGE, "messages are filled below the cap");
        let mut head = BytesMut::with_capacity(5);
        encoding::encode_varint(self.len as u64, &mut head);
        if let Some(first) = self.segments.first_mut() {
            head.unsplit(BytesMut::from(first.clone()));
            *first = head.freeze();
        } else {
            self.segments.push(head.freeze());
        }
        self.segments.push(self.open.freeze());
        for segment in self.segments {
            write_all(stream, &segment).await?;
        }
        stalled(stream.flush()).await
    }
}

/// Like `write_all`, but only a lack of progress is a failure, not slowness.
async fn write_all<S: AsyncWrite + Unpin>(stream: &mut S, mut bytes: &[u8]) -> Result<(), FrameError> {
    while !bytes.is_empty() {
        let n = stalled(stream.write(bytes)).await?;
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        bytes = &bytes[n..];
    }
    Ok(())
}

async fn stalled<T>(io: impl Future<Output = io::Result<T>>) -> Result<T, FrameError> {
    Ok(timeout(STALL_TIMEOUT, io).await.map_err(|_| FrameError::Stalled)??)
}

/// Reads one frame, or `None` at the clean end of the stream. The length is compared with the cap, and its bytes are
/// taken from the peer's `budget`, before anything is allocated; the permit is to be held while the frame lives.
pub async fn read_frame<'a, S: AsyncRead + Unpin>(
    stream: &mut S,
    budget: &'a Semaphore,
) -> Result<Option<(Bytes, SemaphorePermit<'a>)>, FrameError> {
    let Some(len) = read_length(stream).await? else { return Ok(None) };
    if len > MAX_MESSAGE as u64 {
        return Err(FrameError::Oversize(len));
    }
    let kib = (len as u32).div_ceil(1024).clamp(1, FRAME_BUDGET_KIB);
    let closed = |_| FrameError::Io(io::ErrorKind::ConnectionAborted.into());
    let permit = budget.acquire_many(kib).await.map_err(closed)?;
    let mut frame = BytesMut::zeroed(len as usize);
    let mut filled = 0;
    while filled < frame.len() {
        let n = stalled(stream.read(&mut frame[filled..])).await?;
        if n == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        filled += n;
    }
    Ok(Some((frame.freeze(), permit)))
}

/// Reads a varint byte by byte: frames follow each other and reading ahead would take from the next.
async fn read_length<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<u64>, FrameError> {
    let (mut value, mut shift) = (0u64, 0u32);
    loop {
        let mut byte = [0u8];
        // Between frames a stream may rest as long as it likes; inside one it may not.
        let n =
            if shift == 0 { stream.read(&mut byte).await? } else { stalled(stream.read(&mut byte)).await? };
        match (n, shift) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            _ => {}
        }
        value |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(Some(value));
        }
        shift += 7;
        if shift > 28 {
            return Err(FrameError::Oversize(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::io::Cursor;
    use proptest::prelude::*;

    fn frame_of(out: Outgoing) -> Vec<u8> {
        let mut stream = Cursor::new(Vec::new());
        futures::executor::block_on(async { tokio_free(out.write(&mut stream)).await }).unwrap();
        stream.into_inner()
    }

    /// The stall timer wants a runtime; these tests want none of their own.
    async fn tokio_free<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _inside = runtime.enter();
        work.await
    }

    fn read(bytes: Vec<u8>) -> Result<Option<Message>, FrameError> {
        let budget = Semaphore::new(FRAME_BUDGET_KIB as usize);
        let mut stream = Cursor::new(bytes);
        let frame = futures::executor::block_on(tokio_free(async {
            read_frame(&mut stream, &budget).await.map(|f| f.map(|(bytes, _)| bytes))
        }))?;
        frame.map(Message::decode).transpose().map_err(Into::into)
    }

    #[test]
    fn a_message_comes_back_as_it_went() {
        let cid = hash::cid_v1(hash::RAW, b"a");
        let entry = WantEntry { cid, priority: 7, cancel: false, kind: WantKind::Have, send_dont_have: true };
        let cancel = WantEntry { cancel: true, kind: WantKind::Block, ..entry };
        let big = Bytes::from(vec![3u8; 300_000]);
        let mut out = Outgoing::default();
        out.wantlist(&[entry, cancel], true);
        out.block(&cid, Bytes::from_static(b"a"), Version::V1_2);
        out.block(&cid, big.clone(), Version::V1_2);
        out.presence(&cid, Presence::DontHave);
        let message = read(frame_of(out)).unwrap().unwrap();
        assert!(message.full);
        assert_eq!(message.wants, [entry, cancel]);
        assert_eq!(message.blocks.len(), 2);
        assert_eq!(message.blocks[0].0.key_of(&message.blocks[0].1).as_ref(), Some(cid.hash()));
        assert_eq!(message.blocks[1].1, big);
        assert_eq!(message.presences, [(cid, Presence::DontHave)]);
        assert_eq!(message.dropped, 0);
    }

    #[test]
    fn bare_blocks_are_read_as_cid_v0() {
        let mut out = Outgoing::default();
        out.block(&hash::cid_v1(hash::DAG_PB, b"old"), Bytes::from_static(b"old"), Version::V1_0);
        let message = read(frame_of(out)).unwrap().unwrap();
        assert_eq!(message.blocks, [(V0_PREFIX, Bytes::from_static(b"old"))]);
    }

    #[test]
    fn a_frame_over_the_cap_is_refused_by_its_length() {
        let mut bytes = Vec::new();
        encoding::encode_varint(MAX_MESSAGE as u64 + 1, &mut bytes);
        assert!(matches!(read(bytes), Err(FrameError::Oversize(n)) if n == MAX_MESSAGE as u64 + 1));
        assert!(matches!(read(vec![0xff; 16]), Err(FrameError::Oversize(_))));
    }

    #[test]
    fn a_cut_frame_is_an_error_and_an_absent_one_the_end() {
        assert!(read(Vec::new()).unwrap().is_none());
        assert!(matches!(read(vec![5, 1, 2]), Err(FrameError::Io(_))));
    }

    #[test]
    fn entries_over_the_cap_are_dropped_and_counted() {
        let mut list = Vec::new();
        let entry = EntryProto {
            block: hash::cid_v1(hash::RAW, b"x").to_bytes().into(),
            priority: 1,
            cancel: false,
            want_type: 0,
            send_dont_have: false,
        };
        for _ in 0..MAX_ENTRIES_PER_MESSAGE + 5 {
            encoding::message::encode(1, &entry, &mut list);
        }
        let long = EntryProto { block: vec![1; MAX_CID + 1].into(), ..entry };
        encoding::message::encode(1, &long, &mut list);
        let mut out = BytesMut::new();
        encoding::encode_key(1, WireType::LengthDelimited, &mut out);
        encoding::encode_varint(list.len() as u64, &mut out);
        out.put_slice(&list);
        let message = Message::decode(out.freeze()).unwrap();
        assert_eq!((message.wants.len(), message.dropped), (MAX_ENTRIES_PER_MESSAGE, 6));
    }

    /// What is taken by its prefix is what may name a block, and nothing else.
    #[test]
    fn prefixes_name_what_the_store_takes() {
        let prefix = Prefix { version: 1, codec: hash::RAW, mh_code: hash::SHA2_256, mh_len: 32 };
        // Identity, the functions of few bytes, all of BLAKE2, and what is on nobody's list.
        for mh_code in (0..0x60).chain(0xb200..=0xb261).chain([0xd4, 0xd5, 0x1012, hash::BT_PIECES_ROOT]) {
            for mh_len in 0..=hash::MAX_DIGEST as u64 + 1 {
                let key = Prefix { mh_code, mh_len, ..prefix }.key_of(b"x");
                let asked = Multihash::wrap(mh_code, &vec![0; mh_len as usize]);
                let may_be = asked.is_ok_and(|hash| hash::supported(&Cid::new_v1(hash::RAW, hash)));
                assert_eq!(key.is_some(), may_be && mh_code != hash::IDENTITY, "{mh_code:#x} of {mh_len}");
                assert!(key.is_none_or(|key| hash::verify(&Cid::new_v1(hash::RAW, key), b"x").is_ok()));
            }
        }
        assert_eq!(Prefix { mh_len: u64::MAX, ..prefix }.key_of(b"x"), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = Message::decode(Bytes::from(bytes));
        }
    }
}
