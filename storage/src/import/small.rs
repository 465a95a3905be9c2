//! Small files, read and hashed ahead of the walk.
//!
//! The walk takes the entries of a directory one after another. Opening and reading a small file takes longer than
//! hashing it, so the chunks' threads of [`super::pipeline`] are of no use here. Instead the next entries of the directory
//! are given to other threads, a run at a time: they read the files of a run and hash them together. Their answers are
//! taken in the order of the entries. Whatever is not a small file, or cannot be read, the walk looks at by itself as if
//! nobody had. When all files of a directory are being read, those of the directory behind it follow.
//!
//! What lies ready is bounded over all directories that the walk is in.

use std::collections::VecDeque;
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::{self, Scope};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FileType, Mode, OFlags, Stat};

use super::tree::Name;
use super::{Chunker, ImportOptions, Leaf, Profile};

/// Files of up to so many bytes are small.
const SMALL: usize = 32 << 10;
/// Entries that a thread is given at once: enough to be hashed together, and few wake-ups of threads.
const RUN: usize = 64;
/// Entries from which on the threads are started, all in one directory or in many.
const WORTH_THREADS: usize = 32;
/// Most runs of entries that are out or not used up. The sink takes 4 MiB at a time, and while it is at one the readers
/// shall have something to do.
const RUNS: usize = 32;
/// The least that may be, however large the files are.
const LEAST_RUNS: usize = 4;
/// Bytes of content that may lie ready; what would be more is left to the walk.
const READY: usize = 16 << 20;
/// A small file that is less than one part in this many of what lies in one buffer has one of its own. Allocating and
/// freeing one for each took a twentieth of the time; but who keeps blocks counts their bytes, and a few must not hold much
/// else.
const SHARE: usize = 4;
/// Most reading threads: the walk and the sink are then slower than they are.
const MAX_READERS: usize = 2;

/// What is told of a file beside its content: one that was written to meanwhile tells something else.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    size: i64,
    pub(super) mode: u32,
    /// Time of the last change, Unix seconds,
    pub(super) mtime: i64,
    /// and nanoseconds.
    pub(super) mtime_nsec: u32,
}

impl State {
    fn of(stat: &Stat) -> State {
        let mtime_nsec = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        State { size: stat.st_size, mode: stat.st_mode, mtime: stat.st_mtime, mtime_nsec }
    }
}

/// A small file as it was read.
pub(super) struct Small {
    pub(super) state: State,
    pub(super) leaf: Leaf,
    pub(super) block: Bytes,
    /// Held for as long as it lies ready.
    #[expect(dead_code, reason = "dropping it is all that is done with it")]
    claim: Claim,
}

/// A part of [`READY`], until it is dropped.
struct Claim {
    ready: Arc<AtomicUsize>,
    bytes: usize,
}

impl Claim {
    fn take(ready: &Arc<AtomicUsize>, bytes: usize) -> Option<Claim> {
        let claim = Claim { ready: ready.clone(), bytes };
        (ready.fetch_add(bytes, Ordering::Relaxed) + bytes <= READY).then_some(claim)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.ready.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A small file that is open.
struct Opened {
    file: File,
    state: State,
    claim: Claim,
}

impl Opened {
    fn len(&self) -> usize {
        self.claim.bytes
    }
}

/// What a small file holds.
struct Content {
    state: State,
    bytes: Bytes,
    claim: Claim,
}

/// What became of the entries of a run.
#[derive(Default)]
struct Answer {
    /// In their order; `None` for those that the walk must look at, as also for what is lacking at the end.
    entries: Vec<Option<Small>>,
    /// Bytes of the small files among them, those that there was no room for included.
    bytes: usize,
}

struct Job {
    directory: PathBuf,
    names: Listed,
    answer: SyncSender<Answer>,
}

/// Names of a run, in one piece: what is allocated for each alone, here and freed there, makes threads wait for each
/// other.
struct Listed {
    /// Each ended by the byte that no name has in it.
    names: Vec<u8>,
    /// Which of them are regular files.
    are_files: Vec<bool>,
}

impl Listed {
    fn new(names: &[Name]) -> Listed {
        let mut all = Vec::with_capacity(names.iter().map(|name| name.name.len() + 1).sum());
        for name in names {
            all.extend_from_slice(name.name.as_bytes());
            all.push(0);
        }
        Listed { names: all, are_files: names.iter().map(|name| name.is_file).collect() }
    }

    /// Each name, if it is that of a regular file.
    fn files(&self) -> impl Iterator<Item = Option<&CStr>> {
        let names = self.names.split_inclusive(|byte| *byte == 0);
        names
            .zip(&self.are_files)
            .map(|(name, is_file)| is_file.then(|| CStr::from_bytes_with_nul(name)).and_then(Result::ok))
    }
}

/// The reading threads of one import, started when first needed.
pub(super) struct Ahead<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    /// `None` if files are not to be read ahead.
    profile: Option<Profile>,
    jobs: Option<Sender<Job>>,
    /// Entries that the walk came to.
    met: usize,
    /// Runs that are out or not used up, and how many may be: as the last one had many or few bytes.
    runs: usize,
    allowed: usize,
    /// Bytes that lie ready.
    ready: Arc<AtomicUsize>,
}

/// Entries that were given out together.
struct Run {
    entries: usize,
    /// Comes from the threads; `None` for entries without a file among them.
    answer: Option<Receiver<Answer>>,
}

/// What is read ahead of one directory.
#[derive(Default)]
pub(super) struct Queue {
    runs: VecDeque<Run>,
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
        let is_whole = matches!(profile.chunker(), Chunker::Size(size) if size as usize >= SMALL);
        let profile = (is_whole && !options.in_place).then_some(*profile);
        Ahead { scope, profile, jobs: None, met: 0, runs: 0, allowed: LEAST_RUNS, ready: Arc::default() }
    }

