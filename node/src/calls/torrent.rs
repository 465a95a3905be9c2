//! BitTorrent: making, adding, listing and removing torrents.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use btfs_bittorrent::create::{self, TorrentFile, Version};
use btfs_bittorrent::{InfoHash, Phase, TorrentStatus};
use serde::{Deserialize, Serialize};

use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;
use crate::retrieve::{Reference, Retriever, torrent as fetching};

/// Makes a torrent of stored content, and seeds it if a daemon runs.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TorrentCreateRequest {
    /// CID or /ipfs path.
    pub reference: String,
    /// The name inside the torrent.
    pub name: String,
    /// Whether it is one of v1 alone, or of v2 (BEP 52), too.
    pub version: Version,
    /// Bytes of a piece, a power of two from 16 KiB on; by size if not given.
    pub piece_length: Option<u32>,
    /// HTTP trackers to announce to.
    pub trackers: Vec<String>,
    /// Where to write the `.torrent` file: an absolute path that does not exist.
    pub out: Option<PathBuf>,
}

call!(TorrentCreateRequest => TorrentInfo, "torrent/create");

/// Begins to download a torrent, or gives one that is there more peers and trackers.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TorrentAddRequest {
    /// Infohash, magnet link, or absolute path of a `.torrent` file.
    pub reference: String,
    /// Peers, as `IP:PORT`.
    pub peers: Vec<String>,
    /// HTTP trackers, besides those it names.
    pub trackers: Vec<String>,
}

call!(TorrentAddRequest => TorrentInfo, "torrent/add");

/// Asks for the torrents.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TorrentListRequest {
    /// Only this one.
    pub infohash: Option<String>,
}

/// The torrents.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TorrentList {
    /// In order of infohash.
    pub torrents: Vec<TorrentInfo>,
}

call!(TorrentListRequest => TorrentList, "torrent/ls");

/// Takes a torrent out; its content goes with a later collection unless another pin holds it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TorrentRemoveRequest {
    /// Which.
    pub infohash: String,
}

call!(TorrentRemoveRequest => TorrentInfo, "torrent/rm");

/// One torrent.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TorrentInfo {
    /// v1 infohash, hex.
    pub infohash: String,
    /// v2 infohash of a hybrid, hex.
    pub infohash_v2: Option<String>,
    /// Its magnet link.
    pub magnet: String,
    /// Its name.
    pub name: String,
    /// `metadata`, `downloading`, `seeding`, `failed` or `recorded` (no daemon runs).
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
    /// Root of the content, once complete.
    pub cid: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    /// Pieces in all.
    pub pieces: Option<u32>,
    /// Pieces here.
    pub pieces_stored: u32,
    /// Payload bytes received since the daemon's start.
    pub downloaded: u64,
    /// Payload bytes sent since the daemon's start.
    pub uploaded: u64,
    /// Connected peers.
    pub peers: usize,
}

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<TorrentCreateRequest, _, _>(router, make);
    let router =
        route::<TorrentAddRequest, _, _>(router, |node, request, _| async move { add(&node, request).await });
    let router =
        route::<TorrentListRequest, _, _>(router, |node, request, _| async move { list(&node, request) });
    route::<TorrentRemoveRequest, _, _>(router, |node, request, _| async move {
        remove(&node, &request.infohash).await
    })
}

fn parse_infohash(text: &str) -> Result<InfoHash, ApiError> {
    text.parse().map_err(ApiError::bad)
}

fn info(status: TorrentStatus) -> TorrentInfo {
    let (state, error) = match &status.phase {
        Phase::Metadata => ("metadata", None),
        Phase::Downloading => ("downloading", None),
        Phase::Seeding(_) => ("seeding", None),
        Phase::Failed(error) => ("failed", Some(error.clone())),
        Phase::Removed => ("removed", None),
    };
    TorrentInfo {
        infohash: status.id.to_string(),
        infohash_v2: status.v2.map(hex::encode),
        magnet: status.magnet().to_string(),
        name: status.name,
        state: state.into(),
        error,
        cid: status.root.map(|root| root.to_string()),
        size: status.size,
        pieces: status.pieces,
        pieces_stored: status.pieces_stored,
        downloaded: status.downloaded,
        uploaded: status.uploaded,
        peers: status.peers,
    }
}

