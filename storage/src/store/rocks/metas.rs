//! Going through the metadata of all blocks.

use rocksdb::DBRawIterator;

use super::{BLOCKS, BlockDb, META, Meta, is_damage};
use crate::db::DbError;

impl BlockDb {
    /// Metadata of every block from key `start` on, in key order, as of now.
    pub fn metas(&self, start: &[u8]) -> Metas<'_> {
        let mut rows = self.db.raw_iterator_cf(self.family(META));
        rows.seek(start);
        Metas { db: self, rows, begun: false, last: start.to_vec(), hopping: None }
    }
}

/// Iterator of [`BlockDb::metas`]. Where a table of metadata is damaged it goes by the blocks themselves.
pub(in super::super) struct Metas<'a> {
    db: &'a BlockDb,
    rows: DBRawIterator<'a>,
    begun: bool,
    /// The last key that was handed out; the first that is wanted, before that.
    last: Vec<u8>,
    /// The blocks, while the metadata cannot be read.
    hopping: Option<DBRawIterator<'a>>,
}

impl Metas<'_> {
    /// The row at which the metadata stands, if it can be read.
    fn row(&mut self) -> Option<Result<(Vec<u8>, Meta), DbError>> {
        let (key, value) = self.rows.item()?;
        let decoded = Meta::decode(value).ok_or_else(|| self.db.undecodable(META));
        self.last = key.to_vec();
        Some(decoded.map(|meta| (self.last.clone(), meta)))
    }

    /// The next block, by its own key.
    fn hop(&mut self) -> Option<Result<(Vec<u8>, Meta), DbError>> {
        let begun = self.begun;
        let db = self.db;
        let blocks = self.hopping.get_or_insert_with(|| {
            let mut blocks = db.db.raw_iterator_cf(db.family(BLOCKS));
            blocks.seek(&self.last);
            if begun && blocks.key() == Some(self.last.as_slice()) {
                blocks.next();
            }
            blocks
        });
        let Some(key) = blocks.key().map(<[u8]>::to_vec) else {
            return blocks.status().err().map(|e| Err(db.failed(e)));
        };
        blocks.next();
        self.begun = true;
        self.last.clone_from(&key);
        match db.meta(&key) {
            Ok(Some(meta)) => Some(Ok((key, meta))),
            Ok(None) => self.hop(),
            Err(error) => Some(Err(error)),
        }
    }
}

impl Iterator for Metas<'_> {
    type Item = Result<(Vec<u8>, Meta), DbError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.hopping.is_some() {
            // Behind the damage the metadata can be read again.
            let at = self.hopping.as_ref().and_then(|blocks| blocks.key()).map(<[u8]>::to_vec);
            match at {
                Some(at) => self.rows.seek(at),
                None => return self.hop(),
            }
            if !self.rows.valid() {
                return self.hop();
            }
            self.hopping = None;
        } else if self.begun && self.rows.valid() {
            self.rows.next();
        }
        if let Some(row) = self.row() {
            self.begun = true;
            return Some(row);
        }
        match self.rows.status() {
            Ok(()) => None,
            Err(error) if is_damage(&error) => self.hop(),
            Err(error) => Some(Err(self.db.failed(error))),
        }
    }
}
