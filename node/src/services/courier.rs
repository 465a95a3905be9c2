//! The market's and the ledger's way over libp2p: peers by public key in, bytes out.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use btfs_ledger::PublicKey;
use btfs_ledger::settlement::LedgerTransport;
use btfs_market::{Courier, CourierError, Discovery, PullError, Puller};
use btfs_p2p::bitswap::FetchError;
use btfs_p2p::{Host, Multiaddr, PeerId, RpcError};
use btfs_storage::{Bytes, Cid, hash};
use futures::stream::{self, BoxStream, StreamExt};

/// libp2p, as the market sees it.
#[derive(Clone)]
pub struct Libp2p {
    host: Host,
}

/// A peer id of a market identity.
pub fn peer_of(key: &PublicKey) -> Result<PeerId, String> {
    btfs_p2p::peer_from_public_key(key.as_bytes()).map_err(|error| error.to_string())
}

/// The market identity of a peer id, if it is a secp256k1 one.
pub fn key_of(peer: &PeerId) -> Option<PublicKey> {
    let bytes = btfs_p2p::public_key_from_peer(peer).ok()?;
    PublicKey::from_bytes(&bytes).ok()
}

impl Libp2p {
    /// Over a running host.
    pub fn new(host: Host) -> Self {
        Self { host }
    }
}

#[async_trait]
impl Courier for Libp2p {
    async fn ask(
        &self,
        peer: &PublicKey,
        protocol: &'static str,
        request: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CourierError> {
        let peer = peer_of(peer).map_err(CourierError::Protocol)?;
        self.host.call(peer, protocol, request, timeout).await.map_err(|error| match error {
            RpcError::Unreachable { reason, .. } => CourierError::Unreachable(reason),
            RpcError::Timeout { .. } => CourierError::Timeout,
            RpcError::Refused { message, .. } => CourierError::Refused(message),
            RpcError::Busy { message, .. } => CourierError::Refused(message),
            // The other side broke the rules only if it sent something; a connection that ends says that it is gone.
            RpcError::Stream { source, .. } if source.kind() != std::io::ErrorKind::InvalidData => {
                CourierError::Unreachable(format!("the connection broke: {source}"))
            }
            off @ RpcError::Unsupported { .. } => CourierError::Refused(off.to_string()),
            closed @ RpcError::Closed => CourierError::Myself(closed.to_string()),
            other => CourierError::Protocol(other.to_string()),
        })
    }
}

#[async_trait]
impl Puller for Libp2p {
    async fn pull(
        &self,
        from: &PublicKey,
        wanted: Vec<Cid>,
    ) -> Result<BoxStream<'static, Result<(Cid, Bytes), PullError>>, PullError> {
        /// Blocks asked for at once: bounds memory to about 16 MiB a pull of 1 MiB leaves.
        const IN_FLIGHT: usize = 16;
        /// One block may take so long: hosts and renters may share a slow line.
        const BLOCK_TIMEOUT: Duration = Duration::from_secs(60);

        let peer = peer_of(from).map_err(PullError::Unreachable)?;
        self.host.connect_peer(peer).await.map_err(|error| PullError::Unreachable(error.to_string()))?;
        let session = Arc::new(self.host.bitswap().session(vec![peer]));
        let blocks = stream::iter(wanted)
            .map(move |cid| {
                let session = session.clone();
                async move {
                    match tokio::time::timeout(BLOCK_TIMEOUT, session.try_get(cid)).await {
                        Ok(Ok(block)) => Ok((cid, block)),
                        Ok(Err(FetchError::NotFound { .. })) => Err(PullError::Missing(cid)),
                        Ok(Err(error)) => Err(PullError::Stalled(error.to_string())),
                        Err(_) => Err(PullError::Stalled(format!(
                            "block {cid} did not come within {} s",
                            BLOCK_TIMEOUT.as_secs()
                        ))),
                    }
                }
            })
            .buffer_unordered(IN_FLIGHT);
        Ok(blocks.boxed())
    }
}

/// Offers are spread over so many DHT keys, so that no few peers near one key can hide them all.
const BUCKETS: u8 = 64;

/// The DHT key of one bucket of hosts.
fn bucket(number: u8) -> Cid {
    hash::cid_v1(hash::RAW, format!("/btfs/hosts/1/{number}").as_bytes())
}

/// The bucket of a host: by its key, so that it cannot crowd the others.
fn bucket_of(peer: &PeerId) -> u8 {
    let digest = hash::cid_v1(hash::RAW, &peer.to_bytes());
    digest.hash().digest().first().copied().unwrap_or_default() % BUCKETS
}

#[async_trait]
impl Discovery for Libp2p {
    async fn hosts(&self, limit: usize) -> Vec<PublicKey> {
        /// Lookups at once.
        const CONCURRENT: usize = 8;
        /// One bucket's lookup may take so long.
        const LOOKUP: Duration = Duration::from_secs(10);
        /// Hosts taken of one bucket.
        const PER_BUCKET: usize = 64;

        let lookups = (0..BUCKETS).map(|number| {
            let host = self.host.clone();
            async move {
                let mut found = Vec::new();
                let mut peers = std::pin::pin!(host.find_providers(bucket(number), PER_BUCKET));
                let search = async {
                    while let Some(peer) = peers.next().await {
                        found.push(peer);
                    }
                };
                // A slow bucket gives what it had by then.
                let _ = tokio::time::timeout(LOOKUP, search).await;
                found.retain(|peer| bucket_of(peer) == number);
                found
            }
        });
        let found: Vec<Vec<PeerId>> = stream::iter(lookups).buffer_unordered(CONCURRENT).collect().await;
        let mut keys: Vec<PublicKey> = found.iter().flatten().filter_map(key_of).collect();
        keys.sort_unstable_by_key(|key| *key.as_bytes());
        keys.dedup_by_key(|key| *key.as_bytes());
        keys.truncate(limit);
        keys
    }

    async fn announce_host(&self) {
        if let Err(error) = self.host.provide(*bucket(bucket_of(&self.host.peer_id())).hash()).await {
            tracing::warn!(%error, "this host is not announced yet");
        }
    }

    async fn withdraw_host(&self) {
        if let Err(error) = self.host.unprovide(*bucket(bucket_of(&self.host.peer_id())).hash()).await {
            tracing::warn!(%error, "this host is still announced");
        }
    }

    async fn ip_of(&self, peer: &PublicKey) -> Option<IpAddr> {
        use libp2p::multiaddr::Protocol;
        let peer = peer_of(peer).ok()?;
        let connected = self.host.peers().await;
        let address: Multiaddr = connected.into_iter().find(|info| info.peer == peer)?.addr;
        address.iter().find_map(|part| match part {
            Protocol::Ip4(ip) => Some(ip.into()),
            Protocol::Ip6(ip) => Some(ip.into()),
            _ => None,
        })
    }

    async fn online(&self) -> bool {
        !self.host.peers().await.is_empty()
    }
}

/// The way to the operator of the ledger.
pub struct LedgerPeer {
    host: Host,
    operator: PeerId,
}

impl LedgerPeer {
    /// The ledger that `operator` runs.
    pub fn new(host: Host, operator: PeerId) -> Self {
        Self { host, operator }
    }
}

#[async_trait]
impl LedgerTransport for LedgerPeer {
    async fn ask(&self, request: Vec<u8>) -> Result<Vec<u8>, String> {
        /// Long enough for a long-poll of the head.
        const TIMEOUT: Duration = Duration::from_secs(40);
        self.host
            .call(self.operator, super::LEDGER, request, TIMEOUT)
            .await
            .map_err(|error| error.to_string())
    }
}
