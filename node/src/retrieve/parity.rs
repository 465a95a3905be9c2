//! The last resort of a fetch: rebuilding blocks from what is left of their stripe.
//!
//! Any provider of a root names the layouts it knows of it. A false one costs time and nothing else: what is rebuilt
//! must hash to the CID that was wanted, and a layout that did not help is put behind the others.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use btfs_p2p::bitswap::Session;
use btfs_storage::db::{DbError, Table, head};
use btfs_storage::erasure::StripeRebuild;
use btfs_storage::layout::{Layout, LayoutError};
use btfs_storage::{BlockSource, Bytes, Cid, Store, StoreError};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, Semaphore};

use super::RetrieveError;
use crate::node::Node;

/// (root's multihash, layout's CID): the layouts of what this node rents, hosts or made parity of. Several of one root are
/// possible, and not all need to be true: renters choose what hosts hold.
pub const LAYOUT_TABLE: Table<(Vec<u8>, String), ()> = Table::new("layouts");

/// Layouts of one root that are named, kept in mind or tried.
const MAX_LAYOUTS: usize = 8;

/// What `/btfs/layout/1` is asked.
#[derive(Debug, Serialize, Deserialize)]
pub struct LayoutRequest {
    /// The root, as text.
    pub root: String,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct LayoutResponse {
    /// The CIDs of the layouts that are known.
    pub layouts: Vec<String>,
}

/// The layouts of `root` that this node knows itself.
pub fn known_layouts(store: &Store, root: &Cid) -> Result<Vec<Cid>, DbError> {
    let rows = store.state().scan(&LAYOUT_TABLE, &head(&root.hash().to_bytes())).take(MAX_LAYOUTS);
    let texts = rows.map(|row| row.map(|((_, layout), ())| layout)).collect::<Result<Vec<_>, _>>()?;
    Ok(texts.iter().filter_map(|text| text.parse().ok()).collect())
}

/// The row of a layout in [`LAYOUT_TABLE`].
pub fn layout_row(root: &Cid, layout: &Cid) -> (Vec<u8>, String) {
    (root.hash().to_bytes(), layout.to_string())
}

/// Keeps the layout of a root, to name it to readers.
pub async fn remember_layout(store: &Store, root: Cid, layout: Cid) -> Result<(), DbError> {
    store
        .run(move |store| {
            let mut batch = store.state().batch();
            batch.put(&LAYOUT_TABLE, &layout_row(&root, &layout), &())?;
            store.state().commit(batch)
        })
        .await
}

/// The lost blocks of a stripe by multihash; `None` when the layout did not lead to them.
type Rebuilt = Option<Arc<HashMap<Vec<u8>, Bytes>>>;
/// A stripe: its layout and its number in it.
type StripeId = (Cid, usize);

/// Parity of one root.
pub struct Parity {
    node: Arc<Node>,
    root: Cid,
    session: Arc<Session>,
    /// Held while layouts are looked for, so that many blocks cause one search.
    layouts: tokio::sync::Mutex<Vec<Arc<Layout>>>,
    /// Layouts that did not help.
    useless: Mutex<HashSet<Cid>>,
    /// The last stripes rebuilt, newest last; neighbours of a lost block are usually lost too.
    stripes: Mutex<Vec<(StripeId, Arc<OnceCell<Rebuilt>>)>>,
    /// Stripes rebuilt at once: each holds up to all its shards in memory.
    working: Semaphore,
    helped: AtomicBool,
}

impl Parity {
    const STRIPES_KEPT: usize = 8;
    const STRIPES_AT_ONCE: usize = 3;
    /// Pause before layouts are looked for again, as new providers come.
    const LAYOUT_AGAIN: Duration = Duration::from_secs(1);
    /// One provider may take so long to name its layouts.
    const LAYOUT_TIMEOUT: Duration = Duration::from_secs(5);
    /// Peers asked for layouts at once.
    const LAYOUT_PEERS: usize = 16;
    /// A stripe that cannot be gathered in this time may be of a false layout: others are tried.
    const GATHER: Duration = Duration::from_secs(30);

