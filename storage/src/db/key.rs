//! Table keys as bytes that sort as the keys do.

use arrayvec::ArrayVec;

/// A key of a table: encodes to bytes whose order is the key's order.
pub trait TableKey: Sized {
    /// The length of every encoding, when all have the same; `None` when it varies. A variable part of a tuple key
    /// is escaped so that the parts after it cannot disturb the order.
    const WIDTH: Option<usize> = None;

    /// The key as bytes.
    fn encode(&self) -> Vec<u8>;

    /// The key back from its bytes, or `None` if they are not an encoding of one.
    fn decode(bytes: &[u8]) -> Option<Self>;
}

impl TableKey for Vec<u8> {
    fn encode(&self) -> Vec<u8> {
        self.clone()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        Some(bytes.to_vec())
    }
}

impl<const MOST: usize> TableKey for ArrayVec<u8, MOST> {
    fn encode(&self) -> Vec<u8> {
        self.to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

impl TableKey for String {
    fn encode(&self) -> Vec<u8> {
        self.as_bytes().to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        String::from_utf8(bytes.to_vec()).ok()
    }
}

impl<const N: usize> TableKey for [u8; N] {
    const WIDTH: Option<usize> = Some(N);
    fn encode(&self) -> Vec<u8> {
        self.to_vec()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok()
    }
}

/// Unsigned integers are big-endian, which sorts as they do.
macro_rules! integer_key {
    ($($int:ty),*) => {$(
        impl TableKey for $int {
            const WIDTH: Option<usize> = Some(size_of::<$int>());
            fn encode(&self) -> Vec<u8> {
                self.to_be_bytes().to_vec()
            }
            fn decode(bytes: &[u8]) -> Option<Self> {
                Some(<$int>::from_be_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}
integer_key!(u8, u16, u32, u64, u128);

/// The key of a table with one record.
impl TableKey for () {
    const WIDTH: Option<usize> = Some(0);
    fn encode(&self) -> Vec<u8> {
        Vec::new()
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        bytes.is_empty().then_some(())
    }
}

/// Follows a zero byte inside a variable part.
const ESCAPE: u8 = 0xff;

/// The encoding of a tuple's first part: every key of the tuple that begins with `first` begins with these bytes,
/// and no other. The prefix to scan by.
pub fn head<A: TableKey>(first: &A) -> Vec<u8> {
    let plain = first.encode();
    if A::WIDTH.is_some() {
        return plain;
    }
    // A zero byte becomes 00 ff and the part ends with 00 00, which sorts before any continuation.
    let mut out = Vec::with_capacity(plain.len() + 2);
    for byte in plain {
        out.push(byte);
        if byte == 0 {
            out.push(ESCAPE);
        }
    }
    out.extend([0, 0]);
    out
}

/// Splits a tuple's encoding into its first part and the rest.
fn split<A: TableKey>(bytes: &[u8]) -> Option<(A, &[u8])> {
    if let Some(width) = A::WIDTH {
        let (first, rest) = bytes.split_at_checked(width)?;
        return Some((A::decode(first)?, rest));
    }
    let mut plain = Vec::new();
    let mut at = 0;
    loop {
        match (*bytes.get(at)?, bytes.get(at + 1)) {
            (0, Some(0)) => return Some((A::decode(&plain)?, &bytes[at + 2..])),
            (0, Some(&ESCAPE)) => {
                plain.push(0);
                at += 2;
            }
            (0, _) => return None,
            (byte, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
}

/// The width of two parts together, when both are fixed.
const fn sum(a: Option<usize>, b: Option<usize>) -> Option<usize> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        _ => None,
    }
}

impl<A: TableKey, B: TableKey> TableKey for (A, B) {
    const WIDTH: Option<usize> = sum(A::WIDTH, B::WIDTH);
    fn encode(&self) -> Vec<u8> {
        let mut out = head(&self.0);
        out.extend(self.1.encode());
        out
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (a, rest) = split(bytes)?;
        Some((a, B::decode(rest)?))
    }
}

impl<A: TableKey, B: TableKey, C: TableKey> TableKey for (A, B, C) {
    const WIDTH: Option<usize> = sum(sum(A::WIDTH, B::WIDTH), C::WIDTH);
    fn encode(&self) -> Vec<u8> {
        let mut out = head(&self.0);
        out.extend(head(&self.1));
        out.extend(self.2.encode());
        out
    }
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (a, rest) = split(bytes)?;
        let (b, rest) = split(rest)?;
        Some((a, b, C::decode(rest)?))
    }
}
