//! `filestore`: blocks that `add --nocopy` left in their files.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use btfs_storage::{LocatedBlock, Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;

/// Blocks looked at between two steps of progress.
const PAGE: usize = 1024;
/// Most entries that an answer lists; the counts are of all.
const MAX_LISTED: usize = 10_000;

/// Lists blocks that lie in files.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FilestoreListRequest {}

/// Checks that the files still hold their blocks; reads all of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FilestoreVerifyRequest {
    /// Forget places that do not hold their block any more.
    pub remove_bad_blocks: bool,
}

/// A block that lies in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilestoreBlock {
    /// Its CID, as raw bytes.
    pub cid: String,
    /// The file.
    pub path: PathBuf,
    /// Where it starts there, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub size: u64,
    /// What is the matter with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Blocks that lie in files; for a check, those that do not any more.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FilestoreBlocks {
    /// The first 10,000 in the order of their hashes.
    pub blocks: Vec<FilestoreBlock>,
    /// How many there are, listed or not.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many were looked at.
    pub examined: u64,
}

call!(FilestoreListRequest => FilestoreBlocks, "filestore/ls");
call!(FilestoreVerifyRequest => FilestoreBlocks, "filestore/verify");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<FilestoreListRequest, _, _>(router, |node, _, progress| async move {
        look_through(&node, progress, |_, _| Ok(Some(None))).await
    });
    route::<FilestoreVerifyRequest, _, _>(router, |node, request, progress| async move {
        look_through(&node, progress, move |store, block| verify(store, block, request.remove_bad_blocks))
            .await
    })
}

/// What is the matter with a block, if anything is.
fn verify(store: &Store, block: &LocatedBlock, remove: bool) -> Result<Option<Option<String>>, StoreError> {
    match store.check_place(block, remove) {
        Ok(()) => Ok(None),
        Err(StoreError::NotInFile { problem, .. }) => Ok(Some(Some(problem))),
        Err(error) => Err(error),
    }
}

/// Goes through all blocks that lie in files; `pick` says which are listed, and with what problem.
async fn look_through<F>(node: &Node, progress: Progress, pick: F) -> Answered<FilestoreBlocks>
where
    F: Fn(&Store, &LocatedBlock) -> Result<Option<Option<String>>, StoreError> + Send + 'static,
{
    let store = node.store.clone();
    let work = move || -> Result<FilestoreBlocks, StoreError> {
        let mut answer = FilestoreBlocks::default();
        let mut last: Option<LocatedBlock> = None;
        loop {
            let page = store.located(last.as_ref(), PAGE)?;
            for block in &page {
                answer.examined += 1;
                let Some(problem) = pick(&store, block)? else { continue };
                answer.count += 1;
                answer.bytes += u64::from(block.len);
                if answer.blocks.len() < MAX_LISTED {
                    answer.blocks.push(FilestoreBlock {
                        cid: block.cid.to_string(),
                        path: block.path.clone(),
                        offset: block.offset,
                        size: block.len.into(),
                        problem,
                    });
                }
            }
            progress.step("looking through files (blocks)", answer.examined, None);
            match page.into_iter().last() {
                Some(block) => last = Some(block),
                None => return Ok(answer),
            }
        }
    };
    tokio::task::spawn_blocking(work).await?.map_err(ApiError::from)
}
