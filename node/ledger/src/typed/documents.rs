//! Offer, agreement, voucher and call: fields, encodings and what makes their numbers possible.

use std::fmt;

use alloy_primitives::{Address, B256};
use alloy_sol_types::SolStruct;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::ser::{SerializeStruct, SerializeTuple};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use super::{Document, Domain, abi};
use crate::btt::Btt;
use crate::price::total_price;

/// A document: a DAG-CBOR array in field order, a JSON object by field name, EIP-712 data by its Solidity twin.
macro_rules! document {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$doc])* pub $field: $type,)* }

        impl $name {
            const FIELDS: usize = [$(stringify!($field)),*].len();
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    let mut out = serializer.serialize_struct(stringify!($name), Self::FIELDS)?;
                    $(out.serialize_field(stringify!($field), &self.$field)?;)*
                    out.end()
                } else {
                    let mut out = serializer.serialize_tuple(Self::FIELDS)?;
                    $(out.serialize_element(&self.$field)?;)*
                    out.end()
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                if deserializer.is_human_readable() {
                    #[derive(Deserialize)]
                    #[serde(deny_unknown_fields)]
                    struct Named { $($field: $type,)* }
                    let named = Named::deserialize(deserializer)?;
                    return Ok($name { $($field: named.$field,)* });
                }
                struct InOrder;
                impl<'de> Visitor<'de> for InOrder {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        write!(f, "{} as an array of {} fields", stringify!($name), $name::FIELDS)
                    }

                    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<$name, A::Error> {
                        let document = $name {
                            $($field: seq.next_element()?.ok_or_else(|| {
                                de::Error::custom(concat!("ends before ", stringify!($field)))
                            })?,)*
                        };
                        match seq.next_element::<IgnoredAny>()? {
                            None => Ok(document),
                            Some(_) => Err(de::Error::invalid_length(Self::Value::FIELDS + 1, &self)),
                        }
                    }
                }
                deserializer.deserialize_tuple(Self::FIELDS, InOrder)
            }
        }

        impl Document for $name {
            fn digest(&self, domain: &Domain) -> B256 {
                signing_hash(&abi::$name::from(self), domain)
            }
        }
    };
}

/// `keccak256(0x1901 || domain separator || struct hash)`, with the separator computed once per domain.
pub(crate) fn signing_hash(document: &impl SolStruct, domain: &Domain) -> B256 {
    let mut input = [0u8; 66];
    input[..2].copy_from_slice(&[0x19, 0x01]);
    input[2..34].copy_from_slice(domain.separator().as_slice());
    input[34..].copy_from_slice(document.eip712_hash_struct().as_slice());
    alloy_primitives::keccak256(input)
}

document! {
    /// A host's terms, signed by `host`. Prices are per GiB and day; terms are in seconds, sizes in bytes.
    Offer {
        /// The host's node key.
        host: Address,
        /// Who is paid.
        payee: Address,
        /// Per GiB and day.
        price: Btt,
        /// Once per agreement, for taking the data in.
        setup_price: Btt,
        /// Shortest term, seconds.
        min_term: u64,
        /// Longest term, seconds.
        max_term: u64,
        /// Largest block list of one agreement, bytes.
        max_size: u64,
        /// Space on offer when this was signed, bytes.
        free: u64,
        /// Collateral in percent of the remaining value; 0 in this version.
        collateral: u32,
        /// Shortest channel window accepted, seconds.
        window: u32,
        /// When this stops being an offer, unix seconds on the settlement's clock.
        expires: u64,
    }
}

document! {
    /// What a renter and a host agree on: which blocks, from when, for how long, at what price per proven epoch.
    /// Both sign the same bytes.
    Agreement {
        /// [`ChannelTerms::id`](super::ChannelTerms::id) of the channel that pays.
        channel: B256,
        /// 32 random bytes; also the stream of the channel that is paid.
        id: B256,
        /// 0 at first, one more with each renewal.
        revision: u32,
        /// Digest of the offer this follows.
        offer: B256,
        /// SHA-256 of the block list's entries.
        blocks: B256,
        /// Root of the proof tree over the blocks.
        root: B256,
        /// Leaves of the proof tree.
        leaves: u64,
        /// Sum of the blocks' sizes, bytes.
        size: u64,
        /// Start of epoch 0, unix seconds on the settlement's clock.
        start: u64,
        /// Seconds of an epoch.
        epoch_length: u32,
        /// First epoch of this revision.
        first_epoch: u32,
        /// The epoch after the last.
        end_epoch: u32,
        /// Price of one proven epoch.
        epoch_price: Btt,
        /// Price of taking the data in.
        setup_price: Btt,
        /// 0 until a lock per agreement exists.
        collateral: Btt,
        /// Seconds after an epoch's end in which the host may claim it.
        claim_window: u32,
        /// Leaves of an audit.
        audit_leaves: u16,
        /// Leaves of a claim.
        claim_leaves: u16,
        /// Epochs that one claim can pay.
        claim_span: u16,
    }
}

