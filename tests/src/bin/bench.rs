//! `make bench`: what the `btfs` program costs, each figure beside its yardstick from the same run.
//!
//! usage: bench [--check] [--mib N] [--dir DIR] [--disk DIR] [--large-mib N] [NAME]...
//!
//! `--check` exits 1 if a bound is missed; `--mib` sets the size of the file that is moved (default 1024); `--dir` says where
//! files and repos lie (default: `/dev/shm` if there is room, else the temporary directory), `--disk` where they lie when
//! it is about a disk (default: the temporary directory), `--large-mib` the size of the file whose space is measured there
//! (default 2048); names choose some of the benches. How each value is taken is in `btfs_tests::bench`.

use std::process::ExitCode;

use btfs_tests::bench::{self, Options};

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!(
                "{problem}\nusage: bench [--check] [--mib N] [--dir DIR] [--disk DIR] [--large-mib N] [{}]...",
                bench::NAMES.join("|")
            );
            return ExitCode::from(2);
        }
    };
    let over = bench::run(&options);
    if over > 0 {
        eprintln!("{over} over their bounds");
    }
    if options.check && over > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
