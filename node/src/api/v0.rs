//! `/api/v0`: the part of Kubo's RPC that this node has, in Kubo's shapes, so that its clients work.
//!
//! Source: Kubo's RPC reference, <https://docs.ipfs.tech/reference/kubo/rpc/>. Each handler only translates; the
//! work is done by [`crate::calls`].

use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use btfs_storage::StoreError;
use serde::Deserialize;
use serde_json::{Value, json};

mod add;
mod dag;
mod filestore;
mod pin;

use super::call::{ApiError, Progress};
use super::query::Arguments;
use crate::calls::object::{self, AddLinkRequest, RemoveLinkRequest};
use crate::calls::{files, network, repo, setup};
use crate::node::{AGENT, Node};

/// The routes.
pub fn routes() -> Router<Arc<Node>> {
    Router::new()
        .route("/api/v0/add", post(add::add).layer(axum::extract::DefaultBodyLimit::disable()))
        .route("/api/v0/cat", post(cat))
        .route("/api/v0/get", post(get))
        .route("/api/v0/ls", post(ls))
        .route("/api/v0/object/patch/add-link", post(add_link))
        .route("/api/v0/object/patch/rm-link", post(remove_link))
        .route("/api/v0/repo/stat", post(repo_stat))
        .route("/api/v0/repo/gc", post(repo_gc))
        .route("/api/v0/swarm/peers", post(swarm_peers))
        .route("/api/v0/swarm/connect", post(swarm_connect))
        .route("/api/v0/id", post(id))
        .route("/api/v0/version", post(version))
        .route("/api/v0/shutdown", post(shutdown))
        .merge(dag::routes())
        .merge(filestore::routes())
        .merge(pin::routes())
}

type Answer = Result<axum::Json<Value>, ApiError>;

/// Why an answer that was begun breaks off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Write(#[from] std::io::Error),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Arg {
    arg: String,
    offset: u64,
    length: Option<u64>,
    archive: bool,
    compress: bool,
    compression_level: Option<u32>,
}

async fn cat(State(node): State<Arc<Node>>, Query(arg): Query<Arg>) -> Result<Response, ApiError> {
    let query = files::CatQuery { reference: arg.arg, offset: arg.offset, length: arg.length };
    files::cat_content(node, query).await
}

/// `get`: a tar stream, or as asked for.
async fn get(State(node): State<Arc<Node>>, Query(arg): Query<Arg>) -> Result<Response, ApiError> {
    let query = files::PackQuery {
        reference: arg.arg,
        compress: arg.compress,
        archive: arg.archive,
        level: arg.compression_level,
    };
    files::packed_content(node, query).await
}

/// The arguments of a request, which takes `N`.
fn exactly<const N: usize>(arguments: &Arguments) -> Result<[String; N], ApiError> {
    let values: Vec<String> = arguments.all().map(str::to_owned).collect();
    let given = values.len();
    values.try_into().map_err(|_| ApiError::bad(format!("this call takes {N} values of `arg`, not {given}")))
}

async fn add_link(State(node): State<Arc<Node>>, query: RawQuery) -> Answer {
    let arguments = Arguments::parse(query);
    let [root, name, reference] = exactly(&arguments)?;
    let create = arguments.flag("create", false)?;
    let patched =
        object::add_link(node, AddLinkRequest { root, name, reference, create, pin: false }).await?;
    Ok(axum::Json(json!({ "Hash": patched.cid })))
}

async fn remove_link(State(node): State<Arc<Node>>, query: RawQuery) -> Answer {
    let [root, name] = exactly(&Arguments::parse(query))?;
    let patched = object::remove_link(node, RemoveLinkRequest { root, name, pin: false }).await?;
    Ok(axum::Json(json!({ "Hash": patched.cid })))
}

async fn ls(State(node): State<Arc<Node>>, Query(arg): Query<Arg>) -> Answer {
    let listing = files::ls(&node, &arg.arg).await?;
    let links: Vec<Value> = listing
        .entries
        .iter()
        .map(|entry| {
            let kind = match entry.kind.as_str() {
                "directory" => 1,
                "symlink" => 4,
                _ => 2,
            };
            json!({ "Name": entry.name, "Hash": entry.cid, "Size": entry.size, "Type": kind, "Target": "" })
        })
        .collect();
    Ok(axum::Json(json!({ "Objects": [{ "Hash": listing.cid, "Links": links }] })))
}

async fn repo_stat(State(node): State<Arc<Node>>) -> Answer {
    let stat = repo::repo_stat(&node).await?;
    Ok(axum::Json(json!({
        "RepoSize": stat.disk_bytes,
        "StorageMax": stat.disk_bytes + stat.free_bytes,
        "NumObjects": stat.blocks,
        "RepoPath": node.repo.root(),
        "Version": format!("btfs-repo@{}", btfs_storage::db::SCHEMA),
    })))
}

/// A stream of what was removed, which is not listed here: an empty one.
async fn repo_gc(State(node): State<Arc<Node>>) -> Result<impl IntoResponse, ApiError> {
    repo::gc(&node, repo::GcRequest::default(), Progress::default()).await?;
    Ok(([(header::CONTENT_TYPE.as_str(), "application/json"), ("x-chunked-output", "1")], ""))
}

async fn swarm_peers(State(node): State<Arc<Node>>) -> Answer {
    let peers: Vec<Value> = network::peers(&node)
        .await?
        .peers
        .into_iter()
        .map(|peer| json!({ "Addr": peer.address, "Peer": peer.peer, "Latency": peer.rtt_ms.map(|ms| format!("{ms}ms")) }))
        .collect();
    Ok(axum::Json(json!({ "Peers": peers })))
}

async fn swarm_connect(State(node): State<Arc<Node>>, Query(arg): Query<Arg>) -> Answer {
    let connected = network::connect(&node, &arg.arg).await?;
    Ok(axum::Json(json!({ "Strings": [format!("connect {} success", connected.peer)] })))
}

async fn id(State(node): State<Arc<Node>>) -> Answer {
    let id = setup::identity(&node).await;
    Ok(axum::Json(json!({
        "ID": id.peer,
        "PublicKey": id.public_key,
        "Addresses": id.addresses,
        "AgentVersion": id.agent,
    })))
}

async fn version() -> axum::Json<Value> {
    axum::Json(json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "Commit": "",
        "Repo": "1",
        "System": format!("{}/{}", std::env::consts::ARCH, std::env::consts::OS),
        "Golang": "",
        "Agent": AGENT,
    }))
}

async fn shutdown(State(node): State<Arc<Node>>) -> Answer {
    node.services()?;
    node.stop.cancel();
    Ok(axum::Json(json!({})))
}
