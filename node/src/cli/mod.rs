//! The command line: arguments in, one call to the node, its answer for a person or as JSON.
//!
//! Answers go to stdout, progress and errors to stderr. One file an area; what a command can do is in
//! [`crate::calls`].

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::allocator::{self, Runs};
use crate::repo::Repo;

mod add;
mod block;
mod channel;
pub mod client;
mod daemon;
mod dag;
mod directory;
mod files;
mod filestore;
mod market;
mod money;
mod network;
mod object;
mod parity;
mod pin;
mod progress;
mod repo;
mod sealed;
pub(crate) mod secret;
mod setup;
mod torrent;

use client::Client;

/// Content-addressed storage: one stored copy, every network.
#[derive(Debug, Parser)]
#[command(
    name = "btfs",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Arguments {
    /// The repo; default: $BTFS_PATH, or ~/.btfs.
    #[arg(long, global = true, value_name = "DIR")]
    repo: Option<PathBuf>,
    /// Print one JSON object (or one a line) on stdout instead of text.
    #[arg(long, global = true)]
    json: bool,
    /// No progress bars.
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a repo: a key, a configuration and an empty store.
    Init(setup::Init),
    /// Run the node until it is told to stop.
    Daemon(daemon::Daemon),
    /// Show this node's peer id, addresses and BTT address.
    Id(setup::Id),
    /// Show or change the configuration.
    #[command(subcommand)]
    Config(setup::Config),
    /// Stop the running daemon.
    Shutdown(setup::Shutdown),
    /// Store a file or directory and print its CID.
    Add(add::Add),
    /// Fetch a CID, /ipfs path, infohash, magnet or .torrent into a file or directory.
    Get(files::Get),
    /// Print a file's content.
    Cat(files::Cat),
    /// List a directory.
    Ls(files::Ls),
    /// Keep things, or let them go.
    #[command(subcommand)]
    Pin(pin::Pin),
    /// Single blocks.
    #[command(subcommand)]
    Block(block::Block),
    /// Blocks as values, and whole DAGs to and from CAR files.
    #[command(subcommand)]
    Dag(dag::Dag),
    /// List the links of blocks.
    Refs(block::Refs),
    /// Directories, changed entry by entry.
    #[command(subcommand)]
    Object(object::Object),
    /// Blocks that `add --nocopy` left in their files.
    #[command(subcommand)]
    Filestore(filestore::Filestore),
    /// The local store.
    #[command(subcommand)]
    Repo(repo::RepoCommand),
    /// Parity beside what is stored here, which brings back what rots.
    #[command(subcommand)]
    Parity(parity::Parity),
    /// Rent space from hosts.
    #[command(subcommand)]
    Store(market::Store),
    /// Rent out disk.
    #[command(subcommand)]
    Host(market::Host),
    /// The hosts on offer.
    #[command(subcommand)]
    Market(market::Market),
    /// This node's BTT.
    #[command(subcommand)]
    Wallet(money::Wallet),
    /// BTT locked between this node and others.
    #[command(subcommand)]
    Channel(channel::Channel),
    /// The ledger of a private network.
    #[command(subcommand)]
    Ledger(money::Ledger),
    /// The connected peers.
    #[command(subcommand)]
    Swarm(network::Swarm),
    /// BitTorrent.
    #[command(subcommand)]
    Torrent(torrent::Torrent),
    /// A local network of real nodes that stores, proves, pays, loses, rebuilds and fetches a file.
    Demo(crate::demo::Demo),
}

/// What every command gets.
pub(crate) struct Context {
    /// Where the repo is.
    pub path: PathBuf,
    /// JSON instead of text.
    pub json: bool,
    /// Progress bars wanted.
    pub progress: bool,
}

impl Context {
    /// Opens the repo and finds its node.
    pub async fn client(&self) -> anyhow::Result<Client> {
        Client::open(&Repo::open(&self.path)?, self.progress).await
    }

    /// Makes one call and shows its answer.
    pub async fn run<C: crate::api::call::Call>(
        &self,
        request: &C,
        human: impl FnOnce(&C::Answer) -> String,
    ) -> anyhow::Result<()> {
        let client = self.client().await?;
        let answer = client.call(request).await;
        client.close().await?;
        self.show(&answer?, human)
    }

    /// Prints an answer: one JSON object, or what `human` makes of it.
    pub fn show<T: Serialize>(&self, answer: &T, human: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let mut text = if self.json { serde_json::to_string(answer)? } else { human(answer) };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        print(text.as_bytes())
    }
}

/// Writes to stdout; a reader that went away (`| head`) ends the program quietly.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => Ok(written?),
    }
}

/// Parses the arguments, runs the command, tells how it went.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    allocator::set_up(match arguments.command {
        Command::Daemon(_) => Runs::On,
        _ => Runs::Once,
    });
    let context = Context {
        path: arguments.repo.unwrap_or_else(Repo::default_path),
        json: arguments.json,
        progress: !arguments.quiet && !arguments.json,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("btfs: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(run(&context, arguments.command));
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("btfs: {}", crate::api::call::told(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(context: &Context, command: Command) -> anyhow::Result<()> {
    if !matches!(command, Command::Get(_) | Command::Cat(_)) {
        sealed::refuse_keys(std::env::args_os())?;
    }
    match command {
        Command::Init(command) => command.run(context).await,
        Command::Daemon(command) => command.run(context).await,
        Command::Id(command) => command.run(context).await,
        Command::Config(command) => command.run(context).await,
        Command::Shutdown(command) => command.run(context).await,
        Command::Add(command) => command.run(context).await,
        Command::Get(command) => command.run(context).await,
        Command::Cat(command) => command.run(context).await,
        Command::Ls(command) => command.run(context).await,
        Command::Pin(command) => command.run(context).await,
        Command::Block(command) => command.run(context).await,
        Command::Refs(command) => command.run(context).await,
        Command::Dag(command) => command.run(context).await,
        Command::Object(command) => command.run(context).await,
        Command::Filestore(command) => command.run(context).await,
        Command::Repo(command) => command.run(context).await,
        Command::Parity(command) => command.run(context).await,
        Command::Store(command) => command.run(context).await,
        Command::Host(command) => command.run(context).await,
        Command::Market(command) => command.run(context).await,
        Command::Wallet(command) => command.run(context).await,
        Command::Channel(command) => command.run(context).await,
        Command::Ledger(command) => command.run(context).await,
        Command::Swarm(command) => command.run(context).await,
        Command::Torrent(command) => command.run(context).await,
        Command::Demo(command) => command.run(context.json).await,
    }
}
