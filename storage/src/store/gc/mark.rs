//! Marking: walks what pins keep.
//!
//! Pins are read in the order of their ids, a page at a time. One that is made meanwhile, before or behind the place
//! reached, needs no visit: its blocks were stamped, under a lease, before it was acknowledged.

use std::collections::VecDeque;

use cid::Cid;

use super::super::graph::{has_links, walk_bit};
use super::super::volumes::Volumes;
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
        db: &Volumes,
        marks: &mut Marks,
        blocks: usize,
    ) -> Result<bool, StoreError> {
        let mut left = blocks;
        while left > 0 {
            match self.walk.take() {
                Some(Walk::Dag { pin, mut stack }) => {
                    if let Some(cid) = stack.pop() {
                        let below = visit(store, db, marks, &pin, cid, &mut stack)?;
                        left = left.saturating_sub(1 + below);
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
                let stack = reach(marks, pin.root)?.into_iter().collect();
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

/// Marks the children of a node of a DAG, and puts those that are nodes themselves on the stack if they were not walked
/// before: a node may link to the same block without end. Answers how many children it has.
fn visit(
    store: &Store,
    db: &Volumes,
    marks: &mut Marks,
    pin: &Pin,
    cid: Cid,
    stack: &mut Vec<Cid>,
) -> Result<usize, StoreError> {
    let damaged = || StoreError::PinDamaged { pin: pin.id.to_string(), cid };
    let below = store.shared.links(db, &cid)?.ok_or_else(damaged)?;
    let count = below.len();
    for child in below {
        stack.extend(reach(marks, child)?);
    }
    Ok(count)
}

/// Marks a block; answers it if it has to be visited.
fn reach(marks: &mut Marks, cid: Cid) -> Result<Option<Cid>, StoreError> {
    // What carries itself is not stored, so it is only marked, if it is a node, so as to be visited once.
    if hash::inline(&cid).is_some() && !has_links(&cid) {
        return Ok(None);
    }
    let new = marks.mark(&key(&cid), walk_bit(cid.codec()))?;
    Ok((new && has_links(&cid)).then_some(cid))
}

#[cfg(test)]
mod tests {
    use crate::store::{Quota, StoreOptions};
    use crate::{BlockSink, Class};

    use super::*;

    #[test]
    fn links_to_the_same_block_take_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (path, tables) = (dir.path().to_owned(), Vec::new());
        let options = StoreOptions { path, tables, quota: Quota::default(), reserve_bytes: 0 };
        let store = Store::open(options).unwrap();
        let node = |links: &Vec<Cid>| {
            let data = serde_ipld_dagcbor::to_vec(links).unwrap();
            (hash::cid_v1(hash::DAG_CBOR, &data), bytes::Bytes::from(data))
        };
        let leaf = (hash::cid_v1(hash::RAW, b"leaf"), bytes::Bytes::from_static(b"leaf"));
        let below = node(&vec![leaf.0]);
        let root = node(&[vec![below.0; 1000], vec![leaf.0; 1000]].concat());
        let mut ingest = store.ingest(Class::Own).unwrap();
        for (cid, data) in [&leaf, &below, &root] {
            ingest.put(cid, data.clone()).unwrap();
        }
        let (kind, id) = (PinKind::Recursive, PinId::from("own"));
        let pin = Pin { id, kind, root: root.0, class: Class::Own, name: None, expires: None };
        let mut batch = store.state().batch();
        store.pin(&mut batch, &pin).unwrap();
        ingest.finish(batch).unwrap();
        let (db, _) = store.shared.db().unwrap();
        let mut marks = Marks::new(dir.path().join("marks"));
        let mut stack: Vec<Cid> = reach(&mut marks, root.0).unwrap().into_iter().collect();
        let first = stack.pop().unwrap();
        visit(&store, &db, &mut marks, &pin, first, &mut stack).unwrap();
        assert_eq!(stack, [below.0]);
        assert_eq!(marks.count(), 3);
    }
}
