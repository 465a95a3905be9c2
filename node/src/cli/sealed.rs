//! Sealed files: `add --private`, and `get` and `cat` of links with a key.
//!
//! Sealing and opening happen in this process. The daemon sees sealed bytes and the reference before the `#`; the key goes
//! nowhere but into the link, which `add --private` prints or writes to a file of its own.

use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use btfs_storage::sealed::{
    HEADER, Link, SealKey, Sealer, Unsealer, content_size, last_segment, sealed_size,
};
use futures::TryStreamExt;
use serde::Serialize;

use super::Context;
use super::client::Client;
use super::files::query_value;
use super::progress::Bar;
use super::secret;
use crate::api::call::Step;
use crate::calls::add::{AddOptions, Added};
use crate::calls::body;
use crate::calls::stat::StatRequest;
use crate::config::ByteSize;

/// What was sealed and stored.
#[derive(Debug, Serialize)]
struct Private {
    /// The root of the sealed bytes, which anybody may know.
    cid: String,
    /// `CID#key`: whoever has it can read the content. Absent if it went to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    /// The file with the link, if one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    link_file: Option<PathBuf>,
    /// The last segment of the path.
    name: String,
    /// Bytes of content.
    size: u64,
    /// Bytes once sealed.
    sealed_size: u64,
    /// Blocks, repetitions included.
    blocks: u64,
}

/// What `get` and `cat` are to show.
pub(super) enum Wanted {
    /// A sealed file, and its key.
    Sealed(Link),
    /// Anything else.
    Plain(String),
}

impl Wanted {
    /// From the argument, or from the file that keeps a link out of the arguments.
    pub(super) fn given(argument: Option<String>, link_file: Option<&Path>) -> anyhow::Result<Wanted> {
        if let Some(file) = link_file {
            return secret::link(file).map(Wanted::Sealed);
        }
        let text = argument.unwrap_or_default();
        Ok(link(&text)?.map_or(Wanted::Plain(text), Wanted::Sealed))
    }
}

/// The sealed link in an argument; `None` if it is a reference without a key.
fn link(text: &str) -> anyhow::Result<Option<Link>> {
    match text.parse::<Link>() {
        Ok(link) => Ok(Some(link)),
        // A name may have a # in it; a CID does not.
        Err(error) if text.split('/').next().is_some_and(|root| root.contains('#')) => Err(error.into()),
        Err(_) => Ok(None),
    }
}

/// Refuses a key among the arguments of commands that would send it on.
pub(super) fn refuse_keys(arguments: impl Iterator<Item = std::ffi::OsString>) -> anyhow::Result<()> {
    for argument in arguments {
        if let Some(link) = argument.to_str().and_then(|text| text.parse::<Link>().ok()) {
            bail!(
                "the link of {} has a key, and only `btfs get` and `btfs cat` open sealed files; give this command what \
                 stands before the #",
                link.reference
            );
        }
    }
    Ok(())
}

/// How a private file's link is given out.
pub(super) struct Told<'a> {
    /// The file for it, which must not be there; otherwise it is printed.
    pub link_to: Option<&'a Path>,
    /// Nothing else is printed.
    pub quieter: bool,
}

