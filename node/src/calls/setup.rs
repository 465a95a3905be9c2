//! Who this node is, whether it is ready, and how it is stopped.

use std::sync::Arc;

use axum::Router;
use serde::{Deserialize, Serialize};

use crate::api::call::{ApiError, route};
use crate::call;
use crate::node::Node;

/// Asks who the node is.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct IdRequest {}

/// Who the node is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Identity {
    /// libp2p peer id.
    pub peer: String,
    /// Compressed secp256k1 public key, hex.
    pub public_key: String,
    /// The address that holds its BTT.
    pub address: String,
    /// The network's name.
    pub network: String,
    /// Program and version.
    pub agent: String,
    /// Multiaddresses with peer id; none without a daemon.
    pub addresses: Vec<String>,
}

call!(IdRequest => Identity, "id");

/// Asks the daemon to stop.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ShutdownRequest {}

/// The daemon is going to stop.
#[derive(Debug, Serialize, Deserialize)]
pub struct Stopping {
    /// Always true.
    pub stopping: bool,
}

call!(ShutdownRequest => Stopping, "shutdown");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<IdRequest, _, _>(router, |node, _, _| async move { Ok(identity(&node).await) });
    route::<ShutdownRequest, _, _>(router, |node, _, _| async move {
        if !node.is_online() {
            return Err(ApiError::unavailable("no daemon runs on this repo"));
        }
        node.stop.cancel();
        Ok(Stopping { stopping: true })
    })
}

/// Who the node is, and where it listens.
pub async fn identity(node: &Node) -> Identity {
    let addresses = match node.host() {
        Ok(host) => host.listeners().await.iter().map(|a| format!("{a}/p2p/{}", node.peer)).collect(),
        Err(_) => Vec::new(),
    };
    Identity {
        peer: node.peer.to_string(),
        public_key: hex::encode(node.public_key.as_bytes()),
        address: node.address.to_string(),
        network: node.network.name.clone(),
        agent: crate::node::AGENT.into(),
        addresses,
    }
}
