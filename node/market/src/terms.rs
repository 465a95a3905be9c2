//! The terms of an agreement: made from an offer by the renter, checked against it by the host.
//!
//! One function states the rules ([`check`]); the renter drafts so that it holds and the host refuses what breaks
//! it. The money in an agreement is fixed here, once, in integers.

use btfs_ledger::price::{epoch_price, total_price};
use btfs_ledger::typed::{Agreement, ChannelTerms, Offer};
use btfs_ledger::{B256, Btt};
use thiserror::Error;

use crate::messages::MAX_AUDIT_LEAVES;

/// Leaves challenged in an audit unless the renter wants otherwise: 1 % loss is found within a week at 88 %.
pub const AUDIT_LEAVES: u16 = 30;
/// Epochs that one claim may cover by default.
pub const CLAIM_SPAN: u16 = 7;
/// A day: the default epoch.
pub const DAY: u32 = 86_400;
/// Shortest epoch: below it deadlines in fractions of an epoch would be shorter than answers.
pub const MIN_EPOCH: u32 = 60;
/// Longest epoch, a month: bounds what one missed proof costs.
pub const MAX_EPOCH: u32 = 31 * DAY;
/// Most epochs in a term, 10 years of days.
pub const MAX_EPOCHS: u32 = 3660;
/// Most leaves of a proof tree.
pub const MAX_LEAVES: u64 = 1 << 40;

/// What the renter wants of one host.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Digest of the block list.
    pub blocks: B256,
    /// Root of the proof tree over the list.
    pub root: B256,
    /// Leaves of that tree.
    pub leaves: u64,
    /// Sum of block sizes in bytes.
    pub size: u64,
    /// Epochs to pay for.
    pub epochs: u32,
    /// Seconds per epoch.
    pub epoch_length: u32,
    /// Leaves an audit asks for.
    pub audit_leaves: u16,
}

/// Why terms are not acceptable. The messages are for the person on the other side.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TermsError {
    /// A field breaks the protocol's own rules.
    #[error("{field} is {found}, but must be {rule}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        rule: String,
    },
    /// The numbers do not fit into 128 bits.
    #[error("the price of the whole term does not fit into 128 bits")]
    Overflow,
}

fn must(ok: bool, field: &'static str, found: impl ToString, rule: impl ToString) -> Result<(), TermsError> {
    if ok {
        Ok(())
    } else {
        Err(TermsError::Field { field, found: found.to_string(), rule: rule.to_string() })
    }
}

/// The notice period for a channel with this host: what its offer wants, and at least what the protocol wants.
pub fn window(offer: &Offer, epoch_length: u32, claim_window: u32) -> u32 {
    offer.window.max(epoch_length.saturating_mul(2).saturating_add(claim_window))
}

/// The claim window used for new agreements: one epoch, the least the protocol allows.
pub fn claim_window(epoch_length: u32) -> u32 {
    epoch_length
}

/// Most that an agreement can ever cost: what its channel must cover.
pub fn total(agreement: &Agreement) -> Result<Btt, TermsError> {
    total_price(agreement.setup_price, agreement.epoch_price, agreement.end_epoch).ok_or(TermsError::Overflow)
}

/// Drafts revision 0 of a new agreement: everything but the start.
pub fn draft(
    offer: &Offer,
    offer_digest: B256,
    channel: &ChannelTerms,
    id: B256,
    wish: &Wish,
) -> Result<Agreement, TermsError> {
    let price = epoch_price(wish.size, offer.price, wish.epoch_length).ok_or(TermsError::Overflow)?;
    let agreement = Agreement {
        channel: channel.id(),
        id,
        revision: 0,
        offer: offer_digest,
        blocks: wish.blocks,
        root: wish.root,
        leaves: wish.leaves,
        size: wish.size,
        start: 0,
        epoch_length: wish.epoch_length,
        first_epoch: 0,
        end_epoch: wish.epochs,
        epoch_price: price,
        setup_price: offer.setup_price,
        collateral: Btt::ZERO,
        claim_window: claim_window(wish.epoch_length),
        audit_leaves: wish.audit_leaves,
        claim_leaves: wish.audit_leaves.max(AUDIT_LEAVES),
        claim_span: CLAIM_SPAN,
    };
    check(&agreement, offer, offer_digest, channel)?;
    Ok(agreement)
}

