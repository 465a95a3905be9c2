//! What time does to a host's agreements: reservations run out, terms end, vouchers are redeemed, space is freed.
//!
//! A tick only does what the records say is due, so it may run any number of times, and after a restart it goes on
//! where the last one stopped.

use std::sync::Arc;

use btfs_ledger::{B256, PublicKey};
use btfs_storage::Store;
use btfs_storage::db::Batch;

use super::{HostAgreement, HostError, HostService, Inner, internal, pin_id, records};
use crate::events::MarketEvent;
use crate::messages::{RENTAL_PROTOCOL, Refusal, RentalReply, RentalRequest, decode, encode};
use crate::pages;
use crate::ports::wall_clock;
use crate::schedule::MAX_CLOCK_DISAGREEMENT;
use crate::states::HostState;

/// How long the renter has to answer a notice.
const NOTICE_WAIT: std::time::Duration = std::time::Duration::from_secs(10);

impl HostService {
    /// Does everything that is due at settlement time `now`.
    pub async fn tick(&self, now: u64) {
        let all = match self.0.all().await {
            Ok(all) => all,
            Err(error) => return tracing::error!(%error, "the host's agreements cannot be read"),
        };
        let (mut freed, mut done) = (Vec::new(), true);
        for (id, record) in all {
            let size = record.agreement.size;
            match self.0.tick_one(id, record, now).await {
                Ok(true) => freed.push(MarketEvent::SpaceFreed { id, size }),
                Ok(false) => {}
                // Tried again at the next tick; nothing was lost.
                Err(error) => {
                    done = false;
                    tracing::warn!(agreement = %id, %error, "a step is put off");
                }
            }
        }
        if !freed.is_empty() {
            match self.0.store.run(|s| s.gc()).await {
                Ok(_) => freed.into_iter().for_each(|event| self.0.events.send(event)),
                // What is unpinned goes with the next collection.
                Err(error) => tracing::warn!(%error, "the space of ended agreements is not collected yet"),
            }
        }
        if done {
            self.0.worked_through.send_modify(|t| *t = now.max(*t));
        }
    }

    /// Whether all that fell due until settlement time `time` is done: ends, redemptions, freed space. Vouchers that
    /// renters have yet to send are not waited for.
    pub fn work_done_through(&self, time: u64) -> bool {
        *self.0.worked_through.borrow() >= time
    }

    /// Waits until [`work_done_through`](Self::work_done_through) holds.
    pub async fn work_done(&self, time: u64) {
        // The sender lives as long as this service.
        let _ = self.0.worked_through.subscribe().wait_for(|t| *t >= time).await;
    }

    /// Ends an agreement by notice of its renter.
    pub(super) async fn cancelled(
        &self,
        peer: PublicKey,
        id: B256,
        epoch: u32,
    ) -> Result<RentalReply, Refusal> {
        let record = self.0.of_renter(peer, id).await?;
        if matches!(record.state, HostState::Reserved | HostState::Received) {
            self.0.fail(id, "the renter withdrew").await?;
            return Ok(RentalReply::Ends { epoch: 0 });
        }
        let epoch = self.notice(id, epoch).await?;
        Ok(RentalReply::Ends { epoch })
    }

    /// Gives notice to a renter: the agreement ends with the beginning of the next epoch. The data is kept for the
    /// protocol's time after that.
    pub async fn quit(&self, id: B256) -> Result<u32, HostError> {
        let record = self.0.record(id).await?.ok_or(HostError::Unknown(id))?;
        if record.state != HostState::Active {
            let state = format!("{:?}", record.state).to_lowercase();
            return Err(Refusal::WrongState(state).into());
        }
        let next = record.schedule().epoch_at(self.0.now().await?).saturating_add(1);
        let epoch = self.notice(id, next).await?;
        let request = encode(&RentalRequest::Quit { id, epoch });
        let reply = self.0.courier.ask(&record.renter, RENTAL_PROTOCOL, request, NOTICE_WAIT).await;
        let heard = reply.map(|bytes| decode::<RentalReply>(&bytes, crate::messages::MAX_RENTAL_REPLY));
        if !matches!(heard, Ok(Ok(RentalReply::Ends { .. }))) {
            // The renter sees it at its next audit; the end holds either way.
            tracing::warn!(agreement = %id, "the renter did not acknowledge the notice yet");
        }
        Ok(epoch)
    }

