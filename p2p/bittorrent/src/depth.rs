//! How many blocks to keep requested from one peer: three seconds of its rate, found by slow start. Pure.
//!
//! A fixed window would cap a distant peer (128 blocks at 100 ms are 20 MB/s) and flood a slow one.

use crate::layout::BLOCK;

/// Never fewer, so that one block is under way while another arrives.
pub const MIN_DEPTH: usize = 2;
/// Never more, whatever the peer's `reqq` says: 8 MiB under way.
pub const MAX_DEPTH: usize = 500;
/// What a peer that says nothing about `reqq` is assumed to queue (libtorrent's assumption).
pub const DEFAULT_REQQ: u32 = 250;
/// Seconds of the peer's rate that are kept requested.
const SECONDS: u64 = 3;

/// The request window of one peer.
#[derive(Debug, Clone)]
pub struct Depth {
    depth: usize,
    cap: usize,
    slow_start: bool,
    received: u64,
    last_second: u64,
    snubbed: bool,
}

impl Depth {
    /// For a peer that queues `reqq` requests.
    pub fn new(reqq: u32) -> Depth {
        let cap = (reqq as usize).clamp(MIN_DEPTH, MAX_DEPTH);
        Depth {
            depth: (2 * MIN_DEPTH).min(cap),
            cap,
            slow_start: true,
            received: 0,
            last_second: 0,
            snubbed: false,
        }
    }

    /// The peer told its `reqq`.
    pub fn set_reqq(&mut self, reqq: u32) {
        self.cap = (reqq as usize).clamp(MIN_DEPTH, MAX_DEPTH);
        self.depth = self.depth.min(self.cap);
    }

    /// Blocks to keep requested.
    pub fn get(&self) -> usize {
        if self.snubbed { 1 } else { self.depth }
    }

    /// A block of `bytes` came.
    pub fn on_block(&mut self, bytes: u32) {
        self.received += u64::from(bytes);
        self.snubbed = false;
        if self.slow_start {
            self.depth = (self.depth + 1).min(self.cap);
        }
    }

    /// The peer let a request time out: one at a time until it delivers.
    pub fn snub(&mut self) {
        self.snubbed = true;
    }

    /// Whether the peer is snubbing us.
    pub fn snubbed(&self) -> bool {
        self.snubbed
    }

    /// A second passed.
    pub fn on_second(&mut self) {
        let rate = std::mem::take(&mut self.received);
        // Slow start ends once a larger window no longer brings a tenth more.
        if self.slow_start && self.last_second > 0 && rate < self.last_second + self.last_second / 10 {
            self.slow_start = false;
        }
        self.last_second = rate;
        if !self.slow_start {
            self.depth = ((SECONDS * rate / u64::from(BLOCK)) as usize).clamp(MIN_DEPTH, self.cap);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(depth: &mut Depth, blocks: u64) {
        (0..blocks).for_each(|_| depth.on_block(BLOCK));
        depth.on_second();
    }

    #[test]
    fn the_window_is_three_seconds_of_rate() {
        let mut depth = Depth::new(2000);
        second(&mut depth, 100);
        assert_eq!(depth.get(), 104);
        second(&mut depth, 100); // no growth: slow start ends
        assert_eq!(depth.get(), 300);
        second(&mut depth, 10_000);
        assert_eq!(depth.get(), MAX_DEPTH);
        second(&mut depth, 0);
        assert_eq!(depth.get(), MIN_DEPTH);
    }

    #[test]
    fn the_peers_queue_and_snubbing_bound_it() {
        let mut depth = Depth::new(0);
        assert_eq!(depth.get(), MIN_DEPTH);
        depth.set_reqq(10);
        (0..50).for_each(|_| depth.on_block(BLOCK));
        assert_eq!(depth.get(), 10);
        depth.snub();
        assert_eq!(depth.get(), 1);
        depth.on_block(BLOCK);
        assert_eq!(depth.get(), 10);
    }
}
