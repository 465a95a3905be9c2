//! The 68 bytes that open a connection (BEP 3), with the bits of BEP 6 (fast) and BEP 10 (extensions).

use crate::infohash::InfoHash;
use crate::wire::WireError;

/// Bytes of a handshake.
pub const LEN: usize = 68;
const PROTOCOL: &[u8; 20] = b"\x13BitTorrent protocol";

/// A parsed handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// BEP 6: have-all, have-none, reject.
    pub fast: bool,
    /// BEP 10: extended messages.
    pub extended: bool,
    /// Which torrent.
    pub info_hash: InfoHash,
    /// Who (BEP 20).
    pub peer_id: [u8; 20],
}

impl Handshake {
    /// What this node sends.
    pub fn ours(info_hash: InfoHash, peer_id: [u8; 20]) -> Handshake {
        Handshake { fast: true, extended: true, info_hash, peer_id }
    }

    /// The wire form.
    pub fn encode(&self) -> [u8; LEN] {
        let mut out = [0; LEN];
        out[..20].copy_from_slice(PROTOCOL);
        out[25] = if self.extended { 0x10 } else { 0 };
        out[27] = if self.fast { 0x04 } else { 0 };
        out[28..48].copy_from_slice(&self.info_hash.0);
        out[48..].copy_from_slice(&self.peer_id);
        out
    }

    /// Reads the wire form; reserved bits of other extensions are ignored.
    pub fn decode(bytes: &[u8; LEN]) -> Result<Handshake, WireError> {
        if bytes[..20] != PROTOCOL[..] {
            return Err(WireError::NotBitTorrent);
        }
        Ok(Handshake {
            fast: bytes[27] & 0x04 != 0,
            extended: bytes[25] & 0x10 != 0,
            info_hash: InfoHash(bytes[28..48].try_into().expect("20 bytes")),
            peer_id: bytes[48..].try_into().expect("20 bytes"),
        })
    }
}

/// A peer id in Azureus style (BEP 20): `-BF0100-` and twelve bytes of `random`.
pub fn peer_id(random: [u8; 12]) -> [u8; 20] {
    let mut id = *b"-BF0100-............";
    id[8..].copy_from_slice(&random);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_read_back() {
        let ours = Handshake::ours(InfoHash([3; 20]), peer_id([9; 12]));
        assert_eq!(Handshake::decode(&ours.encode()), Ok(ours));
        let mut wrong = ours.encode();
        wrong[1] = b'b';
        assert_eq!(Handshake::decode(&wrong), Err(WireError::NotBitTorrent));
    }
}
