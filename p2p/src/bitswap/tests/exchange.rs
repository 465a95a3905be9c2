//! Honest peers.

use std::time::Instant;

use super::*;
use btfs_storage::hash::{BT_PIECES_ROOT, HashError, RAW, cid_from_digest, cid_v1};

#[test]
fn sixty_four_mib_between_two_peers() {
    run(async {
        let (server, getter) = (Node::start().await, Node::start().await);
        let cids = server.fill(1, 256, 256 << 10);
        getter.swarm.connect(&server.swarm).await;
        let session = getter.bitswap.session(vec![server.peer()]);
        let start = Instant::now();
        assert_eq!(fetch_all(&session, &cids, 1024).await.unwrap(), 64 << 20);
        let seconds = start.elapsed().as_secs_f64();
        println!("64 MiB in {seconds:.3} s, {:.0} MiB/s", 64.0 / seconds);
        assert_eq!(session.asked(), [server.peer()]);
        let stats = getter.bitswap.stats();
        assert_eq!((stats.traffic.blocks_received, stats.duplicate_blocks, stats.wants), (256, 0, 0));
        assert_eq!(getter.bitswap.peer_traffic(&server.peer()).unwrap().bytes_received, 64 << 20);
    });
}

#[test]
fn thousands_of_small_blocks_and_some_of_the_largest() {
    run(async {
        let (server, getter) = (Node::start().await, Node::start().await);
        let mut cids = server.fill(1, 20_000, 900);
        cids.extend(server.fill(2, 10, btfs_storage::MAX_BLOCK));
        getter.swarm.connect(&server.swarm).await;
        let session = getter.bitswap.session(vec![server.peer()]);
        let start = Instant::now();
        let bytes = fetch_all(&session, &cids, 6000).await.unwrap();
        println!("{} blocks, {bytes} bytes in {:.3} s", cids.len(), start.elapsed().as_secs_f64());
        assert_eq!(getter.bitswap.stats().duplicate_blocks, 0);
    });
}

#[test]
fn four_peers_that_hold_a_quarter_each() {
    run(async {
        let getter = Node::start().await;
        let mut servers = Vec::new();
        let mut cids = Vec::new();
        for seed in 0..4 {
            let server = Node::start().await;
            cids.extend(server.fill(seed, 64, 64 << 10));
            getter.swarm.connect(&server.swarm).await;
            servers.push(server);
        }
        // Interleaved, as the columns of a stripe are.
        let cids: Vec<Cid> = (0..256).map(|n| cids[(n % 4) * 64 + n / 4]).collect();
        let session = getter.bitswap.session(servers.iter().map(Node::peer).collect());
        assert_eq!(fetch_all(&session, &cids, 100).await.unwrap(), 256 * (64 << 10));
        let stats = getter.bitswap.stats();
        assert_eq!((stats.traffic.blocks_received, stats.duplicate_blocks), (256, 0));
        assert_eq!(session.asked().len(), 4);
    });
}

#[test]
fn four_peers_that_hold_everything_share_the_work() {
    run(async {
        let getter = Node::start().await;
        let mut servers = Vec::new();
        let mut cids = Vec::new();
        for _ in 0..4 {
            let server = Node::start().await;
            cids = server.fill(9, 512, 64 << 10);
            getter.swarm.connect(&server.swarm).await;
            servers.push(server);
        }
        let session = getter.bitswap.session(servers.iter().map(Node::peer).collect());
        fetch_all(&session, &cids, 512).await.unwrap();
        let stats = getter.bitswap.stats();
        assert!(stats.traffic.blocks_received < 530, "hardly a duplicate: {stats:?}");
        for server in &servers {
            let sent = server.bitswap.stats().traffic.blocks_sent;
            assert!(sent > 0, "each takes part");
        }
    });
}

#[test]
fn absent_blocks_are_refused_or_come_when_they_are_stored() {
    run(async {
        let (server, getter) = (Node::start().await, Node::start().await);
        getter.swarm.connect(&server.swarm).await;
        let session = getter.bitswap.session(vec![server.peer()]);
        let data = block(1, 1, 5000);
        let cid = cid_v1(RAW, &data);
        assert_eq!(session.try_get(cid).await, Err(FetchError::NotFound { cid, asked: vec![server.peer()] }));
        let waiting = tokio::spawn({
            let session = session.clone();
            async move { session.get(cid).await }
        });
        session.starved().await;
        server.blocks.add(data.clone());
        server.bitswap.notify_stored(&[cid]);
        assert_eq!(waiting.await.unwrap().unwrap(), data);
    });
}

#[test]
fn a_session_without_peers_refuses_or_waits_for_one() {
    run(async {
        let (server, getter) = (Node::start().await, Node::start().await);
        let cid = server.fill(1, 1, 100)[0];
        getter.swarm.connect(&server.swarm).await;
        let session = getter.bitswap.session(vec![]);
        assert_eq!(session.try_get(cid).await, Err(FetchError::NotFound { cid, asked: vec![] }));
        let (found, ()) = tokio::join!(session.get(cid), async {
            session.starved().await;
            assert!(session.add_peer(server.peer()));
        });
        assert_eq!(found.unwrap().len(), 100);
    });
}

