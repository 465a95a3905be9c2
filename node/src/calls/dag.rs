//! Blocks as IPLD values: `dag put`, `get`, `resolve` and `stat`.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use btfs_storage::ipld::{self, Codec, IpldError, Resolved, Start, Value};
use btfs_storage::read::{self, ReadError};
use btfs_storage::{BlockSource, Bytes, Cid};
use serde::{Deserialize, Serialize};

use super::block::{MAX_INPUT, PutBlock, address, store_block};
use super::files::{parse_content, retrieve_error};
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;
use crate::retrieve::{Reference, Retriever};

/// How a value is stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DagPutQuery {
    /// What the input is encoded in; default dag-json.
    pub input_codec: Option<String>,
    /// What the block is encoded in; default dag-cbor.
    pub store_codec: Option<String>,
    /// The hash function of its CID; default sha2-256.
    pub hash: Option<String>,
    /// Pin it with everything below it.
    pub pin: bool,
}

/// Which value is read.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DagGetQuery {
    /// `CID/a/b/0`, the same after `/ipfs/`, or after `/ipld/` with fields of dag-pb nodes only.
    pub reference: String,
    /// What it is encoded in; default dag-json.
    pub output_codec: Option<String>,
}

/// Asks where a path leads.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DagResolveRequest {
    /// As in [`DagGetQuery`].
    pub reference: String,
}

/// Where a path leads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DagResolved {
    /// The last block on it.
    pub cid: String,
    /// The rest of the path, inside that block.
    pub remainder: String,
}

call!(DagResolveRequest => DagResolved, "dag/resolve");

/// Asks how large DAGs are.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DagStatRequest {
    /// CIDs or /ipfs paths.
    pub references: Vec<String>,
}

/// How large DAGs are.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DagStats {
    /// One by one.
    pub dags: Vec<DagStat>,
    /// Distinct blocks of all together.
    pub unique_blocks: u64,
    /// Their bytes.
    pub total_size: u64,
    /// Bytes that would be needed on top if nothing were shared between them.
    pub shared_size: u64,
}

/// How large one DAG is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DagStat {
    /// Its root.
    pub cid: String,
    /// Bytes of its distinct blocks.
    pub size: u64,
    /// How many they are.
    pub blocks: u64,
}

call!(DagStatRequest => DagStats, "dag/stat");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<DagResolveRequest, _, _>(router, |node, request, _| async move {
        resolve(node, &request.reference).await
    });
    let router = route::<DagStatRequest, _, _>(router, stat);
    router
        .route("/api/v1/dag/put", axum::routing::post(put_route))
        .route("/api/v1/dag/get", axum::routing::post(get_route))
}

async fn put_route(
    State(node): State<Arc<Node>>,
    Query(query): Query<DagPutQuery>,
    body: Body,
) -> Result<axum::Json<PutBlock>, ApiError> {
    let input = axum::body::to_bytes(body, MAX_INPUT).await?;
    Ok(axum::Json(put(&node, input, &query).await?))
}

async fn get_route(
    State(node): State<Arc<Node>>,
    Query(query): Query<DagGetQuery>,
) -> Result<Response, ApiError> {
    get(node, query).await
}

fn bad(error: IpldError) -> ApiError {
    match error {
        IpldError::NoSuchPath { .. } => ApiError::not_found(error),
        IpldError::UnknownCodec(_) | IpldError::Decode { .. } | IpldError::Encode { .. } => {
            ApiError::bad(error)
        }
        other => other.into(),
    }
}

fn codec(name: Option<&str>, default: Codec) -> Result<Codec, ApiError> {
    name.map_or(Ok(default), |name| name.parse().map_err(bad))
}

/// Stores a value as a block. What is stored is the one deterministic form of the value in its codec, whatever form it
/// came in.
pub async fn put(node: &Arc<Node>, input: Bytes, query: &DagPutQuery) -> Answered<PutBlock> {
    let from = codec(query.input_codec.as_deref(), Codec::DagJson)?;
    let to = codec(query.store_codec.as_deref(), Codec::DagCbor)?;
    let value = ipld::decode(from, &input).map_err(bad)?;
    let block = ipld::encode(to, &value).map_err(bad)?;
    let cid = address(to.code(), query.hash.as_deref(), None, &block)?;
    store_block(node, cid, block, query.pin).await
}

