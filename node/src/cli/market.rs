//! `store`, `host` and `market`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use btfs_market::{HostStatus, Quote, ThingStatus};
use clap::{Args, Subcommand};

use super::Context;
use super::client::Client;
use super::money::parse_duration;
use crate::calls::add::AddRequest;
use crate::calls::market::{
    AcceptRequest, HostSetRequest, HostStatusRequest, MarketListRequest, QuoteRequest, StoreCancelRequest,
    StoreListRequest, StoreStatusRequest,
};
use crate::config::ByteSize;

#[derive(Debug, Subcommand)]
pub enum Store {
    /// Rent space for a file, directory or CID: shows hosts, price and lock, then asks.
    Add(StoreAdd),
    /// List what is stored with others.
    Ls,
    /// Show who holds a thing, what was proven and what it cost.
    Status {
        /// Its id, root or layout; without one, all.
        name: Option<String>,
    },
    /// End the agreements of a thing with the next day.
    Cancel {
        /// Its id, root or layout.
        name: String,
    },
}

#[derive(Debug, Args)]
pub struct StoreAdd {
    /// A path, or a CID.
    what: String,
    /// For how long: whole days, such as 30d.
    #[arg(long = "for", value_name = "TIME", default_value = "30d")]
    term: String,
    /// Data and parity parts, such as 4+8; default: by the number of hosts.
    #[arg(long, value_name = "K+M")]
    redundancy: Option<String>,
    /// Whole copies instead.
    #[arg(long, value_name = "N", conflicts_with = "redundancy")]
    copies: Option<u8>,
    /// Hosts, besides, that hold the whole content.
    #[arg(long, value_name = "A", default_value_t = 0)]
    anchors: u8,
    /// Most to pay, in BTT for a GiB and day.
    #[arg(long, value_name = "BTT")]
    max_price: Option<String>,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

impl Store {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Add(add) => add.run(context).await,
            Self::Ls => {
                context
                    .run(&StoreListRequest {}, |list| {
                        let line = |thing: &ThingStatus| {
                            let name = thing.name.as_deref().unwrap_or("");
                            format!(
                                "{}  {:>10}  {:?}  {} BTT  {name}",
                                thing.root,
                                ByteSize(thing.size).to_string(),
                                thing.state,
                                thing.spent_btt
                            )
                        };
                        list.things.iter().map(line).collect::<Vec<_>>().join("\n")
                    })
                    .await
            }
            Self::Status { name: Some(name) } => context.run(&StoreStatusRequest { name }, thing).await,
            Self::Status { name: None } => {
                context
                    .run(&StoreListRequest {}, |list| {
                        list.things.iter().map(thing).collect::<Vec<_>>().join("\n\n")
                    })
                    .await
            }
            Self::Cancel { name } => {
                context
                    .run(&StoreCancelRequest { name }, |t| {
                        format!("the agreements end with the next day\n{}", thing(t))
                    })
                    .await
            }
        }
    }
}

impl StoreAdd {
    async fn run(self, context: &Context) -> anyhow::Result<()> {
        let redundancy = self.redundancy.as_deref().map(parse_redundancy).transpose()?;
        let seconds = parse_duration(&self.term)?;
        let client = context.client().await?;
        let outcome = self.order(context, &client, redundancy, seconds).await;
        client.close().await?;
        outcome
    }

