//! The rules of paying: what the renter signs next, what the host credits, who adopts what after a lost state.
//!
//! A voucher is cumulative: its amount is everything ever owed to the stream, and epochs below its watermark are
//! final. So a voucher may be sent any number of times, and the one with the larger numbers is the truth.

use btfs_ledger::Btt;
use btfs_ledger::typed::{Agreement, Voucher};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::terms;

/// Why the renter makes no voucher.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MakeError {
    /// Sums beyond 128 bits: cannot happen within checked terms.
    #[error("the amount does not fit into 128 bits")]
    Overflow,
    /// More than the agreement can ever cost.
    #[error("{amount} BTT would pass the agreement's total of {total} BTT; nothing was signed")]
    AboveTotal {
        /// What would be signed.
        amount: Btt,
        /// The most the agreement can cost.
        total: Btt,
    },
}

/// The voucher after a passed audit of `from..=epoch`: `max(last.amount, paid) + price of those epochs`, final
/// through `epoch`. `last` is the renter's newest voucher, `paid` what the settlement has paid to the stream.
pub fn after_pass(
    a: &Agreement,
    last: Option<&Voucher>,
    paid: Btt,
    from: u32,
    epoch: u32,
) -> Result<Voucher, MakeError> {
    let base = last.map_or(a.setup_price, |v| v.amount).max(paid);
    let epochs = epoch.saturating_add(1);
    on_top(a, base, epochs.saturating_sub(from), epochs)
}

/// The voucher for `count` more epochs on top of `base`, final below `epochs`.
pub fn on_top(a: &Agreement, base: Btt, count: u32, epochs: u32) -> Result<Voucher, MakeError> {
    let more = a.epoch_price.checked_mul(u64::from(count)).ok_or(MakeError::Overflow)?;
    let amount = base.checked_add(more).ok_or(MakeError::Overflow)?;
    let total = terms::total(a).map_err(|_| MakeError::Overflow)?;
    if amount > total {
        return Err(MakeError::AboveTotal { amount, total });
    }
    Ok(Voucher { channel: a.channel, stream: a.id, amount, epochs })
}

/// The voucher for the setup price, right after both have signed.
pub fn for_setup(a: &Agreement) -> Option<Voucher> {
    let amount = a.setup_price;
    (amount > Btt::ZERO).then_some(Voucher { channel: a.channel, stream: a.id, amount, epochs: 0 })
}

/// Whether the renter, told that it is behind, takes over the host's voucher (whose signature it has verified to be
/// its own): it is at least as good in both numbers, and within the agreement.
pub fn adopt(a: &Agreement, last: Option<&Voucher>, shown: &Voucher) -> bool {
    let within = terms::total(a).is_ok_and(|total| shown.amount <= total) && shown.epochs <= a.end_epoch;
    let same = shown.channel == a.channel && shown.stream == a.id;
    same && within && last.is_none_or(|v| shown.amount >= v.amount && shown.epochs >= v.epochs)
}

/// The newest audit that the host answered with a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// First epoch it settles.
    pub from: u32,
    /// Last epoch it settles.
    pub epoch: u32,
}

/// What the host knows when a voucher comes in.
#[derive(Clone, Copy, Debug)]
pub struct Ledgered {
    /// Paid to this stream so far.
    pub paid: Btt,
    /// Locked in the channel and not on its way back to the funder.
    pub available: Btt,
    /// Best vouchers of the channel's other streams, less what they were paid.
    pub others: Btt,
}

/// What to do with a voucher whose signature and channel hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Credit {
    /// Better than what is on record: make it durable, then acknowledge.
    Better,
    /// Already on record: acknowledge again.
    Known,
    /// Lower than what is on record: show the better one.
    Behind,
}

/// Why a voucher is not credited.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CreditError {
    /// For another agreement.
    #[error("it is for another stream")]
    OtherStream,
    /// Its watermark falls.
    #[error("its watermark {found} is below {last}")]
    EpochsFell {
        /// In the voucher.
        found: u32,
        /// On record.
        last: u32,
    },
    /// It finalises epochs that no proof was given for.
    #[error("it makes epochs below {found} final, but proofs were asked for only below {proven}")]
    Unproven {
        /// In the voucher.
        found: u32,
        /// Watermark of the proofs given.
        proven: u32,
    },
    /// Less than what the proven epochs cost.
    #[error("{found} BTT is less than the {due} BTT due")]
    TooLow {
        /// In the voucher.
        found: Btt,
        /// By the agreement.
        due: Btt,
    },
    /// More than the lock can pay.
    #[error("it needs {needed} BTT of the lock, which has {available} BTT for all streams")]
    AboveLock {
        /// For this and all other streams.
        needed: Btt,
        /// Locked less pending.
        available: Btt,
    },
}

