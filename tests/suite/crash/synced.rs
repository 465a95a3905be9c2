//! Every file of a batch is synced before the batch is acknowledged.
//!
//! A kill proves nothing about that: what was written and not synced survives it in the cache of the system. So `btfs
//! add` runs under strace here, and its calls are read: when the CID is printed, everything that was written to a file of
//! the two databases has been synced since, and so has every directory in which a file was made or renamed. And when the
//! state was written that refers to the blocks, the blocks were synced already.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use btfs_tests::node::{Node, random_file};
use btfs_tests::peers;

/// Acknowledged by the log alone, and by a flush.
const SMALL: u64 = 20_000;
const LARGE: u64 = 9 << 20;

/// What changes a file or makes it durable, and what tells the user.
const CALLS: &str = "write,pwrite64,writev,pwritev,pwritev2,copy_file_range,sendfile,fsync,fdatasync,openat,creat,\
                     rename,renameat,renameat2,link,linkat";

/// A call, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    /// Bytes went to a file.
    Write(String),
    /// A file was made.
    Create(String),
    /// A file, written before under the first name, has the second.
    Rename(String, String),
    /// A file or directory was synced.
    Sync(String),
    /// The CID was printed.
    Acknowledge,
}

/// A call of one thread, from line to line if others came between.
struct Pending {
    began: usize,
    text: String,
}

/// A call, and the lines in which it began and ended.
#[derive(Clone, Debug)]
struct Step {
    began: usize,
    ended: usize,
    call: Call,
}

/// The path in `5</path>`.
fn path_of_descriptor(argument: &str) -> Option<&str> {
    let (_, rest) = argument.split_once('<')?;
    rest.split_once('>').map(|(path, _)| path)
}

/// What stands between the quotes of each quoted argument.
fn quoted(arguments: &str) -> Vec<&str> {
    arguments.split('"').skip(1).step_by(2).collect()
}

/// A whole call, `name(arguments) = result`, if it matters.
fn call(text: &str) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    if result.starts_with('-') {
        return None;
    }
    let path = || path_of_descriptor(arguments).map(str::to_owned);
    match name {
        "fsync" | "fdatasync" => Some(Call::Sync(path()?)),
        "openat" | "creat" => {
            (name == "creat" || arguments.contains("O_CREAT")).then_some(())?;
            Some(Call::Create(path_of_descriptor(result)?.to_owned()))
        }
        "rename" | "renameat" | "renameat2" | "link" | "linkat" => {
            let paths = quoted(arguments);
            Some(Call::Rename((*paths.first()?).to_owned(), (*paths.get(1)?).to_owned()))
        }
        _ if arguments.starts_with("1<") && arguments.contains(r#"{\"cid\""#) => Some(Call::Acknowledge),
        _ => Some(Call::Write(path()?)),
    }
}

/// Reads what `strace -f -y` wrote.
fn read(trace: &str) -> Vec<Step> {
    let mut pending: BTreeMap<&str, Pending> = BTreeMap::new();
    let mut steps = Vec::new();
    for (ended, line) in trace.lines().enumerate() {
        let Some((thread, text)) = line.split_once(' ') else { continue };
        let text = text.trim_start();
        let (began, text) = if let Some(begin) = text.strip_suffix("<unfinished ...>") {
            pending.insert(thread, Pending { began: ended, text: begin.to_owned() });
            continue;
        } else if let Some(rest) = text.strip_prefix("<... ") {
            let Some(Pending { began, text }) = pending.remove(thread) else { continue };
            let (_, rest) = rest.split_once("resumed>").expect("strace says what resumes");
            (began, text + rest)
        } else {
            (ended, text.to_owned())
        };
        steps.extend(call(&text).map(|call| Step { began, ended, call }));
    }
    steps
}

/// Whether a file is one of the two databases' own, other than their notes for people and their locks.
fn matters(path: &str) -> bool {
    let Some((directory, name)) = path.rsplit_once('/') else { return false };
    let database = ["/state", "/blocks"].iter().any(|ending| directory.ends_with(ending));
    database && !name.starts_with("LOG") && name != "LOCK"
}

fn parent(path: &str) -> String {
    path.rsplit_once('/').map_or_else(String::new, |(directory, _)| directory.to_owned())
}

/// What is not durable yet: a file or directory, and when it was last changed.
#[derive(Default)]
struct Unsynced(BTreeMap<String, usize>);

impl Unsynced {
    fn apply(&mut self, step: &Step) {
        match &step.call {
            Call::Write(path) if matters(path) => {
                self.0.insert(path.clone(), step.ended);
            }
            Call::Create(path) if matters(path) => {
                self.0.insert(parent(path), step.ended);
            }
            Call::Rename(from, to) if matters(to) => {
                if let Some(written) = self.0.remove(from) {
                    self.0.insert(to.clone(), written);
                }
                self.0.insert(parent(to), step.ended);
            }
            // A sync is good for what was there when it began.
            Call::Sync(path) if self.0.get(path).is_some_and(|changed| *changed <= step.began) => {
                self.0.remove(path);
            }
            _ => {}
        }
    }
}

/// What was not durable when it had to be: at the last change of the state before the acknowledgement the blocks, and at
/// the acknowledgement everything.
fn unsynced(steps: &[Step]) -> Vec<String> {
    let acknowledged = steps.iter().position(|step| step.call == Call::Acknowledge);
    let steps = &steps[..acknowledged.expect("the CID was printed")];
    let commits = |step: &Step| matches!(&step.call, Call::Write(path) if parent(path).ends_with("/state") && path.ends_with(".log"));
    let commit = steps.iter().rposition(commits).expect("the state was written");
    let mut open = Unsynced::default();
    let mut found: Vec<String> = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        if number == commit {
            let blocks = open.0.keys().filter(|path| path.contains("/blocks"));
            found.extend(blocks.map(|path| format!("{path}, when the state that refers to it was written")));
        }
        open.apply(step);
    }
    found.extend(open.0.into_keys());
    found
}

