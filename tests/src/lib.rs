//! Whole-node tests: end to end, real peers, faults, scale; benches.
