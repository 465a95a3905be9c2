//! `add`: files, directories and streams into the store.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use btfs_bittorrent::create::{self, TorrentFile};
use btfs_storage::import::{
    self, Chunker, DirBuilder, IgnoreRules, ImportOptions, Imported, Layout, Overrides, Profile,
};
use btfs_storage::unixfs::Metadata;
use btfs_storage::{BlockSink, Bytes, Cid, Class, InPlace, Ingest, Pin, PinKind, Place, Store, StoreError};
use futures::{Stream, TryStreamExt};
use serde::{Deserialize, Serialize};

use super::body::{self, Pieces};
use super::files::{announce, own_pin, private_pin};
use crate::api::call::{Answered, ApiError, Progress, route};
use crate::call;
use crate::node::Node;

/// How content becomes blocks, and what is done with them. The names and meanings are those of Kubo's options.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AddOptions {
    /// `unixfs-v1-2025` (default) or `unixfs-v0-2015`; the rest says what differs from it.
    pub profile: Option<String>,
    /// `size-N`, `rabin[-AVG|-MIN-AVG-MAX]`, `buzhash` or `fastcdc[-AVG|-MIN-AVG-MAX]`.
    pub chunker: Option<String>,
    /// Trickle layout instead of the balanced one.
    pub trickle: bool,
    /// 0 or 1; without `raw_leaves`, 1 makes leaves raw and 0 dag-pb.
    pub cid_version: Option<u8>,
    /// Whether leaf blocks are the content itself.
    pub raw_leaves: Option<bool>,
    /// Put small blocks into their CIDs.
    pub inline: bool,
    /// Bytes of the largest such block; default 32, at most 64.
    pub inline_limit: Option<usize>,
    /// Most links of a file's node.
    pub max_file_links: Option<usize>,
    /// Entries above which a directory is sharded whatever its size.
    pub max_directory_links: Option<usize>,
    /// Buckets of a shard of a large directory.
    pub max_hamt_fanout: Option<u32>,
    /// Record the permissions of files and directories.
    pub preserve_mode: bool,
    /// Record times of modification.
    pub preserve_mtime: bool,
    /// Permissions to record, in octal.
    pub mode: Option<String>,
    /// Time of modification to record: seconds since 1970.
    pub mtime: Option<i64>,
    /// Nanoseconds to go with it.
    pub mtime_nsecs: Option<u32>,
    /// Put what is added into a directory, under its name.
    pub wrap_with_directory: bool,
    /// Only compute the CID; store nothing.
    pub only_hash: bool,
    /// Do not pin: the collector may take it.
    pub no_pin: bool,
    /// The pin's name; default: the name of what is added.
    pub pin_name: Option<String>,
    /// Do not announce it, now or when a daemon starts: for sealed files.
    pub private: bool,
}

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
    /// Leave empty directories out.
    pub no_empty_dirs: bool,
    /// Make a torrent in the same pass.
    pub torrent: bool,
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
    /// Distinct blocks.
    pub blocks: u64,
    /// v1 infohash, if a torrent was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub infohash: Option<String>,
    /// Its magnet link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub magnet: Option<String>,
}

call!(AddRequest => Added, "add");

pub(super) fn routes(router: Router<Arc<Node>>) -> Router<Arc<Node>> {
    route::<AddRequest, _, _>(router, add).route("/api/v1/add-stream", axum::routing::post(add_stream))
}

/// Largest block that `--inline` puts into its CID unless a limit is given; Kubo's.
const INLINE_LIMIT: usize = 32;

