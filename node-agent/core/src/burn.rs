//! When a cell's use of CPU is worth telling: a runaway loop or somebody else's mining, which nothing else shows as long
//! as the cell keeps within its limits.
//!
//! A mean over a long window counts, so that an agent which thinks hard for a few minutes is not told of. It begins when
//! the mean over the whole window is at the threshold, and ends when the mean over the window's last third is below
//! half of it: whoever pauses for a moment is still burning.

use std::collections::VecDeque;

use berth_shared::time::{BootMs, Millis};

/// Looks in one window: the memory of a cell is bounded by it.
const LOOKS_PER_WINDOW: u64 = 30;

/// Shortest time between two looks.
const LOOK_EVERY_MIN: Millis = Millis::secs(1);

/// CPU time in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Micros(pub u64);

/// What is worth telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Mean use, in percent of one core.
    pub percent: u32,
    /// Over so long.
    pub window: Millis,
}

impl Threshold {
    /// How often a cell's use has to be looked at.
    pub fn look_every(&self) -> Millis {
        Millis(self.window.0 / LOOKS_PER_WINDOW).max(LOOK_EVERY_MIN)
    }
}

/// What has turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It burns CPU: so many percent of a core, over the whole window.
    Began {
        /// The mean.
        percent: u32,
    },
    /// It does not any more.
    Ended,
}

/// One cell's use.
#[derive(Debug, Clone, Default)]
pub struct Burn {
    /// When, and CPU time until then; oldest first.
    looks: VecDeque<(BootMs, Micros)>,
    burning: bool,
}

impl Burn {
    /// Takes in how much CPU time the container has used since it was started.
    pub fn look(&mut self, now: BootMs, used: Micros, threshold: Threshold) -> Option<Turn> {
        if self.looks.back().is_some_and(|(at, before)| used < *before || now <= *at) {
            // Another container, or the same moment: nothing can be compared.
            self.looks.clear();
        }
        if self.looks.back().is_some_and(|(at, _)| now.since(*at).0 < threshold.look_every().0 / 2) {
            return None; // Too early to tell more than the look before.
        }
        self.looks.push_back((now, used));
        // One that is older than the window stays, so that the window is covered.
        while self.looks.get(1).is_some_and(|(at, _)| now.since(*at) >= threshold.window) {
            self.looks.pop_front();
        }
        let over = |span: Millis| {
            let from = self.looks.iter().rev().find(|(at, _)| now.since(*at) >= span)?;
            let micros = now.since(from.0).0.saturating_mul(1000).max(1);
            u32::try_from(used.0.saturating_sub(from.1.0).saturating_mul(100) / micros).ok()
        };
        if self.burning {
            let recent = over(Millis(threshold.window.0 / 3))?;
            (recent < threshold.percent / 2).then(|| {
                self.burning = false;
                Turn::Ended
            })
        } else {
            let percent = over(threshold.window)?;
            (percent >= threshold.percent).then(|| {
                self.burning = true;
                Turn::Began { percent }
            })
        }
    }

    /// The cell does not run: what it used before says nothing of what it will use. True when it was burning.
    pub fn rests(&mut self) -> bool {
        self.looks.clear();
        std::mem::take(&mut self.burning)
    }
}

/// So far back a cell's recent use is known.
const RECENT: Millis = Millis::minutes(5);

/// A mean over less than this says no more than a moment's look.
const RECENT_MIN: Millis = Millis::minutes(1);

/// Looks that follow one another sooner are one.
const RECENT_EVERY_MIN: Millis = Millis::secs(10);

/// One cell's use over the last minutes: what works now and then is seen in it, where a moment's look finds nothing.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    /// When, and CPU time until then; oldest first.
    looks: VecDeque<(BootMs, Micros)>,
}

impl Recent {
    /// Takes in how much CPU time the container has used since it was started.
    pub fn look(&mut self, now: BootMs, used: Micros) {
        if self.looks.back().is_some_and(|(at, before)| used < *before || now < *at) {
            self.looks.clear(); // Another container: nothing can be compared.
        }
        if self.looks.back().is_some_and(|(at, _)| now.since(*at) < RECENT_EVERY_MIN) {
            return;
        }
        self.looks.push_back((now, used));
        while self.looks.get(1).is_some_and(|(at, _)| now.since(*at) >= RECENT) {
            self.looks.pop_front();
        }
    }

    /// Mean use in percent of one core, rounded down, from the first look at or after `since` until now, when it has used
    /// `used`. Of the last minutes only; `None` where that is less than one.
    pub fn percent(&self, now: BootMs, used: Micros, since: BootMs) -> Option<u32> {
        let (at, before) = self.looks.iter().find(|(at, _)| *at >= since)?;
        let span = now.since(*at);
        let micros = used.0.checked_sub(before.0)?;
        (span >= RECENT_MIN).then(|| {
            u32::try_from(micros.saturating_mul(100) / span.0.saturating_mul(1000)).unwrap_or(u32::MAX)
        })
    }

