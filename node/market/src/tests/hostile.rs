//! Hostile hosts and renters: chosen starts, silence after signing, excuses instead of proofs, locks that are emptied,
//! vouchers that never come, transfers that never end.

use std::collections::HashMap;
use std::sync::Arc;

use btfs_ledger::typed::{Agreement, Document, Signed, VerifiedVoucher, Voucher};
use btfs_ledger::{B256, Btt};
use btfs_storage::BlockSource;
use parking_lot::Mutex;

use super::world::{DAY, Tamper, World, btt};
use crate::host::tick::VOUCHER_WAIT;
use crate::host::{HostAgreementStatus, HostSettings};
use crate::messages::{
    AUDIT_PROTOCOL, AuditReply, AuditRequest, MAX_AUDIT_REQUEST, MAX_RENTAL_REQUEST, RENTAL_PROTOCOL,
    Refusal, RentalReply, RentalRequest, StatusReply, decode, encode,
};
use crate::ports::CourierError;
use crate::renter::{StoreRequest, ThingState};
use crate::states::{HostState, RenterState};

fn rental(protocol: &str, bytes: &[u8]) -> Option<RentalRequest> {
    (protocol == RENTAL_PROTOCOL).then(|| decode(bytes, MAX_RENTAL_REQUEST).unwrap())
}

/// Quotes and accepts without waiting.
fn begin(world: &World, order: StoreRequest) -> B256 {
    let renter = world.market(0).renter().clone();
    world.on(0, async move {
        let quote = renter.quote(order, |_| {}).await.unwrap();
        renter.accept(&quote.id).await.unwrap()
    })
}

/// Waits for the end of placing.
fn placed(world: &World, id: B256) -> crate::renter::Thing {
    let renter = world.market(0).renter().clone();
    world.on(0, async move { renter.placed(id).await.unwrap() })
}

fn hosted(world: &World, i: usize) -> HostAgreementStatus {
    let host = world.market(i).host().clone();
    let time = world.ledger.now();
    world.on(i, async move {
        host.work_done(time).await;
        host.status().await.unwrap().agreements.pop().unwrap()
    })
}

/// What a host does that signs and says that it did not.
fn signs_in_secret() -> Tamper {
    let refusal = Refusal::WrongState("busy".into());
    Tamper::After(Ok(encode(&RentalReply::Refused(refusal))))
}

#[test]
fn a_host_cannot_choose_the_start() {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    let (domain, key) = (*world.ledger.domain(), world.nodes[1].key.clone());
    let shown: Mutex<Option<Signed<Agreement>>> = Mutex::new(None);
    // The host signs a start ten days ago: ten epochs would be over and owed at once.
    world.wire.tamper(move |_, protocol, bytes| match rental(protocol, bytes) {
        Some(RentalRequest::Sign(signed)) => {
            let document = Agreement { start: signed.document.start - 10 * DAY, ..signed.document };
            let signature = key.sign_digest(&document.digest(&domain));
            let answer = Signed { document, signature };
            *shown.lock() = Some(answer.clone());
            Tamper::Instead(Ok(encode(&RentalReply::Signed(Box::new(answer)))))
        }
        Some(RentalRequest::Status { .. }) => {
            let status =
                StatusReply { state: HostState::Active, signed: shown.lock().clone(), voucher: None };
            Tamper::Instead(Ok(encode(&RentalReply::Status(Box::new(status)))))
        }
        _ => Tamper::Pass,
    });
    let id = begin(&world, World::order(root, 30, None, Some(1)));
    let thing = placed(&world, id);
    assert!(thing.problem.unwrap().contains("never offered"));
    let host = world.market(1).host().clone();
    let kept = world.on(1, async move { host.status().await.unwrap().agreements.len() });
    assert_eq!(kept, 0, "the host keeps nothing of an agreement that never began");
    // It does not say "unsigned", so the money stays where it is.
    world.day(0);
    let place = world.only_place(id);
    assert_eq!((place.state, place.earned_btt), (RenterState::Offered, Btt::ZERO));
    // The true host was told that the renter withdrew; once it says so, the money comes back.
    world.wire.behave();
    world.day(0);
    assert_eq!(world.only_place(id).state, RenterState::Failed);
    for _ in 0..5 {
        world.day(0);
    }
    world.await_balance(0, btt(1000));
    world.check_supply();
}

