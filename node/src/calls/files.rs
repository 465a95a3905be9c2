//! Files by content: `add`, `get`, `cat`, `ls`, and pins.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use btfs_bittorrent::create::{self, TorrentFile};
use btfs_storage::import::{self, ImportOptions, Imported, Profile};
use btfs_storage::read::{self, Kind};
use btfs_storage::{BlockSink, Bytes, Cid, Class, Pin, PinKind, StoreError};
use futures::{Stream, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};

use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;
use crate::retrieve::{Reference, RetrieveError, Retriever};

/// Stores a file or directory of this machine.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AddRequest {
    /// Absolute path.
    pub path: PathBuf,
    /// `unixfs-v1-2025` (default) or `unixfs-v0-2015`.
    pub profile: Option<String>,
    /// Take hidden files of directories too.
    pub hidden: bool,
    /// Make a torrent in the same pass.
    pub torrent: bool,
    /// Only compute the CID; store nothing.
    pub only_hash: bool,
    /// Do not pin: the collector may take it.
    pub no_pin: bool,
}

/// What was stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Added {
    /// The root.
    pub cid: String,
    /// The last segment of the path.
    pub name: String,
    /// Bytes of content.
    pub size: u64,
    /// Bytes of all blocks.
    pub dag_size: u64,
    /// Distinct blocks.
    pub blocks: u64,
    /// v1 infohash, if a torrent was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infohash: Option<String>,
    /// Its magnet link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub magnet: Option<String>,
}

call!(AddRequest => Added, "add");

/// Fetches a reference into the file system.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct GetRequest {
    /// CID, /ipfs path, infohash, magnet or .torrent.
    pub reference: String,
    /// Absolute path that does not exist yet.
    pub target: PathBuf,
    /// Peers of its torrent swarm, as `IP:PORT`.
    pub peers: Vec<String>,
    /// Pin what was fetched.
    pub pin: bool,
    /// Seconds without a new block before it gives up; default: the configuration's.
    pub timeout_secs: Option<u64>,
}

/// What was fetched.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Got {
    /// The CID that was written.
    pub cid: String,
    /// Where.
    pub path: PathBuf,
    /// Bytes of content.
    pub size: u64,
    /// Blocks that came over the network.
    pub blocks_fetched: u64,
    /// Blocks rebuilt from parity.
    pub leaves_from_parity: u64,
}

call!(GetRequest => Got, "get");

/// Lists a directory.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LsRequest {
    /// CID or /ipfs path.
    pub reference: String,
}

/// A directory's entries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listing {
    /// The directory.
    pub cid: String,
    /// What is in it.
    pub entries: Vec<Entry>,
}

/// One entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What it points to.
    pub cid: String,
    /// Bytes: content of a file, all blocks of a directory.
    pub size: u64,
    /// `file`, `directory` or `symlink`.
    pub kind: String,
}

call!(LsRequest => Listing, "ls");

/// Keeps a DAG, fetching what is missing.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PinAddRequest {
    /// CID or /ipfs path.
    pub reference: String,
    /// A name for people.
    pub name: Option<String>,
    /// Only this block, not what it links to.
    pub direct: bool,
}

/// One pin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinInfo {
    /// Its id; `own:<cid>` for pins made by hand.
    pub id: String,
    /// What it keeps.
    pub cid: String,
    /// `recursive`, `direct` or `list`.
    pub kind: String,
    /// A name for people.
    pub name: Option<String>,
    /// Unix seconds after which it goes.
    pub expires: Option<u64>,
}

call!(PinAddRequest => PinInfo, "pin/add");

/// Lets a pinned thing go.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PinRemoveRequest {
    /// CID or /ipfs path.
    pub reference: String,
}

call!(PinRemoveRequest => PinInfo, "pin/rm");

/// Lists the pins.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct PinListRequest {}

/// All pins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinList {
    /// In order of id.
    pub pins: Vec<PinInfo>,
}

call!(PinListRequest => PinList, "pin/ls");

/// What a stream of bytes is asked with.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct CatQuery {
    /// CID or /ipfs path.
    pub reference: String,
    /// First byte.
    pub offset: u64,
    /// At most so many bytes.
    pub length: Option<u64>,
}

