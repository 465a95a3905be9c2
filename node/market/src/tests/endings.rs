//! Endings before the term, replacements, tripwires, and copies of small content.

use btfs_ledger::Btt;
use btfs_ledger::typed::VerifiedVoucher;
use btfs_storage::BlockSource;

use super::world::{DAY, World, btt};
use crate::events::MarketEvent;
use crate::host::HostSettings;
use crate::messages::AuditRequest;
use crate::renter::{Spread, StoreRequest, ThingState, ThingStatus};
use crate::states::{HostState, RenterState};

#[test]
fn a_cancelled_agreement_is_paid_to_its_last_epoch_and_refunded() {
    let (world, id) = World::pair(30);
    world.day(0);
    world.day(0);
    let renter = world.market(0).renter().clone();
    world.on(0, async move { renter.cancel(id).await.unwrap() });
    // The third epoch runs to its end.
    world.day(0);
    let status = world.status(0, id);
    let place = &status.places[0];
    assert_eq!((place.epochs, place.days.as_str()), (3, "PPP"));
    assert!(matches!(place.state, RenterState::Closing | RenterState::Done));
    let mut events = world.market(1).events().subscribe();
    world.day(0);
    world.day(0);
    let host = world.market(1).host().clone();
    let shown = world.on(1, async move {
        while !matches!(events.recv().await.unwrap(), MarketEvent::SpaceFreed { .. }) {}
        host.status().await.unwrap()
    });
    assert_eq!(shown.agreements[0].state, HostState::Done);
    let three = place.epoch_price_btt.checked_mul(3).unwrap();
    assert_eq!(shown.redeemed_btt, three);
    world.await_balance(0, btt(1000).checked_sub(three).unwrap());
    world.check_supply();
}

/// A day proven, a day missed by a host that is gone: its day comes back, even if the payment for the other one lands
/// between the renter's questions about stream and channel.
#[test]
fn a_payment_while_the_books_are_read_does_not_strand_the_rest_of_the_lock() {
    let (world, id) = World::pair(2);
    world.day(0);
    world.kill(1);
    world.day(0);
    let place = world.only_place(id);
    assert_eq!((place.days.as_str(), place.state, place.acknowledged), ("PO", RenterState::Closing, true));
    let inner = world.market(0).renter().0.clone();
    let records = inner.clone();
    let agreement = place.agreement;
    let r = world.on(0, async move { records.agreement(agreement).await.unwrap() });
    assert_eq!(r.paid, Btt::ZERO);
    let voucher = VerifiedVoucher::check(r.voucher.unwrap(), inner.money.domain(), &r.channel).unwrap();
    let host = world.wallet(1);
    world.wire.meanwhile(world.nodes[0].key.public(), async move {
        host.redeem(&voucher).await.unwrap();
    });
    let day = place.epoch_price_btt;
    for _ in 0..6 {
        world.day(0);
    }
    world.await_balance(0, btt(1000).checked_sub(day).unwrap());
    assert_eq!(world.balance(1), btt(1000).checked_add(day).unwrap(), "it was paid meanwhile");
    world.check_supply();
}

#[test]
fn a_host_can_leave_with_notice() {
    let (world, id) = World::pair(30);
    world.day(0);
    let agreement = world.status(0, id).places[0].agreement;
    let host = world.market(1).host().clone();
    assert_eq!(world.on(1, async move { host.quit(agreement).await.unwrap() }), 2);
    world.day(0);
    let place = world.status(0, id).places.remove(0);
    assert_eq!((place.days.as_str(), place.reason.as_deref()), ("PP", Some("the host gave notice")));
    world.day(0);
    world.check_supply();
}

#[test]
fn a_host_that_refuses_is_replaced() {
    let world = World::new(5);
    world.rent_out(1..5);
    let root = world.add(0, 300_000);
    let renter = world.market(0).renter().clone();
    let quoting = renter.clone();
    // The spare hosts are dearer than the margin that replacements have without a limit of the user's own.
    let order = StoreRequest { max_price: Some(btt(1000)), ..World::order(root, 30, None, Some(2)) };
    let quote = world.on(0, async move { quoting.quote(order, |_| {}).await.unwrap() });
    assert_eq!((quote.spread, quote.hosts.len(), quote.spare_hosts), (Spread::Copies { n: 2 }, 2, 2));
    // One of the chosen hosts stops between quote and acceptance.
    let refuser = (1..5).find(|i| world.nodes[*i].key.public() == quote.hosts[0].peer).unwrap();
    let host = world.market(refuser).host().clone();
    world.on(refuser, async move { host.stop().await.unwrap() });
    let thing = world.on(0, async move {
        let id = renter.accept(&quote.id).await.unwrap();
        renter.placed(id).await.unwrap();
        id
    });
    let status = world.status(0, thing);
    assert_eq!((status.state, status.health), (ThingState::Active, Some(1)));
    let failed: Vec<_> = status.places.iter().filter(|p| p.state == RenterState::Failed).collect();
    assert_eq!(failed.len(), 1);
    assert!(failed[0].reason.as_deref().unwrap().contains("rents nothing out"), "{:?}", failed[0].reason);
    world.check_supply();
}

#[test]
fn without_money_nothing_begins() {
    let world = World::new(2);
    let host = world.market(1).host().clone();
    let settings = HostSettings { price: btt(1_000_000_000), ..host.settings() };
    world.on(1, async move {
        host.set(settings).await.unwrap();
        host.start().await.unwrap();
    });
    let root = world.add(0, 300_000);
    let renter = world.market(0).renter().clone();
    let error = world.on(0, async move {
        let quote = renter.quote(World::order(root, 30, None, Some(1)), |_| {}).await.unwrap();
        renter.accept(&quote.id).await.unwrap_err()
    });
    assert!(error.to_string().starts_with("not enough BTT"), "{error}");
    assert_eq!(world.balance(0), btt(1000));
}

