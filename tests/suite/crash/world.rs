//! The network that is killed in, and its books: what every node has told so far and must never take back.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Instant;

use btfs_ledger::Btt;
use btfs_tests::api::Api;
use btfs_tests::network::listen_on_a_port;
use btfs_tests::node::{Node, random_file, sha256};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::durable::Durable;
use super::{PATIENCE, until};

/// The node that operates the ledger and by which the others find each other.
pub const LEDGER: usize = 0;
/// The node that stores with the others.
pub const RENTER: usize = 1;
/// The nodes that rent out.
pub const HOSTS: Range<usize> = 2..5;
/// Days that things are stored for.
pub const TERM: u32 = 10;

const SUPPLY: &str = "1000000";
const FUNDS: &str = "1000";
/// Several leaves for each host, so that pulling them takes a moment.
const FILE_SIZE: u64 = 5 << 20;

/// The nodes with all that they have told.
pub struct World {
    nodes: Vec<Node>,
    apis: Vec<Option<Api>>,
    addresses: Vec<String>,
    /// By node and agreement.
    told: BTreeMap<(usize, String), Told>,
    /// Roots of files whose storing was acknowledged, with their SHA-256.
    kept: Vec<(String, String)>,
    /// Number of events and time of the ledger.
    ledger: (u64, u64),
    files: u64,
    /// Random moments and victims.
    pub rng: SmallRng,
    /// So many so far.
    pub kills: usize,
    _network: tempfile::TempDir,
}

/// What a node said of an agreement.
#[derive(Clone, Debug)]
struct Told {
    state: String,
    earned: Btt,
    redeemed: Btt,
}

/// A `store add` under way.
pub struct Order {
    child: Child,
    sha256: String,
    file: PathBuf,
}

impl Order {
    /// Whether the command has ended.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }
}

/// An amount in an answer.
pub fn btt(value: &Value) -> Btt {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no amount"))
}

/// What a list in an answer has.
pub fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// A string in an answer.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}

fn sum(amounts: impl IntoIterator<Item = Btt>) -> Btt {
    Btt::checked_sum(amounts).expect("far below the largest amount")
}

/// How far a state is on its way; only [`may_follow`] knows which steps there are.
fn rank(state: &str) -> usize {
    let order = ["draft", "reserved", "funded", "received", "offered", "active", "closing", "done", "failed"];
    order.iter().position(|known| *known == state).unwrap_or_else(|| panic!("an unknown state: {state}"))
}

fn may_follow(old: &str, new: &str) -> bool {
    match (old, new) {
        // The host said that it has signed nothing.
        ("offered", "funded") => true,
        ("active" | "closing" | "done", "failed") => false,
        _ => rank(new) >= rank(old),
    }
}

impl Drop for World {
    /// What the nodes had to say, when a test fails.
    fn drop(&mut self) {
        const LINES: usize = 15;
        if std::thread::panicking() {
            for (number, node) in self.nodes.iter().enumerate() {
                let log = std::fs::read_to_string(node.file("daemon.log")).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = &lines[lines.len().saturating_sub(LINES)..];
                println!("the log of {} ends:\n{}", World::name(number), tail.join("\n"));
            }
        }
    }
}

