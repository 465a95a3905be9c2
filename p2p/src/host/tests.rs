//! Real swarms on loopback.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use btfs_storage::hash::{RAW, cid_v1};
use btfs_storage::{BlockSink, Class, Quota, Store, StoreOptions};
use futures::StreamExt;
use libp2p::multiaddr::Protocol;
use tempfile::TempDir;
use tokio::sync::Semaphore;

use super::*;
use crate::config::Network;
use crate::rpc::{MAX_CONCURRENT_PER_PEER, RpcHandler};

/// Far above what anything here takes: a test that hangs fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn store(path: &Path) -> Store {
    let options = StoreOptions {
        path: path.to_owned(),
        tables: persist::TABLES.to_vec(),
        quota: Quota::default(),
        reserve_bytes: 0,
    };
    Store::open(options).unwrap()
}

fn config(secret: u8, store: Store) -> HostConfig {
    HostConfig {
        listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
        network: "test".parse::<Network>().unwrap(),
        ..HostConfig::new([secret; 32], store)
    }
}

/// A host with a fresh store.
async fn host(secret: u8, change: impl FnOnce(&mut HostConfig)) -> (Host, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(secret, store(dir.path()));
    change(&mut config);
    (Host::start(config).await.unwrap(), dir)
}

async fn address(host: &Host) -> Multiaddr {
    host.listeners().await[0].clone().with(Protocol::P2p(host.peer_id()))
}

async fn until(host: &Host, condition: impl FnMut(&Connectivity) -> bool) {
    let mut connectivity = host.connectivity();
    tokio::time::timeout(PATIENCE, connectivity.wait_for(condition)).await.unwrap().unwrap();
}

async fn providers(host: &Host, cid: Cid) -> Vec<PeerId> {
    tokio::time::timeout(PATIENCE, host.find_providers(cid, 10).collect()).await.unwrap()
}

#[tokio::test]
async fn a_provider_is_found_through_a_third_host() {
    let (hub, _a) = host(1, |_| {}).await;
    let hub_address = address(&hub).await;
    let (provider, _b) = host(2, |c| c.bootstrap = vec![hub_address.clone()]).await;
    let (seeker, _c) = host(3, |c| c.bootstrap = vec![hub_address]).await;
    for host in [&provider, &seeker] {
        until(host, |c| c.routing_peers > 0).await;
    }
    let cid = cid_v1(RAW, b"something");
    assert_eq!(provider.provide(*cid.hash()).await.unwrap(), Provided::Announced);
    assert_eq!(providers(&seeker, cid).await, [provider.peer_id()]);
    let peers = seeker.peers().await;
    assert!(peers.iter().any(|info| info.peer == provider.peer_id()), "found means connected: {peers:?}");
    assert_eq!(providers(&provider, cid).await, [], "a host does not find itself");
    assert!(hub.bootstrap_state().await.provider_records >= 1);

    // By id alone, through the DHT: the hub knows where the seeker is.
    let (fourth, _d) = host(4, |_| {}).await;
    fourth.connect(address(&hub).await).await.unwrap();
    until(&fourth, |c| c.routing_peers > 0).await;
    fourth.connect_peer(seeker.peer_id()).await.unwrap();
    assert!(!fourth.find_peer(provider.peer_id()).await.is_empty());
    assert!(matches!(fourth.connect_peer(PeerId::random()).await, Err(ConnectError::NoAddress(_))));
}

#[tokio::test]
async fn a_key_waits_for_the_first_peer() {
    let (provider, _a) = host(1, |_| {}).await;
    let cid = cid_v1(RAW, b"early");
    assert_eq!(provider.provide(*cid.hash()).await.unwrap(), Provided::Queued);
    let (seeker, _b) = host(2, |_| {}).await;
    seeker.connect(address(&provider).await).await.unwrap();
    until(&provider, |c| c.announcements == 1).await;
    assert_eq!(providers(&seeker, cid).await, [provider.peer_id()]);
    provider.unprovide(*cid.hash()).await.unwrap();
    assert_eq!(provider.bootstrap_state().await.provided, 0);
}

