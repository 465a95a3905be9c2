//! Infohashes: the names of torrents. v1 is the SHA-1 of the `info` dictionary (BEP 3), v2 its SHA-256 (BEP 52).

use std::fmt;
use std::str::FromStr;

use btfs_storage::{Cid, hash};
use sha1::{Digest, Sha1};

/// The v1 infohash: SHA-1 over the exact bytes of the `info` dictionary. Printed as 40 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InfoHash(pub [u8; 20]);

/// The text is not an infohash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an infohash: expected 40 hex digits or 32 base32 letters, got {0:?}")]
pub struct InfoHashError(pub String);

impl InfoHash {
    /// The infohash of an `info` dictionary's bytes.
    pub fn of(info: &[u8]) -> InfoHash {
        InfoHash(Sha1::digest(info).into())
    }

    /// The address of the `info` dictionary as a block: CID(torrent-info, sha1).
    pub fn cid(&self) -> Cid {
        hash::cid_from_digest(hash::TORRENT_INFO, hash::SHA1, &self.0)
    }

    /// The multihash bytes under which the alias table knows this torrent.
    pub fn multihash(&self) -> Vec<u8> {
        self.cid().hash().to_bytes()
    }
}

/// The multihash bytes under which the alias table knows a torrent by its v2 infohash: CID(torrent-info, sha2-256).
pub fn multihash_v2(digest: &[u8; 32]) -> Vec<u8> {
    hash::cid_from_digest(hash::TORRENT_INFO, hash::SHA2_256, digest).hash().to_bytes()
}

impl fmt::Display for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for InfoHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InfoHash({self})")
    }
}

impl FromStr for InfoHash {
    type Err = InfoHashError;

    /// Hex (40) or base32 (32, either case), as magnets have them.
    fn from_str(s: &str) -> Result<Self, InfoHashError> {
        let bad = || InfoHashError(s.chars().take(80).collect());
        let bytes = match s.len() {
            40 => hex::decode(s).map_err(|_| bad())?,
            32 => data_encoding::BASE32.decode(s.to_ascii_uppercase().as_bytes()).map_err(|_| bad())?,
            _ => return Err(bad()),
        };
        bytes.try_into().map(InfoHash).map_err(|_| bad())
    }
}
