//! Step 4: the final agreement. Equal to the host's own numbers, started now, covered by the lock: then one batch
//! makes it active, and only after that the signature goes out.

use btfs_ledger::PublicKey;
use btfs_ledger::typed::{Agreement, Document, Signed};

use super::{HostService, internal};
use crate::events::MarketEvent;
use crate::messages::{Refusal, RentalReply};
use crate::schedule;
use crate::states::HostState;
use crate::terms;

impl HostService {
    /// `sign`: the agreement with the renter's signature.
    pub(super) async fn sign(
        &self,
        peer: PublicKey,
        signed: Signed<Agreement>,
    ) -> Result<RentalReply, Refusal> {
        let id = signed.document.id;
        let domain = *self.0.money.domain();
        let record = self.0.of_renter(peer, id).await?;
        if let Some(signature) = record.host_signature {
            // The same digest gives the same answer, another one for this revision none.
            if signed.document != record.agreement {
                return Err(Refusal::Mismatch("another agreement of this revision is signed".into()));
            }
            let document = record.agreement;
            return Ok(RentalReply::Signed(Box::new(Signed { document, signature })));
        }
        if record.state != HostState::Received {
            return Err(Refusal::WrongState(format!("{:?}", record.state).to_lowercase()));
        }
        if !terms::same_but_start(&record.agreement, &signed.document) {
            return Err(Refusal::Mismatch("it is not the draft with a start".into()));
        }
        signed.verify(&domain, record.channel.renter).map_err(|e| Refusal::Signature(e.to_string()))?;
        signed.document.check(record.channel.window).map_err(|e| Refusal::Terms(e.to_string()))?;
        // Nothing is released between reading the channel and relying on it, nor later by a call whose fate is open.
        let _one = self.0.paying.lock().await;
        self.0.money.resume().await.map_err(|e| Refusal::NoSettlement(e.to_string()))?;
        // Only now: the lock may have been waited for.
        self.check_start(&signed.document).await?;
        self.0.check_funded(id, &record).await?;
        let answer = self.activate(signed).await?;
        Ok(RentalReply::Signed(Box::new(answer)))
    }

    async fn check_start(&self, a: &Agreement) -> Result<(), Refusal> {
        let near = |now| schedule::within_skew(a.start, now, a.epoch_length);
        if self.0.money.now().is_some_and(near) {
            return Ok(());
        }
        // Our picture of the settlement's clock may be old: a stepped clock moves at once.
        let now = self.0.money.refresh().await.map_err(|e| Refusal::NoSettlement(e.to_string()))?;
        if near(now) { Ok(()) } else { Err(Refusal::Skew { start: a.start, now }) }
    }

    async fn activate(&self, signed: Signed<Agreement>) -> Result<Signed<Agreement>, Refusal> {
        let digest = signed.document.digest(self.0.money.domain());
        let signature = self.0.key.sign_digest(&digest);
        let id = signed.document.id;
        let answer = self
            .0
            .change(id, move |_, _, r| {
                if let Some(before) = r.host_signature {
                    // Two requests at once: the first one counts.
                    let same = r.agreement == signed.document;
                    let refusal = Refusal::Mismatch("another agreement of this revision is signed".into());
                    return if same {
                        Ok(Signed { document: signed.document, signature: before })
                    } else {
                        Err(refusal)
                    };
                }
                r.state.advance(HostState::Active).map_err(internal)?;
                r.agreement = signed.document.clone();
                r.renter_signature = Some(signed.signature);
                r.host_signature = Some(signature);
                Ok(Signed { document: signed.document, signature })
            })
            .await?;
        if let Ok(Some(r)) = self.0.record(id).await {
            let a = &r.agreement;
            let (start, size, epoch_price) = (a.start, a.size, a.epoch_price);
            self.0.events.send(MarketEvent::Active { id, peer: r.renter, start, size, epoch_price });
        }
        Ok(answer)
    }
}