    async fn order(
        &self,
        context: &Context,
        client: &Client,
        redundancy: Option<(u8, u8)>,
        seconds: u64,
    ) -> anyhow::Result<()> {
        let path = PathBuf::from(&self.what);
        let (reference, name) = if path.symlink_metadata().is_ok() {
            let added = client
                .call(&AddRequest {
                    path: std::path::absolute(&path)?,
                    dereference_args: true,
                    ..AddRequest::default()
                })
                .await?;
            (added.cid, Some(added.name))
        } else {
            self.what
                .parse::<crate::retrieve::Reference>()
                .with_context(|| format!("there is no file {}", self.what))?;
            (self.what.clone(), None)
        };
        let quote = client
            .call(&QuoteRequest {
                reference,
                name,
                seconds,
                redundancy,
                copies: self.copies,
                anchors: self.anchors,
                max_price: self.max_price.clone(),
            })
            .await?;
        if !self.yes && !agreed(&quote, context.json)? {
            bail!("nothing was ordered; the quote {} stands for an hour", quote.id);
        }
        let placed = client.call(&AcceptRequest { quote: quote.id }).await?;
        context.show(&placed, thing)?;
        match &placed.problem {
            None => Ok(()),
            Some(problem) => bail!(
                "the order is incomplete: {problem}; what was signed runs on: see `btfs store status`, or end it \
                 with `btfs store cancel`"
            ),
        }
    }
}

/// `4+8` as numbers.
pub(super) fn parse_redundancy(text: &str) -> anyhow::Result<(u8, u8)> {
    let parts =
        text.split_once('+').and_then(|(k, m)| Some((k.trim().parse().ok()?, m.trim().parse().ok()?)));
    parts.with_context(|| format!("`{text}` is no redundancy: write data and parity parts, such as 4+8"))
}

/// Shows the quote and asks.
fn agreed(quote: &Quote, json: bool) -> anyhow::Result<bool> {
    if json || !std::io::stdin().is_terminal() {
        bail!(
            "an order needs a yes: answer on a terminal, or give --yes; nothing was ordered. The lock would be {} BTT",
            quote.lock_btt
        );
    }
    eprint!("{}\nOrder this? [y/N] ", shown(quote));
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// A quote for people.
fn shown(quote: &Quote) -> String {
    let mut text = format!(
        "{}\nspread    {:?}, {} on {} hosts ({} of content)\nterm      {} days\n",
        quote.root,
        quote.spread,
        ByteSize(quote.stored_size),
        quote.hosts.len(),
        ByteSize(quote.size),
        quote.epochs
    );
    for host in &quote.hosts {
        text += &format!(
            "host      {}  {:>10}  {} BTT/GiB/day  {} BTT in all  score {:.2}\n",
            hex::encode(host.peer.as_bytes()),
            ByteSize(host.size).to_string(),
            host.price_per_gib_day_btt,
            host.total_btt,
            host.score
        );
    }
    text += &format!(
        "lock      {} BTT of {} BTT: the most it can cost\nloss      {:.1e} within the term without repair, {:.1e} a year with weekly repair\n",
        quote.lock_btt, quote.balance_btt, quote.term_loss, quote.yearly_loss
    );
    if let Some(note) = &quote.note {
        text += &format!("note      {note}\n");
    }
    text
}

/// A stored thing for people.
fn thing(thing: &ThingStatus) -> String {
    let mut text = format!(
        "{}\nid      {}\nspread  {:?}\nstate   {:?}\nspent   {} BTT\n",
        thing.root, thing.id, thing.spread, thing.state, thing.spent_btt
    );
    if let Some(health) = thing.health {
        text += &format!("health  {health} more hosts may be lost\n");
    }
    if let Some(problem) = &thing.problem {
        text += &format!("problem {problem}\n");
    }
    for place in &thing.places {
        text += &format!(
            "host {:>2}  {}  {:?}  {} proven, {} failed  {}  {} BTT\n",
            place.column,
            hex::encode(place.peer.as_bytes()),
            place.state,
            place.days_proven,
            place.days_failed,
            place.days,
            place.earned_btt
        );
    }
    text
}

#[derive(Debug, Subcommand)]
pub enum Host {
    /// Rent out disk; options change the terms first.
    Start(Terms),
    /// Take no new agreements; those that run are kept to their end.
    Stop,
    /// Change the terms of new agreements.
    Set(Terms),
    /// Show agreements, space, and what was earned.
    Status,
}

#[derive(Debug, Default, Args)]
pub struct Terms {
    /// BTT for a GiB and day.
    #[arg(long)]
    price: Option<String>,
    /// BTT once an agreement.
    #[arg(long)]
    setup_price: Option<String>,
    /// Shortest term, such as 1d.
    #[arg(long)]
    min_term: Option<String>,
    /// Longest term, such as 366d.
    #[arg(long)]
    max_term: Option<String>,
    /// Largest agreement, such as 64GiB.
    #[arg(long)]
    max_size: Option<String>,
    /// Space for all agreements, such as 500GiB.
    #[arg(long)]
    capacity: Option<String>,
    /// The address that is paid, if not this node's.
    #[arg(long)]
    payee: Option<String>,
    /// Redeem as soon as this much BTT is owed.
    #[arg(long)]
    redeem_above: Option<String>,
}

impl Terms {
    fn request(self, renting: Option<bool>) -> anyhow::Result<HostSetRequest> {
        let size =
            |text: Option<String>| text.map(|text| text.parse::<ByteSize>().map(|size| size.0)).transpose();
        let time = |text: Option<String>| text.as_deref().map(parse_duration).transpose();
        Ok(HostSetRequest {
            price: self.price,
            setup_price: self.setup_price,
            min_term: time(self.min_term)?,
            max_term: time(self.max_term)?,
            max_size: size(self.max_size)?,
            capacity: size(self.capacity)?,
            payee: self.payee,
            redeem_above: self.redeem_above,
            renting,
        })
    }
}

impl Host {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Start(terms) => context.run(&terms.request(Some(true))?, host_status).await,
            Self::Set(terms) => context.run(&terms.request(None)?, host_status).await,
            Self::Stop => {
                context
                    .run(&HostSetRequest { renting: Some(false), ..HostSetRequest::default() }, host_status)
                    .await
            }
            Self::Status => context.run(&HostStatusRequest {}, host_status).await,
        }
    }
}

