//! Byte strings too long for one record (block lists, proof trees), cut into pages of a table.

use btfs_ledger::B256;
use btfs_storage::db::{Batch, DbError, StateDb, Table};
use serde_bytes::ByteBuf;

/// Bytes in one record: large enough to be few, small enough for the database's memtables.
const PAGE: usize = 256 << 10;

/// A table of paged byte strings by 32-byte id.
pub(crate) type Pages = Table<([u8; 32], u32), ByteBuf>;

/// Adds all pages of `bytes` to the batch. The caller knows that none are there.
pub(crate) fn put(batch: &mut Batch, table: &Pages, id: B256, bytes: &[u8]) -> Result<(), DbError> {
    for (page, chunk) in (0u32..).zip(bytes.chunks(PAGE)) {
        batch.put(table, &(id.0, page), &ByteBuf::from(chunk))?;
    }
    Ok(())
}

/// All bytes of `id`; empty if there are none.
pub(crate) fn get(db: &StateDb, table: &Pages, id: B256) -> Result<Vec<u8>, DbError> {
    let mut bytes = Vec::new();
    for record in db.scan(table, &id.0) {
        bytes.extend_from_slice(&record?.1);
    }
    Ok(bytes)
}

/// Deletes all pages of `id` with the batch.
pub(crate) fn delete(db: &StateDb, batch: &mut Batch, table: &Pages, id: B256) -> Result<(), DbError> {
    for record in db.scan(table, &id.0) {
        batch.delete(table, &record?.0)?;
    }
    Ok(())
}
