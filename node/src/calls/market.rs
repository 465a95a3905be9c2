//! Renting: the offers there are, storing for BTT, what became of it, and renting out.

use std::sync::Arc;

use axum::Router;
use btfs_ledger::{Btt, PublicKey};
use btfs_market::{HostSettings, HostStatus, Quote, StoreRequest, ThingStatus};
use serde::{Deserialize, Serialize};

use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;
use crate::retrieve::Retriever;

/// Asks what storing something would take. Nothing is bound by it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct QuoteRequest {
    /// CID or /ipfs path; fetched if it is not here.
    pub reference: String,
    /// A name for people.
    pub name: Option<String>,
    /// Seconds of settlement time to pay for.
    pub seconds: u64,
    /// Data and parity shards; by the number of usable hosts if not given.
    pub redundancy: Option<(u8, u8)>,
    /// Whole copies instead of coding.
    pub copies: Option<u8>,
    /// Hosts, besides, that hold the whole content.
    pub anchors: u8,
    /// Most to pay for a GiB and day.
    pub max_price: Option<String>,
}

call!(QuoteRequest => Quote, "store/quote");

/// Orders what a quote says.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AcceptRequest {
    /// The quote's id.
    pub quote: String,
}

call!(AcceptRequest => ThingStatus, "store/accept");

/// Lists what is stored with others.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct StoreListRequest {}

/// What is stored with others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StoreList {
    /// Oldest first.
    pub things: Vec<ThingStatus>,
}

call!(StoreListRequest => StoreList, "store/ls");

/// Asks for one stored thing.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreStatusRequest {
    /// Its id, root or layout.
    pub name: String,
}

call!(StoreStatusRequest => ThingStatus, "store/status");

/// Ends the agreements of a thing with the next epoch.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreCancelRequest {
    /// Its id, root or layout.
    pub name: String,
}

call!(StoreCancelRequest => ThingStatus, "store/cancel");

/// Asks whether all work that was due by a settlement time is done.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkRequest {
    /// Settlement time in unix seconds.
    pub through: u64,
}

/// How far the market has come.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Work {
    /// Settlement time as this node knows it.
    pub now: Option<u64>,
    /// Whether audits, vouchers and payments due by then are done, on both sides.
    pub done: bool,
}

call!(WorkRequest => Work, "market/work");

/// Lists the hosts on offer.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MarketListRequest {
    /// Only this host (33-byte public key in hex, or peer id).
    pub host: Option<String>,
}

/// The hosts on offer, best first, with the parts of their scores.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MarketList {
    /// One entry a host.
    pub hosts: Vec<serde_json::Value>,
}

call!(MarketListRequest => MarketList, "market/ls");

/// Changes how this node rents out disk; what is absent stays.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HostSetRequest {
    /// BTT for a GiB and day.
    pub price: Option<String>,
    /// BTT once an agreement.
    pub setup_price: Option<String>,
    /// Shortest term in seconds.
    pub min_term: Option<u64>,
    /// Longest term in seconds.
    pub max_term: Option<u64>,
    /// Largest agreement in bytes.
    pub max_size: Option<u64>,
    /// Bytes for all agreements.
    pub capacity: Option<u64>,
    /// Who is paid, if not this node's key.
    pub payee: Option<String>,
    /// Redeem as soon as this much BTT is owed.
    pub redeem_above: Option<String>,
    /// Take new agreements, or none.
    pub renting: Option<bool>,
}

call!(HostSetRequest => HostStatus, "host/set");

/// Asks how renting out goes.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct HostStatusRequest {}

call!(HostStatusRequest => HostStatus, "host/status");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<QuoteRequest, _, _>(router, quote);
    let router = route::<AcceptRequest, _, _>(router, |node, request, _| async move {
        accept(&node, &request.quote).await
    });
    let router = route::<StoreListRequest, _, _>(router, |node, _, _| async move {
        Ok(StoreList { things: node.services()?.market()?.renter().list().await? })
    });
    let router = route::<StoreStatusRequest, _, _>(router, |node, request, _| async move {
        Ok(node.services()?.market()?.renter().status(&request.name).await?)
    });
    let router = route::<StoreCancelRequest, _, _>(router, |node, request, _| async move {
        let renter = node.services()?.market()?.renter();
        let thing = renter.status(&request.name).await?;
        renter.cancel(thing.id).await?;
        Ok(renter.status(&request.name).await?)
    });
    let router = route::<WorkRequest, _, _>(router, |node, request, _| async move {
        let market = node.services()?.market()?;
        let now = market.now();
        let done = now.is_some_and(|now| now >= request.through) && market.work_done_through(request.through);
        Ok(Work { now, done })
    });
    let router =
        route::<MarketListRequest, _, _>(
            router,
            |node, request, _| async move { list(&node, request).await },
        );
    let router =
        route::<HostSetRequest, _, _>(
            router,
            |node, request, _| async move { host_set(&node, request).await },
        );
    route::<HostStatusRequest, _, _>(router, |node, _, _| async move {
        Ok(node.services()?.market()?.host().status().await?)
    })
}

