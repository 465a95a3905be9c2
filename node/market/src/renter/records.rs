//! What a renter remembers, one table each.

use btfs_ledger::typed::{Agreement, ChannelTerms, Offer, Signed, Voucher};
use btfs_ledger::{B256, Btt, PublicKey, Signature};
use btfs_storage::Cid;
use btfs_storage::db::Table;
use btfs_storage::layout::Redundancy;
use serde::{Deserialize, Serialize};

use crate::audit::Verdict;
use crate::pages::Pages;
use crate::schedule::Schedule;
use crate::score::Reputation;
use crate::states::RenterState;

pub(crate) const THINGS: Table<[u8; 32], Thing> = Table::new("market_renter_things");
pub(crate) const AGREEMENTS: Table<[u8; 32], RenterAgreement> = Table::new("market_renter_agreements");
pub(crate) const LISTS: Pages = Table::new("market_renter_lists");
pub(crate) const HOSTS: Table<[u8; 33], HostRecord> = Table::new("market_renter_hosts");

/// How a thing is spread over hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spread {
    /// Any `k` of `k + m` hosts are enough.
    Coded {
        /// Data columns.
        k: u8,
        /// Parity columns.
        m: u8,
    },
    /// Every host holds everything.
    Copies {
        /// How many.
        n: u8,
    },
}

impl From<Redundancy> for Spread {
    fn from(r: Redundancy) -> Spread {
        match r {
            Redundancy::Coded { k, m } => Spread::Coded { k, m },
            Redundancy::Copies(n) => Spread::Copies { n },
        }
    }
}

impl Spread {
    /// Hosts in all.
    pub fn hosts(self) -> usize {
        match self {
            Spread::Coded { k, m } => usize::from(k) + usize::from(m),
            Spread::Copies { n } => usize::from(n),
        }
    }

    /// Hosts that must be left for the thing to live.
    pub fn needed(self) -> usize {
        match self {
            Spread::Coded { k, .. } => usize::from(k),
            Spread::Copies { .. } => 1,
        }
    }
}

/// Where a stored thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThingState {
    /// Hosts are being signed up.
    Placing,
    /// All hosts are signed up (some may have failed since; see the health).
    Active,
    /// Too few hosts could be signed up; what was signed runs on until cancelled.
    Incomplete,
    /// All agreements are over.
    Done,
}

/// One stored thing: a DAG, its layout and its places.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Thing {
    /// Root of the content.
    pub root: Cid,
    /// The layout: the handle by which it is rebuilt. None for copies.
    pub layout: Option<Cid>,
    /// What the user calls it.
    pub name: Option<String>,
    /// How it is spread.
    pub spread: Spread,
    /// Bytes of the content's blocks.
    pub size: u64,
    /// Wall-clock time of the order.
    pub created: u64,
    /// Epochs paid for.
    pub epochs: u32,
    /// Seconds per epoch.
    pub epoch_length: u32,
    /// Limit for a GiB-day.
    pub max_price: Option<Btt>,
    /// Where it stands.
    pub state: ThingState,
    /// Why it is incomplete.
    pub problem: Option<String>,
    /// One per host wanted.
    pub slots: Vec<Slot>,
    /// What its replacements may cost, as the quote said.
    #[serde(default)]
    pub bounds: Option<Bounds>,
    /// Whether the user has cancelled it: what is signed ends, nothing new begins.
    #[serde(default)]
    pub cancelled: bool,
}

/// The most that hosts may cost that take the place of those quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bounds {
    /// For a GiB-day.
    pub price: Btt,
    /// Once per agreement.
    pub setup_price: Btt,
    /// For all agreements together.
    pub total: Btt,
}

/// What a quote said of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotedPrice {
    /// For a GiB-day.
    pub price: Btt,
    /// Once per agreement.
    pub setup_price: Btt,
}

