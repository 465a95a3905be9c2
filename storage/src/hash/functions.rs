//! The hash functions that blocks may be named by: those that Kubo takes.
//!
//! Source: names and codes are those of the multicodec table, as go-multihash spells them; which of them may name a
//! block, and that a digest has at least 160 bits, is the default list of `verifcid` in Boxo.
//!
//! BLAKE2 has a code for every length of its digest. BLAKE3 makes digests as long as they are asked for, of which a CID
//! here holds [`MAX_DIGEST`] bytes. A digest of any function may be cut short, down to [`MIN_DIGEST`] bytes. The identity
//! is not among the functions: it hashes nothing, and what takes it says so by itself.

use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::sync::LazyLock;

use blake2::digest::block_api::{Buffer, VariableOutputCore};
use blake2::digest::{Digest, ExtendableOutput, Output};
use blake2::{Blake2bVarCore, Blake2sVarCore};
use multihash::Multihash;
use sha1::Sha1;
use sha2::{Sha256, Sha512};
use sha3::{Keccak224, Keccak256, Keccak384, Keccak512, Sha3_224, Sha3_256, Sha3_384, Sha3_512, Shake256};

use super::{MAX_DIGEST, SHA1, SHA2_256, SHA2_512, sha256};

/// Shortest digest that names a block, in bytes: Kubo's. Below it, bytes of the same digest could be found.
pub const MIN_DIGEST: usize = 20;

/// Fills a buffer of a digest's length with the digest of data.
type Fill = fn(&[u8], &mut [u8]);

/// A function with one code.
struct Single {
    name: &'static str,
    code: u64,
    /// Bytes of a digest of which nothing else is said.
    size: usize,
    fill: Fill,
}

/// Functions that differ in the length of their digests.
struct Family {
    /// What stands before the bits of the digest in a name.
    name: &'static str,
    /// Code of a digest of no bytes; each byte adds one.
    code: u64,
    /// Bytes of the longest digest.
    size: usize,
    fill: Fill,
}

#[rustfmt::skip]
const SINGLES: [Single; 14] = [
    Single { name: "sha2-256",     code: SHA2_256, size: 32, fill: |data, out| out.copy_from_slice(&sha256(data)) },
    Single { name: "sha2-512",     code: SHA2_512, size: 64, fill: fixed::<Sha512> },
    Single { name: "dbl-sha2-256", code: 0x56,     size: 32, fill: |data, out| fixed::<Sha256>(&sha256(data), out) },
    Single { name: "sha1",         code: SHA1,     size: 20, fill: fixed::<Sha1> },
    Single { name: "sha3-224",     code: 0x17,     size: 28, fill: fixed::<Sha3_224> },
    Single { name: "sha3-256",     code: 0x16,     size: 32, fill: fixed::<Sha3_256> },
    Single { name: "sha3-384",     code: 0x15,     size: 48, fill: fixed::<Sha3_384> },
    Single { name: "sha3-512",     code: 0x14,     size: 64, fill: fixed::<Sha3_512> },
    Single { name: "shake-256",    code: 0x19,     size: 64, fill: |data, out| Shake256::digest_xof(data, out) },
    Single { name: "keccak-224",   code: 0x1a,     size: 28, fill: fixed::<Keccak224> },
    Single { name: "keccak-256",   code: 0x1b,     size: 32, fill: fixed::<Keccak256> },
    Single { name: "keccak-384",   code: 0x1c,     size: 48, fill: fixed::<Keccak384> },
    Single { name: "keccak-512",   code: 0x1d,     size: 64, fill: fixed::<Keccak512> },
    Single { name: "blake3",       code: BLAKE3,   size: 32, fill: extended },
];

#[rustfmt::skip]
const FAMILIES: [Family; 2] = [
    Family { name: "blake2b", code: 0xb200, size: 64, fill: sized::<Blake2bVarCore> },
    Family { name: "blake2s", code: 0xb240, size: 32, fill: sized::<Blake2sVarCore> },
];

/// The only function whose digests are as long as they are asked for.
const BLAKE3: u64 = 0x1e;

fn fixed<D: Digest>(data: &[u8], out: &mut [u8]) {
    out.copy_from_slice(&D::digest(data));
}

fn extended(data: &[u8], out: &mut [u8]) {
    blake3::Hasher::new().update(data).finalize_xof().fill(out);
}

/// A digest of BLAKE2, whose length goes into it.
fn sized<C: VariableOutputCore>(data: &[u8], out: &mut [u8]) {
    let mut core = C::new(out.len()).expect("a length of the family");
    let mut buffer = Buffer::<C>::default();
    buffer.digest_blocks(data, |blocks| core.update_blocks(blocks));
    let mut longest = Output::<C>::default();
    core.finalize_variable_core(&mut buffer, &mut longest);
    out.copy_from_slice(&longest[..out.len()]);
}

