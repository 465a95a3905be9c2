//! Single entries of directories that are stored already: added, replaced, removed.
//!
//! [`edit_directory`] rewrites the directories on the way to an entry and nothing else. Of a sharded directory it
//! reads and writes the shards that lead to the name, and the entries up to the size at which directories are
//! sharded, to know whether it fits one block again: bounded work however many entries there are. What comes out is
//! what an import of the same entries would have made. `btfs object patch` is this.

use cid::Cid;

use super::directory::{check_name, put_directory};
use super::{Counting, ImportError, Profile};
use crate::read::{self, Entries, Kind, ReadError};
use crate::unixfs::hamt::{self, Left, Shard};
use crate::unixfs::{DirLink, Metadata, Node};
use crate::{BlockSink, BlockSource};

/// Most components of a path that is edited.
const MAX_COMPONENTS: usize = 256;

/// What happens to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is this from now on, whether it was there or not.
    Put {
        /// The root of a file, directory or symlink.
        cid: Cid,
        /// Cumulative size in bytes of its DAG.
        dag_size: u64,
    },
    /// It goes; there must be one.
    Remove,
}

/// What an edit made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edited {
    /// The directory that the path began at, as it is now.
    pub root: Cid,
    /// Cumulative size of its DAG in bytes.
    pub dag_size: u64,
    /// Blocks written.
    pub blocks: u64,
}

/// Why a directory was not edited. It is what it was.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// A directory on the way could not be read, or the path leads nowhere.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The path is none, or the new directory cannot be written.
    #[error(transparent)]
    Import(#[from] ImportError),
}

impl From<hamt::Collision> for EditError {
    fn from(collision: hamt::Collision) -> EditError {
        EditError::Import(collision.into())
    }
}

/// Changes the entry at `path`, components separated by slashes, below the directory `root`; answers the new
/// directory. With `make_parents`, directories that are missing on the way are made.
///
/// New nodes go to `sink`, and are addressed as `root` is: CIDv0 below CIDv0, and by the same hash function. The blocks
/// of the directories on the way must be in `src`.
pub fn edit_directory(
    src: &dyn BlockSource,
    root: &Cid,
    path: &str,
    change: Change,
    make_parents: bool,
    sink: &mut dyn BlockSink,
) -> Result<Edited, EditError> {
    let components: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let refuse = |problem| ImportError::Path { path: path.to_owned(), problem };
    if components.is_empty() {
        return Err(refuse("it names no entry").into());
    }
    if components.len() > MAX_COMPONENTS {
        return Err(refuse("it has more than 256 components").into());
    }
    for name in &components {
        check_name(name).map_err(refuse)?;
    }
    let profile = Profile::beside(root);
    let mut sink = Counting { sink, blocks: 0 };
    let mut editor = Editor { src, profile, sink: &mut sink, make_parents };
    let (root, dag_size) = editor.edit(Some(root), &components, change)?;
    Ok(Edited { root, dag_size, blocks: sink.blocks })
}

struct Editor<'a, 's> {
    src: &'a dyn BlockSource,
    profile: Profile,
    sink: &'a mut Counting<'s>,
    make_parents: bool,
}

impl Editor<'_, '_> {
    /// Edits below `directory`, which is made if it is `None`; its new root and size. Recursion is bounded by
    /// [`MAX_COMPONENTS`].
    fn edit(
        &mut self,
        directory: Option<&Cid>,
        path: &[&str],
        change: Change,
    ) -> Result<(Cid, u64), EditError> {
        let Some((name, rest)) = path.split_first() else { return Err(no_entry()) };
        let found = match directory.map(|directory| read::lookup(self.src, directory, name)) {
            None => None,
            Some(Ok(cid)) => Some(cid),
            Some(Err(ReadError::NotFound { .. }))
                if matches!(change, Change::Put { .. }) && (rest.is_empty() || self.make_parents) =>
            {
                None
            }
            Some(Err(error)) => return Err(error.into()),
        };
        let link = |cid, tsize| DirLink { name: (*name).to_owned(), cid, tsize };
        let entry = match change {
            _ if !rest.is_empty() => {
                let (cid, tsize) = self.edit(found.as_ref(), rest, change)?;
                Some(link(cid, tsize))
            }
            Change::Put { cid, dag_size } => Some(link(cid, dag_size)),
            Change::Remove => None,
        };
        self.set(directory, name, entry)
    }

