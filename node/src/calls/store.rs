//! The local store: what it holds, its space, its collector.

use std::sync::Arc;

use axum::Router;
use btfs_storage::Class;
use serde::{Deserialize, Serialize};

use crate::api::call::{Answered, route};
use crate::call;
use crate::node::Node;

/// Asks what the store holds.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct RepoStatRequest {}

/// What the store holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RepoStatAnswer {
    /// Distinct blocks.
    pub blocks: u64,
    /// Bytes of them.
    pub live_bytes: u64,
    /// Of these, the user's own.
    pub own_bytes: u64,
    /// Of these, kept for renters.
    pub hosted_bytes: u64,
    /// Of these, fetched and not pinned.
    pub cache_bytes: u64,
    /// Promised to renters and not yet here.
    pub reserved_bytes: u64,
    /// Damaged blocks that were put aside.
    pub quarantined_blocks: u64,
    /// Bytes of the database files.
    pub disk_bytes: u64,
    /// Free on the disk.
    pub free_bytes: u64,
    /// Pins of all kinds.
    pub pins: u64,
}

call!(RepoStatRequest => RepoStatAnswer, "repo/stat");

/// Deletes what no pin keeps.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct GcRequest {}

/// What was deleted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GcAnswer {
    /// How many blocks.
    pub blocks_deleted: u64,
    /// How many bytes.
    pub bytes_deleted: u64,
}

call!(GcRequest => GcAnswer, "repo/gc");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<RepoStatRequest, _, _>(router, |node, _, _| async move { repo_stat(&node).await });
    route::<GcRequest, _, _>(router, |node, _, _| async move { gc(&node).await })
}

/// What the store holds.
pub async fn repo_stat(node: &Node) -> Answered<RepoStatAnswer> {
    let stat = node.store.run(|store| store.stat()).await?;
    let of = |class: Class| stat.classes.iter().find(|of| of.class == class).map_or(0, |of| of.bytes);
    Ok(RepoStatAnswer {
        blocks: stat.blocks,
        live_bytes: stat.bytes,
        own_bytes: of(Class::Own),
        hosted_bytes: of(Class::Hosted),
        cache_bytes: of(Class::Cache),
        reserved_bytes: stat.classes.iter().map(|of| of.reserved_bytes).sum(),
        quarantined_blocks: stat.quarantined_blocks,
        disk_bytes: stat.disk_bytes,
        free_bytes: stat.disk_free_bytes,
        pins: stat.pins,
    })
}

/// Deletes what no pin keeps, on a thread of its own: it may take long.
pub async fn gc(node: &Node) -> Answered<GcAnswer> {
    let store = node.store.clone();
    let report = tokio::task::spawn_blocking(move || store.gc()).await??;
    Ok(GcAnswer { blocks_deleted: report.freed_blocks, bytes_deleted: report.freed_bytes })
}
