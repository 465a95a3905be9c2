//! What a handle asks of the swarm's task.

use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot};

use super::{BootstrapState, ConnectError, PeerInfo, ProvideError, Provided};
use crate::rpc::streams::Open;

/// One command, with the way back for its answer.
pub(super) enum Command {
    Listeners(oneshot::Sender<Vec<Multiaddr>>),
    Peers(oneshot::Sender<Vec<PeerInfo>>),
    State(oneshot::Sender<BootstrapState>),
    Dial(Multiaddr, oneshot::Sender<Result<PeerId, ConnectError>>),
    /// The addresses are tried next to those that are known.
    DialPeer(PeerId, Vec<Multiaddr>, oneshot::Sender<Result<(), ConnectError>>),
    Disconnect(PeerId, oneshot::Sender<bool>),
    /// The key, and the Unix time of its last announcement.
    Provide(Vec<u8>, Option<u64>, oneshot::Sender<Result<Provided, ProvideError>>),
    Unprovide(Vec<u8>, oneshot::Sender<()>),
    FindProviders {
        key: Vec<u8>,
        limit: usize,
        /// Has room for `limit` peers.
        found: mpsc::Sender<PeerId>,
    },
    FindPeer(PeerId, oneshot::Sender<Vec<Multiaddr>>),
    Open(PeerId, Open),
    Shutdown(oneshot::Sender<()>),
}
