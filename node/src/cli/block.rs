//! `block` and `refs`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use axum::body::Body;
use clap::{Args, Subcommand};
use futures::TryStreamExt;

use super::Context;
use super::client::Client;
use super::files::query_value;
use crate::calls::block::{BlockRemoveRequest, BlockStat, BlockStatRequest, PutBlock, RemovedBlock};
use crate::calls::refs::Line;

#[derive(Debug, Subcommand)]
pub enum Block {
    /// Print a block's bytes; fetches it if it is not here.
    Get {
        /// A CID or /ipfs/CID/path.
        cid: String,
    },
    /// Store bytes as a block, as they are, and print its CID.
    Put(Put),
    /// Remove blocks that no pin needs.
    Rm {
        /// CIDs or /ipfs/CID/path.
        #[arg(required = true)]
        cids: Vec<String>,
        /// Blocks that are not here are no errors.
        #[arg(long, short)]
        force: bool,
    },
    /// Show a block's size; fetches it if it is not here.
    Stat {
        /// A CID or /ipfs/CID/path.
        cid: String,
    },
}

#[derive(Debug, Args)]
pub struct Put {
    /// Files, each a block; standard input if there is none, or for `-`.
    files: Vec<PathBuf>,
    /// The codec in the CID: raw, dag-pb, dag-cbor, dag-json, cbor or json. The bytes are not looked at.
    #[arg(long, default_value = "raw")]
    cid_codec: String,
    /// Old form of --cid-codec; `v0` gives a CIDv0.
    #[arg(long, short)]
    format: Option<String>,
    /// The hash function of the CID, such as sha2-256, sha3-512, blake2b-256, blake3 or identity.
    #[arg(long, default_value = "sha2-256")]
    mhtype: String,
    /// Bytes of the digest; -1 is the function's own length.
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    mhlen: i64,
    /// Keep it, with everything below it.
    #[arg(long)]
    pin: bool,
}

impl Block {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Stat { cid } => {
                context
                    .run(&BlockStatRequest { cid }, |stat: &BlockStat| {
                        format!("{}  {} B", stat.cid, stat.size)
                    })
                    .await
            }
            Self::Rm { cids, force } => remove(context, BlockRemoveRequest { cids, force }).await,
            Self::Get { cid } => {
                stream(context, &format!("/api/v1/block/get?reference={}", query_value(&cid))).await
            }
            Self::Put(put) => {
                let format = put.format.as_deref().map(query_value);
                let format = format.map(|format| format!("&format={format}")).unwrap_or_default();
                let query = format!(
                    "/api/v1/block/put?cid_codec={}&mhtype={}&mhlen={}&pin={}{format}",
                    query_value(&put.cid_codec),
                    query_value(&put.mhtype),
                    put.mhlen,
                    put.pin
                );
                put_all(context, put.files, &query).await
            }
        }
    }
}

async fn remove(context: &Context, request: BlockRemoveRequest) -> anyhow::Result<()> {
    let client = context.client().await?;
    let removed = client.call(&request).await;
    client.close().await?;
    let removed = removed?;
    context.show(&removed, |removed| {
        let gone = removed.blocks.iter().filter(|block| block.error.is_none());
        gone.map(|block| format!("removed {}", block.cid)).collect::<Vec<_>>().join("\n")
    })?;
    let failed =
        |block: &RemovedBlock| Some(format!("cannot remove {}: {}", block.cid, block.error.as_ref()?));
    let failed: Vec<String> = removed.blocks.iter().filter_map(failed).collect();
    if failed.is_empty() { Ok(()) } else { bail!(failed.join("\n")) }
}

/// Prints a stream of bytes.
pub(super) async fn stream(context: &Context, path_and_query: &str) -> anyhow::Result<()> {
    let client = context.client().await?;
    let mut chunks = client.bytes(path_and_query).await?;
    while let Some(chunk) = chunks.try_next().await? {
        super::print(&chunk)?;
    }
    drop(chunks);
    client.close().await
}

/// Uploads files, or standard input, one by one, and shows what became of each.
pub(super) async fn put_all(context: &Context, mut files: Vec<PathBuf>, query: &str) -> anyhow::Result<()> {
    if files.is_empty() {
        files.push("-".into());
    }
    let client = context.client().await?;
    let mut outcome = Ok(());
    for file in &files {
        outcome = put_one(context, &client, file, query).await;
        if outcome.is_err() {
            break;
        }
    }
    client.close().await?;
    outcome
}

async fn put_one(context: &Context, client: &Client, file: &Path, query: &str) -> anyhow::Result<()> {
    let body = if file.as_os_str() == "-" {
        Body::from_stream(tokio_util::io::ReaderStream::new(tokio::io::stdin()))
    } else {
        let file =
            tokio::fs::File::open(file).await.with_context(|| format!("cannot read {}", file.display()))?;
        Body::from_stream(tokio_util::io::ReaderStream::new(file))
    };
    let put: PutBlock = client.upload(query, body).await?;
    context.show(&put, |put| put.cid.clone())
}

/// List the links of blocks.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Refs {
    #[command(subcommand)]
    command: Option<RefsCommand>,
    /// CIDs or /ipfs/CID/path.
    #[arg(required = true)]
    references: Vec<String>,
    /// What to print of each link, with <src>, <dst> and <linkname>.
    #[arg(long, default_value = "<dst>")]
    format: String,
    /// Print `<src> -> <dst>`.
    #[arg(long, short)]
    edges: bool,
    /// Each link once.
    #[arg(long, short)]
    unique: bool,
    /// Links of links, too.
    #[arg(long, short)]
    recursive: bool,
    /// How far down with --recursive; -1 is all the way.
    #[arg(long, default_value_t = -1, allow_hyphen_values = true)]
    max_depth: i64,
}

#[derive(Debug, Subcommand)]
enum RefsCommand {
    /// Every block in the local store.
    Local,
}

impl Refs {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let path = match &self.command {
            Some(RefsCommand::Local) => "/api/v1/refs/local".to_owned(),
            None => {
                let arguments =
                    self.references.iter().map(|reference| format!("&arg={}", query_value(reference)));
                format!(
                    "/api/v1/refs?format={}&edges={}&unique={}&recursive={}&max-depth={}{}",
                    query_value(&self.format),
                    self.edges,
                    self.unique,
                    self.recursive,
                    self.max_depth,
                    arguments.collect::<String>()
                )
            }
        };
        let client = context.client().await?;
        let mut chunks = client.bytes(&path).await?;
        let mut pending = Vec::new();
        let mut failed = None;
        while let Some(chunk) = chunks.try_next().await? {
            pending.extend_from_slice(&chunk);
            let Some(end) = pending.iter().rposition(|byte| *byte == b'\n') else { continue };
            let whole: Vec<u8> = pending.drain(..=end).collect();
            failed = show(context, &whole)?.or(failed);
        }
        drop(chunks);
        client.close().await?;
        match failed {
            Some(error) => bail!(error),
            None => Ok(()),
        }
    }
}

/// Prints whole lines; answers an error among them.
fn show(context: &Context, lines: &[u8]) -> anyhow::Result<Option<String>> {
    let (mut text, mut failed) = (String::new(), None);
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line: Line = serde_json::from_slice(line)?;
        if !line.err.is_empty() {
            failed = Some(line.err);
        } else if context.json {
            text.push_str(&format!("{}\n", serde_json::to_string(&line)?));
        } else {
            text.push_str(&format!("{}\n", line.link));
        }
    }
    super::print(text.as_bytes())?;
    Ok(failed)
}
