//! What of a tree is taken in, and what is recorded of it.

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::OFlags;

use super::ImportError;
use super::small::State;
use crate::unixfs::Metadata;

/// Longest file of rules, in bytes; the longest that projects have are some ten thousand.
const MAX_RULES: u64 = 1 << 20;

/// What [`import_path`](super::import_path) takes in, and what it records beside names and contents.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Take entries whose name starts with a dot. The path given is taken in any case.
    pub hidden: bool,
    /// If the path given is itself a symlink, import what it points to.
    pub follow_root: bool,
    /// Import what symlinks below the path given point to, instead of the links.
    pub follow_links: bool,
    /// Leave directories out that have no entries, other than the path given. As in Kubo, one that has held no more than
    /// such directories stays.
    pub skip_empty_directories: bool,
    /// Entries to leave out. The path given is taken in any case.
    pub ignore: Option<IgnoreRules>,
    /// Leave raw leaves in their files: the sink is told where they lie ([`BlockSink::put_located`](crate::BlockSink)).
    pub in_place: bool,
    /// Record the permissions of files and directories.
    pub preserve_mode: bool,
    /// Record the times of last modification.
    pub preserve_mtime: bool,
    /// Permissions to record for every file and directory, where they are not preserved.
    pub mode: Option<u32>,
    /// Time to record for every entry, where it is not preserved: seconds since 1970 and nanoseconds.
    pub mtime: Option<(i64, u32)>,
}

impl ImportOptions {
    /// Whether modes or times are recorded, so that the profile must leave room for them
    /// ([`Overrides::metadata`](super::Overrides)).
    pub fn records_metadata(&self) -> bool {
        self.preserve_mode || self.preserve_mtime || !self.given().is_empty()
    }

    /// What is recorded of an entry that no file system holds, such as a stream.
    pub fn given(&self) -> Metadata {
        Metadata::new(self.mode, self.mtime)
    }

    /// What is recorded of an entry. Symlinks have no mode of their own.
    pub(super) fn metadata(&self, of: &fs::Metadata) -> Metadata {
        let mode = Some(of.mode()).filter(|_| !of.is_symlink());
        self.recorded(mode, of.mtime(), u32::try_from(of.mtime_nsec()).unwrap_or(0))
    }

    /// The same of a small file.
    pub(super) fn metadata_of(&self, of: &State) -> Metadata {
        self.recorded(Some(of.mode), of.mtime, of.mtime_nsec)
    }

    /// `mode`: `None` for what has none of its own.
    fn recorded(&self, mode: Option<u32>, seconds: i64, nanoseconds: u32) -> Metadata {
        let mtime = if self.preserve_mtime { Some((seconds, nanoseconds)) } else { self.mtime };
        Metadata::new(mode.and_then(|mode| if self.preserve_mode { Some(mode) } else { self.mode }), mtime)
    }

    /// Whether the entry `name` of the directory at `below` (its components under the path given) may be taken;
    /// `is_dir` is asked only if rules need to know.
    pub(super) fn takes(&self, below: &[String], name: &str, is_dir: impl FnOnce() -> bool) -> bool {
        if !self.hidden && name.starts_with('.') {
            return false;
        }
        let Some(IgnoreRules(rules)) = &self.ignore else { return true };
        let path = below.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join("/");
        !rules.matched(path, is_dir()).is_ignore()
    }
}

/// Patterns of entries to leave out, in the syntax of `.gitignore`; paths are relative to the path that is imported.
#[derive(Debug, Clone)]
pub struct IgnoreRules(Gitignore);

impl IgnoreRules {
    /// Rules given one by one, after those of a file, if there is one. Later rules win, as in git.
    pub fn new(rules: &[String], file: Option<&Path>) -> Result<IgnoreRules, ImportError> {
        let wrong = |error: ignore::Error| ImportError::Rules(error.to_string());
        let mut builder = GitignoreBuilder::new("");
        let text = file.map(read_rules).transpose()?.unwrap_or_default();
        for rule in text.trim_start_matches('\u{feff}').lines() {
            builder.add_line(file.map(Path::to_owned), rule).map_err(wrong)?;
        }
        for rule in rules {
            builder.add_line(None, rule).map_err(wrong)?;
        }
        Ok(IgnoreRules(builder.build().map_err(wrong)?))
    }
}

/// The text of a file of rules: a regular one, and not endless.
fn read_rules(path: &Path) -> Result<String, ImportError> {
    let wrong = |problem: String| ImportError::Rules(format!("{} {problem}", path.display()));
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let metadata = file.metadata().map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if !metadata.is_file() {
        return Err(wrong("is no regular file".into()));
    }
    let mut text = String::new();
    let read = file.take(MAX_RULES + 1).read_to_string(&mut text);
    match read.map_err(|error| wrong(format!("cannot be read: {error}")))? as u64 {
        0..=MAX_RULES => Ok(text),
        _ => Err(wrong(format!("is longer than {MAX_RULES} bytes"))),
    }
}
