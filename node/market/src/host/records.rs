//! What a host remembers, one table each.

use btfs_ledger::typed::{Agreement, ChannelTerms, Offer, Signed, Voucher};
use btfs_ledger::{Address, Btt, PublicKey, Signature};
use btfs_storage::db::Table;
use serde::{Deserialize, Serialize};

use crate::pages::Pages;
use crate::schedule::MAX_CATCH_UP;
use crate::states::HostState;
use crate::vouchers::Answered;

pub(crate) const SETTINGS: Table<String, HostSettings> = Table::new("market_host_settings");
pub(crate) const OFFERS: Table<[u8; 32], Signed<Offer>> = Table::new("market_host_offers");
pub(crate) const AGREEMENTS: Table<[u8; 32], HostAgreement> = Table::new("market_host_agreements");
pub(crate) const LISTS: Pages = Table::new("market_host_lists");
pub(crate) const TREES: Pages = Table::new("market_host_trees");
/// The one key of [`SETTINGS`].
pub(crate) const SETTINGS_KEY: &str = "settings";

/// How this node rents out disk. Set by its operator, kept over restarts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostSettings {
    /// Whether new agreements are taken.
    pub renting: bool,
    /// For a GiB-day.
    pub price: Btt,
    /// Once per agreement.
    pub setup_price: Btt,
    /// Shortest term in seconds.
    pub min_term: u64,
    /// Longest term in seconds.
    pub max_term: u64,
    /// Largest agreement in bytes.
    pub max_size: u64,
    /// Bytes for all agreements together.
    pub capacity: u64,
    /// Seconds of notice before locked money can go back to the funder.
    pub window: u32,
    /// Who is paid, if not this node's own key.
    pub payee: Option<Address>,
    /// Redeem as soon as this much is owed; otherwise at the end of the agreement.
    pub redeem_above: Option<Btt>,
}

impl Default for HostSettings {
    fn default() -> HostSettings {
        HostSettings {
            renting: false,
            // 10 BTT: the order of what disks cost; the operator sets the real price.
            price: Btt::from_units(10_000_000_000_000_000_000),
            setup_price: Btt::ZERO,
            min_term: 86_400,
            max_term: 366 * 86_400,
            max_size: 64 << 30,
            capacity: 50 << 30,
            window: 3 * 86_400,
            payee: None,
            redeem_above: None,
        }
    }
}

/// One agreement on the host's side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostAgreement {
    /// Where it stands.
    pub state: HostState,
    /// Why it failed or closed early.
    pub reason: Option<String>,
    /// The renter's node.
    pub renter: PublicKey,
    /// The channel that pays.
    pub channel: ChannelTerms,
    /// The draft (start 0), then the final agreement.
    pub agreement: Agreement,
    /// Wall-clock time until which an unsigned agreement keeps its space. Not settlement time: it bounds how long a
    /// silent renter can hold space, and a stepped clock must not end it.
    pub reserved_until: u64,
    /// Whether the lock was seen to cover it: only then the space is kept for longer than a lock takes.
    #[serde(default)]
    pub funded: bool,
    /// The renter's signature over the final agreement.
    pub renter_signature: Option<Signature>,
    /// This host's signature over it.
    pub host_signature: Option<Signature>,
    /// The best voucher.
    pub voucher: Option<Signed<Voucher>>,
    /// Newest audit answered with a proof.
    pub answered: Option<Answered>,
    /// Audits answered in the epoch of the first number.
    pub audits: (u32, u32),
    /// Epochs that this host has answered with a proof.
    pub proven: u32,
    /// Paid to the stream by the settlement, as last read.
    pub paid: Btt,
    /// Earlier end by notice of either side.
    pub ends: Option<u32>,
    /// Whether the renter knows of it.
    #[serde(default)]
    pub told: bool,
    /// Owed by the best voucher when the lock was found empty: it cannot be redeemed, so nothing waits for it.
    #[serde(default)]
    pub lost: Btt,
    /// Epochs that audits have left out and so made final unpaid, while this host was there to answer.
    #[serde(default)]
    pub skipped: u32,
}

/// Proven epochs that may be unpaid before a renter counts as one that does not pay: the newest ones are on their way.
const UNPAID: u32 = 2;
/// Of all proven epochs one in so many may stay unpaid besides: answers that got lost on the way back are judged as
/// silence by an honest renter too.
const LOST_ANSWERS: u32 = 10;
/// At most so many, and one of a hundred in the long run: a renter must not have every tenth epoch for nothing.
const LOST_MOST: u32 = 3;
/// One of so many in the long run.
const LOST_FOR_LONG: u32 = 100;
/// Epochs that audits may leave out, besides half of those that have ended: what an honest renter judges as silence while
/// this host believes that it can be reached.
const SKIPPED: u32 = 3;

/// Why a host ends an agreement that it is not paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unpaid {
    /// Proofs were given and no vouchers came.
    Proven,
    /// No proof was asked for, or none could be given, for longer than one audit can make up for.
    Unasked,
    /// Audits leave out most epochs.
    Skipped,
}

