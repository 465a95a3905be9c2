//! `Btt`: an exact amount of money, in units of 10^-18 BTT.
//!
//! There is no `Add` or `Mul`: an amount that does not fit is a mistake or an attack, and the caller has to say
//! what happens then.

use std::fmt;
use std::str::FromStr;

use alloy_primitives::U256;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

/// Decimals of one BTT.
pub const DECIMALS: usize = 18;

/// Units in one BTT.
const ONE: u128 = 1_000_000_000_000_000_000;

/// An amount of money: an integer count of 10^-18 BTT.
///
/// In JSON it is a decimal string of BTT ("12.5"), in DAG-CBOR a 16-byte big-endian string of units.
///
/// ```
/// use btfs_ledger::Btt;
/// let price: Btt = "0.25".parse().unwrap();
/// let sum = price.checked_add(Btt::from_units(1)).unwrap();
/// assert_eq!(sum.to_string(), "0.250000000000000001");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Btt(u128);

/// Why a text is not an amount.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseBttError {
    /// Not digits with at most one point between them.
    #[error("\"{0}\" is not an amount of BTT: write digits with at most one decimal point, like 12 or 0.5")]
    Syntax(String),
    /// Finer than the smallest unit.
    #[error("\"{0}\" has more than {DECIMALS} decimals; the smallest amount is 10^-18 BTT")]
    TooFine(String),
    /// Above 2^128 - 1 units.
    #[error("\"{0}\" is more BTT than can exist")]
    TooLarge(String),
}

impl Btt {
    /// Nothing.
    pub const ZERO: Btt = Btt(0);
    /// The largest amount that can be written, 2^128 - 1 units.
    pub const MAX: Btt = Btt(u128::MAX);
    /// One BTT.
    pub const ONE: Btt = Btt(ONE);

    /// An amount of `units` x 10^-18 BTT.
    pub const fn from_units(units: u128) -> Btt {
        Btt(units)
    }

    /// The amount in units of 10^-18 BTT.
    pub const fn units(self) -> u128 {
        self.0
    }

    /// Whether this is nothing.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, if it fits.
    pub const fn checked_add(self, other: Btt) -> Option<Btt> {
        match self.0.checked_add(other.0) {
            Some(units) => Some(Btt(units)),
            None => None,
        }
    }

    /// The difference, if it is not negative.
    pub const fn checked_sub(self, other: Btt) -> Option<Btt> {
        match self.0.checked_sub(other.0) {
            Some(units) => Some(Btt(units)),
            None => None,
        }
    }

    /// The difference, or nothing where it would be negative. For questions like "what is still to pay", where
    /// having paid more than enough is an ordinary answer.
    pub const fn saturating_sub(self, other: Btt) -> Btt {
        Btt(self.0.saturating_sub(other.0))
    }

    /// `count` times this amount, if it fits.
    pub fn checked_mul(self, count: u64) -> Option<Btt> {
        self.0.checked_mul(u128::from(count)).map(Btt)
    }

    /// `ceil(self * factor / divisor)` with the product in 256 bits. `None` if the divisor is zero or the result
    /// does not fit.
    pub fn mul_div_ceil(self, factor: u128, divisor: u128) -> Option<Btt> {
        if divisor == 0 {
            return None;
        }
        let product = U256::from(self.0) * U256::from(factor);
        to_btt(product.div_ceil(U256::from(divisor)))
    }

    /// The sum of all amounts, if it fits.
    pub fn checked_sum(amounts: impl IntoIterator<Item = Btt>) -> Option<Btt> {
        amounts.into_iter().try_fold(Btt::ZERO, Btt::checked_add)
    }
}

/// The amount of a 256-bit number of units, if it fits.
pub(crate) fn to_btt(units: U256) -> Option<Btt> {
    u128::try_from(units).ok().map(Btt)
}

impl fmt::Display for Btt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.0 / ONE, self.0 % ONE);
        if fraction == 0 {
            return f.pad(&whole.to_string());
        }
        let digits = format!("{whole}.{fraction:0width$}", width = DECIMALS);
        f.pad(digits.trim_end_matches('0'))
    }
}

impl fmt::Debug for Btt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} BTT")
    }
}

impl FromStr for Btt {
    type Err = ParseBttError;

