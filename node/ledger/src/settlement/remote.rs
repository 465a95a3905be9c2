//! The embedded ledger that another node serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, FixedBytes};
use async_trait::async_trait;
use btfs_storage::db::{DbError, StateDb, Table};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::frames::{Answer, MAX_RESPONSE, Query, Reply, Request, reply_digest};
use super::{MAX_WATCH, Settlement, SettlementError};
use crate::cbor;
use crate::embedded::{Account, Channel, HistoryEntry, LedgerId, MAX_PAGE, Receipt, Status, Stream};
use crate::keys::recover;
use crate::typed::{Call, Document, Domain, Signed};

/// Carries a request to the ledger's operator and its response back.
#[async_trait]
pub trait LedgerTransport: Send + Sync {
    /// Asks. An error says that there is no answer; whether the request arrived is then unknown. An answer may take
    /// as long as [`MAX_WATCH`] and a round trip; one of more than [`MAX_RESPONSE`] bytes is an error.
    async fn ask(&self, request: Vec<u8>) -> Result<Vec<u8>, String>;
}

/// What was last told, by genesis hash: survives restarts, so that a ledger that went back is noticed.
const SEEN: Table<[u8; 32], Seen> = Table::new("ledger.seen");

/// The names of this client's tables, to open the state database with.
pub const TABLES: [&str; 1] = [SEEN.name()];

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    status: Status,
    /// Why nothing more is believed, once the ledger went back.
    stopped: Option<String>,
}

/// Seconds of settlement time told beyond what is on disk before it is written again.
const TIME_MARK: u64 = 60;

struct View {
    seen: Option<Seen>,
    /// When `seen.status.time` was told.
    told: Instant,
    /// What is on disk.
    marked: Option<Status>,
}

/// The ledger that another node serves. Every reply must be signed by the operator for exactly this request, and
/// may not be behind any before it.
#[derive(Clone)]
pub struct RemoteLedger {
    id: LedgerId,
    domain: Domain,
    operator: Address,
    db: StateDb,
    transport: Arc<dyn LedgerTransport>,
    view: Arc<Mutex<View>>,
    /// One writer of [`SEEN`] at a time, so that an older state never replaces a newer one.
    writing: Arc<Mutex<()>>,
}

impl RemoteLedger {
    /// Opens what is remembered of this ledger. Does not ask it anything.
    pub fn open(
        id: LedgerId,
        db: StateDb,
        transport: Arc<dyn LedgerTransport>,
    ) -> Result<RemoteLedger, SettlementError> {
        let seen = db.get(&SEEN, &id.genesis.0)?;
        let marked = seen.as_ref().map(|seen| seen.status);
        let view = Arc::new(Mutex::new(View { seen, told: Instant::now(), marked }));
        let operator = id.operator.address();
        let writing = Arc::default();
        Ok(RemoteLedger { domain: id.domain(), operator, id, db, transport, view, writing })
    }

    /// Which ledger this is.
    pub fn id(&self) -> LedgerId {
        self.id
    }

    async fn ask(&self, query: Query) -> Result<(Answer, Status), SettlementError> {
        let before = self.last_seq()?;
        let mut nonce = FixedBytes::<16>::ZERO;
        getrandom::fill(nonce.as_mut_slice())
            .map_err(|error| SettlementError::Unreachable(error.to_string()))?;
        let request = cbor::encode(&Request { nonce, query });
        let response = self.transport.ask(request.clone()).await.map_err(SettlementError::Unreachable)?;
        let forged = |error: String| SettlementError::Forged(error);
        let reply: Reply =
            cbor::decode(&response, MAX_RESPONSE).map_err(|error| forged(error.to_string()))?;
        let digest = reply_digest(&self.domain, &request, &reply.body, &reply.status);
        match recover(&digest, &reply.signature) {
            Ok(signer) if signer == self.operator => {}
            Ok(_) => return Err(forged("not signed by the ledger's operator for this request".to_owned())),
            Err(error) => return Err(forged(error.to_string())),
        }
        let answer = cbor::decode(&reply.body, MAX_RESPONSE).map_err(|error| forged(error.to_string()))?;
        self.believe(before, reply.status).await?;
        Ok((answer, reply.status))
    }

    /// The last event known of, unless this ledger is no longer believed.
    fn last_seq(&self) -> Result<Option<u64>, SettlementError> {
        match &self.view.lock().seen {
            Some(Seen { stopped: Some(why), .. }) => Err(SettlementError::Regress(why.clone())),
            seen => Ok(seen.as_ref().map(|seen| seen.status.seq)),
        }
    }

    /// Takes over what a reply says of the ledger's state, if it fits what is known. `before` is the last event
    /// known of when the question was asked: replies to questions asked at the same time may arrive in any order.
    async fn believe(&self, before: Option<u64>, status: Status) -> Result<(), SettlementError> {
        let (write, regress) = {
            let mut view = self.view.lock();
            let (seen, regress) = judge(view.seen.as_ref(), before, status);
            if seen.status.time > view.seen.as_ref().map_or(0, |seen| seen.status.time) {
                view.told = Instant::now();
            }
            let due = match view.marked {
                Some(on_disk) => {
                    on_disk.seq != seen.status.seq
                        || seen.status.time >= on_disk.time.saturating_add(TIME_MARK)
                }
                None => true,
            };
            let write = due || regress.is_some();
            if write {
                view.marked = Some(seen.status);
            }
            view.seen = Some(seen);
            (write, regress)
        };
        if write {
            let this = self.clone();
            let written = tokio::task::spawn_blocking(move || this.write_seen());
            written.await.map_err(|error| SettlementError::Unreachable(error.to_string()))??;
        }
        match regress {
            Some(why) => Err(SettlementError::Regress(why)),
            None => Ok(()),
        }
    }

