//! What one peer wants from us.
//!
//! Every want is in one of three states:
//!
//! ```text
//!   ready ---take---> in flight ---settle: sent------> (gone)
//!     ^                  |    \---settle: not here--> waiting
//!     |                  '-------put back-------------> ready
//!     '---- the block was stored, or the peer asks again ----'
//! ```
//!
//! Ready wants are ordered by priority, then by age. A waiting want is one whose block is not here; it stays until it
//! is cancelled, so that the peer gets the block should it come. The number of wants not in flight is capped; when the table is full
//! a want of higher priority takes the place of the lowest one that nobody works on.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use cid::Cid;

use super::limits::MAX_WANTS_PER_PEER;
use super::wire::{Key, WantEntry, WantKind};

/// Place in the queue: higher priority first, then first come.
type Place = (Reverse<i32>, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    InFlight,
    Waiting,
}

#[derive(Debug, Clone, Copy)]
struct Want {
    kind: WantKind,
    send_dont_have: bool,
    priority: i32,
    /// Changes whenever the want does, so that an answer to the old one does not settle the new one.
    seq: u64,
    state: State,
}

/// A want that is to be answered now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// What is wanted, in the form the peer asked for it.
    pub cid: Cid,
    /// The block or only its presence.
    pub kind: WantKind,
    /// Whether absence is answered.
    pub send_dont_have: bool,
    seq: u64,
}

/// What came of a want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The block or a HAVE went out: the want is done.
    Sent,
    /// The block is not here: the want waits for it.
    NotHere,
}

/// What came of a wantlist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Wants that were added or changed.
    pub accepted: u64,
    /// Wants that found no room.
    pub dropped: u64,
}

/// The wants of one peer.
#[derive(Debug, Default)]
pub struct PeerWants {
    wants: HashMap<Cid, Want>,
    ready: BTreeMap<Place, Cid>,
    waiting: HashSet<Cid>,
    next_seq: u64,
}

