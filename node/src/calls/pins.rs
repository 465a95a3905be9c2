//! Pins: what is kept, under which name, until when.

use std::sync::Arc;

use axum::Router;
use btfs_storage::{Cid, Pin, PinId, PinKind, Store, StoreError};
use serde::{Deserialize, Serialize};

use super::files::{announce, own_pin, parse_content, private_pin, retrieve_error, withdraw};
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;
use crate::retrieve::Retriever;

mod told;
mod update;

pub use told::{PinCheck, indirect_info};
pub use update::{PinUpdateRequest, PinUpdated, pin_update};

/// Pins in one answer: about 3 MB of JSON.
pub const PAGE: usize = 10_000;
/// Pins read from the store at a time.
const READ: usize = 1024;

/// Keeps a DAG, fetching what is missing.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PinAddRequest {
    /// CID or /ipfs path.
    pub reference: String,
    /// A name for people.
    pub name: Option<String>,
    /// Only this block, not what it links to.
    pub direct: bool,
    /// Let it go by itself after so many seconds.
    pub expires_in_secs: Option<u64>,
}

/// One pin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinInfo {
    /// Its id; `own:<cid>` for pins made by hand.
    pub id: String,
    /// Whose it is: `own`, `agreement`, `torrent`, ...; the part of the id before the colon.
    pub owner: String,
    /// What it keeps.
    pub cid: String,
    /// `recursive`, `direct` or `list`; `indirect` for a block that a recursive pin keeps below its root.
    pub kind: String,
    /// A name for people.
    pub name: Option<String>,
    /// Unix seconds after which it goes.
    pub expires: Option<u64>,
    /// Of an indirect pin: the root below which it is kept. Id and owner are those of the pin of that root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub through: Option<String>,
}

call!(PinAddRequest => PinInfo, "pin/add");

/// Lets a pinned thing go.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PinRemoveRequest {
    /// CID or /ipfs path.
    pub reference: String,
}

call!(PinRemoveRequest => PinInfo, "pin/rm");

/// Lists pins, page by page.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PinListRequest {
    /// Only pins of this root, a CID or /ipfs path; if there are none, one that keeps it below its root.
    pub reference: Option<String>,
    /// Only `recursive`, `direct` or `list` pins, or, with a reference, `indirect` ones; absent or `all`: every kind. The
    /// indirect pins of all roots are listed by `pin/indirect`.
    pub kind: Option<String>,
    /// Only pins whose name has this in it.
    pub name: Option<String>,
    /// Only pins of this owner, such as `own` or `agreement`.
    pub owner: Option<String>,
    /// Go on behind this id, the `next` of the answer before.
    pub after: Option<String>,
    /// At most so many; 10,000 and no more in any case.
    pub limit: Option<usize>,
}

/// A page of pins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PinList {
    /// In order of id.
    pub pins: Vec<PinInfo>,
    /// There may be more behind this id: ask for them with `after`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

call!(PinListRequest => PinList, "pin/ls");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<PinAddRequest, _, _>(router, pin_add);
    let router = route::<PinRemoveRequest, _, _>(router, |node, request, _| async move {
        pin_remove(&node, &request.reference).await
    });
    let router = update::routes(told::routes(router));
    route::<PinListRequest, _, _>(router, |node, request, _| async move { pin_list(&node, request).await })
}

/// A pin as the API shows it.
pub fn pin_info(pin: &Pin) -> PinInfo {
    let id = pin.id.to_string();
    PinInfo {
        owner: id.split(':').next().unwrap_or_default().to_owned(),
        id,
        cid: pin.root.to_string(),
        kind: kind_name(pin.kind).into(),
        name: pin.name.clone(),
        expires: pin.expires,
        through: None,
    }
}

fn kind_name(kind: PinKind) -> &'static str {
    match kind {
        PinKind::Recursive => "recursive",
        PinKind::Direct => "direct",
        PinKind::List => "list",
    }
}

/// Kinds of pins by their names in requests, and whether blocks below roots count as pinned.
const KINDS: [(&str, &[PinKind], bool); 6] = [
    ("all", &[PinKind::Recursive, PinKind::Direct, PinKind::List], true),
    ("", &[PinKind::Recursive, PinKind::Direct, PinKind::List], true),
    ("recursive", &[PinKind::Recursive], false),
    ("direct", &[PinKind::Direct], false),
    ("list", &[PinKind::List], false),
    ("indirect", &[], true),
];

/// Keeps a DAG, fetching what is missing.
pub async fn pin_add(node: Arc<Node>, request: PinAddRequest, progress: Progress) -> Answered<PinInfo> {
    let reference = parse_content(&request.reference)?;
    let retriever = Retriever::new(node.clone());
    let cid = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
    let kind = if request.direct { PinKind::Direct } else { PinKind::Recursive };
    let expires = request.expires_in_secs.map(|seconds| unix_now().saturating_add(seconds));
    let pin = Pin { expires, ..own_pin(cid, request.name, kind) };
    let id = pin.id.clone();
    if let Some(before) = node.store.run(move |store| store.pin_get(&id)).await? {
        refuse_less(&before, &pin)?;
    }
    let id = pin.id.clone();
    if request.direct {
        retriever.keep_block(&cid, pin.clone()).await.map_err(retrieve_error)?;
    } else {
        retriever.whole(&cid, Some(pin.clone()), &progress).await.map_err(retrieve_error)?;
    }
    announce(&node, cid).await;
    // With the name and the end that it had before.
    let kept = node.store.run(move |store| store.pin_get(&id)).await?;
    Ok(pin_info(&kept.unwrap_or(pin)))
}

