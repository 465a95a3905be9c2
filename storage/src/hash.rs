//! Multihash codes, building of CIDs, and the check that bytes are what their CID says.
//!
//! Which functions may name a block is a table, [`functions`]. What is made here for our own use (layouts, parity, lists)
//! is named by SHA2-256 alone, and that of many messages at once is in [`lanes`].

mod functions;
mod lanes;

use cid::Cid;
pub use functions::{Function, MIN_DIGEST, UnknownFunction};
pub use lanes::sha256_all;
pub(crate) use lanes::{WORTH, lanes};
use multihash::Multihash;
use sha2::{Digest, Sha256};

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
/// Multihash code of SHA-1: that of BitTorrent v1 info dicts.
pub const SHA1: u64 = 0x11;
/// Multihash code of the identity: the digest is the data.
pub const IDENTITY: u64 = 0;
/// Multihash code of a BEP 52 pieces root. It names a file, never a block, so nothing verifies against it.
pub const BT_PIECES_ROOT: u64 = 0xb702;

/// Longest digest a CID here can hold, in bytes: the full one of every function that has an end. Kubo reads 128, which
/// only BLAKE3 and the identity can have, and nothing makes unless told to; such CIDs do not parse here.
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
    /// The digest is shorter than an address may be, or longer than the function's.
    #[error(
        "{cid} has {length} bytes of {function}, which names blocks by {} to {}: fewer are a weak address, and more are \
         no digest",
        .function.lengths().start(), .function.lengths().end()
    )]
    Length {
        /// The address.
        cid: Cid,
        /// Its hash function.
        function: Function,
        /// Bytes of its digest.
        length: usize,
    },
}

/// The SHA2-256 digest of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data).into()
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

/// The bytes of a block that its CID alone gives: those an identity hash carries, and none for the empty block, which
/// an empty file consists of. Such blocks are never stored, fetched, listed or lost. `None` for any other CID.
pub fn inline(cid: &Cid) -> Option<&[u8]> {
    let hash = cid.hash();
    match hash.code() {
        IDENTITY => Some(hash.digest()),
        _ => function(cid).is_ok_and(|function| function.is_of_nothing(hash.digest())).then_some(&[]),
    }
}

/// Whether [`verify`] knows the hash function of `cid`, and its digest is long enough.
pub fn supported(cid: &Cid) -> bool {
    check(cid).is_ok()
}

/// Whether blocks may be addressed by `cid`, and if not, why.
///
/// # Errors
/// [`HashError::Unsupported`] or [`HashError::Length`].
pub fn check(cid: &Cid) -> Result<(), HashError> {
    if cid.hash().code() == IDENTITY { Ok(()) } else { function(cid).map(drop) }
}

/// Checks that `data` hashes to `cid`, by one of the [functions](Function) that blocks may be named by, or is what an
/// identity hash carries.
pub fn verify(cid: &Cid, data: &[u8]) -> Result<(), HashError> {
    let hash = cid.hash();
    let matches = match hash.code() {
        IDENTITY => data == hash.digest(),
        _ => function(cid)?.multihash_of_length(data, hash.digest().len()).as_ref() == Some(hash),
    };
    if matches { Ok(()) } else { Err(HashError::Mismatch { cid: *cid }) }
}

/// The hash function of `cid`, if its digest has a length that may name a block.
pub(crate) fn function(cid: &Cid) -> Result<Function, HashError> {
    let (code, length) = (cid.hash().code(), cid.hash().digest().len());
    match Function::by_code(code) {
        None => Err(HashError::Unsupported { cid: *cid, code }),
        Some(function) if function.lengths().contains(&length) => Ok(function),
        Some(function) => Err(HashError::Length { cid: *cid, function, length }),
    }
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

    /// Source: Kubo's test of `block put --mhtype=blake3`.
    #[test]
    fn blake3_has_the_cids_that_kubo_gives() {
        let function: Function = "blake3".parse().unwrap();
        for (length, cid) in [
            (32, "bafkr4icj3sdq34o6p7lapfgoxtset5om3lsxll72uz5cjnrkzmb6aoo3si"),
            (
                64,
                "bafkr4qcj3sdq34o6p7lapfgoxtset5om3lsxll72uz5cjnrkzmb6aoo3sknmbprpe27pbfrb67tonydgfot5ixuq4skiva76ppbgpjlzc4ua4",
            ),
        ] {
            let cid: Cid = cid.parse().unwrap();
            assert_eq!(function.multihash_of_length(b"foo\n", length).as_ref(), Some(cid.hash()));
            assert_eq!(verify(&cid, b"foo\n"), Ok(()));
            assert_eq!(verify(&cid, b"foo"), Err(HashError::Mismatch { cid }));
        }
    }

    #[test]
    fn each_known_function_verifies_and_refuses() {
        let names =
            ["sha2-256", "sha2-512", "sha1", "sha3-256", "keccak-512", "shake-256", "blake2s-256", "blake3"];
        let hashed = |data: &[u8]| {
            let hash = |name: &&str| Cid::new_v1(RAW, name.parse::<Function>().unwrap().multihash(data));
            names.iter().map(hash).collect::<Vec<_>>()
        };
        for cid in hashed(b"x").into_iter().chain([cid_from_digest(RAW, IDENTITY, b"x")]) {
            assert!(supported(&cid));
            assert_eq!(verify(&cid, b"x"), Ok(()));
            assert_eq!(verify(&cid, b"y"), Err(HashError::Mismatch { cid }));
        }
        assert_eq!(inline(&cid_from_digest(RAW, IDENTITY, b"x")), Some(&b"x"[..]));
        assert!(hashed(b"x").iter().all(|cid| inline(cid).is_none()));
        for cid in hashed(b"") {
            assert_eq!(inline(&cid), Some(&b""[..]), "the empty block needs no store");
        }
    }

    #[test]
    fn digests_are_cut_as_far_as_kubo_cuts_them() {
        let blake3: Function = "blake3".parse().unwrap();
        for function in [Function::SHA2_256, blake3] {
            let whole = function.multihash(b"x");
            let cut = |length: usize| cid_from_digest(RAW, function.code(), &whole.digest()[..length]);
            assert_eq!(verify(&cut(20), b"x"), Ok(()));
            assert_eq!(verify(&cut(31), b"y"), Err(HashError::Mismatch { cid: cut(31) }));
            for length in [0, 1, 19] {
                let short = HashError::Length { cid: cut(length), function, length };
                assert_eq!(verify(&cut(length), b"x"), Err(short));
                assert!(!supported(&cut(length)));
                assert_eq!(inline(&cut(length)), None);
            }
        }
        let long = cid_from_digest(RAW, SHA2_256, &[sha256(b"x"), [0; 32]].concat());
        let told = verify(&long, b"x").unwrap_err().to_string();
        assert!(told.contains("64 bytes of sha2-256, which names blocks by 20 to 32"), "{told}");
    }

    #[test]
    fn foreign_functions_are_refused() {
        let root = cid_from_digest(RAW, BT_PIECES_ROOT, &sha256(b"x"));
        assert!(!supported(&root));
        assert_eq!(inline(&root), None);
        assert_eq!(verify(&root, b"x"), Err(HashError::Unsupported { cid: root, code: BT_PIECES_ROOT }));
    }

    /// Kubo takes 128 bytes of BLAKE3.
    #[test]
    fn longer_digests_than_cids_here_hold_do_not_parse() {
        let mut bytes = vec![1, RAW as u8, 0x1e, 0x80, 0x01];
        bytes.extend([7; 128]);
        assert!(Cid::try_from(&bytes[..]).is_err());
    }
}
