//! What is wrong, and what it is needed for.
//!
//! [`Store::verify`] reads and hashes every block at a bounded rate and puts aside what does not match (see
//! [`super::scrub`]). [`Store::examine`] then walks the pins and tells which blocks each lacks, by the CID under which
//! it needs them, so that they can be fetched again. Subtrees found whole are not walked twice; the set of them moves
//! to the disk when it grows.

use std::time::{Duration, Instant};

use cid::Cid;
use serde::Serialize;

use super::gc::Marks;
use super::graph::{has_links, walk_bit};
use super::scrub::ScrubPage;
use super::{Pin, PinId, PinKind, Shared, Store, key};
use crate::{StoreError, hash};

/// Blocks read and hashed between two looks at the clock.
const PAGE: usize = 64;
/// Blocks named for one pin; what is left after these were fetched is found by the next examination.
const NAMED: usize = 1000;

/// What verifying found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Blocks that were read and hashed.
    pub checked: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those that did not match and were put aside now.
    pub damaged: u64,
    /// Those that the disk did not give.
    pub unreadable: u64,
    /// Those that are well, but whose metadata was damaged and is written anew.
    pub reindexed: u64,
}

/// A pin that lacks blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    /// The pin.
    pub pin: Pin,
    /// Blocks it needs that are damaged or not here, at most a thousand. What hangs below an absent node is not known.
    pub lacks: Vec<Cid>,
}

/// A node on the way down.
struct Frame {
    cid: Cid,
    /// Nodes below it that are yet to be looked at; leaves are at once.
    left: Vec<Cid>,
    whole: bool,
}

