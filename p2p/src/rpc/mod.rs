//! Typed request/response between nodes: one stream, one request, one answer.
//!
//! A protocol is a name, two caps and a handler. The bodies are opaque here (DAG-CBOR by convention; the
//! services above encode and decode them).
//!
//! On the wire, both ways: an unsigned varint length, then that many bytes. The answer's first byte is its
//! status: [`STATUS_OK`] and the payload, [`STATUS_ERROR`] and the handler's text, [`STATUS_BUSY`] and a text
//! when a limit was reached before the request was read.

mod call;
mod frame;
mod limit;
mod server;
pub(crate) mod streams;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use libp2p::PeerId;
use thiserror::Error;

pub(crate) use call::exchange;
pub use limit::{BURST, RATE_PER_SECOND};
pub(crate) use server::serve;
pub use server::{MAX_CONCURRENT, MAX_CONCURRENT_PER_PEER};

/// The answer holds the payload.
pub const STATUS_OK: u8 = 0;
/// The handler refused or failed; the rest is its text (UTF-8).
pub const STATUS_ERROR: u8 = 1;
/// The peer is over its rate or the node is at its limit of concurrent requests; nothing was read.
pub const STATUS_BUSY: u8 = 2;

/// A protocol that this node answers.
#[derive(Clone)]
pub struct RpcService {
    /// The libp2p protocol name, such as `/btfs/offer/1`.
    pub protocol: &'static str,
    /// Longest request in bytes; a longer one is refused before a byte of its body is read.
    pub max_request: usize,
    /// Longest answer in bytes, checked on both sides.
    pub max_response: usize,
    /// Answers the requests.
    pub handler: Arc<dyn RpcHandler>,
}

/// Answers the requests of one protocol. Runs as a task of its own for each request; the number of those is
/// bounded. Waiting (long-polling) for up to [`MAX_HANDLER_TIME`] is fine.
#[async_trait]
pub trait RpcHandler: Send + Sync {
    /// The answer to `request` of `peer`, whose identity the transport has proven. `Err` travels back as text.
    async fn handle(&self, peer: PeerId, request: Vec<u8>) -> Result<Vec<u8>, String>;
}

/// Longest that a handler may take: a long-poll of a minute and the time to write its answer.
pub const MAX_HANDLER_TIME: Duration = Duration::from_secs(75);

/// Why a call brought no answer.
#[derive(Debug, Error)]
pub enum RpcError {
    /// No connection to the peer, and none could be made.
    #[error("cannot reach {peer}: {reason}")]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// What the dial said.
        reason: String,
    },
    /// The peer is there but does not speak this protocol.
    #[error("{peer} does not answer {protocol}; it runs other or older software, or this service is off")]
    Unsupported {
        /// The peer.
        peer: PeerId,
        /// The protocol asked for.
        protocol: &'static str,
    },
    /// No answer in time. The request may or may not have been handled.
    #[error("no answer to {protocol} from {peer} within {} s", .after.as_secs_f32())]
    Timeout {
        /// The peer.
        peer: PeerId,
        /// The protocol asked for.
        protocol: &'static str,
        /// The time allowed.
        after: Duration,
    },
    /// The peer handled the request and refused it, in its own words.
    #[error("{peer} says: {message}")]
    Refused {
        /// The peer.
        peer: PeerId,
        /// The peer's text, cut to [`MAX_ERROR_TEXT`] bytes.
        message: String,
    },
    /// The peer is over a limit and read nothing; asking again later is safe.
    #[error("{peer} is busy: {message}; nothing was done, ask again later")]
    Busy {
        /// The peer.
        peer: PeerId,
        /// The peer's text.
        message: String,
    },
    /// The request or the answer is above its cap.
    #[error("{what} of {bytes} bytes is above the cap of {cap} bytes")]
    TooLarge {
        /// "request" or "answer".
        what: &'static str,
        /// Its length, as declared.
        bytes: u64,
        /// The cap.
        cap: usize,
    },
    /// The stream broke. The request may or may not have been handled.
    #[error("the stream to {peer} broke: {source}")]
    Stream {
        /// The peer.
        peer: PeerId,
        /// What happened.
        source: std::io::Error,
    },
    /// The host is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// Longest error text that travels, in bytes: enough for a sentence or two.
pub const MAX_ERROR_TEXT: usize = 1024;

/// The longest prefix of `text` of at most `cap` bytes that is still UTF-8.
fn cut_text(text: &str, cap: usize) -> &str {
    &text[..text.floor_char_boundary(cap)]
}
