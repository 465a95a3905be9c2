//! Where an import's blocks go.

use btfs_bittorrent::create::TorrentFile;
use btfs_storage::{BlockSink, Bytes, Cid, Class, InPlace, Ingest, Ingested, Pin, Place, Store, StoreError};
use tokio_util::sync::CancellationToken;

/// Where an import's blocks go.
pub(in crate::calls) enum Target {
    /// Into the store.
    Store(Ingest),
    /// Into the store, but for what files hold.
    InPlace(InPlace),
    /// Nowhere: for `--only-hash`.
    Nowhere,
}

impl Target {
    pub(in crate::calls) fn of(store: &Store, only_hash: bool) -> Result<Target, StoreError> {
        if only_hash { Ok(Target::Nowhere) } else { Ok(Target::Store(store.ingest(Class::Own)?)) }
    }

    /// Makes it durable, with its pins.
    pub(in crate::calls) fn finish(
        mut self,
        store: &Store,
        pins: impl IntoIterator<Item = Pin>,
        torrent: Option<&TorrentFile>,
    ) -> Result<Ingested, StoreError> {
        let mut batch = store.state().batch();
        let ingest = match &mut self {
            Target::Store(ingest) => ingest,
            Target::InPlace(places) => places.ingest(),
            Target::Nowhere => return Ok(Ingested::default()),
        };
        if let Some(torrent) = torrent {
            torrent.record(store, ingest, &mut batch)?;
        }
        for pin in pins {
            store.renew_pin(&mut batch, &pin)?;
        }
        match self {
            Target::Store(ingest) => ingest.finish(batch),
            Target::InPlace(places) => places.finish(batch),
            Target::Nowhere => Ok(Ingested::default()),
        }
    }
}

impl BlockSink for Target {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        match self {
            Target::Store(ingest) => ingest.put(cid, data),
            Target::InPlace(places) => places.put(cid, data),
            Target::Nowhere => Ok(()),
        }
    }

    fn put_located(&mut self, cid: &Cid, data: Bytes, place: &Place<'_>) -> Result<(), StoreError> {
        match self {
            Target::InPlace(places) => places.put_located(cid, data, place),
            _ => self.put(cid, data),
        }
    }
}

/// A target that takes blocks only as long as whoever asked for the import is there: a thread that imports cannot be
/// ended from outside.
pub(super) struct WhileAsked<'a> {
    pub target: &'a mut Target,
    pub gone: CancellationToken,
}

impl WhileAsked<'_> {
    fn check(&self) -> Result<(), StoreError> {
        if self.gone.is_cancelled() { Err(StoreError::Abandoned) } else { Ok(()) }
    }
}

impl BlockSink for WhileAsked<'_> {
    fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
        self.check()?;
        self.target.put(cid, data)
    }

    fn put_located(&mut self, cid: &Cid, data: Bytes, place: &Place<'_>) -> Result<(), StoreError> {
        self.check()?;
        self.target.put_located(cid, data, place)
    }
}
