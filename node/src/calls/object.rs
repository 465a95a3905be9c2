//! `object patch`: single entries of directories that are stored already.

use std::sync::Arc;

use axum::Router;
use btfs_storage::import::{Change, EditError, Edited, ImportError, edit_directory};
use btfs_storage::read::ReadError;
use btfs_storage::{Cid, Class, PinKind, Store, StoreError};
use serde::{Deserialize, Serialize};

use super::files::{announce, own_pin, parse_content, retrieve_error};
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;
use crate::retrieve::Retriever;

/// Puts an entry into a directory, in place of what has its name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AddLinkRequest {
    /// The directory: a CID or /ipfs path.
    pub root: String,
    /// The entry: a name, or a path below the directory.
    pub name: String,
    /// What it is to be: a CID or /ipfs path.
    pub reference: String,
    /// Make directories that are missing on the way.
    pub create: bool,
    /// Pin the new directory.
    pub pin: bool,
}

/// Takes an entry out of a directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RemoveLinkRequest {
    /// The directory: a CID or /ipfs path.
    pub root: String,
    /// The entry: a name, or a path below the directory.
    pub name: String,
    /// Pin the new directory.
    pub pin: bool,
}

/// The directory as it is now. The old one is unchanged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Patched {
    /// Its root.
    pub cid: String,
    /// Bytes of all its blocks.
    pub dag_size: u64,
    /// Blocks that were written.
    pub blocks: u64,
}

call!(AddLinkRequest => Patched, "object/patch/add-link");
call!(RemoveLinkRequest => Patched, "object/patch/rm-link");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<AddLinkRequest, _, _>(router, |node, request, _| add_link(node, request));
    route::<RemoveLinkRequest, _, _>(router, |node, request, _| remove_link(node, request))
}

/// Puts an entry into a directory.
pub async fn add_link(node: Arc<Node>, request: AddLinkRequest) -> Answered<Patched> {
    let retriever = Retriever::new(node.clone());
    let cid = resolve(&retriever, &request.reference).await?;
    let stat = retriever.stat(&cid).await.map_err(retrieve_error)?;
    let change = Change::Put { cid, dag_size: stat.dag_size };
    patch(node, &request.root, request.name, change, request.create, request.pin).await
}

/// Takes an entry out of a directory.
pub async fn remove_link(node: Arc<Node>, request: RemoveLinkRequest) -> Answered<Patched> {
    patch(node, &request.root, request.name, Change::Remove, false, request.pin).await
}

async fn resolve(retriever: &Retriever, reference: &str) -> Result<Cid, ApiError> {
    let reference = parse_content(reference)?;
    retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)
}

async fn patch(
    node: Arc<Node>,
    root: &str,
    name: String,
    change: Change,
    create: bool,
    pin: bool,
) -> Answered<Patched> {
    // Each reference is a way of its own: its missing blocks are asked of those who provide its root.
    let retriever = Retriever::new(node.clone());
    let root = resolve(&retriever, root).await?;
    loop {
        let (store, name) = (node.store.clone(), name.clone());
        let work = move || edit(&store, &root, &name, change, create, pin);
        match tokio::task::spawn_blocking(work).await? {
            Ok(edited) => {
                if pin {
                    announce(&node, edited.root).await;
                }
                let Edited { root, dag_size, blocks } = edited;
                return Ok(Patched { cid: root.to_string(), dag_size, blocks });
            }
            Err(EditError::Read(ReadError::Missing(cid) | ReadError::Store(StoreError::Corrupt { cid }))) => {
                retriever.cache(&root, cid).await.map_err(retrieve_error)?
            }
            Err(EditError::Read(error @ (ReadError::NotFound { .. } | ReadError::NotADirectory { .. }))) => {
                return Err(ApiError::not_found(error));
            }
            Err(EditError::Import(error @ ImportError::Path { .. })) => return Err(ApiError::bad(error)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Edits and makes it durable.
fn edit(
    store: &Store,
    root: &Cid,
    name: &str,
    change: Change,
    create: bool,
    pin: bool,
) -> Result<Edited, EditError> {
    let stored = |error: StoreError| EditError::Import(error.into());
    let mut ingest = store.ingest(Class::Own).map_err(stored)?;
    let edited = edit_directory(store, root, name, change, create, &mut ingest)?;
    let mut batch = store.state().batch();
    if pin {
        let pin = own_pin(edited.root, None, PinKind::Recursive);
        store.renew_pin(&mut batch, &pin).map_err(stored)?;
    }
    ingest.finish(batch).map_err(stored)?;
    Ok(edited)
}
