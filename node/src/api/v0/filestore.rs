//! `filestore ls` and `verify`: blocks that lie in files.
//!
//! Source: Kubo's RPC reference; the numbers of `Status` are those of its filestore.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use btfs_storage::{Cid, LocatedBlock, Store, StoreError};
use serde_json::json;

use super::Broken;
use crate::api::call::ApiError;
use crate::api::query::Arguments;
use crate::calls::body;
use crate::node::Node;

/// The block is where it was.
const OK: u32 = 0;
/// The file cannot be read, or is not there.
const FILE_ERROR: u32 = 10;
const NO_FILE: u32 = 11;
/// It holds other bytes.
const CHANGED: u32 = 12;
/// Nothing is known of such a block.
const NO_KEY: u32 = 30;

/// Blocks looked up at once.
const PAGE: usize = 256;

pub fn routes() -> Router<Arc<Node>> {
    Router::new().route("/api/v0/filestore/ls", post(ls)).route("/api/v0/filestore/verify", post(verify))
}

async fn ls(State(node): State<Arc<Node>>, query: RawQuery) -> Result<Response, ApiError> {
    told(&node, query, |_, _| Ok((OK, String::new())))
}

async fn verify(State(node): State<Arc<Node>>, query: RawQuery) -> Result<Response, ApiError> {
    told(&node, query, |store, block| match store.check_place(block, false) {
        Ok(()) => Ok((OK, String::new())),
        Err(StoreError::NotInFile { problem, path, .. }) => {
            let status = match () {
                () if !path.exists() => NO_FILE,
                () if problem.starts_with("cannot") => FILE_ERROR,
                () => CHANGED,
            };
            Ok((status, problem))
        }
        Err(error) => Err(error),
    })
}

/// A line for every block, or for those that are asked for; `look` says what is the matter with one.
fn told(
    node: &Arc<Node>,
    query: RawQuery,
    look: impl Fn(&Store, &LocatedBlock) -> Result<(u32, String), StoreError> + Send + 'static,
) -> Result<Response, ApiError> {
    let arguments = Arguments::parse(query);
    let asked: Vec<Cid> =
        arguments.all().map(|arg| arg.parse().map_err(ApiError::bad)).collect::<Result<_, _>>()?;
    let store = node.store.clone();
    let body: Body = body::written(move |out| {
        if asked.is_empty() {
            return list(&store, None, out, &look).map(drop);
        }
        for cid in asked {
            if list(&store, Some(cid), out, &look)? == 0 {
                let absent = LocatedBlock { cid, path: PathBuf::new(), offset: 0, len: 0 };
                line(out, &absent, NO_KEY, "it does not lie in a file")?;
            }
        }
        Ok::<_, Broken>(())
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Tells of the places of one block, or of all; answers how many.
fn list(
    store: &Store,
    of: Option<Cid>,
    out: &mut dyn Write,
    look: &impl Fn(&Store, &LocatedBlock) -> Result<(u32, String), StoreError>,
) -> Result<u64, Broken> {
    // No path is before any.
    let mut after = of.map(|cid| LocatedBlock { cid, path: PathBuf::new(), offset: 0, len: 0 });
    let mut count = 0;
    loop {
        let page = store.located(after.as_ref(), PAGE)?;
        if page.is_empty() {
            return Ok(count);
        }
        for block in page {
            if of.is_some_and(|of| of.hash() != block.cid.hash()) {
                return Ok(count);
            }
            let (status, problem) = look(store, &block)?;
            line(out, &block, status, &problem)?;
            count += 1;
            after = Some(block);
        }
    }
}

fn line(out: &mut dyn Write, block: &LocatedBlock, status: u32, problem: &str) -> std::io::Result<()> {
    let line = json!({
        "Status": status,
        "ErrorMsg": problem,
        "Key": { "/": block.cid.to_string() },
        "FilePath": block.path.to_string_lossy(),
        "Offset": block.offset,
        "Size": block.len,
    });
    writeln!(out, "{line}")
}
