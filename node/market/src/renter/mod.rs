//! Renting: what a renter does to have a thing kept by others.
//!
//! [`RenterService::quote`] finds hosts and says what it would cost; [`RenterService::accept`] makes it happen. From
//! then on the market's loop drives everything: one [`drive`](place) per agreement until it is active, audits and
//! vouchers at each epoch's end ([`epochs`]), and the return of what is left in the locks ([`refund`]).
//!
//! Invariants:
//!
//! - Every step is durable before the act it allows: a draft before it is proposed, a call before it is sent, a
//!   signature before it goes out, a verdict with its voucher before the voucher does.
//! - A voucher is made only together with the verdict that allows it, in one batch.
//! - After a restart the records alone say what is to be done next, and doing a step again changes nothing.

mod epochs;
mod hosts;
mod notice;
mod offered;
mod place;
mod plan;
pub(crate) mod records;
mod refund;
mod status;
mod tripwire;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use btfs_ledger::{B256, Btt, PublicKey, SecretKey};
use btfs_storage::blocklist::BlockList;
use btfs_storage::db::{Batch, DbError};
use btfs_storage::{Store, StoreError};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::Notify;

use crate::events::Events;
use crate::messages::{self, RENTAL_PROTOCOL, Refusal, RentalReply, RentalRequest};
use crate::money::{Money, MoneyError};
use crate::pages;
use crate::ports::{Courier, CourierError, Discovery};
use crate::score::Exclusions;
use crate::states::BadStep;
use crate::terms::TermsError;
use crate::vouchers::MakeError;

pub use hosts::HostLine;
pub use plan::{Quote, QuotedHost, StoreRequest};
pub use records::{RenterAgreement, Spread, Thing, ThingState};
pub use status::{PlaceStatus, ThingStatus};

/// How long a host may take to answer a question about an agreement, wall clock.
const ANSWER: Duration = Duration::from_secs(30);
/// The same for the small matters of a round, which should not wait long for one host.
const QUICK_ANSWER: Duration = Duration::from_secs(5);

