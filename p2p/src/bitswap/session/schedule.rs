//! The client's choices: whom to ask next, and when to give up on a peer.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use libp2p::PeerId;

use super::peer::Status;
use super::want::{AskState, Phase};
use super::{Client, Event, Patience, SessionId};
use crate::bitswap::limits::{
    CONFIDENT_AFTER, HAVE_PATIENCE, LAST_HOPE, MAX_ASKS_PER_PEER, OPEN_TIMEOUT, RETRY, SAY_AGAIN, SLOW_WANT,
};
use crate::bitswap::wire::{Key, WantKind};

/// Want-haves leave this much of a peer's list to want-blocks.
const HAVE_ROOM: usize = MAX_ASKS_PER_PEER * 3 / 4;

/// Wants moved away from one slow peer in one tick.
const RELIEF: usize = 8;

/// Wants repeated to one peer in one tick.
const REPEATS: usize = 64;

/// The peers that can be asked for a want, by what is known.
#[derive(Default)]
struct Options {
    /// The cheapest with room that has it.
    has: Option<(Duration, PeerId)>,
    has_full: Vec<PeerId>,
    /// The cheapest with room that may have it.
    unknown: Option<(Duration, PeerId)>,
    unknown_full: Vec<PeerId>,
    /// A want-have was sent not long ago, or a connection is being made.
    listening: bool,
}

fn cheaper(best: &mut Option<(Duration, PeerId)>, cost: Duration, peer: PeerId) {
    if best.is_none_or(|(least, _)| cost < least) {
        *best = Some((cost, peer));
    }
}

impl Client {
    /// Finds a peer for a want that none holds.
    pub(super) fn assign(&mut self, key: Key, now: Instant) {
        let Some(want) = self.wants.get(&key) else { return };
        if want.is_held() {
            return;
        }
        let (broadcast, was) = (want.broadcast, want.phase);
        let options = self.options(&key, now);
        let phase = if let Some((_, peer)) = options.has {
            return self.ask_block(peer, key, now);
        } else if !options.has_full.is_empty() {
            self.queue(&key, &options.has_full, was);
            Phase::Ready
        } else if options.listening && (broadcast || options.unknown.is_none()) {
            Phase::Listening
        } else if let Some((_, peer)) = options.unknown {
            return self.ask_block(peer, key, now);
        } else if !options.unknown_full.is_empty() {
            self.queue(&key, &options.unknown_full, was);
            Phase::Ready
        } else {
            match was {
                Phase::Exhausted(since) => Phase::Exhausted(since),
                _ => Phase::Exhausted(now),
            }
        };
        self.set_phase(key, phase);
        if let Phase::Exhausted(_) = phase {
            self.starve(key, now);
        }
    }

    fn options(&self, key: &Key, now: Instant) -> Options {
        let mut options = Options::default();
        let want = &self.wants[key];
        for id in self.candidates(key) {
            let Some(peer) = self.peers.get(&id) else { continue };
            if matches!(peer.status, Status::Dialing(_)) {
                options.listening = true;
            }
            if !peer.usable() {
                continue;
            }
            let state = want.ask(&id).map(|ask| (ask.state, ask.at));
            match state {
                Some((AskState::Has, _)) if peer.has_room() => cheaper(&mut options.has, peer.cost(), id),
                Some((AskState::Has, _)) => options.has_full.push(id),
                Some((AskState::Have | AskState::Gone, _)) | None => {
                    if let Some((AskState::Have, at)) = state {
                        options.listening |= now.saturating_duration_since(at) < HAVE_PATIENCE;
                    }
                    match peer.has_room() {
                        true => cheaper(&mut options.unknown, peer.cost(), id),
                        false => options.unknown_full.push(id),
                    }
                }
                Some(_) => {}
            }
        }
        options
    }

