//! What `btfs store status` shows: every place of a thing, what was proven, paid and is left, and its health.

use btfs_ledger::{B256, Btt, PublicKey};
use btfs_storage::Cid;
use btfs_storage::layout::Layout;
use serde::{Deserialize, Serialize};

use super::records::{RenterAgreement, Spread, Thing, ThingState};
use super::{RentError, RenterService};
use crate::audit::Verdict;
use crate::states::RenterState;

/// One agreement of a thing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlaceStatus {
    /// The agreement's id.
    pub agreement: B256,
    /// The channel that pays.
    pub channel: B256,
    /// Which column (or copy).
    pub column: u32,
    /// The host's node.
    pub peer: PublicKey,
    /// Where it stands.
    pub state: RenterState,
    /// Why it failed or closed early.
    pub reason: Option<String>,
    /// Whether the host holds its blocks, by the newest verdict.
    pub live: bool,
    /// Bytes it keeps.
    pub size: u64,
    /// Settlement time of epoch 0; 0 before both have signed.
    pub start: u64,
    /// Epochs of the term.
    pub epochs: u32,
    /// Seconds per epoch.
    pub epoch_length: u32,
    /// One letter per judged epoch: P pass, F fail, T timeout, O offline, - unknown after a lost state.
    pub days: String,
    /// Epochs proven.
    pub days_proven: u32,
    /// Epochs not proven.
    pub days_failed: u32,
    /// The newest verdict.
    pub last_verdict: Option<Verdict>,
    /// Price of an epoch.
    pub epoch_price_btt: Btt,
    /// Owed by the newest voucher.
    pub earned_btt: Btt,
    /// Whether the host has acknowledged that voucher.
    pub acknowledged: bool,
    /// Paid out by the settlement, as last read.
    pub redeemed_btt: Btt,
}

/// One stored thing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ThingStatus {
    /// Its id.
    pub id: B256,
    /// Root of the content.
    #[serde(with = "crate::cid_text")]
    pub root: Cid,
    /// The layout; none for copies.
    #[serde(with = "crate::cid_text::option", default)]
    pub layout: Option<Cid>,
    /// What the user calls it.
    pub name: Option<String>,
    /// How it is spread.
    pub spread: Spread,
    /// Where it stands.
    pub state: ThingState,
    /// Why it is incomplete.
    pub problem: Option<String>,
    /// Bytes of the content's blocks.
    pub size: u64,
    /// Losses of hosts that can still be taken; negative when content is lost. None once it is over.
    pub health: Option<i64>,
    /// Sum of all vouchers.
    pub spent_btt: Btt,
    /// All agreements, those that failed before they began included.
    pub places: Vec<PlaceStatus>,
}

impl RenterService {
    /// All things, oldest first.
    pub async fn list(&self) -> Result<Vec<ThingStatus>, RentError> {
        let mut things = self.0.things().await?;
        things.sort_by_key(|(_, t)| t.created);
        let agreements = self.0.agreements().await?;
        let mut out = Vec::with_capacity(things.len());
        for (id, thing) in things {
            out.push(self.describe(id, thing, &agreements).await);
        }
        Ok(out)
    }

    /// One thing, by its id, root or layout.
    pub async fn status(&self, name: &str) -> Result<ThingStatus, RentError> {
        let all = self.list().await?;
        let names = |t: &ThingStatus| {
            let layout = t.layout.is_some_and(|l| l.to_string() == name);
            hex::encode(t.id) == name.trim_start_matches("0x") || t.root.to_string() == name || layout
        };
        // The newest of that name.
        all.into_iter().rev().find(names).ok_or_else(|| RentError::Unknown(name.to_owned()))
    }

    async fn describe(&self, id: B256, thing: Thing, all: &[(B256, RenterAgreement)]) -> ThingStatus {
        let own: Vec<_> = all.iter().filter(|(_, r)| r.thing == id).collect();
        let live: Vec<bool> = thing
            .slots
            .iter()
            .map(|slot| own.iter().any(|(k, r)| Some(*k) == slot.agreement && r.is_live()))
            .collect();
        let health = match (thing.state, thing.spread, thing.layout) {
            (ThingState::Done, ..) => None,
            (_, Spread::Copies { .. }, _) | (_, _, None) => {
                Some(live.iter().filter(|l| **l).count() as i64 - 1)
            }
            (_, Spread::Coded { .. }, Some(layout)) => {
                let load = self.0.store.run(move |s| Layout::load(&layout, s)).await;
                load.inspect_err(|error| tracing::warn!(%error, "the health of a thing is not known"))
                    .ok()
                    .map(|layout| {
                        let (columns, anchors) = live.split_at(layout.columns().min(live.len()));
                        layout.health(columns, anchors.contains(&true))
                    })
            }
        };
        let mut places: Vec<PlaceStatus> = own.iter().map(|(k, r)| place_of(*k, r)).collect();
        places.sort_by_key(|p| p.column);
        let spent = places.iter().fold(Btt::ZERO, |sum, p| sum.checked_add(p.earned_btt).unwrap_or(Btt::MAX));
        ThingStatus {
            id,
            root: thing.root,
            layout: thing.layout,
            name: thing.name,
            spread: thing.spread,
            state: thing.state,
            problem: thing.problem,
            size: thing.size,
            health,
            spent_btt: spent,
            places,
        }
    }
}

fn place_of(id: B256, r: &RenterAgreement) -> PlaceStatus {
    PlaceStatus {
        agreement: id,
        channel: r.channel.id(),
        column: r.slot,
        peer: r.host,
        state: r.state,
        reason: r.reason.clone(),
        live: r.is_live(),
        size: r.agreement.size,
        start: r.agreement.start,
        epochs: r.ends.unwrap_or(r.agreement.end_epoch),
        epoch_length: r.agreement.epoch_length,
        days: r.days.clone(),
        days_proven: r.days_proven(),
        days_failed: r.days_failed(),
        last_verdict: r.verdict.clone(),
        epoch_price_btt: r.agreement.epoch_price,
        earned_btt: r.owed(),
        acknowledged: r.acknowledged || r.voucher.is_none(),
        redeemed_btt: r.paid,
    }
}