/// Why something a renter asked for was not done.
#[derive(Debug, Error)]
pub enum RentError {
    /// The state database failed.
    #[error("the renter's records cannot be read or written: {0}")]
    Db(#[from] DbError),
    /// The block store failed.
    #[error("the block store failed: {0}")]
    Store(#[from] StoreError),
    /// The content is not (wholly) here.
    #[error("the content cannot be read from this node: {0}; get it first")]
    Content(String),
    /// Nothing to rent space for.
    #[error("an empty file has nothing to rent space for: its address alone is its content")]
    Empty,
    /// A parameter makes no sense.
    #[error("{0}")]
    Request(String),
    /// Not enough hosts.
    #[error("no host that fits: {needed} needed, {found} found; of {known} known {excluded}")]
    NoHosts {
        /// Hosts the spread wants.
        needed: usize,
        /// Hosts that fit.
        found: usize,
        /// Hosts known.
        known: usize,
        /// Reasons with counts.
        excluded: Exclusions,
    },
    /// Not enough money.
    #[error("not enough BTT: {needed} to be locked, {balance} in the account; nothing was changed")]
    NotEnough {
        /// To be locked.
        needed: Btt,
        /// In the account.
        balance: Btt,
    },
    /// The quote is gone (too old, or the node restarted).
    #[error("quote {0} is not known any more; ask for a new one")]
    NoQuote(String),
    /// No such thing.
    #[error("nothing stored under {0}")]
    Unknown(String),
    /// The terms do not work out.
    #[error(transparent)]
    Terms(#[from] TermsError),
    /// The settlement.
    #[error(transparent)]
    Money(#[from] MoneyError),
    /// A host said no.
    #[error("the host refused: {0}")]
    Refused(#[from] Refusal),
    /// A host could not be asked.
    #[error("the host {0}")]
    Courier(#[from] CourierError),
    /// A host answered something else than asked.
    #[error("the host answered against the protocol: {0}")]
    Protocol(String),
    /// A bug: the state machine has no such step.
    #[error(transparent)]
    Step(#[from] BadStep),
    /// A bug or a full lock: no voucher is made.
    #[error(transparent)]
    Voucher(#[from] MakeError),
}

/// Rents space for this node's things. Cloning is cheap.
#[derive(Clone)]
pub struct RenterService(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub store: Store,
    pub money: Money,
    pub key: SecretKey,
    pub local: bool,
    pub courier: Arc<dyn Courier>,
    pub discovery: Arc<dyn Discovery>,
    pub events: Events,
    /// Held over every read-change-commit of a record.
    write: Mutex<()>,
    /// Quotes that wait for a yes.
    quotes: Mutex<HashMap<String, plan::Prepared>>,
    /// Things whose placing runs.
    placing: Mutex<HashSet<B256>>,
    /// Counts placings that ended.
    placed: tokio::sync::watch::Sender<u64>,
    /// Counts cancellations; whoever places looks whether it is meant.
    cancels: tokio::sync::watch::Sender<u64>,
    /// Something changed that a loop should look at.
    pub changed: Notify,
    /// One lock or refund at a time: each reads the channel, calls and records.
    paying: tokio::sync::Mutex<()>,
    /// When an epoch's audit is due or tried again, by agreement: settlement time. Lost with the process, drawn anew.
    due: Mutex<HashMap<B256, (u32, u64)>>,
    /// Settlement time through which all work is done.
    worked_through: tokio::sync::watch::Sender<u64>,
    tripwire: Mutex<tripwire::Tripwire>,
}

/// The parts a renter service is made of.
pub(crate) struct RenterParts {
    pub store: Store,
    pub money: Money,
    pub key: SecretKey,
    pub local: bool,
    pub courier: Arc<dyn Courier>,
    pub discovery: Arc<dyn Discovery>,
    pub events: Events,
}

impl RenterService {
    /// Opens the service over its records.
    pub(crate) fn open(parts: RenterParts) -> RenterService {
        RenterService(Arc::new(Inner {
            store: parts.store,
            money: parts.money,
            key: parts.key,
            local: parts.local,
            courier: parts.courier,
            discovery: parts.discovery,
            events: parts.events,
            write: Mutex::new(()),
            quotes: Mutex::new(HashMap::new()),
            placing: Mutex::new(HashSet::new()),
            placed: tokio::sync::watch::Sender::new(0),
            cancels: tokio::sync::watch::Sender::new(0),
            changed: Notify::new(),
            paying: tokio::sync::Mutex::new(()),
            due: Mutex::new(HashMap::new()),
            worked_through: tokio::sync::watch::Sender::new(0),
            tripwire: Mutex::default(),
        }))
    }

    /// Waits until there is something new to do.
    pub(crate) async fn woken(&self) {
        self.0.changed.notified().await;
    }
}

impl Inner {
    /// All agreements on record.
    pub async fn agreements(&self) -> Result<Vec<(B256, RenterAgreement)>, DbError> {
        let all = |s: &Store| {
            let rows = s.state().scan(&records::AGREEMENTS, &[]);
            rows.map(|x| x.map(|(k, v)| (B256::from(k), v))).collect()
        };
        self.store.run(all).await
    }

    /// All things on record.
    pub async fn things(&self) -> Result<Vec<(B256, Thing)>, DbError> {
        let all = |s: &Store| {
            let rows = s.state().scan(&records::THINGS, &[]);
            rows.map(|x| x.map(|(k, v)| (B256::from(k), v))).collect()
        };
        self.store.run(all).await
    }

    /// One agreement.
    pub async fn agreement(&self, id: B256) -> Result<RenterAgreement, RentError> {
        let found = self.store.run(move |s| s.state().get(&records::AGREEMENTS, &id.0)).await?;
        found.ok_or_else(|| RentError::Unknown(id.to_string()))
    }

    /// One thing.
    pub async fn thing(&self, id: B256) -> Result<Thing, RentError> {
        let found = self.store.run(move |s| s.state().get(&records::THINGS, &id.0)).await?;
        found.ok_or_else(|| RentError::Unknown(id.to_string()))
    }

    /// A block list by its digest.
    pub async fn list(&self, digest: B256) -> Result<BlockList, RentError> {
        let bytes = self.store.run(move |s| pages::get(s.state(), &records::LISTS, digest)).await?;
        BlockList::decode(&bytes).map_err(|e| RentError::Content(e.to_string()))
    }

    /// Runs `f` alone over the database with a batch that is committed when `f` is done and all is well.
    pub async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&Store, &mut Batch) -> Result<T, RentError> + Send + 'static,
    ) -> Result<T, RentError> {
        let this = self.clone();
        self.store
            .run(move |s| {
                let _one = this.write.lock();
                let mut batch = s.state().batch();
                let out = f(s, &mut batch)?;
                if !batch.is_empty() {
                    s.state().commit(batch)?;
                }
                Ok(out)
            })
            .await
    }

    /// Changes one agreement in one synced batch; if `f` fails, nothing is changed.
    pub async fn change<T: Send + 'static>(
        self: &Arc<Self>,
        id: B256,
        f: impl FnOnce(&Store, &mut Batch, &mut RenterAgreement) -> Result<T, RentError> + Send + 'static,
    ) -> Result<T, RentError> {
        self.write(move |s, batch| {
            let found = s.state().get(&records::AGREEMENTS, &id.0)?;
            let before = found.ok_or_else(|| RentError::Unknown(id.to_string()))?;
            let mut record = before.clone();
            let out = f(s, batch, &mut record)?;
            if record != before {
                batch.put(&records::AGREEMENTS, &id.0, &record)?;
            }
            Ok(out)
        })
        .await
    }

    /// Asks a host about an agreement.
    pub async fn ask(&self, host: &PublicKey, request: &RentalRequest) -> Result<RentalReply, RentError> {
        self.ask_within(host, request, ANSWER).await
    }

    /// Asks a host about an agreement, with a limit of its own.
    pub async fn ask_within(
        &self,
        host: &PublicKey,
        request: &RentalRequest,
        limit: Duration,
    ) -> Result<RentalReply, RentError> {
        let bytes = self.courier.ask(host, RENTAL_PROTOCOL, messages::encode(request), limit).await?;
        match messages::decode(&bytes, messages::MAX_RENTAL_REPLY) {
            Ok(RentalReply::Refused(refusal)) => Err(refusal.into()),
            Ok(reply) => Ok(reply),
            Err(error) => Err(RentError::Protocol(error.to_string())),
        }
    }

    /// Settlement time; asked for if it was not heard yet, as right after the start.
    pub async fn now(&self) -> Result<u64, RentError> {
        match self.money.now() {
            Some(now) => Ok(now),
            None => Ok(self.money.refresh().await?),
        }
    }
}

/// The reply was not one that fits the question.
fn unexpected(reply: &RentalReply) -> RentError {
    let text = format!("{reply:?}");
    RentError::Protocol(text.chars().take(80).collect())
}
