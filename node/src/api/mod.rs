//! The HTTP side of a node: `/api/v1` (our calls), `/api/v0` (Kubo's RPC), the path gateway, `/metrics`.
//!
//! [`guard`] decides who may call; [`call`] turns typed requests into routes. The command line uses the same
//! router in process, behind no guard, since it opened the repo itself.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;

use crate::node::Node;

pub mod call;
pub mod gateway;
pub mod guard;
mod media;
pub mod metrics;
pub mod query;
pub mod v0;

/// Largest JSON request. Content is streamed and not bound by it.
const MAX_REQUEST: usize = 1 << 20;

fn routes(node: Arc<Node>) -> Router {
    crate::calls::routes()
        .layer(DefaultBodyLimit::max(MAX_REQUEST))
        .merge(v0::routes())
        .route("/api/v1/ready", axum::routing::get(|| async { "ok" }))
        .route("/metrics", axum::routing::get(metrics::metrics))
        .with_state(node)
}

/// The API for the process that opened the repo.
pub fn in_process(node: Arc<Node>) -> Router {
    routes(node)
}

/// The API as the network sees it.
pub fn guarded(node: Arc<Node>, guard: guard::Guard) -> Router {
    routes(node).layer(axum::middleware::from_fn_with_state(guard, guard::guard))
}
