//! Whole markets in one process: real stores, the real embedded ledger, real signatures; only the wire is replaced by
//! function calls, which can be cut at any message.

mod away;
mod crash;
mod endings;
mod hostile;
mod line;
mod month;
mod refusals;
mod world;