async fn make(node: Arc<Node>, request: TorrentCreateRequest, progress: Progress) -> Answered<TorrentInfo> {
    let reference = super::files::parse_content(&request.reference)?;
    if request.name.is_empty() {
        return Err(ApiError::bad("a torrent needs a name: give --name"));
    }
    if let Some(out) = request.out.as_ref().filter(|out| out.exists()) {
        return Err(ApiError::bad(format!("{} already exists; nothing was made", out.display())));
    }
    let retriever = Retriever::new(node.clone());
    let root = retriever.resolve(&reference, &[], &progress).await?;
    let lease = retriever.whole(&root, None, &progress).await?.lease;
    let store = node.store.clone();
    let (name, version, length) = (request.name.clone(), request.version, request.piece_length);
    let mut torrent = tokio::task::spawn_blocking(move || {
        let mut progress = |bytes| progress.step("hashing", bytes, None);
        create::from_root(&store, &root, &name, version, length, &mut progress)
    })
    .await??;
    torrent.trackers = request.trackers;
    record(&node, &torrent).await?;
    drop(lease);
    if let Some(out) = &request.out {
        crate::repo::write_new(out, &torrent.encode())?;
    }
    seed(&node, &torrent).await?;
    Ok(TorrentInfo {
        infohash: torrent.infohash().to_string(),
        infohash_v2: torrent.infohash_v2(),
        magnet: torrent.magnet().to_string(),
        name: request.name,
        state: if node.is_online() { "seeding" } else { "recorded" }.into(),
        cid: Some(torrent.root.to_string()),
        ..TorrentInfo::default()
    })
}

async fn record(node: &Node, torrent: &TorrentFile) -> Result<(), ApiError> {
    let torrent = torrent.clone();
    node.store
        .run(move |store| {
            let mut ingest = store.ingest(btfs_storage::Class::Own)?;
            let mut batch = store.state().batch();
            torrent.record(store, &mut ingest, &mut batch)?;
            ingest.finish(batch)
        })
        .await?;
    Ok(())
}

/// Seeds a recorded torrent, if BitTorrent runs; else the next daemon does.
pub async fn seed(node: &Node, torrent: &TorrentFile) -> Result<(), ApiError> {
    if let Ok(engine) = node.services().and_then(|services| services.torrents()) {
        engine.seed(torrent.infohash()).await?;
    }
    Ok(())
}

async fn add(node: &Node, request: TorrentAddRequest) -> Answered<TorrentInfo> {
    let reference: Reference = request.reference.parse().map_err(ApiError::bad)?;
    let source = fetching::source(&reference).map_err(ApiError::bad)?;
    let peers = fetching::peers(&request.peers).map_err(ApiError::bad)?;
    let engine = node.services()?.torrents()?;
    let id = engine.add(source, peers, request.trackers, Default::default()).await?;
    Ok(info(engine.status(&id)?))
}

fn list(node: &Node, request: TorrentListRequest) -> Answered<TorrentList> {
    let engine = node.services()?.torrents()?;
    let torrents = match &request.infohash {
        Some(text) => vec![engine.status(&parse_infohash(text)?).map_err(ApiError::not_found)?],
        None => engine.list(),
    };
    Ok(TorrentList { torrents: torrents.into_iter().map(info).collect() })
}

async fn remove(node: &Node, infohash: &str) -> Answered<TorrentInfo> {
    let id = parse_infohash(infohash)?;
    let engine = node.services()?.torrents()?;
    let status = engine.status(&id).map_err(ApiError::not_found)?;
    engine.remove(id).await?;
    Ok(TorrentInfo { state: "removed".into(), ..info(status) })
}