    /// The next entry of the directory at `path`, if it was read ahead; `rest` are the names of this and all that follow.
    pub(super) fn next(&mut self, queue: &mut Queue, path: &Path, rest: &[Name]) -> Option<Small> {
        self.met = self.met.saturating_add(1);
        self.give_out(queue, path, rest);
        if queue.given == 0 {
            return None;
        }
        queue.given -= 1;
        if queue.current.len() == 0 {
            self.used_up(queue);
            let run = queue.runs.pop_front()?;
            let mut answer = Answer::default();
            if let Some(answered) = run.answer {
                queue.counts = true;
                answer = answered.recv().unwrap_or_default();
                // Half, since the next ones may be larger.
                self.allowed = (READY / 2 / answer.bytes.max(1)).clamp(LEAST_RUNS, RUNS);
            }
            answer.entries.resize_with(run.entries, || None);
            queue.current = answer.entries.into_iter();
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

    /// Whether the threads are at work, and have been given all that is left of a directory: so many entries.
    pub(super) fn has_given_out(&self, queue: &Queue, left: usize) -> bool {
        self.jobs.is_some() && queue.given == left
    }

    /// Gives out what of the directory there is room for.
    pub(super) fn give_out(&mut self, queue: &mut Queue, path: &Path, rest: &[Name]) {
        let Some(profile) = self.profile else { return };
        // Half, so that a directory leaves something to those below and behind it; and one in any case.
        while queue.runs.is_empty() || (self.runs < self.allowed && queue.runs.len() < self.allowed / 2) {
            let names = &rest[queue.given..];
            let is_worth_it = self.jobs.is_some() || self.met.max(names.len()) >= WORTH_THREADS;
            if names.is_empty() || !is_worth_it {
                return;
            }
            let names = &names[..names.len().min(RUN)];
            queue.given += names.len();
            if !names.iter().any(|name| name.is_file) {
                queue.runs.push_back(Run { entries: names.len(), answer: None });
                continue;
            }
            let (answer, answered) = sync_channel(1);
            let jobs = match &self.jobs {
                Some(jobs) => jobs,
                None => self.jobs.insert(start(self.scope, profile, &self.ready)),
            };
            let directory = path.to_owned();
            let job = Job { directory, names: Listed::new(names), answer };
            jobs.send(job).expect("the threads live as long as their import");
            queue.runs.push_back(Run { entries: names.len(), answer: Some(answered) });
            self.runs += 1;
        }
    }
}

fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    profile: Profile,
    ready: &Arc<AtomicUsize>,
) -> Sender<Job> {
    let (jobs, queue) = channel::<Job>();
    let queue = Arc::new(Mutex::new(queue));
    for _ in 0..thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS) {
        let (queue, ready) = (queue.clone(), ready.clone());
        scope.spawn(move || {
            loop {
                let job = queue.lock().recv();
                let Ok(Job { directory, names, answer }) = job else { return };
                // A walk that gave up is not listening any more.
                let _ = answer.send(read_run(&directory, &names, &profile, &ready));
            }
        });
    }
    jobs
}

