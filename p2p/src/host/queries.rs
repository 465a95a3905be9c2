//! DHT queries under way: announcements, searches for providers, lookups of peers.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use libp2p::kad::{
    GetClosestPeersError, GetClosestPeersOk, GetProvidersOk, QueryId, QueryResult, QueryStats, RecordKey,
};
use libp2p::swarm::DialError;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::{mpsc, oneshot};

use super::driver::{Driver, send};
use super::{MAX_PROVIDERS, Provided};
use crate::routing::announce::MAX_IN_FLIGHT;
use crate::routing::unix_now;

/// Searches and lookups at once, each; a caller beyond it gets an empty answer.
const MAX_QUERIES: usize = 256;

/// Longest time that a search waits for the first peer.
const PARK_TIME: Duration = Duration::from_secs(5);

/// A search for providers. It ends (and its channel closes) when the query is over and every dial has ended.
pub(super) struct Search {
    found: mpsc::Sender<PeerId>,
    limit: usize,
    sent: usize,
    seen: HashSet<PeerId>,
    dialling: HashSet<PeerId>,
    query_over: bool,
}

/// A search that waits for the first peer of the routing table: a node that just started, or just connected, gives its
/// peers a moment to identify themselves instead of answering that nobody has anything.
pub(super) struct Parked {
    key: Vec<u8>,
    limit: usize,
    found: mpsc::Sender<PeerId>,
    until: Instant,
}

impl Parked {
    pub(super) fn new(key: Vec<u8>, limit: usize, found: mpsc::Sender<PeerId>) -> Self {
        Parked { key, limit, found, until: Instant::now() + PARK_TIME }
    }
}

/// A lookup of one peer's addresses.
pub(super) struct Lookup {
    peer: PeerId,
    reply: oneshot::Sender<Vec<Multiaddr>>,
}

impl Search {
    /// Reports a connected peer; false if nobody wants more.
    fn report(&mut self, peer: PeerId) -> bool {
        self.dialling.remove(&peer);
        // The channel has room for `limit` peers.
        let wanted = self.sent < self.limit && self.found.try_send(peer).is_ok();
        self.sent += usize::from(wanted);
        wanted && self.sent < self.limit
    }

    fn is_over(&self) -> bool {
        (self.query_over && self.dialling.is_empty()) || self.sent >= self.limit || self.found.is_closed()
    }
}

impl Driver {
    /// Starts announcing what is due, as far as there is room and somebody to tell.
    pub(super) fn announce_due(&mut self) {
        while self.routing_peers > 0 && self.announcing.len() < MAX_IN_FLIGHT {
            let Some(key) = self.announcements.next(unix_now()) else { return };
            match self.swarm.behaviour_mut().kad.start_providing(RecordKey::from(key.clone())) {
                Ok(query) => {
                    self.announcing.insert(query, key);
                }
                Err(error) => {
                    tracing::error!(%error, "an announcement was not started");
                    self.announcement_ended(key, false);
                }
            }
        }
    }

    /// One announcement has ended.
    fn announcement_ended(&mut self, key: Vec<u8>, worked: bool) {
        let now = unix_now();
        self.announcements.done(&key, worked, now);
        let outcome = if worked { Provided::Announced } else { Provided::Queued };
        for reply in self.provide_waiters.remove(&key).unwrap_or_default() {
            send(reply, Ok(outcome));
        }
        if worked {
            self.newly_announced.insert(key, now);
            self.announced_total += 1;
        }
    }

    /// Starts a search, or lets it wait for the first peer if there may be one soon.
    pub(super) fn find_providers(&mut self, wanted: Parked) {
        if self.searches.len() + self.parked.len() >= MAX_QUERIES {
            tracing::warn!("{MAX_QUERIES} provider searches are running; one more was not started");
            return;
        }
        let hope = !self.peers.is_empty() || !self.bootstrap.is_empty();
        if self.routing_peers == 0 && hope && Instant::now() < wanted.until {
            self.parked.push(wanted);
            return;
        }
        let id = self.swarm.behaviour_mut().kad.get_providers(RecordKey::from(wanted.key));
        let search = Search {
            found: wanted.found,
            limit: wanted.limit,
            sent: 0,
            seen: HashSet::new(),
            dialling: HashSet::new(),
            query_over: false,
        };
        self.searches.insert(id, search);
    }

    /// Starts the waiting searches whose time has come.
    pub(super) fn start_parked(&mut self) {
        let parked = std::mem::take(&mut self.parked);
        parked.into_iter().filter(|p| !p.found.is_closed()).for_each(|p| self.find_providers(p));
    }