    async fn notice(&self, id: B256, epoch: u32) -> Result<u32, Refusal> {
        let now = self.0.now().await?;
        self.0
            .change(id, move |_, _, r| {
                if r.state != HostState::Active {
                    return Err(Refusal::WrongState(format!("{:?}", r.state).to_lowercase()));
                }
                let earliest = r.schedule().epoch_at(now).saturating_add(1);
                if epoch < earliest {
                    return Err(Refusal::NoticeTooEarly { earliest });
                }
                let ends = r.ends.unwrap_or(r.agreement.end_epoch).min(epoch);
                if ends < r.agreement.end_epoch {
                    r.ends = Some(ends);
                }
                Ok(ends)
            })
            .await
    }
}

impl Inner {
    /// One agreement's due step; whether space became free.
    async fn tick_one(self: &Arc<Self>, id: B256, r: HostAgreement, now: u64) -> Result<bool, HostError> {
        match r.state {
            HostState::Reserved | HostState::Received => {
                let over = wall_clock() > r.reserved_until && !self.is_pulling(id);
                if over {
                    self.fail(id, "not signed within the reservation").await?;
                }
                Ok(over)
            }
            HostState::Active => {
                let schedule = r.schedule();
                if schedule.ended(now) >= schedule.end_epoch {
                    self.close(id).await?;
                    return self.closing(id, now).await;
                }
                if self.worth_redeeming(&r) || self.lock_is_leaving(&r).await {
                    self.redeem(id).await?;
                }
                Ok(false)
            }
            HostState::Closing => self.closing(id, now).await,
            HostState::Done if r.unredeemed() > btfs_ledger::Btt::ZERO => {
                self.redeem(id).await?;
                self.release_rest(id).await?;
                Ok(false)
            }
            HostState::Done | HostState::Failed => Ok(false),
        }
    }

    /// Whether the funder has announced to take money back while something is owed.
    async fn lock_is_leaving(&self, r: &HostAgreement) -> bool {
        if r.unredeemed() == btfs_ledger::Btt::ZERO {
            return false;
        }
        self.money.channel(r.channel.id()).await.is_ok_and(|c| c.pending > btfs_ledger::Btt::ZERO)
    }

    async fn close(self: &Arc<Self>, id: B256) -> Result<(), Refusal> {
        let peer = self
            .change(id, |_, _, r| {
                r.state.advance(HostState::Closing).map_err(internal)?;
                Ok(r.renter)
            })
            .await?;
        self.events.send(MarketEvent::Closed { id, peer, reason: None });
        Ok(())
    }

    /// Redeems, and once the data's time is over frees the space.
    async fn closing(self: &Arc<Self>, id: B256, now: u64) -> Result<bool, HostError> {
        let r = self.record(id).await?.ok_or(HostError::Unknown(id))?;
        let last = r.voucher.as_ref().is_some_and(|v| v.document.epochs >= r.schedule().end_epoch);
        if r.unredeemed() > btfs_ledger::Btt::ZERO {
            self.redeem(id).await?;
        }
        let disagree = now.abs_diff(wall_clock()) > MAX_CLOCK_DISAGREEMENT && !self.local;
        let over = now >= r.schedule().data_until() && !disagree;
        if last && !over {
            // Nothing more can be owed.
            self.release_rest(id).await?;
        }
        if !over || !self.finish(id).await? {
            return Ok(false);
        }
        self.provers.lock().forget(id);
        // If this does not work out, the funder takes it back alone after the window.
        self.release_rest(id).await?;
        Ok(true)
    }

    /// Closing -> Done and the space free, unless a voucher came in that is not redeemed yet.
    async fn finish(self: &Arc<Self>, id: B256) -> Result<bool, HostError> {
        let _no_voucher_meanwhile = self.paying.lock().await;
        let done = self.change(id, move |s, batch, r| {
            if r.unredeemed() > btfs_ledger::Btt::ZERO {
                return Ok(false);
            }
            free(s, batch, id)?;
            r.state.advance(HostState::Done).map_err(internal)?;
            Ok(true)
        });
        Ok(done.await?)
    }

    /// Ends an agreement that never began, and frees its space.
    pub(super) async fn fail(self: &Arc<Self>, id: B256, reason: &str) -> Result<(), Refusal> {
        let reason = reason.to_owned();
        self.change(id, move |s, batch, r| {
            r.state.advance(HostState::Failed).map_err(internal)?;
            r.reason = Some(reason);
            free(s, batch, id)
        })
        .await
    }
}

/// Unpins and unreserves with the batch, and drops list and tree.
fn free(s: &Store, batch: &mut Batch, id: B256) -> Result<(), Refusal> {
    s.unpin(batch, &pin_id(id).into()).map_err(internal)?;
    s.unreserve(batch, &pin_id(id)).map_err(internal)?;
    pages::delete(s.state(), batch, &records::LISTS, id).map_err(internal)?;
    pages::delete(s.state(), batch, &records::TREES, id).map_err(internal)
}
