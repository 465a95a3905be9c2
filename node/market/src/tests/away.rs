//! A renter that was away, hosts that are busy at the moment, vouchers and notices that get lost: between two honest
//! sides no day is lost by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use btfs_ledger::B256;

use super::world::{DAY, Tamper, World};
use crate::messages::{MAX_RENTAL_REQUEST, RENTAL_PROTOCOL, RentalRequest, decode};
use crate::ports::CourierError;
use crate::renter::PlaceStatus;

/// A renter and a host with one agreement.
fn pair(epochs: u32) -> (World, B256) {
    let world = World::new(2);
    world.rent_out(1..2);
    let root = world.add(0, 300_000);
    let id = world.store_and_wait(0, World::order(root, epochs, None, Some(1)));
    (world, id)
}

fn only_place(world: &World, id: B256) -> PlaceStatus {
    let mut places = world.status(0, id).places;
    assert_eq!(places.len(), 1);
    places.remove(0)
}

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
    let place = only_place(world, id);
    assert_eq!(place.days, "P".repeat(days));
    assert_eq!(place.earned_btt, place.epoch_price_btt.checked_mul(days as u64).unwrap());
    assert!(place.acknowledged);
    world.check_supply();
}

#[test]
fn twenty_missed_days_are_proven_and_paid() {
    let (world, id) = pair(30);
    away(&world, 20);
    all_paid(&world, id, 20);
    world.day(0);
    all_paid(&world, id, 21);
}

#[test]
fn a_lost_voucher_of_many_days_costs_no_day() {
    let (world, id) = pair(30);
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
