//! A `btfs` node under test: a repo in a temporary directory, commands on it, its daemon.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::peers;

/// A node with a repo of its own. Its daemon is killed when this is dropped.
pub struct Node {
    dir: tempfile::TempDir,
    daemon: Option<Daemon>,
}

struct Daemon {
    child: Child,
    ready: Value,
}

impl Node {
    /// A fresh repo with free ports on loopback; `network` is a network file.
    pub fn init(network: Option<&Path>) -> Node {
        Node::init_below(&tempfile::env::temp_dir(), network)
    }

    /// The same with the repo somewhere below `dir`.
    pub fn init_below(dir: &Path, network: Option<&Path>) -> Node {
        let node = Node { dir: tempfile::tempdir_in(dir).expect("a temporary directory"), daemon: None };
        let network = network.map(|file| file.display().to_string());
        let mut arguments = vec!["init", "--local-ports"];
        if let Some(file) = &network {
            arguments.extend(["--network", file]);
        }
        node.json(&arguments);
        node
    }

    /// The repo.
    pub fn repo(&self) -> PathBuf {
        self.dir.path().join("repo")
    }

    /// A place beside the repo for files of the test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `btfs ARGUMENTS` on this repo, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(peers::btfs());
        command.args(arguments).env("BTFS_PATH", self.repo()).stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("btfs runs")
    }

    /// Runs a command with `--json` that must succeed; its answer.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut with_json = arguments.to_vec();
        with_json.push("--json");
        let output = self.run(&with_json);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "btfs {}: {told}{}", arguments.join(" "), self.log_tail());
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("btfs {}: {error}", arguments.join(" ")))
    }

    /// Runs a command that must fail with exit status 1; what it said.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "btfs {} should fail: {told}", arguments.join(" "));
        assert!(!told.trim().is_empty(), "btfs {} fails without a word", arguments.join(" "));
        told
    }

    /// Starts the daemon and waits until it is ready.
    pub fn start(&mut self) {
        let log =
            std::fs::File::options().create(true).append(true).open(self.file("daemon.log")).expect("a log");
        let mut child = self
            .command(&["daemon", "--json"])
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("btfs runs");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is a pipe"))
            .read_line(&mut line)
            .expect("stdout is read");
        let ready = serde_json::from_str(&line)
            .unwrap_or_else(|error| panic!("the daemon said {line:?} ({error}){}", self.log_tail()));
        self.daemon = Some(Daemon { child, ready });
    }

    /// What the daemon said when it was ready.
    pub fn ready(&self) -> &Value {
        &self.daemon.as_ref().expect("the daemon runs").ready
    }

    /// Begins a call of its API, and returns what it tells from its first progress on. Whoever drops that goes away.
    pub fn begin(&self, call: &str, body: &Value) -> impl Iterator<Item = String> + use<> {
        let address = self.ready()["api"].as_str().expect("the API").trim_start_matches("http://").to_owned();
        let token = std::fs::read_to_string(self.repo().join("api-token")).expect("the token");
        let (token, body) = (token.trim(), body.to_string());
        let request = format!(
            "POST /api/v1/{call} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
             Accept: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(&address).expect("it listens");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("progress")), "it begins");
        lines
    }

    /// Whether its daemon was started and not ended here.
    pub fn runs(&self) -> bool {
        self.daemon.is_some()
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").child.id()
    }

    /// Its peer id.
    pub fn peer(&self) -> String {
        self.ready()["peer"].as_str().expect("a peer id").to_owned()
    }

    /// Its first multiaddress, with peer id, that has `part` in it, such as `/tcp/` or `/quic-v1`.
    pub fn address(&self, part: &str) -> String {
        let swarm = self.ready()["swarm"].as_array().expect("addresses");
        let mut addresses = swarm.iter().filter_map(Value::as_str);
        addresses
            .find(|address| address.contains(part))
            .unwrap_or_else(|| panic!("no {part} in {swarm:?}"))
            .to_owned()
    }

    /// Where BitTorrent peers are answered.
    pub fn bittorrent(&self) -> String {
        self.ready()["bittorrent"].as_str().expect("the peer wire is on").to_owned()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.child.kill().expect("our own child can be killed");
            daemon.child.wait().expect("our own child ends");
        }
    }

    /// `btfs shutdown`; the daemon must end well.
    pub fn stop(&mut self) {
        self.json(&["shutdown"]);
        self.ended_well();
    }

    /// Stops the daemon by a signal, which must end it well.
    pub fn stop_by(&mut self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(pid.expect("a process id"), signal).expect("our own child is there");
        self.ended_well();
    }

    fn ended_well(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        let status = daemon.child.wait().expect("our own child ends");
        assert!(status.success(), "the daemon ended with {status}{}", self.log_tail());
    }

    /// Peak resident memory of the daemon in bytes.
    pub fn peak_memory(&self) -> u64 {
        crate::bench::peak_memory(self.pid()).expect("the daemon runs")
    }

    /// The end of the daemon's log, for messages.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.file("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(8).collect();
        lines.into_iter().rev().fold("\nthe daemon's log ends:".to_owned(), |text, line| text + "\n  " + line)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // Already gone is fine.
            let _ = daemon.child.kill();
            let _ = daemon.child.wait();
        }
    }
}

/// Writes `size` bytes that no compressor or deduplicator can shorten, the same for the same seed.
pub fn random_file(path: &Path, size: u64, seed: u64) {
    use rand::{Rng, SeedableRng};
    use std::io::Write;
    let mut rng = rand::rngs::SmallRng::seed_from_u64(seed);
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).expect("a new file"));
    let mut left = size;
    let mut buffer = vec![0u8; 1 << 20];
    while left > 0 {
        let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        rng.fill_bytes(&mut buffer[..part]);
        file.write_all(&buffer[..part]).expect("the file is written");
        left -= part as u64;
    }
    file.flush().expect("the file is written");
}

/// SHA-256 of a file, hex.
pub fn sha256(path: &Path) -> String {
    use sha2::{Digest, Sha256};
    use std::io::Read;
    let mut file = std::fs::File::open(path).expect("the file is there");
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        let read = file.read(&mut buffer).expect("the file is read");
        if read == 0 {
            return hex::encode(hasher.finalize());
        }
        hasher.update(&buffer[..read]);
    }
}
