//! Swap as the node's second resource: whether a cell may be frozen onto it, and when a frozen one has to leave it.
//!
//! ```text
//! free swap   |---- reserve ----|---- promised to cells that are being frozen ----|---- room for the next ----|
//! fill        0 % ........................... low mark ... high mark ... 100 %
//!                                             enough       short: frozen cells leave, the longest-frozen first
//! ```
//!
//! Disks wear: what is written to swap in a day has a budget. Both figures are the kernel's own, counted since boot. When it
//! was written a restart of the agent forgets: for the part of the day that it has no marks of its own for, the mean since
//! boot stands.

use std::collections::VecDeque;

use berth_shared::time::{BootMs, Millis};
use berth_shared::units::Bytes;

/// The span that the budget is about.
pub const DAY: Millis = Millis::minutes(24 * 60);

/// How often a mark is kept of what was written: 24 of them cover the day, and the oldest is an hour too old at most.
const MARK_EVERY: Millis = Millis::minutes(60);

/// Cold pages of running cells get such a part of the day's budget, in percent: the rest is for cells that are frozen, which
/// give up ten times as much for what they write.
const COLD_BUDGET_PERCENT: u64 = 50;

/// What the kernel shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// Swap in all.
    pub total: Bytes,
    /// Swap that nothing lies in.
    pub free: Bytes,
    /// Written to swap since boot.
    pub written: Bytes,
    /// Read from it.
    pub read: Bytes,
}

/// What is not to be gone over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Part of the swap that no cell is frozen into, in percent: running cells and the system need it under pressure.
    pub reserve_percent: u8,
    /// From this fill on, in percent, frozen cells leave. 0: they never do.
    pub high_percent: u8,
    /// Down to this fill.
    pub low_percent: u8,
    /// What may be written in a day; `None` without end.
    pub written_per_day: Option<Bytes>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reserve_percent: 10, high_percent: 85, low_percent: 75, written_per_day: None }
    }
}

/// Why no cell can be frozen now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// This node does not freeze at all.
    #[error("this node does not freeze cells: {0}")]
    Off(String),
    /// Nobody has looked yet.
    #[error("the node's swap was not looked at yet")]
    Unknown,
    /// The budget is used up.
    #[error("{written} were written to swap within a day, of {budget} allowed")]
    Budget {
        /// Within the last day.
        written: Bytes,
        /// Allowed.
        budget: Bytes,
    },
}

/// The node's swap.
#[derive(Debug, Clone)]
pub struct Swap {
    limits: Limits,
    /// Why this node does not freeze, where it does not.
    off: Option<String>,
    sample: Option<Sample>,
    sampled_at: BootMs,
    /// What had been written when, oldest first; at most a day and a mark.
    marks: VecDeque<(BootMs, Bytes)>,
    short: bool,
    /// What cells have been pushed out since the sample: free in it, and not any more.
    landed: Bytes,
}

impl Swap {
    /// A node of which nothing is known yet: it does not freeze before [`Self::freezes`] says so.
    pub fn new(limits: Limits) -> Self {
        // Boot time and the kernel's counter both began at zero.
        let marks = VecDeque::from([(BootMs(0), Bytes::ZERO)]);
        Self {
            limits,
            off: Some("it has not been tried yet".to_owned()),
            sample: None,
            sampled_at: BootMs(0),
            marks,
            short: false,
            landed: Bytes::ZERO,
        }
    }

    /// Whether this node can freeze; `Err`: why not.
    pub fn freezes(&mut self, able: Result<(), String>) {
        self.off = able.err();
    }

    /// Takes in what the kernel shows.
    pub fn sampled(&mut self, now: BootMs, sample: Sample) {
        self.sample = Some(sample);
        self.sampled_at = now;
        self.landed = Bytes::ZERO;
        if self.marks.back().is_none_or(|(at, _)| now.since(*at) >= MARK_EVERY) {
            self.marks.push_back((now, sample.written));
        }
        // One that is older than a day stays, so that the day is covered.
        while self.marks.get(1).is_some_and(|(at, _)| now.since(*at) >= DAY) {
            self.marks.pop_front();
        }
        let Limits { high_percent, low_percent, .. } = self.limits;
        let mark = if self.short { low_percent } else { high_percent };
        self.short = high_percent > 0 && self.fill_percent().is_some_and(|fill| fill >= u64::from(mark));
    }

