//! Tells the network which content this node keeps for renters.
//!
//! A host gets a list of blocks, not a root. The layout among them names the root; copies have no layout, and their
//! root is the block that no other links to. The root alone is announced: who looks for the content asks its
//! providers for the blocks below. The layout is remembered, so that any provider can name it to readers.

use std::collections::HashSet;

use btfs_ledger::B256;
use btfs_market::states::HostState;
use btfs_market::{HostService, Market, MarketEvent};
use btfs_p2p::Host;
use btfs_storage::db::Table;
use btfs_storage::layout::Layout;
use btfs_storage::{BlockSource, Cid, Store, StoreError, dagpb, hash};
use tokio::sync::broadcast::error::RecvError;

use crate::retrieve::{LAYOUT_TABLE, known_layouts, layout_row};

/// Agreement to the root that is announced for it.
pub const HOSTED_TABLE: Table<[u8; 32], String> = Table::new("hosted_roots");

/// Announces what the user of this node keeps, for what was added while no daemon ran. What was announced before is not
/// announced again until it is due.
pub async fn own(store: Store, host: Host) {
    let pins = match store.run(|store| store.pins_with_prefix("own:")).await {
        Ok(pins) => pins,
        Err(error) => return tracing::warn!(%error, "own content is not announced"),
    };
    for pin in pins {
        if let Err(error) = host.provide(*pin.root.hash()).await {
            tracing::warn!(root = %pin.root, %error, "not announced");
        }
    }
}

/// Announces what the host holds, now and as agreements come and go, until dropped.
pub async fn run(store: Store, host: Host, market: Market) {
    let mut events = market.events().subscribe();
    everything(&store, &host, market.host()).await;
    loop {
        match events.recv().await {
            Ok(MarketEvent::Active { id, .. }) => announce(&store, &host, market.host(), id).await,
            Ok(MarketEvent::SpaceFreed { id, .. }) => withdraw(&store, &host, id).await,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => everything(&store, &host, market.host()).await,
            Err(RecvError::Closed) => return,
        }
    }
}

async fn everything(store: &Store, host: &Host, market: &HostService) {
    match market.status().await {
        Ok(status) => {
            for agreement in status.agreements {
                if matches!(agreement.state, HostState::Active | HostState::Closing) {
                    announce(store, host, market, agreement.id).await;
                }
            }
        }
        Err(error) => tracing::warn!(%error, "what this host holds is not announced"),
    }
}

/// What one agreement is about.
struct Content {
    root: Cid,
    layout: Option<Cid>,
}

async fn announce(store: &Store, host: &Host, market: &HostService, id: B256) {
    // Events of agreements in which this node is the renter come here too; those have no list.
    let Ok(list) = market.block_list(id).await else { return };
    let found = store
        .run(move |store| {
            let cids: Vec<Cid> = list.cids().collect();
            let content = content(store, &cids);
            if let Some(content) = &content {
                let mut batch = store.state().batch();
                batch.put(&HOSTED_TABLE, &id.0, &content.root.to_string())?;
                if let Some(layout) = content.layout {
                    batch.put(&LAYOUT_TABLE, &layout_row(&content.root, &layout), &())?;
                }
                store.state().commit(batch)?;
            }
            Ok::<_, btfs_storage::db::DbError>(content)
        })
        .await;
    match found {
        Ok(Some(content)) => {
            if let Err(error) = host.provide(*content.root.hash()).await {
                tracing::warn!(root = %content.root, %error, "hosted content is not announced yet");
            }
        }
        Ok(None) => {
            tracing::info!(agreement = %id, "no root is known of what is hosted; it is served, not announced")
        }
        Err(error) => tracing::warn!(agreement = %id, %error, "hosted content is not announced"),
    }
}

/// Finds root and layout among the blocks of a list.
fn content(store: &Store, cids: &[Cid]) -> Option<Content> {
    let layouts = cids.iter().filter(|cid| cid.codec() == hash::DAG_CBOR);
    for cid in layouts {
        if let Ok(layout) = Layout::load(cid, store) {
            return Some(Content { root: layout.root(), layout: Some(*cid) });
        }
    }
    let mut linked = HashSet::new();
    for cid in cids.iter().filter(|cid| cid.codec() != hash::RAW) {
        let block = store.get(cid).ok()??;
        linked.extend(dagpb::links(cid, &block).ok()?.iter().map(|child| *child.hash()));
    }
    let mut roots = cids.iter().filter(|cid| !linked.contains(cid.hash()));
    match (roots.next(), roots.next()) {
        (Some(root), None) => Some(Content { root: *root, layout: None }),
        _ => None,
    }
}

async fn withdraw(store: &Store, host: &Host, id: B256) {
    let gone = store
        .run(move |store| {
            let Some(root) = store.state().get(&HOSTED_TABLE, &id.0)? else { return Ok(None) };
            let mut batch = store.state().batch();
            batch.delete(&HOSTED_TABLE, &id.0)?;
            let others = store.state().scan(&HOSTED_TABLE, &[]).filter_map(Result::ok);
            let last = others.filter(|(other, of)| *other != id.0 && *of == root).count() == 0;
            let root: Option<Cid> = root.parse().ok().filter(|_| last);
            // What this node's user keeps, or has stored with others, stays known.
            let kept = root.as_ref().map(|root| store.is_pinned_root(root)).transpose()?.unwrap_or(true);
            let root = root.filter(|_| !kept);
            if let Some(root) = &root {
                for layout in known_layouts(store, root)? {
                    // Parity of this node's user.
                    if store.is_pinned_root(&layout)? {
                        continue;
                    }
                    batch.delete(&LAYOUT_TABLE, &layout_row(root, &layout))?;
                }
            }
            store.state().commit(batch)?;
            Ok::<_, StoreError>(root)
        })
        .await;
    match gone {
        Ok(Some(root)) => {
            if let Err(error) = host.unprovide(*root.hash()).await {
                tracing::warn!(%root, %error, "content that left is still announced");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(agreement = %id, %error, "content that left may still be announced"),
    }
}