impl AddOptions {
    /// Options from a query, each under its name here or, with hyphens, in Kubo's RPC. What is no option is skipped:
    /// clients send more than matters here.
    pub fn from_query(query: &str) -> Result<AddOptions, ApiError> {
        let mut options = AddOptions::default();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let wrong = |what: &str| ApiError::bad(format!("{name}={value} is not {what}"));
            let flag = || match &*value {
                "" | "true" | "1" => Ok(true),
                "false" | "0" => Ok(false),
                _ => Err(wrong("true or false")),
            };
            macro_rules! number {
                () => {
                    Some(value.parse().map_err(|_| wrong("a number in its range"))?)
                };
            }
            match name.replace('-', "_").as_str() {
                "profile" => options.profile = Some(value.into_owned()),
                "chunker" => options.chunker = Some(value.into_owned()),
                "trickle" => options.trickle = flag()?,
                "cid_version" => options.cid_version = number!(),
                "raw_leaves" => options.raw_leaves = Some(flag()?),
                "inline" => options.inline = flag()?,
                "inline_limit" => options.inline_limit = number!(),
                "max_file_links" => options.max_file_links = number!(),
                "max_directory_links" => options.max_directory_links = number!(),
                "max_hamt_fanout" => options.max_hamt_fanout = number!(),
                "preserve_mode" => options.preserve_mode = flag()?,
                "preserve_mtime" => options.preserve_mtime = flag()?,
                "mode" => options.mode = Some(value.into_owned()),
                "mtime" => options.mtime = number!(),
                "mtime_nsecs" => options.mtime_nsecs = number!(),
                "wrap_with_directory" => options.wrap_with_directory = flag()?,
                "only_hash" => options.only_hash = flag()?,
                "no_pin" => options.no_pin = flag()?,
                "pin" => options.no_pin = !flag()?,
                "private" => options.private = flag()?,
                "pin_name" => options.pin_name = Some(value.into_owned()),
                "hash" if value != "sha2-256" => {
                    return Err(ApiError::bad(format!("content is hashed by sha2-256 here, not by {value}")));
                }
                "nocopy" if flag()? => {
                    return Err(ApiError::bad("a stream lies in no file: `btfs add --nocopy` takes paths"));
                }
                "to_files" if value != "false" => {
                    return Err(ApiError::bad(format!("there is no option {name} here; nothing was added")));
                }
                _ => {}
            }
        }
        Ok(options)
    }

    /// The same options as a query.
    pub fn to_query(&self) -> Result<String, serde_json::Error> {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        if let serde_json::Value::Object(fields) = serde_json::to_value(self)? {
            for (name, value) in fields {
                match value {
                    serde_json::Value::Null => {}
                    serde_json::Value::String(text) => drop(query.append_pair(&name, &text)),
                    other => drop(query.append_pair(&name, &other.to_string())),
                }
            }
        }
        Ok(query.finish())
    }

    /// The profile that these options describe. `metadata`: modes or times are recorded.
    pub(super) fn profile(&self, metadata: bool) -> Result<Profile, ApiError> {
        let profile = profile(self.profile.as_deref())?;
        let chunker = self.chunker.as_deref().map(str::parse::<Chunker>).transpose();
        let overrides = Overrides {
            chunker: chunker.map_err(ApiError::bad)?,
            layout: self.trickle.then_some(Layout::Trickle),
            cid_version: self.cid_version,
            raw_leaves: self.raw_leaves,
            inline: self.inline.then(|| self.inline_limit.unwrap_or(INLINE_LIMIT)),
            max_file_links: self.max_file_links,
            max_directory_links: self.max_directory_links,
            max_hamt_fanout: self.max_hamt_fanout,
            metadata,
        };
        profile.with(&overrides).map_err(ApiError::bad)
    }

    /// The pin that a root gets, if it gets one.
    pub(super) fn pin(&self, root: Cid, name: Option<String>) -> Option<Pin> {
        let pin =
            if self.private { private_pin(root, name) } else { own_pin(root, name, PinKind::Recursive) };
        (!self.no_pin).then_some(pin)
    }

    /// What is recorded of an entry: what is given for all, or its own if that is to be preserved.
    pub(super) fn preserved(
        &self,
        given: Metadata,
        mode: Option<u32>,
        mtime: Option<(i64, u32)>,
    ) -> Metadata {
        let own = Metadata::new(mode, mtime);
        Metadata {
            mode: if self.preserve_mode { own.mode } else { given.mode },
            mtime: if self.preserve_mtime { own.mtime } else { given.mtime },
        }
    }

    /// The mode and time that are given, in the options of an import.
    pub(super) fn given(&self) -> Result<ImportOptions, ApiError> {
        let mode = self.mode.as_deref().map(|mode| {
            u32::from_str_radix(mode, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
                ApiError::bad(format!("{mode} is no mode; modes are octal, such as 0644, up to 7777"))
            })
        });
        let mtime = match (self.mtime, self.mtime_nsecs.unwrap_or(0)) {
            (Some(seconds), nanoseconds @ 0..=999_999_999) => Some((seconds, nanoseconds)),
            (None, 0) => None,
            _ => return Err(ApiError::bad("mtime-nsecs goes from 0 to 999999999, with an mtime")),
        };
        Ok(ImportOptions { mode: mode.transpose()?, mtime, ..ImportOptions::default() })
    }
}

