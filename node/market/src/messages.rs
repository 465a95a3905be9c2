//! What renters and hosts say to each other: DAG-CBOR enums, one pair per protocol name.
//!
//! Who speaks is known from the connection (the peer's public key), so messages carry no sender. Every frame has a
//! cap that is checked before it is decoded, every list inside has one too.

use btfs_ledger::typed::{Agreement, ChannelTerms, Offer, Signed, Voucher};
use btfs_ledger::{B256, Btt};
use btfs_storage::proof::LeafProof;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::states::HostState;

/// Protocol name: ask for an offer.
pub const OFFER_PROTOCOL: &str = "/btfs/offer/1";
/// Protocol name: everything about one agreement except proofs.
pub const RENTAL_PROTOCOL: &str = "/btfs/rental/1";
/// Protocol name: audits.
pub const AUDIT_PROTOCOL: &str = "/btfs/audit/1";

/// Bytes of a block list that travel in one message.
pub const LIST_PAGE: usize = 256 << 10;
/// Most pages of one list: 65,536 entries of at most 133 bytes (a length, a CID of at most 128 bytes, a size).
pub const MAX_LIST_PAGES: u32 = ((65_536 * 133) / LIST_PAGE) as u32 + 1;
/// Cap of an offer frame either way.
pub const MAX_OFFER_FRAME: usize = 4 << 10;
/// Cap of a rental request: one list page and the documents around it.
pub const MAX_RENTAL_REQUEST: usize = LIST_PAGE + (8 << 10);
/// Cap of a rental reply.
pub const MAX_RENTAL_REPLY: usize = 8 << 10;
/// Cap of an audit request.
pub const MAX_AUDIT_REQUEST: usize = 1 << 10;
/// Most leaves an audit may ask for: bounds the host's work and the answer's size.
pub const MAX_AUDIT_LEAVES: u16 = 64;
/// Cap of an audit reply: 64 leaves of 1 KiB with 40 siblings of 32 bytes each, and CBOR around them.
pub const MAX_AUDIT_REPLY: usize = MAX_AUDIT_LEAVES as usize * (1024 + 40 * 34 + 64) + 1024;

/// A message that cannot be read.
#[derive(Debug, Error)]
pub enum FrameError {
    /// Above the cap of its kind.
    #[error("message of {len} bytes is above the cap of {cap}")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The cap.
        cap: usize,
    },
    /// Not the DAG-CBOR of this protocol.
    #[error("message cannot be read: {0}")]
    Malformed(String),
}

/// Encodes a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Plain data of fixed shapes: serialisation cannot fail.
    serde_ipld_dagcbor::to_vec(message).expect("messages are plain data")
}

/// Decodes a message of at most `cap` bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<T, FrameError> {
    if bytes.len() > cap {
        return Err(FrameError::TooLarge { len: bytes.len(), cap });
    }
    serde_ipld_dagcbor::from_slice(bytes).map_err(|e| FrameError::Malformed(e.to_string()))
}

/// Request of [`OFFER_PROTOCOL`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferRequest {
    /// The current offer, please.
    Get,
}

/// Reply of [`OFFER_PROTOCOL`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OfferReply {
    /// A signed offer.
    Offer(Box<Signed<Offer>>),
    /// This node rents nothing out at the moment.
    NotRenting,
}

/// What a renter proposes to a host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// The channel that pays: its renter is the asking peer, host and payee are the offer's.
    pub channel: ChannelTerms,
    /// The agreement with start 0 and without signatures.
    pub draft: Agreement,
    /// Total bytes of the block list's entries.
    pub list_bytes: u32,
}

/// Request of [`RENTAL_PROTOCOL`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RentalRequest {
    /// Opens an agreement; the first page of its list comes with it.
    Propose {
        /// The terms.
        proposal: Box<Proposal>,
        /// Page 0 of the list.
        #[serde(with = "serde_bytes")]
        page: Vec<u8>,
    },
    /// A further page of the list.
    ListPage {
        /// The agreement's id.
        id: B256,
        /// Counted from 0.
        page: u32,
        /// The page.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// The lock is there: pull the blocks from me. Answered when they are here, or with progress after a while.
    Deliver {
        /// The agreement's id.
        id: B256,
    },
    /// The final agreement with the renter's signature.
    Sign(Box<Signed<Agreement>>),
    /// How does it stand with this agreement?
    Status {
        /// The agreement's id.
        id: B256,
    },
    /// A payment.
    Voucher {
        /// The agreement's id.
        id: B256,
        /// The voucher with the renter's signature.
        voucher: Signed<Voucher>,
    },
    /// The renter ends the agreement with the beginning of `epoch`.
    Cancel {
        /// The agreement's id.
        id: B256,
        /// At least the current epoch + 1.
        epoch: u32,
    },
    /// The host ends the agreement with the beginning of `epoch` (sent to the renter).
    Quit {
        /// The agreement's id.
        id: B256,
        /// At least the current epoch + 1.
        epoch: u32,
    },
}

