//! What time does to a host's agreements: reservations run out, terms end, vouchers are redeemed, space is freed.
//!
//! A tick only does what the records say is due, so it may run any number of times, and after a restart it goes on
//! where the last one stopped.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use btfs_ledger::B256;
use btfs_storage::Store;
use btfs_storage::db::Batch;

use super::records::Unpaid;
use super::{HostAgreement, HostError, HostService, Inner, internal, pin_id, records};
use crate::events::MarketEvent;
use crate::messages::Refusal;
use crate::pages;
use crate::ports::wall_clock;
use crate::schedule::MAX_CLOCK_DISAGREEMENT;
use crate::states::HostState;

/// Wall-clock time in which a voucher comes after its proof, however fast a local clock is stepped.
pub(crate) const VOUCHER_WAIT: Duration = Duration::from_secs(30);
/// Seconds for which an agreement that is over stays on record, for `status` and for late vouchers: longer than the longest
/// notice period of a channel. Then it goes, since every scan reads all records.
const SHOWN: u64 = 120 * 86_400;
impl HostService {
    /// Does everything that is due at settlement time `now`.
    pub async fn tick(&self, now: u64) {
        self.0.up_since.get_or_init(|| now);
        let unsettled = !self.0.unsettled.lock().is_empty();
        if unsettled && self.0.money.refresh().await.is_ok() {
            // From here on the vouchers can come, and whoever owes is waited for anew.
            self.0.unsettled.lock().clear();
        }
        let all = match self.0.all().await {
            Ok(all) => all,
            Err(error) => return tracing::error!(%error, "the host's agreements cannot be read"),
        };
        let (mut freed, mut done) = (Vec::new(), true);
        let mut leaving = HashMap::new();
        for (id, record) in all {
            let size = record.agreement.size;
            match self.0.tick_one(id, record, now, &mut leaving).await {
                Ok(true) => freed.push(MarketEvent::SpaceFreed { id, size }),
                Ok(false) => {}
                // Tried again at the next tick; nothing was lost.
                Err(error) => {
                    done = false;
                    tracing::warn!(agreement = %id, %error, "a step is put off");
                }
            }
        }
        self.0.collect_soon(freed, done.then_some(now));
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
}

impl Inner {
    /// One agreement's due step; whether space became free.
    async fn tick_one(
        self: &Arc<Self>,
        id: B256,
        r: HostAgreement,
        now: u64,
        leaving: &mut HashMap<B256, bool>,
    ) -> Result<bool, HostError> {
        if r.ends.is_some() && !r.told && r.state != HostState::Done {
            self.clone().tell_soon(id);
        }
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
                    self.close(id, None).await?;
                    return self.closing(id, now).await;
                }
                if let Some(why) = self.stays_unpaid(id, &r, now) {
                    self.close(id, Some((why, now))).await?;
                    self.clone().tell_soon(id);
                    return self.closing(id, now).await;
                }
                if self.worth_redeeming(&r) || self.lock_is_leaving(&r, leaving).await? {
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
            HostState::Done => {
                let shown_until = r.schedule().data_until().saturating_add(SHOWN);
                // With something unredeemed it stays: the lock may be filled again.
                if now > shown_until && r.earned() <= r.paid && !self.clocks_disagree(now) {
                    self.drop_record(id).await?;
                }
                Ok(false)
            }
            // Left by an earlier version, which kept them.
            HostState::Failed => {
                self.forget(id).await?;
                Ok(false)
            }
        }
    }

    /// Whether the funder has announced to take money back while something is owed. Each channel is read once a tick.
    async fn lock_is_leaving(
        &self,
        r: &HostAgreement,
        known: &mut HashMap<B256, bool>,
    ) -> Result<bool, HostError> {
        if r.unredeemed() == btfs_ledger::Btt::ZERO {
            return Ok(false);
        }
        let channel = r.channel.id();
        if let Some(leaving) = known.get(&channel) {
            return Ok(*leaving);
        }
        let leaving = self.money.channel(channel).await?.pending > btfs_ledger::Btt::ZERO;
        known.insert(channel, leaving);
        Ok(leaving)
    }

