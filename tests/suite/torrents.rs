//! BitTorrent against clients nobody here wrote: libtorrent and aria2, over loopback TCP.
//!
//! Whatever the piece length and whoever made the torrent, a download ends in the CID that adding the same files gives.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use rand::{Rng, SeedableRng};
use serde_json::Value;

use super::node::Node;
use super::peers;

/// The size that the transfers with libtorrent have.
const LARGE: usize = 256 << 20;

/// The CID that adding `path` gives.
fn cid_of(node: &Node, path: &Path) -> String {
    let added = node.json(&["add", "--only-hash", text(path)]);
    added["cid"].as_str().expect("a CID").to_owned()
}

/// Downloads with our node into `target`; the CID of what came.
fn download(node: &Node, torrent: &Path, from: &str, target: &Path) -> String {
    let got = node.json(&["get", text(torrent), "--peer", from, "--output", text(target)]);
    got["cid"].as_str().expect("a CID").to_owned()
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

/// A folder with a file of many leaves, a tiny, an empty and an oddly named one, and one of exactly a leaf.
fn write_folder(path: &Path, seed: u64) -> Vec<&'static str> {
    std::fs::create_dir_all(path.join("b")).expect("a directory");
    let files = [("a", 3_333_333), ("b/c", 10), ("b/d", 0), ("b/é", 9_000_001), ("e", 1 << 20)];
    files.iter().for_each(|(name, len)| write_random(&path.join(name), *len, seed));
    files.iter().map(|(name, _)| *name).collect()
}

