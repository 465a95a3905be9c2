//! `pin update`: a new version of something is kept in the place of the old one.

use std::sync::Arc;

use axum::Router;
use btfs_storage::{Cid, Pin, PinKind, Store, StoreError};
use serde::{Deserialize, Serialize};

use super::super::files::{announce, own_pin, parse_content, private_pin, retrieve_error, withdraw};
use super::{PinInfo, pin_info, resolve_here};
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;
use crate::retrieve::Retriever;

/// Keeps a new DAG, fetching what is missing, and lets an old one go.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PinUpdateRequest {
    /// What is pinned recursively: a CID or /ipfs path.
    pub from: String,
    /// What shall be: a CID or /ipfs path.
    pub to: String,
    /// Keep the old one, too.
    pub keep_old: bool,
}

/// A pin in the place of another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinUpdated {
    /// The old root.
    pub from: String,
    /// The new pin, with the name and the end of the old one.
    pub pin: PinInfo,
}

call!(PinUpdateRequest => PinUpdated, "pin/update");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    route::<PinUpdateRequest, _, _>(router, pin_update)
}

/// Keeps the new DAG before it lets the old one go: broken off in between, both are kept, and it can be done again.
pub async fn pin_update(
    node: Arc<Node>,
    request: PinUpdateRequest,
    progress: Progress,
) -> Answered<PinUpdated> {
    let from = resolve_here(&node, &request.from).await?;
    let retriever = Retriever::new(node.clone());
    let to = parse_content(&request.to)?;
    let to = retriever.resolve(&to, &[], &Progress::default()).await.map_err(retrieve_error)?;
    let Some((old, new)) = node.store.run(move |store| replaced(store, from, to)).await? else {
        return Err(ApiError::not_found(format!(
            "{from} is not pinned recursively by you, so nothing was changed; `btfs pin ls` lists the pins"
        )));
    };
    if from != to {
        retriever.whole(&to, Some(new.clone()), &progress).await.map_err(retrieve_error)?;
        if new.id == own_pin(to, None, PinKind::Recursive).id {
            announce(&node, to).await;
        }
        if !request.keep_old {
            node.store.run(move |store| unpin(store, &old)).await?;
            withdraw(&node, from).await?;
        }
    }
    // With what a pin of the new one that was there before adds to it.
    let id = new.id.clone();
    let kept = node.store.run(move |store| store.pin_get(&id)).await?;
    Ok(PinUpdated { from: from.to_string(), pin: pin_info(&kept.unwrap_or(new)) })
}

/// The pin of the old root, and the same of the new one; a private one stays private.
fn replaced(store: &Store, from: Cid, to: Cid) -> Result<Option<(Pin, Pin)>, StoreError> {
    let pins = |root| [own_pin(root, None, PinKind::Recursive).id, private_pin(root, None).id];
    for (old, new) in pins(from).into_iter().zip(pins(to)) {
        if let Some(old) = store.pin_get(&old)?.filter(|pin| pin.kind == PinKind::Recursive) {
            let new = Pin { id: new, root: to, ..old.clone() };
            return Ok(Some((old, new)));
        }
    }
    Ok(None)
}

/// Lets the old pin go, unless somebody changed it meanwhile.
fn unpin(store: &Store, pin: &Pin) -> Result<(), StoreError> {
    if store.pin_get(&pin.id)?.is_none_or(|now| now != *pin) {
        return Ok(());
    }
    let mut batch = store.state().batch();
    store.unpin(&mut batch, &pin.id)?;
    Ok(store.state().commit(batch)?)
}
