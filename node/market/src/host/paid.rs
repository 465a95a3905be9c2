//! Steps 6 to 8, the host's money: vouchers come in, are measured and made durable before they are acknowledged;
//! the best one is redeemed; what is left in the lock goes back.

use btfs_ledger::typed::{Signed, VerifiedVoucher, Voucher};
use btfs_ledger::{B256, Btt, PublicKey};

use super::{HostAgreement, HostError, HostService, Inner, internal};
use crate::events::MarketEvent;
use crate::messages::{Refusal, RentalReply};
use crate::money::MoneyError;
use crate::states::HostState;
use crate::vouchers::{self, Credit, Ledgered};

/// Without a setting, what is owed is redeemed once it is worth this many epochs.
const REDEEM_EPOCHS: u64 = 7;

impl HostService {
    /// `voucher`: judge, make durable, acknowledge.
    pub(super) async fn voucher(
        &self,
        peer: PublicKey,
        id: B256,
        voucher: Signed<Voucher>,
    ) -> Result<RentalReply, Refusal> {
        let record = self.0.of_renter(peer, id).await?;
        check_signed(&record)?;
        let checked = VerifiedVoucher::check(voucher, self.0.money.domain(), &record.channel)
            .map_err(|e| Refusal::Voucher(e.to_string()))?;
        if let Some(known) = known_already(&record, checked.voucher()) {
            // Repeated questions cost neither the lock nor the settlement.
            return self.answer_voucher(peer, id, (known, record.voucher));
        }
        // Nothing is released or redeemed between reading the channel and crediting by it.
        let _one = self.0.paying.lock().await;
        let ledger = self.0.ledgered(id, &record).await.inspect_err(|_| {
            self.0.unsettled.lock().insert(id);
        })?;
        let credited = self
            .0
            .change(id, move |_, _, r| {
                check_signed(r)?;
                let last = r.voucher.as_ref().map(|v| &v.document);
                let credit = vouchers::credit(&r.agreement, last, r.answered, ledger, checked.voucher())
                    .map_err(|e| Refusal::Voucher(e.to_string()))?;
                if credit == Credit::Better {
                    r.voucher = Some(checked.signed().clone());
                    r.paid = r.paid.max(ledger.paid);
                    // It was measured against the lock with all that was owed before.
                    r.lost = Btt::ZERO;
                }
                Ok((credit, r.voucher.clone()))
            })
            .await?;
        self.answer_voucher(peer, id, credited)
    }

    fn answer_voucher(
        &self,
        renter: PublicKey,
        id: B256,
        (credit, best): (Credit, Option<Signed<Voucher>>),
    ) -> Result<RentalReply, Refusal> {
        let best = best.ok_or(Refusal::Unknown)?;
        let (amount, epochs) = (best.document.amount, best.document.epochs);
        match credit {
            Credit::Behind => return Ok(RentalReply::Behind { voucher: best }),
            Credit::Better => {
                self.0.events.send(MarketEvent::VoucherCredited { id, renter, amount, epochs });
            }
            Credit::Known => {}
        }
        Ok(RentalReply::Acknowledged { amount, epochs })
    }

    /// Redeems the best voucher of one agreement now (`btfs channel redeem`). Returns what the stream was paid in all.
    pub async fn redeem(&self, id: B256) -> Result<Btt, HostError> {
        self.0.record(id).await?.ok_or(HostError::Unknown(id))?;
        self.0.redeem(id).await
    }

    /// The agreements that a channel pays, for `btfs channel ls`.
    pub async fn channel_agreements(&self, channel: B256) -> Result<Vec<(B256, HostAgreement)>, HostError> {
        let all = self.0.all().await?;
        Ok(all.into_iter().filter(|(_, r)| r.channel.id() == channel).collect())
    }
}

/// Vouchers are taken from the signature on, also late ones after the end: what was proven is owed.
fn check_signed(r: &HostAgreement) -> Result<(), Refusal> {
    match r.state {
        HostState::Active | HostState::Closing | HostState::Done => Ok(()),
        state => Err(Refusal::WrongState(format!("{state:?}").to_lowercase())),
    }
}

/// The judgement over a voucher that is not better than the one on record.
fn known_already(r: &HostAgreement, v: &Voucher) -> Option<Credit> {
    let best = &r.voucher.as_ref()?.document;
    if best == v {
        return Some(Credit::Known);
    }
    let same = v.stream == best.stream && v.channel == best.channel;
    (same && v.amount <= best.amount).then_some(Credit::Behind)
}