document! {
    /// Everything ever owed to one stream of a channel, signed by the renter. Cumulative: the newest replaces all
    /// before it.
    Voucher {
        /// The channel that pays.
        channel: B256,
        /// The stream of the channel, for storage the agreement's id.
        stream: B256,
        /// All that was ever owed to the stream.
        amount: Btt,
        /// Epochs below this are final.
        epochs: u32,
    }
}

document! {
    /// A signed transaction of an embedded ledger: what a message to the vault would be on a chain.
    Call {
        /// Who calls, and has to sign.
        from: Address,
        /// Exactly one more than the account's last.
        nonce: u64,
        /// After this moment of settlement time the call fails.
        deadline: u64,
        /// Money that goes with it.
        value: Btt,
        /// ABI calldata of an [`Operation`](super::Operation).
        data: Calldata,
    }
}

/// The bytes of a call.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Calldata(pub Vec<u8>);

impl fmt::Debug for Calldata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes 0x{}", self.0.len(), hex::encode(&self.0[..self.0.len().min(4)]))
    }
}

impl Serialize for Calldata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&format!("0x{}", hex::encode(&self.0)))
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Calldata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Calldata, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            return hex::decode(text.strip_prefix("0x").unwrap_or(&text))
                .map(Calldata)
                .map_err(de::Error::custom);
        }
        serde_bytes::ByteBuf::deserialize(deserializer).map(|bytes| Calldata(bytes.into_vec()))
    }
}

impl From<&Offer> for abi::Offer {
    fn from(offer: &Offer) -> abi::Offer {
        abi::Offer {
            host: offer.host,
            payee: offer.payee,
            price: offer.price.units(),
            setupPrice: offer.setup_price.units(),
            minTerm: offer.min_term,
            maxTerm: offer.max_term,
            maxSize: offer.max_size,
            free: offer.free,
            collateral: offer.collateral,
            window: offer.window,
            expires: offer.expires,
        }
    }
}

impl From<&Agreement> for abi::Agreement {
    fn from(agreement: &Agreement) -> abi::Agreement {
        abi::Agreement {
            channel: agreement.channel,
            id: agreement.id,
            revision: agreement.revision,
            offer: agreement.offer,
            blocks: agreement.blocks,
            root: agreement.root,
            leaves: agreement.leaves,
            size: agreement.size,
            start: agreement.start,
            epochLength: agreement.epoch_length,
            firstEpoch: agreement.first_epoch,
            endEpoch: agreement.end_epoch,
            epochPrice: agreement.epoch_price.units(),
            setupPrice: agreement.setup_price.units(),
            collateral: agreement.collateral.units(),
            claimWindow: agreement.claim_window,
            auditLeaves: agreement.audit_leaves,
            claimLeaves: agreement.claim_leaves,
            claimSpan: agreement.claim_span,
        }
    }
}

impl From<&abi::Agreement> for Agreement {
    fn from(agreement: &abi::Agreement) -> Agreement {
        Agreement {
            channel: agreement.channel,
            id: agreement.id,
            revision: agreement.revision,
            offer: agreement.offer,
            blocks: agreement.blocks,
            root: agreement.root,
            leaves: agreement.leaves,
            size: agreement.size,
            start: agreement.start,
            epoch_length: agreement.epochLength,
            first_epoch: agreement.firstEpoch,
            end_epoch: agreement.endEpoch,
            epoch_price: Btt::from_units(agreement.epochPrice),
            setup_price: Btt::from_units(agreement.setupPrice),
            collateral: Btt::from_units(agreement.collateral),
            claim_window: agreement.claimWindow,
            audit_leaves: agreement.auditLeaves,
            claim_leaves: agreement.claimLeaves,
            claim_span: agreement.claimSpan,
        }
    }
}

