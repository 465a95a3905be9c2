//! Merkle proofs over the blocks an agreement covers.
