//! Both services, the loop that drives them, and the door for requests from peers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use btfs_ledger::settlement::{Limiter, Rate, Settlement};
use btfs_ledger::wallet::Wallet;
use btfs_ledger::{PublicKey, SecretKey};
use btfs_storage::Store;
use parking_lot::Mutex;
use thiserror::Error;

use crate::events::Events;
use crate::host::{self, HostError, HostParts, HostService};
use crate::messages::{
    self, AUDIT_PROTOCOL, FrameError, MAX_AUDIT_REPLY, MAX_AUDIT_REQUEST, MAX_OFFER_FRAME, MAX_RENTAL_REPLY,
    MAX_RENTAL_REQUEST, OFFER_PROTOCOL, RENTAL_PROTOCOL, RentalRequest,
};
use crate::money::Money;
use crate::ports::{Courier, Discovery, Puller};
use crate::renter::{self, RentError, RenterParts, RenterService};

/// The market's tables in the state database.
pub const TABLES: [&str; 9] = [
    host::records::SETTINGS.name(),
    host::records::OFFERS.name(),
    host::records::AGREEMENTS.name(),
    host::records::LISTS.name(),
    host::records::TREES.name(),
    renter::records::THINGS.name(),
    renter::records::AGREEMENTS.name(),
    renter::records::LISTS.name(),
    renter::records::HOSTS.name(),
];

/// A protocol that the node serves for the market, with its caps in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// Its name on the wire.
    pub name: &'static str,
    /// Largest request.
    pub max_request: usize,
    /// Largest reply.
    pub max_reply: usize,
}

/// What [`Market::handle`] answers.
pub const PROTOCOLS: [Protocol; 3] = [
    Protocol { name: OFFER_PROTOCOL, max_request: MAX_OFFER_FRAME, max_reply: MAX_OFFER_FRAME },
    Protocol { name: RENTAL_PROTOCOL, max_request: MAX_RENTAL_REQUEST, max_reply: MAX_RENTAL_REPLY },
    Protocol { name: AUDIT_PROTOCOL, max_request: MAX_AUDIT_REQUEST, max_reply: MAX_AUDIT_REPLY },
];

/// Rounds happen at least this often even when the settlement has no news: reservations run out, unacknowledged
/// vouchers are sent again, audits reach their random time.
const ROUND: Duration = Duration::from_secs(15);

/// Pause between two rounds of one side outside of local networks: news of the settlement come in bursts, and a round
/// reads all records. In a local network the rounds keep up with the stepped clock.
const PAUSE: Duration = Duration::from_millis(250);
/// Requests of one peer: a burst for the pages of some lists or a day's audits of many agreements, and what it may ask
/// steadily. Each may cost a read of all records.
const PEER_RATE: Rate = Rate { burst: 1000, per_second: 50 };
/// Peers whose requests are counted at a time.
const PEERS: usize = 4096;

/// What a market is made of.
pub struct MarketConfig {
    /// The node's store, opened with [`TABLES`].
    pub store: Store,
    /// Where money is.
    pub settlement: Arc<dyn Settlement>,
    /// The account that pays and is paid.
    pub wallet: Wallet,
    /// The node's key: signs offers, agreements and vouchers, and is the node's name among peers.
    pub key: SecretKey,
    /// Whether the network is declared local: the clock may be stepped, subnets are not told apart.
    pub local: bool,
    /// Asks peers.
    pub courier: Arc<dyn Courier>,
    /// Pulls blocks from renters.
    pub puller: Arc<dyn Puller>,
    /// Finds hosts.
    pub discovery: Arc<dyn Discovery>,
}

/// Why the market did not start.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The host's records.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The renter's records.
    #[error(transparent)]
    Renter(#[from] RentError),
}

/// Host and renter of one node. Cloning is cheap.
#[derive(Clone)]
pub struct Market {
    host: HostService,
    renter: RenterService,
    events: Events,
    money: Money,
    local: bool,
    began: Instant,
    peers: Arc<Mutex<Limiter<PublicKey>>>,
}