    /// The peers of all sessions that wait for a want.
    fn candidates(&self, key: &Key) -> Vec<PeerId> {
        let want = &self.wants[key];
        let mut sessions: Vec<SessionId> = Vec::with_capacity(1);
        let mut peers: Vec<PeerId> = Vec::new();
        for waiter in &want.waiters {
            if sessions.contains(&waiter.session) {
                continue;
            }
            sessions.push(waiter.session);
            let Some(session) = self.sessions.get(&waiter.session) else { continue };
            if sessions.len() == 1 {
                peers.extend(&session.peers);
            } else {
                let new: Vec<_> =
                    session.peers.iter().filter(|peer| !peers.contains(peer)).copied().collect();
                peers.extend(new);
            }
        }
        peers
    }

    fn set_phase(&mut self, key: Key, phase: Phase) {
        let Some(want) = self.wants.get_mut(&key) else { return };
        want.phase = phase;
        match phase {
            Phase::Listening | Phase::Exhausted(_) => self.idle.insert(key),
            Phase::Held(_) | Phase::Ready => self.idle.remove(&key),
        };
        if !matches!(phase, Phase::Exhausted(_)) {
            for waiter in &want.waiters {
                if let Some(session) = self.sessions.get_mut(&waiter.session) {
                    session.starving.remove(&key);
                }
            }
        }
    }

    /// Lines a want up at peers that have no room now; once is enough.
    fn queue(&mut self, key: &Key, peers: &[PeerId], was: Phase) {
        if was == Phase::Ready {
            return;
        }
        for peer in peers {
            if let Some(peer) = self.peers.get_mut(peer) {
                peer.ready.push_back(*key);
            }
        }
    }

    fn ask_block(&mut self, id: PeerId, key: Key, now: Instant) {
        let (Some(want), Some(peer)) = (self.wants.get_mut(&key), self.peers.get_mut(&id)) else { return };
        let known = want.ask(&id).is_some_and(|ask| ask.state == AskState::Has);
        want.set_ask(id, AskState::Block, now);
        let sure = known || (want.attempts == 0 && peer.hits_in_row >= CONFIDENT_AFTER);
        want.attempts += 1;
        peer.in_flight += 1;
        peer.sent.push_back((now, key));
        peer.outbox.want(want.cid, want.priority, WantKind::Block);
        let spread = !sure && !want.broadcast;
        for waiter in &want.waiters {
            if let Some(session) = self.sessions.get_mut(&waiter.session) {
                session.asked.insert(id);
            }
        }
        self.set_phase(key, Phase::Held(id));
        self.wake(id);
        if spread {
            self.broadcast(key, now);
        }
    }

    /// Asks everyone else whether they have it.
    fn broadcast(&mut self, key: Key, now: Instant) {
        for id in self.candidates(&key) {
            let (Some(want), Some(peer)) = (self.wants.get_mut(&key), self.peers.get_mut(&id)) else {
                continue;
            };
            want.broadcast = true;
            let fits = peer.usable() && peer.knows_have && peer.outbox.occupied() < HAVE_ROOM;
            if !fits || want.ask(&id).is_some_and(|ask| ask.state != AskState::Gone) {
                continue;
            }
            want.set_ask(id, AskState::Have, now);
            peer.outbox.want(want.cid, want.priority, WantKind::Have);
            for waiter in &want.waiters {
                if let Some(session) = self.sessions.get_mut(&waiter.session) {
                    session.asked.insert(id);
                }
            }
            self.wake(id);
        }
    }

    /// Nobody is left to ask: tells those who wait.
    fn starve(&mut self, key: Key, now: Instant) {
        let Some(want) = self.wants.get_mut(&key) else { return };
        let cid = want.cid;
        let asked: Vec<PeerId> = want.asks.iter().map(|ask| ask.peer).collect();
        let (refused, waiting): (Vec<_>, Vec<_>) =
            want.waiters.drain(..).partition(|waiter| waiter.patience == Patience::UntilRefused);
        want.waiters = waiting.clone();
        for waiter in refused {
            self.tickets.remove(&waiter.ticket);
            self.leave(waiter.session, &key);
            self.events.push(Event::Refused(waiter.ticket, cid, asked.clone()));
        }
        for waiter in waiting {
            let Some(session) = self.sessions.get_mut(&waiter.session) else { continue };
            if session.starving.insert(key) {
                self.events.push(Event::Starved(waiter.session));
            }
        }
        self.drop_if_unwanted(&key, now);
    }

