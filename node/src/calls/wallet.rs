//! BTT: the account's balance, transfers, its history.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use btfs_ledger::{Address, Btt};
use serde::{Deserialize, Serialize};

use crate::api::call::{Answered, ApiError, route};
use crate::call;
use crate::node::Node;

/// Asks for the balance of an account.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BalanceRequest {
    /// Whose; default: this node's.
    pub address: Option<String>,
}

/// What an account has.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Balance {
    /// The account.
    pub address: String,
    /// What it can spend.
    pub balance_btt: String,
    /// Calls it has made.
    pub nonce: u64,
}

call!(BalanceRequest => Balance, "wallet/balance");

/// Sends BTT to an account.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SendRequest {
    /// To whom.
    pub to: String,
    /// How much.
    pub amount: String,
}

/// A transfer that took effect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sent {
    /// To whom.
    pub to: String,
    /// How much.
    pub amount_btt: String,
    /// The call's number in the account.
    pub nonce: u64,
}

call!(SendRequest => Sent, "wallet/send");

/// Asks what concerned an account.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryRequest {
    /// At most so many, newest first; default 20.
    pub limit: Option<usize>,
}

/// What concerned the account, newest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct History {
    /// The entries, as the ledger tells them.
    pub entries: Vec<serde_json::Value>,
}

call!(HistoryRequest => History, "wallet/history");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router =
        route::<BalanceRequest, _, _>(
            router,
            |node, request, _| async move { balance(&node, request).await },
        );
    let router =
        route::<SendRequest, _, _>(router, |node, request, _| async move { send(&node, request).await });
    route::<HistoryRequest, _, _>(router, |node, request, _| async move { history(&node, request).await })
}

/// Parses an address of a request.
pub fn parse_address(text: &str) -> Result<Address, ApiError> {
    text.parse().map_err(|error| ApiError::bad(format!("`{text}` is not an address: {error}")))
}

async fn balance(node: &Node, request: BalanceRequest) -> Answered<Balance> {
    let address = request.address.as_deref().map(parse_address).transpose()?.unwrap_or(node.address);
    let account = node.services()?.money()?.settlement.account(address).await?;
    Ok(Balance {
        address: address.to_string(),
        balance_btt: account.balance.to_string(),
        nonce: account.nonce,
    })
}

async fn send(node: &Node, request: SendRequest) -> Answered<Sent> {
    /// A transfer that is not confirmed by then is still made once, when the ledger can be reached again.
    const PATIENCE: Duration = Duration::from_secs(30);
    let to = parse_address(&request.to)?;
    let amount: Btt = request
        .amount
        .parse()
        .map_err(|error| ApiError::bad(format!("`{}` is not an amount of BTT: {error}", request.amount)))?;
    let money = node.services()?.money()?;
    let receipt = tokio::time::timeout(PATIENCE, money.wallet.transfer(to, amount, None)).await.map_err(|_| {
        ApiError::unavailable("the ledger has not confirmed the transfer yet; it is on record and will be made once. See `btfs wallet history`")
    })??;
    Ok(Sent { to: to.to_string(), amount_btt: amount.to_string(), nonce: receipt.nonce })
}

async fn history(node: &Node, request: HistoryRequest) -> Answered<History> {
    let limit = request.limit.unwrap_or(20).clamp(1, 1000);
    let entries = node.services()?.money()?.settlement.history(node.address, None, limit).await?;
    let entries = entries.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    Ok(History { entries })
}
