//! Files between our node and Kubo, both ways, over TCP and over QUIC: real Bitswap between programs of different
//! makers.

use std::path::Path;

use btfs_tests::ipfs::IpfsDaemon;
use btfs_tests::node::{Node, random_file, sha256};

/// What each test sends: many blocks and, in either profile, more than one level of the DAG.
const FILE_SIZE: u64 = 64 << 20;

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of ours")
}

fn kubo_gets_from_us(transport: &str) {
    let mut node = Node::init(None);
    node.start();
    let file = node.file("ours");
    random_file(&file, FILE_SIZE, 1);
    let added = node.json(&["add", text(&file)]);
    let cid = added["cid"].as_str().expect("a CID");
    let kubo = IpfsDaemon::start();
    kubo.ipfs.run(&["swarm", "connect", &node.address(transport)]);
    let got = kubo.ipfs.file("got");
    kubo.ipfs.run(&["get", "-o", text(&got), cid]);
    assert_eq!(sha256(&got), sha256(&file));
    node.stop();
}

fn we_get_from_kubo(transport: &str) {
    let kubo = IpfsDaemon::start();
    let file = kubo.ipfs.file("theirs");
    random_file(&file, FILE_SIZE, 2);
    let cid = kubo.ipfs.text(&["add", "-Q", text(&file)]);
    let mut node = Node::init(None);
    node.start();
    node.json(&["swarm", "connect", &kubo.address(transport)]);
    let got = node.file("got");
    node.json(&["get", &cid, "--output", text(&got)]);
    assert_eq!(sha256(&got), sha256(&file));
    node.stop();
}

#[test]
fn kubo_gets_from_us_over_tcp() {
    kubo_gets_from_us("/tcp/");
}

#[test]
fn kubo_gets_from_us_over_quic() {
    kubo_gets_from_us("/quic-v1");
}

#[test]
fn we_get_from_kubo_over_tcp() {
    we_get_from_kubo("/tcp/");
}

#[test]
fn we_get_from_kubo_over_quic() {
    we_get_from_kubo("/quic-v1");
}