    /// Gives a peer with room the wants that wait for it.
    pub(super) fn pump(&mut self, id: PeerId, now: Instant) {
        loop {
            let Some(peer) = self.peers.get_mut(&id) else { return };
            if !peer.usable() || !peer.has_room() {
                return;
            }
            let Some(key) = peer.ready.pop_front() else { return };
            let Some(want) = self.wants.get(&key) else { continue };
            if want.phase == Phase::Ready && want.may_ask(&id) && self.candidates(&key).contains(&id) {
                self.ask_block(id, key, now);
            }
        }
    }

    /// A peer of a session came into reach: every want of the session may go to it.
    pub(super) fn revive(&mut self, id: SessionId, peer: PeerId, now: Instant) {
        let Some(session) = self.sessions.get(&id) else { return };
        let usable = self.peers.get(&peer).is_some_and(|peer| peer.usable());
        // A peer that is only being dialled is a hope to those that have no other.
        let concerned = |key: &&Key| usable || self.idle.contains(*key);
        let mut keys: Vec<Key> = session.wants.keys().filter(concerned).copied().collect();
        keys.sort_by_cached_key(|key| self.wants.get(key).map(|want| std::cmp::Reverse(want.priority)));
        for key in keys {
            let Some(want) = self.wants.get_mut(&key) else { continue };
            match want.phase {
                Phase::Held(_) => {}
                Phase::Ready => {
                    if let Some(peer) = self.peers.get_mut(&peer) {
                        peer.ready.push_back(key);
                    }
                }
                Phase::Listening | Phase::Exhausted(_) => self.assign(key, now),
            }
        }
        self.pump(peer, now);
    }

    /// Takes every want away from a peer that can no longer answer.
    pub(super) fn lose(&mut self, id: PeerId, status: Status, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.reset(status);
        self.release(id, now);
        let unused = self.peers.get(&id).is_some_and(|peer| peer.sessions == 0);
        if unused && status == Status::Away {
            self.peers.remove(&id);
        }
    }

    /// Finds other peers for all that `id` holds or was waited for to say.
    pub(super) fn release(&mut self, id: PeerId, now: Instant) {
        let mut orphans = Vec::new();
        for (key, want) in &mut self.wants {
            want.forget_ask(&id);
            if want.phase == Phase::Held(id) {
                want.phase = Phase::Listening;
            }
            // Ready wants may have been lined up here only.
            if !want.is_held() {
                want.phase = if want.phase == Phase::Ready { Phase::Listening } else { want.phase };
                orphans.push(*key);
            }
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.in_flight = 0;
            peer.ready.clear();
            peer.sent.clear();
            peer.outbox.clear();
        }
        orphans.sort_by_cached_key(|key| self.wants.get(key).map(|want| std::cmp::Reverse(want.priority)));
        for key in orphans {
            self.assign(key, now);
        }
    }

    /// Time passed: silent peers lose their wants, slow ones some, and wants that nobody had are tried again.
    pub fn tick(&mut self, now: Instant) {
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for id in peers {
            self.tick_peer(id, now);
        }
        let idle: Vec<Key> = self.idle.iter().copied().collect();
        let mut dialled = HashSet::new();
        for key in idle {
            let Some(want) = self.wants.get_mut(&key) else { continue };
            if let Phase::Exhausted(since) = want.phase {
                if now.saturating_duration_since(since) < RETRY {
                    continue;
                }
                want.asks.iter_mut().for_each(|ask| ask.state = AskState::Gone);
                want.broadcast = false;
                want.phase = Phase::Listening;
                let sessions: Vec<SessionId> = want.waiters.iter().map(|waiter| waiter.session).collect();
                for session in sessions {
                    if dialled.insert(session) {
                        self.dial_absent(session, now);
                    }
                }
            }
            self.assign(key, now);
        }
    }