impl Unpaid {
    /// The reason on record.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Proven => "the renter does not pay for proven epochs",
            Self::Unasked => "nothing was proven, and so nothing is paid, for more than 14 epochs",
            Self::Skipped => "the renter's audits leave out most epochs",
        }
    }
}

impl HostAgreement {
    /// Owed by the best voucher and not yet paid out, as far as the lock has not been found empty.
    pub fn unredeemed(&self) -> Btt {
        self.earned().saturating_sub(self.paid).saturating_sub(self.lost)
    }

    /// Epochs that were proven and that no voucher or claim has paid, at the agreement's price: an unpaid setup counts as
    /// the epochs that it is worth.
    pub fn unpaid_proven(&self) -> u32 {
        if self.proven == 0 {
            return 0;
        }
        let price = self.agreement.epoch_price;
        let epochs = price.checked_mul(u64::from(self.proven));
        let due = epochs.and_then(|e| e.checked_add(self.agreement.setup_price)).unwrap_or(Btt::MAX);
        let unpaid = due.saturating_sub(self.earned().max(self.paid));
        let unpaid = unpaid.units().checked_div(price.units()).unwrap_or(0);
        u32::try_from(unpaid).unwrap_or(u32::MAX)
    }

    /// Whether more proven epochs are unpaid than a renter that pays would leave.
    pub fn in_arrears(&self) -> bool {
        let lost = (self.proven / LOST_ANSWERS).min(LOST_MOST.saturating_add(self.proven / LOST_FOR_LONG));
        self.unpaid_proven() > UNPAID.saturating_add(lost)
    }

    /// Whether the agreement is one that is not paid for, at settlement time `now`, and how.
    pub(crate) fn unpaid(&self, now: u64) -> Option<Unpaid> {
        let ended = self.schedule().ended(now);
        let vouched = self.voucher.as_ref().map_or(0, |v| v.document.epochs);
        let proven = self.answered.map_or(0, |a| a.epoch.saturating_add(1));
        if self.in_arrears() {
            Some(Unpaid::Proven)
        } else if ended.saturating_sub(vouched.max(proven)) > MAX_CATCH_UP {
            Some(Unpaid::Unasked)
        } else {
            (self.skipped > SKIPPED.saturating_add(ended / 2)).then_some(Unpaid::Skipped)
        }
    }

    /// Owed in all by the best voucher.
    pub fn earned(&self) -> Btt {
        self.voucher.as_ref().map_or(Btt::ZERO, |v| v.document.amount)
    }

    /// What the channel must still be able to pay for this agreement.
    pub fn need(&self) -> Btt {
        if !matches!(self.state, HostState::Active | HostState::Closing) {
            return Btt::ZERO;
        }
        self.agreement.total_price().unwrap_or(Btt::MAX).saturating_sub(self.paid)
    }
}

#[cfg(test)]
mod tests {
    use btfs_ledger::B256;

    use super::*;
    use crate::terms;
    use crate::terms::tests::{channel, offer, wish};

    /// An agreement with so many epochs proven and `paid` of the settlement.
    fn record(proven: u32, paid: Btt) -> HostAgreement {
        let agreement = terms::draft(&offer(), B256::ZERO, &channel(), B256::ZERO, &wish()).unwrap();
        let renter = btfs_ledger::SecretKey::from_bytes(&[9; 32]).unwrap().public();
        HostAgreement {
            state: HostState::Active,
            reason: None,
            renter,
            channel: channel(),
            agreement,
            reserved_until: 0,
            funded: true,
            renter_signature: None,
            host_signature: None,
            voucher: None,
            answered: None,
            audits: (0, 0),
            proven,
            paid,
            ends: None,
            told: false,
            lost: Btt::ZERO,
            skipped: 0,
        }
    }

    #[test]
    fn few_epochs_may_stay_unpaid_however_long_the_term() {
        let arrears = |proven: u32, unpaid: u32| {
            let a = record(0, Btt::ZERO).agreement;
            let paid = a.epoch_price.checked_mul(u64::from(proven - unpaid)).unwrap();
            record(proven, paid.checked_add(a.setup_price).unwrap()).in_arrears()
        };
        for (proven, most) in [(3, 2), (10, 3), (30, 5), (366, 8), (3660, 41)] {
            assert!(!arrears(proven, most), "{most} of {proven}");
            assert!(arrears(proven, most + 1), "{} of {proven}", most + 1);
        }
    }

    #[test]
    fn an_unpaid_setup_counts_once_the_renter_asks_for_proofs() {
        let mut r = record(0, Btt::ZERO);
        r.agreement.setup_price = r.agreement.epoch_price.checked_mul(5).unwrap();
        assert!(!r.in_arrears(), "it may be away");
        r.proven = 1;
        assert!(r.in_arrears());
        r.paid = r.agreement.setup_price;
        assert!(!r.in_arrears());
    }
}