/// Judges a voucher on the host's side: the protocol's step 6.
pub fn credit(
    a: &Agreement,
    last: Option<&Voucher>,
    answered: Option<Answered>,
    ledger: Ledgered,
    v: &Voucher,
) -> Result<Credit, CreditError> {
    if v.stream != a.id || v.channel != a.channel {
        return Err(CreditError::OtherStream);
    }
    let (amount, epochs) = last.map_or((Btt::ZERO, 0), |l| (l.amount, l.epochs));
    if last.is_some_and(|l| l == v) {
        return Ok(Credit::Known);
    }
    if last.is_some() && v.amount <= amount {
        return Ok(Credit::Behind);
    }
    if v.epochs < epochs {
        return Err(CreditError::EpochsFell { found: v.epochs, last: epochs });
    }
    let proven = answered.map_or(0, |x| x.epoch + 1).max(epochs);
    if v.epochs > proven {
        return Err(CreditError::Unproven { found: v.epochs, proven });
    }
    let due = due(a, last, answered, ledger.paid, v.epochs);
    if v.amount < due {
        return Err(CreditError::TooLow { found: v.amount, due });
    }
    let needed = v.amount.saturating_sub(ledger.paid).checked_add(ledger.others);
    match needed {
        Some(needed) if needed <= ledger.available => Ok(Credit::Better),
        _ => Err(CreditError::AboveLock { needed: needed.unwrap_or(Btt::MAX), available: ledger.available }),
    }
}

