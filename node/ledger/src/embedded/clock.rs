//! Settlement time: the wall clock, plus what was stepped, never back.

use serde::{Deserialize, Serialize};

/// Longest single step: a year and a day. A slip of the keyboard must not end all agreements of a network.
pub const MAX_STEP: u64 = 366 * 86_400;

/// Turns wall-clock readings into settlement time. Pure: readings are passed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Seconds that all steps have added to the wall clock.
    pub offset: u64,
    /// The last time that was told.
    pub last: u64,
}

impl Clock {
    /// Settlement time when the wall clock shows `wall`. Stands still while the wall clock is behind.
    pub fn now(&mut self, wall: u64) -> u64 {
        self.last = self.last.max(wall.saturating_add(self.offset));
        self.last
    }

    /// Moves settlement time on by `seconds` from what it is at `wall`.
    pub fn step(&mut self, wall: u64, seconds: u64) -> u64 {
        let target = self.now(wall).saturating_add(seconds);
        // If the wall clock had fallen behind, the step starts from the time that was told, not from the wall.
        self.offset = target.saturating_sub(wall);
        self.now(wall)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn time_never_goes_back(events in proptest::collection::vec((0u64..10_000, 0u64..1000), 1..50)) {
            let mut clock = Clock { offset: 0, last: 0 };
            let mut before = 0;
            for (wall, seconds) in events {
                let now = clock.now(wall);
                prop_assert!(now >= before && now >= wall);
                let stepped = if seconds % 3 == 0 { clock.step(wall, seconds) } else { now };
                if seconds % 3 == 0 {
                    prop_assert_eq!(stepped, now + seconds, "a step is exact");
                    prop_assert_eq!(clock.now(wall + 1), stepped + 1, "and time goes on from it");
                }
                before = clock.last;
            }
        }
    }
}
