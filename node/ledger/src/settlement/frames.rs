//! What goes over the wire between a [`RemoteLedger`](super::RemoteLedger) and a
//! [`LedgerService`](super::LedgerService): DAG-CBOR, one question, one signed answer.

use alloy_primitives::{Address, B256, FixedBytes, keccak256};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::Refusal;
use crate::embedded::{Account, Channel, HistoryEntry, MAX_CLAIM, Receipt, Status, Stream};
use crate::keys::Signature;
use crate::typed::{AbiReply, Domain, signing_hash};

/// The name of this protocol.
pub const PROTOCOL: &str = "/btfs/ledger/1";

/// Largest request: a claim and what is around it.
pub const MAX_REQUEST: usize = MAX_CLAIM + 1024;

/// Largest response: a full page of history has about 128 x 700 bytes.
pub const MAX_RESPONSE: usize = 256 << 10;

/// A question. The nonce makes every one different, so that an old answer cannot be passed off as a new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) nonce: FixedBytes<16>,
    pub(super) query: Query,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Query {
    Status,
    Account(Address),
    Channel(B256),
    Channels { member: Address, after: Option<B256> },
    Stream { channel: B256, stream: B256 },
    Streams { channel: B256, after: Option<B256> },
    Submit(ByteBuf),
    Receipt { from: Address, nonce: u64 },
    History { address: Address, before: Option<u64>, limit: u64 },
    Watch { after: u64, wait_ms: u64 },
}

/// What can be answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    /// To a status or watch: the status itself is in every reply.
    Status,
    Account(Account),
    Channel(Option<Channel>),
    Channels(Vec<Channel>),
    Stream(Stream),
    Streams(Vec<(B256, Stream)>),
    Receipt(Option<Receipt>),
    History(Vec<HistoryEntry>),
    Refused(Refusal),
}

/// An answer with the ledger's state after it, signed by the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reply {
    pub(super) body: ByteBuf,
    pub(super) status: Status,
    pub(super) signature: Signature,
}

/// What the operator signs: the answer to exactly this request, in this state.
pub(super) fn reply_digest(domain: &Domain, request: &[u8], body: &[u8], status: &Status) -> B256 {
    let reply = AbiReply {
        request: keccak256(request),
        body: keccak256(body),
        seq: status.seq,
        head: status.head,
        time: status.time,
    };
    signing_hash(&reply, domain)
}
