//! One function a decoder, and what each begins with.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Seek, SeekFrom};
use std::sync::Mutex;

use btfs_storage::blocklist::BlockList;
use btfs_storage::car::{CarReader, CarWriter};
use btfs_storage::dagpb::{self, PbLink, PbNode};
use btfs_storage::erasure;
use btfs_storage::ipld::{self, Codec, Start};
use btfs_storage::layout::Layout;
use btfs_storage::read::{self, FileReader};
use btfs_storage::sealed::{HEADER, SealKey, Sealer, Unsealer, last_segment};
use btfs_storage::unixfs::hamt::{self, Collision};
use btfs_storage::unixfs::{Data, DirLink, Metadata, Node};
use btfs_storage::{BlockSink, BlockSource, Bytes, Cid, StoreError, decoders, hash};

/// A decoder under test.
pub struct Target {
    /// Its name on the command line and of its corpus.
    pub name: &'static str,
    /// Tries an input; panics if something does not hold. The answer stands for how it went.
    pub run: fn(&[u8]) -> u64,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Makes an input's checksums right, so that it gets past them.
    pub mend: Option<fn(&mut [u8])>,
}

/// Every target.
pub const TARGETS: [Target; 10] = [
    Target { name: "dag-pb", run: dag_pb, seeds: dag_pb_seeds, mend: None },
    Target { name: "unixfs", run: unixfs, seeds: unixfs_seeds, mend: None },
    Target { name: "hamt", run: hamt, seeds: hamt_seeds, mend: None },
    Target { name: "dag-cbor", run: dag_cbor, seeds: dag_cbor_seeds, mend: None },
    Target { name: "dag-json", run: dag_json, seeds: dag_json_seeds, mend: None },
    Target { name: "path", run: path, seeds: path_seeds, mend: None },
    Target { name: "car", run: car, seeds: car_seeds, mend: Some(mend_car) },
    Target { name: "layout", run: layout, seeds: layout_seeds, mend: None },
    Target { name: "state", run: state, seeds: state_seeds, mend: None },
    Target { name: "sealed", run: sealed, seeds: sealed_seeds, mend: None },
];

/// A number for what happened: the words of an error without its numbers and names, or the rough size of a success.
fn answer<T: Hash, E: std::fmt::Display>(outcome: &Result<T, E>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match outcome {
        Ok(shape) => shape.hash(&mut hasher),
        Err(error) => {
            let text = error.to_string();
            let words = text
                .split_whitespace()
                .filter(|word| word.len() < 24 && !word.contains(|c: char| c.is_ascii_digit()));
            words.for_each(|word| word.hash(&mut hasher));
        }
    }
    hasher.finish()
}

/// How many, roughly.
fn rough(count: usize) -> u32 {
    usize::BITS - count.leading_zeros()
}

fn pb_cid(bytes: &[u8]) -> Cid {
    hash::cid_v1(hash::DAG_PB, bytes)
}

fn leaf(name: &str) -> Cid {
    hash::cid_v1(hash::RAW, name.as_bytes())
}

// --- dag-pb and UnixFS ---

fn dag_pb(input: &[u8]) -> u64 {
    let block = Bytes::copy_from_slice(input);
    let node = PbNode::decode(&block);
    let links = dagpb::links(&pb_cid(b""), input);
    if let Ok(node) = &node {
        let children: Vec<Cid> = node.links.iter().map(|link| link.cid).collect();
        assert_eq!(links.as_ref().ok(), Some(&children), "walks and readers see the same links");
        let again = node.encode();
        assert_eq!(again.len(), node.encoded_len());
        assert_eq!(PbNode::decode(&again).as_ref(), Ok(node), "what decodes encodes again");
    }
    answer(&node.map(|node| (rough(node.links.len()), node.data.map(|data| rough(data.len())))))
}

