//! What a ledger remembers: accounts, channels, streams, and a receipt for every call.
//!
//! These are also the answers that clients get, so they serialise in both forms: DAG-CBOR on disk and on the wire,
//! JSON with decimal amounts for people.

use alloy_primitives::{Address, B256};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::btt::Btt;
use crate::typed::ChannelTerms;

/// A holder of money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What it can spend.
    pub balance: Btt,
    /// The nonce its next call must have: how many calls it has made.
    pub nonce: u64,
}

/// Money locked between a funder and a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// The four roles and the window.
    pub terms: ChannelTerms,
    /// What vouchers can draw from.
    pub locked: Btt,
    /// What the funder has announced to take back.
    pub pending: Btt,
    /// From when the funder may take it; unix seconds of settlement time.
    pub due: u64,
}

impl Channel {
    /// What a host may count on: the lock without what is announced to leave it. Good for one window.
    pub fn available(&self) -> Btt {
        self.locked.saturating_sub(self.pending)
    }
}

/// One account of a channel: an agreement, or another use of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// Everything ever paid out.
    pub paid: Btt,
    /// Epochs below this are final.
    pub settled: u32,
    /// Epochs below this can no longer be armed.
    pub next: u32,
    /// A seed that waits for its answer.
    pub armed: Option<Armed>,
}

/// A claim that was announced: which agreement and epochs, on which seed, until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// Digest of the agreement.
    pub digest: B256,
    /// The epoch to be proven.
    pub epoch: u32,
    /// The first epoch that the claim pays.
    pub from: u32,
    /// What the challenged leaves follow from.
    pub seed: B256,
    /// Until when the claim must come; unix seconds of settlement time.
    pub deadline: u64,
}

/// What a call did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Money moved between accounts.
    Transferred {
        /// To whom.
        to: Address,
        /// How much.
        amount: Btt,
    },
    /// Money was locked.
    Locked {
        /// The channel.
        channel: B256,
        /// How much came to it.
        amount: Btt,
        /// How much is there now.
        locked: Btt,
    },
    /// A refund was announced.
    Decreasing {
        /// The channel.
        channel: B256,
        /// How much.
        amount: Btt,
        /// From when it can be taken.
        due: u64,
    },
    /// An announced refund was taken.
    Finished {
        /// The channel.
        channel: B256,
        /// How much the funder got back.
        refunded: Btt,
    },
    /// The host let money go back.
    Released {
        /// The channel.
        channel: B256,
        /// How much the funder got back.
        refunded: Btt,
    },
    /// A voucher was paid out.
    Redeemed {
        /// The channel.
        channel: B256,
        /// Its stream.
        stream: B256,
        /// What the payee got now.
        paid_out: Btt,
        /// What the stream has paid in all.
        paid: Btt,
        /// Epochs below this are final.
        settled: u32,
    },
    /// A claim was announced and has its seed.
    Armed {
        /// The channel.
        channel: B256,
        /// Its stream.
        stream: B256,
        /// The seed and its deadline.
        armed: Armed,
    },
    /// A claim was proven and paid out.
    Claimed {
        /// The channel.
        channel: B256,
        /// Its stream.
        stream: B256,
        /// What the payee got now.
        paid_out: Btt,
        /// What the stream has paid in all.
        paid: Btt,
        /// Epochs below this are final.
        settled: u32,
    },
}

/// Why a signed call had no effect. Its nonce is consumed all the same.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// The call came too late.
    #[error("the call was valid until {deadline} and it is {now}")]
    Expired {
        /// Its deadline.
        deadline: u64,
        /// The settlement's time.
        now: u64,
    },
    /// The calldata is no operation.
    #[error("{0}")]
    Malformed(String),
    /// The caller has less than the call's value.
    #[error("not enough BTT: {needed} needed, {balance} in the account; nothing was moved")]
    Balance {
        /// The call's value.
        needed: Btt,
        /// What is there.
        balance: Btt,
    },
    /// Money went with an operation that takes none.
    #[error("{0} takes no value")]
    Value(String),
    /// Nothing, or to nobody.
    #[error("an amount above zero and addresses other than zero are needed")]
    Nothing,
    /// No such channel.
    #[error("there is no channel {0}")]
    NoChannel(B256),
    /// The operation is another role's.
    #[error("only the channel's {0} may do this")]
    Role(String),
    /// More than is locked.
    #[error("{asked} BTT asked, {locked} BTT locked; nothing was moved")]
    Lock {
        /// What was asked.
        asked: Btt,
        /// What is there.
        locked: Btt,
    },
    /// No refund is announced.
    #[error("no decrease is pending")]
    NotPending,
    /// The announced refund cannot be taken yet.
    #[error("the decrease is due at {due} and it is {now}")]
    NotDue {
        /// From when.
        due: u64,
        /// The settlement's time.
        now: u64,
    },
    /// A document that the renter has not signed for this channel.
    #[error("{0}")]
    Document(String),
    /// The epoch cannot be armed or claimed.
    #[error("epoch {epoch}: {why}")]
    Epoch {
        /// The epoch.
        epoch: u32,
        /// Which rule it breaks.
        why: String,
    },
    /// No seed waits for this claim.
    #[error("no claim of this agreement is armed")]
    NotArmed,
    /// The proof does not show the challenged leaves.
    #[error("proof refused: {0}")]
    Proof(String),
    /// A sum above 128 bits. Cannot happen while the supply fits.
    #[error("an amount does not fit 128 bits")]
    Overflow,
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It had this effect.
    Done(Effect),
    /// It had none but to consume its nonce.
    Failed(Failure),
}

/// The record of one call, the same however often it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its place in the ledger's history.
    pub seq: u64,
    /// Settlement time when it was carried out.
    pub time: u64,
    /// Who called.
    pub from: Address,
    /// The caller's nonce.
    pub nonce: u64,
    /// The EIP-712 digest of the call.
    pub digest: B256,
    /// Money that went with it.
    pub value: Btt,
    /// What became of it.
    pub outcome: Outcome,
}

impl Receipt {
    /// The effect, or why there is none.
    pub fn effect(&self) -> Result<&Effect, &Failure> {
        match &self.outcome {
            Outcome::Done(effect) => Ok(effect),
            Outcome::Failed(failure) => Err(failure),
        }
    }
}

/// One line of an account's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The call that concerns the account.
    pub receipt: Receipt,
    /// What it added to the account's balance.
    pub received: Btt,
    /// What it took from it.
    pub spent: Btt,
    /// The balance after it.
    pub balance: Btt,
}

/// A ledger's state in one line: how many events, the hash over them, and what time it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Calls and steps so far.
    pub seq: u64,
    /// `head = SHA-256(head || call || result)`, from the genesis hash on.
    pub head: B256,
    /// Settlement time, unix seconds. Never goes back.
    pub time: u64,
}
