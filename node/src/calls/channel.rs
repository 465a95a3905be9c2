//! Channels: BTT locked between this node and others, and how it moves on.

use std::sync::Arc;

use axum::Router;
use btfs_ledger::embedded::{Channel, Receipt};
use btfs_ledger::typed::ChannelTerms;
use btfs_ledger::{Address, B256, Btt};
use serde::{Deserialize, Serialize};

use super::wallet::parse_address;
use crate::api::call::{Answered, ApiError, route};
use crate::call;
use crate::node::Node;
use crate::services::Money;

/// Lists the channels in which this node has a role.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct ChannelListRequest {}

/// The channels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChannelList {
    /// In order of id.
    pub channels: Vec<ChannelInfo>,
}

call!(ChannelListRequest => ChannelList, "channel/ls");

/// One channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChannelInfo {
    /// Its id.
    pub channel: String,
    /// Who locked the money and is refunded.
    pub funder: String,
    /// Who signs vouchers.
    pub renter: String,
    /// Who signs agreements.
    pub host: String,
    /// Who is paid.
    pub payee: String,
    /// Seconds of notice before money can go back.
    pub window: u32,
    /// What vouchers can draw from.
    pub locked_btt: String,
    /// What the funder has announced to take back.
    pub pending_btt: String,
    /// From when it can be taken: unix seconds of settlement time.
    pub due: u64,
}

/// Locks BTT for a host. The market does this by itself; by hand it is for other uses of a channel.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelLockRequest {
    /// The host's address.
    pub host: String,
    /// Who is paid; default: the host.
    pub payee: Option<String>,
    /// How much.
    pub amount: String,
    /// Seconds of notice; default: 3 days.
    pub window: Option<u32>,
}

call!(ChannelLockRequest => ChannelInfo, "channel/lock");

/// As host: lets the funder have money back now. As funder: announces to take it back, or takes what is due.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelReleaseRequest {
    /// The channel's id.
    pub channel: String,
    /// How much; default: all that may go.
    pub amount: Option<String>,
}

call!(ChannelReleaseRequest => ChannelInfo, "channel/release");

/// As host: has the best vouchers of a channel paid out.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelRedeemRequest {
    /// The channel's id; default: all channels.
    pub channel: Option<String>,
}

/// What was paid out.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Redeemed {
    /// Agreements whose vouchers were redeemed.
    pub agreements: u32,
    /// Paid out by the settlement to these agreements in all.
    pub paid_btt: String,
}

call!(ChannelRedeemRequest => Redeemed, "channel/redeem");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    let router = route::<ChannelListRequest, _, _>(router, |node, _, _| async move { list(&node).await });
    let router =
        route::<ChannelLockRequest, _, _>(
            router,
            |node, request, _| async move { lock(&node, request).await },
        );
    let router = route::<ChannelReleaseRequest, _, _>(router, |node, request, _| async move {
        release(&node, request).await
    });
    route::<ChannelRedeemRequest, _, _>(
        router,
        |node, request, _| async move { redeem(&node, request).await },
    )
}

fn info(id: B256, channel: &Channel) -> ChannelInfo {
    ChannelInfo {
        channel: id.to_string(),
        funder: channel.terms.funder.to_string(),
        renter: channel.terms.renter.to_string(),
        host: channel.terms.host.to_string(),
        payee: channel.terms.payee.to_string(),
        window: channel.terms.window,
        locked_btt: channel.locked.to_string(),
        pending_btt: channel.pending.to_string(),
        due: channel.due,
    }
}

fn parse_id(text: &str) -> Result<B256, ApiError> {
    text.parse().map_err(|_| {
        ApiError::bad(format!("`{text}` is no channel id: 32 bytes in hex; `btfs channel ls` lists them"))
    })
}

fn parse_amount(text: &str) -> Result<Btt, ApiError> {
    text.parse().map_err(|error| ApiError::bad(format!("`{text}` is not an amount of BTT: {error}")))
}

