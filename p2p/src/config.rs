//! How a host is set up.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use btfs_storage::Store;
use libp2p::{Multiaddr, StreamProtocol};
use thiserror::Error;

use crate::policy::{ServeEverything, ServePolicy};
use crate::rpc::RpcService;

/// Longest name of a private network: it becomes part of a protocol name, which libp2p caps at 140 bytes.
pub const MAX_NETWORK_NAME: usize = 64;

/// Everything a [`Host`](crate::Host) needs to start. Start from [`HostConfig::new`] and change what differs.
#[derive(Clone)]
pub struct HostConfig {
    /// The node's secp256k1 secret key: its identity.
    pub secret: [u8; 32],
    /// Addresses to listen on; port 0 means any free one. Empty: the node only dials.
    pub listen: Vec<Multiaddr>,
    /// Addresses under which others reach this node though it does not listen on them itself (a forwarded port, a
    /// DNS name). They are told to peers next to the listen addresses that are worth telling.
    pub announce: Vec<Multiaddr>,
    /// Which DHT to join.
    pub network: Network,
    /// Peers to start from, at most [`MAX_BOOTSTRAP`]; with `/p2p/ID` at the end they are also reconnected to.
    pub bootstrap: Vec<Multiaddr>,
    /// The node's store: Bitswap serves blocks from it, and this crate's tables ([`crate::TABLES`]) are in its state.
    pub store: Store,
    /// Which peer is served which block.
    pub serve: Arc<dyn ServePolicy>,
    /// The protocols answered.
    pub rpc: Vec<RpcService>,
    /// What identify tells others, such as `btfs/0.1.0`.
    pub agent: String,
}

/// Most bootstrap peers of a configuration.
pub const MAX_BOOTSTRAP: usize = 64;

impl HostConfig {
    /// A node of the `btfs` network that listens nowhere, serves every block and answers no rpc.
    pub fn new(secret: [u8; 32], store: Store) -> Self {
        HostConfig {
            secret,
            listen: Vec::new(),
            announce: Vec::new(),
            network: Network::default(),
            bootstrap: Vec::new(),
            store,
            serve: Arc::new(ServeEverything),
            rpc: Vec::new(),
            agent: concat!("btfs/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Which DHT the node belongs to. Nodes of different networks can still connect and exchange blocks; they
/// only do not see each other's provider records.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Network {
    /// The public BTFS network, `/btfs/kad/1.0.0`.
    #[default]
    Btfs,
    /// The public IPFS network, `/ipfs/kad/1.0.0`.
    Ipfs,
    /// A network of one's own, `/btfs/NAME/kad/1.0.0`.
    Private(NetworkName),
}

/// The checked name of a private network.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetworkName(String);

/// A network name that cannot be part of a protocol name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "network name {0:?}: use 1 to {MAX_NETWORK_NAME} ASCII letters, digits, '-', '_' or '.' (\"btfs\" and \"ipfs\" are the public networks)"
)]
pub struct BadNetworkName(pub String);

impl Network {
    /// The Kademlia protocol name of this network.
    pub fn kad_protocol(&self) -> StreamProtocol {
        match self {
            Network::Btfs => StreamProtocol::new("/btfs/kad/1.0.0"),
            Network::Ipfs => StreamProtocol::new("/ipfs/kad/1.0.0"),
            Network::Private(name) => StreamProtocol::try_from_owned(format!("/btfs/{}/kad/1.0.0", name.0))
                .expect("starts with a slash by construction"),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::Btfs => f.write_str("btfs"),
            Network::Ipfs => f.write_str("ipfs"),
            Network::Private(name) => f.write_str(&name.0),
        }
    }
}

impl FromStr for Network {
    type Err = BadNetworkName;

    fn from_str(name: &str) -> Result<Self, BadNetworkName> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        match name {
            "btfs" => Ok(Network::Btfs),
            "ipfs" => Ok(Network::Ipfs),
            _ if name.is_empty() || name.len() > MAX_NETWORK_NAME || !name.bytes().all(allowed) => {
                Err(BadNetworkName(name.to_owned()))
            }
            _ => Ok(Network::Private(NetworkName(name.to_owned()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_names() {
        let kad = |name: &str| name.parse::<Network>().unwrap().kad_protocol().to_string();
        assert_eq!(kad("ipfs"), "/ipfs/kad/1.0.0");
        assert_eq!(kad("btfs"), "/btfs/kad/1.0.0");
        assert_eq!(kad("demo-1"), "/btfs/demo-1/kad/1.0.0");
        for bad in ["", "a/b", "a b", "é", &"x".repeat(65)] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