impl World {
    /// Makes and starts the network.
    pub fn start(seed: u64) -> World {
        let network = tempfile::tempdir().expect("a temporary directory");
        let file = network.path().join("network.toml");
        let ledger = Node::init(None);
        listen_on_a_port(&ledger);
        let out = file.display().to_string();
        ledger.json(&["ledger", "init", "--supply", SUPPLY, "--name", "crash", "--local", "--out", &out]);
        let mut nodes = vec![ledger];
        nodes.extend((RENTER..HOSTS.end).map(|_| Node::init(Some(&file))));
        nodes[RENTER..].iter().for_each(listen_on_a_port);
        let mut world = World {
            apis: nodes.iter().map(|_| None).collect(),
            addresses: Vec::new(),
            nodes,
            told: BTreeMap::new(),
            kept: Vec::new(),
            ledger: (0, 0),
            files: 0,
            rng: SmallRng::seed_from_u64(seed),
            kills: 0,
            _network: network,
        };
        for node in LEDGER..HOSTS.end {
            world.nodes[node].start();
            world.apis[node] = Some(Api::of(&world.nodes[node]));
            let address = text(&world.nodes[node].json(&["wallet", "address"]), "address").to_owned();
            world.addresses.push(address);
        }
        world.nodes[LEDGER].json(&["wallet", "send", &world.addresses[RENTER], FUNDS]);
        for (price, host) in HOSTS.enumerate() {
            world.nodes[host].json(&[
                "host",
                "start",
                "--price",
                &format!("0.01{price}"),
                "--capacity",
                "4GiB",
            ]);
        }
        world
    }

    /// What a node is called.
    pub fn name(node: usize) -> String {
        match node {
            LEDGER => "the ledger".into(),
            RENTER => "the renter".into(),
            host => format!("host {}", host - HOSTS.start + 1),
        }
    }

    /// Asks a running node; the answer must be good.
    pub fn ask(&self, node: usize, path: &str, request: &Value) -> Value {
        let api = self.apis[node].as_ref().expect("the node runs");
        let answer = api.call(path, request);
        assert_eq!(answer.status, 200, "{}, asked for {path}: {}", World::name(node), answer.text());
        answer.json()
    }

    /// Runs a command on a node.
    pub fn command(&self, node: usize, arguments: &[&str]) -> Value {
        self.nodes[node].json(arguments)
    }

    /// Asks a renter or host for its agreements, and holds it to what it told before.
    pub fn agreements(&mut self, node: usize) -> Vec<Value> {
        let (found, id) = match node {
            RENTER => {
                let answer = self.ask(RENTER, "store/ls", &json!({}));
                let places = |thing: &Value| list(thing, "places").to_vec();
                (list(&answer, "things").iter().flat_map(places).collect::<Vec<_>>(), "agreement")
            }
            _ => (list(&self.ask(node, "host/status", &json!({})), "agreements").to_vec(), "id"),
        };
        for agreement in &found {
            let told = Told {
                state: text(agreement, "state").to_owned(),
                earned: btt(&agreement["earned_btt"]),
                redeemed: btt(&agreement["redeemed_btt"]),
            };
            let key = (node, text(agreement, id).to_owned());
            if let Some(old) = self.told.get(&key) {
                let kept = may_follow(&old.state, &told.state)
                    && told.earned >= old.earned
                    && told.redeemed >= old.redeemed;
                assert!(kept, "{} said {old:?} of {}, and now {told:?}", World::name(node), key.1);
            }
            self.told.insert(key, told);
        }
        let known = self.told.keys().filter(|(of, _)| *of == node).count();
        assert_eq!(found.len(), known, "{} has forgotten agreements", World::name(node));
        found
    }

    /// SIGKILL; what the node has on disk then.
    pub fn kill(&mut self, node: usize, when: &str) -> Durable {
        self.apis[node] = None;
        self.nodes[node].kill();
        self.kills += 1;
        let durable = Durable::read(&self.nodes[node].repo());
        println!("kill {:2}: {} {when}; on disk: {}", self.kills, World::name(node), durable.told());
        durable
    }

