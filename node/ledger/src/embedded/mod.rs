//! The embedded ledger: accounts and locks in the state database of one node.
//!
//! For one machine, tests, demos and private networks whose operator is trusted with the balances. Its operations,
//! documents and digests are those of the vault contract, so everything above it works the same on a chain.
//!
//! - [`Genesis`] names the ledger and makes all its money.
//! - [`rules`] is pure: state and call in, changes and effect out.
//! - [`Ledger`] is the one writer: it checks signature and nonce, lets the rules decide, and commits changes,
//!   receipt, history and the next head in one synced batch. A receipt is given only after that; the same call
//!   again gets the same receipt, so a crash between commit and reply is repaired by asking again.
//! - [`Clock`] is settlement time: the wall clock, and in a network declared local also steps.
//!
//! Invariants: the sum of balances and locks is the supply of the genesis ([`Ledger::audit_supply`] counts);
//! `paid`, `settled` and `next` of a stream never fall; time never goes back; `head` covers every event in order.

mod claim;
#[cfg(test)]
mod claim_tests;
mod clock;
mod engine;
#[cfg(test)]
mod engine_tests;
mod genesis;
mod queries;
mod records;
pub mod rules;
mod tables;

pub use clock::{Clock, MAX_STEP};
pub use engine::{
    CheckedCall, Ledger, LedgerError, LedgerOptions, MAX_CALL, MAX_CLAIM, SubmitError, WallClock,
    system_clock,
};
pub use genesis::{DEFAULT_ANSWER_SECONDS, Genesis, GenesisError, LedgerId, MAX_ALLOCATIONS, MAX_GENESIS};
pub use queries::{MAX_PAGE, SupplyAudit};
pub use records::{Account, Armed, Channel, Effect, Failure, HistoryEntry, Outcome, Receipt, Status, Stream};
pub use tables::TABLES;
