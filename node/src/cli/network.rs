//! `swarm`.

use clap::Subcommand;

use super::Context;
use crate::calls::network::{ConnectRequest, DisconnectRequest, PeersRequest};

#[derive(Debug, Subcommand)]
pub enum Swarm {
    /// List the connected peers.
    Peers,
    /// Connect to a multiaddress with /p2p/PEER, or to a peer id.
    Connect {
        /// The address or peer id.
        address: String,
    },
    /// End the connections to a peer.
    Disconnect {
        /// Its peer id.
        peer: String,
    },
}

impl Swarm {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Peers => {
                context
                    .run(&PeersRequest {}, |answer| {
                        let line = |peer: &crate::calls::network::Peer| {
                            let rtt = peer.rtt_ms.map(|ms| format!("{ms} ms")).unwrap_or_default();
                            format!(
                                "{}  {}  {}  {rtt}",
                                peer.peer,
                                peer.address,
                                peer.agent.as_deref().unwrap_or("")
                            )
                        };
                        answer.peers.iter().map(line).collect::<Vec<_>>().join("\n")
                    })
                    .await
            }
            Self::Connect { address } => {
                context.run(&ConnectRequest { address }, |peer| format!("connected to {}", peer.peer)).await
            }
            Self::Disconnect { peer } => {
                context
                    .run(&DisconnectRequest { peer }, |peer| format!("disconnected from {}", peer.peer))
                    .await
            }
        }
    }
}
