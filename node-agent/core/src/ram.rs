//! The node's memory: where it runs short, cells that nobody uses fall asleep sooner than their plans say.
//!
//! Idle cells are what a node has to give: each brings back hundreds of megabytes at the price of a second at its next use.
//! So their quiet time is a part of the usual one for as long as little memory is left, and the usual one again when there is
//! enough. Nothing else follows from it: a cell at work is never put to rest for want of memory.

use berth_shared::time::Millis;
use berth_shared::units::Bytes;

/// From this part on, in percent of all memory that is available, it runs short: the kernel has begun to give up what it had
/// kept of files, and the next gateway's start, some 700 MB, would come out of cells' own memory.
pub const SHORT_PERCENT: u64 = 15;

/// From this part on there is enough again. Far above: what falls asleep brings back that much at once.
pub const ENOUGH_PERCENT: u64 = 25;

/// The quiet time is so much shorter while memory is short …
const PART: u64 = 5;

/// … but no shorter than this, or than a plan says itself: who reads an answer is not away yet.
const SHORTEST: Millis = Millis::minutes(1);

/// What the kernel shows (proc(5), `/proc/meminfo`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Memory in all.
    pub total: Bytes,
    /// What may be had without swapping: `MemAvailable`.
    pub available: Bytes,
}

impl Sample {
    fn available_percent(&self) -> Option<u64> {
        let available = u128::from(self.available.0).saturating_mul(100);
        let part = available.checked_div(self.total.0.into())?;
        Some(u64::try_from(part).unwrap_or(u64::MAX))
    }
}

/// The node's memory.
#[derive(Debug, Clone, Default)]
pub struct Ram {
    short: bool,
}

impl Ram {
    /// Takes in what the kernel shows. What shows no size changes nothing.
    pub fn sampled(&mut self, sample: Sample) {
        let mark = if self.short { ENOUGH_PERCENT } else { SHORT_PERCENT };
        if let Some(available) = sample.available_percent() {
            self.short = available < mark;
        }
    }

    /// Does it run short?
    pub const fn is_short(&self) -> bool {
        self.short
    }
}

/// How long nobody may have done anything where memory is short and a plan says `idle_after`.
pub fn hurried(idle_after: Millis) -> Millis {
    Millis(idle_after.0 / PART).max(SHORTEST).min(idle_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(available: u64) -> Sample {
        Sample { total: Bytes::gib(100), available: Bytes::gib(available) }
    }

    #[test]
    fn memory_is_short_between_two_marks_and_what_shows_nothing_changes_nothing() {
        let mut ram = Ram::default();
        for (available, short) in
            [(100, false), (15, false), (14, true), (24, true), (25, false), (16, false), (0, true)]
        {
            ram.sampled(sample(available));
            assert_eq!(ram.is_short(), short, "{available} %");
        }
        ram.sampled(Sample::default());
        assert!(ram.is_short());
        ram.sampled(Sample { total: Bytes(1), available: Bytes(u64::MAX) });
        assert!(!ram.is_short());
    }

    #[test]
    fn a_quiet_time_is_shortened_to_a_minute_at_the_least_and_never_made_longer() {
        for (plan, hurried_to) in [(300, 60), (1800, 360), (120, 60), (30, 30), (0, 0)] {
            assert_eq!(hurried(Millis::secs(plan)), Millis::secs(hurried_to));
        }
        assert_eq!(hurried(Millis(u64::MAX)).0, u64::MAX / 5);
    }
}
