//! Getting back what is left in the locks, and closing the books of agreements and things.
//!
//! A host that is paid in full releases the rest at once. From one that is gone the funder takes it back alone: it
//! announces the decrease, waits out the channel's window, and finishes. What is owed by a voucher stays in the lock
//! until the host redeems it.

use std::collections::BTreeSet;
use std::sync::Arc;

use btfs_ledger::{B256, Btt};

use super::records::{self, RenterAgreement, ThingState};
use super::tripwire::remember;
use super::{Inner, RentError, plan};
use crate::events::MarketEvent;
use crate::schedule::Schedule;
use crate::states::RenterState;

/// The reason on record when the settlement shows that a host lied.
const DENIED: &str = "the host said that it had not signed";

/// Whether a host could still claim an agreement that it said it had not signed: our signature is enough for that.
fn claimable(r: &RenterAgreement, now: u64) -> bool {
    let newest = r.starts.iter().max();
    r.state == RenterState::Failed
        && newest.is_some_and(|start| now <= Schedule { start: *start, ..r.schedule() }.data_until())
}

impl Inner {
    /// One round over all channels with ended agreements; then over all things.
    pub(super) async fn refund(self: &Arc<Self>, now: u64) -> Result<(), RentError> {
        let all = self.agreements().await?;
        let ended =
            |r: &RenterAgreement| !r.refunded && (r.state == RenterState::Closing || r.state.is_final());
        let looked_at = |r: &RenterAgreement| ended(r) || claimable(r, now);
        let channels: BTreeSet<B256> =
            all.iter().filter(|(_, r)| looked_at(r)).map(|(_, r)| r.channel.id()).collect();
        for channel in channels {
            let of: Vec<_> = all.iter().filter(|(_, r)| r.channel.id() == channel).cloned().collect();
            self.refund_channel(channel, of, now).await?;
        }
        self.close_agreements(now).await?;
        self.close_things().await
    }

    async fn refund_channel(
        self: &Arc<Self>,
        channel: B256,
        of: Vec<(B256, RenterAgreement)>,
        now: u64,
    ) -> Result<(), RentError> {
        let _one = self.paying.lock().await;
        self.money.resume().await?;
        let before = self.money.channel(channel).await?;
        self.read_paid(channel, &of).await?;
        let needed = self.needs(channel).await?;
        let view = self.money.channel(channel).await?;
        let free = view.locked.saturating_sub(needed);
        // What was redeemed in between left the lock and may still count as owed: more may be free, never less. Then only
        // what takes that much back goes on; the news of it lead here again.
        if view != before && (free == Btt::ZERO || view.pending > free) {
            return Ok(());
        }
        if view.pending > free {
            // Announced when less was needed: it would take what is promised now.
            self.money.decrease(channel, free).await?;
            return Ok(());
        }
        if free == Btt::ZERO {
            return self.refunded(channel, &of, view.locked).await;
        }
        if view.pending > Btt::ZERO && now >= view.due {
            self.money.finish(channel).await?;
            let locked = self.money.channel(channel).await?.locked;
            self.events.send(MarketEvent::Refunded { channel, locked });
            return Ok(());
        }
        // A host that is there releases by itself while it winds up.
        let patient = |r: &RenterAgreement| {
            r.state == RenterState::Closing
                && now < r.schedule().data_until().saturating_add(r.schedule().length)
        };
        if view.pending == Btt::ZERO && !of.iter().any(|(_, r)| patient(r)) {
            self.money.decrease(channel, free).await?;
        }
        Ok(())
    }

    /// Records what the channel's streams were paid.
    async fn read_paid(
        self: &Arc<Self>,
        channel: B256,
        of: &[(B256, RenterAgreement)],
    ) -> Result<(), RentError> {
        for (id, r) in of {
            let paid = self.money.stream(channel, *id).await?.paid;
            if paid <= r.paid {
                continue;
            }
            let denied = self
                .change(*id, move |s, batch, r| {
                    r.paid = r.paid.max(paid);
                    if r.state != RenterState::Failed {
                        return Ok(false);
                    }
                    r.reason = Some(format!("{DENIED}, and was paid {paid} BTT for it"));
                    remember(s, batch, &r.host, |h| h.reputation.denied += 1)?;
                    Ok(true)
                })
                .await?;
            if denied {
                self.events.send(MarketEvent::Denied { id: *id, host: r.host, paid });
            }
        }
        Ok(())
    }

    async fn refunded(
        self: &Arc<Self>,
        channel: B256,
        of: &[(B256, RenterAgreement)],
        locked: Btt,
    ) -> Result<(), RentError> {
        let mut any = false;
        for (id, r) in
            of.iter().filter(|(_, r)| !r.refunded && (r.state == RenterState::Closing || r.state.is_final()))
        {
            any |= r.state != RenterState::Failed;
            self.change(*id, |_, _, r| {
                r.refunded = true;
                Ok(())
            })
            .await?;
        }
        if any {
            self.events.send(MarketEvent::Refunded { channel, locked });
        }
        Ok(())
    }

    /// Closing -> Done once everything owed is paid out, or the host's time for it is long over.
    async fn close_agreements(self: &Arc<Self>, now: u64) -> Result<(), RentError> {
        for (id, r) in self.agreements().await? {
            if r.state != RenterState::Closing {
                continue;
            }
            let settled = r.acknowledged || r.voucher.is_none();
            let paid = settled && r.paid >= r.owed();
            let over = now >= r.schedule().data_until().saturating_add(r.schedule().length);
            if paid || over {
                self.change(id, |_, _, r| Ok(r.state.advance(RenterState::Done)?)).await?;
            }
        }
        Ok(())
    }

    /// A thing is done when all its agreements are; its layout is not kept any longer than that.
    async fn close_things(self: &Arc<Self>) -> Result<(), RentError> {
        let agreements = self.agreements().await?;
        for (id, thing) in self.things().await? {
            if !matches!(thing.state, ThingState::Active | ThingState::Incomplete) {
                continue;
            }
            let own = agreements.iter().filter(|(_, r)| r.thing == id && r.state != RenterState::Failed);
            let (mut any, mut over) = (false, true);
            for (_, r) in own {
                any = true;
                over &= matches!(r.state, RenterState::Closing | RenterState::Done);
            }
            // What never began stays Incomplete, with its reason.
            if !any || !over {
                continue;
            }
            self.write(move |s, batch| {
                let Some(mut thing) = s.state().get(&records::THINGS, &id.0)? else { return Ok(()) };
                thing.state = ThingState::Done;
                batch.put(&records::THINGS, &id.0, &thing)?;
                s.unpin(batch, &plan::layout_pin(id).into())?;
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}
