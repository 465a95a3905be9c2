//! Step 6, the host's half: answering audits from the local store alone, in milliseconds, a bounded number of times.

use std::collections::VecDeque;
use std::sync::Arc;

use btfs_ledger::{B256, PublicKey};
use btfs_storage::blocklist::BlockList;
use btfs_storage::proof::{self, ProofTree, ProveError, Prover};

use super::{HostAgreement, HostService, Inner, internal, records};
use crate::audit::{AUDITS_PER_EPOCH, challenge};
use crate::messages::{AuditReply, AuditRequest, Refusal};
use crate::pages;
use crate::schedule::{self, MAX_CATCH_UP};
use crate::states::HostState;
use crate::vouchers::Answered;

/// Provers (list and tree, a few hundred KiB each for a GiB) that stay ready between audits.
const READY_PROVERS: usize = 16;

/// The most recently used provers.
#[derive(Default)]
pub(crate) struct Provers(VecDeque<(B256, Arc<Prover>)>);

impl Provers {
    fn get(&mut self, id: B256) -> Option<Arc<Prover>> {
        let at = self.0.iter().position(|(k, _)| *k == id)?;
        let found = self.0.remove(at)?;
        let prover = found.1.clone();
        self.0.push_back(found);
        Some(prover)
    }

    fn insert(&mut self, id: B256, prover: Arc<Prover>) {
        if self.0.len() >= READY_PROVERS {
            self.0.pop_front();
        }
        self.0.push_back((id, prover));
    }

    pub(super) fn forget(&mut self, id: B256) {
        self.0.retain(|(k, _)| *k != id);
    }
}

impl HostService {
    /// Answers a request of `/btfs/audit/1`.
    pub async fn audit(&self, peer: PublicKey, request: AuditRequest) -> AuditReply {
        match self.prove(peer, request).await {
            Ok(reply) => reply,
            Err(refusal) => AuditReply::Refused(refusal),
        }
    }

    async fn prove(&self, peer: PublicKey, request: AuditRequest) -> Result<AuditReply, Refusal> {
        let record = self.0.of_renter(peer, request.id).await?;
        if let Some(epoch) = record.ends.filter(|ends| request.epoch >= *ends) {
            return Err(Refusal::Ended { epoch });
        }
        if !matches!(record.state, HostState::Active | HostState::Closing) {
            return Err(Refusal::WrongState(format!("{:?}", record.state).to_lowercase()));
        }
        check_epochs(&record, &request)?;
        if !self.0.unsettled.lock().contains(&request.id) {
            check_paid(&record, &request)?;
        }
        let current = self.current_epoch(&record, &request).await?;
        self.admit(request.id, current).await?;
        let _slot = self.0.proof_slots.acquire().await.map_err(internal)?;
        let prover = self.0.prover(request.id).await?;
        let ask = challenge(&record.agreement, &request);
        let wanted = record.agreement.audit_leaves;
        let answer = self.0.store.run(move |s| proof::answer(&prover, &ask, wanted, s)).await;
        match answer {
            Ok(leaves) => {
                self.answered(&request).await?;
                Ok(AuditReply::Proof(leaves))
            }
            Err(why @ (ProveError::Missing { .. } | ProveError::Size { .. })) => {
                tracing::error!(agreement = %request.id, %why, "an audit cannot be answered: data is lost");
                Ok(AuditReply::NotFound)
            }
            Err(why) => Err(internal(why)),
        }
    }

    /// The epoch that runs now; the audited one must be over, by the settlement's own word if our picture is old.
    async fn current_epoch(&self, r: &HostAgreement, request: &AuditRequest) -> Result<u32, Refusal> {
        let schedule = r.schedule();
        let end = schedule.end_of(request.epoch);
        let over = |now: u64| now.saturating_add(schedule::skew(r.agreement.epoch_length)) >= end;
        let mut now = self.0.now().await?;
        if !over(now) {
            now = self.0.money.refresh().await.map_err(|e| Refusal::NoSettlement(e.to_string()))?;
        }
        if over(now) { Ok(schedule.epoch_at(now)) } else { Err(Refusal::Skew { start: end, now }) }
    }

    /// Counts the audit before any work is done.
    async fn admit(&self, id: B256, current: u32) -> Result<(), Refusal> {
        self.0
            .change(id, move |_, _, r| {
                let (epoch, count) = r.audits;
                let count = if epoch == current { count } else { 0 };
                if count >= AUDITS_PER_EPOCH {
                    return Err(Refusal::Rate(format!("{AUDITS_PER_EPOCH} audits an epoch are answered")));
                }
                r.audits = (current, count + 1);
                Ok(())
            })
            .await
    }

    /// Remembers what was proven: the voucher that follows is measured by it.
    async fn answered(&self, request: &AuditRequest) -> Result<(), Refusal> {
        let (from, epoch) = (request.from, request.epoch);
        let since = *self.0.up_since.get().unwrap_or(&u64::MAX);
        self.0
            .change(request.id, move |_, _, r| {
                let last = r.answered.map_or(0, |a| a.epoch + 1);
                // What ended before this process began may have been missed for its own absence.
                let first = r.schedule().epoch_at(since).max(last);
                r.skipped = r.skipped.saturating_add(from.saturating_sub(first));
                r.proven = r.proven.saturating_add((epoch + 1).saturating_sub(from.max(last)));
                if r.answered.is_none_or(|a| a.epoch < epoch) {
                    r.answered = Some(Answered { from, epoch });
                }
                Ok(())
            })
            .await
    }
}

fn check_epochs(r: &HostAgreement, request: &AuditRequest) -> Result<(), Refusal> {
    let end = r.schedule().end_epoch;
    let (from, e) = (request.from, request.epoch);
    if e >= end || from > e || e - from >= MAX_CATCH_UP {
        let text = format!("epochs {from} to {e} are no audit of a term of {end} epochs");
        return Err(Refusal::Terms(text));
    }
    Ok(())
}

/// That the renter does not skip what it owes: an audit that begins above unpaid proofs would store for nothing.
fn check_paid(r: &HostAgreement, request: &AuditRequest) -> Result<(), Refusal> {
    let vouched = r.voucher.as_ref().map_or(0, |v| v.document.epochs);
    if request.from > vouched && r.in_arrears() {
        let unpaid = r.unpaid_proven();
        return Err(Refusal::WrongState(format!("in arrears: {unpaid} proven epochs are not paid")));
    }
    Ok(())
}

impl Inner {
    async fn prover(&self, id: B256) -> Result<Arc<Prover>, Refusal> {
        if let Some(prover) = self.provers.lock().get(id) {
            return Ok(prover);
        }
        let prover = self
            .store
            .run(move |s| {
                let list = pages::get(s.state(), &records::LISTS, id).map_err(internal)?;
                let list = Arc::new(BlockList::decode(&list).map_err(internal)?);
                let tree = pages::get(s.state(), &records::TREES, id).map_err(internal)?;
                let tree: ProofTree = serde_ipld_dagcbor::from_slice(&tree).map_err(internal)?;
                Prover::new(list, tree).map(Arc::new).map_err(internal)
            })
            .await?;
        self.provers.lock().insert(id, prover.clone());
        Ok(prover)
    }
}
