//! `dag`, `block`, `refs` and `files/stat` of `/api/v0`: Kubo's calls in Kubo's shapes.

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Multipart, RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use btfs_storage::Bytes;
use futures::TryStreamExt;
use serde_json::{Value, json};

use super::super::call::{ApiError, Progress};
use super::super::query::Arguments;
use super::Answer;
use crate::calls::{block, car, dag, refs, stat};
use crate::node::Node;

/// Parts of one `put`, at most: each may take [`block::MAX_INPUT`] bytes of memory.
const MAX_PARTS: usize = 16;

/// The routes. Uploads have limits of their own.
pub fn routes() -> Router<Arc<Node>> {
    Router::new()
        .route("/api/v0/dag/export", post(export))
        .route("/api/v0/dag/import", post(import).layer(DefaultBodyLimit::disable()))
        .route("/api/v0/dag/put", post(put).layer(DefaultBodyLimit::disable()))
        .route("/api/v0/dag/get", post(get))
        .route("/api/v0/dag/resolve", post(resolve))
        .route("/api/v0/dag/stat", post(dag_stat))
        .route("/api/v0/block/put", post(block_put).layer(DefaultBodyLimit::disable()))
        .route("/api/v0/block/get", post(block_get))
        .route("/api/v0/block/stat", post(block_stat))
        .route("/api/v0/block/rm", post(block_rm))
        .route("/api/v0/files/stat", post(files_stat))
        .route("/api/v0/refs", post(refs::refs_route))
        .route("/api/v0/refs/local", post(refs::local_route))
}

/// A CID as DAG-JSON has it.
fn link(cid: &str) -> Value {
    json!({ "/": cid })
}