/// All there is to know of a function.
struct Row {
    code: u64,
    name: String,
    size: usize,
    longest: usize,
    fill: Fill,
    /// The longest digest of nothing.
    empty: [u8; MAX_DIGEST],
}

impl Row {
    fn new(name: String, code: u64, size: usize, fill: Fill) -> Row {
        let longest = if code == BLAKE3 { MAX_DIGEST } else { size };
        let mut empty = [0; MAX_DIGEST];
        fill(&[], &mut empty[..longest]);
        Row { code, name, size, longest, fill, empty }
    }
}

/// Every function. The first is the one that is looked for most.
static TABLE: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let singles = SINGLES.iter().map(|one| Row::new(one.name.to_owned(), one.code, one.size, one.fill));
    let families = FAMILIES.iter().flat_map(|family| {
        let row = |size| {
            Row::new(format!("{}-{}", family.name, 8 * size), family.code + size as u64, size, family.fill)
        };
        (MIN_DIGEST..=family.size).map(row)
    });
    singles.chain(families).collect()
});

/// A hash function that blocks may be named by.
///
/// ```
/// use btfs_storage::hash::Function;
///
/// let function: Function = "blake2b-256".parse()?;
/// assert_eq!((function.code(), function.size()), (0xb220, 32));
/// assert_eq!(function.multihash(b"some bytes").digest().len(), 32);
/// # Ok::<(), btfs_storage::hash::UnknownFunction>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Function {
    /// Where it stands in the table.
    at: u8,
}

impl Function {
    /// The one that names blocks unless another is asked for.
    pub const SHA2_256: Function = Function { at: 0 };

    /// The function of a multihash code; `None` if blocks may not be named by it.
    pub fn by_code(code: u64) -> Option<Function> {
        Function::find(|row| row.code == code)
    }

    fn find(wanted: impl Fn(&Row) -> bool) -> Option<Function> {
        TABLE.iter().position(wanted).map(|at| Function { at: at as u8 })
    }

    fn row(self) -> &'static Row {
        &TABLE[usize::from(self.at)]
    }

    /// Its multihash code.
    pub fn code(self) -> u64 {
        self.row().code
    }

    /// Its name, as Kubo has it.
    pub fn name(self) -> &'static str {
        &self.row().name
    }

    /// Bytes of a digest of which nothing else is said.
    pub fn size(self) -> usize {
        self.row().size
    }

    /// Bytes that a digest may have in the name of a block.
    pub fn lengths(self) -> RangeInclusive<usize> {
        MIN_DIGEST..=self.row().longest
    }

    /// The hash of `data`, with a digest of [`size`](Self::size) bytes.
    pub fn multihash(self, data: &[u8]) -> Multihash<MAX_DIGEST> {
        self.digest(data, self.row().size)
    }

    /// The hash of `data` with a digest of `length` bytes; `None` if that is none of [`lengths`](Self::lengths).
    pub fn multihash_of_length(self, data: &[u8], length: usize) -> Option<Multihash<MAX_DIGEST>> {
        self.lengths().contains(&length).then(|| self.digest(data, length))
    }

    fn digest(self, data: &[u8], length: usize) -> Multihash<MAX_DIGEST> {
        let row = self.row();
        let mut digest = [0; MAX_DIGEST];
        (row.fill)(data, &mut digest[..row.size.max(length)]);
        Multihash::wrap(row.code, &digest[..length]).expect("a digest of at most MAX_DIGEST bytes")
    }

    /// Whether this is the digest of nothing. `digest` is of one of the [`lengths`](Self::lengths).
    pub(super) fn is_of_nothing(self, digest: &[u8]) -> bool {
        self.row().empty.starts_with(digest)
    }
}

impl Display for Function {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of a function that blocks may be named by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("blocks are not named by a hash function `{0}`; there are {names}", names = names())]
pub struct UnknownFunction(pub String);

fn names() -> String {
    let singles = SINGLES.iter().map(|one| one.name.to_owned());
    let families = FAMILIES.iter().map(|family| {
        let (name, least, most) = (family.name, 8 * MIN_DIGEST, 8 * family.size);
        format!("{name}-{least} to {name}-{most}")
    });
    singles.chain(families).collect::<Vec<_>>().join(", ")
}

impl FromStr for Function {
    type Err = UnknownFunction;

