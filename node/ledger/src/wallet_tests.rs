//! A wallet over a pipe that loses things, and over its own restarts.

use std::sync::atomic::Ordering;

use super::*;
use crate::embedded::Effect;
use crate::settlement::tests::{Fault, NOW, World, key, state};
use crate::typed::Voucher;

fn wallet(world: &World, db: &StateDb, who: u8) -> Wallet {
    let remote = world.client(db.clone());
    Wallet::with_retries(db.clone(), key(who), Arc::new(remote), &[Duration::ZERO])
}

fn units(amount: u128) -> Btt {
    Btt::from_units(amount)
}

fn balance(world: &World, who: u8) -> u128 {
    world.ledger.account(&key(who).address()).unwrap().balance.units()
}

#[tokio::test]
async fn a_payment_is_made_once_whatever_is_lost() {
    let world = World::new();
    let mut db = state(&world.folder, "wallet");
    let to = key(2).address();
    for (round, fault) in [Fault::LoseRequest, Fault::LoseResponse, Fault::Spoil].into_iter().enumerate() {
        let purpose = format!("payment {round}");
        let first = wallet(&world, &db, 1);
        // The first answer has to come, so that the call is signed; only then does the pipe fail.
        let lost = {
            let pipe = world.pipe.clone();
            let failing = FailOnSubmit { inner: first.settlement().clone(), pipe, fault };
            let first = Wallet::with_retries(db.clone(), key(1), Arc::new(failing), &[Duration::ZERO]);
            first.transfer(to, units(10), Some(&purpose)).await
        };
        assert!(matches!(lost, Err(WalletError::Unknown(_))), "{lost:?}");
        assert_eq!(first.pending().unwrap().len(), 1);
        world.pipe.set(Fault::LoseRequest);
        let earlier = first.transfer(to, units(500), None).await;
        assert!(matches!(earlier, Err(WalletError::Earlier(_))), "{earlier:?}");
        // The node stops and starts again.
        drop((first, db));
        db = state(&world.folder, "wallet");
        world.pipe.set(Fault::None);
        let again = wallet(&world, &db, 1);
        let resumed = again.resume().await.unwrap();
        assert_eq!(resumed.len(), 1);
        assert!(again.pending().unwrap().is_empty());
        let receipt = again.transfer(to, units(10), Some(&purpose)).await.unwrap();
        assert_eq!(receipt, resumed[0], "the same purpose, the same receipt");
        assert_eq!(balance(&world, 2), 10 * (round as u128 + 1));
    }
    let repeated = wallet(&world, &db, 1).transfer(to, units(10), Some("payment 0")).await.unwrap();
    assert_eq!((repeated.nonce, balance(&world, 2)), (0, 30));
    wallet(&world, &db, 1).transfer(to, units(10), None).await.unwrap();
    assert_eq!(balance(&world, 2), 40, "without a purpose every call is a new one");
}

/// Lets everything pass but submissions, which meet a fault.
struct FailOnSubmit {
    inner: Arc<dyn Settlement>,
    pipe: Arc<crate::settlement::tests::Pipe>,
    fault: Fault,
}

