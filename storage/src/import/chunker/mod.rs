//! Where a file's bytes are cut into leaves.
//!
//! A [`Chunker`] is named as Kubo names it (`--chunker`), and cuts where Kubo cuts: `size-N`, `rabin`, `rabin-AVG`,
//! `rabin-MIN-AVG-MAX` and `buzhash`. `fastcdc`, `fastcdc-AVG` and `fastcdc-MIN-AVG-MAX` are this node's own: FastCDC
//! as its authors published it in 2020, normalisation level 1, no seed.
//!
//! Each cut depends on the bytes since the cut before it and on nothing else, so a chunker is a function from a
//! window to a length; [`Splitter`] slides that window over a stream and is all that an import sees.

mod buzhash;
mod rabin;
mod splitter;

use std::fmt;
use std::str::FromStr;

use fastcdc::v2020::{AVERAGE_MIN, FastCDC, MAXIMUM_MIN, MINIMUM_MAX, MINIMUM_MIN};

pub(super) use splitter::{Chunk, Splitter};

use crate::MAX_BLOCK;

/// Largest chunk in bytes: what a block may hold, less 256 for the wrapping of dag-pb leaves. Kubo's limit, too.
pub const MAX_CHUNK: usize = MAX_BLOCK - 256;

/// The average that a bare `rabin` or `fastcdc` has: 256 KiB, as in Kubo.
const DEFAULT_AVERAGE: u32 = 256 << 10;

/// Bounds of a chunk's length in bytes, by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Only a file's last chunk is shorter.
    pub min: u32,
    /// What lengths gather around.
    pub average: u32,
    /// No chunk is longer.
    pub max: u32,
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.min, self.average, self.max)
    }
}

/// A way to cut files. Parsed from and shown as the name that `--chunker` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunker {
    /// Every so many bytes.
    Size(u32),
    /// By Rabin fingerprints over 16 bytes.
    Rabin(Bounds),
    /// By a cyclic polynomial over 32 bytes, from 128 to 512 KiB.
    Buzhash,
    /// By the gear hash of FastCDC.
    FastCdc(Bounds),
}

/// A name that is no chunker, or one whose numbers cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is no chunker: {problem}; there are size-BYTES, rabin, rabin-AVG, rabin-MIN-AVG-MAX, buzhash, fastcdc, \
     fastcdc-AVG and fastcdc-MIN-AVG-MAX"
)]
pub struct ChunkerError {
    name: String,
    problem: &'static str,
}

impl Chunker {
    /// Bytes of the longest chunk it cuts.
    pub fn max(&self) -> usize {
        match self {
            Chunker::Size(size) => *size as usize,
            Chunker::Rabin(bounds) | Chunker::FastCdc(bounds) => bounds.max as usize,
            Chunker::Buzhash => buzhash::MAX,
        }
    }

    /// Length of the chunk that `window` starts with. The window holds [`max`](Self::max) bytes, or all that are left.
    fn cut(&self, window: &[u8]) -> usize {
        match self {
            Chunker::Size(size) => window.len().min(*size as usize),
            Chunker::Rabin(bounds) => rabin::cut(window, bounds),
            Chunker::Buzhash => buzhash::cut(window),
            Chunker::FastCdc(Bounds { min, average, max }) => {
                FastCDC::new(window, *min as usize, *average as usize, *max as usize).cut(0, window.len()).1
            }
        }
    }
}

impl fmt::Display for Chunker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Chunker::Size(size) => write!(f, "size-{size}"),
            Chunker::Rabin(bounds) => write!(f, "rabin-{bounds}"),
            Chunker::Buzhash => f.write_str("buzhash"),
            Chunker::FastCdc(bounds) => write!(f, "fastcdc-{bounds}"),
        }
    }
}

impl FromStr for Chunker {
    type Err = ChunkerError;

    fn from_str(name: &str) -> Result<Chunker, ChunkerError> {
        let refuse = |problem| ChunkerError { name: name.to_owned(), problem };
        let mut parts = name.split('-');
        let kind = parts.next().unwrap_or_default();
        let numbers: Result<Vec<u32>, _> = parts.map(str::parse).collect();
        let numbers =
            numbers.map_err(|_| refuse("after its name come numbers of bytes, separated by hyphens"))?;
        let chunker = match (kind, numbers.as_slice()) {
            ("size", [size]) => Chunker::Size(*size),
            ("buzhash", []) => Chunker::Buzhash,
            ("rabin", []) => Chunker::Rabin(rabin_around(DEFAULT_AVERAGE)),
            ("rabin", [average]) => Chunker::Rabin(rabin_around(*average)),
            ("rabin", [min, average, max]) => {
                Chunker::Rabin(Bounds { min: *min, average: *average, max: *max })
            }
            ("fastcdc", []) => Chunker::FastCdc(fastcdc_around(DEFAULT_AVERAGE)),
            ("fastcdc", [average]) => Chunker::FastCdc(fastcdc_around(*average)),
            ("fastcdc", [min, average, max]) => {
                Chunker::FastCdc(Bounds { min: *min, average: *average, max: *max })
            }
            ("size" | "buzhash" | "rabin" | "fastcdc", _) => {
                return Err(refuse("it takes other numbers than these"));
            }
            _ => return Err(refuse("that name is not known")),
        };
        chunker.check().map_err(refuse)?;
        Ok(chunker)
    }
}

