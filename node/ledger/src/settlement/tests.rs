//! A client and a service with nothing but a byte pipe between them, and what may go wrong in it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use btfs_storage::db::StateDb;

use super::*;
use crate::embedded::{Genesis, Ledger, LedgerOptions};
use crate::typed::{Calldata, Operation};
use crate::{Btt, PublicKey, SecretKey, cbor};

pub(crate) fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes(&[byte; 32]).unwrap()
}

pub(crate) fn state(folder: &tempfile::TempDir, name: &str) -> StateDb {
    StateDb::open(&folder.path().join(name), &crate::TABLES).unwrap()
}

/// What the pipe does with the next request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The request never arrives.
    LoseRequest,
    /// It is carried out, and the response is lost.
    LoseResponse,
    /// A bit of the response is flipped.
    Spoil,
    /// The response to the request before comes instead.
    Replay,
}

pub(crate) struct Pipe {
    pub(crate) service: Mutex<Arc<LedgerService>>,
    pub(crate) fault: Mutex<Fault>,
    peer: PublicKey,
    last: Mutex<Vec<u8>>,
}

impl Pipe {
    pub(crate) fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }
}

#[async_trait]
impl LedgerTransport for Pipe {
    async fn ask(&self, request: Vec<u8>) -> Result<Vec<u8>, String> {
        let fault = *self.fault.lock().unwrap();
        if fault == Fault::LoseRequest {
            return Err("the request was lost".to_owned());
        }
        let service = self.service.lock().unwrap().clone();
        let mut response = service.handle(&self.peer, &request).await?;
        let before = std::mem::replace(&mut *self.last.lock().unwrap(), response.clone());
        match fault {
            Fault::LoseResponse => Err("the response was lost".to_owned()),
            Fault::Replay => Ok(before),
            Fault::Spoil => {
                let middle = response.len() / 2;
                response[middle] ^= 1;
                Ok(response)
            }
            _ => Ok(response),
        }
    }
}

pub(crate) struct World {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) wall: Arc<AtomicU64>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) pipe: Arc<Pipe>,
}

pub(crate) const NOW: u64 = 1_800_000_000;

impl World {
    pub(crate) fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let wall = Arc::new(AtomicU64::new(NOW));
        let funds = Btt::from_units(1000);
        let genesis = Genesis::new(key(9).public(), [(key(1).address(), funds)], 60).unwrap();
        let ledger = ledger(&folder, "ledger", genesis, &wall);
        let pipe = Arc::new(Pipe {
            service: Mutex::new(serve(&ledger)),
            fault: Mutex::new(Fault::None),
            peer: key(1).public(),
            last: Mutex::default(),
        });
        World { folder, wall, ledger, pipe }
    }

    pub(crate) fn client(&self, db: StateDb) -> RemoteLedger {
        RemoteLedger::open(self.ledger.id(), db, self.pipe.clone()).unwrap()
    }

    pub(crate) fn transfer(&self, nonce: u64, amount: u128) -> Signed<Call> {
        let operation = Operation::Transfer { to: key(2).address() };
        let call = Call {
            from: key(1).address(),
            nonce,
            deadline: u64::MAX,
            value: Btt::from_units(amount),
            data: Calldata(operation.encode()),
        };
        Signed::sign(call, self.ledger.domain(), &key(1))
    }
}

fn ledger(folder: &tempfile::TempDir, name: &str, genesis: Genesis, wall: &Arc<AtomicU64>) -> Arc<Ledger> {
    let wall = wall.clone();
    let options = LedgerOptions { local: true, wall: Arc::new(move || wall.load(Ordering::SeqCst)) };
    Arc::new(Ledger::create(state(folder, name), genesis, options).unwrap())
}

fn serve(ledger: &Arc<Ledger>) -> Arc<LedgerService> {
    Arc::new(LedgerService::new(LocalLedger::new(ledger.clone()), key(9)).unwrap())
}