fn dag_pb_seeds() -> Vec<Vec<u8>> {
    let link = |name: Option<&str>, tsize| PbLink { cid: leaf("x"), name: name.map(str::to_owned), tsize };
    let data = |bytes: &'static [u8]| Some(Bytes::from_static(bytes));
    let many = (0..300u64).map(|size| link(Some("n"), Some(size))).collect();
    [
        PbNode::default(),
        PbNode { links: vec![link(None, None), link(Some(""), Some(0))], data: data(b"") },
        PbNode {
            links: vec![link(Some("a"), Some(u64::MAX)), link(Some("b"), None)],
            data: data(b"some data"),
        },
        PbNode { links: many, data: None },
        PbNode { links: smallest_links(), data: None },
    ]
    .iter()
    .map(|node| node.encode().to_vec())
    .collect()
}

/// A block full of the shortest links: what costs the most memory for its bytes.
fn smallest_links() -> Vec<PbLink> {
    let cid = hash::cid_from_digest(hash::RAW, hash::IDENTITY, b"");
    let count = btfs_storage::MAX_BLOCK / 8;
    (0..count).map(|_| PbLink { cid, name: None, tsize: None }).collect()
}

fn unixfs(input: &[u8]) -> u64 {
    let whole = Bytes::copy_from_slice(input);
    let as_data = PbNode { links: Vec::new(), data: Some(whole.clone()) }.encode();
    let decode = |block: &Bytes| {
        let outcome = Node::decode(&pb_cid(b""), block);
        outcome.map(|node| match node {
            Node::File(file) => {
                assert!(file.inline.len() <= block.len(), "content comes from the block");
                let parts: u64 = file.parts.iter().map(|part| part.size).sum();
                assert_eq!(file.size, parts + file.inline.len() as u64, "sizes add up");
                (0, rough(file.parts.len()), rough(file.inline.len()))
            }
            Node::Directory(entries) => (1, rough(entries.len()), 0),
            Node::Shard(shard) => (2, rough(shard.slots().len()), shard.max_levels()),
            Node::Symlink(target) => (3, rough(target.len()), 0),
        })
    };
    let source = Blocks::of(vec![whole.clone()]);
    let stat = read::stat(&source, &pb_cid(b"")).map(|stat| rough(stat.links as usize));
    answer(&decode(&whole)) ^ answer(&decode(&as_data)).rotate_left(1) ^ answer(&stat).rotate_left(2)
}

fn unixfs_seeds() -> Vec<Vec<u8>> {
    let link = |size: u64| PbLink { cid: leaf("part"), name: Some(String::new()), tsize: Some(size) };
    let entry = |name: &str| PbLink { cid: leaf(name), name: Some(name.to_owned()), tsize: Some(4) };
    let metadata = Metadata::new(Some(0o644), Some((1_700_000_000, 5)));
    let node =
        |links: Vec<PbLink>, data: Data| PbNode { links, data: Some(data.to_bytes()) }.encode().to_vec();
    let inline = Data { data: Some(Bytes::from_static(b"content")), ..Data::file(7, vec![]) };
    let mut seeds = vec![
        node(vec![], Data::file(0, vec![])),
        node(vec![], inline.clone().with_metadata(&metadata)),
        node(vec![link(5), link(6)], Data::file(11, vec![5, 6])),
        node(vec![entry("a"), entry("b")], Data::directory().with_metadata(&metadata)),
        node(vec![], Data::symlink(Bytes::from_static(b"../target"))),
        inline.to_bytes().to_vec(),
    ];
    seeds.extend(shards(8, 20).1.into_values().map(|block| block.to_vec()));
    seeds
}

// --- directories over several blocks ---

/// Blocks that answer for any CID, by its digest: DAGs with cycles and shared parts that no hash would allow.
#[derive(Default)]
struct Blocks(Vec<Bytes>);

impl Blocks {
    fn of(blocks: Vec<Bytes>) -> Blocks {
        Blocks(blocks)
    }

