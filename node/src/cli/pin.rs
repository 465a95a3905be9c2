//! `pin`.

use clap::Subcommand;

use super::Context;
use super::money::parse_duration;
use crate::calls::pins::{PinAddRequest, PinInfo, PinList, PinListRequest, PinRemoveRequest};

#[derive(Debug, Subcommand)]
pub enum Pin {
    /// Keep a DAG; fetches what is missing.
    Add {
        /// A CID or /ipfs/CID/path.
        reference: String,
        /// A name for people.
        #[arg(long)]
        name: Option<String>,
        /// Only this block, not what it links to.
        #[arg(long)]
        direct: bool,
        /// Let it go by itself after this time, such as 30d or 12h.
        #[arg(long, value_name = "TIME")]
        expires: Option<String>,
    },
    /// Let a pinned thing go; its space returns with `btfs repo gc`.
    Rm {
        /// A CID or /ipfs/CID/path.
        reference: String,
    },
    /// List what is kept.
    Ls {
        /// Only the pins of this CID or /ipfs/CID/path.
        reference: Option<String>,
        /// Only pins of this kind: recursive, direct or list.
        #[arg(long = "type", short = 't', value_name = "KIND")]
        kind: Option<String>,
        /// Only pins whose name has this in it.
        #[arg(long)]
        name: Option<String>,
        /// Only pins of this owner: own, agreement, torrent, ...
        #[arg(long)]
        owner: Option<String>,
    },
}

impl Pin {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add { reference, name, direct, expires } => {
                let expires_in_secs = expires.as_deref().map(parse_duration).transpose()?;
                let request = PinAddRequest { reference, name, direct, expires_in_secs };
                context.run(&request, |info| format!("pinned {}", info.cid)).await
            }
            Self::Rm { reference } => {
                context.run(&PinRemoveRequest { reference }, |info| format!("unpinned {}", info.cid)).await
            }
            Self::Ls { reference, kind, name, owner } => {
                let request = PinListRequest { reference, kind, name, owner, ..PinListRequest::default() };
                list(context, request).await
            }
        }
    }
}

/// Prints page by page; as JSON all of it is one object.
async fn list(context: &Context, mut request: PinListRequest) -> anyhow::Result<()> {
    let client = context.client().await?;
    let mut all = Vec::new();
    let mut outcome = Ok(());
    loop {
        match client.call(&request).await {
            Ok(page) => {
                if context.json {
                    all.extend(page.pins);
                } else {
                    let text: String = page.pins.iter().map(|pin| line(pin) + "\n").collect();
                    super::print(text.as_bytes())?;
                }
                request.after = page.next;
            }
            Err(error) => outcome = Err(error),
        }
        if request.after.is_none() || outcome.is_err() {
            break;
        }
    }
    client.close().await?;
    outcome?;
    if context.json {
        context.show(&PinList { pins: all, next: None }, |_| String::new())?;
    }
    Ok(())
}

fn line(info: &PinInfo) -> String {
    let ends = info.expires.map(|at| format!("  until {at}")).unwrap_or_default();
    format!("{}  {:<9}  {}{ends}", info.cid, info.kind, info.name.as_deref().unwrap_or(&info.id))
}
