//! Epochs, audit times and deadlines: arithmetic on settlement time, nothing else.
//!
//! Epoch `e` of an agreement covers `[start + e L, start + (e + 1) L)` on the settlement's clock. Every deadline
//! is a fraction of the epoch, so a network with short epochs (tests) and one with days behave alike.

use btfs_ledger::typed::Agreement;

/// Most epochs that one audit may settle: the protocol's bound on catching up with a single proof.
pub const MAX_CATCH_UP: u32 = 14;
/// Largest difference, in seconds, of the two parties' clocks at signing; less for short epochs.
pub const MAX_SKEW: u64 = 30;
/// Seconds that wall clock and settlement clock may disagree before nothing is deleted by expiry any more.
pub const MAX_CLOCK_DISAGREEMENT: u64 = 3600;

/// The epochs of one agreement, counted on the settlement's clock (Unix seconds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Settlement time of the beginning of epoch 0.
    pub start: u64,
    /// Length of an epoch in seconds, never 0.
    pub length: u64,
    /// First epoch past the term (an earlier end by notice included).
    pub end_epoch: u32,
    /// Seconds after an epoch's end in which the host may claim it alone.
    pub claim_window: u64,
}

impl Schedule {
    /// The schedule of a signed agreement; `ends` is the epoch that a notice brought forward, if any.
    pub fn of(agreement: &Agreement, ends: Option<u32>) -> Schedule {
        Schedule {
            start: agreement.start,
            length: u64::from(agreement.epoch_length.max(1)),
            end_epoch: ends.map_or(agreement.end_epoch, |e| e.min(agreement.end_epoch)),
            claim_window: u64::from(agreement.claim_window),
        }
    }

    /// Settlement time at which epoch `e` ends.
    pub fn end_of(&self, e: u32) -> u64 {
        self.start.saturating_add((u64::from(e) + 1).saturating_mul(self.length))
    }

    /// The epoch that `now` falls in; 0 before the start. May lie past the term.
    pub fn epoch_at(&self, now: u64) -> u32 {
        u32::try_from(now.saturating_sub(self.start) / self.length).unwrap_or(u32::MAX)
    }

    /// How many epochs of the term have ended at `now`: epochs below this number can be judged.
    pub fn ended(&self, now: u64) -> u32 {
        self.epoch_at(now).min(self.end_epoch)
    }

    /// Settlement time of the end of the term.
    pub fn term_end(&self) -> u64 {
        self.start.saturating_add(u64::from(self.end_epoch).saturating_mul(self.length))
    }

    /// Latest moment for the verdict and voucher of epoch `e`: half an epoch after its end.
    pub fn verdict_deadline(&self, e: u32) -> u64 {
        self.end_of(e).saturating_add(self.length / 2)
    }

    /// When the host may delete the data: the term's end plus the longer of an epoch and the claim window.
    pub fn data_until(&self) -> u64 {
        self.term_end().saturating_add(self.length.max(self.claim_window))
    }

    /// The audit that is due with everything below `next` judged: `(from, e)`, at most [`MAX_CATCH_UP`] epochs.
    pub fn due(&self, next: u32, now: u64) -> Option<(u32, u32)> {
        let ended = self.ended(now);
        (next < ended).then(|| (next, (ended - 1).min(next.saturating_add(MAX_CATCH_UP - 1))))
    }

    /// The moment to audit epoch `e`, given a random fraction in `[0, 1)`: spread over the first half epoch after
    /// its end, so that a host cannot prepare and auditors do not all come at once.
    pub fn audit_at(&self, e: u32, fraction: f64) -> u64 {
        let half = (self.length / 2) as f64;
        self.end_of(e).saturating_add((half * fraction.clamp(0.0, 0.999)) as u64)
    }
}

/// Allowed difference between an agreement's start and the checker's settlement time, in seconds.
pub fn skew(epoch_length: u32) -> u64 {
    MAX_SKEW.min(u64::from(epoch_length) / 8)
}

/// Whether `start` is close enough to `now` to be signed.
pub fn within_skew(start: u64, now: u64, epoch_length: u32) -> bool {
    start.abs_diff(now) <= skew(epoch_length)
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Schedule = Schedule { start: 1000, length: 100, end_epoch: 30, claim_window: 150 };

    #[test]
    fn epochs_are_half_open() {
        assert_eq!(S.epoch_at(0), 0);
        assert_eq!(S.epoch_at(1099), 0);
        assert_eq!(S.epoch_at(1100), 1);
        assert_eq!(S.ended(1099), 0);
        assert_eq!(S.ended(1100), 1);
        assert_eq!(S.ended(u64::MAX), 30);
        assert_eq!(S.end_of(0), 1100);
        assert_eq!(S.term_end(), 4000);
        assert_eq!(S.data_until(), 4150);
    }

    #[test]
    fn one_audit_settles_at_most_fourteen_epochs() {
        assert_eq!(S.due(0, 1050), None);
        assert_eq!(S.due(0, 1100), Some((0, 0)));
        assert_eq!(S.due(1, 1100), None);
        assert_eq!(S.due(2, 1000 + 2500), Some((2, 15)));
        assert_eq!(S.due(16, 1000 + 2500), Some((16, 24)));
        assert_eq!(S.due(30, u64::MAX), None);
    }

    #[test]
    fn a_notice_only_shortens() {
        assert_eq!(S.ended(5000), 30);
        let s = Schedule { end_epoch: 3, ..S };
        assert_eq!((s.ended(5000), s.term_end()), (3, 1300));
    }

    #[test]
    fn audits_fall_into_the_first_half_epoch() {
        for f in [0.0, 0.3, 0.999_999, 2.0, -1.0] {
            let t = S.audit_at(4, f);
            assert!(t >= S.end_of(4) && t < S.verdict_deadline(4), "{f}: {t}");
        }
    }

    #[test]
    fn skew_shrinks_with_the_epoch() {
        assert_eq!(skew(86_400), 30);
        assert_eq!(skew(80), 10);
        assert!(within_skew(100, 110, 80) && !within_skew(100, 111, 80) && within_skew(110, 100, 80));
    }
}