/// How standard input is stored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct AddStreamQuery {
    /// As in [`AddRequest`].
    pub profile: Option<String>,
    /// As in [`AddRequest`].
    pub only_hash: bool,
    /// As in [`AddRequest`].
    pub no_pin: bool,
}

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<AddRequest, _, _>(router, add);
    let router = route::<GetRequest, _, _>(router, get);
    let router =
        route::<LsRequest, _, _>(
            router,
            |node, request, _| async move { ls(&node, &request.reference).await },
        );
    let router = route::<PinAddRequest, _, _>(router, pin_add);
    let router = route::<PinRemoveRequest, _, _>(router, |node, request, _| async move {
        pin_remove(&node, &request.reference).await
    });
    let router = route::<PinListRequest, _, _>(router, |node, _, _| async move { pin_list(&node) });
    router
        .route("/api/v1/cat", axum::routing::post(cat))
        .route("/api/v1/add-stream", axum::routing::post(add_stream))
}

/// The profile of a name; the default one without.
pub fn profile(name: Option<&str>) -> Result<Profile, ApiError> {
    match name {
        None => Ok(Profile::V1_2025),
        Some(name) => Profile::by_name(name).ok_or_else(|| {
            ApiError::bad(format!(
                "there is no profile `{name}`; there are unixfs-v1-2025 and unixfs-v0-2015"
            ))
        }),
    }
}

/// The pin that a user's own root gets.
pub fn own_pin(root: Cid, name: Option<String>, kind: PinKind) -> Pin {
    Pin { id: format!("own:{root}").into(), kind, root, class: Class::Own, name, expires: None }
}

/// Stores a file or directory of this machine.
pub async fn add(node: Arc<Node>, request: AddRequest, progress: Progress) -> Answered<Added> {
    if !request.path.is_absolute() {
        return Err(ApiError::bad(format!("{} is not an absolute path", request.path.display())));
    }
    let profile = profile(request.profile.as_deref())?;
    let options = ImportOptions { hidden: request.hidden, follow_root: true };
    let name = request.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let only_hash = request.only_hash;
    let total =
        std::fs::metadata(&request.path).ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len());
    let store = node.store.clone();
    let work = {
        let (request, name) = (request, name.clone());
        move || -> anyhow::Result<(Imported, Option<TorrentFile>)> {
            let mut progress = |bytes| progress.step("adding", bytes, total);
            if request.only_hash {
                let done =
                    import::import_path(&request.path, &profile, &options, &mut Nowhere, &mut progress)?;
                return Ok((done, None));
            }
            let mut ingest = store.ingest(Class::Own)?;
            let mut hasher = match request.torrent {
                true => Some(create::Hasher::for_path(&request.path, &profile, &options, &name)?),
                false => None,
            };
            let done = match &mut hasher {
                Some(hasher) => import::import_path_observed(
                    &request.path,
                    &profile,
                    &options,
                    &mut ingest,
                    &mut progress,
                    hasher,
                )?,
                None => import::import_path(&request.path, &profile, &options, &mut ingest, &mut progress)?,
            };
            let mut batch = store.state().batch();
            let torrent = hasher.map(|hasher| hasher.finish(done.root)).transpose()?;
            if let Some(torrent) = &torrent {
                torrent.record(&store, &mut ingest, &mut batch)?;
            }
            if !request.no_pin {
                store.pin(&mut batch, &own_pin(done.root, Some(name), PinKind::Recursive))?;
            }
            ingest.finish(batch)?;
            Ok((done, torrent))
        }
    };
    let (done, torrent) = tokio::task::spawn_blocking(work).await??;
    if let Some(torrent) = &torrent {
        super::torrent::seed(&node, torrent).await?;
    }
    if !only_hash {
        announce(&node, done.root).await;
    }
    Ok(added(done, name, torrent.as_ref()))
}

fn added(done: Imported, name: String, torrent: Option<&TorrentFile>) -> Added {
    Added {
        cid: done.root.to_string(),
        name,
        size: done.size,
        dag_size: done.dag_size,
        blocks: done.blocks,
        infohash: torrent.map(|torrent| torrent.infohash().to_string()),
        magnet: torrent.map(|torrent| torrent.magnet().to_string()),
    }
}

/// Keeps nothing: for `--only-hash`.
struct Nowhere;

