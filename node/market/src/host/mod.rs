//! Renting out: what a host does with proposals, blocks, audits and vouchers.
//!
//! The node hands every request of the market's protocols to [`HostService::rental`], [`HostService::offer`] and
//! [`HostService::audit`]; the market's loop calls [`HostService::tick`] when settlement time moves. Each step of the
//! protocol is one file here: [`propose`] (space), [`receive`] (blocks), [`sign`](sign), [`prove`], [`paid`]
//! (vouchers and redemption), [`notice`] (early ends), [`tick`] (what time does) and [`collect`] (space).
//!
//! Invariants:
//!
//! - A record changes only through [`Inner::change`]: under one lock, in one synced batch with the pins and space
//!   that belong to it, before anything is answered.
//! - Nothing is counted on from the network before it is checked: lists against their digest, blocks against their
//!   hashes, sums against the terms, roots against our own.
//! - Audits are answered from the local store alone.

mod collect;
mod notice;
mod offers;
mod paid;
mod propose;
mod prove;
mod receive;
pub(crate) mod records;
mod sign;
pub(crate) mod tick;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use btfs_ledger::{B256, Btt, PublicKey, SecretKey};
use btfs_storage::blocklist::BlockList;
use btfs_storage::db::{Batch, DbError};
use btfs_storage::{Class, Store, StoreError};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Semaphore;

use crate::events::Events;
use crate::messages::{Refusal, RentalReply, RentalRequest};
use crate::money::Money;
use crate::ports::{Courier, Discovery, Puller};
use crate::schedule::Schedule;
use crate::states::HostState;
pub use records::{HostAgreement, HostSettings};

/// Pulls that run at once: each holds a few MiB; more would only share the same disk.
const MAX_PULLS: usize = 4;
/// Audits that are answered at once, for the same reason.
const MAX_PROOFS: usize = 4;