    fn from_str(text: &str) -> Result<Btt, ParseBttError> {
        let shown = || text.chars().take(80).collect::<String>();
        let (whole, fraction) = match text.split_once('.') {
            Some((_, "")) => return Err(ParseBttError::Syntax(shown())),
            Some(parts) => parts,
            None => (text, ""),
        };
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) {
            return Err(ParseBttError::Syntax(shown()));
        }
        if fraction.len() > DECIMALS {
            return Err(ParseBttError::TooFine(shown()));
        }
        let too_large = || ParseBttError::TooLarge(shown());
        let whole: u128 = whole.parse().map_err(|_| too_large())?;
        // Eighteen digits always fit; the padding turns tenths into units.
        let fraction: u128 =
            format!("{fraction:0<width$}", width = DECIMALS).parse().map_err(|_| too_large())?;
        whole.checked_mul(ONE).and_then(|units| units.checked_add(fraction)).map(Btt).ok_or_else(too_large)
    }
}

impl Serialize for Btt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.0.to_be_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for Btt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Btt, D::Error> {
        struct Amount;
        impl de::Visitor<'_> for Amount {
            type Value = Btt;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount of BTT: a decimal string, or 16 big-endian bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Btt, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Btt, E> {
                let bytes: [u8; 16] = bytes.try_into().map_err(|_| E::invalid_length(bytes.len(), &self))?;
                Ok(Btt(u128::from_be_bytes(bytes)))
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(Amount)
        } else {
            deserializer.deserialize_bytes(Amount)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_read_and_write_exactly() {
        for (text, units) in [
            ("0", 0),
            ("1", ONE),
            ("0.5", ONE / 2),
            ("0.000000000000000001", 1),
            ("340282366920938463463.374607431768211455", u128::MAX),
        ] {
            assert_eq!(text.parse::<Btt>().unwrap(), Btt(units));
            assert_eq!(Btt(units).to_string(), text);
        }
        assert_eq!("001.500".parse::<Btt>().unwrap().to_string(), "1.5");
    }

    #[test]
    fn what_is_not_an_amount_is_refused() {
        for text in ["", ".", ".5", "5.", "-1", "+1", "1e3", "1_000", "1,5", " 1", "0x10", "1.2.3", "١"] {
            assert!(matches!(text.parse::<Btt>(), Err(ParseBttError::Syntax(_))), "{text}");
        }
        assert!(matches!("0.0000000000000000001".parse::<Btt>(), Err(ParseBttError::TooFine(_))));
        for text in ["340282366920938463463.374607431768211456", &"9".repeat(60)] {
            assert!(matches!(text.parse::<Btt>(), Err(ParseBttError::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn encodings_are_as_the_protocol_says() {
        let amount = Btt(0x0102);
        let cbor = serde_ipld_dagcbor::to_vec(&amount).unwrap();
        assert_eq!(cbor[0], 0x50, "a byte string of 16");
        assert_eq!(&cbor[1..], 0x0102u128.to_be_bytes());
        assert_eq!(serde_ipld_dagcbor::from_slice::<Btt>(&cbor).unwrap(), amount);
        assert!(serde_ipld_dagcbor::from_slice::<Btt>(&[0x41, 1]).is_err());
        assert!(serde_ipld_dagcbor::from_slice::<Btt>(&[1]).is_err());
        assert_eq!(serde_json::to_string(&Btt(ONE / 4)).unwrap(), "\"0.25\"");
        assert!(serde_json::from_str::<Btt>("0.25").is_err(), "a float is no amount");
    }

    proptest! {
        #[test]
        fn text_is_lossless(units: u128) {
            prop_assert_eq!(Btt(units).to_string().parse::<Btt>().unwrap(), Btt(units));
        }

        #[test]
        fn rounding_up_is_never_short(units: u128, factor: u64, divisor in 1u128..) {
            let exact = U256::from(units) * U256::from(factor);
            match Btt(units).mul_div_ceil(u128::from(factor), divisor) {
                Some(result) => {
                    let back = U256::from(result.0) * U256::from(divisor);
                    prop_assert!(back >= exact && back - exact < U256::from(divisor));
                }
                None => prop_assert!(exact.div_ceil(U256::from(divisor)) > U256::from(u128::MAX)),
            }
        }
    }
}
