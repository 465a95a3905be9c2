//! secp256k1 keys and recoverable signatures.
//!
//! One key is a node's identity on the network and, by default, its wallet. Peers are known by their 33-byte
//! [`PublicKey`], roles in documents by the 20-byte [`Address`] of a key.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::{Address, B256, keccak256};
use k256::ecdsa::{RecoveryId, Signature as Ecdsa, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;
use zeroize::Zeroizing;

/// What precedes a compressed secp256k1 key in the bytes of its libp2p peer id: an identity multihash of 37 bytes
/// of protobuf, key type 2, a byte string of 33 (libp2p specs, peer-ids).
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x25, 0x08, 0x02, 0x12, 0x21];

/// Length of the bytes of a secp256k1 peer id.
pub const PEER_ID_LEN: usize = PEER_ID_PREFIX.len() + 33;

/// Why a key cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The bytes are no point of the curve in compressed form.
    #[error("not a public key: 33 bytes of a compressed secp256k1 point are needed")]
    Public,
    /// The bytes are no peer id of a secp256k1 key.
    #[error("not the peer id of a secp256k1 key; only such peers can hold BTT")]
    PeerId,
    /// The bytes are no scalar of the curve. They are not shown.
    #[error("not a secret key: 32 bytes of a number between 1 and the order of secp256k1 are needed")]
    Secret,
    /// The operating system gave no randomness.
    #[error("the operating system's random generator failed: {0}")]
    Random(String),
}

/// Why a signature is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SignatureError {
    /// Not r || s || v.
    #[error("signature has {0} bytes, not 65")]
    Length(usize),
    /// The recovery byte is neither 27 nor 28.
    #[error("signature ends in {0}, not in 27 or 28")]
    RecoveryByte(u8),
    /// s is in the upper half of the order: the mirror image of a signature somebody else made.
    #[error("signature is malleable: s is above half the order of the curve")]
    HighS,
    /// r or s is zero or too large, or no point belongs to them.
    #[error("signature belongs to no key")]
    NoKey,
    /// Somebody else signed.
    #[error("signed by {found}, not by {expected}")]
    WrongSigner {
        /// Whose signature is needed.
        expected: Address,
        /// Who made it.
        found: Address,
    },
}

/// A secret key. Never printed, wiped from memory when dropped.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// A new key from the operating system's generator.
    pub fn generate() -> Result<SecretKey, KeyError> {
        let mut bytes = Zeroizing::new([0u8; 32]);
        loop {
            getrandom::fill(bytes.as_mut_slice()).map_err(|error| KeyError::Random(error.to_string()))?;
            // Misses with a chance of about 2^-128.
            if let Ok(key) = SecretKey::from_bytes(&bytes) {
                return Ok(key);
            }
        }
    }

    /// The key of a big-endian scalar.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<SecretKey, KeyError> {
        SigningKey::from_slice(bytes).map(SecretKey).map_err(|_| KeyError::Secret)
    }

    /// The big-endian scalar, for the key file and the network identity.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        let field: Zeroizing<[u8; 32]> = Zeroizing::new(self.0.to_bytes().into());
        field
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey::of(self.0.verifying_key())
    }

    /// The address of the public half.
    pub fn address(&self) -> Address {
        address_of(self.0.verifying_key())
    }

    /// Signs a digest: deterministic (RFC 6979), s in the lower half.
    pub fn sign_digest(&self, digest: &B256) -> Signature {
        let (signature, recovery) = self.0.sign_prehash_recoverable(digest.as_slice());
        let mut bytes = [0u8; 65];
        bytes[..64].copy_from_slice(&signature.to_bytes());
        bytes[64] = 27 + u8::from(recovery.is_y_odd());
        Signature(bytes)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.address())
    }
}

/// A compressed secp256k1 point: how the market and the ledger name a peer. Always a valid point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 33]);

impl PublicKey {
    /// Checks that the bytes are a point.
    pub fn from_bytes(bytes: &[u8]) -> Result<PublicKey, KeyError> {
        let bytes: [u8; 33] = bytes.try_into().map_err(|_| KeyError::Public)?;
        VerifyingKey::from_sec1_bytes(&bytes).map_err(|_| KeyError::Public)?;
        Ok(PublicKey(bytes))
    }

