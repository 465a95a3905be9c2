//! The one writer of an embedded ledger.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use alloy_primitives::{Address, B256};
use btfs_storage::db::{Batch, DbError, StateDb};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::sync::watch;

use super::clock::{Clock, MAX_STEP};
use super::genesis::{Genesis, GenesisError, LedgerId};
use super::records::{Failure, Outcome, Receipt, Status};
use super::rules::{self, Book, Changes, Surroundings};
use super::tables::{ACCOUNTS, CHANNELS, Disk, GENESIS, HISTORY, Line, MEMBERS, RECEIPTS, STREAMS, TIP, Tip};
use crate::cbor::{self, CborError};
use crate::keys::{SignatureError, recover};
use crate::typed::{Call, Document, Domain, Signed, claim_selector};

/// Largest calldata of any operation but a claim, bytes.
pub const MAX_CALL: usize = 4 << 10;

/// Largest calldata of a claim: 100 leaves of a deep tree and to spare.
pub const MAX_CLAIM: usize = 256 << 10;

/// What a call carries besides its data: array and integer heads, address, value, signature.
const CALL_OVERHEAD: usize = 256;

/// Time that may pass between told times on disk; what a wall clock that was set back can take from settlement
/// time across a restart. Clients bridge it, since they never go back either.
const TIME_MARK: u64 = 10;

