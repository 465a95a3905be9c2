//! `add`: files, directories and streams into the store.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use btfs_bittorrent::create::{self, TorrentFile, Version};
use btfs_storage::hash::Function;
use btfs_storage::import::{self, DirBuilder, IgnoreRules, ImportOptions, Imported, Profile};
use btfs_storage::{Bytes, Class, Ingested, Store};
use futures::{Stream, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::body::{self, Pieces};
use super::files::announce;
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::calls::absolute;
use crate::node::Node;

mod options;
mod target;

pub use options::{AddOptions, profile};
pub(super) use target::Target;
use target::WhileAsked;

/// Stores a file or directory of this machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AddRequest {
    /// Absolute path.
    pub path: PathBuf,
    /// More absolute paths for the same directory; only with `wrap_with_directory`.
    pub with: Vec<PathBuf>,
    /// Take hidden files of directories too.
    pub hidden: bool,
    /// Entries to leave out, in the syntax of `.gitignore`.
    pub ignore: Vec<String>,
    /// Absolute path of a file of such rules.
    pub ignore_rules_path: Option<PathBuf>,
    /// Store what symlinks point to instead of the links.
    pub dereference_symlinks: bool,
    /// The same for those that are given themselves.
    pub dereference_args: bool,
    /// Leave empty directories out.
    pub no_empty_dirs: bool,
    /// Make a torrent in the same pass.
    pub torrent: bool,
    /// Whether it is one of v1 alone, or of v2 (BEP 52), too.
    pub torrent_version: Version,
    /// Leave file contents where they are instead of copying them: the files must stay, and stay the same.
    pub nocopy: bool,
    /// The rest.
    #[serde(flatten)]
    pub options: AddOptions,
}

/// What was stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Added {
    /// The root.
    pub cid: String,
    /// The last segment of the path.
    pub name: String,
    /// Bytes of content.
    pub size: u64,
    /// Bytes of all blocks.
    pub dag_size: u64,
    /// Blocks, repetitions included.
    pub blocks: u64,
    /// Blocks that were not in the store before.
    pub new_blocks: u64,
    /// Their bytes.
    pub new_bytes: u64,
    /// v1 infohash, if a torrent was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infohash: Option<String>,
    /// v2 infohash, if the torrent is a hybrid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infohash_v2: Option<String>,
    /// Its magnet link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub magnet: Option<String>,
}

call!(AddRequest => Added, "add");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    route::<AddRequest, _, _>(router, add).route("/api/v1/add-stream", axum::routing::post(add_stream))
}

impl AddRequest {
    /// What of the tree is taken in and recorded; reads the file of rules.
    fn import_options(&self) -> Result<ImportOptions, ApiError> {
        let rules = (!self.ignore.is_empty() || self.ignore_rules_path.is_some())
            .then(|| IgnoreRules::new(&self.ignore, self.ignore_rules_path.as_deref()));
        Ok(ImportOptions {
            hidden: self.hidden,
            follow_root: self.dereference_args,
            follow_links: self.dereference_symlinks,
            skip_empty_directories: self.no_empty_dirs,
            ignore: rules.transpose().map_err(ApiError::bad)?,
            preserve_mode: self.options.preserve_mode,
            preserve_mtime: self.options.preserve_mtime,
            in_place: self.nocopy,
            ..self.options.given()?
        })
    }

    /// Whether the request is one, before anything is read.
    fn check(&self) -> Result<(), ApiError> {
        let given = [&self.path].into_iter().chain(&self.with).chain(&self.ignore_rules_path);
        given.into_iter().try_for_each(|path| absolute(path))?;
        if self.torrent && self.options.wrap_with_directory {
            return Err(ApiError::bad("a torrent has its own directory; leave wrap-with-directory out"));
        }
        if self.torrent && self.options.only_hash {
            return Err(ApiError::bad("a torrent is stored and seeded; leave only_hash or torrent out"));
        }
        if self.torrent && self.options.function()? != Function::SHA2_256 {
            return Err(ApiError::bad(
                "the blocks of a torrent are named by sha2-256; leave hash or torrent out",
            ));
        }
        if self.nocopy && self.options.only_hash {
            return Err(ApiError::bad("only_hash stores nothing, copied or not; leave nocopy out"));
        }
        if !self.with.is_empty() && !self.options.wrap_with_directory {
            return Err(ApiError::bad("several paths go into one directory only with wrap_with_directory"));
        }
        Ok(())
    }
}