#[test]
fn silence_after_signing_is_not_a_failure() {
    let world = World::new(3);
    world.rent_out(1..3);
    let root = world.add(0, 300_000);
    let mute: Arc<Mutex<Option<btfs_ledger::PublicKey>>> = Arc::default();
    let chosen = mute.clone();
    // The first host that is asked to sign does so, and says nothing about it.
    world.wire.tamper(move |peer, protocol, bytes| match rental(protocol, bytes) {
        Some(RentalRequest::Sign(_)) if *chosen.lock().get_or_insert(*peer) == *peer => signs_in_secret(),
        Some(RentalRequest::Status { .. }) if *chosen.lock() == Some(*peer) => {
            Tamper::Instead(Err(CourierError::Protocol("noise".into())))
        }
        _ => Tamper::Pass,
    });
    let order = StoreRequest { max_price: Some(btt(1000)), ..World::order(root, 30, None, Some(1)) };
    let id = begin(&world, order);
    let thing = placed(&world, id);
    assert_eq!((thing.state, thing.problem), (ThingState::Active, None), "another host took the place");
    world.day(0);
    let mute = mute.lock().unwrap();
    let of = |world: &World| world.status(0, id).places.into_iter().find(|p| p.peer == mute).unwrap();
    assert_eq!(of(&world).state, RenterState::Offered);
    // The host shows its signature after all: the agreement holds, and ends by notice.
    world.wire.behave();
    world.day(0);
    let place = of(&world);
    assert_eq!(place.state, RenterState::Active);
    assert_eq!(place.reason.as_deref(), Some("its place was given to another host"));
    assert!(place.epochs <= 3, "{place:?}");
    for _ in 0..6 {
        world.day(0);
    }
    let place = of(&world);
    assert!(matches!(place.state, RenterState::Closing | RenterState::Done), "{place:?}");
    let proven = place.epoch_price_btt.checked_mul(u64::from(place.days_proven)).unwrap();
    assert_eq!(place.earned_btt, proven);
    world.check_supply();
}

#[test]
fn a_hidden_signature_earns_nothing_for_the_days_it_was_hidden() {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    // The host signs, and shows it only when it likes.
    world.wire.tamper(|_, protocol, bytes| match rental(protocol, bytes) {
        Some(RentalRequest::Sign(_)) => signs_in_secret(),
        Some(RentalRequest::Status { .. }) => Tamper::Instead(Err(CourierError::Protocol("noise".into()))),
        _ => Tamper::Pass,
    });
    let id = begin(&world, World::order(root, 30, None, Some(1)));
    placed(&world, id);
    for _ in 0..3 {
        world.day(0);
    }
    assert_eq!(world.only_place(id).state, RenterState::Offered);
    world.wire.behave();
    world.day(0);
    let place = world.only_place(id);
    assert_eq!((place.state, place.days.as_str()), (RenterState::Active, "OOPP"));
    assert_eq!(place.earned_btt, place.epoch_price_btt.checked_mul(2).unwrap());
    world.check_supply();
}

