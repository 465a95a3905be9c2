//! The two state machines of an agreement, as the protocol names them.
//!
//! ```text
//! renter  Draft -> Reserved -> Funded -> Offered -> Active -> Closing -> Done
//! host             Reserved -> Received ---------> Active -> Closing -> Done
//!         every state before Active -> Failed(reason)
//! ```
//!
//! A default (silence, lost data past repair) is Closing with its reason; a renewal stays Active. `advance` is the
//! only way to change a stored state: a step that the machine does not know is a bug and is refused, not stored.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where the renter stands with one agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RenterState {
    /// Written down, not yet proposed or not yet answered.
    Draft,
    /// The host has set space aside.
    Reserved,
    /// The channel's lock covers the whole term.
    Funded,
    /// Our signature over the final agreement is durable and may be out.
    Offered,
    /// Both have signed; epochs run.
    Active,
    /// The term (or the notice) is over, or the host defaulted; last vouchers and refunds are under way.
    Closing,
    /// Nothing is left to do.
    Done,
    /// Ended before it began; the reason stands beside it.
    Failed,
}

/// Where the host stands with one agreement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostState {
    /// Space is set aside until a deadline.
    Reserved,
    /// All blocks are here, durable, verified; the proof root is computed.
    Received,
    /// Both have signed; the data is served and proven.
    Active,
    /// The term is over; the last voucher is redeemed and the data kept for a while.
    Closing,
    /// The space is free again.
    Done,
    /// Ended before it began.
    Failed,
}

/// A step that the state machine does not have.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("an agreement cannot go from {from} to {to}; nothing was changed")]
pub struct BadStep {
    from: String,
    to: String,
}

impl RenterState {
    /// Whether the machine has a step from here to `to`.
    pub fn may(self, to: RenterState) -> bool {
        use RenterState::*;
        matches!(
            (self, to),
            (Draft, Reserved)
                | (Reserved, Funded)
                | (Funded, Offered)
                // The host said "unsigned": a new start is signed.
                | (Offered, Funded)
                | (Offered, Active)
                | (Active, Closing)
                | (Closing, Done)
                | (Draft | Reserved | Funded | Offered, Failed)
        )
    }

    /// Takes the step or refuses it.
    pub fn advance(&mut self, to: RenterState) -> Result<(), BadStep> {
        if !self.may(to) {
            return Err(BadStep { from: format!("{self:?}"), to: format!("{to:?}") });
        }
        *self = to;
        Ok(())
    }

    /// Whether money is promised to this agreement: its remaining need counts against the channel.
    pub fn commits_money(self) -> bool {
        matches!(self, Self::Reserved | Self::Funded | Self::Offered | Self::Active | Self::Closing)
    }

    /// Whether nothing more will happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

impl HostState {
    /// Whether the machine has a step from here to `to`.
    pub fn may(self, to: HostState) -> bool {
        use HostState::*;
        matches!(
            (self, to),
            (Reserved, Received)
                | (Received, Active)
                | (Active, Closing)
                | (Closing, Done)
                | (Reserved | Received, Failed)
        )
    }

    /// Takes the step or refuses it.
    pub fn advance(&mut self, to: HostState) -> Result<(), BadStep> {
        if !self.may(to) {
            return Err(BadStep { from: format!("{self:?}"), to: format!("{to:?}") });
        }
        *self = to;
        Ok(())
    }

    /// Whether the agreement holds space.
    pub fn holds_space(self) -> bool {
        !matches!(self, Self::Done | Self::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_a_good_agreement() {
        let mut r = RenterState::Draft;
        for to in ["reserved", "funded", "offered", "active", "closing", "done"] {
            let to: RenterState = state(to);
            r.advance(to).unwrap();
        }
        assert!(r.is_final());
    }

    fn state(name: &str) -> RenterState {
        use RenterState::*;
        [Draft, Reserved, Funded, Offered, Active, Closing, Done, Failed]
            .into_iter()
            .find(|s| format!("{s:?}").to_lowercase() == name)
            .unwrap()
    }

    #[test]
    fn nothing_fails_after_active_and_nothing_leaves_the_end() {
        use RenterState::*;
        for s in [Active, Closing, Done, Failed] {
            assert!(!s.may(Failed));
        }
        for s in [Draft, Reserved, Funded, Offered, Active, Closing, Done, Failed] {
            assert!(!Done.may(s) && !Failed.may(s));
        }
        let mut s = Draft;
        assert!(s.advance(Active).is_err());
        assert_eq!(s, Draft);
        let mut h = HostState::Active;
        assert!(h.advance(HostState::Failed).is_err());
        assert!(h.advance(HostState::Closing).is_ok());
    }
}