/// The block, and the path inside it, that a reference leads to.
async fn find(retriever: &Retriever, reference: &str) -> Answered<Resolved> {
    let (text, start) = match reference.strip_prefix("/ipld/") {
        Some(rest) => (format!("/ipfs/{rest}"), Start::Data),
        None => (reference.to_owned(), Start::Files),
    };
    let Reference::Ipfs { root, path } = parse_content(&text)? else {
        return Err(ApiError::bad(format!("`{reference}` is no CID or path")));
    };
    over_blocks(retriever, &root, move |source| ipld::resolve(source, &root, &path, start)).await
}

/// Runs `read` over the store; what it misses is fetched, and it runs again.
async fn over_blocks<T: Send + 'static>(
    retriever: &Retriever,
    root: &Cid,
    read: impl Fn(&dyn BlockSource) -> Result<T, IpldError> + Clone + Send + 'static,
) -> Answered<T> {
    let outcome = retriever.reading(root, move |source| match read(source) {
        Err(IpldError::Read(error @ (ReadError::Missing(_) | ReadError::Store(_)))) => Err(error),
        other => Ok(other),
    });
    outcome.await.map_err(retrieve_error)?.map_err(bad)
}

/// A value, or a part of one, in the codec that was asked for.
pub async fn get(node: Arc<Node>, query: DagGetQuery) -> Result<Response, ApiError> {
    let output = codec(query.output_codec.as_deref(), Codec::DagJson)?;
    let retriever = Retriever::new(node);
    let at = find(&retriever, &query.reference).await?;
    let cid = at.cid;
    let value: Value = over_blocks(&retriever, &cid, move |source| ipld::get(source, &at)).await?;
    let bytes = ipld::encode(output, &value).map_err(bad)?;
    let kind = match output {
        Codec::DagJson => "application/vnd.ipld.dag-json",
        Codec::DagCbor => "application/vnd.ipld.dag-cbor",
        Codec::DagPb | Codec::Raw => "application/vnd.ipld.raw",
    };
    Ok(([(header::CONTENT_TYPE, kind)], bytes).into_response())
}

/// Where a path leads.
pub async fn resolve(node: Arc<Node>, reference: &str) -> Answered<DagResolved> {
    let at = find(&Retriever::new(node), reference).await?;
    Ok(DagResolved { cid: at.cid.to_string(), remainder: at.remainder })
}

/// How large DAGs are, one by one and together; fetches what is missing.
pub async fn stat(node: Arc<Node>, request: DagStatRequest, progress: Progress) -> Answered<DagStats> {
    let mut stats = DagStats::default();
    let mut seen: HashSet<Vec<u8>> = HashSet::new();
    let several = request.references.len() > 1;
    for reference in &request.references {
        let retriever = Retriever::new(node.clone());
        let at = find(&retriever, reference).await?;
        if !at.remainder.is_empty() {
            return Err(ApiError::bad(format!("{reference} is a part of block {}, not a DAG", at.cid)));
        }
        let fetched = retriever.whole(&at.cid, None, &progress).await.map_err(retrieve_error)?;
        let root = at.cid;
        let counted = node.store.run(move |store| {
            let (mut size, mut blocks, mut new) = (0, 0, (0, 0));
            for block in read::walk(store, &root) {
                let (cid, bytes) = block?;
                (size, blocks) = (size + bytes, blocks + 1);
                // With one DAG the walk itself meets each block once.
                if !several || seen.insert(cid.hash().to_bytes()) {
                    new = (new.0 + bytes, new.1 + 1);
                }
            }
            Ok::<_, ReadError>((seen, size, blocks, new))
        });
        let (back, size, blocks, new) = counted.await?;
        seen = back;
        drop(fetched.lease);
        stats.dags.push(DagStat { cid: root.to_string(), size, blocks });
        stats.total_size += new.0;
        stats.unique_blocks += new.1;
        stats.shared_size += size - new.0;
    }
    Ok(stats)
}
