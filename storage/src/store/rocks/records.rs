//! What a database records besides the bytes of blocks.

use arrayvec::ArrayVec;
use rocksdb::MergeOperands;

use crate::Class;

/// What is known of a block beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Meta {
    pub size: u32,
    pub class: Class,
    /// Damaged and put aside: counts as absent, but still as space.
    pub quarantined: bool,
    /// The stamp: the generation in which the block was last put, hit or relied upon; 0 stands for never. It counts
    /// only while the process lives that wrote it (see [`super::super::lease`]).
    pub generation: u64,
}

/// The bit of a record's first byte that one of an older build has not: it began with the size in four bytes, of which
/// blocks need at most three.
const SHORT: u8 = 0x80;
/// The bit that says that a block is put aside.
const ASIDE: u8 = 0x40;
/// Where in the first byte the number of bytes of the size is; the class is in the lowest bits.
const SIZE_LEN: u8 = 4;
/// Bits of either.
const TWO_BITS: u8 = 0b11;
/// Bits that are not set, until a later build gives them a meaning.
const UNUSED: u8 = 0b1100;
/// Most bytes of a record: the first, the size, and the generation.
const MOST: usize = 1 + TWO_BITS as usize + size_of::<u64>();
/// Bytes of an older build's record before the generation: size, class, and whether it is put aside.
const OLDER_HEAD: usize = 6;

impl Meta {
    /// A byte for flags, class and the length of the size, then size and generation, both without their leading zeros:
    /// small numbers, and as many records as there are blocks.
    ///
    /// # Panics
    /// If the size takes more than three bytes: no block is that large.
    pub fn encode(self) -> ArrayVec<u8, MOST> {
        let (size, generation) = (u64::from(self.size).to_be_bytes(), self.generation.to_be_bytes());
        let (size, generation) = (short(&size), short(&generation));
        assert!(size.len() <= usize::from(TWO_BITS), "a block of {} bytes", self.size);
        let aside = if self.quarantined { ASIDE } else { 0 };
        let first = SHORT | aside | (size.len() as u8) << SIZE_LEN | self.class.index() as u8;
        let mut out = ArrayVec::new();
        for part in [&[first], size, generation] {
            out.try_extend_from_slice(part).expect("there is room for the longest record");
        }
        out
    }

    /// Reads a record, an older build's too.
    pub fn decode(bytes: &[u8]) -> Option<Meta> {
        let first = *bytes.first()?;
        if first & SHORT == 0 {
            return Self::decode_older(bytes);
        }
        if first & UNUSED != 0 {
            return None;
        }
        let (size, generation) = bytes[1..].split_at_checked(usize::from(first >> SIZE_LEN & TWO_BITS))?;
        Some(Meta {
            size: u32::try_from(long(size)?).ok()?,
            class: Class::from_index(first & TWO_BITS)?,
            quarantined: first & ASIDE != 0,
            generation: long(generation)?,
        })
    }

    fn decode_older(bytes: &[u8]) -> Option<Meta> {
        let ([0, b, c, d, class, flags @ (0 | 1)], stamp) = bytes.split_first_chunk::<OLDER_HEAD>()? else {
            return None;
        };
        Some(Meta {
            size: u32::from_be_bytes([0, *b, *c, *d]),
            class: Class::from_index(*class)?,
            quarantined: *flags == 1,
            generation: long(stamp)?,
        })
    }
}

/// The big-endian bytes of a number without leading zeros.
fn short(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

/// The number of big-endian bytes, at most eight.
fn long(bytes: &[u8]) -> Option<u64> {
    let mut number = [0; size_of::<u64>()];
    let at = number.len().checked_sub(bytes.len())?;
    number[at..].copy_from_slice(bytes);
    Some(u64::from_be_bytes(number))
}

/// A running total. Changed by merged deltas, so that a batch lost in a crash takes its share of the total along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Counter {
    /// Bytes of stored blocks of a class.
    Bytes(Class),
    /// Number of stored blocks of a class.
    Blocks(Class),
    /// Number of quarantined blocks.
    Quarantined,
}

impl Counter {
    pub(super) fn key(self) -> [u8; 2] {
        match self {
            Counter::Bytes(class) => [b'b', class.index() as u8],
            Counter::Blocks(class) => [b'n', class.index() as u8],
            Counter::Quarantined => [b'q', 0],
        }
    }
}

/// Adds up little-endian signed deltas; a malformed operand fails the read instead of miscounting.
pub(super) fn sum(_key: &[u8], base: Option<&[u8]>, deltas: &MergeOperands) -> Option<Vec<u8>> {
    let mut total = 0i64;
    for operand in base.into_iter().chain(deltas) {
        total = total.checked_add(i64::from_le_bytes(operand.try_into().ok()?))?;
    }
    Some(total.to_le_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_those_of_blocks_of_4_kib_are_short() {
        let sizes = [0, 1, 255, 256, 4096, 1 << 20, (1 << 24) - 1];
        let generations = [0, 1, 300, u64::MAX];
        for (size, generation) in sizes.iter().flat_map(|size| generations.map(|stamp| (*size, stamp))) {
            for class in Class::ALL {
                for quarantined in [false, true] {
                    let meta = Meta { size, class, quarantined, generation };
                    assert_eq!(Meta::decode(&meta.encode()), Some(meta));
                }
            }
        }
        let meta = Meta { size: 4096, class: Class::Own, quarantined: false, generation: 7 };
        assert_eq!(meta.encode().len(), 4);
    }

    #[test]
    fn records_of_an_older_build_are_read_and_nonsense_is_refused() {
        let older = [0, 0, 0x10, 0, Class::Hosted.index() as u8, 1, 1, 44];
        let meta = Meta { size: 4096, class: Class::Hosted, quarantined: true, generation: 300 };
        assert_eq!(Meta::decode(&older), Some(meta));
        assert_eq!(Meta::decode(&older[..OLDER_HEAD]).map(|meta| meta.generation), Some(0));
        let nonsense: [&[u8]; 8] = [
            &[],
            &[0, 0, 1],
            &[0, 0, 0x10, 0, 0, 2],
            &[0, 0, 0x10, 0, 9, 0],
            &[1, 0, 0x10, 0, 0, 0],
            &[SHORT | 3 << SIZE_LEN, 1, 2],
            &[SHORT | 1 << SIZE_LEN | 4, 1, 2],
            &[SHORT, 1, 2, 3, 4, 5, 6, 7, 8, 9],
        ];
        assert!(nonsense.iter().all(|bytes| Meta::decode(bytes).is_none()));
    }
}
