//! Parity of what is stored here: made, listed, used and let go.

use std::sync::Arc;

use axum::Router;
use btfs_storage::erasure::{self, ErasureError};
use btfs_storage::layout::Layout;
use btfs_storage::{Cid, PinKind, Store, StoreError};
use serde::{Deserialize, Serialize};

use super::files::{announce, own_pin, parse_content, retrieve_error};
use super::pins::resolve_here;
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;
use crate::parity::{self, ParityError, Repaired};
use crate::retrieve::Retriever;

/// Data and parity shards unless others are asked for. What protects one store from rot need not survive the loss of most
/// of it, as what lies with hosts must: an eighth more space brings back any four of 36 MiB, which a bad spot on a disk,
/// or a few, seldom exceed. Narrower stripes would survive less for the same space, and wider ones take more memory and
/// longer to rebuild a single block from.
const DEFAULT: (u8, u8) = (32, 4);
/// Lost blocks named in an answer; all are counted.
const NAMED: usize = 1000;

/// Makes parity of a DAG and keeps it beside the content.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ParityMakeRequest {
    /// CID or /ipfs path; fetched if it is not here, and pinned if it is not yet.
    pub reference: String,
    /// Data and parity shards of each stripe; absent: 32 and 4.
    pub redundancy: Option<(u8, u8)>,
}

/// What parity is of, and how much there is of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParityShape {
    /// The content.
    pub root: String,
    /// The layout, by which the parity is named.
    pub layout: String,
    /// Data shards of each stripe; a few more or less than were asked for if that leaves no shard alone in the last one.
    pub k: u8,
    /// Parity shards of each stripe.
    pub m: u8,
    /// Stripes.
    pub stripes: u64,
    /// Bytes of the content's blocks, each counted once.
    pub data_bytes: u64,
    /// Bytes of parity.
    pub parity_bytes: u64,
}

impl From<&Layout> for ParityShape {
    fn from(layout: &Layout) -> Self {
        ParityShape {
            root: layout.root().to_string(),
            layout: layout.cid().to_string(),
            k: layout.k(),
            m: layout.m(),
            stripes: layout.stripes().len() as u64,
            data_bytes: layout.size(),
            parity_bytes: layout.parity_size(),
        }
    }
}

/// Parity that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParityMade {
    /// Of what, and how much.
    #[serde(flatten)]
    pub shape: ParityShape,
    /// Bytes of parity for each byte of data.
    pub overhead: f64,
    /// Bytes that were not in the store before.
    pub new_bytes: u64,
    /// How many shards of a stripe may be lost, whichever they are: m, or less where blocks of zeros have equal parity.
    pub spare: i64,
    /// Whether the content was pinned for it, since it was not yet.
    pub pinned: bool,
}

call!(ParityMakeRequest => ParityMade, "parity/make");

/// Lists the parity that was made here.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ParityListRequest {}

/// The parity that was made here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParityList {
    /// In the order of their layouts' names.
    pub layouts: Vec<ParityInfo>,
    /// Layouts that cannot be read, whose parity is of no use.
    pub unreadable: Vec<Unreadable>,
}

/// Parity, and what is known to be lost of it and of its content. Nothing is read for that: `repo verify` does so.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParityInfo {
    /// Of what, and how much.
    #[serde(flatten)]
    pub shape: ParityShape,
    /// Blocks of data that are damaged or not here.
    pub lost_data_blocks: u64,
    /// Blocks of parity, and of the layout itself, that are damaged or not here.
    pub lost_parity_blocks: u64,
    /// How many more shards of the worst stripe may be lost; negative: how many more it needs to be rebuilt.
    pub spare: i64,
}

/// A layout that cannot be read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unreadable {
    /// The layout.
    pub layout: String,
    /// Why not.
    pub error: String,
}

call!(ParityListRequest => ParityList, "parity/ls");

/// Lets parity go.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ParityRemoveRequest {
    /// The layout.
    pub layout: String,
}

/// Parity that was let go. The content stays.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParityRemoved {
    /// The layout.
    pub layout: String,
}

call!(ParityRemoveRequest => ParityRemoved, "parity/rm");

/// Rebuilds what is lost.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ParityRepairRequest {
    /// A layout, or the content by CID or /ipfs path.
    pub reference: String,
}

/// What was rebuilt, by each layout of the content.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParityRepairs {
    /// One entry a layout.
    pub layouts: Vec<ParityRepair>,
}

/// What was rebuilt by one layout.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParityRepair {
    /// The content.
    pub root: String,
    /// The layout.
    pub layout: String,
    /// Blocks of data that were rebuilt.
    pub data_blocks: u64,
    /// Their bytes.
    pub data_bytes: u64,
    /// Blocks of parity that were made again, and of the layout that were put back.
    pub parity_blocks: u64,
    /// Blocks of data that stay lost.
    pub lost_blocks: u64,
    /// Which, at most a thousand of them.
    pub lost: Vec<String>,
    /// How many more shards the worst stripe needs; 0 if nothing stays lost.
    pub short: u64,
}

