//! The wallet: signs calls and sees them through.
//!
//! A call is on disk before it is sent, and it is sent until there is a receipt: after a timeout or a crash the very
//! same bytes go out again, and the ledger answers with the receipt they already have. Calls of one wallet go one
//! after the other; while the fate of one is unknown, no new one is signed. So nothing is paid twice, whatever
//! happens in between.
//!
//! A caller that must not repeat an act over its own crashes gives it a *purpose*, a text of its choosing: asking
//! again for the same purpose gives the receipt of the first time.

use std::sync::Arc;
use std::time::Duration;

use alloy_primitives::{Address, B256};
use btfs_storage::db::{Batch, DbError, StateDb, Table};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::btt::Btt;
use crate::embedded::{Account, Failure, Outcome, Receipt};
use crate::keys::SecretKey;
use crate::settlement::{Refusal, Settlement, SettlementError};
use crate::typed::{Call, Calldata, ChannelTerms, Operation, Signed, VerifiedVoucher};

/// A wallet's calls, by settlement, account and nonce: those in flight, and those with a purpose.
const CALLS: Table<([u8; 32], [u8; 20], u64), Record> = Table::new("wallet.calls");
/// The call of each purpose.
const PURPOSES: Table<([u8; 32], [u8; 20], String), u64> = Table::new("wallet.purposes");
/// The nonce after the last one signed.
const NEXT: Table<([u8; 32], [u8; 20]), u64> = Table::new("wallet.next");

/// The names of the wallet's tables, to open the state database with.
pub const TABLES: [&str; 3] = [CALLS.name(), PURPOSES.name(), NEXT.name()];

/// Seconds of settlement time a call stays valid. Long, because an expired call is a failed one and the clock of a
/// local network may be stepped by days while a call is on its way; bounded, so that a call that was never sent
/// does not come to life years later.
const VALID_SECONDS: u64 = 30 * 86_400;

/// Pauses between attempts to send a call before the caller is told that its fate is unknown.
const RETRIES: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3)];

/// How often a call is signed anew because another holder of the same key took its nonce.
const NONCE_RACES: usize = 3;

/// Longest purpose, bytes.
pub const MAX_PURPOSE: usize = 256;

/// A call and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    call: Signed<Call>,
    purpose: Option<String>,
    receipt: Option<Receipt>,
}

/// Why a payment did not happen, or is not known to have.
#[derive(Debug, Error)]
pub enum WalletError {
    /// Not enough money. Nothing was signed.
    #[error("not enough BTT: {needed} needed, {balance} in {account}; nothing was sent")]
    Balance {
        /// What the call would move.
        needed: Btt,
        /// What is there.
        balance: Btt,
        /// The wallet's address.
        account: Address,
    },
    /// The channel's funder is somebody else.
    #[error("only {funder} can lock money for this channel; this wallet is {wallet}")]
    NotFunder {
        /// The channel's funder.
        funder: Address,
        /// This wallet.
        wallet: Address,
    },
    /// A purpose that is too long.
    #[error("a purpose of {0} bytes; at most {MAX_PURPOSE} are possible")]
    Purpose(usize),
    /// The call was carried out and failed. No money moved.
    #[error("the ledger did not do it: {0}")]
    Failed(Failure),
    /// The ledger did not take the call. No money moved.
    #[error("the ledger did not take the call: {0}; nothing was moved")]
    Refused(Refusal),
    /// Nobody knows yet. The call is recorded and goes out again.
    #[error(
        "the ledger did not answer ({0}); the call is recorded and will be sent again until there is a receipt. It \
         cannot be carried out twice"
    )]
    Unknown(String),
    /// The fate of an earlier call is unknown. Nothing new was signed.
    #[error(
        "nothing was sent: an earlier call still waits for its receipt ({0}); it goes first, then try again"
    )]
    Earlier(String),
    /// The settlement cannot be used now. Nothing was signed.
    #[error("nothing was sent: {0}")]
    Settlement(SettlementError),
    /// The state database of this node failed.
    #[error("this node's database failed: {0}")]
    Db(#[from] DbError),
}

