//! Which leaves are asked for, and the answer over all of them.

use alloy_primitives::keccak256;
use serde::{Deserialize, Serialize};

use super::{LeafProof, ProofError, ProveError, Prover, verify};
use crate::BlockSource;

/// What leaves are drawn for. The tag goes into the draw, so an answer for one purpose is none for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The renter's audit; the seed is its fresh nonce.
    Audit,
    /// A claim at the settlement; the seed is drawn there.
    Claim,
}

impl Purpose {
    /// The tag that is hashed into the first state.
    pub fn tag(self) -> &'static str {
        match self {
            Purpose::Audit => "btfs/audit/1",
            Purpose::Claim => "btfs/claim/1",
        }
    }
}

/// Everything the leaves of one audit or claim follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Challenge {
    /// Audit or claim.
    pub purpose: Purpose,
    /// The nonce, or the settlement's seed.
    pub seed: [u8; 32],
    /// The payment channel's id.
    pub channel: [u8; 32],
    /// The agreement's id.
    pub id: [u8; 32],
    /// The epoch that is proven.
    pub epoch: u64,
}

impl Challenge {
    /// The indices into a tree of `leaves` leaves.
    ///
    /// # Errors
    /// [`ProofError::Leaves`] where no tree has that many.
    pub fn indices(&self, leaves: u64) -> Result<Indices, ProofError> {
        super::depth(leaves)?;
        // abi.encode(keccak256(tag), seed, channel, id, uint256(epoch))
        let mut words = [0u8; 160];
        words[..32].copy_from_slice(keccak256(self.purpose.tag()).as_slice());
        words[32..64].copy_from_slice(&self.seed);
        words[64..96].copy_from_slice(&self.channel);
        words[96..128].copy_from_slice(&self.id);
        words[152..].copy_from_slice(&self.epoch.to_be_bytes());
        Ok(Indices { state: keccak256(words).0, leaves })
    }
}

/// The chain of indices: each follows from the hash of the leaf before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indices {
    state: [u8; 32],
    leaves: u64,
}

impl Indices {
    /// The index that is asked for now: the state as a 256-bit number, modulo the leaves.
    pub fn index(&self) -> u64 {
        let modulus = u128::from(self.leaves);
        let rest = self.state.iter().fold(0u128, |rest, byte| (rest << 8 | u128::from(*byte)) % modulus);
        // Below `leaves`, which is a u64.
        rest as u64
    }

    /// Goes on to the next index.
    pub fn advance(&mut self, leaf: &[u8; 32]) {
        let mut words = [0u8; 64];
        words[..32].copy_from_slice(&self.state);
        words[32..].copy_from_slice(leaf);
        self.state = keccak256(words).0;
    }
}

/// How many leaves an answer has: what was wanted, or all there are.
fn count(wanted: u16, leaves: u64) -> usize {
    u64::from(wanted).min(leaves) as usize
}

/// A host's answer to a challenge: the leaves in the order of the chain, each with its path.
///
/// Reads from `source` alone; an answer must never come over the network.
///
/// # Errors
/// [`ProveError`] when a block is gone or damaged: then there is no answer.
pub fn answer(
    prover: &Prover,
    challenge: &Challenge,
    wanted: u16,
    source: &dyn BlockSource,
) -> Result<Vec<LeafProof>, ProveError> {
    let leaves = prover.tree().leaves();
    let mut indices = challenge.indices(leaves)?;
    let mut proofs = Vec::with_capacity(count(wanted, leaves));
    for _ in 0..count(wanted, leaves) {
        let proof = prover.prove(indices.index(), source)?;
        indices.advance(&super::leaf_hash(&proof.data));
        proofs.push(proof);
    }
    Ok(proofs)
}

/// Judges an answer against the agreed root and leaf count.
///
/// # Errors
/// The first thing that is wrong. There are no partly valid answers.
pub fn check_answer(
    root: &[u8; 32],
    leaves: u64,
    challenge: &Challenge,
    wanted: u16,
    proofs: &[LeafProof],
) -> Result<(), ProofError> {
    let mut indices = challenge.indices(leaves)?;
    let wanted = count(wanted, leaves);
    if proofs.len() != wanted {
        return Err(ProofError::Count { found: proofs.len(), wanted });
    }
    for proof in proofs {
        let leaf = verify(root, leaves, indices.index(), &proof.data, &proof.path)?;
        indices.advance(&leaf);
    }
    Ok(())
}
