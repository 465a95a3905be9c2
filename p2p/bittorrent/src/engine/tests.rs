//! Engines against each other and against scripted peers, on loopback.

mod fake;

use std::path::Path;
use std::sync::Arc;

use btfs_storage::import::{ImportOptions, Profile, import_path, import_path_observed};
use btfs_storage::{Quota, StoreOptions};
use sha1::{Digest, Sha1};
use tempfile::TempDir;

use self::fake::{FakePeer, Script};
use super::*;
use crate::create::Hasher;
use crate::metainfo::{FileEntry, FileKind};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A store in a directory of its own.
struct Home {
    dir: TempDir,
    store: Store,
}

fn open(path: &Path) -> Store {
    let options = StoreOptions {
        path: path.to_owned(),
        tables: records::TABLES.to_vec(),
        quota: Quota::default(),
        reserve_bytes: 0,
    };
    Store::open(options).unwrap()
}

impl Home {
    fn new() -> Home {
        // `RUST_LOG=btfs_bittorrent=debug` shows what happens; a second test in the process finds it set up.
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        Home { dir, store }
    }

    async fn engine(&self) -> Engine {
        Engine::start(EngineConfig::new(self.store.clone(), Some(LOOPBACK))).await.unwrap()
    }

    /// Closes the store and opens it again, as a restart does.
    fn reopen(self) -> Home {
        let Home { dir, store } = self;
        store.close().unwrap();
        let store = open(dir.path());
        Home { dir, store }
    }
}

/// Bytes that differ everywhere, so that nothing lands in the wrong place unnoticed.
fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Writes files below a directory; one file with an empty name is the content itself.
fn write_tree(files: &[(&str, Vec<u8>)]) -> (TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("content");
    for (name, data) in files {
        let path = if name.is_empty() { root.clone() } else { root.join(name) };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    }
    (dir, root)
}

/// Adds files as `btfs add --torrent` does, with a chosen piece length.
fn add(store: &Store, path: &Path, piece_length: u32) -> TorrentFile {
    let mut ingest = store.ingest(Class::Own).unwrap();
    let mut hasher = Hasher::new("content", piece_length);
    let options = ImportOptions::default();
    let done = import_path_observed(path, &Profile::V1_2025, &options, &mut ingest, &mut |_| {}, &mut hasher)
        .unwrap();
    let torrent = hasher.finish(done.root).unwrap();
    let mut batch = store.state().batch();
    torrent.record(store, &mut ingest, &mut batch).unwrap();
    ingest.finish(batch).unwrap();
    torrent
}

/// The CID that `btfs add` gives.
fn cid_of(path: &Path) -> Cid {
    let home = Home::new();
    let mut ingest = home.store.ingest(Class::Own).unwrap();
    let options = ImportOptions::default();
    import_path(path, &Profile::V1_2025, &options, &mut ingest, &mut |_| {}).unwrap().root
}

/// The root's bytes are all there and nothing of the download's bookkeeping is left.
fn check_whole(store: &Store, root: &Cid) {
    let walked: Result<Vec<_>, _> = btfs_storage::read::walk(store.clone(), root).collect();
    assert!(!walked.unwrap().is_empty());
    assert_eq!(store.state().scan(&records::LEAVES, &[]).count(), 0);
    assert!(store.pins_with_prefix("torrent-part:").unwrap().is_empty());
}

