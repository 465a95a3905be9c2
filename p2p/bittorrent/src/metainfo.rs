//! Metainfo: the `info` dictionary of a v1 or hybrid torrent and the `.torrent` file around it (BEP 3, 12, 27, 47, 52).
//!
//! Everything here came from a stranger, so [`Info::parse`] checks what later code relies on: paths are plain and distinct,
//! lengths add up without overflow, and there is exactly one hash per piece.

use std::collections::{BTreeMap, HashSet};

use btfs_storage::hash;
use bytes::Bytes;

use crate::bencode::{self, BencodeError, Dict, Owned, Value};
use crate::infohash::InfoHash;
use crate::merkle;

/// Largest `info` dictionary: it is stored as one block, and blocks end at 2 MiB. Enough for about 100,000 pieces.
pub const MAX_INFO: usize = btfs_storage::MAX_BLOCK;
/// Largest `.torrent` file: the info dictionary plus trackers and hybrid piece layers.
pub const MAX_TORRENT_FILE: usize = 16 << 20;
/// Largest piece. A piece is assembled in memory; torrents in the wild stop at 16 to 32 MiB.
pub const MAX_PIECE_LENGTH: u32 = 64 << 20;
/// Smallest piece: below this, hashes outweigh data, and no client makes such torrents.
pub const MIN_PIECE_LENGTH: u32 = 1 << 10;
/// Total size cap (1 PiB): keeps every sum far from overflow.
pub const MAX_TOTAL: u64 = 1 << 50;
/// Directories deep that a path may go.
const MAX_PATH_DEPTH: usize = 64;
/// Bytes of one path component; file systems stop at 255.
const MAX_COMPONENT: usize = 255;
/// Tracker URLs kept of one file.
const MAX_TRACKERS: usize = 64;

/// Why bytes are not a torrent that this node can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetainfoError {
    /// Not bencode.
    #[error("not a torrent: {0}")]
    Bencode(#[from] BencodeError),
    /// Larger than the cap for its kind.
    #[error("{what} of {size} bytes is larger than the {cap} that this node accepts")]
    TooLarge {
        /// "torrent file" or "info dictionary".
        what: &'static str,
        /// Bytes offered.
        size: usize,
        /// Bytes accepted.
        cap: usize,
    },
    /// A field that must be there is not, or has another type.
    #[error("torrent has no usable {0:?}")]
    Missing(&'static str),
    /// A v2-only torrent.
    #[error("this torrent is BitTorrent v2 only; this version reads v1 and hybrid torrents")]
    V2Only,
    /// A field's value breaks a rule.
    #[error("torrent is malformed: {0}")]
    Invalid(String),
}

/// What an entry of the file list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileKind {
    /// Content.
    Regular,
    /// Zeros that align the next file (BEP 47); not part of the DAG.
    Pad,
    /// A symbolic link (BEP 47); the path it points to, from the torrent's root.
    Symlink(Vec<String>),
}

/// One entry of the file list, in torrent order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Components below the torrent's root; empty for a single-file torrent.
    pub path: Vec<String>,
    /// Bytes.
    pub length: u64,
    /// Content, padding or link.
    pub kind: FileKind,
}

/// A v1 `info` dictionary, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// File or directory name.
    pub name: String,
    /// Bytes per piece (the last may be shorter).
    pub piece_length: u32,
    /// Files in order; one with an empty path if `!multi_file`.
    pub files: Vec<FileEntry>,
    /// The torrent is a directory, even with one file.
    pub multi_file: bool,
    /// BEP 27: peers come from the trackers alone.
    pub private: bool,
    /// Sum of all lengths, pads included.
    pub total: u64,
    pieces: Bytes,
    raw: Bytes,
    hash: InfoHash,
    hash_v2: Option<[u8; 32]>,
}

