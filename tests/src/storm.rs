//! What the process of the storm (`bin/storm.rs`) and those who kill it (`suite::crash::storm`) both know.

use std::path::Path;

use btfs_storage::{Quota, Store, StoreError, StoreOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Small enough to be full now and then.
const QUOTA: u64 = 24 << 20;

/// The store of the storm.
pub fn open(dir: &Path) -> Result<Store, StoreError> {
    Store::open(StoreOptions {
        path: dir.to_owned(),
        tables: Vec::new(),
        quota: Quota { own: Some(QUOTA), ..Quota::default() },
        reserve_bytes: 0,
    })
}

/// The content of a file.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