fn host_status(status: &HostStatus) -> String {
    let settings = &status.settings;
    let mut text = format!(
        "renting  {}\nprice    {} BTT/GiB/day, setup {} BTT\nspace    {} used or promised, {} left of {}\nearned   {} BTT by vouchers, {} BTT redeemed, {} BTT if all is proven to its end\n",
        if settings.renting { "yes" } else { "no new agreements" },
        settings.price,
        settings.setup_price,
        ByteSize(status.used_bytes),
        ByteSize(status.free_bytes),
        ByteSize(settings.capacity),
        status.earned_btt,
        status.redeemed_btt,
        status.expected_btt,
    );
    for agreement in &status.agreements {
        text += &format!(
            "{}  {:?}  {:>10}  {} of {} days proven  {} BTT\n",
            agreement.id,
            agreement.state,
            ByteSize(agreement.size).to_string(),
            agreement.epochs_proven,
            agreement.epochs,
            agreement.earned_btt
        );
    }
    text
}

#[derive(Debug, Subcommand)]
pub enum Market {
    /// List the hosts on offer, best first.
    Ls,
    /// Show one host, its score part by part, and why it is not used if so.
    Show {
        /// Its peer id or public key.
        peer: String,
    },
}

impl Market {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Ls => {
                context
                    .run(&MarketListRequest::default(), |list| {
                        let line = |host: &serde_json::Value| {
                            let price = host["offer"]["price"].as_str().unwrap_or("no offer");
                            let why = host["why"]
                                .as_str()
                                .map(|why| format!("  not used: {why}"))
                                .unwrap_or_default();
                            let peer = host["peer_id"].as_str().unwrap_or_default();
                            format!(
                                "{peer}  {price} BTT/GiB/day  score {:.2}{why}",
                                host["score"].as_f64().unwrap_or_default()
                            )
                        };
                        list.hosts.iter().map(line).collect::<Vec<_>>().join("\n")
                    })
                    .await
            }
            Self::Show { peer } => {
                context
                    .run(&MarketListRequest { host: Some(peer) }, |list| {
                        list.hosts
                            .iter()
                            .map(|host| serde_json::to_string_pretty(host).unwrap_or_default())
                            .collect()
                    })
                    .await
            }
        }
    }
}