    /// Writes `directory` with this entry under `name`, or without one.
    fn set(
        &mut self,
        directory: Option<&Cid>,
        name: &str,
        entry: Option<DirLink>,
    ) -> Result<(Cid, u64), EditError> {
        let Some(directory) = directory else {
            let entries = entry.into_iter().collect();
            return Ok(put_directory(&self.profile, entries, &Metadata::default(), self.sink)?);
        };
        let (node, metadata) = read::node_with_metadata(self.src, directory)?;
        match node {
            Node::Directory(mut entries) => {
                entries.retain(|old| old.name != name);
                entries.extend(entry);
                Ok(put_directory(&self.profile, entries, &metadata, self.sink)?)
            }
            Node::Shard(shard) => {
                if let Some(entries) = self.in_one_block(directory, name, &entry, &metadata)? {
                    return Ok(put_directory(&self.profile, entries, &metadata, self.sink)?);
                }
                self.set_in_shard(&shard, name, entry.as_ref(), &metadata)
            }
            other => Err(ReadError::NotADirectory { cid: *directory, kind: Kind::from(&other) }.into()),
        }
    }

    /// The entries of a sharded directory after the change, if they are few enough for one block.
    fn in_one_block(
        &self,
        directory: &Cid,
        name: &str,
        entry: &Option<DirLink>,
        metadata: &Metadata,
    ) -> Result<Option<Vec<DirLink>>, EditError> {
        let mut entries: Vec<DirLink> = entry.iter().cloned().collect();
        let mut room = self.profile.directory_room(metadata);
        let mut fits = |entry: &DirLink| {
            let left = room.checked_sub(self.profile.entry_size(entry));
            room = left.unwrap_or(0);
            left.is_some()
        };
        if !entries.iter().all(&mut fits) {
            return Ok(None);
        }
        for old in Entries::of(self.src, directory)? {
            let old = old?;
            if old.name == name {
                continue;
            }
            if !fits(&old) {
                return Ok(None);
            }
            entries.push(old);
        }
        Ok(Some(entries))
    }

    fn set_in_shard(
        &mut self,
        shard: &Shard,
        name: &str,
        entry: Option<&DirLink>,
        metadata: &Metadata,
    ) -> Result<(Cid, u64), EditError> {
        let (src, profile, sink) = (self.src, self.profile, &mut *self.sink);
        let mut read = |cid: &Cid| read::sub_shard(src, cid).map_err(EditError::from);
        let mut put = |block: bytes::Bytes| -> Result<Cid, EditError> {
            let cid = profile.node_cid(&block);
            sink.put(&cid, block).map_err(ImportError::from)?;
            Ok(cid)
        };
        match hamt::change(shard, name, entry, metadata, &mut read, &mut put)? {
            Left::Shard { cid, tsize } => Ok((cid, tsize)),
            // Fewer entries than that were found to fit one block before.
            Left::Entry(_) | Left::Nothing => Err(no_entry()),
        }
    }
}

