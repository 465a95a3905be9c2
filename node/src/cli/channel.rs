//! `channel`.

use clap::Subcommand;

use super::Context;
use super::money::parse_duration;
use crate::calls::channel::{
    ChannelInfo, ChannelListRequest, ChannelLockRequest, ChannelRedeemRequest, ChannelReleaseRequest,
};

#[derive(Debug, Subcommand)]
pub enum Channel {
    /// List the channels in which this node has a role.
    Ls,
    /// Lock BTT for a host.
    Lock {
        /// The host's address.
        host: String,
        /// How much, in BTT.
        amount: String,
        /// Who is paid, if not the host.
        #[arg(long)]
        payee: Option<String>,
        /// Notice before it can go back, such as 3d.
        #[arg(long, default_value = "3d")]
        window: String,
    },
    /// As host, let the funder have money back; as funder, announce to take it back, or take what is due.
    Release {
        /// The channel.
        channel: String,
        /// How much, in BTT; default: all that may go.
        amount: Option<String>,
    },
    /// As host, have the best vouchers paid out.
    Redeem {
        /// The channel; default: all.
        channel: Option<String>,
    },
}

impl Channel {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Ls => {
                context
                    .run(&ChannelListRequest {}, |list| {
                        list.channels.iter().map(line).collect::<Vec<_>>().join("\n")
                    })
                    .await
            }
            Self::Lock { host, amount, payee, window } => {
                let window = u32::try_from(parse_duration(&window)?)?;
                context.run(&ChannelLockRequest { host, payee, amount, window: Some(window) }, line).await
            }
            Self::Release { channel, amount } => {
                context.run(&ChannelReleaseRequest { channel, amount }, line).await
            }
            Self::Redeem { channel } => {
                context
                    .run(&ChannelRedeemRequest { channel }, |redeemed| {
                        format!(
                            "{} agreements redeemed; {} BTT paid to them in all",
                            redeemed.agreements, redeemed.paid_btt
                        )
                    })
                    .await
            }
        }
    }
}

fn line(channel: &ChannelInfo) -> String {
    let pending = match channel.due {
        0 => String::new(),
        due => format!("  {} BTT to go back from {due}", channel.pending_btt),
    };
    format!("{}  host {}  locked {} BTT{pending}", channel.channel, channel.host, channel.locked_btt)
}
