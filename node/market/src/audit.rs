//! Judging an audit: from what came back (or did not) to one of five verdicts, each with its own consequence.
//!
//! | verdict | epochs audited | host's score |
//! |---|---|---|
//! | pass | paid | up, less if slow |
//! | fail | unpaid for good | down |
//! | timeout | unpaid once the deadline is over, asked again before | down a little |
//! | offline | the same | down a little |
//! | unknown | stay open, the next audit covers them | unchanged |
//!
//! Nothing is judged when the judge fails: silence counts only while the auditor knows that it can hear. A host that
//! answers with an excuse instead of a proof has seen the nonce, so that counts as silence and not as unknown: it would
//! choose among draws otherwise, at no cost. But it is asked again for half an epoch from its first excuse on.

use std::time::Duration;

use btfs_ledger::typed::Agreement;
use btfs_storage::proof::{Challenge, LeafProof, Purpose, check_answer};
use serde::{Deserialize, Serialize};

use crate::messages::{AuditReply, AuditRequest, Refusal};
use crate::ports::CourierError;

/// How long an answer may take, wall clock.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(5);
/// Slower than this (plus the round trip) costs score.
pub const SLOW_ANSWER: Duration = Duration::from_millis(1500);
/// Attempts after a timeout, each with a fresh nonce.
pub const RETRIES: u32 = 3;
/// Attempts after no connection: one may have broken at this moment, more would only wait for nobody.
pub const REDIALS: u32 = 1;
/// How long a host that was silent last time may take to show that it is back, in a network declared local. Elsewhere
/// it has [`ANSWER_DEADLINE`].
pub const LOCAL_PROBE: Duration = Duration::from_secs(2);
/// Audits a host answers per agreement and epoch: the first and its retries.
pub const AUDITS_PER_EPOCH: u32 = 1 + RETRIES;

/// What an audit showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict", content = "detail")]
pub enum Verdict {
    /// Every challenged leaf was there.
    Pass,
    /// The host answered and the answer does not hold: what was wrong.
    Fail(String),
    /// Connected, but no answer in time.
    Timeout,
    /// Not reachable.
    Offline,
    /// Nothing can be said, for a reason on this side: why.
    Unknown(String),
}

impl Verdict {
    /// Whether asking again soon may change it.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Timeout | Self::Offline)
    }

    /// One word for tables.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail(_) => "fail",
            Self::Timeout => "timeout",
            Self::Offline => "offline",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// The challenge that an audit request stands for.
pub fn challenge(a: &Agreement, request: &AuditRequest) -> Challenge {
    Challenge {
        purpose: Purpose::Audit,
        seed: request.nonce.0,
        channel: a.channel.0,
        id: a.id.0,
        epoch: u64::from(request.epoch),
    }
}

/// Judges what came back for `request`.
pub fn judge(a: &Agreement, request: &AuditRequest, reply: Result<AuditReply, CourierError>) -> Verdict {
    match reply {
        Ok(AuditReply::Proof(leaves)) => judge_proof(a, request, &leaves),
        Ok(AuditReply::NotFound) => Verdict::Fail("the host says that challenged data is not there".into()),
        Ok(AuditReply::Refused(why)) => judge_refusal(why),
        Err(CourierError::Timeout) => Verdict::Timeout,
        Err(CourierError::Unreachable(_)) => Verdict::Offline,
        Err(CourierError::Refused(_)) => Verdict::Timeout,
        Err(CourierError::Myself(why)) => Verdict::Unknown(why),
        Err(CourierError::Protocol(why)) => Verdict::Fail(format!("not an answer: {why}")),
    }
}

fn judge_proof(a: &Agreement, request: &AuditRequest, leaves: &[LeafProof]) -> Verdict {
    match check_answer(&a.root.0, a.leaves, &challenge(a, request), a.audit_leaves, leaves) {
        Ok(()) => Verdict::Pass,
        Err(wrong) => Verdict::Fail(wrong.to_string()),
    }
}

/// Whether the host answered with an excuse: it may be asked again, but later, and its nonce is used up.
pub fn is_excuse(reply: &Result<AuditReply, CourierError>) -> bool {
    match reply {
        Ok(AuditReply::Refused(why)) => judge_refusal(why.clone()).is_silence(),
        Err(CourierError::Refused(_)) => true,
        _ => false,
    }
}

/// A refusal that blames the moment is no answer; one that denies the agreement is a failure.
fn judge_refusal(why: Refusal) -> Verdict {
    match why {
        Refusal::Rate(_) | Refusal::NoSettlement(_) | Refusal::Skew { .. } => Verdict::Timeout,
        _ => Verdict::Fail(why.to_string()),
    }
}
