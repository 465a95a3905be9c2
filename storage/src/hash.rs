//! Multihash codes, building of CIDs, and the check that bytes are what their CID says.

mod lanes;

use cid::Cid;
pub use lanes::sha256_all;
pub(crate) use lanes::{WORTH, lanes};
use multihash::Multihash;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

/// Multicodec of raw bytes.
pub const RAW: u64 = 0x55;
/// Multicodec of dag-pb nodes.
pub const DAG_PB: u64 = 0x70;
/// Multicodec of DAG-CBOR nodes.
pub const DAG_CBOR: u64 = 0x71;
/// Multicodec of DAG-JSON nodes.
pub const DAG_JSON: u64 = 0x0129;
/// Multicodec of a BitTorrent info dict.
pub const TORRENT_INFO: u64 = 0x7b;

/// Multihash code of SHA2-256.
pub const SHA2_256: u64 = 0x12;
/// Multihash code of SHA2-512.
pub const SHA2_512: u64 = 0x13;
/// Multihash code of SHA-1: BitTorrent v1 info dicts only.
pub const SHA1: u64 = 0x11;
/// Multihash code of the identity: the digest is the data.
pub const IDENTITY: u64 = 0;
/// Multihash code of a BEP 52 pieces root. It names a file, never a block, so nothing verifies against it.
pub const BT_PIECES_ROOT: u64 = 0xb702;

/// Longest digest a CID here can hold, in bytes.
pub const MAX_DIGEST: usize = 64;

/// Why bytes were not accepted for a CID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The bytes hash to something else.
    #[error("the bytes do not hash to {cid}; they were refused")]
    Mismatch {
        /// The address the bytes were offered under.
        cid: Cid,
    },
    /// The hash function is not one that blocks may be addressed by here.
    #[error("{cid} uses hash function {code:#x}, which this node does not verify; use sha2-256")]
    Unsupported {
        /// The address.
        cid: Cid,
        /// Its multihash code.
        code: u64,
    },
}

/// The SHA2-256 digest of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
}

/// The SHA2-512 digest of `data`.
pub fn sha512(data: &[u8]) -> [u8; 64] {
    Sha512::digest(data).into()
}

/// The CIDv1 of `data` under `codec`, by SHA2-256.
pub fn cid_v1(codec: u64, data: &[u8]) -> Cid {
    cid_from_digest(codec, SHA2_256, &sha256(data))
}

/// The CIDv1 made of a codec, a multihash code and a digest that was computed elsewhere.
///
/// # Panics
/// If `digest` is longer than [`MAX_DIGEST`]; digests of foreign length must be checked before.
pub fn cid_from_digest(codec: u64, mh_code: u64, digest: &[u8]) -> Cid {
    let hash = Multihash::wrap(mh_code, digest).expect("digest of at most MAX_DIGEST bytes");
    Cid::new_v1(codec, hash)
}

/// SHA2-256 of nothing.
const EMPTY_SHA2_256: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24, 0x27,
    0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// The bytes of a block that its CID alone gives: those an identity hash carries, and none for the empty block, which
/// an empty file consists of. Such blocks are never stored, fetched, listed or lost. `None` for any other CID.
pub fn inline(cid: &Cid) -> Option<&[u8]> {
    let hash = cid.hash();
    match hash.code() {
        IDENTITY => Some(hash.digest()),
        SHA2_256 if hash.digest() == EMPTY_SHA2_256 => Some(&[]),
        _ => None,
    }
}

/// The digest of `data` that a multihash of a code and a length holds; `None` if blocks may not be addressed so here.
pub fn digest(code: u64, len: usize, data: &[u8]) -> Option<Vec<u8>> {
    let digest = match code {
        SHA2_256 => sha256(data).to_vec(),
        SHA2_512 => sha512(data).to_vec(),
        SHA1 => Sha1::digest(data).to_vec(),
        _ => return None,
    };
    (digest.len() == len).then_some(digest)
}

/// Whether [`verify`] knows the hash function of `cid`.
pub fn supported(cid: &Cid) -> bool {
    matches!(cid.hash().code(), SHA2_256 | SHA2_512 | SHA1 | IDENTITY)
}

/// Checks that `data` hashes to `cid`.
///
/// SHA2-256, SHA2-512, SHA-1 (for BitTorrent info dicts) and identity are known, each at its full length only:
/// a truncated digest would be a weaker address.
pub fn verify(cid: &Cid, data: &[u8]) -> Result<(), HashError> {
    let hash = cid.hash();
    let matches = match hash.code() {
        SHA2_256 => Sha256::digest(data).as_slice() == hash.digest(),
        SHA2_512 => Sha512::digest(data).as_slice() == hash.digest(),
        SHA1 => Sha1::digest(data).as_slice() == hash.digest(),
        IDENTITY => data == hash.digest(),
        code => return Err(HashError::Unsupported { cid: *cid, code }),
    };
    if matches { Ok(()) } else { Err(HashError::Mismatch { cid: *cid }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_world_has_the_cid_that_kubo_gives() {
        let cid = cid_v1(RAW, b"hello world");
        assert_eq!(cid.to_string(), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
        assert_eq!(verify(&cid, b"hello world"), Ok(()));
        assert_eq!(verify(&cid, b"hello worle"), Err(HashError::Mismatch { cid }));
    }

    #[test]
    fn each_known_function_verifies_and_refuses() {
        let digests: [(u64, Vec<u8>); 4] = [
            (SHA2_256, sha256(b"x").to_vec()),
            (SHA2_512, Sha512::digest(b"x").to_vec()),
            (SHA1, Sha1::digest(b"x").to_vec()),
            (IDENTITY, b"x".to_vec()),
        ];
        for (code, digest) in digests {
            let cid = cid_from_digest(RAW, code, &digest);
            assert!(supported(&cid));
            assert_eq!(verify(&cid, b"x"), Ok(()));
            assert_eq!(verify(&cid, b"y"), Err(HashError::Mismatch { cid }));
        }
        assert_eq!(inline(&cid_from_digest(RAW, IDENTITY, b"x")), Some(&b"x"[..]));
        assert_eq!(inline(&cid_v1(RAW, b"x")), None);
        assert_eq!(inline(&cid_v1(RAW, b"")), Some(&b""[..]), "the empty block needs no store");
    }

    #[test]
    fn truncated_and_foreign_digests_are_refused() {
        let short = cid_from_digest(RAW, SHA2_256, &sha256(b"x")[..20]);
        assert_eq!(verify(&short, b"x"), Err(HashError::Mismatch { cid: short }));
        let root = cid_from_digest(RAW, BT_PIECES_ROOT, &sha256(b"x"));
        assert!(!supported(&root));
        assert_eq!(verify(&root, b"x"), Err(HashError::Unsupported { cid: root, code: BT_PIECES_ROOT }));
    }
}
