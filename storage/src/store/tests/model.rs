//! Collection against a model, and under fire.
//!
//! The model knows what must be here and what must not. While a collection is under way some blocks are in neither set:
//! let go after they were marked, or not reached yet. Of those the model learns from the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::store::gc::Collection;
use crate::store::volumes::drain::Drain;

/// Nodes of the model's world; each links to lower ones only.
const NODES: usize = 10;
/// Ingests that can be open at once.
const SLOTS: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Put {
        slot: usize,
        nodes: u16,
    },
    Keep {
        slot: usize,
        node: usize,
    },
    Finish {
        slot: usize,
    },
    Abandon {
        slot: usize,
    },
    Pin {
        id: usize,
        node: usize,
        kind: PinKind,
    },
    Unpin {
        id: usize,
    },
    /// A collection from begin to end; first the rest of one that is under way.
    Collect,
    /// So many blocks' worth of a collection, which begins with it if none is under way.
    CollectSome {
        blocks: usize,
    },
    Restart,
    /// Something with a data directory; it waits for a collection under way.
    Directory {
        which: usize,
        act: Act,
    },
}

/// What happens to a data directory.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// It is added, or taken back.
    Add,
    /// It begins to be emptied, instead of any other.
    Empty,
    /// A window of what is emptied is copied, and there it breaks off.
    Copy,
    /// A window is moved.
    Move,
    /// The rest is.
    Finish,
}

/// The directories of the model's store.
const DIRECTORIES: [&str; 3] = ["blocks", "one", "two"];

/// What happens besides; each costs a hundred times as much as all other steps.
#[derive(Clone, Copy)]
enum Besides {
    Nothing,
    /// The store is closed and opened again.
    Restarts,
    /// Data directories come and go, and there are restarts.
    Directories,
}

fn steps(besides: Besides) -> impl Strategy<Value = Vec<Step>> {
    let kinds = prop_oneof![Just(PinKind::Recursive), Just(PinKind::Direct), Just(PinKind::List)];
    let directories = match besides {
        Besides::Directories => (8, directory().boxed()),
        Besides::Nothing | Besides::Restarts => (1, Just(Step::Collect).boxed()),
    };
    let step = prop_oneof![
        4 => (0..SLOTS, any::<u16>()).prop_map(|(slot, nodes)| Step::Put { slot, nodes }),
        2 => (0..SLOTS, 0..NODES).prop_map(|(slot, node)| Step::Keep { slot, node }),
        2 => (0..SLOTS).prop_map(|slot| Step::Finish { slot }),
        1 => (0..SLOTS).prop_map(|slot| Step::Abandon { slot }),
        4 => (0..3usize, 0..NODES, kinds).prop_map(|(id, node, kind)| Step::Pin { id, node, kind }),
        1 => (0..3usize).prop_map(|id| Step::Unpin { id }),
        6 => (1..6usize).prop_map(|blocks| Step::CollectSome { blocks }),
        1 => Just(match besides {
            Besides::Nothing => Step::Collect,
            Besides::Restarts | Besides::Directories => Step::Restart,
        }),
        directories.0 => directories.1,
    ];
    proptest::collection::vec(step, 1..40)
}

fn directory() -> impl Strategy<Value = Step> {
    let act = prop_oneof![
        3 => Just(Act::Add),
        4 => Just(Act::Empty),
        4 => Just(Act::Copy),
        6 => Just(Act::Move),
        1 => Just(Act::Finish),
    ];
    (0..DIRECTORIES.len(), act).prop_map(|(which, act)| Step::Directory { which, act })
}

/// What should be true.
#[derive(Default)]
struct Model {
    links: Vec<Vec<usize>>,
    /// Node -> generation of its last stamp.
    here: BTreeMap<usize, u64>,
    pins: BTreeMap<usize, (usize, PinKind)>,
    leases: [Option<u64>; SLOTS],
    generation: u64,
    under_way: Option<UnderWay>,
}

/// A collection under way, as the model sees it.
struct UnderWay {
    /// Unmarked blocks with a stamp below this go.
    oldest: u64,
    /// Pins that were there when it began and have not changed since.
    kept: BTreeMap<usize, (usize, PinKind)>,
    /// Nodes that some pin reached at any time since it began.
    reached: BTreeSet<usize>,
}

impl Model {
    fn below(&self, node: usize) -> BTreeSet<usize> {
        let mut all = BTreeSet::from([node]);
        for child in &self.links[node] {
            all.extend(self.below(*child));
        }
        all
    }