/// Why a command of the host's operator failed.
#[derive(Debug, Error)]
pub enum HostError {
    /// The state database failed.
    #[error("the host's records cannot be read or written: {0}")]
    Db(#[from] DbError),
    /// The block store failed.
    #[error("the block store failed: {0}")]
    Store(#[from] StoreError),
    /// A setting that makes no sense.
    #[error("{0}; the settings were not changed")]
    Setting(String),
    /// No such agreement.
    #[error("no agreement {0} on this host")]
    Unknown(B256),
    /// The settlement.
    #[error(transparent)]
    Money(#[from] crate::money::MoneyError),
    /// Refused by a rule.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Rents out this node's disk. Cloning is cheap.
#[derive(Clone)]
pub struct HostService(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub store: Store,
    pub money: Money,
    pub key: SecretKey,
    pub local: bool,
    pub courier: Arc<dyn Courier>,
    pub puller: Arc<dyn Puller>,
    pub discovery: Arc<dyn Discovery>,
    pub events: Events,
    settings: RwLock<HostSettings>,
    /// Held over every read-change-commit of a record.
    write: Mutex<()>,
    /// Lists that arrive in pages.
    incoming: Mutex<HashMap<B256, propose::Incoming>>,
    /// Pulls under way.
    pulls: Mutex<HashMap<B256, receive::Pull>>,
    pull_slots: Arc<Semaphore>,
    /// Pulls for agreements whose lock was not seen: one at a time, so that they never keep out those that pay.
    unfunded_slot: Arc<Semaphore>,
    proof_slots: Semaphore,
    provers: Mutex<prove::Provers>,
    /// Whether blocks of agreements that are over may wait for a collection.
    garbage: AtomicBool,
    collecting: Mutex<collect::Collecting>,
    /// Whether a collection runs; changes under the lock of `collecting`.
    collects: tokio::sync::watch::Sender<bool>,
    /// Settlement time of this process's first tick.
    up_since: OnceLock<u64>,
    /// Agreements that are not paid for as they should be: when that was first seen, on the settlement's clock and on
    /// ours.
    pub arrears: Mutex<HashMap<B256, (u64, Instant)>>,
    /// Agreements whose renter is being told of their end.
    telling: Mutex<HashSet<B256>>,
    /// Agreements whose vouchers were refused since the settlement did not answer: what they owe is not their fault.
    unsettled: Mutex<HashSet<B256>>,
    /// One redemption at a time: each reads, calls and records.
    paying: tokio::sync::Mutex<()>,
    /// Settlement time through which all work is done.
    worked_through: tokio::sync::watch::Sender<u64>,
}

/// What the host's status shows of one agreement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostAgreementStatus {
    /// Its id.
    pub id: B256,
    /// Where it stands.
    pub state: HostState,
    /// Why it failed or closed early.
    pub reason: Option<String>,
    /// The renter's node.
    pub renter: PublicKey,
    /// Bytes kept.
    pub size: u64,
    /// Settlement time of epoch 0; 0 before both have signed.
    pub start: u64,
    /// End of the term in epochs.
    pub epochs: u32,
    /// Epochs answered with a proof.
    pub epochs_proven: u32,
    /// Price of an epoch.
    pub epoch_price_btt: Btt,
    /// Owed by the best voucher.
    pub earned_btt: Btt,
    /// Paid out by the settlement.
    pub redeemed_btt: Btt,
}

/// What the host's status shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostStatus {
    /// The settings in force.
    pub settings: HostSettings,
    /// Bytes promised or held for agreements.
    pub used_bytes: u64,
    /// Bytes still for rent.
    pub free_bytes: u64,
    /// Owed by all vouchers.
    pub earned_btt: Btt,
    /// Paid out.
    pub redeemed_btt: Btt,
    /// What would be earned if every running agreement were proven to its end.
    pub expected_btt: Btt,
    /// All agreements on record.
    pub agreements: Vec<HostAgreementStatus>,
}

/// The parts a host service is made of.
pub(crate) struct HostParts {
    pub store: Store,
    pub money: Money,
    pub key: SecretKey,
    pub local: bool,
    pub courier: Arc<dyn Courier>,
    pub puller: Arc<dyn Puller>,
    pub discovery: Arc<dyn Discovery>,
    pub events: Events,
}

impl HostService {
    /// Opens the service over its records.
    pub(crate) async fn open(parts: HostParts) -> Result<HostService, HostError> {
        let settings = parts
            .store
            .run(|s| s.state().get(&records::SETTINGS, &records::SETTINGS_KEY.to_owned()))
            .await?
            .unwrap_or_default();
        let left_over = parts.store.run(left_over).await?;
        Ok(HostService(Arc::new(Inner {
            store: parts.store,
            money: parts.money,
            key: parts.key,
            local: parts.local,
            courier: parts.courier,
            puller: parts.puller,
            discovery: parts.discovery,
            events: parts.events,
            settings: RwLock::new(settings),
            write: Mutex::new(()),
            incoming: Mutex::new(HashMap::new()),
            pulls: Mutex::new(HashMap::new()),
            pull_slots: Arc::new(Semaphore::new(MAX_PULLS)),
            unfunded_slot: Arc::new(Semaphore::new(1)),
            proof_slots: Semaphore::new(MAX_PROOFS),
            provers: Mutex::new(prove::Provers::default()),
            garbage: AtomicBool::new(left_over),
            collecting: Mutex::default(),
            collects: tokio::sync::watch::Sender::new(false),
            up_since: OnceLock::new(),
            arrears: Mutex::new(HashMap::new()),
            telling: Mutex::new(HashSet::new()),
            unsettled: Mutex::new(HashSet::new()),
            paying: tokio::sync::Mutex::new(()),
            worked_through: tokio::sync::watch::Sender::new(0),
        })))
    }

    /// Answers a request of `/btfs/rental/1` that concerns this host.
    pub async fn rental(&self, peer: PublicKey, request: RentalRequest) -> RentalReply {
        let answer = match request {
            RentalRequest::Propose { proposal, page } => self.propose(peer, *proposal, page).await,
            RentalRequest::ListPage { id, page, bytes } => self.list_page(peer, id, page, bytes).await,
            RentalRequest::Deliver { id } => self.deliver(peer, id).await,
            RentalRequest::Sign(signed) => self.sign(peer, *signed).await,
            RentalRequest::Status { id } => self.agreement_status(peer, id).await,
            RentalRequest::Voucher { id, voucher } => self.voucher(peer, id, voucher).await,
            RentalRequest::Cancel { id, epoch } => self.cancelled(peer, id, epoch).await,
            RentalRequest::Quit { .. } => {
                Err(Refusal::WrongState("asked of a host instead of a renter".into()))
            }
        };
        answer.unwrap_or_else(RentalReply::Refused)
    }

    /// The settings in force.
    pub fn settings(&self) -> HostSettings {
        self.0.settings.read().clone()
    }

    /// Changes the settings; agreements that run keep their terms.
    pub async fn set(&self, settings: HostSettings) -> Result<(), HostError> {
        check_settings(&settings)?;
        let stored = settings.clone();
        self.0
            .store
            .run(move |s| {
                let mut batch = s.state().batch();
                batch.put(&records::SETTINGS, &records::SETTINGS_KEY.to_owned(), &stored)?;
                s.state().commit(batch)
            })
            .await?;
        *self.0.settings.write() = settings;
        Ok(())
    }

    /// Begins to take new agreements and announces it.
    pub async fn start(&self) -> Result<(), HostError> {
        self.set(HostSettings { renting: true, ..self.settings() }).await?;
        self.0.discovery.announce_host().await;
        Ok(())
    }

    /// Announces the node as a host, as after a restart.
    pub(crate) async fn announce(&self) {
        self.0.discovery.announce_host().await;
    }

    /// Takes no new agreements any more; those that run are kept to their end.
    pub async fn stop(&self) -> Result<(), HostError> {
        self.set(HostSettings { renting: false, ..self.settings() }).await?;
        self.0.discovery.withdraw_host().await;
        Ok(())
    }

    /// The blocks that an agreement of this host is about.
    pub async fn block_list(&self, id: B256) -> Result<BlockList, HostError> {
        self.0.record(id).await?.ok_or(HostError::Unknown(id))?;
        Ok(self.0.list(id).await?)
    }

    /// Everything `btfs host status` shows.
    pub async fn status(&self) -> Result<HostStatus, HostError> {
        let all = self.0.all().await?;
        let settings = self.settings();
        let used = used_bytes(&all);
        let sum = |part: fn(&HostAgreement) -> Btt| {
            all.iter().fold(Btt::ZERO, |acc, (_, r)| acc.checked_add(part(r)).unwrap_or(Btt::MAX))
        };
        let expected = sum(|r| match r.state {
            HostState::Active => r.earned().checked_add(r.still_possible()).unwrap_or(Btt::MAX),
            _ => r.earned(),
        });
        Ok(HostStatus {
            used_bytes: used,
            free_bytes: settings.capacity.saturating_sub(used),
            earned_btt: sum(HostAgreement::earned),
            redeemed_btt: sum(|r| r.paid),
            expected_btt: expected,
            agreements: all.iter().map(|(id, r)| agreement_line(*id, r)).collect(),
            settings,
        })
    }

    async fn agreement_status(&self, peer: PublicKey, id: B256) -> Result<RentalReply, Refusal> {
        let record = self.0.of_renter(peer, id).await?;
        let signed = record
            .host_signature
            .map(|signature| btfs_ledger::typed::Signed { document: record.agreement.clone(), signature });
        let status = crate::messages::StatusReply { state: record.state, signed, voucher: record.voucher };
        Ok(RentalReply::Status(Box::new(status)))
    }
}

fn agreement_line(id: B256, r: &HostAgreement) -> HostAgreementStatus {
    HostAgreementStatus {
        id,
        state: r.state,
        reason: r.reason.clone(),
        renter: r.renter,
        size: r.agreement.size,
        start: r.agreement.start,
        epochs: r.ends.unwrap_or(r.agreement.end_epoch),
        epochs_proven: r.proven,
        epoch_price_btt: r.agreement.epoch_price,
        earned_btt: r.earned(),
        redeemed_btt: r.paid,
    }
}

fn check_settings(s: &HostSettings) -> Result<(), HostError> {
    let bad = |text: &str| Err(HostError::Setting(text.to_owned()));
    if s.min_term > s.max_term {
        return bad("the minimum term is longer than the maximum term");
    }
    if s.capacity == 0 || s.max_size == 0 {
        return bad("capacity and largest agreement must be above 0 bytes");
    }
    // The longest window a careful renter accepts would be in weeks.
    if s.window > 90 * 86_400 {
        return bad("a notice period of more than 90 days would find no renter");
    }
    Ok(())
}

/// Bytes that agreements hold or are promised.
fn used_bytes(all: &[(B256, HostAgreement)]) -> u64 {
    all.iter()
        .filter(|(_, r)| r.state.holds_space())
        .fold(0, |sum, (_, r)| sum.saturating_add(r.agreement.size))
}

impl Inner {
    /// All agreements on record.
    pub async fn all(&self) -> Result<Vec<(B256, HostAgreement)>, DbError> {
        self.store
            .run(|s| {
                s.state()
                    .scan(&records::AGREEMENTS, &[])
                    .map(|x| x.map(|(k, v)| (B256::from(k), v)))
                    .collect()
            })
            .await
    }

    /// The record of `id`, if there is one.
    pub async fn record(&self, id: B256) -> Result<Option<HostAgreement>, DbError> {
        self.store.run(move |s| s.state().get(&records::AGREEMENTS, &id.0)).await
    }

    /// The record of `id` for its own renter; for anybody else there is none.
    pub async fn of_renter(&self, peer: PublicKey, id: B256) -> Result<HostAgreement, Refusal> {
        let record = self.record(id).await.map_err(internal)?;
        record.filter(|r| r.renter == peer).ok_or(Refusal::Unknown)
    }

    /// Changes one record: loads it, lets `f` change it and add to the batch, and commits both. If `f` refuses,
    /// nothing is changed.
    pub async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        id: B256,
        f: impl FnOnce(&Store, &mut Batch, &mut HostAgreement) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let this = self.clone();
        self.store
            .run(move |s| {
                let _one = this.write.lock();
                let db = s.state();
                let found = db.get(&records::AGREEMENTS, &id.0).map_err(internal)?;
                let before = found.ok_or(Refusal::Unknown)?;
                let mut record = before.clone();
                let mut batch = db.batch();
                let out = f(s, &mut batch, &mut record)?;
                if record != before {
                    batch.put(&records::AGREEMENTS, &id.0, &record).map_err(internal)?;
                }
                if !batch.is_empty() {
                    db.commit(batch).map_err(internal)?;
                }
                Ok(out)
            })
            .await
    }

    /// Settlement time; asked for if it was not heard yet, as right after the start.
    pub async fn now(&self) -> Result<u64, Refusal> {
        match self.money.now() {
            Some(now) => Ok(now),
            None => self.money.refresh().await.map_err(|e| Refusal::NoSettlement(e.to_string())),
        }
    }
}

impl HostAgreement {
    /// The epochs of a signed agreement.
    pub fn schedule(&self) -> Schedule {
        Schedule::of(&self.agreement, self.ends)
    }

