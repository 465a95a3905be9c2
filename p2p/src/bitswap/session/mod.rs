//! The client: which block is asked of which peer.
//!
//! A pure state machine. It is told what happens (wants, answers, connections, the time) and says in return what is to
//! be written to whom ([`Client::take_outbox`]) and what the shell has to do ([`Event`]). It does no I/O and has no
//! clock.
//!
//! A want is kept once, however many sessions wait for it; it may be asked of the peers of all of them. Each want is
//! in one phase ([`want::Phase`]):
//!
//! ```text
//!              .---- no room at any peer -----> Ready ---- room ----.
//!   want ---> assign --- a peer with room ---------------------> Held by that peer --- block ---> done
//!              ^ ^ '---- all said no, are silent or away --> Exhausted     |
//!              | |                                   |                     |
//!              | '-- peer added, connected, retry ---'                     |
//!              |                                                           |
//!              '---- Listening (answers to want-haves) <--- DONT_HAVE, silence, disconnect
//! ```
//!
//! - One want-block is out at a time, to the peer that said it has the block, else to the one that looks fastest. Until a
//!   peer has proven that it has what this is about, the others are asked for presence meanwhile.
//! - How many are out to a peer is its [`peer::Window`]; wants beyond wait in the peers' ready queues, and whoever
//!   gets room first takes them, so that load follows speed.
//! - A peer is silent when *nothing* came from it for a time that depends on its latency; then its wants go elsewhere.
//! - A peer that sends what nobody asked for, or claims what it does not deliver, collects strikes and is left alone.

mod peer;
mod schedule;
#[cfg(test)]
mod tests;
mod want;

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use cid::Cid;
use libp2p::PeerId;

use self::peer::{Peer, Status};
use self::want::{AskState, Phase, Waiter, Want};
use super::limits::{
    MAX_ASKS_PER_PEER, MAX_ENTRIES_PER_MESSAGE, MAX_SESSION_PEERS, MAX_SESSIONS, MAX_WANTS, RETRY,
};
use super::wire::{Key, WantEntry};

/// A session's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(u64);

/// One waiter for one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// How long a waiter waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Until the block comes.
    Forever,
    /// Until every peer of the session said no, fell silent or went away.
    UntilRefused,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something is to be written to this peer.
    Wake(PeerId),
    /// Try to connect to this peer.
    Dial(PeerId),
    /// This waiter's block cannot be had from the session's peers.
    Refused(Ticket, Cid, Vec<PeerId>),
    /// A want of this session has nobody left to ask.
    Starved(SessionId),
}

/// What a received block was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// These waiters get it.
    Wanted(Vec<Ticket>),
    /// It was asked of this peer, but came from another before.
    Duplicate,
    /// Nobody asked this peer for it.
    Unrequested,
}

/// Why a want was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There are [`MAX_WANTS`] already.
    TooManyWants,
    /// The session was closed.
    NoSession,
}

#[derive(Debug, Default)]
struct Session {
    peers: Vec<PeerId>,
    asked: HashSet<PeerId>,
    /// Its wants, with the number of its waiters for each.
    wants: HashMap<Key, usize>,
    starving: HashSet<Key>,
}

/// The client of one node: all sessions, wants and peers.
#[derive(Debug, Default)]
pub struct Client {
    sessions: HashMap<SessionId, Session>,
    wants: HashMap<Key, Want>,
    peers: HashMap<PeerId, Peer>,
    tickets: HashMap<Ticket, Key>,
    /// Wants that a timer has to look after: in phase Listening or Exhausted.
    idle: HashSet<Key>,
    events: Vec<Event>,
    next_id: u64,
}

impl Client {
    /// Opens a session with `peers`, or `None` when there are too many sessions.
    pub fn open(&mut self, peers: &[PeerId]) -> Option<SessionId> {
        if self.sessions.len() >= MAX_SESSIONS {
            return None;
        }
        let id = SessionId(self.next_number());
        self.sessions.insert(id, Session::default());
        for peer in peers.iter().take(MAX_SESSION_PEERS) {
            self.join(id, *peer);
        }
        Some(id)
    }

