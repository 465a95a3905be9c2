//! The engine: torrents, peers and trackers over the block store.
//!
//! The node starts one [`Engine`] with its store. Torrents that were there before go on by themselves: complete ones are seeded
//! without reading a byte of them, unfinished ones continue at their last checkpoint. [`Engine::add`] begins a download,
//! [`Engine::seed`] takes up a torrent that was recorded with an import, and [`Engine::wait_done`] answers the root CID.
//!
//! Tasks: one for each connection's reading half and one for its writing half, one disk task and one announcer per torrent,
//! one clock and one listener for all. Each torrent's mutable state is behind one lock ([`torrent`]); tasks speak to each
//! other through links, the disk channel and the phase, all bounded.

mod announce;
mod candidates;
mod conn;
mod disk;
mod link;
mod metadata;
mod status;
mod tick;
mod torrent;
mod upload;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use btfs_storage::{BlockSource, Cid, Class, Store, StoreError};
use parking_lot::Mutex;
use rand::RngExt;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::assemble::{self, Assembler};
use crate::bitfield::Bitfield;
use crate::bridge::{Content, WindowCache};
use crate::choker::{Ranking, TitForTat};
use crate::create::TorrentFile;
use crate::infohash::InfoHash;
use crate::layout::Layout;
use crate::magnet::Magnet;
use crate::metainfo::{Info, Metainfo, MetainfoError};
use crate::picker::{Order, Picker};
use crate::records::{self, TORRENTS, TorrentRecord};
use crate::wire::handshake;

pub use status::{PeerStatus, TorrentStatus};
use torrent::Torrent;
pub use torrent::{Phase, TrackerStatus};

/// Names a torrent: its v1 infohash.
pub type TorrentId = InfoHash;

/// How much the engine may take.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections of all torrents together.
    pub connections: usize,
    /// Connections of one torrent.
    pub per_torrent: usize,
    /// Peers of one torrent that are served at a time.
    pub upload_slots: usize,
    /// Bytes of unfinished pieces and leaves in memory, for each download; two pieces always fit.
    pub buffer_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        // 32 MiB are a dozen open leaves beside a queue for the disk. When the disk is the slower side the whole of it
        // fills up (64 MiB took a process to 231 MB), so more would only be memory.
        Limits { connections: 200, per_torrent: 50, upload_slots: 8, buffer_bytes: 32 << 20 }
    }
}

/// How to start an [`Engine`].
#[derive(Clone)]
pub struct EngineConfig {
    /// Where blocks and records are; opened with [`records::TABLES`].
    pub store: Store,
    /// Where to answer peers; port 0 takes any free one, `None` takes no incoming connections.
    pub listen: Option<SocketAddr>,
    /// Bounds.
    pub limits: Limits,
    /// Who is served first.
    pub ranking: Arc<dyn Ranking>,
}

impl EngineConfig {
    /// The defaults over `store`, listening on `listen`.
    pub fn new(store: Store, listen: Option<SocketAddr>) -> EngineConfig {
        EngineConfig { store, listen, limits: Limits::default(), ranking: Arc::new(TitForTat) }
    }
}

/// What to download.
#[derive(Debug, Clone)]
pub enum TorrentSource {
    /// The bytes of a `.torrent` file.
    Metainfo(Vec<u8>),
    /// A magnet link; its trackers and peers are used too.
    Magnet(Magnet),
}

/// Why a torrent operation failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The listening address cannot be used.
    #[error("cannot listen for BitTorrent peers on {addr}: {source}; choose another port or 0 for any")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The torrent file is unusable.
    #[error(transparent)]
    Metainfo(#[from] MetainfoError),
    /// A magnet with a v2 hash alone.
    #[error(
        "this magnet link names a BitTorrent v2 torrent only; this version downloads v1 and hybrid torrents"
    )]
    V2Only,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such torrent.
    #[error("there is no torrent {0}")]
    Unknown(TorrentId),
    /// The torrent stopped with an error.
    #[error("torrent {id} stopped: {error}")]
    Failed {
        /// Which.
        id: TorrentId,
        /// Its error.
        error: String,
    },
    /// The torrent was removed, or the engine shut down.
    #[error("torrent {0} was removed while waiting for it")]
    Removed(TorrentId),
    /// The HTTP client for trackers cannot be made.
    #[error("cannot prepare for tracker requests: {0}")]
    Http(String),
}

