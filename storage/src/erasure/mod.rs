//! Shards, stripes and parity.
