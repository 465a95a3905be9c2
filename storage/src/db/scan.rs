//! Reading tables in key order.

use rocksdb::{DBRawIterator, ReadOptions};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{DbError, StateDb, Table, TableKey, decode_value};

impl StateDb {
    /// The records whose encoded key begins with `prefix`, in key order; all of them for an empty prefix. The scan
    /// sees the table as it was when it began.
    pub fn scan<'a, K: TableKey, V: Serialize + DeserializeOwned>(
        &'a self,
        table: &Table<K, V>,
        prefix: &[u8],
    ) -> impl Iterator<Item = Result<(K, V), DbError>> + use<'a, K, V> {
        self.records(table, prefix, after(prefix))
    }

    /// The records whose encoded key is `start` or above, in key order.
    pub fn scan_from<'a, K: TableKey, V: Serialize + DeserializeOwned>(
        &'a self,
        table: &Table<K, V>,
        start: &[u8],
    ) -> impl Iterator<Item = Result<(K, V), DbError>> + use<'a, K, V> {
        self.records(table, start, None)
    }

    /// How many records a table has, as of now. Reads over them without decoding any.
    pub fn count<K: TableKey, V>(&self, table: &Table<K, V>) -> Result<u64, DbError> {
        let mut rows = self.inner.db.raw_iterator_cf(self.inner.table(table.name)?);
        rows.seek_to_first();
        let mut count = 0;
        while rows.valid() {
            count += 1;
            rows.next();
        }
        rows.status().map_err(|e| self.inner.failed(e))?;
        Ok(count)
    }

    fn records<'a, K: TableKey, V: Serialize + DeserializeOwned>(
        &'a self,
        table: &Table<K, V>,
        start: &[u8],
        end: Option<Vec<u8>>,
    ) -> impl Iterator<Item = Result<(K, V), DbError>> + use<'a, K, V> {
        let name = table.name;
        let (mut failed, rows) = match self.inner.table(name) {
            Err(error) => (Some(error), None),
            Ok(family) => {
                let mut options = ReadOptions::default();
                if let Some(end) = end {
                    options.set_iterate_upper_bound(end);
                }
                let mut rows = self.inner.db.raw_iterator_cf_opt(family, options);
                rows.seek(start);
                (None, Some(rows))
            }
        };
        let mut rows: Option<DBRawIterator<'a>> = rows;
        std::iter::from_fn(move || {
            if let Some(error) = failed.take() {
                return Some(Err(error));
            }
            let cursor = rows.as_mut()?;
            let Some((key, value)) = cursor.item() else {
                let status = cursor.status();
                rows = None;
                return status.err().map(|e| Err(self.inner.failed(e)));
            };
            let record = K::decode(key)
                .ok_or_else(|| DbError::Undecodable { table: name, detail: "the key is malformed".into() })
                .and_then(|key| Ok((key, decode_value(name, value)?)));
            cursor.next();
            Some(record)
        })
    }
}

/// The first byte string above all that begin with `prefix`; `None` if there is none.
fn after(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}
