//! Node processes of the demo: the same program, each with a repo of its own, driven through its API.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::api::call::Call;
use crate::cli::client::Client;
use crate::repo::Repo;

/// What the `ready` line of a daemon says.
#[derive(Clone, Debug, Deserialize)]
pub struct Ready {
    /// Peer id.
    pub peer: String,
    /// Multiaddresses with peer id.
    pub swarm: Vec<String>,
    /// `IP:PORT` of the peer wire.
    pub bittorrent: Option<String>,
}

/// One node of the demo. Its process is killed when this is dropped, unless it was let go.
pub struct NodeProcess {
    /// What the demo calls it.
    pub name: String,
    /// Its repo.
    pub path: PathBuf,
    /// What it said when it was ready; kept when it stops.
    pub ready: Option<Ready>,
    child: Option<Child>,
    client: Option<Client>,
    /// Largest peak of its earlier processes in KiB.
    earlier_peak_kib: Option<u64>,
}

/// A daemon has so long to get ready.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// And so long to stop.
const STOPS_WITHIN: Duration = Duration::from_secs(30);

fn program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("cannot find the btfs program itself")
}

impl NodeProcess {
    /// Makes a repo with ports of its own.
    pub async fn init(name: &str, path: &Path, network: Option<&Path>) -> anyhow::Result<Self> {
        let mut arguments = vec!["init".to_owned(), "--local-ports".to_owned(), "--json".to_owned()];
        if let Some(network) = network {
            arguments.extend(["--network".to_owned(), network.display().to_string()]);
        }
        run(path, &arguments).await?;
        Ok(Self {
            name: name.to_owned(),
            path: path.to_owned(),
            ready: None,
            child: None,
            client: None,
            earlier_peak_kib: None,
        })
    }

    /// Runs `btfs ARGUMENTS --json` on its repo and reads the answer.
    pub async fn command(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let arguments: Vec<String> =
            arguments.iter().map(|a| (*a).to_owned()).chain(["--json".to_owned()]).collect();
        run(&self.path, &arguments)
            .await
            .with_context(|| format!("{}: btfs {}", self.name, arguments.join(" ")))
    }

    /// Starts the daemon and waits until it is ready.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.path.join("daemon.log"))?;
        let mut child = Command::new(program()?)
            .args(["daemon", "--json"])
            .env("BTFS_PATH", &self.path)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        let stdout = child.stdout.take();
        // From here on it ends with this, whatever happens next.
        self.child = Some(child);
        let stdout = stdout.context("the daemon has no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(STARTS_WITHIN, lines.next_line())
            .await
            .map_err(|_| {
                anyhow!("{} is not ready after {} s{}", self.name, STARTS_WITHIN.as_secs(), self.log_tail())
            })??
            .ok_or_else(|| anyhow!("{} ended before it was ready{}", self.name, self.log_tail()))?;
        self.ready =
            Some(serde_json::from_str(&line).with_context(|| format!("{} said: {line}", self.name))?);
        self.client = Some(Client::daemon(&Repo::open(&self.path)?, false).await?);
        Ok(())
    }

    /// The end of its log, for errors.
    fn log_tail(&self) -> String {
        let log = std::fs::read_to_string(self.path.join("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.into_iter().rev().fold("; its log ends:".to_owned(), |text, line| format!("{text}\n  {line}"))
    }

    /// Asks the running daemon.
    pub async fn call<C: Call>(&self, request: &C) -> anyhow::Result<C::Answer> {
        let client = self.client.as_ref().with_context(|| format!("{} does not run", self.name))?;
        client.call(request).await.with_context(|| format!("{}: {}", self.name, C::PATH))
    }

    /// Its first loopback TCP address with peer id.
    pub fn tcp_address(&self) -> anyhow::Result<String> {
        let ready = self.ready.as_ref().with_context(|| format!("{} never ran", self.name))?;
        ready
            .swarm
            .iter()
            .find(|address| address.starts_with("/ip4/127.0.0.1/tcp/"))
            .cloned()
            .with_context(|| format!("{} does not listen on loopback", self.name))
    }

    /// Its peer id.
    pub fn peer(&self) -> &str {
        self.ready.as_ref().map_or("", |ready| &ready.peer)
    }

    /// Whether its process runs.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Asks it to stop and waits for its end.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.client = None;
        self.earlier_peak_kib = self.peak_memory_kib();
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(pid) = pid {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let Ok(status) = tokio::time::timeout(STOPS_WITHIN, child.wait()).await else {
            child.kill().await?;
            bail!(
                "{} did not stop within {} s and was killed{}",
                self.name,
                STOPS_WITHIN.as_secs(),
                self.log_tail()
            );
        };
        let status = status?;
        if !status.success() {
            bail!("{} ended with {status}{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// SIGKILL: it gets no chance to tell anybody.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.client = None;
        self.earlier_peak_kib = self.peak_memory_kib();
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Leaves it running when the demo ends.
    pub fn let_go(&mut self) {
        if let Some(child) = self.child.take() {
            // Dropping a tokio child without kill_on_drop leaves the process alone.
            drop(child);
        }
    }

    /// Peak resident memory of its process, and of those it had before, in KiB; none if it never ran.
    pub fn peak_memory_kib(&self) -> Option<u64> {
        let of_child = || {
            let pid = self.child.as_ref()?.id()?;
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            peak.trim().strip_suffix(" kB")?.trim().parse().ok()
        };
        of_child().max(self.earlier_peak_kib)
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Already gone is fine.
            let _ = child.start_kill();
        }
    }
}

async fn run(path: &Path, arguments: &[String]) -> anyhow::Result<serde_json::Value> {
    let output =
        Command::new(program()?).args(arguments).env("BTFS_PATH", path).stdin(Stdio::null()).output().await?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("the answer is not JSON")
}