    /// Adds a peer to a session, which may ask it from now on. Whether there was room for it.
    pub fn add_peer(&mut self, id: SessionId, peer: PeerId, now: Instant) -> bool {
        if !self.join(id, peer) {
            return self.sessions.get(&id).is_some_and(|session| session.peers.contains(&peer));
        }
        self.dial_absent(id, now);
        self.revive(id, peer, now);
        true
    }

    fn join(&mut self, id: SessionId, peer: PeerId) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        if session.peers.len() >= MAX_SESSION_PEERS || session.peers.contains(&peer) {
            return false;
        }
        session.peers.push(peer);
        self.peers.entry(peer).or_default().sessions += 1;
        true
    }

    /// Ends a session; its wants are withdrawn unless others wait for them too.
    pub fn close(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.remove(&id) else { return };
        for key in session.wants.keys() {
            if let Some(want) = self.wants.get_mut(key) {
                let tickets = &mut self.tickets;
                want.waiters.retain(|w| w.session != id || tickets.remove(&w.ticket).is_none());
            }
            self.drop_if_unwanted(key, now);
        }
        for peer in session.peers {
            let Some(known) = self.peers.get_mut(&peer) else { continue };
            known.sessions -= 1;
            if known.sessions == 0 && matches!(known.status, Status::Away | Status::Dialing(_)) {
                self.peers.remove(&peer);
            }
        }
    }

    /// Asks for a block on behalf of a session.
    pub fn want(
        &mut self,
        id: SessionId,
        cid: Cid,
        patience: Patience,
        now: Instant,
    ) -> Result<Ticket, Refusal> {
        let key = *cid.hash();
        if !self.wants.contains_key(&key) && self.wants.len() >= MAX_WANTS {
            return Err(Refusal::TooManyWants);
        }
        let number = self.next_number();
        let ticket = Ticket(number);
        let session = self.sessions.get_mut(&id).ok_or(Refusal::NoSession)?;
        *session.wants.entry(key).or_insert(0) += 1;
        // Older wants first, within what an int32 priority can tell apart.
        let priority = i32::MAX - i32::try_from(number & 0x3fff_ffff).unwrap_or(0);
        let want = self.wants.entry(key).or_insert_with(|| Want::new(cid, priority));
        want.waiters.push(Waiter { ticket, session: id, patience });
        self.tickets.insert(ticket, key);
        self.dial_absent(id, now);
        self.assign(key, now);
        Ok(ticket)
    }

    /// A waiter no longer waits.
    pub fn cancel(&mut self, ticket: Ticket, now: Instant) {
        let Some(key) = self.tickets.remove(&ticket) else { return };
        let Some(want) = self.wants.get_mut(&key) else { return };
        if let Some(at) = want.waiters.iter().position(|w| w.ticket == ticket) {
            let waiter = want.waiters.swap_remove(at);
            self.leave(waiter.session, &key);
        }
        self.drop_if_unwanted(&key, now);
    }

    /// One waiter of `session` for `key` less.
    fn leave(&mut self, session: SessionId, key: &Key) {
        let Some(session) = self.sessions.get_mut(&session) else { return };
        if let Some(count) = session.wants.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                session.wants.remove(key);
                session.starving.remove(key);
            }
        }
    }

    fn drop_if_unwanted(&mut self, key: &Key, now: Instant) {
        if self.wants.get(key).is_some_and(|want| want.waiters.is_empty()) {
            self.end(key, None, now);
        }
    }

    /// Removes a want and withdraws it from everyone but the peer that answered it.
    fn end(&mut self, key: &Key, answered_by: Option<PeerId>, now: Instant) -> Option<Want> {
        let want = self.wants.remove(key)?;
        self.idle.remove(key);
        let mut freed = Vec::new();
        for ask in &want.asks {
            let Some(peer) = self.peers.get_mut(&ask.peer) else { continue };
            let held = ask.state == AskState::Block;
            if held {
                peer.in_flight -= 1;
                freed.push(ask.peer);
            }
            if answered_by == Some(ask.peer) {
                peer.outbox.answered(key);
                peer.remember(*key);
                if held {
                    peer.delivered(ask.at, now);
                }
            } else {
                peer.withdraw(want.cid);
                self.wake(ask.peer);
            }
        }
        for peer in freed {
            self.pump(peer, now);
        }
        Some(want)
    }

    /// A block arrived, whose bytes hash to `key`.
    pub fn on_block(&mut self, from: PeerId, key: Key, now: Instant) -> Verdict {
        let verdict = match self.end(&key, Some(from), now) {
            Some(want) => {
                for waiter in &want.waiters {
                    self.tickets.remove(&waiter.ticket);
                    self.leave(waiter.session, &key);
                }
                Verdict::Wanted(want.waiters.iter().map(|w| w.ticket).collect())
            }
            None if self.peers.get(&from).is_some_and(|peer| peer.was_asked(&key)) => Verdict::Duplicate,
            None => {
                self.strike(from, now);
                Verdict::Unrequested
            }
        };
        self.heard(from, now);
        verdict
    }

    /// A peer sent something, so it is alive.
    fn heard(&mut self, id: PeerId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.last_progress = Some(now);
        if peer.silent_until.take().is_some() {
            for session in self.sessions_with(&id) {
                self.revive(session, id, now);
            }
        }
    }

    /// A peer sent what is not Bitswap.
    pub fn misbehaved(&mut self, peer: PeerId, now: Instant) {
        self.strike(peer, now);
    }

    /// A peer said whether it has a block.
    pub fn on_presence(&mut self, from: PeerId, key: Key, has: bool, now: Instant) {
        self.heard(from, now);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Some(want) = self.wants.get_mut(&key) else { return };
        let cid = want.cid;
        let Some(ask) = want.ask_mut(&from) else { return };
        let before = ask.state;
        let lied = !has && (before == AskState::Has || (before == AskState::Block && ask.claimed));
        match (has, before) {
            (true, AskState::Block | AskState::Has) => return,
            (true, _) => ask.state = AskState::Has,
            (false, AskState::Block) => {
                ask.state = AskState::DontHave;
                want.phase = Phase::Listening;
                self.idle.insert(key);
                peer.in_flight -= 1;
                peer.hits_in_row = 0;
            }
            (false, _) => ask.state = AskState::DontHave,
        }
        // What this peer said may be why the want is lined up where it is.
        if want.phase == Phase::Ready {
            want.phase = Phase::Listening;
        }
        // The peer keeps the want in case the block comes; when its list fills up, room is worth more.
        if !has && peer.outbox.occupied() > MAX_ASKS_PER_PEER / 2 {
            peer.outbox.cancel(cid);
            self.wake(from);
        }
        if lied {
            self.strike(from, now);
        }
        self.assign(key, now);
        if before == AskState::Block {
            self.pump(from, now);
        }
    }

    /// A peer is connected.
    pub fn peer_up(&mut self, peer: PeerId, now: Instant) {
        let known = self.peers.entry(peer).or_default();
        if known.status == Status::Connected {
            return;
        }
        known.reset(Status::Connected);
        for id in self.sessions_with(&peer) {
            self.revive(id, peer, now);
        }
    }

    /// The last connection to a peer closed.
    pub fn peer_down(&mut self, peer: PeerId, now: Instant) {
        let Some(known) = self.peers.get(&peer) else { return };
        let may_dial = known.redial_after.is_none_or(|at| at <= now);
        let wanted = self.sessions.values().any(|s| !s.wants.is_empty() && s.peers.contains(&peer));
        if may_dial && wanted {
            // Before its wants look for others: a peer that may be back soon is no reason to give up.
            self.lose(peer, Status::Dialing(now), now);
            self.dialling(peer, now);
        } else {
            self.lose(peer, Status::Away, now);
        }
    }

    /// A peer cannot be talked to on its present connection.
    pub fn peer_mute(&mut self, peer: PeerId, now: Instant) {
        self.lose(peer, Status::Mute, now);
    }

    /// A dial that was asked for failed.
    pub fn dial_failed(&mut self, peer: PeerId, now: Instant) {
        if self.peers.get(&peer).is_some_and(|peer| matches!(peer.status, Status::Dialing(_))) {
            self.lose(peer, Status::Away, now);
        }
    }

    /// The outbound stream broke while the connection lives: all that was asked is asked again.
    pub fn peer_reset(&mut self, peer: PeerId) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.outbox.clear();
        for want in self.wants.values() {
            let Some(ask) = want.ask(&peer) else { continue };
            match ask.state {
                AskState::Block => known.outbox.want(want.cid, want.priority, super::WantKind::Block),
                AskState::Have => known.outbox.want(want.cid, want.priority, super::WantKind::Have),
                AskState::Has | AskState::DontHave | AskState::TimedOut | AskState::Gone => {}
            }
        }
        self.wake(peer);
    }

    /// Whether a peer understands want-have; known once a stream to it is open.
    pub fn set_knows_have(&mut self, peer: &PeerId, knows_have: bool) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.knows_have = knows_have;
        }
    }

    /// What is to be written to a peer now.
    pub fn take_outbox(&mut self, peer: &PeerId) -> Vec<WantEntry> {
        let Some(peer) = self.peers.get_mut(peer) else { return Vec::new() };
        peer.woken = false;
        peer.outbox.take(MAX_ENTRIES_PER_MESSAGE)
    }

    /// Whether something is asked of a peer or is to be said to it.
    pub fn is_busy_with(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|peer| peer.in_flight > 0 || !peer.outbox.is_empty())
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Whether time matters: something is wanted.
    pub fn is_waiting(&self) -> bool {
        !self.wants.is_empty()
    }

    /// Wants of all sessions.
    pub fn wants(&self) -> impl Iterator<Item = &Cid> {
        self.wants.values().map(|want| &want.cid)
    }

    /// Peers that a session has asked for anything.
    pub fn asked(&self, id: SessionId) -> Vec<PeerId> {
        self.sessions.get(&id).map(|s| s.asked.iter().copied().collect()).unwrap_or_default()
    }

    /// Peers of a session.
    pub fn session_peers(&self, id: SessionId) -> Vec<PeerId> {
        self.sessions.get(&id).map(|s| s.peers.clone()).unwrap_or_default()
    }

    /// Whether a want of this session has nobody left to ask.
    pub fn is_starving(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| !session.starving.is_empty())
    }

    fn next_number(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn sessions_with(&self, peer: &PeerId) -> Vec<SessionId> {
        self.sessions.iter().filter(|(_, s)| s.peers.contains(peer)).map(|(id, _)| *id).collect()
    }

    fn wake(&mut self, id: PeerId) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if !peer.woken && !peer.outbox.is_empty() && peer.status == Status::Connected {
            peer.woken = true;
            self.events.push(Event::Wake(id));
        }
    }

    fn strike(&mut self, peer: PeerId, now: Instant) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        known.strikes += 1;
        if known.strikes == super::limits::MAX_STRIKES {
            tracing::debug!(%peer, "sends what was not asked for or claims what it does not have; no longer asked");
            self.release(peer, now);
        }
    }

    /// Asks for connections to the peers of a session that are away.
    fn dial_absent(&mut self, id: SessionId, now: Instant) {
        let Some(session) = self.sessions.get(&id) else { return };
        let away = |peer: &&PeerId| {
            let known = self.peers.get(*peer);
            known.is_some_and(|p| p.status == Status::Away && p.redial_after.is_none_or(|at| at <= now))
        };
        let away: Vec<PeerId> = session.peers.iter().filter(away).copied().collect();
        away.into_iter().for_each(|peer| self.dialling(peer, now));
    }

    fn dialling(&mut self, peer: PeerId, now: Instant) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.status = Status::Dialing(now);
            known.redial_after = Some(now + RETRY);
            self.events.push(Event::Dial(peer));
        }
    }
}
