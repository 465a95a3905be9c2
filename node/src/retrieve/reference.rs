//! What people paste: a CID, `/ipfs/CID/path`, an infohash, a magnet link or a `.torrent` file.

use std::path::PathBuf;
use std::str::FromStr;

use btfs_storage::Cid;
use btfs_storage::hash::MAX_DIGEST;
use btfs_storage::sealed::Link;

/// A parsed reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A DAG, and a path inside it (empty: the DAG itself).
    Ipfs {
        /// The root.
        root: Cid,
        /// Segments below it, joined by `/`, without a leading one.
        path: String,
    },
    /// A BitTorrent v1 infohash.
    Infohash([u8; 20]),
    /// A magnet link.
    Magnet(String),
    /// A `.torrent` file on this machine.
    TorrentFile(PathBuf),
}

/// Why a text is no reference.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReference {
    /// None of the forms.
    #[error("`{0}` is no CID, /ipfs/CID/path, infohash (40 hex digits), magnet link or .torrent file")]
    Unknown(String),
    /// It starts like a CID and is none.
    #[error("`{text}` is not a valid CID: {reason}")]
    Cid {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A link to a sealed file, with its key. Not quoted: this text goes into answers and logs.
    #[error(
        "this link has a key after its #, and a node is never given keys: `btfs get` and `btfs cat` open sealed files \
         themselves. Everything else takes what stands before the #"
    )]
    Sealed,
    /// A name that only a naming system could resolve.
    #[error("`{0}` is an IPNS name; this node resolves content, not names. Give the CID it points to")]
    Ipns(String),
}

impl FromStr for Reference {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        let text = text.trim();
        if has_key(text) {
            return Err(BadReference::Sealed);
        }
        if text.starts_with("magnet:") {
            return Ok(Self::Magnet(text.to_owned()));
        }
        if text.starts_with("/ipns/") || text.starts_with("ipns://") {
            return Err(BadReference::Ipns(text.to_owned()));
        }
        let prefixed = text.strip_prefix("/ipfs/").or_else(|| text.strip_prefix("ipfs://"));
        let content = prefixed.unwrap_or(text);
        if prefixed.is_none()
            && content.len() == 40
            && let Ok(bytes) = hex::decode(content)
        {
            let infohash = bytes.try_into().map_err(|_| BadReference::Unknown(text.to_owned()))?;
            return Ok(Self::Infohash(infohash));
        }
        let (root, path) = content.split_once('/').unwrap_or((content, ""));
        match Cid::from_str(root) {
            Err(_) if prefixed.is_none() && text.ends_with(".torrent") => {
                Ok(Self::TorrentFile(PathBuf::from(text)))
            }
            Ok(root) => Ok(Self::Ipfs { root, path: path.trim_matches('/').to_owned() }),
            Err(_) if prefixed.is_none() && !looks_like_cid(root) => {
                Err(BadReference::Unknown(text.to_owned()))
            }
            Err(error) => Err(BadReference::Cid { text: root.to_owned(), reason: reason(&error) }),
        }
    }
}

/// What is wrong with a CID. Its parser does not tell a digest that is too long from what is no hash.
fn reason(error: &cid::Error) -> String {
    match error {
        cid::Error::ParsingError => {
            format!(
                "it is cut or misspelt, or its digest has more than the {MAX_DIGEST} bytes that are read here"
            )
        }
        other => other.to_string(),
    }
}

/// Whether a text has a key after its #, whole or, right behind a CID, cut. Names below a CID may have a # in them, too.
fn has_key(text: &str) -> bool {
    match text.rsplit_once('#') {
        None => false,
        Some(_) if text.starts_with("magnet:") => false,
        Some((before, _)) => {
            let content = before.strip_prefix("/ipfs/").or_else(|| before.strip_prefix("ipfs://"));
            !content.unwrap_or(before).contains('/') || text.parse::<Link>().is_ok()
        }
    }
}

fn looks_like_cid(text: &str) -> bool {
    text.starts_with("Qm") || text.starts_with("baf") || text.starts_with("bag")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

    #[test]
    fn every_form() {
        let root: Cid = CID.parse().unwrap();
        let ipfs = |path: &str| Reference::Ipfs { root, path: path.into() };
        assert_eq!(CID.parse(), Ok(ipfs("")));
        assert_eq!(format!("/ipfs/{CID}/a/b/").parse(), Ok(ipfs("a/b")));
        assert_eq!(format!("ipfs://{CID}").parse(), Ok(ipfs("")));
        assert_eq!(format!("{CID}/x").parse(), Ok(ipfs("x")));
        assert_eq!("aa".repeat(20).parse(), Ok(Reference::Infohash([0xaa; 20])));
        assert!(matches!("magnet:?xt=urn:btih:aa".parse(), Ok(Reference::Magnet(_))));
        assert!(matches!("x/y.torrent".parse(), Ok(Reference::TorrentFile(_))));
        assert_eq!(format!("/ipfs/{CID}/y.torrent").parse(), Ok(ipfs("y.torrent")));
        assert_eq!(format!("{CID}/y.torrent").parse(), Ok(ipfs("y.torrent")));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(matches!(Reference::from_str("bafkreibroken"), Err(BadReference::Cid { .. })));
        assert!(matches!(Reference::from_str("hello"), Err(BadReference::Unknown(_))));
        assert!(matches!(Reference::from_str("/ipns/example.org"), Err(BadReference::Ipns(_))));
        assert!(matches!(Reference::from_str("/ipfs/zzz"), Err(BadReference::Cid { .. })));
        // 128 bytes of BLAKE3, from Kubo's tests.
        let long = "bafkr5aabjhoiodpr3z75mb4uz26oispvztnok5np7kthujfwflfqhybz3ojjvqf6f4tl54eweh36nzxamyv2pvc6sdsjjcud7z54ez\
                    5fpelsqdtax2k3rvuq3wdl5a4blxv3gvsroa3nakfzzknamhu2apf3vvytyiobabrn2bfnfajq66ikjy5lewsp5jyddsg5l7u3emr2an\
                    cimryay";
        let told = Reference::from_str(long).expect_err(long).to_string();
        assert!(told.contains("64 bytes"), "{told}");
    }

    #[test]
    fn keys_are_refused_and_not_quoted() {
        let key = "A".repeat(43);
        for text in
            [format!("{CID}#{key}"), format!("/ipfs/{CID}/a#{key}"), format!("{CID}#AAAA"), format!("#{key}")]
        {
            let error = Reference::from_str(&text).expect_err(&text);
            assert_eq!(error, BadReference::Sealed, "{text}");
            assert!(!error.to_string().contains("AAAA"));
        }
        assert!(matches!(format!("/ipfs/{CID}/a#b").parse(), Ok(Reference::Ipfs { .. })));
    }
}
