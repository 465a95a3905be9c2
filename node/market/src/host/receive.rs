//! Step 3: the host pulls the blocks over the renter's own connection, checks every one, and computes the proof
//! root itself.
//!
//! A pull runs as a task of its own; `deliver` starts it (again), waits a while and reports progress, so a renter
//! simply asks until the answer is `Received`. The list is pinned since it was accepted, so a pull that breaks off
//! leaves its blocks for the next one, until the reservation ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use btfs_ledger::{B256, Btt, PublicKey};
use btfs_storage::blocklist::{BlockList, BlockRef};
use btfs_storage::proof::ProofTree;
use btfs_storage::{BlockSource, Bytes, Cid, Class, Ingest, Store};
use futures::StreamExt;
use multihash::Multihash;
use tokio::sync::watch;

use super::propose::reserved_until;
use super::{HostAgreement, HostService, Inner, internal, pin_id, records};
use crate::messages::{Refusal, RentalReply};
use crate::pages;
use crate::ports::wall_clock;
use crate::states::HostState;

/// Bytes that are pulled before the lock is read.
const FREE_PULL: u64 = 8 << 20;
/// Bytes of blocks that wait in memory before they are written in one go.
const WRITE_BEHIND: usize = 4 << 20;
/// How long one `deliver` waits for the end of the pull.
const DELIVER_WAIT: Duration = Duration::from_secs(10);

type Missing = HashMap<Multihash<64>, BlockRef>;
type Outcome = Option<Result<(), Refusal>>;

/// A pull under way.
#[derive(Clone)]
pub(crate) struct Pull {
    received: Arc<AtomicU64>,
    outcome: watch::Receiver<Outcome>,
}

impl Pull {
    /// The outcome, if it comes within one `deliver`.
    async fn wait(&self) -> Outcome {
        let mut outcome = self.outcome.clone();
        let ended = tokio::time::timeout(DELIVER_WAIT, outcome.wait_for(Option::is_some)).await;
        match ended {
            Err(_) => None,
            Ok(Ok(outcome)) => outcome.clone(),
            Ok(Err(_)) => Some(Err(Refusal::Internal("the transfer was given up".into()))),
        }
    }
}

impl HostService {
    /// `deliver`: pull now, and say how far it is.
    pub(super) async fn deliver(&self, peer: PublicKey, id: B256) -> Result<RentalReply, Refusal> {
        let record = self.0.of_renter(peer, id).await?;
        match record.state {
            HostState::Reserved => {}
            HostState::Received | HostState::Active => return Ok(received(&record)),
            state => return Err(Refusal::WrongState(format!("{state:?}").to_lowercase())),
        }
        let record = match self.0.check_funded(id, &record).await {
            Ok(()) => self.0.funded(id).await?,
            // A little is taken on trust: the lock may be there and not be seen yet.
            Err(_) if record.agreement.size <= FREE_PULL => record,
            Err(refusal) => return Err(refusal),
        };
        let pull = self.0.clone().pull_of(id, &record);
        match pull.wait().await {
            None => {
                let received = pull.received.load(Ordering::Relaxed);
                Ok(RentalReply::Receiving { received, total: record.agreement.size })
            }
            Some(Err(refusal)) => Err(refusal),
            Some(Ok(())) => Ok(received(&self.0.of_renter(peer, id).await?)),
        }
    }
}

fn received(r: &HostAgreement) -> RentalReply {
    let a = &r.agreement;
    RentalReply::Received { size: a.size, leaves: a.leaves, root: a.root }
}

impl Inner {
    /// That the channel's lock covers this agreement and all others of the channel.
    pub(super) async fn check_funded(&self, id: B256, record: &HostAgreement) -> Result<(), Refusal> {
        let channel = record.channel.id();
        let view = self.money.channel(channel).await.map_err(|e| Refusal::NoSettlement(e.to_string()))?;
        let others = self.others_need(channel, id).await?;
        let own = record.agreement.total_price().unwrap_or(Btt::MAX).saturating_sub(record.paid);
        let needed = own.checked_add(others).unwrap_or(Btt::MAX);
        let available = view.available();
        if needed > available { Err(Refusal::NotFunded { needed, available }) } else { Ok(()) }
    }