impl PeerWants {
    /// Number of wants in all states.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.wants.len()
    }

    /// Whether something can be answered now.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Wants that nobody works on at the moment.
    fn queued(&self) -> usize {
        self.ready.len() + self.waiting.len()
    }

    /// Whether something is being answered or could be.
    pub fn is_busy(&self) -> bool {
        self.wants.len() > self.waiting.len()
    }

    /// The peer's wants, in no order.
    pub fn cids(&self) -> impl Iterator<Item = &Cid> {
        self.wants.keys()
    }

    /// Takes in a wantlist. Identity CIDs carry their bytes, so wants for them are ignored.
    pub fn apply(&mut self, entries: &[WantEntry], full: bool) -> Applied {
        if full {
            let kept: HashSet<Cid> = entries.iter().filter(|e| !e.cancel).map(|e| e.cid).collect();
            let gone: Vec<Cid> = self.wants.keys().filter(|cid| !kept.contains(cid)).copied().collect();
            gone.iter().for_each(|cid| self.remove(cid));
        }
        let mut applied = Applied::default();
        for entry in entries {
            if entry.cancel {
                self.remove(&entry.cid);
            } else if entry.cid.hash().code() != btfs_storage::hash::IDENTITY {
                match self.add(entry) {
                    true => applied.accepted += 1,
                    false => applied.dropped += 1,
                }
            }
        }
        applied
    }

    fn add(&mut self, entry: &WantEntry) -> bool {
        let seq = self.next_seq;
        self.next_seq += 1;
        let new = Want {
            kind: entry.kind,
            send_dont_have: entry.send_dont_have,
            priority: entry.priority,
            seq,
            state: State::Ready,
        };
        match self.wants.get(&entry.cid).copied() {
            // A want-have does not weaken the want-block that is already there.
            Some(old) if old.state != State::Waiting && old.kind >= new.kind => true,
            Some(_) => {
                self.remove(&entry.cid);
                self.insert(entry.cid, new);
                true
            }
            None if self.queued() < MAX_WANTS_PER_PEER || self.evict_below(entry.priority) => {
                self.insert(entry.cid, new);
                true
            }
            None => false,
        }
    }

    fn insert(&mut self, cid: Cid, want: Want) {
        self.ready.insert((Reverse(want.priority), want.seq), cid);
        self.wants.insert(cid, want);
    }

    /// Makes room for a want of `priority`: a waiting want goes first, since nothing can be done for it now.
    fn evict_below(&mut self, priority: i32) -> bool {
        let waiting = self.waiting.iter().next().copied();
        let victim = waiting.or_else(|| {
            let (&(Reverse(lowest), _), cid) = self.ready.last_key_value()?;
            (lowest < priority).then_some(*cid)
        });
        victim.inspect(|cid| self.remove(cid)).is_some()
    }

    fn remove(&mut self, cid: &Cid) {
        if let Some(want) = self.wants.remove(cid) {
            self.ready.remove(&(Reverse(want.priority), want.seq));
            self.waiting.remove(cid);
        }
    }

    /// Takes up to `n` ready wants, best first. Each must come back by [`settle`](Self::settle) or
    /// [`put_back`](Self::put_back).
    pub fn take(&mut self, n: usize) -> Vec<Due> {
        let mut due = Vec::with_capacity(n.min(self.ready.len()));
        while due.len() < n {
            let Some((_, cid)) = self.ready.pop_first() else { break };
            let want = self.wants.get_mut(&cid).expect("ready wants are wants");
            want.state = State::InFlight;
            due.push(Due { cid, kind: want.kind, send_dont_have: want.send_dont_have, seq: want.seq });
        }
        due
    }

    /// Returns wants that were taken but not answered to their old places.
    pub fn put_back(&mut self, due: &[Due]) {
        for due in due {
            if let Some(want) = self.wants.get_mut(&due.cid).filter(|want| want.seq == due.seq) {
                want.state = State::Ready;
                self.ready.insert((Reverse(want.priority), want.seq), due.cid);
            }
        }
    }

    /// Ends the work on a want, unless the peer changed or cancelled it meanwhile.
    pub fn settle(&mut self, due: &Due, settled: Settled) {
        let Some(want) = self.wants.get_mut(&due.cid).filter(|want| want.seq == due.seq) else { return };
        match settled {
            Settled::Sent => self.remove(&due.cid),
            Settled::NotHere => {
                want.state = State::Waiting;
                self.waiting.insert(due.cid);
            }
        }
    }

    /// Blocks came into the store: wants that waited for them are ready again. Whether there were any.
    pub fn stored(&mut self, keys: &HashSet<Key>) -> bool {
        let found: Vec<Cid> = self.waiting.iter().filter(|cid| keys.contains(cid.hash())).copied().collect();
        for cid in &found {
            self.waiting.remove(cid);
            let want = self.wants.get_mut(cid).expect("waiting wants are wants");
            want.state = State::Ready;
            self.ready.insert((Reverse(want.priority), want.seq), *cid);
        }
        !found.is_empty()
    }

    /// Forgets everything: the peer can no longer be answered.
    pub fn clear(&mut self) {
        self.wants.clear();
        self.ready.clear();
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use btfs_storage::hash::{RAW, cid_from_digest, cid_v1};

    fn cid(n: usize) -> Cid {
        cid_v1(RAW, &n.to_le_bytes())
    }

    fn want(n: usize, priority: i32, kind: WantKind) -> WantEntry {
        WantEntry { cid: cid(n), priority, cancel: false, kind, send_dont_have: true }
    }

    #[test]
    fn priority_orders_and_age_breaks_ties() {
        let mut wants = PeerWants::default();
        wants.apply(
            &[want(1, 1, WantKind::Block), want(2, 9, WantKind::Block), want(3, 1, WantKind::Block)],
            false,
        );
        let order: Vec<Cid> = wants.take(9).iter().map(|due| due.cid).collect();
        assert_eq!(order, [cid(2), cid(1), cid(3)]);
        assert!(wants.is_busy() && !wants.has_ready());
    }

    #[test]
    fn a_block_want_replaces_a_have_want_in_flight_and_not_the_other_way() {
        let mut wants = PeerWants::default();
        wants.apply(&[want(1, 1, WantKind::Have)], false);
        let old = wants.take(1);
        wants.apply(&[want(1, 1, WantKind::Block)], false);
        wants.settle(&old[0], Settled::Sent);
        wants.apply(&[want(1, 1, WantKind::Have)], false);
        let due = wants.take(1);
        assert_eq!((due.len(), due[0].kind), (1, WantKind::Block));
        wants.settle(&due[0], Settled::Sent);
        assert_eq!(wants.len(), 0);
    }

    #[test]
    fn a_cancelled_want_in_flight_does_not_come_back() {
        let mut wants = PeerWants::default();
        wants.apply(&[want(1, 1, WantKind::Block)], false);
        let due = wants.take(1);
        wants.apply(&[WantEntry { cancel: true, ..want(1, 1, WantKind::Block) }], false);
        wants.put_back(&due);
        wants.settle(&due[0], Settled::NotHere);
        assert_eq!((wants.len(), wants.has_ready()), (0, false));
    }

    #[test]
    fn absent_blocks_wait_until_stored() {
        let mut wants = PeerWants::default();
        wants.apply(&[want(1, 1, WantKind::Block)], false);
        let due = wants.take(1);
        wants.settle(&due[0], Settled::NotHere);
        assert!(!wants.is_busy());
        assert!(!wants.stored(&HashSet::from([*cid(2).hash()])));
        assert!(wants.stored(&HashSet::from([*cid(1).hash()])));
        assert_eq!(wants.take(1)[0].cid, cid(1));
    }

    #[test]
    fn asking_again_for_an_absent_block_gets_another_answer() {
        let mut wants = PeerWants::default();
        wants.apply(&[want(1, 1, WantKind::Block)], false);
        let due = wants.take(1);
        wants.settle(&due[0], Settled::NotHere);
        wants.apply(&[want(1, 1, WantKind::Have)], false);
        assert_eq!(wants.take(1)[0].kind, WantKind::Have);
    }

    #[test]
    fn the_table_is_capped_and_keeps_the_urgent() {
        let mut wants = PeerWants::default();
        let many: Vec<_> = (0..MAX_WANTS_PER_PEER + 10).map(|n| want(n, 5, WantKind::Block)).collect();
        let applied = wants.apply(&many, false);
        assert_eq!((wants.len(), applied.dropped), (MAX_WANTS_PER_PEER, 10));
        assert_eq!(wants.apply(&[want(5000, 6, WantKind::Block)], false).dropped, 0);
        assert_eq!(wants.take(1)[0].cid, cid(5000));
        assert_eq!(wants.len(), MAX_WANTS_PER_PEER);
    }

    #[test]
    fn a_full_list_replaces_and_identity_is_ignored() {
        let mut wants = PeerWants::default();
        wants.apply(&[want(1, 1, WantKind::Block), want(2, 1, WantKind::Block)], false);
        let inline = WantEntry { cid: cid_from_digest(RAW, 0, b"x"), ..want(0, 1, WantKind::Block) };
        wants.apply(&[want(2, 1, WantKind::Block), inline], true);
        assert_eq!(wants.cids().copied().collect::<Vec<_>>(), [cid(2)]);
    }
}
