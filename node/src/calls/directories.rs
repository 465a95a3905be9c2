//! The directories a repo keeps its blocks in: several disks, one store.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use btfs_storage::DirectoryStat;
use serde::{Deserialize, Serialize};

use super::absolute;
use crate::api::call::{Answered, Progress, route};
use crate::call;
use crate::node::Node;

/// Lists the data directories.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct DirectoriesRequest {}

/// The data directories.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DirectoriesAnswer {
    /// The repo's own first.
    pub directories: Vec<DirectoryStat>,
}

call!(DirectoriesRequest => DirectoriesAnswer, "repo/dir/ls");

/// Brings in a directory for blocks.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AddDirectoryRequest {
    /// Absolute path of a directory that is empty or not there, or of one that is being emptied or was missing.
    pub path: PathBuf,
}

/// The directory that was added.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AddDirectoryAnswer {
    /// Its real path.
    pub path: PathBuf,
}

call!(AddDirectoryRequest => AddDirectoryAnswer, "repo/dir/add");

/// Empties a directory and gives it up.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoveDirectoryRequest {
    /// Absolute path of a data directory.
    pub path: PathBuf,
}

/// The directory that was emptied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoveDirectoryAnswer {
    /// Its path.
    pub path: PathBuf,
    /// Bytes moved to other directories.
    pub bytes_moved: u64,
}

call!(RemoveDirectoryRequest => RemoveDirectoryAnswer, "repo/dir/rm");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<DirectoriesRequest, _, _>(router, |node, _, _| async move { list(&node).await });
    let router = route::<AddDirectoryRequest, _, _>(router, |node, request, _| async move {
        absolute(&request.path)?;
        let path = add(&node, request.path).await?;
        Ok(AddDirectoryAnswer { path })
    });
    route::<RemoveDirectoryRequest, _, _>(router, |node, request, progress| async move {
        let path = request.path;
        absolute(&path)?;
        let bytes_moved = drain(&node, path.clone(), progress).await?;
        Ok(RemoveDirectoryAnswer { path, bytes_moved })
    })
}

async fn list(node: &Node) -> Answered<DirectoriesAnswer> {
    let directories = node.store.run(|store| store.directories()).await?;
    Ok(DirectoriesAnswer { directories })
}

/// Brings a directory in; its real path.
pub async fn add(node: &Node, path: PathBuf) -> Answered<PathBuf> {
    blocking(node, move |store| store.add_directory(&path)).await
}

/// Empties a directory, to its end even if nobody listens any more; bytes moved.
pub async fn drain(node: &Node, path: PathBuf, progress: Progress) -> Answered<u64> {
    blocking(node, move |store| {
        store.drain_directory(&path, &mut |done, total| {
            progress.step("moving", done, Some(total));
            true
        })
    })
    .await
}

/// Runs what may take long on a thread of its own.
async fn blocking<T: Send + 'static>(
    node: &Node,
    work: impl FnOnce(&btfs_storage::Store) -> Result<T, btfs_storage::StoreError> + Send + 'static,
) -> Answered<T> {
    let store = node.store.clone();
    Ok(tokio::task::spawn_blocking(move || work(&store)).await??)
}