#[test]
fn a_host_that_denies_its_signature_and_is_paid_is_not_used_again() {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    world.wire.tamper(|_, protocol, bytes| match rental(protocol, bytes) {
        Some(RentalRequest::Sign(_)) => signs_in_secret(),
        Some(RentalRequest::Status { .. } | RentalRequest::Cancel { .. }) => {
            Tamper::Instead(Ok(encode(&RentalReply::Refused(Refusal::Unknown))))
        }
        _ => Tamper::Pass,
    });
    let id = begin(&world, World::order(root, 30, None, Some(1)));
    placed(&world, id);
    world.day(0);
    let place = world.only_place(id);
    assert_eq!(place.state, RenterState::Failed);
    // What a claim does to the books, by the shorter way of a voucher.
    let (domain, key) = (*world.ledger.domain(), world.nodes[0].key.clone());
    let (amount, agreement) = (place.epoch_price_btt, place.agreement);
    let host = world.market(1).host().0.clone();
    world.on(1, async move {
        let r = host.record(agreement).await.unwrap().unwrap();
        let document = Voucher { channel: r.channel.id(), stream: agreement, amount, epochs: 1 };
        let voucher = Signed::sign(document, &domain, &key);
        let checked = VerifiedVoucher::check(voucher, &domain, &r.channel).unwrap();
        host.money.redeem(&checked).await.unwrap();
    });
    world.wire.behave();
    world.day(0);
    world.day(0);
    let reason = world.only_place(id).reason.unwrap();
    assert!(reason.contains("said that it had not signed, and was paid"), "{reason}");
    let renter = world.market(0).renter().clone();
    let again = world.on(0, async move { renter.quote(World::order(root, 30, None, Some(1)), |_| {}).await });
    let why = again.unwrap_err().to_string();
    assert!(why.contains("that took money for what they said they had not signed"), "{why}");
    world.check_supply();
}

#[test]
fn silent_agreements_count_against_what_the_quote_allows() {
    let world = World::new(3);
    world.rent_out(1..3);
    for i in 1..3 {
        let host = world.market(i).host().clone();
        let settings = HostSettings { price: btt(100), ..host.settings() };
        world.on(i, async move { host.set(settings).await.unwrap() });
    }
    let root = world.add(0, 300_000);
    world.wire.tamper(|_, protocol, bytes| match rental(protocol, bytes) {
        Some(RentalRequest::Sign(_) | RentalRequest::Status { .. }) => {
            Tamper::Instead(Err(CourierError::Protocol("noise".into())))
        }
        _ => Tamper::Pass,
    });
    let id = begin(&world, World::order(root, 30, None, Some(1)));
    let thing = placed(&world, id);
    // A second lock of the same size would be twice what was quoted, a quarter more was allowed.
    let problem = thing.problem.unwrap();
    assert!(problem.contains("neither sign nor deny still hold money (1 here)"), "{problem}");
    assert_eq!(world.only_place(id).state, RenterState::Offered);
}

#[test]
fn excuses_are_silence_and_nonces_are_counted() {
    let (world, id) = World::pair(3);
    let nonces: Arc<Mutex<HashMap<u32, u32>>> = Arc::default();
    let counted = nonces.clone();
    world.wire.tamper(move |_, protocol, bytes| {
        if protocol != AUDIT_PROTOCOL {
            return Tamper::Pass;
        }
        let request: AuditRequest = decode(bytes, MAX_AUDIT_REQUEST).unwrap();
        *counted.lock().entry(request.epoch).or_default() += 1;
        Tamper::Instead(Ok(encode(&AuditReply::Refused(Refusal::Rate("not now".into())))))
    });
    for _ in 0..4 {
        world.day(0);
        // Every event of the ledger is another chance to ask.
        let (renter, now) = (world.market(0).renter().clone(), world.ledger.now());
        world.on(0, async move {
            for _ in 0..6 {
                renter.tick(now).await;
            }
        });
    }
    assert!(nonces.lock().values().all(|n| *n <= 4), "{nonces:?}");
    world.day(0);
    let place = world.only_place(id);
    assert_eq!((place.days.as_str(), place.earned_btt), ("TTT", Btt::ZERO));
    assert!(matches!(place.state, RenterState::Closing | RenterState::Done));
}