    /// Starts a killed node again. At once it must know all that it told before.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node].start();
        self.apis[node] = Some(Api::of(&self.nodes[node]));
        if node != LEDGER {
            self.agreements(node);
        }
        self.check_ledger();
    }

    /// The supply is what it was, and neither events nor time have gone back.
    pub fn check_ledger(&mut self) {
        let status = self.ask(LEDGER, "ledger/status", &json!({}));
        assert_eq!(text(&status, "supply_btt"), SUPPLY);
        let number = |name: &str| status[name].as_u64().expect("a number");
        let now = (number("seq"), number("time"));
        assert!(
            now.0 >= self.ledger.0 && now.1 >= self.ledger.1,
            "the ledger was at {:?}: {status}",
            self.ledger
        );
        self.ledger = now;
    }

    /// What the ledger says a node's account has.
    pub fn balance(&self, node: usize) -> Btt {
        btt(&self.ask(LEDGER, "wallet/balance", &json!({ "address": self.addresses[node] }))["balance_btt"])
    }

    /// Starts to store a new file with all hosts.
    pub fn order(&mut self) -> Order {
        self.files += 1;
        let file = self.nodes[RENTER].file(&format!("file-{}", self.files));
        random_file(&file, FILE_SIZE, self.rng.random());
        let term = format!("{TERM}d");
        let path = file.display().to_string();
        let child = self.nodes[RENTER]
            .command(&["store", "add", &path, "--for", &term, "--redundancy", "2+1", "--yes", "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("btfs runs");
        Order { child, sha256: sha256(&file), file }
    }

    /// Waits for the end of an order: it is stored, or said why not.
    pub fn ended(&mut self, mut order: Order) -> bool {
        until("`store add` ends", || order.is_over().then_some(()));
        let output = order.child.wait_with_output().expect("our own child");
        std::fs::remove_file(&order.file).expect("the file is there");
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            assert_eq!(output.status.code(), Some(1), "{told}");
            assert!(!told.is_empty(), "`store add` failed without a word");
            println!("         `store add`: {}", told.replace('\n', " "));
        }
        if output.stdout.is_empty() {
            assert!(!output.status.success(), "`store add` told nothing");
            return false;
        }
        let thing: Value = serde_json::from_slice(&output.stdout).expect("an answer");
        self.kept.push((text(&thing, "root").to_owned(), order.sha256));
        let failed = list(&thing, "places").iter().filter(|place| text(place, "state") == "failed").count();
        let active = list(&thing, "places").iter().filter(|place| text(place, "state") == "active").count();
        assert_eq!(output.status.success(), text(&thing, "state") == "active", "{thing}");
        if output.status.success() {
            assert_eq!(active, HOSTS.len(), "{thing}");
        } else {
            println!("         `store add`: {active} active, {failed} failed: {}", thing["problem"]);
            assert!(thing["problem"].is_string(), "incomplete without a word: {thing}");
        }
        for place in list(&thing, "places") {
            let id = text(place, "agreement").to_owned();
            let told =
                Told { state: text(place, "state").to_owned(), earned: Btt::ZERO, redeemed: Btt::ZERO };
            self.told.insert((RENTER, id), told);
        }
        true
    }

    /// Waits until nothing is being placed any more; what is not whole says why.
    pub fn placed(&mut self) {
        let things = until("everything is placed", || {
            let answer = self.ask(RENTER, "store/ls", &json!({}));
            list(&answer, "things").iter().all(|thing| text(thing, "state") != "placing").then_some(answer)
        });
        for thing in list(&things, "things").iter().filter(|thing| text(thing, "state") == "incomplete") {
            assert!(thing["problem"].is_string(), "incomplete without a word: {thing}");
        }
    }

    /// Everything that can be known of the books while all nodes run.
    pub fn check(&mut self) {
        self.check_ledger();
        for place in self.agreements(RENTER) {
            let days = place["days_proven"].as_u64().expect("a number");
            let due = btt(&place["epoch_price_btt"]).checked_mul(days).expect("a price");
            assert_eq!(btt(&place["earned_btt"]), due, "a voucher for what was proven: {place}");
        }
        for host in HOSTS {
            let redeemed = sum(self.agreements(host).iter().map(|a| btt(&a["redeemed_btt"])));
            let balance = self.balance(host);
            let after = self.agreements(host);
            let earned = sum(after.iter().map(|a| btt(&a["earned_btt"])));
            assert!(redeemed <= balance && balance <= earned, "{redeemed} <= {balance} <= {earned}");
            for agreement in after {
                let days = agreement["epochs_proven"].as_u64().expect("a number");
                let most = btt(&agreement["epoch_price_btt"]).checked_mul(days).expect("a price");
                assert!(btt(&agreement["earned_btt"]) <= most, "paid for more than was proven: {agreement}");
            }
        }
        let pins = self.ask(RENTER, "pin/ls", &json!({})).to_string();
        assert!(self.kept.iter().all(|(cid, _)| pins.contains(cid)), "a pin is gone: {pins}");
    }

    /// One of the acknowledged files reads back whole.
    pub fn read_back(&mut self) {
        if self.kept.is_empty() {
            return;
        }
        let (cid, expected) = self.kept[self.rng.random_range(0..self.kept.len())].clone();
        let target = self.nodes[RENTER].file("read-back");
        self.command(RENTER, &["get", &cid, "--output", &target.display().to_string()]);
        assert_eq!(sha256(&target), expected, "{cid}");
        std::fs::remove_file(&target).expect("the file is there");
    }

    /// Steps the ledger's clock by a day; its time then.
    pub fn step(&self) -> u64 {
        self.command(LEDGER, &["ledger", "step", "1d"])["time"].as_u64().expect("a time")
    }

    /// Whether the renter knows of `time`, and whether its work of then is done.
    pub fn work(&self, time: u64) -> (bool, bool) {
        let work = self.ask(RENTER, "market/work", &json!({ "through": time }));
        (work["now"].as_u64().is_some_and(|now| now >= time), work["done"] == true)
    }

    /// Waits until the renter has done what is due by `time`.
    pub fn worked(&self, time: u64) {
        until("the day's work is done", || self.work(time).1.then_some(()));
    }

    /// Days go by until all is over: paid out, released, freed.
    pub fn close(&mut self) {
        /// The term, the window of the locks, and some days on top.
        const MOST: u32 = TERM + 14;
        for day in 1..=MOST {
            let time = self.step();
            self.worked(time);
            if self.settled() {
                println!("all is settled {day} days later");
                return;
            }
        }
        let things = self.ask(RENTER, "store/ls", &json!({}));
        panic!("not settled after {MOST} days: {things:#}");
    }

    /// Whether no money is on its way any more: what the renter does not have, the hosts have.
    fn settled(&mut self) -> bool {
        let over = |a: &Value| matches!(text(a, "state"), "done" | "failed");
        if !(RENTER..HOSTS.end).all(|node| self.agreements(node).iter().all(over)) {
            return false;
        }
        let free = HOSTS.into_iter().all(|host| self.ask(host, "host/status", &json!({}))["used_bytes"] == 0);
        let all = sum((RENTER..HOSTS.end).map(|node| self.balance(node)));
        free && all == FUNDS.parse().expect("an amount")
    }

    /// Renter, host and ledger agree on every amount.
    pub fn check_end(&mut self) {
        let places = self.agreements(RENTER);
        for host in HOSTS {
            let held = self.agreements(host);
            for agreement in &held {
                let id = text(agreement, "id");
                let place = places.iter().find(|place| text(place, "agreement") == id);
                let place = place.unwrap_or_else(|| panic!("the renter does not know {agreement}"));
                assert_eq!(agreement["earned_btt"], place["earned_btt"], "{agreement} {place}");
                assert_eq!(agreement["earned_btt"], agreement["redeemed_btt"], "{agreement}");
            }
            let redeemed = sum(held.iter().map(|a| btt(&a["redeemed_btt"])));
            assert_eq!(redeemed, self.balance(host), "{}", World::name(host));
            println!("{} was paid {redeemed} BTT for {} agreements", World::name(host), held.len());
        }
    }

    /// Waits for a random moment of the next `span`.
    pub fn random_moment(&mut self, span: std::time::Duration) {
        let moment = Instant::now() + span.mul_f64(self.rng.random());
        assert!(span < PATIENCE, "{span:?}");
        std::thread::sleep(moment.saturating_duration_since(Instant::now()));
    }
}
