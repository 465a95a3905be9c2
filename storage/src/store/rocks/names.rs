//! What a block is stored under in the family of blocks: a name that is shorter than its key.
//!
//! A key stands in a database three times: in the tree of the metadata, in that of the blocks, and before the bytes in
//! the blob file. Of blocks of 4 KiB a hundredth of their space was for the last two. So there a block has a name: the
//! head of its key (code and length of the multihash, and the first bytes of the digest), which keeps names in the order
//! of keys but for those that share a head, and a tag.
//!
//! The tag is a hash of the whole key together with the repo's identity, which nobody else knows: blocks whose names are
//! the same cannot be made on purpose, however many digests somebody tries. By chance one of 10^11 stores of 10^9 blocks
//! has two of one name, far fewer than have damage that no checksum shows, and it looks the same: of the two blocks only
//! the one that came later is there, and it does not hash to the address of the other.
//!
//! A name does not give the key back; the bytes do ([`key_of`]).

use arrayvec::ArrayVec;

use super::super::MOST_KEY;
use crate::hash::{self, Function};

/// Bytes of a digest at the head of a name. There are 2^32 heads, so that few blocks share one; a table keeps what
/// neighbours have in common only once.
const HEAD: usize = 4;
/// Bytes of a tag.
const TAG: usize = 8;

/// A name.
pub(super) type Name = ArrayVec<u8, { MOST_KEY - hash::MAX_DIGEST + HEAD + TAG }>;

/// What a block may be stored under.
pub(super) enum Row<'k> {
    Name(Name),
    Key(&'k [u8]),
}

impl AsRef<[u8]> for Row<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Row::Name(name) => name,
            Row::Key(key) => key,
        }
    }
}

/// How blocks are named in one database.
#[derive(Clone, Copy)]
pub(super) struct Names {
    secret: [u8; 16],
    /// Whether an older build filled the database: it stored blocks under their keys.
    has_older: bool,
}

impl Names {
    pub fn new(secret: [u8; 16], has_older: bool) -> Names {
        Names { secret, has_older }
    }

    /// The name of a block.
    ///
    /// # Panics
    /// If the key is longer than that of any CID that can be here.
    pub fn of(&self, key: &[u8]) -> Name {
        let hashed: ArrayVec<u8, { 16 + MOST_KEY }> = joined(&self.secret, key);
        joined(head(key), &hash::sha256(&hashed)[..TAG])
    }

    /// Where a block may be besides under its name.
    pub fn older<'k>(&self, key: &'k [u8]) -> Option<&'k [u8]> {
        self.has_older.then_some(key)
    }
}

/// Two slices as one.
///
/// # Panics
/// If they are longer together than there is room for.
fn joined<const ROOM: usize>(first: &[u8], second: &[u8]) -> ArrayVec<u8, ROOM> {
    let mut whole = ArrayVec::new();
    for part in [first, second] {
        whole.try_extend_from_slice(part).expect("there is room for all that can be here");
    }
    whole
}

/// What a key and the name made of it have in common, and no other row begins with unless its digest begins the same.
pub(super) fn head(row: &[u8]) -> &[u8] {
    let Some(header) = header(row) else { return row };
    &row[..row.len().min(header + HEAD)]
}

/// Bytes of a multihash before its digest: two varints.
fn header(row: &[u8]) -> Option<usize> {
    let mut ends = row.iter().enumerate().filter(|(_, byte)| **byte < 0x80);
    ends.nth(1).map(|(last, _)| last + 1)
}

/// Whether a row is a name, and not the key of a block that an older build stored.
pub(super) fn is_name(row: &[u8]) -> bool {
    header(row).is_some_and(|header| row.len() == header + HEAD + TAG)
}

/// The key of the block that lies in a row: an older build's row itself, else by its bytes; `None` if they are not those of a
/// block of that name.
pub(super) fn key_of(row: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    if !is_name(row) {
        return header(row).map(|_| row.to_vec());
    }
    let (code, rest) = unsigned_varint::decode::u64(row).ok()?;
    let (len, _) = unsigned_varint::decode::u64(rest).ok()?;
    let hash = Function::by_code(code)?.multihash_of_length(data, usize::try_from(len).ok()?)?;
    let key = hash.to_bytes();
    key.starts_with(head(row)).then_some(key)
}

#[cfg(test)]
mod tests {
    use multihash::Multihash;

    use super::*;
    use crate::store::{Key, key};

    fn sample(number: u32) -> (Key, Vec<u8>) {
        let data = number.to_be_bytes().repeat(10);
        (key(&hash::cid_v1(hash::RAW, &data)), data)
    }

    #[test]
    fn names_are_short_differ_and_keep_the_order_of_heads() {
        let names = Names::new([7; 16], false);
        let mut keys: Vec<Key> = (0..10_000).map(|number| sample(number).0).collect();
        keys.sort();
        let named: Vec<Name> = keys.iter().map(|key| names.of(key)).collect();
        assert!(named.iter().all(|name| name.len() == 2 + HEAD + TAG));
        assert!(named.is_sorted(), "no two of these share a head");
        assert!(named.windows(2).all(|pair| pair[0] != pair[1]));
        let others = Names::new([8; 16], false);
        assert!(keys.iter().zip(&named).all(|(key, name)| others.of(key) != *name));
        assert!(keys.iter().zip(&named).all(|(key, name)| head(key) == head(name)));
    }

    #[test]
    fn keys_that_share_a_head_have_names_of_their_own() {
        let names = Names::new([7; 16], false);
        let (mut key, _) = sample(1);
        let name = names.of(&key);
        *key.last_mut().unwrap() ^= 1;
        assert_eq!(head(&key), head(&name));
        assert_ne!(names.of(&key), name);
    }

    #[test]
    fn bytes_give_the_key_of_either_row_and_nothing_of_a_foreign_one() {
        let names = Names::new([7; 16], true);
        let (key, data) = sample(1);
        assert_eq!(key_of(&names.of(&key), &data), Some(key.to_vec()));
        assert_eq!(key_of(&key, &data), Some(key.to_vec()));
        assert_eq!(names.older(&key), Some(key.as_slice()));
        assert_eq!(key_of(&key, &sample(2).1), Some(key.to_vec()), "rotten bytes do not hide it");
        assert_eq!(key_of(&names.of(&key), &sample(2).1), None);
        assert_eq!(key_of(&[], &data), None);
        assert_eq!(key_of(&[0xff; 20], &data), None);
        assert!(is_name(&names.of(&key)) && !is_name(&key));
        for name in ["sha2-512", "blake2b-256", "blake3"] {
            let hash = name.parse::<Function>().unwrap().multihash(&data);
            let short = Multihash::<64>::wrap(hash.code(), &hash.digest()[..20]).unwrap();
            for key in [hash.to_bytes(), short.to_bytes()] {
                assert_eq!(key_of(&names.of(&key), &data), Some(key), "{name}");
            }
        }
    }
}