/// Values one a line, as Kubo sends them.
fn lines(values: &[Value]) -> Response {
    let text: String = values.iter().map(|value| format!("{value}\n")).collect();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn export(State(node): State<Arc<Node>>, query: RawQuery) -> Result<Response, ApiError> {
    car::export(node, Arguments::parse(query).first()?).await
}

async fn import(
    State(node): State<Arc<Node>>,
    query: RawQuery,
    mut parts: Multipart,
) -> Result<Response, ApiError> {
    let arguments = Arguments::parse(query);
    let (pin, stats) = (arguments.flag("pin-roots", true)?, arguments.flag("stats", false)?);
    let mut importing = car::Importing::begin(&node.store)?;
    while let Some(part) = parts.next_field().await? {
        let content = part.map_err(std::io::Error::other);
        importing = car::import_content(importing, Box::pin(content)).await?;
    }
    let imported = car::finish(&node, importing, pin).await?;
    let mut answer: Vec<Value> = Vec::new();
    if pin {
        let root = |root: &car::ImportedRoot| json!({ "Root": { "Cid": link(&root.cid), "PinErrorMsg": root.error.as_deref().unwrap_or_default() } });
        answer.extend(imported.roots.iter().map(root));
    }
    if stats {
        answer.push(json!({ "Stats": { "BlockCount": imported.blocks, "BlockBytesCount": imported.bytes } }));
    }
    Ok(lines(&answer))
}

/// The parts of an upload, each whole; `what` says what they are for.
async fn whole_parts(mut parts: Multipart, what: &str) -> Result<Vec<Bytes>, ApiError> {
    let mut whole: Vec<Bytes> = Vec::new();
    while let Some(mut part) = parts.next_field().await? {
        if whole.len() == MAX_PARTS {
            return Err(ApiError::bad(format!("more than {MAX_PARTS} parts; nothing was stored")));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = part.chunk().await? {
            if bytes.len() + chunk.len() > block::MAX_INPUT {
                return Err(ApiError::bad(format!(
                    "{what} may have {} bytes of input; nothing was stored",
                    block::MAX_INPUT
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        whole.push(bytes.into());
    }
    if whole.is_empty() {
        return Err(ApiError::bad("the request has no file part"));
    }
    Ok(whole)
}

async fn put(State(node): State<Arc<Node>>, query: RawQuery, parts: Multipart) -> Result<Response, ApiError> {
    let arguments = Arguments::parse(query);
    let query = dag::DagPutQuery {
        input_codec: arguments.text("input-codec"),
        store_codec: arguments.text("store-codec"),
        hash: arguments.text("hash"),
        pin: arguments.flag("pin", false)?,
    };
    let mut answer = Vec::new();
    for part in whole_parts(parts, "a value").await? {
        let put = dag::put(&node, part, &query).await?;
        answer.push(json!({ "Cid": link(&put.cid) }));
    }
    Ok(lines(&answer))
}

async fn get(State(node): State<Arc<Node>>, query: RawQuery) -> Result<Response, ApiError> {
    let arguments = Arguments::parse(query);
    let reference = arguments.first()?.to_owned();
    dag::get(node, dag::DagGetQuery { reference, output_codec: arguments.text("output-codec") }).await
}

async fn resolve(State(node): State<Arc<Node>>, query: RawQuery) -> Answer {
    let at = dag::resolve(node, Arguments::parse(query).first()?).await?;
    Ok(axum::Json(json!({ "Cid": link(&at.cid), "RemPath": at.remainder })))
}

/// Numbers that are 0 are left out, as Kubo does.
async fn dag_stat(State(node): State<Arc<Node>>, query: RawQuery) -> Answer {
    let arguments = Arguments::parse(query);
    arguments.first()?;
    let request = dag::DagStatRequest { references: arguments.all().map(str::to_owned).collect() };
    let stats = dag::stat(node, request, Progress::default()).await?;
    let some = |entries: Vec<(&str, Value)>| -> Value {
        let entries = entries.into_iter().filter(|(_, value)| value.as_u64() != Some(0));
        Value::Object(entries.map(|(name, value)| (name.to_owned(), value)).collect())
    };
    let dags: Vec<Value> = stats
        .dags
        .iter()
        .map(|dag| {
            some(vec![("Cid", json!(dag.cid)), ("Size", json!(dag.size)), ("NumBlocks", json!(dag.blocks))])
        })
        .collect();
    // As Go writes it: whole numbers without a point, and nothing to divide by is nothing.
    let all = stats.total_size + stats.shared_size;
    let ratio = match all.checked_rem(stats.total_size) {
        None => json!(0),
        Some(0) => json!(all / stats.total_size),
        Some(_) => json!(all as f64 / stats.total_size as f64),
    };
    Ok(axum::Json(some(vec![
        ("UniqueBlocks", json!(stats.unique_blocks)),
        ("TotalSize", json!(stats.total_size)),
        ("SharedSize", json!(stats.shared_size)),
        ("Ratio", ratio),
        ("DagStats", json!(dags)),
    ])))
}

async fn block_put(
    State(node): State<Arc<Node>>,
    query: RawQuery,
    parts: Multipart,
) -> Result<Response, ApiError> {
    let arguments = Arguments::parse(query);
    let mhlen = arguments.get("mhlen").map(str::parse).transpose();
    let query = block::BlockPutQuery {
        cid_codec: arguments.text("cid-codec"),
        format: arguments.text("format"),
        mhtype: arguments.text("mhtype"),
        mhlen: mhlen.map_err(|_| ApiError::bad("mhlen is a number"))?,
        pin: arguments.flag("pin", false)?,
    };
    let mut answer = Vec::new();
    for part in whole_parts(parts, "a block").await? {
        let put = block::put(&node, part, &query).await?;
        answer.push(json!({ "Key": put.cid, "Size": put.size }));
    }
    Ok(lines(&answer))
}

async fn block_get(State(node): State<Arc<Node>>, query: RawQuery) -> Result<Response, ApiError> {
    block::get(node, Arguments::parse(query).first()?).await
}

async fn block_stat(State(node): State<Arc<Node>>, query: RawQuery) -> Answer {
    let stat = block::stat(node, Arguments::parse(query).first()?).await?;
    Ok(axum::Json(json!({ "Key": stat.cid, "Size": stat.size })))
}

/// Of an /ipfs path: there is no file system of the node's own.
async fn files_stat(State(node): State<Arc<Node>>, query: RawQuery) -> Answer {
    let stat = stat::stat(node, Arguments::parse(query).first()?).await?;
    Ok(axum::Json(json!({
        "Hash": stat.cid,
        "Size": stat.size,
        "CumulativeSize": stat.dag_size,
        "Blocks": stat.links,
        "Type": stat.kind,
    })))
}

async fn block_rm(State(node): State<Arc<Node>>, query: RawQuery) -> Result<Response, ApiError> {
    let arguments = Arguments::parse(query);
    arguments.first()?;
    let (force, quiet) = (arguments.flag("force", false)?, arguments.flag("quiet", false)?);
    let cids = arguments.all().map(str::to_owned).collect();
    let removed = block::remove(node, block::BlockRemoveRequest { cids, force }).await?;
    let answer = |block: &block::RemovedBlock| match &block.error {
        Some(error) => Some(json!({ "Hash": block.cid, "Error": error })),
        None => (!quiet).then(|| json!({ "Hash": block.cid })),
    };
    Ok(lines(&removed.blocks.iter().filter_map(answer).collect::<Vec<_>>()))
}