    /// Cut from an input: a length of two bytes before each.
    fn cut(input: &[u8]) -> Blocks {
        let mut blocks = Vec::new();
        let mut rest = input;
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
            let (block, after) = after.split_at(length);
            blocks.push(Bytes::copy_from_slice(block));
            rest = after;
        }
        Blocks(blocks)
    }

    /// As [`cut`](Self::cut) takes them apart.
    fn join(blocks: impl IntoIterator<Item = Bytes>) -> Vec<u8> {
        let mut out = Vec::new();
        for block in blocks {
            out.extend_from_slice(&(block.len() as u16).to_be_bytes());
            out.extend_from_slice(&block);
        }
        out
    }

    fn pick(&self, cid: &Cid) -> Option<Bytes> {
        if let Some(inline) = hash::inline(cid) {
            return Some(Bytes::copy_from_slice(inline));
        }
        let at = cid.hash().digest().iter().fold(0usize, |sum, byte| sum + usize::from(*byte));
        self.0.get(at.checked_rem(self.0.len())?).cloned()
    }
}

impl BlockSource for Blocks {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        Ok(self.pick(cid))
    }
    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.pick(cid).is_some())
    }
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        Ok(self.pick(cid).map(|block| block.len() as u64))
    }
}

/// Content read from one file, at most: hostile sizes reach 2^64.
const READ: u64 = 1 << 20;

fn hamt(input: &[u8]) -> u64 {
    let blocks = Blocks::cut(input);
    let Some(first) = blocks.0.first() else { return 0 };
    let root = pb_cid(first);
    let listed = read::ls(&blocks, &root).map(|entries| rough(entries.len()));
    let found = read::resolve(&blocks, &root, "name 7/x").map(|_| ());
    let walked: Result<Vec<_>, _> = read::walk(&blocks, &root).take(10_000).collect();
    let walked = walked.map(|walked| rough(walked.len()));
    let content = FileReader::open(&blocks, &root).map_err(std::io::Error::other).and_then(|mut file| {
        let mut content = Vec::new();
        file.by_ref().take(READ).read_to_end(&mut content)?;
        let middle = file.size() / 2;
        file.seek(SeekFrom::Start(middle))?;
        let mut some = [0; 64];
        let read = file.read(&mut some)?;
        assert!(middle + read as u64 <= file.size(), "nothing lies behind the end");
        Ok(rough(content.len()))
    });
    answer(&listed)
        ^ answer(&found).rotate_left(1)
        ^ answer(&walked).rotate_left(2)
        ^ answer(&content).rotate_left(3)
}

/// The shards of a directory with so many entries.
fn shards(fanout: u32, entries: usize) -> (Cid, BTreeMap<Cid, Bytes>) {
    let entries: Vec<DirLink> = (0..entries)
        .map(|number| format!("name {number}"))
        .map(|name| DirLink { cid: leaf(&name), name, tsize: 1 })
        .collect();
    let mut blocks = BTreeMap::new();
    let built = hamt::build(fanout, &entries, &Metadata::default(), &mut |block| {
        let cid = pb_cid(&block);
        blocks.insert(cid, block);
        Ok::<_, Collision>(cid)
    });
    (built.expect("names do not collide").0, blocks)
}

fn hamt_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = [(8, 5), (8, 60), (256, 40)]
        .into_iter()
        .map(|(fanout, entries)| {
            let (root, mut blocks) = shards(fanout, entries);
            let first = blocks.remove(&root);
            Blocks::join(first.into_iter().chain(blocks.into_values()))
        })
        .collect();
    seeds.push(Blocks::join(unixfs_seeds().into_iter().map(Bytes::from)));
    seeds.push(Blocks::join(unixfs_seeds().into_iter().rev().map(Bytes::from)));
    seeds
}

// --- IPLD values ---

