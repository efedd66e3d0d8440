//! Many cells due at the same time: who is woken ahead of its own time, so that none is late.
//!
//! People like round times: at eight in the morning a node may have dozens of jobs, and it starts two cells at a time and
//! thaws one. So the wakes are laid out backwards from the due times: the last one comes up just in time, and each before it
//! as much earlier as those behind it need the node's turns.

use berth_shared::ids::CellId;
use berth_shared::time::{Millis, UnixMs};

use super::Way;

/// A cell is not woken earlier than this for others' sake: it would hold memory for nothing. What does not fit into it is
/// late, in the order in which it was due.
pub const AHEAD_MAX: Millis = Millis::minutes(10);

/// A wake for a schedule that will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Whose.
    pub cell: CellId,
    /// By which way it comes up.
    pub way: Way,
    /// When it has to be woken at the latest, were it alone.
    pub latest: UnixMs,
    /// For how long it takes a turn of the node.
    pub span: Millis,
}

/// How much ahead of its latest time each is woken, where `starts_max` boot at a time and one is thawed.
pub fn lay_out(mut turns: Vec<Turn>, starts_max: usize) -> Vec<(CellId, Millis)> {
    // The cell's own id keeps the order of equal times: nobody's time moves because somebody else was asked first.
    turns.sort_unstable_by_key(|turn| std::cmp::Reverse((turn.latest, turn.cell)));
    let mut boots = vec![u64::MAX; starts_max.max(1)];
    let mut thaws = [u64::MAX];
    turns
        .into_iter()
        .map(|turn| {
            let lanes = match turn.way {
                Way::Boot | Way::Restore => boots.as_mut_slice(),
                Way::Thaw => thaws.as_mut_slice(),
            };
            let Some(taken_from) = lanes.iter_mut().max() else { return (turn.cell, Millis(0)) };
            let start = turn.latest.0.min(taken_from.saturating_sub(turn.span.0));
            *taken_from = start;
            (turn.cell, Millis(turn.latest.0 - start).min(AHEAD_MAX))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turn(seed: u8, way: Way, latest: u64, span: u64) -> Turn {
        Turn { cell: CellId::from_random([seed; 16]), way, latest: UnixMs(latest), span: Millis(span) }
    }

    #[test]
    fn one_alone_comes_in_its_own_time_and_of_a_crowd_only_the_last() {
        let crowd = |count: u8, way, starts_max| {
            let turns = (1..=count).map(|seed| turn(seed, way, 1_000_000, 10_000)).collect();
            let mut ahead: Vec<u64> =
                lay_out(turns, starts_max).into_iter().map(|(_, ahead)| ahead.0).collect();
            ahead.sort_unstable();
            ahead
        };
        assert_eq!(crowd(1, Way::Boot, 2), [0]);
        assert_eq!(crowd(5, Way::Boot, 2), [0, 0, 10_000, 10_000, 20_000]);
        assert_eq!(crowd(3, Way::Thaw, 2), [0, 10_000, 20_000]);
        assert_eq!(crowd(200, Way::Thaw, 2).last(), Some(&AHEAD_MAX.0));
    }

    proptest! {
        /// As the node would carry it out: never more at a time than it can, and each begins by its latest time.
        #[test]
        fn nobody_is_late_and_no_turn_is_given_twice(
            turns in prop::collection::vec((any::<bool>(), 600_000_u64..900_000, 1_u64..20_000), 0..30),
            starts_max in 1_usize..4,
        ) {
            let way = |boots| if boots { Way::Boot } else { Way::Thaw };
            let turns: Vec<Turn> = (1..)
                .zip(&turns)
                .map(|(seed, (boots, latest, span))| turn(seed, way(*boots), *latest, *span))
                .collect();
            let laid_out = lay_out(turns.clone(), starts_max);
            prop_assert_eq!(laid_out.len(), turns.len());
            let mut spans = Vec::new();
            for turn in &turns {
                let (_, ahead) = laid_out.iter().find(|(cell, _)| *cell == turn.cell).unwrap();
                prop_assert!(*ahead < AHEAD_MAX, "thirty of these always fit");
                let start = turn.latest.0 - ahead.0;
                spans.push((turn.way, start, start + turn.span.0));
            }
            for (way, start, _) in &spans {
                let most = if *way == Way::Boot { starts_max } else { 1 };
                let under_way =
                    spans.iter().filter(|(other, from, to)| other == way && from <= start && start < to);
                prop_assert!(under_way.count() <= most);
            }
        }
    }
}