/// What the host expects of a voucher with this watermark. Epochs that the renter's audit left out (`from` above the
/// last watermark) were judged as failed; they are not due.
fn due(a: &Agreement, last: Option<&Voucher>, answered: Option<Answered>, paid: Btt, epochs: u32) -> Btt {
    let base = last.map_or(a.setup_price, |l| l.amount).max(paid);
    let start = last.map_or(0, |l| l.epochs);
    let count = match answered {
        Some(x) if epochs > start => epochs.saturating_sub(x.from.max(start)),
        _ => 0,
    };
    a.epoch_price.checked_mul(u64::from(count)).and_then(|more| base.checked_add(more)).unwrap_or(Btt::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terms::tests::{channel, offer, wish};
    use btfs_ledger::B256;
    use proptest::prelude::*;

    fn agreement() -> Agreement {
        terms::draft(&offer(), B256::ZERO, &channel(), B256::repeat_byte(5), &wish()).unwrap()
    }

    fn voucher(units: u128, epochs: u32) -> Voucher {
        let a = agreement();
        Voucher { channel: a.channel, stream: a.id, amount: Btt::from_units(units), epochs }
    }

    const RICH: Ledgered = Ledgered { paid: Btt::ZERO, available: Btt::MAX, others: Btt::ZERO };

    #[test]
    fn a_passed_audit_pays_its_epochs_and_no_others() {
        let a = agreement();
        let first = after_pass(&a, None, Btt::ZERO, 0, 0).unwrap();
        assert_eq!((first.amount, first.epochs), (Btt::from_units(1_000_005), 1));
        // Epochs 1 and 2 failed: 3..=4 are paid, 1 and 2 never.
        let second = after_pass(&a, Some(&first), Btt::ZERO, 3, 4).unwrap();
        assert_eq!((second.amount, second.epochs), (Btt::from_units(3_000_005), 5));
        // The settlement has already paid more (a claim): the next voucher starts there.
        let third = after_pass(&a, Some(&second), Btt::from_units(4_000_005), 6, 6).unwrap();
        assert_eq!(third.amount, Btt::from_units(5_000_005));
        assert!(matches!(after_pass(&a, Some(&third), Btt::ZERO, 0, 29), Err(MakeError::AboveTotal { .. })));
    }

    #[test]
    fn credit_follows_the_protocol() {
        let a = agreement();
        let last = voucher(1_000_005, 1);
        let answered = Some(Answered { from: 1, epoch: 1 });
        let judge = |v: &Voucher| credit(&a, Some(&last), answered, RICH, v);
        assert_eq!(judge(&voucher(2_000_005, 2)), Ok(Credit::Better));
        assert_eq!(judge(&last), Ok(Credit::Known), "equal is acknowledged again");
        assert_eq!(judge(&voucher(1_000_004, 1)), Ok(Credit::Behind), "lower is behind");
        assert_eq!(judge(&voucher(1_000_005, 2)), Ok(Credit::Behind), "nothing is made final for nothing");
        assert_eq!(judge(&voucher(5, 0)), Ok(Credit::Behind));
        let low = judge(&voucher(2_000_004, 2)).unwrap_err();
        assert_eq!(
            low,
            CreditError::TooLow { found: Btt::from_units(2_000_004), due: Btt::from_units(2_000_005) }
        );
        assert!(matches!(judge(&voucher(9_000_005, 3)), Err(CreditError::Unproven { found: 3, proven: 2 })));
        assert!(matches!(judge(&voucher(2_000_005, 0)), Err(CreditError::EpochsFell { .. })));
        let mut other = voucher(2_000_005, 2);
        other.stream = B256::ZERO;
        assert_eq!(judge(&other), Err(CreditError::OtherStream));
    }

    #[test]
    fn the_lock_bounds_all_streams_together() {
        let a = agreement();
        let answered = Some(Answered { from: 0, epoch: 0 });
        let v = voucher(1_000_005, 1);
        let units = Btt::from_units;
        let with = |paid, available, others| {
            credit(
                &a,
                None,
                answered,
                Ledgered { paid: units(paid), available: units(available), others: units(others) },
                &v,
            )
        };
        assert_eq!(with(0, 1_000_005, 0), Ok(Credit::Better));
        assert!(matches!(with(0, 1_000_004, 0), Err(CreditError::AboveLock { .. })));
        assert!(matches!(with(0, 1_000_005, 1), Err(CreditError::AboveLock { .. })));
        assert_eq!(with(5, 1_000_000, 0), Ok(Credit::Better));
        assert_eq!(credit(&a, None, None, RICH, &voucher(5, 0)), Ok(Credit::Better), "setup price");
    }

    #[test]
    fn the_renter_adopts_only_its_own_better_voucher() {
        let a = agreement();
        let last = voucher(1_000_005, 1);
        assert!(adopt(&a, Some(&last), &voucher(2_000_005, 2)));
        assert!(adopt(&a, None, &voucher(2_000_005, 2)));
        assert!(!adopt(&a, Some(&last), &voucher(1_000_004, 2)));
        assert!(!adopt(&a, Some(&last), &voucher(2_000_005, 0)));
        assert!(!adopt(&a, None, &voucher(30_000_006, 2)), "above the agreement's total");
        assert!(!adopt(&a, None, &Voucher { stream: B256::ZERO, ..voucher(5, 0) }));
    }

    proptest! {
        /// Whatever passes and fails, a renter and a host that follow the rules agree on every voucher, and the
        /// last one is the price of the passed epochs.
        #[test]
        fn both_sides_agree(passes in prop::collection::vec(any::<bool>(), 30)) {
            let a = agreement();
            let mut last: Option<Voucher> = None;
            let mut paid_epochs = 0u64;
            for (e, pass) in passes.iter().enumerate() {
                let e = e as u32;
                if !pass { continue; }
                let v = after_pass(&a, last.as_ref(), Btt::ZERO, e, e).unwrap();
                let answered = Some(Answered { from: e, epoch: e });
                prop_assert_eq!(credit(&a, last.as_ref(), answered, RICH, &v), Ok(Credit::Better));
                prop_assert_eq!(credit(&a, Some(&v), answered, RICH, &v), Ok(Credit::Known));
                last = Some(v);
                paid_epochs += 1;
            }
            if let Some(v) = last {
                let due = a.epoch_price.checked_mul(paid_epochs).unwrap().checked_add(a.setup_price).unwrap();
                prop_assert_eq!(v.amount, due);
            }
        }
    }
}
