//! How long to wait before the next try: exponential, bounded, with jitter drawn by the caller.

use serde::{Deserialize, Serialize};

use crate::time::Millis;

/// A growing wait. `next` doubles it up to the maximum; `reset` starts over after a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    first: Millis,
    max: Millis,
    tries: u32,
}

impl Backoff {
    /// Waits `first` after the first failure, then twice as long each time, never more than `max`.
    pub const fn new(first: Millis, max: Millis) -> Self {
        Self { first, max, tries: 0 }
    }

    /// How many failures since the last reset.
    pub const fn tries(&self) -> u32 {
        self.tries
    }

    /// Counts a failure and tells how long to wait: between half of the step and the whole of it, by `random`.
    ///
    /// The spread keeps many nodes from coming back in the same instant.
    pub fn next(&mut self, random: u64) -> Millis {
        let doublings = self.tries.min(32);
        self.tries = self.tries.saturating_add(1);
        let step = u128::from(self.first.0) << doublings;
        let step = u64::try_from(step).unwrap_or(u64::MAX).min(self.max.0);
        let half = step / 2;
        Millis(half + random % (step - half + 1))
    }

    /// Forgets the failures.
    pub const fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_wait_is_within_half_and_the_whole_of_its_step(random: u64, tries in 0_u32..100) {
            let mut backoff = Backoff::new(Millis(100), Millis(30_000));
            for _ in 0..tries {
                backoff.next(0);
            }
            let step = (100_u128 << tries.min(32)).min(30_000) as u64;
            let wait = backoff.next(random).0;
            prop_assert!((step / 2..=step).contains(&wait), "{wait} of {step}");
        }
    }

    #[test]
    fn a_reset_starts_from_the_first_step() {
        let mut backoff = Backoff::new(Millis(100), Millis(1_000));
        backoff.next(0);
        backoff.next(0);
        backoff.reset();
        assert!(backoff.next(u64::MAX).0 <= 100);
    }
}