/// Seals a file, or standard input, on its way into the store.
pub(super) async fn add(
    context: &Context,
    client: &Client,
    path: &Path,
    options: &AddOptions,
    told: Told<'_>,
) -> anyhow::Result<()> {
    let link_file = told.link_to.map(LinkFile::new).transpose()?;
    let input = open_input(path)?;
    let total = input.1;
    let key = SealKey::random()?;
    let mut sealer = Sealer::new(input.0, &key)?;
    let sealed = body::written(move |out| std::io::copy(&mut sealer, out).map(drop));
    let mut bar = Bar::new(context.progress);
    let (mut done, total) = (0, total.map(sealed_size));
    let sealed = sealed.into_data_stream().inspect_ok(move |bytes| {
        done += bytes.len() as u64;
        bar.show(&Step { what: "sealing".into(), done, total });
        if total == Some(done) {
            bar.clear();
        }
    });
    let query = format!("/api/v1/add-stream?{}", options.to_query()?);
    let added: Added = client.upload(&query, axum::body::Body::from_stream(sealed)).await?;
    let link = Link { reference: added.cid.clone(), key };
    let link_file = link_file.map(|file| file.keep(&link)).transpose()?;
    let private = Private {
        cid: added.cid,
        link: link_file.is_none().then(|| link.reveal().to_string()),
        link_file,
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        size: content_size(added.size)?,
        sealed_size: added.size,
        blocks: added.blocks,
    };
    context.show(&private, |private| {
        let first = private.link.as_ref().unwrap_or(&private.cid);
        let kept = private.link_file.as_ref().map(|file| format!("\nits link is in {}", file.display()));
        match told.quieter {
            true => first.clone(),
            false => {
                format!("{first}  {}  {}{}", ByteSize(private.size), private.name, kept.unwrap_or_default())
            }
        }
    })
}

/// The file for a new link, which only its owner can read. It is made before anything is sealed, so that no key is lost
/// to a directory that cannot be written to, and gets its name once the link is in it.
struct LinkFile {
    target: PathBuf,
    file: tempfile::NamedTempFile,
}

impl LinkFile {
    fn new(target: &Path) -> anyhow::Result<LinkFile> {
        let target = std::path::absolute(target)?;
        if target.symlink_metadata().is_ok() {
            bail!("{} already exists; nothing was stored. Choose another name", target.display());
        }
        let cannot = || format!("cannot write a link to {}; nothing was stored", target.display());
        let file = tempfile::NamedTempFile::new_in(target.parent().with_context(cannot)?);
        let file = file.with_context(cannot)?;
        Ok(LinkFile { target, file })
    }

    /// Writes the link; it is on the disk when this returns.
    fn keep(self, link: &Link) -> anyhow::Result<PathBuf> {
        let LinkFile { target, file } = self;
        write_link(file, &target, link).with_context(|| {
            format!(
                "{} is stored, but its link could not be written to {}: nobody can open it, so add the file again. \
                 `btfs pin rm {}` lets this one go",
                link.reference,
                target.display(),
                link.reference
            )
        })?;
        Ok(target)
    }
}

fn write_link(mut file: tempfile::NamedTempFile, target: &Path, link: &Link) -> std::io::Result<()> {
    writeln!(file, "{}", *link.reveal())?;
    file.as_file().sync_all()?;
    file.persist_noclobber(target).map_err(|error| error.error)?;
    target.parent().map_or(Ok(()), |directory| std::fs::File::open(directory)?.sync_all())
}