    fn tick_peer(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if let Status::Dialing(since) = peer.status {
            // The swarm answers every dial; this only bounds the harm should it ever not.
            if now.saturating_duration_since(since) > 4 * OPEN_TIMEOUT {
                self.lose(id, Status::Away, now);
            }
            return;
        }
        if peer.silent_until.is_some_and(|until| until <= now) {
            peer.silent_until = None;
        }
        while let Some((at, key)) = peer.sent.front() {
            let held = self.wants.get(key).and_then(|want| want.ask(&id));
            if held.is_some_and(|ask| ask.state == AskState::Block && ask.at == *at) {
                break;
            }
            peer.sent.pop_front();
        }
        let Some((oldest, _)) = peer.sent.front().copied() else { return };
        let silence = now.saturating_duration_since(peer.silent_since(oldest));
        if silence > peer.timeout() {
            self.desert(id, silence, now);
        } else if now.saturating_duration_since(oldest) > SLOW_WANT {
            self.relieve(id, now);
        }
        self.say_again(id, now);
    }

    /// Repeats the oldest wants of a peer that it may have dropped: its list was full, or the message was lost.
    fn say_again(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        for (at, key) in peer.sent.iter().take(REPEATS) {
            let Some(want) = self.wants.get_mut(key) else { continue };
            let (cid, priority) = (want.cid, want.priority);
            let Some(ask) = want.ask_mut(&id).filter(|ask| ask.state == AskState::Block && ask.at == *at)
            else {
                continue;
            };
            if now.saturating_duration_since(ask.again.unwrap_or(*at)) > SAY_AGAIN {
                ask.again = Some(now);
                peer.outbox.want(cid, priority, WantKind::Block);
            }
        }
        self.wake(id);
    }

    /// Moves the wants of a silent peer to others; those that nobody else can have stay a while longer.
    fn desert(&mut self, id: PeerId, silence: Duration, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if silence > LAST_HOPE {
            peer.silent_until = Some(now + RETRY);
            return self.release(id, now);
        }
        let timeout = peer.timeout();
        peer.window.stalled();
        let late: Vec<(Instant, Key)> = peer.sent.iter().copied().collect();
        let mut kept = std::collections::VecDeque::new();
        for (at, key) in late {
            let Some(want) = self.wants.get(&key) else { continue };
            let Some(ask) = want.ask(&id).filter(|ask| ask.state == AskState::Block && ask.at == at) else {
                continue;
            };
            let claimed = ask.claimed;
            let options = self.options(&key, now);
            let other = options.has.is_some() || options.unknown.is_some();
            let late = now.saturating_duration_since(at) > timeout;
            if !(late && other) {
                kept.push_back((at, key));
                continue;
            }
            if let Some(want) = self.wants.get_mut(&key) {
                want.set_ask(id, AskState::TimedOut, now);
                want.phase = Phase::Listening;
            }
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.in_flight -= 1;
                peer.strikes += u32::from(claimed);
            }
            self.assign(key, now);
        }
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.sent = kept;
        }
    }

    /// Moves some of the latest wants of a slow peer to others that have the block and hardly anything to do.
    fn relieve(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get(&id) else { return };
        let latest: Vec<(Instant, Key)> = peer.sent.iter().rev().take(RELIEF).copied().collect();
        let cost = peer.cost();
        for (at, key) in latest {
            let Some(want) = self.wants.get(&key) else { continue };
            if want.ask(&id).is_none_or(|ask| ask.state != AskState::Block || ask.at != at) {
                continue;
            }
            if !want.broadcast {
                self.broadcast(key, now);
                continue;
            }
            let cid = want.cid;
            let Some((other_cost, _)) = self.options(&key, now).has else { continue };
            if other_cost * 2 >= cost {
                continue;
            }
            if let Some(want) = self.wants.get_mut(&key) {
                want.forget_ask(&id);
                want.phase = Phase::Listening;
            }
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.in_flight -= 1;
                peer.withdraw(cid);
            }
            self.wake(id);
            self.assign(key, now);
        }
    }
}
