//! Fetching: a reference in, verified blocks in the store or content in order out.
//!
//! Whatever is asked for, the local store answers first. What is missing is wanted from every peer that may have
//! it: the connected ones and, as the DHT finds them, the providers of the root. Blocks that nobody gives are
//! rebuilt from parity once a provider told the layout; without a network, from parity that was made here. Nothing is
//! stored or shown before it matched its hash.
//!
//! * [`Reference`] is what people paste.
//! * [`Retriever`] is a view on one node: paths, listings, content, whole DAGs.
//! * `fetch` is one session with the networks; `parity` is its last resort; `sink` writes what came.
//!
//! A fetch gives up when no new block came for its timeout, and then names the peers it asked.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use btfs_storage::read::{self, AheadReader, Blocks, DirEntry, ReadError, Stat};
use btfs_storage::{BlockSource, Bytes, Cid, Class, Ingest, Ingested, Pin, Store, StoreError};
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::OnceCell;

use crate::api::call::Progress;
use crate::node::Node;
use crate::parity as local;

mod fetch;
mod parity;
mod reference;
mod repair;
mod sink;
pub mod torrent;

pub(crate) use parity::Overlay;
pub use parity::{LAYOUT_TABLE, LayoutRequest, LayoutResponse, known_layouts, layout_row, remember_layout};
pub use reference::{BadReference, Reference};
pub use repair::repair;

use fetch::Fetch;
use sink::Sink;

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum RetrieveError {
    /// Nobody gave a block.
    #[error(
        "nobody gave block {cid} within {timeout_secs} s; {}. What came before is kept until the next `btfs repo gc`; try again later or connect to a peer that has it with `btfs swarm connect`",
        asked_text(.asked)
    )]
    NotFound {
        /// The block.
        cid: Cid,
        /// How long without any new block.
        timeout_secs: u64,
        /// Peers that were asked.
        asked: Vec<String>,
    },
    /// Not here, and no network to ask.
    #[error(
        "block {cid}{} is not in this store, and no daemon runs that could fetch it; start one with `btfs daemon`",
        below_text(cid, root)
    )]
    Offline {
        /// The block.
        cid: Cid,
        /// What it was needed for.
        root: Cid,
    },
    /// The path leads nowhere.
    #[error("{0}")]
    NoSuchPath(String),
    /// The blocks are there and are no such thing.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// More blocks than a fetch keeps track of.
    #[error(
        "{0} has more than {MAX_DAG_BLOCKS} blocks, which is more than one fetch keeps track of; fetch parts of it by path"
    )]
    TooManyBlocks(Cid),
    /// The exchange could not ask.
    #[error(transparent)]
    Exchange(#[from] btfs_p2p::bitswap::FetchError),
    /// A torrent.
    #[error("{0}")]
    Torrent(String),
}

/// What a block belongs to, if it is not that itself.
fn below_text(cid: &Cid, root: &Cid) -> String {
    if cid == root { String::new() } else { format!(", which is a part of {root},") }
}

fn asked_text(asked: &[String]) -> String {
    match asked {
        [] => "no peer could be asked: none is connected and the DHT named none".into(),
        [one] => format!("asked {one}"),
        many => format!("asked {} peers: {}", many.len(), many.join(", ")),
    }
}

/// What a finished fetch did.
pub struct Fetched {
    /// Blocks that came over the network.
    pub from_network: u64,
    /// Blocks rebuilt from parity.
    pub from_parity: u64,
    /// Keeps the blocks from being collected until it is dropped.
    pub lease: Ingest,
}

/// Blocks of one DAG that a fetch keeps track of: 1 TiB of 1 MiB leaves. A hostile DAG must not fill the memory.
const MAX_DAG_BLOCKS: usize = 1 << 20;

/// A way to content through one node.
#[derive(Clone)]
pub struct Retriever {
    node: Arc<Node>,
    timeout: Duration,
    network: bool,
    /// The root that paths began at: the one that providers announce.
    origin: Arc<OnceLock<Cid>>,
    /// Made when the first block is missing; one for all that this retriever fetches.
    fetch: Arc<OnceCell<Arc<Fetch>>>,
}