    /// What the kernel showed last; `None` before the first look.
    pub const fn sample(&self) -> Option<Sample> {
        self.sample
    }

    /// What may be written in a day; `None` without end.
    pub const fn written_per_day(&self) -> Option<Bytes> {
        self.limits.written_per_day
    }

    /// Was the last look before this?
    pub fn is_older_than(&self, moment: BootMs) -> bool {
        self.sampled_at < moment
    }

    /// So much of a cell has been pushed out: it was promised, and shows in the next sample only.
    pub fn landed(&mut self, moved: Bytes) {
        self.landed = self.landed.saturating_add(moved);
    }

    /// How full swap is, in percent; `None` while it is not known, or there is none.
    pub fn fill_percent(&self) -> Option<u64> {
        let sample = self.sample.filter(|sample| sample.total > Bytes::ZERO)?;
        let used = sample.total.saturating_sub(sample.free);
        u64::try_from(u128::from(used.0) * 100 / u128::from(sample.total.0)).ok()
    }

    /// Does a frozen cell have to leave? With a gap between the marks, so that it does not turn with every page.
    pub const fn is_short(&self) -> bool {
        self.short
    }

    /// What was written to swap within the last day; a mean for the part of it that the agent did not see.
    pub fn written_in_a_day(&self, now: BootMs) -> Bytes {
        let (Some(sample), Some((at, before))) = (self.sample, self.marks.front()) else {
            return Bytes::ZERO;
        };
        if now.since(*at) <= Millis(DAY.0 + MARK_EVERY.0) {
            return sample.written.saturating_sub(*before);
        }
        // The oldest is from before the day, the next is not.
        let (next_at, next) = self.marks.get(1).copied().unwrap_or((now, sample.written));
        let unseen = Millis(DAY.0.saturating_sub(now.since(next_at).0));
        let mean = part(next.saturating_sub(*before), unseen.0, next_at.since(*at).0.max(1));
        mean.saturating_add(sample.written.saturating_sub(next))
    }

    /// How much memory one more cell may have to be frozen now. `promised`: of those that are being frozen, and whose
    /// memory is not in swap yet.
    ///
    /// # Errors
    /// No cell at all can be frozen now.
    pub fn room(&self, now: BootMs, promised: Bytes) -> Result<Bytes, NoRoom> {
        if let Some(reason) = &self.off {
            return Err(NoRoom::Off(reason.clone()));
        }
        let sample = self.sample.ok_or(NoRoom::Unknown)?;
        if let Some(budget) = self.limits.written_per_day {
            let written = self.written_in_a_day(now);
            if written >= budget {
                return Err(NoRoom::Budget { written, budget });
            }
        }
        let reserve = part(sample.total, u64::from(self.limits.reserve_percent), 100);
        Ok(sample.free.saturating_sub(reserve).saturating_sub(self.landed).saturating_sub(promised))
    }

    /// How much of cells that run may go to swap now; zero: nothing. Frozen cells come first: never so much that one of them
    /// would have to leave, and never all of the day's budget. `promised` as in [`Self::room`].
    pub fn room_for_cold(&self, now: BootMs, promised: Bytes) -> Bytes {
        let Some(sample) = self.sample else { return Bytes::ZERO };
        let spent = self
            .limits
            .written_per_day
            .is_some_and(|budget| self.written_in_a_day(now) >= part(budget, COLD_BUDGET_PERCENT, 100));
        let Limits { high_percent, low_percent, .. } = self.limits;
        let most = if high_percent > 0 { u64::from(low_percent) } else { 100 };
        let taken = sample.total.saturating_sub(sample.free);
        let taken = taken.saturating_add(self.landed).saturating_add(promised);
        let below_mark = part(sample.total, most, 100).saturating_sub(taken);
        let room = self.room(now, promised).unwrap_or_default();
        if spent || self.short { Bytes::ZERO } else { room.min(below_mark) }
    }
}

