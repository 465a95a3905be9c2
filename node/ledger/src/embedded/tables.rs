//! Where the ledger's records lie in the state database.

use alloy_primitives::{Address, B256};
use btfs_storage::db::{DbError, StateDb, Table};
use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::genesis::Genesis;
use super::records::{Account, Channel, Receipt, Stream};
use super::rules::Book;
use crate::btt::Btt;

/// The genesis: one record.
pub(super) const GENESIS: Table<(), Genesis> = Table::new("ledger.genesis");
/// The last state told: one record.
pub(super) const TIP: Table<(), Tip> = Table::new("ledger.tip");
/// Accounts by address.
pub(super) const ACCOUNTS: Table<[u8; 20], Account> = Table::new("ledger.accounts");
/// Channels by id.
pub(super) const CHANNELS: Table<[u8; 32], Channel> = Table::new("ledger.channels");
/// Channels of each participant.
pub(super) const MEMBERS: Table<([u8; 20], [u8; 32]), ()> = Table::new("ledger.members");
/// Streams by channel and stream.
pub(super) const STREAMS: Table<([u8; 32], [u8; 32]), Stream> = Table::new("ledger.streams");
/// Receipts by caller and nonce.
pub(super) const RECEIPTS: Table<([u8; 20], u64), Receipt> = Table::new("ledger.receipts");
/// What concerned an account, newest first: the number is `u64::MAX - seq`.
pub(super) const HISTORY: Table<([u8; 20], u64), Line> = Table::new("ledger.history");

/// The names of all tables of an embedded ledger, to open the state database with.
pub const TABLES: [&str; 8] = [
    GENESIS.name(),
    TIP.name(),
    ACCOUNTS.name(),
    CHANNELS.name(),
    MEMBERS.name(),
    STREAMS.name(),
    RECEIPTS.name(),
    HISTORY.name(),
];

/// The end of the chain of events, and the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tip {
    pub(super) seq: u64,
    pub(super) head: B256,
    pub(super) clock: Clock,
}

/// A line of history: which receipt, and what it did to this account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) from: Address,
    pub(super) nonce: u64,
    pub(super) received: Btt,
    pub(super) spent: Btt,
    pub(super) balance: Btt,
}

/// The state on disk as the rules read it.
pub(super) struct Disk<'a>(pub(super) &'a StateDb);

impl Book for Disk<'_> {
    type Error = DbError;

    fn account(&self, address: &Address) -> Result<Account, DbError> {
        Ok(self.0.get(&ACCOUNTS, &address.into_array())?.unwrap_or_default())
    }

    fn channel(&self, id: &B256) -> Result<Option<Channel>, DbError> {
        self.0.get(&CHANNELS, &id.0)
    }

    fn stream(&self, channel: &B256, stream: &B256) -> Result<Stream, DbError> {
        Ok(self.0.get(&STREAMS, &(channel.0, stream.0))?.unwrap_or_default())
    }
}
