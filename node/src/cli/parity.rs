//! `parity`.

use anyhow::bail;
use clap::Subcommand;

use super::Context;
use super::market::parse_redundancy;
use crate::calls::parity::{
    ParityInfo, ParityList, ParityListRequest, ParityMade, ParityMakeRequest, ParityRemoveRequest,
    ParityRepair, ParityRepairRequest, ParityRepairs,
};
use crate::config::ByteSize;

#[derive(Debug, Subcommand)]
pub enum Parity {
    /// Make parity of a file or directory that is stored, and keep it in the store, too. `repo verify --repair`, `parity
    /// repair`, the daemon and, without one, whoever reads rebuild from it what rots or gets lost.
    Make {
        /// A CID or /ipfs/CID/path; pinned if it is not yet.
        reference: String,
        /// Data and parity shards of each stripe: any m of its k + m, of up to 1 MiB each, may be lost. Content of fewer
        /// than k blocks has stripes as narrow as it is, with m parity shards all the same. Default: 32+4.
        #[arg(long, value_name = "K+M")]
        redundancy: Option<String>,
    },
    /// List parity, what is known to be lost, and whether that can be rebuilt; `repo verify` looks for more.
    Ls,
    /// Let parity go; its space returns with `btfs repo gc`. The content stays.
    Rm {
        /// The layout, as `parity ls` names it.
        layout: String,
    },
    /// Rebuild what is known to be lost, of the content and of its parity.
    Repair {
        /// The layout, or the content: a CID or /ipfs/CID/path.
        what: String,
    },
}

impl Parity {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Make { reference, redundancy } => {
                let redundancy = redundancy.as_deref().map(parse_redundancy).transpose()?;
                context.run(&ParityMakeRequest { reference, redundancy }, made).await
            }
            Self::Ls => context.run(&ParityListRequest {}, list).await,
            Self::Rm { layout } => {
                let human = |done: &crate::calls::parity::ParityRemoved| {
                    format!("let {} go; `btfs repo gc` returns its space", done.layout)
                };
                context.run(&ParityRemoveRequest { layout }, human).await
            }
            Self::Repair { what } => repair(context, what).await,
        }
    }
}

fn made(made: &ParityMade) -> String {
    let pinned = if made.pinned { ", and is pinned now" } else { "" };
    format!(
        "{}\n{} of {}+{} over {}{pinned}\n{} of parity, {:.1} % more; {}",
        made.shape.layout,
        stripes(made.shape.stripes),
        made.shape.k,
        made.shape.m,
        made.shape.root,
        ByteSize(made.shape.parity_bytes),
        100.0 * made.overhead,
        to_spare(made.spare)
    )
}

fn stripes(number: u64) -> String {
    if number == 1 { "1 stripe".to_owned() } else { format!("{number} stripes") }
}

fn to_spare(spare: i64) -> String {
    format!("of the shards of each stripe, any {spare} may be lost")
}

fn list(list: &ParityList) -> String {
    let lines = list.layouts.iter().map(line);
    let unreadable =
        list.unreadable.iter().map(|layout| format!("{}  of no use: {}", layout.layout, layout.error));
    lines.chain(unreadable).collect::<Vec<_>>().join("\n")
}

fn line(info: &ParityInfo) -> String {
    let lost = match (info.lost_data_blocks, info.lost_parity_blocks) {
        (0, 0) => "whole".to_owned(),
        (data, parity) => format!("lost blocks: {data} of data, {parity} of parity"),
    };
    let state = match (info.spare, info.lost_data_blocks + info.lost_parity_blocks) {
        (..0, _) => format!("not all can be rebuilt, a stripe is short of {} of its shards", -info.spare),
        (spare, 0) => to_spare(spare),
        (spare, _) => format!("all can be rebuilt, with {spare} of the shards of each stripe to spare"),
    };
    format!(
        "{}  {}  {}+{}  {}  {} for {}  {lost}; {state}",
        info.shape.layout,
        info.shape.root,
        info.shape.k,
        info.shape.m,
        stripes(info.shape.stripes),
        ByteSize(info.shape.parity_bytes),
        ByteSize(info.shape.data_bytes)
    )
}

/// Ends with an error while something stays lost.
async fn repair(context: &Context, reference: String) -> anyhow::Result<()> {
    let client = context.client().await?;
    let answer = client.call(&ParityRepairRequest { reference }).await;
    client.close().await?;
    let answer: ParityRepairs = answer?;
    context.show(&answer, |answer| answer.layouts.iter().map(repaired).collect::<Vec<_>>().join("\n"))?;
    // Several layouts of the same content lack the same.
    match answer.layouts.iter().max_by_key(|done| done.lost_blocks) {
        Some(worst) if worst.lost_blocks > 0 => bail!(
            "{} of the blocks cannot be rebuilt: a stripe is short of {} of its shards; everything else is here. `btfs repo \
             verify --repair` asks others for them while a daemon runs",
            worst.lost_blocks,
            worst.short
        ),
        _ => Ok(()),
    }
}

/// What one layout brought back, and the first of the blocks that it could not.
fn repaired(done: &ParityRepair) -> String {
    const NAMED: usize = 3;
    let rebuilt = format!(
        "{}  rebuilt blocks: {} of data ({}), {} of parity",
        done.layout,
        done.data_blocks,
        ByteSize(done.data_bytes),
        done.parity_blocks
    );
    if done.lost_blocks == 0 {
        return rebuilt;
    }
    let named: Vec<&str> = done.lost.iter().take(NAMED).map(String::as_str).collect();
    let more = match done.lost_blocks.saturating_sub(NAMED as u64) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{rebuilt}; still lacks {}{more}", named.join(", "))
}
