//! Pins: what is kept, and by whom.
//!
//! A pin is a record in the state database, so it moves in one batch with what it stands for: a name, an agreement, a
//! torrent. When the batch is committed, a pin checks that its DAG is complete and stamps it, under a lease that lasts
//! until the commit is through; from then on each collection finds it among the pins.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cid::Cid;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::graph::{children, has_links};
use super::write::LOOKED_UP;
use super::{Key, Shared, Store, key};
use crate::db::{Batch, DbError, StateDb, Table, TableKey, head};
use crate::threads::on_threads;
use crate::{BlockSource, Class, StoreError, hash};

/// Pins by id.
const PINS: Table<PinId, Stored> = Table::new("storage.pins");
/// Pages of the list of a list pin: (id, page number) -> multihashes.
const LISTS: Table<(PinId, u32), Vec<ByteBuf>> = Table::new("storage.pin_lists");
/// (root's multihash, id): which pins keep a root.
const ROOTS: Table<(Key, PinId), ()> = Table::new("storage.pin_roots");
/// (unix seconds, id): which pins end when, so that a sweep looks at no others.
const EXPIRIES: Table<(u64, PinId), ()> = Table::new("storage.pin_expiries");

/// The tables of this file.
pub(super) const TABLES: [&str; 4] = [PINS.name(), LISTS.name(), ROOTS.name(), EXPIRIES.name()];

/// Multihashes per page of a list: about 150 KB a record.
const LIST_PAGE: usize = 4096;
/// Pins read at a time.
const PIN_PAGE: usize = 1024;
/// Nodes of a DAG that a thread checks before it tells: enough that starting it does not count.
const NODES_EACH: usize = 32;
/// Most threads that check the DAG of a pin.
const MOST_THREADS: usize = 4;
/// Expired pins removed in one batch.
const EXPIRE_BATCH: usize = 1024;

/// Names a pin: "own:<cid>", "agreement:<hex>". The part before the colon tells its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PinId(pub String);

impl From<&str> for PinId {
    fn from(id: &str) -> Self {
        PinId(id.to_owned())
    }
}

impl From<String> for PinId {
    fn from(id: String) -> Self {
        PinId(id)
    }
}

impl AsRef<str> for PinId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TableKey for PinId {
    fn encode(&self) -> Vec<u8> {
        self.0.encode()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        String::decode(bytes).map(PinId)
    }
}

/// What a pin keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinKind {
    /// The root and everything below it; all of it must be here.
    Recursive,
    /// The root's block alone.
    Direct,
    /// Those of a list of blocks that are here. Hosts hold parts of DAGs, and downloads grow into their list.
    List,
}

/// A reason to keep blocks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Its name; a second pin of the same id replaces the first.
    pub id: PinId,
    /// What it keeps.
    pub kind: PinKind,
    /// The DAG it is about.
    pub root: Cid,
    /// Whom it is for.
    pub class: Class,
    /// A name for people.
    pub name: Option<String>,
    /// Unix time in seconds from which it no longer holds; the next collection removes it.
    pub expires: Option<u64>,
}

impl Pin {
    /// Whether it no longer holds at `now`, in unix seconds.
    pub fn has_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// This one with what an older one of the same id has and it has not.
    fn over(&self, old: Pin) -> Pin {
        let later = self.expires.zip(old.expires).map(|(new, old)| new.max(old));
        Pin { name: self.name.clone().or(old.name), expires: later, ..self.clone() }
    }
}

/// A pin as it is kept: with the number of its list pages.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    pub pin: Pin,
    pub pages: u32,
}

impl Store {
    /// Adds or replaces a pin, with the batch. At the commit the blocks it needs must be here, those of an ingest that
    /// finishes with the batch included; otherwise the commit fails with [`StoreError::Missing`].
    ///
    /// For a list pin this changes name, class and expiry, and keeps the list.
    pub fn pin(&self, batch: &mut Batch, pin: &Pin) -> Result<(), StoreError> {
        let pages = match (pin.kind, self.state().get(&PINS, &pin.id)?) {
            (PinKind::List, Some(old)) if old.pin.kind == PinKind::List => old.pages,
            (PinKind::List, _) => return Err(StoreError::NoSuchPin(pin.id.to_string())),
            _ => 0,
        };
        self.put_pin(batch, pin, pages)?;
        let (shared, checked) = (self.shared.clone(), pin.clone());
        match pin.kind {
            PinKind::Recursive => {
                batch.check_before(Box::new(move || Ok(shared.hold_dag(&checked)?)));
            }
            PinKind::Direct => {
                batch.check_before(Box::new(move || Ok(shared.hold_block(&checked, &checked.root)?)));
            }
            PinKind::List => {
                let (state, id) = (self.state().clone(), pin.id.clone());
                // It may have expired, list and all, since it was read.
                batch.check_last(Box::new(move || match state.get(&PINS, &id)? {
                    Some(old) if old.pin.kind == PinKind::List && old.pages == pages => Ok(()),
                    _ => Err(StoreError::NoSuchPin(id.to_string()).into()),
                }));
            }
        }
        Ok(())
    }

