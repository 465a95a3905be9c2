//! The provider records that this node holds for the DHT: who provides which key.
//!
//! Kademlia calls [`RecordStore`] inside the swarm's poll, so the table lives in memory and notes what changed; the
//! host's task writes the notes to disk a little later. Losing the last seconds of other peers' records in a crash
//! does no harm: they are announced again and held by nineteen others. Our own keys are durable before they are
//! announced (see [`super::announce`]).
//!
//! Value records (IPNS, public keys) are not kept: nothing here needs them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use libp2p::kad::store::{Error, RecordStore, Result};
use libp2p::kad::{ProviderRecord, Record, RecordKey};
use libp2p::{Multiaddr, PeerId};

/// Lifetime of a provider record (libp2p kad-dht spec: 48 h since 2023).
pub const RECORD_TTL: Duration = Duration::from_secs(48 * 3600);

/// Records held for others. At about 200 bytes each this is 20 MB.
pub(crate) const MAX_RECORDS: usize = 100_000;

/// Records that one provider may have here: an eighth of the table, so that no peer fills it alone.
pub(crate) const MAX_RECORDS_PER_PROVIDER: usize = MAX_RECORDS / 8;

/// Providers kept for a key. A reply holds 20, so each reply starts at another one and a searcher that asks the twenty
/// peers nearest to a popular key hears of most.
pub(crate) const MAX_PROVIDERS_PER_KEY: usize = 100;

/// Providers in a reply: Kademlia's k.
const REPLY: usize = 20;

/// Longest key taken: a multihash of 128 bytes digest, as Bitswap's peers cap it.
pub(crate) const MAX_KEY: usize = 132;

/// Addresses kept for a provider.
pub(crate) const MAX_ADDRESSES: usize = 8;

/// Longest address kept, in bytes: a long DNS name, a port, a certificate hash.
pub(crate) const MAX_ADDRESS: usize = 128;

/// A change to be written to disk: the record's new expiry in Unix seconds, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordChange {
    pub(crate) key: Vec<u8>,
    pub(crate) provider: PeerId,
    pub(crate) expires: Option<u64>,
}

#[derive(Debug)]
struct Provider {
    peer: PeerId,
    /// Unix seconds.
    expires: u64,
}

/// The table. The time is set from outside ([`Records::tick`]) and only moves there.
#[derive(Debug)]
pub(crate) struct Records {
    own: PeerId,
    now: u64,
    providers: HashMap<RecordKey, Vec<Provider>>,
    total: usize,
    held_by: HashMap<PeerId, Held>,
    provided: HashSet<RecordKey>,
    changes: Vec<RecordChange>,
    /// Where the next reply starts; the store is asked through a shared reference.
    turn: AtomicUsize,
}

/// What is held of one provider: how many records, and where it can be reached.
#[derive(Debug, Default)]
struct Held {
    records: usize,
    addresses: Vec<Multiaddr>,
}

impl Records {
    /// An empty table at the Unix time `now`.
    pub(crate) fn new(own: PeerId, now: u64) -> Self {
        Records {
            own,
            now,
            providers: HashMap::new(),
            total: 0,
            held_by: HashMap::new(),
            provided: HashSet::new(),
            changes: Vec::new(),
            turn: AtomicUsize::new(0),
        }
    }

    /// Sets the time (Unix seconds).
    pub(crate) fn tick(&mut self, now: u64) {
        self.now = now;
    }

    /// Drops what has expired. Walks the whole table: for once in a while.
    pub(crate) fn sweep(&mut self) {
        let now = self.now;
        let mut gone = Vec::new();
        self.providers.retain(|key, providers| {
            providers.retain(|p| {
                let alive = p.expires > now;
                if !alive {
                    gone.push((key.clone(), p.peer));
                }
                alive
            });
            !providers.is_empty()
        });
        for (key, peer) in gone {
            self.removed(&key, peer);
        }
    }