#[test]
fn what_is_announced_to_go_back_is_not_released_besides() {
    let world = World::new(2);
    world.rent_out(1..2);
    let (short, long) = (world.add(0, 300_000), world.add(0, 400_000));
    let short = world.store_and_wait(0, World::order(short, 2, None, Some(1)));
    let long = world.store_and_wait(0, World::order(long, 20, None, Some(1)));
    let (short, channel) = (world.only_place(short), world.only_place(long).channel);
    assert_eq!(short.channel, channel, "one channel pays both");
    let money = world.market(0).renter().0.money.clone();
    let all = short.epoch_price_btt.checked_mul(2).unwrap();
    world.on(0, async move { money.decrease(channel, all).await.unwrap() });
    for day in 0..8 {
        world.day(0);
        hosted(&world, 1);
        let place = world.only_place(long);
        let total = place.epoch_price_btt.checked_mul(20).unwrap();
        let lock = world.ledger.channel(&channel).unwrap().unwrap();
        let needed = total.checked_sub(place.redeemed_btt).unwrap();
        // What the longer agreement needs is there from the first end on, whatever was announced before.
        let available = lock.locked.saturating_sub(lock.pending);
        assert!(day < 3 || available >= needed, "day {day}: {lock:?}, {needed} needed");
    }
    world.check_supply();
}

#[test]
fn an_emptied_lock_ends_the_books() {
    let (world, id) = World::pair(8);
    world.day(0);
    world.day(0);
    let place = world.only_place(id);
    world.kill(1);
    // The host sleeps through the whole notice.
    let money = world.market(0).renter().0.money.clone();
    let (channel, locked) = (place.channel, world.ledger.channel(&place.channel).unwrap().unwrap().locked);
    let announcing = money.clone();
    world.on(0, async move { announcing.decrease(channel, locked).await.unwrap() });
    let due = world.ledger.channel(&channel).unwrap().unwrap().due;
    while world.ledger.now() < due {
        world.day(0);
    }
    world.on(0, async move { money.finish(channel).await.unwrap() });
    while world.ledger.now() < place.start + 12 * DAY {
        world.day(0);
    }
    let before = world.ledger.status().unwrap().seq;
    world.start(1);
    let found = hosted(&world, 1);
    assert_eq!((found.state, found.redeemed_btt), (HostState::Done, Btt::ZERO));
    assert!(found.earned_btt > Btt::ZERO);
    assert_eq!(world.ledger.status().unwrap().seq, before, "nothing is called for what cannot be paid");
    assert_eq!(world.store(1).pins_with_prefix("agreement:").unwrap().len(), 0, "the space is free");
    world.check_supply();
}

#[test]
fn proofs_without_vouchers_come_to_an_end() {
    let (world, id) = World::pair(20);
    let agreement = world.only_place(id).agreement;
    let renter = world.nodes[0].key.public();
    world.kill(0);
    let audit = |from, epoch| {
        let host = world.market(1).host().clone();
        let request = AuditRequest { id: agreement, from, epoch, nonce: B256::repeat_byte(epoch as u8) };
        world.on(1, async move { host.audit(renter, request).await })
    };
    for epoch in 0..3 {
        world.ledger.step(DAY).unwrap();
        assert!(matches!(audit(epoch, epoch), AuditReply::Proof(_)));
    }
    world.ledger.step(DAY).unwrap();
    let AuditReply::Refused(why) = audit(3, 3) else { panic!("it skips what it owes") };
    assert!(why.to_string().contains("3 proven epochs are not paid"), "{why}");
    assert_eq!(hosted(&world, 1).state, HostState::Active, "the vouchers may still come");
    // An audit that covers what is owed is answered: its voucher would pay all.
    assert!(matches!(audit(0, 3), AuditReply::Proof(_)));
    world.ledger.step(DAY).unwrap();
    assert_eq!(hosted(&world, 1).state, HostState::Active, "not by a clock that jumps alone");
    impatient(&world);
    world.ledger.step(60).unwrap();
    let closed = hosted(&world, 1);
    assert_eq!(closed.state, HostState::Closing);
    assert_eq!(closed.reason.as_deref(), Some("the renter does not pay for proven epochs"));
    assert_eq!(closed.epochs, 6, "it ends with the next epoch, and its space is free soon after");
    for _ in 0..3 {
        world.ledger.step(DAY).unwrap();
    }
    assert_eq!(hosted(&world, 1).state, HostState::Done);
    world.check_supply();
}

