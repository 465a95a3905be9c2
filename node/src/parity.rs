//! Parity of what lies in the own store, against rot and loss, without hosts: made, examined, used and let go.
//!
//! [`make`] codes a DAG and keeps the parity and its layout beside the content, by a list pin `parity:<layout>`. What is
//! damaged or lost then comes back by [`mend`], or, while it is being read, by [`mend_block`]; both also make parity
//! again that was lost itself.
//!
//! A layout is no part of the stripes that it describes, and without it all parity is useless. So a copy of its blocks
//! lies in the state database, out of reach of what rots among the blocks.
//!
//! Everything here blocks. What rebuilds writes, and what it wrote is durable when it returns.

use std::collections::HashMap;

use btfs_storage::db::{DbError, Table, head};
use btfs_storage::erasure::{self, Condition, ErasureError, Mended};
use btfs_storage::layout::{Layout, LayoutError};
use btfs_storage::read::{self, ReadError};
use btfs_storage::{
    BlockSink, BlockSource, Bytes, Cid, Class, Ingest, Ingested, Pin, PinId, PinKind, Store, StoreError, hash,
};
use serde_bytes::ByteBuf;

use crate::api::call::Progress;
use crate::retrieve::{LAYOUT_TABLE, Overlay, layout_row};

/// (layout, position): copies of the layouts' own blocks, root first.
pub const COPIES_TABLE: Table<(String, u32), ByteBuf> = Table::new("parity_layouts");

/// How the ids of pins begin that keep parity.
const PREFIX: &str = "parity:";

/// Why parity was not made or not used.
#[derive(Debug, thiserror::Error)]
pub enum ParityError {
    /// The content cannot be walked.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be coded or rebuilt.
    #[error(transparent)]
    Erasure(#[from] ErasureError),
    /// The layout cannot be read.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<DbError> for ParityError {
    fn from(error: DbError) -> Self {
        Self::Store(error.into())
    }
}

/// The pin that keeps a layout and its parity.
fn pin_id(layout: &Cid) -> PinId {
    format!("{PREFIX}{layout}").into()
}

/// Takes what coding makes; the layout's own blocks, which come last, also aside.
struct Keeping {
    ingest: Ingest,
    layout: Vec<Bytes>,
}

impl BlockSink for Keeping {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        // Parity is raw.
        if cid.codec() == hash::DAG_CBOR {
            self.layout.push(data.clone());
        }
        self.ingest.put(cid, data)
    }
}

/// Makes parity of a DAG that is here, and keeps it. Made again it is the same; what of it was lost is there again.
pub fn make(
    store: &Store,
    root: &Cid,
    (k, m): (u8, u8),
    progress: &Progress,
) -> Result<(Layout, Ingested), ParityError> {
    let blocks = read::walk(store, root).collect::<Result<Vec<_>, _>>()?;
    let plan = erasure::plan_local(blocks, k, m)?;
    store.check_space(Class::Own, plan.parity_size())?;
    let mut sink = Keeping { ingest: store.ingest(Class::Own)?, layout: Vec::new() };
    let mut done = 0;
    let mut step = |bytes| {
        done += bytes;
        progress.step("coding", done, Some(plan.size()));
    };
    let layout = erasure::encode(store, root, &plan, &mut sink, &mut step)?;
    let mut batch = store.state().batch();
    let own = layout.own_blocks().iter().copied();
    let made: Vec<Cid> = own.chain(layout.parity_blocks()).map(|(cid, _)| cid).collect();
    let pin = Pin {
        id: pin_id(&layout.cid()),
        kind: PinKind::List,
        root: layout.cid(),
        class: Class::Own,
        name: Some(format!("parity of {root}")),
        expires: None,
    };
    store.pin_list(&mut batch, &pin, &made)?;
    batch.put(&LAYOUT_TABLE, &layout_row(root, &layout.cid()), &())?;
    for (position, block) in (0..).zip(&sink.layout) {
        batch.put(&COPIES_TABLE, &(layout.cid().to_string(), position), &ByteBuf::from(block.to_vec()))?;
    }
    Ok((layout, sink.ingest.finish(batch)?))
}

/// The layouts of all parity that was made here, in the order of their names.
pub fn layouts(store: &Store) -> Result<Vec<Cid>, StoreError> {
    Ok(store.pins_with_prefix(PREFIX)?.into_iter().map(|pin| pin.root).collect())
}

/// The layout of that name, or those of that root.
pub fn layouts_of(store: &Store, cid: &Cid) -> Result<Vec<Cid>, ParityError> {
    let all = layouts(store)?;
    if all.contains(cid) {
        return Ok(vec![*cid]);
    }
    let mut found = Vec::new();
    for name in all {
        if load_told(store, &name).is_some_and(|loaded| loaded.layout.root().hash() == cid.hash()) {
            found.push(name);
        }
    }
    Ok(found)
}

