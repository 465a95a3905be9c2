//! `btfs add`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use axum::body::Body;
use btfs_bittorrent::create::Version;
use clap::{Args, ValueEnum};

use super::Context;
use super::client::Client;
use super::sealed::Told;
use crate::calls::add::{AddOptions, AddRequest, Added};
use crate::config::ByteSize;

/// Heads of the groups of options in the help.
const OPTIONS: &str = "What is done with it";
const TAKEN: &str = "What is taken";
const SHAPE: &str = "How it is cut and linked (changes the CID)";
const RECORDED: &str = "What is recorded beside names and contents (changes the CID)";

/// What stands below the options in `btfs add --help`.
const ABOUT: &str = "\
What a CID depends on: the content, the names in directories, and the options of the last two groups. Whoever adds the
same with the same of these, here or with Kubo, gets the same CID. The two profiles:

                  CIDs         files cut at  leaves   links a node  directories sharded above
  unixfs-v1-2025  bafy, bafk   1 MiB         raw      1024          256 KiB, as a block
  unixfs-v0-2015  Qm           256 KiB       dag-pb   174           256 KiB, of names and CIDs

Examples:
  btfs add photos                        a directory with everything in it
  btfs add -w a.txt b.txt                both in one directory, each under its name
  tar c src | btfs add -w --stdin-name src.tar -
  btfs add --profile unixfs-v0-2015 x    the Qm... CID that Kubo gives x unless told otherwise
  btfs add -n x                          the CID that x would have; nothing is stored
  btfs add --nocopy /srv/films           no copies: blocks are read from the films themselves
  btfs add --hash blake3 x               blocks named by BLAKE3, as `ipfs add --hash blake3` does
  btfs add --private letter.pdf          sealed; only who has the printed link can read it
  btfs add --private --link-to key x     the same, with the link in a file instead of on the screen
  btfs add --torrent album               a magnet link, too

An add that was broken off is simply started again: it reads and hashes everything anew, and stores what is missing.";

/// Which kind of torrent is made.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum TorrentVersion {
    /// The one that every client reads.
    V1,
    /// v1 and v2 in one.
    Hybrid,
}

impl From<TorrentVersion> for Version {
    fn from(version: TorrentVersion) -> Version {
        match version {
            TorrentVersion::V1 => Version::V1,
            TorrentVersion::Hybrid => Version::Hybrid,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_long_help = ABOUT)]
pub struct Add {
    /// Files or directories; `-` is standard input.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Put everything into one directory, each under its name.
    #[arg(long, short, help_heading = OPTIONS)]
    wrap_with_directory: bool,
    /// The name of standard input in that directory.
    #[arg(long, value_name = "NAME", requires = "wrap_with_directory", help_heading = OPTIONS)]
    stdin_name: Option<String>,
    /// Seal the file with a new key and print a link that carries it, CID#key. Only who has the link can read the file;
    /// the key is kept nowhere else. It is not announced.
    #[arg(long, help_heading = OPTIONS, conflicts_with_all = ["torrent", "nocopy", "only_hash", "wrap_with_directory",
        "hidden", "ignore", "ignore_rules_path", "dereference_symlinks", "dereference_args", "empty_dirs", "preserve_mode", "preserve_mtime",
        "mode", "mtime"])]
    private: bool,
    /// Write that link to a new file that only you can read, instead of printing it; `get` and `cat` take it by
    /// --link-file.
    #[arg(long, value_name = "FILE", requires = "private", help_heading = OPTIONS)]
    link_to: Option<PathBuf>,
    /// Announce a private file like any other.
    #[arg(long, requires = "private", help_heading = OPTIONS)]
    announce: bool,
    /// Make and seed a torrent, hashed in the same pass: v1, or `--torrent=hybrid` for one that clients of v2 read, too.
    #[arg(long, value_name = "VERSION", num_args = 0..=1, require_equals = true, default_missing_value = "v1",
        help_heading = OPTIONS)]
    torrent: Option<TorrentVersion>,
    /// Leave file contents where they are instead of copying them: the files must stay, and stay the same.
    #[arg(long, conflicts_with = "only_hash", help_heading = OPTIONS)]
    nocopy: bool,
    /// Only print the CID; store nothing.
    #[arg(long, short = 'n', conflicts_with = "torrent", help_heading = OPTIONS)]
    only_hash: bool,
    /// Do not pin: the next collection takes it.
    #[arg(long, help_heading = OPTIONS)]
    no_pin: bool,
    /// `--pin=false` does not pin, as `--no-pin`.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        help_heading = OPTIONS)]
    pin: Option<bool>,
    /// The pin's name; default: the name of what is added.
    #[arg(long, value_name = "NAME", help_heading = OPTIONS)]
    pin_name: Option<String>,
    /// Print the CID and nothing else.
    #[arg(long, short = 'Q', help_heading = OPTIONS)]
    quieter: bool,
    #[command(flatten)]
    taken: Taken,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    recorded: Recorded,
}