impl AddRequest {
    /// What of the tree is taken in and recorded; reads the file of rules.
    fn import_options(&self) -> Result<ImportOptions, ApiError> {
        let rules = (!self.ignore.is_empty() || self.ignore_rules_path.is_some())
            .then(|| IgnoreRules::new(&self.ignore, self.ignore_rules_path.as_deref()));
        Ok(ImportOptions {
            hidden: self.hidden,
            follow_root: true,
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
        if let Some(path) = given.into_iter().find(|path| !path.is_absolute()) {
            return Err(ApiError::bad(format!("{} is not an absolute path", path.display())));
        }
        if self.torrent && self.options.wrap_with_directory {
            return Err(ApiError::bad("a torrent has its own directory; leave wrap-with-directory out"));
        }
        if self.torrent && self.options.only_hash {
            return Err(ApiError::bad("a torrent is stored and seeded; leave only_hash or torrent out"));
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

/// The profile of a name; the default one without.
pub fn profile(name: Option<&str>) -> Result<Profile, ApiError> {
    match name {
        None => Ok(Profile::V1_2025),
        Some(name) => Profile::by_name(name).ok_or_else(|| {
            ApiError::bad(format!(
                "there is no profile `{name}`; there are unixfs-v1-2025 and unixfs-v0-2015"
            ))
        }),
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
    let work = {
        let name = name.clone();
        move || import_paths(&store, &request, &profile, &options, &name, &progress)
    };
    let (done, torrent) = tokio::task::spawn_blocking(work).await??;
    if let Some(torrent) = &torrent {
        super::torrent::seed(&node, torrent).await?;
    }
    if !only_hash && !private {
        announce(&node, done.root).await;
    }
    Ok(added(done, name, torrent.as_ref()))
}

/// Imports what a request names, and pins it.
fn import_paths(
    store: &Store,
    request: &AddRequest,
    profile: &Profile,
    options: &ImportOptions,
    name: &str,
    progress: &Progress,
) -> anyhow::Result<(Imported, Option<TorrentFile>)> {
    let single = std::fs::metadata(&request.path).ok().filter(|found| found.is_file());
    let total = single.filter(|_| request.with.is_empty()).map(|found| found.len());
    let mut progress = |bytes| progress.step("adding", bytes, total);
    let mut hasher = match request.torrent {
        true => Some(create::Hasher::for_path(&request.path, profile, options, name)?),
        false => None,
    };
    let mut target = match request.nocopy {
        true => Target::InPlace(store.in_place(store.ingest(Class::Own)?)),
        false => Target::of(store, request.options.only_hash)?,
    };
    let done = if request.options.wrap_with_directory {
        let paths: Vec<PathBuf> = [&request.path].into_iter().chain(&request.with).cloned().collect();
        import::import_wrapped(&paths, profile, options, &mut target, &mut progress)?
    } else {
        match &mut hasher {
            Some(hasher) => import::import_path_observed(
                &request.path,
                profile,
                options,
                &mut target,
                &mut progress,
                hasher,
            )?,
            None => import::import_path(&request.path, profile, options, &mut target, &mut progress)?,
        }
    };
    let torrent = hasher.map(|hasher| hasher.finish(done.root)).transpose()?;
    let name = request.options.pin_name.clone().or_else(|| (!name.is_empty()).then(|| name.to_owned()));
    target.finish(store, request.options.pin(done.root, name), torrent.as_ref())?;
    Ok((done, torrent))
}

pub(crate) fn added(done: Imported, name: String, torrent: Option<&TorrentFile>) -> Added {
    Added {
        cid: done.root.to_string(),
        name,
        size: done.size,
        dag_size: done.dag_size,
        blocks: done.blocks,
        infohash: torrent.map(|torrent| torrent.infohash().to_string()),
        magnet: torrent.map(|torrent| torrent.magnet().to_string()),
    }
}

/// Where an import's blocks go.
pub(super) enum Target {
    /// Into the store.
    Store(Ingest),
    /// Into the store, but for what files hold.
    InPlace(InPlace),
    /// Nowhere: for `--only-hash`.
    Nowhere,
}

impl Target {
    pub(super) fn of(store: &Store, only_hash: bool) -> Result<Target, StoreError> {
        if only_hash { Ok(Target::Nowhere) } else { Ok(Target::Store(store.ingest(Class::Own)?)) }
    }

    /// Makes it durable, with its pins.
    pub(super) fn finish(
        mut self,
        store: &Store,
        pins: impl IntoIterator<Item = Pin>,
        torrent: Option<&TorrentFile>,
    ) -> Result<(), StoreError> {
        let mut batch = store.state().batch();
        let ingest = match &mut self {
            Target::Store(ingest) => ingest,
            Target::InPlace(places) => places.ingest(),
            Target::Nowhere => return Ok(()),
        };
        if let Some(torrent) = torrent {
            torrent.record(store, ingest, &mut batch)?;
        }
        for pin in pins {
            store.pin(&mut batch, &pin)?;
        }
        match self {
            Target::Store(ingest) => drop(ingest.finish(batch)?),
            Target::InPlace(places) => drop(places.finish(batch)?),
            Target::Nowhere => {}
        }
        Ok(())
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
        move |reader: Pieces| -> anyhow::Result<Imported> {
            let mut target = Target::of(&store, options.only_hash)?;
            let metadata = given.given();
            let mut done =
                import::import_stream(reader, &profile, &metadata, &mut target, &mut |_| {}, &mut ())?;
            if options.wrap_with_directory {
                let mut directory = DirBuilder::new(&profile).with_metadata(metadata);
                directory.add(&[&name], &done)?;
                done = directory.finish(&mut target)?;
            }
            target.finish(&store, options.pin(done.root, options.pin_name.clone()), None)?;
            Ok(done)
        }
    };
    let done = body::blocking(content, work).await??;
    if !options.only_hash && !options.private {
        announce(node, done.root).await;
    }
    Ok(added(done, name, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_a_query() {
        let options = AddOptions {
            chunker: Some("rabin-16-64-256".into()),
            trickle: true,
            cid_version: Some(0),
            raw_leaves: Some(false),
            mode: Some("0644".into()),
            mtime: Some(-7),
            pin_name: Some("a & b=c".into()),
            ..AddOptions::default()
        };
        let read = AddOptions::from_query(&options.to_query().expect("a query")).expect("options");
        assert_eq!(read, options);
        let kubo = AddOptions::from_query("cid-version=1&raw-leaves=false&pin=false&stream-channels=true");
        let expected = AddOptions {
            cid_version: Some(1),
            raw_leaves: Some(false),
            no_pin: true,
            ..AddOptions::default()
        };
        assert_eq!(kubo.expect("options"), expected);
        assert!(
            AddOptions::from_query("nocopy=false&to-files=false&preserve-mode")
                .is_ok_and(|o| o.preserve_mode)
        );
        for wrong in [
            "trickle=perhaps",
            "cid-version=x",
            "hash=sha3-512",
            "nocopy=true",
            "nocopy",
            "to-files=/",
            "to-files",
        ] {
            assert!(AddOptions::from_query(wrong).is_err(), "{wrong}");
        }
    }
}
