//! The ledger as others see it: requests in, signed replies out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_bytes::ByteBuf;
use thiserror::Error;
use tokio::sync::Semaphore;

use super::frames::{Answer, MAX_REQUEST, Query, Reply, Request, reply_digest};
use super::limits::{Limiter, Rate};
use super::local::{LocalLedger, refused};
use super::{Refusal, Settlement, SettlementError};
use crate::cbor;
use crate::embedded::{Ledger, MAX_PAGE};
use crate::keys::{PublicKey, SecretKey};

/// Requests of one peer: enough for a node that settles hundreds of agreements after a step of the clock, little
/// beside what signing the replies costs (about 60 us each).
const PEER_RATE: Rate = Rate { burst: 1000, per_second: 200 };

/// Calls of one account. Each costs a disk sync and stays for ever.
const ACCOUNT_RATE: Rate = Rate { burst: 200, per_second: 20 };

/// Peers and accounts remembered by the limiters: a few hundred KiB.
const LIMITER_KEYS: usize = 4096;

/// Peers that may wait for the next event at a time. Others are told to come again, and can still ask.
const WATCHERS: usize = 1024;

/// Why a service cannot start.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The key is not the operator's.
    #[error(
        "this node's key is {found}, but the ledger's operator is {operator}: replies could not be signed"
    )]
    NotOperator {
        /// The key at hand.
        found: PublicKey,
        /// The key of the genesis.
        operator: PublicKey,
    },
}

/// Answers [`PROTOCOL`](super::PROTOCOL) requests from other nodes.
pub struct LedgerService {
    local: LocalLedger,
    key: SecretKey,
    started: Instant,
    peers: Mutex<Limiter<PublicKey>>,
    accounts: Arc<Mutex<Limiter<crate::Address>>>,
    watchers: Semaphore,
}

impl LedgerService {
    /// Serves a ledger with the operator's key.
    pub fn new(local: LocalLedger, key: SecretKey) -> Result<LedgerService, ServiceError> {
        let (found, operator) = (key.public(), local.ledger().genesis().operator);
        if found != operator {
            return Err(ServiceError::NotOperator { found, operator });
        }
        Ok(LedgerService {
            local,
            key,
            started: Instant::now(),
            peers: Mutex::new(Limiter::new(PEER_RATE, LIMITER_KEYS)),
            accounts: Arc::new(Mutex::new(Limiter::new(ACCOUNT_RATE, LIMITER_KEYS))),
            watchers: Semaphore::new(WATCHERS),
        })
    }

    /// Answers one request. The error is a text for the one who asked; then nothing was carried out, or asking
    /// again tells.
    pub async fn handle(&self, peer: &PublicKey, request: &[u8]) -> Result<Vec<u8>, String> {
        if !self.peers.lock().admit(*peer, self.started.elapsed()) {
            return Err("too many requests; try again in a second".to_owned());
        }
        let Request { query, .. } =
            cbor::decode(request, MAX_REQUEST).map_err(|error| format!("request refused: {error}"))?;
        let answer = self.answer(query).await.map_err(|error| error.to_string())?;
        let body = cbor::encode(&answer);
        let status = self.local.status().await.map_err(|error| error.to_string())?;
        let signature = self.key.sign_digest(&reply_digest(&self.local.domain(), request, &body, &status));
        Ok(cbor::encode(&Reply { body: ByteBuf::from(body), status, signature }))
    }

    async fn answer(&self, query: Query) -> Result<Answer, SettlementError> {
        let local = &self.local;
        Ok(match query {
            Query::Status => Answer::Status,
            Query::Account(address) => Answer::Account(local.account(address).await?),
            Query::Channel(id) => Answer::Channel(local.channel(id).await?),
            Query::Channels { member, after } => Answer::Channels(local.channels(member, after).await?),
            Query::Stream { channel, stream } => Answer::Stream(local.stream(channel, stream).await?),
            Query::Streams { channel, after } => Answer::Streams(local.streams(channel, after).await?),
            Query::Submit(bytes) => self.submit(bytes.into_vec()).await?,
            Query::Receipt { from, nonce } => Answer::Receipt(local.receipt(from, nonce).await?),
            Query::History { address, before, limit } => {
                let limit = usize::try_from(limit).unwrap_or(MAX_PAGE);
                Answer::History(local.history(address, before, limit).await?)
            }
            Query::Watch { after, wait_ms } => {
                let _place = self.watchers.try_acquire().map_err(|_| {
                    SettlementError::Unreachable("too many peers wait for events; try again".to_owned())
                })?;
                local.watch(after, Duration::from_millis(wait_ms)).await?;
                Answer::Status
            }
        })
    }

    async fn submit(&self, bytes: Vec<u8>) -> Result<Answer, SettlementError> {
        let (accounts, now) = (self.accounts.clone(), self.started.elapsed());
        let carried_out = self.local.run(move |ledger: &Ledger| {
            let checked = ledger.check(&bytes).map_err(refused)?;
            // Only now is it known whose call this is: nobody can use up another's share.
            if !accounts.lock().admit(checked.from(), now) {
                let text = "too many calls of this account; try again in a second";
                return Err(SettlementError::Unreachable(text.to_owned()));
            }
            ledger.execute(checked).map_err(refused)
        });
        match carried_out.await {
            Ok(receipt) => Ok(Answer::Receipt(Some(receipt))),
            Err(SettlementError::Refused(Refusal::Internal(why))) => Err(SettlementError::Unreachable(why)),
            Err(SettlementError::Refused(refusal)) => Ok(Answer::Refused(refusal)),
            Err(other) => Err(other),
        }
    }
}
