//! A small network: one ledger, some nodes with a runtime and a repo each, and a wire that can be cut.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use async_trait::async_trait;
use btfs_ledger::embedded::{Genesis, Ledger, LedgerOptions};
use btfs_ledger::settlement::LocalLedger;
use btfs_ledger::wallet::{self, Wallet};
use btfs_ledger::{B256, Btt, PublicKey, SecretKey};
use btfs_storage::db::StateDb;
use btfs_storage::import::{self, Profile};
use btfs_storage::{BlockSource, Bytes, Cid, Class, Pin, PinKind, Quota, Store, StoreOptions};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};

use super::line::Line;
use crate::host::HostSettings;
use crate::market::{Market, MarketConfig, TABLES};
use crate::ports::{Courier, CourierError, Discovery, PullError, Puller};
use crate::renter::{PlaceStatus, StoreRequest, ThingStatus};

/// A day.
pub const DAY: u64 = 86_400;
/// Settlement time at the beginning; the wall clock of the test ledgers stands still there.
pub const BEGIN: u64 = 1_800_000_000;
/// Everything that a test waits for happens within this, or the test fails.
const LIMIT: Duration = Duration::from_secs(120);

/// Which node goes down at a cut, and at which moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The asked node dies before it hears the message.
    ServerBefore,
    /// The asked node dies after it has acted, before its answer is out.
    ServerAfter,
    /// The asking node dies before the answer comes.
    ClientAfter,
}

/// What a tampered wire does with a message.
pub enum Tamper {
    /// Carries it.
    Pass,
    /// Answers itself.
    Instead(Result<Vec<u8>, CourierError>),
    /// Carries it and answers something else.
    After(Result<Vec<u8>, CourierError>),
}

/// A tampered wire: the asked node, the protocol and the request.
type Tampering = dyn Fn(&PublicKey, &str, &[u8]) -> Tamper + Send + Sync;

/// The wire.
#[derive(Default)]
pub struct Wire {
    /// Plays a hostile node, if there is one.
    tampering: Mutex<Option<Arc<Tampering>>>,
    nodes: Mutex<HashMap<PublicKey, Live>>,
    hosts: Mutex<Vec<PublicKey>>,
    /// Whose questions to the settlement are not answered.
    deaf: Mutex<Vec<PublicKey>>,
    /// Messages so far, and the cut that is to come.
    plan: Mutex<Plan>,
    /// Who asks the settlement about a stream next, and what happens right after the answer was made.
    meanwhile: Mutex<Option<(PublicKey, BoxFuture<'static, ()>)>>,
}

#[derive(Default)]
struct Plan {
    messages: u64,
    cut: Option<(u64, Cut)>,
    /// Calls to the settlement so far, and the cut that is to come there.
    calls: u64,
    call_cut: Option<(u64, Cut)>,
    /// The node that went down by the cut.
    fell: Option<PublicKey>,
    /// Whoever waits for news.
    tell: Option<Sender<News>>,
}

/// What [`World::ride`] waits for.
enum News {
    Fell,
    Done,
}

struct Live {
    handle: Handle,
    market: Option<Market>,
    store: Store,
    runtime: Option<Runtime>,
}

impl Wire {
    /// Lets `f` decide over every message from now on.
    pub fn tamper(&self, f: impl Fn(&PublicKey, &str, &[u8]) -> Tamper + Send + Sync + 'static) {
        *self.tampering.lock() = Some(Arc::new(f));
    }

    /// Carries everything again.
    pub fn behave(&self) {
        *self.tampering.lock() = None;
    }

    /// Takes a node's line to the settlement down, or up again.
    pub fn set_deaf(&self, key: PublicKey, deaf: bool) {
        let mut all = self.deaf.lock();
        all.retain(|k| *k != key);
        all.extend(deaf.then_some(key));
    }

    /// Whether a node's line to the settlement is down.
    pub fn is_deaf(&self, key: &PublicKey) -> bool {
        self.deaf.lock().contains(key)
    }

    /// Lets `f` happen once, right after the settlement has answered a question of `key`'s about a stream, before
    /// the answer arrives.
    pub fn meanwhile(&self, key: PublicKey, f: impl Future<Output = ()> + Send + 'static) {
        *self.meanwhile.lock() = Some((key, f.boxed()));
    }

