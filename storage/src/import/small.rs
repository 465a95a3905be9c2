//! Small files, read and hashed ahead of the walk.
//!
//! The walk takes the entries of a directory one after another. Opening and reading a small file takes longer than
//! hashing it, so the chunks' threads of [`super::pipeline`] are of no use here. Instead the next entries of the directory
//! are given to other threads, a run at a time: they read the files of a run and hash them together. Their answers are
//! taken in the order of the entries. Whatever is not a small file, or cannot be read, the walk looks at by itself as if
//! nobody had.
//!
//! What lies ready is bounded over all directories that the walk is in.

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, Scope};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::tree::Name;
use super::{Chunker, ImportOptions, Leaf, Profile};

/// Files of up to so many bytes are small.
const SMALL: u64 = 32 << 10;
/// Entries that a thread is given at once: enough to be hashed together, and few wake-ups of threads.
const RUN: usize = 32;
/// Runs of entries that are out or not used up: at most 8 MiB of content.
const RUNS: usize = 8;
/// Of these, runs of one directory, so that those below it get some too.
const RUNS_EACH: usize = 4;
/// A small file that is less than one part in this many of what lies in one buffer has one of its own. Allocating and
/// freeing one for each took a twentieth of the time; but who keeps blocks counts their bytes, and a few must not hold much
/// else.
const SHARE: usize = 4;
/// Most reading threads: the walk and the sink are then slower than they are.
const MAX_READERS: usize = 2;

/// A small file as it was read.
pub(super) struct Small {
    pub(super) stat: Stat,
    pub(super) leaf: Leaf,
    pub(super) block: Bytes,
}

/// What became of entries, in their order; `None` for those that the walk must look at.
type Answer = Vec<Option<Small>>;

struct Job {
    directory: PathBuf,
    names: Vec<Name>,
    answer: SyncSender<Answer>,
}

/// The reading threads of one import, started when first needed.
pub(super) struct Ahead<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    /// `None` if files are not to be read ahead.
    profile: Option<Profile>,
    jobs: Option<Sender<Job>>,
    /// Runs that are out or not used up.
    runs: usize,
}

/// What is read ahead of one directory.
#[derive(Default)]
pub(super) struct Queue {
    runs: VecDeque<Receiver<Answer>>,
    current: std::vec::IntoIter<Option<Small>>,
    /// Whether `current` is of a run that counts.
    counts: bool,
    /// Entries given out that the walk has not come to.
    given: usize,
}

impl<'scope, 'env> Ahead<'scope, 'env> {
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        profile: &Profile,
        options: &ImportOptions,
    ) -> Self {
        // A small file must be one chunk, and come from its bytes alone.
        let is_whole = matches!(profile.chunker(), Chunker::Size(size) if u64::from(size) >= SMALL);
        let profile = (is_whole && !options.in_place).then_some(*profile);
        Ahead { scope, profile, jobs: None, runs: 0 }
    }

    /// The next entry of the directory at `path`, if it was read ahead; `rest` are the names of this and all that follow.
    pub(super) fn next(&mut self, queue: &mut Queue, path: &Path, rest: &[Name]) -> Option<Small> {
        self.give_out(queue, path, rest);
        if queue.given == 0 {
            return None;
        }
        queue.given -= 1;
        if queue.current.len() == 0 {
            self.used_up(queue);
            queue.current = queue.runs.pop_front()?.recv().unwrap_or_default().into_iter();
            queue.counts = true;
        }
        let next = queue.current.next().flatten();
        if queue.current.len() == 0 {
            self.used_up(queue);
        }
        next
    }

    fn used_up(&mut self, queue: &mut Queue) {
        self.runs -= usize::from(std::mem::take(&mut queue.counts));
    }

    /// Gives out what of the directory there is room for.
    fn give_out(&mut self, queue: &mut Queue, path: &Path, rest: &[Name]) {
        let Some(profile) = self.profile else { return };
        while self.runs < RUNS && queue.runs.len() < RUNS_EACH {
            let names = &rest[queue.given..];
            // A few are not worth a thread.
            if names.is_empty() || (self.jobs.is_none() && names.len() < RUN) {
                return;
            }
            let names = names[..names.len().min(RUN)].to_vec();
            queue.given += names.len();
            let (answer, answered) = sync_channel(1);
            let jobs = match &self.jobs {
                Some(jobs) => jobs,
                None => self.jobs.insert(start(self.scope, profile)),
            };
            let directory = path.to_owned();
            jobs.send(Job { directory, names, answer }).expect("the threads live as long as their import");
            queue.runs.push_back(answered);
            self.runs += 1;
        }
    }
}

