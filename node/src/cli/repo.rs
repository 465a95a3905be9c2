//! `repo`.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Subcommand;

use btfs_storage::Rebuilt;

use super::Context;
use super::directory::DirectoryCommand;
use super::money::UNITS;
use crate::calls::repo::{
    BackupAnswer, BackupRequest, GcRequest, IncompletePin, RepoStatAnswer, RepoStatRequest, VerifyAnswer,
    VerifyRequest,
};
use crate::config::ByteSize;

#[derive(Debug, Subcommand)]
pub enum RepoCommand {
    /// Show what the store holds and how much space there is.
    Stat,
    /// Delete what no pin keeps and return its space; everything else goes on meanwhile.
    Gc {
        /// Only tell what would be deleted.
        #[arg(long)]
        dry_run: bool,
        /// Leave space that takes much writing to return until that is worth it.
        #[arg(long)]
        lazy: bool,
    },
    /// Read and hash everything; name what is damaged and which pins lack it.
    Verify {
        /// Build databases with damaged tables anew, which takes as much space again for a while; rebuild what is damaged or
        /// lacking from the parity that is here (`btfs parity make`), and fetch the rest from the networks, if a daemon runs.
        #[arg(long)]
        repair: bool,
        /// At most so many bytes a second, such as 50MiB.
        #[arg(long, value_name = "SIZE")]
        rate: Option<ByteSize>,
    },
    /// The directories that hold its blocks, on one disk or several.
    #[command(subcommand)]
    Dir(DirectoryCommand),
    /// Copy the repo, its key included, into a new directory while it is in use. What `add --nocopy` left in its files is
    /// not copied.
    Backup {
        /// The directory: empty, or not there.
        dir: PathBuf,
    },
    /// Make a repo from a backup, and verify it.
    Restore {
        /// The backup.
        dir: PathBuf,
    },
}

impl RepoCommand {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Stat => context.run(&RepoStatRequest {}, stat).await,
            Self::Gc { dry_run, lazy } => {
                context
                    .run(&GcRequest { dry_run, lazy }, |done| {
                        let verb = if done.dry_run { "would delete" } else { "deleted" };
                        let expired = match done.pins_expired {
                            0 => String::new(),
                            pins => format!("; {pins} pins had expired"),
                        };
                        let kept = match done.kept_by_damage {
                            true => "\na damaged table keeps the space of what it lists; `btfs repo verify` tells more",
                            false => "",
                        };
                        format!(
                            "{verb} {} of {} blocks, {}{expired}{kept}",
                            done.blocks_deleted,
                            done.blocks_examined,
                            ByteSize(done.bytes_deleted)
                        )
                    })
                    .await
            }
            Self::Dir(command) => command.run(context).await,
            Self::Verify { repair, rate } => verify(context, repair, rate).await,
            Self::Backup { dir } => {
                let request = BackupRequest { target: std::path::absolute(&dir)? };
                context.run(&request, copied).await
            }
            Self::Restore { dir } => {
                crate::repo::restore(&std::path::absolute(&dir)?, &context.path)
                    .with_context(|| format!("cannot restore {}", dir.display()))?;
                verify(context, false, None).await
            }
        }
    }
}

fn copied(done: &BackupAnswer) -> String {
    let left = match done.blocks_in_files {
        0 => String::new(),
        blocks => format!(
            "\n{blocks} more blocks, {}, are not in it: `add --nocopy` left them in their files, which have to stay where \
             they are (`btfs filestore ls`)",
            ByteSize(done.bytes_in_files)
        ),
    };
    format!(
        "{}: {} blocks, {}, {} pins, and the key of this node: keep it as safe as the repo{left}",
        done.path.display(),
        done.blocks,
        ByteSize(done.bytes),
        done.pins
    )
}

/// Ends with an error while something is lacking.
async fn verify(context: &Context, repair: bool, rate: Option<ByteSize>) -> anyhow::Result<()> {
    let request = VerifyRequest { repair, bytes_per_second: rate.map(|size| size.0) };
    let client = context.client().await?;
    let answer = client.call(&request).await;
    client.close().await?;
    let answer = answer?;
    context.show(&answer, verified)?;
    let daemon = match repair && answer.incomplete.iter().any(|found| !found.repaired) {
        true if !answer.online => "; a running daemon would fetch them from others",
        _ => "",
    };
    match answer.incomplete_pins - answer.repaired_pins {
        0 if answer.blocks_unreadable > 0 => bail!("the disk did not give some blocks; the others are well"),
        0 if answer.parity_error.is_some() => {
            bail!("everything pinned is whole; not all parity could be used")
        }
        0 => Ok(()),
        1 => bail!("1 pin lacks blocks; everything else is whole{daemon}"),
        pins => bail!("{pins} pins lack blocks; everything else is whole{daemon}"),
    }
}

