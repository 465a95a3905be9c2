//! A renter that was away, hosts that are busy at the moment, vouchers and notices that get lost: between two honest
//! sides no day is lost by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use btfs_ledger::B256;

use super::world::{DAY, Tamper, World};
use crate::messages::{AUDIT_PROTOCOL, MAX_RENTAL_REQUEST, RENTAL_PROTOCOL, RentalRequest, decode};
use crate::ports::CourierError;
use crate::states::RenterState;

/// The renter is down for `days`, which the clock passes in one step, and comes back.
fn away(world: &World, days: u64) {
    world.kill(0);
    let time = world.ledger.step(days * DAY).unwrap().time;
    world.start(0);
    let renter = world.market(0).renter().clone();
    world.on(0, async move { renter.work_done(time).await });
}

#[track_caller]
fn all_paid(world: &World, id: B256, days: usize) {
    let place = world.only_place(id);
    assert_eq!(place.days, "P".repeat(days));
    assert_eq!(place.earned_btt, place.epoch_price_btt.checked_mul(days as u64).unwrap());
    assert!(place.acknowledged);
    world.check_supply();
}

#[test]
fn twenty_missed_days_are_proven_and_paid() {
    let (world, id) = World::pair(30);
    away(&world, 20);
    all_paid(&world, id, 20);
    world.day(0);
    all_paid(&world, id, 21);
}

#[test]
fn a_lost_voucher_of_many_days_costs_no_day() {
    let (world, id) = World::pair(30);
    let lost = Arc::new(AtomicBool::new(false));
    let once = lost.clone();
    world.wire.tamper(move |_, protocol, bytes| {
        let voucher = protocol == RENTAL_PROTOCOL
            && matches!(decode(bytes, MAX_RENTAL_REQUEST).unwrap(), RentalRequest::Voucher { .. });
        match voucher && !once.swap(true, Ordering::SeqCst) {
            true => Tamper::Instead(Err(CourierError::Timeout)),
            false => Tamper::Pass,
        }
    });
    away(&world, 5);
    assert!(lost.load(Ordering::SeqCst));
    world.day(0);
    all_paid(&world, id, 6);
}

#[test]
fn more_days_than_a_host_answers_at_once_are_proven_the_day_after() {
    let (world, id) = World::pair(80);
    away(&world, 70);
    all_paid(&world, id, 56);
    // Every event of the ledger is another chance to ask too much.
    let (renter, now) = (world.market(0).renter().clone(), world.ledger.now());
    world.on(0, async move {
        for _ in 0..3 {
            renter.tick(now).await;
        }
    });
    all_paid(&world, id, 56);
    world.day(0);
    all_paid(&world, id, 71);
}

#[test]
fn a_host_that_is_starting_when_the_renter_returns_loses_no_day() {
    for local in [true, false] {
        let world = World::with(2, local);
        world.rent_out(1..2);
        let root = world.add(0, 300_000);
        let id = world.store_and_wait(0, World::order(root, 30, None, Some(1)));
        world.kill(0);
        let back = world.ledger.step(2 * DAY + DAY * 3 / 4).unwrap().time;
        // Until the clock is stepped, so that no round of the renter's own falls between the two.
        let ledger = world.ledger.clone();
        world.wire.tamper(move |_, protocol, _| match protocol {
            AUDIT_PROTOCOL if ledger.now() <= back => {
                Tamper::Instead(Err(CourierError::Refused("still starting".into())))
            }
            _ => Tamper::Pass,
        });
        world.start(0);
        let renter = world.market(0).renter().clone();
        let tick = |now| {
            let renter = renter.clone();
            world.on(0, async move { renter.tick(now).await });
        };
        tick(back);
        assert_eq!(world.only_place(id).days, "", "an excuse does not cost a backlog at once");
        tick(world.ledger.step(DAY / 2).unwrap().time);
        assert_eq!(world.only_place(id).days, "PPP");
        // Half an epoch of excuses is enough.
        world.wire.tamper(|_, protocol, _| match protocol {
            AUDIT_PROTOCOL => Tamper::Instead(Err(CourierError::Refused("still starting".into()))),
            _ => Tamper::Pass,
        });
        tick(world.ledger.step(DAY).unwrap().time);
        assert_eq!(world.only_place(id).days, "PPP");
        tick(world.ledger.step(DAY / 2).unwrap().time);
        tick(world.ledger.step(DAY / 2).unwrap().time);
        assert_eq!(world.only_place(id).days, "PPPT");
    }
}

