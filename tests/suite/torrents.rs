//! BitTorrent against clients nobody here wrote: libtorrent and aria2, over loopback TCP.
//!
//! Whatever the piece length and whoever made the torrent, a download ends in the CID that adding the same files gives.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use btfs_bittorrent::create::{Hasher, TorrentFile};
use btfs_bittorrent::picker::Order;
use btfs_bittorrent::{Engine, EngineConfig, TorrentSource, records};
use btfs_storage::import::{ImportOptions, Profile, import_path_observed};
use btfs_storage::{Cid, Class, Quota, Store, StoreOptions, read};
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;

use super::peers;

/// The size that the transfers with libtorrent have.
const LARGE: usize = 256 << 20;

/// A store and an engine over it.
struct Ours {
    _dir: TempDir,
    store: Store,
    engine: Engine,
}

impl Ours {
    async fn start() -> Ours {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let options = StoreOptions {
            path: dir.path().to_owned(),
            tables: records::TABLES.to_vec(),
            quota: Quota::default(),
            reserve_bytes: 0,
        };
        let store = Store::open(options).expect("the store opens");
        let listen = Some("127.0.0.1:0".parse().expect("an address"));
        let engine =
            Engine::start(EngineConfig::new(store.clone(), listen)).await.expect("the engine starts");
        Ours { _dir: dir, store, engine }
    }

    fn address(&self) -> String {
        self.engine.local_addr().expect("it listens").to_string()
    }

    /// Adds files and their torrent in one pass, and seeds it.
    async fn add(&self, path: &Path) -> TorrentFile {
        let (path, options) = (path.to_owned(), ImportOptions::default());
        let torrent = self.store.run(move |store| {
            let name = path.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
            let mut hasher =
                Hasher::for_path(&path, &Profile::V1_2025, &options, &name).expect("sizes are read");
            let mut ingest = store.ingest(Class::Own).expect("an ingest");
            let done = import_path_observed(
                &path,
                &Profile::V1_2025,
                &options,
                &mut ingest,
                &mut |_| {},
                &mut hasher,
            );
            let torrent = hasher.finish(done.expect("the import succeeds").root).expect("a torrent");
            let mut batch = store.state().batch();
            torrent.record(store, &mut ingest, &mut batch).expect("it is recorded");
            ingest.finish(batch).expect("it is durable");
            torrent
        });
        let torrent = torrent.await;
        self.engine.seed(torrent.infohash()).await.expect("it seeds");
        torrent
    }

    async fn download(&self, torrent: &Path, from: &str) -> Cid {
        let source = TorrentSource::Metainfo(std::fs::read(torrent).expect("the torrent is read"));
        let peers = vec![from.parse().expect("an address")];
        let id = self.engine.add(source, peers, vec![], Order::RarestFirst).await.expect("it is added");
        self.engine.wait_done(id).await.expect("it comes")
    }
}

/// The CID that adding `path` gives.
fn cid_of(path: &Path) -> Cid {
    struct Nothing;
    impl btfs_storage::BlockSink for Nothing {
        fn put(&mut self, _: &Cid, _: bytes::Bytes) -> Result<(), btfs_storage::StoreError> {
            Ok(())
        }
    }
    let options = ImportOptions::default();
    import_path_observed(path, &Profile::V1_2025, &options, &mut Nothing, &mut |_| {}, &mut ())
        .expect("the import succeeds")
        .root
}

fn write_random(path: &Path, len: usize, seed: u64) {
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut file = File::create(path).expect("a file");
    let mut buffer = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let take = left.min(buffer.len());
        rng.fill_bytes(&mut buffer[..take]);
        file.write_all(&buffer[..take]).expect("the disk takes it");
        left -= take;
    }
}

fn same(a: &Path, b: &Path) -> bool {
    std::fs::read(a).expect("the first file") == std::fs::read(b).expect("the second file")
}

/// libtorrent with these arguments, not yet run.
fn libtorrent(arguments: &[&str]) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/torrents.py");
    let mut command = Command::new("python3");
    command.arg(script).args(arguments).env("PYTHONPATH", peers::peer("libtorrent")).stdout(Stdio::piped());
    command
}

