//! What happens in the demo, in order.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use btfs_market::renter::PlaceStatus;
use btfs_market::{Spread, ThingStatus};
use futures::future::try_join_all;
use sha2::{Digest, Sha256};

use super::Say;
use super::process::NodeProcess;
use super::report::{HostLine, Report};
use crate::calls::add::{AddRequest, Added};
use crate::calls::files::GetRequest;
use crate::calls::ledger::{LedgerStatus, LedgerStatusRequest, LedgerStepRequest};
use crate::calls::market::{
    AcceptRequest, HostSetRequest, HostStatusRequest, QuoteRequest, StoreStatusRequest, WorkRequest,
};
use crate::calls::torrent::TorrentCreateRequest;
use crate::calls::wallet::SendRequest;
use crate::config::ByteSize;

const DAY: u64 = 86_400;
const DAYS: u32 = 30;
/// After this day's work one host loses half of its blocks.
const LOSS_DAY: u32 = 5;
/// After this day's work two hosts are killed.
const KILL_DAY: u32 = 10;
/// After this day's work the renter is stopped and the readers come.
const AWAY_DAY: u32 = 20;
/// On this day the renter comes back.
const BACK_DAY: u32 = 25;
/// Days after the term in which hosts redeem, renters take refunds and space is freed.
const LAST_DAY: u32 = DAYS + 14;
const HOSTS: usize = 6;
const SUPPLY: &str = "1000000";
const FUNDS: &str = "1000";
const PRICES: [&str; HOSTS] = ["0.010", "0.011", "0.012", "0.013", "0.014", "0.015"];
const MADE_UP_SIZE: usize = 64 << 20;
/// A day's work may take so long on a slow machine.
const WORK_TAKES: Duration = Duration::from_secs(120);

/// The network and how far the story has come.
pub struct Story {
    say: Say,
    dir: PathBuf,
    file: PathBuf,
    name: String,
    size: u64,
    ledger: NodeProcess,
    renter: NodeProcess,
    hosts: Vec<NodeProcess>,
    readers: Vec<NodeProcess>,
    report: Report,
}

/// Which hosts meet which fate, by index into `hosts`.
#[derive(Clone, Copy, Debug)]
struct Fates {
    loses_blocks: usize,
    killed: [usize; 2],
}

impl Story {
    /// Makes the file if none was given, and all the repos.
    pub async fn begin(say: Say, dir: &Path, file: Option<&Path>) -> anyhow::Result<Self> {
        let (file, name) = match file {
            Some(file) => {
                let file =
                    std::fs::canonicalize(file).with_context(|| format!("cannot read {}", file.display()))?;
                let name = file.file_name().context("the file has no name")?.to_string_lossy().into_owned();
                (file, name)
            }
            None => (made_up_file(dir)?, "demo.bin".to_owned()),
        };
        let size = std::fs::metadata(&file)?.len();
        ensure!(
            size > 0,
            "{} is empty: an empty file has nothing to rent space for; its CID alone is its content",
            file.display()
        );
        let file_sha256 = sha256(&file)?;
        say.line(&format!("storing {name}, {}, sha256 {file_sha256}", ByteSize(size)));
        let network = dir.join("network.toml");
        let ledger = make_ledger(dir, &network).await?;
        let make = |name: String| {
            let network = network.clone();
            async move { NodeProcess::init(&name, &dir.join(&name), Some(&network)).await }
        };
        let renter = make("renter".into()).await?;
        let hosts = try_join_all((1..=HOSTS).map(|n| make(format!("host-{n}")))).await?;
        let readers = try_join_all((1..=2).map(|n| make(format!("reader-{n}")))).await?;
        let report = Report { file_sha256, ..Report::default() };
        Ok(Self { say, dir: dir.to_owned(), file, name, size, ledger, renter, hosts, readers, report })
    }