#[tokio::test]
async fn records_addresses_and_own_keys_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Host::start(config(1, store(dir.path()))).await.unwrap();
    let hub_address = address(&hub).await;
    let (provider, _b) = host(2, |_| {}).await;
    provider.connect(hub_address.clone()).await.unwrap();
    until(&provider, |c| c.routing_peers > 0).await;
    let (theirs, ours) = (cid_v1(RAW, b"theirs"), cid_v1(RAW, b"ours"));
    provider.provide(*theirs.hash()).await.unwrap();
    hub.provide(*ours.hash()).await.unwrap();
    let (witness, _c) = host(3, |_| {}).await;
    witness.connect(hub_address.clone()).await.unwrap();
    assert_eq!(providers(&witness, theirs).await, [provider.peer_id()]);
    hub.shutdown().await;
    assert!(matches!(hub.connect(hub_address).await, Err(ConnectError::Closed)));
    drop(hub);

    let hub = Host::start(config(1, store(dir.path()))).await.unwrap();
    let state = hub.bootstrap_state().await;
    assert_eq!((state.provider_records, state.provided), (1, 1));
    // The address book brings it back to its peers without any bootstrap address.
    until(&hub, |c| c.peers > 0).await;
    let (seeker, _d) = host(4, |_| {}).await;
    seeker.connect(address(&hub).await).await.unwrap();
    until(&seeker, |c| c.routing_peers > 0).await;
    assert_eq!(providers(&seeker, theirs).await, [provider.peer_id()]);
    assert_eq!(providers(&seeker, ours).await, [hub.peer_id()]);
}

#[tokio::test]
async fn a_lost_bootstrap_peer_is_reconnected() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Host::start(config(1, store(dir.path()))).await.unwrap();
    let (listen, hub_address) = (hub.listeners().await, address(&hub).await);
    let (host, _b) = host(2, |c| c.bootstrap = vec![hub_address]).await;
    until(&host, |c| c.peers == 1).await;
    hub.shutdown().await;
    drop(hub);
    until(&host, |c| c.peers == 0).await;
    let hub = Host::start(HostConfig { listen, ..config(1, store(dir.path())) }).await.unwrap();
    until(&host, |c| c.peers == 1).await;
    assert_eq!(host.peers().await[0].peer, hub.peer_id());
}

#[tokio::test]
async fn a_peer_that_moved_is_found_again() {
    let (hub, _a) = host(1, |_| {}).await;
    let hub_address = address(&hub).await;
    let (_, service) = puppet();
    let dir = tempfile::tempdir().unwrap();
    let mut server = config(2, store(dir.path()));
    server.bootstrap = vec![hub_address.clone()];
    server.rpc = vec![service.clone()];
    let first = Host::start(server.clone()).await.unwrap();
    let (client, _b) = host(3, |c| c.bootstrap = vec![hub_address.clone()]).await;
    client.connect(address(&first).await).await.unwrap();
    until(&client, |c| c.routing_peers == 2).await;
    first.shutdown().await;
    drop((first, server));
    until(&client, |c| c.peers == 1).await;

    // The same peer on another port.
    let mut server = config(2, store(dir.path()));
    server.bootstrap = vec![hub_address];
    server.rpc = vec![service];
    let second = Host::start(server).await.unwrap();
    until(&second, |c| c.routing_peers > 0).await;
    client.call(second.peer_id(), "/test/puppet/1", b"x".to_vec(), PATIENCE).await.unwrap();
}

