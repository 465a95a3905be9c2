//! Canonical DAG-CBOR: one value, one encoding, no trailing bytes.
//!
//! The decoder underneath accepts a few encodings that a writer of DAG-CBOR never makes (integers longer than
//! needed, for one). A document that is hashed or stored as it came must not have two spellings, so what was
//! decoded is encoded again and compared.

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Why bytes are not the document they should be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CborError {
    /// More bytes than this kind of document may have.
    #[error("document of {size} bytes is above its cap of {cap}")]
    TooLarge {
        /// Bytes that came.
        size: usize,
        /// Bytes allowed.
        cap: usize,
    },
    /// Not DAG-CBOR of this document.
    #[error("malformed document: {0}")]
    Malformed(String),
    /// Decodes, but not from the one encoding it has.
    #[error("malformed document: not in its canonical encoding")]
    NotCanonical,
}

/// Encodes a value of this crate as DAG-CBOR.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Fails only for what DAG-CBOR cannot say (maps with other keys than text, integers beyond 64 bits) or when
    // memory ends; no type of this crate holds the former.
    serde_ipld_dagcbor::to_vec(value).expect("documents are made of what DAG-CBOR can say")
}

/// Decodes a value of at most `cap` bytes, refusing trailing bytes and other than canonical encodings.
pub fn decode<T: Serialize + DeserializeOwned>(bytes: &[u8], cap: usize) -> Result<T, CborError> {
    if bytes.len() > cap {
        return Err(CborError::TooLarge { size: bytes.len(), cap });
    }
    let value: T =
        serde_ipld_dagcbor::from_slice(bytes).map_err(|error| CborError::Malformed(error.to_string()))?;
    let again =
        serde_ipld_dagcbor::to_vec(&value).map_err(|error| CborError::Malformed(error.to_string()))?;
    if again != bytes {
        return Err(CborError::NotCanonical);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_one_encoding() {
        assert_eq!(decode::<u64>(&[0x07], 16), Ok(7));
        assert!(decode::<u64>(&[0x07, 0x00], 16).is_err(), "trailing byte");
        assert!(decode::<u64>(&[0x18, 0x07], 16).is_err(), "longer than needed");
        assert_eq!(decode::<u64>(&[0x1b; 17], 16), Err(CborError::TooLarge { size: 17, cap: 16 }));
        assert!(decode::<Vec<u64>>(&[0x9f, 0x01, 0xff], 16).is_err(), "indefinite length");
    }
}
