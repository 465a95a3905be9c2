//! Pins: what is kept, and by whom.
//!
//! A pin is a record in the state database, so it moves in one batch with what it stands for: a name, an agreement, a
//! torrent. When the batch is committed, a pin checks that its DAG is complete and stamps it, under a lease that lasts
//! until the commit is through; from then on each collection finds it among the pins.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use cid::Cid;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::graph::{children, has_links};
use super::{Shared, Store, key};
use crate::db::{Batch, Table, TableKey, head};
use crate::{BlockSource, Class, StoreError, hash};

/// Pins by id.
const PINS: Table<PinId, Stored> = Table::new("storage.pins");
/// Pages of the list of a list pin: (id, page number) -> multihashes.
const LISTS: Table<(PinId, u32), Vec<ByteBuf>> = Table::new("storage.pin_lists");
/// (root's multihash, id): which pins keep a root.
const ROOTS: Table<(Vec<u8>, PinId), ()> = Table::new("storage.pin_roots");

/// The tables of this file.
pub(super) const TABLES: [&str; 3] = [PINS.name(), LISTS.name(), ROOTS.name()];

/// Multihashes per page of a list: about 150 KB a record.
const LIST_PAGE: usize = 4096;

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

/// A pin as it is kept: with the number of its list pages.
#[derive(Serialize, Deserialize)]
struct Stored {
    pin: Pin,
    pages: u32,
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
            PinKind::List => {}
        }
        Ok(())
    }

    /// Adds or replaces a list pin over `blocks`, with the batch. Blocks that are not here yet are kept once they
    /// come.
    pub fn pin_list(&self, batch: &mut Batch, pin: &Pin, blocks: &[Cid]) -> Result<(), StoreError> {
        let pin = Pin { kind: PinKind::List, ..pin.clone() };
        let mut pages = 0;
        for page in blocks.chunks(LIST_PAGE) {
            let page: Vec<ByteBuf> = page.iter().map(|cid| ByteBuf::from(key(cid))).collect();
            batch.put(&LISTS, &(pin.id.clone(), pages), &page)?;
            pages += 1;
        }
        self.put_pin(batch, &pin, pages)?;
        let (shared, blocks) = (self.shared.clone(), blocks.to_vec());
        batch.check_before(Box::new(move || {
            let (db, _) = shared.db()?;
            for cid in &blocks {
                shared.touch(&db, &key(cid))?;
            }
            Ok(())
        }));
        Ok(())
    }

    /// Writes the pin's records, with a lease that ends when the batch does.
    fn put_pin(&self, batch: &mut Batch, pin: &Pin, pages: u32) -> Result<(), StoreError> {
        if let Some(old) = self.state().get(&PINS, &pin.id)? {
            if old.pin.root.hash() != pin.root.hash() {
                batch.delete(&ROOTS, &(key(&old.pin.root), pin.id.clone()))?;
            }
            for page in pages..old.pages {
                batch.delete(&LISTS, &(pin.id.clone(), page))?;
            }
        }
        batch.put(&PINS, &pin.id, &Stored { pin: pin.clone(), pages })?;
        batch.put(&ROOTS, &(key(&pin.root), pin.id.clone()), &())?;
        let lease = self.shared.leases.take();
        batch.when_settled(Box::new(move |_| drop(lease)));
        Ok(())
    }

    /// Removes a pin, with the batch. The blocks go with a later collection, unless something else keeps them.
    /// `false` if there is none of that id.
    pub fn unpin(&self, batch: &mut Batch, id: &PinId) -> Result<bool, StoreError> {
        let Some(old) = self.state().get(&PINS, id)? else { return Ok(false) };
        batch.delete(&PINS, id)?;
        batch.delete(&ROOTS, &(key(&old.pin.root), id.clone()))?;
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
pub(crate) fn is_pinned_root(state: &crate::db::StateDb, root: &Cid) -> Result<bool, crate::db::DbError> {
    Ok(state.scan(&ROOTS, &head(&key(root))).next().transpose()?.is_some())
}

impl Shared {
    /// Hands every block key of a list pin to `visit`, page by page.
    pub fn each_listed(
        &self,
        id: &PinId,
        mut visit: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for page in self.state.scan(&LISTS, &head(id)) {
            for key in page?.1 {
                visit(&key)?;
            }
        }
        Ok(())
    }

    /// Checks that one block is here and stamps it.
    fn hold_block(&self, pin: &Pin, cid: &Cid) -> Result<(), StoreError> {
        if hash::inline(cid).is_some() {
            return Ok(());
        }
        let (db, _) = self.db()?;
        if self.touch(&db, &key(cid))? {
            return Ok(());
        }
        Err(StoreError::Missing { cid: *cid, what: format!("pin {}", pin.id) })
    }

    /// Checks that a whole DAG is here and stamps every block of it. Memory grows with the number of nodes, not of raw
    /// leaves.
    fn hold_dag(self: &Arc<Self>, pin: &Pin) -> Result<(), StoreError> {
        let store = Store { shared: self.clone() };
        let mut seen: HashSet<Cid> = HashSet::new();
        let mut stack = vec![pin.root];
        while let Some(cid) = stack.pop() {
            self.hold_block(pin, &cid)?;
            if !has_links(&cid) || !seen.insert(cid) {
                continue;
            }
            let missing = || StoreError::Missing { cid, what: format!("pin {}", pin.id) };
            let data = store.get(&cid)?.ok_or_else(missing)?;
            stack.extend(children(&cid, &data)?.into_iter().rev());
        }
        Ok(())
    }
}