#[tokio::test]
async fn every_question_has_the_local_answer() {
    let world = World::new();
    let (local, remote) = (LocalLedger::new(world.ledger.clone()), world.client(state(&world.folder, "c")));
    assert_eq!(remote.now(), None);
    let receipt = remote.submit(&world.transfer(0, 10)).await.unwrap();
    assert_eq!(remote.now(), Some(NOW));
    let lock = Operation::Lock {
        renter: key(1).address(),
        host: key(2).address(),
        payee: key(2).address(),
        window: 5,
    };
    let mut call = world.transfer(1, 20).document;
    call.data = Calldata(lock.encode());
    remote.submit(&Signed::sign(call, world.ledger.domain(), &key(1))).await.unwrap();
    let me = key(1).address();
    assert_eq!(remote.domain(), local.domain());
    assert_eq!(remote.status().await.unwrap(), local.status().await.unwrap());
    assert_eq!(remote.account(me).await.unwrap(), local.account(me).await.unwrap());
    assert_eq!(remote.receipt(me, 0).await.unwrap(), Some(receipt));
    assert_eq!(remote.receipt(me, 5).await.unwrap(), None);
    assert_eq!(remote.history(me, None, 9).await.unwrap(), local.history(me, None, 9).await.unwrap());
    let channels = remote.channels(me, None).await.unwrap();
    assert_eq!((channels.len(), &channels), (1, &local.channels(me, None).await.unwrap()));
    let id = channels[0].terms.id();
    assert_eq!(remote.channel(id).await.unwrap(), Some(channels[0]));
    assert_eq!(remote.channel(B256::ZERO).await.unwrap(), None);
    assert_eq!(remote.stream(id, B256::ZERO).await.unwrap(), Stream::default());
    assert_eq!(remote.streams(id, None).await.unwrap(), []);
    let used = remote.submit(&world.transfer(0, 11)).await;
    assert!(matches!(used, Err(SettlementError::Refused(Refusal::NonceUsed { nonce: 0, next: 2 }))));
    let gap = remote.submit(&world.transfer(7, 11)).await;
    assert!(matches!(gap, Err(SettlementError::Refused(Refusal::NonceGap { nonce: 7, next: 2 }))));
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_again() {
    let world = World::new();
    let remote = world.client(state(&world.folder, "c"));
    let call = world.transfer(0, 10);
    world.pipe.set(Fault::LoseResponse);
    assert!(matches!(remote.submit(&call).await, Err(SettlementError::Unreachable(_))));
    world.pipe.set(Fault::None);
    remote.submit(&call).await.unwrap();
    assert_eq!(world.ledger.account(&key(1).address()).unwrap().balance, Btt::from_units(990));
}

#[tokio::test]
async fn only_the_operators_answer_to_this_question_counts() {
    let world = World::new();
    let remote = world.client(state(&world.folder, "c"));
    remote.status().await.unwrap();
    for fault in [Fault::Spoil, Fault::Replay] {
        world.pipe.set(fault);
        assert!(matches!(remote.status().await, Err(SettlementError::Forged(_))));
    }
    world.pipe.set(Fault::None);
    let wrong = crate::LedgerId { operator: key(8).public(), ..world.ledger.id() };
    let spoofed = RemoteLedger::open(wrong, state(&world.folder, "d"), world.pipe.clone()).unwrap();
    assert!(matches!(spoofed.status().await, Err(SettlementError::Forged(_))));
    assert!(LedgerService::new(LocalLedger::new(world.ledger.clone()), key(8)).is_err());
}

#[tokio::test]
async fn a_ledger_that_went_back_is_not_used_any_more() {
    let world = World::new();
    let db = state(&world.folder, "c");
    let remote = world.client(db.clone());
    let current = world.pipe.service.lock().unwrap().clone();
    // The same genesis anew: a copy from before the first call.
    let old = ledger(&world.folder, "old", world.ledger.genesis().clone(), &world.wall);
    remote.submit(&world.transfer(0, 10)).await.unwrap();
    *world.pipe.service.lock().unwrap() = serve(&old);
    assert!(matches!(remote.status().await, Err(SettlementError::Regress(_))));
    // Not even when it has caught up with another history, nor after a restart.
    old.submit(&cbor::encode(&world.transfer(0, 99))).unwrap();
    old.submit(&cbor::encode(&world.transfer(1, 99))).unwrap();
    assert!(matches!(remote.status().await, Err(SettlementError::Regress(_))));
    drop(remote);
    *world.pipe.service.lock().unwrap() = current;
    let again = world.client(db);
    assert!(matches!(again.status().await, Err(SettlementError::Regress(_))));
}

#[tokio::test]
async fn two_histories_of_one_length_are_noticed() {
    let world = World::new();
    let remote = world.client(state(&world.folder, "c"));
    let twin = ledger(&world.folder, "twin", world.ledger.genesis().clone(), &world.wall);
    remote.submit(&world.transfer(0, 10)).await.unwrap();
    twin.submit(&cbor::encode(&world.transfer(0, 11))).unwrap();
    *world.pipe.service.lock().unwrap() = serve(&twin);
    assert!(matches!(remote.status().await, Err(SettlementError::Regress(_))));
}

#[tokio::test]
async fn watching_ends_with_the_next_event() {
    let world = World::new();
    let remote = world.client(state(&world.folder, "c"));
    let seq = remote.status().await.unwrap().seq;
    let waiting = tokio::spawn({
        let remote = remote.clone();
        async move { remote.watch(seq, MAX_WATCH).await.unwrap() }
    });
    world.ledger.step(86_400).unwrap();
    let status = waiting.await.unwrap();
    assert_eq!((status.seq, status.time), (seq + 1, NOW + 86_400));
    assert_eq!(remote.now(), Some(NOW + 86_400));
    let at_once = remote.watch(seq, MAX_WATCH).await.unwrap();
    assert_eq!(at_once.seq, seq + 1);
    let nothing_new = remote.watch(at_once.seq, Duration::ZERO).await.unwrap();
    assert_eq!(nothing_new.seq, at_once.seq);
}

#[tokio::test]
async fn a_peer_that_asks_without_end_is_stopped() {
    let world = World::new();
    let service = world.pipe.service.lock().unwrap().clone();
    let mut refused = 0;
    for _ in 0..2000 {
        match service.handle(&key(5).public(), b"\xf6").await {
            Err(text) if text.starts_with("too many requests") => refused += 1,
            Err(text) => assert!(text.starts_with("request refused"), "{text}"),
            Ok(_) => panic!("nonsense was answered"),
        }
    }
    assert!(refused > 0);
    world.client(state(&world.folder, "c")).status().await.unwrap();
}