/// Decodes and encodes again; `exact`: to the very same bytes.
fn value(codec: Codec, input: &[u8], exact: bool) -> u64 {
    let block = Bytes::copy_from_slice(input);
    let value = ipld::decode(codec, &block);
    let links = dagpb::links(&hash::cid_v1(codec.code(), b""), input).map(|links| rough(links.len()));
    if let Ok(value) = &value {
        let again = ipld::encode(codec, value).expect("what decodes encodes again");
        if exact {
            assert_eq!(again, block, "there is one form");
        }
        assert_eq!(ipld::decode(codec, &again).ok().as_ref(), Some(value), "and decodes to the same");
        for other in [Codec::DagJson, Codec::DagCbor, Codec::DagPb] {
            if let Ok(block) = ipld::encode(other, value) {
                let back = ipld::decode(other, &block);
                // Links of a node are sorted by name, so only the other two give the value itself back.
                assert!(
                    back.as_ref().is_ok_and(|back| other == Codec::DagPb || back == value),
                    "{other}: {back:?}"
                );
            }
        }
    }
    answer(&value.map(|value| (value.kind(), rough(input.len())))) ^ answer(&links).rotate_left(1)
}

fn dag_cbor(input: &[u8]) -> u64 {
    value(Codec::DagCbor, input, true)
}

fn dag_json(input: &[u8]) -> u64 {
    value(Codec::DagJson, input, false)
}

const VALUES: [&str; 6] = [
    r#"{"z":1,"aa":[1,-1,1.5,null,true,"s\u0001\b\f\n é 😀"],"b":{"/":{"bytes":"AQID"}},"l":{"/":"bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"}}"#,
    "[18446744073709551615,-18446744073709551616,0,-1,1e300,-0.0]",
    r#"{"Data":{"/":{"bytes":"CAE"}},"Links":[{"Hash":{"/":"bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"},"Name":"a","Tsize":6}]}"#,
    "[[[[[[[[{}]]]]]]]]",
    r#""\ud83d\ude00""#,
    "null",
];