/// The BitTorrent engine. Clones share it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// What all tasks share.
pub(crate) struct Inner {
    config: EngineConfig,
    peer_id: [u8; 20],
    local_addr: Option<SocketAddr>,
    torrents: Mutex<HashMap<InfoHash, Arc<Torrent>>>,
    windows: WindowCache,
    slots: Arc<Semaphore>,
    http: reqwest::Client,
    cancel: CancellationToken,
    tasks: TaskTracker,
    next_conn: AtomicU32,
    started: Instant,
}

impl Inner {
    fn seconds(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    fn random(&self) -> u32 {
        rand::rng().random()
    }
}

impl Engine {
    /// Starts, and takes up the torrents that the store knows.
    pub async fn start(config: EngineConfig) -> Result<Engine, EngineError> {
        let listener = match config.listen {
            None => None,
            Some(addr) => {
                let bound = TcpListener::bind(addr).await;
                Some(bound.map_err(|source| EngineError::Listen { addr, source })?)
            }
        };
        let local_addr = listener.as_ref().and_then(|l| l.local_addr().ok());
        let http =
            reqwest::Client::builder().user_agent(concat!("btfs/", env!("CARGO_PKG_VERSION"))).no_proxy();
        let http = http.redirect(reqwest::redirect::Policy::none()).build();
        let inner = Arc::new(Inner {
            peer_id: handshake::peer_id(rand::rng().random()),
            local_addr,
            torrents: Mutex::new(HashMap::new()),
            windows: WindowCache::default(),
            slots: Arc::new(Semaphore::new(config.limits.connections)),
            http: http.map_err(|e| EngineError::Http(e.to_string()))?,
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
            next_conn: AtomicU32::new(1),
            started: Instant::now(),
            config,
        });
        let engine = Engine { inner: inner.clone() };
        engine.take_up_all().await?;
        if let Some(listener) = listener {
            inner.tasks.spawn(listen(inner.clone(), listener));
        }
        inner.tasks.spawn(tick::run(inner.clone()));
        Ok(engine)
    }

    /// Where peers reach this engine, if it listens.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.inner.local_addr
    }

    /// Adds a torrent and begins to download it, or gives one that is there more peers and trackers. A torrent that had stopped
    /// with an error starts again.
    pub async fn add(
        &self,
        source: TorrentSource,
        peers: Vec<SocketAddr>,
        trackers: Vec<String>,
        order: Order,
    ) -> Result<TorrentId, EngineError> {
        let (hash, name, info, mut all_trackers, mut all_peers) = read_source(source)?;
        all_trackers.extend(trackers);
        all_peers.extend(peers);
        all_trackers.dedup();
        if self.get(&hash).is_ok_and(|t| matches!(*t.phase.borrow(), Phase::Failed(_))) {
            self.stop(&hash).await;
        }
        if self.get(&hash).is_err() {
            let store = &self.inner.config.store;
            let (record, known) =
                store.run(move |store| keep_new(store, hash, &name, info, &all_trackers)).await?;
            self.begin(hash, record, known, order).await?;
        } else {
            self.add_trackers(&hash, all_trackers);
        }
        self.add_peers(&hash, all_peers)?;
        Ok(hash)
    }

    /// Seeds a torrent that was recorded with an import ([`TorrentFile::record`]).
    pub async fn seed(&self, id: TorrentId) -> Result<(), EngineError> {
        self.stop(&id).await;
        let taken = self.inner.config.store.run(move |store| load(store, id)).await?;
        let (record, info) = taken.ok_or(EngineError::Unknown(id))?;
        self.begin(id, record, info, Order::default()).await
    }