/// The small files among these entries of a directory.
fn read_run(directory: &Path, names: &Listed, profile: &Profile, ready: &Arc<AtomicUsize>) -> Answer {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(directory) = rustix::fs::open(directory, flags, Mode::empty()) else { return Answer::default() };
    let mut wanted = 0;
    let mut open = |name: Option<&CStr>| {
        let (file, state, len) = open(directory.as_fd(), name?)?;
        wanted += len;
        Some(Opened { file, state, claim: Claim::take(ready, len)? })
    };
    let files: Vec<_> = read_all(names.files().map(&mut open).collect())
        .into_iter()
        .map(|found| found.map(|content| (profile.leaf_block(&content.bytes), content)))
        .collect();
    let blocks: Vec<Bytes> = files.iter().flatten().map(|(block, _)| block.clone()).collect();
    let mut cids = profile.leaf_cids(&blocks).into_iter();
    let mut small = |(block, content): (Bytes, Content)| {
        let Content { state, bytes: content, claim } = content;
        let leaf = Leaf { cid: cids.next()?, offset: 0, content, block_len: block.len() as u64 };
        Some(Small { state, leaf, block, claim })
    };
    Answer { entries: files.into_iter().map(|file| file.and_then(&mut small)).collect(), bytes: wanted }
}

/// A small regular file as it is now, and its length; the walk finds out what anything else is.
fn open(directory: BorrowedFd<'_>, name: &CStr) -> Option<(File, State, usize)> {
    // What took a file's place since it was listed is not followed, and not waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?);
    let stat = rustix::fs::fstat(&file).ok()?;
    // A file that tells no size may have content all the same.
    let len = usize::try_from(stat.st_size).ok().filter(|len| (1..=SMALL).contains(len))?;
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    is_file.then_some((file, State::of(&stat), len))
}