/// Stores a file or directory of this machine.
pub async fn add(node: Arc<Node>, request: AddRequest, progress: Progress) -> Answered<Added> {
    request.check()?;
    // Reads a file, if there is one of rules.
    let (request, options) = tokio::task::spawn_blocking(move || {
        let options = request.import_options();
        (request, options)
    })
    .await?;
    let options = options?;
    let profile = request.options.profile(options.records_metadata())?;
    if request.nocopy && !profile.raw_leaves() {
        return Err(ApiError::bad(
            "only raw leaves can stay in their files: nocopy goes with raw_leaves, and not with modes or times",
        ));
    }
    let name = match request.options.wrap_with_directory {
        true => String::new(),
        false => request.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    let (only_hash, private) = (request.options.only_hash, request.options.private);
    let store = node.store.clone();
    // Of a caller that is gone nobody wants the result.
    let gone = CancellationToken::new();
    let _here = gone.clone().drop_guard();
    let work = {
        let name = name.clone();
        move || import_paths(&store, &request, &profile, &options, &name, &progress, gone)
    };
    let (done, stored, torrent) = tokio::task::spawn_blocking(work).await??;
    if let Some(torrent) = &torrent {
        super::torrent::seed(&node, torrent).await?;
    }
    if !only_hash && !private {
        announce(&node, done.root).await;
    }
    Ok(added(done, stored, name, torrent.as_ref()))
}

/// Imports what a request names, and pins it.
fn import_paths(
    store: &Store,
    request: &AddRequest,
    profile: &Profile,
    options: &ImportOptions,
    name: &str,
    progress: &Progress,
    gone: CancellationToken,
) -> anyhow::Result<(Imported, Ingested, Option<TorrentFile>)> {
    let single = std::fs::metadata(&request.path).ok().filter(|found| found.is_file());
    let total = single.filter(|_| request.with.is_empty()).map(|found| found.len());
    let mut progress = |bytes| progress.step("adding", bytes, total);
    let mut hasher = match request.torrent {
        true => {
            Some(create::Hasher::for_path(&request.path, profile, options, name, request.torrent_version)?)
        }
        false => None,
    };
    let mut target = match request.nocopy {
        true => Target::InPlace(store.in_place(store.ingest(Class::Own)?)),
        false => Target::of(store, request.options.only_hash)?,
    };
    let mut sink = WhileAsked { target: &mut target, gone };
    let done = if request.options.wrap_with_directory {
        let paths: Vec<PathBuf> = [&request.path].into_iter().chain(&request.with).cloned().collect();
        import::import_wrapped(&paths, profile, options, &mut sink, &mut progress)?
    } else {
        match &mut hasher {
            Some(hasher) => import::import_path_observed(
                &request.path,
                profile,
                options,
                &mut sink,
                &mut progress,
                hasher,
            )?,
            None => import::import_path(&request.path, profile, options, &mut sink, &mut progress)?,
        }
    };
    let torrent = hasher.map(|hasher| hasher.finish(done.root)).transpose()?;
    let name = request.options.pin_name.clone().or_else(|| (!name.is_empty()).then(|| name.to_owned()));
    let stored = target.finish(store, request.options.pin(done.root, name), torrent.as_ref())?;
    Ok((done, stored, torrent))
}

pub(crate) fn added(done: Imported, stored: Ingested, name: String, torrent: Option<&TorrentFile>) -> Added {
    Added {
        cid: done.root.to_string(),
        name,
        size: done.size,
        dag_size: done.dag_size,
        blocks: done.blocks,
        new_blocks: stored.new_blocks,
        new_bytes: stored.new_bytes,
        infohash: torrent.map(|torrent| torrent.infohash().to_string()),
        infohash_v2: torrent.and_then(TorrentFile::infohash_v2),
        magnet: torrent.map(|torrent| torrent.magnet().to_string()),
    }
}

async fn add_stream(
    State(node): State<Arc<Node>>,
    RawQuery(query): RawQuery,
    body: Body,
) -> Result<axum::Json<Added>, ApiError> {
    let query = query.unwrap_or_default();
    let name = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "stdin_name");
    let name = name.map(|(_, name)| name.into_owned()).unwrap_or_default();
    let options = AddOptions::from_query(&query)?;
    let content = body.into_data_stream().map_err(std::io::Error::other);
    Ok(axum::Json(add_content(&node, &options, name, Box::pin(content)).await?))
}

/// Stores a stream of bytes as one file; in a directory of its own under `name`, if that is asked for.
pub async fn add_content<S>(
    node: &Arc<Node>,
    options: &AddOptions,
    name: String,
    content: S,
) -> Answered<Added>
where
    S: Stream<Item = std::io::Result<Bytes>> + Send + Unpin,
{
    if options.preserve_mode || options.preserve_mtime {
        return Err(ApiError::bad(
            "a stream has no permissions or times to preserve; mode and mtime can give it some",
        ));
    }
    let given = options.given()?;
    let profile = options.profile(given.records_metadata())?;
    if options.wrap_with_directory && name.is_empty() {
        return Err(ApiError::bad("a stream needs a name (stdin-name) to be in a directory"));
    }
    let store = node.store.clone();
    let work = {
        let (options, name) = (options.clone(), name.clone());
        move |reader: Pieces| -> anyhow::Result<(Imported, Ingested)> {
            let mut target = Target::of(&store, options.only_hash)?;
            let metadata = given.given();
            let mut done =
                import::import_stream(reader, &profile, &metadata, &mut target, &mut |_| {}, &mut ())?;
            if options.wrap_with_directory {
                let mut directory = DirBuilder::new(&profile).with_metadata(metadata);
                directory.add(&[&name], &done)?;
                done = directory.finish(&mut target)?;
            }
            let stored = target.finish(&store, options.pin(done.root, options.pin_name.clone()), None)?;
            Ok((done, stored))
        }
    };
    let (done, stored) = body::blocking(content, work).await??;
    if !options.only_hash && !options.private {
        announce(node, done.root).await;
    }
    Ok(added(done, stored, name, None))
}
