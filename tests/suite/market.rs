//! Renting end to end: a ledger, a renter and hosts as processes, driven by commands, days passed by the ledger's clock.

use btfs_ledger::Btt;
use btfs_tests::network::{FUNDS, Network, btt, count, list, lose_blocks, text};
use serde_json::Value;

use super::node::{Node, random_file, sha256};

const MIB: u64 = 1 << 20;
/// Days after which a loss of one block in twenty is found but for one case in four million: a day's audit of 30
/// leaves misses it with probability 0.95^30 = 0.215, ten in a row with 0.215^10 = 2e-7.
const FOUND_WITHIN: u32 = 10;
/// Days that a channel's window, a claim and the data's last day take together, generously.
const WINDING_UP: u32 = 14;

/// Epochs with this letter in an agreement's record of days.
fn days(place: &Value, letter: char) -> u64 {
    text(&place["days"]).chars().filter(|day| *day == letter).count() as u64
}

/// What so many epochs of an agreement cost.
fn price_of(place: &Value, days: u64) -> Btt {
    btt(&place["epoch_price_btt"]).checked_mul(days).expect("a small amount")
}

/// An agreement is paid for the days it proved, and for no other.
fn paid_as_proven(place: &Value) {
    assert_eq!(btt(&place["earned_btt"]), price_of(place, count(&place["days_proven"])), "{place}");
    assert_eq!(days(place, 'P'), count(&place["days_proven"]), "{place}");
}

/// The record of days with silence, by connection or by answer, as one letter.
fn seen(place: &Value) -> String {
    text(&place["days"]).replace('T', "O")
}

fn sum(amounts: impl IntoIterator<Item = Btt>) -> Btt {
    amounts.into_iter().fold(Btt::ZERO, |sum, amount| sum.checked_add(amount).expect("a small amount"))
}

/// What a host says of one agreement of a thing.
fn host_side(host: &Node, place: &Value) -> Value {
    let status = host.json(&["host", "status"]);
    let mut agreements = list(&status["agreements"]).iter();
    agreements.find(|agreement| agreement["id"] == place["agreement"]).expect("the host knows it").clone()
}

fn used_bytes(network: &Network) -> u64 {
    let running = network.hosts.iter().filter(|host| host.runs());
    running.map(|host| count(&host.json(&["host", "status"])["used_bytes"])).sum()
}

/// The entry of a host in the renter's `market ls`.
fn listed(network: &Network, host: usize) -> Value {
    let shown = network.renter.json(&["market", "show", &network.hosts[host].peer()]);
    match list(&shown["hosts"]) {
        [one] => one.clone(),
        other => panic!("one host was asked for, {} were shown", other.len()),
    }
}

#[test]
fn a_host_that_loses_one_block_in_twenty_is_found_and_unpaid() {
    let mut network = Network::start(6);
    let file = network.renter.file("file");
    // Two data columns of nineteen leaves, one of them with the nodes above, and four of twenty parity blocks.
    random_file(&file, 38 * MIB, 1);
    let thing = network.store(&file, 30, &["--redundancy", "2+4"]);
    network.pass_day();
    let host = 2;
    network.hosts[host].stop();
    let mut large = 0;
    let lost = lose_blocks(network.hosts[host].repo(), |_, size| {
        large += usize::from(size == MIB);
        size == MIB && large == 7
    });
    assert_eq!(lost, 1);
    assert!(large == 19 || large == 20, "one of twenty is lost: {large}");
    network.hosts[host].start();

    let took = network.pass_days_until(FOUND_WITHIN, "the loss was not found", |network| {
        days(network.place(&network.again(&thing), host), 'F') > 0
    });
    let after = network.again(&thing);
    let place = network.place(&after, host);
    assert_eq!(text(&place["days"]), format!("{}F", "P".repeat(took as usize)), "paid until it is found");
    assert_eq!(place["last_verdict"]["verdict"], "fail");
    assert_eq!(place["live"], false);
    paid_as_proven(place);
    // By its own books it has no voucher for that day either.
    let own = host_side(&network.hosts[host], place);
    assert_eq!(own["earned_btt"], place["earned_btt"]);
    assert_eq!(count(&own["epochs_proven"]), u64::from(took));

    // Once all is gone no audit can pass: unpaid day after day, and not chosen for anything new.
    network.hosts[host].stop();
    lose_blocks(network.hosts[host].repo(), |_, _| true);
    network.hosts[host].start();
    (0..3).for_each(|_| network.pass_day());
    let end = network.again(&thing);
    let place = network.place(&end, host);
    assert_eq!(text(&place["days"]), format!("{}FFFF", "P".repeat(took as usize)));
    paid_as_proven(place);
    let shown = listed(&network, host);
    assert_eq!(shown["why"], "that failed their last audits");
    assert!(shown["score"] == 0.0 && shown["scores"].is_null(), "{shown}");
    for other in (0..6).filter(|other| *other != host) {
        let place = network.place(&end, other);
        assert_eq!(text(&place["days"]), "P".repeat(took as usize + 4), "host {other} lost nothing");
        paid_as_proven(place);
    }
    let every = sum(list(&end["places"]).iter().map(|place| btt(&place["earned_btt"])));
    assert_eq!(btt(&end["spent_btt"]), every);
}