/// What of a tree is taken in.
#[derive(Debug, Args)]
#[command(next_help_heading = TAKEN)]
struct Taken {
    /// Directories are always added with all below them; taken for the habit.
    #[arg(long, short)]
    recursive: bool,
    /// Take hidden files of directories too.
    #[arg(long, short = 'H')]
    hidden: bool,
    /// Leave entries out that match this rule, in the syntax of .gitignore; may be repeated.
    #[arg(long, value_name = "RULE")]
    ignore: Vec<String>,
    /// A file of such rules.
    #[arg(long, value_name = "FILE")]
    ignore_rules_path: Option<PathBuf>,
    /// Store what symlinks point to instead of the links.
    #[arg(long)]
    dereference_symlinks: bool,
    /// The same for the paths that are given themselves.
    #[arg(long)]
    dereference_args: bool,
    /// `--empty-dirs=false` leaves empty directories out; as in Kubo, what held nothing but those stays.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    empty_dirs: Option<bool>,
}

/// How files become blocks.
#[derive(Debug, Args)]
#[command(next_help_heading = SHAPE)]
struct Shape {
    /// Where the other values come from: unixfs-v1-2025 (default) or unixfs-v0-2015; see the table below.
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// Where files are cut: size-BYTES, rabin[-AVG|-MIN-AVG-MAX], buzhash or fastcdc[-AVG|-MIN-AVG-MAX].
    #[arg(long, short = 's')]
    chunker: Option<String>,
    /// Tie leaves together for reading from the start, not for seeking, as for a live stream.
    #[arg(long, short)]
    trickle: bool,
    /// 0 or 1; 1 makes leaves raw and 0 does not, unless --raw-leaves says otherwise.
    #[arg(long, value_name = "VERSION")]
    cid_version: Option<u8>,
    /// What blocks are named by: sha2-256 (default), sha2-512, sha3-256, blake2b-256, blake3 and others that Kubo has; all
    /// but the first need CIDs of version 1, and give them.
    #[arg(long, value_name = "NAME")]
    hash: Option<String>,
    /// Whether leaf blocks are the content itself.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    raw_leaves: Option<bool>,
    /// Put small blocks into their CIDs.
    #[arg(long)]
    inline: bool,
    /// Bytes of the largest such block: 32, or up to 64.
    #[arg(long, value_name = "BYTES", requires = "inline")]
    inline_limit: Option<usize>,
    /// Most links of a file's node.
    #[arg(long, value_name = "N")]
    max_file_links: Option<usize>,
    /// Entries above which a directory is sharded whatever its size.
    #[arg(long, value_name = "N")]
    max_directory_links: Option<usize>,
    /// Buckets of a shard of a large directory: a power of two from 8 to 1024.
    #[arg(long, value_name = "N")]
    max_hamt_fanout: Option<u32>,
}

/// What is recorded beside names and contents. Leaves are not raw then.
#[derive(Debug, Args)]
#[command(next_help_heading = RECORDED)]
struct Recorded {
    /// Record the permissions of files and directories. Leaves are not raw then, nor with the others of this group.
    #[arg(long)]
    preserve_mode: bool,
    /// Record times of modification.
    #[arg(long)]
    preserve_mtime: bool,
    /// Permissions to record for everything, in octal.
    #[arg(long, value_name = "OCTAL")]
    mode: Option<String>,
    /// Time of modification to record for everything: seconds since 1970.
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    mtime: Option<i64>,
    /// Nanoseconds to go with it.
    #[arg(long, value_name = "NANOSECONDS", requires = "mtime")]
    mtime_nsecs: Option<u32>,
}