impl HostAgreement {
    /// What the renter still has to let us have: vouched and not redeemed, or proven and not vouched yet.
    fn outstanding(&self) -> Btt {
        let open = u64::from(self.unpaid_proven());
        let more = self.agreement.epoch_price.checked_mul(open).unwrap_or(Btt::MAX);
        self.unredeemed().checked_add(more).unwrap_or(Btt::MAX)
    }
}

impl Inner {
    /// What the settlement says about the stream and what the channel's other vouchers need.
    async fn ledgered(&self, id: B256, record: &HostAgreement) -> Result<Ledgered, Refusal> {
        let channel = record.channel.id();
        let unavailable = |e: MoneyError| Refusal::NoSettlement(e.to_string());
        let view = self.money.channel(channel).await.map_err(unavailable)?;
        let stream = self.money.stream(channel, id).await.map_err(unavailable)?;
        let all = self.all().await.map_err(internal)?;
        let others = all
            .iter()
            .filter(|(k, r)| *k != id && r.agreement.channel == channel)
            .fold(Btt::ZERO, |sum, (_, r)| sum.checked_add(r.unredeemed()).unwrap_or(Btt::MAX));
        Ok(Ledgered { paid: stream.paid, available: view.available(), others })
    }

    /// Whether the voucher is worth redeeming before the end.
    pub(super) fn worth_redeeming(&self, r: &HostAgreement) -> bool {
        let per_epochs = r.agreement.epoch_price.checked_mul(REDEEM_EPOCHS).unwrap_or(Btt::MAX);
        let least = self.settings.read().redeem_above.unwrap_or(per_epochs);
        let owed = r.unredeemed();
        owed > Btt::ZERO && owed >= least
    }

    /// Redeems the best voucher of `id`, records what is paid, and returns it. Repeating pays nothing twice: the
    /// settlement pays the difference to what the stream was paid before.
    pub(super) async fn redeem(self: &std::sync::Arc<Self>, id: B256) -> Result<Btt, HostError> {
        let _one = self.paying.lock().await;
        let record = self.record(id).await?.ok_or(HostError::Unknown(id))?;
        let channel = record.channel.id();
        let before = self.money.stream(channel, id).await?;
        let owed = record.voucher.filter(|v| v.document.amount > before.paid);
        let owing = owed.is_some();
        // From an empty lock nothing is paid; a call would only make news that lead to the next one.
        let full = owing && self.money.channel(channel).await?.locked > Btt::ZERO;
        if let Some(voucher) = owed.filter(|_| full) {
            let checked = VerifiedVoucher::check(voucher, self.money.domain(), &record.channel)
                .map_err(|e| Refusal::Voucher(e.to_string()))?;
            self.money.redeem(&checked).await?;
        }
        let paid = self.money.stream(channel, id).await?.paid;
        let empty = owing && self.money.channel(channel).await?.locked == Btt::ZERO;
        let lost = self
            .change(id, move |_, _, r| {
                r.paid = r.paid.max(paid);
                let before = r.lost;
                r.lost = if empty { r.earned().saturating_sub(r.paid) } else { Btt::ZERO };
                Ok((r.lost > before).then_some(r.lost))
            })
            .await?;
        if let Some(lost) = lost {
            tracing::warn!(agreement = %id, %lost, "the lock is empty: what the voucher owes cannot be redeemed");
        }
        if paid > before.paid {
            self.events.send(MarketEvent::Redeemed { id, paid });
        }
        Ok(paid)
    }

    /// Lets the funder have back what no agreement of the channel needs any more.
    pub(super) async fn release_rest(&self, id: B256) -> Result<(), HostError> {
        let _one = self.paying.lock().await;
        let record = self.record(id).await?.ok_or(HostError::Unknown(id))?;
        let channel = record.channel.id();
        self.money.resume().await?;
        let all = self.all().await?;
        let mut needed = Btt::ZERO;
        for (k, r) in all.iter().filter(|(_, r)| r.channel.id() == channel) {
            let open = match r.state {
                HostState::Failed => Btt::ZERO,
                HostState::Done => r.outstanding(),
                // This one is finished but for its data; the others keep their whole need.
                _ if *k == id => r.outstanding(),
                HostState::Reserved | HostState::Received => r.agreement.total_price().unwrap_or(Btt::MAX),
                _ => r.need(),
            };
            needed = needed.checked_add(open).unwrap_or(Btt::MAX);
        }
        let view = self.money.channel(channel).await?;
        // What is announced to go back covers nothing: while something is owed it goes by itself, after the window.
        let rest = if needed == Btt::ZERO { view.locked } else { view.available().saturating_sub(needed) };
        if rest > Btt::ZERO {
            self.money.release(channel, rest).await?;
        }
        Ok(())
    }
}
