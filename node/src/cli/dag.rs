//! `dag`: blocks as values, and whole DAGs as CAR files.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use axum::body::Body;
use clap::Subcommand;
use futures::TryStreamExt;

use super::Context;
use super::client::Client;
use super::files::query_value;
use super::progress::Bar;
use crate::api::call::Step;
use crate::calls::car::{DagImportRequest, DagImported};
use crate::calls::dag::{DagResolveRequest, DagStatRequest, DagStats};
use crate::config::ByteSize;

#[derive(Debug, Subcommand)]
pub enum Dag {
    /// Store a value as a block and print its CID.
    Put {
        /// Files, each a value; standard input if there is none, or for `-`.
        files: Vec<PathBuf>,
        /// What the input is encoded in: dag-json, dag-cbor, dag-pb or raw.
        #[arg(long, default_value = "dag-json")]
        input_codec: String,
        /// What the block is encoded in.
        #[arg(long, default_value = "dag-cbor")]
        store_codec: String,
        /// The hash function of the CID, such as sha2-256, sha3-512, blake2b-256, blake3 or identity.
        #[arg(long, default_value = "sha2-256")]
        hash: String,
        /// Keep it, with everything below it.
        #[arg(long)]
        pin: bool,
    },
    /// Print a value or a part of it; fetches what is missing.
    Get {
        /// CID/a/b/0, through links from block to block; /ipld/CID/... takes fields of dag-pb nodes only.
        reference: String,
        /// What it is printed in: dag-json, dag-cbor, dag-pb or raw.
        #[arg(long, default_value = "dag-json")]
        output_codec: String,
    },
    /// Show the last block on a path and the rest of the path inside it.
    Resolve {
        /// As in `dag get`.
        reference: String,
    },
    /// Show how large DAGs are; fetches what is missing.
    Stat {
        /// CIDs or /ipfs/CID/path.
        #[arg(required = true)]
        references: Vec<String>,
    },
    /// Write a DAG to standard output as a CAR file; fetches what is missing.
    Export {
        /// A CID or /ipfs/CID/path.
        reference: String,
        /// Show how far it is (on a terminal).
        #[arg(long, short, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
        progress: bool,
    },
    /// Bring in the blocks of CAR files (version 1 or 2) and pin the roots that they name.
    Import {
        /// Files; standard input if there is none, or for `-`.
        files: Vec<PathBuf>,
        /// Pin the roots.
        #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
        pin_roots: bool,
        /// Say how many blocks the files have.
        #[arg(long)]
        stats: bool,
        /// Say nothing.
        #[arg(long)]
        silent: bool,
    },
}

impl Dag {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Put { files, input_codec, store_codec, hash, pin } => {
                let query = format!(
                    "/api/v1/dag/put?input_codec={}&store_codec={}&hash={}&pin={pin}",
                    query_value(&input_codec),
                    query_value(&store_codec),
                    query_value(&hash)
                );
                super::block::put_all(context, files, &query).await
            }
            Self::Get { reference, output_codec } => {
                let (reference, codec) = (query_value(&reference), query_value(&output_codec));
                let path = format!("/api/v1/dag/get?reference={reference}&output_codec={codec}");
                super::block::stream(context, &path).await
            }
            Self::Resolve { reference } => {
                context
                    .run(&DagResolveRequest { reference }, |at| match at.remainder.as_str() {
                        "" => at.cid.clone(),
                        remainder => format!("{}/{remainder}", at.cid),
                    })
                    .await
            }
            Self::Stat { references } => context.run(&DagStatRequest { references }, sizes).await,
            Self::Export { reference, progress } => export(context, &reference, progress).await,
            Self::Import { files, pin_roots, stats, silent } => {
                let client = context.client().await?;
                let imported = import(&client, files, pin_roots).await;
                client.close().await?;
                let imported = imported?;
                if !silent {
                    context.show(&imported, |imported| told(imported, stats))?;
                }
                match imported.roots.iter().find_map(|root| Some((root, root.error.as_ref()?))) {
                    Some((root, error)) => bail!("pinning root {} failed: {error}", root.cid),
                    None => Ok(()),
                }
            }
        }
    }
}

async fn export(context: &Context, reference: &str, progress: bool) -> anyhow::Result<()> {
    let client = context.client().await?;
    let mut bar = Bar::new(context.progress && progress);
    let mut chunks =
        client.bytes(&format!("/api/v1/dag/export?reference={}", query_value(reference))).await?;
    let mut done = 0;
    while let Some(chunk) = chunks.try_next().await? {
        done += chunk.len() as u64;
        bar.show(&Step { what: "exporting".into(), done, total: None });
        super::print(&chunk)?;
    }
    bar.clear();
    drop(chunks);
    client.close().await
}

async fn import(client: &Client, files: Vec<PathBuf>, pin_roots: bool) -> anyhow::Result<DagImported> {
    if files.is_empty() || files.iter().any(|file| file.as_os_str() == "-") {
        if files.len() > 1 {
            bail!("standard input is read alone: import it and the files one after the other");
        }
        let input = tokio_util::io::ReaderStream::with_capacity(tokio::io::stdin(), 256 << 10);
        let query = format!("/api/v1/dag/import-stream?no_pin_roots={}", !pin_roots);
        return client.upload(&query, Body::from_stream(input)).await;
    }
    let absolute =
        |file: PathBuf| std::path::absolute(&file).with_context(|| format!("cannot find {}", file.display()));
    let paths = files.into_iter().map(absolute).collect::<anyhow::Result<_>>()?;
    client.call(&DagImportRequest { paths, no_pin_roots: !pin_roots }).await
}

fn sizes(stats: &DagStats) -> String {
    let mut lines: Vec<String> = stats
        .dags
        .iter()
        .map(|dag| format!("{}  {} in {} blocks", dag.cid, ByteSize(dag.size), dag.blocks))
        .collect();
    lines.push(format!(
        "together   {} in {} distinct blocks, {} shared",
        ByteSize(stats.total_size),
        stats.unique_blocks,
        ByteSize(stats.shared_size)
    ));
    lines.join("\n")
}

fn told(imported: &DagImported, stats: bool) -> String {
    let mut lines: Vec<String> = imported
        .roots
        .iter()
        .filter(|root| root.pinned)
        .map(|root| format!("Pinned root {}", root.cid))
        .collect();
    if stats || lines.is_empty() {
        lines.push(format!("Imported {} blocks ({})", imported.blocks, ByteSize(imported.bytes)));
    }
    lines.join("\n")
}
