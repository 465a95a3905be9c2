//! The market's view of the settlement: its clock, channels, streams and the calls this node makes.
//!
//! Everything that can be unreachable is here, so the services see one error for it and go on without.

use std::sync::Arc;
use std::time::Duration;

use btfs_ledger::embedded::{Channel, Receipt, Stream};
use btfs_ledger::settlement::{Settlement, SettlementError};
use btfs_ledger::typed::{ChannelTerms, Domain, VerifiedVoucher};
use btfs_ledger::wallet::{Wallet, WalletError};
use btfs_ledger::{Address, B256, Btt};
use thiserror::Error;
use tokio::sync::watch;

/// How long one question to the settlement waits for news before it is asked again.
const WATCH: Duration = Duration::from_secs(20);
/// Pause after a failed question, so that an absent settlement costs nothing.
const RETRY: Duration = Duration::from_secs(1);

/// The settlement could not be asked, or refused.
#[derive(Clone, Debug, Error)]
pub enum MoneyError {
    /// No answer.
    #[error("{0}")]
    Unavailable(String),
    /// It answered no.
    #[error("the settlement refused to {operation}: {why}")]
    Refused {
        /// The operation.
        operation: &'static str,
        /// Its reason.
        why: String,
    },
}

impl From<SettlementError> for MoneyError {
    fn from(e: SettlementError) -> MoneyError {
        MoneyError::Unavailable(e.to_string())
    }
}

/// The settlement with this node's wallet. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Money {
    settlement: Arc<dyn Settlement>,
    wallet: Wallet,
    domain: Domain,
    /// Counts the news.
    news: watch::Sender<u64>,
}

impl Money {
    pub fn new(settlement: Arc<dyn Settlement>, wallet: Wallet) -> Money {
        let domain = settlement.domain();
        Money { settlement, wallet, domain, news: watch::Sender::new(0) }
    }

    /// What signatures are bound to.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The account that pays and is refunded.
    pub fn address(&self) -> Address {
        self.wallet.address()
    }

    /// Settlement time as last told and gone on from there; none before the first answer.
    pub fn now(&self) -> Option<u64> {
        self.settlement.now()
    }

    /// Settlement time, asked now.
    pub async fn refresh(&self) -> Result<u64, MoneyError> {
        let time = self.settlement.status().await?.time;
        Ok(self.settlement.now().map_or(time, |now| now.max(time)))
    }

    /// Changes whenever the settlement has news: a call, a step of its clock.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// Follows the settlement for ever.
    pub async fn follow(&self) {
        let mut seq = 0;
        let mut away = false;
        loop {
            match self.settlement.watch(seq, WATCH).await {
                Ok(status) => {
                    if away {
                        tracing::info!("the settlement answers again");
                    }
                    away = false;
                    if status.seq != seq {
                        seq = status.seq;
                        self.news.send_replace(seq);
                    }
                }
                Err(error) => {
                    if !away {
                        tracing::warn!(%error, "the settlement cannot be followed; trying on");
                    }
                    away = true;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// What the account can spend.
    pub async fn balance(&self) -> Result<Btt, MoneyError> {
        Ok(self.settlement.account(self.address()).await?.balance)
    }

    /// A channel; an unknown one is empty.
    pub async fn channel(&self, id: B256) -> Result<ChannelView, MoneyError> {
        Ok(self.settlement.channel(id).await?.map(ChannelView::from).unwrap_or_default())
    }

    /// A stream; an unknown one is empty.
    pub async fn stream(&self, channel: B256, stream: B256) -> Result<Stream, MoneyError> {
        Ok(self.settlement.stream(channel, stream).await?)
    }

    /// Sees calls through whose receipt a crash or a silent settlement left open. To be done before a channel is
    /// read to decide about a new call.
    pub async fn resume(&self) -> Result<(), MoneyError> {
        self.wallet.resume().await.map(|_| ()).map_err(|e| refused("resume", e))
    }

    /// Adds to a channel's lock, once per `purpose`.
    pub async fn lock(&self, terms: &ChannelTerms, amount: Btt, purpose: &str) -> Result<(), MoneyError> {
        done("lock", self.wallet.lock(terms, amount, Some(purpose)).await)
    }

    /// Announces that money goes back to the funder.
    pub async fn decrease(&self, channel: B256, amount: Btt) -> Result<(), MoneyError> {
        done("decrease", self.wallet.decrease(channel, amount).await)
    }

    /// Takes back what was announced and is due.
    pub async fn finish(&self, channel: B256) -> Result<(), MoneyError> {
        done("finish", self.wallet.finish(channel).await)
    }

    /// Lets the funder have money back at once.
    pub async fn release(&self, channel: B256, amount: Btt) -> Result<(), MoneyError> {
        done("release", self.wallet.release(channel, amount, None).await)
    }

    /// Has a voucher paid out.
    pub async fn redeem(&self, voucher: &VerifiedVoucher) -> Result<(), MoneyError> {
        done("redeem", self.wallet.redeem(voucher).await)
    }
}

fn done(operation: &'static str, result: Result<Receipt, WalletError>) -> Result<(), MoneyError> {
    result.map(|_| ()).map_err(|e| refused(operation, e))
}

fn refused(operation: &'static str, error: WalletError) -> MoneyError {
    match error {
        WalletError::Unknown(_) | WalletError::Earlier(_) | WalletError::Settlement(_) => {
            MoneyError::Unavailable(error.to_string())
        }
        other => MoneyError::Refused { operation, why: other.to_string() },
    }
}

/// A channel as far as the market needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChannelView {
    /// In the lock.
    pub locked: Btt,
    /// Announced to go back to the funder.
    pub pending: Btt,
    /// When `pending` can go, settlement time.
    pub due: u64,
}

impl From<Channel> for ChannelView {
    fn from(c: Channel) -> ChannelView {
        ChannelView { locked: c.locked, pending: c.pending, due: c.due }
    }
}

impl ChannelView {
    /// What vouchers can rely on.
    pub fn available(&self) -> Btt {
        self.locked.saturating_sub(self.pending)
    }
}
