//! A short run of the fuzzer over the saved corpus, the seeds and what is made of them. Long ones are by hand:
//! `cargo run --release -p btfs-tests --bin fuzz -- TARGET --seconds 600`.

use std::process::Command;

/// Inputs of each target: a few seconds in all.
const INPUTS: &str = "3000";

#[test]
fn no_decoder_panics_or_allocates_without_bound() {
    let output = Command::new(env!("CARGO_BIN_EXE_fuzz")).args(["all", "--inputs", INPUTS]).output();
    let output = output.expect("the fuzzer runs");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {told}{}", output.status, String::from_utf8_lossy(&output.stderr));
    println!("{told}");
}
