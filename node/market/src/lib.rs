//! Renting disk space for BTT: offers, agreements, audits and payment.
//!
//! A node can be host and renter at once. [`Market`] holds both services over the node's store and wallet; the node
//! passes requests of three protocols to [`Market::handle`] and runs [`Market::run`] for as long as it lives. What the
//! market needs of the network comes through the traits in [`ports`], so nothing here knows of connections.
//!
//! The rules are plain functions with everything passed in, and so is their randomness: [`terms`] (what may be
//! agreed), [`states`] (what may follow what), [`schedule`] (epochs and deadlines), [`audit`] (verdicts),
//! [`vouchers`] (what is owed and credited), [`score`] (whom to choose). [`host`] and [`renter`] keep records, talk,
//! and ask the rules; [`messages`] is what they say to each other.
//!
//! Invariants:
//!
//! - A step is durable before the act it allows, and every act can be repeated: after a crash the records say what is
//!   next, nothing is promised or paid twice.
//! - A voucher exists only with a passed audit (or the setup price), in the same batch; an unproven epoch is never
//!   paid.
//! - Whoever is away, the other side loses no more than about an epoch's money or data.

pub mod audit;
mod cid_text;
pub mod events;
pub mod host;
mod market;
pub mod messages;
mod money;
mod pages;
pub mod ports;
pub mod renter;
pub mod schedule;
pub mod score;
pub mod states;
pub mod terms;
pub mod vouchers;

#[cfg(test)]
mod tests;

pub use events::{Events, MarketEvent};
pub use host::{HostService, HostSettings, HostStatus};
pub use market::{Market, MarketConfig, OpenError, PROTOCOLS, Protocol, TABLES};
pub use money::MoneyError;
pub use ports::{Courier, CourierError, Discovery, PullError, Puller};
pub use renter::{Quote, RenterService, Spread, StoreRequest, ThingState, ThingStatus};
