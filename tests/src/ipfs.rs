//! Kubo's own program, `ipfs`, on a repo in a temporary directory; with or without its daemon.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::peers;

/// A Kubo repo.
pub struct Ipfs {
    dir: tempfile::TempDir,
}

impl Ipfs {
    /// A fresh repo.
    pub fn init() -> Ipfs {
        let ipfs = Ipfs::init_below(&tempfile::env::temp_dir());
        println!("{}", ipfs.text(&["version"]));
        ipfs
    }

    /// The same somewhere below `dir`, without telling its version.
    pub fn init_below(dir: &Path) -> Ipfs {
        let ipfs = Ipfs { dir: tempfile::tempdir_in(dir).expect("a temporary directory") };
        ipfs.run(&["init"]);
        ipfs
    }

    /// A place beside the repo for files of the test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `ipfs ARGUMENTS` on this repo, not yet run.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(peers::peer("ipfs/ipfs"));
        let repo = self.dir.path().join("repo");
        command.args(arguments).env("IPFS_PATH", repo).env("IPFS_TELEMETRY", "off").stdin(Stdio::null());
        command
    }

    /// Runs a command that must succeed.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().expect("ipfs runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ipfs {}: {told}", arguments.join(" "));
        output
    }

    /// The same; what it printed, without the space around it.
    pub fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }
}

/// A Kubo daemon that listens on free loopback ports over TCP and QUIC, and knows nobody; ends when dropped.
pub struct IpfsDaemon {
    /// Its repo: commands on it are answered by the daemon.
    pub ipfs: Ipfs,
    child: Child,
}

impl IpfsDaemon {
    /// Starts one and waits until it is ready.
    pub fn start() -> IpfsDaemon {
        let ipfs = Ipfs::init();
        ipfs.run(&["config", "profile", "apply", "test"]);
        let listen = r#"["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"]"#;
        ipfs.run(&["config", "--json", "Addresses.Swarm", listen]);
        let log = std::fs::File::create(ipfs.file("log")).expect("a log");
        let mut command = ipfs.command(&["daemon"]);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("ipfs runs");
        let mut told = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
        let ready = told.any(|line| line == "Daemon is ready");
        // Nothing it says later may fill the pipe.
        std::thread::spawn(move || told.for_each(drop));
        let daemon = IpfsDaemon { ipfs, child };
        let log = || std::fs::read_to_string(daemon.ipfs.file("log")).unwrap_or_default();
        assert!(ready, "Kubo did not start: {}", log());
        daemon
    }

    /// Its address, with peer id, that has `part` in it.
    pub fn address(&self, part: &str) -> String {
        let all = self.ipfs.text(&["id", "--format=<addrs>"]);
        let found = all.lines().find(|address| address.contains(part));
        found.unwrap_or_else(|| panic!("no address with {part} in {all}")).to_owned()
    }
}

impl Drop for IpfsDaemon {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
