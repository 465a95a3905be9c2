//! `torrent`.

use std::path::PathBuf;

use clap::Subcommand;

use super::Context;
use super::add::TorrentVersion;
use super::files::absolute_torrent;
use crate::calls::torrent::{
    TorrentAddRequest, TorrentCreateRequest, TorrentInfo, TorrentListRequest, TorrentRemoveRequest,
};
use crate::config::ByteSize;

#[derive(Debug, Subcommand)]
pub enum Torrent {
    /// Make a torrent of stored content, and seed it.
    Create {
        /// A CID or /ipfs/CID/path.
        reference: String,
        /// The name inside the torrent.
        #[arg(long)]
        name: String,
        /// v1, or hybrid: one that clients of v2 (BEP 52) read, too.
        #[arg(long, value_name = "VERSION", default_value = "v1")]
        version: TorrentVersion,
        /// Size of a piece, such as 256KiB; by size if not given.
        #[arg(long, value_name = "SIZE")]
        piece_length: Option<ByteSize>,
        /// An HTTP tracker; may be repeated.
        #[arg(long = "tracker", value_name = "URL")]
        trackers: Vec<String>,
        /// Where to write the .torrent file.
        #[arg(long, short)]
        output: Option<PathBuf>,
    },
    /// Download a torrent into the store.
    Add {
        /// An infohash, magnet link or .torrent file.
        reference: String,
        /// A peer, as IP:PORT; may be repeated.
        #[arg(long = "peer", value_name = "IP:PORT")]
        peers: Vec<String>,
        /// An HTTP tracker; may be repeated.
        #[arg(long = "tracker", value_name = "URL")]
        trackers: Vec<String>,
    },
    /// List the torrents.
    Ls,
    /// Show one torrent.
    Status {
        /// Its infohash.
        infohash: String,
    },
    /// Take a torrent out.
    Rm {
        /// Its infohash.
        infohash: String,
    },
}

impl Torrent {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Create { reference, name, version, piece_length, trackers, output } => {
                let request = TorrentCreateRequest {
                    reference,
                    name,
                    version: version.into(),
                    piece_length: piece_length.map(|size| u32::try_from(size.0)).transpose()?,
                    trackers,
                    out: output.map(std::path::absolute).transpose()?,
                };
                context.run(&request, |made| format!("{}\n{}", made.infohash, made.magnet)).await
            }
            Self::Add { reference, peers, trackers } => {
                let reference = absolute_torrent(reference)?;
                context.run(&TorrentAddRequest { reference, peers, trackers }, line).await
            }
            Self::Ls => {
                context
                    .run(&TorrentListRequest::default(), |list| {
                        list.torrents.iter().map(line).collect::<Vec<_>>().join("\n")
                    })
                    .await
            }
            Self::Status { infohash } => {
                context
                    .run(&TorrentListRequest { infohash: Some(infohash) }, |list| {
                        list.torrents.iter().map(line).collect::<Vec<_>>().join("\n")
                    })
                    .await
            }
            Self::Rm { infohash } => context.run(&TorrentRemoveRequest { infohash }, line).await,
        }
    }
}

fn line(torrent: &TorrentInfo) -> String {
    let pieces = torrent.pieces.map_or("?".into(), |pieces| pieces.to_string());
    let cid = torrent.cid.as_deref().unwrap_or("");
    let error = torrent.error.as_deref().map(|error| format!("  {error}")).unwrap_or_default();
    format!(
        "{}  {:<11}  {}/{pieces} pieces  {} peers  up {}  {}  {cid}{error}",
        torrent.infohash,
        torrent.state,
        torrent.pieces_stored,
        torrent.peers,
        ByteSize(torrent.uploaded),
        torrent.name
    )
}
