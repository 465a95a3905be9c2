//! Single blocks: `block get`, `put`, `stat`, `rm`.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use btfs_storage::hash::Function;
use btfs_storage::ipld::Codec;
use btfs_storage::{BlockSink, Bytes, Cid, Class, MAX_BLOCK, PinKind, Removal, StoreError, hash};
use serde::{Deserialize, Serialize};

use super::files::{announce, own_pin, parse_content, retrieve_error};
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;
use crate::retrieve::Retriever;

/// Largest body of `block put` and `dag put`: a full block written as dag-json takes a third more, and white space.
pub const MAX_INPUT: usize = 4 << 20;
/// Multicodec of plain CBOR, without links.
const CBOR: u64 = 0x51;
/// Multicodec of plain JSON, without links.
const JSON: u64 = 0x0200;

/// How bytes are stored as a block.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockPutQuery {
    /// The codec in its CID: raw (default), dag-pb, dag-cbor, dag-json, cbor, json. The bytes are not looked at.
    pub cid_codec: Option<String>,
    /// The old form of `cid_codec`, with `v0` for a CIDv0.
    pub format: Option<String>,
    /// The hash function of its CID: sha2-256 (default), another that blocks may be named by, or identity.
    pub mhtype: Option<String>,
    /// Bytes of the digest; -1 (default) is the function's own length.
    pub mhlen: Option<i64>,
    /// Pin it with everything below it.
    pub pin: bool,
}

/// What was stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PutBlock {
    /// Its CID.
    pub cid: String,
    /// Its bytes.
    pub size: u64,
}

/// Which block is read.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockGetQuery {
    /// CID or /ipfs path.
    pub reference: String,
}

/// Asks for a block's size.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockStatRequest {
    /// CID or /ipfs path.
    pub cid: String,
}

/// A block's size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlockStat {
    /// Its CID.
    pub cid: String,
    /// Its bytes.
    pub size: u64,
}

call!(BlockStatRequest => BlockStat, "block/stat");

/// Removes blocks from the store.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockRemoveRequest {
    /// CIDs or /ipfs paths.
    pub cids: Vec<String>,
    /// Blocks that are not here are no errors.
    pub force: bool,
}

/// What became of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlocksRemoved {
    /// One by one.
    pub blocks: Vec<RemovedBlock>,
}

/// What became of one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemovedBlock {
    /// Its CID.
    pub cid: String,
    /// Why it is still there, or never was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

call!(BlockRemoveRequest => BlocksRemoved, "block/rm");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<BlockRemoveRequest, _, _>(router, |node, request, _| remove(node, request));
    route::<BlockStatRequest, _, _>(router, |node, request, _| async move { stat(node, &request.cid).await })
        .route("/api/v1/block/put", axum::routing::post(put_route))
        .route("/api/v1/block/get", axum::routing::post(get_route))
}

async fn put_route(
    State(node): State<Arc<Node>>,
    Query(query): Query<BlockPutQuery>,
    body: Body,
) -> Result<axum::Json<PutBlock>, ApiError> {
    let input = axum::body::to_bytes(body, MAX_INPUT).await?;
    Ok(axum::Json(put(&node, input, &query).await?))
}

async fn get_route(
    State(node): State<Arc<Node>>,
    Query(query): Query<BlockGetQuery>,
) -> Result<Response, ApiError> {
    get(node, &query.reference).await
}

/// The CID of bytes that become a block, by the hash function of a name and with a digest of `length` bytes; without one,
/// or with -1, of the function's own.
pub(super) fn address(
    codec: u64,
    function: Option<&str>,
    length: Option<i64>,
    block: &[u8],
) -> Answered<Cid> {
    if block.len() > MAX_BLOCK {
        return Err(ApiError::bad(format!(
            "the block would have {} bytes; blocks may have {MAX_BLOCK}, since no peer takes larger ones. \
             Files of any size are cut into blocks by `btfs add`",
            block.len()
        )));
    }
    let name = function.filter(|name| !name.is_empty()).unwrap_or("sha2-256");
    let length = length.filter(|length| *length != -1);
    if name.eq_ignore_ascii_case("identity") {
        return identity(codec, length, block);
    }
    let function: Function = name.parse().map_err(ApiError::bad)?;
    let Some(length) = length else { return Ok(Cid::new_v1(codec, function.multihash(block))) };
    let hash = usize::try_from(length).ok().and_then(|length| function.multihash_of_length(block, length));
    let hash = hash.ok_or_else(|| {
        let lengths = function.lengths();
        let (least, most) = (lengths.start(), lengths.end());
        ApiError::bad(format!("a digest of {function} has {least} to {most} bytes in a CID, not {length}"))
    })?;
    Ok(Cid::new_v1(codec, hash))
}

