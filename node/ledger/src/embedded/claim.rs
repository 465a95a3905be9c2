//! The proof of a claim: the leaves that follow from the settlement's own seed.

use btfs_storage::proof::{Challenge, LeafProof, ProofError, Purpose, check_answer};

use super::records::Armed;
use crate::typed::{Agreement, ClaimLeaf};

/// Checks that `leaves` are exactly the challenged ones, under the agreement's root.
pub(super) fn verify(agreement: &Agreement, armed: &Armed, leaves: &[ClaimLeaf]) -> Result<(), ProofError> {
    let challenge = Challenge {
        purpose: Purpose::Claim,
        seed: armed.seed.0,
        channel: agreement.channel.0,
        id: agreement.id.0,
        epoch: u64::from(armed.epoch),
    };
    let proofs: Vec<LeafProof> = leaves
        .iter()
        .map(|leaf| LeafProof {
            data: leaf.data.clone(),
            path: leaf.path.iter().map(|sibling| sibling.0).collect(),
        })
        .collect();
    check_answer(&agreement.root.0, agreement.leaves, &challenge, agreement.claim_leaves, &proofs)
}
