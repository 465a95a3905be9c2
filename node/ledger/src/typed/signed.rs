//! Documents with a signature, and what checking them yields.

use std::fmt;
use std::marker::PhantomData;

use alloy_primitives::{Address, B256};
use serde::de::{SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use super::{ChannelTerms, Domain, Voucher};
use crate::keys::{SecretKey, Signature, SignatureError, recover};

/// What can be signed.
pub trait Document {
    /// The EIP-712 digest in a settlement's domain: what is signed, and what names the document.
    fn digest(&self, domain: &Domain) -> B256;
}

/// A document and a signature that somebody put next to it. Nothing is checked yet.
///
/// In DAG-CBOR it is the array `[document, signature]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed<T> {
    /// What is signed.
    pub document: T,
    /// By whom, if by anybody, [`Signed::signer`] tells.
    pub signature: Signature,
}

impl<T: Document> Signed<T> {
    /// Signs a document for one settlement.
    pub fn sign(document: T, domain: &Domain, key: &SecretKey) -> Signed<T> {
        let signature = key.sign_digest(&document.digest(domain));
        Signed { document, signature }
    }

    /// Who signed.
    pub fn signer(&self, domain: &Domain) -> Result<Address, SignatureError> {
        recover(&self.document.digest(domain), &self.signature)
    }

    /// That `expected` signed.
    pub fn verify(&self, domain: &Domain, expected: Address) -> Result<(), SignatureError> {
        match self.signer(domain)? {
            found if found == expected => Ok(()),
            found => Err(SignatureError::WrongSigner { expected, found }),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Named<T> {
    document: T,
    signature: Signature,
}

impl<T: Serialize> Serialize for Signed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return Named { document: &self.document, signature: self.signature }.serialize(serializer);
        }
        let mut pair = serializer.serialize_tuple(2)?;
        pair.serialize_element(&self.document)?;
        pair.serialize_element(&self.signature)?;
        pair.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Signed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Signed<T>, D::Error> {
        if deserializer.is_human_readable() {
            let Named { document, signature } = Named::deserialize(deserializer)?;
            return Ok(Signed { document, signature });
        }
        struct Pair<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Pair<T> {
            type Value = Signed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a document and its signature")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Signed<T>, A::Error> {
                let document = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
                let signature = seq.next_element()?.ok_or_else(|| de::Error::invalid_length(1, &self))?;
                Ok(Signed { document, signature })
            }
        }
        deserializer.deserialize_tuple(2, Pair(PhantomData))
    }
}

/// Why a voucher is not one of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum VoucherError {
    /// For other roles or another window.
    #[error("voucher is for channel {found}, not for {expected}")]
    OtherChannel {
        /// The channel it should be for.
        expected: B256,
        /// The channel it names.
        found: B256,
    },
    /// Not signed by the channel's renter on this settlement.
    #[error("voucher refused: {0}")]
    Signature(#[from] SignatureError),
}

/// A voucher that the channel's renter has signed for this channel on this settlement. Only this type is credited;
/// whether its amount is due, and covered, is the next question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedVoucher(Signed<Voucher>);

impl VerifiedVoucher {
    /// Checks channel and signature.
    pub fn check(
        signed: Signed<Voucher>,
        domain: &Domain,
        channel: &ChannelTerms,
    ) -> Result<VerifiedVoucher, VoucherError> {
        let expected = channel.id();
        let found = signed.document.channel;
        if found != expected {
            return Err(VoucherError::OtherChannel { expected, found });
        }
        signed.verify(domain, channel.renter)?;
        Ok(VerifiedVoucher(signed))
    }

    /// The voucher.
    pub fn voucher(&self) -> &Voucher {
        &self.0.document
    }

    /// The voucher with its signature, to store, to send or to redeem.
    pub fn signed(&self) -> &Signed<Voucher> {
        &self.0
    }
}