impl Retriever {
    /// Fetches what is missing, with the timeout of the configuration.
    pub fn new(node: Arc<Node>) -> Self {
        let timeout = Duration::from_secs(node.config.fetch.timeout_secs);
        Self { node, timeout, network: true, origin: Arc::default(), fetch: Arc::default() }
    }

    /// Answers from the local store alone.
    pub fn local(node: Arc<Node>) -> Self {
        Self { network: false, ..Self::new(node) }
    }

    /// Gives up after `timeout` without a new block.
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same for what lies below `root`, whose providers are asked; the first such root counts.
    fn below(&self, root: &Cid) -> Self {
        let _ = self.origin.set(*root);
        self.clone()
    }

    /// The CID that a reference means, fetching what is needed to know. Torrents are fetched whole.
    pub async fn resolve(
        &self,
        reference: &Reference,
        peers: &[String],
        progress: &Progress,
    ) -> Result<Cid, RetrieveError> {
        match reference {
            Reference::Ipfs { root, path } => self.path(root, path).await,
            other => torrent::fetch(&self.node, other, peers, self.timeout, progress).await,
        }
    }

    /// Follows a path below `root`.
    pub async fn path(&self, root: &Cid, path: &str) -> Result<Cid, RetrieveError> {
        // Only the first counts: the others lie below it.
        let _ = self.origin.set(*root);
        if path.is_empty() {
            return Ok(*root);
        }
        let (from, path) = (*root, path.to_owned());
        self.reading(root, move |source| read::resolve(source, &from, &path)).await
    }

    /// What `cid` is.
    pub async fn stat(&self, cid: &Cid) -> Result<Stat, RetrieveError> {
        let of = *cid;
        self.reading(cid, move |source| read::stat(source, &of)).await
    }

    /// The entries of a directory.
    pub async fn list(&self, cid: &Cid) -> Result<Vec<DirEntry>, RetrieveError> {
        let of = *cid;
        self.reading(cid, move |source| read::ls(source, &of)).await
    }

    /// One block.
    pub async fn block(&self, cid: &Cid) -> Result<Bytes, RetrieveError> {
        let moved = match stored(&self.node.store, *cid).await {
            Ok(Some(block)) => return Ok(block),
            Err(error @ StoreError::NotInFile { .. }) => Some(error),
            other => other.map(|_| None)?,
        };
        let fetched = match self.fetch(cid, *cid).await {
            Ok(fetch) => fetch.block(*cid).await.map(|(block, _)| block),
            Err(error) => self.mended(*cid).await.ok_or(error),
        };
        fetched.map_err(|error| or_moved(error, moved))
    }

    /// A reader of a file, which is fetched a bounded number of bytes ahead.
    pub async fn open(&self, cid: &Cid) -> Result<AheadReader<Retriever>, RetrieveError> {
        let _ = self.origin.set(*cid);
        AheadReader::open(self.clone(), cid).await
    }

