//! Making pins whole again: what they lack is fetched like anything else, verified, and kept in the same step.

use std::sync::Arc;

use btfs_storage::{Incomplete, PinKind};

use super::sink::Sink;
use super::{RetrieveError, Retriever};
use crate::api::call::Progress;
use crate::node::Node;

/// Fetches what a pin lacks. What a list lacks is looked for by its own blocks, since nothing else is known of them.
pub async fn repair(node: &Arc<Node>, found: &Incomplete, progress: &Progress) -> Result<(), RetrieveError> {
    let retriever = Retriever::new(node.clone());
    let pin = &found.pin;
    match pin.kind {
        PinKind::Recursive => {
            retriever.whole(&pin.root, Some(pin.clone()), progress).await?;
        }
        PinKind::Direct => retriever.keep_block(&pin.root, pin.clone()).await?,
        PinKind::List => {
            let class = pin.class;
            let sink = Sink::start(&node.store, class)?;
            for cid in &found.lacks {
                let block = Retriever::new(node.clone()).block(cid).await?;
                sink.put(*cid, block).await?;
            }
            sink.finish(|_| Ok(())).await?;
        }
    }
    Ok(())
}
