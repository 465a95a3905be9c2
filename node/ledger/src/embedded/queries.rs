//! Reading an embedded ledger.

use alloy_primitives::{Address, B256};
use btfs_storage::db::DbError;
use serde::{Deserialize, Serialize};

use super::engine::Ledger;
use super::records::{Account, Channel, HistoryEntry, Stream};
use super::rules::Book;
use super::tables::{ACCOUNTS, CHANNELS, Disk, HISTORY, MEMBERS, STREAMS};
use crate::btt::Btt;

/// Most records in one answer: about 64 KiB of history.
pub const MAX_PAGE: usize = 128;

/// The supply, counted anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupplyAudit {
    /// Sum of all balances.
    pub balances: Btt,
    /// Sum of all locks.
    pub locked: Btt,
    /// What the genesis made.
    pub supply: Btt,
    /// Accounts counted.
    pub accounts: u64,
    /// Channels counted.
    pub channels: u64,
}

impl SupplyAudit {
    /// Balances and locks together; `None` if that does not fit, which is wrong by itself.
    pub fn total(&self) -> Option<Btt> {
        self.balances.checked_add(self.locked)
    }

    /// Whether no money was made or lost.
    pub fn holds(&self) -> bool {
        self.total() == Some(self.supply)
    }
}

impl Ledger {
    /// An account; an unknown one is empty.
    pub fn account(&self, address: &Address) -> Result<Account, DbError> {
        Disk(&self.db).account(address)
    }

    /// A channel, if it was ever locked.
    pub fn channel(&self, id: &B256) -> Result<Option<Channel>, DbError> {
        Disk(&self.db).channel(id)
    }

    /// A stream of a channel; an unknown one is empty.
    pub fn stream(&self, channel: &B256, stream: &B256) -> Result<Stream, DbError> {
        Disk(&self.db).stream(channel, stream)
    }

    /// Channels in which `member` has a role, by id, from the one after `after` on; at most [`MAX_PAGE`].
    pub fn channels(&self, member: &Address, after: Option<B256>) -> Result<Vec<Channel>, DbError> {
        let key = member.into_array();
        let start = [&key[..], after.unwrap_or_default().as_slice()].concat();
        let mut found = Vec::new();
        for row in self.db.scan_from(&MEMBERS, &start) {
            let ((owner, id), ()) = row?;
            if owner != key || found.len() == MAX_PAGE {
                break;
            }
            if after == Some(B256::from(id)) {
                continue;
            }
            found.extend(self.db.get(&CHANNELS, &id)?);
        }
        Ok(found)
    }

    /// Streams of a channel that have paid, settled or armed, by id, from the one after `after` on; at most
    /// [`MAX_PAGE`].
    pub fn streams(&self, channel: &B256, after: Option<B256>) -> Result<Vec<(B256, Stream)>, DbError> {
        let start = [channel.as_slice(), after.unwrap_or_default().as_slice()].concat();
        let mut found = Vec::new();
        for row in self.db.scan_from(&STREAMS, &start) {
            let ((owner, id), stream) = row?;
            if owner != channel.0 || found.len() == MAX_PAGE {
                break;
            }
            if after != Some(B256::from(id)) {
                found.push((B256::from(id), stream));
            }
        }
        Ok(found)
    }

    /// An account's history, newest first: at most `limit` (and [`MAX_PAGE`]) entries below event `before`.
    pub fn history(
        &self,
        address: &Address,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<HistoryEntry>, DbError> {
        let key = address.into_array();
        // Newest first means the largest number is the oldest: entries below `before` come after its place.
        let place = before.map_or(0, |seq| (u64::MAX - seq).saturating_add(1));
        let start = [&key[..], &place.to_be_bytes()].concat();
        let mut entries = Vec::new();
        for row in self.db.scan_from(&HISTORY, &start) {
            let ((owner, _), line) = row?;
            if owner != key || entries.len() == limit.min(MAX_PAGE) {
                break;
            }
            if let Some(receipt) = self.receipt(&line.from, line.nonce)? {
                let (received, spent, balance) = (line.received, line.spent, line.balance);
                entries.push(HistoryEntry { receipt, received, spent, balance });
            }
        }
        Ok(entries)
    }

    /// Sums all balances and locks anew, from a consistent view of each table.
    pub fn audit_supply(&self) -> Result<SupplyAudit, DbError> {
        let _still = self.hold();
        let mut audit = SupplyAudit {
            balances: Btt::ZERO,
            locked: Btt::ZERO,
            supply: self.genesis.supply(),
            accounts: 0,
            channels: 0,
        };
        for row in self.db.scan(&ACCOUNTS, &[]) {
            let (_, account) = row?;
            // A sum that does not fit cannot equal the supply, and must not look as if it did.
            audit.balances = audit.balances.checked_add(account.balance).unwrap_or(Btt::MAX);
            audit.accounts += 1;
        }
        for row in self.db.scan(&CHANNELS, &[]) {
            let (_, channel) = row?;
            audit.locked = audit.locked.checked_add(channel.locked).unwrap_or(Btt::MAX);
            audit.channels += 1;
        }
        Ok(audit)
    }
}
