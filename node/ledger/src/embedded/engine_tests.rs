//! The ledger on disk: nonces, receipts, restarts, clock, and the sum of all money.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use btfs_storage::db::StateDb;
use proptest::prelude::*;

use super::*;
use crate::typed::{Call, Calldata, ChannelTerms, Document, Operation, Signed, Voucher};
use crate::{Address, B256, Btt, SecretKey, cbor};

const NOW: u64 = 1_800_000_000;

fn key(byte: u8) -> SecretKey {
    SecretKey::from_bytes(&[byte; 32]).unwrap()
}

/// A ledger in a temporary folder that can be closed and opened again.
struct Fixture {
    folder: tempfile::TempDir,
    wall: Arc<AtomicU64>,
    ledger: Option<Ledger>,
}

impl Fixture {
    fn new(local: bool) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let wall = Arc::new(AtomicU64::new(NOW));
        let mut fixture = Fixture { folder, wall, ledger: None };
        let funds = Btt::from_units(1000);
        let allocations = [1, 2, 3].map(|byte| (key(byte).address(), funds));
        let genesis = Genesis::new(key(9).public(), allocations, 60).unwrap();
        fixture.ledger = Some(Ledger::create(fixture.db(), genesis, fixture.options(local)).unwrap());
        fixture
    }

    fn db(&self) -> StateDb {
        StateDb::open(&self.folder.path().join("state"), &TABLES).unwrap()
    }

    fn options(&self, local: bool) -> LedgerOptions {
        let wall = self.wall.clone();
        LedgerOptions { local, wall: Arc::new(move || wall.load(Ordering::SeqCst)) }
    }

    fn ledger(&self) -> &Ledger {
        self.ledger.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        let local = self.ledger().is_local();
        self.ledger = None;
        self.ledger = Some(Ledger::open(self.db(), self.options(local)).unwrap());
    }

    fn call(&self, who: u8, nonce: u64, value: u128, operation: &Operation) -> Vec<u8> {
        let call = Call {
            from: key(who).address(),
            nonce,
            deadline: u64::MAX,
            value: Btt::from_units(value),
            data: Calldata(operation.encode()),
        };
        cbor::encode(&Signed::sign(call, self.ledger().domain(), &key(who)))
    }

    fn balance(&self, who: u8) -> u128 {
        self.ledger().account(&key(who).address()).unwrap().balance.units()
    }
}

fn to(who: u8) -> Operation {
    Operation::Transfer { to: key(who).address() }
}

fn terms() -> ChannelTerms {
    let [funder, host] = [key(1).address(), key(2).address()];
    ChannelTerms { funder, renter: funder, host, payee: host, window: 1000 }
}

fn lock() -> Operation {
    let ChannelTerms { renter, host, payee, window, .. } = terms();
    Operation::Lock { renter, host, payee, window }
}

#[test]
fn a_call_is_carried_out_once() {
    let mut fixture = Fixture::new(false);
    let call = fixture.call(1, 0, 100, &to(2));
    let receipt = fixture.ledger().submit(&call).unwrap();
    assert!(matches!(receipt.outcome, Outcome::Done(Effect::Transferred { .. })));
    for _ in 0..2 {
        assert_eq!(fixture.ledger().submit(&call).unwrap(), receipt);
        fixture.reopen();
    }
    assert_eq!((fixture.balance(1), fixture.balance(2)), (900, 1100));
    let other = fixture.call(1, 0, 200, &to(2));
    assert!(matches!(fixture.ledger().submit(&other), Err(SubmitError::NonceUsed { next: 1, .. })));
    let early = fixture.call(1, 2, 200, &to(2));
    assert!(matches!(fixture.ledger().submit(&early), Err(SubmitError::NonceGap { next: 1, .. })));
    assert_eq!(fixture.balance(1), 900);
}

#[test]
fn a_failed_call_uses_its_nonce_and_has_a_receipt() {
    let fixture = Fixture::new(false);
    let call = fixture.call(1, 0, 5000, &to(2));
    let receipt = fixture.ledger().submit(&call).unwrap();
    assert!(matches!(receipt.effect(), Err(Failure::Balance { .. })));
    assert_eq!(fixture.ledger().submit(&call).unwrap(), receipt);
    assert_eq!(fixture.ledger().account(&key(1).address()).unwrap().nonce, 1);
    assert_eq!(fixture.ledger().receipt(&key(1).address(), 0).unwrap(), Some(receipt));
}

#[test]
fn calls_for_others_or_elsewhere_are_refused() {
    let fixture = Fixture::new(false);
    let elsewhere = Fixture::new(false);
    let foreign = elsewhere.call(1, 0, 100, &to(2));
    assert!(matches!(fixture.ledger().submit(&foreign), Err(SubmitError::Signature(_))));
    let bytes = fixture.call(1, 0, 100, &to(2));
    let mut stolen: Signed<Call> = cbor::decode(&bytes, 4096).unwrap();
    stolen.document.from = key(2).address();
    assert!(matches!(fixture.ledger().submit(&cbor::encode(&stolen)), Err(SubmitError::Signature(_))));
    for index in 0..bytes.len() {
        let mut spoiled = bytes.clone();
        spoiled[index] ^= 1;
        assert!(fixture.ledger().submit(&spoiled).is_err(), "byte {index}");
    }
    assert_eq!(fixture.ledger().status().unwrap().seq, 0);
    let mut large: Signed<Call> = cbor::decode(&bytes, 4096).unwrap();
    large.document.data.0.resize(MAX_CALL + 1, 0);
    assert!(matches!(fixture.ledger().submit(&cbor::encode(&large)), Err(SubmitError::TooLarge { .. })));
}