impl BlockSink for Nowhere {
    fn put(&mut self, _: &Cid, _: Bytes) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Tells the DHT that this node has `root`, without waiting for it. What is stored while no daemon runs is told by
/// the next one.
async fn announce(node: &Node, root: Cid) {
    let Ok(host) = node.host() else { return };
    let host = host.clone();
    tokio::spawn(async move {
        if let Err(error) = host.provide(*root.hash()).await {
            tracing::warn!(%root, %error, "not announced");
        }
    });
}

/// No longer tells the DHT that this node has `root`, unless something else keeps it.
async fn withdraw(node: &Node, root: Cid) -> Result<(), ApiError> {
    let kept = node.store.run(move |store| store.is_pinned_root(&root)).await?;
    if let Ok(host) = node.host()
        && !kept
        && let Err(error) = host.unprovide(*root.hash()).await
    {
        tracing::warn!(%root, %error, "still announced");
    }
    Ok(())
}

async fn add_stream(
    State(node): State<Arc<Node>>,
    Query(query): Query<AddStreamQuery>,
    body: Body,
) -> Result<axum::Json<Added>, ApiError> {
    let content = body.into_data_stream().map_err(std::io::Error::other);
    Ok(axum::Json(add_content(&node, query, Box::pin(content)).await?))
}

/// Stores a stream of bytes as one file.
pub async fn add_content<S>(node: &Arc<Node>, query: AddStreamQuery, content: S) -> Answered<Added>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let profile = profile(query.profile.as_deref())?;
    let (pieces, received) = tokio::sync::mpsc::channel(Pieces::WAITING);
    let store = node.store.clone();
    let work = tokio::task::spawn_blocking(move || -> anyhow::Result<Imported> {
        let reader = Pieces { received, current: Bytes::new(), ended: false };
        if query.only_hash {
            return Ok(import::import_reader(reader, &profile, &mut Nowhere, &mut |_| {})?);
        }
        let mut ingest = store.ingest(Class::Own)?;
        let done = import::import_reader(reader, &profile, &mut ingest, &mut |_| {})?;
        let mut batch = store.state().batch();
        if !query.no_pin {
            store.pin(&mut batch, &own_pin(done.root, None, PinKind::Recursive))?;
        }
        ingest.finish(batch)?;
        Ok(done)
    });
    let mut content = content;
    while let Some(piece) = content.next().await {
        // The reader is gone only when the import failed, and that is told below.
        if pieces.send(Some(piece)).await.is_err() {
            break;
        }
    }
    // Only this says that the body is whole; a channel that closes without it is a broken upload.
    let _ = pieces.send(None).await;
    drop(pieces);
    let done = work.await??;
    if !query.only_hash {
        announce(node, done.root).await;
    }
    Ok(added(done, String::new(), None))
}

/// Pieces of a body as a blocking reader.
struct Pieces {
    received: tokio::sync::mpsc::Receiver<Option<std::io::Result<Bytes>>>,
    current: Bytes,
    ended: bool,
}

impl Pieces {
    /// Pieces between the network and the import.
    const WAITING: usize = 16;
}

impl std::io::Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.received.blocking_recv() {
                Some(Some(piece)) => self.current = piece?,
                Some(None) => self.ended = true,
                None => {
                    return Err(std::io::Error::new(
                        std::io::ErrorKind::UnexpectedEof,
                        "the upload broke off",
                    ));
                }
            }
        }
        let length = into.len().min(self.current.len());
        into[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}

/// A reference to content by its hash. Torrents are fetched by `get` and `torrent add` alone, which need the token:
/// they read files and ask trackers.
pub fn parse_content(text: &str) -> Result<Reference, ApiError> {
    match parse_reference(text)? {
        content @ Reference::Ipfs { .. } => Ok(content),
        _ => Err(ApiError::bad(format!(
            "`{text}` is no CID or /ipfs path; `btfs get` fetches torrents, `btfs torrent add` keeps them"
        ))),
    }
}

fn parse_reference(text: &str) -> Result<Reference, ApiError> {
    text.parse().map_err(ApiError::bad)
}

fn retrieve_error(error: RetrieveError) -> ApiError {
    match error {
        RetrieveError::NoSuchPath(_) => ApiError::not_found(error),
        RetrieveError::NotFound { .. } => {
            ApiError { status: StatusCode::GATEWAY_TIMEOUT, message: error.to_string() }
        }
        RetrieveError::Offline(_) => ApiError::unavailable(error),
        other => other.into(),
    }
}

/// Fetches a reference into the file system.
async fn get(node: Arc<Node>, request: GetRequest, progress: Progress) -> Answered<Got> {
    let reference = parse_reference(&request.reference)?;
    let target = request.target.clone();
    if !target.is_absolute() {
        return Err(ApiError::bad(format!("{} is not an absolute path", target.display())));
    }
    if target.symlink_metadata().is_ok() {
        return Err(ApiError::bad(format!(
            "{} already exists; nothing was fetched or written. Choose another name",
            target.display()
        )));
    }
    let mut retriever = Retriever::new(node.clone());
    if let Some(seconds) = request.timeout_secs {
        retriever = retriever.with_timeout(Duration::from_secs(seconds.max(1)));
    }
    let cid = retriever.resolve(&reference, &request.peers, &progress).await.map_err(retrieve_error)?;
    let pin = request.pin.then(|| own_pin(cid, None, PinKind::Recursive));
    let fetched = retriever.whole(&cid, pin, &progress).await.map_err(retrieve_error)?;
    let store = node.store.clone();
    let path = target.clone();
    let lease = fetched.lease;
    let size = tokio::task::spawn_blocking(move || {
        let mut size = 0;
        let written = read::export(&store, &cid, &path, &mut |bytes| {
            size = bytes;
            progress.step("writing", bytes, None);
        });
        drop(lease);
        written.map(|()| size)
    })
    .await??;
    if request.pin {
        announce(&node, cid).await;
    }
    Ok(Got {
        cid: cid.to_string(),
        path: target,
        size,
        blocks_fetched: fetched.from_network,
        leaves_from_parity: fetched.from_parity,
    })
}