fn dag_json_seeds() -> Vec<Vec<u8>> {
    VALUES.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn dag_cbor_seeds() -> Vec<Vec<u8>> {
    let decode = |text: &str| ipld::decode(Codec::DagJson, &Bytes::copy_from_slice(text.as_bytes()));
    let encode =
        |text: &&str| ipld::encode(Codec::DagCbor, &decode(text).expect("a value")).expect("a block");
    let mut seeds: Vec<Vec<u8>> = VALUES.iter().map(|text| encode(text).to_vec()).collect();
    // As many zeros as a block has room for.
    let mut zeros = vec![0x9a, 0x00, 0x1f, 0xff, 0xfb];
    zeros.resize(btfs_storage::MAX_BLOCK, 0);
    seeds.push(zeros);
    seeds
}

fn path(input: &[u8]) -> u64 {
    let blocks = Blocks::cut(input);
    let Some((text, rest)) = blocks.0.split_first() else { return 0 };
    let Ok(text) = std::str::from_utf8(text) else { return 1 };
    let source = Blocks::of(rest.to_vec());
    let mut answers = 0;
    for (turn, codec) in [hash::DAG_CBOR, hash::DAG_JSON, hash::DAG_PB, hash::RAW].into_iter().enumerate() {
        let root = hash::cid_v1(codec, text.as_bytes());
        for (way, start) in [Start::Files, Start::Data].into_iter().enumerate() {
            let found = ipld::resolve(&source, &root, text, start);
            if let Ok(at) = &found {
                assert!(
                    ipld::get(&source, at).is_ok() || at.remainder.is_empty(),
                    "what is found can be had"
                );
            }
            let shape = found.map(|at| (rough(at.remainder.len()), at.cid.codec()));
            answers ^= answer(&shape).rotate_left((turn * 2 + way) as u32);
        }
    }
    answers
}

fn path_seeds() -> Vec<Vec<u8>> {
    let texts = ["a/b/0", "Links/0/Hash/x", "", "l/l/l", "aa/5/", "0/0/0"];
    let blocks = || {
        dag_cbor_seeds()
            .into_iter()
            .filter(|block| block.len() < 1000)
            .chain(dag_json_seeds())
            .map(Bytes::from)
    };
    texts
        .iter()
        .map(|text| Blocks::join([Bytes::from_static(text.as_bytes())].into_iter().chain(blocks())))
        .collect()
}

// --- CAR ---

fn car(input: &[u8]) -> u64 {
    let outcome = CarReader::new(input).and_then(|mut reader| {
        let mut blocks = 0;
        for block in reader.by_ref() {
            let (cid, data) = block?;
            assert!(hash::verify(&cid, &data).is_ok(), "only blocks that match leave the reader");
            blocks += 1;
        }
        assert!(reader.offset() <= input.len() as u64);
        Ok((reader.header().version, rough(reader.header().roots.len()), rough(blocks)))
    });
    answer(&outcome)
}

fn car_seeds() -> Vec<Vec<u8>> {
    let contents = [&b""[..], b"one", b"two", &[7; 300]];
    let blocks: Vec<(Cid, &[u8])> =
        contents.iter().map(|data| (hash::cid_v1(hash::RAW, data), *data)).collect();
    let mut writer = CarWriter::new(Vec::new(), &[blocks[1].0, blocks[2].0]).expect("a vector takes all");
    for (cid, data) in &blocks {
        writer.put(cid, data).expect("a vector takes all");
    }
    let first = writer.finish().expect("a vector takes all");
    let mut second = b"\x0a\xa1gversion\x02".to_vec();
    second.extend([0x80]);
    second.extend([0; 15]);
    for number in [60, first.len() as u64, 60 + first.len() as u64 + 4] {
        second.extend(number.to_le_bytes());
    }
    second.extend([0; 9]);
    second.extend(&first);
    second.extend(b"\0\0\0\0an index");
    let empty = CarWriter::new(Vec::new(), &[]).and_then(CarWriter::finish).expect("a vector takes all");
    vec![first, second, empty]
}

/// Puts the right digest into every section with a CIDv1 of SHA2-256, as far as the lengths make sense.
fn mend_car(input: &mut [u8]) {
    use sha2::{Digest, Sha256};
    const HEAD: [u8; 3] = [0x01, 0x55, 0x12];
    let mut at = 0;
    while let Some((length, used)) = input.get(at..).and_then(short_varint) {
        let start = at + used;
        let Some(section) = input.get_mut(start..start + length) else { return };
        if let Some((head, data)) = section.split_first_chunk_mut::<36>()
            && head[..3] == HEAD
        {
            head[4..].copy_from_slice(&Sha256::digest(data));
        }
        at = start + length;
    }
}

/// A varint of up to three bytes, and its length.
fn short_varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(3).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * at);
        if *byte < 0x80 {
            return Some((value, at + 1));
        }
    }
    None
}

// --- layouts, lists and records ---

fn layout(input: &[u8]) -> u64 {
    let list = BlockList::decode(input);
    if let Ok(list) = &list {
        assert_eq!(BlockList::decode(&list.encode()).as_ref(), Ok(list), "what decodes encodes again");
    }
    let blocks = Blocks::cut(input);
    let root = blocks.0.first().map(|first| hash::cid_v1(hash::DAG_CBOR, first));
    let loaded = root.map(|root| {
        // The root answers for its own CID, any page for the others.
        let source = Rooted { root, blocks };
        Layout::load(&root, &source).map(|layout| (layout.k(), layout.m(), rough(layout.stripes().len())))
    });
    let loaded = loaded.map_or(0, |loaded| answer(&loaded));
    loaded ^ answer(&list.map(|list| rough(list.entries().len()))).rotate_left(1)
}

struct Rooted {
    root: Cid,
    blocks: Blocks,
}

