//! `btfs demo`: a network of real node processes on this machine that does what a node is for, and says so.
//!
//! One node keeps the bootstrap address and the ledger, one rents, six rent out, two only read. A file is stored for
//! 30 days; the ledger's clock is stepped by a day as soon as that day's work is done. Hosts fail on the way, the
//! renter is away for some days, and the file is fetched by CID with the help of parity, and by magnet over the
//! BitTorrent peer wire. What was paid is checked against what was proven.
//!
//! * [`process`] starts, asks and ends the nodes; * `story` is what happens, step by step; * `report` is the end:
//!   figures, the checks, the table.

use std::path::{Path, PathBuf};

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

pub mod process;
mod report;
mod story;

use report::Report;
use story::Story;

/// The arguments of `btfs demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// The file to store; default: 64 MiB that the demo makes.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Leave the network running, and say how to use it.
    #[arg(long)]
    keep: bool,
}

impl Demo {
    /// Runs it; fails if anything is not as it must be.
    pub async fn run(self, json: bool) -> anyhow::Result<()> {
        let begun = std::time::Instant::now();
        let mut signals = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?];
        let say = Say { silent: json, begun };
        let dir = tempfile::Builder::new().prefix("btfs-demo-").tempdir()?;
        let mut story = Story::begin(say, dir.path(), self.file.as_deref()).await?;
        let told = tokio::select! {
            told = story.tell() => told,
            () = any(&mut signals) => Err(anyhow::anyhow!("the demo was interrupted; its network is stopped")),
        };
        if self.keep && told.is_ok() {
            story.keep();
            say.how_to_use(&dir.keep());
        } else {
            story.end().await;
        }
        let report: Report = told?;
        let faults = report.faults();
        if json {
            println!("{}", serde_json::to_string(&report.json(begun.elapsed()))?);
        } else {
            print!("{}", report.table(begun.elapsed()));
        }
        anyhow::ensure!(faults.is_empty(), "the demo did not go as it must:\n  {}", faults.join("\n  "));
        Ok(())
    }
}

/// Waits for one of two signals.
async fn any([one, other]: &mut [Signal; 2]) {
    tokio::select! {
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

/// Narrates to people; silent when the answer is JSON.
#[derive(Clone, Copy, Debug)]
pub struct Say {
    silent: bool,
    begun: std::time::Instant,
}

impl Say {
    /// One line with the seconds since the start.
    pub fn line(&self, text: &str) {
        if !self.silent {
            println!("{:6.1}s  {text}", self.begun.elapsed().as_secs_f64());
        }
    }

    /// How to play with a network that runs on, in lines for a shell; beside the JSON when that is the answer.
    fn how_to_use(&self, dir: &Path) {
        let mut text = format!("# the network runs on; its repos are in {}\n", dir.display());
        for (name, role) in [("renter", "the renter"), ("host-1", "a host")] {
            text += &format!("export BTFS_PATH={}   # to be {role}\n", dir.join(name).display());
        }
        if self.silent { eprint!("{text}") } else { print!("{text}") }
    }
}
