//! `pin`.

use anyhow::bail;
use clap::Subcommand;

use super::Context;
use super::client::Client;
use super::files::query_value;
use super::money::parse_duration;
use crate::calls::pins::{
    PinAddRequest, PinCheck, PinInfo, PinListRequest, PinRemoveRequest, PinUpdateRequest,
};

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
        /// Only the pins of this CID or /ipfs/CID/path; if it has none, one that keeps it below its root.
        reference: Option<String>,
        /// Only pins of this kind: recursive, direct, list, or indirect, which are the blocks below the roots of recursive
        /// ones and are found by walking all of those; `all` lists these after the others.
        #[arg(long = "type", short = 't', value_name = "KIND")]
        kind: Option<String>,
        /// Only pins whose name has this in it, and what they keep.
        #[arg(long)]
        name: Option<String>,
        /// Only pins of this owner: own, agreement, torrent, ...
        #[arg(long)]
        owner: Option<String>,
    },
    /// Keep a new version of something in the place of the old one, under its name and as long; fetches what is missing.
    Update {
        /// What is pinned recursively now: a CID or /ipfs/CID/path.
        old: String,
        /// What shall be: a CID or /ipfs/CID/path.
        new: String,
        /// `--unpin=false` keeps the old one, too.
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        unpin: Option<bool>,
    },
    /// Look whether everything that is pinned is here, and name what is not. Nothing is hashed: `btfs repo verify` does
    /// that.
    Verify {
        /// Name the pins that are whole, too.
        #[arg(long)]
        verbose: bool,
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
            Self::Update { old, new, unpin } => {
                let request = PinUpdateRequest { from: old, to: new, keep_old: unpin == Some(false) };
                context.run(&request, |done| format!("updated {} to {}", done.from, done.pin.cid)).await
            }
            Self::Verify { verbose } => verify(context, verbose).await,
        }
    }
}

/// Prints pins as they come; as JSON all of it is one object.
async fn list(context: &Context, request: PinListRequest) -> anyhow::Result<()> {
    let client = context.client().await?;
    let mut printed = Printed { json: context.json, begun: false };
    let listed = list_all(&client, request, &mut printed).await;
    client.close().await?;
    listed?;
    printed.end()
}

async fn list_all(client: &Client, mut request: PinListRequest, printed: &mut Printed) -> anyhow::Result<()> {
    let kind = request.kind.as_deref().filter(|_| request.reference.is_none());
    let below = matches!(kind, Some("all" | "indirect"));
    if kind != Some("indirect") {
        loop {
            let page = client.call(&request).await?;
            printed.pins(&page.pins)?;
            request.after = page.next;
            if request.after.is_none() {
                break;
            }
        }
    }
    if below {
        let filters = [("name", &request.name), ("owner", &request.owner)];
        let query = filters
            .iter()
            .filter_map(|(key, value)| value.as_ref().map(|value| format!("{key}={}&", query_value(value))));
        let path = format!("/api/v1/pin/indirect?{}", query.collect::<String>());
        client.results(&path, &mut |pins: Vec<PinInfo>| printed.pins(&pins)).await?;
    }
    Ok(())
}

/// A list that is printed as it comes: lines, or one JSON object.
struct Printed {
    json: bool,
    /// Whether the object was begun.
    begun: bool,
}

impl Printed {
    fn pins(&mut self, pins: &[PinInfo]) -> anyhow::Result<()> {
        let mut text = String::new();
        for pin in pins {
            if self.json {
                text += if self.begun { "," } else { "{\"pins\":[" };
                self.begun = true;
                text += &serde_json::to_string(pin)?;
            } else {
                text += &line(pin);
                text += "\n";
            }
        }
        super::print(text.as_bytes())
    }

    fn end(self) -> anyhow::Result<()> {
        match (self.json, self.begun) {
            (false, _) => Ok(()),
            (true, true) => super::print(b"]}\n"),
            (true, false) => super::print(b"{\"pins\":[]}\n"),
        }
    }
}

fn line(info: &PinInfo) -> String {
    if let Some(root) = &info.through {
        return format!("{}  indirect through {root}", info.cid);
    }
    let ends = info.expires.map(|at| format!("  until {at}")).unwrap_or_default();
    format!("{}  {:<9}  {}{ends}", info.cid, info.kind, info.name.as_deref().unwrap_or(&info.id))
}

/// Prints pins that lack blocks, or all; ends with an error if there are such.
async fn verify(context: &Context, verbose: bool) -> anyhow::Result<()> {
    let client = context.client().await?;
    let mut broken = 0u64;
    let checked = client
        .results(&format!("/api/v1/pin/verify?verbose={verbose}"), &mut |checks: Vec<PinCheck>| {
            let mut text = String::new();
            for check in checks {
                broken += u64::from(!check.complete);
                text += &if context.json { serde_json::to_string(&check)? } else { verdict(&check) };
                text += "\n";
            }
            super::print(text.as_bytes())
        })
        .await;
    client.close().await?;
    checked?;
    match broken {
        0 => Ok(()),
        1 => bail!("1 pin lacks blocks; `btfs repo verify --repair` fetches them"),
        pins => bail!("{pins} pins lack blocks; `btfs repo verify --repair` fetches them"),
    }
}

fn verdict(check: &PinCheck) -> String {
    let cid = &check.pin.cid;
    match check.complete {
        true => format!("{cid} ok"),
        false => check.lacks.iter().fold(format!("{cid} broken"), |text, cid| {
            format!("{text}\n  {cid}: the block is damaged or not here")
        }),
    }
}
