//! DAGs as CAR files: `dag export` and `dag import`.

use std::io::{Read, Seek};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use btfs_storage::car::{self, CarError};
use btfs_storage::{Bytes, Cid, Class, Ingest, PinKind, Store};
use futures::{Stream, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::files::{announce, own_pin, parse_content, retrieve_error};
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::calls::absolute;
use crate::node::Node;
use crate::retrieve::Retriever;

/// The media type of a CAR.
pub const CAR: &str = "application/vnd.ipld.car";

/// Brings in CAR files of this machine.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DagImportRequest {
    /// Absolute paths. A DAG may be spread over several files.
    pub paths: Vec<PathBuf>,
    /// Do not pin the roots that the files name: the collector may take what they brought.
    pub no_pin_roots: bool,
}

/// What CAR files brought.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DagImported {
    /// The roots that the files name, each once.
    pub roots: Vec<ImportedRoot>,
    /// Blocks in the files, repetitions included.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A root of a CAR file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImportedRoot {
    /// The root.
    pub cid: String,
    /// Whether it is pinned now.
    pub pinned: bool,
    /// Why it could not be pinned: its DAG is not complete here, for instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

call!(DagImportRequest => DagImported, "dag/import");

/// How a CAR that comes as a body is brought in.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DagImportQuery {
    /// As in [`DagImportRequest`].
    pub no_pin_roots: bool,
}

/// Which DAG is written out.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct DagExportQuery {
    /// CID or /ipfs path.
    pub reference: String,
}

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    route::<DagImportRequest, _, _>(router, import)
        .route("/api/v1/dag/export", axum::routing::post(export_route))
        .route("/api/v1/dag/import-stream", axum::routing::post(import_stream))
}

async fn export_route(
    State(node): State<Arc<Node>>,
    Query(query): Query<DagExportQuery>,
) -> Result<Response, ApiError> {
    export(node, &query.reference).await
}

/// A DAG as a CARv1, as it is written. What is missing is fetched first, so that a CAR that begins is likely to end.
pub async fn export(node: Arc<Node>, reference: &str) -> Result<Response, ApiError> {
    let reference = parse_content(reference)?;
    let retriever = Retriever::new(node.clone());
    let cid = retriever.resolve(&reference, &[], &Progress::default()).await.map_err(retrieve_error)?;
    let fetched = retriever.whole(&cid, None, &Progress::default()).await.map_err(retrieve_error)?;
    let (store, lease) = (node.store.clone(), fetched.lease);
    let body = super::body::written(move |out| {
        let done = car::export(&store, &cid, out, &mut |_| {});
        drop(lease);
        done.map(drop)
    });
    Ok(([(header::CONTENT_TYPE, CAR)], body).into_response())
}

async fn import(node: Arc<Node>, request: DagImportRequest, progress: Progress) -> Answered<DagImported> {
    let mut importing = Importing::begin(&node.store)?;
    for path in request.paths {
        absolute(&path)?;
        let progress = progress.clone();
        let work = move || -> anyhow::Result<Importing> {
            let context = || format!("{}; nothing was pinned", path.display());
            let mut file =
                std::fs::File::open(&path).map_err(anyhow::Error::new).map_err(|e| e.context(context()))?;
            let total = file.seek(std::io::SeekFrom::End(0)).and_then(|end| file.rewind().map(|()| end)).ok();
            let mut step = |bytes| progress.step("importing", bytes, total);
            importing.file(file, &mut step).map_err(|error| anyhow::Error::new(error).context(context()))?;
            Ok(importing)
        };
        importing = tokio::task::spawn_blocking(work).await??;
    }
    finish(&node, importing, !request.no_pin_roots).await
}

async fn import_stream(
    State(node): State<Arc<Node>>,
    Query(query): Query<DagImportQuery>,
    body: Body,
) -> Result<axum::Json<DagImported>, ApiError> {
    let content = body.into_data_stream().map_err(std::io::Error::other);
    let importing = Importing::begin(&node.store)?;
    let importing = import_content(importing, Box::pin(content)).await?;
    Ok(axum::Json(finish(&node, importing, !query.no_pin_roots).await?))
}

/// Blocks of CAR files on their way into the store.
pub struct Importing {
    ingest: Ingest,
    roots: Vec<Cid>,
    blocks: u64,
    bytes: u64,
}

impl Importing {
    /// Begins with no file.
    pub fn begin(store: &Store) -> Answered<Importing> {
        Ok(Importing { ingest: store.ingest(Class::Own)?, roots: Vec::new(), blocks: 0, bytes: 0 })
    }

    /// Takes the blocks of one file.
    fn file(&mut self, input: impl Read, progress: &mut dyn FnMut(u64)) -> Result<(), CarError> {
        let imported = car::import(input, &mut self.ingest, progress)?;
        self.blocks += imported.blocks;
        self.bytes += imported.bytes;
        for root in imported.roots {
            if !self.roots.contains(&root) {
                self.roots.push(root);
            }
        }
        Ok(())
    }

    /// Makes all blocks durable and then, if asked, pins each root whose DAG is complete: one that is not does not keep
    /// the others from being pinned.
    fn finish(mut self, store: &Store, pin: bool) -> Answered<DagImported> {
        self.ingest.checkpoint(store.state().batch())?;
        let mut roots = Vec::with_capacity(self.roots.len());
        for root in &self.roots {
            let failed = if pin { keep(store, *root).err() } else { None };
            roots.push(ImportedRoot {
                cid: root.to_string(),
                pinned: pin && failed.is_none(),
                error: failed.map(|error| error.to_string()),
            });
        }
        Ok(DagImported { roots, blocks: self.blocks, bytes: self.bytes })
    }
}

/// Pins a root.
fn keep(store: &Store, root: Cid) -> Result<(), btfs_storage::StoreError> {
    let mut batch = store.state().batch();
    store.renew_pin(&mut batch, &own_pin(root, None, PinKind::Recursive))?;
    Ok(store.state().commit(batch)?)
}

/// Takes the blocks of a CAR that comes as a stream.
pub async fn import_content<S>(mut importing: Importing, content: S) -> Answered<Importing>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    let work = super::body::blocking(content, move |reader| {
        importing.file(reader, &mut |_| {})?;
        Ok::<_, CarError>(importing)
    });
    Ok(work.await?.map_err(|error| anyhow::Error::new(error).context("nothing was pinned"))?)
}

/// Makes everything durable, pins the roots and announces them.
pub async fn finish(node: &Arc<Node>, importing: Importing, pin: bool) -> Answered<DagImported> {
    let store = node.store.clone();
    let roots = importing.roots.clone();
    let imported = tokio::task::spawn_blocking(move || importing.finish(&store, pin)).await??;
    for (root, told) in roots.iter().zip(&imported.roots) {
        if told.pinned {
            announce(node, *root).await;
        }
    }
    Ok(imported)
}
