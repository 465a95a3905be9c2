//! Step 8: ending an agreement before its term, by the renter's notice or the host's.

use btfs_ledger::{B256, PublicKey};

use super::place::CANCELLED;
use super::records::{RenterAgreement, THINGS, ThingState};
use super::tripwire::remember;
use super::{Inner, QUICK_ANSWER, RentError, RenterService};
use crate::messages::{Refusal, RentalReply, RentalRequest};
use crate::states::RenterState;

/// The reason on record when the host ended it: then it need not be told.
const HOST_GAVE_NOTICE: &str = "the host gave notice";

impl RenterService {
    /// Ends all agreements of a thing with the beginning of the next epoch. Hosts are told now or, if they are away,
    /// as soon as they can be reached; what they proved until then is paid. What is still being placed is given up.
    pub async fn cancel(&self, thing: B256) -> Result<(), RentError> {
        let now = self.0.now().await?;
        let placing = self
            .0
            .write(move |s, batch| {
                let found = s.state().get(&THINGS, &thing.0)?;
                let mut record = found.ok_or_else(|| RentError::Unknown(thing.to_string()))?;
                record.cancelled = true;
                batch.put(&THINGS, &thing.0, &record)?;
                Ok(record.state == ThingState::Placing)
            })
            .await?;
        self.0.cancels.send_modify(|n| *n += 1);
        if placing {
            // If a fault stopped the placing, it comes to its end now.
            self.0.clone().start_placing(thing);
        }
        for (id, r) in self.0.agreements().await? {
            if r.thing != thing || r.state != RenterState::Active {
                continue;
            }
            self.0.end_with(id, r.schedule().epoch_at(now).saturating_add(1), CANCELLED).await?;
            let r = self.0.agreement(id).await?;
            self.0.send_notice(id, &r).await?;
        }
        self.0.changed.notify_one();
        Ok(())
    }

    /// Answers a request of `/btfs/rental/1` that a host sends to its renter: its notice.
    pub(crate) async fn quit(&self, peer: PublicKey, id: B256, epoch: u32) -> RentalReply {
        let known = match self.0.agreement(id).await {
            Ok(r) if r.host == peer && r.state == RenterState::Active => r,
            _ => return RentalReply::Refused(Refusal::Unknown),
        };
        let now = match self.0.now().await {
            Ok(now) => now,
            Err(error) => return RentalReply::Refused(Refusal::NoSettlement(error.to_string())),
        };
        match self.0.host_ended(id, &known, epoch, now).await {
            Ok(epoch) => RentalReply::Ends { epoch },
            Err(error) => {
                tracing::error!(%error, "a notice was not recorded");
                RentalReply::Refused(Refusal::Internal("its database failed; see its log".into()))
            }
        }
    }
}

impl Inner {
    /// Takes the end that a host names. One that has begun already is taken too, since nothing is proven or paid behind
    /// it; a notice that comes so late counts as a miss.
    pub(super) async fn host_ended(
        self: &std::sync::Arc<Self>,
        id: B256,
        known: &RenterAgreement,
        epoch: u32,
        now: u64,
    ) -> Result<u32, RentError> {
        if epoch <= known.schedule().epoch_at(now) && known.schedule().end_epoch > epoch {
            let host = known.host;
            self.write(move |s, batch| {
                remember(s, batch, &host, |h| {
                    h.reputation.silent += 1;
                    h.reputation.streak += 1;
                })?;
                Ok(())
            })
            .await?;
        }
        self.end_with(id, epoch, HOST_GAVE_NOTICE).await
    }

    /// Brings an agreement's end forward; the earlier notice counts.
    async fn end_with(
        self: &std::sync::Arc<Self>,
        id: B256,
        epoch: u32,
        reason: &'static str,
    ) -> Result<u32, RentError> {
        let heard = reason == HOST_GAVE_NOTICE;
        self.change(id, move |_, _, r| {
            // What is judged stays so.
            let ends = r.ends.unwrap_or(r.agreement.end_epoch).min(epoch.max(r.next));
            if ends < r.agreement.end_epoch && r.ends != Some(ends) {
                r.ends = Some(ends);
                r.reason = Some(reason.to_owned());
                r.notice_heard = heard;
            }
            Ok(ends)
        })
        .await
    }

    /// Tells the host; silence is not an error, the next tick tells it again.
    pub(super) async fn send_notice(
        self: &std::sync::Arc<Self>,
        id: B256,
        r: &RenterAgreement,
    ) -> Result<(), RentError> {
        let Some(mut epoch) = r.ends else { return Ok(()) };
        // Twice: the epoch may begin while the host hears of it, or have begun long ago.
        for _ in 0..2 {
            match self.ask_within(&r.host, &RentalRequest::Cancel { id, epoch }, QUICK_ANSWER).await {
                // The host may have given notice for an earlier epoch that we did not hear.
                Ok(RentalReply::Ends { epoch: earlier }) => {
                    return self.notice_heard(id, Some(earlier)).await;
                }
                Err(RentError::Refused(Refusal::WrongState(_) | Refusal::Unknown)) => {
                    return self.notice_heard(id, None).await;
                }
                Err(RentError::Refused(Refusal::NoticeTooEarly { earliest })) => {
                    epoch = earliest;
                    self.change(id, move |_, _, r| {
                        // What runs is audited and paid until then; what is over here stays so.
                        if r.state == RenterState::Active {
                            r.ends = (earliest < r.agreement.end_epoch).then_some(earliest);
                        }
                        Ok(())
                    })
                    .await?;
                }
                Ok(_) | Err(RentError::Courier(_) | RentError::Refused(_)) => {
                    tracing::info!(agreement = %id, "the host has not heard the notice yet");
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn notice_heard(
        self: &std::sync::Arc<Self>,
        id: B256,
        earlier: Option<u32>,
    ) -> Result<(), RentError> {
        self.change(id, move |_, _, r| {
            r.ends = r.ends.map(|ends| earlier.map_or(ends, |e| ends.min(e.max(r.next))));
            r.notice_heard = true;
            Ok(())
        })
        .await
    }
}