    /// Up to `length` bytes of a file from `offset`, in order.
    pub async fn content(
        &self,
        cid: &Cid,
        offset: u64,
        length: u64,
    ) -> Result<BoxStream<'static, Result<Bytes, RetrieveError>>, RetrieveError> {
        Ok(self.open(cid).await?.range(offset, length).boxed())
    }

    /// Brings the whole DAG into the store and, if asked, pins it in the same acknowledgement. What it returns keeps the
    /// blocks from being collected.
    pub async fn whole(
        &self,
        root: &Cid,
        pin: Option<Pin>,
        progress: &Progress,
    ) -> Result<Fetched, RetrieveError> {
        let _ = self.origin.set(*root);
        let class = if pin.is_some() { Class::Own } else { Class::Cache };
        // Before the walk: what it finds, and what is fetched later, is protected from now on.
        let lease = self.node.store.ingest(class)?;
        let (lease, here, from_parity) = self.keep_mended(root, lease, progress).await?;
        let (lacks, moved) = match here {
            Here::Whole => {
                let lease = match pin {
                    Some(pin) => self.pin_kept(pin, lease).await?,
                    None => lease,
                };
                return Ok(Fetched { from_network: 0, from_parity, lease });
            }
            Here::InPart(lacks) => (lacks, None),
            Here::Moved(lacks, error) => (lacks, Some(error)),
        };
        let sink = Sink::start(&self.node.store, class)?;
        let fetched = match self.fetch(root, lacks).await {
            Ok(fetch) => fetch.whole(*root, &sink, progress).await,
            Err(error) => Err(error),
        };
        let (from_network, from_parity) = fetched.map_err(|error| or_moved(error, moved))?;
        let store = self.node.store.clone();
        let _: Ingested = sink
            .finish(move |batch| match &pin {
                Some(pin) => store.renew_pin(batch, pin),
                None => Ok(()),
            })
            .await?;
        Ok(Fetched { from_network, from_parity, lease })
    }

    /// [`keep_local`](Self::keep_local) after what is lost was rebuilt from parity that was made here, as far as that
    /// goes; also how many blocks were. With a network that is left to the fetch, which asks for them meanwhile.
    async fn keep_mended(
        &self,
        root: &Cid,
        lease: Ingest,
        progress: &Progress,
    ) -> Result<(Ingest, Here, u64), RetrieveError> {
        let (mut lease, mut here) = self.keep_local(root, lease).await?;
        let mut mended = 0;
        while let Here::InPart(lacks) | Here::Moved(lacks, _) = &here
            && self.node.host().is_err()
        {
            let (lacks, progress) = (*lacks, progress.clone());
            match self.by_parity(move |store| local::mend_around(store, &lacks, &progress)).await {
                Some(blocks) if blocks > 0 => mended += blocks,
                _ => break,
            }
            (lease, here) = self.keep_local(root, lease).await?;
        }
        Ok((lease, here, mended))
    }

    /// Protects what is here of a DAG; tells how much of it that is.
    async fn keep_local(&self, root: &Cid, mut lease: Ingest) -> Result<(Ingest, Here), RetrieveError> {
        let root = *root;
        self.node
            .store
            .run(move |store| {
                for block in read::walk(store, &root) {
                    match block {
                        Ok((cid, _)) if lease.keep(&cid)? => {}
                        Ok((cid, _)) => match store.get(&cid) {
                            Err(error @ StoreError::NotInFile { .. }) => {
                                return Ok((lease, Here::Moved(cid, error)));
                            }
                            _ => return Ok((lease, Here::InPart(cid))),
                        },
                        Err(ReadError::Missing(cid) | ReadError::Store(StoreError::Corrupt { cid })) => {
                            return Ok((lease, Here::InPart(cid)));
                        }
                        Err(ReadError::Store(error @ StoreError::NotInFile { cid, .. })) => {
                            return Ok((lease, Here::Moved(cid, error)));
                        }
                        Err(error) => return Err(RetrieveError::Read(error)),
                    }
                }
                Ok((lease, Here::Whole))
            })
            .await
    }

    /// Brings one block into the store and pins it alone.
    pub async fn keep_block(&self, cid: &Cid, pin: Pin) -> Result<(), RetrieveError> {
        let block = self.block(cid).await?;
        let sink = Sink::start(&self.node.store, Class::Own)?;
        sink.put(*cid, block).await;
        let store = self.node.store.clone();
        sink.finish(move |batch| store.renew_pin(batch, &pin)).await?;
        Ok(())
    }

    /// Pins what was kept.
    async fn pin_kept(&self, pin: Pin, mut kept: Ingest) -> Result<Ingest, StoreError> {
        self.node
            .store
            .run(move |store| {
                let mut batch = store.state().batch();
                store.renew_pin(&mut batch, &pin)?;
                kept.checkpoint(batch)?;
                Ok(kept)
            })
            .await
    }

    /// Runs a reader over the store; each block it misses is fetched, kept in the cache, and it runs again.
    pub async fn reading<T, F>(&self, root: &Cid, read: F) -> Result<T, RetrieveError>
    where
        T: Send + 'static,
        F: Fn(&dyn BlockSource) -> Result<T, ReadError> + Clone + Send + 'static,
    {
        loop {
            let attempt = read.clone();
            match self.node.store.run(move |store| attempt(store)).await {
                Ok(value) => return Ok(value),
                Err(ReadError::Missing(cid) | ReadError::Store(StoreError::Corrupt { cid })) => {
                    self.cache(root, cid).await?;
                }
                Err(ReadError::Store(moved @ StoreError::NotInFile { cid, .. })) => {
                    self.cache(root, cid).await.map_err(|error| or_moved(error, Some(moved)))?;
                }
                Err(error @ (ReadError::NotFound { .. } | ReadError::NotADirectory { .. })) => {
                    return Err(RetrieveError::NoSuchPath(error.to_string()));
                }
                Err(error) => return Err(RetrieveError::Read(error)),
            }
        }
    }

    /// Fetches a missing node of `root` and keeps it in the cache.
    pub async fn cache(&self, root: &Cid, missing: Cid) -> Result<(), RetrieveError> {
        if self.mended(missing).await.is_some() {
            return Ok(());
        }
        let (block, _) = self.fetch(root, missing).await?.block(missing).await?;
        let sink = Sink::start(&self.node.store, Class::Cache)?;
        sink.put(missing, block).await;
        sink.finish(|_| Ok(())).await?;
        Ok(())
    }

    /// A block that is not here, rebuilt from parity that was made here. With a network that is left to the fetch.
    async fn mended(&self, cid: Cid) -> Option<Bytes> {
        if self.node.host().is_ok() {
            return None;
        }
        self.by_parity(move |store| local::mend_block(store, &cid)).await.flatten()
    }

    /// Rebuilds something, one thing at a time, since that takes the memory of a stripe and a layout. Not on the store's own
    /// threads, which serve blocks: it may read hundreds of them.
    async fn by_parity<T: Send + 'static>(
        &self,
        rebuild: impl FnOnce(&Store) -> Result<T, local::ParityError> + Send + 'static,
    ) -> Option<T> {
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let alone = ALONE.lock().await;
        let store = self.node.store.clone();
        let rebuilt = tokio::task::spawn_blocking(move || rebuild(&store)).await;
        drop(alone);
        match rebuilt.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())) {
            Ok(rebuilt) => Some(rebuilt),
            Err(error) => {
                tracing::warn!(%error, "nothing is rebuilt by the parity that is here");
                None
            }
        }
    }

    /// The session with the networks for `root`, of which `lacks` is not here.
    async fn fetch(&self, root: &Cid, lacks: Cid) -> Result<&Arc<Fetch>, RetrieveError> {
        let root = self.origin.get().unwrap_or(root);
        if !self.network || self.node.host().is_err() {
            return Err(RetrieveError::Offline { cid: lacks, root: *root });
        }
        self.fetch
            .get_or_try_init(|| async {
                Fetch::start(self.node.clone(), *root, self.timeout).await.map(Arc::new)
            })
            .await
    }
}

