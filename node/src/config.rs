//! `config.toml`: every setting of a node, validated as a whole; an unknown key is an error, never ignored.
//!
//! A fresh repo gets [`TEMPLATE`], whose commented values are the defaults, so that reading the file tells
//! what can be set. Sizes are written like `50GiB`; amounts of BTT as decimal strings.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// The text a fresh repo starts with.
pub const TEMPLATE: &str = include_str!("config-template.toml");

/// A number of bytes, written in TOML as an integer or as text such as `"50GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Why a size could not be read.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a size: write a whole number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB behind it")]
pub struct BadSize(String);

const UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl std::str::FromStr for ByteSize {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = || BadSize(text.to_owned());
        let trimmed = text.trim();
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| trimmed.strip_suffix(suffix).map(|digits| (digits, *unit)))
            .unwrap_or((trimmed, 1));
        let count: u64 = digits.trim().parse().map_err(|_| bad())?;
        count.checked_mul(unit).map(ByteSize).ok_or_else(bad)
    }
}

impl std::fmt::Display for ByteSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes = self.0;
        for (suffix, unit) in &UNITS[..4] {
            if bytes >= *unit {
                // One decimal, cut, not rounded up: never shows more than there is.
                let tenths = u128::from(bytes) * 10 / u128::from(*unit);
                return write!(f, "{}.{} {suffix}", tenths / 10, tenths % 10);
            }
        }
        write!(f, "{bytes} B")
    }
}

impl Serialize for ByteSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(ByteSize(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// The whole configuration.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// libp2p.
    pub swarm: Swarm,
    /// The HTTP API.
    pub api: Api,
    /// The path gateway.
    pub gateway: Gateway,
    /// BitTorrent.
    pub bittorrent: BitTorrent,
    /// Disk space.
    pub storage: Storage,
    /// Fetching.
    pub fetch: Fetch,
}

/// Settings of the libp2p host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Swarm {
    /// Off means: no libp2p at all (BitTorrent and HTTP only).
    pub enabled: bool,
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Most connections at once.
    pub max_connections: u32,
}

impl Default for Swarm {
    fn default() -> Self {
        Self {
            enabled: true,
            listen: [
                "/ip4/0.0.0.0/tcp/4101",
                "/ip6/::/tcp/4101",
                "/ip4/0.0.0.0/udp/4101/quic-v1",
                "/ip6/::/udp/4101/quic-v1",
            ]
            .map(str::to_owned)
            .to_vec(),
            max_connections: 400,
        }
    }
}

/// Settings of the HTTP API.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Where the API listens; beyond loopback every call needs the token.
    pub listen: SocketAddr,
    /// Host names, besides loopback ones, that requests may name.
    pub allowed_hosts: Vec<String>,
    /// Web origins that may call the API from a browser.
    pub allowed_origins: Vec<String>,
}

impl Default for Api {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 5101).into(), allowed_hosts: Vec::new(), allowed_origins: Vec::new() }
    }
}

/// Settings of the path gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Off means: the gateway does not listen.
    pub enabled: bool,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Whether it fetches what is not stored here, or answers from the local store alone.
    pub fetch: bool,
}

impl Default for Gateway {
    fn default() -> Self {
        Self { enabled: true, listen: ([127, 0, 0, 1], 8180).into(), fetch: true }
    }
}

/// Settings of the BitTorrent engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BitTorrent {
    /// Off means: no peer wire, no trackers.
    pub enabled: bool,
    /// Where peers reach us.
    pub listen: SocketAddr,
    /// Most peer connections at once.
    pub max_connections: u32,
}

impl Default for BitTorrent {
    fn default() -> Self {
        Self { enabled: true, listen: ([0, 0, 0, 0], 6981).into(), max_connections: 200 }
    }
}

/// Settings of the block store.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Most bytes of own data; absent: no limit but the disk.
    pub quota: Option<ByteSize>,
    /// Most bytes of fetched, unpinned data.
    pub cache: Option<ByteSize>,
    /// Space on the disk that is never used.
    pub reserve: ByteSize,
    /// Percent of a quota, or of the disk, at which unpinned data is deleted; absent: only when asked to.
    pub gc_watermark: Option<u8>,
    /// Bytes a second that a daemon reads to find damage; 0: none, and none is mended by itself.
    pub scrub_rate: ByteSize,
    /// Memory of a daemon for blocks that are read again and again; 0: none.
    pub hot_blocks: ByteSize,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            quota: None,
            cache: None,
            reserve: ByteSize(256 << 20),
            gc_watermark: None,
            scrub_rate: ByteSize(2 << 20),
            hot_blocks: ByteSize(64 << 20),
        }
    }
}

/// Settings of fetching from the networks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fetch {
    /// Seconds without a single new block before a fetch gives up.
    pub timeout_secs: u64,
}

impl Default for Fetch {
    fn default() -> Self {
        Self { timeout_secs: 60 }
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("config.toml is not valid: {0}")]
    Syntax(#[from] toml::de::Error),
    /// A value that cannot work.
    #[error("config.toml: {key}: {reason}")]
    Value {
        /// The key's path.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}

impl Config {
    /// Reads and validates the text of `config.toml`.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        for address in &self.swarm.listen {
            address.parse::<libp2p::Multiaddr>().map_err(|error| ConfigError::Value {
                key: "swarm.listen",
                reason: format!("`{address}` is not a multiaddress ({error})"),
            })?;
        }
        if self.storage.gc_watermark.is_some_and(|percent| !(1..=100).contains(&percent)) {
            return Err(ConfigError::Value {
                key: "storage.gc_watermark",
                reason: "must be a percentage from 1 to 100; leave it out to delete only by `btfs repo gc`"
                    .into(),
            });
        }
        if self.fetch.timeout_secs == 0 {
            return Err(ConfigError::Value {
                key: "fetch.timeout_secs",
                reason: "must be at least 1".into(),
            });
        }
        if self.swarm.max_connections == 0 {
            return Err(ConfigError::Value {
                key: "swarm.max_connections",
                reason: "must be at least 1; to go without libp2p set swarm.enabled = false".into(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_says_the_defaults() {
        let stated: String = TEMPLATE
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|l| l.contains(" = ")).unwrap_or(line))
            .fold(String::new(), |text, line| text + line + "\n");
        let with_values = Config::parse(&stated).expect("every commented default is valid");
        let empty = Config::parse(TEMPLATE).expect("the template is valid");
        assert_eq!(toml::to_string(&with_values).unwrap(), toml::to_string(&empty).unwrap());
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = Config::parse("[storage]\nqouta = \"1GiB\"\n").unwrap_err().to_string();
        assert!(error.contains("qouta"), "{error}");
    }

    #[test]
    fn sizes_read_and_show() {
        assert_eq!("50GiB".parse::<ByteSize>().unwrap(), ByteSize(50 << 30));
        assert_eq!("7 MB".parse::<ByteSize>().unwrap(), ByteSize(7_000_000));
        assert_eq!("12".parse::<ByteSize>().unwrap(), ByteSize(12));
        assert!("12 parsecs".parse::<ByteSize>().is_err());
        assert!("99999999999TiB".parse::<ByteSize>().is_err());
        assert_eq!(ByteSize((50 << 30) - 1).to_string(), "49.9 GiB");
        assert_eq!(ByteSize(10).to_string(), "10 B");
    }
}
