//! What a killed node has on disk, read before it starts again: where the kill really hit.

use std::collections::BTreeMap;
use std::path::Path;

use btfs_ledger::Btt;
use btfs_ledger::embedded::Receipt;
use btfs_ledger::typed::{Call, Operation, Signed};
use btfs_market::host::HostAgreement;
use btfs_market::renter::RenterAgreement;
use btfs_storage::db::{StateDb, Table};
use serde::{Deserialize, Serialize};

const RENTED: Table<[u8; 32], RenterAgreement> = Table::new("market_renter_agreements");
const HOSTED: Table<[u8; 32], HostAgreement> = Table::new("market_host_agreements");
const CALLS: Table<([u8; 32], [u8; 20], u64), WalletCall> = Table::new("wallet.calls");

/// A call of the node's wallet, as far as it matters here.
#[derive(Serialize, Deserialize)]
struct WalletCall {
    call: Signed<Call>,
    receipt: Option<Receipt>,
}

/// The agreements and open calls of a node that does not run.
pub struct Durable {
    /// Of a renter.
    pub rented: Vec<RenterAgreement>,
    /// Of a host.
    pub hosted: Vec<HostAgreement>,
    /// Operations sent, or about to be, without a receipt.
    pub open_calls: Vec<&'static str>,
}

impl Durable {
    /// Reads the state of `repo`.
    pub fn read(repo: &Path) -> Durable {
        let state = StateDb::open(&repo.join("state"), &[]).expect("a killed node's state opens");
        let rented = state.scan(&RENTED, &[]).map(|row| row.expect("a record").1).collect();
        let hosted = state.scan(&HOSTED, &[]).map(|row| row.expect("a record").1).collect();
        let calls = state.scan(&CALLS, &[]).map(|row| row.expect("a record").1);
        let open_calls = calls
            .filter(|call| call.receipt.is_none())
            .map(|call| Operation::decode(&call.call.document.data.0).expect("an operation").name())
            .collect();
        Durable { rented, hosted, open_calls }
    }

    /// Whether an agreement is in this state, by its name in JSON.
    pub fn is_in(&self, state: &str) -> bool {
        self.rented.iter().any(|r| name(r.state) == state)
            || self.hosted.iter().any(|h| name(h.state) == state)
    }

    /// Whether audits that were due at `time` are not judged yet, or proofs that were given not vouched for.
    pub fn in_audit(&self, time: u64) -> bool {
        let due = |r: &RenterAgreement| name(r.state) == "active" && r.schedule().due(r.next, time).is_some();
        let unpaid = |h: &HostAgreement| {
            let vouched = h.voucher.as_ref().map_or(0, |v| v.document.epochs);
            h.answered.is_some_and(|answered| answered.epoch >= vouched)
        };
        self.rented.iter().any(due) || self.hosted.iter().any(unpaid)
    }

    /// Whether a voucher's payment is under way.
    pub fn in_redeem(&self) -> bool {
        self.open_calls.contains(&"redeem") || self.hosted.iter().any(|h| h.unredeemed() > Btt::ZERO)
    }

    /// In one line.
    pub fn told(&self) -> String {
        let mut states: BTreeMap<String, usize> = BTreeMap::new();
        let names =
            self.rented.iter().map(|r| name(r.state)).chain(self.hosted.iter().map(|h| name(h.state)));
        names.for_each(|name| *states.entry(name).or_default() += 1);
        let mut parts: Vec<String> = states.iter().map(|(name, count)| format!("{count} {name}")).collect();
        parts.extend(self.open_calls.iter().map(|call| format!("open call: {call}")));
        if parts.is_empty() { "no agreements".into() } else { parts.join(", ") }
    }
}

/// A state's name in JSON.
fn name(state: impl Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned)).expect("a state is a string")
}
