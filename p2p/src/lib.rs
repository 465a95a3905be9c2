//! The libp2p host: Kademlia, Bitswap, typed request/response.
//!
//! What this crate does: it runs one libp2p node. [`Host`] owns a task that owns the swarm; everything
//! else talks to that task through bounded channels. Bytes of blocks and of requests never pass through
//! those channels: Bitswap and rpc hand negotiated streams to tasks of their own.
//!
//! Who calls it: `btfs-node`, which adds money, storage policy and the services behind the rpc protocols. This
//! crate knows nothing of them; where they must reach in, it takes a trait ([`ServePolicy`], [`RpcHandler`]).
//!
//! Invariants:
//! - every queue, table, frame and connection count has a named bound;
//! - no length that came from the network sizes an allocation before it was compared with a cap;
//! - a peer is charged by a rate limit before its request costs anything;
//! - a stream that cannot be served is reset or answered with an error, never dropped in silence;
//! - the network can be away: starting, serving and stopping work without any peer.

pub mod bitswap;
pub mod config;
pub mod host;
pub mod identity;
mod lenient;
pub mod policy;
mod routing;
pub mod rpc;

pub use config::{HostConfig, Network};
pub use host::{
    BootstrapState, ConnectError, Connectivity, Direction, Host, PeerInfo, ProvideError, Provided, StartError,
};
pub use identity::{keypair_from_secret, peer_from_public_key, public_key_from_peer};
pub use libp2p::{Multiaddr, PeerId};
pub use policy::{ServeEverything, ServePolicy};
pub use routing::persist::TABLES;
pub use rpc::{RpcError, RpcHandler, RpcService};
