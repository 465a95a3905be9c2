//! Disks that are full or can only be read, under a running node and before it starts.
//!
//! Small disks are mounted in a namespace of their own, so that nobody else sees them and they end with it. Root may always
//! do that; others where the system gives users namespaces.

use std::path::Path;
use std::process::Command;

use btfs_tests::node::random_file;
use btfs_tests::peers;

/// What all scripts begin with. Each step leaves what it said and how it ended in `$out`.
const BEGIN: &str = r#"
step() {
    name="$1"; shift
    "$@" > "$out/$name.stdout" 2> "$out/$name.stderr"
    echo $? > "$out/$name.status"
}
mkdir "$out/disk"
mount -t tmpfs -o size=64m none "$out/disk" || exit 9
export BTFS_PATH="$out/disk/repo"
step init "$btfs" init --local-ports
step reserve "$btfs" config set storage.reserve 0
cid() { sed 's/.*"cid":"\([^"]*\)".*/\1/' "$out/$1.stdout"; }
"#;

/// A running node's disk is full before, or gets full while, something is added to it; then there is room again.
const FULL: &str = r#"
: > "$out/daemon.stdout"
"$btfs" daemon --json > "$out/daemon.stdout" 2> "$out/daemon.stderr" &
daemon=$!
until grep -q ready "$out/daemon.stdout"; do
    kill -0 $daemon || exit 8
    sleep 0.05
done
step first "$btfs" add --json "$out/first"
# leave KIB: all but so much of the disk is taken
leave() {
    free=$(df --output=avail -k "$out/disk" | tail -n 1)
    head -c $(( (free - $1) * 1024 )) /dev/zero > "$out/disk/ballast"
}
# look NAME: what is there now; then there is room again, and only the first file is kept
look() {
    step cat-$1 "$btfs" cat $(cid first)
    step ls-$1 "$btfs" pin ls
    rm "$out/disk/ballast"
    for cid in $(cut -d ' ' -f 1 "$out/ls-$1.stdout"); do
        [ "$cid" = "$(cid first)" ] || "$btfs" pin rm "$cid" > "$out/unpinned"
    done
    "$btfs" repo gc > "$out/collected"
    step again-$1 "$btfs" add --json "$out/first"
}
for left in 8192 6400 6100 4096 0; do
    leave $left
    step add-$left "$btfs" add "$out/file"
    look $left
done
# The rest of the room goes while it is being written, so that the database itself may fail.
for delay in 05 08 11 14 17; do
    leave 8192
    (sleep 0.$delay; head -c 64m /dev/zero >> "$out/disk/ballast") 2> "$out/ballast.stderr" &
    filler=$!
    step add-$delay "$btfs" add "$out/file"
    wait $filler
    look $delay
done
step after "$btfs" add --json "$out/after"
step after-cat "$btfs" cat $(cid after)
step verify "$btfs" repo verify
step shutdown "$btfs" shutdown
wait $daemon
"#;

/// A disk that is mounted read-only, and writable again.
const READ_ONLY: &str = r#"
step first "$btfs" add --json "$out/first"
mount -o remount,ro "$out/disk" || exit 9
step cat "$btfs" cat $(cid first)
step get "$btfs" get $(cid first) --output "$out/got"
step pins "$btfs" pin ls
step stat "$btfs" repo stat
step verify "$btfs" repo verify
step add "$btfs" add "$out/after"
step unpin "$btfs" pin rm $(cid first)
step gc "$btfs" repo gc
step daemon "$btfs" daemon
mount -o remount,rw "$out/disk" || exit 9
step after "$btfs" add --json "$out/after"
step after-cat "$btfs" cat $(cid after)
"#;

/// What a script left.
struct Ran(tempfile::TempDir);

impl Ran {
    fn new(script: &str, files: &[&str]) -> Ran {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (seed, name) in files.iter().enumerate() {
            random_file(&dir.path().join(name), 6 << 20, 40 + seed as u64);
        }
        let mut own = Command::new("unshare");
        own.arg("--mount");
        if !rustix::process::geteuid().is_root() {
            own.args(["--user", "--map-root-user"]);
        }
        own.args(["sh", "-c", &format!("{BEGIN}{script}")]).env("out", dir.path()).env("btfs", peers::btfs());
        let output = own.output().expect("unshare runs");
        assert!(
            output.status.success(),
            "this test mounts a small disk in a namespace of its own, which the system refuses here; run it as root: \
             {} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ran(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn told(&self, step: &str, part: &str) -> String {
        let path = self.path().join(format!("{step}.{part}"));
        std::fs::read_to_string(path).expect("every step was made")
    }

    fn went_well(&self, step: &str) -> bool {
        match self.told(step, "status").as_str() {
            "0\n" => true,
            "1\n" => false,
            other => panic!("{step} ended with {other}: {}", self.told(step, "stderr")),
        }
    }

    fn must_go_well(&self, steps: &[&str]) {
        for step in steps {
            assert!(self.went_well(step), "{step}: {}", self.told(step, "stderr"));
        }
    }

    /// That `step` failed and said all of `parts`.
    fn must_say(&self, step: &str, parts: &[&str]) {
        let told = self.told(step, "stderr");
        assert!(!self.went_well(step), "{step} should fail: {told}");
        assert!(parts.iter().all(|part| told.contains(part)), "{step} should name {parts:?}: {told}");
    }

    /// That `step` printed the file `name`.
    fn must_print(&self, step: &str, name: &str) {
        self.must_go_well(&[step]);
        let printed = std::fs::read(self.path().join(format!("{step}.stdout"))).expect("the step was made");
        assert!(printed == std::fs::read(self.path().join(name)).expect("the file"), "{step} is not {name}");
    }
}

#[test]
fn a_full_disk_stops_writes_alone_until_there_is_room() {
    let ran = Ran::new(FULL, &["first", "file", "after"]);
    ran.must_go_well(&["init", "reserve", "first"]);
    let rounds = ["8192", "6400", "6100", "4096", "0", "05", "08", "11", "14", "17"];
    for round in rounds {
        let step = format!("add-{round}");
        let added = ran.went_well(&step);
        if !added {
            // "Not enough space", or "no space left".
            ran.must_say(&step, &["space"]);
        }
        ran.must_print(&format!("cat-{round}"), "first");
        let pins = ran.told(&format!("ls-{round}"), "stdout");
        assert_eq!(
            pins.lines().count(),
            1 + usize::from(added),
            "what was acknowledged is pinned, and no more"
        );
        ran.must_go_well(&[&format!("again-{round}")]);
    }
    assert!(
        ran.went_well("add-8192") && !ran.went_well("add-4096") && !ran.went_well("add-0"),
        "it was full"
    );
    ran.must_go_well(&["after", "verify", "shutdown"]);
    ran.must_print("after-cat", "after");
}

#[test]
fn a_disk_that_can_only_be_read_is_read() {
    let ran = Ran::new(READ_ONLY, &["first", "after"]);
    ran.must_go_well(&["init", "reserve", "first", "get", "pins", "stat", "verify"]);
    ran.must_print("cat", "first");
    assert!(ran.told("cat", "stderr").contains("read-only"));
    let got = std::fs::read(ran.path().join("got")).expect("it was written");
    assert!(got == std::fs::read(ran.path().join("first")).expect("the file"));
    for step in ["add", "unpin", "gc", "daemon"] {
        ran.must_say(step, &["read-only"]);
    }
    ran.must_print("after-cat", "after");
}