async fn transfer(files: &[(&str, Vec<u8>)], piece_length: u32) {
    let (_dir, path) = write_tree(files);
    let (seed_home, leech_home) = (Home::new(), Home::new());
    let torrent = add(&seed_home.store, &path, piece_length);
    let (seed, leech) = (seed_home.engine().await, leech_home.engine().await);
    let source = TorrentSource::Metainfo(torrent.encode());
    let peers = vec![seed.local_addr().unwrap()];
    let id = leech.add(source, peers, vec![], Order::RarestFirst).await.unwrap();
    assert_eq!(leech.wait_done(id).await.unwrap(), torrent.root);
    check_whole(&leech_home.store, &torrent.root);
    let status = leech.status(&id).unwrap();
    assert_eq!((status.pieces_stored, status.root), (torrent.info.piece_count(), Some(torrent.root)));
    leech.shutdown().await;
    seed.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_over_with_pieces_smaller_than_leaves() {
    transfer(&[("", bytes((5 << 20) + 12_345, 1))], 16 << 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_over_with_pieces_of_a_quarter_leaf() {
    transfer(&[("", bytes((7 << 20) + 1, 2))], 256 << 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_comes_over_with_pieces_larger_than_leaves() {
    transfer(&[("", bytes((13 << 20) - 7, 3))], 4 << 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tiny_files_come_over() {
    transfer(&[("", bytes(10, 4))], 1 << 20).await;
    transfer(&[("", vec![])], 1 << 20).await;
    transfer(&[("a", vec![]), ("b", vec![])], 16 << 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_comes_over_with_pieces_that_straddle_files() {
    let files = [
        ("a", bytes(1_500_000, 5)),
        ("b/empty", vec![]),
        ("b/one", bytes(1, 6)),
        ("b/two", bytes(3_000_000, 7)),
        ("c/d/e", bytes(20_000, 8)),
        ("naïve ü", bytes(1 << 20, 9)),
    ];
    for piece_length in [16 << 10, 100_000, 256 << 10, 4 << 20] {
        transfer(&files, piece_length).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_magnet_is_enough_and_a_leecher_seeds_on() {
    let (_dir, path) = write_tree(&[("", bytes(6 << 20, 10))]);
    let homes = [Home::new(), Home::new(), Home::new()];
    let torrent = add(&homes[0].store, &path, 256 << 10);
    let [first, second, third] = [homes[0].engine().await, homes[1].engine().await, homes[2].engine().await];
    let magnet = || TorrentSource::Magnet(torrent.magnet().to_string().parse().unwrap());
    let addr = |e: &Engine| vec![e.local_addr().unwrap()];
    let id = second.add(magnet(), addr(&first), vec![], Order::Sequential).await.unwrap();
    assert_eq!(second.wait_done(id).await.unwrap(), torrent.root);
    first.shutdown().await;
    third.add(magnet(), addr(&second), vec![], Order::RarestFirst).await.unwrap();
    assert_eq!(third.wait_done(id).await.unwrap(), torrent.root);
    assert_eq!(third.metainfo(&id).unwrap().unwrap().info, torrent.info);
    let found = btfs_storage::alias::lookup(homes[2].store.state(), &id.multihash()).unwrap();
    assert_eq!(found[0].root, torrent.root);
    second.shutdown().await;
    third.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_goes_on_after_a_restart_and_can_be_removed() {
    let (_dir, path) = write_tree(&[("", bytes(3 << 20, 11))]);
    let home = Home::new();
    let torrent = add(&home.store, &path, 1 << 20);
    let engine = home.engine().await;
    engine.shutdown().await;
    drop(engine);
    let home = home.reopen();
    let engine = home.engine().await;
    let other = Home::new();
    let leech = other.engine().await;
    let source = TorrentSource::Metainfo(torrent.encode());
    let id = leech.add(source, vec![engine.local_addr().unwrap()], vec![], Order::RarestFirst).await.unwrap();
    assert_eq!(leech.wait_done(id).await.unwrap(), torrent.root);
    engine.remove(id).await.unwrap();
    assert!(engine.list().is_empty() && home.store.pins_with_prefix("torrent").unwrap().is_empty());
    assert!(matches!(engine.status(&id), Err(EngineError::Unknown(_))));
    leech.shutdown().await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torrent_whose_metadata_is_damaged_does_not_keep_others_back() {
    let (_dir, path) = write_tree(&[("", bytes(1 << 20, 23))]);
    let (_other_dir, other) = write_tree(&[("", bytes(1 << 20, 24))]);
    let home = Home::new();
    let lost = add(&home.store, &path, 1 << 20);
    let kept = add(&home.store, &other, 1 << 20);
    assert!(home.store.remove(&lost.infohash().cid()).unwrap());
    let engine = home.engine().await;
    assert_eq!(engine.status(&kept.infohash()).unwrap().phase, Phase::Seeding(kept.root));
    // It asks peers for the metadata again, and seeds once it has it.
    assert_eq!(engine.status(&lost.infohash()).unwrap().phase, Phase::Metadata);
    let second = Home::new();
    add(&second.store, &path, 1 << 20);
    let giver = second.engine().await;
    engine.add_peers(&lost.infohash(), vec![giver.local_addr().unwrap()]).unwrap();
    assert_eq!(engine.wait_done(lost.infohash()).await.unwrap(), lost.root);
    giver.shutdown().await;
    engine.shutdown().await;
}

/// A torrent made by hand over `files`, as a foreign client would, and its bytes.
fn foreign(files: &[(&str, Vec<u8>, FileKind)], piece_length: u32) -> (Info, Vec<u8>) {
    let all: Vec<u8> = files.iter().flat_map(|(_, data, _)| data.clone()).collect();
    let entry = |(name, data, kind): &(&str, Vec<u8>, FileKind)| FileEntry {
        path: if *kind == FileKind::Pad { vec![] } else { name.split('/').map(str::to_owned).collect() },
        length: data.len() as u64,
        kind: kind.clone(),
    };
    let entries: Vec<FileEntry> = files.iter().map(entry).collect();
    let hashes: Vec<u8> = all.chunks(piece_length as usize).flat_map(|p| Sha1::digest(p).to_vec()).collect();
    (Info::build("foreign", piece_length, &entries, true, &hashes).unwrap(), all)
}

fn metainfo(info: &Info) -> TorrentSource {
    TorrentSource::Metainfo(Metainfo { info: info.clone(), trackers: vec![] }.encode())
}

#[tokio::test(flavor = "multi_thread")]
async fn pad_files_are_left_out_of_the_dag_and_links_are_kept() {
    let (a, b) = (bytes(1_200_000, 12), bytes(70_000, 13));
    let pad = vec![0; (256 << 10) - 1_200_000 % (256 << 10)];
    let link = FileKind::Symlink(vec!["a".into()]);
    let files = [
        ("a", a.clone(), FileKind::Regular),
        ("", pad, FileKind::Pad),
        ("d/b", b.clone(), FileKind::Regular),
        ("d/l", vec![], link),
    ];
    let (info, data) = foreign(&files, 256 << 10);
    let (_dir, path) = write_tree(&[("a", a), ("d/b", b)]);
    std::os::unix::fs::symlink("../a", path.join("d/l")).unwrap();
    let peer = FakePeer::start(info.clone(), data, Script::honest()).await;
    let home = Home::new();
    let leech = home.engine().await;
    let id = leech.add(metainfo(&info), vec![peer.addr], vec![], Order::RarestFirst).await.unwrap();
    let root = leech.wait_done(id).await.unwrap();
    assert_eq!(root, cid_of(&path));
    // What came with pads is served with pads.
    let other = Home::new();
    let second = other.engine().await;
    second.add(metainfo(&info), vec![leech.local_addr().unwrap()], vec![], Order::RarestFirst).await.unwrap();
    assert_eq!(second.wait_done(id).await.unwrap(), root);
    second.shutdown().await;
    leech.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_from_its_last_checkpoint() {
    let data = bytes(8 << 20, 14);
    let (info, data) = foreign(&[("f", data, FileKind::Regular)], 256 << 10);
    // The first peer has half the pieces, and hears of each as it becomes durable.
    let half: Vec<u32> = (0..16).collect();
    let mut peer =
        FakePeer::start(info.clone(), data.clone(), Script { pieces: Some(half), ..Script::honest() }).await;
    let home = Home::new();
    let leech = home.engine().await;
    let id = leech.add(metainfo(&info), vec![peer.addr], vec![], Order::RarestFirst).await.unwrap();
    for _ in 0..16 {
        peer.have.recv().await.unwrap();
    }
    leech.shutdown().await;
    drop(leech);
    let home = home.reopen();
    let leech = home.engine().await;
    assert_eq!(leech.status(&id).unwrap().pieces_stored, 16);
    let peer = FakePeer::start(info.clone(), data, Script::honest()).await;
    leech.add_peers(&id, vec![peer.addr]).unwrap();
    let root = leech.wait_done(id).await.unwrap();
    assert!(peer.served().iter().all(|piece| *piece >= 16));
    check_whole(&home.store, &root);
    leech.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_sends_wrong_data_is_banned() {
    let (info, data) = foreign(&[("f", bytes(3 << 20, 15), FileKind::Regular)], 256 << 10);
    let mut liar = FakePeer::start(info.clone(), vec![7; data.len()], Script::honest()).await;
    let home = Home::new();
    let leech = home.engine().await;
    let id = leech.add(metainfo(&info), vec![liar.addr], vec![], Order::RarestFirst).await.unwrap();
    liar.ended.recv().await.unwrap();
    assert_eq!(leech.status(&id).unwrap().pieces_stored, 0);
    assert!(leech.get(&id).unwrap().swarm.lock().candidates.is_banned(&liar.addr));
    let honest = FakePeer::start(info, data, Script::honest()).await;
    leech.add_peers(&id, vec![honest.addr]).unwrap();
    leech.wait_done(id).await.unwrap();
    leech.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_data_from_one_of_two_does_no_harm() {
    let (info, data) = foreign(&[("f", bytes(4 << 20, 16), FileKind::Regular)], 1 << 20);
    let liar = FakePeer::start(info.clone(), vec![7; data.len()], Script::honest()).await;
    let honest = FakePeer::start(info.clone(), data, Script::honest()).await;
    let home = Home::new();
    let leech = home.engine().await;
    let peers = vec![liar.addr, honest.addr];
    let id = leech.add(metainfo(&info), peers, vec![], Order::RarestFirst).await.unwrap();
    let root = leech.wait_done(id).await.unwrap();
    check_whole(&home.store, &root);
    leech.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn protocol_breakers_are_dropped() {
    let (_dir, path) = write_tree(&[("", bytes(1 << 20, 17))]);
    let home = Home::new();
    let torrent = add(&home.store, &path, 256 << 10);
    let engine = home.engine().await;
    let addr = engine.local_addr().unwrap();
    let oversize = [0xff, 0xff, 0xff, 0xff, 7];
    let beyond = [0, 0, 0, 5, 4, 0, 0, 0, 99];
    let short_bitfield = [0, 0, 0, 1, 5];
    for bad in [&oversize[..], &beyond, &short_bitfield] {
        assert!(fake::dropped_after(addr, torrent.infohash(), bad).await);
    }
    assert!(fake::dropped_after(addr, InfoHash([1; 20]), &[]).await);
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_out_of_range_are_rejected() {
    use crate::wire::{BlockRequest, Message};
    let (_dir, path) = write_tree(&[("", bytes(100_000, 18))]);
    let home = Home::new();
    let torrent = add(&home.store, &path, 16 << 10);
    let engine = home.engine().await;
    let mut peer = fake::connect(engine.local_addr().unwrap(), torrent.infohash()).await;
    peer.send(&Message::Interested).await;
    peer.until(|m| *m == Message::Unchoke).await;
    for (piece, begin, length) in
        [(0, 0, 0), (0, 0, 1 << 20), (6, 0, 16 << 10), (7, 0, 1), (u32::MAX, u32::MAX, u32::MAX)]
    {
        let request = BlockRequest { piece, begin, length };
        peer.send(&Message::Request(request)).await;
        peer.until(|m| *m == Message::Reject(request)).await;
    }
    let good = BlockRequest { piece: 6, begin: 0, length: 100_000 - 6 * (16 << 10) };
    peer.send(&Message::Request(good)).await;
    peer.until(|m| matches!(m, Message::Piece { piece: 6, .. })).await;
    engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_brings_peers_together_and_hears_what_happens() {
    let mut tracker = fake::Tracker::start().await;
    let (_dir, path) = write_tree(&[("", bytes(2 << 20, 19))]);
    let (seed_home, leech_home) = (Home::new(), Home::new());
    let mut torrent = add(&seed_home.store, &path, 1 << 20);
    torrent.trackers = vec!["http://127.0.0.1:1/announce".into(), tracker.url.clone()];
    let (seed, leech) = (seed_home.engine().await, leech_home.engine().await);
    seed.add_seed(&torrent).await.unwrap();
    assert!(tracker.announced().await.contains("event=started"));
    tracker.answer_with(seed.local_addr().unwrap());
    let source = TorrentSource::Metainfo(torrent.encode());
    let id = leech.add(source, vec![], vec![], Order::RarestFirst).await.unwrap();
    let started = tracker.announced().await;
    assert!(started.contains("event=started") && started.contains(&format!("left={}", 2 << 20)), "{started}");
    assert_eq!(leech.wait_done(id).await.unwrap(), torrent.root);
    let completed = tracker.announced().await;
    assert!(completed.contains("event=completed") && completed.contains("left=0"), "{completed}");
    leech.shutdown().await;
    assert!(tracker.announced().await.contains("event=stopped"));
    let words = seed.status(&id).unwrap().trackers;
    assert!(matches!(&words[0].last, Some(Err(_))) && matches!(&words[1].last, Some(Ok(_))));
    seed.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_is_too_small_stops_the_download_clearly() {
    let (info, data) = foreign(&[("f", bytes(8 << 20, 20), FileKind::Regular)], 1 << 20);
    let peer = FakePeer::start(info.clone(), data, Script::honest()).await;
    let home = Home::new();
    home.store.set_quota(Quota { own: Some(2 << 20), ..Quota::default() });
    let leech = home.engine().await;
    let id = leech.add(metainfo(&info), vec![peer.addr], vec![], Order::RarestFirst).await.unwrap();
    let error = leech.wait_done(id).await.unwrap_err();
    assert!(
        matches!(&error, EngineError::Failed { error, .. } if error.contains("not enough space")),
        "{error}"
    );
    // With more space, adding it again goes on.
    home.store.set_quota(Quota::default());
    leech.add(metainfo(&info), vec![peer.addr], vec![], Order::RarestFirst).await.unwrap();
    leech.wait_done(id).await.unwrap();
    leech.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_leechers_share_one_seed() {
    let (_dir, path) = write_tree(&[("", bytes(10 << 20, 21))]);
    let seed_home = Home::new();
    let torrent = add(&seed_home.store, &path, 256 << 10);
    let seed = seed_home.engine().await;
    let homes: Vec<Home> = (0..4).map(|_| Home::new()).collect();
    let mut engines = Vec::new();
    for home in &homes {
        let engine = home.engine().await;
        let mut peers: Vec<SocketAddr> = engines.iter().filter_map(Engine::local_addr).collect();
        peers.push(seed.local_addr().unwrap());
        let source = TorrentSource::Metainfo(torrent.encode());
        engine.add(source, peers, vec![], Order::RarestFirst).await.unwrap();
        engines.push(engine);
    }
    for engine in &engines {
        assert_eq!(engine.wait_done(torrent.infohash()).await.unwrap(), torrent.root);
    }
    for engine in engines.iter().chain([&seed]) {
        engine.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_thing_twice_and_nonsense_are_handled() {
    let (info, data) = foreign(&[("f", bytes(1 << 20, 22), FileKind::Regular)], 1 << 20);
    let home = Home::new();
    let leech = home.engine().await;
    let id = leech.add(metainfo(&info), vec![], vec![], Order::RarestFirst).await.unwrap();
    let magnet = Magnet { trackers: vec!["http://x/announce".into()], ..Magnet::v1(id, None) };
    assert_eq!(
        leech.add(TorrentSource::Magnet(magnet), vec![], vec![], Order::RarestFirst).await.unwrap(),
        id
    );
    assert_eq!(leech.list().len(), 1);
    assert_eq!(leech.status(&id).unwrap().trackers.len(), 1);
    let nonsense =
        leech.add(TorrentSource::Metainfo(b"hello".to_vec()), vec![], vec![], Order::RarestFirst).await;
    assert!(matches!(nonsense, Err(EngineError::Metainfo(_))));
    let v2 = Magnet { btih: None, btmh: Some([1; 32]), ..Magnet::v1(id, None) };
    let v2 = leech.add(TorrentSource::Magnet(v2), vec![], vec![], Order::RarestFirst).await;
    assert!(matches!(v2, Err(EngineError::V2Only)));
    assert!(matches!(leech.wait_done(InfoHash([9; 20])).await, Err(EngineError::Unknown(_))));
    // Waiting ends when the torrent is taken out.
    let waiting = tokio::spawn({
        let leech = leech.clone();
        async move { leech.wait_done(id).await }
    });
    let peer = FakePeer::start(info, data, Script { silent: true, ..Script::honest() }).await;
    leech.add_peers(&id, vec![peer.addr]).unwrap();
    leech.remove(id).await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Err(EngineError::Removed(_) | EngineError::Unknown(_))));
    leech.shutdown().await;
}

/// Keeps the ranking hook honest: a policy from above is asked.
#[tokio::test]
async fn the_ranking_comes_from_the_configuration() {
    struct Nobody;
    impl Ranking for Nobody {
        fn rank(&self, _: &crate::choker::PeerView, _: bool) -> u64 {
            0
        }
    }
    let home = Home::new();
    let config = EngineConfig { ranking: Arc::new(Nobody), ..EngineConfig::new(home.store.clone(), None) };
    let engine = Engine::start(config).await.unwrap();
    assert_eq!(engine.local_addr(), None);
    engine.shutdown().await;
}
