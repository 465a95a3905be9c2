//! What the client knows of one peer: how fast it answers, how much may be asked of it, and what is still to be said.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use cid::Cid;

use crate::bitswap::limits::{
    ASK_TIMEOUT_MAX, ASK_TIMEOUT_MIN, MAX_ASKS_PER_PEER, MAX_STRIKES, RECENT_CANCELS, WINDOW_MIN,
    WINDOW_START, WINDOW_TARGET,
};
use crate::bitswap::wire::{Key, WantEntry, WantKind};

/// Whether a peer can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It can.
    Connected,
    /// A connection is being tried, since the given time.
    Dialing(Instant),
    /// It is not connected.
    Away,
    /// It is connected and does not speak Bitswap.
    Mute,
}

/// How many want-blocks may be in flight to a peer.
///
/// Grows by one with every block that comes within [`WINDOW_TARGET`], so it doubles per round trip, and shrinks when
/// blocks queue for longer: the queue at the server stays about a second long whatever the link.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    size: usize,
}

impl Default for Window {
    fn default() -> Self {
        Window { size: WINDOW_START }
    }
}

impl Window {
    /// Want-blocks allowed now.
    pub fn size(&self) -> usize {
        self.size
    }

    /// A block came `latency` after it was asked for.
    pub fn delivered(&mut self, latency: Duration) {
        if latency < WINDOW_TARGET {
            self.size = (self.size + 1).min(MAX_ASKS_PER_PEER);
        } else if latency > 2 * WINDOW_TARGET {
            self.size = (self.size - 1).max(WINDOW_MIN);
        }
    }

    /// The peer fell silent.
    pub fn stalled(&mut self) {
        self.size = (self.size / 2).max(WINDOW_MIN);
    }
}

/// Keys whose wants were withdrawn lately, oldest forgotten first.
#[derive(Debug, Default)]
struct Recent {
    order: VecDeque<Key>,
    keys: HashSet<Key>,
}