    /// Everything, to the end; what came of it.
    pub async fn tell(&mut self) -> anyhow::Result<Report> {
        self.start_network().await?;
        let added = self.add().await?;
        let fates = self.store(&added).await?;
        for day in 1..=DAYS {
            self.pass_day(day).await?;
            match day {
                LOSS_DAY => self.lose_blocks(fates).await?,
                KILL_DAY => self.kill_hosts(fates).await?,
                AWAY_DAY => {
                    self.say.line("the renter is stopped");
                    self.renter.stop().await?;
                    self.read_by_cid(&added).await?;
                    self.read_by_magnet(&added).await?;
                }
                BACK_DAY => self.renter_returns().await?,
                _ => {}
            }
        }
        self.close().await?;
        self.finish(fates).await?;
        Ok(std::mem::take(&mut self.report))
    }

    async fn start_network(&mut self) -> anyhow::Result<()> {
        self.ledger.start().await?;
        try_join_all(self.hosts.iter_mut().chain([&mut self.renter]).map(NodeProcess::start)).await?;
        let status = self.ledger_status().await?;
        self.report.supply_before = status.supply_btt.context("the operator knows the supply")?;
        self.say.line(&format!(
            "8 nodes run; the ledger holds {} BTT, operated by {}",
            self.report.supply_before, status.operator
        ));
        let renter = self.renter.command(&["wallet", "address"]).await?;
        let to = renter["address"].as_str().context("no address")?.to_owned();
        self.ledger.call(&SendRequest { to, amount: FUNDS.into() }).await?;
        self.say.line(&format!("the renter has {FUNDS} BTT of the genesis"));
        for (host, price) in self.hosts.iter().zip(PRICES) {
            let capacity = (self.size * 2).max(1 << 30);
            host.call(&HostSetRequest {
                price: Some(price.into()),
                capacity: Some(capacity),
                renting: Some(true),
                ..HostSetRequest::default()
            })
            .await?;
        }
        self.say.line(&format!(
            "{HOSTS} hosts publish offers from {} to {} BTT a GiB and day",
            PRICES[0],
            PRICES[HOSTS - 1]
        ));
        Ok(())
    }

    async fn add(&mut self) -> anyhow::Result<Added> {
        let request = AddRequest { path: self.file.clone(), torrent: true, ..AddRequest::default() };
        let added = self.renter.call(&request).await?;
        self.report.cid = added.cid.clone();
        self.report.infohash = added.infohash.clone().context("no infohash")?;
        self.report.magnet = added.magnet.clone().context("no magnet")?;
        self.say.line(&format!(
            "added: {} ({} blocks); infohash {}",
            added.cid, added.blocks, self.report.infohash
        ));
        Ok(added)
    }

    async fn store(&mut self, added: &Added) -> anyhow::Result<Fates> {
        let quote = self
            .renter
            .call(&QuoteRequest {
                reference: added.cid.clone(),
                name: Some(self.name.clone()),
                seconds: u64::from(DAYS) * DAY,
                redundancy: Some((2, 4)),
                ..QuoteRequest::default()
            })
            .await?;
        self.report.layout = quote.layout.map(|cid| cid.to_string());
        self.report.coded = matches!(quote.spread, Spread::Coded { .. });
        let note = quote.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        self.say.line(&format!(
            "quote: {:?}, {} on {} hosts for {DAYS} days, at most {} BTT, probability of loss {:.1e}{note}",
            quote.spread,
            ByteSize(quote.stored_size),
            quote.hosts.len(),
            quote.lock_btt,
            quote.term_loss
        ));
        let thing = self.renter.call(&AcceptRequest { quote: quote.id }).await?;
        let places = active(&thing);
        ensure!(
            places.len() == quote.hosts.len(),
            "only {} of {} agreements became active: {:?}",
            places.len(),
            quote.hosts.len(),
            thing.problem
        );
        for place in &places {
            let host = &self.hosts[self.host_of(place)?];
            self.say.line(&format!(
                "{} keeps column {}: {} for {} BTT a day",
                host.name,
                place.column,
                ByteSize(place.size),
                place.epoch_price_btt
            ));
        }
        let by_column: BTreeMap<u32, usize> = places
            .iter()
            .map(|place| Ok((place.column, self.host_of(place)?)))
            .collect::<anyhow::Result<_>>()?;
        let columns: Vec<usize> = by_column.into_values().collect();
        let last = columns.len() - 1;
        // Column 0 holds data; the last ones hold parity, or all are copies.
        Ok(Fates { loses_blocks: columns[last], killed: [columns[0], columns[last - 1]] })
    }