    /// For the content below `root`.
    pub fn new(node: Arc<Node>, root: Cid, session: Arc<Session>) -> Self {
        Self {
            node,
            root,
            session,
            layouts: tokio::sync::Mutex::default(),
            useless: Mutex::default(),
            stripes: Mutex::default(),
            working: Semaphore::new(Self::STRIPES_AT_ONCE),
            helped: AtomicBool::new(false),
        }
    }

    /// Whether a block was rebuilt before: losses come in columns, so the next one need not wait long.
    pub fn has_helped(&self) -> bool {
        self.helped.load(Ordering::Relaxed)
    }

    /// Rebuilds `cid`. Goes on for as long as no layout leads to it: peers may still come, and the caller has the
    /// clock.
    pub async fn rebuild(&self, cid: Cid) -> Result<Bytes, RetrieveError> {
        loop {
            let (layout, number) = self.layout_for(&cid).await;
            let cell = self.stripe_cell((layout.cid(), number));
            let rebuilt = cell.get_or_init(|| self.rebuild_stripe(&layout, number)).await;
            match rebuilt {
                Some(blocks) => match blocks.get(&cid.hash().to_bytes()) {
                    Some(block) => {
                        self.helped.store(true, Ordering::Relaxed);
                        return Ok(block.clone());
                    }
                    // It was not lost when the stripe was gathered: a peer has it.
                    None => return std::future::pending().await,
                },
                None => {
                    self.stripes.lock().retain(|(_, other)| !Arc::ptr_eq(other, &cell));
                    self.useless.lock().insert(layout.cid());
                }
            }
        }
    }

    fn stripe_cell(&self, id: StripeId) -> Arc<OnceCell<Rebuilt>> {
        let mut stripes = self.stripes.lock();
        if let Some((_, cell)) = stripes.iter().find(|(known, _)| *known == id) {
            return cell.clone();
        }
        if stripes.len() >= Self::STRIPES_KEPT {
            stripes.remove(0);
        }
        let cell = Arc::new(OnceCell::new());
        stripes.push((id, cell.clone()));
        cell
    }

    /// A layout that has the block in a stripe, those that helped before the others.
    async fn layout_for(&self, cid: &Cid) -> (Arc<Layout>, usize) {
        let mut layouts = self.layouts.lock().await;
        loop {
            let useless = self.useless.lock().clone();
            let fit = |layout: &Arc<Layout>| Some((layout.clone(), layout.stripe_of(cid)?));
            if let Some(found) =
                layouts.iter().filter(|layout| !useless.contains(&layout.cid())).find_map(fit)
            {
                return found;
            }
            let before = layouts.len();
            for candidate in self.candidates().await {
                let known = layouts.iter().any(|layout| layout.cid() == candidate);
                if known || useless.contains(&candidate) || layouts.len() >= MAX_LAYOUTS {
                    continue;
                }
                match self.load(candidate).await {
                    Ok(layout) if layout.root() == self.root => layouts.push(Arc::new(layout)),
                    Ok(_) => tracing::warn!(%candidate, "a peer named the layout of other content"),
                    Err(error) => tracing::debug!(%candidate, %error, "a layout cannot be loaded yet"),
                }
            }
            if layouts.len() == before {
                // Nothing new: one that timed out may have been true after all.
                self.useless.lock().clear();
                tokio::time::sleep(Self::LAYOUT_AGAIN).await;
            }
        }
    }

