//! Collection against a model, and under fire.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;

/// Nodes of the model's world; each links to lower ones only.
const NODES: usize = 10;
/// Ingests that can be open at once.
const SLOTS: usize = 2;

#[derive(Clone, Debug)]
enum Step {
    Put { slot: usize, nodes: u16 },
    Keep { slot: usize, node: usize },
    Finish { slot: usize },
    Abandon { slot: usize },
    Pin { id: usize, node: usize, kind: PinKind },
    Unpin { id: usize },
    Collect,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kinds = prop_oneof![Just(PinKind::Recursive), Just(PinKind::Direct), Just(PinKind::List)];
    let step = prop_oneof![
        4 => (0..SLOTS, any::<u16>()).prop_map(|(slot, nodes)| Step::Put { slot, nodes }),
        2 => (0..SLOTS, 0..NODES).prop_map(|(slot, node)| Step::Keep { slot, node }),
        2 => (0..SLOTS).prop_map(|slot| Step::Finish { slot }),
        1 => (0..SLOTS).prop_map(|slot| Step::Abandon { slot }),
        4 => (0..3usize, 0..NODES, kinds).prop_map(|(id, node, kind)| Step::Pin { id, node, kind }),
        1 => (0..3usize).prop_map(|id| Step::Unpin { id }),
        3 => Just(Step::Collect),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 1..40)
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

    fn collect(&mut self) {
        self.generation += 1;
        let oldest = self.leases.iter().flatten().copied().min().unwrap_or(self.generation);
        let live: BTreeSet<usize> =
            self.pins.values().flat_map(|(node, kind)| self.kept_by(*node, *kind)).collect();
        self.here.retain(|node, stamp| live.contains(node) || *stamp >= oldest);
    }
}

/// The model beside the store.
struct Pair {
    model: Model,
    blocks: Vec<(Cid, Bytes)>,
    dir: tempfile::TempDir,
    store: Option<Store>,
    slots: [Option<Ingest>; SLOTS],
}

impl Pair {
    fn new(links: &[u16]) -> Pair {
        let mut blocks: Vec<(Cid, Bytes)> = Vec::new();
        let mut model = Model { generation: 1, ..Model::default() };
        for (number, mask) in links.iter().enumerate() {
            let children: Vec<usize> = (0..number).filter(|child| mask >> child & 1 == 1).collect();
            let cids: Vec<Cid> = children.iter().map(|child| blocks[*child].0).collect();
            blocks.push(if cids.is_empty() { block(number as u64, 200) } else { node(number as u64, &cids) });
            model.links.push(children);
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Some(open(dir.path()));
        Pair { model, blocks, dir, store, slots: [None, None] }
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
            Step::Put { slot, nodes } => {
                for number in (0..NODES).filter(|number| nodes >> number & 1 == 1) {
                    let (cid, data) = self.blocks[number].clone();
                    self.slot(slot).put(&cid, data).unwrap();
                    self.model.stamp(number);
                }
                self.slot(slot).expose().unwrap();
            }
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
                assert_eq!(had, self.model.pins.remove(&id).is_some());
            }
            Step::Collect => {
                self.store().gc().unwrap();
                self.model.collect();
            }
            Step::Restart => {
                self.slots = [None, None];
                self.model.leases = [None; SLOTS];
                self.store.take().unwrap().close().unwrap();
                self.store = Some(open(self.dir.path()));
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
        self.model.pins.insert(id, (node, kind));
        for node in kept {
            if self.model.here.contains_key(&node) {
                self.model.stamp(node);
            }
        }
    }

    fn compare(&self) {
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn collections_keep_exactly_what_the_model_keeps(
        links in proptest::collection::vec(any::<u16>(), NODES),
        steps in steps(),
    ) {
        let mut pair = Pair::new(&links);
        for step in steps {
            pair.step(step);
            pair.compare();
        }
    }
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