/// Checks every field of a draft (start 0) against the offer, the channel and the protocol.
pub fn check(
    a: &Agreement,
    offer: &Offer,
    offer_digest: B256,
    channel: &ChannelTerms,
) -> Result<(), TermsError> {
    must(a.channel == channel.id(), "channel", a.channel, channel.id())?;
    must(channel.host == offer.host, "host", channel.host, offer.host)?;
    must(channel.payee == offer.payee, "payee", channel.payee, offer.payee)?;
    must(!channel.funder.is_zero(), "funder", channel.funder, "an address")?;
    must(a.offer == offer_digest, "offer", a.offer, offer_digest)?;
    must(a.revision == 0, "revision", a.revision, "0 for a new agreement")?;
    must(a.start == 0, "start", a.start, "0 in a draft")?;
    check_shape(a)?;
    let window = u64::from(channel.window);
    let least = 2 * u64::from(a.epoch_length) + u64::from(a.claim_window);
    must(window >= least, "window", window, format!("at least {least} s: two epochs and the claim window"))?;
    must(
        channel.window >= offer.window,
        "window",
        window,
        format!("at least the offer's {} s", offer.window),
    )?;
    let term = u64::from(a.end_epoch) * u64::from(a.epoch_length);
    let (min, max) = (offer.min_term, offer.max_term);
    must(term >= min, "term", format!("{term} s"), format!("at least the host's minimum of {min} s"))?;
    must(term <= max, "term", format!("{term} s"), format!("at most the host's maximum of {max} s"))?;
    must(a.size <= offer.max_size, "size", a.size, format!("at most {} bytes", offer.max_size))?;
    let price = epoch_price(a.size, offer.price, a.epoch_length).ok_or(TermsError::Overflow)?;
    must(a.epoch_price == price, "epochPrice", a.epoch_price, format!("{price} by the offer"))?;
    must(a.setup_price == offer.setup_price, "setupPrice", a.setup_price, offer.setup_price)?;
    total(a).map(|_| ())
}

/// The rules that hold for any new agreement, whatever the offer.
fn check_shape(a: &Agreement) -> Result<(), TermsError> {
    let l = a.epoch_length;
    must((MIN_EPOCH..=MAX_EPOCH).contains(&l), "epochLength", l, format!("{MIN_EPOCH} to {MAX_EPOCH} s"))?;
    must(a.first_epoch == 0, "firstEpoch", a.first_epoch, "0 for a new agreement")?;
    must((1..=MAX_EPOCHS).contains(&a.end_epoch), "endEpoch", a.end_epoch, format!("1 to {MAX_EPOCHS}"))?;
    must(a.size > 0, "size", a.size, "at least 1 byte")?;
    // Leaves are counted per block, so there are at least size / 1024 and at most one short leaf per block more.
    let least = a.size.div_ceil(1024);
    let most = least.saturating_add(65_536).min(MAX_LEAVES);
    must((least..=most).contains(&a.leaves), "leaves", a.leaves, format!("{least} to {most}"))?;
    must(a.collateral == Btt::ZERO, "collateral", a.collateral, "0")?;
    must(
        a.claim_window >= l && a.claim_window <= MAX_EPOCH,
        "claimWindow",
        a.claim_window,
        format!("{l} s or more"),
    )?;
    let audit = a.audit_leaves;
    must((1..=MAX_AUDIT_LEAVES).contains(&audit), "auditLeaves", audit, format!("1 to {MAX_AUDIT_LEAVES}"))?;
    let claim = a.claim_leaves;
    must((audit..=MAX_AUDIT_LEAVES).contains(&claim), "claimLeaves", claim, format!("{audit} or more"))?;
    must(a.claim_span >= 1, "claimSpan", a.claim_span, "at least 1")
}

