//! `btfs object patch`.

use clap::Subcommand;

use super::Context;
use crate::calls::object::{AddLinkRequest, Patched, RemoveLinkRequest};

#[derive(Debug, Subcommand)]
pub enum Object {
    /// Make a directory anew with an entry more or less; the old one stays what it is.
    #[command(subcommand)]
    Patch(Patch),
}

#[derive(Debug, Subcommand)]
pub enum Patch {
    /// Put an entry into a directory, in place of what has its name; prints the new directory's CID.
    AddLink {
        /// The directory: a CID or /ipfs/CID/path.
        root: String,
        /// The entry: a name, or a path below the directory.
        name: String,
        /// What it is to be: a CID or /ipfs/CID/path.
        reference: String,
        /// Make directories that are missing on the way.
        #[arg(long, short = 'p')]
        create: bool,
        /// Pin the new directory.
        #[arg(long)]
        pin: bool,
    },
    /// Take an entry out of a directory; prints the new directory's CID.
    RmLink {
        /// The directory: a CID or /ipfs/CID/path.
        root: String,
        /// The entry: a name, or a path below the directory.
        name: String,
        /// Pin the new directory.
        #[arg(long)]
        pin: bool,
    },
}

impl Object {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let human = |patched: &Patched| patched.cid.clone();
        let Self::Patch(patch) = self;
        match patch {
            Patch::AddLink { root, name, reference, create, pin } => {
                context.run(&AddLinkRequest { root, name, reference, create, pin }, human).await
            }
            Patch::RmLink { root, name, pin } => {
                context.run(&RemoveLinkRequest { root, name, pin }, human).await
            }
        }
    }
}