impl From<&Voucher> for abi::Voucher {
    fn from(voucher: &Voucher) -> abi::Voucher {
        abi::Voucher {
            channel: voucher.channel,
            stream: voucher.stream,
            amount: voucher.amount.units(),
            epochs: voucher.epochs,
        }
    }
}

impl From<&abi::Voucher> for Voucher {
    fn from(voucher: &abi::Voucher) -> Voucher {
        Voucher {
            channel: voucher.channel,
            stream: voucher.stream,
            amount: Btt::from_units(voucher.amount),
            epochs: voucher.epochs,
        }
    }
}

impl From<&Call> for abi::Call {
    fn from(call: &Call) -> abi::Call {
        abi::Call {
            from: call.from,
            nonce: call.nonce,
            deadline: call.deadline,
            value: call.value.units(),
            data: call.data.0.clone().into(),
        }
    }
}

/// Which rule of the protocol an agreement's numbers break.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("agreement refused: {0}")]
pub struct AgreementError(pub &'static str);

/// Most leaves a proof tree can have.
const MAX_LEAVES: u64 = 1 << 40;

impl Agreement {
    /// Checks every rule the protocol has for the numbers of one agreement on a channel with this `window`.
    pub fn check(&self, window: u32) -> Result<(), AgreementError> {
        let rule = |holds: bool, why: &'static str| if holds { Ok(()) } else { Err(AgreementError(why)) };
        rule(self.size > 0 && self.leaves > 0, "it covers no bytes")?;
        rule(self.leaves <= MAX_LEAVES, "more than 2^40 leaves")?;
        rule(self.epoch_length > 0, "epochs without length")?;
        rule(self.first_epoch < self.end_epoch, "it ends before it begins")?;
        rule((self.revision == 0) == (self.first_epoch == 0), "only a first revision begins at epoch 0")?;
        rule(self.collateral.is_zero(), "collateral must be 0 in this version")?;
        rule(self.audit_leaves >= 1, "audits without leaves")?;
        rule(self.claim_leaves >= self.audit_leaves, "claims with fewer leaves than audits")?;
        rule(self.claim_span >= 1, "claims that pay no epoch")?;
        rule(self.claim_window >= self.epoch_length, "claim window below an epoch")?;
        let needed = 2 * u64::from(self.epoch_length) + u64::from(self.claim_window);
        rule(u64::from(window) >= needed, "channel window below two epochs and the claim window")?;
        rule(self.total_price().is_some(), "its price does not fit 128 bits")?;
        let term = u64::from(self.epoch_length) * u64::from(self.end_epoch) + u64::from(self.claim_window);
        rule(self.start.checked_add(term).is_some(), "it ends after the end of time")
    }

    /// Checks that this is the next revision of `previous`: the same content, channel and clock, the next epochs.
    pub fn check_renews(&self, previous: &Agreement) -> Result<(), AgreementError> {
        let expected = Agreement {
            revision: previous.revision.saturating_add(1),
            first_epoch: previous.end_epoch,
            setup_price: Btt::ZERO,
            offer: self.offer,
            end_epoch: self.end_epoch,
            epoch_price: self.epoch_price,
            claim_window: self.claim_window,
            audit_leaves: self.audit_leaves,
            claim_leaves: self.claim_leaves,
            claim_span: self.claim_span,
            ..previous.clone()
        };
        if previous.revision < u32::MAX && *self == expected {
            Ok(())
        } else {
            Err(AgreementError("a renewal may change only offer, term, epoch price and proof parameters"))
        }
    }

    /// Setup price and every epoch up to the end, if it fits.
    pub fn total_price(&self) -> Option<Btt> {
        total_price(self.setup_price, self.epoch_price, self.end_epoch)
    }

    /// The first second of an epoch.
    pub fn epoch_start(&self, epoch: u32) -> u64 {
        self.start.saturating_add(u64::from(self.epoch_length) * u64::from(epoch))
    }

    /// The first second after an epoch.
    pub fn epoch_end(&self, epoch: u32) -> u64 {
        self.start.saturating_add(u64::from(self.epoch_length) * (u64::from(epoch) + 1))
    }

    /// The epoch that contains `now`, before the end or after; `None` before the start.
    pub fn epoch_at(&self, now: u64) -> Option<u32> {
        let since = now.checked_sub(self.start)?;
        let epoch = since.checked_div(u64::from(self.epoch_length))?;
        Some(u32::try_from(epoch).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
#[path = "documents_tests.rs"]
pub(crate) mod tests;
