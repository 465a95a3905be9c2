//! Keys and the peer ids made of them.
//!
//! A node's identity is a secp256k1 key. Its compressed public key fits into an identity multihash (libp2p
//! peer-ids spec), so the key can be read back out of the peer id: the market knows peers by their 33-byte public
//! keys, the network by their peer ids, and both are the same thing.

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey, secp256k1};
use thiserror::Error;

/// Multihash code of the identity hash: the "digest" is the data itself.
const IDENTITY_MULTIHASH: u64 = 0;

/// Why a key could not be used as a node's identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The 32 bytes are zero or not below the order of the curve.
    #[error("the secret key is not a valid secp256k1 key; restore the key file from its backup")]
    Secret,
    /// The 33 bytes are no compressed point of the curve.
    #[error("the public key is not a compressed secp256k1 point")]
    Public,
    /// The peer id is a hash, or of a key of another kind, so no secp256k1 key can be read from it.
    #[error("peer {0} has no secp256k1 key in its id; only peers with such keys can take part in the market")]
    OtherKind(PeerId),
}

/// The libp2p keypair of a 32-byte secp256k1 secret (big endian scalar).
pub fn keypair_from_secret(secret: &[u8; 32]) -> Result<Keypair, IdentityError> {
    let secret = secp256k1::SecretKey::try_from_bytes(*secret).map_err(|_| IdentityError::Secret)?;
    Ok(Keypair::from(secp256k1::Keypair::from(secret)))
}

/// The peer id of a 33-byte compressed secp256k1 public key.
pub fn peer_from_public_key(key: &[u8; 33]) -> Result<PeerId, IdentityError> {
    let key = secp256k1::PublicKey::try_from_bytes(key).map_err(|_| IdentityError::Public)?;
    Ok(PeerId::from_public_key(&PublicKey::from(key)))
}

/// The 33-byte compressed secp256k1 public key inside a peer id.
pub fn public_key_from_peer(peer: &PeerId) -> Result<[u8; 33], IdentityError> {
    let other = || IdentityError::OtherKind(*peer);
    if peer.as_ref().code() != IDENTITY_MULTIHASH {
        return Err(other());
    }
    let key = PublicKey::try_decode_protobuf(peer.as_ref().digest()).map_err(|_| other())?;
    Ok(key.try_into_secp256k1().map_err(|_| other())?.to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_key_survives_the_peer_id() {
        let keypair = keypair_from_secret(&[7; 32]).unwrap();
        let peer = keypair.public().to_peer_id();
        let key = public_key_from_peer(&peer).unwrap();
        assert_eq!(key, keypair.public().try_into_secp256k1().unwrap().to_bytes());
        assert_eq!(peer_from_public_key(&key).unwrap(), peer);
    }

    #[test]
    fn bad_keys_are_refused() {
        assert!(matches!(keypair_from_secret(&[0; 32]), Err(IdentityError::Secret)));
        assert!(matches!(keypair_from_secret(&[0xff; 32]), Err(IdentityError::Secret)));
        assert!(matches!(peer_from_public_key(&[5; 33]), Err(IdentityError::Public)));
        let ed25519 = Keypair::generate_ed25519().public().to_peer_id();
        assert!(matches!(public_key_from_peer(&ed25519), Err(IdentityError::OtherKind(_))));
    }
}