#[test]
fn a_notice_of_the_host_that_was_lost_is_heard_later() {
    let (world, id) = World::pair(30);
    world.day(0);
    world.wire.tamper(|_, protocol, bytes| match protocol {
        RENTAL_PROTOCOL
            if matches!(decode(bytes, MAX_RENTAL_REQUEST).unwrap(), RentalRequest::Quit { .. }) =>
        {
            Tamper::Instead(Err(CourierError::Unreachable("down".into())))
        }
        _ => Tamper::Pass,
    });
    let (host, agreement) = (world.market(1).host().clone(), world.only_place(id).agreement);
    let quitting = host.clone();
    assert_eq!(world.on(1, async move { quitting.quit(agreement).await.unwrap() }), 2);
    world.day(0);
    // The renter asks about an epoch behind the end before it has heard of it.
    world.day(0);
    let place = world.only_place(id);
    assert_eq!((place.days.as_str(), place.reason.as_deref()), ("PP", Some("the host gave notice")));
    assert!(matches!(place.state, RenterState::Closing | RenterState::Done));
    world.check_supply();
}

#[test]
fn a_renter_is_told_of_an_end_until_it_hears_it() {
    let (world, id) = World::pair(30);
    world.day(0);
    let (host, agreement) = (world.market(1).host().clone(), world.only_place(id).agreement);
    world.kill(0);
    let quitting = host.clone();
    world.on(1, async move { quitting.quit(agreement).await.unwrap() });
    world.start(0);
    let now = world.ledger.now();
    let told = world.on(1, async move {
        loop {
            host.tick(now).await;
            if host.0.record(agreement).await.unwrap().unwrap().told {
                return true;
            }
        }
    });
    assert!(told);
    assert_eq!(world.only_place(id).epochs, 2);
}

#[test]
fn a_host_hears_a_cancellation_also_after_the_renter_is_done() {
    let (world, id) = World::pair(30);
    world.day(0);
    world.wire.tamper(|_, protocol, bytes| match protocol {
        RENTAL_PROTOCOL
            if matches!(decode(bytes, MAX_RENTAL_REQUEST).unwrap(), RentalRequest::Cancel { .. }) =>
        {
            Tamper::Instead(Err(CourierError::Unreachable("down".into())))
        }
        _ => Tamper::Pass,
    });
    let renter = world.market(0).renter().clone();
    world.on(0, async move { renter.cancel(id).await.unwrap() });
    for _ in 0..5 {
        world.day(0);
    }
    assert_eq!(world.only_place(id).state, RenterState::Done);
    world.wire.behave();
    world.day(0);
    world.day(0);
    let host = world.market(1).host().clone();
    let shown = world.on(1, async move { host.status().await.unwrap().agreements.remove(0) });
    assert!(shown.epochs <= 8, "{shown:?}");
}

#[test]
fn a_host_that_cannot_see_the_settlement_does_not_blame_its_renter() {
    let (world, id) = World::pair(30);
    let host = world.nodes[1].key.public();
    world.wire.set_deaf(host, true);
    for _ in 0..6 {
        world.day(0);
    }
    let place = world.only_place(id);
    assert_eq!((place.days.as_str(), place.acknowledged), ("PPPPPP", false));
    world.wire.set_deaf(host, false);
    world.day(0);
    all_paid(&world, id, 7);
}
