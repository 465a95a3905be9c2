//! Keys, and links that carry them.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroizing;

use super::SealError;

/// The key of one sealed file. It is wiped from memory when dropped and cannot be printed by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct SealKey(Zeroizing<[u8; SealKey::LEN]>);

impl SealKey {
    /// Bytes of a key.
    pub const LEN: usize = 32;

    /// A new key from the system's generator.
    pub fn random() -> Result<SealKey, SealError> {
        let mut key = Zeroizing::new([0; Self::LEN]);
        getrandom::fill(key.as_mut_slice()).map_err(|error| SealError::Random(error.to_string()))?;
        Ok(SealKey(key))
    }

    /// The key of these bytes.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> SealKey {
        SealKey(Zeroizing::new(bytes))
    }

    /// The key as it stands in a link: base64url without padding, 43 characters.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64URL_NOPAD.encode(self.0.as_slice()))
    }

    pub(super) fn bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

/// Why a link has no key in it. The text is not quoted: it may be most of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLink {
    /// There is no `#`.
    #[error("the link has no key")]
    NoKey,
    /// What follows the `#` is no key.
    #[error("what follows the # of the link is not a key of 43 characters (base64url); was it cut off?")]
    Key,
}

/// A link to a sealed file: a reference as anywhere else, `#`, and the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// What stands before the `#`: a CID or `/ipfs/CID/path`. It may be told to anybody.
    pub reference: String,
    /// What stands after it.
    pub key: SealKey,
}

impl Link {
    /// The whole link, key and all.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}#{}", self.reference, *self.key.reveal()))
    }
}

impl FromStr for Link {
    type Err = BadLink;

    fn from_str(text: &str) -> Result<Link, BadLink> {
        let (reference, key) = text.trim().rsplit_once('#').ok_or(BadLink::NoKey)?;
        let bytes = BASE64URL_NOPAD.decode(key.as_bytes()).map(Zeroizing::new).map_err(|_| BadLink::Key)?;
        let key = <[u8; SealKey::LEN]>::try_from(bytes.as_slice()).map_err(|_| BadLink::Key)?;
        Ok(Link { reference: reference.to_owned(), key: SealKey::from_bytes(key) })
    }
}