    /// Takes the changes since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<RecordChange> {
        std::mem::take(&mut self.changes)
    }

    /// Records held, of others.
    pub(crate) fn len(&self) -> usize {
        self.total
    }

    /// Puts a record back that was read from disk.
    pub(crate) fn restore(
        &mut self,
        key: Vec<u8>,
        provider: PeerId,
        expires: u64,
        addresses: Vec<Multiaddr>,
    ) {
        if expires > self.now && self.insert(RecordKey::from(key), provider, expires, addresses).is_err() {
            tracing::warn!(%provider, "a provider record from disk does not fit its table and is left out");
        }
    }

    /// Own keys, as answered to others at once. [`super::announce`] decides which they are.
    pub(crate) fn set_provided(&mut self, key: &[u8], provided: bool) {
        let key = RecordKey::new(&key);
        if provided {
            self.provided.insert(key);
        } else {
            self.provided.remove(&key);
        }
    }

    /// Known addresses of a provider of whom records are held.
    pub(crate) fn addresses(&self, peer: &PeerId) -> &[Multiaddr] {
        self.held_by.get(peer).map_or(&[], |held| &held.addresses)
    }

    /// Better addresses of `peer` (it identified itself), if records of it are held.
    pub(crate) fn learn_addresses(&mut self, peer: &PeerId, addresses: &[Multiaddr]) {
        if let Some(held) = self.held_by.get_mut(peer)
            && !addresses.is_empty()
        {
            let short = addresses.iter().filter(|address| address.len() <= MAX_ADDRESS);
            held.addresses = short.take(MAX_ADDRESSES).cloned().collect();
        }
    }

    fn insert(
        &mut self,
        key: RecordKey,
        peer: PeerId,
        expires: u64,
        addresses: Vec<Multiaddr>,
    ) -> std::result::Result<(), Error> {
        if key.as_ref().len() > MAX_KEY {
            return Err(Error::ValueTooLarge);
        }
        let known = self.providers.get_mut(&key);
        if let Some(provider) = known.and_then(|all| all.iter_mut().find(|p| p.peer == peer)) {
            provider.expires = expires;
        } else {
            let of_peer = self.held_by.get(&peer).map_or(0, |held| held.records);
            if self.total >= MAX_RECORDS || of_peer >= MAX_RECORDS_PER_PROVIDER {
                return Err(Error::MaxProvidedKeys);
            }
            let all = self.providers.entry(key.clone()).or_default();
            let oldest = all.iter().enumerate().min_by_key(|(_, p)| p.expires).map(|(at, _)| at);
            let evicted = match oldest {
                Some(at) if all.len() >= MAX_PROVIDERS_PER_KEY => Some(all.swap_remove(at).peer),
                _ => None,
            };
            all.push(Provider { peer, expires });
            self.total += 1;
            self.held_by.entry(peer).or_default().records += 1;
            if let Some(evicted) = evicted {
                self.removed(&key, evicted);
            }
        }
        self.learn_addresses(&peer, &addresses);
        self.changes.push(RecordChange { key: key.to_vec(), provider: peer, expires: Some(expires) });
        Ok(())
    }

    /// Bookkeeping after a record left the table.
    fn removed(&mut self, key: &RecordKey, peer: PeerId) {
        self.total -= 1;
        if let Some(held) = self.held_by.get_mut(&peer) {
            held.records -= 1;
            if held.records == 0 {
                self.held_by.remove(&peer);
            }
        }
        self.changes.push(RecordChange { key: key.to_vec(), provider: peer, expires: None });
    }
}

impl RecordStore for Records {
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Record>>;
    type ProvidedIter<'a> = std::vec::IntoIter<Cow<'a, ProviderRecord>>;

