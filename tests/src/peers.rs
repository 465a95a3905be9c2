//! Where the programs under test and their peers are.

use std::path::PathBuf;

/// The folder that `tests/peers/install` fills.
pub fn dir() -> PathBuf {
    std::env::var_os("PEERS_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("peers/.installed"))
}

/// A peer's program or folder; panics when it is missing.
pub fn peer(path: &str) -> PathBuf {
    let found = dir().join(path);
    assert!(found.exists(), "{} is missing: run tests/peers/install", found.display());
    found
}

/// The `btfs` program; panics when it is missing.
pub fn btfs() -> PathBuf {
    let path = PathBuf::from(
        std::env::var_os("BTFS_BIN").expect("BTFS_BIN names the btfs program; `make test` sets it"),
    );
    assert!(path.exists(), "{} is missing: run `make build`", path.display());
    path
}