    /// What is to happen after this node's question, if anything is left to.
    pub fn after_stream(&self, key: &PublicKey) -> Option<BoxFuture<'static, ()>> {
        self.meanwhile.lock().take_if(|(of, _)| of == key).map(|(_, f)| f)
    }

    /// Plans a cut at message number `at`, counted from now.
    pub fn cut_at(&self, at: u64, cut: Cut) {
        *self.plan.lock() = Plan { cut: Some((at, cut)), ..Plan::default() };
    }

    /// Plans a cut at call number `at` to the settlement: its caller dies.
    pub fn cut_call_at(&self, at: u64, cut: Cut) {
        *self.plan.lock() = Plan { call_cut: Some((at, cut)), ..Plan::default() };
    }

    /// Forgets a cut that did not come.
    pub fn no_cut(&self) {
        let mut plan = self.plan.lock();
        (plan.cut, plan.call_cut) = (None, None);
    }

    /// The node that went down, if the cut came.
    pub fn fallen(&self) -> Option<PublicKey> {
        self.plan.lock().fell
    }

    /// Ends a node as `kill -9` would: its tasks stop wherever they are.
    pub fn kill(&self, key: &PublicKey) {
        let live = self.nodes.lock().remove(key);
        if let Some(runtime) = live.and_then(|mut l| l.runtime.take()) {
            runtime.shutdown_background();
        }
    }

    fn next_cut(&self) -> Option<Cut> {
        let mut plan = self.plan.lock();
        plan.messages += 1;
        match plan.cut {
            Some((at, cut)) if at + 1 == plan.messages => {
                plan.cut = None;
                Some(cut)
            }
            _ => None,
        }
    }

    /// The cut of the call that is made now, if it is planned.
    pub fn next_call_cut(&self) -> Option<Cut> {
        let mut plan = self.plan.lock();
        plan.calls += 1;
        match plan.call_cut {
            Some((at, cut)) if at + 1 == plan.calls => {
                plan.call_cut = None;
                Some(cut)
            }
            _ => None,
        }
    }

    /// A node dies by a cut.
    pub fn fell(&self, key: &PublicKey) {
        self.kill(key);
        let mut plan = self.plan.lock();
        plan.fell = Some(*key);
        if let Some(tell) = &plan.tell {
            tell.send(News::Fell).ok();
        }
    }
}

/// The wire as one node sees it.
pub struct End {
    wire: Arc<Wire>,
    me: PublicKey,
}

#[async_trait]
impl Courier for End {
    async fn ask(
        &self,
        peer: &PublicKey,
        protocol: &'static str,
        request: Vec<u8>,
        _: Duration,
    ) -> Result<Vec<u8>, CourierError> {
        let gone = || CourierError::Unreachable("down".into());
        let tampering = self.wire.tampering.lock().clone();
        let other = match tampering.map_or(Tamper::Pass, |f| f(peer, protocol, &request)) {
            Tamper::Instead(answer) => return answer,
            Tamper::After(answer) => Some(answer),
            Tamper::Pass => None,
        };
        let cut = self.wire.next_cut();
        if cut == Some(Cut::ServerBefore) {
            self.wire.fell(peer);
        }
        let (handle, market) = {
            let nodes = self.wire.nodes.lock();
            let live = nodes.get(peer).ok_or_else(gone)?;
            (live.handle.clone(), live.market.clone().ok_or_else(gone)?)
        };
        let me = self.me;
        let answer = handle.spawn(async move { market.handle(protocol, me, request).await }).await;
        match cut {
            Some(Cut::ServerAfter) => {
                self.wire.fell(peer);
                return Err(CourierError::Timeout);
            }
            Some(Cut::ClientAfter) => {
                self.wire.fell(&me);
                // This task is gone with its runtime; it must not go on meanwhile.
                std::future::pending::<()>().await;
            }
            _ => {}
        }
        if let Some(other) = other {
            return other;
        }
        answer.map_err(|_| CourierError::Timeout)?.map_err(CourierError::Refused)
    }
}

