//! The services of a running daemon, wired together.
//!
//! The block store is below all of them. libp2p comes first, since the ledger's client and the market speak over it;
//! its handlers are named before it starts and answered once the service behind them runs. None of them needs the
//! network to be there: each waits for what it needs while the others serve.

use std::sync::{Arc, OnceLock};

use anyhow::Context;
use async_trait::async_trait;
use btfs_bittorrent::{Engine, EngineConfig};
use btfs_ledger::SecretKey;
use btfs_ledger::embedded::{Ledger, LedgerId, LedgerOptions};
use btfs_ledger::settlement::{LedgerService, LocalLedger, RemoteLedger, Settlement};
use btfs_ledger::wallet::Wallet;
use btfs_market::{Market, MarketConfig, messages};
use btfs_p2p::{Host, HostConfig, PeerId, RpcHandler, RpcService};
use btfs_storage::{Cid, Store};

use crate::api::call::ApiError;
use crate::node::{AGENT, Node};
use crate::retrieve::{LAYOUT_TABLE, LayoutRequest, LayoutResponse, known_layouts};

pub mod announce;
pub mod courier;
mod policy;
pub mod upkeep;

use courier::{LedgerPeer, Libp2p, key_of};
use policy::Withholding;

/// Who has the layout of a root.
pub const LAYOUT: &str = "/btfs/layout/1";
/// The ledger's protocol.
pub const LEDGER: &str = btfs_ledger::settlement::PROTOCOL;

/// The market's protocols with their longest requests and answers in bytes.
const MARKET_PROTOCOLS: [(&str, usize, usize); 3] = [
    (messages::OFFER_PROTOCOL, messages::MAX_OFFER_FRAME, messages::MAX_OFFER_FRAME),
    (messages::RENTAL_PROTOCOL, messages::MAX_RENTAL_REQUEST, messages::MAX_RENTAL_REPLY),
    (messages::AUDIT_PROTOCOL, messages::MAX_AUDIT_REQUEST, messages::MAX_AUDIT_REPLY),
];

/// The tables of all crates, and of this one.
pub fn tables() -> Vec<&'static str> {
    let mut tables =
        vec![LAYOUT_TABLE.name(), crate::parity::COPIES_TABLE.name(), announce::HOSTED_TABLE.name()];
    tables.extend(btfs_p2p::TABLES);
    tables.extend(btfs_bittorrent::records::TABLES);
    tables.extend(btfs_ledger::TABLES);
    tables.extend(btfs_market::TABLES);
    tables
}

/// What moves BTT.
pub struct Money {
    /// The network's ledger.
    pub settlement: Arc<dyn Settlement>,
    /// This node's account.
    pub wallet: Wallet,
    /// The ledger itself, if this node operates it.
    pub operated: Option<LocalLedger>,
}

/// Everything that runs.
pub struct Services {
    /// libp2p, if it is on.
    pub host: Option<Host>,
    /// BitTorrent, if it is on.
    pub torrents: Option<Engine>,
    money: Option<Money>,
    market: Option<Running>,
}

/// A market and the task that drives it. Whatever it does can be broken off and is taken up at the next start.
struct Running {
    market: Market,
    task: tokio::task::JoinHandle<()>,
}

impl Services {
    /// Starts what the configuration has on.
    pub async fn start(node: &Arc<Node>, key: SecretKey) -> anyhow::Result<Self> {
        let late = Late::default();
        let host = match node.config.swarm.enabled {
            true => Some(Host::start(host_config(node, &key, &late)?).await.context("libp2p cannot start")?),
            false => None,
        };
        if let Some(host) = &host {
            tokio::spawn(announce::own(node.store.clone(), host.clone()));
        }
        let torrents = match node.config.bittorrent.enabled {
            true => Some(Engine::start(engine_config(node)).await.context("BitTorrent cannot start")?),
            false => None,
        };
        let money = money(node, &key, host.as_ref(), &late).await?;
        let market = match (&money, &host) {
            (Some(money), Some(host)) => Some(market(node, key, money, host, &late).await?),
            _ => None,
        };
        Ok(Self { host, torrents, money, market })
    }