#[test]
fn the_head_is_a_chain_over_calls_results_and_steps() {
    let mut fixture = Fixture::new(true);
    let start = fixture.ledger().status().unwrap();
    assert_eq!((start.seq, start.head), (0, fixture.ledger().genesis().hash()));
    let call = fixture.call(1, 0, 1, &to(2));
    let receipt = fixture.ledger().submit(&call).unwrap();
    let chained = [start.head.as_slice(), &call, &cbor::encode(&receipt)].concat();
    let expected: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(&chained).into();
    let status = fixture.ledger().status().unwrap();
    assert_eq!((status.seq, status.head), (1, B256::from(expected)));
    fixture.ledger().submit(&call).unwrap();
    assert_eq!(fixture.ledger().status().unwrap(), status, "a repeated call is no event");
    let stepped = fixture.ledger().step(86_400).unwrap();
    assert_eq!((stepped.seq, stepped.time), (2, status.time + 86_400));
    assert_ne!(stepped.head, status.head);
    fixture.reopen();
    assert_eq!(fixture.ledger().status().unwrap(), stepped);
}

#[test]
fn time_never_goes_back_and_steps_survive() {
    let mut fixture = Fixture::new(true);
    fixture.ledger().step(1000).unwrap();
    assert_eq!(fixture.ledger().now(), NOW + 1000);
    fixture.wall.store(NOW + 50, Ordering::SeqCst);
    fixture.ledger().status().unwrap();
    fixture.wall.store(NOW - 5000, Ordering::SeqCst);
    assert_eq!(fixture.ledger().now(), NOW + 1050);
    fixture.reopen();
    assert_eq!(fixture.ledger().now(), NOW + 1050, "a clock set back stands still, over a restart too");
    assert!(matches!(fixture.ledger().step(MAX_STEP + 1), Err(LedgerError::StepTooLong(_))));
    let real = Fixture::new(false);
    assert!(matches!(real.ledger().step(1), Err(LedgerError::NotLocal)));
}

#[test]
fn one_repo_holds_one_ledger() {
    let mut fixture = Fixture::new(false);
    let genesis = fixture.ledger().genesis().clone();
    fixture.ledger = None;
    let other = Genesis::new(key(9).public(), genesis.allocations.clone(), 60).unwrap();
    let (db, options) = (fixture.db(), fixture.options(false));
    let refused = Ledger::create(db.clone(), other, options.clone());
    assert!(matches!(refused, Err(LedgerError::OtherLedger { .. })));
    let again = Ledger::create(db, genesis.clone(), options).unwrap();
    assert_eq!(again.genesis(), &genesis);
    let empty = tempfile::tempdir().unwrap();
    let db = StateDb::open(empty.path(), &TABLES).unwrap();
    assert!(matches!(Ledger::open(db, LedgerOptions::new(false)), Err(LedgerError::NoLedger)));
}

#[test]
fn history_tells_what_an_account_gained_and_lost() {
    let fixture = Fixture::new(false);
    let submit = |call: Vec<u8>| fixture.ledger().submit(&call).unwrap();
    submit(fixture.call(1, 0, 100, &to(2)));
    submit(fixture.call(1, 1, 300, &lock()));
    let amount = Btt::from_units(40);
    let voucher = Voucher { channel: terms().id(), stream: B256::ZERO, amount, epochs: 1 };
    let voucher = Signed::sign(voucher, fixture.ledger().domain(), &key(1));
    submit(fixture.call(2, 0, 0, &Operation::Redeem { voucher }));
    submit(fixture.call(3, 0, 1, &to(2)));
    let history = |who: u8, before, limit| {
        let entries = fixture.ledger().history(&key(who).address(), before, limit).unwrap();
        let line = |e: HistoryEntry| (e.receipt.seq, e.received.units(), e.spent.units(), e.balance.units());
        entries.into_iter().map(line).collect::<Vec<_>>()
    };
    assert_eq!(history(1, None, 10), [(2, 0, 300, 600), (1, 0, 100, 900)]);
    assert_eq!(history(2, None, 10), [(4, 1, 0, 1141), (3, 40, 0, 1140), (1, 100, 0, 1100)]);
    assert_eq!(history(2, None, 1), [(4, 1, 0, 1141)]);
    assert_eq!(history(2, Some(4), 10), [(3, 40, 0, 1140), (1, 100, 0, 1100)]);
    let channel = fixture.ledger().channel(&terms().id()).unwrap().unwrap();
    for who in [1, 2] {
        let address = key(who).address();
        assert_eq!(fixture.ledger().channels(&address, None).unwrap(), [channel]);
        assert_eq!(fixture.ledger().channels(&address, Some(terms().id())).unwrap(), []);
    }
    assert_eq!(fixture.ledger().channels(&key(3).address(), None).unwrap(), []);
    let streams = fixture.ledger().streams(&terms().id(), None).unwrap();
    assert_eq!((streams.len(), streams[0].1.paid.units()), (1, 40));
    assert_eq!(fixture.ledger().streams(&terms().id(), Some(B256::ZERO)).unwrap(), []);
}