    /// In capital letters or small ones, and `sha3` for `sha3-512`, as Kubo reads them.
    fn from_str(name: &str) -> Result<Function, UnknownFunction> {
        let small = name.to_ascii_lowercase();
        let small = if small == "sha3" { "sha3-512" } else { &small };
        Function::find(|row| row.name == small).ok_or_else(|| UnknownFunction(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Multihashes as others publish them.
    #[rustfmt::skip]
    const VECTORS: [(&str, &str, &str); 29] = [
        // go-multihash, sum_test.go; some are cut short.
        ("sha1", "foo", "11140beec7b5ea3f0fdbc95d0dd47f3c5bc275da8a33"),
        ("sha2-256", "foo", "12202c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"),
        ("sha2-256", "foo", "121f2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7"),
        ("sha2-512", "foo", "1340f7fbba6e0636f890e56fbbf3283e524c6fa3204ae298382d624741d0dc6638326e282c41be5e4254d8820772c5518a2c5a8c0c7f7eda19594a7eb539453e1ed7"),
        ("sha2-512", "foo", "1320f7fbba6e0636f890e56fbbf3283e524c6fa3204ae298382d624741d0dc663832"),
        ("dbl-sha2-256", "foo", "5620c7ade88fc7a21498a6a5e5c385e1f68bed822b72aa63c4a9a48a02c2466ee29e"),
        ("sha3-224", "beep boop", "171c0da73a89549018df311c0a63250e008f7be357f93ba4e582aaea32b8"),
        ("sha3-256", "beep boop", "1620828705da60284b39de02e3599d1f39e6c1df001f5dbf63c9ec2d2c91a95a427f"),
        ("sha3-384", "beep boop", "153075a9cff1bcfbe8a7025aa225dd558fb002769d4bf3b67d2aaf180459172208bea989804aefccf060b583e629e5f41e8d"),
        ("sha3-512", "foo", "14404bca2b137edc580fe50a88983ef860ebaca36c857b1f492839d6d7392452a63c82cbebc68e3b70a2a1480b4bb5d437a7cba6ecf9d89f9ff3ccd14cd6146ea7e7"),
        ("sha3-512", "foo", "14204bca2b137edc580fe50a88983ef860ebaca36c857b1f492839d6d7392452a63c"),
        ("shake-256", "foo", "19401af97f7818a28edfdfce5ec66dbdc7e871813816d7d585fe1f12475ded5b6502b7723b74e2ee36f2651a10a8eaca72aa9148c3c761aaceac8f6d6cc64381ed39"),
        ("keccak-256", "foo", "1b2041b1a0649752af1b28b3dc29a1556eee781e4a4c3a1f7f53f90fa834de098c4d"),
        ("keccak-512", "beep boop", "1d40e161c54798f78eba3404ac5e7e12d27555b7b810e7fd0db3f25ffa0c785c438331b0fbb6156215f69edf403c642e5280f4521da9bd767296ec81f05100852e78"),
        ("blake2b-160", "foo", "94e40214983ceba2afea8694cc933336b27b907f90c53a88"),
        ("blake2b-256", "foo", "a0e40220b8fe9f7f6255a6fa08f668ab632a8d081ad87983c77cd274e48ce450f0b349fd"),
        ("blake2b-360", "foo", "ade4022dca82ab956d5885e3f5db10cca94182f01a6ca2c47f9f4228497dcc9f4a0121c725468b852a71ec21fcbeb725df"),
        ("blake2b-384", "foo", "b0e40230e629ee880953d32c8877e479e3b4cb0a4c9d5805e2b34c675b5a5863c4ad7d64bb2a9b8257fac9d82d289b3d39eb9cc2"),
        ("blake2b-512", "foo", "c0e40240ca002330e69d3e6b84a46a56a6533fd79d51d97a3bb7cad6c2ff43b354185d6dc1e723fb3db4ae0737e120378424c714bb982d9dc5bbd7a0ab318240ddd18f8d"),
        ("blake2s-256", "foo", "e0e4022008d6cad88075de8f192db097573d0e829411cd91eb6ec65e8fc16c017edfdb74"),
        ("blake3", "foo", "1e2004e0bb39f30b1a3feb89f536c93be15055482df748674b00d26e5a75777702e9"),
        // RFC 7693, appendices A and B.
        ("blake2b-512", "abc", "c0e40240ba80a53f981c4d0d6a2797b69f12f6e94c212f14685ac4b74b12bb6fdbffa2d17d87c5392aab792dc252d5de4533cc9518d38aa8dbf1925ab92386edd4009923"),
        ("blake2s-256", "abc", "e0e40220508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"),
        // The test vectors of BLAKE3, of no bytes.
        ("blake3", "", "1e20af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        ("blake3", "", "1e40af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262e00f03e7b69af26b7faaf09fcd333050338ddfe085b8cc869ca98b206c08243a"),
        // ShortMsgKAT of Keccak's authors, of no bits.
        ("keccak-224", "", "1a1cf71837502ba8e10837bdd8d365adb85591895602fc552b48b7390abd"),
        ("keccak-384", "", "1c302c23146a63a29acf99e73b88f8c24eaa7dc60aa771780ccc006afbfa8fe2479b2dd2b21362337441ac12b515911957ff"),
        // hashlib of Python, which has the code of BLAKE2's authors.
        ("blake2s-160", "abc", "d4e402145ae3b99be29b01834c3b508521ede60438f8de17"),
        ("blake2b-168", "abc", "95e40215e920f37ed9cb44fb85672612872a8352243ced48a5"),
    ];

    #[test]
    fn digests_are_those_that_others_publish() {
        for (name, text, published) in VECTORS {
            let published = Multihash::from_bytes(&hex::decode(published).unwrap()).unwrap();
            let function: Function = name.parse().unwrap();
            let length = published.digest().len();
            assert_eq!(function.multihash_of_length(text.as_bytes(), length), Some(published), "{name}");
            if length == function.size() {
                assert_eq!(function.multihash(text.as_bytes()), published, "{name}");
            }
        }
        let covered: HashSet<&str> = VECTORS.iter().map(|(name, ..)| *name).collect();
        assert!(SINGLES.iter().all(|one| covered.contains(one.name)), "each function has a vector");
    }

    /// BLAKE2 is put together here from its blocks, so their borders are where it could go wrong.
    #[test]
    fn blake2_is_that_of_its_crate() {
        use blake2::{Blake2b256, Blake2b512, Blake2s256};
        let data: Vec<u8> = (0..1000u32).map(|i| (i * i) as u8).collect();
        for len in [0, 1, 63, 64, 65, 127, 128, 129, 192, 255, 256, 257, 1000] {
            let data = &data[..len];
            let ours = |name: &str| name.parse::<Function>().unwrap().multihash(data);
            assert_eq!(ours("blake2b-256").digest(), &Blake2b256::digest(data)[..]);
            assert_eq!(ours("blake2b-512").digest(), &Blake2b512::digest(data)[..]);
            assert_eq!(ours("blake2s-256").digest(), &Blake2s256::digest(data)[..]);
        }
    }

    #[test]
    fn names_and_codes_find_functions() {
        let rows: HashSet<u64> = TABLE.iter().map(|row| row.code).collect();
        assert_eq!(rows.len(), SINGLES.len() + 45 + 13, "codes are distinct");
        for row in &*TABLE {
            let function = Function::by_code(row.code).unwrap();
            assert_eq!(function.to_string().parse(), Ok(function));
            assert_eq!(function.name().to_uppercase().parse(), Ok(function));
            assert!(function.lengths().contains(&function.size()));
        }
        assert_eq!(Function::by_code(SHA2_256), Some(Function::SHA2_256));
        assert_eq!("sha3".parse(), "sha3-512".parse::<Function>());
        for name in [
            "",
            "md5",
            "identity",
            "blake2",
            "blake2b",
            "blake2b-152",
            "blake2b-520",
            "blake2b-161",
            "shake-128",
        ] {
            let told = name.parse::<Function>().unwrap_err().to_string();
            assert!(told.contains("blake2b-160 to blake2b-512"), "{told}");
        }
        // MD5, Murmur3, SHAKE-128 and the lengths of BLAKE2 beside those of the table.
        for code in [0xd5, 0x22, 0x18, 0xb200, 0xb213, 0xb241, 0xb253, 0xb261, super::super::IDENTITY] {
            assert_eq!(Function::by_code(code), None, "{code:#x}");
        }
    }

    fn any_function() -> impl Strategy<Value = Function> {
        (0..TABLE.len() as u8).prop_map(|at| Function { at })
    }

    proptest! {
        /// Of any function, a shorter digest is the beginning of a longer one, and one of other bytes is another.
        #[test]
        fn digests_are_cut_and_differ(
            function in any_function(),
            mut data in proptest::collection::vec(any::<u8>(), 0..600),
            length: prop::sample::Index,
            flip: prop::sample::Index,
        ) {
            let longest = *function.lengths().end();
            let whole = function.multihash_of_length(&data, longest).unwrap();
            let length = MIN_DIGEST + length.index(longest - MIN_DIGEST + 1);
            let cut = function.multihash_of_length(&data, length).unwrap();
            prop_assert_eq!(cut.code(), function.code());
            prop_assert_eq!(cut.digest(), &whole.digest()[..length]);
            prop_assert_eq!(function.is_of_nothing(cut.digest()), data.is_empty());
            for wrong in [0, MIN_DIGEST - 1, longest + 1] {
                prop_assert_eq!(function.multihash_of_length(&data, wrong), None);
            }
            if !data.is_empty() {
                let at = flip.index(data.len());
                data[at] ^= 1;
                prop_assert_ne!(function.multihash_of_length(&data, length), Some(cut));
            }
        }
    }
}
