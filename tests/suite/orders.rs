//! Orders and payments that cannot be: each is refused with the reason, and no BTT, pin or agreement changes.

use btfs_tests::api::Api;
use btfs_tests::network::{FUNDS, Network, btt, list, text};
use serde_json::{Value, json};

use super::node::{Node, random_file};

fn has_all(told: &str, parts: &[&str]) {
    for part in parts {
        assert!(told.contains(part), "no `{part}` in: {told}");
    }
}

fn file(node: &Node, name: &str, content: &[u8]) -> String {
    let path = node.file(name);
    std::fs::write(&path, content).expect("a file");
    path.to_str().expect("UTF-8").to_owned()
}

/// What a refused order must not change.
fn books(network: &Network) -> [Value; 4] {
    let used = |host: &Node| host.json(&["host", "status"])["used_bytes"].clone();
    [
        network.renter.json(&["store", "ls"]),
        json!(network.balance(&network.renter).to_string()),
        json!(network.supply().to_string()),
        network.hosts.iter().map(used).collect(),
    ]
}

/// Sets the terms of every host.
fn host_terms(network: &Network, terms: &[&str]) {
    for host in &network.hosts {
        let mut arguments = vec!["host", "set"];
        arguments.extend(terms);
        host.json(&arguments);
    }
}

#[test]
fn orders_that_no_host_takes() {
    let network = Network::start(2);
    let ten = file(&network.renter, "ten", b"0123456789");
    let empty = file(&network.renter, "empty", b"");
    let before = books(&network);
    let refused = |what: &str, options: &[&str]| {
        let mut arguments = vec!["store", "add", what, "--yes"];
        arguments.extend(options);
        network.renter.fails(&arguments)
    };
    has_all(&refused(&empty, &[]), &["empty", "nothing to rent space for"]);
    has_all(&refused(&empty, &["--copies", "2"]), &["empty", "nothing to rent space for"]);
    has_all(&refused(&ten, &["--for", "12h"]), &["whole number of days"]);
    has_all(&refused(&ten, &["--for", "soon"]), &["`soon` is not a time"]);
    has_all(&refused(&ten, &["--redundancy", "much"]), &["`much` is no redundancy"]);
    has_all(&refused("no-such-file", &[]), &["no-such-file"]);
    // Too few for the default, which says so and offers copies.
    has_all(&refused(&ten, &[]), &["2 usable hosts", "--copies 2"]);
    has_all(&refused(&ten, &["--copies", "3"]), &["no host that fits", "3 needed, 2 found"]);
    has_all(&refused(&ten, &["--copies", "2", "--max-price", "0.001"]), &["2 needed, 0 found", "2 too dear"]);
    host_terms(&network, &["--min-term", "7d"]);
    has_all(&refused(&ten, &["--copies", "2", "--for", "1d"]), &["0 found", "2 that want a longer term"]);
    has_all(&refused(&ten, &["--for", "1d"]), &["no host that fits", "2 that want a longer term"]);
    host_terms(&network, &["--min-term", "1d", "--max-term", "10d"]);
    has_all(&refused(&ten, &["--copies", "1", "--for", "11d"]), &["2 that want a shorter term"]);
    // Without a yes nothing is ordered.
    let unasked = network.renter.fails(&["store", "add", &ten, "--copies", "2", "--for", "7d"]);
    has_all(&unasked, &["nothing was ordered", "BTT"]);
    assert_eq!(books(&network), before);
}

#[test]
fn a_tiny_file_is_kept_as_copies_and_paid_for() {
    let network = Network::start(2);
    let ten = file(&network.renter, "ten", b"0123456789");
    let cid = network.renter.json(&["add", &ten])["cid"].clone();
    let request = json!({ "reference": cid, "seconds": 7 * 86_400, "redundancy": [2, 1] });
    let quote = Api::of(&network.renter).call("store/quote", &request).json();
    assert_eq!(quote["spread"], json!({ "copies": { "n": 2 } }), "{quote}");
    assert!(quote["note"].as_str().is_some_and(|note| note.contains("whole copies")), "{quote}");
    // More than the account has: the lock and the balance are named.
    let before = books(&network);
    host_terms(&network, &["--setup-price", "5000"]);
    let order = ["store", "add", &ten, "--for", "7d", "--redundancy", "2+1", "--yes"];
    has_all(&network.renter.fails(&order), &["not enough BTT", "10000", FUNDS]);
    assert_eq!(books(&network), before);
    host_terms(&network, &["--setup-price", "2"]);
    let thing = network.renter.json(&order);
    let places = list(&thing["places"]);
    assert!(places.len() == 2 && places.iter().all(|place| place["state"] == "active"), "{thing}");
    network.pass_day();
    let thing = network.again(&thing);
    for place in list(&thing["places"]) {
        assert_eq!(place["days_proven"], 1, "{thing}");
        assert!(btt(&place["earned_btt"]) > btfs_ledger::Btt::ZERO, "{thing}");
    }
    has_all(&network.renter.fails(&["store", "cancel", "nonsense"]), &["nonsense"]);
    has_all(&network.renter.fails(&["market", "show", "nonsense"]), &["nonsense", "peer id"]);
}

#[test]
fn payments_that_cannot_be() {
    let network = Network::start(0);
    let to = network.ledger.json(&["wallet", "address"])["address"].clone();
    let to = text(&to);
    let before = books(&network);
    let send = |to: &str, amount: &str| network.renter.fails(&["wallet", "send", to, amount]);
    has_all(&send(to, "1000.5"), &["1000.5", FUNDS]);
    has_all(&send(to, "many"), &["many"]);
    has_all(&send(to, "0.0000000000000000001"), &["0.0000000000000000001"]);
    has_all(&send(to, "999999999999999999999999999999"), &["999999999999999999999999999999"]);
    has_all(&send("0x1234", "1"), &["0x1234"]);
    has_all(&send("nobody", "1"), &["nobody"]);
    has_all(&network.renter.fails(&["ledger", "step", "1d"]), &["operator"]);
    assert_eq!(books(&network), before);
}

#[test]
fn a_network_without_a_ledger_says_how_to_get_one() {
    let mut node = Node::init(None);
    let path = node.file("file");
    random_file(&path, 1000, 31);
    let path = path.to_str().expect("UTF-8");
    has_all(&node.fails(&["store", "add", path, "--yes"]), &["daemon"]);
    node.start();
    for arguments in
        [&["store", "add", path, "--yes"][..], &["wallet", "balance"], &["host", "start"], &["market", "ls"]]
    {
        let told = node.fails(arguments);
        has_all(&told, &["no ledger", "btfs config network FILE", "btfs ledger init"]);
    }
    node.stop();
}
