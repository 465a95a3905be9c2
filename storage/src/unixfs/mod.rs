//! UnixFS: files, directories and symlinks as dag-pb nodes.
