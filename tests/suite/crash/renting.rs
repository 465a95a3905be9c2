//! Twenty kills and more while things are stored, proven and paid.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use btfs_ledger::Btt;
use rand::RngExt;
use serde_json::Value;

use super::world::{HOSTS, LEDGER, RENTER, World, btt, text};

/// Kills at least.
const KILLS: usize = 20;
/// Kills at random moments while something is being stored.
const RANDOM_ORDERS: usize = 6;
/// Kills at random moments of a day's work.
const RANDOM_DAYS: usize = 3;
/// A state that lasts a few milliseconds may be missed so often.
const TRIES: usize = 12;

#[test]
fn twenty_kills_lose_nothing_and_pay_nothing_twice() {
    let mut world = World::start(super::seed());
    let began = Instant::now();
    let order = world.order();
    assert!(world.ended(order), "undisturbed, a file is stored");
    let takes = began.elapsed();
    println!("undisturbed, an order takes {takes:?}");
    world.check();
    let wanted = [
        (RENTER, RENTER, "reserved"),
        (RENTER, RENTER, "funded"),
        (RENTER, RENTER, "offered"),
        (RENTER, RENTER, "active"),
        (HOSTS.start, HOSTS.start, "reserved"),
        (HOSTS.start + 1, HOSTS.start + 1, "received"),
        (HOSTS.start + 2, HOSTS.start + 2, "active"),
        (LEDGER, RENTER, "reserved"),
    ];
    for (victim, seen_at, state) in wanted {
        kill_in_state(&mut world, victim, seen_at, state);
    }
    for _ in 0..RANDOM_ORDERS {
        let victim = world.rng.random_range(LEDGER..HOSTS.end);
        let order = world.order();
        world.random_moment(takes);
        world.kill(victim, "at a random moment of an order");
        recover(&mut world, victim, Some(order));
    }
    let day_takes = quiet_day(&mut world);
    kill_in_audit(&mut world, RENTER);
    kill_in_audit(&mut world, HOSTS.start);
    kill_in_audit(&mut world, LEDGER);
    for host in HOSTS {
        world.command(host, &["host", "set", "--redeem-above", "0.000000000000000001"]);
    }
    kill_in_redeem(&mut world, HOSTS.start + 1);
    kill_in_redeem(&mut world, LEDGER);
    for _ in 0..RANDOM_DAYS {
        let victim = world.rng.random_range(LEDGER..HOSTS.end);
        let time = world.step();
        world.random_moment(day_takes);
        world.kill(victim, "at a random moment of a day's work");
        recover(&mut world, victim, None);
        world.worked(time);
    }
    assert!(world.kills >= KILLS, "only {} kills", world.kills);
    world.close();
    world.check();
    world.check_end();
    world.read_back();
}

/// Starts a killed node again, sees the interrupted order through, and checks the books.
fn recover(world: &mut World, victim: usize, order: Option<super::world::Order>) {
    world.restart(victim);
    if let Some(order) = order {
        world.ended(order);
    }
    world.placed();
    world.check();
    if victim == RENTER {
        world.read_back();
    }
}

/// Kills `victim` as soon as `seen_at` tells of a new agreement in `state`, until one such kill has hit that state.
fn kill_in_state(world: &mut World, victim: usize, seen_at: usize, state: &str) {
    for _ in 0..TRIES {
        let id = if seen_at == RENTER { "agreement" } else { "id" };
        let ids =
            |all: &[Value]| -> BTreeSet<String> { all.iter().map(|a| text(a, id).to_owned()).collect() };
        let old = ids(&world.agreements(seen_at));
        let mut order = world.order();
        let mut seen = false;
        while !seen && !order.is_over() {
            let all = world.agreements(seen_at);
            seen = all.iter().any(|a| !old.contains(text(a, id)) && text(a, "state") == state);
        }
        if !seen {
            world.ended(order);
            continue;
        }
        let durable = world.kill(victim, &format!("in {state}"));
        // Of another node's state the answer is all there is.
        let hit = victim != seen_at || durable.is_in(state);
        recover(world, victim, Some(order));
        if hit {
            return;
        }
    }
    panic!("{state} was not hit in {TRIES} orders");
}

/// A day without kills; how long its work takes.
fn quiet_day(world: &mut World) -> Duration {
    let began = Instant::now();
    let time = world.step();
    world.worked(time);
    let takes = began.elapsed();
    world.check();
    println!("undisturbed, a day takes {takes:?}");
    takes
}

/// Kills `victim` while the audits of a day are under way.
fn kill_in_audit(world: &mut World, victim: usize) {
    for _ in 0..TRIES {
        let proven = |world: &mut World| -> u64 {
            world.agreements(HOSTS.start).iter().map(|a| a["epochs_proven"].as_u64().expect("a number")).sum()
        };
        let before = proven(world);
        let time = world.step();
        // The renter tells that it has work; a host, that it has proven something.
        let seen = super::until("the audits begin", || {
            let (knows, done) = world.work(time);
            let proves = victim != HOSTS.start || proven(world) > before;
            (done || (knows && proves)).then_some(!done)
        });
        let mut hit = false;
        if seen {
            let durable = world.kill(victim, "in an audit");
            hit = victim == LEDGER || durable.in_audit(time);
            recover(world, victim, None);
        }
        world.worked(time);
        world.check();
        if hit {
            return;
        }
    }
    panic!("no audit was hit");
}

/// Kills `victim` while a host has vouchers paid out: some are, some are not.
fn kill_in_redeem(world: &mut World, victim: usize) {
    let host = if victim == LEDGER { HOSTS.start } else { victim };
    let redeemed = |all: &[Value]| Btt::checked_sum(all.iter().map(|a| btt(&a["redeemed_btt"])));
    for _ in 0..TRIES {
        let before = redeemed(&world.agreements(host));
        let time = world.step();
        let seen = super::until("vouchers are redeemed", || {
            let all = world.agreements(host);
            let left = all.iter().any(|a| btt(&a["earned_btt"]) > btt(&a["redeemed_btt"]));
            let moves = redeemed(&all) > before;
            (moves || !left).then_some(moves && left)
        });
        let mut hit = false;
        if seen {
            let durable = world.kill(victim, "in a redeem");
            hit = victim == LEDGER || durable.in_redeem();
            recover(world, victim, None);
        }
        world.worked(time);
        world.check();
        if hit {
            return;
        }
    }
    panic!("no redeem was hit");
}