#[test]
fn two_things_through_restarts_to_their_ends() {
    let mut network = Network::start(6);
    let supply = network.supply();
    let files = [network.renter.file("first"), network.renter.file("second")];
    random_file(&files[0], 9 * MIB + 1, 2);
    random_file(&files[1], 4 * MIB, 3);
    let things = [
        network.store(&files[0], 30, &["--redundancy", "2+4"]),
        network.store(&files[1], 12, &["--redundancy", "2+4"]),
    ];
    network.pass_day();
    assert_eq!(list(&network.renter.json(&["store", "ls"])["things"]).len(), 2);

    restarts(&mut network, &things);
    cancelled(&mut network, &things);
    wound_up(&mut network, &things);
    assert_eq!(network.supply(), supply);
}

/// A host and the renter go and come back: a day a host misses is unpaid, days the renter misses are paid later.
fn restarts(network: &mut Network, things: &[Value; 2]) {
    network.hosts[0].stop();
    network.hosts[0].start();
    network.hosts[1].stop();
    network.pass_day();
    network.hosts[1].start();
    network.pass_day();
    for thing in things {
        let now = network.again(thing);
        for host in 0..6 {
            let place = network.place(&now, host);
            let expected = if host == 1 { "POP" } else { "PPP" };
            assert_eq!(seen(place), expected, "host {host}");
            paid_as_proven(place);
        }
    }
    network.renter.stop();
    network.pass_day();
    network.pass_day();
    network.renter.start();
    network.work_done(network.time());
    for thing in things {
        let now = network.again(thing);
        for host in 0..6 {
            let place = network.place(&now, host);
            let expected = if host == 1 { "POPPP" } else { "PPPPP" };
            assert_eq!(seen(place), expected, "host {host}");
            paid_as_proven(place);
            let own = host_side(&network.hosts[host], place);
            assert_eq!(own["earned_btt"], place["earned_btt"], "host {host} has the voucher");
        }
    }
}

/// The first thing is cancelled while a host is away: it ends with the next day, the other goes on.
fn cancelled(network: &mut Network, things: &[Value; 2]) {
    network.hosts[5].kill();
    let told = network.renter.json(&["store", "cancel", text(&things[0]["id"])]);
    assert!(list(&told["places"]).iter().all(|place| place["epochs"] == 6), "{told}");
    network.pass_day();
    network.pass_day();
    let [first, second] = [network.again(&things[0]), network.again(&things[1])];
    for host in 0..5 {
        let place = network.place(&first, host);
        let expected = if host == 1 { "POPPPP" } else { "PPPPPP" };
        assert_eq!(seen(place), expected, "host {host} is paid to the end of that day");
        assert_eq!(place["redeemed_btt"], place["earned_btt"], "host {host} has redeemed");
        assert_eq!(network.place(&second, host)["state"], "active");
        assert_eq!(days(network.place(&second, host), 'P'), if host == 1 { 6 } else { 7 });
    }
    assert_eq!(seen(network.place(&first, 5)), "PPPPPO", "who is away is not paid");
    assert_eq!(first["state"], "done");
    assert_eq!(second["state"], "active");
    // Only the second thing still takes space.
    let held: u64 = (0..5).map(|host| count(&network.place(&second, host)["size"])).sum();
    assert_eq!(used_bytes(network), held);
}