impl Info {
    /// Parses and checks the exact bytes of an `info` dictionary.
    pub fn parse(raw: &[u8]) -> Result<Info, MetainfoError> {
        if raw.len() > MAX_INFO {
            return Err(MetainfoError::TooLarge { what: "info dictionary", size: raw.len(), cap: MAX_INFO });
        }
        let raw = Bytes::copy_from_slice(raw);
        let value = bencode::parse(&raw)?;
        let dict = value.as_dict().ok_or(MetainfoError::Missing("info"))?;
        let Some(pieces) = dict.bytes("pieces") else {
            return Err(if dict.get("meta version").is_some() {
                MetainfoError::V2Only
            } else {
                MetainfoError::Missing("pieces")
            });
        };
        let piece_length = dict.int("piece length").ok_or(MetainfoError::Missing("piece length"))?;
        let piece_length =
            u32::try_from(piece_length).ok().filter(|n| (MIN_PIECE_LENGTH..=MAX_PIECE_LENGTH).contains(n));
        let piece_length = piece_length.ok_or_else(|| {
            MetainfoError::Invalid(format!(
                "piece length is not between {MIN_PIECE_LENGTH} and {MAX_PIECE_LENGTH} bytes"
            ))
        })?;
        let name = component(text(dict, "name").ok_or(MetainfoError::Missing("name"))?)?;
        let (files, multi_file) = match dict.list("files") {
            Some(list) => (parse_files(list)?, true),
            None => {
                let length = length_of(dict)?;
                (vec![FileEntry { path: vec![], length, kind: FileKind::Regular }], false)
            }
        };
        let total =
            files.iter().try_fold(0u64, |sum, f| sum.checked_add(f.length).filter(|s| *s <= MAX_TOTAL));
        let total = total
            .ok_or_else(|| MetainfoError::Invalid(format!("files add up to more than {MAX_TOTAL} bytes")))?;
        let expected = total.div_ceil(u64::from(piece_length)) * 20;
        if pieces.len() as u64 != expected {
            let got = pieces.len();
            return Err(MetainfoError::Invalid(format!(
                "{got} bytes of piece hashes where {total} bytes of files need {expected}"
            )));
        }
        Ok(Info {
            name,
            piece_length,
            files,
            multi_file,
            private: dict.int("private") == Some(1),
            total,
            pieces: raw.slice_ref(pieces),
            hash: InfoHash::of(&raw),
            hash_v2: is_hybrid(dict).then(|| hash::sha256(&raw)),
            raw: raw.clone(),
        })
    }

    /// Makes the dictionary for `files` with their piece hashes (20 bytes each, in order) and checks it like a foreign one.
    pub fn build(
        name: &str,
        piece_length: u32,
        files: &[FileEntry],
        multi_file: bool,
        pieces: &[u8],
    ) -> Result<Info, MetainfoError> {
        Info::parse(&Owned::Dict(encode_v1(name, piece_length, files, multi_file, pieces)?).encode())
    }

    /// [`build`](Self::build) of a hybrid torrent: a v1 and a v2 torrent (BEP 52) in one dictionary. `roots` are the
    /// pieces roots of `files`, one each: `None` for pads, links and empty files. Every file that has one must begin at
    /// a piece, by pads before it.
    pub fn build_hybrid(
        name: &str,
        piece_length: u32,
        files: &[FileEntry],
        multi_file: bool,
        pieces: &[u8],
        roots: &[Option<merkle::Hash>],
    ) -> Result<Info, MetainfoError> {
        let mut dict = encode_v1(name, piece_length, files, multi_file, pieces)?;
        dict.insert(b"meta version".to_vec(), Owned::Int(2));
        dict.insert(b"file tree".to_vec(), file_tree(name, files, multi_file, roots)?);
        Info::parse(&Owned::Dict(dict).encode())
    }

    /// The v1 infohash.
    pub fn hash(&self) -> InfoHash {
        self.hash
    }

    /// The v2 infohash of a hybrid: SHA-256 of the dictionary. What it says of files beside v1 is not looked at.
    pub fn hash_v2(&self) -> Option<[u8; 32]> {
        self.hash_v2
    }

    /// The exact bytes that the infohash is over.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Number of pieces.
    pub fn piece_count(&self) -> u32 {
        (self.pieces.len() / 20) as u32 // at most MAX_INFO / 20
    }

    /// SHA-1 of piece `index`. Panics beyond [`Info::piece_count`].
    pub fn piece_hash(&self, index: u32) -> [u8; 20] {
        let at = index as usize * 20;
        self.pieces[at..at + 20].try_into().expect("20 bytes")
    }
}

/// A `.torrent` file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metainfo {
    /// The info dictionary.
    pub info: Info,
    /// Tracker URLs: `announce` first, then the tiers of BEP 12, without repeats.
    pub trackers: Vec<String>,
}