/// A host with one agreement of 60 days, whose renter is gone; an audit of it in the renter's name.
fn abandoned() -> (World, impl Fn(&World, u32, u32) -> AuditReply) {
    let (world, id) = World::pair(60);
    let agreement = world.only_place(id).agreement;
    let renter = world.nodes[0].key.public();
    world.kill(0);
    let audit = move |world: &World, from, epoch| {
        let host = world.market(1).host().clone();
        let request = AuditRequest { id: agreement, from, epoch, nonce: B256::repeat_byte(epoch as u8) };
        world.on(1, async move { host.audit(renter, request).await })
    };
    (world, audit)
}

/// Lets the host's patience with what it is not paid for run out, without waiting.
fn impatient(world: &World) {
    for (_, seen) in world.market(1).host().0.arrears.lock().values_mut() {
        *seen -= VOUCHER_WAIT;
    }
}

#[test]
fn storing_without_a_question_comes_to_an_end() {
    let (world, audit) = abandoned();
    world.ledger.step(14 * DAY).unwrap();
    assert_eq!(hosted(&world, 1).state, HostState::Active);
    assert!(world.market(1).host().0.arrears.lock().is_empty(), "one audit can still settle these");
    assert!(matches!(audit(&world, 0, 0), AuditReply::Proof(_)), "and one that was missed begins anew");
    world.ledger.step(DAY).unwrap();
    assert_eq!(hosted(&world, 1).state, HostState::Active);
    impatient(&world);
    world.ledger.step(DAY).unwrap();
    assert_eq!(hosted(&world, 1).state, HostState::Active);
    impatient(&world);
    world.ledger.step(DAY).unwrap();
    let closed = hosted(&world, 1);
    assert_eq!((closed.state, closed.epochs), (HostState::Closing, 18));
    assert!(closed.reason.unwrap().contains("nothing was proven"));
    world.check_supply();
}

#[test]
fn audits_that_leave_most_epochs_out_come_to_an_end() {
    let (world, audit) = abandoned();
    world.ledger.step(14 * DAY).unwrap();
    assert_eq!(hosted(&world, 1).state, HostState::Active);
    assert!(matches!(audit(&world, 13, 13), AuditReply::Proof(_)));
    world.ledger.step(60).unwrap();
    assert_eq!(hosted(&world, 1).state, HostState::Active);
    impatient(&world);
    world.ledger.step(DAY).unwrap();
    let closed = hosted(&world, 1);
    assert_eq!(closed.state, HostState::Closing);
    assert_eq!(closed.reason.as_deref(), Some("the renter's audits leave out most epochs"));
    world.check_supply();
}

#[test]
fn an_endless_transfer_can_be_cancelled() {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    let (tell, asked) = std::sync::mpsc::channel();
    world.wire.tamper(move |_, protocol, bytes| match rental(protocol, bytes) {
        Some(RentalRequest::Deliver { .. }) => {
            tell.send(()).ok();
            Tamper::Instead(Ok(encode(&RentalReply::Receiving { received: 0, total: 300_000 })))
        }
        _ => Tamper::Pass,
    });
    let id = begin(&world, World::order(root, 30, None, Some(1)));
    asked.recv().unwrap();
    let renter = world.market(0).renter().clone();
    world.on(0, async move { renter.cancel(id).await.unwrap() });
    let thing = placed(&world, id);
    assert_eq!(thing.state, ThingState::Incomplete);
    assert!(thing.problem.unwrap().contains("cancelled by the renter"));
    assert_eq!(world.only_place(id).state, RenterState::Failed);
    for _ in 0..5 {
        world.day(0);
    }
    world.await_balance(0, btt(1000));
    world.check_supply();
}

#[test]
fn prices_that_rise_after_the_quote_are_not_paid() {
    let world = World::new(3);
    world.rent_out(1..3);
    let root = world.add(0, 300_000);
    let renter = world.market(0).renter().clone();
    let quoting = renter.clone();
    let quote = world
        .on(0, async move { quoting.quote(World::order(root, 30, None, Some(1)), |_| {}).await.unwrap() });
    let quoted = quote.hosts[0].price_per_gib_day_btt;
    assert!(quote.replacement_price_btt > quoted && quote.limit_btt > quote.lock_btt);
    // Both hosts ask for far more, and the renter has heard of it.
    for i in 1..3 {
        let host = world.market(i).host().clone();
        let settings = HostSettings { price: btt(5000), ..host.settings() };
        world.on(i, async move { host.set(settings).await.unwrap() });
    }
    let thing = world.on(0, async move {
        renter.market(None).await.unwrap();
        let id = renter.accept(&quote.id).await.unwrap();
        renter.placed(id).await.unwrap()
    });
    assert_eq!(thing.state, ThingState::Incomplete);
    assert!(thing.problem.as_deref().unwrap().contains("too dear"), "{:?}", thing.problem);
    assert_eq!(world.balance(0), btt(1000));
}

