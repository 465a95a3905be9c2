//! The moment of signing, the renter's half: once our signature is out, only the host knows whether both have signed.
//!
//! An offered agreement never fails by silence: its money stays committed until the host says "unsigned" (and no start
//! of ours can be signed any more), or shows its signature, or the whole term is over. Meanwhile its slot may go to
//! another host; an agreement that turns out to be signed after that is ended by notice. Epochs that went by while the
//! host did not show its signature are unpaid: nobody could audit them.

use std::sync::Arc;

use btfs_ledger::B256;
use btfs_ledger::typed::{Agreement, Document, Signed};
use btfs_storage::Store;
use btfs_storage::db::Batch;

use super::epochs::ASK_AGAIN;
use super::place::{CANCELLED, Step};
use super::records::{self, RenterAgreement, Thing, ThingState};
use super::tripwire::remember;
use super::{Inner, QUICK_ANSWER, RentError, unexpected};
use crate::audit::LOCAL_PROBE;
use crate::events::MarketEvent;
use crate::messages::{Refusal, RentalReply, RentalRequest};
use crate::schedule::{Schedule, skew};
use crate::states::{HostState, RenterState};
use crate::{terms, vouchers};

/// The reason on record when a host shows its signature after its slot went to another one.
const REPLACED: &str = "its place was given to another host";

impl Inner {
    /// Offered -> Active: the host's signature over the same digest. When the host will not sign this start and says
    /// that it has signed nothing, a new start is signed.
    pub(super) async fn exchange(self: &Arc<Self>, id: B256, r: &RenterAgreement) -> Result<(), RentError> {
        let signature = r.signature.ok_or_else(|| RentError::Protocol("no signature on record".into()))?;
        let signed = Signed { document: r.agreement.clone(), signature };
        let sign = RentalRequest::Sign(Box::new(signed));
        let refused = match self.ask_patiently(&r.host, &sign).await {
            Ok(RentalReply::Signed(answer)) => return self.activate(id, *answer).await,
            Ok(other) => return Err(unexpected(&other)),
            Err(RentError::Refused(refusal)) => refusal,
            Err(e) => return Err(e),
        };
        match self.ask_patiently(&r.host, &RentalRequest::Status { id }).await? {
            RentalReply::Status(status) => match status.signed {
                Some(answer) => self.activate(id, answer).await,
                None if matches!(refused, Refusal::Skew { .. }) => {
                    self.change(id, |_, _, r| Ok(r.state.advance(RenterState::Funded)?)).await
                }
                None => Err(refused.into()),
            },
            other => Err(unexpected(&other)),
        }
    }

    /// Takes the host's signature: over our draft, with a start that we have signed, and nothing else.
    async fn activate(self: &Arc<Self>, id: B256, answer: Signed<Agreement>) -> Result<(), RentError> {
        let (domain, key) = (*self.money.domain(), self.key.clone());
        let now = self.now().await?;
        let (host, a) = self
            .change(id, move |s, batch, r| {
                check_answer(r, &answer)?;
                answer
                    .verify(&domain, r.channel.host)
                    .map_err(|e| RentError::Protocol(format!("its signature does not hold: {e}")))?;
                r.state.advance(RenterState::Active)?;
                r.signature = Some(key.sign_digest(&answer.document.digest(&domain)));
                r.agreement = answer.document;
                r.host_signature = Some(answer.signature);
                r.reason = None;
                if let Some(voucher) = vouchers::for_setup(&r.agreement) {
                    r.voucher = Some(Signed::sign(voucher, &domain, &key));
                    r.acknowledged = false;
                }
                leave_out_unshown(s, batch, r)?;
                take_place(s, batch, id, r, now)?;
                Ok((r.host, r.agreement.clone()))
            })
            .await?;
        let (start, size, epoch_price) = (a.start, a.size, a.epoch_price);
        self.events.send(MarketEvent::Active { id, peer: host, start, size, epoch_price });
        self.changed.notify_one();
        Ok(())
    }

    /// Gives an agreement up before it began, and tells the host so that it frees the space. What was signed stays
    /// offered.
    pub(super) async fn give_up(self: &Arc<Self>, id: B256, reason: &str) -> Result<Step, RentError> {
        let text = reason.to_owned();
        let (host, state) = self
            .change(id, move |_, _, r| {
                match r.state {
                    RenterState::Draft | RenterState::Reserved | RenterState::Funded
                        if r.signature.is_none() =>
                    {
                        r.refunded = r.state == RenterState::Draft;
                        r.state.advance(RenterState::Failed)?;
                        r.reason = Some(text);
                    }
                    // The host said "unsigned" to our last start, but one that we signed may still be on its way.
                    RenterState::Funded => {
                        r.state.advance(RenterState::Offered)?;
                        r.reason = Some(text);
                    }
                    RenterState::Offered => r.reason = Some(text),
                    // It began, or ended, while we were about it.
                    _ => {}
                }
                Ok((r.host, r.state))
            })
            .await?;
        match state {
            RenterState::Failed => {
                self.events.send(MarketEvent::Failed { id, host, reason: reason.to_owned() });
            }
            RenterState::Offered => {
                tracing::warn!(agreement = %id, reason, "the host does not say whether it signed");
            }
            _ => return Ok(Step::Active),
        }
        let withdraw = RentalRequest::Cancel { id, epoch: u32::MAX };
        if let Err(error) = self.ask_within(&host, &withdraw, QUICK_ANSWER).await {
            tracing::debug!(agreement = %id, %error, "the host did not hear the withdrawal; its reservation runs out");
        }
        self.changed.notify_one();
        let reason = reason.to_owned();
        Ok(if state == RenterState::Failed { Step::Failed(reason) } else { Step::Silent(reason) })
    }