/// Runs libtorrent to its end; its last line.
async fn libtorrent_says(arguments: &[&str]) -> Value {
    let mut command = tokio::process::Command::from(libtorrent(arguments));
    let output = command.stderr(Stdio::piped()).kill_on_drop(true).output().await.expect("python3 runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "libtorrent: {said}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(said.lines().last().expect("a line")).expect("JSON")
}

/// A seeding libtorrent; it ends when its input does.
struct Seed {
    child: Child,
    input: Option<ChildStdin>,
    address: String,
}

impl Seed {
    fn start(torrent: &Path, folder: &Path) -> Seed {
        let arguments = ["seed", torrent.to_str().expect("UTF-8"), folder.to_str().expect("UTF-8")];
        let mut child = libtorrent(&arguments).stdin(Stdio::piped()).spawn().expect("python3 runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let said: Value = serde_json::from_str(&line).expect("JSON");
        let address = said["address"].as_str().unwrap_or_else(|| panic!("libtorrent: {line}")).to_owned();
        Seed { input: child.stdin.take(), child, address }
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        drop(self.input.take());
        // Also when the test panics: it has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn libtorrent_downloads_a_large_file_from_us() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (source, got) = (dir.path().join("large.bin"), dir.path().join("got"));
    write_random(&source, LARGE, 1);
    std::fs::create_dir(&got).expect("a directory");
    let ours = Ours::start().await;
    let made = ours.add(&source).await;
    let torrent = dir.path().join("large.torrent");
    std::fs::write(&torrent, made.encode()).expect("the torrent is written");
    let said = libtorrent_says(&["get", text(&torrent), text(&got), &ours.address()]).await;
    assert_eq!(said["infohash"].as_str(), Some(made.infohash().to_string().as_str()));
    assert!(same(&source, &got.join("large.bin")));
    ours.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_download_a_large_file_from_libtorrent() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (source, torrent) = (dir.path().join("large.bin"), dir.path().join("large.torrent"));
    write_random(&source, LARGE, 2);
    libtorrent_says(&["make", text(&source), text(&torrent), "1048576"]).await;
    let seed = Seed::start(&torrent, dir.path());
    let ours = Ours::start().await;
    let root = ours.download(&torrent, &seed.address).await;
    assert_eq!(root, cid_of(&source));
    let back = dir.path().join("back.bin");
    read::export(&ours.store, &root, &back, &mut |_| {}).expect("it is written");
    assert!(same(&source, &back));
    ours.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_piece_length_of_libtorrents_gives_the_cid_of_add() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let folder = dir.path().join("folder");
    std::fs::create_dir_all(folder.join("b")).expect("a directory");
    for (name, len) in [("a", 3_333_333), ("b/c", 10), ("b/d", 0), ("b/é", 9_000_001), ("e", 1 << 20)] {
        write_random(&folder.join(name), len, 3);
    }
    let file = dir.path().join("file");
    write_random(&file, (21 << 20) + 77, 4);
    for source in [&file, &folder] {
        let expected = cid_of(source);
        for piece_length in ["16384", "262144", "4194304"] {
            let torrent = dir.path().join("x.torrent");
            libtorrent_says(&["make", text(source), text(&torrent), piece_length]).await;
            let seed = Seed::start(&torrent, dir.path());
            let ours = Ours::start().await;
            let root = ours.download(&torrent, &seed.address).await;
            assert_eq!(root, expected, "{} in pieces of {piece_length}", source.display());
            ours.engine.shutdown().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn libtorrent_downloads_a_folder_from_us_by_magnet() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (folder, got) = (dir.path().join("folder"), dir.path().join("got"));
    std::fs::create_dir_all(folder.join("b")).expect("a directory");
    std::fs::create_dir(&got).expect("a directory");
    let files = [("a", 3_333_333), ("b/c", 10), ("b/é", 9_000_001), ("e", 1 << 20)];
    for (name, len) in files {
        write_random(&folder.join(name), len, 5);
    }
    let ours = Ours::start().await;
    let made = ours.add(&folder).await;
    libtorrent_says(&["get", &made.magnet().to_string(), text(&got), &ours.address()]).await;
    for (name, _) in files {
        assert!(same(&folder.join(name), &got.join("folder").join(name)), "{name}");
    }
    ours.engine.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aria2_downloads_from_us_by_magnet() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (source, got) = (dir.path().join("file.bin"), dir.path().join("got"));
    write_random(&source, (32 << 20) + 5, 6);
    let ours = Ours::start().await;
    let made = ours.add(&source).await;
    aria2(&made.magnet().to_string(), &got, &ours).await;
    assert!(same(&source, &got.join("file.bin")));
    ours.engine.shutdown().await;
}

/// Downloads with aria2, which finds its peer through a tracker of ours: it takes none from a magnet.
async fn aria2(magnet: &str, into: &PathBuf, ours: &Ours) {
    let tracker = tracker_of(ours).await;
    let mut command = tokio::process::Command::new("aria2c");
    command.args([
        "--enable-dht=false",
        "--enable-dht6=false",
        "--bt-enable-lpd=false",
        "--enable-peer-exchange=false",
    ]);
    command.args([
        "--seed-time=0",
        "--bt-stop-timeout=60",
        "--console-log-level=warn",
        "--summary-interval=0",
    ]);
    command.args([
        "--file-allocation=none",
        "--no-conf=true",
        "--listen-port=20000-29999",
        "--interface=127.0.0.1",
    ]);
    command.arg(format!("--dir={}", text(into))).arg(format!("--bt-tracker={tracker}")).arg(magnet);
    let output = command.kill_on_drop(true).output().await.expect("aria2c runs: see tests/peers/install");
    assert!(output.status.success(), "aria2: {}", String::from_utf8_lossy(&output.stdout));
}

/// A tracker that knows one peer: us.
async fn tracker_of(ours: &Ours) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let peer = ours.engine.local_addr().expect("it listens");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/announce", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                    break;
                }
            }
            let mut body = b"d8:intervali60e5:peers6:".to_vec();
            let std::net::SocketAddr::V4(v4) = peer else { panic!("{peer} is not IPv4") };
            body.extend_from_slice(&v4.ip().octets());
            body.extend_from_slice(&v4.port().to_be_bytes());
            body.push(b'e');
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            // aria2 may have hung up; then it asks again.
            let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        }
    });
    url
}