    /// What moves BTT, or how to get it.
    pub fn money(&self) -> Result<&Money, ApiError> {
        self.money.as_ref().ok_or_else(|| {
            ApiError::unavailable(
                "this network has no ledger, so no BTT can be moved here. Join one that has: `btfs config network FILE` with its network file; or make your own with `btfs ledger init`",
            )
        })
    }

    /// The market, or how to get one.
    pub fn market(&self) -> Result<&Market, ApiError> {
        self.money()?;
        self.market.as_ref().map(|running| &running.market).ok_or_else(|| {
            ApiError::unavailable("renting needs libp2p, which is off (swarm.enabled = false in config.toml)")
        })
    }

    /// The BitTorrent engine.
    pub fn torrents(&self) -> Result<&Engine, ApiError> {
        self.torrents.as_ref().ok_or_else(|| {
            ApiError::unavailable("BitTorrent is off (bittorrent.enabled = false in config.toml)")
        })
    }

    /// Stops them in order: the market, the peer wire, libp2p.
    pub async fn stop(&self) {
        if let Some(market) = &self.market {
            market.task.abort();
        }
        if let Some(torrents) = &self.torrents {
            torrents.shutdown().await;
        }
        if let Some(host) = &self.host {
            host.shutdown().await;
        }
    }
}

/// Services behind protocol handlers that are named before the services run.
#[derive(Clone, Default)]
struct Late {
    withholding: Withholding,
    ledger: Arc<OnceLock<LedgerService>>,
    market: Arc<OnceLock<Market>>,
}

fn host_config(node: &Arc<Node>, key: &SecretKey, late: &Late) -> anyhow::Result<HostConfig> {
    let parse =
        |address: &String| address.parse().with_context(|| format!("`{address}` is not a multiaddress"));
    Ok(HostConfig {
        secret: *key.to_bytes(),
        listen: node.config.swarm.listen.iter().map(parse).collect::<anyhow::Result<_>>()?,
        network: node.network.name.parse()?,
        bootstrap: node.network.bootstrap.iter().map(parse).collect::<anyhow::Result<_>>()?,
        store: node.store.clone(),
        serve: Arc::new(late.withholding.clone()),
        rpc: handlers(node, late),
        agent: AGENT.into(),
        announce: Vec::new(),
    })
}

fn engine_config(node: &Node) -> EngineConfig {
    let mut config = EngineConfig::new(node.store.clone(), Some(node.config.bittorrent.listen));
    config.limits.connections = node.config.bittorrent.max_connections as usize;
    config
}

fn handlers(node: &Arc<Node>, late: &Late) -> Vec<RpcService> {
    let mut services = vec![
        RpcService {
            protocol: LAYOUT,
            max_request: 1 << 10,
            max_response: 1 << 10,
            handler: Arc::new(LayoutHandler { store: node.store.clone() }),
        },
        RpcService {
            protocol: LEDGER,
            max_request: btfs_ledger::settlement::MAX_REQUEST,
            max_response: btfs_ledger::settlement::MAX_RESPONSE,
            handler: Arc::new(LedgerHandler(late.ledger.clone())),
        },
    ];
    for (protocol, max_request, max_response) in MARKET_PROTOCOLS {
        services.push(RpcService {
            protocol,
            max_request,
            max_response,
            handler: Arc::new(MarketHandler { protocol, market: late.market.clone() }),
        });
    }
    services
}