impl Store {
    /// Reads and hashes every block, at most `bytes_per_second` if given. `progress` is told bytes done, and answers
    /// whether to go on.
    pub fn verify(
        &self,
        bytes_per_second: Option<u64>,
        progress: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Verified, StoreError> {
        let begun = Instant::now();
        let mut found = Verified::default();
        let mut next = None;
        loop {
            let page: ScrubPage = self.scrub(next.as_ref(), PAGE)?;
            found.checked += page.checked;
            found.bytes += page.bytes;
            found.damaged += page.damaged.len() as u64;
            found.unreadable += page.unreadable;
            found.reindexed += page.reindexed;
            next = page.next;
            if next.is_none() || !progress(found.bytes) {
                return Ok(found);
            }
            if let Some(rate) = bytes_per_second {
                let due = Duration::from_secs_f64(found.bytes as f64 / rate.max(1) as f64);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
        }
    }

    /// The pins that lack blocks, handed to `tell` one by one, and how many there are. Blocks that nobody could tell are
    /// damaged without reading them are found by [`verify`](Self::verify).
    pub fn examine(&self, tell: &mut dyn FnMut(Incomplete)) -> Result<u64, StoreError> {
        let _only = self.shared.examining.lock();
        let (mut whole, mut incomplete) = (self.marks_of_whole(), 0);
        self.each_pin(&mut |pin| {
            if let Some(found) = self.examine_pin(pin, &mut whole)? {
                incomplete += 1;
                tell(found);
            }
            Ok(true)
        })?;
        Ok(incomplete)
    }

    /// Every pin with what it lacks, most often nothing, handed to `tell` until that answers `false`. It may take its
    /// time: no other examination waits for it.
    pub fn check_pins(&self, tell: &mut dyn FnMut(Pin, Vec<Cid>) -> bool) -> Result<(), StoreError> {
        let (_slot, mut whole) = self.walk_marks()?;
        self.each_pin(&mut |pin| {
            let found = self.examine_pin(pin.clone(), &mut whole)?;
            Ok(tell(pin, found.map_or_else(Vec::new, |found| found.lacks)))
        })
    }

    /// What one pin lacks, as it is by now; `None` when it lacks nothing, or is no more.
    pub fn examine_one(&self, id: &PinId) -> Result<Option<Incomplete>, StoreError> {
        let _only = self.shared.examining.lock();
        match self.pin_get(id)? {
            Some(pin) => self.examine_pin(pin, &mut self.marks_of_whole()),
            None => Ok(None),
        }
    }

    /// Of those there is one set at a time.
    fn marks_of_whole(&self) -> Marks {
        Marks::new(self.shared.marks_path.with_extension("whole"))
    }

    fn examine_pin(&self, pin: Pin, whole: &mut Marks) -> Result<Option<Incomplete>, StoreError> {
        let mut lacks = Vec::new();
        match pin.kind {
            PinKind::Recursive => self.examine_dag(pin.root, whole, &mut lacks)?,
            PinKind::Direct if !self.is_here(&pin.root)? => lacks.push(pin.root),
            PinKind::Direct => {}
            PinKind::List => self.examine_list(&pin, &mut lacks)?,
        }
        Ok((!lacks.is_empty()).then_some(Incomplete { pin, lacks }))
    }

    /// A list keeps what is here of it, so only what was here and is damaged is lacking.
    fn examine_list(&self, pin: &Pin, lacks: &mut Vec<Cid>) -> Result<(), StoreError> {
        let (db, _) = self.shared.db()?;
        let mut page = 0;
        while let Some(keys) = self.shared.list_page(&pin.id, page)? {
            for key in keys {
                if lacks.len() < NAMED && db.meta(&key)?.is_some_and(|meta| meta.quarantined) {
                    lacks.push(Shared::named(&key));
                }
            }
            page += 1;
        }
        Ok(())
    }

    fn examine_dag(&self, root: Cid, whole: &mut Marks, lacks: &mut Vec<Cid>) -> Result<(), StoreError> {
        let mut path: Vec<Frame> = Vec::new();
        let mut next = Some(root);
        loop {
            if let Some(cid) = next.take() {
                match self.open_node(&cid, whole)? {
                    Node::Whole => {}
                    Node::Lost => {
                        path.iter_mut().for_each(|frame| frame.whole = false);
                        note(lacks, cid);
                    }
                    Node::Links(children) => {
                        let (left, lost) = self.examine_leaves(children)?;
                        path.push(Frame { cid, left, whole: true });
                        if !lost.is_empty() {
                            path.iter_mut().for_each(|frame| frame.whole = false);
                            lost.into_iter().for_each(|leaf| note(lacks, leaf));
                        }
                    }
                }
            }
            let Some(frame) = path.last_mut() else { return Ok(()) };
            next = frame.left.pop();
            if next.is_none() {
                if frame.whole {
                    whole.mark(&key(&frame.cid), walk_bit(frame.cid.codec()))?;
                }
                path.pop();
            }
        }
    }

    /// Of the children of a node, each once: those that are nodes themselves and here, and any that are not here.
    fn examine_leaves(&self, mut children: Vec<Cid>) -> Result<(Vec<Cid>, Vec<Cid>), StoreError> {
        children.sort_unstable();
        children.dedup();
        let (mut nodes, mut lost) = (Vec::new(), Vec::new());
        for child in children {
            if !self.is_here(&child)? {
                lost.push(child);
            } else if has_links(&child) {
                nodes.push(child);
            }
        }
        Ok((nodes, lost))
    }

    fn open_node(&self, cid: &Cid, whole: &mut Marks) -> Result<Node, StoreError> {
        if !has_links(cid) {
            return Ok(if self.is_here(cid)? { Node::Whole } else { Node::Lost });
        }
        if whole.walked(&key(cid))? & walk_bit(cid.codec()) != 0 {
            return Ok(Node::Whole);
        }
        let (db, _) = self.shared.db()?;
        Ok(self.shared.links(&db, cid)?.map_or(Node::Lost, Node::Links))
    }

    fn is_here(&self, cid: &Cid) -> Result<bool, StoreError> {
        let (db, _) = self.shared.db()?;
        let is_copied = db.meta(&key(cid))?.is_some_and(|meta| !meta.quarantined);
        Ok(hash::inline(cid).is_some() || is_copied || self.shared.is_in_place(cid)?)
    }
}

/// Names a block that a pin lacks, unless enough are named.
fn note(lacks: &mut Vec<Cid>, cid: Cid) {
    if lacks.len() < NAMED && !lacks.contains(&cid) {
        lacks.push(cid);
    }
}

/// What a block turned out to be.
enum Node {
    /// It and all below it are here.
    Whole,
    /// It is damaged, or not here.
    Lost,
    /// It is here and links to these.
    Links(Vec<Cid>),
}