#[async_trait]
impl Puller for End {
    async fn pull(
        &self,
        from: &PublicKey,
        wanted: Vec<Cid>,
    ) -> Result<BoxStream<'static, Result<(Cid, Bytes), PullError>>, PullError> {
        let store = self.wire.nodes.lock().get(from).map(|l| l.store.clone());
        let store = store.ok_or_else(|| PullError::Unreachable("down".into()))?;
        let block = move |cid: Cid| match store.get(&cid) {
            Ok(Some(data)) => Ok((cid, data)),
            _ => Err(PullError::Missing(cid)),
        };
        Ok(futures::stream::iter(wanted).map(block).boxed())
    }
}

#[async_trait]
impl Discovery for End {
    async fn hosts(&self, limit: usize) -> Vec<PublicKey> {
        self.wire.hosts.lock().iter().take(limit).copied().collect()
    }

    async fn announce_host(&self) {
        let mut hosts = self.wire.hosts.lock();
        if !hosts.contains(&self.me) {
            hosts.push(self.me);
        }
    }

    async fn withdraw_host(&self) {
        self.wire.hosts.lock().retain(|h| *h != self.me);
    }

    async fn ip_of(&self, _: &PublicKey) -> Option<IpAddr> {
        None
    }

    async fn online(&self) -> bool {
        true
    }
}

/// A node that may be up or down.
pub struct Node {
    pub key: SecretKey,
    dir: TempDir,
}

/// The network.
pub struct World {
    pub wire: Arc<Wire>,
    pub ledger: Arc<Ledger>,
    pub nodes: Vec<Node>,
    /// Whether the nodes take the network for a local one. Its clock can be stepped either way.
    local: bool,
    _dir: TempDir,
}

/// An amount in whole BTT.
pub fn btt(n: u64) -> Btt {
    Btt::ONE.checked_mul(n).unwrap()
}

fn key(n: u8) -> SecretKey {
    SecretKey::from_bytes(&[n; 32]).unwrap()
}

impl World {
    /// A ledger and `n` nodes with 1000 BTT each, all up.
    pub fn new(n: u8) -> World {
        World::with(n, true)
    }

    /// The same, the nodes taking the network for local or not.
    pub fn with(n: u8, local: bool) -> World {
        let dir = tempfile::tempdir().unwrap();
        let db = StateDb::open(dir.path(), &btfs_ledger::embedded::TABLES).unwrap();
        let accounts = (1..=n).map(|i| (key(i).address(), btt(1000)));
        let genesis = Genesis::new(key(200).public(), accounts, 60).unwrap();
        let options = LedgerOptions { local: true, wall: Arc::new(|| BEGIN) };
        let ledger = Arc::new(Ledger::create(db, genesis, options).unwrap());
        let node = |i| Node { key: key(i), dir: tempfile::tempdir().unwrap() };
        let nodes = (1..=n).map(node).collect();
        let world = World { wire: Arc::default(), ledger, nodes, local, _dir: dir };
        for i in 0..usize::from(n) {
            world.start(i);
        }
        world
    }

    /// Starts a node over its repo.
    pub fn start(&self, i: usize) {
        let node = &self.nodes[i];
        let me = node.key.public();
        let store = open(node.dir.path());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let live =
            Live { handle: runtime.handle().clone(), market: None, store: store.clone(), runtime: None };
        self.wire.nodes.lock().insert(me, live);
        let end = Arc::new(End { wire: self.wire.clone(), me });
        let ledger = LocalLedger::new(self.ledger.clone());
        let settlement = Arc::new(Line { wire: self.wire.clone(), me, ledger });
        let config = MarketConfig {
            wallet: Wallet::new(store.state().clone(), node.key.clone(), settlement.clone()),
            settlement,
            store,
            key: node.key.clone(),
            local: self.local,
            courier: end.clone(),
            puller: end.clone(),
            discovery: end,
        };
        let market = runtime.block_on(Market::open(config)).unwrap();
        let running = market.clone();
        runtime.spawn(async move { running.run().await });
        let mut nodes = self.wire.nodes.lock();
        let live = nodes.get_mut(&me).unwrap();
        live.market = Some(market);
        live.runtime = Some(runtime);
    }

    /// Ends a node at once.
    pub fn kill(&self, i: usize) {
        self.wire.kill(&self.nodes[i].key.public());
    }