    /// [`pin`](Self::pin) without taking anything away: a name that is not given now and a later end stay as they were.
    pub fn renew_pin(&self, batch: &mut Batch, pin: &Pin) -> Result<(), StoreError> {
        match self.pin_get(&pin.id)? {
            Some(old) => self.pin(batch, &pin.over(old)),
            None => self.pin(batch, pin),
        }
    }

    /// Adds or replaces a list pin over `blocks`, with the batch. Blocks that are not here yet are kept once they
    /// come.
    pub fn pin_list(&self, batch: &mut Batch, pin: &Pin, blocks: &[Cid]) -> Result<(), StoreError> {
        let pin = Pin { kind: PinKind::List, ..pin.clone() };
        let mut pages = 0;
        for page in blocks.chunks(LIST_PAGE) {
            let page: Vec<ByteBuf> = page.iter().map(|cid| ByteBuf::from(key(cid).as_slice())).collect();
            batch.put(&LISTS, &(pin.id.clone(), pages), &page)?;
            pages += 1;
        }
        self.put_pin(batch, &pin, pages)?;
        let (shared, blocks) = (self.shared.clone(), blocks.to_vec());
        batch.check_before(Box::new(move || {
            let (_, incarnation) = shared.db()?;
            for cid in &blocks {
                shared.touch(incarnation, &key(cid))?;
            }
            Ok(())
        }));
        Ok(())
    }

    /// Writes the pin's records, with a lease that ends when the batch does, and makes durable what the checks find that
    /// are added after this.
    fn put_pin(&self, batch: &mut Batch, pin: &Pin, pages: u32) -> Result<(), StoreError> {
        if let Some(old) = self.state().get(&PINS, &pin.id)? {
            if old.pin.root.hash() != pin.root.hash() {
                batch.delete(&ROOTS, &(key(&old.pin.root), pin.id.clone()))?;
            }
            if let Some(expires) = old.pin.expires.filter(|_| old.pin.expires != pin.expires) {
                batch.delete(&EXPIRIES, &(expires, pin.id.clone()))?;
            }
            for page in pages..old.pages {
                batch.delete(&LISTS, &(pin.id.clone(), page))?;
            }
        }
        batch.put(&PINS, &pin.id, &Stored { pin: pin.clone(), pages })?;
        batch.put(&ROOTS, &(key(&pin.root), pin.id.clone()), &())?;
        if let Some(expires) = pin.expires {
            batch.put(&EXPIRIES, &(expires, pin.id.clone()), &())?;
        }
        let lease = self.shared.leases.take();
        batch.when_settled(Box::new(move |_| drop(lease)));
        let (before, after) = (self.shared.clone(), self.shared.clone());
        let noted = Arc::new(AtomicU64::new(0));
        let incarnation = noted.clone();
        batch.check_before(Box::new(move || {
            noted.store(before.db()?.1, Ordering::Relaxed);
            Ok(())
        }));
        batch.barrier(Box::new(move || Ok(after.make_durable(incarnation.load(Ordering::Relaxed))?)));
        Ok(())
    }

    /// Removes a pin, with the batch. The blocks go with a later collection, unless something else keeps them.
    /// `false` if there is none of that id.
    pub fn unpin(&self, batch: &mut Batch, id: &PinId) -> Result<bool, StoreError> {
        let Some(old) = self.state().get(&PINS, id)? else { return Ok(false) };
        batch.delete(&PINS, id)?;
        batch.delete(&ROOTS, &(key(&old.pin.root), id.clone()))?;
        if let Some(expires) = old.pin.expires {
            batch.delete(&EXPIRIES, &(expires, id.clone()))?;
        }
        for page in 0..old.pages {
            batch.delete(&LISTS, &(id.clone(), page))?;
        }
        Ok(true)
    }

    /// Every pin, by id.
    pub fn pins(&self) -> Result<Vec<Pin>, StoreError> {
        self.pins_with_prefix("")
    }

