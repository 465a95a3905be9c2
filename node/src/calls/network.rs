//! The swarm: who is connected, and connecting to more.

use std::sync::Arc;

use axum::Router;
use btfs_p2p::Multiaddr;
use serde::{Deserialize, Serialize};

use crate::api::call::{Answered, ApiError, route};
use crate::call;
use crate::node::Node;

/// Asks who is connected.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct PeersRequest {}

/// Who is connected.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peers {
    /// One entry a peer.
    pub peers: Vec<Peer>,
}

/// A connected peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Its peer id.
    pub peer: String,
    /// The address of the connection.
    pub address: String,
    /// Its program, if it said so.
    pub agent: Option<String>,
    /// Round trip in milliseconds, once measured.
    pub rtt_ms: Option<u64>,
}

call!(PeersRequest => Peers, "swarm/peers");

/// Connects to a peer.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectRequest {
    /// A multiaddress with `/p2p/PEER`, or a peer id to look up.
    pub address: String,
}

/// The peer that is now connected.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connected {
    /// Its peer id.
    pub peer: String,
}

call!(ConnectRequest => Connected, "swarm/connect");

/// Ends the connections to a peer.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DisconnectRequest {
    /// Its peer id.
    pub peer: String,
}

call!(DisconnectRequest => Connected, "swarm/disconnect");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<PeersRequest, _, _>(router, |node, _, _| async move { peers(&node).await });
    let router = route::<ConnectRequest, _, _>(router, |node, request, _| async move {
        connect(&node, &request.address).await
    });
    route::<DisconnectRequest, _, _>(router, |node, request, _| async move {
        let peer = parse_peer(&request.peer)?;
        node.host()?.disconnect(peer).await;
        Ok(Connected { peer: peer.to_string() })
    })
}

fn parse_peer(text: &str) -> Result<btfs_p2p::PeerId, ApiError> {
    text.parse().map_err(|error| ApiError::bad(format!("`{text}` is not a peer id: {error}")))
}

/// Who is connected.
pub async fn peers(node: &Node) -> Answered<Peers> {
    let peers = node.host()?.peers().await;
    let peers = peers
        .into_iter()
        .map(|info| Peer {
            peer: info.peer.to_string(),
            address: info.addr.to_string(),
            agent: info.agent,
            rtt_ms: info.rtt.map(|rtt| u64::try_from(rtt.as_millis()).unwrap_or(u64::MAX)),
        })
        .collect();
    Ok(Peers { peers })
}

/// Connects to an address, or to a peer id through the DHT.
pub async fn connect(node: &Node, address: &str) -> Answered<Connected> {
    let host = node.host()?;
    let peer = if address.starts_with('/') {
        let parsed: Multiaddr = address
            .parse()
            .map_err(|error| ApiError::bad(format!("`{address}` is not a multiaddress: {error}")))?;
        host.connect(parsed).await?
    } else {
        let peer = parse_peer(address)?;
        host.connect_peer(peer).await?;
        peer
    };
    Ok(Connected { peer: peer.to_string() })
}
