//! BTT amounts, keys, typed data and settlement.
