//! Thirty days with six hosts: who proves is paid to the unit, who does not is not.

use btfs_ledger::Btt;
use btfs_storage::{BlockSource, Class};

use super::world::{World, btt};
use crate::events::MarketEvent;
use crate::renter::ThingState;
use crate::states::{HostState, RenterState};

const SIZE: usize = 5 << 20;

#[test]
fn everyone_is_paid_exactly() {
    let world = World::new(7);
    world.rent_out(1..7);
    let root = world.add(0, SIZE);
    let id = world.store_and_wait(0, World::order(root, 30, Some((2, 4)), None));
    let status = world.status(0, id);
    assert_eq!((status.state, status.places.len(), status.health), (ThingState::Active, 6, Some(4)));
    let mut freed: Vec<_> = (1..7).map(|i| world.market(i).events().subscribe()).collect();
    for _ in 0..30 {
        world.day(0);
    }
    let status = world.status(0, id);
    let mut sum = Btt::ZERO;
    for place in &status.places {
        assert_eq!((place.days_proven, place.days_failed), (30, 0));
        assert_eq!(place.earned_btt, place.epoch_price_btt.checked_mul(30).unwrap());
        assert!(place.acknowledged);
        sum = sum.checked_add(place.earned_btt).unwrap();
    }
    assert_eq!(status.spent_btt, sum);
    world.check_supply();
    // Two days later the hosts have freed the space, redeemed, and released nothing more than was left.
    world.day(0);
    world.day(0);
    for i in 1..7 {
        let host = world.market(i).host().clone();
        let mut events = freed.remove(0);
        let shown = world.on(i, async move {
            while !matches!(events.recv().await.unwrap(), MarketEvent::SpaceFreed { .. }) {}
            host.status().await.unwrap()
        });
        let [agreement] = &shown.agreements[..] else { panic!("one agreement a host") };
        assert_eq!(agreement.state, HostState::Done);
        assert_eq!(agreement.redeemed_btt, agreement.earned_btt);
        assert_eq!(shown.used_bytes, 0);
        assert_eq!(world.balance(i), btt(1000).checked_add(agreement.earned_btt).unwrap());
        let stat = world.store(i).stat().unwrap();
        let hosted = stat.classes.iter().find(|c| c.class == Class::Hosted).unwrap();
        assert_eq!(hosted.bytes, 0, "the space is free");
    }
    // What is left came back.
    world.await_balance(0, btt(1000).checked_sub(sum).unwrap());
    world.day(0);
    assert_eq!(world.status(0, id).state, ThingState::Done);
    world.check_supply();
}

#[test]
fn lost_blocks_and_silence_are_unpaid_and_missed_days_are_settled_with_one_audit() {
    let world = World::new(7);
    world.rent_out(1..7);
    let root = world.add(0, SIZE);
    let id = world.store_and_wait(0, World::order(root, 30, Some((2, 4)), None));
    let host_of = |column: usize| {
        let peer = world.status(0, id).places[column].peer;
        (1..7).find(|i| world.nodes[*i].key.public() == peer).unwrap()
    };
    let (lossy, silent) = (host_of(2), host_of(0));
    for _ in 0..5 {
        world.day(0);
    }
    lose_half(&world, lossy);
    for _ in 0..5 {
        world.day(0);
    }
    world.kill(silent);
    for _ in 0..10 {
        world.day(0);
    }
    // The renter is away for five days and settles them with one audit each.
    world.kill(0);
    for _ in 0..5 {
        world.ledger.step(super::world::DAY).unwrap();
    }
    world.start(0);
    for _ in 0..5 {
        world.day(0);
    }
    let status = world.status(0, id);
    for (column, place) in status.places.iter().enumerate() {
        let host = host_of(column);
        let proven = if host == lossy {
            5
        } else if host == silent {
            10
        } else {
            30
        };
        assert_eq!(place.days_proven, proven, "column {column}: {}", place.days);
        assert_eq!(place.days_failed, 30 - proven);
        assert_eq!(place.earned_btt, place.epoch_price_btt.checked_mul(u64::from(proven)).unwrap());
        assert!(matches!(place.state, RenterState::Closing | RenterState::Done));
        let letter = if host == lossy { 'F' } else { 'O' };
        assert!(place.days[proven as usize..].chars().all(|c| c == letter));
    }
    world.check_supply();
    // The dead host's lock comes back by announcement and window; what it is owed stays for it.
    for _ in 0..8 {
        world.day(0);
    }
    let status = world.status(0, id);
    let owed = status.places.iter().find(|p| p.peer == world.nodes[silent].key.public()).unwrap();
    let paid = owed.redeemed_btt;
    let expected = btt(1000).checked_sub(status.spent_btt).unwrap();
    world.await_balance(0, expected);
    assert!(paid < owed.earned_btt);
    world.start(silent);
    let host = world.market(silent).host().clone();
    let agreement = owed.agreement;
    let redeemed = world.on(silent, async move { host.redeem(agreement).await.unwrap() });
    assert_eq!(redeemed, owed.earned_btt, "a killed host that comes back has what it earned");
    world.check_supply();
}

/// Deletes every other hosted block behind the market's back: out of the pin, then collected.
fn lose_half(world: &World, host: usize) {
    let store = world.store(host);
    let pins = store.pins_with_prefix("agreement:").unwrap();
    let [pin] = &pins[..] else { panic!("one agreement a host") };
    let listed = store.blocks(None, 1000).unwrap();
    let kept: Vec<_> = listed.iter().skip(1).step_by(2).map(|b| b.cid).collect();
    let mut batch = store.state().batch();
    store.pin_list(&mut batch, pin, &kept).unwrap();
    store.state().commit(batch).unwrap();
    store.gc().unwrap();
    assert!(!store.has(&listed[0].cid).unwrap());
}