    /// Writes down that the lock covers an agreement, which keeps its space for as long as its transfer takes.
    async fn funded(self: &Arc<Self>, id: B256) -> Result<HostAgreement, Refusal> {
        self.change(id, |_, _, r| {
            if !r.funded {
                r.funded = true;
                r.reserved_until = r.reserved_until.max(reserved_until(r.agreement.size));
            }
            Ok(r.clone())
        })
        .await
    }

    /// What the other signed agreements of a channel still need of its lock.
    pub(super) async fn others_need(&self, channel: B256, except: B256) -> Result<Btt, Refusal> {
        let all = self.all().await.map_err(internal)?;
        let others = all.iter().filter(|(k, r)| *k != except && r.agreement.channel == channel);
        Ok(others.fold(Btt::ZERO, |sum, (_, r)| sum.checked_add(r.need()).unwrap_or(Btt::MAX)))
    }

    /// The pull that runs for `id`, or a new one.
    fn pull_of(self: Arc<Self>, id: B256, record: &HostAgreement) -> Pull {
        let mut pulls = self.pulls.lock();
        pulls.retain(|_, p| p.outcome.borrow().is_none() && p.outcome.has_changed().is_ok());
        if let Some(pull) = pulls.get(&id) {
            return pull.clone();
        }
        let (tell, outcome) = watch::channel(None);
        let pull = Pull { received: Arc::default(), outcome };
        pulls.insert(id, pull.clone());
        drop(pulls);
        let left = Duration::from_secs(record.reserved_until.saturating_sub(wall_clock()));
        let (record, count) = (record.clone(), pull.received.clone());
        tokio::spawn(async move {
            let job = self.receive(id, record, count);
            let late = Refusal::Transfer("the reservation ran out first".into());
            let result = tokio::time::timeout(left, job).await.unwrap_or(Err(late));
            if let Err(refusal) = &result {
                tracing::warn!(agreement = %id, %refusal, "a transfer ended");
                // What came in meanwhile is nobody's if its agreement was withdrawn.
                self.garbage.store(true, Ordering::Relaxed);
            }
            self.pulls.lock().remove(&id);
            // Nobody may be waiting any more.
            let _ = tell.send(Some(result));
        });
        pull
    }

    /// Whether a pull runs for `id`.
    pub(super) fn is_pulling(&self, id: B256) -> bool {
        self.pulls.lock().contains_key(&id)
    }

    async fn receive(
        self: &Arc<Self>,
        id: B256,
        record: HostAgreement,
        count: Arc<AtomicU64>,
    ) -> Result<(), Refusal> {
        // The semaphore lives as long as the service.
        let slots = if record.funded { &self.pull_slots } else { &self.unfunded_slot };
        let _slot = slots.clone().acquire_owned().await.map_err(internal)?;
        let list = self.list(id).await?;
        let list = Arc::new(list);
        let ingest = self.fill(&record, &list, &count).await?;
        self.store
            .run(move |s| {
                let mut batch = s.state().batch();
                // The blocks themselves count from now on.
                s.unreserve(&mut batch, &pin_id(id)).map_err(internal)?;
                ingest.finish(batch).map_err(internal).map(|_| ())
            })
            .await?;
        self.prove_received(id, list).await
    }

    /// The block list of an agreement.
    pub(super) async fn list(&self, id: B256) -> Result<BlockList, Refusal> {
        self.store
            .run(move |s| {
                let bytes = pages::get(s.state(), &records::LISTS, id).map_err(internal)?;
                BlockList::decode(&bytes).map_err(internal)
            })
            .await
    }