impl Metainfo {
    /// Parses a `.torrent` file.
    pub fn parse(bytes: &[u8]) -> Result<Metainfo, MetainfoError> {
        if bytes.len() > MAX_TORRENT_FILE {
            return Err(MetainfoError::TooLarge {
                what: "torrent file",
                size: bytes.len(),
                cap: MAX_TORRENT_FILE,
            });
        }
        let value = bencode::parse(bytes)?;
        let top = value.as_dict().ok_or(MetainfoError::Missing("info"))?;
        let info = Info::parse(top.dict("info").ok_or(MetainfoError::Missing("info"))?.raw())?;
        let mut trackers: Vec<String> = Vec::new();
        let tiers = top.list("announce-list").unwrap_or_default().iter().filter_map(Value::as_list).flatten();
        for url in top.get("announce").into_iter().chain(tiers).filter_map(Value::as_bytes) {
            let Ok(url) = std::str::from_utf8(url) else { continue };
            if trackers.len() < MAX_TRACKERS && !url.is_empty() && !trackers.iter().any(|t| t == url) {
                trackers.push(url.to_owned());
            }
        }
        Ok(Metainfo { info, trackers })
    }

    /// The bytes of a `.torrent` file; each tracker is a tier of its own.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_with(None)
    }

    /// [`encode`](Self::encode) with the piece layers that a hybrid needs to be taken for one: of each file longer than a
    /// piece, by its root.
    pub fn encode_with(&self, layers: Option<&BTreeMap<merkle::Hash, Vec<merkle::Hash>>>) -> Vec<u8> {
        let mut top = BTreeMap::new();
        if let Some(layers) = layers {
            let layer = |hashes: &Vec<merkle::Hash>| Owned::Bytes(hashes.concat());
            let layers = layers.iter().map(|(root, hashes)| (root.to_vec(), layer(hashes))).collect();
            top.insert(b"piece layers".to_vec(), Owned::Dict(layers));
        }
        top.insert(b"info".to_vec(), Owned::Raw(self.info.raw.to_vec()));
        top.insert(b"created by".to_vec(), Owned::text(concat!("btfs ", env!("CARGO_PKG_VERSION"))));
        if let Some(first) = self.trackers.first() {
            top.insert(b"announce".to_vec(), Owned::text(first));
            let tiers = self.trackers.iter().map(|t| Owned::List(vec![Owned::text(t)])).collect();
            top.insert(b"announce-list".to_vec(), Owned::List(tiers));
        }
        Owned::Dict(top).encode()
    }
}

fn text<'a>(dict: &Dict<'a>, key: &str) -> Option<&'a [u8]> {
    // Before UTF-8 was the rule, clients put the UTF-8 form beside the local one.
    dict.bytes(&format!("{key}.utf-8")).or_else(|| dict.bytes(key))
}

fn component(bytes: &[u8]) -> Result<String, MetainfoError> {
    let name = String::from_utf8_lossy(bytes).into_owned();
    let plain =
        !matches!(&*name, "" | "." | "..") && !name.contains(['/', '\0']) && name.len() <= MAX_COMPONENT;
    if plain { Ok(name) } else { Err(MetainfoError::Invalid(format!("{name:.80?} cannot be a file name"))) }
}

