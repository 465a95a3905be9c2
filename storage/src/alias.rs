//! Foreign hashes (infohashes, piece hashes, v2 pieces roots) to candidate content.
