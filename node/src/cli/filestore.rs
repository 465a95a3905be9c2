//! `btfs filestore`.

use anyhow::bail;
use clap::Subcommand;

use super::Context;
use crate::calls::filestore::{FilestoreBlocks, FilestoreListRequest, FilestoreVerifyRequest};
use crate::config::ByteSize;

#[derive(Debug, Subcommand)]
pub enum Filestore {
    /// List the blocks that lie in files.
    Ls,
    /// Read all of them and list those that are not there any more; fails if there are any.
    Verify {
        /// Forget those.
        #[arg(long)]
        remove_bad_blocks: bool,
    },
}

impl Filestore {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Self::Ls => context.run(&FilestoreListRequest {}, human).await,
            Self::Verify { remove_bad_blocks } => {
                let client = context.client().await?;
                let answer = client.call(&FilestoreVerifyRequest { remove_bad_blocks }).await;
                client.close().await?;
                let answer = answer?;
                context.show(&answer, human)?;
                if answer.count > 0 && !remove_bad_blocks {
                    bail!(
                        "{} of {} blocks are not where they were; put the files back, add them again, or forget \
                         them with --remove-bad-blocks",
                        answer.count,
                        answer.examined
                    );
                }
                Ok(())
            }
        }
    }
}

fn human(answer: &FilestoreBlocks) -> String {
    let mut text = String::new();
    for block in &answer.blocks {
        let problem = block.problem.as_ref().map(|problem| format!("  {problem}")).unwrap_or_default();
        let (path, size) = (block.path.display(), ByteSize(block.size));
        text.push_str(&format!("{}  {size}  {path} at {}{problem}\n", block.cid, block.offset));
    }
    let left = answer.count.saturating_sub(answer.blocks.len() as u64);
    if left > 0 {
        text.push_str(&format!("and {left} more\n"));
    }
    text
}