fn path(list: &[Value<'_>]) -> Result<Vec<String>, MetainfoError> {
    if list.is_empty() || list.len() > MAX_PATH_DEPTH {
        return Err(MetainfoError::Invalid(format!("a path has {} components", list.len())));
    }
    list.iter().map(|c| component(c.as_bytes().ok_or(MetainfoError::Missing("path"))?)).collect()
}

fn length_of(dict: &Dict<'_>) -> Result<u64, MetainfoError> {
    let length = dict.int("length").ok_or(MetainfoError::Missing("length"))?;
    u64::try_from(length).map_err(|_| MetainfoError::Invalid(format!("a file has length {length}")))
}

fn parse_files(list: &[Value<'_>]) -> Result<Vec<FileEntry>, MetainfoError> {
    let mut files = Vec::with_capacity(list.len());
    for entry in list {
        files.push(parse_file(entry.as_dict().ok_or(MetainfoError::Missing("files"))?)?);
    }
    check_paths(&files)?;
    Ok(files)
}

fn parse_file(dict: &Dict<'_>) -> Result<FileEntry, MetainfoError> {
    let attributes = dict.bytes("attr").unwrap_or_default();
    if attributes.contains(&b'p') {
        // The path of a pad file means nothing (usually `.pad/SIZE`) and may repeat.
        return Ok(FileEntry { path: vec![], length: length_of(dict)?, kind: FileKind::Pad });
    }
    let path_list =
        dict.list("path.utf-8").or_else(|| dict.list("path")).ok_or(MetainfoError::Missing("path"))?;
    let entry_path = path(path_list)?;
    if attributes.contains(&b'l') {
        let target = path(dict.list("symlink path").ok_or(MetainfoError::Missing("symlink path"))?)?;
        return Ok(FileEntry { path: entry_path, length: 0, kind: FileKind::Symlink(target) });
    }
    Ok(FileEntry { path: entry_path, length: length_of(dict)?, kind: FileKind::Regular })
}

/// No path twice, and no path below another file's path.
fn check_paths(files: &[FileEntry]) -> Result<(), MetainfoError> {
    let real = || files.iter().filter(|f| f.kind != FileKind::Pad);
    let mut leaves: HashSet<&[String]> = HashSet::new();
    for file in real() {
        if !leaves.insert(&file.path) {
            return Err(MetainfoError::Invalid(format!("the path {:?} is there twice", file.path.join("/"))));
        }
    }
    for file in real() {
        if (1..file.path.len()).any(|n| leaves.contains(&file.path[..n])) {
            return Err(MetainfoError::Invalid(format!("{:?} lies below a file", file.path.join("/"))));
        }
    }
    Ok(())
}

/// Whether an `info` dictionary is that of a v2 torrent, too.
fn is_hybrid(dict: &Dict<'_>) -> bool {
    dict.int("meta version") == Some(2) && dict.dict("file tree").is_some()
}

/// The keys of v1.
fn encode_v1(
    name: &str,
    piece_length: u32,
    files: &[FileEntry],
    multi_file: bool,
    pieces: &[u8],
) -> Result<BTreeMap<Vec<u8>, Owned>, MetainfoError> {
    let mut dict = BTreeMap::new();
    let mut put = |key: &str, value: Owned| dict.insert(key.as_bytes().to_vec(), value);
    put("name", Owned::text(name));
    put("piece length", Owned::Int(i64::from(piece_length)));
    put("pieces", Owned::Bytes(pieces.to_vec()));
    if multi_file {
        put("files", Owned::List(files.iter().map(encode_file).collect()));
    } else {
        let file = files.first().ok_or(MetainfoError::Missing("length"))?;
        put("length", Owned::Int(file.length.min(MAX_TOTAL + 1) as i64));
    }
    Ok(dict)
}

/// The files as BEP 52 has them: nested dictionaries by name, what is known of a file under the empty name.
fn file_tree(
    name: &str,
    files: &[FileEntry],
    multi_file: bool,
    roots: &[Option<merkle::Hash>],
) -> Result<Owned, MetainfoError> {
    let entries = || files.iter().filter(|file| file.kind != FileKind::Pad);
    // Dictionaries are sorted, and both lists must go in the same order.
    if !entries().is_sorted_by(|a, b| a.path < b.path) {
        return Err(MetainfoError::Invalid("files of a hybrid torrent that are not sorted by path".into()));
    }
    let mut tree = BTreeMap::new();
    for (file, root) in files.iter().zip(roots).filter(|(file, _)| file.kind != FileKind::Pad) {
        let length = Owned::Int(file.length.min(MAX_TOTAL + 1) as i64);
        let mut known = BTreeMap::from([(b"length".to_vec(), length)]);
        if let Some(root) = root {
            known.insert(b"pieces root".to_vec(), Owned::Bytes(root.to_vec()));
        }
        if let FileKind::Symlink(target) = &file.kind {
            known.insert(b"attr".to_vec(), Owned::text("l"));
            known.insert(b"symlink path".to_vec(), text_list(target));
        }
        let alone = [name.to_owned()];
        let mut at = &mut tree;
        for part in if multi_file { file.path.as_slice() } else { &alone } {
            let below = at.entry(part.as_bytes().to_vec()).or_insert_with(|| Owned::Dict(BTreeMap::new()));
            let Owned::Dict(below) = below else {
                return Err(MetainfoError::Invalid(format!("{:?} lies below a file", file.path.join("/"))));
            };
            at = below;
        }
        at.insert(Vec::new(), Owned::Dict(known));
    }
    Ok(Owned::Dict(tree))
}

fn text_list(path: &[String]) -> Owned {
    Owned::List(path.iter().map(|part| Owned::text(part)).collect())
}

fn encode_file(file: &FileEntry) -> Owned {
    let length = Owned::Int(file.length.min(MAX_TOTAL + 1) as i64);
    match &file.kind {
        FileKind::Regular => Owned::dict([("length", length), ("path", text_list(&file.path))]),
        FileKind::Pad => {
            let name = Owned::List(vec![Owned::text(".pad"), Owned::text(&file.length.to_string())]);
            Owned::dict([("attr", Owned::text("p")), ("length", length), ("path", name)])
        }
        FileKind::Symlink(target) => Owned::dict([
            ("attr", Owned::text("l")),
            ("length", Owned::Int(0)),
            ("path", text_list(&file.path)),
            ("symlink path", text_list(target)),
        ]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(path: &str, length: u64) -> FileEntry {
        FileEntry { path: path.split('/').map(str::to_owned).collect(), length, kind: FileKind::Regular }
    }

    fn single(length: i64, piece: i64, hashes: usize, name: &str) -> Vec<u8> {
        Owned::dict([
            ("length", Owned::Int(length)),
            ("name", Owned::text(name)),
            ("piece length", Owned::Int(piece)),
            ("pieces", Owned::Bytes(vec![7; hashes * 20])),
        ])
        .encode()
    }

    #[test]
    fn a_single_file_reads_back() {
        let info = Info::parse(&single(40_000, 16_384, 3, "a.bin")).unwrap();
        assert_eq!((info.piece_count(), info.total, info.multi_file), (3, 40_000, false));
        assert_eq!(info.piece_hash(2), [7; 20]);
        let again = Info::build("a.bin", 16_384, &info.files, false, &[7; 60]).unwrap();
        assert_eq!(again.hash(), info.hash());
        let file = Metainfo { info, trackers: vec!["http://a/announce".into(), "http://b/announce".into()] };
        assert_eq!(Metainfo::parse(&file.encode()).unwrap(), file);
    }

    #[test]
    fn the_infohash_is_over_the_exact_bytes() {
        // Unsorted keys stay as they came.
        let raw = b"d4:name1:a6:lengthi0e12:piece lengthi16384e6:pieces0:e";
        let mut file = b"d4:info".to_vec();
        file.extend_from_slice(raw);
        file.push(b'e');
        let parsed = Metainfo::parse(&file).unwrap();
        assert_eq!(parsed.info.hash(), InfoHash::of(raw));
        assert_eq!(parsed.info.raw().as_ref(), raw);
    }

    #[test]
    fn malformed_info_is_refused() {
        let refused = |bytes: Vec<u8>| Info::parse(&bytes).expect_err("must be refused");
        for name in ["", ".", "..", "a/b", "a\0b", &"x".repeat(256)] {
            refused(single(0, 16_384, 0, name));
        }
        refused(single(40_000, 16_384, 2, "a"));
        refused(single(40_000, 16_384, 4, "a"));
        refused(single(-1, 16_384, 0, "a"));
        refused(single(1, 0, 1, "a"));
        refused(single(1, i64::from(MAX_PIECE_LENGTH) + 1, 1, "a"));
        refused(single(i64::MAX, 16_384, 1, "a"));
        assert_eq!(refused(b"d12:meta versioni2e4:name1:ae".to_vec()), MetainfoError::V2Only);
        assert!(matches!(refused(vec![b'd'; MAX_INFO + 1]), MetainfoError::TooLarge { .. }));
        for files in
            [vec![file("a", 0), file("a", 0)], vec![file("a", 0), file("a/b", 0)], vec![file("../a", 0)]]
        {
            assert!(Info::build("n", 16_384, &files, true, &[]).is_err());
        }
        assert!(Info::build("n", 16_384, &[file("a", u64::MAX), file("b", u64::MAX)], true, &[]).is_err());
    }

    #[test]
    fn pads_and_links_read_back() {
        let pad = FileEntry { path: vec![], length: 16_383, kind: FileKind::Pad };
        let link = FileEntry {
            path: vec!["l".into()],
            length: 0,
            kind: FileKind::Symlink(vec!["d".into(), "b".into()]),
        };
        let files = vec![file("a", 1), pad.clone(), file("d/b", 5), pad, link];
        let pieces = [1; 60];
        let info = Info::build("n", 16_384, &files, true, &pieces).unwrap();
        assert_eq!(info.files, files);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Info::parse(&bytes);
            let _ = Metainfo::parse(&bytes);
        }

        #[test]
        fn damaged_torrents_never_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let info = Info::build("n", 16_384, &[file("a", 1), file("d/b", 20_000)], true, &[0; 40]).unwrap();
            let mut bytes = Metainfo { info, trackers: vec!["http://t".into()] }.encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Metainfo::parse(&bytes);
        }
    }
}