#[test]
fn challenged_blocks_are_withheld_and_asking_for_them_costs_score() {
    let world = World::new(3);
    world.rent_out(1..2);
    let root = world.add(0, 3 << 20);
    world.store_and_wait(0, World::order(root, 30, None, Some(1)));
    let renter = world.market(0).renter().clone();
    let inner = renter.0.clone();
    let thief = world.nodes[2].key.public();
    let all: Vec<_> = world.store(0).blocks(None, 1000).unwrap().into_iter().map(|b| b.cid).collect();
    let (host, tripped) = world.on(0, async move {
        let (id, r) = inner.agreements().await.unwrap().pop().unwrap();
        let nonce = btfs_ledger::B256::repeat_byte(3);
        let held = inner.withhold(&r, &AuditRequest { id, from: 0, epoch: 0, nonce }).await;
        let challenged: Vec<_> = all.iter().filter(|c| renter.withheld(c)).collect();
        assert!(!challenged.is_empty());
        renter.wanted(&thief, challenged[0]);
        drop(held);
        assert!(all.iter().all(|c| !renter.withheld(c)), "released with the audit");
        (r.host, inner.take_trip(&r.host))
    });
    assert!(tripped);
    assert_eq!(host, world.nodes[1].key.public());
}

#[test]
fn before_the_first_proof_nothing_is_owed() {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    let id = world.store_and_wait(0, World::order(root, 30, None, Some(1)));
    let status = world.status(0, id);
    // What the API shows is text for people and reads back.
    let shown = serde_json::to_value(&status).unwrap();
    assert_eq!(shown["root"], root.to_string());
    assert_eq!(shown["places"][0]["earned_btt"], "0");
    assert_eq!(serde_json::from_value::<ThingStatus>(shown).unwrap().id, id);
    let place = &status.places[0];
    assert_eq!(place.earned_btt, Btt::ZERO);
    // All blocks of the list are at the host, pinned for the agreement.
    let store = world.store(1);
    assert!(store.has(&root).unwrap());
    assert_eq!(store.pins_with_prefix("agreement:").unwrap().len(), 1);
}

#[test]
fn a_long_list_travels_in_pages() {
    let world = World::new(2);
    world.rent_out(1..2);
    let files = tempfile::tempdir().unwrap();
    for i in 0..7000 {
        std::fs::write(files.path().join(format!("file-{i}")), format!("content {i}")).unwrap();
    }
    let root = world.add_path(0, files.path());
    let id = world.store_and_wait(0, World::order(root, 2, None, Some(1)));
    world.day(0);
    let place = world.status(0, id).places.remove(0);
    assert_eq!(place.days, "P");
    assert!(world.store(0).stat().unwrap().blocks as usize * 41 > crate::messages::LIST_PAGE);
}

#[test]
fn elsewhere_audits_wait_silence_is_asked_again_and_expiry_waits_for_the_clocks() {
    let world = World::with(3, false);
    world.rent_out(1..3);
    let root = world.add(0, 300_000);
    let id = world.store_and_wait(0, World::order(root, 2, None, Some(2)));
    let silent = (1..3).find(|i| world.nodes[*i].key.public() == world.status(0, id).places[0].peer).unwrap();
    world.kill(silent);
    let renter = world.market(0).renter().clone();
    let tick = |seconds| {
        let now = world.ledger.step(seconds).unwrap().time;
        let renter = renter.clone();
        world.on(0, async move { renter.tick(now).await });
        let place = |column| world.status(0, id).places[column as usize].days.clone();
        (place(0), place(1))
    };
    // Half an epoch later the random moment has come for sure; only then is silence final.
    tick(DAY);
    let (early, _) = tick(DAY / 4);
    assert_eq!(early, "", "silence is not judged before the first half of the next epoch is over");
    let (late, good) = tick(DAY / 4 + 1);
    assert_eq!((late.as_str(), good.as_str()), ("O", "P"));
    // The term ends; wall clock and settlement clock are days apart, so nothing is deleted.
    tick(DAY);
    tick(DAY);
    let present = 3 - silent;
    let host = world.market(present).host().clone();
    let now = world.ledger.now();
    let shown = world.on(present, async move {
        host.tick(now).await;
        host.status().await.unwrap()
    });
    assert_eq!(shown.agreements[0].state, HostState::Closing);
    assert!(world.store(present).has(&root).unwrap());
    assert_eq!(shown.agreements[0].redeemed_btt, shown.agreements[0].earned_btt);
    world.check_supply();
}

#[test]
fn what_is_long_over_and_paid_leaves_the_host_s_books() {
    let (world, _) = World::pair(2);
    for _ in 0..4 {
        world.day(0);
    }
    let on_record = |time| {
        let host = world.market(1).host().clone();
        world.on(1, async move {
            host.work_done(time).await;
            host.status().await.unwrap().agreements.into_iter().map(|a| a.state).collect::<Vec<_>>()
        })
    };
    assert_eq!(on_record(world.ledger.now()), [HostState::Done]);
    assert_eq!(on_record(world.ledger.step(100 * DAY).unwrap().time), [HostState::Done]);
    assert!(on_record(world.ledger.step(30 * DAY).unwrap().time).is_empty());
    world.check_supply();
}