/// Whether a final agreement is the draft with a start and nothing else changed.
pub fn same_but_start(draft: &Agreement, signed: &Agreement) -> bool {
    Agreement { start: 0, ..draft.clone() } == Agreement { start: 0, ..signed.clone() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use btfs_ledger::Address;

    pub(crate) fn offer() -> Offer {
        Offer {
            host: Address::repeat_byte(3),
            payee: Address::repeat_byte(4),
            price: Btt::from_units(1_000_000),
            setup_price: Btt::from_units(5),
            min_term: 86_400,
            max_term: 86_400 * 400,
            max_size: 1 << 40,
            free: 1 << 40,
            collateral: 0,
            window: 3 * 86_400,
            expires: u64::MAX,
        }
    }

    pub(crate) fn channel() -> ChannelTerms {
        ChannelTerms {
            funder: Address::repeat_byte(1),
            renter: Address::repeat_byte(2),
            host: Address::repeat_byte(3),
            payee: Address::repeat_byte(4),
            window: 3 * 86_400,
        }
    }

    pub(crate) fn wish() -> Wish {
        Wish {
            blocks: B256::repeat_byte(7),
            root: B256::repeat_byte(8),
            leaves: 1 << 20,
            size: 1 << 30,
            epochs: 30,
            epoch_length: DAY,
            audit_leaves: AUDIT_LEAVES,
        }
    }

    fn good() -> Agreement {
        draft(&offer(), B256::repeat_byte(9), &channel(), B256::repeat_byte(5), &wish()).unwrap()
    }

    #[test]
    fn a_draft_costs_what_the_offer_says() {
        let a = good();
        assert_eq!(a.epoch_price, Btt::from_units(1_000_000));
        assert_eq!(total(&a).unwrap(), Btt::from_units(30_000_005));
        assert!(same_but_start(&a, &Agreement { start: 77, ..a.clone() }));
        assert!(!same_but_start(&a, &Agreement { size: a.size + 1, ..a.clone() }));
    }

    #[test]
    fn every_changed_field_is_refused() {
        type Change = (&'static str, fn(&mut Agreement));
        let changes: &[Change] = &[
            ("channel", |a| a.channel = B256::ZERO),
            ("offer", |a| a.offer = B256::ZERO),
            ("revision", |a| a.revision = 1),
            ("start", |a| a.start = 1),
            ("epochLength", |a| a.epoch_length = 59),
            ("epochLength", |a| a.epoch_length = u32::MAX),
            ("firstEpoch", |a| a.first_epoch = 1),
            ("endEpoch", |a| a.end_epoch = 0),
            ("endEpoch", |a| a.end_epoch = u32::MAX),
            ("term", |a| a.end_epoch = 401),
            ("size", |a| a.size = 0),
            ("leaves", |a| a.leaves = 0),
            ("leaves", |a| a.leaves = u64::MAX),
            ("epochPrice", |a| a.epoch_price = Btt::from_units(999_999)),
            ("setupPrice", |a| a.setup_price = Btt::ZERO),
            ("collateral", |a| a.collateral = Btt::from_units(1)),
            ("claimWindow", |a| a.claim_window = DAY - 1),
            ("claimWindow", |a| a.claim_window = u32::MAX),
            ("window", |a| a.claim_window = DAY + 1),
            ("auditLeaves", |a| a.audit_leaves = 0),
            ("auditLeaves", |a| a.audit_leaves = 65),
            ("claimLeaves", |a| a.claim_leaves = 29),
            ("claimSpan", |a| a.claim_span = 0),
        ];
        for (field, change) in changes {
            let mut a = good();
            change(&mut a);
            let error = check(&a, &offer(), B256::repeat_byte(9), &channel()).unwrap_err();
            assert!(matches!(&error, TermsError::Field { field: f, .. } if f == field), "{field}: {error}");
        }
    }

    #[test]
    fn a_term_below_the_minimum_names_both() {
        let w = Wish { epochs: 1, ..wish() };
        let o = Offer { min_term: 7 * 86_400, ..offer() };
        let error = draft(&o, B256::ZERO, &channel(), B256::ZERO, &w).unwrap_err().to_string();
        assert_eq!(error, "term is 86400 s, but must be at least the host's minimum of 604800 s");
    }
}
