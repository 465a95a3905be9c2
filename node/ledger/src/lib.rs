//! Money: BTT amounts, keys, signed documents and settlement.
//!
//! Everything in this repository that touches money passes through this crate. The market builds and checks
//! [`typed`] documents with it, the node keeps its key in a [`keyfile`] and pays through a [`Wallet`],
//! and one node of a private network runs the [`embedded`] ledger and serves it to the others.
//!
//! | part | what it does |
//! |---|---|
//! | [`btt`], [`price`] | exact amounts of 10^-18 BTT and the price of an epoch |
//! | [`keys`], [`keyfile`] | secp256k1 keys, recoverable signatures, the key at rest |
//! | [`typed`] | offers, agreements, vouchers and calls as EIP-712 typed data, DAG-CBOR and ABI calldata |
//! | [`embedded`] | a ledger in the state database: accounts, channels, streams, receipts, hash-chained head |
//! | [`settlement`] | the trait all settlements share, its local and its remote form |
//! | [`wallet`] | builds, records, signs and submits calls; survives crashes without paying twice |
//!
//! Invariants:
//!
//! - Amounts are integers and every operation on them is checked; nothing here is a float.
//! - A signature is over typed data bound to one settlement, so it means one thing in one place.
//! - The sum of all balances and all locks is the supply of the genesis, after every call and every crash.
//! - What allows a payment is on disk before it is sent, and sending it again changes nothing.

pub mod btt;
pub mod cbor;
pub mod embedded;
pub mod keyfile;
pub mod keys;
pub mod price;
pub mod settlement;
pub mod typed;
pub mod wallet;

pub use alloy_primitives::{Address, B256};
pub use btt::Btt;
pub use embedded::{Genesis, Ledger, LedgerId};
pub use keys::{PublicKey, SecretKey, Signature, SignatureError, recover};
pub use settlement::{LedgerService, LedgerTransport, LocalLedger, RemoteLedger, Settlement};
pub use wallet::Wallet;

/// The names of all tables of this crate, to open the state database with.
pub const TABLES: [&str; 12] = {
    let parts: [&[&str]; 3] = [&embedded::TABLES, &settlement::TABLES, &wallet::TABLES];
    let mut all = [""; 12];
    let (mut at, mut part) = (0, 0);
    while part < parts.len() {
        let mut i = 0;
        while i < parts[part].len() {
            all[at] = parts[part][i];
            at += 1;
            i += 1;
        }
        part += 1;
    }
    assert!(at == all.len(), "the parts have as many tables as are named here");
    all
};