    /// What could still be earned until the end.
    fn still_possible(&self) -> Btt {
        let end = self.ends.unwrap_or(self.agreement.end_epoch);
        let judged = self.voucher.as_ref().map_or(0, |v| v.document.epochs);
        self.agreement.epoch_price.checked_mul(u64::from(end.saturating_sub(judged))).unwrap_or(Btt::MAX)
    }
}

/// A fault of this host, told without details that are nobody's business.
pub(crate) fn internal(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "the host failed");
    Refusal::Internal("its database failed; see its log".into())
}

/// Whether the store holds more hosted bytes than agreements account for: an earlier run ended before it collected.
/// Only then a start collects, since a collection also takes what the user left unpinned.
fn left_over(s: &Store) -> Result<bool, HostError> {
    let mut kept = 0u64;
    for row in s.state().scan(&records::AGREEMENTS, &[]) {
        let (_, r) = row?;
        kept = kept.saturating_add(if r.state.holds_space() { r.agreement.size } else { 0 });
    }
    let stat = s.stat()?;
    Ok(stat.classes.iter().any(|c| c.class == Class::Hosted && c.bytes > kept))
}

/// The name under which an agreement's pin and space are kept.
pub(crate) fn pin_id(id: B256) -> String {
    format!("agreement:{}", hex::encode(id))
}
