//! `get`, `cat`, `ls`, `pin` and `repo`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use btfs_storage::read::Outward;
use btfs_storage::sealed::Link;
use clap::Args;
use futures::TryStreamExt;

use super::Context;
use super::sealed::Wanted;
use crate::calls::files::{Entry, GetRequest, LsRequest};
use crate::config::ByteSize;

#[derive(Debug, Args)]
pub struct Get {
    /// A CID, /ipfs/CID/path, CID#key, infohash, magnet link or .torrent file. Every user of this machine can see
    /// arguments while the command runs; --link-file keeps a key from them.
    #[arg(required_unless_present = "link_file")]
    reference: Option<String>,
    /// Read the link of a private file, CID#key, from the first line of this file; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "reference")]
    link_file: Option<PathBuf>,
    /// Where to; default: the last segment of the reference.
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// A peer of its torrent swarm, as IP:PORT; may be repeated.
    #[arg(long = "peer", value_name = "IP:PORT")]
    peers: Vec<String>,
    /// Keep it in the store.
    #[arg(long)]
    pin: bool,
    /// Write a tar archive.
    #[arg(long, short)]
    archive: bool,
    /// Compress by gzip; a directory becomes an archive.
    #[arg(long, short = 'C')]
    compress: bool,
    /// How hard, from 1 to 9.
    #[arg(long, short = 'l', value_name = "LEVEL", requires = "compress")]
    compression_level: Option<u32>,
    /// Symlinks that lead out of what is written: an error, left out, or written as they are.
    #[arg(long, value_enum, value_name = "WHAT", default_value = "refuse")]
    symlinks: Symlinks,
    /// Seconds without a new block before it gives up.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

/// [`Outward`] as an option.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Symlinks {
    Refuse,
    Skip,
    Keep,
}

impl From<Symlinks> for Outward {
    fn from(symlinks: Symlinks) -> Self {
        match symlinks {
            Symlinks::Refuse => Outward::Refuse,
            Symlinks::Skip => Outward::Skip,
            Symlinks::Keep => Outward::Keep,
        }
    }
}

impl Get {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let reference = match Wanted::given(self.reference.clone(), self.link_file.as_deref())? {
            Wanted::Sealed(link) => return self.sealed(context, &link).await,
            Wanted::Plain(reference) => absolute_torrent(reference)?,
        };
        let target = match self.output {
            Some(target) => target,
            None => {
                let mut target = default_target(&reference)?.into_os_string();
                target.push(if self.archive { ".tar" } else { "" });
                target.push(if self.compress { ".gz" } else { "" });
                target.into()
            }
        };
        let request = GetRequest {
            reference,
            target: std::path::absolute(&target)?,
            peers: self.peers,
            pin: self.pin,
            archive: self.archive,
            compress: self.compress,
            compression_level: self.compression_level,
            symlinks: self.symlinks.into(),
            timeout_secs: self.timeout,
        };
        context
            .run(&request, |got| {
                let rebuilt = match got.leaves_from_parity {
                    0 => String::new(),
                    n => format!(", {n} blocks rebuilt from parity"),
                };
                format!(
                    "{} -> {} ({}, {} blocks fetched{rebuilt})",
                    got.cid,
                    got.path.display(),
                    ByteSize(got.size),
                    got.blocks_fetched
                )
            })
            .await
    }
}

impl Get {
    async fn sealed(&self, context: &Context, link: &Link) -> anyhow::Result<()> {
        if self.pin {
            bail!(
                "--pin keeps the sealed bytes: `btfs pin add {}` does that, and announces them",
                link.reference
            );
        }
        if self.archive || self.compress {
            bail!("what is sealed is one file, written as it was; `btfs cat LINK | gzip` compresses it");
        }
        let target = match &self.output {
            Some(target) => target.clone(),
            None => default_target(&link.reference)?,
        };
        super::sealed::get(context, link, &target).await
    }
}

/// Text from the command line as a value in a query.
pub(super) fn query_value(text: &str) -> percent_encoding::PercentEncode<'_> {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC)
}

/// The daemon may run in another directory.
pub(super) fn absolute_torrent(reference: String) -> anyhow::Result<String> {
    use crate::retrieve::Reference;
    match reference.parse() {
        Ok(Reference::TorrentFile(path)) => Ok(std::path::absolute(path)?.display().to_string()),
        _ => Ok(reference),
    }
}

fn default_target(reference: &str) -> anyhow::Result<PathBuf> {
    use crate::retrieve::Reference;
    Ok(match reference.parse::<Reference>()? {
        Reference::Ipfs { root, path } => match path.rsplit('/').next() {
            Some(name) if !name.is_empty() => name.into(),
            _ => root.to_string().into(),
        },
        Reference::Infohash(hash) => hex::encode(hash).into(),
        Reference::TorrentFile(path) => path.file_stem().context("the .torrent file has no name")?.into(),
        Reference::Magnet(_) => bail!("name the target of a magnet link with --output"),
    })
}

#[derive(Debug, Args)]
pub struct Cat {
    /// A CID, /ipfs/CID/path or CID#key. Every user of this machine can see arguments while the command runs;
    /// --link-file keeps a key from them.
    #[arg(required_unless_present = "link_file")]
    reference: Option<String>,
    /// Read the link of a private file, CID#key, from the first line of this file; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "reference")]
    link_file: Option<PathBuf>,
    /// First byte.
    #[arg(long, default_value_t = 0)]
    offset: u64,
    /// At most so many bytes.
    #[arg(long)]
    length: Option<u64>,
}

impl Cat {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let reference = match Wanted::given(self.reference, self.link_file.as_deref())? {
            Wanted::Sealed(link) => {
                return super::sealed::cat(context, &link, self.offset, self.length).await;
            }
            Wanted::Plain(reference) => reference,
        };
        let client = context.client().await?;
        let length = self.length.map(|length| format!("&length={length}")).unwrap_or_default();
        let reference = query_value(&reference);
        let mut chunks = client
            .bytes(&format!("/api/v1/cat?reference={reference}&offset={}{length}", self.offset))
            .await?;
        while let Some(chunk) = chunks.try_next().await? {
            super::print(&chunk)?;
        }
        drop(chunks);
        client.close().await
    }
}

#[derive(Debug, Args)]
pub struct Ls {
    /// A CID or /ipfs/CID/path.
    reference: String,
}

impl Ls {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        context.run(&LsRequest { reference: self.reference }, |listing| lines(&listing.entries, entry)).await
    }
}

fn entry(entry: &Entry) -> String {
    let slash = if entry.kind == "directory" { "/" } else { "" };
    format!("{}  {:>10}  {}{slash}", entry.cid, ByteSize(entry.size).to_string(), entry.name)
}

fn lines<T>(items: &[T], line: impl Fn(&T) -> String) -> String {
    items.iter().map(line).collect::<Vec<_>>().join("\n")
}