    fn get(&self, _: &RecordKey) -> Option<Cow<'_, Record>> {
        None
    }

    fn put(&mut self, _: Record) -> Result<()> {
        Err(Error::MaxRecords)
    }

    fn remove(&mut self, _: &RecordKey) {}

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        if record.provider == self.own {
            self.provided.insert(record.key);
            return Ok(());
        }
        let expires = self.now + RECORD_TTL.as_secs();
        self.insert(record.key, record.provider, expires, record.addresses)
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        let record = |provider, addresses| ProviderRecord {
            key: key.clone(),
            provider,
            // Already filtered by the Unix clock, which is the one that survives a restart.
            expires: None::<Instant>,
            addresses,
        };
        let others = self.providers.get(key).into_iter().flatten().filter(|p| p.expires > self.now);
        let mut all: Vec<_> = others.map(|p| record(p.peer, self.addresses(&p.peer).to_vec())).collect();
        if !all.is_empty() {
            let turn = self.turn.fetch_add(REPLY, Ordering::Relaxed) % all.len();
            all.rotate_left(turn);
        }
        if self.provided.contains(key) {
            // Kademlia fills in our own addresses.
            all.insert(0, record(self.own, Vec::new()));
        }
        all
    }

    /// Only a periodic job asks for these, and that is off: [`super::announce`] paces our announcements.
    fn provided(&self) -> Self::ProvidedIter<'_> {
        Vec::new().into_iter()
    }

    fn remove_provider(&mut self, key: &RecordKey, peer: &PeerId) {
        if peer == &self.own {
            self.provided.remove(key);
            return;
        }
        let Some(all) = self.providers.get_mut(key) else { return };
        let before = all.len();
        all.retain(|p| &p.peer != peer);
        let gone = all.len() < before;
        if all.is_empty() {
            self.providers.remove(key);
        }
        if gone {
            self.removed(key, *peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: u32, provider: PeerId) -> ProviderRecord {
        ProviderRecord::new(
            key.to_be_bytes().to_vec(),
            provider,
            vec!["/ip4/10.0.0.1/tcp/1".parse().unwrap()],
        )
    }

    fn key(key: u32) -> RecordKey {
        RecordKey::from(key.to_be_bytes().to_vec())
    }

    #[test]
    fn records_expire_and_leave_a_note() {
        let (own, peer) = (PeerId::random(), PeerId::random());
        let mut records = Records::new(own, 1000);
        records.add_provider(record(1, peer)).unwrap();
        assert_eq!(records.providers(&key(1))[0].provider, peer);
        assert_eq!(records.providers(&key(1))[0].addresses.len(), 1);
        records.take_changes();
        records.tick(1000 + RECORD_TTL.as_secs());
        assert!(records.providers(&key(1)).is_empty());
        records.sweep();
        assert_eq!(records.len(), 0);
        let gone = RecordChange { key: 1u32.to_be_bytes().to_vec(), provider: peer, expires: None };
        assert_eq!(records.take_changes(), [gone]);
        assert!(records.addresses(&peer).is_empty());
    }

    #[test]
    fn one_key_keeps_the_newest_and_tells_of_all_in_turn() {
        let mut records = Records::new(PeerId::random(), 0);
        let peers: Vec<_> = (0..MAX_PROVIDERS_PER_KEY + 5).map(|_| PeerId::random()).collect();
        for (at, peer) in peers.iter().enumerate() {
            records.tick(at as u64);
            records.add_provider(record(1, *peer)).unwrap();
        }
        let kept: HashSet<_> = records.providers(&key(1)).into_iter().map(|r| r.provider).collect();
        assert_eq!(kept, peers[5..].iter().copied().collect());
        assert_eq!(records.len(), MAX_PROVIDERS_PER_KEY);
        let replies = (0..MAX_PROVIDERS_PER_KEY / REPLY).map(|_| records.providers(&key(1)));
        let told: HashSet<_> = replies.flat_map(|reply| reply.into_iter().take(REPLY)).collect();
        assert_eq!(told.len(), MAX_PROVIDERS_PER_KEY);
    }

    #[test]
    fn one_provider_cannot_fill_the_table() {
        let mut records = Records::new(PeerId::random(), 0);
        let (greedy, other) = (PeerId::random(), PeerId::random());
        for n in 0..MAX_RECORDS_PER_PROVIDER as u32 {
            records.add_provider(record(n, greedy)).unwrap();
        }
        records.add_provider(record(u32::MAX, greedy)).unwrap_err();
        records.add_provider(record(u32::MAX, other)).unwrap();
        records.add_provider(record(0, greedy)).unwrap();
        let long = ProviderRecord::new(vec![0; MAX_KEY + 1], other, vec![]);
        records.add_provider(long).unwrap_err();
    }

    #[test]
    fn own_keys_come_first_and_leave_no_note() {
        let own = PeerId::random();
        let mut records = Records::new(own, 0);
        records.add_provider(record(1, PeerId::random())).unwrap();
        records.take_changes();
        records.set_provided(&1u32.to_be_bytes(), true);
        assert_eq!(records.providers(&key(1))[0].provider, own);
        records.remove_provider(&key(1), &own);
        assert_eq!(records.providers(&key(1)).len(), 1);
        assert!(records.take_changes().is_empty());
    }
}
