//! What the node lets its peers have.
//!
//! Bitswap asks before it answers a want. The policy lives above this crate, since only the node knows which
//! blocks are private, withheld from an auditor's subject or paid for.

use cid::Cid;
use libp2p::PeerId;

/// Decides which peer is served which block. Called on Bitswap's hot path: must not block.
pub trait ServePolicy: Send + Sync {
    /// Whether `peer` may have the block `cid`. A withheld block is answered with DONT_HAVE, as if it were not
    /// there.
    fn may_serve(&self, peer: &PeerId, cid: &Cid) -> bool;

    /// Told of every want of `peer`, before it is answered and whether or not the block is here. An auditor
    /// sees by it who fetches just the leaves that are being asked for.
    fn wanted(&self, peer: &PeerId, cid: &Cid) {
        let _ = (peer, cid);
    }
}

/// The policy of a public node: every stored block is served to everybody.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServeEverything;

impl ServePolicy for ServeEverything {
    fn may_serve(&self, _peer: &PeerId, _cid: &Cid) -> bool {
        true
    }
}
