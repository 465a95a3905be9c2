//! What a node can be asked: requests, answers and their handlers, one file an area.
//!
//! A handler gets the node, the request and a place to report progress; it never knows whether the request came
//! over HTTP or from the command line in the same process. [`routes`] is the table of them all.

use std::path::Path;
use std::sync::Arc;

use axum::Router;

use crate::api::call::ApiError;
use crate::node::Node;

pub mod add;
pub mod block;
pub(crate) mod body;
pub mod car;
pub mod channel;
pub mod dag;
pub mod directories;
pub mod files;
pub mod filestore;
pub mod ledger;
pub mod market;
pub mod network;
pub mod object;
pub mod parity;
pub mod pins;
pub mod refs;
pub mod repo;
pub mod setup;
pub mod stat;
pub mod torrent;
pub mod upload;
pub mod wallet;

/// Every call of `/api/v1`.
pub fn routes() -> Router<Arc<Node>> {
    let router = Router::new();
    let router = setup::routes(router);
    let router = add::routes(router);
    let router = files::routes(router);
    let router = filestore::routes(router);
    let router = car::routes(router);
    let router = block::routes(router);
    let router = dag::routes(router);
    let router = directories::routes(router);
    let router = refs::routes(router);
    let router = stat::routes(router);
    let router = network::routes(router);
    let router = object::routes(router);
    let router = wallet::routes(router);
    let router = ledger::routes(router);
    let router = channel::routes(router);
    let router = market::routes(router);
    let router = torrent::routes(router);
    let router = pins::routes(router);
    let router = parity::routes(router);
    repo::routes(router)
}

/// Refuses a path that would mean another place to the daemon than to whoever asks.
fn absolute(path: &Path) -> Result<(), ApiError> {
    match path.is_absolute() {
        true => Ok(()),
        false => Err(ApiError::bad(format!("{} is not an absolute path", path.display()))),
    }
}
