//! The tripwire: while an audit runs, the renter withholds the challenged blocks from everybody, and whoever asks for
//! exactly those is most likely a host that answers with borrowed data.
//!
//! The renter can only know the challenged blocks while it has the data itself; if it has not, it cannot be the
//! source either.

use std::collections::HashMap;
use std::sync::Arc;

use btfs_ledger::PublicKey;
use btfs_storage::proof::{LeafMap, leaf_hash};
use btfs_storage::{BlockSource, Cid, Store};
use multihash::Multihash;

use super::records::{HOSTS, HostRecord, RenterAgreement};
use super::{Inner, RenterService};
use crate::audit::challenge;
use crate::events::MarketEvent;
use crate::messages::AuditRequest;

/// Blocks withheld at once: all audits that run together, 64 leaves each.
const MAX_WITHHELD: usize = 64 * 64;

/// Challenged blocks with the host under audit and how many audits withhold them.
#[derive(Default)]
pub(crate) struct Tripwire {
    blocks: HashMap<Multihash<64>, (PublicKey, u32)>,
    tripped: Vec<PublicKey>,
}

/// Withholds the blocks of one audit until it is dropped.
pub(crate) struct Withheld {
    inner: Arc<Inner>,
    blocks: Vec<Multihash<64>>,
}

impl Drop for Withheld {
    fn drop(&mut self) {
        let mut tripwire = self.inner.tripwire.lock();
        for block in &self.blocks {
            if let Some((_, audits)) = tripwire.blocks.get_mut(block) {
                *audits -= 1;
                if *audits == 0 {
                    tripwire.blocks.remove(block);
                }
            }
        }
    }
}

impl RenterService {
    /// Whether a block is withheld from everybody at the moment: the node asks this before it serves one.
    pub fn withheld(&self, cid: &Cid) -> bool {
        self.0.tripwire.lock().blocks.contains_key(cid.hash())
    }

    /// Told when a peer asks for a block: a want for a withheld one costs the audited host's score.
    pub fn wanted(&self, peer: &PublicKey, cid: &Cid) {
        let mut tripwire = self.0.tripwire.lock();
        let Some((audited, _)) = tripwire.blocks.get(cid.hash()).copied() else { return };
        // One audit needs no more than one entry; the list is emptied with each verdict.
        if !tripwire.tripped.contains(&audited) && tripwire.tripped.len() < MAX_WITHHELD {
            tripwire.tripped.push(audited);
        }
        drop(tripwire);
        self.0.events.send(MarketEvent::Tripwire { peer: *peer });
    }
}

impl Inner {
    /// Works out which blocks an audit asks for and withholds them while the result lives.
    pub(crate) async fn withhold(self: &Arc<Self>, r: &RenterAgreement, request: &AuditRequest) -> Withheld {
        let blocks = match self.list(r.agreement.blocks).await {
            Ok(list) => {
                let (a, host) = (r.agreement.clone(), request.clone());
                let map = LeafMap::new(Arc::new(list));
                self.store.run(move |s| challenged(s, &a, &host, &map)).await
            }
            Err(error) => {
                tracing::warn!(%error, "the blocks of an audit are not withheld");
                Vec::new()
            }
        };
        let mut kept = Vec::new();
        let mut tripwire = self.tripwire.lock();
        for block in blocks {
            if tripwire.blocks.len() < MAX_WITHHELD || tripwire.blocks.contains_key(&block) {
                tripwire.blocks.entry(block).or_insert((r.host, 0)).1 += 1;
                kept.push(block);
            }
        }
        drop(tripwire);
        Withheld { inner: self.clone(), blocks: kept }
    }

    /// Whether the audited host tripped the wire since the last question.
    pub(crate) fn take_trip(&self, host: &PublicKey) -> bool {
        let mut tripwire = self.tripwire.lock();
        let before = tripwire.tripped.len();
        tripwire.tripped.retain(|h| h != host);
        tripwire.tripped.len() < before
    }
}

/// The blocks that the chain of leaves leads through, as far as they are here.
fn challenged(
    s: &Store,
    a: &btfs_ledger::typed::Agreement,
    request: &AuditRequest,
    map: &LeafMap,
) -> Vec<Multihash<64>> {
    let mut blocks = Vec::new();
    let Ok(mut indices) = challenge(a, request).indices(a.leaves) else { return blocks };
    for _ in 0..u64::from(a.audit_leaves).min(a.leaves) {
        let Some((cid, range)) = map.locate(indices.index()) else { break };
        blocks.push(*cid.hash());
        // Without the leaf's bytes the next index is unknown, to us and to whoever would ask us.
        let Ok(Some(data)) = s.get(&cid) else { break };
        let Some(leaf) = data.get(range) else { break };
        indices.advance(&leaf_hash(leaf));
    }
    blocks
}

/// Writes a host's record after an audit.
pub(super) fn remember(
    s: &Store,
    batch: &mut btfs_storage::db::Batch,
    host: &PublicKey,
    f: impl FnOnce(&mut HostRecord),
) -> Result<(), btfs_storage::db::DbError> {
    let mut record = s.state().get(&HOSTS, host.as_bytes())?.unwrap_or_default();
    f(&mut record);
    batch.put(&HOSTS, host.as_bytes(), &record)
}