    /// The pins whose id begins with `prefix`, by id: those of one owner.
    pub fn pins_with_prefix(&self, prefix: &str) -> Result<Vec<Pin>, StoreError> {
        let pins = self.state().scan(&PINS, prefix.as_bytes());
        Ok(pins.map(|record| record.map(|(_, stored)| stored.pin)).collect::<Result<_, _>>()?)
    }

    /// Up to `limit` pins whose id begins with `prefix`, by id, from the first one behind `after`.
    pub fn pins_after(
        &self,
        after: Option<&PinId>,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<Pin>, StoreError> {
        // The id that follows in the order of bytes.
        let start = after.map_or_else(|| prefix.to_owned(), |id| format!("{id}\0"));
        let mut found = Vec::new();
        for record in self.state().scan_from(&PINS, start.as_bytes()).take(limit) {
            let (id, stored) = record?;
            if !id.0.starts_with(prefix) {
                break;
            }
            found.push(stored.pin);
        }
        Ok(found)
    }

    /// Hands every pin to `visit`, by id and a page at a time, until that answers `false`.
    pub(super) fn each_pin(
        &self,
        visit: &mut dyn FnMut(Pin) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let mut after = None;
        loop {
            let pins = self.pins_after(after.as_ref(), "", PIN_PAGE)?;
            let Some(last) = pins.last() else { return Ok(()) };
            after = Some(last.id.clone());
            for pin in pins {
                if !visit(pin)? {
                    return Ok(());
                }
            }
        }
    }

    /// How many pins there are, without reading them.
    pub fn pin_count(&self) -> Result<u64, StoreError> {
        Ok(self.state().count(&PINS)?)
    }

    /// The pins that have this root, by whichever CID.
    pub fn pins_of(&self, root: &Cid) -> Result<Vec<Pin>, StoreError> {
        let mut found = Vec::new();
        for record in self.state().scan(&ROOTS, &head(&key(root))) {
            let ((_, id), ()) = record?;
            found.extend(self.pin_get(&id)?);
        }
        Ok(found)
    }

    /// Removes the pins that expired by `now`, in unix seconds, and answers how many. Looks at no others.
    pub fn expire_pins(&self, now: u64) -> Result<u64, StoreError> {
        let mut expired = 0;
        loop {
            let due = self.state().scan_from(&EXPIRIES, &[]).take(EXPIRE_BATCH);
            let due = due.map(|record| record.map(|(row, ())| row));
            let due = due.take_while(|row| row.as_ref().map_or(true, |(expires, _)| *expires <= now));
            let due = due.collect::<Result<Vec<_>, _>>()?;
            if due.is_empty() {
                return Ok(expired);
            }
            expired += self.expire(&due)?;
        }
    }

    /// Removes those pins that still end when their rows say, and the rows.
    pub(super) fn expire(&self, due: &[(u64, PinId)]) -> Result<u64, StoreError> {
        self.state().commit_alone(|batch| {
            let mut expired = 0;
            for (expires, id) in due {
                // Gone or renewed meanwhile: then only the row is old.
                match self.pin_get(id)? {
                    Some(pin) if pin.expires == Some(*expires) => {
                        self.unpin(batch, id)?;
                        expired += 1;
                    }
                    _ => batch.delete(&EXPIRIES, &(*expires, id.clone()))?,
                }
            }
            Ok(expired)
        })
    }

    /// Writes the rows of expiring pins that an older build did not have.
    pub(super) fn index_expiries(state: &StateDb) -> Result<(), DbError> {
        let mut batch = state.batch();
        let mut rows = 0;
        for record in state.scan(&PINS, &[]) {
            let (id, stored) = record?;
            let Some(expires) = stored.pin.expires else { continue };
            batch.put(&EXPIRIES, &(expires, id), &())?;
            rows += 1;
            if rows % EXPIRE_BATCH == 0 {
                state.commit(std::mem::replace(&mut batch, state.batch()))?;
            }
        }
        state.commit(batch)
    }

    /// Loses the index of expiring pins, as a repo of the first version had none.
    #[cfg(test)]
    pub(super) fn forget_expiries(&self) {
        let mut batch = self.state().batch();
        for record in self.state().scan(&EXPIRIES, &[]) {
            batch.delete(&EXPIRIES, &record.unwrap().0).unwrap();
        }
        self.state().commit(batch).unwrap();
    }

    /// The pin of that id.
    pub fn pin_get(&self, id: &PinId) -> Result<Option<Pin>, StoreError> {
        Ok(self.state().get(&PINS, id)?.map(|stored| stored.pin))
    }

    /// Whether any pin has this root, by whichever CID.
    pub fn is_pinned_root(&self, root: &Cid) -> Result<bool, StoreError> {
        Ok(is_pinned_root(self.state(), root)?)
    }
}

/// Whether any pin has this root.
pub(crate) fn is_pinned_root(state: &StateDb, root: &Cid) -> Result<bool, DbError> {
    Ok(state.scan(&ROOTS, &head(&key(root))).next().transpose()?.is_some())
}

impl Shared {
    /// The keys on a page of a list pin; `None` behind the last.
    pub fn list_page(&self, id: &PinId, page: u32) -> Result<Option<Vec<ByteBuf>>, StoreError> {
        Ok(self.state.get(&LISTS, &(id.clone(), page))?)
    }

