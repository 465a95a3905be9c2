//! The line to the settlement, which can be cut like the wire: the caller dies before or after a call is carried out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use btfs_ledger::embedded::{Account, Channel, HistoryEntry, Receipt, Status, Stream};
use btfs_ledger::settlement::{LocalLedger, Settlement, SettlementError};
use btfs_ledger::typed::{Call, Domain, Signed};
use btfs_ledger::{Address, B256, PublicKey};

use super::world::{Cut, Wire};

/// One node's line.
pub struct Line {
    pub wire: Arc<Wire>,
    pub me: PublicKey,
    pub ledger: LocalLedger,
}

type Answer<T> = Result<T, SettlementError>;

#[async_trait]
impl Settlement for Line {
    fn domain(&self) -> Domain {
        self.ledger.domain()
    }

    fn now(&self) -> Option<u64> {
        self.ledger.now()
    }

    async fn status(&self) -> Answer<Status> {
        self.up()?;
        self.ledger.status().await
    }

    async fn account(&self, address: Address) -> Answer<Account> {
        self.ledger.account(address).await
    }

    async fn channel(&self, id: B256) -> Answer<Option<Channel>> {
        self.up()?;
        self.ledger.channel(id).await
    }

    async fn channels(&self, member: Address, after: Option<B256>) -> Answer<Vec<Channel>> {
        self.ledger.channels(member, after).await
    }

    async fn stream(&self, channel: B256, stream: B256) -> Answer<Stream> {
        let answer = self.ledger.stream(channel, stream).await;
        if let Some(f) = self.wire.after_stream(&self.me) {
            f.await;
        }
        answer
    }

    async fn streams(&self, channel: B256, after: Option<B256>) -> Answer<Vec<(B256, Stream)>> {
        self.ledger.streams(channel, after).await
    }

    async fn submit(&self, call: &Signed<Call>) -> Answer<Receipt> {
        let cut = self.wire.next_call_cut();
        if cut == Some(Cut::ServerBefore) {
            self.die().await;
        }
        let answer = self.ledger.submit(call).await;
        if cut.is_some() {
            self.die().await;
        }
        answer
    }

    async fn receipt(&self, from: Address, nonce: u64) -> Answer<Option<Receipt>> {
        self.ledger.receipt(from, nonce).await
    }

    async fn history(
        &self,
        address: Address,
        before: Option<u64>,
        limit: usize,
    ) -> Answer<Vec<HistoryEntry>> {
        self.ledger.history(address, before, limit).await
    }

    async fn watch(&self, after_seq: u64, max_wait: Duration) -> Answer<Status> {
        self.ledger.watch(after_seq, max_wait).await
    }
}

impl Line {
    /// An error while this node's line is down.
    fn up(&self) -> Answer<()> {
        match self.wire.is_deaf(&self.me) {
            true => Err(SettlementError::Unreachable("the line is down".into())),
            false => Ok(()),
        }
    }

    /// Ends this node; the task that asked never goes on.
    async fn die(&self) {
        self.wire.fell(&self.me);
        std::future::pending::<()>().await;
    }
}