    /// The compressed point.
    pub fn as_bytes(&self) -> &[u8; 33] {
        &self.0
    }

    /// The address of this key: the last 20 bytes of keccak256 of the uncompressed point.
    pub fn address(&self) -> Address {
        // Checked when it was made.
        address_of(&VerifyingKey::from_sec1_bytes(&self.0).expect("a public key is a point"))
    }

    /// The bytes of this key's libp2p peer id.
    pub fn to_peer_id_bytes(&self) -> [u8; PEER_ID_LEN] {
        let mut bytes = [0u8; PEER_ID_LEN];
        bytes[..6].copy_from_slice(&PEER_ID_PREFIX);
        bytes[6..].copy_from_slice(&self.0);
        bytes
    }

    /// The key inside the bytes of a libp2p peer id.
    pub fn from_peer_id_bytes(bytes: &[u8]) -> Result<PublicKey, KeyError> {
        let key = bytes.strip_prefix(&PEER_ID_PREFIX).ok_or(KeyError::PeerId)?;
        PublicKey::from_bytes(key).map_err(|_| KeyError::PeerId)
    }

    fn of(key: &VerifyingKey) -> PublicKey {
        let mut bytes = [0u8; 33];
        bytes.copy_from_slice(key.to_sec1_point(true).as_bytes());
        PublicKey(bytes)
    }
}

fn address_of(key: &VerifyingKey) -> Address {
    let point = key.to_sec1_point(false);
    Address::from_slice(&keccak256(&point.as_bytes()[1..])[12..])
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<PublicKey, KeyError> {
        let mut bytes = [0u8; 33];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| KeyError::Public)?;
        PublicKey::from_bytes(&bytes)
    }
}

/// r || s || v: 64 bytes and a recovery byte of 27 or 28.
///
/// Whether it is anybody's is only known after [`recover`]; this type holds 65 bytes as they came.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; 65]);

impl Signature {
    /// Takes bytes as they came; only the length is checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Signature, SignatureError> {
        bytes.try_into().map(Signature).map_err(|_| SignatureError::Length(bytes.len()))
    }

    /// r || s || v.
    pub fn as_bytes(&self) -> &[u8; 65] {
        &self.0
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({}..)", hex::encode(&self.0[..8]))
    }
}

/// Who signed `digest`. Only the one canonical signature (s <= n/2, v 27 or 28) of a key other than the zero
/// address is accepted.
pub fn recover(digest: &B256, signature: &Signature) -> Result<Address, SignatureError> {
    let odd = match signature.0[64] {
        27 => false,
        28 => true,
        other => return Err(SignatureError::RecoveryByte(other)),
    };
    let ecdsa = Ecdsa::from_slice(&signature.0[..64]).map_err(|_| SignatureError::NoKey)?;
    if ecdsa.normalize_s() != ecdsa {
        return Err(SignatureError::HighS);
    }
    let key = VerifyingKey::recover_from_prehash(digest.as_slice(), &ecdsa, RecoveryId::new(odd, false))
        .map_err(|_| SignatureError::NoKey)?;
    let address = address_of(&key);
    if address.is_zero() { Err(SignatureError::NoKey) } else { Ok(address) }
}

/// Serde for fixed byte arrays: hex in text formats, a byte string in binary ones.
macro_rules! serde_as_bytes {
    ($type:ty, $what:literal, $from:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.serialize_str(&hex::encode(self.0))
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                struct Bytes;
                impl de::Visitor<'_> for Bytes {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        let text = text.strip_prefix("0x").unwrap_or(text);
                        self.visit_bytes(&hex::decode(text).map_err(E::custom)?)
                    }

                    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<$type, E> {
                        $from(bytes).map_err(E::custom)
                    }
                }
                if deserializer.is_human_readable() {
                    deserializer.deserialize_str(Bytes)
                } else {
                    deserializer.deserialize_bytes(Bytes)
                }
            }
        }
    };
}

