//! Files by content: `get`, `cat`, `ls`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use btfs_storage::read::{self, Kind, Outward, Packing, ReadError};
use btfs_storage::{Cid, Class, Ingest, Pin, PinKind, StoreError};
use serde::{Deserialize, Serialize};

use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::calls::absolute;
use crate::node::Node;
use crate::retrieve::{Reference, RetrieveError, Retriever};

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
    /// Write a tar archive instead of files and directories.
    pub archive: bool,
    /// Compress by gzip: the archive, or the one file; a directory becomes an archive.
    pub compress: bool,
    /// How hard, from 1 to 9; default: 6.
    pub compression_level: Option<u32>,
    /// What becomes of symlinks that lead out of the target: they are refused (default), left out or kept.
    #[serde(default)]
    pub symlinks: Outward,
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

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<GetRequest, _, _>(router, get);
    let router =
        route::<LsRequest, _, _>(
            router,
            |node, request, _| async move { ls(&node, &request.reference).await },
        );
    router.route("/api/v1/cat", axum::routing::post(cat))
}

/// The pin that a user's own root gets.
pub fn own_pin(root: Cid, name: Option<String>, kind: PinKind) -> Pin {
    Pin { id: format!("own:{root}").into(), kind, root, class: Class::Own, name, expires: None }
}

/// The pin of a root that is kept and not announced.
pub fn private_pin(root: Cid, name: Option<String>) -> Pin {
    Pin { id: format!("private:{root}").into(), ..own_pin(root, name, PinKind::Recursive) }
}

/// Tells the DHT that this node has `root`, without waiting for it. What is stored while no daemon runs is told by
/// the next one.
pub(super) async fn announce(node: &Node, root: Cid) {
    let Ok(host) = node.host() else { return };
    let host = host.clone();
    tokio::spawn(async move {
        if let Err(error) = host.provide(*root.hash()).await {
            tracing::warn!(%root, %error, "not announced");
        }
    });
}

/// No longer tells the DHT that this node has `root`, unless something else keeps it.
pub(super) async fn withdraw(node: &Node, root: Cid) -> Result<(), ApiError> {
    let kept = node.store.run(move |store| store.is_pinned_root(&root)).await?;
    if let Ok(host) = node.host()
        && !kept
        && let Err(error) = host.unprovide(*root.hash()).await
    {
        tracing::warn!(%root, %error, "still announced");
    }
    Ok(())
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

pub(super) fn retrieve_error(error: RetrieveError) -> ApiError {
    match error {
        RetrieveError::NoSuchPath(_) => ApiError::not_found(error),
        RetrieveError::NotFound { .. } => {
            ApiError { status: StatusCode::GATEWAY_TIMEOUT, message: error.to_string() }
        }
        RetrieveError::Offline { .. } => ApiError::unavailable(error),
        other => other.into(),
    }
}

/// Fetches a reference into the file system.
async fn get(node: Arc<Node>, request: GetRequest, progress: Progress) -> Answered<Got> {
    let reference = parse_reference(&request.reference)?;
    let target = request.target.clone();
    absolute(&target)?;
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
    let (mut blocks_fetched, mut leaves_from_parity, mut damaged) = (0, 0, HashSet::new());
    let size = loop {
        let pin = request.pin.then(|| own_pin(cid, None, PinKind::Recursive));
        let fetched = retriever.whole(&cid, pin, &progress).await.map_err(retrieve_error)?;
        blocks_fetched += fetched.from_network;
        leaves_from_parity += fetched.from_parity;
        let name = name_in_archive(&reference, &cid);
        match write_out(&node, &retriever, cid, name, &request, fetched.lease, &progress).await? {
            Ok(size) => break size,
            // It was put aside, so that it is had anew now.
            Err(ReadError::Store(StoreError::Corrupt { cid })) if damaged.insert(cid) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if request.pin {
        announce(&node, cid).await;
    }
    Ok(Got { cid: cid.to_string(), path: target, size, blocks_fetched, leaves_from_parity })
}

/// Writes what is here into the file system; bytes of content. On an error there is nothing.
async fn write_out(
    node: &Node,
    retriever: &Retriever,
    cid: Cid,
    name: String,
    request: &GetRequest,
    lease: Ingest,
    progress: &Progress,
) -> Answered<Result<u64, ReadError>> {
    let outward = request.symlinks;
    let packing = packing(retriever, &cid, request.archive, request.compress, request.compression_level);
    let packing = packing.await?.map(|packing| Packing { outward, ..packing });
    let (store, path, progress) = (node.store.clone(), request.target.clone(), progress.clone());
    let write = move || {
        let mut size = 0;
        let mut step = |bytes| {
            size = bytes;
            progress.step("writing", bytes, None);
        };
        let written = match packing {
            Some(packing) => read::pack_to_file(&store, &cid, &name, packing, &path, &mut step),
            None => read::export(&store, &cid, &path, outward, &mut step),
        };
        drop(lease);
        written.map(|()| size)
    };
    Ok(tokio::task::spawn_blocking(write).await?)
}

/// How content is packed that is asked for so; `None` if it is not to be packed.
async fn packing(
    retriever: &Retriever,
    cid: &Cid,
    archive: bool,
    compress: bool,
    level: Option<u32>,
) -> Result<Option<Packing>, ApiError> {
    if !archive && !compress {
        return Ok(None);
    }
    let level = match level.unwrap_or(6) {
        level @ 1..=9 => level,
        level => return Err(ApiError::bad(format!("{level} is no compression level; they go from 1 to 9"))),
    };
    let tar = archive || retriever.stat(cid).await.map_err(retrieve_error)?.kind != Kind::File;
    Ok(Some(Packing { tar, outward: Outward::Refuse, gzip: compress.then_some(level) }))
}

/// What content is called in an archive: the last component of its path, or its CID.
fn name_in_archive(reference: &Reference, cid: &Cid) -> String {
    let last = match reference {
        Reference::Ipfs { path, .. } => path.rsplit('/').find(|name| !matches!(*name, "" | "." | "..")),
        _ => None,
    };
    last.map_or_else(|| cid.to_string(), str::to_owned)
}

/// What a packed stream is asked with, as in Kubo's `get`.
#[derive(Debug, Default)]
pub struct PackQuery {
    /// CID or /ipfs path.
    pub reference: String,
    /// Compressed by gzip.
    pub compress: bool,
    /// A tar archive though it is one compressed file.
    pub archive: bool,
    /// How hard it is compressed.
    pub level: Option<u32>,
}

/// Content as one stream: a tar archive, or one file compressed. The stream breaks off if it cannot be completed.
pub async fn packed_content(node: Arc<Node>, query: PackQuery) -> Result<Response, ApiError> {
    let reference = parse_content(&query.reference)?;
    let retriever = Retriever::new(node.clone());
    let cid = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
    let fetched = retriever.whole(&cid, None, &Progress::default()).await.map_err(retrieve_error)?;
    let archive = query.archive || !query.compress;
    let packing = packing(&retriever, &cid, archive, query.compress, query.level).await?;
    let packing = packing.unwrap_or(Packing { tar: true, outward: Outward::Refuse, gzip: None });
    let name = name_in_archive(&reference, &cid);
    let store = node.store.clone();
    let body = super::body::written(move |out| {
        let packed = read::pack(&store, &cid, &name, packing, out, &mut |_| {});
        drop(fetched.lease);
        packed
    });
    let media = if packing.gzip.is_some() { "application/gzip" } else { "application/x-tar" };
    Ok(([(axum::http::header::CONTENT_TYPE, media)], body).into_response())
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
