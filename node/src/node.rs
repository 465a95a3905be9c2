//! An opened repo with its services: what every call works on.
//!
//! A node is always at least its repo and block store. The services that need a network are added once, by the
//! [`daemon`](crate::daemon); without them a call that needs one says so.

use std::sync::{Arc, OnceLock};

use btfs_ledger::{Address, PublicKey};
use btfs_p2p::PeerId;
use btfs_storage::{Quota, Store, StoreOptions};
use tokio_util::sync::CancellationToken;

use crate::api::call::ApiError;
use crate::config::Config;
use crate::network::NetworkFile;
use crate::repo::{Repo, RepoLock};
use crate::services::Services;

/// Program and version, as peers see it.
pub const AGENT: &str = concat!("btfs/", env!("CARGO_PKG_VERSION"));

/// One node.
pub struct Node {
    /// Its directory.
    pub repo: Repo,
    /// Its settings.
    pub config: Config,
    /// The network it belongs to.
    pub network: NetworkFile,
    /// Its blocks and state.
    pub store: Store,
    /// Its public key, which is also its market identity.
    pub public_key: PublicKey,
    /// Its libp2p name.
    pub peer: PeerId,
    /// The address that holds its BTT.
    pub address: Address,
    /// Cancelled when the daemon shall stop.
    pub stop: CancellationToken,
    services: OnceLock<Services>,
    _lock: RepoLock,
}

impl Node {
    /// Opens the databases of `repo`.
    pub async fn open(repo: Repo, lock: RepoLock) -> anyhow::Result<Self> {
        let config = repo.config()?;
        let network = repo.network()?;
        let public_key = btfs_ledger::keyfile::inspect(&repo.key_path())?.public_key;
        let options = StoreOptions {
            path: repo.root().to_owned(),
            tables: crate::services::tables(),
            quota: Quota {
                own: config.storage.quota.map(|size| size.0),
                hosted: None,
                cache: config.storage.cache.map(|size| size.0),
            },
            reserve_bytes: config.storage.reserve.0,
        };
        let store = tokio::task::spawn_blocking(move || Store::open(options)).await??;
        Ok(Self {
            peer: btfs_p2p::peer_from_public_key(public_key.as_bytes())?,
            address: public_key.address(),
            public_key,
            repo,
            config,
            network,
            store,
            stop: CancellationToken::new(),
            services: OnceLock::new(),
            _lock: lock,
        })
    }

    /// Adds the running services; once.
    pub fn go_online(&self, services: Services) {
        assert!(self.services.set(services).is_ok(), "a node goes online once");
    }

    /// Whether a daemon's services run.
    pub fn is_online(&self) -> bool {
        self.services.get().is_some()
    }

    /// The services, if a daemon runs.
    pub fn services(&self) -> Result<&Services, ApiError> {
        self.services.get().ok_or_else(|| {
            ApiError::unavailable(
                "this needs a running daemon, and none has this repo; start one with `btfs daemon`",
            )
        })
    }

    /// The libp2p host, if it runs.
    pub fn host(&self) -> Result<&btfs_p2p::Host, ApiError> {
        self.services()?
            .host
            .as_ref()
            .ok_or_else(|| ApiError::unavailable("libp2p is off (swarm.enabled = false in config.toml)"))
    }

    /// Closes the databases, in order: services first.
    pub async fn close(self: Arc<Self>) -> anyhow::Result<()> {
        if let Some(services) = self.services.get() {
            services.stop().await;
        }
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.close()).await??;
        Ok(())
    }
}