serde_as_bytes!(PublicKey, "a compressed secp256k1 public key of 33 bytes", PublicKey::from_bytes);
serde_as_bytes!(Signature, "a signature of 65 bytes", Signature::from_bytes);

#[cfg(test)]
mod tests {
    use k256::elliptic_curve::ops::Neg;
    use proptest::prelude::*;

    use super::*;

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_bytes(&[byte; 32]).unwrap()
    }

    #[test]
    fn addresses_are_those_of_ethereum() {
        // The first account of the well-known development mnemonic "test test ... junk".
        let mut secret = [0u8; 32];
        let text = "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        hex::decode_to_slice(text, &mut secret).unwrap();
        let key = SecretKey::from_bytes(&secret).unwrap();
        assert_eq!(key.address().to_string(), "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266");
        assert_eq!(key.public().address(), key.address());
    }

    #[test]
    fn signatures_are_deterministic_and_recover() {
        let digest = keccak256(b"a digest");
        let signature = key(1).sign_digest(&digest);
        assert_eq!(signature, key(1).sign_digest(&digest));
        assert_eq!(recover(&digest, &signature), Ok(key(1).address()));
        assert_ne!(recover(&keccak256(b"another"), &signature), Ok(key(1).address()));
    }

    #[test]
    fn the_mirror_image_of_a_signature_is_refused() {
        let digest = keccak256(b"a digest");
        let signature = key(2).sign_digest(&digest);
        let ecdsa = Ecdsa::from_slice(&signature.0[..64]).unwrap();
        let (r, s) = ecdsa.split_scalars();
        let mirrored = Ecdsa::from_scalars(*r, s.neg()).unwrap();
        let mut bytes = [0u8; 65];
        bytes[..64].copy_from_slice(&mirrored.to_bytes());
        bytes[64] = 27 + 28 - signature.0[64];
        assert_eq!(recover(&digest, &Signature(bytes)), Err(SignatureError::HighS));
    }

    #[test]
    fn malformed_signatures_are_refused() {
        let digest = keccak256(b"a digest");
        assert_eq!(Signature::from_bytes(&[0; 64]), Err(SignatureError::Length(64)));
        let mut bytes = *key(3).sign_digest(&digest).as_bytes();
        for byte in [0, 1, 26, 29, 255] {
            bytes[64] = byte;
            assert_eq!(recover(&digest, &Signature(bytes)), Err(SignatureError::RecoveryByte(byte)));
        }
        for fill in [0x00, 0xff] {
            let mut bytes = [fill; 65];
            bytes[64] = 27;
            assert_eq!(recover(&digest, &Signature(bytes)), Err(SignatureError::NoKey));
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = key(7);
        assert!(!format!("{secret:?}").contains("0707"));
        assert!(SecretKey::from_bytes(&[0; 32]).is_err());
        assert!(SecretKey::from_bytes(&[0xff; 32]).is_err());
        assert_ne!(SecretKey::generate().unwrap().address(), SecretKey::generate().unwrap().address());
    }

    #[test]
    fn public_keys_travel_as_text_cbor_and_peer_id() {
        let public = key(4).public();
        assert_eq!(public.to_string().parse(), Ok(public));
        assert_eq!(PublicKey::from_peer_id_bytes(&public.to_peer_id_bytes()), Ok(public));
        assert_eq!(PublicKey::from_peer_id_bytes(public.as_bytes()), Err(KeyError::PeerId));
        let cbor = serde_ipld_dagcbor::to_vec(&public).unwrap();
        assert_eq!(cbor.len(), 35);
        assert_eq!(serde_ipld_dagcbor::from_slice::<PublicKey>(&cbor).unwrap(), public);
        assert!(PublicKey::from_bytes(&[0; 33]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_changed_bit_changes_the_signer(secret in 1u8.., message: [u8; 32], bit in 0usize..520) {
            let digest = B256::from(message);
            let key = key(secret.min(0xfe));
            let mut bytes = *key.sign_digest(&digest).as_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(recover(&digest, &Signature(bytes)), Ok(key.address()));
        }
    }
}