/// Signs and submits calls of one account. Clones share it; all users of a key in a process must share one.
#[derive(Clone)]
pub struct Wallet {
    inner: Arc<Inner>,
}

struct Inner {
    db: StateDb,
    key: SecretKey,
    address: Address,
    settlement: Arc<dyn Settlement>,
    retries: &'static [Duration],
    /// One call at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Wallet {
    /// The wallet of `key` on a settlement.
    pub fn new(db: StateDb, key: SecretKey, settlement: Arc<dyn Settlement>) -> Wallet {
        Wallet::with_retries(db, key, settlement, &RETRIES)
    }

    fn with_retries(
        db: StateDb,
        key: SecretKey,
        settlement: Arc<dyn Settlement>,
        retries: &'static [Duration],
    ) -> Wallet {
        let (address, turn) = (key.address(), tokio::sync::Mutex::new(()));
        Wallet { inner: Arc::new(Inner { db, key, address, settlement, retries, turn }) }
    }

    /// The account this wallet spends from.
    pub fn address(&self) -> Address {
        self.inner.address
    }

    /// Where it spends.
    pub fn settlement(&self) -> &Arc<dyn Settlement> {
        &self.inner.settlement
    }

    /// Balance and nonce, freshly asked.
    pub async fn account(&self) -> Result<Account, SettlementError> {
        self.inner.settlement.account(self.inner.address).await
    }

    /// Sends money.
    pub async fn transfer(
        &self,
        to: Address,
        amount: Btt,
        purpose: Option<&str>,
    ) -> Result<Receipt, WalletError> {
        self.call(&Operation::Transfer { to }, amount, purpose).await
    }

    /// Locks money for a channel whose funder this wallet is.
    pub async fn lock(
        &self,
        terms: &ChannelTerms,
        amount: Btt,
        purpose: Option<&str>,
    ) -> Result<Receipt, WalletError> {
        let ChannelTerms { funder, renter, host, payee, window } = *terms;
        if funder != self.inner.address {
            return Err(WalletError::NotFunder { funder, wallet: self.inner.address });
        }
        self.call(&Operation::Lock { renter, host, payee, window }, amount, purpose).await
    }

    /// Announces that money shall leave a channel's lock, one window from now.
    pub async fn decrease(&self, channel: B256, amount: Btt) -> Result<Receipt, WalletError> {
        self.call(&Operation::Decrease { channel, amount }, Btt::ZERO, None).await
    }

    /// Takes back what was announced and is due.
    pub async fn finish(&self, channel: B256) -> Result<Receipt, WalletError> {
        self.call(&Operation::Finish { channel }, Btt::ZERO, None).await
    }

    /// As host, lets the funder have money back at once.
    pub async fn release(
        &self,
        channel: B256,
        amount: Btt,
        purpose: Option<&str>,
    ) -> Result<Receipt, WalletError> {
        self.call(&Operation::Release { channel, amount }, Btt::ZERO, purpose).await
    }

    /// As host or payee, has a voucher paid out. Repeating it pays nothing more, so it needs no purpose.
    pub async fn redeem(&self, voucher: &VerifiedVoucher) -> Result<Receipt, WalletError> {
        self.call(&Operation::Redeem { voucher: voucher.signed().clone() }, Btt::ZERO, None).await
    }

    /// Signs an operation and sees it through. With a purpose that already succeeded, gives that receipt; one that
    /// failed is tried anew.
    pub async fn call(
        &self,
        operation: &Operation,
        value: Btt,
        purpose: Option<&str>,
    ) -> Result<Receipt, WalletError> {
        if let Some(length) = purpose.map(str::len).filter(|length| *length > MAX_PURPOSE) {
            return Err(WalletError::Purpose(length));
        }
        let (wallet, operation) = (self.clone(), operation.clone());
        let purpose = purpose.map(str::to_owned);
        detached(async move { wallet.call_in_turn(&operation, value, purpose.as_deref()).await }).await
    }