    /// Whether an agreement has been unpaid for the half epoch in which a verdict and its voucher come. Counted from
    /// when this process first saw it, so that a renter can bring what a host that was away has missed.
    fn stays_unpaid(&self, id: B256, r: &HostAgreement, now: u64) -> Option<Unpaid> {
        let mut arrears = self.arrears.lock();
        let why = r.unpaid(now).filter(|_| !self.unsettled.lock().contains(&id));
        let Some(why) = why else {
            arrears.remove(&id);
            return None;
        };
        let (since, seen) = *arrears.entry(id).or_insert((now, Instant::now()));
        let half = (r.schedule().length / 2).max(1);
        // A voucher may be on its way while a local clock jumps.
        (now >= since.saturating_add(half) && seen.elapsed() >= VOUCHER_WAIT).then_some(why)
    }

    /// Active -> Closing: the term is over, or it is `unpaid` (seen now) and ends with the next epoch.
    async fn close(self: &Arc<Self>, id: B256, unpaid: Option<(Unpaid, u64)>) -> Result<(), Refusal> {
        let (peer, reason) = self
            .change(id, move |_, _, r| {
                r.state.advance(HostState::Closing).map_err(internal)?;
                if let Some((why, now)) = unpaid {
                    let next = r.schedule().epoch_at(now).saturating_add(1);
                    r.ends = Some(r.ends.unwrap_or(r.agreement.end_epoch).min(next));
                    r.told = false;
                    r.reason = Some(why.reason().to_owned());
                }
                Ok((r.renter, r.reason.clone().filter(|_| unpaid.is_some())))
            })
            .await?;
        self.arrears.lock().remove(&id);
        self.events.send(MarketEvent::Closed { id, peer, reason });
        Ok(())
    }

    /// Redeems, and once the data's time is over frees the space.
    async fn closing(self: &Arc<Self>, id: B256, now: u64) -> Result<bool, HostError> {
        let r = self.record(id).await?.ok_or(HostError::Unknown(id))?;
        let last = r.voucher.as_ref().is_some_and(|v| v.document.epochs >= r.schedule().end_epoch);
        if r.unredeemed() > btfs_ledger::Btt::ZERO {
            self.redeem(id).await?;
        }
        let over = now >= r.schedule().data_until() && !self.clocks_disagree(now);
        if last && !over {
            // Nothing more can be owed.
            self.release_rest(id).await?;
        }
        if !over || !self.finish(id).await? {
            return Ok(false);
        }
        self.provers.lock().forget(id);
        if let Err(error) = self.release_rest(id).await {
            tracing::warn!(agreement = %id, %error, "the rest of the lock is not released; its funder takes it back after the window");
        }
        Ok(true)
    }

    /// Whether nothing may be deleted by expiry: in a network that is not local, settlement and wall clock tell another
    /// time.
    fn clocks_disagree(&self, now: u64) -> bool {
        now.abs_diff(wall_clock()) > MAX_CLOCK_DISAGREEMENT && !self.local
    }

    /// Forgets an agreement that is over and paid.
    async fn drop_record(self: &Arc<Self>, id: B256) -> Result<(), Refusal> {
        let this = self.clone();
        self.store
            .run(move |s| {
                let _one = this.write.lock();
                let mut batch = s.state().batch();
                batch.delete(&records::AGREEMENTS, &id.0).map_err(internal)?;
                s.state().commit(batch).map_err(internal)
            })
            .await
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
        let done = done.await?;
        if done {
            self.garbage.store(true, Ordering::Relaxed);
        }
        Ok(done)
    }

    /// Ends an agreement that never began, frees its space, and forgets it: nothing is signed, nothing is owed, and
    /// whoever asks about it later hears "unknown", which says so too.
    pub(super) async fn fail(self: &Arc<Self>, id: B256, reason: &str) -> Result<(), Refusal> {
        tracing::info!(agreement = %id, reason, "an agreement did not begin");
        self.forget(id).await
    }

    async fn forget(self: &Arc<Self>, id: B256) -> Result<(), Refusal> {
        let this = self.clone();
        self.store
            .run(move |s| {
                let _one = this.write.lock();
                let db = s.state();
                let found = db.get(&records::AGREEMENTS, &id.0).map_err(internal)?;
                let mut r = found.ok_or(Refusal::Unknown)?;
                if r.state != HostState::Failed {
                    r.state.advance(HostState::Failed).map_err(internal)?;
                }
                let mut batch = db.batch();
                free(s, &mut batch, id)?;
                batch.delete(&records::AGREEMENTS, &id.0).map_err(internal)?;
                db.commit(batch).map_err(internal)?;
                // Whoever withdraws what it had delivered must not fill the disk.
                this.garbage.store(true, Ordering::Relaxed);
                Ok(())
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
