//! A set of piece numbers in the wire's bit order (BEP 3: the high bit of the first byte is piece 0).

/// A fixed-size set of pieces that knows its count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitfield {
    bits: Vec<u8>,
    len: u32,
    ones: u32,
}

impl Bitfield {
    /// No piece of `len`.
    pub fn empty(len: u32) -> Bitfield {
        Bitfield { bits: vec![0; len.div_ceil(8) as usize], len, ones: 0 }
    }

    /// Every piece of `len`.
    pub fn full(len: u32) -> Bitfield {
        let mut field = Bitfield::empty(len);
        (0..len).for_each(|i| {
            field.set(i);
        });
        field
    }

    /// From a `bitfield` message; `None` if its length is wrong or a spare bit is set.
    pub fn from_wire(bytes: &[u8], len: u32) -> Option<Bitfield> {
        let spare = bytes.len() as u32 * 8;
        let spare = spare.checked_sub(len).filter(|s| *s < 8)?;
        if spare > 0 && bytes.last().is_some_and(|b| b & ((1u8 << spare) - 1) != 0) {
            return None;
        }
        let ones = bytes.iter().map(|b| b.count_ones()).sum();
        Some(Bitfield { bits: bytes.to_vec(), len, ones })
    }

    /// The bytes of a `bitfield` message.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bits
    }

    /// Number of pieces it is about.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// It is about no piece at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pieces in the set.
    pub fn count(&self) -> u32 {
        self.ones
    }

    /// Every piece is in the set.
    pub fn is_full(&self) -> bool {
        self.ones == self.len
    }

    /// Whether `index` is in the set; false beyond the end.
    pub fn get(&self, index: u32) -> bool {
        index < self.len && self.bits[index as usize / 8] & (0x80 >> (index % 8)) != 0
    }

    /// Adds `index`; true if it was not there. Beyond the end nothing happens.
    pub fn set(&mut self, index: u32) -> bool {
        if index >= self.len || self.get(index) {
            return false;
        }
        self.bits[index as usize / 8] |= 0x80 >> (index % 8);
        self.ones += 1;
        true
    }

    /// The pieces in the set, ascending.
    pub fn ones(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len).filter(|i| self.get(*i))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_checked() {
        let mut field = Bitfield::empty(10);
        assert!(field.set(0) && field.set(9) && !field.set(9) && !field.set(10));
        assert_eq!(field.as_bytes(), [0x80, 0x40]);
        assert_eq!(Bitfield::from_wire(&[0x80, 0x40], 10), Some(field.clone()));
        assert_eq!(Bitfield::from_wire(&[0x80, 0x60], 10).map(|f| f.count()), None);
        assert_eq!(Bitfield::from_wire(&[0x80], 10), None);
        assert_eq!(Bitfield::from_wire(&[0x80, 0, 0], 10), None);
        assert_eq!(field.ones().collect::<Vec<_>>(), [0, 9]);
        assert!(Bitfield::full(10).is_full() && Bitfield::from_wire(&[], 0).unwrap().is_full());
    }
}
