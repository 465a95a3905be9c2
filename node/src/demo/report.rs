//! The end of the demo: figures, whether they are as they must be, and the table.

use std::fmt::Write;
use std::time::Duration;

use btfs_ledger::Btt;
use serde_json::{Value, json};

/// What the demo found.
#[derive(Debug, Default)]
pub struct Report {
    pub cid: String,
    pub layout: Option<String>,
    /// Whether the file was coded; a file of too few shards is copied.
    pub coded: bool,
    pub infohash: String,
    pub magnet: String,
    pub file_sha256: String,
    pub fetched_sha256: String,
    pub torrent_sha256: String,
    pub leaves_from_parity: u64,
    pub hosts: Vec<HostLine>,
    pub renter_spent: Btt,
    pub supply_before: String,
    pub supply_after: String,
    pub space_freed_on_day: Option<u32>,
    /// Largest peak of all the nodes' processes.
    pub peak_memory_kib: Option<u64>,
}

/// One host at the end.
#[derive(Debug)]
pub struct HostLine {
    pub name: String,
    pub peer: String,
    pub days_proven: u32,
    pub days_failed: u32,
    pub earned: Btt,
    pub redeemed: Btt,
    pub epoch_price: Btt,
    /// Days it must have been paid for.
    pub days_expected: u32,
    pub alive: bool,
}

impl Report {
    /// What is not as it must be; empty when all is well.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut expect = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        expect(self.fetched_sha256 == self.file_sha256, "the file fetched by CID differs".into());
        expect(self.torrent_sha256 == self.file_sha256, "the file fetched by magnet differs".into());
        expect(!self.coded || self.leaves_from_parity > 0, "nothing was rebuilt from parity".into());
        expect(
            self.supply_before == self.supply_after,
            format!("the supply was {} BTT and is {} BTT", self.supply_before, self.supply_after),
        );
        expect(self.space_freed_on_day.is_some(), "the hosts' space was not freed".into());
        let mut sum = Some(Btt::ZERO);
        for host in &self.hosts {
            sum = sum.and_then(|sum| sum.checked_add(host.earned));
            let due = host.epoch_price.checked_mul(u64::from(host.days_expected));
            expect(
                host.days_proven == host.days_expected && Some(host.earned) == due,
                format!(
                    "{} was paid {} BTT for {} days instead of {} days",
                    host.name, host.earned, host.days_proven, host.days_expected
                ),
            );
            expect(
                !host.alive || host.redeemed == host.earned,
                format!("{} has redeemed {} of {} BTT", host.name, host.redeemed, host.earned),
            );
        }
        expect(
            sum == Some(self.renter_spent),
            format!("the renter spent {} BTT, which is not what the hosts earned", self.renter_spent),
        );
        faults
    }

    /// The one object of `--json`.
    pub fn json(&self, took: Duration) -> Value {
        let hosts: Vec<Value> = self
            .hosts
            .iter()
            .map(|host| {
                json!({
                    "peer": host.peer,
                    "days_proven": host.days_proven,
                    "days_failed": host.days_failed,
                    "earned_btt": host.earned.to_string(),
                    "redeemed_btt": host.redeemed.to_string(),
                })
            })
            .collect();
        json!({
            "cid": self.cid,
            "layout": self.layout,
            "infohash": self.infohash,
            "magnet": self.magnet,
            "file_sha256": self.file_sha256,
            "fetched_sha256": self.fetched_sha256,
            "torrent_sha256": self.torrent_sha256,
            "leaves_from_parity": self.leaves_from_parity,
            "hosts": hosts,
            "renter_spent_btt": self.renter_spent.to_string(),
            "supply_before": self.supply_before,
            "supply_after": self.supply_after,
            "peak_memory_kib": self.peak_memory_kib,
            "seconds": took.as_secs(),
        })
    }

    /// The same for people.
    pub fn table(&self, took: Duration) -> String {
        let mut text = String::from(
            "\nhost     days proven  not  BTT a day              earned BTT             redeemed BTT\n",
        );
        for host in &self.hosts {
            let _ = writeln!(
                text,
                "{:<8} {:>11} {:>4}  {:<22} {:<22} {}{}",
                host.name,
                host.days_proven,
                host.days_failed,
                host.epoch_price.to_string(),
                host.earned.to_string(),
                host.redeemed,
                if host.alive { "" } else { " (killed; the rest waits in the lock)" }
            );
        }
        let peak = self
            .peak_memory_kib
            .map(|kib| format!("; largest process {} MiB", kib / 1024))
            .unwrap_or_default();
        let _ = writeln!(
            text,
            "\nthe renter spent {} BTT; the supply, summed anew over accounts and locks: {} BTT before, {} BTT after\n{} leaves from parity; {} s{peak}",
            self.renter_spent,
            self.supply_before,
            self.supply_after,
            self.leaves_from_parity,
            took.as_secs()
        );
        text
    }
}