    async fn call_in_turn(
        &self,
        operation: &Operation,
        value: Btt,
        purpose: Option<&str>,
    ) -> Result<Receipt, WalletError> {
        let _turn = self.inner.turn.lock().await;
        self.finish_pending().await.map_err(|error| match error {
            WalletError::Unknown(why) => WalletError::Earlier(why),
            other => other,
        })?;
        if let Some(receipt) = self.done(purpose)? {
            return Ok(receipt);
        }
        let mut races = 0;
        loop {
            let record = self.sign(operation, value, purpose).await?;
            match self.see_through(&record).await {
                Err(WalletError::Refused(Refusal::NonceUsed { .. })) if races < NONCE_RACES => races += 1,
                Ok(receipt) => return succeeded(receipt),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends again what a crash or a silent ledger left without a receipt; to be called at start and whenever the
    /// ledger is back. Gives the receipts that came.
    pub async fn resume(&self) -> Result<Vec<Receipt>, WalletError> {
        let wallet = self.clone();
        detached(async move {
            let _turn = wallet.inner.turn.lock().await;
            wallet.finish_pending().await
        })
        .await
    }

    /// Calls without a receipt yet.
    pub fn pending(&self) -> Result<Vec<Signed<Call>>, WalletError> {
        Ok(self.unfinished()?.into_iter().map(|record| record.call).collect())
    }

    fn ids(&self) -> ([u8; 32], [u8; 20]) {
        (self.inner.settlement.domain().separator().0, self.inner.address.into_array())
    }

    fn unfinished(&self) -> Result<Vec<Record>, DbError> {
        let (settlement, account) = self.ids();
        let prefix = [&settlement[..], &account].concat();
        let records = self.inner.db.scan(&CALLS, &prefix).map(|row| row.map(|(_, record)| record));
        records.filter(|record| record.as_ref().map_or(true, |record| record.receipt.is_none())).collect()
    }

    async fn finish_pending(&self) -> Result<Vec<Receipt>, WalletError> {
        let mut receipts = Vec::new();
        for record in self.unfinished()? {
            match self.see_through(&record).await {
                Ok(receipt) => receipts.push(receipt),
                // It was never carried out and never will be; whoever wanted it asks again.
                Err(WalletError::Refused(refusal)) => {
                    tracing::warn!(nonce = record.call.document.nonce, %refusal, "a recorded call was dropped");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(receipts)
    }

    /// The receipt of a purpose that succeeded before.
    fn done(&self, purpose: Option<&str>) -> Result<Option<Receipt>, DbError> {
        let Some(purpose) = purpose else { return Ok(None) };
        let (settlement, account) = self.ids();
        let nonce = self.inner.db.get(&PURPOSES, &(settlement, account, purpose.to_owned()))?;
        let Some(nonce) = nonce else { return Ok(None) };
        let record = self.inner.db.get(&CALLS, &(settlement, account, nonce))?;
        let receipt = record
            .filter(|record| record.purpose.as_deref() == Some(purpose))
            .and_then(|record| record.receipt);
        Ok(receipt.filter(|receipt| matches!(receipt.outcome, Outcome::Done(_))))
    }

    /// Signs a call with the next nonce and puts it on disk.
    async fn sign(
        &self,
        operation: &Operation,
        value: Btt,
        purpose: Option<&str>,
    ) -> Result<Record, WalletError> {
        let Inner { db, key, address, settlement, .. } = &*self.inner;
        let now = settlement.status().await.map_err(WalletError::Settlement)?.time;
        let account = settlement.account(*address).await.map_err(WalletError::Settlement)?;
        if account.balance < value {
            let balance = account.balance;
            return Err(WalletError::Balance { needed: value, balance, account: *address });
        }
        let (domain, (id, own)) = (settlement.domain(), self.ids());
        let signed_before = db.get(&NEXT, &(id, own))?.unwrap_or(0);
        if account.nonce < signed_before {
            let why = format!("it counts {} calls of this account, {signed_before} were made", account.nonce);
            return Err(WalletError::Settlement(SettlementError::Regress(why)));
        }
        let document = Call {
            from: *address,
            nonce: account.nonce,
            deadline: now.saturating_add(VALID_SECONDS),
            value,
            data: Calldata(operation.encode()),
        };
        let nonce = document.nonce;
        let call = Signed::sign(document, &domain, key);
        let record = Record { call, purpose: purpose.map(str::to_owned), receipt: None };
        let mut batch = db.batch();
        batch.put(&CALLS, &(id, own, nonce), &record)?;
        batch.put(&NEXT, &(id, own), &nonce.saturating_add(1))?;
        if let Some(purpose) = purpose {
            batch.put(&PURPOSES, &(id, own, purpose.to_owned()), &nonce)?;
        }
        self.commit(batch).await?;
        Ok(record)
    }

    /// Sends a recorded call until its fate is known, and records that.
    async fn see_through(&self, record: &Record) -> Result<Receipt, WalletError> {
        let mut pauses = self.inner.retries.iter();
        let fate = loop {
            match self.inner.settlement.submit(&record.call).await {
                Err(SettlementError::Unreachable(_) | SettlementError::Refused(Refusal::Internal(_)))
                    if pauses.len() > 0 =>
                {
                    let pause = pauses.next().copied().unwrap_or_default();
                    tokio::time::sleep(pause).await;
                }
                fate => break fate,
            }
        };
        let (id, own) = self.ids();
        let key = (id, own, record.call.document.nonce);
        let mut batch = self.inner.db.batch();
        match fate {
            Ok(receipt) => {
                if record.purpose.is_some() {
                    let done = Record { receipt: Some(receipt.clone()), ..record.clone() };
                    batch.put(&CALLS, &key, &done)?;
                } else {
                    batch.delete(&CALLS, &key)?;
                }
                self.commit(batch).await?;
                Ok(receipt)
            }
            Err(SettlementError::Refused(refusal @ (Refusal::NonceUsed { .. } | Refusal::Invalid(_)))) => {
                batch.delete(&CALLS, &key)?;
                // A call that can never be carried out has not used its nonce.
                if matches!(refusal, Refusal::Invalid(_)) {
                    batch.put(&NEXT, &(id, own), &key.2)?;
                }
                self.commit(batch).await?;
                Err(WalletError::Refused(refusal))
            }
            Err(SettlementError::Refused(Refusal::NonceGap { next, nonce })) => {
                let why = format!("it counts {next} calls of this account, {nonce} were made");
                Err(WalletError::Settlement(SettlementError::Regress(why)))
            }
            Err(SettlementError::Db(error)) => Err(error.into()),
            Err(error @ SettlementError::Regress(_)) => Err(WalletError::Settlement(error)),
            Err(error) => Err(WalletError::Unknown(error.to_string())),
        }
    }

    async fn commit(&self, batch: Batch) -> Result<(), WalletError> {
        let db = self.inner.db.clone();
        let committed = tokio::task::spawn_blocking(move || db.commit(batch)).await;
        committed.map_err(|error| WalletError::Unknown(error.to_string()))?.map_err(WalletError::Db)
    }
}

/// Runs work on money to its end even if the caller stops waiting: a call whose writing was cut off halfway must not
/// meet the next one.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, WalletError>> + Send + 'static,
) -> Result<T, WalletError> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(WalletError::Unknown(error.to_string())))
}

fn succeeded(receipt: Receipt) -> Result<Receipt, WalletError> {
    match &receipt.outcome {
        Outcome::Done(_) => Ok(receipt),
        Outcome::Failed(failure) => Err(WalletError::Failed(failure.clone())),
    }
}

#[cfg(test)]
#[path = "wallet_tests.rs"]
mod tests;