#[test]
fn strangers_have_empty_accounts() {
    let fixture = Fixture::new(false);
    let nobody = Address::repeat_byte(7);
    assert_eq!(fixture.ledger().account(&nobody).unwrap(), Account::default());
    assert_eq!(fixture.ledger().channel(&B256::ZERO).unwrap(), None);
    assert_eq!(fixture.ledger().stream(&B256::ZERO, &B256::ZERO).unwrap(), Stream::default());
}

#[derive(Clone, Debug)]
enum Act {
    Transfer(u8, u8, u128),
    Lock(u128),
    Decrease(u128),
    Finish,
    Release(u128),
    Redeem(u128, u32),
    Replay(usize),
    Step(u64),
    Crash,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (1u8..4, 1u8..6, 0u128..400).prop_map(|(from, to, amount)| Act::Transfer(from, to, amount)),
        (0u128..400).prop_map(Act::Lock),
        (0u128..400).prop_map(Act::Decrease),
        Just(Act::Finish),
        (0u128..400).prop_map(Act::Release),
        (0u128..900, 0u32..30).prop_map(|(amount, epochs)| Act::Redeem(amount, epochs)),
        any::<usize>().prop_map(Act::Replay),
        (0u64..2000).prop_map(Act::Step),
        Just(Act::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_supply_stands_over_any_calls_replays_and_restarts(acts in proptest::collection::vec(act(), 1..40)) {
        let mut fixture = Fixture::new(true);
        let mut sent: Vec<(Vec<u8>, Receipt)> = Vec::new();
        for act in acts {
            let units = Btt::from_units;
            let channel = terms().id();
            let (who, value, operation) = match act {
                Act::Transfer(from, other, amount) => (from, amount, to(other)),
                Act::Lock(amount) => (1, amount, lock()),
                Act::Decrease(amount) => (1, 0, Operation::Decrease { channel, amount: units(amount) }),
                Act::Finish => (1, 0, Operation::Finish { channel }),
                Act::Release(amount) => (2, 0, Operation::Release { channel, amount: units(amount) }),
                Act::Redeem(amount, epochs) => {
                    let voucher = Voucher { channel, stream: B256::ZERO, amount: units(amount), epochs };
                    let voucher = Signed::sign(voucher, fixture.ledger().domain(), &key(1));
                    (2, 0, Operation::Redeem { voucher })
                }
                Act::Replay(index) => {
                    if let Some((bytes, receipt)) = sent.get(index % sent.len().max(1)) {
                        prop_assert_eq!(&fixture.ledger().submit(bytes).unwrap(), receipt);
                    }
                    continue;
                }
                Act::Step(seconds) => {
                    fixture.ledger().step(seconds).unwrap();
                    continue;
                }
                Act::Crash => {
                    let before = fixture.ledger().status().unwrap();
                    fixture.reopen();
                    prop_assert_eq!(fixture.ledger().status().unwrap(), before);
                    continue;
                }
            };
            let nonce = fixture.ledger().account(&key(who).address()).unwrap().nonce;
            let bytes = fixture.call(who, nonce, value, &operation);
            let receipt = fixture.ledger().submit(&bytes).unwrap();
            let call: Signed<Call> = cbor::decode(&bytes, 4096).unwrap();
            prop_assert_eq!(receipt.digest, call.document.digest(fixture.ledger().domain()));
            sent.push((bytes, receipt));
            let audit = fixture.ledger().audit_supply().unwrap();
            prop_assert!(audit.holds(), "{:?}", audit);
        }
    }
}

#[test]
fn fresh_keys_without_money_cannot_grow_the_ledger() {
    let fixture = Fixture::new(false);
    let before = fixture.ledger().status().unwrap();
    for who in 20..30 {
        let call = fixture.call(who, 0, 5, &to(1));
        assert!(matches!(fixture.ledger().submit(&call), Err(SubmitError::Penniless { .. })));
        assert_eq!(fixture.ledger().receipt(&key(who).address(), 0).unwrap(), None);
    }
    assert_eq!(fixture.ledger().status().unwrap().seq, before.seq);
    // With money the same call is carried out: its nonce was not used.
    fixture.ledger().submit(&fixture.call(1, 0, 10, &to(20))).unwrap();
    let receipt = fixture.ledger().submit(&fixture.call(20, 0, 5, &to(1))).unwrap();
    assert!(matches!(receipt.outcome, Outcome::Done(_)));
    // Who has had something pays for failures with a nonce, as before.
    let failed = fixture.ledger().submit(&fixture.call(20, 1, 500, &to(1))).unwrap();
    assert!(matches!(failed.outcome, Outcome::Failed(_)));
}
