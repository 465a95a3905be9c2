//! Bitswap: blocks between peers.
