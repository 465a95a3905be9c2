//! The signed documents of the market protocol, in their three encodings.
//!
//! - **Signed**: EIP-712 typed data in the [`Domain`] of one settlement; the same digest in Rust and Solidity.
//! - **Sent and stored**: DAG-CBOR arrays in field order ([`crate::cbor`]), money as 16-byte strings; in JSON they
//!   are objects with decimal strings.
//! - **Called**: ABI calldata of an [`Operation`], inside a signed [`Call`] on the embedded ledger, as a
//!   transaction on a chain.
//!
//! A document as it came is unchecked. [`Signed::signer`] says who signed it, [`Signed::verify`] that it was the
//! right one; a [`Voucher`] counts only as a [`VerifiedVoucher`].

mod abi;
mod channel;
mod documents;
mod domain;
mod operation;
mod signed;

pub(crate) use abi::Reply as AbiReply;
pub use channel::ChannelTerms;
pub(crate) use documents::signing_hash;
pub use documents::{Agreement, AgreementError, Call, Calldata, Offer, Voucher};
pub use domain::{BTTC_CHAIN_ID, Domain, EMBEDDED_CHAIN_ID};
pub use operation::{ClaimLeaf, Operation, OperationError};
pub use signed::{Document, Signed, VerifiedVoucher, VoucherError};

/// The first four bytes of a claim's calldata, which may be larger than that of others.
pub(crate) fn claim_selector() -> [u8; 4] {
    <abi::claimCall as alloy_sol_types::SolCall>::SELECTOR
}
