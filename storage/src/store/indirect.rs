//! What pins keep without naming it: the blocks below the roots of recursive pins.
//!
//! Nothing records those. They are found by walking the pinned DAGs, whose nodes are read and whose leaves are not. What a
//! walk has met is noted in a set that moves to the disk when it grows ([`super::gc`]), so memory does not grow with the
//! store; and a few walks at a time are all there are, since whoever asked for one may read its answer slowly.

use std::path::{Path, PathBuf};

use cid::Cid;
use parking_lot::MutexGuard;

use super::gc::Marks;
use super::graph::has_links;
use super::{Pin, PinKind, Shared, Store};
use crate::StoreError;

/// Walks at a time: each may hold some 30 MiB of memory, and more on the disk.
pub(super) const WALKS: usize = 4;

/// How a block was met, as bits: as the root of a pin, and on the way down.
const PINNED: u8 = 1;
const WALKED: u8 = 2;

/// Where the marks of a walk go when they are many; `marks` is where a collection's go.
pub(super) fn walk_path(marks: &Path, slot: usize) -> PathBuf {
    marks.with_extension(format!("walk{slot}"))
}

/// A walk through pinned DAGs.
struct Walk<'a> {
    shared: &'a Shared,
    marks: Marks,
    /// Told each block and a pin that keeps it; answers whether to go on.
    tell: &'a mut dyn FnMut(&Cid, &Pin) -> bool,
    /// The first node that was not there to be walked.
    lost: Option<StoreError>,
}

impl Store {
    /// The blocks below the roots of the recursive pins that are `wanted`, each CID once, handed to `tell` with a pin that
    /// keeps it, until that answers `false`. Roots of recursive and direct pins are left out: they are pinned themselves.
    ///
    /// # Errors
    /// [`StoreError::PinNotWalked`] at the end, after everything else was told, when a pin lacks a node.
    pub fn indirect(
        &self,
        wanted: &dyn Fn(&Pin) -> bool,
        tell: &mut dyn FnMut(&Cid, &Pin) -> bool,
    ) -> Result<(), StoreError> {
        let (_slot, mut marks) = self.walk_marks()?;
        self.each_pin(&mut |pin| {
            if pin.kind != PinKind::List {
                marks.mark(&pin.root.to_bytes(), PINNED)?;
            }
            Ok(true)
        })?;
        self.walk_pins(marks, wanted, tell)
    }

    /// A recursive pin that is `wanted` and keeps this block below its root, by whichever CID.
    ///
    /// # Errors
    /// [`StoreError::PinNotWalked`] when none was found and a pin lacks a node.
    pub fn keeper_of(&self, cid: &Cid, wanted: &dyn Fn(&Pin) -> bool) -> Result<Option<Pin>, StoreError> {
        let (_slot, marks) = self.walk_marks()?;
        let mut keeper = None;
        self.walk_pins(marks, wanted, &mut |below, pin| {
            if below.hash() == cid.hash() {
                keeper = Some(pin.clone());
            }
            keeper.is_none()
        })?;
        Ok(keeper)
    }

    /// An empty set of marks, with the right to use it.
    pub(super) fn walk_marks(&self) -> Result<(MutexGuard<'_, ()>, Marks), StoreError> {
        let mut slots = self.shared.walks.iter().enumerate();
        let free = slots.find_map(|(slot, walk)| Some((slot, walk.try_lock()?)));
        let (slot, guard) = free.ok_or(StoreError::WalksBusy { most: WALKS })?;
        Ok((guard, Marks::new(walk_path(&self.shared.marks_path, slot))))
    }

    fn walk_pins(
        &self,
        marks: Marks,
        wanted: &dyn Fn(&Pin) -> bool,
        tell: &mut dyn FnMut(&Cid, &Pin) -> bool,
    ) -> Result<(), StoreError> {
        let mut walk = Walk { shared: &self.shared, marks, tell, lost: None };
        let mut ended = false;
        self.each_pin(&mut |pin| {
            ended = pin.kind == PinKind::Recursive && wanted(&pin) && !walk.below(&pin)?;
            Ok(!ended)
        })?;
        match walk.lost {
            Some(lost) if !ended => Err(lost),
            _ => Ok(()),
        }
    }
}

impl Walk<'_> {
    /// Tells what is below the root of a pin and was not met before; `false` if that shall end.
    fn below(&mut self, pin: &Pin) -> Result<bool, StoreError> {
        let new = self.marks.mark(&pin.root.to_bytes(), WALKED)?;
        let mut stack = if new && has_links(&pin.root) { vec![pin.root] } else { Vec::new() };
        while let Some(cid) = stack.pop() {
            // Held for this node alone: the database may be reopened while whoever is told takes its time.
            let links = self.shared.links(&self.shared.db()?.0, &cid)?;
            let Some(links) = links else {
                let lost = || StoreError::PinNotWalked { pin: pin.id.to_string(), cid };
                self.lost.get_or_insert_with(lost);
                continue;
            };
            for child in links {
                let name = child.to_bytes();
                let before = self.marks.walked(&name)?;
                if before & WALKED != 0 {
                    continue;
                }
                self.marks.mark(&name, WALKED)?;
                if before & PINNED == 0 && !(self.tell)(&child, pin) {
                    return Ok(false);
                }
                if has_links(&child) {
                    stack.push(child);
                }
            }
        }
        Ok(true)
    }
}