    /// Writes what is known now, not when the writing was decided.
    fn write_seen(&self) -> Result<(), DbError> {
        let _alone = self.writing.lock();
        let Some(seen) = self.view.lock().seen.clone() else { return Ok(()) };
        let mut batch = self.db.batch();
        batch.put(&SEEN, &self.id.genesis.0, &seen)?;
        self.db.commit(batch)
    }
}

/// What is known after a reply, and why the ledger is not to be believed, if so. Time is kept as the latest told.
fn judge(seen: Option<&Seen>, before: Option<u64>, status: Status) -> (Seen, Option<String>) {
    let Some(known) = seen else { return (Seen { status, stopped: None }, None) };
    let last = known.status;
    let why = if before.is_some_and(|before| status.seq < before) {
        Some(format!("it told of event {} and now ends at {}", last.seq, status.seq))
    } else if status.seq == last.seq && status.head != last.head {
        Some(format!("it told two different histories of {} events", last.seq))
    } else {
        None
    };
    if why.is_some() {
        return (Seen { status: last, stopped: why.clone() }, why);
    }
    let time = last.time.max(status.time);
    let newest = if status.seq > last.seq { status } else { last };
    (Seen { status: Status { time, ..newest }, stopped: known.stopped.clone() }, None)
}

fn unexpected<T>() -> Result<T, SettlementError> {
    Err(SettlementError::Forged("it answers another question".to_owned()))
}

#[async_trait]
impl Settlement for RemoteLedger {
    fn domain(&self) -> Domain {
        self.domain
    }

    fn now(&self) -> Option<u64> {
        let view = self.view.lock();
        view.seen.as_ref().map(|seen| seen.status.time.saturating_add(view.told.elapsed().as_secs()))
    }

    async fn status(&self) -> Result<Status, SettlementError> {
        match self.ask(Query::Status).await? {
            (Answer::Status, status) => Ok(status),
            _ => unexpected(),
        }
    }

    async fn account(&self, address: Address) -> Result<Account, SettlementError> {
        match self.ask(Query::Account(address)).await?.0 {
            Answer::Account(account) => Ok(account),
            _ => unexpected(),
        }
    }

    async fn channel(&self, id: B256) -> Result<Option<Channel>, SettlementError> {
        match self.ask(Query::Channel(id)).await?.0 {
            Answer::Channel(Some(channel)) if channel.terms.id() != id => unexpected(),
            Answer::Channel(channel) => Ok(channel),
            _ => unexpected(),
        }
    }

    async fn channels(&self, member: Address, after: Option<B256>) -> Result<Vec<Channel>, SettlementError> {
        match self.ask(Query::Channels { member, after }).await?.0 {
            Answer::Channels(channels) if channels.len() <= MAX_PAGE => Ok(channels),
            _ => unexpected(),
        }
    }

    async fn stream(&self, channel: B256, stream: B256) -> Result<Stream, SettlementError> {
        match self.ask(Query::Stream { channel, stream }).await?.0 {
            Answer::Stream(stream) => Ok(stream),
            _ => unexpected(),
        }
    }

    async fn streams(
        &self,
        channel: B256,
        after: Option<B256>,
    ) -> Result<Vec<(B256, Stream)>, SettlementError> {
        match self.ask(Query::Streams { channel, after }).await?.0 {
            Answer::Streams(streams) if streams.len() <= MAX_PAGE => Ok(streams),
            _ => unexpected(),
        }
    }

    async fn submit(&self, call: &Signed<Call>) -> Result<Receipt, SettlementError> {
        let bytes = ByteBuf::from(cbor::encode(call));
        match self.ask(Query::Submit(bytes)).await?.0 {
            Answer::Receipt(Some(receipt)) if receipt.digest == call.document.digest(&self.domain) => {
                Ok(receipt)
            }
            Answer::Refused(refusal) => Err(SettlementError::Refused(refusal)),
            _ => unexpected(),
        }
    }

    async fn receipt(&self, from: Address, nonce: u64) -> Result<Option<Receipt>, SettlementError> {
        match self.ask(Query::Receipt { from, nonce }).await?.0 {
            Answer::Receipt(Some(receipt)) if (receipt.from, receipt.nonce) != (from, nonce) => unexpected(),
            Answer::Receipt(receipt) => Ok(receipt),
            _ => unexpected(),
        }
    }

    async fn history(
        &self,
        address: Address,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, SettlementError> {
        let limit = limit.min(MAX_PAGE) as u64;
        match self.ask(Query::History { address, before, limit }).await?.0 {
            Answer::History(entries) if entries.len() as u64 <= limit => Ok(entries),
            _ => unexpected(),
        }
    }

    async fn watch(&self, after_seq: u64, max_wait: Duration) -> Result<Status, SettlementError> {
        let wait = max_wait.min(MAX_WATCH);
        // Below 20,000 by MAX_WATCH.
        let wait_ms = wait.as_millis() as u64;
        match self.ask(Query::Watch { after: after_seq, wait_ms }).await? {
            (Answer::Status, status) => Ok(status),
            _ => unexpected(),
        }
    }
}
