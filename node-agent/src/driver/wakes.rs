//! Since when the front door waits for a cell, for the time that Berth itself adds to a wake.

use std::collections::BTreeMap;
use std::time::Instant;

use berth_shared::door::RouteState;
use berth_shared::ids::CellId;

/// Of each cell that is not up yet: when the first wake was heard that waits for it.
#[derive(Debug, Default)]
pub(super) struct Wakes(BTreeMap<CellId, Instant>);

impl Wakes {
    /// A wake of a cell that is not up.
    pub(super) fn heard(&mut self, cell: CellId, at: Instant) {
        self.0.entry(cell).or_insert(at);
    }

    /// Nobody waits any more.
    pub(super) fn over(&mut self, cell: CellId) {
        self.0.remove(&cell);
    }

    /// Its route is told: one that is up is waited for no more, also where its rest was only turned round.
    pub(super) fn routed(&mut self, cell: CellId, state: RouteState) {
        if matches!(state, RouteState::Up(_)) {
            self.over(cell);
        }
    }

    /// When the first was heard; `None` where nobody waits.
    pub(super) fn since(&self, cell: CellId) -> Option<Instant> {
        self.0.get(&cell).copied()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wake_that_turned_a_rest_round_does_not_count_for_the_next() {
        let (cell, first) = (CellId::from_random([1; 16]), Instant::now());
        let later = first + Duration::from_secs(3600);
        let address = "10.231.0.2:18789".parse().unwrap();
        let mut wakes = Wakes::default();
        wakes.heard(cell, first);
        wakes.heard(cell, later);
        for state in [RouteState::Down, RouteState::Frozen(address)] {
            wakes.routed(cell, state);
            assert_eq!(wakes.since(cell), Some(first), "the first that waits counts");
        }
        // Heard during the fence, and the cell is up again without having been away.
        wakes.routed(cell, RouteState::Up(address));
        assert_eq!(wakes.since(cell), None);
        wakes.heard(cell, later);
        assert_eq!(wakes.since(cell), Some(later));
        wakes.over(cell);
        assert_eq!(wakes.since(cell), None);
    }
}
