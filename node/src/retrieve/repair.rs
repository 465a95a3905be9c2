//! Making pins whole again: what they lack is rebuilt or fetched, verified, and kept by the pin that is there already.

use std::collections::HashSet;
use std::sync::Arc;

use btfs_storage::read::ReadError;
use btfs_storage::{Cid, Incomplete, PinId, PinKind, StoreError};
use futures::stream::StreamExt;

use super::sink::Sink;
use super::{RetrieveError, Retriever};
use crate::api::call::Progress;
use crate::node::Node;

/// Blocks asked for at once: 16 MiB of the largest common leaves.
const AT_ONCE: usize = 16;

/// Fetches what a pin lacks until it lacks nothing. The pin stays as its owner has it by now. What was fetched before an
/// error is kept.
pub async fn repair(node: &Arc<Node>, id: &PinId, progress: &Progress) -> Result<(), RetrieveError> {
    let mut fetched = HashSet::new();
    let retriever = Retriever::new(node.clone());
    while let Some(found) = examine(node, id).await? {
        if let Some(again) = found.lacks.iter().find(|cid| fetched.contains(*cid)) {
            return Err(ReadError::Store(StoreError::Corrupt { cid: *again }).into());
        }
        fetch(node, &retriever, &found, progress).await?;
        fetched = found.lacks.into_iter().collect();
    }
    Ok(())
}

async fn examine(node: &Arc<Node>, id: &PinId) -> Result<Option<Incomplete>, RetrieveError> {
    let (store, id) = (node.store.clone(), id.clone());
    // Not on the store's own threads, which serve blocks: it may take minutes.
    let examined = tokio::task::spawn_blocking(move || store.examine_one(&id)).await;
    Ok(examined.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}

/// Fetches what was named, many at once, until one cannot be had; keeps what came.
async fn fetch(
    node: &Arc<Node>,
    retriever: &Retriever,
    found: &Incomplete,
    progress: &Progress,
) -> Result<(), RetrieveError> {
    let sink = Sink::start(&node.store, found.pin.class)?;
    let asked = |cid: Cid| {
        // Who provides the root has the others; of what a list lacks nothing else is known.
        let retriever = match found.pin.kind {
            PinKind::List => Retriever::new(node.clone()),
            PinKind::Recursive | PinKind::Direct => retriever.below(&found.pin.root),
        };
        async move { (cid, retriever.block(&cid).await) }
    };
    let mut blocks = futures::stream::iter(found.lacks.clone()).map(asked).buffer_unordered(AT_ONCE);
    let (mut failed, mut bytes) = (None, 0);
    while let Some((cid, block)) = blocks.next().await {
        match block {
            Ok(block) => {
                bytes += block.len() as u64;
                progress.step("fetching", bytes, None);
                sink.put(cid, block).await;
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    drop(blocks);
    sink.finish(|_| Ok(())).await?;
    failed.map_or(Ok(()), Err)
}
