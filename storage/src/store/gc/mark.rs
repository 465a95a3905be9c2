//! Marking: walks what pins keep.
//!
//! Pins are read in the order of their ids, a page at a time. One that is made meanwhile, before or behind the place
//! reached, needs no visit: its blocks were stamped, under a lease, before it was acknowledged.

use std::collections::VecDeque;
use std::sync::Arc;

use cid::Cid;

use super::super::graph::{children, has_links, walk_bit};
use super::super::rocks::BlockDb;
use super::super::{Pin, PinId, PinKind, Store, key};
use super::Marks;
use crate::{StoreError, hash};

/// Pins read at a time.
const PIN_PAGE: usize = 1024;

/// Where marking is.
pub(super) struct Marking {
    /// Pins that expired by then are passed over: in a dry run they are still there.
    expired_by: Option<u64>,
    /// The last pin that was read.
    after: Option<PinId>,
    /// Pins read and not begun.
    pins: VecDeque<Pin>,
    walk: Option<Walk>,
}

/// A pin that is being walked.
enum Walk {
    /// Nodes yet to be visited.
    Dag { pin: Pin, stack: Vec<Cid> },
    /// The next page of its list.
    List { pin: PinId, page: u32 },
}

impl Marking {
    pub fn new(expired_by: Option<u64>) -> Marking {
        Marking { expired_by, after: None, pins: VecDeque::new(), walk: None }
    }

    /// Marks about `blocks` blocks; `false` when every pin is walked.
    pub fn step(
        &mut self,
        store: &Store,
        db: &Arc<BlockDb>,
        marks: &mut Marks,
        blocks: usize,
    ) -> Result<bool, StoreError> {
        let mut left = blocks;
        while left > 0 {
            match self.walk.take() {
                Some(Walk::Dag { pin, mut stack }) => {
                    if let Some(cid) = stack.pop() {
                        visit(store, db, marks, &pin, cid, &mut stack)?;
                        left -= 1;
                        self.walk = Some(Walk::Dag { pin, stack });
                    }
                }
                Some(Walk::List { pin, page }) => {
                    if let Some(keys) = store.shared.list_page(&pin, page)? {
                        for key in &keys {
                            marks.mark(key, 0)?;
                        }
                        left = left.saturating_sub(keys.len());
                        self.walk = Some(Walk::List { pin, page: page + 1 });
                    }
                }
                None => match self.next_pin(store)? {
                    Some(pin) => {
                        left -= 1;
                        self.begin(marks, pin)?;
                    }
                    None => return Ok(false),
                },
            }
        }
        Ok(true)
    }

    fn begin(&mut self, marks: &mut Marks, pin: Pin) -> Result<(), StoreError> {
        if self.expired_by.is_some_and(|now| pin.has_expired(now)) {
            return Ok(());
        }
        match pin.kind {
            PinKind::Recursive => {
                let stack = vec![pin.root];
                self.walk = Some(Walk::Dag { pin, stack });
            }
            PinKind::Direct => {
                marks.mark(&key(&pin.root), 0)?;
            }
            PinKind::List => self.walk = Some(Walk::List { pin: pin.id, page: 0 }),
        }
        Ok(())
    }

    fn next_pin(&mut self, store: &Store) -> Result<Option<Pin>, StoreError> {
        if self.pins.is_empty() {
            self.pins = store.pins_after(self.after.as_ref(), "", PIN_PAGE)?.into();
            if let Some(last) = self.pins.back() {
                self.after = Some(last.id.clone());
            }
        }
        Ok(self.pins.pop_front())
    }
}

/// Marks one block of a DAG and puts its children on the stack, unless it was walked before.
fn visit(
    store: &Store,
    db: &Arc<BlockDb>,
    marks: &mut Marks,
    pin: &Pin,
    cid: Cid,
    stack: &mut Vec<Cid>,
) -> Result<(), StoreError> {
    let damaged = || StoreError::PinDamaged { pin: pin.id.to_string(), cid };
    let below = if let Some(data) = hash::inline(&cid) {
        if !has_links(&cid) {
            return Ok(());
        }
        children(&cid, data)
    } else {
        if !marks.mark(&key(&cid), walk_bit(cid.codec()))? || !has_links(&cid) {
            return Ok(());
        }
        match store.shared.read_anywhere(db, &cid) {
            Ok(Some(data)) => children(&cid, &data),
            Ok(None) | Err(StoreError::Corrupt { .. } | StoreError::NotInFile { .. }) => {
                return Err(damaged());
            }
            Err(error) => return Err(error),
        }
    };
    stack.extend(below.map_err(|_| damaged())?);
    Ok(())
}