async fn cat(State(node): State<Arc<Node>>, Query(query): Query<CatQuery>) -> Result<Response, ApiError> {
    cat_content(node, query).await
}

/// The bytes of a file, as they come.
pub async fn cat_content(node: Arc<Node>, query: CatQuery) -> Result<Response, ApiError> {
    let reference = parse_content(&query.reference)?;
    let retriever = Retriever::new(node);
    let cid = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
    let stat = retriever.stat(&cid).await.map_err(retrieve_error)?;
    if stat.kind != Kind::File {
        return Err(ApiError::bad(format!(
            "{cid} is a {}; `btfs ls` lists it, `btfs get` fetches it",
            stat.kind
        )));
    }
    let length = query.length.unwrap_or(u64::MAX);
    let content = retriever.content(&cid, query.offset, length).await.map_err(retrieve_error)?;
    Ok(Body::from_stream(content).into_response())
}

/// Lists a directory.
pub async fn ls(node: &Arc<Node>, reference: &str) -> Answered<Listing> {
    let reference = parse_content(reference)?;
    let retriever = Retriever::new(node.clone());
    let cid = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
    let stat = retriever.stat(&cid).await.map_err(retrieve_error)?;
    let entries = match stat.kind {
        Kind::Directory => retriever.list(&cid).await.map_err(retrieve_error)?,
        // A file lists as nothing below it, as Kubo has it.
        _ => Vec::new(),
    };
    let entries = entries
        .into_iter()
        .map(|entry| Entry {
            name: entry.name,
            cid: entry.cid.to_string(),
            size: entry.size.filter(|_| entry.kind != Kind::Directory).unwrap_or(entry.dag_size),
            kind: entry.kind.to_string(),
        })
        .collect();
    Ok(Listing { cid: cid.to_string(), entries })
}

fn pin_info(pin: &Pin) -> PinInfo {
    PinInfo {
        id: pin.id.to_string(),
        cid: pin.root.to_string(),
        kind: match pin.kind {
            PinKind::Recursive => "recursive",
            PinKind::Direct => "direct",
            PinKind::List => "list",
        }
        .into(),
        name: pin.name.clone(),
        expires: pin.expires,
    }
}

/// Keeps a DAG, fetching what is missing.
pub async fn pin_add(node: Arc<Node>, request: PinAddRequest, progress: Progress) -> Answered<PinInfo> {
    let reference = parse_content(&request.reference)?;
    let retriever = Retriever::new(node.clone());
    let cid = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
    let kind = if request.direct { PinKind::Direct } else { PinKind::Recursive };
    let pin = own_pin(cid, request.name, kind);
    if request.direct {
        retriever.keep_block(&cid, pin.clone()).await.map_err(retrieve_error)?;
    } else {
        retriever.whole(&cid, Some(pin.clone()), &progress).await.map_err(retrieve_error)?;
    }
    announce(&node, cid).await;
    Ok(pin_info(&pin))
}

/// Lets a pinned thing go.
pub async fn pin_remove(node: &Arc<Node>, reference: &str) -> Answered<PinInfo> {
    let reference = parse_content(reference)?;
    let cid = Retriever::local(node.clone())
        .resolve(&reference, &[], &Progress::default())
        .await
        .map_err(retrieve_error)?;
    let pin = node.store.run(move |store| {
        let id = own_pin(cid, None, PinKind::Recursive).id;
        let Some(pin) = store.pin_get(&id)? else { return Ok(None) };
        let mut batch = store.state().batch();
        store.unpin(&mut batch, &id)?;
        store.state().commit(batch)?;
        Ok::<_, StoreError>(Some(pin))
    });
    match pin.await? {
        Some(pin) => {
            withdraw(node, pin.root).await?;
            Ok(pin_info(&pin))
        }
        None => Err(ApiError::not_found(format!("{cid} is not pinned by you; `btfs pin ls` lists the pins"))),
    }
}

/// Lists the pins.
pub fn pin_list(node: &Node) -> Answered<PinList> {
    Ok(PinList { pins: node.store.pins()?.iter().map(pin_info).collect() })
}