#[async_trait::async_trait]
impl Settlement for FailOnSubmit {
    fn domain(&self) -> crate::typed::Domain {
        self.inner.domain()
    }
    fn now(&self) -> Option<u64> {
        self.inner.now()
    }
    async fn status(&self) -> Result<crate::embedded::Status, SettlementError> {
        self.inner.status().await
    }
    async fn account(&self, address: Address) -> Result<Account, SettlementError> {
        self.inner.account(address).await
    }
    async fn channel(&self, id: B256) -> Result<Option<crate::embedded::Channel>, SettlementError> {
        self.inner.channel(id).await
    }
    async fn channels(
        &self,
        member: Address,
        after: Option<B256>,
    ) -> Result<Vec<crate::embedded::Channel>, SettlementError> {
        self.inner.channels(member, after).await
    }
    async fn stream(&self, channel: B256, id: B256) -> Result<crate::embedded::Stream, SettlementError> {
        self.inner.stream(channel, id).await
    }
    async fn streams(
        &self,
        channel: B256,
        after: Option<B256>,
    ) -> Result<Vec<(B256, crate::embedded::Stream)>, SettlementError> {
        self.inner.streams(channel, after).await
    }
    async fn submit(&self, call: &Signed<Call>) -> Result<Receipt, SettlementError> {
        self.pipe.set(self.fault);
        self.inner.submit(call).await
    }
    async fn receipt(&self, from: Address, nonce: u64) -> Result<Option<Receipt>, SettlementError> {
        self.inner.receipt(from, nonce).await
    }
    async fn history(
        &self,
        address: Address,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<crate::embedded::HistoryEntry>, SettlementError> {
        self.inner.history(address, before, limit).await
    }
    async fn watch(&self, after: u64, wait: Duration) -> Result<crate::embedded::Status, SettlementError> {
        self.inner.watch(after, wait).await
    }
}

#[tokio::test]
async fn a_channel_from_lock_to_refund() {
    let world = World::new();
    let (renter_db, host_db) = (state(&world.folder, "renter"), state(&world.folder, "host"));
    let (renter, host) = (wallet(&world, &renter_db, 1), wallet(&world, &host_db, 2));
    let terms = ChannelTerms {
        funder: renter.address(),
        renter: renter.address(),
        host: host.address(),
        payee: host.address(),
        window: 1000,
    };
    let not_mine = host.lock(&terms, units(1), None).await;
    assert!(matches!(not_mine, Err(WalletError::NotFunder { .. })));
    renter.lock(&terms, units(300), Some("agreement 7")).await.unwrap();
    renter.lock(&terms, units(300), Some("agreement 7")).await.unwrap();
    assert_eq!(balance(&world, 1), 700, "one purpose, one lock");
    let channel = terms.id();
    let voucher = Voucher { channel, stream: B256::ZERO, amount: units(120), epochs: 3 };
    let domain = renter.settlement().domain();
    let voucher = Signed::sign(voucher, &domain, &key(1));
    let voucher = VerifiedVoucher::check(voucher, &domain, &terms).unwrap();
    host.redeem(&voucher).await.unwrap();
    let again = host.redeem(&voucher).await.unwrap();
    assert!(matches!(again.effect(), Ok(Effect::Redeemed { paid_out: Btt::ZERO, .. })));
    host.release(channel, units(100), None).await.unwrap();
    renter.decrease(channel, units(80)).await.unwrap();
    let early = renter.finish(channel).await;
    assert!(matches!(early, Err(WalletError::Failed(Failure::NotDue { .. }))));
    world.ledger.step(1000).unwrap();
    renter.finish(channel).await.unwrap();
    assert_eq!((balance(&world, 1), balance(&world, 2)), (880, 120));
    assert!(world.ledger.audit_supply().unwrap().holds());
    let too_much = renter.transfer(host.address(), units(881), None).await;
    assert!(matches!(too_much, Err(WalletError::Balance { .. })));
    assert_eq!(renter.account().await.unwrap().nonce, 4, "it was not even signed");
}

#[tokio::test]
async fn two_holders_of_a_key_do_not_lose_calls() {
    let world = World::new();
    let (one, two) = (state(&world.folder, "one"), state(&world.folder, "two"));
    let to = key(2).address();
    // The first holder's call is recorded and lost; the second one's takes the nonce.
    let first = wallet(&world, &one, 1);
    let failing = FailOnSubmit {
        inner: first.settlement().clone(),
        pipe: world.pipe.clone(),
        fault: Fault::LoseRequest,
    };
    let lossy = Wallet::with_retries(one.clone(), key(1), Arc::new(failing), &[]);
    assert!(matches!(lossy.transfer(to, units(1), Some("p")).await, Err(WalletError::Unknown(_))));
    world.pipe.set(Fault::None);
    wallet(&world, &two, 1).transfer(to, units(50), None).await.unwrap();
    // Resuming finds that it can never be carried out; asking again makes it anew, once.
    assert!(first.resume().await.unwrap().is_empty());
    for _ in 0..2 {
        first.transfer(to, units(1), Some("p")).await.unwrap();
    }
    assert_eq!(balance(&world, 2), 51);
}

#[tokio::test]
async fn a_ledger_that_forgot_calls_gets_no_new_ones() {
    let world = World::new();
    let db = state(&world.folder, "wallet");
    let first = wallet(&world, &db, 1);
    first.transfer(key(2).address(), units(1), None).await.unwrap();
    // The same wallet on the same ledger, restored from before: a local one, without a remembered head.
    let folder = tempfile::tempdir().unwrap();
    let wall = world.wall.clone();
    let options =
        crate::embedded::LedgerOptions { local: true, wall: Arc::new(move || wall.load(Ordering::SeqCst)) };
    let genesis = world.ledger.genesis().clone();
    let old = crate::Ledger::create(state(&folder, "old"), genesis, options).unwrap();
    assert_eq!(old.now(), NOW);
    let local = crate::LocalLedger::new(Arc::new(old));
    let restored = Wallet::with_retries(db, key(1), Arc::new(local), &[]);
    let refused = restored.transfer(key(2).address(), units(1), None).await;
    assert!(matches!(refused, Err(WalletError::Settlement(SettlementError::Regress(_)))));
}

#[tokio::test]
async fn calls_at_once_get_their_own_nonces() {
    let world = World::new();
    let db = state(&world.folder, "wallet");
    let wallet = wallet(&world, &db, 1);
    let calls = (1..=20u128).map(|amount| {
        let wallet = wallet.clone();
        tokio::spawn(async move { wallet.transfer(key(2).address(), units(amount), None).await })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap().unwrap();
    }
    assert_eq!(balance(&world, 2), 210);
}

#[tokio::test]
async fn a_caller_that_stops_waiting_stops_no_payment() {
    let world = World::new();
    let db = state(&world.folder, "wallet");
    let wallet = wallet(&world, &db, 1);
    for round in 0..20u64 {
        let purpose = format!("payment {round}");
        let waiting = wallet.transfer(key(2).address(), units(1), Some(&purpose));
        // Gives up at a different point of the way each time.
        let _ = tokio::time::timeout(Duration::from_micros(300 * round), waiting).await;
        wallet.transfer(key(2).address(), units(1), Some(&purpose)).await.unwrap();
    }
    assert_eq!(balance(&world, 2), 20);
    assert!(wallet.pending().unwrap().is_empty());
}
