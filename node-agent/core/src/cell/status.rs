//! What is told of a cell: to the coordinator, to operators, in metrics.

use berth_shared::cell::{BusyReason, CellState, CellStatus, IdleRest};
use berth_shared::time::UnixMs;

use super::{Cell, Now, Phase, Rest};

impl Cell {
    /// What it is doing, in one word.
    pub const fn state(&self) -> CellState {
        match self.phase {
            Phase::Unknown { .. } => CellState::Unknown,
            Phase::Stopped
            | Phase::Killing
            | Phase::Removing
            | Phase::Gone
            | Phase::Cooling { again: false, .. } => CellState::Stopped,
            Phase::Queued | Phase::Starting(_) | Phase::Repairing | Phase::Cooling { again: true, .. } => {
                CellState::Starting
            }
            Phase::Running => CellState::Running,
            Phase::Resting { rest: Rest::Frozen, .. } => CellState::Freezing,
            Phase::Resting { rest: Rest::Stopped, .. } => CellState::Stopping,
            Phase::Frozen => CellState::Frozen,
            Phase::Thawing(_) => CellState::Thawing,
            Phase::Failed => CellState::Failed,
        }
    }

    /// Everything that is told of it.
    pub fn status(&self, now: Now) -> CellStatus {
        CellStatus {
            cell: self.spec.cell,
            slug: self.spec.slug.clone(),
            generation: self.generation,
            state: self.state(),
            since: self.since,
            last_wake: self.last_wake,
            last_refusal: self.last_refusal.clone(),
            sleeps_at: self.sleeps_at(now),
            problem: self.problem.clone(),
            starts: self.starts,
            cpu_notice: self.cpu_notice,
        }
    }

    fn sleeps_at(&self, now: Now) -> Option<UnixMs> {
        matches!(self.phase, Phase::Running)
            .then(|| self.rest_due_at())
            .flatten()
            .map(|due| now.wall.after(due.since(now.boot)))
    }

    /// Why it is awake just now, if it is.
    pub fn busy_now(&self) -> Option<BusyReason> {
        if !matches!(self.phase, Phase::Running) {
            return None;
        }
        Some(if self.spec.rest.rest == IdleRest::AlwaysOn {
            BusyReason::AlwaysOn
        } else if self.open_requests > 0 {
            BusyReason::OpenRequests { count: self.open_requests }
        } else if let Some(reason) = self.dial_out_reason() {
            reason
        } else {
            BusyReason::Active
        })
    }
}