impl Recent {
    fn push(&mut self, key: Key) {
        if self.keys.insert(key) {
            self.order.push_back(key);
        }
        while self.order.len() > RECENT_CANCELS {
            if let Some(old) = self.order.pop_front() {
                self.keys.remove(&old);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Want(WantKind),
    Cancel,
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    cid: Cid,
    priority: i32,
    op: Op,
}

/// Changes of our wantlist at one peer that were not written yet. A want that is withdrawn before it was written is
/// never written.
#[derive(Debug, Default)]
pub struct Outbox {
    order: VecDeque<Key>,
    pending: HashMap<Key, Pending>,
    /// What the peer was told and was not told to forget.
    registered: HashSet<Key>,
    /// What the peer knows or will know when all is written.
    occupied: HashSet<Key>,
}

impl Outbox {
    /// Wants that the peer has or will have on its list.
    pub fn occupied(&self) -> usize {
        self.occupied.len()
    }

    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Asks for `cid`.
    pub fn want(&mut self, cid: Cid, priority: i32, kind: WantKind) {
        self.occupied.insert(*cid.hash());
        self.enqueue(Pending { cid, priority, op: Op::Want(kind) });
    }

    /// Withdraws `cid`.
    pub fn cancel(&mut self, cid: Cid) {
        let key = *cid.hash();
        self.occupied.remove(&key);
        if self.registered.contains(&key) {
            self.enqueue(Pending { cid, priority: 0, op: Op::Cancel });
        } else {
            self.pending.remove(&key);
        }
    }

    /// The peer sent the block and has forgotten the want by itself.
    pub fn answered(&mut self, key: &Key) {
        self.occupied.remove(key);
        self.registered.remove(key);
        self.pending.remove(key);
    }

    fn enqueue(&mut self, pending: Pending) {
        let key = *pending.cid.hash();
        if self.pending.insert(key, pending).is_none() {
            self.order.push_back(key);
        }
        // Withdrawn entries leave their place in the order behind; sweep before that outgrows the rest.
        if self.order.len() > 2 * self.pending.len() + 64 {
            let mut seen = HashSet::new();
            self.order.retain(|key| self.pending.contains_key(key) && seen.insert(*key));
        }
    }

    /// Takes up to `n` changes to be written now, cancels first so that the peer's list never overflows.
    pub fn take(&mut self, n: usize) -> Vec<WantEntry> {
        let mut entries = Vec::with_capacity(n.min(self.pending.len()));
        while entries.len() < n {
            let Some(key) = self.order.pop_front() else { break };
            let Some(pending) = self.pending.remove(&key) else { continue };
            let (cancel, kind) = match pending.op {
                Op::Want(kind) => (false, kind),
                Op::Cancel => (true, WantKind::Block),
            };
            if cancel {
                self.registered.remove(&key);
            } else {
                self.registered.insert(key);
            }
            entries.push(WantEntry {
                cid: pending.cid,
                priority: pending.priority,
                cancel,
                kind,
                send_dont_have: !cancel,
            });
        }
        entries.sort_by_key(|entry| !entry.cancel);
        entries
    }

    /// Forgets all that was said and is to be said.
    pub fn clear(&mut self) {
        *self = Outbox::default();
    }
}

/// One peer, as the client sees it.
#[derive(Debug)]
pub struct Peer {
    pub(super) status: Status,
    /// Sessions that count on it.
    pub(super) sessions: usize,
    pub(super) window: Window,
    /// Want-blocks that it is to answer.
    pub(super) in_flight: usize,
    /// Wants that wait for room here.
    pub(super) ready: VecDeque<Key>,
    /// When which want-block was asked, oldest first. Entries outlive their wants and are skipped then.
    pub(super) sent: VecDeque<(Instant, Key)>,
    pub(super) outbox: Outbox,
    /// Whether the shell was told of a non-empty outbox.
    pub(super) woken: bool,
    /// Understands want-have.
    pub(super) knows_have: bool,
    pub(super) last_progress: Option<Instant>,
    pub(super) redial_after: Option<Instant>,
    /// It answered nothing for [`LAST_HOPE`](crate::bitswap::limits::LAST_HOPE) and is left alone so long.
    pub(super) silent_until: Option<Instant>,
    pub(super) strikes: u32,
    /// Wants delivered since the last DONT_HAVE.
    pub(super) hits_in_row: u32,
    recent: Recent,
    latency: Option<Duration>,
    /// Mean time between blocks while busy.
    gap: Option<Duration>,
}

impl Default for Peer {
    fn default() -> Self {
        Peer {
            status: Status::Away,
            sessions: 0,
            window: Window::default(),
            in_flight: 0,
            ready: VecDeque::new(),
            sent: VecDeque::new(),
            outbox: Outbox::default(),
            woken: false,
            knows_have: true,
            last_progress: None,
            redial_after: None,
            silent_until: None,
            strikes: 0,
            hits_in_row: 0,
            recent: Recent::default(),
            latency: None,
            gap: None,
        }
    }
}

/// Exponential mean with weight 1/8, as TCP smooths its round trips.
fn smooth(mean: &mut Option<Duration>, sample: Duration) {
    *mean = Some(mean.map_or(sample, |mean| (mean * 7 + sample) / 8));
}

impl Peer {
    /// Whether it may be asked at all.
    pub fn usable(&self) -> bool {
        self.status == Status::Connected && self.strikes < MAX_STRIKES && self.silent_until.is_none()
    }

    /// Whether one more want-block may be sent.
    pub fn has_room(&self) -> bool {
        self.in_flight < self.window.size() && self.outbox.occupied() < MAX_ASKS_PER_PEER
    }

    /// Time until a block asked now would come, as far as is known. Unmeasured peers look good, so that they get
    /// measured.
    pub fn cost(&self) -> Duration {
        let gap = self.gap.unwrap_or(Duration::from_millis(1));
        let queued = u32::try_from(self.in_flight + 1).unwrap_or(u32::MAX);
        gap.saturating_mul(queued)
    }

    /// How long it may be silent while something is asked of it.
    pub fn timeout(&self) -> Duration {
        self.latency.map_or(ASK_TIMEOUT_MAX, |mean| (mean * 4).clamp(ASK_TIMEOUT_MIN, ASK_TIMEOUT_MAX))
    }

    /// A block came that was asked at `asked`.
    pub fn delivered(&mut self, asked: Instant, now: Instant) {
        let latency = now.saturating_duration_since(asked);
        let busy_since = self.last_progress.map_or(asked, |last| last.max(asked));
        smooth(&mut self.gap, now.saturating_duration_since(busy_since));
        smooth(&mut self.latency, latency);
        self.window.delivered(latency);
        self.hits_in_row = self.hits_in_row.saturating_add(1);
    }

    /// Since when it has been silent, for a want asked at `asked`.
    pub fn silent_since(&self, asked: Instant) -> Instant {
        self.last_progress.map_or(asked, |last| last.max(asked))
    }

    /// Withdraws a want. Its block may be under way already.
    pub fn withdraw(&mut self, cid: Cid) {
        self.recent.push(*cid.hash());
        self.outbox.cancel(cid);
    }

    /// Whether a block that nobody waits for was asked of it not long ago.
    pub fn was_asked(&self, key: &Key) -> bool {
        self.recent.keys.contains(key)
    }

    /// Remembers that this key's block was delivered, in case it comes again.
    pub fn remember(&mut self, key: Key) {
        self.recent.push(key);
    }

    /// A new connection, or none: nothing said before counts.
    pub fn reset(&mut self, status: Status) {
        *self = Peer { status, sessions: self.sessions, redial_after: self.redial_after, ..Peer::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use btfs_storage::hash::{RAW, cid_v1};

    #[test]
    fn the_window_opens_on_a_fast_link_and_closes_on_a_slow_one() {
        let mut window = Window::default();
        for _ in 0..2000 {
            window.delivered(Duration::from_millis(30));
        }
        assert_eq!(window.size(), MAX_ASKS_PER_PEER);
        for _ in 0..2000 {
            window.delivered(Duration::from_secs(5));
        }
        assert_eq!(window.size(), WINDOW_MIN);
        window.stalled();
        assert_eq!(window.size(), WINDOW_MIN);
    }

    #[test]
    fn a_want_withdrawn_before_it_was_written_is_never_written() {
        let (a, b) = (cid_v1(RAW, b"a"), cid_v1(RAW, b"b"));
        let mut outbox = Outbox::default();
        outbox.want(a, 2, WantKind::Block);
        outbox.want(b, 1, WantKind::Have);
        outbox.cancel(a);
        let entries = outbox.take(10);
        assert_eq!(entries.iter().map(|e| (e.cid, e.cancel)).collect::<Vec<_>>(), [(b, false)]);
        outbox.want(a, 2, WantKind::Block);
        outbox.cancel(b);
        let entries = outbox.take(10);
        assert_eq!(entries.iter().map(|e| (e.cid, e.cancel)).collect::<Vec<_>>(), [(b, true), (a, false)]);
        assert_eq!(outbox.occupied(), 1);
        outbox.answered(a.hash());
        outbox.cancel(a);
        assert!(outbox.is_empty() && outbox.take(10).is_empty());
    }

    #[test]
    fn asking_and_withdrawing_without_end_does_not_grow_the_outbox() {
        let mut outbox = Outbox::default();
        for n in 0..100_000u32 {
            let cid = cid_v1(RAW, &(n % 7).to_le_bytes());
            outbox.want(cid, 1, WantKind::Block);
            outbox.cancel(cid);
        }
        assert!(outbox.order.len() < 200, "{}", outbox.order.len());
    }
}