impl BlockSource for Rooted {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        if *cid == self.root {
            return Ok(self.blocks.0.first().cloned());
        }
        Ok(self.blocks.0.get(1..).map(|pages| Blocks::of(pages.to_vec())).and_then(|pages| pages.pick(cid)))
    }
    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.get(cid)?.is_some())
    }
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        Ok(self.get(cid)?.map(|block| block.len() as u64))
    }
}

/// Blocks by CID.
#[derive(Default)]
struct Kept(Mutex<BTreeMap<Cid, Bytes>>);

impl BlockSource for Kept {
    fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        Ok(self.0.lock().expect("no panic holds it").get(cid).cloned())
    }
    fn has(&self, cid: &Cid) -> Result<bool, StoreError> {
        Ok(self.get(cid)?.is_some())
    }
    fn block_size(&self, cid: &Cid) -> Result<Option<u64>, StoreError> {
        Ok(self.get(cid)?.map(|block| block.len() as u64))
    }
}

impl BlockSink for &Kept {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        self.0.lock().expect("no panic holds it").insert(*cid, data);
        Ok(())
    }
}

fn layout_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (count, k, m) in [(1usize, 2, 2), (5, 2, 3), (12, 4, 2)] {
        let kept = Kept::default();
        let list: Vec<(Cid, u64)> = (0..count)
            .map(|number| {
                let data = Bytes::from(vec![number as u8; 300_000 + number]);
                let cid = hash::cid_v1(hash::RAW, &data);
                (&kept).put(&cid, data.clone()).expect("a map takes all");
                (cid, data.len() as u64)
            })
            .collect();
        let plan = erasure::plan(list.clone(), k, m).expect("a plan");
        let layout = erasure::encode(&kept, &list[0].0, &plan, &mut &kept, &mut |_| {}).expect("a layout");
        let own =
            layout.own_blocks().iter().map(|(cid, _)| kept.get(cid).expect("a map").expect("its block"));
        seeds.push(Blocks::join(own));
        seeds.push(BlockList::from_blocks(list).expect("a list").encode());
    }
    seeds
}

fn state(input: &[u8]) -> u64 {
    answer::<_, String>(&Ok(decoders::state_records(input)))
}

fn state_seeds() -> Vec<Vec<u8>> {
    decoders::state_examples()
}

// --- sealed files ---

/// A key that everybody knows.
const KEY: [u8; SealKey::LEN] = [42; SealKey::LEN];

fn sealed(input: &[u8]) -> u64 {
    let size = input.len() as u64;
    let part = |range: std::ops::Range<u64>| input[range.start as usize..range.end as usize].to_vec();
    let outcome = last_segment(size).and_then(|last| {
        let key = SealKey::from_bytes(KEY);
        let unsealer = Unsealer::new(&key, size, &input[..HEADER], part(last))?;
        let mut content = 0;
        for segment in unsealer.segments(0, u64::MAX) {
            content += unsealer.open(segment.index, part(segment.sealed))?[segment.wanted].len() as u64;
        }
        assert_eq!(content, unsealer.size());
        Ok(rough(content as usize))
    });
    let text = String::from_utf8_lossy(input)
        .parse::<btfs_storage::sealed::Link>()
        .map(|link| link.reference.len() > 9);
    answer(&outcome) ^ answer(&text).rotate_left(1)
}

fn sealed_seeds() -> Vec<Vec<u8>> {
    let seal = |content: &[u8]| {
        let mut sealed = Vec::new();
        let mut sealer =
            Sealer::new(content, &SealKey::from_bytes(KEY)).expect("the system has random bytes");
        sealer.read_to_end(&mut sealed).expect("a slice is read");
        sealed
    };
    let link = format!(
        "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e#{}",
        *SealKey::from_bytes(KEY).reveal()
    );
    vec![seal(b""), seal(b"content"), seal(&[1; 65_536]), seal(&[2; 65_537]), link.into_bytes()]
}