fn no_entry() -> EditError {
    let problem = "there is no such entry, and no directory to make it in";
    EditError::Import(ImportError::Path { path: String::new(), problem })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::import::{DirBuilder, Imported, Overrides};
    use crate::read::{ls, resolve};
    use crate::testing::MemoryBlocks;
    use crate::{Bytes, hash};

    fn leaf(text: &str, blocks: &mut MemoryBlocks) -> Imported {
        let block = Bytes::copy_from_slice(text.as_bytes());
        let (root, size) = (hash::cid_v1(hash::RAW, &block), block.len() as u64);
        blocks.put(&root, block).unwrap();
        Imported { root, size, dag_size: size, blocks: 1 }
    }

    fn built(entries: &BTreeMap<String, Imported>, profile: &Profile, blocks: &mut MemoryBlocks) -> Imported {
        let mut builder = DirBuilder::new(profile);
        for (path, entry) in entries {
            builder.add(&path.split('/').collect::<Vec<_>>(), entry).unwrap();
        }
        builder.finish(blocks).unwrap()
    }

    fn edit(blocks: &mut MemoryBlocks, root: &Cid, path: &str, change: Change) -> Result<Edited, EditError> {
        let src = blocks.clone();
        edit_directory(&src, root, path, change, true, blocks)
    }

    /// Around the size at which a directory is sharded, each edit gives what an import of the same entries gives, and
    /// all but one write a few blocks.
    #[test]
    fn edits_are_imports_of_the_result() {
        // Entries of 203 bytes by the one way of counting, of 190 by the other, are 256 KiB.
        let function = Some("blake3".parse().unwrap());
        let blake3 = Profile::V1_2025.with(&Overrides { function, ..Overrides::default() }).unwrap();
        for (profile, limit) in [(Profile::V1_2025, 1291), (Profile::V0_2015, 1379), (blake3, 1291)] {
            let mut blocks = MemoryBlocks::default();
            let file = leaf("x", &mut blocks);
            let other = leaf("other", &mut blocks);
            let name = |i: usize| format!("sub/{}{i:06}", "n".repeat(150));
            let mut entries: BTreeMap<String, Imported> = (0..limit - 20).map(|i| (name(i), file)).collect();
            let mut at = built(&entries, &profile, &mut blocks);
            let (mut sharded, mut plain, mut many) = (0, 0, 0);
            let edits = (limit - 20..limit + 20)
                .map(|i| (i, true))
                .chain((limit - 40..limit + 20).rev().map(|i| (i, false)));
            for (i, put) in edits.chain([(5, true)]) {
                let change = if put {
                    entries.insert(name(i), other);
                    Change::Put { cid: other.root, dag_size: other.dag_size }
                } else {
                    entries.remove(&name(i));
                    Change::Remove
                };
                let edited = edit(&mut blocks, &at.root, &name(i), change).unwrap();
                // All shards are new once: when the directory becomes sharded.
                many += usize::from(edited.blocks > 8);
                if i % 3 == 0 || i == 5 {
                    let expected = built(&entries, &profile, &mut blocks);
                    assert_eq!(
                        (edited.root, edited.dag_size),
                        (expected.root, expected.dag_size),
                        "{i} {put}"
                    );
                    let sub = resolve(&blocks, &edited.root, "sub").unwrap();
                    match read::node_with_metadata(&blocks, &sub).unwrap().0 {
                        Node::Shard(_) => sharded += 1,
                        _ => plain += 1,
                    }
                }
                at.root = edited.root;
            }
            assert!(sharded > 5 && plain > 5 && many == 1, "{sharded} {plain} {many}");
        }
    }

    #[test]
    fn parents_are_made_and_what_is_absent_is_named() {
        let mut blocks = MemoryBlocks::default();
        let file = leaf("x", &mut blocks);
        let put = Change::Put { cid: file.root, dag_size: file.dag_size };
        let empty = DirBuilder::new(&Profile::V1_2025).finish(&mut blocks).unwrap().root;
        let deep = edit(&mut blocks, &empty, "/a/b/c", put).unwrap();
        let entries = [("a/b/c".to_owned(), file)].into();
        assert_eq!(deep.root, built(&entries, &Profile::V1_2025, &mut blocks).root);
        assert_eq!(ls(&blocks, &resolve(&blocks, &deep.root, "a/b").unwrap()).unwrap()[0].name, "c");

        let src = blocks.clone();
        let strict = edit_directory(&src, &empty, "a/b", put, false, &mut blocks);
        assert!(matches!(strict, Err(EditError::Read(ReadError::NotFound { name, .. })) if name == "a"));
        let absent = edit(&mut blocks, &deep.root, "a/x", Change::Remove);
        assert!(matches!(absent, Err(EditError::Read(ReadError::NotFound { name, .. })) if name == "x"));
        let through = edit(&mut blocks, &deep.root, "a/b/c/d", put);
        assert!(matches!(through, Err(EditError::Read(ReadError::NotADirectory { .. }))));
        for path in ["", "/", "a/../b", "a/./b", "a/\0"] {
            let refused = edit(&mut blocks, &empty, path, put);
            assert!(matches!(refused, Err(EditError::Import(ImportError::Path { .. }))), "{path:?}");
        }
        let gone = edit(&mut blocks, &deep.root, "a", Change::Remove).unwrap();
        assert_eq!(gone.root, empty);
    }
}
