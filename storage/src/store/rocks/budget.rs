//! What the databases of a store may take together, so that many directories cost hardly more than one.

use rocksdb::Cache;

/// One write buffer of a single database, in bytes. 64 MiB ones reached 220 MB resident and are hardly faster.
const BUFFER: usize = 16 << 20;
/// The least that several may have each: a flush makes a blob file of at most so many bytes, and a store must not fall
/// into thousands of small ones.
const LEAST_BUFFER: usize = 8 << 20;
/// Cache for index, filter and metadata blocks, in bytes: the filters of ten million blocks, twice 10 bits each, and
/// their indexes. Block bytes are not cached here: the system does.
const CACHE: usize = 32 << 20;
/// Open table and blob files. Far below the usual descriptor limit of 1,024, which sockets need.
const OPEN_FILES: usize = 256;

/// The share of one database, and the cache that all have in common.
#[derive(Clone)]
pub struct Budget {
    cache: Cache,
    databases: usize,
}

impl Budget {
    /// For so many databases.
    pub fn new(databases: usize) -> Budget {
        Budget { cache: Cache::new_lru_cache(CACHE), databases }
    }

    /// The same for another number, from now on: what is open keeps its share until it is opened again.
    pub fn among(&self, databases: usize) -> Budget {
        Budget { cache: self.cache.clone(), databases }
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.cache
    }

    pub(super) fn buffer(&self) -> usize {
        (BUFFER / self.databases.max(1)).max(LEAST_BUFFER)
    }

    pub(super) fn open_files(&self) -> i32 {
        (OPEN_FILES / self.databases.max(1)) as i32
    }
}