call!(ParityRepairRequest => ParityRepairs, "parity/repair");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<ParityMakeRequest, _, _>(router, make);
    let router = route::<ParityListRequest, _, _>(router, |node, _, _| async move {
        blocking(&node, |store| Ok(list(store)?)).await
    });
    let router = route::<ParityRemoveRequest, _, _>(router, |node, request, _| async move {
        remove(&node, &request.layout).await
    });
    route::<ParityRepairRequest, _, _>(router, repair)
}

/// Runs what may take long on a thread of its own, to its end even if nobody listens any more.
async fn blocking<T: Send + 'static>(
    node: &Node,
    work: impl FnOnce(&Store) -> Answered<T> + Send + 'static,
) -> Answered<T> {
    let store = node.store.clone();
    tokio::task::spawn_blocking(move || work(&store)).await?
}

/// Errors of the request as such, and others.
fn refused(error: ParityError) -> ApiError {
    match error {
        ParityError::Erasure(
            error @ (ErasureError::Redundancy { .. }
            | ErasureError::TooWide { .. }
            | ErasureError::Copies { .. }
            | ErasureError::Single(_)
            | ErasureError::Empty),
        ) => ApiError::bad(format!("{error}; no parity was made")),
        error => error.into(),
    }
}

async fn make(node: Arc<Node>, request: ParityMakeRequest, progress: Progress) -> Answered<ParityMade> {
    let shards = request.redundancy.unwrap_or(DEFAULT);
    let reference = parse_content(&request.reference)?;
    let retriever = Retriever::new(node.clone());
    let root = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
    let kept = node.store.run(move |store| store.pins_of(&root)).await?;
    let pinned = !kept.iter().any(|pin| pin.kind == PinKind::Recursive);
    let pin = pinned.then(|| own_pin(root, None, PinKind::Recursive));
    let _lease = retriever.whole(&root, pin, &progress).await.map_err(retrieve_error)?.lease;
    if pinned {
        announce(&node, root).await;
    }
    blocking(&node, move |store| {
        let (layout, stored) = parity::make(store, &root, shards, &progress).map_err(refused)?;
        Ok(ParityMade {
            shape: (&layout).into(),
            overhead: layout.parity_size() as f64 / layout.size() as f64,
            new_bytes: stored.new_bytes,
            spare: erasure::condition(&layout, store)?.spare,
            pinned,
        })
    })
    .await
}

fn list(store: &Store) -> Result<ParityList, StoreError> {
    let (mut layouts, mut unreadable) = (Vec::new(), Vec::new());
    for cid in parity::layouts(store)? {
        match parity::examine(store, &cid) {
            Ok((layout, condition, own)) => layouts.push(ParityInfo {
                shape: (&layout).into(),
                lost_data_blocks: condition.lost_data,
                lost_parity_blocks: condition.lost_parity + own,
                spare: condition.spare,
            }),
            Err(error) => {
                unreadable.push(Unreadable { layout: cid.to_string(), error: error.to_string() });
            }
        }
    }
    Ok(ParityList { layouts, unreadable })
}

async fn remove(node: &Node, layout: &str) -> Answered<ParityRemoved> {
    let cid: Cid = layout.parse().map_err(|error| ApiError::bad(format!("`{layout}` is no CID: {error}")))?;
    match blocking(node, move |store| Ok(parity::forget(store, &cid)?)).await? {
        true => Ok(ParityRemoved { layout: cid.to_string() }),
        false => Err(ApiError::not_found(format!(
            "there is no parity with the layout {cid}, so nothing was changed; `btfs parity ls` lists what there is"
        ))),
    }
}

async fn repair(
    node: Arc<Node>,
    request: ParityRepairRequest,
    progress: Progress,
) -> Answered<ParityRepairs> {
    let cid = resolve_here(&node, &request.reference).await?;
    blocking(&node, move |store| {
        let layouts = parity::layouts_of(store, &cid)?;
        if layouts.is_empty() {
            return Err(ApiError::not_found(format!(
                "there is no parity of {cid}, and none with that layout; `btfs parity ls` lists what there is"
            )));
        }
        let (repaired, failed) = parity::mend(store, &layouts, &progress);
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(ParityRepairs { layouts: repaired.iter().map(told).collect() }),
        }
    })
    .await
}

fn told(done: &Repaired) -> ParityRepair {
    let mended = &done.mended;
    ParityRepair {
        root: done.root.to_string(),
        layout: done.layout.to_string(),
        data_blocks: mended.data,
        data_bytes: mended.data_bytes,
        parity_blocks: mended.parity + done.own,
        lost_blocks: mended.lost.len() as u64,
        lost: mended.lost.iter().take(NAMED).map(Cid::to_string).collect(),
        short: mended.short as u64,
    }
}
