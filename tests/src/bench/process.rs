//! What a process cost: processor time and peak memory, from `/proc`.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// Ticks a second in `/proc/PID/stat`: 100 for user space on every Linux there is.
const TICKS: f64 = 100.0;

/// Bytes of a page of memory, at most.
const PAGE: usize = 4096;

/// How often the peak of memory is looked at. It only grows while a process lives, so that all that can be missed is
/// growth in a process' last moments.
const SAMPLE: Duration = Duration::from_millis(25);

/// A command that runs longer hangs; the demo with 1 GiB takes some minutes.
const LONGEST: Duration = Duration::from_secs(1800);

/// Takes `bytes` of memory once and gives it back, before something is timed that will need as much. A virtual machine may
/// have given what is free to its host, and getting it back costs more than all that is measured here: writing 1 GiB to
/// memory took 3.3 s, and 0.4 s once that was there.
pub fn have_memory(bytes: u64) {
    let mut memory = vec![0u8; usize::try_from(bytes).expect("it fits the memory")];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}

/// What a command cost, its children included.
#[derive(Debug)]
pub struct Usage {
    /// User and system time in seconds.
    pub cpu: f64,
    /// Seconds from start to end.
    pub wall: f64,
    /// Largest peak of one process, in bytes.
    pub peak_memory: u64,
    /// Bytes that it had written to a disk; what lies in memory counts nothing.
    pub written: u64,
    /// What it printed.
    pub stdout: Vec<u8>,
}

/// Runs a command that must succeed to its end.
pub fn run(command: &mut Command) -> Usage {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the command starts");
    let pid = child.id();
    let mut pipe = child.stdout.take().expect("stdout is a pipe");
    let (done, ended) = channel();
    let reader = std::thread::spawn(move || {
        let mut stdout = Vec::new();
        pipe.read_to_end(&mut stdout).expect("stdout is read");
        // The receiver waits for this, or has panicked.
        let _ = done.send(());
        stdout
    });
    let mut peak = 0;
    while ended.recv_timeout(SAMPLE) == Err(RecvTimeoutError::Timeout) {
        peak = peak.max(peak_memory_of_all(pid));
        if begun.elapsed() > LONGEST {
            // Whether it could be killed or has just ended: this run is over.
            let _ = child.kill();
            panic!("{command:?} did not end within {LONGEST:?}");
        }
    }
    let usage = end(command, &mut child, begun);
    Usage { peak_memory: peak, stdout: reader.join().expect("stdout was read"), ..usage }
}

/// The same for a command whose output is of no use: it goes nowhere, and the peak of memory is not looked at.
pub fn run_into_nothing(command: &mut Command) -> Usage {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the command starts");
    end(command, &mut child, begun)
}

/// Awaits a child's end.
fn end(command: &Command, child: &mut Child, begun: Instant) -> Usage {
    // Its end is awaited without reaping it, so that its figures can still be read.
    let pid = child.id();
    let waited = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid above 0");
    waitid(WaitId::Pid(waited), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).expect("our own child ends");
    let wall = begun.elapsed().as_secs_f64();
    let (cpu, written) = (ticks(pid, 4), written(pid));
    let status = child.wait().expect("our own child has ended");
    assert!(status.success(), "{command:?} ended with {status}");
    Usage { cpu, wall, peak_memory: 0, written, stdout: Vec::new() }
}

/// Bytes that a process had written to a disk so far, from `/proc/PID/io`.
pub fn written(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("our own child is there");
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).expect("a number of bytes")
}

/// The middle one of figures from repeated runs, or the mean of the two in the middle: a run that met a busy moment of
/// the machine does not count.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let half = figures.len() / 2;
    if figures.len() % 2 == 1 { figures[half] } else { (figures[half - 1] + figures[half]) / 2.0 }
}

/// User and system seconds that a running process has used so far.
pub fn cpu(pid: u32) -> f64 {
    ticks(pid, 2)
}

/// The first `fields` of: user, system, user of waited children, system of waited children; in seconds.
fn ticks(pid: u32, fields: usize) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    // The name, in parentheses, may hold spaces: field 3 comes after the last one. User time is field 14.
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    let times = rest.split_whitespace().skip(11).take(fields);
    times.map(|field| field.parse::<f64>().expect("a number of ticks")).sum::<f64>() / TICKS
}

/// The largest peak of a process and all that it started, in bytes; 0 for what is gone.
fn peak_memory_of_all(pid: u32) -> u64 {
    let mut peak = 0;
    let mut left = vec![pid];
    while let Some(pid) = left.pop() {
        peak = peak.max(peak_memory(pid).unwrap_or(0));
        // A process or thread that ends meanwhile has no children to look at.
        let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            left.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    peak
}

/// The peak of one process in bytes, while it lives.
pub fn peak_memory(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_command_and_its_children_are_counted() {
        let script = "x = bytearray(b'1') * (64 << 20)\nimport hashlib\nfor _ in range(4): hashlib.sha256(x).digest()\nprint('done')";
        let usage = run(Command::new("sh").args(["-c", "python3 -c \"$0\"; exit 0", script]));
        assert_eq!(usage.stdout, b"done\n");
        assert!(usage.cpu > 0.05, "{usage:?}");
        assert!(usage.peak_memory > 64 << 20, "{usage:?}");
        assert!(usage.wall >= usage.cpu / 4.0, "{usage:?}");
    }

    #[test]
    fn the_middle_of_an_even_number_lies_between() {
        assert_eq!(median(vec![3.0, 1.0, 9.0]), 3.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), 3.0);
    }

    #[test]
    fn our_own_time_grows() {
        let before = cpu(std::process::id());
        let begun = Instant::now();
        while cpu(std::process::id()) <= before {
            assert!(begun.elapsed() < Duration::from_secs(60), "no tick in a minute of work");
        }
    }
}