/// One place of a thing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// Digest of the block list that belongs here; the list is kept under it.
    pub list: B256,
    /// The host chosen for it first.
    pub planned: PublicKey,
    /// What that host was quoted at.
    #[serde(default)]
    pub quoted: Option<QuotedPrice>,
    /// The agreement that fills it now.
    pub agreement: Option<B256>,
    /// Hosts that were asked for this slot.
    pub tried: Vec<PublicKey>,
}

/// One agreement on the renter's side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RenterAgreement {
    /// Where it stands.
    pub state: RenterState,
    /// Why it failed or closed early.
    pub reason: Option<String>,
    /// The host's node.
    pub host: PublicKey,
    /// The thing it belongs to.
    pub thing: B256,
    /// The slot of the thing.
    pub slot: u32,
    /// The channel that pays.
    pub channel: ChannelTerms,
    /// The draft (start 0), then the final agreement.
    pub agreement: Agreement,
    /// Our signature over the final agreement.
    pub signature: Option<Signature>,
    /// Every start that we have signed: the host may hold any of them, and no other binds us.
    #[serde(default)]
    pub starts: Vec<u64>,
    /// Settlement time of the last question to which a host that has our signature did not show its own.
    #[serde(default)]
    pub unshown: Option<u64>,
    /// The host's.
    pub host_signature: Option<Signature>,
    /// Our newest voucher.
    pub voucher: Option<Signed<Voucher>>,
    /// Whether the host has acknowledged it.
    pub acknowledged: bool,
    /// Epochs below are judged.
    pub next: u32,
    /// Nonces sent for the audit of the epoch of the first number.
    #[serde(default)]
    pub asked: (u32, u32),
    /// Nonces sent in the epoch of the first number, whatever they were for: the host answers no more than this many.
    #[serde(default)]
    pub asked_in: (u32, u32),
    /// Settlement time of the host's first excuse about what is to be judged next.
    #[serde(default)]
    pub excused: Option<u64>,
    /// One letter per judged epoch: P pass, F fail, T timeout, O offline, - unknown after a lost state.
    pub days: String,
    /// The newest verdict.
    pub verdict: Option<Verdict>,
    /// Paid by the settlement, as last read.
    pub paid: Btt,
    /// Earlier end by notice of either side.
    pub ends: Option<u32>,
    /// Whether the host has heard our notice.
    pub notice_heard: bool,
    /// Whether nothing of the lock is left for us to take back.
    pub refunded: bool,
}

impl RenterAgreement {
    /// The epochs of a signed agreement.
    pub fn schedule(&self) -> Schedule {
        Schedule::of(&self.agreement, self.ends)
    }

    /// Epochs that passed.
    pub fn days_proven(&self) -> u32 {
        self.days.bytes().filter(|b| *b == b'P').count() as u32
    }

    /// Epochs that did not.
    pub fn days_failed(&self) -> u32 {
        self.days.bytes().filter(|b| matches!(b, b'F' | b'T' | b'O')).count() as u32
    }

    /// Owed in all by our newest voucher.
    pub fn owed(&self) -> Btt {
        self.voucher.as_ref().map_or(Btt::ZERO, |v| v.document.amount)
    }

    /// What the channel's lock must still hold for this agreement.
    pub fn need(&self) -> Btt {
        match self.state {
            s if !s.commits_money() => self.owed().saturating_sub(self.paid),
            // The term is over: only what is owed is needed.
            RenterState::Closing => self.owed().saturating_sub(self.paid),
            _ => self.agreement.total_price().unwrap_or(Btt::MAX).saturating_sub(self.paid),
        }
    }

    /// Whether the host holds its blocks as far as the newest verdict says.
    pub fn is_live(&self) -> bool {
        let silent = |v: &Verdict| matches!(v, Verdict::Pass | Verdict::Unknown(_));
        self.state == RenterState::Active && self.verdict.as_ref().is_none_or(silent)
    }
}

/// What is known of one host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostRecord {
    /// Its newest offer, signature checked.
    pub offer: Option<Signed<Offer>>,
    /// What it was like.
    pub reputation: Reputation,
}