/// How much of a DAG is in the store.
enum Here {
    /// All of it.
    Whole,
    /// A part of it, or nothing; this is the first block that is missing.
    InPart(Cid),
    /// A block is missing because it is no longer in its file.
    Moved(Cid, StoreError),
}

/// Why something could not be fetched, or, if nobody has it, what is wrong with the file that it was in.
fn or_moved(error: RetrieveError, moved: Option<StoreError>) -> RetrieveError {
    match (error, moved) {
        (RetrieveError::Offline { .. } | RetrieveError::NotFound { .. }, Some(moved)) => moved.into(),
        (error, _) => error,
    }
}

/// A block of the store. A damaged one was put aside and is as good as absent: it is fetched again.
async fn stored(store: &Store, cid: Cid) -> Result<Option<Bytes>, StoreError> {
    match store.run(move |store| store.get(&cid)).await {
        Err(StoreError::Corrupt { .. }) => Ok(None),
        other => other,
    }
}

impl Blocks for Retriever {
    type Error = RetrieveError;

    async fn leaf(&self, cid: Cid) -> Result<Bytes, RetrieveError> {
        self.block(&cid).await
    }

    /// Kept in the cache, since whoever reads on needs it again.
    async fn node(&self, cid: Cid) -> Result<Bytes, RetrieveError> {
        self.reading(&cid, move |source| source.get(&cid)?.ok_or(ReadError::Missing(cid))).await
    }
}
