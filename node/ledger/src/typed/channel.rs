//! The four roles of a channel and the id that follows from them.

use alloy_primitives::{Address, B256, keccak256};
use alloy_sol_types::SolValue;
use serde::{Deserialize, Serialize};

/// Who a channel is between, and how long its host can rely on what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelTerms {
    /// Locks money and is refunded.
    pub funder: Address,
    /// Signs agreements and vouchers; a node's key.
    pub renter: Address,
    /// Signs offers and agreements; a node's key.
    pub host: Address,
    /// Is paid.
    pub payee: Address,
    /// Seconds between announcing a decrease of the lock and its refund.
    pub window: u32,
}

impl ChannelTerms {
    /// `keccak256(abi.encode(funder, renter, host, payee, window))`.
    pub fn id(&self) -> B256 {
        keccak256((self.funder, self.renter, self.host, self.payee, self.window).abi_encode())
    }
}
