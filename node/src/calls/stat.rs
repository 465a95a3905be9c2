//! What a reference is: `files/stat`.

use std::sync::Arc;

use axum::Router;
use serde::{Deserialize, Serialize};

use super::files::{parse_content, retrieve_error};
use crate::api::call::{Answered, Progress, route};
use crate::call;
use crate::node::Node;
use crate::retrieve::Retriever;

/// Asks what a reference is; its root block is fetched if it is not here.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StatRequest {
    /// CID or /ipfs path.
    pub reference: String,
}

/// What a reference is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileStat {
    /// Its CID.
    pub cid: String,
    /// `file`, `directory` or `symlink`.
    pub kind: String,
    /// Bytes of content of a file; 0 for a directory.
    pub size: u64,
    /// Bytes of all its blocks, as its root says.
    pub dag_size: u64,
    /// Links of its root block.
    pub links: u64,
}

call!(StatRequest => FileStat, "files/stat");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    route::<StatRequest, _, _>(router, |node, request, _| async move { stat(node, &request.reference).await })
}

/// What a reference is.
pub async fn stat(node: Arc<Node>, reference: &str) -> Answered<FileStat> {
    let reference = parse_content(reference)?;
    let retriever = Retriever::new(node);
    let cid = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
    let stat = retriever.stat(&cid).await.map_err(retrieve_error)?;
    Ok(FileStat {
        cid: cid.to_string(),
        kind: stat.kind.to_string(),
        size: stat.size,
        dag_size: stat.dag_size,
        links: stat.links,
    })
}