/// A layout and the copies of its own blocks.
struct Loaded {
    layout: Layout,
    copies: Vec<(Cid, Bytes)>,
}

/// Reads a layout from the copies of its blocks, or as far as those are lost from the block store.
fn load(store: &Store, cid: &Cid) -> Result<Loaded, ParityError> {
    let mut copies = Vec::new();
    for row in store.state().scan(&COPIES_TABLE, &head(&cid.to_string())) {
        let bytes = Bytes::from(row?.1.into_vec());
        copies.push((hash::cid_v1(hash::DAG_CBOR, &bytes), bytes));
    }
    let fetched: HashMap<_, _> =
        copies.iter().map(|(cid, bytes)| (cid.hash().to_bytes(), bytes.clone())).collect();
    let layout = Layout::load(cid, &Overlay { store: store.clone(), fetched })?;
    Ok(Loaded { layout, copies })
}

/// [`load`] where one that cannot be read must not keep the others from being used.
fn load_told(store: &Store, cid: &Cid) -> Option<Loaded> {
    load(store, cid)
        .inspect_err(|error| tracing::error!(layout = %cid, %error, "a layout cannot be read; its parity is of no use"))
        .ok()
}

/// A layout, what of its content and parity is lost, and how many of its own blocks are.
pub fn examine(store: &Store, cid: &Cid) -> Result<(Layout, Condition, u64), ParityError> {
    let Loaded { layout, .. } = load(store, cid)?;
    let condition = erasure::condition(&layout, store)?;
    let mut lost = 0;
    for (cid, _) in layout.own_blocks() {
        lost += u64::from(!store.has(cid)?);
    }
    Ok((layout, condition, lost))
}

/// Lets parity go; its space returns with the next collection. `false` if there is none of that layout.
pub fn forget(store: &Store, cid: &Cid) -> Result<bool, ParityError> {
    let id = pin_id(cid);
    let mut batch = store.state().batch();
    if !store.unpin(&mut batch, &id)? {
        return Ok(false);
    }
    let copies = store.state().scan(&COPIES_TABLE, &head(&cid.to_string()));
    for row in copies {
        batch.delete(&COPIES_TABLE, &row?.0)?;
    }
    // Hosts may keep the same, and then the layout leads to them.
    if store.pins_of(cid)?.iter().all(|pin| pin.id == id)
        && let Some(Loaded { layout, .. }) = load_told(store, cid)
    {
        batch.delete(&LAYOUT_TABLE, &layout_row(&layout.root(), cid))?;
    }
    store.state().commit(batch)?;
    Ok(true)
}

/// What was mended by one layout.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// The layout.
    pub layout: Cid,
    /// The root of its content.
    pub root: Cid,
    /// Of data and parity.
    pub mended: Mended,
    /// The layout's own blocks that were put back.
    pub own: u64,
}

impl Repaired {
    /// Blocks that are here again.
    pub fn blocks(&self) -> u64 {
        self.mended.data + self.mended.parity + self.own
    }

    /// Adds what was done later.
    fn go_on(&mut self, later: Repaired) {
        self.own += later.own;
        let so_far = std::mem::replace(&mut self.mended, later.mended);
        self.mended.data += so_far.data;
        self.mended.data_bytes += so_far.data_bytes;
        self.mended.parity += so_far.parity;
    }
}

/// Rebuilds what is known to be lost of what layouts describe, data and parity, as far as it goes. Where several describe
/// the same, one may give another what it lacks. Also the first error; the other layouts are mended all the same.
pub fn mend(store: &Store, layouts: &[Cid], progress: &Progress) -> (Vec<Repaired>, Option<ParityError>) {
    let (mut all, mut failed) = (Vec::new(), None);
    for layout in layouts {
        match mend_one(store, layout, progress) {
            Ok(repaired) => all.push(repaired),
            Err(error) => {
                tracing::error!(%layout, %error, "what is lost is not rebuilt by this parity");
                failed = failed.or(Some(error));
            }
        }
    }
    let mut helped = all.len() > 1;
    while std::mem::take(&mut helped) {
        for repaired in all.iter_mut().filter(|repaired| repaired.mended.short > 0) {
            match mend_one(store, &repaired.layout, progress) {
                Ok(again) => {
                    helped |= again.mended.data > 0;
                    repaired.go_on(again);
                }
                Err(error) => {
                    tracing::error!(layout = %repaired.layout, %error, "what is lost is not rebuilt by this parity");
                    failed = failed.or(Some(error));
                }
            }
        }
    }
    (all, failed)
}

