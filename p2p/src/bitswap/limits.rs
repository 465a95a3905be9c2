//! Every bound of the protocol in one place, each with its reason.

use std::time::Duration;

/// Largest frame that is read or written, in bytes: what Kubo and Helia accept.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Largest block that is sent or accepted, in bytes.
pub const MAX_BLOCK: usize = btfs_storage::MAX_BLOCK;

/// Longest CID in a want or a presence, in bytes; longer ones are ignored, as Kubo does.
pub const MAX_CID: usize = 168;

/// Wants that are kept for one peer. Those being answered do not count: the peer may have the block, and ask for the
/// next, before we know that it was written.
pub const MAX_WANTS_PER_PEER: usize = 1024;

/// Wants that we register with one peer. Others keep 1024, but count those whose blocks are on the way to us.
pub const MAX_ASKS_PER_PEER: usize = 512;

/// Entries of one kind (wants, blocks, presences) that are taken from one message; a full wantlist with as many
/// cancels fits several times. The rest is counted as dropped.
pub const MAX_ENTRIES_PER_MESSAGE: usize = 4096;

/// A want-have for a block of at most this size is answered with the block: cheaper than another round trip.
pub const INLINE_BLOCK: u64 = 1024;

/// A response is closed when it has so many payload bytes. With one block of the largest size on top it still
/// fits [`MAX_MESSAGE`]. Together with the one that is prepared meanwhile it bounds what a peer can make us
/// hold for it.
pub const RESPONSE_TARGET: usize = 1 << 20;

/// Response bytes held for all peers together, in KiB. Peers that do not read cannot make the node hold more.
pub const RESPONSE_BUDGET_KIB: u32 = 64 << 10;

/// Most that one response can hold, in KiB; what is set aside from the budget while one is prepared.
pub const RESPONSE_MAX_KIB: u32 = ((RESPONSE_TARGET + MAX_BLOCK) >> 10) as u32;

/// Bytes of frames that one peer may have half-sent at a time, in KiB; two of the largest.
pub const FRAME_BUDGET_KIB: u32 = ((2 * MAX_MESSAGE) >> 10) as u32;

/// Open inbound streams of one peer. Kubo opens one per response of 16 KiB and has many on the way at once.
pub const MAX_INBOUND_STREAMS: usize = 512;

/// Connections of one peer that are used for opening streams.
pub const MAX_CONNECTIONS_PER_PEER: usize = 8;

/// Stream requests that may wait in one connection; the peer's task asks for one at a time.
pub const OPEN_QUEUE: usize = 2;

/// How long a stream may take to open before the attempt counts as failed.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// A started read or write that makes no progress for so long ends its stream.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Attempts to open a stream before the peer is given up until it connects anew.
pub const MAX_OPEN_ATTEMPTS: u32 = 3;

/// Sessions at a time. One is cheap; the bound is there to find leaks.
pub const MAX_SESSIONS: usize = 4096;

/// Peers of one session. More would only add want-haves.
pub const MAX_SESSION_PEERS: usize = 64;

/// Wants of all sessions together: about 64 GiB of leaves on order.
pub const MAX_WANTS: usize = 1 << 16;

/// Want-blocks in flight to a peer that was never measured.
pub const WINDOW_START: usize = 32;

/// Fewest want-blocks in flight to a peer, however slow.
pub const WINDOW_MIN: usize = 2;

/// A peer's window grows while its blocks arrive within this time and shrinks when they take twice as long:
/// enough to keep any link full, little enough not to strand wants at a slow peer.
pub const WINDOW_TARGET: Duration = Duration::from_millis(1000);

/// A peer that delivered so many wants in a row is asked alone, without want-haves to the others.
pub const CONFIDENT_AFTER: u32 = 8;

/// Blocks nobody asked for, and HAVEs that were not kept, before a peer is no longer asked on this connection.
pub const MAX_STRIKES: u32 = 16;

/// Cancelled wants remembered per peer: their blocks may be under way and count as duplicates, not as strikes.
pub const RECENT_CANCELS: usize = 2048;

/// A want unanswered for so long, while its peer sent nothing at all, is asked of another peer; the measured
/// latency moves it between the two.
pub const ASK_TIMEOUT_MIN: Duration = Duration::from_secs(1);
/// The upper end of that time, and its value before anything was measured.
pub const ASK_TIMEOUT_MAX: Duration = Duration::from_secs(7);

/// When nobody else can be asked, a silent peer is given so long before the want counts as unanswered.
pub const LAST_HOPE: Duration = Duration::from_secs(30);

/// How long answers to want-haves are awaited before the next peer is asked for the block unseen.
pub const HAVE_PATIENCE: Duration = Duration::from_millis(500);

/// A want older than this at one peer moves to another that has hardly anything to do.
pub const SLOW_WANT: Duration = Duration::from_secs(2);

/// A want that is not answered for so long is said again: a peer whose list was full has dropped it silently.
pub const SAY_AGAIN: Duration = Duration::from_secs(3);

/// Wants that nobody had are asked again after this time by those who still wait.
pub const RETRY: Duration = Duration::from_secs(15);

/// How often timeouts are looked for while anything is wanted.
pub const TICK: Duration = Duration::from_millis(100);

/// Peers whose traffic is remembered for statistics after they left.
pub const MAX_REMEMBERED_PEERS: usize = 1024;

/// How long a connection without wants in either direction is kept for Bitswap's sake.
pub const KEEP_IDLE: Duration = Duration::from_secs(20);
