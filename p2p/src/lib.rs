//! The libp2p host: Kademlia, Bitswap, typed request/response.
