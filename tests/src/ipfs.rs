//! Kubo's own program, `ipfs`, on a repo in a temporary directory: no daemon, no network.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::peers;

/// A Kubo repo.
pub struct Ipfs {
    dir: tempfile::TempDir,
}

impl Ipfs {
    /// A fresh repo.
    pub fn init() -> Ipfs {
        let ipfs = Ipfs { dir: tempfile::tempdir().expect("a temporary directory") };
        ipfs.run(&["init"]);
        println!("{}", ipfs.text(&["version"]));
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