    fn kept_by(&self, node: usize, kind: PinKind) -> BTreeSet<usize> {
        match kind {
            PinKind::Direct => BTreeSet::from([node]),
            PinKind::Recursive | PinKind::List => self.below(node),
        }
    }

    fn stamp(&mut self, node: usize) {
        self.here.insert(node, self.generation);
    }

    fn live(&self, pins: &BTreeMap<usize, (usize, PinKind)>) -> BTreeSet<usize> {
        pins.values().flat_map(|(node, kind)| self.kept_by(*node, *kind)).collect()
    }

    fn begin_collection(&mut self) {
        self.generation += 1;
        let oldest = self.leases.iter().flatten().copied().min().unwrap_or(self.generation);
        let reached = self.live(&self.pins);
        self.under_way = Some(UnderWay { oldest, kept: self.pins.clone(), reached });
    }

    /// Whether the collection under way may take a node.
    fn may_go(&self, node: usize) -> bool {
        self.under_way.as_ref().is_some_and(|collection| {
            self.here[&node] < collection.oldest && !self.live(&collection.kept).contains(&node)
        })
    }

    fn end_collection(&mut self) {
        let Some(collection) = self.under_way.take() else { return };
        for (node, stamp) in &self.here {
            let kept = *stamp >= collection.oldest || collection.reached.contains(node);
            assert!(kept, "node {node} was dead all along and is still here");
        }
    }

    fn repin(&mut self, id: usize, pin: Option<(usize, PinKind)>) {
        match pin {
            Some(pin) => self.pins.insert(id, pin),
            None => self.pins.remove(&id),
        };
        let live = self.live(&self.pins);
        if let Some(collection) = &mut self.under_way {
            collection.kept.remove(&id);
            collection.reached.extend(live);
        }
    }
}

/// The model beside the store.
struct Pair {
    model: Model,
    blocks: Vec<(Cid, Bytes)>,
    dir: tempfile::TempDir,
    store: Option<Store>,
    slots: [Option<Ingest>; SLOTS],
    collection: Option<Collection>,
    drain: Option<Drain>,
}

impl Pair {
    fn new() -> Pair {
        // Where syncing is free, if there is such a place: none of this is about losing power.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let store = Some(open(dir.path()));
        let model = Model { generation: 1, ..Model::default() };
        Pair { model, blocks: Vec::new(), dir, store, slots: [None, None], collection: None, drain: None }
    }

    /// Begins another case in an empty store: `salt` makes its blocks differ from those of others.
    fn begin(&mut self, links: &[u16], salt: u64) {
        self.slots = [None, None];
        self.collection = None;
        self.settle();
        for pin in self.store().pins().unwrap() {
            unpin(self.store(), &pin.id.0);
        }
        self.store().gc().unwrap();
        assert_eq!(self.store().stat().unwrap().blocks, 0);
        let generation = self.store().shared.leases.generation();
        let mut blocks: Vec<(Cid, Bytes)> = Vec::new();
        let mut model = Model { generation, ..Model::default() };
        for (number, mask) in links.iter().enumerate() {
            let children: Vec<usize> = (0..number).filter(|child| mask >> child & 1 == 1).collect();
            let cids: Vec<Cid> = children.iter().map(|child| blocks[*child].0).collect();
            let seed = salt * NODES as u64 + number as u64;
            blocks.push(if cids.is_empty() { block(seed, 200) } else { node(seed, &cids) });
            model.links.push(children);
        }
        (self.model, self.blocks) = (model, blocks);
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn slot(&mut self, slot: usize) -> &mut Ingest {
        if self.slots[slot].is_none() {
            self.slots[slot] = Some(self.store().ingest(Class::Own).unwrap());
            self.model.leases[slot] = Some(self.model.generation);
        }
        self.slots[slot].as_mut().unwrap()
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Put { slot, nodes } => self.put(slot, nodes),
            Step::Keep { slot, node } => {
                let cid = self.blocks[node].0;
                let kept = self.slot(slot).keep(&cid).unwrap();
                assert_eq!(kept, self.model.here.contains_key(&node));
                if kept {
                    self.model.stamp(node);
                }
            }
            Step::Finish { slot } => {
                if let Some(ingest) = self.slots[slot].take() {
                    ingest.finish(self.store().state().batch()).unwrap();
                }
                self.model.leases[slot] = None;
            }
            Step::Abandon { slot } => {
                self.slots[slot] = None;
                self.model.leases[slot] = None;
            }
            Step::Pin { id, node, kind } => self.pin(id, node, kind),
            Step::Unpin { id } => {
                let mut batch = self.store().state().batch();
                let had = self.store().unpin(&mut batch, &id.to_string().into()).unwrap();
                self.store().state().commit(batch).unwrap();
                assert_eq!(had, self.model.pins.contains_key(&id));
                self.model.repin(id, None);
            }
            Step::Collect => {
                while self.collection.is_some() {
                    self.collect_some(usize::MAX);
                }
                self.model.begin_collection();
                self.store().gc().unwrap();
                self.learn();
                self.model.end_collection();
            }
            Step::CollectSome { blocks } => self.collect_some(blocks),
            Step::Directory { which, act } => {
                while self.collection.is_some() {
                    self.collect_some(usize::MAX);
                }
                self.directory(which, act);
            }
            Step::Restart => {
                self.slots = [None, None];
                (self.collection, self.drain) = (None, None);
                self.model.under_way = None;
                self.model.leases = [None; SLOTS];
                self.store.take().unwrap().close().unwrap();
                self.store = Some(open(self.dir.path()));
            }
        }
    }