fn mend_one(store: &Store, cid: &Cid, progress: &Progress) -> Result<Repaired, ParityError> {
    let Loaded { layout, copies } = load(store, cid)?;
    let mut ingest = store.ingest(Class::Own)?;
    let own = put_back(store, &copies, &mut ingest)?;
    let mut done = 0;
    let mut step = |bytes| {
        done += bytes;
        progress.step("rebuilding", done, Some(layout.size()));
    };
    let mended = erasure::mend(&layout, store, &mut ingest, &mut step);
    // What came before an error is worth keeping.
    let kept = match ingest.totals().blocks {
        0 => Ok(Ingested::default()),
        _ => ingest.finish(store.state().batch()),
    };
    let mended = mended?;
    kept?;
    Ok(Repaired { layout: *cid, root: layout.root(), mended, own })
}

/// Puts those blocks of a layout back that are lost; how many.
fn put_back(store: &Store, copies: &[(Cid, Bytes)], ingest: &mut Ingest) -> Result<u64, StoreError> {
    let mut back = 0;
    for (cid, block) in copies {
        if !store.has(cid)? {
            ingest.put(cid, block.clone())?;
            back += 1;
        }
    }
    Ok(back)
}

/// Rebuilds one block, and what else of its stripe is lost, if any parity here leads to it.
pub fn mend_block(store: &Store, cid: &Cid) -> Result<Option<Bytes>, ParityError> {
    Ok(mend_stripe_of(store, cid, &describing(store, cid)?)?.map(|(block, _)| block))
}

/// Rebuilds one block, and what else is known to be lost of all content that it is a part of: how many blocks of data; 0
/// if it is not among them.
pub fn mend_around(store: &Store, cid: &Cid, progress: &Progress) -> Result<u64, ParityError> {
    let layouts = describing(store, cid)?;
    let Some((_, mended)) = mend_stripe_of(store, cid, &layouts)? else { return Ok(0) };
    // What failed has been told; what was rebuilt is here all the same.
    let (others, _) = mend(store, &layouts, progress);
    Ok(mended.data + others.iter().map(|done| done.mended.data).sum::<u64>())
}

