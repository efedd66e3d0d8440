//! How many reports of snapshots of one node are written down: a node's key in other hands must not fill the journal, which
//! never shrinks. A report for which there is no room is not refused: the node tells of it again.

use std::collections::BTreeMap;

use berth_shared::ids::NodeId;
use berth_shared::time::{BootMs, Millis};

/// So many of one node may come at once: all that it keeps while nobody hears it.
pub const REPORTS_BURST_MAX: u64 = 4_096;

/// And one more in so long, in the long run. A node of 200 cells, each of which wakes and rests ten times an hour, tells of
/// one in two seconds.
pub const REPORT_EVERY: Millis = Millis::secs(1);

/// What there is room for, for each node that has told of something lately. Outlives sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reports {
    burst: u64,
    rooms: BTreeMap<NodeId, Room>,
}

/// Filled with time, emptied by reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Room {
    /// In milliseconds of [`REPORT_EVERY`].
    filled: u64,
    at: BootMs,
    /// It ran out since it was full.
    ran_out: bool,
}

impl Reports {
    /// With room for so many of each node at once.
    pub const fn new(burst: u64) -> Self {
        Self { burst, rooms: BTreeMap::new() }
    }

    const fn full(&self) -> u64 {
        self.burst.saturating_mul(REPORT_EVERY.0)
    }

    fn room(&self, now: BootMs, node: NodeId) -> Room {
        let full = self.full();
        self.rooms.get(&node).map_or(Room { filled: full, at: now, ran_out: false }, |room| {
            let filled = room.filled.saturating_add(now.since(room.at).0).min(full);
            Room { filled, at: now.max(room.at), ran_out: room.ran_out && filled < full }
        })
    }

    /// May one more of this node's be written down?
    pub fn has_room(&self, now: BootMs, node: NodeId) -> bool {
        self.room(now, node).filled >= REPORT_EVERY.0
    }

    /// One of this node's was. Says whether it was the last one for now, the first time since there was room for all.
    pub fn written(&mut self, now: BootMs, node: NodeId) -> bool {
        let mut room = self.room(now, node);
        room.filled = room.filled.saturating_sub(REPORT_EVERY.0);
        let is_first = room.filled < REPORT_EVERY.0 && !room.ran_out;
        room.ran_out |= is_first;
        self.rooms.insert(node, room);
        // Who has all of it back is as one who never told of anything.
        let full: Vec<NodeId> =
            self.rooms.keys().copied().filter(|node| self.room(now, *node).filled >= self.full()).collect();
        for node in full {
            self.rooms.remove(&node);
        }
        is_first
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BURST: u64 = 8;

    fn node(number: u8) -> NodeId {
        NodeId::from_random([number; 16])
    }

    #[test]
    fn a_backlog_is_taken_at_once_and_then_one_at_a_time() {
        let mut reports = Reports::new(BURST);
        for number in 1..=BURST {
            assert!(reports.has_room(BootMs(5), node(1)), "{number}");
            assert_eq!(reports.written(BootMs(5), node(1)), number == BURST);
        }
        assert!(!reports.has_room(BootMs(5), node(1)));
        assert!(!reports.has_room(BootMs(5 + REPORT_EVERY.0 - 1), node(1)));
        assert!(reports.has_room(BootMs(5 + REPORT_EVERY.0), node(1)));
        assert!(!reports.written(BootMs(5 + REPORT_EVERY.0), node(1)), "said once");
        assert!(!reports.has_room(BootMs(5 + REPORT_EVERY.0), node(1)));
        assert!(reports.has_room(BootMs(5), node(2)), "another node's is its own");
    }

    #[test]
    fn whoever_is_quiet_again_is_forgotten() {
        let mut reports = Reports::new(BURST);
        for number in 0..100 {
            reports.written(BootMs(0), node(number));
        }
        assert_eq!(reports.rooms.len(), 100);
        reports.written(BootMs(REPORT_EVERY.0), node(200));
        assert_eq!(reports.rooms.len(), 1, "one report's worth of time is over for all others");
    }

    proptest! {
        #[test]
        fn no_time_lets_more_be_written_than_the_burst_and_its_share_and_nobody_waits_for_ever(
            steps in proptest::collection::vec((0_u64..5_000, 1_usize..20), 1..60),
        ) {
            let mut reports = Reports::new(BURST);
            let (mut now, mut written) = (0, 0);
            for (step, count) in steps {
                now += step;
                for _ in 0..count {
                    if reports.has_room(BootMs(now), node(1)) {
                        reports.written(BootMs(now), node(1));
                        written += 1;
                    }
                }
            }
            prop_assert!(written <= BURST + now / REPORT_EVERY.0);
            prop_assert!(reports.has_room(BootMs(now + REPORT_EVERY.0), node(1)));
        }
    }
}
