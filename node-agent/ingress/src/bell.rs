//! Decides when a wake is asked for. Requests that are held and may wake *want* one; however many there are, one
//! `Wake` frame goes out per cell and [`WAKE_REPEAT`], until nobody wants it any more. Owned by the process; rung by
//! `gate`, answered by `door`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_shared::cell::WakeCause;
use berth_shared::door::WAKE_REPEAT;
use berth_shared::ids::CellId;
use tokio::sync::Notify;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Bell {
    wants: Mutex<BTreeMap<CellId, Want>>,
    ring: Notify,
}

#[derive(Debug)]
struct Want {
    /// How many are held that may wake.
    count: u32,
    /// Of the first of them.
    cause: WakeCause,
    /// When the head of the first of them was read; `None` once its frame was written.
    asked_at: Option<Instant>,
    /// When the last frame was written.
    sent_at: Option<Instant>,
    /// The cell is up: whoever is still counted is on its way in, and needs nothing.
    settled: bool,
}

/// One who wants the cell awake, until dropped.
#[derive(Debug)]
pub(crate) struct Wanting {
    bell: Arc<Bell>,
    cell: CellId,
}

/// A `Wake` frame to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) cell: CellId,
    pub(crate) cause: WakeCause,
    /// When the request's head was read that it is the first answer to; `None` for a repeat.
    pub(crate) asked_at: Option<Instant>,
}

impl Bell {
    fn wants(&self) -> MutexGuard<'_, BTreeMap<CellId, Want>> {
        // No code between lock and unlock can panic half way through a change.
        self.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wants the cell awake until the answer is dropped. `asked_at` is when the request's head was read.
    pub(crate) fn want(self: &Arc<Self>, cell: CellId, cause: WakeCause, asked_at: Instant) -> Wanting {
        {
            let mut wants = self.wants();
            let want = wants.entry(cell).or_insert(Want {
                count: 0,
                cause,
                asked_at: None,
                sent_at: None,
                settled: false,
            });
            if want.count == 0 {
                want.cause = cause;
            }
            want.count += 1;
            if want.sent_at.is_none() {
                want.asked_at = Some(want.asked_at.map_or(asked_at, |first| first.min(asked_at)));
            }
        }
        self.ring.notify_one();
        Wanting { bell: Arc::clone(self), cell }
    }

    /// The cell is up: nothing more is asked until it is down again.
    pub(crate) fn settle(&self, cell: CellId) {
        let mut wants = self.wants();
        if let Some(want) = wants.get_mut(&cell) {
            want.settled = true;
            if want.count == 0 {
                wants.remove(&cell);
            }
        }
    }

    /// The cell's state changed for the worse: what was asked before is no longer an answer.
    pub(crate) fn rearm(&self, cell: CellId) {
        if let Some(want) = self.wants().get_mut(&cell) {
            want.settled = false;
            want.sent_at = None;
        }
        self.ring.notify_one();
    }

    /// A new agent listens that has heard nothing.
    pub(crate) fn rearm_all(&self) {
        for want in self.wants().values_mut() {
            want.sent_at = None;
        }
        self.ring.notify_one();
    }

    /// What is to be asked now, taken as asked; and when to look again.
    pub(crate) fn due(&self, now: Instant) -> (Vec<Ask>, Option<Instant>) {
        let mut asks = Vec::new();
        let mut next: Option<Instant> = None;
        self.wants().retain(|cell, want| {
            let repeat_at = want.sent_at.map(|sent| sent + WAKE_REPEAT.to_std());
            let is_due = repeat_at.is_none_or(|at| at <= now);
            if want.count == 0 {
                // Kept until then, so that requests that come and go in between do not ask each time.
                return !is_due && !want.settled;
            }
            if want.settled {
                return true;
            }
            let mut look_at = repeat_at;
            if is_due {
                asks.push(Ask { cell: *cell, cause: want.cause, asked_at: want.asked_at.take() });
                want.sent_at = Some(now);
                look_at = Some(now + WAKE_REPEAT.to_std());
            }
            next = match (next, look_at) {
                (Some(next), Some(at)) => Some(next.min(at)),
                (next, at) => next.or(at),
            };
            true
        });
        (asks, next)
    }

    /// Waits until something may be due earlier than [`Bell::due`] said.
    pub(crate) async fn rung(&self) {
        self.ring.notified().await;
    }
}

impl Drop for Wanting {
    fn drop(&mut self) {
        let mut wants = self.bell.wants();
        if let Some(want) = wants.get_mut(&self.cell) {
            want.count -= 1;
            if want.count == 0 && (want.settled || want.sent_at.is_none()) {
                wants.remove(&self.cell);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CELL: CellId = CellId::from_random([1; 16]);

    fn asks(bell: &Bell, now: Instant) -> usize {
        bell.due(now).0.len()
    }

    fn later(now: Instant, ms: u64) -> Instant {
        now + std::time::Duration::from_millis(ms)
    }

    #[test]
    fn many_who_want_ask_once_per_repeat_with_the_first_ones_cause_and_time() {
        let bell = Arc::new(Bell::default());
        let now = Instant::now();
        let wanting: Vec<Wanting> = (0..50)
            .map(|n| {
                bell.want(CELL, if n == 0 { WakeCause::Session } else { WakeCause::Bearer }, later(now, n))
            })
            .collect();
        let (first, next) = bell.due(later(now, 100));
        assert_eq!(first, [Ask { cell: CELL, cause: WakeCause::Session, asked_at: Some(now) }]);
        assert_eq!(next, Some(later(now, 2_100)));
        assert_eq!(asks(&bell, later(now, 2_099)), 0);
        let (again, _) = bell.due(later(now, 2_100));
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].asked_at, None);
        drop(wanting);
        assert_eq!(asks(&bell, later(now, 9_000)), 0);
    }

    #[test]
    fn those_who_come_and_go_do_not_ask_more_often() {
        let bell = Arc::new(Bell::default());
        let now = Instant::now();
        for step in 0..10 {
            let _wanting = bell.want(CELL, WakeCause::Session, now);
            assert_eq!(asks(&bell, later(now, step * 100)), usize::from(step == 0));
        }
    }

    #[test]
    fn a_cell_that_is_up_is_not_asked_for_by_those_still_leaving_and_is_at_once_when_down_again() {
        let bell = Arc::new(Bell::default());
        let now = Instant::now();
        let wanting = bell.want(CELL, WakeCause::Session, now);
        assert_eq!(asks(&bell, now), 1);
        bell.settle(CELL);
        assert_eq!(asks(&bell, later(now, 5_000)), 0);
        drop(wanting);
        let _again = bell.want(CELL, WakeCause::Session, now);
        assert_eq!(asks(&bell, later(now, 1)), 1);
        bell.rearm(CELL);
        assert_eq!(asks(&bell, later(now, 2)), 1);
        bell.rearm_all();
        assert_eq!(asks(&bell, later(now, 3)), 1);
    }
}