impl Add {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        self.check()?;
        let client = context.client().await?;
        let outcome = self.all(context, &client).await;
        client.close().await?;
        outcome
    }

    async fn all(&self, context: &Context, client: &Client) -> anyhow::Result<()> {
        if self.wrap_with_directory && !self.paths.iter().any(|path| is_stdin(path)) {
            return self.show(context, &client.call(&self.request(&self.paths)?).await?);
        }
        for path in &self.paths {
            if self.private {
                let options = AddOptions { private: !self.announce, ..self.options() };
                let told = Told { link_to: self.link_to.as_deref(), quieter: self.quieter };
                super::sealed::add(context, client, path, &options, told).await?;
                continue;
            }
            let added = if is_stdin(path) {
                self.stdin(client).await?
            } else {
                client.call(&self.request(std::slice::from_ref(path))?).await?
            };
            self.show(context, &added)?;
        }
        Ok(())
    }

    /// What cannot be, before anything is read or stored.
    fn check(&self) -> anyhow::Result<()> {
        if self.link_to.is_some() && self.paths.len() > 1 {
            bail!("--link-to takes the link of one file; add the files one by one");
        }
        if !self.paths.iter().any(|path| is_stdin(path)) {
            if self.stdin_name.is_some() {
                bail!("--stdin-name names standard input, which is added as `-`");
            }
            return Ok(());
        }
        if self.nocopy {
            bail!("standard input lies in no file; --nocopy takes paths");
        }
        if self.torrent.is_some() {
            bail!("standard input has no name, which a torrent needs: write it to a file first");
        }
        if self.recorded.preserve_mode || self.recorded.preserve_mtime {
            bail!("standard input has no permissions or times; --mode and --mtime can give it some");
        }
        if self.paths.len() > 1 {
            if self.wrap_with_directory {
                bail!("standard input goes into a directory of its own; add it alone");
            }
            return Ok(());
        }
        let taken = &self.taken;
        if taken.hidden || taken.dereference_symlinks || taken.empty_dirs.is_some() {
            bail!(
                "standard input is one file: --hidden, --dereference-symlinks and --empty-dirs say nothing of it"
            );
        }
        if !taken.ignore.is_empty() || taken.ignore_rules_path.is_some() {
            bail!("standard input is one file: there is nothing in it to ignore");
        }
        Ok(())
    }

    fn show(&self, context: &Context, added: &Added) -> anyhow::Result<()> {
        context.show(added, |added| {
            if self.quieter {
                return added.cid.clone();
            }
            let magnet = added.magnet.as_ref().map(|magnet| format!("\n{magnet}")).unwrap_or_default();
            format!("{}  {}  {}{magnet}", added.cid, ByteSize(added.size), added.name)
        })
    }

    fn request(&self, paths: &[PathBuf]) -> anyhow::Result<AddRequest> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
        };
        let mut paths: Vec<PathBuf> = paths.iter().map(absolute).collect::<Result<_, _>>()?;
        let with = paths.split_off(1);
        let taken = &self.taken;
        Ok(AddRequest {
            path: paths.remove(0),
            with,
            hidden: taken.hidden,
            ignore: taken.ignore.clone(),
            ignore_rules_path: taken.ignore_rules_path.as_ref().map(absolute).transpose()?,
            dereference_symlinks: taken.dereference_symlinks,
            dereference_args: taken.dereference_args,
            no_empty_dirs: taken.empty_dirs == Some(false),
            torrent: self.torrent.is_some(),
            torrent_version: self.torrent.map(Version::from).unwrap_or_default(),
            nocopy: self.nocopy,
            options: self.options(),
        })
    }

    fn options(&self) -> AddOptions {
        let (shape, recorded) = (&self.shape, &self.recorded);
        AddOptions {
            profile: shape.profile.clone(),
            chunker: shape.chunker.clone(),
            trickle: shape.trickle,
            cid_version: shape.cid_version,
            hash: shape.hash.clone(),
            raw_leaves: shape.raw_leaves,
            inline: shape.inline,
            inline_limit: shape.inline_limit,
            max_file_links: shape.max_file_links,
            max_directory_links: shape.max_directory_links,
            max_hamt_fanout: shape.max_hamt_fanout,
            preserve_mode: recorded.preserve_mode,
            preserve_mtime: recorded.preserve_mtime,
            mode: recorded.mode.clone(),
            mtime: recorded.mtime,
            mtime_nsecs: recorded.mtime_nsecs,
            wrap_with_directory: self.wrap_with_directory,
            only_hash: self.only_hash,
            no_pin: self.no_pin || self.pin == Some(false),
            pin_name: self.pin_name.clone(),
            private: false,
        }
    }

    async fn stdin(&self, client: &Client) -> anyhow::Result<Added> {
        let mut query = self.options().to_query()?;
        if let Some(name) = &self.stdin_name {
            query.push_str(&format!("&stdin_name={}", super::files::query_value(name)));
        }
        let input = tokio_util::io::ReaderStream::with_capacity(tokio::io::stdin(), 256 << 10);
        client.upload::<Added>(&format!("/api/v1/add-stream?{query}"), Body::from_stream(input)).await
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}