/// Kubo's bounds around an average: a third and one and a half of it.
fn rabin_around(average: u32) -> Bounds {
    Bounds { min: average / 3, average, max: average.saturating_add(average / 2) }
}

/// The bounds of FastCDC's authors: a quarter and four times the average, the quarter made even.
fn fastcdc_around(average: u32) -> Bounds {
    Bounds { min: average / 8 * 2, average, max: average.saturating_mul(4) }
}

impl Chunker {
    /// The same, if its numbers make sense.
    pub(super) fn checked(self) -> Result<Chunker, ChunkerError> {
        match self.check() {
            Ok(()) => Ok(self),
            Err(problem) => Err(ChunkerError { name: self.to_string(), problem }),
        }
    }

    /// Whether its numbers make sense.
    fn check(&self) -> Result<(), &'static str> {
        if self.max() == 0 {
            return Err("a chunk of 0 bytes");
        }
        if self.max() > MAX_CHUNK {
            return Err("a chunk may have at most 2096896 bytes, which is what a block holds");
        }
        match self {
            Chunker::Rabin(bounds) | Chunker::FastCdc(bounds)
                if bounds.min >= bounds.average || bounds.average >= bounds.max =>
            {
                Err("the minimum must be below the average and the average below the maximum")
            }
            Chunker::Rabin(bounds) if (bounds.min as usize) < rabin::WINDOW => {
                Err("the minimum must be at least 16 bytes")
            }
            Chunker::FastCdc(Bounds { min, average, max }) => check_fastcdc(*min, *average, *max),
            _ => Ok(()),
        }
    }
}