#[test]
fn identity_resolves_itself_and_foreign_hashes_are_refused() {
    run(async {
        let getter = Node::start().await;
        let session = getter.bitswap.session(vec![]);
        assert_eq!(session.get(cid_from_digest(RAW, 0, b"inline")).await.unwrap(), "inline");
        let cid = cid_from_digest(RAW, BT_PIECES_ROOT, &[1; 32]);
        assert_eq!(session.get(cid).await, Err(HashError::Unsupported { cid, code: BT_PIECES_ROOT }.into()));
    });
}

#[test]
fn withheld_blocks_look_absent_and_wants_are_reported() {
    run(async {
        let (server, getter) = (Node::start().await, Node::start().await);
        let cids = server.fill(1, 2, 3000);
        server.policy.withheld.lock().insert(cids[0]);
        getter.swarm.connect(&server.swarm).await;
        let session = getter.bitswap.session(vec![server.peer()]);
        assert!(matches!(session.try_get(cids[0]).await, Err(FetchError::NotFound { .. })));
        assert!(session.try_get(cids[1]).await.is_ok());
        let wanted = server.policy.wanted.lock().clone();
        assert_eq!(wanted, [(getter.peer(), cids[0]), (getter.peer(), cids[1])]);
    });
}

#[test]
fn the_same_block_for_two_sessions_travels_once() {
    run(async {
        let (server, getter) = (Node::start().await, Node::start().await);
        getter.swarm.connect(&server.swarm).await;
        let sessions = [0, 1].map(|_| getter.bitswap.session(vec![server.peer()]));
        let data = block(1, 1, 50_000);
        let cid = cid_v1(RAW, &data);
        let (one, two, ()) = tokio::join!(sessions[0].get(cid), sessions[1].get(cid), async {
            sessions[0].starved().await;
            sessions[1].starved().await;
            server.blocks.add(data.clone());
            server.bitswap.notify_stored(&[cid]);
        });
        assert_eq!((one.unwrap(), two.unwrap()), (data.clone().into(), data.into()));
        assert_eq!(getter.bitswap.stats().traffic.blocks_received, 1);
    });
}

#[test]
fn dropping_a_get_withdraws_the_want() {
    run(async {
        let (server, getter) = (Node::start().await, Node::start().await);
        getter.swarm.connect(&server.swarm).await;
        let session = getter.bitswap.session(vec![server.peer()]);
        let cid = cid_v1(RAW, b"nobody has this");
        let get = tokio::spawn({
            let session = session.clone();
            async move { session.get(cid).await }
        });
        eventually(|| server.bitswap.wantlist_of(&getter.peer()) == [cid]).await;
        get.abort();
        eventually(|| server.bitswap.wantlist_of(&getter.peer()).is_empty()).await;
        assert!(getter.bitswap.wantlist().is_empty());
    });
}

#[test]
fn a_peer_that_leaves_in_the_middle_is_replaced() {
    run(async {
        let (one, two, getter) = (Node::start().await, Node::start().await, Node::start().await);
        let cids = one.fill(1, 400, 64 << 10);
        two.fill(1, 400, 64 << 10);
        getter.swarm.connect(&one.swarm).await;
        getter.swarm.connect(&two.swarm).await;
        let session = getter.bitswap.session(vec![one.peer(), two.peer()]);
        let fetched = tokio::spawn({
            let (session, cids) = (session.clone(), cids.clone());
            async move { fetch_all(&session, &cids, 200).await }
        });
        eventually(|| getter.bitswap.stats().traffic.blocks_received > 50).await;
        one.swarm.hang_up(&getter.swarm).await;
        assert_eq!(fetched.await.unwrap().unwrap(), 400 * (64 << 10));
    });
}

#[test]
fn a_get_outlives_its_connection() {
    run(async {
        let (server, getter) = (Node::start().await, Node::start().await);
        let cids = server.fill(1, 400, 64 << 10);
        getter.swarm.connect(&server.swarm).await;
        let session = getter.bitswap.session(vec![server.peer()]);
        let fetched = tokio::spawn({
            let (session, cids) = (session.clone(), cids.clone());
            async move { fetch_all(&session, &cids, 400).await }
        });
        eventually(|| getter.bitswap.stats().traffic.blocks_received > 50).await;
        getter.swarm.hang_up(&server.swarm).await;
        getter.swarm.connect(&server.swarm).await;
        assert_eq!(fetched.await.unwrap().unwrap(), 400 * (64 << 10));
    });
}

#[test]
fn when_the_swarm_goes_gets_end() {
    run(async {
        let Node { swarm, bitswap, .. } = Node::start().await;
        let session = bitswap.session(vec![]);
        let get = tokio::spawn(async move { session.get(cid_v1(RAW, b"x")).await });
        eventually(|| bitswap.stats().wants == 1).await;
        drop(swarm);
        assert_eq!(get.await.unwrap(), Err(FetchError::Closed));
    });
}