    /// Records a torrent of content that is in the store, and seeds it.
    pub async fn add_seed(&self, torrent: &TorrentFile) -> Result<TorrentId, EngineError> {
        let kept = torrent.clone();
        let record = move |store: &Store| {
            let mut ingest = store.ingest(Class::Own)?;
            let mut batch = store.state().batch();
            kept.record(store, &mut ingest, &mut batch)?;
            ingest.finish(batch)
        };
        self.inner.config.store.run(record).await?;
        self.seed(torrent.infohash()).await?;
        Ok(torrent.infohash())
    }

    /// Tells a torrent of peers to connect to.
    pub fn add_peers(&self, id: &TorrentId, peers: Vec<SocketAddr>) -> Result<(), EngineError> {
        let torrent = self.get(id)?;
        let now = Instant::now();
        let mut swarm = torrent.swarm.lock();
        peers.into_iter().for_each(|addr| swarm.candidates.add(addr, now));
        drop(swarm);
        tick::dial(&self.inner, &torrent);
        Ok(())
    }

    fn add_trackers(&self, id: &TorrentId, urls: Vec<String>) {
        let Ok(torrent) = self.get(id) else { return };
        let mut trackers = torrent.trackers.lock();
        for url in urls {
            if !trackers.iter().any(|t| t.url == url) {
                trackers.push(TrackerStatus { url, last: None });
            }
        }
        drop(trackers);
        torrent.announce.notify_one();
    }