fn stat(stat: &RepoStatAnswer) -> String {
    let quota = |name: &str, quota: Option<u64>| {
        quota.map(|quota| format!("\nquota      {} of {name} data", ByteSize(quota))).unwrap_or_default()
    };
    let quotas = [
        quota("own", stat.own_quota_bytes),
        quota("hosted", stat.hosted_quota_bytes),
        quota("cache", stat.cache_quota_bytes),
    ];
    let unfinished = if stat.unfinished_collection {
        "\na collection did not end; `btfs repo gc` goes on with it"
    } else {
        ""
    };
    let hot = match stat.hot_capacity_bytes {
        0 => String::new(),
        _ => format!(
            "\nin memory  {} of hot blocks; {} reads answered from there, {} from the database",
            ByteSize(stat.hot_bytes),
            stat.hot_hits,
            stat.hot_misses
        ),
    };
    format!(
        "blocks     {}\nlive       {} (own {}, hosted {}, cache {})\nreserved   {}{}\non disk    {} ({} more than live)\nfree       {}\npins       {}\ndamaged    {}{}{hot}{unfinished}",
        stat.blocks,
        ByteSize(stat.live_bytes),
        ByteSize(stat.own_bytes),
        ByteSize(stat.hosted_bytes),
        ByteSize(stat.cache_bytes),
        ByteSize(stat.reserved_bytes),
        quotas.concat(),
        ByteSize(stat.disk_bytes),
        ByteSize(stat.overhead_bytes),
        ByteSize(stat.free_bytes),
        stat.pins,
        stat.quarantined_blocks,
        scrubbed(stat),
    )
}

/// How far daemons have looked for damage, if any has.
fn scrubbed(stat: &RepoStatAnswer) -> String {
    let last = match stat.last_scrub_ended {
        Some(at) => format!("the last whole round ended {}", ago(at)),
        None if stat.scrubbed_blocks == 0 => return String::new(),
        None => "no whole round has ended yet".to_owned(),
    };
    format!("\nscrubbed   {} in this round; {last}", ByteSize(stat.scrubbed_bytes))
}

/// How long ago a time in unix seconds was, in the largest unit that fits.
fn ago(at: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seconds = now.saturating_sub(at);
    match UNITS.iter().find(|(_, length)| seconds >= *length) {
        Some((unit, length)) => format!("{}{unit} ago", seconds / length),
        None => "just now".to_owned(),
    }
}

fn verified(answer: &VerifyAnswer) -> String {
    let mut text = format!("checked {} blocks, {}", answer.blocks_checked, ByteSize(answer.bytes_checked));
    text += &match answer.blocks_damaged {
        0 => "; none is damaged".to_owned(),
        damaged => format!("; {damaged} damaged ones are put aside"),
    };
    if answer.blocks_unreadable > 0 {
        text += &format!("; the disk did not give {} more, see the log", answer.blocks_unreadable);
    }
    if answer.blocks_reindexed > 0 {
        text += &format!("; {} index entries were damaged and are written anew", answer.blocks_reindexed);
    }
    if answer.blocks_from_parity > 0 {
        text += &format!("; {} were rebuilt from parity", answer.blocks_from_parity);
    }
    if let Some(error) = &answer.parity_error {
        text += &format!("; not all parity could be used: {error}");
    }
    for Rebuilt { path, bytes, .. } in &answer.rebuilt {
        text += &format!(
            "\n{} had a damaged table: {} that could be read were moved out of it, and it goes",
            path.display(),
            ByteSize(*bytes)
        );
    }
    for path in &answer.damaged_directories {
        text += &format!(
            "\n{} has a damaged table, which keeps the space of what is deleted; --repair builds it anew",
            path.display()
        );
    }
    for found in &answer.incomplete {
        text += &incomplete(found);
    }
    let told = answer.incomplete.len() as u64;
    if answer.incomplete_pins > told {
        text += &format!("\nand {} more pins", answer.incomplete_pins - told);
    }
    text
}

/// Names the pin and the first of the blocks it lacks.
fn incomplete(found: &IncompletePin) -> String {
    const NAMED: usize = 3;
    let pin = &found.pin;
    let name = pin.name.as_deref().unwrap_or(&pin.id);
    let state = match (&found.error, found.repaired) {
        (_, true) => "is whole again, it lacked".to_owned(),
        (Some(error), _) => format!("could not be repaired ({error}), it lacks"),
        (None, _) => "lacks".to_owned(),
    };
    let more = match found.lacks.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let lacks: Vec<&str> = found.lacks.iter().take(NAMED).map(String::as_str).collect();
    format!("\n{}  {name} {state} {}{more}", pin.cid, lacks.join(", "))
}