impl Market {
    /// Opens both services over their records and takes up what was interrupted.
    pub async fn open(config: MarketConfig) -> Result<Market, OpenError> {
        let events = Events::default();
        let money = Money::new(config.settlement, config.wallet);
        let host = HostService::open(HostParts {
            store: config.store.clone(),
            money: money.clone(),
            key: config.key.clone(),
            local: config.local,
            courier: config.courier.clone(),
            puller: config.puller,
            discovery: config.discovery.clone(),
            events: events.clone(),
        })
        .await?;
        let renter = RenterService::open(RenterParts {
            store: config.store,
            money: money.clone(),
            key: config.key,
            local: config.local,
            courier: config.courier,
            discovery: config.discovery,
            events: events.clone(),
        });
        let peers = Arc::new(Mutex::new(Limiter::new(PEER_RATE, PEERS)));
        Ok(Market { host, renter, events, money, local: config.local, began: Instant::now(), peers })
    }

    /// The host's side.
    pub fn host(&self) -> &HostService {
        &self.host
    }

    /// The renter's side.
    pub fn renter(&self) -> &RenterService {
        &self.renter
    }

    /// What happens, from now on.
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// Settlement time as known here; `None` before the settlement was heard.
    pub fn now(&self) -> Option<u64> {
        self.money.now()
    }

    /// Whether both sides' work that fell due until settlement time `time` is done.
    pub fn work_done_through(&self, time: u64) -> bool {
        self.host.work_done_through(time) && self.renter.work_done_through(time)
    }

    /// Answers a request that `peer` sent under one of the market's protocols.
    ///
    /// # Errors
    /// A frame above its cap or not of the protocol, or a peer that asks too much; the text goes back to the peer.
    pub async fn handle(&self, protocol: &str, peer: PublicKey, request: Vec<u8>) -> Result<Vec<u8>, String> {
        if !self.peers.lock().admit(peer, self.began.elapsed()) {
            return Err("too many requests; ask again later".into());
        }
        self.dispatch(protocol, peer, &request).await.map_err(|e| e.to_string())
    }

    async fn dispatch(&self, protocol: &str, peer: PublicKey, request: &[u8]) -> Result<Vec<u8>, FrameError> {
        match protocol {
            OFFER_PROTOCOL => {
                let request = messages::decode(request, MAX_OFFER_FRAME)?;
                Ok(messages::encode(&self.host.offer(request).await))
            }
            RENTAL_PROTOCOL => {
                let reply = match messages::decode(request, MAX_RENTAL_REQUEST)? {
                    RentalRequest::Quit { id, epoch } => self.renter.quit(peer, id, epoch).await,
                    request => self.host.rental(peer, request).await,
                };
                Ok(messages::encode(&reply))
            }
            AUDIT_PROTOCOL => {
                let request = messages::decode(request, MAX_AUDIT_REQUEST)?;
                Ok(messages::encode(&self.host.audit(peer, request).await))
            }
            other => Err(FrameError::Malformed(format!("{other} is no protocol of the market"))),
        }
    }

    /// Follows the settlement and does what is due, until the future is dropped. All it does can be broken off at any
    /// point and is taken up by the next run.
    pub async fn run(&self) {
        if let Err(error) = self.renter.resume().await {
            tracing::error!(%error, "interrupted orders are not taken up");
        }
        if self.host.settings().renting {
            self.host.announce().await;
        }
        tokio::join!(self.money.follow(), self.rounds(true), self.rounds(false));
    }

    /// Rounds of one side: the host's must not wait for the renter's, which waits for other hosts.
    async fn rounds(&self, hosting: bool) {
        let mut news = self.money.news();
        loop {
            if let Some(now) = self.money.now() {
                if hosting {
                    self.host.tick(now).await;
                } else {
                    self.renter.tick(now).await;
                }
            }
            tokio::select! {
                _ = news.changed() => {}
                () = self.renter.woken(), if !hosting => {}
                () = tokio::time::sleep(ROUND) => {}
            }
            if !self.local {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
