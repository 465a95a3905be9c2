//! Files and directories to blocks.
