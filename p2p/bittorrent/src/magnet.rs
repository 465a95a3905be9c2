//! Magnet links (BEP 9, and BEP 53's cousins that only name things): parse and print.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::infohash::InfoHash;

/// A magnet longer than this names nothing sensible.
pub const MAX_MAGNET: usize = 16 << 10;
/// Trackers and peers that one magnet may name.
const MAX_HINTS: usize = 64;

/// Everything but unreserved characters is escaped in values.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A magnet link's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Magnet {
    /// `xt=urn:btih:`: the v1 infohash.
    pub btih: Option<InfoHash>,
    /// `xt=urn:btmh:1220…`: the v2 infohash (SHA-256).
    pub btmh: Option<[u8; 32]>,
    /// `dn`: a name to show until the metadata is here.
    pub name: Option<String>,
    /// `tr`: tracker URLs.
    pub trackers: Vec<String>,
    /// `x.pe`: peer addresses (numeric ones; names are ignored).
    pub peers: Vec<SocketAddr>,
}

/// Why text is not a magnet we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MagnetError {
    /// Not `magnet:?…`.
    #[error("not a magnet link: it must start with \"magnet:?\"")]
    Scheme,
    /// Longer than [`MAX_MAGNET`].
    #[error("magnet link is longer than {MAX_MAGNET} bytes")]
    TooLong,
    /// No `xt=urn:btih:` or `xt=urn:btmh:`.
    #[error("magnet link names no torrent: it has neither xt=urn:btih: nor xt=urn:btmh:")]
    NoHash,
    /// A hash that does not parse.
    #[error("magnet link has a malformed hash {0:?}")]
    BadHash(String),
}

impl FromStr for Magnet {
    type Err = MagnetError;

    fn from_str(s: &str) -> Result<Self, MagnetError> {
        if s.len() > MAX_MAGNET {
            return Err(MagnetError::TooLong);
        }
        let scheme = s.get(..8).filter(|p| p.eq_ignore_ascii_case("magnet:?"));
        let query = &s[scheme.ok_or(MagnetError::Scheme)?.len()..];
        let mut magnet = Magnet { btih: None, btmh: None, name: None, trackers: vec![], peers: vec![] };
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            // `xt.1`, `tr.2` are numbered forms of the same keys.
            let key =
                key.split_once('.').map_or(&*key, |(k, n)| if n.parse::<u32>().is_ok() { k } else { &key });
            match key {
                "xt" => magnet.take_hash(&value)?,
                "dn" => magnet.name = Some(value.into_owned()),
                "tr" if magnet.trackers.len() < MAX_HINTS => magnet.trackers.push(value.into_owned()),
                "x.pe" if magnet.peers.len() < MAX_HINTS => {
                    magnet.peers.extend(value.parse::<SocketAddr>().ok())
                }
                _ => {}
            }
        }
        if magnet.btih.is_none() && magnet.btmh.is_none() {
            return Err(MagnetError::NoHash);
        }
        Ok(magnet)
    }
}

impl Magnet {
    /// A magnet of a v1 torrent.
    pub fn v1(hash: InfoHash, name: Option<String>) -> Magnet {
        Magnet { btih: Some(hash), btmh: None, name, trackers: vec![], peers: vec![] }
    }

    fn take_hash(&mut self, value: &str) -> Result<(), MagnetError> {
        let bad = || MagnetError::BadHash(value.chars().take(100).collect());
        if let Some(v1) = value.strip_prefix("urn:btih:") {
            self.btih = Some(v1.parse().map_err(|_| bad())?);
        } else if let Some(v2) = value.strip_prefix("urn:btmh:") {
            // A multihash in hex: 0x12 sha2-256, 0x20 = 32 bytes.
            let bytes = hex::decode(v2).map_err(|_| bad())?;
            let digest = bytes.strip_prefix(&[0x12, 0x20]).ok_or_else(bad)?;
            self.btmh = Some(digest.try_into().map_err(|_| bad())?);
        }
        Ok(())
    }
}

impl fmt::Display for Magnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "magnet:?";
        let mut pair = |f: &mut fmt::Formatter<'_>, key: &str, value: &dyn fmt::Display| {
            let written = write!(f, "{separator}{key}={value}");
            separator = "&";
            written
        };
        if let Some(hash) = &self.btih {
            pair(f, "xt", &format_args!("urn:btih:{hash}"))?;
        }
        if let Some(hash) = &self.btmh {
            pair(f, "xt", &format_args!("urn:btmh:1220{}", hex::encode(hash)))?;
        }
        if let Some(name) = &self.name {
            pair(f, "dn", &utf8_percent_encode(name, ESCAPED))?;
        }
        for tracker in &self.trackers {
            pair(f, "tr", &utf8_percent_encode(tracker, ESCAPED))?;
        }
        for peer in &self.peers {
            pair(f, "x.pe", peer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hex_base32_and_v2_hashes() {
        let hash = InfoHash([0xab; 20]);
        let base32 = data_encoding::BASE32.encode(&hash.0);
        for text in [hash.to_string(), hash.to_string().to_uppercase(), base32.clone(), base32.to_lowercase()]
        {
            let magnet: Magnet = format!("magnet:?xt=urn:btih:{text}&dn=a+b%20c").parse().unwrap();
            assert_eq!(magnet.btih, Some(hash));
            assert_eq!(magnet.name.as_deref(), Some("a b c"));
        }
        let v2: Magnet = format!("magnet:?xt=urn:btmh:1220{}", "07".repeat(32)).parse().unwrap();
        assert_eq!((v2.btih, v2.btmh), (None, Some([7; 32])));
    }

    #[test]
    fn malformed_links_are_refused() {
        assert_eq!("http://x".parse::<Magnet>(), Err(MagnetError::Scheme));
        assert_eq!("mägnet:?".parse::<Magnet>(), Err(MagnetError::Scheme));
        assert_eq!("magnet:?dn=x".parse::<Magnet>(), Err(MagnetError::NoHash));
        assert!(matches!("magnet:?xt=urn:btih:zz".parse::<Magnet>(), Err(MagnetError::BadHash(_))));
        assert!(matches!("magnet:?xt=urn:btmh:1220ff".parse::<Magnet>(), Err(MagnetError::BadHash(_))));
        assert_eq!(
            format!("magnet:?{}", "x".repeat(MAX_MAGNET)).parse::<Magnet>(),
            Err(MagnetError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn printed_links_read_back(hash in any::<[u8; 20]>(), name in prop::option::of(".{0,30}"), tracker in "[ -~]{0,40}", port in any::<u16>()) {
            let magnet = Magnet {
                btih: Some(InfoHash(hash)), btmh: None, name, trackers: vec![tracker],
                peers: vec![SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1], port))],
            };
            prop_assert_eq!(magnet.to_string().parse::<Magnet>().unwrap(), magnet);
        }
    }
}
