//! What to request from whom: a state machine over pieces, without sockets or clocks; randomness is passed in.
//!
//! A piece goes `Missing -> Open -> Verifying -> Verified -> Stored`, or back to `Missing` when its hash is wrong. `Open`
//! pieces have a buffer in memory. `Verified` pieces have handed their bytes to the leaves they cover, which may
//! still wait for bytes of a neighbouring piece; `Stored` means that all those leaves are durable, and only such pieces are
//! announced to peers.
//!
//! Order: blocks of open pieces first, then pieces that touch a leaf which already waits in memory (so that leaves complete
//! and memory is freed), then, while memory is below the budget, the rarest piece (or the first, if sequential).
//! When nothing is left to start, blocks that one slow peer owes are asked from a second (endgame).
//!
//! A piece that failed its hash is next taken from one peer alone, so that a second failure names the culprit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::bitfield::Bitfield;
use crate::layout::{BLOCK, Layout};
use crate::wire::BlockRequest;

/// A connection's number within one engine.
pub type ConnId = u32;

/// Peers that may owe the same block in the endgame.
const MAX_ASKED: usize = 2;

/// Which new piece to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The piece that the fewest peers have.
    #[default]
    RarestFirst,
    /// The first missing piece: for playing while downloading.
    Sequential,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Missing,
    Open,
    Verifying,
    Verified,
    Stored,
}

#[derive(Debug, Clone, Copy, Default)]
struct Block {
    have: Option<ConnId>,
    asked: [Option<ConnId>; MAX_ASKED],
}

struct OpenPiece {
    buffer: Vec<u8>,
    blocks: Vec<Block>,
    /// Blocks nobody was asked for and that are not here.
    free: u32,
    /// Blocks that are not here.
    left: u32,
    /// The only peer to take it from, once it failed.
    solo: Option<ConnId>,
}

/// A piece with all its blocks, to be hashed.
#[derive(Debug, PartialEq, Eq)]
pub struct CompletePiece {
    /// Piece number.
    pub index: u32,
    /// Its bytes.
    pub data: Bytes,
    /// Who sent them, each once.
    pub senders: Vec<ConnId>,
}

/// What became of a received block.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// It was wanted and is kept.
    pub accepted: bool,
    /// Other peers that were asked for it and can be sent a cancel.
    pub cancel: Vec<ConnId>,
    /// It completed its piece.
    pub complete: Option<CompletePiece>,
}

/// The download state of one torrent.
pub struct Picker {
    layout: Arc<Layout>,
    order: Order,
    state: Vec<State>,
    availability: Vec<u16>,
    suspect: BTreeSet<u32>,
    open: BTreeMap<u32, OpenPiece>,
    open_with_free: BTreeSet<u32>,
    /// Leaves that straddle pieces, of which some are started and not all verified.
    partial: BTreeSet<u32>,
    missing: u32,
    verifying: u32,
    stored: u32,
    budget: u64,
    committed: u64,
}

impl Picker {
    /// Starts with `stored` pieces done. `budget` bounds the bytes of open pieces and waiting leaves; two pieces always fit.
    pub fn new(layout: Arc<Layout>, stored: &Bitfield, order: Order, budget: u64) -> Picker {
        let count = layout.piece_count();
        let state = (0..count).map(|i| if stored.get(i) { State::Stored } else { State::Missing }).collect();
        let budget = budget.max(2 * u64::from(layout.piece_length()));
        Picker {
            order,
            state,
            availability: vec![0; count as usize],
            suspect: BTreeSet::new(),
            open: BTreeMap::new(),
            open_with_free: BTreeSet::new(),
            partial: BTreeSet::new(),
            missing: count - stored.count(),
            verifying: 0,
            stored: stored.count(),
            budget,
            committed: 0,
            layout,
        }
    }

    /// Number of durable pieces.
    pub fn stored(&self) -> u32 {
        self.stored
    }