#[tokio::test]
async fn both_transports_connect_and_bad_dials_say_why() {
    let (server, _a) = host(1, |c| c.listen.push("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap())).await;
    let (client, _b) = host(2, |_| {}).await;
    let listeners = server.listeners().await;
    assert_eq!(listeners.len(), 2);
    for listener in &listeners {
        let full = listener.clone().with(Protocol::P2p(server.peer_id()));
        assert_eq!(client.connect(full).await.unwrap(), server.peer_id());
        assert_eq!(client.peers().await[0].peer, server.peer_id());
        assert!(client.disconnect(server.peer_id()).await);
        until(&client, |c| c.peers == 0).await;
        // Without an id, whoever answers is taken.
        assert_eq!(client.connect(listener.clone()).await.unwrap(), server.peer_id());
        client.disconnect(server.peer_id()).await;
        until(&client, |c| c.peers == 0).await;
    }
    let wrong = listeners[0].clone().with(Protocol::P2p(PeerId::random()));
    let error = client.connect(wrong).await.unwrap_err().to_string();
    assert!(error.contains(&server.peer_id().to_string()), "{error}");
    let nobody = "/ip4/127.0.0.1/tcp/1".parse().unwrap();
    let error = client.connect(nobody).await.unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
    assert!(matches!(client.connect(address(&client).await).await, Err(ConnectError::Oneself)));
}

#[tokio::test]
async fn a_taken_port_is_an_error_of_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(1, store(dir.path()));
    config.listen = vec![format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()];
    let error = Host::start(config).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, StartError::Listen { .. }), "{error}");
}