    fn put(&mut self, slot: usize, nodes: u16) {
        for number in (0..NODES).filter(|number| nodes >> number & 1 == 1) {
            let (cid, data) = self.blocks[number].clone();
            self.slot(slot).put(&cid, data).unwrap();
            self.model.stamp(number);
        }
        // Visible either way. Without the log the next collection begins with a flush, the dearest step of all.
        if nodes.is_multiple_of(8) {
            self.slot(slot).expose().unwrap();
        } else {
            let state = self.store().state().batch();
            self.slot(slot).checkpoint(state).unwrap();
        }
    }

    fn directory(&mut self, which: usize, act: Act) {
        let path = self.dir.path().join(DIRECTORIES[which]);
        match act {
            Act::Add => {
                self.store().add_directory(&path).unwrap();
                return;
            }
            Act::Empty => {
                match Drain::begin(self.store(), &path) {
                    Ok(drain) => self.drain = Some(drain),
                    Err(StoreError::Directory { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
                if let Some(drain) = &mut self.drain {
                    // A block or two.
                    drain.portion = 300;
                }
                return;
            }
            Act::Copy | Act::Move | Act::Finish => {}
        }
        let Some(mut drain) = self.drain.take() else { return };
        let more = match act {
            Act::Copy => drain.copy_next().map(|_| true),
            _ => drain.step(),
        };
        match more {
            Ok(true) if !matches!(act, Act::Finish) => self.drain = Some(drain),
            Ok(true) => {
                while drain.step().unwrap() {}
                drain.finish().unwrap();
            }
            Ok(false) => drop(drain.finish().unwrap()),
            // It was taken back.
            Err(StoreError::DrainStopped { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Lets every directory take blocks again, so that no block is in two.
    fn settle(&mut self) {
        self.drain = None;
        for one in self.store().directories().unwrap() {
            self.store().add_directory(&one.path).unwrap();
        }
    }

    fn collect_some(&mut self, blocks: usize) {
        let mut collection = match self.collection.take() {
            Some(collection) => collection,
            None => {
                self.model.begin_collection();
                Collection::begin(self.store(), 0, GcOptions::default()).unwrap()
            }
        };
        assert_eq!(Some(collection.oldest()), self.model.under_way.as_ref().map(|known| known.oldest));
        let more = collection.step(blocks).unwrap();
        self.learn();
        match more {
            true => self.collection = Some(collection),
            false => self.model.end_collection(),
        }
    }

    /// Learns which of the nodes that may go have gone.
    fn learn(&mut self) {
        for node in self.model.here.keys().copied().collect::<Vec<_>>() {
            if !self.store().has(&self.blocks[node].0).unwrap() {
                assert!(self.model.may_go(node), "node {node} is lost");
                self.model.here.remove(&node);
            }
        }
    }

    fn pin(&mut self, id: usize, node: usize, kind: PinKind) {
        let kept = self.model.kept_by(node, kind);
        let complete = kept.iter().all(|node| self.model.here.contains_key(node));
        if !complete && kind != PinKind::List {
            return;
        }
        let mut batch = self.store().state().batch();
        let wanted = pin(&id.to_string(), kind, self.blocks[node].0);
        if kind == PinKind::List {
            let list: Vec<Cid> = kept.iter().map(|node| self.blocks[*node].0).collect();
            self.store().pin_list(&mut batch, &wanted, &list).unwrap();
        } else {
            self.store().pin(&mut batch, &wanted).unwrap();
        }
        self.store().state().commit(batch).unwrap();
        self.model.repin(id, Some((node, kind)));
        for node in kept {
            if self.model.here.contains_key(&node) {
                self.model.stamp(node);
            }
        }
    }

    /// Whether the store has exactly what the model has.
    fn compare_blocks(&self) {
        for (number, (cid, _)) in self.blocks.iter().enumerate() {
            let expected = self.model.here.contains_key(&number);
            assert_eq!(self.store().has(cid).unwrap(), expected, "node {number}");
        }
    }

    /// The same, with every byte and every total.
    fn compare(&mut self) {
        self.collection = None;
        self.settle();
        let mut bytes = 0;
        for (number, (cid, data)) in self.blocks.iter().enumerate() {
            let expected = self.model.here.contains_key(&number).then_some(data);
            assert_eq!(self.store().get(cid).unwrap().as_ref(), expected, "node {number}");
            bytes += expected.map_or(0, |data| data.len() as u64);
        }
        let stat = self.store().stat().unwrap();
        assert_eq!((stat.blocks, stat.bytes), (self.model.here.len() as u64, bytes));
        assert_eq!(stat.pins, self.model.pins.len() as u64);
    }
}

/// Random cases of steps, one store for all: it is emptied between them.
fn try_cases(cases: u32, besides: Besides) {
    let mut runner = TestRunner::new(ProptestConfig { cases, ..ProptestConfig::default() });
    let links = proptest::collection::vec(any::<u16>(), NODES);
    let pair = std::cell::RefCell::new(Pair::new());
    let salt = std::cell::Cell::new(0);
    let tried = runner.run(&(links, steps(besides)), |(links, steps)| {
        let mut pair = pair.borrow_mut();
        salt.set(salt.get() + 1);
        pair.begin(&links, salt.get());
        for step in steps {
            pair.step(step);
            pair.compare_blocks();
        }
        pair.compare();
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}

/// Of 10,000 cases in all; two tests, so that two cores share them.
#[test]
fn collections_keep_exactly_what_the_model_keeps() {
    try_cases(5000, Besides::Nothing);
}

#[test]
fn collections_keep_exactly_what_the_model_keeps_in_other_cases() {
    try_cases(5000, Besides::Nothing);
}

#[test]
fn collections_keep_exactly_what_the_model_keeps_across_restarts() {
    try_cases(16, Besides::Restarts);
}

#[test]
fn collections_keep_exactly_what_the_model_keeps_while_directories_come_and_go() {
    try_cases(200, Besides::Directories);
}

/// Threads put, hit, pin and unpin the same few DAGs while collections run one after another: what was acknowledged as
/// pinned is always there.
#[test]
fn nothing_pinned_is_lost_while_collections_run() {
    const ROUNDS: u64 = 150;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let shared: Vec<_> = (0..4).map(|seed| block(seed, 3000)).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut collected = 0;
            while !done.load(Ordering::SeqCst) {
                collected += store.gc().unwrap().freed_blocks;
            }
            collected
        });
        let workers: Vec<_> = (0..3u64)
            .map(|worker| {
                let (store, shared) = (&store, &shared);
                scope.spawn(move || {
                    let id = worker.to_string();
                    for round in 0..ROUNDS {
                        let own = block(1000 * (worker + 1) + round, 2000);
                        let links: Vec<Cid> = shared.iter().chain([&own]).map(|(cid, _)| *cid).collect();
                        let (root, root_data) = node(round, &links);
                        let mut ingest = store.ingest(Class::Own).unwrap();
                        for (cid, data) in shared.iter().chain([&own]).cloned().chain([(root, root_data)]) {
                            ingest.put(&cid, data).unwrap();
                        }
                        let mut batch = store.state().batch();
                        store.pin(&mut batch, &pin(&id, PinKind::Recursive, root)).unwrap();
                        ingest.finish(batch).unwrap();
                        for cid in links.iter().chain([&root]) {
                            assert!(store.get(cid).unwrap().is_some(), "lost while pinned");
                        }
                        unpin(store, &id);
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::SeqCst);
        collector.join().unwrap();
    });
    store.gc().unwrap();
    let stat = store.stat().unwrap();
    assert_eq!((stat.blocks, stat.bytes), (0, 0));
}
