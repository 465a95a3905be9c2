//! Step 8, the host's half: ends before the term, by either side. An end holds from its record on; its renter is told
//! until it has heard of it.

use std::sync::Arc;
use std::time::Duration;

use btfs_ledger::{B256, PublicKey};

use super::{HostError, HostService, Inner};
use crate::messages::{
    MAX_RENTAL_REPLY, RENTAL_PROTOCOL, Refusal, RentalReply, RentalRequest, decode, encode,
};
use crate::states::HostState;

/// How long the renter has to answer a notice.
const NOTICE_WAIT: Duration = Duration::from_secs(10);

impl HostService {
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
        let epoch = self.notice(id, epoch, true).await?;
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
        let epoch = self.notice(id, next, false).await?;
        self.0.tell(id).await?;
        Ok(epoch)
    }

    async fn notice(&self, id: B256, epoch: u32, by_renter: bool) -> Result<u32, Refusal> {
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
                    r.told = by_renter || (r.told && r.ends == Some(ends));
                    r.ends = Some(ends);
                }
                Ok(ends)
            })
            .await
    }
}

impl Inner {
    /// [`tell`](Self::tell) in a task of its own.
    pub(super) fn tell_soon(self: Arc<Self>, id: B256) {
        tokio::spawn(async move {
            if let Err(error) = self.tell(id).await {
                tracing::warn!(agreement = %id, %error, "the renter is not told of its agreement's end yet");
            }
        });
    }

    /// Tells a renter that its agreement ends, once at a time; the end holds whether it hears it or not.
    async fn tell(self: &Arc<Self>, id: B256) -> Result<(), HostError> {
        if !self.telling.lock().insert(id) {
            return Ok(());
        }
        let result = self.tell_once(id).await;
        self.telling.lock().remove(&id);
        result
    }

    async fn tell_once(self: &Arc<Self>, id: B256) -> Result<(), HostError> {
        let r = self.record(id).await?.ok_or(HostError::Unknown(id))?;
        let Some(epoch) = r.ends.filter(|_| !r.told) else { return Ok(()) };
        let request = encode(&RentalRequest::Quit { id, epoch });
        let reply = self.courier.ask(&r.renter, RENTAL_PROTOCOL, request, NOTICE_WAIT).await;
        match reply.map(|bytes| decode::<RentalReply>(&bytes, MAX_RENTAL_REPLY)) {
            // A renter for whom it does not run any more, or that finds it too late, knows as well.
            Ok(Ok(
                RentalReply::Ends { .. }
                | RentalReply::Refused(Refusal::Unknown | Refusal::NoticeTooEarly { .. }),
            )) => {
                self.change(id, move |_, _, r| {
                    r.told |= r.ends == Some(epoch);
                    Ok(())
                })
                .await?;
            }
            Ok(Ok(other)) => {
                tracing::info!(agreement = %id, ?other, "the renter did not take the notice yet")
            }
            Ok(Err(error)) => {
                tracing::info!(agreement = %id, %error, "the renter did not take the notice yet")
            }
            Err(error) => tracing::info!(agreement = %id, %error, "the renter has not heard the notice yet"),
        }
        Ok(())
    }
}
