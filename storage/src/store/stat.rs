//! What a store holds, in numbers.

use std::path::Path;

use serde::Serialize;

use super::Store;
use super::rocks::Counter;
use crate::{Class, StoreError};

/// One class's books.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClassStat {
    /// The class.
    pub class: Class,
    /// Its blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes promised and not yet arrived.
    pub reserved_bytes: u64,
    /// Most bytes it may hold, if limited.
    pub quota_bytes: Option<u64>,
}

/// A store in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RepoStat {
    /// Blocks in all classes.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The classes, one by one.
    pub classes: Vec<ClassStat>,
    /// Blocks that are damaged and wait for the right bytes.
    pub quarantined_blocks: u64,
    /// Pins.
    pub pins: u64,
    /// Bytes of the block databases' files.
    pub disk_bytes: u64,
    /// Bytes of them that hold no live block: index, log, and space that a collection has not returned yet.
    pub overhead_bytes: u64,
    /// Bytes the disks have left.
    pub disk_free_bytes: u64,
    /// Bytes of them that writes leave alone.
    pub reserve_bytes: u64,
}

impl Store {
    /// Blocks that were found damaged and put aside; one record is read, and no directory.
    pub fn quarantined_blocks(&self) -> Result<u64, StoreError> {
        Ok(self.shared.db()?.0.counter(Counter::Quarantined)?)
    }

    /// Counts what is here. Cheap: totals are kept, not recounted.
    pub fn stat(&self) -> Result<RepoStat, StoreError> {
        let (db, _) = self.shared.db()?;
        let mut classes = Vec::with_capacity(Class::ALL.len());
        for class in Class::ALL {
            let (quota_bytes, bytes, reserved_bytes) = self.shared.space.of(class);
            let blocks = db.counter(Counter::Blocks(class))?;
            classes.push(ClassStat { class, blocks, bytes, reserved_bytes, quota_bytes });
        }
        let bytes = classes.iter().map(|class| class.bytes).sum();
        let disk_bytes = self.disk_bytes()?;
        let (disk_free_bytes, disks) = db.disks_free()?;
        Ok(RepoStat {
            blocks: classes.iter().map(|class| class.blocks).sum(),
            bytes,
            classes,
            quarantined_blocks: self.quarantined_blocks()?,
            pins: self.pin_count()?,
            disk_bytes,
            overhead_bytes: disk_bytes.saturating_sub(bytes),
            disk_free_bytes,
            reserve_bytes: self.shared.reserve_bytes.saturating_mul(disks),
        })
    }
}

/// Bytes of the files in a directory; those deleted while it is read count as nothing.
pub(super) fn directory_bytes(path: &Path) -> std::io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(path)? {
        match entry?.metadata() {
            Ok(metadata) => total += metadata.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}