    /// The wallet of a node that is down: it remembers no calls.
    pub fn wallet(&self, i: usize) -> Wallet {
        let db = StateDb::open(&self.nodes[i].dir.path().join("wallet"), &wallet::TABLES).unwrap();
        let settlement = Arc::new(LocalLedger::new(self.ledger.clone()));
        Wallet::new(db, self.nodes[i].key.clone(), settlement)
    }

    /// Whether a node runs.
    pub fn is_up(&self, i: usize) -> bool {
        self.wire.nodes.lock().contains_key(&self.nodes[i].key.public())
    }

    /// A running node's market.
    pub fn market(&self, i: usize) -> Market {
        let nodes = self.wire.nodes.lock();
        nodes[&self.nodes[i].key.public()].market.clone().unwrap()
    }

    /// A running node's store.
    pub fn store(&self, i: usize) -> Store {
        self.wire.nodes.lock()[&self.nodes[i].key.public()].store.clone()
    }

    /// Runs a future on a node's runtime and waits for it; `None` if the node died meanwhile.
    pub fn try_on<T: Send + 'static>(
        &self,
        i: usize,
        f: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let handle = self.wire.nodes.lock().get(&self.nodes[i].key.public())?.handle.clone();
        let task = handle.spawn(f);
        futures::executor::block_on(task).ok()
    }

    /// Runs a future on a node and starts again whoever falls meanwhile; `None` if that was this node.
    pub fn ride<T: Send + 'static>(
        &self,
        i: usize,
        f: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        let (tell, news) = std::sync::mpsc::channel();
        self.wire.plan.lock().tell = Some(tell.clone());
        let was_up = self.is_up(i);
        self.revive();
        if !was_up {
            return None;
        }
        let handle = self.wire.nodes.lock()[&self.nodes[i].key.public()].handle.clone();
        let slot = Arc::new(Mutex::new(None));
        let filled = slot.clone();
        handle.spawn(async move {
            let value = f.await;
            *filled.lock() = Some(value);
            tell.send(News::Done).ok();
        });
        loop {
            match news.recv_timeout(LIMIT).expect("news within the time limit") {
                News::Done => return slot.lock().take(),
                News::Fell if !self.is_up(i) => {
                    self.revive();
                    return None;
                }
                News::Fell => self.revive(),
            }
        }
    }

    /// Starts whoever is down.
    fn revive(&self) {
        (0..self.nodes.len()).filter(|i| !self.is_up(*i)).for_each(|i| self.start(i));
    }

    /// Runs a future on a node that stays up.
    pub fn on<T: Send + 'static>(&self, i: usize, f: impl Future<Output = T> + Send + 'static) -> T {
        let limited = async { tokio::time::timeout(LIMIT, f).await.expect("within the time limit") };
        self.try_on(i, limited).expect("the node is up")
    }

    /// Makes nodes `range` rent out disk at 1, 2, 3... BTT for a GiB-day, so that every host earns another amount.
    pub fn rent_out(&self, range: std::ops::Range<usize>) {
        for i in range {
            let host = self.market(i).host().clone();
            let price = btt(100 * (i as u64 + 1));
            let settings = HostSettings { price, capacity: 1 << 30, ..host.settings() };
            self.on(i, async move {
                host.set(settings).await.unwrap();
                host.start().await.unwrap();
            });
        }
    }

    /// Adds random content to node `i` and pins it.
    pub fn add(&self, i: usize, size: usize) -> Cid {
        use rand::{RngExt, SeedableRng};
        let store = self.store(i);
        let mut bytes = vec![0; size];
        rand::rngs::StdRng::seed_from_u64(size as u64).fill(&mut bytes[..]);
        let mut ingest = store.ingest(Class::Own).unwrap();
        let got = import::import_reader(&bytes[..], &Profile::V1_2025, &mut ingest, &mut |_| {}).unwrap();
        pin(&store, ingest, got.root)
    }

    /// Adds a directory to node `i` and pins it.
    pub fn add_path(&self, i: usize, path: &std::path::Path) -> Cid {
        let store = self.store(i);
        let mut ingest = store.ingest(Class::Own).unwrap();
        let options = import::ImportOptions::default();
        let got = import::import_path(path, &Profile::V1_2025, &options, &mut ingest, &mut |_| {}).unwrap();
        pin(&store, ingest, got.root)
    }

    /// An order for `root` over `epochs` days.
    pub fn order(root: Cid, epochs: u32, redundancy: Option<(u8, u8)>, copies: Option<u8>) -> StoreRequest {
        StoreRequest {
            root,
            name: None,
            redundancy,
            copies,
            anchors: 0,
            epochs,
            epoch_length: None,
            max_price: None,
        }
    }

    /// A renter and a host with one agreement, and the thing it is about.
    pub fn pair(epochs: u32) -> (World, B256) {
        let world = World::new(2);
        world.rent_out(1..2);
        let root = world.add(0, 300_000);
        let id = world.store_and_wait(0, World::order(root, epochs, None, Some(1)));
        (world, id)
    }

    /// Quotes, accepts and waits until all is placed.
    pub fn store_and_wait(&self, i: usize, request: StoreRequest) -> B256 {
        let renter = self.market(i).renter().clone();
        self.on(i, async move {
            let quote = renter.quote(request, |_| {}).await.unwrap();
            let id = renter.accept(&quote.id).await.unwrap();
            let thing = renter.placed(id).await.unwrap();
            assert_eq!(thing.problem, None);
            id
        })
    }

    /// Steps the clock by a day and waits until the renter's work of it is done.
    pub fn day(&self, renter: usize) {
        let time = self.ledger.step(DAY).unwrap().time;
        let service = self.market(renter).renter().clone();
        self.on(renter, async move { service.work_done(time).await });
    }

    /// A thing as its renter sees it.
    pub fn status(&self, renter: usize, id: B256) -> ThingStatus {
        let service = self.market(renter).renter().clone();
        self.on(renter, async move { service.status(&hex::encode(id)).await.unwrap() })
    }

    /// The place of a thing of the first node's that has one.
    pub fn only_place(&self, id: B256) -> PlaceStatus {
        let mut places = self.status(0, id).places;
        assert_eq!(places.len(), 1);
        places.remove(0)
    }

    /// Fails unless balances and locks sum to the supply.
    pub fn check_supply(&self) {
        let audit = self.ledger.audit_supply().unwrap();
        assert!(audit.holds(), "{audit:?}");
    }

    /// Waits until node `i` has exactly this balance: refunds come a moment after what allows them.
    pub fn await_balance(&self, i: usize, wanted: Btt) {
        let (ledger, address) = (self.ledger.clone(), self.nodes[i].key.address());
        let reached = async move {
            let mut events = ledger.subscribe();
            while ledger.account(&address).unwrap().balance != wanted {
                events.changed().await.unwrap();
            }
        };
        let handle = self.wire.nodes.lock()[&self.nodes[i].key.public()].handle.clone();
        let waited = handle.spawn(async move { tokio::time::timeout(LIMIT, reached).await });
        if !matches!(futures::executor::block_on(waited), Ok(Ok(()))) {
            panic!("node {i} has {}, not {wanted}", self.balance(i));
        }
    }

    /// The balance of a node.
    pub fn balance(&self, i: usize) -> Btt {
        self.ledger.account(&self.nodes[i].key.address()).unwrap().balance
    }
}

/// Ends an import and pins its root.
fn pin(store: &Store, ingest: btfs_storage::Ingest, root: Cid) -> Cid {
    let mut batch = store.state().batch();
    let (id, kind) = (format!("own:{root}").into(), PinKind::Recursive);
    store.pin(&mut batch, &Pin { id, kind, root, class: Class::Own, name: None, expires: None }).unwrap();
    ingest.finish(batch).unwrap();
    root
}

/// Opens a node's repo; a killed node's last threads may hold it for a moment.
fn open(path: &std::path::Path) -> Store {
    let began = std::time::Instant::now();
    loop {
        let tables = TABLES.iter().chain(&wallet::TABLES).copied().collect();
        let (path, quota) = (path.to_owned(), Quota::default());
        match Store::open(StoreOptions { path, tables, quota, reserve_bytes: 0 }) {
            Ok(store) => return store,
            Err(e) if began.elapsed() > LIMIT => panic!("the repo does not open: {e}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}