    /// Index of the host of an agreement.
    fn host_of(&self, place: &PlaceStatus) -> anyhow::Result<usize> {
        let peer = crate::services::courier::peer_of(&place.peer).map_err(anyhow::Error::msg)?.to_string();
        self.hosts
            .iter()
            .position(|host| host.peer() == peer)
            .context("an agreement with a host that is not of the demo")
    }

    /// Steps the ledger's clock by a day and waits until that day's work is done.
    async fn pass_day(&mut self, day: u32) -> anyhow::Result<()> {
        let before = if self.renter.runs() { Some(self.thing().await?) } else { None };
        let time = self.ledger.call(&LedgerStepRequest { seconds: DAY }).await?.time;
        self.work_done(time).await?;
        let Some(before) = before else {
            self.say.line(&format!("day {day:2}: the renter is away"));
            return Ok(());
        };
        let after = self.thing().await?;
        let told: Vec<String> = active(&after)
            .iter()
            .map(|place| {
                let was = before.places.iter().find(|old| old.agreement == place.agreement);
                let proven = place.days_proven - was.map_or(0, |old| old.days_proven);
                let name = self
                    .host_of(place)
                    .map_or("?", |index| &self.hosts[index].name)
                    .trim_start_matches("host-");
                match proven {
                    0 => format!("{name}: unpaid"),
                    1 => format!("{name}: {} BTT", place.earned_btt),
                    n => format!("{name}: {} BTT ({n} days)", place.earned_btt),
                }
            })
            .collect();
        if day <= DAYS {
            self.say.line(&format!("day {day:2}: {}", told.join(", ")));
        }
        Ok(())
    }

