//! A small private network that rents: a ledger, a renter and hosts, each a process with a repo of its own.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use btfs_ledger::Btt;
use serde_json::{Value, json};

use crate::api::Api;
use crate::node::Node;

/// A day's work may take so long on a slow machine.
const WORK_TAKES: Duration = Duration::from_secs(120);
/// All the BTT of the network.
const SUPPLY: &str = "1000000";
/// What the renter has of it, in BTT.
pub const FUNDS: &str = "1000";

/// The network. Its processes end with it.
pub struct Network {
    /// Keeps the ledger and the bootstrap address.
    pub ledger: Node,
    /// Stores things with the hosts.
    pub renter: Node,
    /// Rent out disk; the first is the cheapest.
    pub hosts: Vec<Node>,
}

/// A free TCP port below those that the system hands out by itself, so that no connection takes it before it is used.
fn free_port() -> u16 {
    use rand::RngExt;
    let mut ports = std::iter::repeat_with(|| rand::rng().random_range(10_000..32_000)).take(100);
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(free).expect("a free TCP port")
}

/// Makes a node listen on one TCP port alone, the same after a restart: others find it again without a lookup, and
/// when it is gone the port refuses at once, where QUIC would wait for its silence.
pub fn listen_on_a_port(node: &Node) {
    node.json(&["config", "set", "swarm.listen", &format!("[\"/ip4/127.0.0.1/tcp/{}\"]", free_port())]);
}

/// An amount of BTT in an answer.
pub fn btt(value: &Value) -> Btt {
    let text = value.as_str().unwrap_or_else(|| panic!("{value} is not an amount"));
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// A list in an answer.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is not a list"))
}

/// A text in an answer.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a text"))
}

/// A count in an answer.
pub fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a count"))
}

impl Network {
    /// Starts the ledger, a funded renter, and `hosts` hosts that offer space.
    pub fn start(hosts: usize) -> Network {
        let mut ledger = Node::init(None);
        listen_on_a_port(&ledger);
        let file = ledger.file("network.toml");
        let out = file.to_str().expect("UTF-8");
        ledger.json(&["ledger", "init", "--supply", SUPPLY, "--name", "tested", "--local", "--out", out]);
        ledger.start();
        let mut renter = Node::init(Some(&file));
        listen_on_a_port(&renter);
        renter.start();
        let address = renter.json(&["wallet", "address"])["address"].clone();
        ledger.json(&["wallet", "send", text(&address), FUNDS]);
        let mut network = Network { ledger, renter, hosts: Vec::new() };
        for n in 0..hosts {
            let mut host = Node::init(Some(&file));
            listen_on_a_port(&host);
            host.start();
            host.json(&["host", "start", "--price", &format!("0.01{n}"), "--capacity", "1GiB"]);
            network.hosts.push(host);
        }
        network.hosts_are_known();
        network
    }

    /// Waits until the renter's market lists every host: a quote is made with those that are known by then.
    fn hosts_are_known(&self) {
        let (api, deadline) = (Api::of(&self.renter), Instant::now() + WORK_TAKES);
        while list(&api.call("market/ls", &json!({})).json()["hosts"]).len() < self.hosts.len() {
            assert!(Instant::now() < deadline, "not every host is known{}", self.renter.log_tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Moves the ledger's clock on by a day; the new time.
    pub fn step(&self) -> u64 {
        count(&self.ledger.json(&["ledger", "step", "1d"])["time"])
    }

    /// Settlement time.
    pub fn time(&self) -> u64 {
        count(&self.ledger.json(&["ledger", "status"])["time"])
    }

    /// Waits until every running node has done what is due by `time`.
    pub fn work_done(&self, time: u64) {
        let deadline = Instant::now() + WORK_TAKES;
        for node in self.hosts.iter().chain([&self.renter]).filter(|node| node.runs()) {
            let api = Api::of(node);
            while api.call("market/work", &json!({ "through": time })).json()["done"] != true {
                assert!(Instant::now() < deadline, "a day's work is not done by {time}{}", node.log_tail());
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// A day passes and its work is done.
    pub fn pass_day(&self) {
        self.work_done(self.step());
    }

    /// Days pass until `done` holds; fails after `most`. How many it took.
    pub fn pass_days_until(&self, most: u32, what: &str, mut done: impl FnMut(&Network) -> bool) -> u32 {
        for day in 1..=most {
            self.pass_day();
            if done(self) {
                return day;
            }
        }
        panic!("after {most} days: {what}")
    }

    /// Stores a file with a spread such as `["--redundancy", "2+4"]`; what became of it.
    pub fn store(&self, file: &Path, days: u32, spread: &[&str]) -> Value {
        let term = format!("{days}d");
        let mut arguments = vec!["store", "add", file.to_str().expect("UTF-8"), "--for", &term, "--yes"];
        arguments.extend(spread);
        let thing = self.renter.json(&arguments);
        let active = list(&thing["places"]).iter().all(|place| place["state"] == "active");
        assert!(active, "not every agreement is active: {thing}");
        thing
    }

    /// A stored thing as it stands, by the `id` of an earlier answer.
    pub fn again(&self, thing: &Value) -> Value {
        self.renter.json(&["store", "status", text(&thing["id"])])
    }

    /// The agreement of a thing with a host.
    pub fn place<'a>(&self, thing: &'a Value, host: usize) -> &'a Value {
        let key = self.hosts[host].json(&["id"])["public_key"].clone();
        let mut places = list(&thing["places"]).iter();
        places.find(|place| place["peer"] == key).unwrap_or_else(|| panic!("host {host} is not in {thing}"))
    }

    /// The balance of a node's account, as the ledger has it.
    pub fn balance(&self, node: &Node) -> Btt {
        let address = node.json(&["wallet", "address"])["address"].clone();
        btt(&self.ledger.json(&["wallet", "balance", text(&address)])["balance_btt"])
    }

    /// All BTT, summed anew.
    pub fn supply(&self) -> Btt {
        btt(&self.ledger.json(&["ledger", "status"])["supply_btt"])
    }
}

/// Opens the repo of a stopped node and removes the blocks that `lost` picks by number and size; how many.
pub fn lose_blocks(repo: PathBuf, mut lost: impl FnMut(usize, u64) -> bool) -> usize {
    use btfs_storage::{Quota, Store, StoreOptions};
    let options = StoreOptions { path: repo, tables: Vec::new(), quota: Quota::default(), reserve_bytes: 0 };
    let store = Store::open(options).expect("the repo opens");
    let blocks = store.blocks(None, 1 << 20).expect("its blocks are listed");
    let gone: Vec<_> = blocks
        .iter()
        .enumerate()
        .filter(|(at, block)| lost(*at, block.size))
        .map(|(_, block)| block.cid)
        .collect();
    for cid in &gone {
        assert!(store.remove(cid).expect("it is removed"));
    }
    store.close().expect("the repo closes");
    gone.len()
}