/// What those of the files hold that do not change meanwhile.
fn read_all(files: Vec<Option<Opened>>) -> Vec<Option<Content>> {
    let sizes: Vec<usize> = files.iter().map(|file| file.as_ref().map_or(0, Opened::len)).collect();
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
fn read_together(files: Vec<Option<Opened>>) -> impl Iterator<Item = Option<Content>> {
    let mut buffer = Vec::with_capacity(files.iter().flatten().map(Opened::len).sum());
    let mut read = |opened: Opened| {
        let (begin, end) = (buffer.len(), buffer.len() + opened.len());
        let Opened { file, state, claim } = opened;
        let read = rustix::io::read(&file, rustix::buffer::spare_capacity(&mut buffer)).is_ok();
        let same = rustix::fs::fstat(&file).is_ok_and(|after| state == State::of(&after));
        let whole = read && same && buffer.len() >= end;
        buffer.truncate(if whole { end } else { begin });
        whole.then_some((state, begin..end, claim))
    };
    let read: Vec<_> = files.into_iter().map(|file| file.and_then(&mut read)).collect();
    let buffer = Bytes::from(buffer);
    read.into_iter()
        .map(move |found| found.map(|(state, at, claim)| Content { state, bytes: buffer.slice(at), claim }))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::ffi::CString;
    use std::fs;
    use std::os::unix::fs::symlink;

    use cid::Cid;

    use super::super::{DirBuilder, ImportError, import_path};
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
                    1 => fs::write(&path, vec![number as u8; SMALL + number as usize % 2]).unwrap(),
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

    /// What is wrong with a directory that is begun ahead is found when the walk comes there, and rules hold in it.
    #[test]
    fn directories_ahead_are_taken_as_the_walk_would() {
        let dir = tempfile::tempdir().unwrap();
        for directory in ["a", "b", "c/d", "e"] {
            fs::create_dir_all(dir.path().join(directory)).unwrap();
            for number in 0..100 {
                fs::write(dir.path().join(directory).join(format!("{number:02}")), [number]).unwrap();
                fs::write(dir.path().join(directory).join(format!(".{number:02}")), [number]).unwrap();
            }
        }
        symlink("a", dir.path().join("bb")).unwrap();
        let profile = Profile::V1_2025;
        let import = |options: &ImportOptions| {
            let mut sink = Kept::default();
            import_path(dir.path(), &profile, options, &mut sink, &mut |_| {})
                .map(|done| (done.root, done.size))
        };
        let options = ImportOptions::default();
        let (root, size) = import(&options).unwrap();
        assert_eq!(size, 400, "hidden files are left out");
        let mut expected = DirBuilder::new(&profile);
        let mut sink = Kept::default();
        for directory in ["a", "b", "c/d", "e"] {
            for number in 0..100 {
                let name = format!("{number:02}");
                let path = dir.path().join(directory).join(&name);
                let file = import_path(&path, &profile, &options, &mut sink, &mut |_| {}).unwrap();
                let names: Vec<&str> = directory.split('/').chain([name.as_str()]).collect();
                expected.add(&names, &file).unwrap();
            }
        }
        let link = import_path(&dir.path().join("bb"), &profile, &options, &mut sink, &mut |_| {}).unwrap();
        expected.add(&["bb"], &link).unwrap();
        assert_eq!(expected.finish(&mut sink).unwrap().root, root);
        // A loop by a followed link, behind a directory that is being read.
        symlink("..", dir.path().join("c/e")).unwrap();
        let follow = ImportOptions { follow_links: true, ..ImportOptions::default() };
        assert!(matches!(import(&follow), Err(ImportError::Loop { .. })));
    }

    #[test]
    fn what_is_no_small_file_is_left_to_the_walk() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("small"), b"content").unwrap();
        fs::write(at("empty"), b"").unwrap();
        fs::write(at("large"), vec![0; SMALL + 1]).unwrap();
        fs::create_dir(at("directory")).unwrap();
        symlink("small", at("link")).unwrap();
        let directory = File::open(dir.path()).unwrap();
        let ready = Arc::default();
        let open = |name: &str| {
            let (file, state, len) = open(directory.as_fd(), &CString::new(name).unwrap())?;
            Some(Opened { file, state, claim: Claim::take(&ready, len)? })
        };
        let read = |name| read_all(vec![open(name)]).remove(0).map(|content| content.bytes);
        assert_eq!(&read("small").unwrap()[..], b"content");
        for name in ["empty", "large", "directory", "link", "absent"] {
            assert!(read(name).is_none(), "{name}");
        }
        let opened = ["small", "large", "small"].map(open);
        fs::write(at("other"), b"others").unwrap();
        let other = open("other");
        fs::write(at("other"), b"longer than it was").unwrap();
        let found = read_all(opened.into_iter().chain([other]).collect());
        let contents: Vec<_> =
            found.iter().map(|found| found.as_ref().map(|content| &content.bytes[..])).collect();
        assert_eq!(contents, [Some(&b"content"[..]), None, Some(b"content"), None], "one changed meanwhile");
        drop(found);
        assert_eq!(ready.load(Ordering::Relaxed), 0, "what is not read any more gives its share back");
    }

    fn named(names: &[&str]) -> Vec<Name> {
        names.iter().map(|name| Name { name: (*name).to_owned(), is_file: true }).collect()
    }

    #[test]
    fn what_lies_ready_is_bounded_and_what_is_too_much_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), vec![1; SMALL]).unwrap();
        let (ready, profile) = (Arc::default(), Profile::V1_2025);
        let run = |many| read_run(dir.path(), &Listed::new(&named(&vec!["file"; many])), &profile, &ready);
        let mut held: Vec<Answer> = (0..READY / SMALL / RUN).map(|_| run(RUN)).collect();
        assert!(held.iter().all(|answer| answer.entries.iter().all(Option::is_some)));
        let more = run(3);
        assert!(more.entries.iter().all(Option::is_none));
        assert_eq!((more.entries.len(), more.bytes), (3, 3 * SMALL));
        held.pop();
        assert!(run(3).entries.iter().all(Option::is_some));
        drop(held);
        assert_eq!(ready.load(Ordering::Relaxed), 0);
    }

    /// Whatever a run answers, the next one's files keep their names.
    #[test]
    fn a_run_that_tells_nothing_moves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..2 * RUN).map(|number| format!("{number:04}")).collect();
        for name in &names {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let names = named(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let profile = Profile::V1_2025;
        thread::scope(|scope| {
            let mut ahead = Ahead::new(scope, &profile, &ImportOptions::default());
            let mut queue = Queue::default();
            // The directory could not be opened for the first run.
            let (answer, answered) = sync_channel(1);
            let listed = Listed::new(&names[..RUN]);
            answer.send(read_run(&dir.path().join("absent"), &listed, &profile, &ahead.ready)).unwrap();
            queue.runs.push_back(Run { entries: RUN, answer: Some(answered) });
            (queue.given, ahead.runs) = (RUN, 1);
            for (number, name) in names.iter().enumerate() {
                let found = ahead.next(&mut queue, dir.path(), &names[number..]);
                let content = found.map(|small| small.leaf.content);
                assert_eq!(content.as_deref(), (number >= RUN).then_some(name.name.as_bytes()), "{number}");
            }
            assert_eq!((ahead.runs, queue.given), (0, 0));
        });
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