fn start<'scope>(scope: &'scope Scope<'scope, '_>, profile: Profile) -> Sender<Job> {
    let (jobs, queue) = channel::<Job>();
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS) {
        let queue = queue.clone();
        scope.spawn(move || {
            loop {
                let job = queue.lock().recv();
                let Ok(Job { directory, names, answer }) = job else { return };
                // A walk that gave up is not listening any more.
                let _ = answer.send(read_run(&directory, &names, &profile));
            }
        });
    }
    jobs
}

/// The small files among these entries of a directory.
fn read_run(directory: &Path, names: &[Name], profile: &Profile) -> Answer {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(directory, flags, Mode::empty()) else { return Vec::new() };
    let opened = names.iter().map(|name| name.is_file.then(|| open(directory.as_fd(), &name.name)).flatten());
    let files: Vec<_> = read_all(opened.collect())
        .into_iter()
        .map(|found| found.map(|(stat, content)| (stat, profile.leaf_block(&content), content)))
        .collect();
    let blocks: Vec<Bytes> = files.iter().flatten().map(|(_, block, _)| block.clone()).collect();
    let mut cids = profile.leaf_cids(&blocks).into_iter();
    let small = |(stat, block, content): (Stat, Bytes, Bytes)| {
        let leaf = Leaf { cid: cids.next()?, offset: 0, content, block_len: block.len() as u64 };
        Some(Small { stat, leaf, block })
    };
    let mut small = small;
    files.into_iter().map(|file| file.and_then(&mut small)).collect()
}

/// A small regular file as it is now; the walk finds out what anything else is.
fn open(directory: BorrowedFd<'_>, name: &str) -> Option<(File, Stat)> {
    // What took a file's place since it was listed is not followed, and not waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?);
    let stat = rustix::fs::fstat(&file).ok()?;
    let len = u64::try_from(stat.st_size).ok()?;
    // A file that tells no size may have content all the same.
    let small = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && (1..=SMALL).contains(&len);
    small.then_some((file, stat))
}

/// What those of the files hold that do not change meanwhile.
fn read_all(files: Vec<Option<(File, Stat)>>) -> Vec<Option<(Stat, Bytes)>> {
    let sizes = files.iter().map(|file| file.as_ref().map_or(0, |(_, stat)| len(stat)));
    let sizes: Vec<usize> = sizes.collect();
    let (mut files, mut sizes) = (files.into_iter(), sizes.as_slice());
    let mut found = Vec::with_capacity(sizes.len());
    while !sizes.is_empty() {
        let many = sharing(sizes);
        found.extend(read_together(files.by_ref().take(many).collect()));
        sizes = &sizes[many..];
    }
    found
}

/// How many of the first files lie in one buffer, by their sizes; 0 is one that is not read.
fn sharing(sizes: &[usize]) -> usize {
    let (mut all, mut least) = (0, usize::MAX);
    let fits = |size: &&usize| {
        all += **size;
        least = if **size == 0 { least } else { least.min(**size) };
        all <= least.saturating_mul(SHARE)
    };
    sizes.iter().take_while(fits).count().max(1)
}

/// What files hold whose contents share a buffer.
fn read_together(files: Vec<Option<(File, Stat)>>) -> impl Iterator<Item = Option<(Stat, Bytes)>> {
    let mut buffer = Vec::with_capacity(files.iter().flatten().map(|(_, stat)| len(stat)).sum());
    let mut read = |(file, stat): (File, Stat)| {
        let (begin, end) = (buffer.len(), buffer.len() + len(&stat));
        let state = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
        let read = rustix::io::read(&file, rustix::buffer::spare_capacity(&mut buffer)).is_ok();
        let same = rustix::fs::fstat(&file).is_ok_and(|after| state(&stat) == state(&after));
        let whole = read && same && buffer.len() >= end;
        buffer.truncate(if whole { end } else { begin });
        whole.then_some((stat, begin..end))
    };
    let read: Vec<_> = files.into_iter().map(|file| file.and_then(&mut read)).collect();
    let content = Bytes::from(buffer);
    read.into_iter().map(move |found| found.map(|(stat, at)| (stat, content.slice(at))))
}

