//! The EIP-712 domain: which settlement a signature is for.

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::Eip712Domain;
use std::borrow::Cow;

/// Chain id of BitTorrent Chain.
pub const BTTC_CHAIN_ID: u64 = 199;

/// The number that stands for a chain id on embedded ledgers ("BTL" in ASCII).
pub const EMBEDDED_CHAIN_ID: u64 = 4_346_956;

/// One settlement: a vault contract on a chain, or one embedded ledger by its genesis. Every signature is bound to
/// it, so that no document counts on two of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Domain {
    chain_id: u64,
    contract: Address,
    separator: B256,
}

impl Domain {
    /// A vault contract on BitTorrent Chain.
    pub fn bttc(vault: Address) -> Domain {
        Domain::new(BTTC_CHAIN_ID, vault)
    }

    /// An embedded ledger by the hash of its genesis, whose last 20 bytes stand for the contract. A wiped and
    /// recreated ledger has another genesis, so it is another domain.
    pub fn embedded(genesis_hash: &B256) -> Domain {
        Domain::new(EMBEDDED_CHAIN_ID, Address::from_slice(&genesis_hash[12..]))
    }

    fn new(chain_id: u64, contract: Address) -> Domain {
        let separator = Eip712Domain::new(
            Some(Cow::Borrowed("BTFS Vault")),
            Some(Cow::Borrowed("1")),
            Some(U256::from(chain_id)),
            Some(contract),
            None,
        )
        .separator();
        Domain { chain_id, contract, separator }
    }

    /// The chain id in the domain.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// The verifying contract, or what stands for it.
    pub fn contract(&self) -> Address {
        self.contract
    }

    /// The domain separator of EIP-712.
    pub fn separator(&self) -> B256 {
        self.separator
    }
}
