//! The ledger: making one for a private network, its state, its clock.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use btfs_ledger::embedded::{Genesis, Ledger, LedgerOptions};
use btfs_ledger::{Address, Btt};
use serde::{Deserialize, Serialize};

use crate::api::call::{Answered, ApiError, route};
use crate::call;
use crate::network::{LedgerEntry, NetworkFile};
use crate::node::Node;

/// Makes a ledger that this node operates, and the file of its network.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerInitRequest {
    /// All the BTT there will ever be; what is not allocated goes to this node.
    pub supply: String,
    /// First balances, as address and amount.
    pub allocations: Vec<(String, String)>,
    /// The network's name.
    pub name: String,
    /// One machine or laboratory: no subnet caps, and the clock can be stepped.
    pub local: bool,
    /// Multiaddresses of this node, without peer id; default: those of the configuration that name a real one.
    pub bootstrap: Vec<String>,
    /// Where the network file goes: an absolute path that does not exist.
    pub out: PathBuf,
}

/// The ledger that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LedgerMade {
    /// keccak256 of the genesis, hex.
    pub genesis: String,
    /// The operator's peer id.
    pub operator: String,
    /// All the BTT there is.
    pub supply_btt: String,
    /// The network file.
    pub network_file: PathBuf,
    /// Its bootstrap addresses.
    pub bootstrap: Vec<String>,
}

call!(LedgerInitRequest => LedgerMade, "ledger/init");

/// Asks for the ledger's state.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct LedgerStatusRequest {}

/// The ledger's state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LedgerStatus {
    /// The operator's peer id.
    pub operator: String,
    /// keccak256 of the genesis, hex.
    pub genesis: String,
    /// Whether this node is the operator.
    pub operated_here: bool,
    /// Number of events so far.
    pub seq: u64,
    /// Hash over all of them, hex.
    pub head: String,
    /// Settlement time in unix seconds.
    pub time: u64,
    /// All BTT, summed anew over accounts and locks; only the operator can tell.
    pub supply_btt: Option<String>,
}

call!(LedgerStatusRequest => LedgerStatus, "ledger/status");

/// Moves the ledger's clock on, in a network declared local.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LedgerStepRequest {
    /// By so many seconds.
    pub seconds: u64,
}

call!(LedgerStepRequest => LedgerStatus, "ledger/step");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router =
        route::<LedgerInitRequest, _, _>(
            router,
            |node, request, _| async move { init(&node, request).await },
        );
    let router = route::<LedgerStatusRequest, _, _>(router, |node, _, _| async move { status(&node).await });
    route::<LedgerStepRequest, _, _>(
        router,
        |node, request, _| async move { step(&node, request.seconds).await },
    )
}

fn amount(text: &str) -> Result<Btt, ApiError> {
    text.parse().map_err(|error| ApiError::bad(format!("`{text}` is not an amount of BTT: {error}")))
}

async fn init(node: &Node, request: LedgerInitRequest) -> Answered<LedgerMade> {
    if node.is_online() {
        return Err(ApiError::bad(
            "a daemon runs on this repo; stop it with `btfs shutdown`, then make the ledger",
        ));
    }
    if node.network.ledger.is_some() {
        return Err(ApiError::bad(
            "this node's network already has a ledger; nothing was changed. Make another ledger in another repo",
        ));
    }
    let bootstrap = bootstrap_addresses(node, &request.bootstrap)?;
    let genesis = genesis(node, &request)?;
    let network = NetworkFile {
        name: request.name.clone(),
        local: request.local,
        bootstrap: bootstrap.clone(),
        ledger: Some(LedgerEntry { peer: node.peer.to_string(), genesis: hex::encode(genesis.hash()) }),
    };
    network.check().map_err(ApiError::bad)?;
    if request.out.exists() {
        return Err(ApiError::bad(format!("{} already exists; nothing was changed", request.out.display())));
    }
    let made = LedgerMade {
        genesis: hex::encode(genesis.hash()),
        operator: node.peer.to_string(),
        supply_btt: genesis.supply().to_string(),
        network_file: request.out.clone(),
        bootstrap,
    };
    let local = request.local;
    node.store
        .run(move |store| Ledger::create(store.state().clone(), genesis, LedgerOptions::new(local)).map(drop))
        .await?;
    crate::repo::write_new(&request.out, network.to_toml().as_bytes())?;
    node.repo.write_network(&network)?;
    Ok(made)
}

fn genesis(node: &Node, request: &LedgerInitRequest) -> Result<Genesis, ApiError> {
    use btfs_ledger::embedded::DEFAULT_ANSWER_SECONDS;
    let supply = amount(&request.supply)?;
    let mut left = supply;
    let mut allocations = Vec::new();
    for (address, share) in &request.allocations {
        let address: Address = address
            .parse()
            .map_err(|error| ApiError::bad(format!("`{address}` is not an address: {error}")))?;
        let share = amount(share)?;
        left = left.checked_sub(share).ok_or_else(|| {
            ApiError::bad(format!(
                "the allocations sum to more than the supply of {supply} BTT; nothing was made"
            ))
        })?;
        allocations.push((address, share));
    }
    allocations.push((node.address, left));
    Genesis::new(node.public_key, allocations, DEFAULT_ANSWER_SECONDS).map_err(ApiError::bad)
}

/// What others can dial: the addresses given, or the configured ones that name an interface and a port.
fn bootstrap_addresses(node: &Node, given: &[String]) -> Result<Vec<String>, ApiError> {
    let usable = |address: &String| {
        !address.contains("/0.0.0.0/")
            && !address.contains("/::/")
            && !address.contains("/tcp/0")
            && !address.contains("/udp/0")
    };
    let addresses: Vec<String> = if given.is_empty() {
        node.config.swarm.listen.iter().filter(|address| usable(address)).cloned().collect()
    } else {
        given.to_vec()
    };
    if addresses.is_empty() {
        return Err(ApiError::bad(
            "others need an address to join through: give --bootstrap /ip4/IP/tcp/4101 with an address of this machine; nothing was made",
        ));
    }
    Ok(addresses.iter().map(|address| format!("{address}/p2p/{}", node.peer)).collect())
}

/// The ledger's state.
pub async fn status(node: &Node) -> Answered<LedgerStatus> {
    let money = node.services()?.money()?;
    let status = money.settlement.status().await?;
    let supply = match &money.operated {
        Some(local) => Some(local.run(|ledger| Ok(ledger.audit_supply()?)).await?),
        None => None,
    };
    let entry =
        node.network.ledger.as_ref().ok_or_else(|| ApiError::unavailable("this network has no ledger"))?;
    Ok(LedgerStatus {
        operator: entry.peer.clone(),
        genesis: entry.genesis.clone(),
        operated_here: money.operated.is_some(),
        seq: status.seq,
        head: hex::encode(status.head),
        time: status.time,
        supply_btt: supply
            .and_then(|audit| audit.balances.checked_add(audit.locked))
            .map(|sum| sum.to_string()),
    })
}

async fn step(node: &Node, seconds: u64) -> Answered<LedgerStatus> {
    let money = node.services()?.money()?;
    let Some(local) = &money.operated else {
        return Err(ApiError::bad("only the operator of the ledger can step its clock"));
    };
    let ledger = local.ledger().clone();
    tokio::task::spawn_blocking(move || ledger.step(seconds)).await??;
    status(node).await
}