/// Bytes of a file that is not larger than memory.
fn len(stat: &Stat) -> usize {
    usize::try_from(stat.st_size).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;
    use std::os::unix::fs::symlink;

    use cid::Cid;

    use super::super::{DirBuilder, import_path};
    use super::*;
    use crate::{BlockSink, StoreError};

    #[derive(Default)]
    struct Kept(HashMap<Cid, Bytes>);

    impl BlockSink for Kept {
        fn put(&mut self, cid: &Cid, data: Bytes) -> Result<(), StoreError> {
            self.0.insert(*cid, data);
            Ok(())
        }
    }

    /// Directories of every mixture of small, empty, large and other entries are what their entries make one by one.
    #[test]
    fn a_tree_read_ahead_is_the_tree() {
        let dir = tempfile::tempdir().unwrap();
        let options = ImportOptions::default();
        for profile in Profile::ALL {
            let (mut whole, mut single) = (Kept::default(), Kept::default());
            let root = dir.path().join(profile.name());
            let mut expected = DirBuilder::new(&profile);
            for number in 0..400u32 {
                let names = match number % 3 {
                    0 => vec!["a".to_owned(), format!("{:02}", number % 40), format!("{number:03}")],
                    1 => vec!["b".to_owned(), format!("{number:03}")],
                    _ => vec![format!("{number:03}")],
                };
                let path = names.iter().fold(root.clone(), |path, name| path.join(name));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                match number % 7 {
                    0 => fs::write(&path, b"").unwrap(),
                    1 => fs::write(&path, vec![number as u8; SMALL as usize + number as usize % 2]).unwrap(),
                    2 if number % 5 == 0 => fs::write(&path, vec![7; (1 << 20) + 1]).unwrap(),
                    _ => fs::write(&path, format!("file {number}")).unwrap(),
                }
                let file = import_path(&path, &profile, &options, &mut single, &mut |_| {}).unwrap();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                expected.add(&names, &file).unwrap();
            }
            let expected = expected.finish(&mut single).unwrap();
            let done = import_path(&root, &profile, &options, &mut whole, &mut |_| {}).unwrap();
            assert_eq!((done.root, done.size), (expected.root, expected.size), "{}", profile.name());
            assert_eq!(whole.0, single.0, "the same blocks are stored");
        }
    }

    #[test]
    fn what_is_no_small_file_is_left_to_the_walk() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("small"), b"content").unwrap();
        fs::write(at("empty"), b"").unwrap();
        fs::write(at("large"), vec![0; SMALL as usize + 1]).unwrap();
        fs::create_dir(at("directory")).unwrap();
        symlink("small", at("link")).unwrap();
        let directory = File::open(dir.path()).unwrap();
        let read = |name| read_all(vec![open(directory.as_fd(), name)]).remove(0).map(|(_, content)| content);
        assert_eq!(&read("small").unwrap()[..], b"content");
        for name in ["empty", "large", "directory", "link", "absent"] {
            assert!(read(name).is_none(), "{name}");
        }
        let opened = ["small", "large", "small"].map(|name| open(directory.as_fd(), name));
        fs::write(at("other"), b"others").unwrap();
        let other = open(directory.as_fd(), "other");
        fs::write(at("other"), b"longer than it was").unwrap();
        let contents = read_all(opened.into_iter().chain([other]).collect());
        let contents: Vec<_> =
            contents.iter().map(|found| found.as_ref().map(|(_, content)| &content[..])).collect();
        assert_eq!(contents, [Some(&b"content"[..]), None, Some(b"content"), None], "one changed meanwhile");
    }

    #[test]
    fn files_of_like_sizes_share_a_buffer() {
        for (sizes, many) in [
            (&[4096; 32][..], SHARE),
            (&[1, 4096], 1),
            (&[4096, 1], 1),
            (&[100, 100, 300], 2),
            (&[0, 0, 100, 0, 100, 300], 5),
            (&[0], 1),
        ] {
            assert_eq!(sharing(sizes), many, "{sizes:?}");
        }
    }
}
