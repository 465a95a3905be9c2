//! Settlement: where money is locked, paid and refunded, seen from a node that uses it.
//!
//! The market and the [wallet](crate::wallet) know only the [`Settlement`] trait. [`LocalLedger`] is the embedded
//! ledger in the same process, [`RemoteLedger`] the one that another node serves through a [`LedgerService`].
//!
//! - Reads tell the state of some moment not before the question was asked. What a host decides by them stays true
//!   for the channel's window.
//! - [`Settlement::submit`] is repeatable: the same signed call gets the same receipt. After
//!   [`SettlementError::Unreachable`] nobody knows whether the call was carried out, and asking again tells.
//! - Settlement time is followed, not assumed: [`Settlement::watch`] returns when something happened (a call, a
//!   step of the clock), [`Settlement::now`] goes on from what was told last and never goes back.

mod frames;
mod limits;
mod local;
mod remote;
mod service;

#[cfg(test)]
pub(crate) mod tests;

use std::time::Duration;

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use btfs_storage::db::DbError;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::embedded::{Account, Channel, HistoryEntry, Receipt, Status, Stream};
use crate::typed::{Call, Domain, Signed};

pub use frames::{MAX_REQUEST, MAX_RESPONSE, PROTOCOL};
pub use limits::{Bucket, Limiter, Rate};
pub use local::LocalLedger;
pub use remote::{LedgerTransport, RemoteLedger, TABLES};
pub use service::{LedgerService, ServiceError};

/// Longest wait of one [`Settlement::watch`]. Below the usual 30 s after which transports give up on an answer.
pub const MAX_WATCH: Duration = Duration::from_secs(20);

/// Why a settlement has no answer, or none that counts.
#[derive(Debug, Error)]
pub enum SettlementError {
    /// No answer. Whether a submitted call was carried out is unknown; the same call can be sent again.
    #[error("the ledger cannot be reached: {0}; serving and fetching content go on, payments wait")]
    Unreachable(String),
    /// The ledger answered and did not take the call: no receipt, no money moved.
    #[error("the ledger refused: {0}")]
    Refused(Refusal),
    /// The ledger is behind what it told before, or tells two histories.
    #[error(
        "the ledger went back: {0}; nothing more is paid or signed for it. Ask its operator: it was restored from \
         an old copy, or it lies"
    )]
    Regress(String),
    /// The answer is not from this ledger's operator, or is not one.
    #[error("answer refused: {0}")]
    Forged(String),
    /// The state database of this node failed.
    #[error("this node's database failed: {0}")]
    Db(#[from] DbError),
}

/// Why a ledger did not take a call.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Malformed, too large, or not signed by the caller for this ledger.
    #[error("{0}")]
    Invalid(String),
    /// Another call has this nonce.
    #[error("nonce {nonce} was used by another call; the next is {next}")]
    NonceUsed {
        /// The call's nonce.
        nonce: u64,
        /// The nonce a new call must have.
        next: u64,
    },
    /// Calls before this one are missing.
    #[error("nonce {nonce} comes too early; the next is {next}")]
    NonceGap {
        /// The call's nonce.
        nonce: u64,
        /// The nonce a new call must have.
        next: u64,
    },
    /// The ledger's own fault; the call can be sent again.
    #[error("the ledger failed: {0}")]
    Internal(String),
}

/// A place where money is locked and paid.
#[async_trait]
pub trait Settlement: Send + Sync {
    /// What every document for this settlement is signed for.
    fn domain(&self) -> Domain;

    /// Settlement time as it is known here, going on from what was told last; `None` before the first answer of all.
    /// Behind the truth while the ledger is out of reach and its clock was stepped, never before what was told.
    fn now(&self) -> Option<u64>;

    /// The settlement's state in one line, freshly asked.
    async fn status(&self) -> Result<Status, SettlementError>;

    /// An account; an unknown one is empty.
    async fn account(&self, address: Address) -> Result<Account, SettlementError>;

    /// A channel, if it was ever locked.
    async fn channel(&self, id: B256) -> Result<Option<Channel>, SettlementError>;

    /// A page of the channels in which `member` has a role, by id, from the one after `after` on. Ends with an empty
    /// page.
    async fn channels(&self, member: Address, after: Option<B256>) -> Result<Vec<Channel>, SettlementError>;

    /// A stream of a channel; an unknown one is empty.
    async fn stream(&self, channel: B256, stream: B256) -> Result<Stream, SettlementError>;

    /// A page of the streams of a channel that were ever used, by id, from the one after `after` on. Ends with an
    /// empty page.
    async fn streams(
        &self,
        channel: B256,
        after: Option<B256>,
    ) -> Result<Vec<(B256, Stream)>, SettlementError>;

    /// Has a signed call carried out, or gets the receipt it already has. A receipt may say that the call failed.
    async fn submit(&self, call: &Signed<Call>) -> Result<Receipt, SettlementError>;

    /// The receipt of an account's call, if that nonce was used.
    async fn receipt(&self, from: Address, nonce: u64) -> Result<Option<Receipt>, SettlementError>;

    /// What concerned an account, newest first: at most `limit` entries below event `before`.
    async fn history(
        &self,
        address: Address,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, SettlementError>;

    /// Waits until more than `after_seq` events happened, at most `max_wait` (and [`MAX_WATCH`]), and tells the
    /// state then.
    async fn watch(&self, after_seq: u64, max_wait: Duration) -> Result<Status, SettlementError>;
}