/// `of` times `times` by `by`, which is not zero.
fn part(of: Bytes, times: u64, by: u64) -> Bytes {
    Bytes(u64::try_from(u128::from(of.0) * u128::from(times) / u128::from(by)).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn swap(limits: Limits) -> Swap {
        let mut swap = Swap::new(limits);
        swap.freezes(Ok(()));
        swap
    }

    fn sample(free_gib: u64) -> Sample {
        Sample { total: Bytes::gib(10), free: Bytes::gib(free_gib), ..Sample::default() }
    }

    #[test]
    fn nothing_is_frozen_before_swap_was_looked_at_or_where_the_node_cannot() {
        let mut swap = Swap::new(Limits::default());
        assert!(matches!(swap.room(BootMs(1), Bytes::ZERO), Err(NoRoom::Off(_))));
        swap.freezes(Ok(()));
        assert_eq!(swap.room(BootMs(1), Bytes::ZERO), Err(NoRoom::Unknown));
        swap.sampled(BootMs(1), sample(10));
        assert_eq!(swap.room(BootMs(1), Bytes::ZERO), Ok(Bytes::gib(9)), "a tenth is kept");
        swap.freezes(Err("no live-restore".into()));
        assert_eq!(swap.room(BootMs(1), Bytes::ZERO), Err(NoRoom::Off("no live-restore".into())));
    }

    #[test]
    fn room_that_was_promised_is_not_promised_again() {
        let mut swap = swap(Limits::default());
        swap.sampled(BootMs(1), sample(3));
        assert_eq!(swap.room(BootMs(1), Bytes::gib(1)), Ok(Bytes::gib(1)));
        assert_eq!(swap.room(BootMs(1), Bytes::gib(7)), Ok(Bytes::ZERO));
    }

    #[test]
    fn room_that_was_taken_since_the_last_look_is_not_promised_again() {
        let mut swap = swap(Limits::default());
        swap.sampled(BootMs(1), sample(4));
        swap.landed(Bytes::gib(1));
        swap.landed(Bytes::gib(1));
        assert_eq!(swap.room(BootMs(1), Bytes::ZERO), Ok(Bytes::gib(1)));
        swap.sampled(BootMs(2), sample(2));
        assert_eq!(swap.room(BootMs(2), Bytes::ZERO), Ok(Bytes::gib(1)), "the look shows them");
    }

    #[test]
    fn swap_is_short_from_the_high_mark_until_the_low_one() {
        let mut swap = swap(Limits::default());
        let mut at = |free| {
            swap.sampled(BootMs(1), Sample { total: Bytes(100), free: Bytes(free), ..Sample::default() });
            swap.is_short()
        };
        assert_eq!(
            [at(100), at(16), at(15), at(24), at(26), at(16), at(0)],
            [false, false, true, true, false, false, true]
        );
    }

    #[test]
    fn without_a_mark_swap_is_never_short() {
        let mut swap = swap(Limits { high_percent: 0, low_percent: 0, ..Limits::default() });
        swap.sampled(BootMs(1), sample(0));
        assert!(!swap.is_short());
    }

    #[test]
    fn a_node_without_swap_is_never_short_of_it() {
        let mut swap = swap(Limits::default());
        swap.sampled(BootMs(1), Sample::default());
        assert!(!swap.is_short());
        assert_eq!(swap.room(BootMs(1), Bytes::ZERO), Ok(Bytes::ZERO));
    }

    #[test]
    fn a_days_writes_have_a_budget_and_yesterdays_do_not_count() {
        let mut swap = swap(Limits { written_per_day: Some(Bytes::gib(5)), ..Limits::default() });
        let hour = Millis::minutes(60).0;
        let mut at = |hours: u64, written_gib| {
            let now = BootMs(hours * hour);
            swap.sampled(now, Sample { written: Bytes::gib(written_gib), ..sample(10) });
            swap.room(now, Bytes::ZERO).is_ok()
        };
        assert!(at(1, 1));
        assert!(at(2, 4));
        assert!(!at(3, 6), "5 GiB within the day");
        assert!((4..25).all(|hours| !at(hours, 6)));
        assert!(at(28, 6), "they were written more than a day ago");
    }

    #[test]
    fn an_agent_that_does_not_know_the_day_takes_the_mean_since_boot() {
        let mut swap = swap(Limits::default());
        let ten_days = BootMs(10 * DAY.0);
        swap.sampled(ten_days, Sample { written: Bytes::gib(20), ..sample(10) });
        assert_eq!(swap.written_in_a_day(ten_days), Bytes::gib(2));
    }

    #[test]
    fn what_an_agent_sees_written_counts_from_its_start_on() {
        let mut swap = swap(Limits { written_per_day: Some(Bytes::gib(5)), ..Limits::default() });
        let hour = Millis::minutes(60).0;
        let mut at = |hours: u64, written_gib| {
            let now = BootMs(10 * DAY.0 + hours * hour);
            swap.sampled(now, Sample { written: Bytes::gib(written_gib), ..sample(10) });
            (swap.written_in_a_day(now), swap.room(now, Bytes::ZERO).is_ok())
        };
        assert_eq!(at(0, 10), (Bytes::gib(1), true));
        assert_eq!(at(12, 14), (Bytes(Bytes::gib(4).0 + Bytes::gib(1).0 / 2), true));
        assert!(!at(13, 16).1, "6 GiB within 13 hours, and not 0.6 in the mean of each day");
        assert!((14..24).all(|hours| !at(hours, 16).1));
        assert!(at(38, 16).1, "they were written more than a day ago");
    }

    #[test]
    fn cold_pages_have_room_below_the_low_mark_and_half_of_the_days_budget() {
        let mut swap = Swap::new(Limits { written_per_day: Some(Bytes::gib(10)), ..Limits::default() });
        let room = |swap: &Swap| swap.room_for_cold(BootMs(1), Bytes::gib(1));
        assert_eq!(room(&swap), Bytes::ZERO, "nobody has looked");
        let total = Bytes::gib(20);
        let shown = |free, written| Sample {
            total,
            free: Bytes::gib(free),
            written: Bytes::gib(written),
            ..Sample::default()
        };
        swap.sampled(BootMs(1), shown(20, 0));
        assert_eq!(room(&swap), Bytes::ZERO, "this node does not freeze");
        swap.freezes(Ok(()));
        assert_eq!(room(&swap), Bytes::gib(14), "three quarters, less what is promised");
        swap.landed(Bytes::gib(2));
        assert_eq!(room(&swap), Bytes::gib(12));
        swap.sampled(BootMs(1), shown(6, 0));
        assert_eq!(room(&swap), Bytes::ZERO, "frozen cells would have to leave");
        assert!(swap.room(BootMs(1), Bytes::gib(1)).unwrap() > Bytes::ZERO, "and may still come");
        swap.sampled(BootMs(1), shown(20, 4));
        assert!(room(&swap) > Bytes::ZERO);
        swap.sampled(BootMs(1), shown(20, 5));
        assert_eq!(room(&swap), Bytes::ZERO, "half of the budget");
        assert!(swap.room(BootMs(1), Bytes::ZERO).is_ok());
        swap.sampled(BootMs(1), shown(2, 0));
        assert_eq!(room(&swap), Bytes::ZERO, "swap is short");
    }

    proptest! {
        #[test]
        fn cold_pages_never_have_more_room_than_a_frozen_cell(
            total in 0_u64..1 << 40, free in 0_u64..1 << 40, written in 0_u64..1 << 40, promised in 0_u64..1 << 40
        ) {
            let mut swap = swap(Limits { written_per_day: Some(Bytes::gib(200)), ..Limits::default() });
            let (total, free, written) = (Bytes(total), Bytes(free.min(total)), Bytes(written));
            swap.sampled(BootMs(5), Sample { total, free, written, ..Sample::default() });
            let cold = swap.room_for_cold(BootMs(5), Bytes(promised));
            prop_assert!(cold <= swap.room(BootMs(5), Bytes(promised)).unwrap_or_default());
        }

        #[test]
        fn what_is_promised_never_exceeds_what_is_free(
            total in 0_u64..1 << 40, free in 0_u64..1 << 40, cells in prop::collection::vec(0_u64..1 << 34, 0..50)
        ) {
            let mut swap = swap(Limits::default());
            let free = free.min(total);
            swap.sampled(BootMs(5), Sample { total: Bytes(total), free: Bytes(free), ..Sample::default() });
            let mut promised = Bytes::ZERO;
            for need in cells {
                let room = swap.room(BootMs(5), promised).unwrap();
                if need <= room.0 {
                    promised = promised.saturating_add(Bytes(need));
                }
            }
            prop_assert!(promised.0 <= free);
        }

        #[test]
        fn the_marks_stay_few(steps in prop::collection::vec(0_u64..Millis::minutes(300).0, 1..300)) {
            let mut swap = swap(Limits::default());
            let mut now = BootMs(0);
            for step in steps {
                now = now.after(Millis(step));
                swap.sampled(now, sample(5));
                prop_assert!(swap.marks.len() <= 27);
            }
        }
    }
}
