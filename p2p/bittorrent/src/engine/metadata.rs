//! The info dictionary from peers (BEP 9), for torrents known by infohash alone. Each peer is asked for the whole; the first
//! dictionary that hashes to the infohash counts. Pure but for the parsing at the end.

use std::sync::Arc;

use bytes::Bytes;

use super::link::Link;
use crate::infohash::InfoHash;
use crate::metainfo::{Info, MAX_INFO, MetainfoError};
use crate::wire::extended::{METADATA_PIECE, MetadataMessage};
use crate::wire::{Message, WireError};

/// Requests under way at one peer: some clients answer only a few at a time.
const IN_FLIGHT: u32 = 4;
/// Peers that are asked at the same time.
pub const MAX_FETCHES: usize = 4;

/// A fetch from one peer.
#[derive(Debug)]
pub struct MetadataFetch {
    /// The peer's number for `ut_metadata`.
    id: u8,
    size: usize,
    pieces: Vec<Option<Bytes>>,
    next: u32,
    left: u32,
}

/// What a fetch came to.
#[derive(Debug)]
pub enum Fetched {
    /// More is under way.
    Going,
    /// The dictionary, checked.
    Done(Box<Info>),
    /// The peer does not give it, or what it gave is something else.
    Refused,
    /// The right dictionary, but not one we can use.
    Unusable(MetainfoError),
}

impl MetadataFetch {
    /// Starts asking; `None` if the size told cannot be right.
    pub fn start(id: u8, size: u64, link: &Arc<Link>) -> Option<MetadataFetch> {
        let size = usize::try_from(size).ok().filter(|s| (1..=MAX_INFO).contains(s))?;
        let count = size.div_ceil(METADATA_PIECE);
        let mut fetch = MetadataFetch { id, size, pieces: vec![None; count], next: 0, left: count as u32 };
        (0..IN_FLIGHT).for_each(|_| fetch.ask(link));
        Some(fetch)
    }

    fn ask(&mut self, link: &Link) {
        if (self.next as usize) < self.pieces.len() {
            let payload = MetadataMessage::Request(self.next).encode();
            link.send(&Message::Extended { id: self.id, payload });
            self.next += 1;
        }
    }

    /// Takes a piece in.
    pub fn received(
        &mut self,
        piece: u32,
        data: &Bytes,
        hash: InfoHash,
        link: &Link,
    ) -> Result<Fetched, WireError> {
        let count = self.pieces.len();
        let slot = self
            .pieces
            .get_mut(piece as usize)
            .ok_or(WireError::Protocol("metadata piece beyond the last"))?;
        let expected = METADATA_PIECE.min(self.size - piece as usize * METADATA_PIECE);
        if data.len() != expected {
            return Err(WireError::Protocol("metadata piece of a wrong length"));
        }
        if piece >= self.next || slot.is_some() {
            return Ok(Fetched::Going); // not asked for, or twice
        }
        // A copy, so that the receive buffer it lies in can be used again.
        *slot = Some(Bytes::copy_from_slice(data));
        self.left -= 1;
        if self.left > 0 {
            self.ask(link);
            return Ok(Fetched::Going);
        }
        let mut whole = Vec::with_capacity(self.size);
        (0..count).filter_map(|i| self.pieces[i].take()).for_each(|p| whole.extend_from_slice(&p));
        if InfoHash::of(&whole) != hash {
            return Ok(Fetched::Refused);
        }
        Ok(match Info::parse(&whole) {
            Ok(info) => Fetched::Done(Box::new(info)),
            Err(error) => Fetched::Unusable(error),
        })
    }
}

/// Answers a peer's request for a metadata piece.
pub fn answer(info: Option<&Bytes>, piece: u32) -> MetadataMessage {
    let start = piece as usize * METADATA_PIECE;
    match info {
        Some(info) if start < info.len() => {
            let data = info.slice(start..info.len().min(start + METADATA_PIECE));
            MetadataMessage::Data { piece, total: info.len() as u64, data }
        }
        _ => MetadataMessage::Reject(piece),
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::metainfo::{FileEntry, FileKind};

    #[test]
    fn a_large_dictionary_comes_in_pieces() {
        let file = FileEntry { path: vec![], length: 16_384 * 5_000, kind: FileKind::Regular };
        let info = Info::build("big", 16_384, &[file], false, &vec![9; 100_000]).unwrap();
        let link = Arc::new(Link::new(1, true, CancellationToken::new()));
        let size = info.raw().len();
        let mut fetch = MetadataFetch::start(3, size as u64, &link).unwrap();
        for piece in 0..size.div_ceil(METADATA_PIECE) as u32 {
            let MetadataMessage::Data { data, .. } = answer(Some(info.raw()), piece) else {
                panic!("no data")
            };
            match fetch.received(piece, &data, info.hash(), &link).unwrap() {
                Fetched::Going => {}
                Fetched::Done(got) => {
                    assert_eq!(*got, info);
                    return;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("never done");
    }

    #[test]
    fn lies_are_noticed() {
        let link = Arc::new(Link::new(1, true, CancellationToken::new()));
        assert!(MetadataFetch::start(3, 0, &link).is_none());
        assert!(MetadataFetch::start(3, MAX_INFO as u64 + 1, &link).is_none());
        let mut fetch = MetadataFetch::start(3, 5, &link).unwrap();
        assert!(fetch.received(1, &Bytes::from_static(b"abcde"), InfoHash([0; 20]), &link).is_err());
        assert!(fetch.received(0, &Bytes::from_static(b"abcd"), InfoHash([0; 20]), &link).is_err());
        let refused = fetch.received(0, &Bytes::from_static(b"abcde"), InfoHash([0; 20]), &link).unwrap();
        assert!(matches!(refused, Fetched::Refused));
        assert_eq!(answer(None, 0), MetadataMessage::Reject(0));
        assert_eq!(answer(Some(&Bytes::from_static(b"x")), 1), MetadataMessage::Reject(1));
    }
}