#[test]
fn a_peer_that_asks_without_end_is_not_answered() {
    let world = World::new(2);
    let (market, stranger) = (world.market(1), world.nodes[0].key.public());
    let answers = world.on(1, async move {
        let mut answers = Vec::new();
        for _ in 0..1500 {
            answers.push(market.handle(AUDIT_PROTOCOL, stranger, vec![0]).await.unwrap_err());
        }
        answers
    });
    assert!(answers.first().is_some_and(|a| a.contains("cannot be read")));
    assert!(answers.iter().any(|a| a.contains("too many requests")));
}

#[test]
fn a_list_travels_in_full_pages() {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    let (tell, asked) = std::sync::mpsc::channel();
    world.wire.tamper(move |_, protocol, bytes| match rental(protocol, bytes) {
        Some(RentalRequest::Propose { proposal, page }) => {
            tell.send((proposal, page)).ok();
            Tamper::Instead(Ok(encode(&RentalReply::Refused(Refusal::NotRenting))))
        }
        _ => Tamper::Pass,
    });
    begin(&world, World::order(root, 30, None, Some(1)));
    let (mut proposal, page) = asked.recv().unwrap();
    proposal.list_bytes += 1;
    let (host, renter) = (world.market(1).host().clone(), world.nodes[0].key.public());
    let reply =
        world.on(1, async move { host.rental(renter, RentalRequest::Propose { proposal, page }).await });
    let RentalReply::Refused(Refusal::List(why)) = reply else { panic!("{reply:?}") };
    assert!(why.contains("not full"), "{why}");
}

#[test]
fn what_was_delivered_and_withdrawn_is_collected() {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    let (tell, asked) = std::sync::mpsc::channel();
    // The host has pulled everything by then; the renter goes no further.
    world.wire.tamper(move |_, protocol, bytes| match rental(protocol, bytes) {
        Some(RentalRequest::Sign(signed)) => {
            tell.send(signed.document.id).ok();
            Tamper::Instead(Err(CourierError::Protocol("noise".into())))
        }
        _ => Tamper::Pass,
    });
    begin(&world, World::order(root, 30, None, Some(1)));
    let id = asked.recv().unwrap();
    assert!(world.store(1).has(&root).unwrap());
    let (host, renter, now) =
        (world.market(1).host().clone(), world.nodes[0].key.public(), world.ledger.now());
    world.on(1, async move {
        host.rental(renter, RentalRequest::Cancel { id, epoch: u32::MAX }).await;
        host.tick(now).await;
        host.collected().await;
    });
    assert!(!world.store(1).has(&root).unwrap(), "the blocks are gone with their agreement");
}

#[test]
fn what_a_crash_left_uncollected_goes_at_the_next_start() {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    let id = world.store_and_wait(0, World::order(root, 30, None, Some(1)));
    let agreement = world.only_place(id).agreement;
    // As after a crash between the record's end and the collection.
    let store = world.store(1);
    let mut batch = store.state().batch();
    store.unpin(&mut batch, &crate::host::pin_id(agreement).into()).unwrap();
    batch.delete(&crate::host::records::AGREEMENTS, &agreement.0).unwrap();
    store.state().commit(batch).unwrap();
    drop(store);
    world.kill(1);
    world.start(1);
    let (host, now) = (world.market(1).host().clone(), world.ledger.now());
    world.on(1, async move {
        host.tick(now).await;
        host.collected().await;
    });
    assert!(!world.store(1).has(&root).unwrap());
}