/// After the last day the space is free, and what was not spent is back, also from the host that is gone.
fn wound_up(network: &mut Network, things: &[Value; 2]) {
    network.pass_days_until(12 + WINDING_UP, "not all is wound up", |network| {
        let done = things.iter().all(|thing| {
            let now = network.again(thing);
            list(&now["places"]).iter().all(|place| place["state"] == "done")
        });
        done && used_bytes(network) == 0
    });
    let spent = sum(things.iter().map(|thing| btt(&network.again(thing)["spent_btt"])));
    let funds: Btt = FUNDS.parse().expect("an amount");
    network.pass_days_until(WINDING_UP, "the rest of the lock is not back", |network| {
        Some(network.balance(&network.renter)) == funds.checked_sub(spent)
    });
    for host in network.hosts.iter().filter(|host| host.runs()) {
        host.json(&["repo", "gc"]);
        let stat = host.json(&["repo", "stat"]);
        assert_eq!((&stat["hosted_bytes"], &stat["reserved_bytes"]), (&0.into(), &0.into()), "{stat}");
    }
    // The host that was killed with vouchers in hand comes back, redeems them, and frees its space too.
    network.hosts[5].start();
    network.pass_days_until(WINDING_UP, "the late host was not paid", |network| {
        let owed = things.iter().map(|thing| btt(&network.place(&network.again(thing), 5)["earned_btt"]));
        network.balance(&network.hosts[5]) == sum(owed) && used_bytes(network) == 0
    });
    let paid = sum(network.hosts.iter().map(|host| network.balance(host)));
    assert_eq!(paid, spent, "all that was spent is with the hosts");
}

#[test]
fn the_market_shows_scores_and_why_a_host_is_not_used() {
    let network = Network::start(3);
    let file = network.renter.file("file");
    random_file(&file, 3 * MIB, 4);
    network.hosts[1].json(&["host", "set", "--min-term", "60d"]);
    network.hosts[2].json(&["host", "stop"]);
    let shown = network.renter.json(&["market", "ls"]);
    assert_eq!(
        list(&shown["hosts"])[0]["peer_id"],
        network.hosts[0].peer().as_str(),
        "the usable one is first"
    );
    let good = listed(&network, 0);
    let parts = good["scores"].as_object().expect("the parts of the score");
    let product: f64 = parts.values().map(|part| part.as_f64().expect("a number")).product();
    assert!((product - good["score"].as_f64().expect("a number")).abs() < 1e-9 && product > 0.0, "{good}");
    assert_eq!(btt(&good["offer"]["price"]), "0.010".parse().expect("an amount"));
    assert_eq!(listed(&network, 1)["why"], "that want a longer term");
    assert_eq!(listed(&network, 1)["excluded"], "below_minimum_term");
    assert_eq!(listed(&network, 2)["why"], "without an offer");

    let path = file.to_str().expect("UTF-8");
    let told = network.renter.fails(&["store", "add", path, "--for", "30d", "--copies", "2", "--yes"]);
    for part in ["2 needed, 1 found", "1 that want a longer term", "1 without an offer"] {
        assert!(told.contains(part), "{told}");
    }
    let told = network.renter.fails(&[
        "store",
        "add",
        path,
        "--for",
        "30d",
        "--copies",
        "1",
        "--max-price",
        "0.001",
        "--yes",
    ]);
    assert!(told.contains("1 too dear"), "{told}");
    assert_eq!(network.balance(&network.renter), FUNDS.parse().expect("an amount"), "nothing was locked");
    // What fits is used.
    let thing = network.store(&file, 30, &["--copies", "1"]);
    assert_eq!(thing["spread"]["copies"]["n"], 1);
    network.pass_day();
    let after = network.again(&thing);
    assert_eq!(text(&network.place(&after, 0)["days"]), "P");
    // A day's audit counts for the score.
    assert_eq!(count(&listed(&network, 0)["reputation"]["passed"]), 1);
}

/// What stays in its file is rented out for like any other content, and the hosts have it when the file is gone.
#[test]
fn files_that_are_not_copied_can_be_stored_with_hosts() {
    let mut network = Network::start(3);
    let renter = &network.renter;
    let path = renter.file("library");
    random_file(&path, 7 * MIB + 5, 71);
    let added = renter.json(&["add", "--nocopy", path.to_str().expect("UTF-8")]);
    let root = text(&added["cid"]);
    let order = ["store", "add", root, "--for", "7d", "--redundancy", "2+1", "--yes"];
    let thing = renter.json(&order);
    assert!(list(&thing["places"]).iter().all(|place| place["state"] == "active"), "{thing}");
    network.pass_day();
    list(&network.again(&thing)["places"]).iter().for_each(|place| assert_eq!(text(&place["days"]), "P"));
    let away = network.renter.file("away");
    std::fs::rename(&path, &away).expect("the file goes");
    let got = network.renter.file("got");
    let fetched = network.renter.json(&["get", root, "--output", got.to_str().expect("UTF-8")]);
    assert!(count(&fetched["blocks_fetched"]) + count(&fetched["leaves_from_parity"]) > 0, "{fetched}");
    assert_eq!(sha256(&got), sha256(&away));
    network.hosts.iter_mut().chain([&mut network.renter, &mut network.ledger]).for_each(Node::stop);
}
