//! The daemon: starts the services in order, serves until told to stop, stops them in order.
//!
//! Content is served whether or not the ledger, the DHT or the internet can be reached; what needs them waits for
//! them. SIGINT, SIGTERM and `btfs shutdown` end it the same way: listeners first, then services, the databases
//! last, and only then is the repo free.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use btfs_ledger::SecretKey;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::api;
use crate::api::guard::Guard;
use crate::node::Node;
use crate::repo::Repo;
use crate::services::Services;

/// The first line of `daemon --json`.
#[derive(Clone, Debug, Serialize)]
pub struct Ready {
    /// Always `ready`.
    pub event: &'static str,
    /// The node's peer id.
    pub peer: String,
    /// Where the API listens.
    pub api: String,
    /// Where the gateway listens, if it does.
    pub gateway: Option<String>,
    /// Multiaddresses with peer id.
    pub swarm: Vec<String>,
    /// Where BitTorrent peers are answered, if they are.
    pub bittorrent: Option<String>,
}

impl Ready {
    /// The same for the terminal.
    pub fn for_people(&self) -> String {
        let mut text = format!("peer       {}\napi        {}\n", self.peer, self.api);
        if let Some(gateway) = &self.gateway {
            text += &format!("gateway    {gateway}\n");
        }
        for address in &self.swarm {
            text += &format!("swarm      {address}\n");
        }
        if let Some(address) = &self.bittorrent {
            text += &format!("bittorrent {address}\n");
        }
        text + "ready; stop it with Ctrl-C or `btfs shutdown`\n"
    }
}

/// Logs go to stderr, as `RUST_LOG` says (default: warnings, and `btfs` information).
pub fn log_to_stderr(json: bool) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new("warn,btfs_node=info,btfs_market=info,btfs_ledger=info,btfs_bittorrent=info")
    });
    let layer = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second subscriber in one process (tests) is no reason to fail.
    let _ = if json { layer.json().try_init() } else { layer.try_init() };
}

/// Open connections get so long to finish once the daemon stops.
const GRACE: Duration = Duration::from_secs(5);

/// Runs the daemon of `repo` until it is stopped; `ready` is told once when it serves.
pub async fn run(
    repo: Repo,
    key: SecretKey,
    ready: impl FnOnce(&Ready) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let lock = repo.lock()?;
    anyhow::ensure!(
        !lock.is_read_only(),
        "the disk of {} is read-only: a daemon cannot run on it; `btfs get`, `cat`, `ls`, `pin ls` and `repo verify` read \
         what is there",
        repo.root().display()
    );
    repo.clear_api_address();
    let node = Arc::new(Node::open(repo, lock).await?);
    anyhow::ensure!(key.public() == node.public_key, "the key file does not hold the key of this repo");
    node.store.cache_hot_blocks(node.config.storage.hot_blocks.0);
    let services = Services::start(&node, key).await?;
    node.go_online(services);
    let upkeep = tokio::spawn(crate::services::upkeep::run(node.clone()));
    let served = serve(&node, ready, &mut interrupt, &mut terminate).await;
    node.repo.clear_api_address();
    node.stop.cancel();
    node.store.stop_collecting();
    if let Err(error) = upkeep.await {
        tracing::error!(%error, "the upkeep of the store had failed");
    }
    let closed = node.clone().close().await;
    served?;
    closed
}

async fn serve(
    node: &Arc<Node>,
    ready: impl FnOnce(&Ready) -> anyhow::Result<()>,
    interrupt: &mut tokio::signal::unix::Signal,
    terminate: &mut tokio::signal::unix::Signal,
) -> anyhow::Result<()> {
    let guard = Guard::new(&node.repo.token()?, &node.config.api);
    let (api, api_task) =
        listen("API", node.config.api.listen, api::guarded(node.clone(), guard), node).await?;
    let mut tasks = vec![api_task];
    let mut gateway = None;
    if node.config.gateway.enabled {
        let router = api::gateway::router(node.clone());
        let (address, task) = listen("gateway", node.config.gateway.listen, router, node).await?;
        gateway = Some(format!("http://{address}"));
        tasks.push(task);
    }
    let services = node.services().map_err(|error| anyhow::anyhow!(error.message))?;
    let state = Ready {
        event: "ready",
        peer: node.peer.to_string(),
        api: format!("http://{api}"),
        gateway,
        swarm: crate::calls::setup::identity(node).await.addresses,
        bittorrent: services
            .torrents
            .as_ref()
            .and_then(|engine| engine.local_addr())
            .map(|address| address.to_string()),
    };
    node.repo.write_api_address(api)?;
    ready(&state)?;
    tokio::select! {
        _ = interrupt.recv() => tracing::info!("stopping: interrupted"),
        _ = terminate.recv() => tracing::info!("stopping: terminated"),
        () = node.stop.cancelled() => tracing::info!("stopping: asked to"),
    }
    node.stop.cancel();
    // Whoever waits for a collection need not be waited for.
    node.store.stop_collecting();
    for mut task in tasks {
        if tokio::time::timeout(GRACE, &mut task).await.is_err() {
            task.abort();
        }
    }
    Ok(())
}

/// Binds and serves until the node stops.
async fn listen(
    what: &'static str,
    address: SocketAddr,
    router: axum::Router,
    node: &Arc<Node>,
) -> anyhow::Result<(SocketAddr, tokio::task::JoinHandle<()>)> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("the {what} cannot listen on {address}; is another node running? Change it in config.toml")
    })?;
    let bound = listener.local_addr()?;
    let stop = node.stop.clone();
    let task = tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the {what} stopped serving");
        }
    });
    Ok((bound, task))
}