/// Reads the wall clock, unix seconds.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's wall clock. A clock before 1970 reads as zero, and settlement time stands still.
pub fn system_clock() -> WallClock {
    Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// How to run a ledger.
#[derive(Clone)]
pub struct LedgerOptions {
    /// Whether the network is declared local: only then may its clock be stepped.
    pub local: bool,
    /// The wall clock.
    pub wall: WallClock,
}

impl LedgerOptions {
    /// With the system's clock.
    pub fn new(local: bool) -> LedgerOptions {
        LedgerOptions { local, wall: system_clock() }
    }
}

/// Why a ledger cannot be made, opened or stepped.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The state database failed.
    #[error("the ledger's database failed: {0}")]
    Db(#[from] DbError),
    /// The genesis is none.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// No ledger is here.
    #[error("there is no ledger in this repo; make one with: btfs ledger init --supply N")]
    NoLedger,
    /// Another ledger is here.
    #[error("this repo already holds the ledger {found}; a second one needs another repo")]
    OtherLedger {
        /// Its genesis hash.
        found: B256,
    },
    /// The network is not local.
    #[error("only the clock of a network declared local can be stepped; this ledger follows the wall clock")]
    NotLocal,
    /// Too far at once.
    #[error("a step of {0} s; one step can be at most {MAX_STEP} s (366 days)")]
    StepTooLong(u64),
}

/// Why a call was not taken. It has no receipt, its nonce is free, and no money moved.
#[derive(Debug, Error)]
pub enum SubmitError {
    /// Not a signed call.
    #[error("call refused: {0}")]
    Malformed(#[from] CborError),
    /// Calldata above the cap.
    #[error("call refused: {size} bytes of calldata, at most {cap} are possible")]
    TooLarge {
        /// Bytes that came.
        size: usize,
        /// Bytes allowed.
        cap: usize,
    },
    /// Not signed by the account that calls, on this ledger.
    #[error("call refused: {0}")]
    Signature(#[from] SignatureError),
    /// Another call has this nonce.
    #[error("nonce {nonce} of {from} was used by another call; the next is {next}")]
    NonceUsed {
        /// The account.
        from: Address,
        /// The nonce.
        nonce: u64,
        /// The nonce a new call must have.
        next: u64,
    },
    /// Calls before this one are missing.
    #[error("nonce {nonce} of {from} comes too early; the next is {next}")]
    NonceGap {
        /// The account.
        from: Address,
        /// The nonce.
        nonce: u64,
        /// The nonce a new call must have.
        next: u64,
    },
    /// It would fail, and its account has never had or done anything: a receipt for it would let anybody with fresh
    /// keys grow the ledger for nothing.
    #[error("{from} has no money and has made no call, and this one would fail: {why}")]
    Penniless {
        /// The account.
        from: Address,
        /// Why it would fail.
        why: Failure,
    },
    /// The operating system gave no randomness.
    #[error("the operating system's random generator failed: {0}")]
    Random(String),
    /// The state database failed. The call may be sent again.
    #[error("the ledger's database failed, the call can be sent again: {0}")]
    Db(#[from] DbError),
}

/// An embedded ledger on a state database. Calls block for a disk sync: not for async workers.
pub struct Ledger {
    pub(super) db: StateDb,
    pub(super) genesis: Genesis,
    domain: Domain,
    options: LedgerOptions,
    /// Held for moments only, unlike the writer, which is held over disk syncs.
    clock: Mutex<Clock>,
    writer: Mutex<Writer>,
    events: watch::Sender<u64>,
}

struct Writer {
    seq: u64,
    head: B256,
    /// The time in the tip on disk.
    marked: u64,
}

/// A call that its account has signed for this ledger; whether it can be carried out is the next question.
#[derive(Clone, Debug)]
pub struct CheckedCall {
    call: Call,
    digest: B256,
    /// The signed call in DAG-CBOR, as it goes into the head.
    bytes: Vec<u8>,
}

impl CheckedCall {
    /// Who calls.
    pub fn from(&self) -> Address {
        self.call.from
    }
}

impl Ledger {
    /// Makes the ledger of `genesis` in this database, or opens it if it is there already.
    pub fn create(db: StateDb, genesis: Genesis, options: LedgerOptions) -> Result<Ledger, LedgerError> {
        genesis.check()?;
        match db.get(&GENESIS, &())? {
            Some(found) if found == genesis => return Ledger::open(db, options),
            Some(found) => return Err(LedgerError::OtherLedger { found: found.hash() }),
            None => {}
        }
        let mut clock = Clock { offset: 0, last: 0 };
        clock.now((options.wall)());
        let mut batch = db.batch();
        batch.put(&GENESIS, &(), &genesis)?;
        batch.put(&TIP, &(), &Tip { seq: 0, head: genesis.hash(), clock })?;
        for (address, balance) in &genesis.allocations {
            let account = super::Account { balance: *balance, nonce: 0 };
            batch.put(&ACCOUNTS, &address.into_array(), &account)?;
        }
        db.commit(batch)?;
        Ledger::open(db, options)
    }

    /// Opens the ledger in this database.
    pub fn open(db: StateDb, options: LedgerOptions) -> Result<Ledger, LedgerError> {
        let genesis = db.get(&GENESIS, &())?.ok_or(LedgerError::NoLedger)?;
        let tip = db.get(&TIP, &())?.ok_or(LedgerError::NoLedger)?;
        let writer = Mutex::new(Writer { seq: tip.seq, head: tip.head, marked: tip.clock.last });
        let (clock, events) = (Mutex::new(tip.clock), watch::Sender::new(tip.seq));
        Ok(Ledger { domain: genesis.domain(), db, genesis, options, clock, writer, events })
    }

    /// The genesis.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// What others need to know of this ledger.
    pub fn id(&self) -> LedgerId {
        self.genesis.id()
    }

    /// The domain of all signatures here.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Whether its clock may be stepped.
    pub fn is_local(&self) -> bool {
        self.options.local
    }

    /// Numbers of events as they happen; for those who wait for the next.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.events.subscribe()
    }

    /// Settlement time now.
    pub fn now(&self) -> u64 {
        self.read_clock().last
    }

    fn read_clock(&self) -> Clock {
        let mut clock = self.clock.lock();
        clock.now((self.options.wall)());
        *clock
    }

    /// How many events there were, the head over them, and the time now.
    pub fn status(&self) -> Result<Status, DbError> {
        let mut writer = self.writer.lock();
        let clock = self.read_clock();
        let (seq, head) = (writer.seq, writer.head);
        if clock.last >= writer.marked.saturating_add(TIME_MARK) {
            let mut batch = self.db.batch();
            batch.put(&TIP, &(), &Tip { seq, head, clock })?;
            self.db.commit(batch)?;
            writer.marked = clock.last;
        }
        Ok(Status { seq, head, time: clock.last })
    }

    /// Carries out a signed call in DAG-CBOR, or returns the receipt it already has.
    pub fn submit(&self, bytes: &[u8]) -> Result<Receipt, SubmitError> {
        self.execute(self.check(bytes)?)
    }

    /// Reads a signed call and checks its size and signature. Changes nothing.
    pub fn check(&self, bytes: &[u8]) -> Result<CheckedCall, SubmitError> {
        let signed: Signed<Call> = cbor::decode(bytes, MAX_CLAIM + CALL_OVERHEAD)?;
        let data = &signed.document.data.0;
        let cap = if data.get(..4) == Some(claim_selector().as_slice()) { MAX_CLAIM } else { MAX_CALL };
        if data.len() > cap {
            return Err(SubmitError::TooLarge { size: data.len(), cap });
        }
        let digest = signed.document.digest(&self.domain);
        let expected = signed.document.from;
        match recover(&digest, &signed.signature)? {
            found if found == expected => {
                Ok(CheckedCall { call: signed.document, digest, bytes: bytes.to_vec() })
            }
            found => Err(SignatureError::WrongSigner { expected, found }.into()),
        }
    }

    /// Carries out a checked call, or returns the receipt it already has.
    pub fn execute(&self, checked: CheckedCall) -> Result<Receipt, SubmitError> {
        let CheckedCall { call, digest, bytes } = checked;
        let mut seed = B256::ZERO;
        getrandom::fill(seed.as_mut_slice()).map_err(|error| SubmitError::Random(error.to_string()))?;

        let mut writer = self.writer.lock();
        let book = Disk(&self.db);
        let next = book.account(&call.from)?.nonce;
        let (from, nonce) = (call.from, call.nonce);
        if nonce > next {
            return Err(SubmitError::NonceGap { from, nonce, next });
        }
        if nonce < next {
            return match self.receipt(&from, nonce)? {
                Some(receipt) if receipt.digest == digest => Ok(receipt),
                _ => Err(SubmitError::NonceUsed { from, nonce, next }),
            };
        }

        let clock = self.read_clock();
        let (now, answer_seconds) = (clock.last, self.genesis.answer_seconds);
        let around = Surroundings { domain: &self.domain, now, answer_seconds, seed };
        let (changes, result) = rules::execute(&book, &around, &call)?;
        if let Err(why) = &result
            && next == 0
            && book.account(&from)?.balance.is_zero()
        {
            return Err(SubmitError::Penniless { from, why: why.clone() });
        }
        let seq = writer.seq + 1;
        let outcome = result.map_or_else(Outcome::Failed, Outcome::Done);
        let receipt = Receipt { seq, time: now, from, nonce, digest, value: call.value, outcome };
        let head = next_head(&writer.head, &bytes, &cbor::encode(&receipt));
        let tip = Tip { seq, head, clock };
        let batch = self.record(&book, &changes, &receipt, &tip)?;
        self.db.commit(batch)?;
        self.advance(&mut writer, tip);
        Ok(receipt)
    }

    /// Moves settlement time on by `seconds`. An event of its own: everyone who follows the head learns of it.
    pub fn step(&self, seconds: u64) -> Result<Status, LedgerError> {
        if !self.options.local {
            return Err(LedgerError::NotLocal);
        }
        if seconds > MAX_STEP {
            return Err(LedgerError::StepTooLong(seconds));
        }
        let mut writer = self.writer.lock();
        let mut clock = self.read_clock();
        let time = clock.step((self.options.wall)(), seconds);
        let seq = writer.seq + 1;
        let head = next_head(&writer.head, &cbor::encode(&("step", seconds)), &cbor::encode(&(seq, time)));
        let tip = Tip { seq, head, clock };
        let mut batch = self.db.batch();
        batch.put(&TIP, &(), &tip)?;
        self.db.commit(batch)?;
        {
            // Time may have been told while the batch was written; it must not go back by the step.
            let mut shared = self.clock.lock();
            *shared = Clock { offset: clock.offset, last: clock.last.max(shared.last) };
        }
        self.advance(&mut writer, tip);
        Ok(Status { seq, head, time })
    }

    /// The receipt of a call.
    pub fn receipt(&self, from: &Address, nonce: u64) -> Result<Option<Receipt>, DbError> {
        self.db.get(&RECEIPTS, &(from.into_array(), nonce))
    }

    /// Keeps the writer out while the guard lives.
    pub(super) fn hold(&self) -> impl Drop + '_ {
        self.writer.lock()
    }

    fn advance(&self, writer: &mut Writer, tip: Tip) {
        (writer.seq, writer.head, writer.marked) = (tip.seq, tip.head, tip.clock.last);
        self.events.send_replace(tip.seq);
    }

    /// Everything one call changes, as one batch.
    fn record(
        &self,
        book: &Disk<'_>,
        changes: &Changes,
        receipt: &Receipt,
        tip: &Tip,
    ) -> Result<Batch, DbError> {
        let mut batch = self.db.batch();
        for (address, account) in &changes.accounts {
            let before = book.account(address)?.balance;
            let line = Line {
                from: receipt.from,
                nonce: receipt.nonce,
                received: account.balance.saturating_sub(before),
                spent: before.saturating_sub(account.balance),
                balance: account.balance,
            };
            let key = address.into_array();
            batch.put(&HISTORY, &(key, u64::MAX - receipt.seq), &line)?;
            batch.put(&ACCOUNTS, &key, account)?;
        }
        for (id, channel) in &changes.channels {
            batch.put(&CHANNELS, &id.0, channel)?;
            if changes.created == Some(*id) {
                let terms = &channel.terms;
                for member in [terms.funder, terms.renter, terms.host, terms.payee] {
                    batch.put(&MEMBERS, &(member.into_array(), id.0), &())?;
                }
            }
        }
        for ((channel, id), stream) in &changes.streams {
            batch.put(&STREAMS, &(channel.0, id.0), stream)?;
        }
        batch.put(&RECEIPTS, &(receipt.from.into_array(), receipt.nonce), receipt)?;
        batch.put(&TIP, &(), tip)?;
        Ok(batch)
    }
}

fn next_head(head: &B256, call: &[u8], result: &[u8]) -> B256 {
    let mut hash = Sha256::new();
    hash.update(head);
    hash.update(call);
    hash.update(result);
    let digest: [u8; 32] = hash.finalize().into();
    digest.into()
}
