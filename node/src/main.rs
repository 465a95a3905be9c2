//! The `btfs` program. Exit status: 0 ok, 1 failed, 2 usage.

fn main() -> std::process::ExitCode {
    btfs_node::cli::main()
}
