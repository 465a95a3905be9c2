//! The extension protocol (BEP 10) and the metadata exchange over it (BEP 9).

use bytes::{Bytes, BytesMut};

use crate::bencode::{self, Owned, Value};
use crate::wire::WireError;

/// Extended message 0 is the handshake.
pub const HANDSHAKE_ID: u8 = 0;
/// The number under which we receive `ut_metadata`.
pub const UT_METADATA_ID: u8 = 1;
/// Bytes of one metadata piece (BEP 9).
pub const METADATA_PIECE: usize = 16 << 10;

/// What a peer's extension handshake says that we use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExtendedHandshake {
    /// The number under which the peer receives `ut_metadata`; `None` if it does not.
    pub ut_metadata: Option<u8>,
    /// Bytes of the info dictionary, if the peer has it.
    pub metadata_size: Option<u64>,
    /// Requests that the peer queues.
    pub reqq: Option<u32>,
    /// The port it listens on.
    pub port: Option<u16>,
    /// Client name.
    pub client: Option<String>,
}

impl ExtendedHandshake {
    /// The payload of message 0.
    pub fn encode(&self) -> Bytes {
        let mut map = std::collections::BTreeMap::new();
        let mut put = |key: &str, value: Owned| map.insert(key.as_bytes().to_vec(), value);
        if let Some(id) = self.ut_metadata {
            put("m", Owned::dict([("ut_metadata", Owned::Int(i64::from(id)))]));
        }
        if let Some(size) = self.metadata_size {
            put("metadata_size", Owned::Int(size as i64)); // at most MAX_INFO
        }
        if let Some(reqq) = self.reqq {
            put("reqq", Owned::Int(i64::from(reqq)));
        }
        if let Some(port) = self.port {
            put("p", Owned::Int(i64::from(port)));
        }
        if let Some(client) = &self.client {
            put("v", Owned::text(client));
        }
        Owned::Dict(map).encode().into()
    }

    /// Reads the payload of message 0; unknown keys are ignored, values out of range count as absent.
    pub fn decode(payload: &[u8]) -> Result<ExtendedHandshake, WireError> {
        let (value, _) = bencode::parse_prefix(payload)?;
        let dict = value.as_dict().ok_or(WireError::Protocol("extension handshake is not a dictionary"))?;
        let id = dict.dict("m").and_then(|m| m.int("ut_metadata"));
        Ok(ExtendedHandshake {
            ut_metadata: id.and_then(|n| u8::try_from(n).ok()).filter(|n| *n != 0),
            metadata_size: dict.int("metadata_size").and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0),
            reqq: dict.int("reqq").and_then(|n| u32::try_from(n).ok()),
            port: dict.int("p").and_then(|n| u16::try_from(n).ok()).filter(|p| *p != 0),
            client: dict.bytes("v").map(|v| String::from_utf8_lossy(&v[..v.len().min(64)]).into_owned()),
        })
    }
}

/// A `ut_metadata` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataMessage {
    /// Asks for a piece.
    Request(u32),
    /// A piece, and the size of the whole.
    Data {
        /// Piece number.
        piece: u32,
        /// Bytes of the whole info dictionary.
        total: u64,
        /// At most [`METADATA_PIECE`] bytes.
        data: Bytes,
    },
    /// The peer does not give this piece.
    Reject(u32),
    /// A type from a later version; ignored.
    Unknown,
}

impl MetadataMessage {
    /// The payload behind the extended id.
    pub fn encode(&self) -> Bytes {
        let head =
            |kind: i64, piece: u32| [("msg_type", Owned::Int(kind)), ("piece", Owned::Int(i64::from(piece)))];
        match self {
            MetadataMessage::Request(piece) => Owned::dict(head(0, *piece)).encode().into(),
            MetadataMessage::Reject(piece) => Owned::dict(head(2, *piece)).encode().into(),
            MetadataMessage::Unknown => Owned::dict(head(3, 0)).encode().into(),
            MetadataMessage::Data { piece, total, data } => {
                let [kind, number] = head(1, *piece);
                let dict = Owned::dict([kind, number, ("total_size", Owned::Int(*total as i64))]).encode();
                let mut out = BytesMut::with_capacity(dict.len() + data.len());
                out.extend_from_slice(&dict);
                out.extend_from_slice(data);
                out.freeze()
            }
        }
    }

    /// Reads the payload behind the extended id.
    pub fn decode(payload: &Bytes) -> Result<MetadataMessage, WireError> {
        let (value, used) = bencode::parse_prefix(payload)?;
        let Value::Dict(dict) = value else {
            return Err(WireError::Protocol("ut_metadata is not a dictionary"));
        };
        let piece = dict.int("piece").and_then(|n| u32::try_from(n).ok());
        let piece = piece.ok_or(WireError::Protocol("ut_metadata has no piece number"))?;
        match dict.int("msg_type") {
            Some(0) => Ok(MetadataMessage::Request(piece)),
            Some(1) => {
                let total = dict.int("total_size").and_then(|n| u64::try_from(n).ok());
                let total = total.ok_or(WireError::Protocol("ut_metadata data has no total_size"))?;
                let data = payload.slice(used..);
                if data.len() > METADATA_PIECE {
                    return Err(WireError::Protocol("ut_metadata piece is longer than 16 KiB"));
                }
                Ok(MetadataMessage::Data { piece, total, data })
            }
            Some(2) => Ok(MetadataMessage::Reject(piece)),
            _ => Ok(MetadataMessage::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn handshakes_read_back() {
        let full = ExtendedHandshake {
            ut_metadata: Some(3),
            metadata_size: Some(1234),
            reqq: Some(500),
            port: Some(6881),
            client: Some("x 1".into()),
        };
        assert_eq!(ExtendedHandshake::decode(&full.encode()), Ok(full));
        assert_eq!(
            ExtendedHandshake::decode(b"d1:md11:ut_metadatai0ee1:pi-4ee"),
            Ok(ExtendedHandshake::default())
        );
        assert!(ExtendedHandshake::decode(b"le").is_err());
    }

    #[test]
    fn metadata_messages_read_back() {
        let data = Bytes::from(vec![5; 100]);
        for message in [
            MetadataMessage::Request(4),
            MetadataMessage::Reject(0),
            MetadataMessage::Data { piece: 1, total: 16_484, data },
        ] {
            assert_eq!(MetadataMessage::decode(&message.encode()), Ok(message));
        }
        let long = MetadataMessage::Data { piece: 0, total: 1, data: vec![0; METADATA_PIECE + 1].into() };
        assert!(MetadataMessage::decode(&long.encode()).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ExtendedHandshake::decode(&bytes);
            let _ = MetadataMessage::decode(&bytes.into());
        }
    }
}