/// Refuses a pin that would keep less, or shorter, than the one that is there.
fn refuse_less(before: &Pin, pin: &Pin) -> Result<(), ApiError> {
    let cid = pin.root;
    if before.kind == PinKind::Recursive && pin.kind == PinKind::Direct {
        return Err(ApiError::bad(format!(
            "{cid} is already pinned recursively, which keeps more; nothing was changed"
        )));
    }
    if before.expires.is_none() && pin.expires.is_some() {
        return Err(ApiError::bad(format!(
            "{cid} is already pinned without an end; nothing was changed. `btfs pin rm {cid}` first if it shall end"
        )));
    }
    Ok(())
}

fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Lets a pinned thing go.
pub async fn pin_remove(node: &Arc<Node>, reference: &str) -> Answered<PinInfo> {
    let cid = resolve_here(node, reference).await?;
    let pin = node.store.run(move |store| {
        let mut batch = store.state().batch();
        let mut removed = None;
        for id in [private_pin(cid, None).id, own_pin(cid, None, PinKind::Recursive).id] {
            if let Some(pin) = store.pin_get(&id)? {
                store.unpin(&mut batch, &id)?;
                removed = Some(pin);
            }
        }
        store.state().commit(batch)?;
        Ok::<_, StoreError>(removed)
    });
    match pin.await? {
        Some(pin) => {
            withdraw(node, pin.root).await?;
            Ok(pin_info(&pin))
        }
        None => Err(ApiError::not_found(format!("{cid} is not pinned by you; `btfs pin ls` lists the pins"))),
    }
}

pub(super) async fn resolve_here(node: &Arc<Node>, reference: &str) -> Result<Cid, ApiError> {
    let reference = parse_content(reference)?;
    Retriever::local(node.clone())
        .resolve(&reference, &[], &Progress::default())
        .await
        .map_err(retrieve_error)
}

/// What a list shows of all pins.
struct Wanted {
    kinds: &'static [PinKind],
    /// Whether blocks below roots are shown.
    indirect: bool,
    name: Option<String>,
    /// How ids begin.
    prefix: String,
}

impl Wanted {
    fn new(kind: Option<&str>, name: Option<String>, owner: Option<String>) -> Result<Wanted, ApiError> {
        let kind = kind.unwrap_or_default();
        let known = KINDS.iter().find(|(name, ..)| *name == kind);
        let Some((_, kinds, indirect)) = known else {
            return Err(ApiError::bad(format!(
                "there are no `{kind}` pins; there are recursive, direct, list and indirect ones"
            )));
        };
        let prefix = owner.map(|owner| format!("{owner}:")).unwrap_or_default();
        Ok(Wanted { kinds, indirect: *indirect, name, prefix })
    }

    fn has(&self, pin: &Pin) -> bool {
        self.kinds.contains(&pin.kind) && self.has_name_of(pin)
    }

    /// Whether a pin is wanted if its kind does not matter.
    fn has_name_of(&self, pin: &Pin) -> bool {
        let named = |part: &String| pin.name.as_ref().is_some_and(|name| name.contains(part));
        pin.id.0.starts_with(&self.prefix) && self.name.as_ref().is_none_or(named)
    }
}

/// A page of the pins that were asked for.
pub async fn pin_list(node: &Arc<Node>, request: PinListRequest) -> Answered<PinList> {
    let wanted = Wanted::new(request.kind.as_deref(), request.name, request.owner)?;
    if let Some(reference) = request.reference {
        let cid = resolve_here(node, &reference).await?;
        let store = node.store.clone();
        let pins = tokio::task::spawn_blocking(move || pins_of(&store, &cid, &wanted)).await??;
        if pins.is_empty() {
            return Err(ApiError::not_found(format!("{cid} is not pinned")));
        }
        return Ok(PinList { pins, next: None });
    }
    if wanted.kinds.is_empty() {
        return Err(ApiError::bad(
            "what pins keep below their roots is listed by pin/indirect, or one by one",
        ));
    }
    let limit = request.limit.unwrap_or(PAGE).clamp(1, PAGE);
    let after = request.after.map(PinId::from);
    node.store.run(move |store| page(store, &wanted, after, limit)).await
}

/// The pins of a block: those that name it, or else one that keeps it below its root. That one is looked for by walking
/// what is pinned, which may take long.
fn pins_of(store: &Store, cid: &Cid, wanted: &Wanted) -> Result<Vec<PinInfo>, StoreError> {
    let named = store.pins_of(cid)?;
    let mut pins: Vec<PinInfo> = named.iter().filter(|pin| wanted.has(pin)).map(pin_info).collect();
    if pins.is_empty() && wanted.indirect {
        let keeper = store.keeper_of(cid, &|pin| wanted.has_name_of(pin))?;
        pins.extend(keeper.map(|pin| indirect_info(cid, &pin)));
    }
    Ok(pins)
}

fn page(store: &Store, wanted: &Wanted, after: Option<PinId>, limit: usize) -> Answered<PinList> {
    let mut after = after;
    let mut pins = Vec::new();
    loop {
        let some = store.pins_after(after.as_ref(), &wanted.prefix, READ)?;
        let Some(last) = some.last() else { return Ok(PinList { pins, next: None }) };
        after = Some(last.id.clone());
        for pin in some.iter().filter(|pin| wanted.has(pin)) {
            pins.push(pin_info(pin));
            if pins.len() == limit {
                return Ok(PinList { pins, next: Some(pin.id.to_string()) });
            }
        }
    }
}

/// Every pin that was asked for, page after page.
pub async fn pin_list_all(node: &Arc<Node>, request: PinListRequest) -> Answered<Vec<PinInfo>> {
    let mut all = Vec::new();
    let mut after = None;
    loop {
        let page = pin_list(node, PinListRequest { after, ..request.clone() }).await?;
        all.extend(page.pins);
        after = page.next;
        if after.is_none() {
            return Ok(all);
        }
    }
}