    /// Checks that one block is here and stamps it.
    fn hold_block(&self, pin: &Pin, cid: &Cid) -> Result<(), StoreError> {
        if hash::inline(cid).is_some() {
            return Ok(());
        }
        let (_, incarnation) = self.db()?;
        if self.touch(incarnation, &key(cid))?.is_some() || self.rely_on_place(cid)? {
            return Ok(());
        }
        Err(StoreError::Missing { cid: *cid, what: format!("pin {}", pin.id) })
    }

    /// Makes durable what checks have found in the database of an incarnation: it may be of an ingest that has not
    /// finished, in memory alone or in a log that was not synced.
    fn make_durable(&self, incarnation: u64) -> Result<(), StoreError> {
        // While it is held the database is not reopened.
        let (_held, now) = self.db()?;
        if now != incarnation {
            return Err(StoreError::Reopened);
        }
        match (self.has_unflushed(), self.has_unsynced()) {
            (true, _) => self.flush(),
            (false, true) => self.sync(),
            (false, false) => Ok(()),
        }
    }

    /// [`hold_block`](Self::hold_block) for many. Those that carry the stamp of this generation, as all do that were just
    /// added, are only looked up, if it is not known: no collection deletes them while the pin's lease lasts.
    fn hold_blocks(&self, pin: &Pin, cids: &[Cid]) -> Result<(), StoreError> {
        let (db, _) = self.db()?;
        let generation = self.leases.generation();
        let mut unknown: Vec<&Cid> = cids.iter().filter(|cid| hash::inline(cid).is_none()).collect();
        self.fresh.retain_unknown(generation, &mut unknown, |cid| key(cid));
        let mut blocks: Vec<(Key, &Cid)> = unknown.into_iter().map(|cid| (key(cid), cid)).collect();
        blocks.sort_unstable();
        blocks.dedup_by(|a, b| a.0 == b.0);
        for some in blocks.chunks(LOOKED_UP) {
            let keys: Vec<&[u8]> = some.iter().map(|(key, _)| key.as_slice()).collect();
            let found = {
                // What is found was also counted as unflushed.
                let _stripes = self.stripes.lock(keys.iter().copied());
                db.find_all(&keys)?
            };
            for ((_, cid), found) in some.iter().zip(found) {
                if found.is_none_or(|(_, meta)| meta.quarantined || meta.generation != generation) {
                    self.hold_block(pin, cid)?;
                }
            }
        }
        Ok(())
    }

    /// Checks that a whole DAG is here and stamps every block of it. Memory grows with the number of its nodes, and
    /// neither with that of raw leaves nor with that of links.
    fn hold_dag(self: &Arc<Self>, pin: &Pin) -> Result<(), StoreError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let mut seen: HashSet<Cid> = HashSet::new();
        self.hold_block(pin, &pin.root)?;
        let mut stack = if has_links(&pin.root) { vec![pin.root] } else { Vec::new() };
        while !stack.is_empty() {
            let nodes = stack.split_off(stack.len().saturating_sub(threads * NODES_EACH));
            let jobs = nodes.chunks(NODES_EACH).map(|nodes| || self.hold_below(pin, nodes));
            for below in on_threads(jobs) {
                stack.extend(below?.into_iter().filter(|child| seen.insert(*child)));
            }
        }
        Ok(())
    }

    /// Checks that the children of these nodes are here and stamps them. Answers those that may have children themselves.
    pub fn hold_below(self: &Arc<Self>, pin: &Pin, nodes: &[Cid]) -> Result<Vec<Cid>, StoreError> {
        let store = Store { shared: self.clone() };
        let (mut further, mut met) = (Vec::new(), HashSet::new());
        for cid in nodes {
            let missing = || StoreError::Missing { cid: *cid, what: format!("pin {}", pin.id) };
            let data = store.get(cid)?.ok_or_else(missing)?;
            let below = children(cid, &data)?;
            self.hold_blocks(pin, &below)?;
            further.extend(below.into_iter().filter(|child| has_links(child) && met.insert(*child)));
        }
        Ok(further)
    }
}
