//! The embedded ledger of this process.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::{MAX_WATCH, Refusal, Settlement, SettlementError};
use crate::cbor;
use crate::embedded::{Account, Channel, HistoryEntry, Ledger, Receipt, Status, Stream, SubmitError};
use crate::typed::{Call, Domain, Signed};

/// Database calls of a ledger at a time. Writing is one after the other anyway; reads are short.
const BLOCKING: usize = 4;

/// Calls that may wait for one of those. Above it, callers are told to come again.
const QUEUE: usize = 1024;

/// The ledger that runs in this process, for this node's own market and wallet and under a
/// [`LedgerService`](super::LedgerService). Clones share it.
#[derive(Clone)]
pub struct LocalLedger {
    ledger: Arc<Ledger>,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl LocalLedger {
    /// Wraps an opened ledger.
    pub fn new(ledger: Arc<Ledger>) -> LocalLedger {
        let running = Arc::new(Semaphore::new(BLOCKING));
        LocalLedger { ledger, running, waiting: Arc::new(Semaphore::new(QUEUE)) }
    }

    /// The ledger itself, for its operator: stepping the clock, counting the supply.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Runs a blocking piece of work on the ledger, off the async workers.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ledger) -> Result<T, SettlementError> + Send + 'static,
    ) -> Result<T, SettlementError> {
        let gone = |_| SettlementError::Unreachable("the ledger is shutting down".to_owned());
        let _place = self
            .waiting
            .try_acquire()
            .map_err(|_| SettlementError::Unreachable("the ledger is busy; try again".to_owned()))?;
        let permit = self.running.clone().acquire_owned().await.map_err(gone)?;
        let ledger = self.ledger.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _running = permit;
            work(&ledger)
        });
        task.await.unwrap_or_else(|error| {
            Err(SettlementError::Unreachable(format!("the ledger's worker stopped: {error}")))
        })
    }

    /// Submits a call that is in DAG-CBOR already.
    pub async fn submit_bytes(&self, bytes: Vec<u8>) -> Result<Receipt, SettlementError> {
        self.run(move |ledger| ledger.submit(&bytes).map_err(refused)).await
    }
}

pub(super) fn refused(error: SubmitError) -> SettlementError {
    SettlementError::Refused(match error {
        SubmitError::NonceUsed { nonce, next, .. } => Refusal::NonceUsed { nonce, next },
        SubmitError::NonceGap { nonce, next, .. } => Refusal::NonceGap { nonce, next },
        error @ (SubmitError::Db(_) | SubmitError::Random(_)) => Refusal::Internal(error.to_string()),
        error => Refusal::Invalid(error.to_string()),
    })
}

#[async_trait]
impl Settlement for LocalLedger {
    fn domain(&self) -> Domain {
        *self.ledger.domain()
    }

    fn now(&self) -> Option<u64> {
        Some(self.ledger.now())
    }

    async fn status(&self) -> Result<Status, SettlementError> {
        self.run(|ledger| Ok(ledger.status()?)).await
    }

    async fn account(&self, address: Address) -> Result<Account, SettlementError> {
        self.run(move |ledger| Ok(ledger.account(&address)?)).await
    }

    async fn channel(&self, id: B256) -> Result<Option<Channel>, SettlementError> {
        self.run(move |ledger| Ok(ledger.channel(&id)?)).await
    }

    async fn channels(&self, member: Address, after: Option<B256>) -> Result<Vec<Channel>, SettlementError> {
        self.run(move |ledger| Ok(ledger.channels(&member, after)?)).await
    }

    async fn stream(&self, channel: B256, stream: B256) -> Result<Stream, SettlementError> {
        self.run(move |ledger| Ok(ledger.stream(&channel, &stream)?)).await
    }

    async fn streams(
        &self,
        channel: B256,
        after: Option<B256>,
    ) -> Result<Vec<(B256, Stream)>, SettlementError> {
        self.run(move |ledger| Ok(ledger.streams(&channel, after)?)).await
    }

    async fn submit(&self, call: &Signed<Call>) -> Result<Receipt, SettlementError> {
        self.submit_bytes(cbor::encode(call)).await
    }

    async fn receipt(&self, from: Address, nonce: u64) -> Result<Option<Receipt>, SettlementError> {
        self.run(move |ledger| Ok(ledger.receipt(&from, nonce)?)).await
    }

    async fn history(
        &self,
        address: Address,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, SettlementError> {
        self.run(move |ledger| Ok(ledger.history(&address, before, limit)?)).await
    }

    async fn watch(&self, after_seq: u64, max_wait: Duration) -> Result<Status, SettlementError> {
        let mut events = self.ledger.subscribe();
        // Timing out is an ordinary end of a wait, and the sender lives as long as the ledger.
        let wait = async { events.wait_for(|seq| *seq > after_seq).await.is_ok() };
        match tokio::time::timeout(max_wait.min(MAX_WATCH), wait).await {
            Ok(false) => Err(SettlementError::Unreachable("the ledger is shutting down".to_owned())),
            Ok(true) | Err(_) => self.status().await,
        }
    }
}
