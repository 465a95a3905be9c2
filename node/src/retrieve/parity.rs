//! The last resort of a fetch: rebuilding blocks from what is left of their stripe.
//!
//! Any provider of a root tells its layout on request. A false one costs time and nothing else: what is rebuilt
//! must hash to the CID that was wanted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use btfs_p2p::bitswap::Session;
use btfs_storage::db::Table;
use btfs_storage::erasure::StripeRebuild;
use btfs_storage::layout::{Layout, LayoutError};
use btfs_storage::{BlockSource, Bytes, Cid, Store, StoreError};
use futures::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, Semaphore};

use super::RetrieveError;
use crate::node::Node;

/// Root (multihash bytes) to the CID of its layout, for what this node rents or hosts.
pub const LAYOUT_TABLE: Table<Vec<u8>, String> = Table::new("layouts");

/// What `/btfs/layout/1` is asked.
#[derive(Debug, Serialize, Deserialize)]
pub struct LayoutRequest {
    /// The root, as text.
    pub root: String,
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub struct LayoutResponse {
    /// The layout's CID, if one is known.
    pub layout: Option<String>,
}

/// The layout of `root` that this node knows itself.
pub fn known_layout(store: &Store, root: &Cid) -> Result<Option<Cid>, StoreError> {
    let text = store.state().get(&LAYOUT_TABLE, &root.hash().to_bytes())?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// Keeps the layout of a root, to name it to readers.
pub async fn remember_layout(store: &Store, root: Cid, layout: Cid) -> Result<(), StoreError> {
    store
        .run(move |store| {
            let mut batch = store.state().batch();
            batch.put(&LAYOUT_TABLE, &root.hash().to_bytes(), &layout.to_string())?;
            Ok(store.state().commit(batch)?)
        })
        .await
}

type Rebuilt = Arc<HashMap<Vec<u8>, Bytes>>;

/// Parity of one root.
pub struct Parity {
    node: Arc<Node>,
    root: Cid,
    session: Arc<Session>,
    layout: OnceCell<Arc<Layout>>,
    /// The last stripes rebuilt, newest last; neighbours of a lost block are usually lost too.
    stripes: Mutex<Vec<(usize, Arc<OnceCell<Rebuilt>>)>>,
    /// Stripes rebuilt at once: each holds up to all its shards in memory.
    working: Semaphore,
    helped: AtomicBool,
}

impl Parity {
    const STRIPES_KEPT: usize = 8;
    const STRIPES_AT_ONCE: usize = 3;
    /// Pause before the layout is looked for again, as new providers come.
    const LAYOUT_AGAIN: Duration = Duration::from_secs(1);
    /// One provider may take so long to name the layout.
    const LAYOUT_TIMEOUT: Duration = Duration::from_secs(5);
    /// Peers asked for the layout at once.
    const LAYOUT_PEERS: usize = 16;

    /// For the content below `root`.
    pub fn new(node: Arc<Node>, root: Cid, session: Arc<Session>) -> Self {
        Self {
            node,
            root,
            session,
            layout: OnceCell::new(),
            stripes: Mutex::default(),
            working: Semaphore::new(Self::STRIPES_AT_ONCE),
            helped: AtomicBool::new(false),
        }
    }

    /// Whether a block was rebuilt before: losses come in columns, so the next one need not wait long.
    pub fn has_helped(&self) -> bool {
        self.helped.load(Ordering::Relaxed)
    }

    /// Rebuilds `cid`. Stays pending while no layout is known or too little of the stripe can be had: peers may
    /// still come, and the caller has the clock.
    pub async fn rebuild(&self, cid: Cid) -> Result<Bytes, RetrieveError> {
        let layout = self.layout.get_or_init(|| self.find_layout()).await;
        let Some(number) = layout.stripe_of(&cid) else {
            return std::future::pending().await;
        };
        let cell = self.stripe_cell(number);
        let rebuilt = cell.get_or_init(|| self.rebuild_stripe(layout, number)).await;
        match rebuilt.get(&cid.hash().to_bytes()) {
            Some(block) => {
                self.helped.store(true, Ordering::Relaxed);
                Ok(block.clone())
            }
            // It was not lost when the stripe was gathered: a peer has it.
            None => std::future::pending().await,
        }
    }

    fn stripe_cell(&self, number: usize) -> Arc<OnceCell<Rebuilt>> {
        let mut stripes = self.stripes.lock();
        if let Some((_, cell)) = stripes.iter().find(|(known, _)| *known == number) {
            return cell.clone();
        }
        if stripes.len() >= Self::STRIPES_KEPT {
            stripes.remove(0);
        }
        let cell = Arc::new(OnceCell::new());
        stripes.push((number, cell.clone()));
        cell
    }

    async fn find_layout(&self) -> Arc<Layout> {
        loop {
            for candidate in self.candidates().await {
                match self.load(candidate).await {
                    Ok(layout) if layout.root() == self.root => return Arc::new(layout),
                    Ok(_) => tracing::warn!(%candidate, "a peer named the layout of other content"),
                    Err(error) => {
                        tracing::warn!(%candidate, %error, "a layout that a peer named is unusable")
                    }
                }
            }
            tokio::time::sleep(Self::LAYOUT_AGAIN).await;
        }
    }

    /// Layouts that this node or a provider names.
    async fn candidates(&self) -> Vec<Cid> {
        let root = self.root;
        match self.node.store.run(move |store| known_layout(store, &root)).await {
            Ok(Some(layout)) => return vec![layout],
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "cannot look up the layout here"),
        }
        let Ok(host) = self.node.host() else { return Vec::new() };
        let Ok(request) = serde_ipld_dagcbor::to_vec(&LayoutRequest { root: root.to_string() }) else {
            return Vec::new();
        };
        let asked = self.session.asked().into_iter().take(Self::LAYOUT_PEERS).map(|peer| {
            let request = request.clone();
            async move {
                let answer =
                    host.call(peer, crate::services::LAYOUT, request, Self::LAYOUT_TIMEOUT).await.ok()?;
                let answer: LayoutResponse = serde_ipld_dagcbor::from_slice(&answer).ok()?;
                answer.layout?.parse::<Cid>().ok()
            }
        });
        let mut found: Vec<Cid> =
            asked.collect::<FuturesUnordered<_>>().filter_map(|cid| async move { cid }).collect().await;
        found.sort_unstable();
        found.dedup();
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
        let _permit = self.working.acquire().await.expect("the semaphore is never closed");
        let mut stripe = StripeRebuild::new(layout.stripes()[number].clone());
        let mut coming: FuturesUnordered<_> =
            stripe.wanted().into_iter().map(|cid| self.shard_block(cid)).collect();
        loop {
            while !stripe.ready() {
                match coming.next().await {
                    Some((cid, block)) => {
                        stripe.offer(&cid, block);
                    }
                    // All of it came and it is still not enough: impossible by the layout's own rules.
                    None => std::future::pending().await,
                }
            }
            let (back, result) = self
                .node
                .store
                .run(move |_| {
                    let result = stripe.finish();
                    (stripe, result)
                })
                .await;
            match result {
                Ok(blocks) => {
                    return Arc::new(
                        blocks.into_iter().map(|(cid, block)| (cid.hash().to_bytes(), block)).collect(),
                    );
                }
                Err(error) => {
                    tracing::warn!(stripe = number, %error, "a stripe cannot be rebuilt from what came; waiting for more");
                    stripe = back;
                    match coming.next().await {
                        Some((cid, block)) => {
                            stripe.offer(&cid, block);
                        }
                        None => std::future::pending().await,
                    }
                }
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
struct Overlay {
    store: Store,
    fetched: HashMap<Vec<u8>, Bytes>,
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
