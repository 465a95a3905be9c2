//! Fetching what BitTorrent names: infohashes, magnet links, `.torrent` files.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use btfs_bittorrent::infohash::multihash_v2;
use btfs_bittorrent::metainfo::Metainfo;
use btfs_bittorrent::{Engine, InfoHash, Magnet, TorrentId, TorrentSource};
use btfs_storage::{Cid, alias};

use super::{Reference, RetrieveError};
use crate::api::call::Progress;
use crate::node::Node;

/// Largest `.torrent` file read.
const MAX_TORRENT_FILE: u64 = 64 << 20;

fn failed(error: impl std::fmt::Display) -> RetrieveError {
    RetrieveError::Torrent(error.to_string())
}

/// What to hand to the engine.
pub fn source(reference: &Reference) -> Result<TorrentSource, RetrieveError> {
    match reference {
        Reference::Infohash(hash) => Ok(TorrentSource::Magnet(Magnet::v1(InfoHash(*hash), None))),
        Reference::Magnet(text) => Ok(TorrentSource::Magnet(text.parse().map_err(failed)?)),
        Reference::TorrentFile(path) => {
            let shown = path.display();
            let size = std::fs::metadata(path)
                .map_err(|error| failed(format!("cannot read {shown}: {error}")))?
                .len();
            if size > MAX_TORRENT_FILE {
                return Err(failed(format!(
                    "{shown} has {size} bytes; a .torrent file has at most {MAX_TORRENT_FILE}"
                )));
            }
            let bytes =
                std::fs::read(path).map_err(|error| failed(format!("cannot read {shown}: {error}")))?;
            // Refused here, so that it is told with the file's name, and without a daemon, too.
            Metainfo::parse(&bytes).map_err(|error| failed(format!("{shown}: {error}")))?;
            Ok(TorrentSource::Metainfo(bytes))
        }
        Reference::Ipfs { .. } => Err(failed("a CID is not a torrent")),
    }
}

/// Peers as people write them.
pub fn peers(texts: &[String]) -> Result<Vec<SocketAddr>, RetrieveError> {
    texts
        .iter()
        .map(|text| text.parse().map_err(|_| failed(format!("`{text}` is no peer: write IP:PORT"))))
        .collect()
}

/// The root of a torrent's content, downloaded whole unless it is here.
pub async fn fetch(
    node: &Arc<Node>,
    reference: &Reference,
    given: &[String],
    timeout: Duration,
    progress: &Progress,
) -> Result<Cid, RetrieveError> {
    let source = source(reference)?;
    let given = peers(given)?;
    if let Some(root) = known(node, &source).await? {
        return Ok(root);
    }
    let services = node.services().map_err(|error| failed(error.message))?;
    let engine = services.torrents().map_err(|error| failed(error.message))?;
    let id = engine.add(source, given, Vec::new(), Default::default()).await.map_err(failed)?;
    tokio::select! {
        done = engine.wait_done(id) => done.map_err(failed),
        error = stalled(engine, id, timeout, progress) => Err(error),
    }
}

/// The root under which this node already has the torrent's content.
async fn known(node: &Node, source: &TorrentSource) -> Result<Option<Cid>, RetrieveError> {
    let hash = match source {
        TorrentSource::Magnet(Magnet { btih: Some(hash), .. }) => hash.multihash(),
        TorrentSource::Magnet(Magnet { btmh: Some(hash), .. }) => multihash_v2(hash),
        TorrentSource::Magnet(_) => return Ok(None),
        TorrentSource::Metainfo(bytes) => Metainfo::parse(bytes).map_err(failed)?.info.hash().multihash(),
    };
    let found = node.store.run(move |store| alias::lookup(store.state(), &hash)).await.map_err(failed)?;
    Ok(found.first().map(|alias| alias.root))
}

/// Ends when nothing came for `timeout`. What came is kept: the download goes on when peers appear.
async fn stalled(engine: &Engine, id: TorrentId, timeout: Duration, progress: &Progress) -> RetrieveError {
    const LOOK_EVERY: Duration = Duration::from_millis(200);
    let (mut last, mut came) = (0, Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let status = match engine.status(&id) {
            Ok(status) => status,
            Err(error) => return failed(error),
        };
        progress.step("downloading", status.downloaded, status.size);
        if status.downloaded > last {
            (last, came) = (status.downloaded, Instant::now());
        }
        if came.elapsed() >= timeout {
            return failed(format!(
                "torrent {id}: nothing came for {} s; {} peers connected, {} addresses known. It stays in `btfs torrent ls` and goes on when peers appear; name one with --peer IP:PORT",
                timeout.as_secs(),
                status.peers,
                status.known_peers
            ));
        }
    }
}