async fn list(node: &Node) -> Answered<ChannelList> {
    /// More than a node has partners; a ledger that lists on for ever is stopped here.
    const MOST: usize = 10_000;
    let money = node.services()?.money()?;
    let mut channels: Vec<ChannelInfo> = Vec::new();
    let mut after = None;
    while channels.len() < MOST {
        let page = money.settlement.channels(node.address, after).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.terms.id());
        channels.extend(page.iter().map(|channel| info(channel.terms.id(), channel)));
    }
    Ok(ChannelList { channels })
}

async fn of(money: &Money, id: B256) -> Answered<Channel> {
    money
        .settlement
        .channel(id)
        .await?
        .ok_or_else(|| ApiError::not_found(format!("there is no channel {id}")))
}

/// A call that the ledger carried out, or why it did not.
fn done(receipt: &Receipt) -> Result<(), ApiError> {
    receipt.effect().map(|_| ()).map_err(|failure| ApiError::bad(failure.to_string()))
}

async fn lock(node: &Node, request: ChannelLockRequest) -> Answered<ChannelInfo> {
    const THREE_DAYS: u32 = 3 * 86_400;
    let money = node.services()?.money()?;
    let host: Address = parse_address(&request.host)?;
    let payee = request.payee.as_deref().map(parse_address).transpose()?.unwrap_or(host);
    let window = request.window.unwrap_or(THREE_DAYS);
    let terms = ChannelTerms { funder: node.address, renter: node.address, host, payee, window };
    done(&money.wallet.lock(&terms, parse_amount(&request.amount)?, None).await?)?;
    let id = terms.id();
    Ok(info(id, &of(money, id).await?))
}

async fn release(node: &Node, request: ChannelReleaseRequest) -> Answered<ChannelInfo> {
    let money = node.services()?.money()?;
    let id = parse_id(&request.channel)?;
    let channel = of(money, id).await?;
    let amount = request.amount.as_deref().map(parse_amount).transpose()?;
    if channel.terms.host == node.address {
        let owed = owed(node, id).await?;
        let free = channel.locked.saturating_sub(owed);
        let amount = amount.unwrap_or(free);
        if amount > free {
            return Err(ApiError::bad(format!(
                "{owed} BTT of the {} BTT locked are owed to this host; redeem first, or release at most {free} BTT",
                channel.locked
            )));
        }
        done(&money.wallet.release(id, amount, None).await?)?;
    } else if channel.terms.funder == node.address {
        let now = money.settlement.status().await?.time;
        let receipt = match amount {
            None if !channel.pending.is_zero() && now >= channel.due => money.wallet.finish(id).await?,
            amount => money.wallet.decrease(id, amount.unwrap_or(channel.locked)).await?,
        };
        done(&receipt)?;
    } else {
        return Err(ApiError::bad("this node is neither the host nor the funder of that channel"));
    }
    Ok(info(id, &of(money, id).await?))
}

/// What the vouchers of a channel promise this host and the settlement has not paid.
async fn owed(node: &Node, channel: B256) -> Result<Btt, ApiError> {
    let agreements = node.services()?.market()?.host().channel_agreements(channel).await?;
    agreements
        .iter()
        .try_fold(Btt::ZERO, |sum, (_, agreement)| sum.checked_add(agreement.unredeemed()))
        .ok_or_else(|| ApiError::bad("the sum of all vouchers does not fit 128 bits"))
}

async fn redeem(node: &Node, request: ChannelRedeemRequest) -> Answered<Redeemed> {
    let host = node.services()?.market()?.host();
    let channels = match &request.channel {
        Some(text) => vec![parse_id(text)?],
        None => {
            let all = list(node).await?.channels;
            let ours = all.iter().filter(|channel| channel.host == node.address.to_string());
            ours.map(|channel| parse_id(&channel.channel)).collect::<Result<_, _>>()?
        }
    };
    let (mut agreements, mut paid) = (0, Btt::ZERO);
    for channel in channels {
        for (id, agreement) in host.channel_agreements(channel).await? {
            if agreement.unredeemed().is_zero() {
                continue;
            }
            let now_paid = host.redeem(id).await?;
            agreements += 1;
            paid =
                paid.checked_add(now_paid).ok_or_else(|| ApiError::bad("the sum does not fit 128 bits"))?;
        }
    }
    Ok(Redeemed { agreements, paid_btt: paid.to_string() })
}