    /// Nothing is left to request: all pieces are being verified or better.
    pub fn nothing_to_request(&self) -> bool {
        self.missing == 0 && self.open.is_empty()
    }

    /// Bytes held in memory or promised to be.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// A peer has these pieces.
    pub fn peer_has(&mut self, field: &Bitfield) {
        field
            .ones()
            .for_each(|i| self.availability[i as usize] = self.availability[i as usize].saturating_add(1));
    }

    /// A peer has one more piece.
    pub fn peer_gained(&mut self, piece: u32) {
        if let Some(n) = self.availability.get_mut(piece as usize) {
            *n = n.saturating_add(1);
        }
    }

    /// A peer with these pieces left; what it owed is free again.
    pub fn peer_left(&mut self, conn: ConnId, field: &Bitfield) {
        field
            .ones()
            .for_each(|i| self.availability[i as usize] = self.availability[i as usize].saturating_sub(1));
        self.release_all(conn);
    }

    /// The peer owes nothing any more: it left, choked us, or is too slow.
    pub fn release_all(&mut self, conn: ConnId) {
        for (index, piece) in &mut self.open {
            for block in &mut piece.blocks {
                release_block(block, &mut piece.free, conn);
            }
            if piece.solo == Some(conn) {
                piece.solo = None;
            }
            if piece.free > 0 {
                self.open_with_free.insert(*index);
            }
        }
    }

    /// The peer will not send this block.
    pub fn release(&mut self, conn: ConnId, request: BlockRequest) {
        let Some(piece) = self.open.get_mut(&request.piece) else { return };
        let Some(block) = piece.blocks.get_mut((request.begin / BLOCK) as usize) else { return };
        release_block(block, &mut piece.free, conn);
        if piece.solo == Some(conn) {
            piece.solo = None;
        }
        if piece.free > 0 {
            self.open_with_free.insert(request.piece);
        }
    }

    /// Whether a peer has any piece that is still to be requested.
    pub fn interesting(&self, field: &Bitfield) -> bool {
        !self.nothing_to_request()
            && self
                .state
                .iter()
                .enumerate()
                .any(|(i, s)| matches!(s, State::Missing | State::Open) && field.get(i as u32))
    }

    /// Whether this piece is still to be requested.
    pub fn wants(&self, piece: u32) -> bool {
        matches!(self.state.get(piece as usize), Some(State::Missing | State::Open))
    }

    /// Up to `n` blocks to request from `conn`, which has the pieces of `field`.
    pub fn pick(&mut self, conn: ConnId, field: &Bitfield, n: usize, random: u32) -> Vec<BlockRequest> {
        let mut out = Vec::with_capacity(n);
        self.pick_from_open(conn, field, n, &mut out);
        while out.len() < n {
            let Some(piece) = self.next_piece(field, random) else { break };
            self.start(piece, conn);
            self.take_free(piece, conn, n, &mut out);
        }
        if out.is_empty() && self.missing == 0 && n > 0 {
            self.pick_endgame(conn, field, n, &mut out);
        }
        out
    }

    fn pick_from_open(&mut self, conn: ConnId, field: &Bitfield, n: usize, out: &mut Vec<BlockRequest>) {
        let candidates: Vec<u32> =
            self.open_with_free.iter().copied().filter(|p| field.get(*p)).take(n).collect();
        for piece in candidates {
            if out.len() >= n {
                return;
            }
            self.take_free(piece, conn, n, out);
        }
    }

    fn take_free(&mut self, index: u32, conn: ConnId, n: usize, out: &mut Vec<BlockRequest>) {
        let Some(piece) = self.open.get_mut(&index) else { return };
        if piece.solo.is_some_and(|only| only != conn) {
            return;
        }
        if piece.solo.is_none() && self.suspect.contains(&index) {
            piece.solo = Some(conn);
        }
        for (number, block) in piece.blocks.iter_mut().enumerate() {
            if out.len() >= n || piece.free == 0 {
                break;
            }
            if block.have.is_none() && block.asked == [None; MAX_ASKED] {
                block.asked[0] = Some(conn);
                piece.free -= 1;
                out.push(request(&self.layout, index, number as u32));
            }
        }
        if piece.free == 0 {
            self.open_with_free.remove(&index);
        }
    }