/// The syncs whose loss is noticed, by what they sync.
fn needed(steps: &[Step]) -> Vec<(usize, String)> {
    let syncs = steps.iter().enumerate().filter_map(|(number, step)| match &step.call {
        Call::Sync(path) => Some((number, path.clone())),
        _ => None,
    });
    syncs
        .filter(|(number, _)| {
            let mut without = steps.to_vec();
            without.remove(*number);
            !unsynced(&without).is_empty()
        })
        .collect()
}

/// What `btfs add` of so many bytes does.
fn trace_of_add(size: u64) -> Vec<Step> {
    let node = Node::init(None);
    // Its databases are made by then.
    node.json(&["repo", "stat"]);
    let (file, trace) = (node.file("file"), node.file("trace"));
    random_file(&file, size, 31);
    let output = Command::new("strace")
        .args(["-f", "-y", "-qq", "-s", "32", "-e", "signal=none", "-e", &format!("trace={CALLS}"), "-o"])
        .args([&trace, &peers::btfs()])
        .args(["add", "--json"])
        .arg(&file)
        .env("BTFS_PATH", node.repo())
        .stdin(Stdio::null())
        .output()
        .expect("strace runs; `make peers` installs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    read(&String::from_utf8_lossy(&std::fs::read(&trace).expect("strace wrote what it saw")))
}

/// Nothing is left unsynced; of each file that ends so, and of the directory where it is new, a sync was needed.
fn check(steps: &[Step], endings: &[&str]) {
    assert_eq!(unsynced(steps), [] as [String; 0]);
    let needed: Vec<String> = needed(steps).into_iter().map(|(_, path)| path).collect();
    for ending in endings {
        assert!(
            needed.iter().any(|path| path.rsplit('/').next().is_some_and(|name| name.contains(ending))),
            "no sync of a {ending} was needed: {needed:?}"
        );
    }
}

#[test]
fn small_files_are_synced_before_they_are_acknowledged() {
    let steps = trace_of_add(SMALL);
    check(&steps, &[".log"]);
    // Both logs: that of the blocks, and that of the state.
    let logs = needed(&steps).into_iter().filter(|(_, path)| path.ends_with(".log")).count();
    assert_eq!(logs, 2);
}

#[test]
fn large_files_are_synced_before_they_are_acknowledged() {
    check(&trace_of_add(LARGE), &[".log", ".sst", ".blob", "MANIFEST", "blocks"]);
}

/// A trace in which every sync is needed, with a call that others interrupt.
const SAMPLE: &str = r#"
7 openat(AT_FDCWD</r>, "/r/blocks/3.blob", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0644) = 5</r/blocks/3.blob>
7 write(5</r/blocks/3.blob>, "\1\2"..., 4096) = 4096
7 fdatasync(5</r/blocks/3.blob> <unfinished ...>
8 write(6</r/blocks/LOG>, "a note", 6) = 6
7 <... fdatasync resumed>) = 0
7 openat(AT_FDCWD</r>, "/r/blocks/4.sst", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0644) = 7</r/blocks/4.sst>
7 write(7</r/blocks/4.sst>, "\1\2"..., 512) = 512
7 fdatasync(7</r/blocks/4.sst>) = 0
7 fsync(4</r/blocks>) = 0
7 write(8</r/blocks/MANIFEST-000005>, "x", 1) = 1
7 fdatasync(8</r/blocks/MANIFEST-000005>) = 0
7 openat(AT_FDCWD</r>, "/r/state/5.dbtmp", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0644) = 9</r/state/5.dbtmp>
7 write(9</r/state/5.dbtmp>, "MANIFEST", 8) = 8
7 fdatasync(9</r/state/5.dbtmp>) = 0
7 rename("/r/state/5.dbtmp", "/r/state/CURRENT") = 0
7 fsync(3</r/state>) = 0
7 write(10</r/state/000004.log>, "\1"..., 361) = 361
7 fdatasync(10</r/state/000004.log>) = 0
6 write(1<pipe:[77]>, "{\"cid\":\"bafy"..., 90) = 90
7 write(10</r/state/000004.log>, "\1"..., 361) = 361
"#;

#[test]
fn a_sync_that_is_missing_is_noticed() {
    let steps = read(SAMPLE);
    assert_eq!(unsynced(&steps), [] as [String; 0]);
    let syncs = steps.iter().filter(|step| matches!(step.call, Call::Sync(_))).count();
    assert_eq!((needed(&steps).len(), syncs), (7, 7), "each of them is needed");
    // A sync that failed, or began before the write that it should cover, is none.
    let failed =
        SAMPLE.replace("fsync(4</r/blocks>) = 0", "fsync(4</r/blocks>) = -1 EIO (Input/output error)");
    assert!(!unsynced(&read(&failed)).is_empty());
    let late = SAMPLE.replace(
        "8 write(6</r/blocks/LOG>, \"a note\", 6) = 6",
        "8 write(6</r/blocks/3.blob>, \"more\", 4) = 4",
    );
    assert_eq!(unsynced(&read(&late)).len(), 2, "at the commit, and at the end");
    // The blocks may not be synced behind the state that refers to them.
    let sync = "7 fdatasync(8</r/blocks/MANIFEST-000005>) = 0\n";
    let commit = "7 fdatasync(10</r/state/000004.log>) = 0\n";
    let behind = SAMPLE.replace(sync, "").replace(commit, &format!("{commit}{sync}"));
    assert_eq!(unsynced(&read(&behind)).len(), 1);
}
