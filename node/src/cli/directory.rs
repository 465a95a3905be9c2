//! `repo dir`.

use std::path::PathBuf;

use anyhow::bail;
use btfs_storage::{DirectoryStat, DirectoryState, Store};
use clap::Subcommand;

use super::Context;
use crate::calls::directories::{AddDirectoryRequest, DirectoriesRequest, RemoveDirectoryRequest};
use crate::config::ByteSize;
use crate::repo::Repo;

#[derive(Debug, Subcommand)]
pub enum DirectoryCommand {
    /// List the directories that hold blocks.
    Ls,
    /// Bring in a directory, on another disk for example: new blocks go where most space is free.
    Add {
        /// The directory: empty, not there, or one that is being emptied or was missing.
        dir: PathBuf,
    },
    /// Move all blocks of a directory to the others and give it up; everything else goes on meanwhile. Broken off, it goes
    /// on with the next start of the daemon; `add` takes the directory in again instead.
    Rm {
        /// The directory.
        dir: PathBuf,
    },
    /// Give up a directory whose disk is lost, with all blocks in it.
    Forget {
        /// The directory.
        dir: PathBuf,
        /// Do it.
        #[arg(long)]
        yes: bool,
    },
}

impl DirectoryCommand {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Ls => {
                let human = |answer: &crate::calls::directories::DirectoriesAnswer| {
                    answer.directories.iter().map(line).collect::<Vec<_>>().join("\n")
                };
                context.run(&DirectoriesRequest {}, human).await
            }
            Self::Add { dir } => {
                let request = AddDirectoryRequest { path: std::path::absolute(&dir)? };
                context.run(&request, |added| format!("{} takes new blocks", added.path.display())).await
            }
            Self::Rm { dir } => {
                let request = RemoveDirectoryRequest { path: std::path::absolute(&dir)? };
                context
                    .run(&request, |done| {
                        format!(
                            "{} holds no blocks any more; {} were moved",
                            done.path.display(),
                            ByteSize(done.bytes_moved)
                        )
                    })
                    .await
            }
            Self::Forget { dir, yes } => {
                if !yes {
                    bail!(
                        "nothing was changed: all blocks in {} would be given up; say --yes if its disk is lost",
                        dir.display()
                    );
                }
                let repo = Repo::open(&context.path)?;
                let _lock = repo.lock()?;
                let dir = std::path::absolute(&dir)?;
                Store::forget_directory(repo.root(), &dir)?;
                context.show(&serde_json::json!({ "forgotten": dir }), |_| {
                    format!(
                        "{} is given up; `btfs repo verify --repair` fetches what pins lack",
                        dir.display()
                    )
                })
            }
        }
    }
}

fn line(directory: &DirectoryStat) -> String {
    let path = directory.path.display();
    let state = match directory.state {
        DirectoryState::Open => "",
        DirectoryState::Emptied => "  emptied: takes no new blocks",
        DirectoryState::Returned => "  was missing: `btfs repo dir add` lets it take new blocks again",
        DirectoryState::Missing => {
            return format!("{path}  missing: its blocks are not served; is its disk mounted?");
        }
    };
    format!(
        "{path}  {} blocks  {}  {} on disk  {} free{state}",
        directory.blocks,
        ByteSize(directory.bytes),
        ByteSize(directory.disk_bytes),
        ByteSize(directory.disk_free_bytes)
    )
}