    /// Brings every block of the list into an ingest: those that are here by touching them, the others by pulling.
    async fn fill(
        &self,
        record: &HostAgreement,
        list: &Arc<BlockList>,
        count: &AtomicU64,
    ) -> Result<Ingest, Refusal> {
        let held = list.clone();
        let promise = pin_id(record.agreement.id);
        let (mut ingest, mut missing) = self.store.run(move |s| begin(s, &promise, &held)).await?;
        let absent: u64 = missing.values().map(|e| u64::from(e.size)).sum();
        count.store(list.size() - absent, Ordering::Relaxed);
        if missing.is_empty() {
            return Ok(ingest);
        }
        let wanted = missing.values().map(|e| e.cid).collect();
        let transfer = |e: crate::ports::PullError| Refusal::Transfer(e.to_string());
        let mut stream = self.puller.pull(&record.renter, wanted).await.map_err(transfer)?;
        let mut waiting: Vec<(Cid, Bytes)> = Vec::new();
        let mut bytes = 0;
        while let Some(block) = stream.next().await {
            let (cid, data) = block.map_err(transfer)?;
            let entry = missing.remove(cid.hash());
            // A block that was not asked for, or came twice, is dropped.
            let Some(entry) = entry else { continue };
            if data.len() as u64 != u64::from(entry.size) {
                return Err(Refusal::List(format!(
                    "block {cid} has {} bytes, not {}",
                    data.len(),
                    entry.size
                )));
            }
            bytes += data.len();
            waiting.push((entry.cid, data));
            if bytes >= WRITE_BEHIND {
                ingest = self.write(ingest, std::mem::take(&mut waiting)).await?;
                count.fetch_add(bytes as u64, Ordering::Relaxed);
                bytes = 0;
            }
        }
        ingest = self.write(ingest, waiting).await?;
        count.fetch_add(bytes as u64, Ordering::Relaxed);
        match missing.values().next() {
            None => Ok(ingest),
            Some(entry) => Err(Refusal::Transfer(format!("block {} did not come", entry.cid))),
        }
    }

    /// Verifies and writes some blocks.
    async fn write(&self, mut ingest: Ingest, blocks: Vec<(Cid, Bytes)>) -> Result<Ingest, Refusal> {
        self.store
            .run(move |_| {
                for (cid, data) in blocks {
                    ingest.put_verified(&cid, data).map_err(|e| Refusal::Transfer(e.to_string()))?;
                }
                Ok(ingest)
            })
            .await
    }

    /// Builds the proof tree from what is stored now, keeps it, and goes to Received if its root is the draft's.
    async fn prove_received(self: &Arc<Self>, id: B256, list: Arc<BlockList>) -> Result<(), Refusal> {
        let tree = self.store.run(move |s| ProofTree::build(&list, s)).await.map_err(internal)?;
        self.change(id, move |s, batch, r| {
            if r.state != HostState::Reserved {
                return Ok(());
            }
            if tree.root() != r.agreement.root.0 || tree.leaves() != r.agreement.leaves {
                return Err(Refusal::Mismatch(format!(
                    "the blocks' proof root is {}, the draft says {}",
                    B256::from(tree.root()),
                    r.agreement.root
                )));
            }
            let bytes = serde_ipld_dagcbor::to_vec(&tree).map_err(internal)?;
            pages::delete(s.state(), batch, &records::TREES, id).map_err(internal)?;
            pages::put(batch, &records::TREES, id, &bytes).map_err(internal)?;
            r.state.advance(HostState::Received).map_err(internal)?;
            if r.funded {
                r.reserved_until = reserved_until(0);
            }
            Ok(())
        })
        .await
    }
}

/// An ingest that relies on the blocks of the list that are here, and the entries that are not, by hash.
fn begin(s: &Store, promise: &str, list: &BlockList) -> Result<(Ingest, Missing), Refusal> {
    let mut ingest = s.ingest_reserved(Class::Hosted, promise).map_err(internal)?;
    let mut missing = Missing::new();
    for entry in list.entries() {
        let here = s.block_size(&entry.cid).map_err(internal)? == Some(u64::from(entry.size));
        if !here || !ingest.keep(&entry.cid).map_err(internal)? {
            missing.insert(*entry.cid.hash(), *entry);
        }
    }
    Ok((ingest, missing))
}