    /// Waits until every running node has done what is due by `time`.
    async fn work_done(&self, time: u64) -> anyhow::Result<()> {
        let deadline = Instant::now() + WORK_TAKES;
        for node in self.hosts.iter().chain([&self.renter]).filter(|node| node.runs()) {
            while !node.call(&WorkRequest { through: time }).await?.done {
                if Instant::now() > deadline {
                    bail!("{} has not done the work of a day within {} s", node.name, WORK_TAKES.as_secs());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    async fn thing(&self) -> anyhow::Result<ThingStatus> {
        self.renter.call(&StoreStatusRequest { name: self.report.cid.clone() }).await
    }

    async fn ledger_status(&self) -> anyhow::Result<LedgerStatus> {
        self.ledger.call(&LedgerStatusRequest {}).await
    }

    /// One host loses half of its blocks while its daemon is not looking.
    async fn lose_blocks(&mut self, fates: Fates) -> anyhow::Result<()> {
        let host = &mut self.hosts[fates.loses_blocks];
        host.stop().await?;
        let path = host.path.clone();
        let (lost, of) = tokio::task::spawn_blocking(move || remove_half(&path)).await??;
        host.start().await?;
        let name = host.name.clone();
        self.say.line(&format!("{name} loses {lost} of {of} blocks behind its daemon's back"));
        Ok(())
    }

    async fn kill_hosts(&mut self, fates: Fates) -> anyhow::Result<()> {
        for index in fates.killed {
            self.hosts[index].kill().await?;
            self.say.line(&format!("{} gets SIGKILL", self.hosts[index].name));
        }
        Ok(())
    }

    async fn read_by_cid(&mut self, added: &Added) -> anyhow::Result<()> {
        let target = self.dir.join("by-cid");
        let reader = &mut self.readers[0];
        reader.start().await?;
        let request = GetRequest {
            reference: added.cid.clone(),
            target: target.clone(),
            pin: true,
            ..GetRequest::default()
        };
        let got = reader.call(&request).await?;
        self.report.fetched_sha256 = sha256(&target)?;
        self.report.leaves_from_parity = got.leaves_from_parity;
        self.say.line(&format!(
            "reader-1 knows only the CID: {} blocks by Bitswap, {} rebuilt from parity; sha256 {}",
            got.blocks_fetched, got.leaves_from_parity, self.report.fetched_sha256
        ));
        let seed = TorrentCreateRequest {
            reference: added.cid.clone(),
            name: self.name.clone(),
            ..TorrentCreateRequest::default()
        };
        let torrent = reader.call(&seed).await?;
        ensure!(
            torrent.infohash == self.report.infohash,
            "the reader's torrent has infohash {}, the renter's {}",
            torrent.infohash,
            self.report.infohash
        );
        Ok(())
    }

    async fn read_by_magnet(&mut self, added: &Added) -> anyhow::Result<()> {
        let target = self.dir.join("by-magnet");
        let seeder = self.readers[0]
            .ready
            .as_ref()
            .and_then(|ready| ready.bittorrent.clone())
            .context("reader-1 has no peer wire")?;
        self.readers[1].command(&["config", "set", "swarm.enabled", "false"]).await?;
        self.readers[1].start().await?;
        let request = GetRequest {
            reference: self.report.magnet.clone(),
            target: target.clone(),
            peers: vec![seeder],
            ..GetRequest::default()
        };
        let got = self.readers[1].call(&request).await?;
        ensure!(got.cid == added.cid, "by magnet came {}, not {}", got.cid, added.cid);
        self.report.torrent_sha256 = sha256(&target)?;
        self.say.line(&format!(
            "reader-2 without libp2p knows only the magnet: the same CID, sha256 {}",
            self.report.torrent_sha256
        ));
        Ok(())
    }

    async fn renter_returns(&mut self) -> anyhow::Result<()> {
        let before = self.ledger_status().await?.time;
        self.renter.start().await?;
        self.work_done(before).await?;
        let thing = self.thing().await?;
        let days: u32 = active(&thing).iter().map(|place| place.days_proven).max().unwrap_or_default();
        self.say.line(&format!(
            "the renter is back and has settled the missed days with one audit each: {days} days proven"
        ));
        Ok(())
    }

    /// After the term: hosts redeem, the renter takes its refunds, the space is freed.
    async fn close(&mut self) -> anyhow::Result<()> {
        for day in DAYS + 1..=LAST_DAY {
            self.pass_day(day).await?;
            let mut used = 0;
            for host in self.hosts.iter().filter(|host| host.runs()) {
                used += host.call(&HostStatusRequest {}).await?.used_bytes;
            }
            if used == 0 {
                self.report.space_freed_on_day = Some(day);
                self.say.line(&format!("day {day}: the space of the hosts that are left is free again"));
                return Ok(());
            }
        }
        Ok(())
    }

    async fn finish(&mut self, fates: Fates) -> anyhow::Result<()> {
        let thing = self.thing().await?;
        for place in active(&thing) {
            let index = self.host_of(&place)?;
            let host = &self.hosts[index];
            let redeemed = match host.runs() {
                true => host.call(&HostStatusRequest {}).await?.redeemed_btt,
                // What the ledger has paid to it, as the renter read it last.
                false => place.redeemed_btt,
            };
            let paid_days = match index {
                _ if index == fates.loses_blocks => LOSS_DAY,
                _ if fates.killed.contains(&index) => KILL_DAY,
                _ => DAYS,
            };
            self.report.hosts.push(HostLine {
                name: host.name.clone(),
                peer: host.peer().to_owned(),
                days_proven: place.days_proven,
                days_failed: place.days_failed,
                earned: place.earned_btt,
                redeemed,
                epoch_price: place.epoch_price_btt,
                days_expected: paid_days,
                alive: host.runs(),
            });
        }
        self.report.hosts.sort_by(|a, b| a.name.cmp(&b.name));
        self.report.renter_spent = thing.spent_btt;
        self.report.supply_after =
            self.ledger_status().await?.supply_btt.context("the operator knows the supply")?;
        self.report.peak_memory_kib = self
            .hosts
            .iter()
            .chain([&self.renter, &self.ledger])
            .chain(&self.readers)
            .filter_map(NodeProcess::peak_memory_kib)
            .max();
        Ok(())
    }

    /// Lets all processes run on.
    pub fn keep(&mut self) {
        for node in self.all() {
            node.let_go();
        }
    }

    /// Ends all processes. Failures here do not change what was shown.
    pub async fn end(&mut self) {
        for node in self.all() {
            if let Err(error) = node.stop().await {
                tracing::warn!(%error, "a node of the demo did not stop well");
            }
        }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut NodeProcess> {
        self.hosts.iter_mut().chain(&mut self.readers).chain([&mut self.renter, &mut self.ledger])
    }
}

/// The agreements that were ever active.
fn active(thing: &ThingStatus) -> Vec<PlaceStatus> {
    thing.places.iter().filter(|place| place.start > 0).cloned().collect()
}

/// The ledger's node: on a port that the network file can name.
async fn make_ledger(dir: &Path, network: &Path) -> anyhow::Result<NodeProcess> {
    let ledger = NodeProcess::init("ledger", &dir.join("ledger"), None).await?;
    let port = free_port()?;
    let listen = format!("[\"/ip4/127.0.0.1/tcp/{port}\"]");
    ledger.command(&["config", "set", "swarm.listen", &listen]).await?;
    let out = network.display().to_string();
    ledger
        .command(&["ledger", "init", "--supply", SUPPLY, "--name", "demo", "--local", "--out", &out])
        .await?;
    Ok(ledger)
}

/// A free TCP port below those that the system hands out by itself, so that no connection takes it before it is used.
fn free_port() -> anyhow::Result<u16> {
    use rand::RngExt;
    const TRIES: usize = 100;
    let mut ports = std::iter::repeat_with(|| rand::rng().random_range(10_000..32_000)).take(TRIES);
    let free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(free).context("no TCP port is free on 127.0.0.1")
}

/// Removes every second block of a repo, or all of them when there are so few that audits could miss the loss.
fn remove_half(path: &Path) -> anyhow::Result<(usize, usize)> {
    use btfs_storage::{Quota, Store, StoreOptions};
    const FEW: usize = 8;
    const AT_ONCE: usize = 1 << 20;
    let options = StoreOptions {
        path: path.to_owned(),
        tables: crate::services::tables(),
        quota: Quota::default(),
        reserve_bytes: 0,
    };
    let store = Store::open(options)?;
    let blocks = store.blocks(None, AT_ONCE)?;
    let step = if blocks.len() < FEW { 1 } else { 2 };
    let mut lost = 0;
    for block in blocks.iter().step_by(step) {
        store.remove(&block.cid)?;
        lost += 1;
    }
    store.close()?;
    Ok((lost, blocks.len()))
}

/// 64 MiB that no compressor can shorten.
fn made_up_file(dir: &Path) -> anyhow::Result<PathBuf> {
    use rand::{Rng, SeedableRng};
    let path = dir.join("demo.bin");
    let mut bytes = vec![0u8; 1 << 20];
    let mut rng = rand::rngs::SmallRng::seed_from_u64(0x6274_6673);
    let mut file = std::fs::File::create(&path)?;
    for _ in 0..MADE_UP_SIZE / bytes.len() {
        rng.fill_bytes(&mut bytes);
        file.write_all(&bytes)?;
    }
    Ok(path)
}

fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}
