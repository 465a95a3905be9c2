//! One block that is wanted, by whom, and who was asked for it.

use std::time::Instant;

use cid::Cid;
use libp2p::PeerId;

use super::{Patience, SessionId, Ticket};

/// What one peer was asked and has said about one want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskState {
    /// Asked whether it has the block.
    Have,
    /// It said that it has.
    Has,
    /// Asked for the block.
    Block,
    /// It said that it has not.
    DontHave,
    /// It was asked for the block and fell silent.
    TimedOut,
    /// It was asked, and what came of that no longer counts: it left, or others took over.
    Gone,
}

/// The standing of one peer with one want.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    pub peer: PeerId,
    pub state: AskState,
    pub at: Instant,
    /// When it was last said again.
    pub again: Option<Instant>,
    /// It had claimed to have the block before it was asked for it.
    pub claimed: bool,
}

/// Who is waiting.
#[derive(Debug, Clone, Copy)]
pub struct Waiter {
    pub ticket: Ticket,
    pub session: SessionId,
    pub patience: Patience,
}

/// Where a want that nobody was asked to deliver stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// One peer was asked for the block.
    Held(PeerId),
    /// It waits for room at a peer.
    Ready,
    /// It waits for an answer or a connection.
    Listening,
    /// Every peer said no, is silent or away.
    Exhausted(Instant),
}

/// A wanted block.
#[derive(Debug)]
pub struct Want {
    pub cid: Cid,
    pub priority: i32,
    pub waiters: Vec<Waiter>,
    pub asks: Vec<Ask>,
    pub phase: Phase,
    /// Want-blocks sent so far.
    pub attempts: u32,
    /// The other peers were asked whether they have it.
    pub broadcast: bool,
}

impl Want {
    pub fn new(cid: Cid, priority: i32) -> Want {
        Want {
            cid,
            priority,
            waiters: Vec::with_capacity(1),
            asks: Vec::with_capacity(1),
            phase: Phase::Listening,
            attempts: 0,
            broadcast: false,
        }
    }

    pub fn ask(&self, peer: &PeerId) -> Option<&Ask> {
        self.asks.iter().find(|ask| ask.peer == *peer)
    }

    pub fn ask_mut(&mut self, peer: &PeerId) -> Option<&mut Ask> {
        self.asks.iter_mut().find(|ask| ask.peer == *peer)
    }

    pub fn set_ask(&mut self, peer: PeerId, state: AskState, at: Instant) {
        match self.ask_mut(&peer) {
            Some(ask) => {
                *ask =
                    Ask { peer, state, at, again: None, claimed: ask.claimed || ask.state == AskState::Has };
            }
            None => self.asks.push(Ask { peer, state, at, again: None, claimed: false }),
        }
    }

    pub fn forget_ask(&mut self, peer: &PeerId) {
        if let Some(ask) = self.ask_mut(peer) {
            ask.state = AskState::Gone;
        }
    }

    pub fn is_held(&self) -> bool {
        matches!(self.phase, Phase::Held(_))
    }

    /// Whether `peer` could still be asked for the block.
    pub fn may_ask(&self, peer: &PeerId) -> bool {
        let open = |ask: &Ask| matches!(ask.state, AskState::Have | AskState::Has | AskState::Gone);
        self.ask(peer).is_none_or(open)
    }
}
