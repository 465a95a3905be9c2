//! Torrents over the same blocks: metainfo, peer wire, trackers.