/// Reply of [`RENTAL_PROTOCOL`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RentalReply {
    /// Send this page of the list next.
    NeedPage {
        /// Counted from 0.
        page: u32,
    },
    /// Space is set aside until this settlement time.
    Reserved {
        /// Unix seconds.
        until: u64,
    },
    /// Blocks are coming in.
    Receiving {
        /// Bytes here so far.
        received: u64,
        /// Bytes in all.
        total: u64,
    },
    /// All blocks are here; what the host computed from them.
    Received {
        /// Sum of block sizes.
        size: u64,
        /// Leaves of the proof tree.
        leaves: u64,
        /// Root of the proof tree.
        root: B256,
    },
    /// The final agreement with the host's signature, over the same digest as the renter's.
    Signed(Box<Signed<Agreement>>),
    /// How it stands.
    Status(Box<StatusReply>),
    /// The voucher (or one at least as good) is durable.
    Acknowledged {
        /// Amount of the host's best voucher.
        amount: Btt,
        /// Its watermark.
        epochs: u32,
    },
    /// The host has a better voucher than the one sent.
    Behind {
        /// The better voucher with the renter's own signature.
        voucher: Signed<Voucher>,
    },
    /// The agreement ends with the beginning of this epoch.
    Ends {
        /// The earliest notice on record.
        epoch: u32,
    },
    /// No.
    Refused(Refusal),
}

/// The host's view of an agreement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusReply {
    /// State on the host's side.
    pub state: HostState,
    /// The final agreement with the host's signature, once it has signed.
    pub signed: Option<Signed<Agreement>>,
    /// The best voucher it holds, with the renter's signature.
    pub voucher: Option<Signed<Voucher>>,
}

/// Why a request was refused; shown to the person on the other side.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The node rents nothing out.
    #[error("the host rents nothing out at the moment")]
    NotRenting,
    /// The offer named is not one of the host's current ones.
    #[error("the offer is not (or no longer) one of the host's")]
    StaleOffer,
    /// A field of the draft breaks the offer or the protocol.
    #[error("terms not acceptable: {0}")]
    Terms(String),
    /// No room.
    #[error("not enough space at the host: {asked} bytes asked, {free} free for rent")]
    NoSpace {
        /// Bytes asked for.
        asked: u64,
        /// Bytes left for agreements.
        free: u64,
    },
    /// Too many open reservations.
    #[error("too many reservations are open with this host: {0}")]
    TooMany(String),
    /// The block list is not what the draft says.
    #[error("block list not acceptable: {0}")]
    List(String),
    /// No such agreement with this renter.
    #[error("the host knows no such agreement of this renter")]
    Unknown,
    /// The agreement is not in a state for this.
    #[error("not possible while the agreement is {0}")]
    WrongState(String),
    /// The lock does not cover the agreement.
    #[error("the channel's lock does not cover it: {needed} BTT needed, {available} BTT there")]
    NotFunded {
        /// Needed by all agreements on the channel.
        needed: Btt,
        /// Locked and not on its way back.
        available: Btt,
    },
    /// The settlement cannot be asked now.
    #[error("the host cannot reach the settlement now: {0}")]
    NoSettlement(String),
    /// The blocks could not be had from the renter.
    #[error("the blocks did not arrive: {0}")]
    Transfer(String),
    /// The final agreement differs from what the host computed.
    #[error("the agreement differs from the host's own: {0}")]
    Mismatch(String),
    /// The start is too far from the host's settlement time.
    #[error("start {start} is too far from the host's settlement time {now}")]
    Skew {
        /// The start in the agreement.
        start: u64,
        /// The host's settlement time.
        now: u64,
    },
    /// A signature does not hold.
    #[error("signature refused: {0}")]
    Signature(String),
    /// The voucher cannot be credited.
    #[error("voucher refused: {0}")]
    Voucher(String),
    /// A notice for an epoch that cannot be ended any more.
    #[error("notice must be for epoch {earliest} or later")]
    NoticeTooEarly {
        /// The next epoch.
        earliest: u32,
    },
    /// An audit of epochs behind the end that a notice has set.
    #[error("the agreement ended by notice with the beginning of epoch {epoch}")]
    Ended {
        /// First epoch past the end.
        epoch: u32,
    },
    /// Asked too often.
    #[error("asked too often: {0}")]
    Rate(String),
    /// The host's own fault (disk, database).
    #[error("the host failed: {0}")]
    Internal(String),
}

/// Request of [`AUDIT_PROTOCOL`]: prove `from..=epoch` with one proof seeded by `nonce`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRequest {
    /// The agreement's id.
    pub id: B256,
    /// First epoch that a pass settles.
    pub from: u32,
    /// The epoch proven; already over.
    pub epoch: u32,
    /// Fresh random bytes.
    pub nonce: B256,
}

/// Reply of [`AUDIT_PROTOCOL`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditReply {
    /// The chained leaves in order.
    Proof(Vec<LeafProof>),
    /// A challenged block is not here (or damaged).
    NotFound,
    /// No answer on purpose: at best judged as silence.
    Refused(Refusal),
}