    /// Waits until a torrent is complete and answers the root of its content.
    pub async fn wait_done(&self, id: TorrentId) -> Result<Cid, EngineError> {
        let mut phase = self.get(&id)?.phase.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Seeding(root) => return Ok(*root),
                Phase::Failed(error) => return Err(EngineError::Failed { id, error: error.clone() }),
                Phase::Removed => return Err(EngineError::Removed(id)),
                Phase::Metadata | Phase::Downloading => {}
            }
            if phase.changed().await.is_err() {
                return Err(EngineError::Removed(id));
            }
        }
    }

    /// The `.torrent` file of a torrent, once its metadata is known.
    pub fn metainfo(&self, id: &TorrentId) -> Result<Option<Metainfo>, EngineError> {
        let torrent = self.get(id)?;
        let trackers = torrent.trackers.lock().iter().map(|t| t.url.clone()).collect();
        Ok(torrent.content().map(|c| Metainfo { info: c.info.clone(), trackers }))
    }

    /// One torrent's state.
    pub fn status(&self, id: &TorrentId) -> Result<TorrentStatus, EngineError> {
        Ok(status::of(&*self.get(id)?))
    }

    /// All torrents' states, by infohash.
    pub fn list(&self) -> Vec<TorrentStatus> {
        let mut torrents: Vec<Arc<Torrent>> = self.inner.torrents.lock().values().cloned().collect();
        torrents.sort_by_key(|t| t.hash);
        torrents.iter().map(|t| status::of(t)).collect()
    }

    /// The peers of one torrent.
    pub fn peers(&self, id: &TorrentId) -> Result<Vec<PeerStatus>, EngineError> {
        Ok(status::peers(&*self.get(id)?))
    }

    /// Takes a torrent out, with what is kept of it. Its content goes with a later collection unless another pin holds it.
    pub async fn remove(&self, id: TorrentId) -> Result<(), EngineError> {
        self.get(&id)?;
        self.stop(&id).await;
        let forget = move |store: &Store| {
            let mut batch = store.state().batch();
            records::remove(store, &mut batch, &id)?;
            Ok::<_, StoreError>(store.state().commit(batch)?)
        };
        Ok(self.inner.config.store.run(forget).await?)
    }

    /// Says farewell to trackers and peers and stops everything. Downloads go on from their last checkpoint next time.
    pub async fn shutdown(&self) {
        self.inner.cancel.cancel();
        let ids: Vec<InfoHash> = self.inner.torrents.lock().keys().copied().collect();
        futures::future::join_all(ids.iter().map(|id| self.stop(id))).await;
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn get(&self, id: &TorrentId) -> Result<Arc<Torrent>, EngineError> {
        self.inner.torrents.lock().get(id).cloned().ok_or(EngineError::Unknown(*id))
    }

    /// Ends a torrent's tasks; what is on disk stays.
    async fn stop(&self, id: &TorrentId) {
        let Some(torrent) = self.inner.torrents.lock().remove(id) else { return };
        torrent.cancel.cancel();
        torrent.tasks.close();
        torrent.tasks.wait().await;
        self.inner.windows.forget(id);
        torrent.phase.send_replace(Phase::Removed);
    }

    /// Puts every recorded torrent to work. One that cannot be read does not keep the others back: it shows its error.
    async fn take_up_all(&self) -> Result<(), EngineError> {
        let store = &self.inner.config.store;
        let records = store.run(|store| store.state().scan(&TORRENTS, &[]).collect::<Result<Vec<_>, _>>());
        for (hash, record) in records.await.map_err(StoreError::from)? {
            let hash = InfoHash(hash);
            let begun = match store.run(move |store| load(store, hash)).await {
                Ok(Some((record, info))) => self.begin(hash, record, info, Order::default()).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = begun {
                let cancel = self.inner.cancel.child_token();
                let torrent = Arc::new(Torrent::new(hash, record.name, record.trackers, cancel));
                torrent.fail(error.to_string());
                self.inner.torrents.lock().insert(hash, torrent);
            }
        }
        Ok(())
    }

    /// Puts a recorded torrent to work.
    async fn begin(
        &self,
        hash: InfoHash,
        record: TorrentRecord,
        info: Option<Info>,
        order: Order,
    ) -> Result<(), EngineError> {
        let cancel = self.inner.cancel.child_token();
        let torrent = Arc::new(Torrent::new(hash, record.name, record.trackers, cancel));
        match (info, record.root) {
            (Some(info), Some(root)) => self.inner.seed(&torrent, info, root),
            (Some(info), None) => self.inner.download(&torrent, info, order).await?,
            (None, _) => {}
        }
        self.inner.torrents.lock().insert(hash, torrent.clone());
        torrent.tasks.spawn(announce::run(self.inner.clone(), torrent.clone()));
        Ok(())
    }
}

impl Inner {
    /// Begins to serve what is stored as a whole.
    fn seed(&self, torrent: &Torrent, info: Info, root: Cid) {
        let content = Arc::new(Content::stored(info, root));
        let have = Bitfield::full(content.layout.piece_count());
        torrent.begin(content, have, None, self.config.limits.upload_slots);
        torrent.phase.send_replace(Phase::Seeding(root));
    }

    /// Begins or goes on with getting pieces.
    async fn download(
        self: &Arc<Self>,
        torrent: &Arc<Torrent>,
        info: Info,
        order: Order,
    ) -> Result<(), StoreError> {
        let layout = Arc::new(Layout::new(&info));
        let (hash, place) = (torrent.hash, layout.clone());
        let (digests, stored) =
            self.config.store.run(move |store| assemble::resume(store, &hash, &place)).await?;
        let limits = &self.config.limits;
        let picker = Picker::new(layout.clone(), &stored, order, limits.buffer_bytes);
        let assembler = Assembler::new(info.clone(), layout.clone(), digests.clone());
        let content = Arc::new(Content::partial(info, layout, digests));
        let (jobs, queue) = tokio::sync::mpsc::channel(disk::QUEUE);
        if torrent.disk.set(jobs).is_err() {
            return Ok(()); // two peers delivered the metadata at once: the first one counts
        }
        torrent.begin(content, stored, Some(picker), limits.upload_slots);
        torrent.phase.send_replace(Phase::Downloading);
        torrent.tasks.spawn(disk::run(self.clone(), torrent.clone(), assembler, queue));
        Ok(())
    }

    /// A peer delivered the info dictionary of a magnet.
    pub(crate) async fn metadata_arrived(self: &Arc<Self>, torrent: &Arc<Torrent>, info: Info) {
        if torrent.content().is_some() {
            return;
        }
        let kept = info.clone();
        let keep = move |store: &Store| {
            let hash = kept.hash();
            let Some(mut record) = store.state().get(&TORRENTS, &hash.0)? else { return Ok(None) };
            let mut ingest = store.ingest(Class::Own)?;
            let mut batch = store.state().batch();
            records::put_info(store, &mut ingest, &mut batch, &kept, &mut record)?;
            ingest.finish(batch).map(|_| record.root)
        };
        let began = match self.config.store.run(keep).await {
            // The content was here all along, and only the dictionary had been lost.
            Ok(Some(root)) => {
                self.seed(torrent, info, root);
                torrent.swarm.lock().drop_seeds();
                Ok(())
            }
            Ok(None) => self.download(torrent, info, Order::default()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = began {
            torrent.fail(error.to_string());
        }
    }
}

/// Accepts peers until the engine ends. When all connections are taken, the backlog waits.
async fn listen(inner: Arc<Inner>, listener: TcpListener) {
    /// After an accept that failed (out of descriptors, say), so that it does not spin.
    const PAUSE: Duration = Duration::from_millis(200);
    loop {
        let accepted = async {
            let permit = inner.slots.clone().acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        let accepted = tokio::select! {
            () = inner.cancel.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Some((Ok((stream, addr)), permit)) => {
                inner.tasks.spawn(conn::accept(inner.clone(), stream, addr, permit));
            }
            Some((Err(error), _)) => {
                tracing::warn!(%error, "an incoming BitTorrent connection could not be taken");
                tokio::time::sleep(PAUSE).await;
            }
            None => return,
        }
    }
}

type Source = (InfoHash, String, Option<Info>, Vec<String>, Vec<SocketAddr>);

fn read_source(source: TorrentSource) -> Result<Source, EngineError> {
    Ok(match source {
        TorrentSource::Metainfo(bytes) => {
            let Metainfo { info, trackers } = Metainfo::parse(&bytes)?;
            (info.hash(), info.name.clone(), Some(info), trackers, Vec::new())
        }
        TorrentSource::Magnet(magnet) => {
            let hash = magnet.btih.ok_or(EngineError::V2Only)?;
            (hash, magnet.name.unwrap_or_else(|| hash.to_string()), None, magnet.trackers, magnet.peers)
        }
    })
}

/// Records a torrent, or updates its record; answers it with the info dictionary, if that is known from anywhere.
fn keep_new(
    store: &Store,
    hash: InfoHash,
    name: &str,
    info: Option<Info>,
    trackers: &[String],
) -> Result<(TorrentRecord, Option<Info>), StoreError> {
    let known = load(store, hash)?;
    let (mut record, stored) = known.unwrap_or_else(|| (records::new_record(name, &[]), None));
    for tracker in trackers {
        if !record.trackers.contains(tracker) {
            record.trackers.push(tracker.clone());
        }
    }
    let mut batch = store.state().batch();
    match (info, stored) {
        (_, Some(stored)) => {
            batch.put(&TORRENTS, &hash.0, &record)?;
            store.state().commit(batch)?;
            Ok((record, Some(stored)))
        }
        (Some(info), None) => {
            let mut ingest = store.ingest(Class::Own)?;
            records::put_info(store, &mut ingest, &mut batch, &info, &mut record)?;
            ingest.finish(batch)?;
            Ok((record, Some(info)))
        }
        (None, None) => {
            batch.put(&TORRENTS, &hash.0, &record)?;
            store.state().commit(batch)?;
            Ok((record, None))
        }
    }
}

/// A torrent's record, and its info dictionary if that is here.
fn load(store: &Store, hash: InfoHash) -> Result<Option<(TorrentRecord, Option<Info>)>, StoreError> {
    let Some(record) = store.state().get(&TORRENTS, &hash.0)? else { return Ok(None) };
    let block = if record.has_info { store.get(&hash.cid())? } else { None };
    // It was checked before it was recorded; one that an older build accepted and this one does not is asked for anew.
    let info = block.and_then(|block| Info::parse(&block).ok());
    Ok(Some((record, info)))
}

#[cfg(test)]
mod tests;