/// A CID that carries the bytes.
fn identity(codec: u64, length: Option<i64>, block: &[u8]) -> Answered<Cid> {
    let (most, all) = (hash::MAX_DIGEST, block.len());
    if all > most {
        return Err(ApiError::bad(format!("a CID can carry {most} bytes, and these are {all}")));
    }
    if length.is_some_and(|length| length != all as i64) {
        return Err(ApiError::bad(format!("the identity of these bytes has {all}: mhlen is that, or -1")));
    }
    Ok(hash::cid_from_digest(codec, hash::IDENTITY, block))
}

fn put_address(query: &BlockPutQuery, block: &[u8]) -> Answered<Cid> {
    let name = match (query.format.as_deref().filter(|name| !name.is_empty()), query.cid_codec.as_deref()) {
        (Some(_), Some(other)) if other != "raw" => {
            return Err(ApiError::bad("cid-codec and its old form, format, are not given together"));
        }
        (Some("v0" | "protobuf"), _) => "dag-pb",
        (Some("cbor"), _) => "dag-cbor",
        (Some(old), _) => old,
        (None, new) => new.unwrap_or("raw"),
    };
    let codec = match name {
        "cbor" => CBOR,
        "json" => JSON,
        name => name.parse::<Codec>().map_err(ApiError::bad)?.code(),
    };
    let cid = address(codec, query.mhtype.as_deref(), query.mhlen, block)?;
    if query.format.as_deref() == Some("v0") {
        return Cid::new_v0(*cid.hash()).map_err(ApiError::bad);
    }
    Ok(cid)
}

/// Stores bytes as a block, as they are.
pub async fn put(node: &Arc<Node>, block: Bytes, query: &BlockPutQuery) -> Answered<PutBlock> {
    let cid = put_address(query, &block)?;
    store_block(node, cid, block, query.pin).await
}

/// Stores a block durably and, if asked, pins it with everything below it, which is fetched.
pub(super) async fn store_block(node: &Arc<Node>, cid: Cid, block: Bytes, pin: bool) -> Answered<PutBlock> {
    let size = block.len() as u64;
    // Held until the pin is there, so that no collection comes between.
    let held = node.store.run(move |store| {
        let mut ingest = store.ingest(Class::Own)?;
        ingest.put(&cid, block)?;
        ingest.checkpoint(store.state().batch())?;
        Ok::<_, StoreError>(ingest)
    });
    let held = held.await?;
    if pin {
        let pin = own_pin(cid, None, PinKind::Recursive);
        let retriever = Retriever::new(node.clone());
        retriever.whole(&cid, Some(pin), &Progress::default()).await.map_err(retrieve_error)?;
        announce(node, cid).await;
    }
    drop(held);
    Ok(PutBlock { cid: cid.to_string(), size })
}

async fn find(node: Arc<Node>, reference: &str) -> Answered<(Cid, Bytes)> {
    let reference = parse_content(reference)?;
    let retriever = Retriever::new(node);
    let cid = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
    Ok((cid, retriever.block(&cid).await.map_err(retrieve_error)?))
}

/// A block's bytes; fetched if it is not here.
pub async fn get(node: Arc<Node>, reference: &str) -> Result<Response, ApiError> {
    let (_, block) = find(node, reference).await?;
    Ok(([(header::CONTENT_TYPE, "application/vnd.ipld.raw")], Body::from(block)).into_response())
}

/// A block's size; fetched if it is not here.
pub async fn stat(node: Arc<Node>, reference: &str) -> Answered<BlockStat> {
    let (cid, block) = find(node, reference).await?;
    Ok(BlockStat { cid: cid.to_string(), size: block.len() as u64 })
}

/// Removes blocks that nothing needs. All pins are walked for it, so that it may take as long as the first half of a
/// collection.
pub async fn remove(node: Arc<Node>, request: BlockRemoveRequest) -> Answered<BlocksRemoved> {
    let local = Retriever::local(node.clone());
    let mut cids = Vec::with_capacity(request.cids.len());
    for reference in &request.cids {
        let reference = parse_content(reference)?;
        cids.push(local.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?);
    }
    let store = node.store.clone();
    let wanted = cids.clone();
    let removals = tokio::task::spawn_blocking(move || store.remove_unpinned(&wanted)).await??;
    let told = |removal: &Removal| match removal {
        Removal::Removed => None,
        Removal::Absent if request.force => None,
        Removal::Absent => Some("it is not in this store".to_owned()),
        Removal::Pinned => Some("a pin needs it; `btfs pin ls` lists the pins".to_owned()),
        Removal::InUse => Some("it is being brought in just now; try again later".to_owned()),
    };
    let blocks = cids.iter().zip(&removals);
    let blocks = blocks.map(|(cid, removal)| RemovedBlock { cid: cid.to_string(), error: told(removal) });
    Ok(BlocksRemoved { blocks: blocks.collect() })
}
