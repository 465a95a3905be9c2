//! What the market does, as typed events: logs, the CLI, the demo and tests all read these.

use btfs_ledger::{B256, Btt, PublicKey};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::audit::Verdict;

/// Events that a slow reader may lag behind before it misses some: a day of a few hundred agreements.
const BACKLOG: usize = 1024;

/// Something that happened, on either side.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum MarketEvent {
    /// Renter: a host has set space aside.
    Reserved {
        /// The agreement.
        id: B256,
        /// The host.
        host: PublicKey,
    },
    /// Renter: money was locked for an agreement.
    Locked {
        /// The agreement.
        id: B256,
        /// The channel.
        channel: B256,
        /// Added to its lock.
        amount: Btt,
    },
    /// Either side: both have signed.
    Active {
        /// The agreement.
        id: B256,
        /// The other party.
        peer: PublicKey,
        /// Settlement time of epoch 0.
        start: u64,
        /// Bytes kept.
        size: u64,
        /// Price of an epoch.
        epoch_price: Btt,
    },
    /// Renter: an agreement ended before it began.
    Failed {
        /// The agreement.
        id: B256,
        /// The host.
        host: PublicKey,
        /// Why.
        reason: String,
    },
    /// Renter: an audit was judged.
    Audit {
        /// The agreement.
        id: B256,
        /// The host.
        host: PublicKey,
        /// First epoch it covers.
        from: u32,
        /// Last epoch it covers.
        epoch: u32,
        /// Pass, fail, timeout, offline or unknown.
        #[serde(flatten)]
        verdict: Verdict,
        /// Wall-clock milliseconds to the answer.
        millis: u64,
    },
    /// Renter: a voucher is durable at the host.
    VoucherAcknowledged {
        /// The agreement.
        id: B256,
        /// The host.
        host: PublicKey,
        /// Everything owed so far.
        amount: Btt,
        /// Epochs below this are final.
        epochs: u32,
    },
    /// Host: a voucher was credited.
    VoucherCredited {
        /// The agreement.
        id: B256,
        /// The renter.
        renter: PublicKey,
        /// Everything earned so far.
        amount: Btt,
        /// Epochs below this are final.
        epochs: u32,
    },
    /// Host: the settlement paid out.
    Redeemed {
        /// The agreement.
        id: B256,
        /// Paid to the stream in all.
        paid: Btt,
    },
    /// Renter: a host was paid for an agreement that it had said it did not sign. It is not used again.
    Denied {
        /// The agreement.
        id: B256,
        /// The host.
        host: PublicKey,
        /// Paid to it by the settlement.
        paid: Btt,
    },
    /// Renter: money came back from a channel.
    Refunded {
        /// The channel.
        channel: B256,
        /// What is left in its lock.
        locked: Btt,
    },
    /// Either side: the agreement is closing or done.
    Closed {
        /// The agreement.
        id: B256,
        /// The other party.
        peer: PublicKey,
        /// Why, if not by the end of its term.
        reason: Option<String>,
    },
    /// Host: the space of an agreement is free again.
    SpaceFreed {
        /// The agreement.
        id: B256,
        /// Bytes.
        size: u64,
    },
    /// Renter: a peer asked for exactly the blocks under challenge.
    Tripwire {
        /// The peer.
        peer: PublicKey,
    },
}

/// Where events go; cloning is cheap.
#[derive(Clone, Debug)]
pub struct Events(broadcast::Sender<MarketEvent>);

impl Default for Events {
    fn default() -> Events {
        Events(broadcast::channel(BACKLOG).0)
    }
}

impl Events {
    /// Listens from now on. A reader that lags behind is told how many events it missed.
    pub fn subscribe(&self) -> broadcast::Receiver<MarketEvent> {
        self.0.subscribe()
    }

    pub(crate) fn send(&self, event: MarketEvent) {
        tracing::info!(target: "btfs_market", event = ?event, "market");
        // No reader is not an error.
        let _ = self.0.send(event);
    }
}