    /// A missing piece to start: one that completes waiting leaves, else by order within the budget.
    fn next_piece(&self, field: &Bitfield, random: u32) -> Option<u32> {
        if self.missing == 0 {
            return None;
        }
        let can = |p: &u32| self.state[*p as usize] == State::Missing && field.get(*p);
        for leaf in &self.partial {
            if let Some(piece) = self.layout.pieces_of_leaf(*leaf).find(can) {
                return Some(piece);
            }
        }
        if self.committed >= self.budget {
            return None;
        }
        let count = self.state.len() as u32;
        match self.order {
            Order::Sequential => (0..count).find(can),
            Order::RarestFirst => {
                let from = random % count;
                (from..count).chain(0..from).filter(can).min_by_key(|p| self.availability[*p as usize])
            }
        }
    }

    fn start(&mut self, index: u32, conn: ConnId) {
        let size = self.layout.piece_size(index);
        let blocks = self.layout.blocks(index);
        self.state[index as usize] = State::Open;
        self.missing -= 1;
        self.committed += u64::from(size);
        for range in self.layout.leaf_ranges(index) {
            let pieces = self.layout.pieces_of_leaf(range.leaf);
            let waits = pieces.end() > pieces.start() && !pieces.clone().all(|p| self.done(p));
            if waits && self.partial.insert(range.leaf) {
                self.committed += u64::from(self.layout.leaf_span(range.leaf).1);
            }
        }
        let solo = self.suspect.contains(&index).then_some(conn);
        let piece = OpenPiece {
            buffer: vec![0; size as usize],
            blocks: vec![Block::default(); blocks as usize],
            free: blocks,
            left: blocks,
            solo,
        };
        self.open.insert(index, piece);
        self.open_with_free.insert(index);
    }

    fn done(&self, piece: u32) -> bool {
        matches!(self.state[piece as usize], State::Verified | State::Stored)
    }

    fn pick_endgame(&mut self, conn: ConnId, field: &Bitfield, n: usize, out: &mut Vec<BlockRequest>) {
        for (index, piece) in self.open.iter_mut().filter(|(i, p)| field.get(**i) && p.solo.is_none()) {
            for (number, block) in piece.blocks.iter_mut().enumerate() {
                if out.len() >= n {
                    return;
                }
                if block.have.is_some() || block.asked.contains(&Some(conn)) {
                    continue;
                }
                if let Some(slot) = block.asked.iter_mut().find(|s| s.is_none()) {
                    *slot = Some(conn);
                    out.push(request(&self.layout, *index, number as u32));
                }
            }
        }
    }

    /// Takes a block in. Blocks that are here already, or of pieces that are not open, are ignored.
    pub fn received(&mut self, conn: ConnId, piece: u32, begin: u32, data: &[u8]) -> Received {
        let mut result = Received::default();
        let Some(open) = self.open.get_mut(&piece) else { return result };
        let number = begin / BLOCK;
        if !begin.is_multiple_of(BLOCK) || number >= open.blocks.len() as u32 {
            return result;
        }
        let block = &mut open.blocks[number as usize];
        let was_asked = block.asked.contains(&Some(conn));
        if !was_asked || block.have.is_some() || data.len() != self.layout.block_size(piece, number) as usize
        {
            return result;
        }
        open.buffer[begin as usize..begin as usize + data.len()].copy_from_slice(data);
        block.have = Some(conn);
        result.accepted = true;
        result.cancel = block.asked.iter().flatten().copied().filter(|c| *c != conn).collect();
        block.asked = [None; MAX_ASKED];
        open.left -= 1;
        if open.left == 0 {
            result.complete = self.close(piece);
        }
        result
    }