    pub(super) fn find_peer(&mut self, peer: PeerId, reply: oneshot::Sender<Vec<Multiaddr>>) {
        if self.lookups.len() >= MAX_QUERIES || self.routing_peers == 0 {
            return send(reply, self.book.lock().addresses(&peer));
        }
        let id = self.swarm.behaviour_mut().kad.get_closest_peers(peer);
        self.lookups.insert(id, Lookup { peer, reply });
    }

    pub(super) fn on_query_progress(
        &mut self,
        id: QueryId,
        result: QueryResult,
        stats: &QueryStats,
        last: bool,
    ) {
        match result {
            QueryResult::StartProviding(outcome) => {
                if let Some(key) = self.announcing.remove(&id) {
                    // "Ok" without a success is a query that found nobody.
                    self.announcement_ended(key, outcome.is_ok() && stats.num_successes() > 0);
                    self.announce_due();
                }
            }
            QueryResult::GetProviders(outcome) => {
                if let Ok(GetProvidersOk::FoundProviders { key, providers }) = outcome {
                    self.found_providers(id, &key, providers);
                }
                if last && let Some(search) = self.searches.get_mut(&id) {
                    search.query_over = true;
                }
                self.end_search(id);
            }
            QueryResult::GetClosestPeers(outcome) => {
                if last && let Some(lookup) = self.lookups.remove(&id) {
                    let (Ok(GetClosestPeersOk { peers, .. })
                    | Err(GetClosestPeersError::Timeout { peers, .. })) = outcome;
                    let mut addresses = self.book.lock().addresses(&lookup.peer);
                    let told = peers.into_iter().filter(|info| info.peer_id == lookup.peer);
                    for address in told.flat_map(|info| info.addrs) {
                        let address = crate::routing::book::without_peer(&address);
                        if !addresses.contains(&address) {
                            addresses.push(address);
                        }
                    }
                    send(lookup.reply, addresses);
                }
            }
            _ => {}
        }
    }

    /// Dials the providers that a search found, at once: their addresses live only as long as the query.
    fn found_providers(&mut self, id: QueryId, key: &RecordKey, providers: HashSet<PeerId>) {
        let own = *self.swarm.local_peer_id();
        for peer in providers {
            let Some(search) = self.searches.get_mut(&id) else { return };
            if peer == own || search.seen.len() >= MAX_PROVIDERS || !search.seen.insert(peer) {
                continue;
            }
            if self.swarm.is_connected(&peer) {
                search.report(peer);
                continue;
            }
            let held = self.swarm.behaviour_mut().kad.store_mut().addresses(&peer).to_vec();
            let opts = DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(held)
                .extend_addresses_through_behaviour()
                .build();
            match self.swarm.dial(opts) {
                Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {
                    search.dialling.insert(peer);
                }
                Err(error) => {
                    tracing::debug!(%peer, ?key, error = super::dial_text(&error), "a provider cannot be dialled");
                }
            }
        }
    }

    /// A peer is connected: searches that dial it report it.
    pub(super) fn search_reached(&mut self, peer: &PeerId) {
        let mut ended = Vec::new();
        for (id, search) in &mut self.searches {
            if search.dialling.contains(peer) {
                search.report(*peer);
                ended.push(*id);
            }
        }
        ended.into_iter().for_each(|id| self.end_search(id));
    }

    /// A peer cannot be reached: searches that dial it do without.
    pub(super) fn search_missed(&mut self, peer: &PeerId) {
        let mut ended = Vec::new();
        for (id, search) in &mut self.searches {
            if search.dialling.remove(peer) {
                ended.push(*id);
            }
        }
        ended.into_iter().for_each(|id| self.end_search(id));
    }

    /// Ends searches whose caller is gone; they would otherwise run to the query's end.
    pub(super) fn end_idle_searches(&mut self) {
        let ended: Vec<QueryId> =
            self.searches.iter().filter(|(_, search)| search.is_over()).map(|(id, _)| *id).collect();
        ended.into_iter().for_each(|id| self.end_search(id));
    }

    fn end_search(&mut self, id: QueryId) {
        if !self.searches.get(&id).is_some_and(Search::is_over) {
            return;
        }
        self.searches.remove(&id);
        if let Some(mut query) = self.swarm.behaviour_mut().kad.query_mut(&id) {
            query.finish();
        }
    }
}