#[tokio::test]
async fn blocks_are_found_and_fetched_over_both_transports() {
    let (hub, _a) = host(1, |_| {}).await;
    let hub_address = address(&hub).await;
    let dir = tempfile::tempdir().unwrap();
    let blocks = store(dir.path());
    let leaves: Vec<Vec<u8>> = (0..64u8).map(|n| vec![n; 1 << 20]).collect();
    let mut ingest = blocks.ingest(Class::Own).unwrap();
    for leaf in &leaves {
        ingest.put(&cid_v1(RAW, leaf), leaf.clone().into()).unwrap();
    }
    ingest.finish(blocks.state().batch()).unwrap();
    let mut holder = config(2, blocks);
    holder.bootstrap = vec![hub_address.clone()];
    holder.listen.push("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap());
    let holder = Host::start(holder).await.unwrap();
    until(&holder, |c| c.routing_peers > 0).await;
    let root = cid_v1(RAW, &leaves[0]);
    holder.provide(*root.hash()).await.unwrap();

    let (seeker, _b) = host(3, |c| c.bootstrap = vec![hub_address]).await;
    let found = providers(&seeker, root).await;
    assert_eq!(found, [holder.peer_id()]);
    fetch_all(&seeker, holder.peer_id(), &leaves).await;

    let (other, _c) = host(4, |_| {}).await;
    let quic = holder.listeners().await.into_iter().find(|a| a.to_string().contains("quic")).unwrap();
    let peer = other.connect(quic).await.unwrap();
    fetch_all(&other, peer, &leaves).await;
}

async fn fetch_all(host: &Host, from: PeerId, leaves: &[Vec<u8>]) {
    let session = host.bitswap().session(vec![from]);
    let fetched = leaves.iter().map(|leaf| session.get(cid_v1(RAW, leaf)));
    let fetched =
        tokio::time::timeout(PATIENCE, futures::future::try_join_all(fetched)).await.unwrap().unwrap();
    assert!(fetched.iter().zip(leaves).all(|(fetched, leaf)| fetched == leaf));
}

/// Does what the request says.
struct Puppet {
    running: AtomicUsize,
    most: AtomicUsize,
    gate: Semaphore,
}

#[async_trait]
impl RpcHandler for Puppet {
    async fn handle(&self, peer: PeerId, request: Vec<u8>) -> Result<Vec<u8>, String> {
        match request.first() {
            Some(b'e') => Err("no, thank you".to_owned()),
            Some(b'l') => Ok(vec![0; 5000]),
            Some(b'w') => {
                let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
                self.most.fetch_max(running, Ordering::SeqCst);
                let permit = self.gate.acquire().await.map_err(|e| e.to_string())?;
                drop(permit);
                self.running.fetch_sub(1, Ordering::SeqCst);
                Ok(b"at last".to_vec())
            }
            _ => Ok([&request, &peer.to_bytes()[..]].concat()),
        }
    }
}

fn puppet() -> (Arc<Puppet>, RpcService) {
    let puppet = Arc::new(Puppet { running: 0.into(), most: 0.into(), gate: Semaphore::new(0) });
    let service = RpcService {
        protocol: "/test/puppet/1",
        max_request: 1000,
        max_response: 4000,
        handler: puppet.clone(),
    };
    (puppet, service)
}

#[tokio::test]
async fn rpc_answers_refusals_and_caps() {
    let (_, service) = puppet();
    let (server, _a) = host(1, |c| c.rpc = vec![service.clone()]).await;
    let (client, _b) = host(2, |_| {}).await;
    let call = |request: Vec<u8>| client.call(server.peer_id(), "/test/puppet/1", request, PATIENCE);

    assert!(matches!(call(b"x".to_vec()).await, Err(RpcError::Unreachable { .. })));
    client.connect(address(&server).await).await.unwrap();
    let answer = call(b"hello".to_vec()).await.unwrap();
    assert_eq!(answer, [b"hello", &client.peer_id().to_bytes()[..]].concat());
    match call(b"e".to_vec()).await {
        Err(RpcError::Refused { message, .. }) => assert_eq!(message, "no, thank you"),
        other => panic!("{other:?}"),
    }
    match call(vec![0; 1001]).await {
        Err(RpcError::Refused { message, .. }) => assert!(message.contains("1000"), "{message}"),
        other => panic!("{other:?}"),
    }
    match call(b"l".to_vec()).await {
        Err(RpcError::Refused { message, .. }) => assert!(message.contains("4000"), "{message}"),
        other => panic!("{other:?}"),
    }
    let unknown = client.call(server.peer_id(), "/test/other/1", vec![], PATIENCE).await;
    assert!(matches!(unknown, Err(RpcError::Unsupported { .. })), "{unknown:?}");
    let own = client.call(client.peer_id(), "/test/puppet/1", vec![], PATIENCE).await;
    assert!(matches!(own, Err(RpcError::Unreachable { .. })), "{own:?}");

    // One that serves the protocol itself knows the cap and does not send.
    let (peer, _c) = host(3, |c| c.rpc = vec![service]).await;
    let answer = peer.call(server.peer_id(), "/test/puppet/1", vec![0; 1001], PATIENCE).await;
    assert!(matches!(answer, Err(RpcError::TooLarge { what: "request", .. })));
}

#[tokio::test]
async fn rpc_long_polls_are_bounded_and_rates_limited() {
    let (puppet, service) = puppet();
    let (server, _a) = host(1, |c| c.rpc = vec![service]).await;
    let (client, _b) = host(2, |_| {}).await;
    client.connect(address(&server).await).await.unwrap();
    let call = |request: &'static [u8]| {
        let (client, peer) = (client.clone(), server.peer_id());
        tokio::spawn(async move { client.call_once(peer, "/test/puppet/1", request).await })
    };
    let polls: Vec<_> = (0..MAX_CONCURRENT_PER_PEER + 4).map(|_| call(b"w")).collect();
    let mut polls: futures::stream::FuturesUnordered<_> = polls.into_iter().collect();
    for _ in 0..4 {
        let refused = polls.next().await.unwrap().unwrap();
        assert!(matches!(refused, Err(RpcError::Busy { .. })), "{refused:?}");
    }
    // Another peer is still served.
    let (other, _c) = host(3, |_| {}).await;
    other.connect(address(&server).await).await.unwrap();
    other.call(server.peer_id(), "/test/puppet/1", b"x".to_vec(), PATIENCE).await.unwrap();
    let late = other.call(server.peer_id(), "/test/puppet/1", b"w".to_vec(), Duration::from_millis(50)).await;
    assert!(matches!(late, Err(RpcError::Timeout { .. })), "{late:?}");

    puppet.gate.add_permits(1000);
    while let Some(answer) = polls.next().await {
        assert_eq!(answer.unwrap().unwrap(), b"at last");
    }
    assert!(puppet.most.load(Ordering::SeqCst) <= MAX_CONCURRENT_PER_PEER + 1);

    // One call after the other is still far above the rate.
    let refused = loop {
        match client.call_once(server.peer_id(), "/test/puppet/1", b"x").await {
            Ok(_) => {}
            Err(RpcError::Busy { message, .. }) => break message,
            Err(other) => panic!("{other}"),
        }
    };
    assert!(refused.contains("rate"), "{refused}");
    // A call that has time waits for its turn.
    client.call(server.peer_id(), "/test/puppet/1", b"x".to_vec(), PATIENCE).await.unwrap();
}