    /// The cell does not run.
    pub fn rests(&mut self) {
        self.looks.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THRESHOLD: Threshold = Threshold { percent: 80, window: Millis::minutes(30) };

    /// Lets a cell use `percent` of a core for so many minutes; what turned, and after how many minutes.
    fn use_cpu(burn: &mut Burn, state: &mut (u64, u64), percent: u64, minutes: u64) -> Vec<(u64, Turn)> {
        let mut turns = vec![];
        for minute in 1..=minutes {
            state.0 += 60_000;
            state.1 += 60_000_000 * percent / 100;
            turns.extend(burn.look(BootMs(state.0), Micros(state.1), THRESHOLD).map(|turn| (minute, turn)));
        }
        turns
    }

    #[test]
    fn half_an_hour_of_a_whole_core_is_told_once_and_its_end_too() {
        let (mut burn, mut state) = (Burn::default(), (0, 0));
        assert_eq!(use_cpu(&mut burn, &mut state, 5, 60), []);
        let turns = use_cpu(&mut burn, &mut state, 100, 60);
        let [(minute, Turn::Began { percent })] = turns[..] else { panic!("{turns:?}") };
        assert!((23..=25).contains(&minute) && percent >= 80, "{minute} {percent}");
        // A pause of a few minutes is no end.
        assert_eq!(use_cpu(&mut burn, &mut state, 0, 3), []);
        assert_eq!(use_cpu(&mut burn, &mut state, 100, 10), []);
        let turns = use_cpu(&mut burn, &mut state, 0, 60);
        assert!(matches!(turns[..], [(1..=10, Turn::Ended)]), "{turns:?}");
    }

    #[test]
    fn a_few_minutes_of_hard_work_are_not_told() {
        let (mut burn, mut state) = (Burn::default(), (0, 0));
        for _ in 0..10 {
            assert_eq!(use_cpu(&mut burn, &mut state, 200, 10), []);
            assert_eq!(use_cpu(&mut burn, &mut state, 2, 20), []);
        }
    }

    #[test]
    fn a_new_container_and_a_rest_begin_anew() {
        let (mut burn, mut state) = (Burn::default(), (0, 0));
        use_cpu(&mut burn, &mut state, 100, 20);
        state.1 = 0;
        assert_eq!(use_cpu(&mut burn, &mut state, 100, 29), []);
        assert!(!burn.rests());
        assert_eq!(use_cpu(&mut burn, &mut state, 100, 31).len(), 1);
        assert!(burn.rests());
        assert!(!burn.rests());
    }

    #[test]
    fn recent_use_is_a_mean_of_the_last_minutes_only() {
        let mut recent = Recent::default();
        // A second of work in ten, looked at each half minute.
        for half in 0..=20 {
            recent.look(BootMs(half * 30_000), Micros(half * 3_000_000));
        }
        let mean = |now: u64, used, since| recent.percent(BootMs(now), Micros(used), BootMs(since));
        assert_eq!(mean(600_000, 60_000_000, 0), Some(10));
        assert_eq!(mean(600_000, 60_000_000, 480_000), Some(10));
        assert_eq!(mean(600_000, 60_000_000, 550_000), None, "less than a minute of it is known");
        assert_eq!(mean(600_000, 5, 0), None, "another container's");
        // Five quiet minutes later nothing of it counts.
        for half in 21..=31 {
            recent.look(BootMs(half * 30_000), Micros(60_000_000));
        }
        assert_eq!(recent.percent(BootMs(930_000), Micros(60_000_000), BootMs(0)), Some(0));
        recent.look(BootMs(960_000), Micros(7));
        assert_eq!(recent.percent(BootMs(1_020_000), Micros(7), BootMs(0)), Some(0), "it was started anew");
        recent.rests();
        assert_eq!(recent.percent(BootMs(1_020_000), Micros(7), BootMs(0)), None);
    }

    #[test]
    fn recent_looks_are_bounded_and_odd_figures_do_no_harm() {
        let mut recent = Recent::default();
        for look in 0..100_000 {
            recent.look(BootMs(look * 100), Micros(look));
            assert!(recent.looks.len() <= 32);
        }
        for (at, used) in [(0, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX, 0), (5, 5), (5, 5)] {
            recent.look(BootMs(at), Micros(used));
            recent.percent(BootMs(u64::MAX), Micros(u64::MAX), BootMs(0));
            recent.percent(BootMs(0), Micros(0), BootMs(0));
        }
    }

    #[test]
    fn its_memory_is_bounded_and_odd_figures_do_no_harm() {
        let mut burn = Burn::default();
        for (step, count) in [(60_000, 100_000), (10, 1_000_000)] {
            for look in 0..count {
                burn.look(BootMs(look * step), Micros(look), THRESHOLD);
                assert!(burn.looks.len() <= 62);
            }
        }
        for (at, used) in [(0, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX, 0), (5, 5), (5, 5)] {
            burn.look(BootMs(at), Micros(used), THRESHOLD);
        }
    }
}
