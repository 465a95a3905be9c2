//! `daemon`.

use std::path::PathBuf;

use btfs_ledger::keyfile;
use clap::Args;
use zeroize::Zeroizing;

use super::Context;
use super::secret;
use crate::repo::Repo;

#[derive(Debug, Args)]
pub struct Daemon {
    /// Make the repo first, if there is none.
    #[arg(long)]
    init: bool,
    /// Read the key's passphrase from this open file descriptor.
    #[arg(long, value_name = "FD", conflicts_with = "passphrase_file")]
    passphrase_fd: Option<i32>,
    /// Read the key's passphrase from this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Daemon {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        crate::daemon::log_to_stderr(context.json);
        if self.init && matches!(Repo::open(&context.path), Err(crate::repo::RepoError::Missing(_))) {
            super::setup::make(&context.path, None, None, false)?;
        }
        let repo = Repo::open(&context.path)?;
        let given = match (self.passphrase_fd, &self.passphrase_file) {
            (Some(fd), _) => Some(secret::from_fd(fd)?),
            (None, Some(path)) => Some(secret::from_file(path)?),
            (None, None) => None,
        };
        let passphrase = match given {
            None if keyfile::inspect(&repo.key_path())?.sealed => {
                Some(secret::ask("Passphrase of the key: ")?)
            }
            given => given,
        };
        let key = keyfile::load(&repo.key_path(), || {
            passphrase.map(|text| Zeroizing::new(text.as_bytes().to_vec()))
        })?;
        let json = context.json;
        crate::daemon::run(repo, key, move |ready| {
            if json {
                let line =
                    serde_json::to_string(ready).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
                super::print(format!("{line}\n").as_bytes())
            } else {
                super::print(ready.for_people().as_bytes())
            }
        })
        .await
    }
}