async fn money(
    node: &Arc<Node>,
    key: &SecretKey,
    host: Option<&Host>,
    late: &Late,
) -> anyhow::Result<Option<Money>> {
    let Some(entry) = &node.network.ledger else { return Ok(None) };
    let operator: PeerId = entry.peer.parse()?;
    let state = node.store.state().clone();
    let (settlement, operated): (Arc<dyn Settlement>, _) = if operator == node.peer {
        let options = LedgerOptions::new(node.network.local);
        let ledger = node.store.run(move |store| Ledger::open(store.state().clone(), options)).await?;
        let local = LocalLedger::new(Arc::new(ledger));
        let service = LedgerService::new(local.clone(), key.clone())?;
        // Set once: services start once.
        let _ = late.ledger.set(service);
        (Arc::new(local.clone()), Some(local))
    } else {
        let Some(host) = host else { return Ok(None) };
        let operator_key = key_of(&operator).context("the ledger's operator has no secp256k1 key")?;
        let genesis: [u8; 32] = hex::decode(&entry.genesis)?
            .try_into()
            .map_err(|_| anyhow::anyhow!("genesis is not 32 bytes"))?;
        let id = LedgerId { operator: operator_key, genesis: genesis.into() };
        let transport = Arc::new(LedgerPeer::new(host.clone(), operator));
        (Arc::new(RemoteLedger::open(id, state.clone(), transport)?), None)
    };
    let wallet = Wallet::new(state, key.clone(), settlement.clone());
    Ok(Some(Money { settlement, wallet, operated }))
}

async fn market(
    node: &Arc<Node>,
    key: SecretKey,
    money: &Money,
    host: &Host,
    late: &Late,
) -> anyhow::Result<Running> {
    let libp2p = Arc::new(Libp2p::new(host.clone()));
    let market = Market::open(MarketConfig {
        store: node.store.clone(),
        settlement: money.settlement.clone(),
        wallet: money.wallet.clone(),
        key,
        local: node.network.local,
        courier: libp2p.clone(),
        puller: libp2p.clone(),
        discovery: libp2p,
    })
    .await?;
    late.withholding.decide_by(market.renter().clone());
    let _ = late.market.set(market.clone());
    let driven = market.clone();
    let announced = announce::run(node.store.clone(), host.clone(), market.clone());
    let task = tokio::spawn(async move {
        tokio::join!(driven.run(), announced);
    });
    Ok(Running { market, task })
}

struct LayoutHandler {
    store: Store,
}

#[async_trait]
impl RpcHandler for LayoutHandler {
    async fn handle(&self, _: PeerId, request: Vec<u8>) -> Result<Vec<u8>, String> {
        let request: LayoutRequest =
            serde_ipld_dagcbor::from_slice(&request).map_err(|error| error.to_string())?;
        let root: Cid = request.root.parse().map_err(|error| format!("not a CID: {error}"))?;
        let known = self
            .store
            .run(move |store| known_layouts(store, &root))
            .await
            .map_err(|error| error.to_string())?;
        let answer = LayoutResponse { layouts: known.iter().map(ToString::to_string).collect() };
        serde_ipld_dagcbor::to_vec(&answer).map_err(|error| error.to_string())
    }
}

struct LedgerHandler(Arc<OnceLock<LedgerService>>);

#[async_trait]
impl RpcHandler for LedgerHandler {
    async fn handle(&self, peer: PeerId, request: Vec<u8>) -> Result<Vec<u8>, String> {
        let service = self.0.get().ok_or("this node operates no ledger")?;
        let key = key_of(&peer).ok_or("peers of the ledger need a secp256k1 identity")?;
        service.handle(&key, &request).await
    }
}

struct MarketHandler {
    protocol: &'static str,
    market: Arc<OnceLock<Market>>,
}

#[async_trait]
impl RpcHandler for MarketHandler {
    async fn handle(&self, peer: PeerId, request: Vec<u8>) -> Result<Vec<u8>, String> {
        let key = key_of(&peer).ok_or("market peers need a secp256k1 identity")?;
        let market = self.market.get().ok_or("this node has no market, or is still starting")?;
        market.handle(self.protocol, key, request).await
    }
}