    /// Layouts that this node knows and that the asked peers name.
    async fn candidates(&self) -> Vec<Cid> {
        let root = self.root;
        let mut found = match self.node.store.run(move |store| known_layouts(store, &root)).await {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(%error, "cannot look up the layout here");
                Vec::new()
            }
        };
        let Ok(host) = self.node.host() else { return found };
        let Ok(request) = serde_ipld_dagcbor::to_vec(&LayoutRequest { root: root.to_string() }) else {
            return found;
        };
        let asked = self.session.asked().into_iter().take(Self::LAYOUT_PEERS).map(|peer| {
            let request = request.clone();
            async move {
                let answer =
                    host.call(peer, crate::services::LAYOUT, request, Self::LAYOUT_TIMEOUT).await.ok()?;
                serde_ipld_dagcbor::from_slice::<LayoutResponse>(&answer).ok()
            }
        });
        let answers: Vec<Option<LayoutResponse>> = asked.collect::<FuturesUnordered<_>>().collect().await;
        for answer in answers.into_iter().flatten() {
            for layout in answer.layouts.iter().take(MAX_LAYOUTS).filter_map(|text| text.parse().ok()) {
                if !found.contains(&layout) {
                    found.push(layout);
                }
            }
        }
        found
    }

    /// Fetches a layout's own blocks and decodes it.
    async fn load(&self, cid: Cid) -> Result<Layout, LayoutError> {
        let mut overlay = Overlay { store: self.node.store.clone(), fetched: HashMap::new() };
        loop {
            let (back, result) = self
                .node
                .store
                .run(move |_| {
                    let result = Layout::load(&cid, &overlay);
                    (overlay, result)
                })
                .await;
            overlay = back;
            match result {
                Err(LayoutError::Missing(missing)) => match self.session.try_get(missing).await {
                    Ok(block) => {
                        overlay.fetched.insert(missing.hash().to_bytes(), block);
                    }
                    Err(_) => return Err(LayoutError::Missing(missing)),
                },
                other => return other,
            }
        }
    }

    /// Gathers a stripe until its lost blocks can be computed. Wants everything at once and takes what comes first.
    async fn rebuild_stripe(&self, layout: &Arc<Layout>, number: usize) -> Rebuilt {
        let _permit = self.working.acquire().await.ok()?;
        let mut stripe = StripeRebuild::new(layout.stripes().get(number)?.clone());
        let mut coming: FuturesUnordered<_> =
            stripe.wanted().into_iter().map(|cid| self.shard_block(cid)).collect();
        let gather = async {
            while !stripe.ready() {
                // All of it came and it is still not enough: impossible by the rules of a true layout.
                let (cid, block) = coming.next().await?;
                stripe.offer(&cid, block);
            }
            Some(())
        };
        tokio::time::timeout(Self::GATHER, gather).await.ok()??;
        match self.node.store.run(move |_| stripe.finish()).await {
            Ok(blocks) => {
                let by_hash = blocks.into_iter().map(|(cid, block)| (cid.hash().to_bytes(), block));
                Some(Arc::new(by_hash.collect()))
            }
            Err(error) => {
                tracing::warn!(layout = %layout.cid(), stripe = number, %error, "a layout does not lead to its content");
                None
            }
        }
    }

    /// A block of a stripe, from here or from peers; pending until it comes.
    async fn shard_block(&self, cid: Cid) -> (Cid, Bytes) {
        if let Ok(Some(block)) = self.node.store.run(move |store| store.get(&cid)).await {
            return (cid, block);
        }
        match self.session.get(cid).await {
            Ok(block) => (cid, block),
            Err(error) => {
                tracing::warn!(%cid, %error, "a block of a stripe cannot be asked for");
                std::future::pending().await
            }
        }
    }
}

/// The store, and above it blocks that are only held for a moment.
pub(crate) struct Overlay {
    pub store: Store,
    pub fetched: HashMap<Vec<u8>, Bytes>,
}

impl BlockSource for Overlay {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        match self.fetched.get(&cid.hash().to_bytes()) {
            Some(block) => Ok(Some(block.clone())),
            None => self.store.get(cid),
        }
    }

    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.fetched.contains_key(&cid.hash().to_bytes()) || self.store.has(cid)?)
    }

    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        match self.fetched.get(&cid.hash().to_bytes()) {
            Some(block) => Ok(Some(block.len() as u64)),
            None => self.store.block_size(cid),
        }
    }
}
