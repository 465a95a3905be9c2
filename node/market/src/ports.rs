//! What the market needs of the world, as small traits: ask a peer, pull blocks, find hosts.
//!
//! The node implements them over libp2p; tests connect the services directly. Peers are named by their 33-byte
//! public keys and nothing here knows of addresses, streams or protocols beyond a name.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use btfs_ledger::PublicKey;
use bytes::Bytes;
use cid::Cid;
use futures::stream::BoxStream;
use thiserror::Error;

/// Why a peer gave no answer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum CourierError {
    /// No connection could be made, or it broke before the answer.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// Connected, but no answer in time.
    #[error("did not answer in time")]
    Timeout,
    /// It answered that it will not do this.
    #[error("refused: {0}")]
    Refused(String),
    /// The answer broke the protocol (above its cap, not of its form).
    #[error("answered against the protocol: {0}")]
    Protocol(String),
    /// This node itself could not ask (it is shutting down): says nothing about the peer.
    #[error("was not asked: {0}")]
    Myself(String),
}

/// Asks peers questions.
#[async_trait]
pub trait Courier: Send + Sync {
    /// Sends `request` to `peer` under `protocol` and waits at most `timeout` (wall clock, dialling included) for
    /// its answer.
    async fn ask(
        &self,
        peer: &PublicKey,
        protocol: &'static str,
        request: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CourierError>;
}

/// Why blocks stopped coming.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PullError {
    /// The peer is not connected and cannot be dialled.
    #[error("the peer cannot be reached: {0}")]
    Unreachable(String),
    /// The peer does not have this block or will not give it.
    #[error("the peer does not give block {0}")]
    Missing(Cid),
    /// The peer stopped sending.
    #[error("the transfer stopped: {0}")]
    Stalled(String),
}

/// Pulls blocks from one peer.
#[async_trait]
pub trait Puller: Send + Sync {
    /// Streams the wanted blocks from `from` alone, over the connection that exists with it, in any order. The
    /// receiver checks hashes; the puller bounds what is in flight. The stream ends after the last block or the
    /// first error.
    async fn pull(
        &self,
        from: &PublicKey,
        wanted: Vec<Cid>,
    ) -> Result<BoxStream<'static, Result<(Cid, Bytes), PullError>>, PullError>;
}

/// Finds hosts and knows how this node stands in the network.
#[async_trait]
pub trait Discovery: Send + Sync {
    /// Up to `limit` peers that announced themselves as hosts.
    async fn hosts(&self, limit: usize) -> Vec<PublicKey>;

    /// Announces this node as a host, and keeps doing so until [`withdraw_host`](Self::withdraw_host).
    async fn announce_host(&self);

    /// Stops announcing.
    async fn withdraw_host(&self);

    /// The address a peer is seen under, for subnet caps.
    async fn ip_of(&self, peer: &PublicKey) -> Option<IpAddr>;

    /// Whether this node itself has working connections: asked before another's silence is judged.
    async fn online(&self) -> bool;
}

/// The moments between two rounds of work; the services ask for no other clock than settlement and this one.
pub(crate) fn wall_clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
