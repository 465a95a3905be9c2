//! `GET /metrics` for Prometheus: what the store holds, what the networks move.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::call::ApiError;
use crate::node::Node;

type Labelled = Family<Vec<(String, String)>, Gauge>;

/// All figures of this moment. They are read when asked for, so nothing is counted twice.
pub async fn metrics(State(node): State<Arc<Node>>) -> Result<Response, ApiError> {
    let mut registry = Registry::with_prefix("btfs");
    store(&node, &mut registry).await?;
    if let Ok(services) = node.services() {
        if let Some(host) = &services.host {
            let peers = host.peers().await.len();
            gauge(&mut registry, "swarm_peers", "connected libp2p peers", peers as u64);
            let stats = host.bitswap().stats().traffic;
            let each = [
                ("bitswap_blocks_received", "blocks received over Bitswap", stats.blocks_received),
                ("bitswap_blocks_sent", "blocks sent over Bitswap", stats.blocks_sent),
                ("bitswap_bytes_received", "block bytes received over Bitswap", stats.bytes_received),
                ("bitswap_bytes_sent", "block bytes sent over Bitswap", stats.bytes_sent),
            ];
            for (name, help, value) in each {
                gauge(&mut registry, name, help, value);
            }
        }
        if let Some(engine) = &services.torrents {
            let torrents = engine.list();
            let sum = |of: fn(&btfs_bittorrent::TorrentStatus) -> u64| torrents.iter().map(of).sum();
            gauge(&mut registry, "torrents", "torrents", torrents.len() as u64);
            gauge(
                &mut registry,
                "torrent_bytes_received",
                "payload bytes received over the peer wire",
                sum(|t| t.downloaded),
            );
            gauge(
                &mut registry,
                "torrent_bytes_sent",
                "payload bytes sent over the peer wire",
                sum(|t| t.uploaded),
            );
            gauge(&mut registry, "torrent_peers", "connected BitTorrent peers", sum(|t| t.peers as u64));
        }
    }
    let mut text = String::new();
    encode(&mut text, &registry)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text).into_response())
}

async fn store(node: &Node, registry: &mut Registry) -> Result<(), ApiError> {
    let stat = node.store.run(|store| store.stat()).await?;
    gauge(registry, "store_blocks", "blocks in the store", stat.blocks);
    gauge(registry, "store_disk_bytes", "bytes of the database files", stat.disk_bytes);
    gauge(registry, "store_disk_free_bytes", "bytes free on the disk", stat.disk_free_bytes);
    gauge(
        registry,
        "store_quarantined_blocks",
        "damaged blocks that were put aside",
        stat.quarantined_blocks,
    );
    gauge(registry, "store_pins", "pins", stat.pins);
    let hot = node.store.hot_stat();
    gauge(registry, "store_hot_bytes", "bytes of blocks kept in memory", hot.bytes);
    gauge(registry, "store_hot_hits", "blocks answered from memory", hot.hits);
    gauge(registry, "store_hot_misses", "blocks read from the database", hot.misses);
    let live = Labelled::default();
    let reserved = Labelled::default();
    for class in &stat.classes {
        let label = vec![("class".to_owned(), class.class.to_string())];
        live.get_or_create(&label).set(clamp(class.bytes));
        reserved.get_or_create(&label).set(clamp(class.reserved_bytes));
    }
    registry.register("store_live_bytes", "bytes of blocks by owner class", live);
    registry.register("store_reserved_bytes", "bytes promised and not yet here", reserved);
    Ok(())
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(clamp(value));
    registry.register(name, help, gauge);
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