    /// Asks a host that has our signature whether it signed, once a tick, and does what the answer allows.
    pub(super) async fn ask_offered(
        self: &Arc<Self>,
        id: B256,
        r: &RenterAgreement,
        now: u64,
    ) -> Result<(), RentError> {
        // Whoever places the thing is about it.
        if self.placing.lock().contains(&r.thing) {
            return Ok(());
        }
        let limit = if self.local { LOCAL_PROBE } else { QUICK_ANSWER };
        let unsigned = match self.ask_within(&r.host, &RentalRequest::Status { id }, limit).await {
            Ok(RentalReply::Status(status)) => match status.signed {
                Some(answer) => match self.activate(id, answer).await {
                    Err(RentError::Protocol(wrong)) => {
                        tracing::warn!(agreement = %id, wrong, "what the host shows as signed is not ours");
                        false
                    }
                    other => return other,
                },
                None => matches!(status.state, HostState::Reserved | HostState::Received | HostState::Failed),
            },
            Err(RentError::Refused(Refusal::Unknown)) => true,
            Ok(_) | Err(RentError::Courier(_) | RentError::Refused(_) | RentError::Protocol(_)) => false,
            Err(error) => return Err(error),
        };
        if self.discovery.online().await {
            self.change(id, move |_, _, r| {
                let pause = u64::from(r.agreement.epoch_length) / ASK_AGAIN;
                if r.unshown.is_none_or(|at| now >= at.saturating_add(pause)) {
                    r.unshown = Some(now);
                }
                Ok(())
            })
            .await?;
        }
        let newest = r.starts.iter().copied().fold(r.agreement.start, u64::max);
        let too_late_to_sign = now > newest.saturating_add(skew(r.agreement.epoch_length));
        let schedule = Schedule { start: newest, ..r.schedule() };
        // After that nothing can be claimed any more, signed or not.
        let over = now > schedule.data_until().saturating_add(schedule.length);
        if (unsigned && too_late_to_sign) || over {
            self.never_began(id).await?;
        }
        Ok(())
    }

    async fn never_began(self: &Arc<Self>, id: B256) -> Result<(), RentError> {
        let (host, reason) = self
            .change(id, |_, _, r| {
                r.state.advance(RenterState::Failed)?;
                let reason = r.reason.get_or_insert_with(|| "the host did not sign".to_owned());
                Ok((r.host, reason.clone()))
            })
            .await?;
        self.events.send(MarketEvent::Failed { id, host, reason });
        self.changed.notify_one();
        Ok(())
    }
}

/// That an answer is for our draft with a start that we have put our name under: any other start would let the host
/// choose how many epochs are already over.
fn check_answer(r: &RenterAgreement, answer: &Signed<Agreement>) -> Result<(), RentError> {
    if !terms::same_but_start(&r.agreement, &answer.document) {
        return Err(RentError::Protocol("it signed another agreement".into()));
    }
    let start = answer.document.start;
    let current = r.signature.is_some() && start == r.agreement.start;
    if !current && !r.starts.contains(&start) {
        return Err(RentError::Protocol(format!("it signed the start {start}, which was never offered")));
    }
    Ok(())
}

/// Judges the epochs whose time was over while the host did not show its signature: as silence, like that of a host which
/// does not answer audits.
fn leave_out_unshown(s: &Store, batch: &mut Batch, r: &mut RenterAgreement) -> Result<(), RentError> {
    let (Some(until), schedule) = (r.unshown, r.schedule()) else { return Ok(()) };
    let missed = (r.next..schedule.end_epoch).take_while(|e| schedule.verdict_deadline(*e) <= until).count();
    if missed == 0 {
        return Ok(());
    }
    r.days.extend(std::iter::repeat_n('O', missed));
    // The term has at most 3660 epochs.
    r.next += missed as u32;
    remember(s, batch, &r.host, |h| {
        h.reputation.silent += missed as u64;
        h.reputation.streak += missed as u32;
    })?;
    Ok(())
}

/// Whether the agreement that becomes active still has a place. If not, it ends with the next epoch.
fn take_place(
    s: &Store,
    batch: &mut Batch,
    id: B256,
    r: &mut RenterAgreement,
    now: u64,
) -> Result<(), RentError> {
    let Some(mut thing) = s.state().get(&records::THINGS, &r.thing.0)? else { return Ok(()) };
    let holds = |t: &Thing| t.slots.get(r.slot as usize).is_some_and(|slot| slot.agreement == Some(id));
    if thing.cancelled || !holds(&thing) {
        let next = r.schedule().epoch_at(now).saturating_add(1);
        if next < r.agreement.end_epoch {
            r.ends = Some(next);
        }
        r.reason = Some(if thing.cancelled { CANCELLED } else { REPLACED }.to_owned());
        return Ok(());
    }
    if thing.state != ThingState::Incomplete {
        return Ok(());
    }
    for other in thing.slots.iter().map(|slot| slot.agreement) {
        let Some(other) = other else { return Ok(()) };
        let found = s.state().get(&records::AGREEMENTS, &other.0)?;
        if other != id && found.is_none_or(|r| r.state != RenterState::Active) {
            return Ok(());
        }
    }
    (thing.state, thing.problem) = (ThingState::Active, None);
    batch.put(&records::THINGS, &r.thing.0, &thing)?;
    Ok(())
}