/// A file and its length, or standard input.
fn open_input(path: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path.as_os_str() == "-" {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        bail!(
            "{path} is a directory, and files are sealed one by one. As one archive: `tar c {path} | btfs add --private -`, \
             and back by `btfs cat LINK | tar x`",
            path = path.display()
        );
    }
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

/// Prints the content of a sealed file, or a part of it.
pub(super) async fn cat(
    context: &Context,
    link: &Link,
    offset: u64,
    length: Option<u64>,
) -> anyhow::Result<()> {
    let client = context.client().await?;
    let printed = async {
        let file = Remote::open(&client, link).await?;
        file.read(offset, length.unwrap_or(u64::MAX), &mut super::print).await
    };
    let printed = printed.await;
    client.close().await?;
    printed
}

/// What was opened and written.
#[derive(Debug, Serialize)]
struct Opened {
    /// The reference without its key.
    reference: String,
    /// Where the content is.
    path: PathBuf,
    /// Bytes of content.
    size: u64,
}

/// Writes the content of a sealed file to `target`, which only appears once it is whole.
pub(super) async fn get(context: &Context, link: &Link, target: &Path) -> anyhow::Result<()> {
    let target = std::path::absolute(target)?;
    if target.symlink_metadata().is_ok() {
        bail!("{} already exists; nothing was fetched or written. Choose another name", target.display());
    }
    let cannot = || format!("cannot write {}", target.display());
    let directory = target.parent().with_context(cannot)?;
    let mut file = tempfile::NamedTempFile::new_in(directory).with_context(cannot)?;
    let client = context.client().await?;
    let mut bar = Bar::new(context.progress);
    let written = async {
        let remote = Remote::open(&client, link).await?;
        let (size, mut done) = (remote.unsealer.size(), 0);
        let mut write = |bytes: &[u8]| {
            done += bytes.len() as u64;
            bar.show(&Step { what: "opening".into(), done, total: Some(size) });
            file.write_all(bytes).with_context(cannot)
        };
        remote.read(0, u64::MAX, &mut write).await?;
        Ok(size)
    };
    let written: anyhow::Result<u64> = written.await;
    bar.clear();
    client.close().await?;
    let size = written?;
    file.persist_noclobber(&target).map_err(|error| error.error).with_context(cannot)?;
    let opened = Opened { reference: link.reference.clone(), path: target, size };
    context.show(&opened, |opened| {
        format!("{} -> {} ({})", opened.reference, opened.path.display(), ByteSize(opened.size))
    })
}

/// A sealed file in a node's reach.
struct Remote<'a> {
    client: &'a Client,
    reference: &'a str,
    unsealer: Unsealer,
}

impl<'a> Remote<'a> {
    /// Opens the last segment, so that a wrong key or a changed file is known before anything is shown.
    async fn open(client: &'a Client, link: &'a Link) -> anyhow::Result<Remote<'a>> {
        let reference = link.reference.as_str();
        let stat = client.call(&StatRequest { reference: reference.to_owned() }).await?;
        if stat.kind != "file" {
            bail!("{reference} is a {}; sealed is only ever a file", stat.kind);
        }
        let size = stat.size;
        let sealed = |range| sealed_bytes(client, reference, range);
        let header = sealed(0..size.min(HEADER as u64)).await?;
        // Before the length: what is no sealed file has any.
        let last = match last_segment(size) {
            Ok(last) => sealed(last).await?,
            Err(_) => Vec::new(),
        };
        let unsealer = Unsealer::new(&link.key, size, &header, last)?;
        Ok(Remote { client, reference, unsealer })
    }

    /// Opens segment after segment of a range; what is wanted of each goes to `show`.
    async fn read(
        &self,
        offset: u64,
        length: u64,
        show: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut segments = self.unsealer.segments(offset, length).peekable();
        let Some(first) = segments.peek() else { return Ok(()) };
        let start = first.sealed.start;
        let mut chunks = self.client.bytes(&cat_path(self.reference, start, None)).await?;
        let mut pending: Vec<u8> = Vec::new();
        for segment in segments {
            let wanted = (segment.sealed.end - segment.sealed.start) as usize;
            while pending.len() < wanted {
                match chunks.try_next().await? {
                    Some(chunk) => pending.extend_from_slice(&chunk),
                    None => bail!("the sealed file ended early; what was shown before is whole"),
                }
            }
            let rest = pending.split_off(wanted);
            let content = self.unsealer.open(segment.index, std::mem::replace(&mut pending, rest))?;
            show(&content[segment.wanted])?;
        }
        Ok(())
    }
}

/// A part of the sealed bytes.
async fn sealed_bytes(client: &Client, reference: &str, range: Range<u64>) -> anyhow::Result<Vec<u8>> {
    let path = cat_path(reference, range.start, Some(range.end - range.start));
    let mut chunks = client.bytes(&path).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.try_next().await? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn cat_path(reference: &str, offset: u64, length: Option<u64>) -> String {
    let length = length.map(|length| format!("&length={length}")).unwrap_or_default();
    format!("/api/v1/cat?reference={}&offset={offset}{length}", query_value(reference))
}
