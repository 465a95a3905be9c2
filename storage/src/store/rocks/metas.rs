//! Going through the metadata of all blocks.

use rocksdb::DBRawIterator;

use super::names::{head, key_of};
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
    hopping: Option<Blocks<'a>>,
}

/// All blocks, by their bytes.
struct Blocks<'a> {
    rows: DBRawIterator<'a>,
    /// Keys of those whose names share a head, and so are not in the order of their keys: the next one last.
    together: Vec<Vec<u8>>,
}

impl Blocks<'_> {
    /// The head that the rows have which come next.
    fn next_head(&self) -> Option<Vec<u8>> {
        Some(head(self.rows.key()?).to_vec())
    }

    /// Takes the rows in that share the next head; whether there are any.
    fn gather(&mut self) -> Result<bool, rocksdb::Error> {
        let Some(head) = self.next_head() else { return self.rows.status().map(|()| false) };
        while let Some((row, data)) = self.rows.item().filter(|(row, _)| row.starts_with(&head)) {
            match key_of(row, data) {
                Some(key) => self.together.push(key),
                // Only its hash could name it. Whoever needs it finds out.
                None => tracing::error!("the bytes of a block are not those of any that could lie there"),
            }
            self.rows.next();
        }
        self.together.sort_unstable_by(|a, b| b.cmp(a));
        self.together.dedup();
        Ok(true)
    }
}

impl<'a> Metas<'a> {
    /// The row at which the metadata stands, if it can be read.
    fn row(&mut self) -> Option<Result<(Vec<u8>, Meta), DbError>> {
        let (key, value) = self.rows.item()?;
        let decoded = Meta::decode(value).ok_or_else(|| self.db.undecodable(META));
        self.last = key.to_vec();
        Some(decoded.map(|meta| (self.last.clone(), meta)))
    }

    /// The next block, by its own bytes.
    fn hop(&mut self) -> Option<Result<(Vec<u8>, Meta), DbError>> {
        let db = self.db;
        loop {
            let blocks = self.hopping.get_or_insert_with(|| {
                let mut rows = db.db.raw_iterator_cf(db.family(BLOCKS));
                rows.seek(head(&self.last));
                Blocks { rows, together: Vec::new() }
            });
            let Some(key) = blocks.together.pop() else {
                match blocks.gather() {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(error) => return Some(Err(db.failed(error))),
                }
            };
            if key < self.last || (self.begun && key == self.last) {
                continue;
            }
            self.begun = true;
            self.last.clone_from(&key);
            match db.meta(&key) {
                Ok(Some(meta)) => return Some(Ok((key, meta))),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Iterator for Metas<'_> {
    type Item = Result<(Vec<u8>, Meta), DbError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(blocks) = &self.hopping {
            // Behind the damage the metadata can be read again.
            match blocks.next_head().filter(|_| blocks.together.is_empty()) {
                Some(head) => self.rows.seek(head),
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