/// What the algorithm's tables hold for.
fn check_fastcdc(min: u32, average: u32, max: u32) -> Result<(), &'static str> {
    if [min, average, max].iter().any(|bound| bound % 2 != 0) {
        return Err("fastcdc looks at two bytes at a time, so its numbers must be even");
    }
    let (min, average, max) = (min as usize, average as usize, max as usize);
    if !(MINIMUM_MIN..=MINIMUM_MAX).contains(&min) || average < AVERAGE_MIN || max < MAXIMUM_MIN {
        return Err(
            "fastcdc needs a minimum from 64 to 1048576, an average from 256 and a maximum from 1024",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::import::{Overrides, Profile};
    use crate::testing::Noise;

    #[test]
    fn names_are_read_back() {
        for (name, shown) in [
            ("size-1", "size-1"),
            ("size-2096896", "size-2096896"),
            ("rabin", "rabin-87381-262144-393216"),
            ("rabin-48", "rabin-16-48-72"),
            ("rabin-512-1024-2048", "rabin-512-1024-2048"),
            ("buzhash", "buzhash"),
            ("fastcdc", "fastcdc-65536-262144-1048576"),
            ("fastcdc-256", "fastcdc-64-256-1024"),
            ("fastcdc-131072-524288-2096896", "fastcdc-131072-524288-2096896"),
        ] {
            let chunker: Chunker = name.parse().unwrap();
            assert_eq!(chunker.to_string(), shown);
            assert_eq!(shown.parse(), Ok(chunker));
        }
    }

    #[test]
    fn impossible_names_are_refused() {
        for name in [
            "",
            "size",
            "size-0",
            "size--1",
            "size-2096897",
            "size-1-2",
            "size-99999999999999999999",
            "rabin-15-32-64",
            "rabin-64-32-128",
            "rabin-16-64-64",
            "rabin-16-64",
            "rabin-47",
            "rabin-2000000",
            "rabin-4294967295",
            "buzhash-7",
            "fastcdc-65-256-1024",
            "fastcdc-62-256-1024",
            "fastcdc-64-256-1022",
            "fastcdc-1048576",
            "cdc",
            "size-1048576 ",
        ] {
            let error = name.parse::<Chunker>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}` is no chunker")), "{error}");
        }
    }

    fn profile(name: &str) -> Profile {
        let chunker = Some(name.parse().unwrap());
        Profile::V1_2025.with(&Overrides { chunker, ..Overrides::default() }).unwrap()
    }

    /// Lengths that `name` cuts `reader` into.
    fn lengths(name: &str, mut reader: impl Read) -> Vec<usize> {
        let profile = profile(name);
        let mut splitter = Splitter::new(&profile, &mut reader, None);
        std::iter::from_fn(|| splitter.next().unwrap().map(|chunk| chunk.content.len())).collect()
    }

    /// What Kubo's own chunkers (boxo v0.43.0) cut the same bytes into.
    #[test]
    fn cuts_are_those_of_kubo() {
        let vectors: Vec<Vector> = serde_json::from_str(include_str!("vectors.json")).unwrap();
        assert!(vectors.len() >= 20);
        for vector in vectors {
            let cut = lengths(&vector.chunker, Noise::new(vector.seed).take(vector.size));
            assert_eq!(cut, vector.lengths, "{} of {} bytes", vector.chunker, vector.size);
        }
    }

    #[derive(serde::Deserialize)]
    struct Vector {
        chunker: String,
        size: u64,
        seed: u64,
        lengths: Vec<usize>,
    }

    #[test]
    fn fastcdc_cuts_do_not_move() {
        let cut = lengths("fastcdc-8192", Noise::new(5).take(100_000));
        assert_eq!(cut.iter().sum::<usize>(), 100_000);
        assert_eq!(cut, [11530, 13252, 10675, 2349, 15488, 10338, 11539, 7145, 8436, 9248]);
    }

    /// An insertion near the start moves few cuts: the point of cutting by content.
    #[test]
    fn cuts_return_after_an_insertion() {
        for name in ["rabin-4096", "buzhash", "fastcdc-4096"] {
            let mut bytes = Vec::new();
            Noise::new(9).take(8 << 20).read_to_end(&mut bytes).unwrap();
            let mut longer = bytes.clone();
            longer.splice(1000..1000, *b"inserted");
            let ends = |bytes: &[u8]| {
                let total = bytes.len();
                let mut at = 0;
                let ends = lengths(name, bytes).into_iter().map(move |len| {
                    at += len;
                    total - at
                });
                ends.collect::<std::collections::BTreeSet<usize>>()
            };
            let (before, after) = (ends(&bytes), ends(&longer));
            assert!(before.difference(&after).count() <= 6, "{name}: {} cuts", before.len());
        }
    }

    /// What is kept of a stream that repeats itself is little, and so is the memory it takes.
    #[test]
    fn small_blocks_hold_no_large_buffers() {
        for name in ["fastcdc-256", "rabin-48", "size-1000"] {
            let (profile, mut blocks) = (profile(name), std::collections::HashSet::new());
            for seed in 0..8 {
                let mut reader = Noise::new(seed).take(64).chain(std::io::repeat(0).take(1 << 20));
                let mut splitter = Splitter::new(&profile, &mut reader, None);
                while let Some(chunk) = splitter.next().unwrap() {
                    blocks.insert(chunk.block);
                }
            }
            assert!(blocks.len() >= 8, "{name}");
            for block in blocks {
                let len = block.len();
                let buffer = block.try_into_mut().expect("a buffer of its own");
                assert!(buffer.capacity() <= 8 * len, "{name}: {len} bytes of {}", buffer.capacity());
            }
        }
        // A stream that was expected to be longer.
        let default = Profile::V1_2025;
        let mut reader = &b"short"[..];
        let block = Splitter::new(&default, &mut reader, None).next().unwrap().unwrap().block;
        assert!(block.try_into_mut().expect("its own").capacity() < 1000);
    }

    #[test]
    fn numbers_that_cannot_be_make_no_profile() {
        let bounds = Bounds { min: 15, average: 20, max: 30 };
        for chunker in
            [Chunker::Size(0), Chunker::Size(u32::MAX), Chunker::Rabin(bounds), Chunker::FastCdc(bounds)]
        {
            let overrides = Overrides { chunker: Some(chunker), ..Overrides::default() };
            assert!(Profile::V1_2025.with(&overrides).is_err(), "{chunker}");
        }
    }

    /// However a stream hands its bytes out, the cuts are the same.
    #[test]
    fn cuts_do_not_depend_on_reads() {
        struct Dribble<R>(R, usize);
        impl<R: Read> Read for Dribble<R> {
            fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
                self.1 = self.1 * 7 % 10_007 + 1;
                let most = into.len().min(self.1);
                self.0.read(&mut into[..most])
            }
        }
        for name in ["size-1000", "rabin-2048", "buzhash", "fastcdc-2048"] {
            let whole = lengths(name, Noise::new(3).take(3_000_000));
            let pieces = lengths(name, Dribble(Noise::new(3).take(3_000_000), 1));
            assert_eq!(whole, pieces, "{name}");
        }
    }
}