/// An optional amount of a request.
fn amount(text: Option<&String>) -> Result<Option<Btt>, ApiError> {
    text.map(|text| {
        text.parse().map_err(|error| ApiError::bad(format!("`{text}` is not an amount of BTT: {error}")))
    })
    .transpose()
}

async fn quote(node: Arc<Node>, request: QuoteRequest, progress: Progress) -> Answered<Quote> {
    const DAY: u64 = 86_400;
    let renter = node.services()?.market()?.renter();
    let reference = super::files::parse_content(&request.reference)?;
    if request.seconds == 0 || !request.seconds.is_multiple_of(DAY) {
        return Err(ApiError::bad(
            "space is rented by the day: give a whole number of days, such as --for 30d",
        ));
    }
    let epochs = u32::try_from(request.seconds / DAY).map_err(|_| ApiError::bad("the term is too long"))?;
    let retriever = Retriever::new(node.clone());
    let root = retriever.resolve(&reference, &[], &progress).await?;
    let _lease = retriever.whole(&root, None, &progress).await?.lease;
    let steps = progress.clone();
    let quote = renter
        .quote(
            StoreRequest {
                root,
                name: request.name,
                redundancy: request.redundancy,
                copies: request.copies,
                anchors: request.anchors,
                epochs,
                epoch_length: None,
                max_price: amount(request.max_price.as_ref())?,
            },
            move |bytes| steps.step("coding", bytes, None),
        )
        .await?;
    Ok(quote)
}

async fn accept(node: &Node, quote: &str) -> Answered<ThingStatus> {
    let renter = node.services()?.market()?.renter();
    let id = renter.accept(quote).await?;
    let thing = renter.status(&id.to_string()).await?;
    if let Some(layout) = thing.layout {
        crate::retrieve::remember_layout(&node.store, thing.root, layout).await?;
    }
    renter.placed(id).await?;
    Ok(renter.status(&id.to_string()).await?)
}

async fn list(node: &Node, request: MarketListRequest) -> Answered<MarketList> {
    let market = node.services()?.market()?;
    let wanted = request.host.as_deref().map(parse_host).transpose()?;
    let lines = market.renter().market(None).await?;
    let hosts = lines
        .iter()
        .filter(|line| wanted.as_ref().is_none_or(|wanted| line.peer == *wanted))
        .map(|line| {
            let mut shown = serde_json::to_value(line)?;
            shown["peer_id"] = crate::services::courier::peer_of(&line.peer)
                .map(|peer| peer.to_string())
                .unwrap_or_default()
                .into();
            Ok(shown)
        })
        .collect::<Result<Vec<_>, serde_json::Error>>()?;
    match (&request.host, hosts.is_empty()) {
        (Some(host), true) => Err(ApiError::not_found(format!(
            "no host {host} is known; `btfs market ls` lists those that are"
        ))),
        _ => Ok(MarketList { hosts }),
    }
}

fn parse_host(text: &str) -> Result<PublicKey, ApiError> {
    let of_peer = text.parse().ok().and_then(|peer| crate::services::courier::key_of(&peer));
    let of_hex = || hex::decode(text).ok().and_then(|bytes| PublicKey::from_bytes(&bytes).ok());
    of_peer
        .or_else(of_hex)
        .ok_or_else(|| ApiError::bad(format!("`{text}` is neither a peer id nor a public key in hex")))
}

async fn host_set(node: &Node, request: HostSetRequest) -> Answered<HostStatus> {
    let host = node.services()?.market()?.host();
    let mut settings: HostSettings = host.settings();
    let old = settings.clone();
    settings.price = amount(request.price.as_ref())?.unwrap_or(old.price);
    settings.setup_price = amount(request.setup_price.as_ref())?.unwrap_or(old.setup_price);
    settings.min_term = request.min_term.unwrap_or(old.min_term);
    settings.max_term = request.max_term.unwrap_or(old.max_term);
    settings.max_size = request.max_size.unwrap_or(old.max_size);
    settings.capacity = request.capacity.unwrap_or(old.capacity);
    settings.payee = request.payee.as_deref().map(super::wallet::parse_address).transpose()?.or(old.payee);
    settings.redeem_above = amount(request.redeem_above.as_ref())?.or(old.redeem_above);
    if settings != old {
        host.set(settings).await?;
    }
    match request.renting {
        Some(true) => host.start().await?,
        Some(false) => host.stop().await?,
        None => {}
    }
    Ok(host.status().await?)
}
