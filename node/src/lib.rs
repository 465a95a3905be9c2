//! The `btfs` binary: config, daemon, HTTP API, gateway, command line, demo.
