//! The genesis: what makes one ledger this ledger and no other.

use std::fmt;

use alloy_primitives::{Address, B256, keccak256};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use thiserror::Error;

use crate::btt::Btt;
use crate::cbor::{self, CborError};
use crate::keys::PublicKey;
use crate::typed::Domain;

/// Most accounts a genesis can fund. More can be reached by transfers.
pub const MAX_ALLOCATIONS: usize = 1024;

/// Largest genesis in DAG-CBOR: every allocation has at most 40 bytes.
pub const MAX_GENESIS: usize = 128 + MAX_ALLOCATIONS * 40;

/// Seconds a host has to answer its seed, unless the genesis says otherwise.
pub const DEFAULT_ANSWER_SECONDS: u64 = 60;

/// The first state of an embedded ledger. Its DAG-CBOR is the array `[random, operator peer id, [[address, amount],
/// ..], answer seconds]`, and the hash of that is the ledger's name: every signature is bound to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// 32 random bytes: a ledger made again with the same accounts is another ledger.
    pub random: B256,
    /// Who runs the ledger and signs its replies.
    pub operator: PublicKey,
    /// The first balances; their sum is the supply for ever. Ascending by address, none twice.
    pub allocations: Vec<(Address, Btt)>,
    /// Seconds of settlement time in which a host has to answer the seed of a claim.
    pub answer_seconds: u64,
}

/// Why a genesis is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GenesisError {
    /// Too many first accounts.
    #[error("genesis funds {0} accounts; {MAX_ALLOCATIONS} are possible, the others by transfers")]
    TooMany(usize),
    /// An account twice, or not in order.
    #[error("genesis accounts must be ascending, each once; {0} is not")]
    Order(Address),
    /// The supply does not fit.
    #[error("the sum of the genesis balances does not fit 128 bits")]
    Supply,
    /// No money at all, or no time to answer a seed.
    #[error("a ledger needs a supply and seconds to answer a claim's seed")]
    Empty,
    /// Not a genesis.
    #[error("genesis: {0}")]
    Malformed(#[from] CborError),
    /// The operating system gave no randomness.
    #[error("the operating system's random generator failed: {0}")]
    Random(String),
}

impl Genesis {
    /// A new ledger's genesis with fresh random bytes. Allocations may come in any order; those of one account are
    /// added up.
    pub fn new(
        operator: PublicKey,
        allocations: impl IntoIterator<Item = (Address, Btt)>,
        answer_seconds: u64,
    ) -> Result<Genesis, GenesisError> {
        let mut sums = std::collections::BTreeMap::new();
        for (address, amount) in allocations {
            let sum: &mut Btt = sums.entry(address).or_default();
            *sum = sum.checked_add(amount).ok_or(GenesisError::Supply)?;
        }
        let mut random = [0u8; 32];
        getrandom::fill(&mut random).map_err(|error| GenesisError::Random(error.to_string()))?;
        let allocations = sums.into_iter().collect();
        let genesis = Genesis { random: random.into(), operator, allocations, answer_seconds };
        genesis.check()?;
        Ok(genesis)
    }

    /// Reads and checks a genesis in DAG-CBOR.
    pub fn decode(bytes: &[u8]) -> Result<Genesis, GenesisError> {
        let genesis: Genesis = cbor::decode(bytes, MAX_GENESIS)?;
        genesis.check()?;
        Ok(genesis)
    }

    /// Checks what every genesis has to keep.
    pub fn check(&self) -> Result<(), GenesisError> {
        if self.allocations.len() > MAX_ALLOCATIONS {
            return Err(GenesisError::TooMany(self.allocations.len()));
        }
        for pair in self.allocations.windows(2) {
            if pair[0].0 >= pair[1].0 {
                return Err(GenesisError::Order(pair[1].0));
            }
        }
        let supply = self.sum().ok_or(GenesisError::Supply)?;
        if supply.is_zero() || self.answer_seconds == 0 { Err(GenesisError::Empty) } else { Ok(()) }
    }

    /// keccak256 of the DAG-CBOR.
    pub fn hash(&self) -> B256 {
        keccak256(cbor::encode(self))
    }

    /// The domain of all signatures on this ledger.
    pub fn domain(&self) -> Domain {
        Domain::embedded(&self.hash())
    }

    /// What others need to know of this ledger.
    pub fn id(&self) -> LedgerId {
        LedgerId { operator: self.operator, genesis: self.hash() }
    }

    /// All the money there is.
    pub fn supply(&self) -> Btt {
        self.sum().expect("checked when the genesis was made or read")
    }

    fn sum(&self) -> Option<Btt> {
        Btt::checked_sum(self.allocations.iter().map(|(_, amount)| *amount))
    }
}

/// What a node needs to know to use an embedded ledger: whom to ask, and which ledger it must be. Part of a network
/// file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LedgerId {
    /// Who runs it and signs its replies.
    pub operator: PublicKey,
    /// The hash of its genesis.
    pub genesis: B256,
}

impl LedgerId {
    /// The domain of all signatures on this ledger.
    pub fn domain(&self) -> Domain {
        Domain::embedded(&self.genesis)
    }
}

/// The operator's peer id as bytes, in DAG-CBOR; hex of the key elsewhere.
struct Operator(PublicKey);

impl Serialize for Operator {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0.to_peer_id_bytes())
    }
}

impl<'de> Deserialize<'de> for Operator {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Operator, D::Error> {
        struct PeerId;
        impl de::Visitor<'_> for PeerId {
            type Value = Operator;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a secp256k1 peer id")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Operator, E> {
                PublicKey::from_peer_id_bytes(bytes).map(Operator).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(PeerId)
    }
}

impl Serialize for Genesis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.random, Operator(self.operator), &self.allocations, self.answer_seconds).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Genesis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Genesis, D::Error> {
        let (random, Operator(operator), allocations, answer_seconds) =
            Deserialize::deserialize(deserializer)?;
        Ok(Genesis { random, operator, allocations, answer_seconds })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SecretKey;

    #[test]
    fn a_genesis_names_one_ledger() {
        let operator = SecretKey::from_bytes(&[1; 32]).unwrap().public();
        let [a, b] = [Address::repeat_byte(1), Address::repeat_byte(2)];
        let genesis = Genesis::new(operator, [(b, Btt::ONE), (a, Btt::ONE), (b, Btt::ONE)], 60).unwrap();
        assert_eq!(genesis.supply().to_string(), "3");
        assert_eq!(genesis.allocations[0].0, a);
        let bytes = cbor::encode(&genesis);
        assert!(bytes.len() < MAX_GENESIS);
        assert_eq!(Genesis::decode(&bytes).unwrap(), genesis);
        let again = Genesis::new(operator, genesis.allocations.clone(), 60).unwrap();
        assert_ne!(again.domain(), genesis.domain(), "made again, it is another ledger");
        let mut swapped = genesis.clone();
        swapped.allocations.swap(0, 1);
        assert!(matches!(Genesis::decode(&cbor::encode(&swapped)), Err(GenesisError::Order(_))));
        assert_eq!(Genesis::new(operator, [(a, Btt::MAX), (b, Btt::ONE)], 60), Err(GenesisError::Supply));
        assert_eq!(Genesis::new(operator, [], 60), Err(GenesisError::Empty));
        let json = serde_json::to_string(&genesis.id()).unwrap();
        assert_eq!(serde_json::from_str::<LedgerId>(&json).unwrap(), genesis.id());
    }
}
