//! Somebody wants the cell up: from when on, who waits for it, and who is told at once why it does not come.

use berth_shared::cell::{WakeCause, WakeRecord};
use berth_shared::door::WakeStage;
use berth_shared::problem::{Code, Problem};

use super::{Cell, Effect, Now, Phase, RESTART_MAX, START_TRIES_MAX, WAITERS_MAX, Waiter};

impl Cell {
    pub(super) fn wake(&mut self, now: Now, cause: WakeCause, waiter: Option<Waiter>, out: &mut Vec<Effect>) {
        if let Some(problem) = self.refusal_of_a_wake(now) {
            return self.refuse_wake(now, waiter, problem, out);
        }
        if let Some(waiter) = waiter {
            if matches!(self.phase, Phase::Running) {
                return out.push(Effect::Answer { waiter, result: Ok(()) });
            }
            if self.up_waiters.len() >= WAITERS_MAX {
                let problem = Problem::new(Code::WakeQueueFull, "too many callers wait for this cell");
                return out.push(Effect::Answer { waiter, result: Err(problem) });
            }
            self.up_waiters.push(waiter);
        } else {
            self.door_waits = true;
        }
        match self.phase {
            Phase::Running => {
                // The ingress missed the route, or lost it in a restart.
                self.door_waits = false;
                out.push(Effect::Route(self.route()));
            }
            Phase::Stopped | Phase::Archived | Phase::Cooling { again: false, .. } => {
                self.want(now, cause);
                self.queue(out);
            }
            Phase::Frozen => {
                self.want(now, cause);
                self.queue_thaw(out);
            }
            Phase::Resting { .. } => {
                self.want(now, cause);
                out.push(Effect::Progress(WakeStage::Finishing));
            }
            Phase::Unknown { .. } | Phase::Killing | Phase::Repairing | Phase::Archiving => {
                self.want(now, cause);
                out.push(Effect::Progress(WakeStage::Finishing));
            }
            Phase::Cooling { again: true, .. } | Phase::Queued | Phase::Starting(_) | Phase::Thawing(_) => {
                self.want(now, cause);
            }
            Phase::Failed | Phase::Removing | Phase::Gone => {}
        }
    }

    /// The first cause counts: it is what woke the cell.
    pub(super) fn want(&mut self, now: Now, cause: WakeCause) {
        if self.wanted.is_none() && self.bar().is_none() {
            self.wanted = Some(cause);
            self.wanted_since = now.boot;
            self.last_wake = Some(WakeRecord { cause, at: now.wall });
        }
    }

    fn refusal_of_a_wake(&self, now: Now) -> Option<Problem> {
        let stands = || {
            self.problem
                .clone()
                .unwrap_or_else(|| Problem::new(Code::CellExited, "the last start failed a moment ago"))
        };
        if let Some(bar) = self.bar() {
            return Some(bar.problem());
        }
        match self.phase {
            Phase::Failed => Some(stands()),
            // Tried again by itself, but not soon enough to be waited for.
            Phase::Cooling { until, again } if now.boot < until && (!again || self.is_often_tried()) => {
                Some(stands())
            }
            Phase::Removing | Phase::Gone => Some(Problem::new(Code::UnknownUser, "the user is removed")),
            _ if self.retired => Some(Problem::new(Code::UnknownUser, "the user is being removed")),
            Phase::Unknown { .. }
            | Phase::Cooling { .. }
            | Phase::Stopped
            | Phase::Archiving
            | Phase::Archived
            | Phase::Queued
            | Phase::Starting(_)
            | Phase::Running
            | Phase::Resting { .. }
            | Phase::Frozen
            | Phase::Thawing(_)
            | Phase::Killing
            | Phase::Repairing => None,
        }
    }

    /// Have so many starts in a row failed that callers are told so instead of waiting for the next?
    pub(super) const fn is_often_tried(&self) -> bool {
        self.start_tries >= START_TRIES_MAX
    }

    fn refuse_wake(&self, now: Now, waiter: Option<Waiter>, problem: Problem, out: &mut Vec<Effect>) {
        let retry_after = match (self.bar(), self.phase) {
            (Some(bar), _) => bar.retry_after(),
            (None, Phase::Cooling { until, .. }) => until.since(now.boot),
            (None, _) => RESTART_MAX,
        };
        match waiter {
            Some(waiter) => out.push(Effect::Answer { waiter, result: Err(problem) }),
            None => out.push(Effect::Refuse { problem, retry_after }),
        }
    }

    pub(super) fn answer_up(&mut self, result: &Result<(), Problem>, out: &mut Vec<Effect>) {
        for waiter in self.up_waiters.drain(..) {
            out.push(Effect::Answer { waiter, result: result.clone() });
        }
    }
}