fn same(a: &Path, b: &Path) -> bool {
    std::fs::read(a).expect("the first file") == std::fs::read(b).expect("the second file")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// libtorrent with these arguments, not yet run.
fn libtorrent(arguments: &[&str]) -> Command {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/torrents.py");
    let mut command = Command::new("python3");
    command.arg(script).args(arguments).env("PYTHONPATH", peers::peer("libtorrent")).stdout(Stdio::piped());
    command
}

/// Runs libtorrent to its end; its last line.
fn libtorrent_says(arguments: &[&str]) -> Value {
    let output = libtorrent(arguments).stderr(Stdio::piped()).output().expect("python3 runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "libtorrent: {said}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(said.lines().last().expect("a line")).expect("JSON")
}

/// A seeding libtorrent; it ends with this.
struct Seed {
    child: Child,
    _input: Option<ChildStdin>,
    address: String,
}

impl Seed {
    fn start(torrent: &Path, folder: &Path) -> Seed {
        let mut child = libtorrent(&["seed", text(torrent), text(folder)])
            .stdin(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let said: Value = serde_json::from_str(&line).expect("JSON");
        let address = said["address"].as_str().unwrap_or_else(|| panic!("libtorrent: {line}")).to_owned();
        Seed { _input: child.stdin.take(), child, address }
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        // Also when the test panics: it has nothing to lose.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn libtorrent_downloads_a_large_file_from_us() {
    let mut node = Node::init(None);
    node.start();
    let (source, got) = (node.file("large.bin"), node.file("got"));
    write_random(&source, LARGE, 1);
    std::fs::create_dir(&got).expect("a directory");
    let added = node.json(&["add", "--torrent", text(&source)]);
    let cid = added["cid"].as_str().expect("a CID");
    // A torrent made later from what is stored is the same torrent.
    let torrent = node.file("large.torrent");
    let made = node.json(&["torrent", "create", cid, "--name", "large.bin", "--output", text(&torrent)]);
    assert_eq!(made["infohash"], added["infohash"]);
    let said = libtorrent_says(&["get", text(&torrent), text(&got), &node.bittorrent()]);
    assert_eq!(said["infohash"], added["infohash"]);
    assert!(same(&source, &got.join("large.bin")));
}

#[test]
fn we_download_a_large_file_from_libtorrent() {
    let mut node = Node::init(None);
    node.start();
    let (source, torrent, back) = (node.file("large.bin"), node.file("large.torrent"), node.file("back.bin"));
    write_random(&source, LARGE, 2);
    libtorrent_says(&["make", text(&source), text(&torrent), "1048576"]);
    let seed = Seed::start(&torrent, source.parent().expect("a folder"));
    assert_eq!(download(&node, &torrent, &seed.address, &back), cid_of(&node, &source));
    assert!(same(&source, &back));
}

#[test]
fn any_piece_length_of_libtorrents_gives_the_cid_of_add() {
    let home = Node::init(None);
    let (file, folder) = (home.file("file"), home.file("folder"));
    write_random(&file, (21 << 20) + 77, 3);
    write_folder(&folder, 4);
    for source in [&file, &folder] {
        let expected = cid_of(&home, source);
        for piece_length in ["16384", "262144", "4194304"] {
            let torrent = home.file("x.torrent");
            libtorrent_says(&["make", text(source), text(&torrent), piece_length]);
            let seed = Seed::start(&torrent, source.parent().expect("a folder"));
            let mut node = Node::init(None);
            node.start();
            let cid = download(&node, &torrent, &seed.address, &node.file("got"));
            assert_eq!(cid, expected, "{} in pieces of {piece_length}", source.display());
        }
    }
}

#[test]
fn libtorrent_downloads_a_folder_from_us_by_magnet() {
    let mut node = Node::init(None);
    let (folder, got) = (node.file("folder"), node.file("got"));
    std::fs::create_dir(&got).expect("a directory");
    let files = write_folder(&folder, 5);
    // Added while no daemon runs; the daemon seeds it once it starts.
    let added = node.json(&["add", "--torrent", text(&folder)]);
    node.start();
    libtorrent_says(&["get", added["magnet"].as_str().expect("a magnet"), text(&got), &node.bittorrent()]);
    for name in files {
        assert!(same(&folder.join(name), &got.join("folder").join(name)), "{name}");
    }
}

/// One torrent for clients of v1 and of v2: made in one pass, it is byte for byte what libtorrent makes.
#[test]
fn libtorrent_makes_and_downloads_the_same_hybrid() {
    let mut node = Node::init(None);
    node.start();
    let (file, folder) = (node.file("file.bin"), node.file("folder"));
    write_random(&file, (5 << 20) + 77, 7);
    let names = write_folder(&folder, 8);
    for (source, name, names, piece_length) in
        [(&file, "file.bin", vec![], "1048576"), (&folder, "folder", names, "16384")]
    {
        let added = node.json(&["add", "--torrent=hybrid", text(source)]);
        let (theirs, ours) = (node.file("theirs.torrent"), node.file(&format!("{name}.torrent")));
        let made = libtorrent_says(&["make", text(source), text(&theirs), piece_length, "hybrid"]);
        for hash in ["infohash", "infohash_v2"] {
            assert!(made[hash].is_string(), "{made}");
            assert_eq!(added[hash], made[hash], "{name}");
        }
        // A torrent made later from what is stored is the same torrent.
        let cid = added["cid"].as_str().expect("a CID");
        node.json(&[
            "torrent",
            "create",
            cid,
            "--name",
            name,
            "--version",
            "hybrid",
            "--output",
            text(&ours),
        ]);
        let described = libtorrent_says(&["describe", text(&ours)]);
        assert_eq!(described, libtorrent_says(&["describe", text(&theirs)]));
        // By either, over the wire of v1; and known here by its v2 infohash alone.
        let magnet = added["magnet"].as_str().expect("a magnet");
        for reference in [text(&ours), magnet] {
            let got = tempfile::tempdir().expect("a directory");
            let said = libtorrent_says(&["get", reference, text(got.path()), &node.bittorrent()]);
            assert_eq!(said["infohash_v2"], added["infohash_v2"]);
            let came = got.path().join(name);
            assert!(source.is_dir() || same(source, &came));
            names.iter().for_each(|below| assert!(same(&source.join(below), &came.join(below)), "{below}"));
        }
        let v2 = format!("magnet:?xt=urn:btmh:1220{}", added["infohash_v2"].as_str().expect("hex"));
        let got = node.json(&["get", &v2, "--output", text(&node.file(&format!("{name}.got")))]);
        assert_eq!(got["cid"], added["cid"]);
        // Downloaded from libtorrent, it is the CID of what was added: pads are no content.
        let seed = Seed::start(&theirs, source.parent().expect("a folder"));
        let mut other = Node::init(None);
        other.start();
        assert_eq!(download(&other, &theirs, &seed.address, &other.file("back")), cid);
    }
}

#[test]
fn aria2_downloads_from_us_by_magnet() {
    let mut node = Node::init(None);
    node.start();
    let (source, got) = (node.file("file.bin"), node.file("got"));
    write_random(&source, (32 << 20) + 5, 6);
    let added = node.json(&["add", "--torrent", text(&source)]);
    // aria2 takes no peer from a magnet or its arguments: a tracker tells it.
    let tracker = tracker_of(node.bittorrent().parse().expect("an address"));
    let mut command = Command::new("aria2c");
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
    command.arg(format!("--dir={}", text(&got))).arg(format!("--bt-tracker={tracker}"));
    let output = command.arg(added["magnet"].as_str().expect("a magnet")).output();
    let output = output.expect("aria2c runs: see tests/peers/install");
    assert!(output.status.success(), "aria2: {}", String::from_utf8_lossy(&output.stdout));
    assert!(same(&source, &got.join("file.bin")));
}

/// A tracker that knows one peer. It serves until the test process ends.
fn tracker_of(peer: SocketAddr) -> String {
    let SocketAddr::V4(peer) = peer else { panic!("{peer} is not IPv4") };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/announce", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut request, mut byte) = (Vec::new(), [0]);
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                request.push(byte[0]);
            }
            let mut body = b"d8:intervali60e5:peers6:".to_vec();
            body.extend_from_slice(&peer.ip().octets());
            body.extend_from_slice(&peer.port().to_be_bytes());
            body.push(b'e');
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            // aria2 may have hung up; then it asks again.
            let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        }
    });
    url
}

#[test]
fn what_is_no_torrent_is_refused_and_nobodys_torrent_times_out() {
    let mut node = Node::init(None);
    node.start();
    let nonsense = node.file("x.torrent");
    std::fs::write(&nonsense, b"d4:infod4:name1:aee").expect("a file");
    for bad in [text(&nonsense), "magnet:?dn=x", "magnet:?xt=urn:btih:zz"] {
        node.fails(&["get", bad, "--output", text(&node.file("out"))]);
        node.fails(&["torrent", "add", bad]);
    }
    let nobodys = format!("magnet:?xt=urn:btih:{}", "0123456789".repeat(4));
    let told = node.fails(&["get", &nobodys, "--timeout", "1", "--output", text(&node.file("out"))]);
    assert!(told.contains("1 s"), "{told}");
    assert!(!node.file("out").exists());
}
