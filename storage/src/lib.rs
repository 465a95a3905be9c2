//! Bytes to blocks to RocksDB: import, block store, pins, erasure coding, proof trees.
