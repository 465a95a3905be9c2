//! The immutable description of shards, stripes and parity.
