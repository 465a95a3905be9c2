//! Crashes at every message: whichever side dies before, during or after it, the month ends with the same books.

use btfs_ledger::Btt;

use super::world::{Cut, DAY, World, btt};
use crate::states::RenterState;

/// Days of the short agreement.
const DAYS: u32 = 3;

/// Runs one agreement to its end with one crash at message (or call to the settlement) `at`; false if the sequence
/// has fewer.
fn run(at: u64, cut: Cut, call: bool) -> bool {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    match call {
        false => world.wire.cut_at(at, cut),
        true => world.wire.cut_call_at(at, cut),
    }
    let order = World::order(root, DAYS, None, Some(1));
    // The order may die with the renter before it was accepted; then it is simply given again.
    let id = loop {
        let (renter, order) = (world.market(0).renter().clone(), order.clone());
        let placed = world.ride(0, async move {
            let id = match renter.list().await.unwrap().pop() {
                Some(thing) => thing.id,
                None => {
                    let quote = renter.quote(order, |_| {}).await.ok()?;
                    renter.accept(&quote.id).await.ok()?
                }
            };
            Some((id, renter.placed(id).await.unwrap()))
        });
        if let Some(Some((id, thing))) = placed {
            assert_eq!(thing.problem, None);
            break id;
        }
    };
    world.check_supply();
    for _ in 0..DAYS {
        let time = world.ledger.step(DAY).unwrap().time;
        ride_to(&world, 0, time);
        world.check_supply();
    }
    if !call {
        world.wire.no_cut();
    }
    // Redeeming and releasing fall into these days.
    for _ in 0..3 {
        let time = world.ledger.step(DAY).unwrap().time;
        ride_to(&world, 0, time);
        ride_to(&world, 1, time);
    }
    let fell = world.wire.fallen().is_some();
    world.wire.no_cut();
    check_end(&world, id, &format!("{} {at}, {cut:?}", if call { "call" } else { "message" }));
    fell
}

/// Rides until a node's own work through `time` is done.
fn ride_to(world: &World, i: usize, time: u64) {
    loop {
        world.ride(i, async {});
        let market = world.market(i);
        let done = async move {
            if i == 0 { market.renter().work_done(time).await } else { market.host().work_done(time).await }
        };
        if world.ride(i, done).is_some() {
            return;
        }
    }
}

/// Every day is either paid or on record as unpaid, by both sides and the ledger alike, and all money is accounted for.
fn check_end(world: &World, id: btfs_ledger::B256, what: &str) {
    let now = world.ledger.now();
    let host = world.market(1).host().clone();
    let held = world.on(1, async move {
        host.tick(now).await;
        host.status().await.unwrap()
    });
    let status = world.status(0, id);
    let began: Vec<_> = status.places.iter().filter(|p| p.state != RenterState::Failed).collect();
    let [place] = &began[..] else { panic!("{what}: one agreement that began, not {began:?}") };
    assert_eq!(place.days_proven + place.days_failed, DAYS, "{what}: {place:?}");
    let earned = place.epoch_price_btt.checked_mul(u64::from(place.days_proven)).unwrap();
    assert_eq!(place.earned_btt, earned, "{what}");
    let paid = held.agreements.iter().fold(Btt::ZERO, |sum, a| sum.checked_add(a.redeemed_btt).unwrap());
    assert_eq!(paid, earned, "{what}: {held:?}");
    assert_eq!(world.balance(1), btt(1000).checked_add(paid).unwrap(), "{what}");
    // A host that answered an audit whose answer was lost releases nothing for that day: then the renter takes it
    // back by announcement and window.
    let left = btt(1000).checked_sub(paid).unwrap();
    for _ in 0..if place.days_failed > 0 { 8 } else { 0 } {
        world.day(0);
    }
    world.await_balance(0, left);
    world.check_supply();
}

fn every_message(cut: Cut) {
    let mut at = 0;
    while run(at, cut, false) {
        at += 1;
    }
    // Offer, propose, deliver, sign and three days of audit and voucher.
    assert!(at >= 10, "only {at} messages were cut");
}

#[test]
fn the_host_dies_before_it_hears() {
    every_message(Cut::ServerBefore);
}

#[test]
fn the_host_dies_before_its_answer_is_out() {
    every_message(Cut::ServerAfter);
}

#[test]
fn the_renter_dies_before_it_hears_the_answer() {
    every_message(Cut::ClientAfter);
}

#[test]
fn whoever_calls_the_settlement_dies_before_or_after_the_call() {
    for cut in [Cut::ServerBefore, Cut::ServerAfter] {
        let mut at = 0;
        while run(at, cut, true) {
            at += 1;
        }
        // Lock, redeem, release.
        assert!(at >= 3, "only {at} calls were cut");
    }
}