    fn close(&mut self, index: u32) -> Option<CompletePiece> {
        let piece = self.open.remove(&index)?;
        self.open_with_free.remove(&index);
        self.state[index as usize] = State::Verifying;
        self.verifying += 1;
        let mut senders: Vec<ConnId> = piece.blocks.iter().filter_map(|b| b.have).collect();
        senders.sort_unstable();
        senders.dedup();
        Some(CompletePiece { index, data: piece.buffer.into(), senders })
    }

    /// The piece's hash matched and its bytes are with their leaves.
    pub fn verified(&mut self, index: u32) {
        self.leave_verifying(index, State::Verified);
        self.suspect.remove(&index);
        for range in self.layout.leaf_ranges(index) {
            if self.partial.contains(&range.leaf)
                && self.layout.pieces_of_leaf(range.leaf).all(|p| self.done(p))
            {
                self.partial.remove(&range.leaf);
                self.committed -= u64::from(self.layout.leaf_span(range.leaf).1);
            }
        }
    }

    /// The piece's hash did not match: it starts over, from one peer alone.
    pub fn failed(&mut self, index: u32) {
        self.leave_verifying(index, State::Missing);
        self.missing += 1;
        self.suspect.insert(index);
    }

    fn leave_verifying(&mut self, index: u32, to: State) {
        debug_assert_eq!(self.state[index as usize], State::Verifying);
        self.state[index as usize] = to;
        self.verifying -= 1;
        self.committed -= u64::from(self.layout.piece_size(index));
    }

    /// All leaves of a verified piece are durable.
    pub fn mark_stored(&mut self, index: u32) {
        if self.state[index as usize] == State::Verified {
            self.state[index as usize] = State::Stored;
            self.stored += 1;
        }
    }

    /// True if memory is full of pieces and leaves that nothing asked for can complete: no block is owed and none is being
    /// verified. Happens when the peers that had the neighbouring pieces left.
    pub fn stuck(&self) -> bool {
        let owed = || {
            self.open
                .values()
                .any(|p| p.blocks.iter().any(|b| b.have.is_none() && b.asked != [None; MAX_ASKED]))
        };
        self.committed >= self.budget && self.missing > 0 && self.verifying == 0 && !owed()
    }

    /// Gives up what [`Picker::stuck`] is about, to start elsewhere: open pieces and pieces of waiting leaves go back to
    /// missing. Returns those leaves, whose bytes can be dropped.
    pub fn evict(&mut self) -> Vec<u32> {
        for index in std::mem::take(&mut self.open).into_keys() {
            self.state[index as usize] = State::Missing;
            self.missing += 1;
            self.committed -= u64::from(self.layout.piece_size(index));
        }
        self.open_with_free.clear();
        let leaves: Vec<u32> = std::mem::take(&mut self.partial).into_iter().collect();
        for leaf in &leaves {
            self.committed -= u64::from(self.layout.leaf_span(*leaf).1);
            for piece in self.layout.pieces_of_leaf(*leaf) {
                if self.state[piece as usize] == State::Verified {
                    self.state[piece as usize] = State::Missing;
                    self.missing += 1;
                }
            }
        }
        leaves
    }
}

fn request(layout: &Layout, piece: u32, number: u32) -> BlockRequest {
    BlockRequest { piece, begin: number * BLOCK, length: layout.block_size(piece, number) }
}

fn release_block(block: &mut Block, free: &mut u32, conn: ConnId) {
    let owed = block.asked.contains(&Some(conn));
    block.asked.iter_mut().filter(|a| **a == Some(conn)).for_each(|a| *a = None);
    if owed && block.have.is_none() && block.asked == [None; MAX_ASKED] {
        *free += 1;
    }
}

#[cfg(test)]
mod tests;