/// A block that is here again, or still, with what was rebuilt of its stripe by one of the layouts that name it.
fn mend_stripe_of(store: &Store, cid: &Cid, layouts: &[Cid]) -> Result<Option<(Bytes, Mended)>, ParityError> {
    for name in layouts {
        let Some(Loaded { layout, copies }) = load_told(store, name) else { continue };
        let (mut ingest, mut mended) = (store.ingest(Class::Own)?, Mended::default());
        put_back(store, &copies, &mut ingest)?;
        if let Some(stripe) = layout.stripe_of(cid).and_then(|number| layout.stripes().get(number))
            && let Err(error) = erasure::mend_stripe(stripe, store, &mut ingest, &mut mended)
        {
            tracing::error!(layout = %name, %error, "what is lost is not rebuilt by this parity");
        }
        ingest.finish(store.state().batch())?;
        match store.get(cid) {
            Ok(Some(block)) => return Ok(Some((block, mended))),
            Ok(None) | Err(StoreError::Corrupt { .. } | StoreError::NotInFile { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// The layouts that name a block: of data, of parity, or their own. They may be large, so that one is in memory at a time.
fn describing(store: &Store, cid: &Cid) -> Result<Vec<Cid>, ParityError> {
    let mut found = Vec::new();
    for layout in layouts(store)? {
        let Some(loaded) = load_told(store, &layout) else { continue };
        let is_own = loaded.copies.iter().any(|(own, _)| own.hash() == cid.hash());
        if is_own || loaded.layout.stripe_of(cid).is_some() {
            found.push(layout);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use btfs_storage::{Quota, StoreOptions};

    use super::*;

    const SHARDS: (u8, u8) = (4, 2);

    fn open(dir: &std::path::Path) -> Store {
        let tables = vec![LAYOUT_TABLE.name(), COPIES_TABLE.name()];
        let quota = Quota::default();
        Store::open(StoreOptions { path: dir.to_owned(), tables, quota, reserve_bytes: 0 }).unwrap()
    }

    /// A pinned node over blocks of a megabyte and a byte, and its blocks.
    fn content(store: &Store, blocks: std::ops::Range<u8>) -> (Cid, Vec<Cid>) {
        let mut ingest = store.ingest(Class::Own).unwrap();
        let mut cids = Vec::new();
        for number in blocks {
            // Of blocks that are all alike, parity would be, too.
            let byte = |at: u32| (at.wrapping_mul(at) % 251) as u8;
            let data: Bytes = (0..=1 << 20).map(|at| byte(at).wrapping_mul(2 * number + 1)).collect();
            let cid = hash::cid_v1(hash::RAW, &data);
            ingest.put(&cid, data).unwrap();
            cids.push(cid);
        }
        let node = serde_ipld_dagcbor::to_vec(&cids).unwrap();
        let root = hash::cid_v1(hash::DAG_CBOR, &node);
        ingest.put(&root, node.into()).unwrap();
        let mut batch = store.state().batch();
        store.pin(&mut batch, &crate::calls::files::own_pin(root, None, PinKind::Recursive)).unwrap();
        ingest.finish(batch).unwrap();
        (root, cids)
    }

    /// Loses all blocks but these.
    fn keep_only(store: &Store, blocks: &[Cid]) {
        let mut batch = store.state().batch();
        for pin in store.pins().unwrap() {
            store.unpin(&mut batch, &pin.id).unwrap();
        }
        let pin = crate::calls::files::own_pin(blocks[0], None, PinKind::List);
        store.pin_list(&mut batch, &Pin { id: "kept:".into(), ..pin }, blocks).unwrap();
        store.state().commit(batch).unwrap();
        store.gc().unwrap();
    }

    #[test]
    fn a_layout_and_all_parity_come_back_from_the_copy_and_the_data() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let (root, _) = content(&store, 0..9);
        let (layout, made) = make(&store, &root, SHARDS, &Progress::default()).unwrap();
        assert_eq!(layouts(&store).unwrap(), [layout.cid()]);
        keep_only(&store, &layout.data_blocks().map(|(cid, _)| cid).collect::<Vec<_>>());
        let (_, found, own) = examine(&store, &layout.cid()).unwrap();
        assert_eq!((found.lost_data, found.spare), (0, 0));
        assert_eq!(own, layout.own_blocks().len() as u64);
        let (repaired, failed) = mend(&store, &[layout.cid()], &Progress::default());
        assert!(failed.is_none());
        assert_eq!(repaired[0].blocks(), made.new_blocks);
        let (_, found, own) = examine(&store, &layout.cid()).unwrap();
        assert_eq!((found.lost_parity, found.spare, own), (0, 2, 0));
    }

    #[test]
    fn layouts_of_the_same_content_help_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let (one, blocks) = content(&store, 0..8);
        let (other, _) = content(&store, 0..7);
        let layouts = [one, other].map(|root| make(&store, &root, SHARDS, &Progress::default()).unwrap().0);
        // Three of the first's first stripe, three of the second's second one.
        let lost = &blocks[1..6];
        let described = layouts.iter().flat_map(|layout| layout.data_blocks().chain(layout.parity_blocks()));
        let kept: Vec<Cid> = described.map(|(cid, _)| cid).filter(|cid| !lost.contains(cid)).collect();
        keep_only(&store, &kept);
        let cids = layouts.each_ref().map(Layout::cid);
        for cid in &cids {
            assert_eq!(examine(&store, cid).unwrap().1.spare, -1, "alone it cannot");
        }
        let (repaired, failed) = mend(&store, &cids, &Progress::default());
        assert!(failed.is_none() && repaired.iter().all(|done| done.mended.lost.is_empty()));
        assert_eq!(repaired.iter().map(|done| done.mended.data).sum::<u64>(), lost.len() as u64);
        assert!(repaired.iter().all(|done| done.own > 0), "{repaired:?}");
        for cid in &cids {
            assert_eq!(examine(&store, cid).unwrap().1.spare, 2);
        }
    }

    #[test]
    fn what_is_forgotten_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path());
        let (root, blocks) = content(&store, 0..5);
        let before = store.stat().unwrap().blocks;
        let (layout, _) = make(&store, &root, SHARDS, &Progress::default()).unwrap();
        assert!(mend_block(&store, &hash::cid_v1(hash::RAW, b"foreign")).unwrap().is_none());
        assert!(mend_block(&store, &blocks[0]).unwrap().is_some(), "it is here");
        assert!(forget(&store, &layout.cid()).unwrap());
        assert!(!forget(&store, &layout.cid()).unwrap());
        assert!(crate::retrieve::known_layouts(&store, &root).unwrap().is_empty());
        assert!(store.state().scan(&COPIES_TABLE, &[]).next().is_none());
        store.gc().unwrap();
        assert_eq!(store.stat().unwrap().blocks, before);
        assert!(matches!(examine(&store, &layout.cid()), Err(ParityError::Layout(LayoutError::Missing(_)))));
    }
}
