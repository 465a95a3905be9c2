//! `wallet` and `ledger`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Subcommand;

use super::Context;
use crate::calls::ledger::{LedgerInitRequest, LedgerStatus, LedgerStatusRequest, LedgerStepRequest};
use crate::calls::setup::IdRequest;
use crate::calls::wallet::{BalanceRequest, HistoryRequest, SendRequest};

#[derive(Debug, Subcommand)]
pub enum Wallet {
    /// Print the address that holds this node's BTT.
    Address,
    /// Show an account's balance.
    Balance {
        /// Whose; default: this node's.
        address: Option<String>,
    },
    /// Send BTT to an account.
    Send {
        /// To whom.
        to: String,
        /// How much, in BTT.
        amount: String,
    },
    /// Show what concerned this node's account, newest first.
    History {
        /// At most so many entries.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

impl Wallet {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Address => context.run(&IdRequest {}, |id| id.address.clone()).await,
            Self::Balance { address } => {
                context
                    .run(&BalanceRequest { address }, |balance| format!("{} BTT", balance.balance_btt))
                    .await
            }
            Self::Send { to, amount } => {
                context
                    .run(&SendRequest { to, amount }, |sent| {
                        format!("sent {} BTT to {}", sent.amount_btt, sent.to)
                    })
                    .await
            }
            Self::History { limit } => {
                context
                    .run(&HistoryRequest { limit: Some(limit) }, |history| {
                        history.entries.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
                    })
                    .await
            }
        }
    }
}

#[derive(Debug, Subcommand)]
pub enum Ledger {
    /// Make a ledger that this node operates, and its network file.
    Init {
        /// All the BTT there will ever be.
        #[arg(long)]
        supply: String,
        /// A first balance; what is left is this node's. May be repeated.
        #[arg(long = "allocate", value_name = "ADDRESS=AMOUNT")]
        allocations: Vec<String>,
        /// The network's name.
        #[arg(long, default_value = "private")]
        name: String,
        /// One machine or laboratory: no subnet caps, and the clock can be stepped.
        #[arg(long)]
        local: bool,
        /// A multiaddress under which others reach this node, without peer id. May be repeated.
        #[arg(long, value_name = "MULTIADDR")]
        bootstrap: Vec<String>,
        /// Where the network file goes.
        #[arg(long, default_value = "network.toml")]
        out: PathBuf,
    },
    /// Show the ledger's state.
    Status,
    /// Move the clock of a local network's ledger on.
    Step {
        /// By how much: like 1d, 12h or 90s.
        by: String,
    },
}

impl Ledger {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Init { supply, allocations, name, local, bootstrap, out } => {
                let allocations = allocations
                    .iter()
                    .map(|text| {
                        let (address, amount) = text
                            .split_once('=')
                            .with_context(|| format!("`{text}` is not ADDRESS=AMOUNT"))?;
                        Ok((address.to_owned(), amount.to_owned()))
                    })
                    .collect::<anyhow::Result<_>>()?;
                let request = LedgerInitRequest {
                    supply,
                    allocations,
                    name,
                    local,
                    bootstrap,
                    out: std::path::absolute(out)?,
                };
                context
                    .run(&request, |made| {
                        format!(
                            "made a ledger of {} BTT, operated by this node\nthe others join with: btfs init --network {}",
                            made.supply_btt,
                            made.network_file.display()
                        )
                    })
                    .await
            }
            Self::Status => context.run(&LedgerStatusRequest {}, status).await,
            Self::Step { by } => {
                context.run(&LedgerStepRequest { seconds: parse_duration(&by)? }, status).await
            }
        }
    }
}

fn status(status: &LedgerStatus) -> String {
    let supply = status
        .supply_btt
        .as_ref()
        .map(|supply| format!("\nsupply   {supply} BTT, summed anew"))
        .unwrap_or_default();
    format!(
        "operator {}\ngenesis  {}\nevents   {}\nhead     {}\ntime     {}{supply}",
        status.operator, status.genesis, status.seq, status.head, status.time
    )
}

/// Units of time and their seconds, the longest first.
pub(super) const UNITS: [(char, u64); 5] = [('w', 604_800), ('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Seconds of a text such as `30d`, `12h`, `15m` or `90s`.
pub fn parse_duration(text: &str) -> anyhow::Result<u64> {
    let parsed = UNITS.iter().find_map(|(unit, seconds)| {
        let count: u64 = text.strip_suffix(*unit)?.trim().parse().ok()?;
        count.checked_mul(*seconds)
    });
    match parsed {
        Some(0) | None => {
            bail!("`{text}` is not a time: write a whole number with w, d, h, m or s behind it, such as 30d")
        }
        Some(seconds) => Ok(seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_duration;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("30d").unwrap(), 30 * 86_400);
        assert_eq!(parse_duration("90s").unwrap(), 90);
        for bad in ["", "d", "0d", "-1d", "1.5d", "30", "99999999999999999w"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
