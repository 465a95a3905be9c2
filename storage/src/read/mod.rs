//! Blocks to files and directories.
