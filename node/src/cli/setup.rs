//! `init`, `id`, `config` and `shutdown`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use btfs_ledger::SecretKey;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::Context;
use super::client::Client;
use crate::calls::setup::{IdRequest, ShutdownRequest};
use crate::config::TEMPLATE;
use crate::network::NetworkFile;
use crate::repo::Repo;

#[derive(Debug, Args)]
pub struct Init {
    /// The network file of the network to join.
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
    /// Seal the key with a passphrase, asked for on the terminal.
    #[arg(long)]
    passphrase: bool,
    /// Read the passphrase from this open file descriptor.
    #[arg(long, value_name = "FD", conflicts_with_all = ["passphrase", "passphrase_file"])]
    passphrase_fd: Option<i32>,
    /// Read the passphrase from this file.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase")]
    passphrase_file: Option<PathBuf>,
    /// Any free ports on loopback instead of the usual ones: for several nodes on one machine.
    #[arg(long)]
    local_ports: bool,
}

/// What was made.
#[derive(Debug, Serialize)]
pub struct Made {
    repo: PathBuf,
    peer: String,
    address: String,
    network: String,
}

/// Loopback, any free port: what `--local-ports` writes.
const LOCAL_PORTS: &str = r#"
# Any free port on loopback: for several nodes on one machine.
[swarm]
listen = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"]

[api]
listen = "127.0.0.1:0"

[gateway]
listen = "127.0.0.1:0"

[bittorrent]
listen = "127.0.0.1:0"
"#;

impl Init {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let network = self.network.as_deref().map(NetworkFile::load).transpose()?;
        let passphrase = match (self.passphrase, self.passphrase_fd, self.passphrase_file) {
            (true, _, _) => Some(super::secret::ask_new()?),
            (_, Some(fd), _) => Some(super::secret::from_fd(fd)?),
            (_, _, Some(path)) => Some(super::secret::from_file(&path)?),
            _ => None,
        };
        let made = make(&context.path, network, passphrase, self.local_ports)?;
        context.show(&made, |made| {
            format!(
                "made a repo at {}\npeer    {}\naddress {}\nnetwork {}\n\nNext: `btfs add FILE` stores a file, `btfs daemon` joins the network.",
                made.repo.display(), made.peer, made.address, made.network
            )
        })
    }
}

/// Makes a repo: files first, the configuration last.
pub fn make(
    path: &std::path::Path,
    network: Option<NetworkFile>,
    passphrase: Option<super::secret::Passphrase>,
    local_ports: bool,
) -> anyhow::Result<Made> {
    let repo = Repo::create(path, network.as_ref())?;
    let secret = SecretKey::generate().context("cannot draw a key")?;
    btfs_ledger::keyfile::save(&repo.key_path(), &secret, passphrase.as_ref().map(|p| p.as_bytes()))?;
    repo.finish_create(if local_ports { LOCAL_PORTS } else { TEMPLATE })?;
    let public = secret.public();
    Ok(Made {
        repo: path.to_owned(),
        peer: btfs_p2p::peer_from_public_key(public.as_bytes())?.to_string(),
        address: public.address().to_string(),
        network: network.unwrap_or_default().name,
    })
}

#[derive(Debug, Args)]
pub struct Id {}

impl Id {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        context
            .run(&IdRequest {}, |id| {
                let addresses: String = id.addresses.iter().map(|a| format!("\n        {a}")).collect();
                format!(
                    "peer    {}\nkey     {}\naddress {}\nnetwork {}\nagent   {}\nlistens{}",
                    id.peer,
                    id.public_key,
                    id.address,
                    id.network,
                    id.agent,
                    if addresses.is_empty() { " nowhere: no daemon runs".into() } else { addresses }
                )
            })
            .await
    }
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print the configuration as it is in force.
    Show,
    /// Print one value, such as `swarm.listen`.
    Get {
        /// Section and name, joined by a dot.
        key: String,
    },
    /// Change one value; the daemon takes it at its next start.
    Set {
        /// Section and name, joined by a dot.
        key: String,
        /// The value as TOML; plain text is taken as a string.
        value: String,
    },
    /// Join the network of a file from the next start on.
    Network {
        /// The network file.
        file: PathBuf,
    },
}

impl Config {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let repo = Repo::open(&context.path)?;
        match self {
            Self::Show => {
                let config = repo.config()?;
                let text = toml::to_string(&config)?;
                context.show(&config, |_| text)
            }
            Self::Get { key } => {
                let value = toml::Value::try_from(repo.config()?)?;
                let found = key
                    .split('.')
                    .try_fold(&value, |value, part| value.get(part))
                    .with_context(|| format!("there is no setting `{key}`, or it has no value"))?;
                context.show(found, |found| match found {
                    toml::Value::String(text) => text.clone(),
                    other => other.to_string(),
                })
            }
            Self::Set { key, value } => {
                let Some((section, name)) = key.split_once('.') else {
                    bail!("`{key}` is no setting: write section.name, such as storage.quota");
                };
                let text = std::fs::read_to_string(repo.config_file())?;
                let mut table: toml::Table = text.parse()?;
                let parsed =
                    format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
                let parsed = parsed.unwrap_or(toml::Value::String(value));
                let entry = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
                let Some(entry) = entry.as_table_mut() else {
                    bail!("`{section}` is no section of the configuration");
                };
                entry.insert(name.to_owned(), parsed.clone());
                repo.write_config(&toml::to_string(&table)?)?;
                context.show(&serde_json::json!({ "key": key, "value": parsed }), |_| {
                    format!("{key} = {parsed}\nA running daemon takes it at its next start.")
                })
            }
            Self::Network { file } => {
                let network = NetworkFile::load(&file)?;
                repo.write_network(&network)?;
                context.show(&network, |network| {
                    format!("member of the network `{}` from the next start on", network.name)
                })
            }
        }
    }
}

#[derive(Debug, Args)]
pub struct Shutdown {}

impl Shutdown {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let repo = Repo::open(&context.path)?;
        if repo.lock().is_ok() {
            bail!("no daemon runs on {}", repo.root().display());
        }
        let client = Client::daemon(&repo, false).await?;
        let answer = client.call(&ShutdownRequest {}).await?;
        // It is down when the repo is free again.
        let freed =
            tokio::task::spawn_blocking(move || repo.wait_until_free(std::time::Duration::from_secs(60)));
        freed.await??;
        context.show(&answer, |_| "the daemon has stopped".into())
    }
}
