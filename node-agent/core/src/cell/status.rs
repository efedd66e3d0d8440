//! What is told of a cell: to the agent's machine, to the coordinator, to the ingress, to operators, in metrics.

use std::net::SocketAddr;

use berth_shared::cell::{BusyReason, CellEvent, CellSpec, CellState, CellStatus, IdleRest, SleepStatus};
use berth_shared::door::{Route, RouteState};
use berth_shared::ids::Generation;
use berth_shared::time::UnixMs;

use super::{Cell, Data, Now, Phase, Rest, RestStep, StartStep};

impl Cell {
    /// What it runs.
    pub const fn spec(&self) -> &CellSpec {
        &self.spec
    }

    /// Under which assignment.
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// Where it answers, or would if it ran.
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Number of its newest operation.
    pub const fn last_op(&self) -> u64 {
        self.last_op.0
    }

    /// Does it wait for a start permit? One whose data may be elsewhere waits for the coordinator's word on that first.
    pub const fn waits_for_permit(&self) -> bool {
        matches!(self.phase, Phase::Queued) && !matches!(self.data, Data::Unknown)
    }

    /// Does it hold a start permit? Not while its data or its image is fetched, or its data is kept: that takes little CPU, and
    /// may take long, or never come to an end where whoever it comes from does not answer.
    pub const fn holds_permit(&self) -> bool {
        match self.phase {
            Phase::Starting(step) => {
                !matches!(step, StartStep::Restoring | StartStep::Saving | StartStep::Pulling)
            }
            phase => matches!(phase, Phase::Repairing),
        }
    }

    /// Does its user live here no more? Then it is on its way out, and nobody is let in.
    pub const fn is_retired(&self) -> bool {
        self.retired
    }

    /// Is everything of it gone, after it was retired?
    pub const fn is_gone(&self) -> bool {
        matches!(self.phase, Phase::Gone)
    }

    /// Can requests go in?
    pub const fn route(&self) -> RouteState {
        match (self.phase, self.address) {
            (Phase::Running | Phase::Resting { step: RestStep::Observing, .. }, Some(address)) => {
                RouteState::Up(address)
            }
            (Phase::Frozen | Phase::Thawing(_), Some(address)) => RouteState::Frozen(address),
            _ => RouteState::Down,
        }
    }

    /// What the ingress knows of it: its row of the table of routes.
    pub fn table_row(&self) -> Route {
        Route {
            slug: self.spec.slug.clone(),
            cell: self.spec.cell,
            user: self.spec.user,
            workload: self.spec.workload,
            bearers: self.spec.bearers.clone(),
            sessions_valid_from: self.spec.sessions_valid_from,
            state: self.route(),
        }
    }

    /// What it is doing, in one word.
    pub const fn state(&self) -> CellState {
        match self.phase {
            Phase::Unknown { .. } => CellState::Unknown,
            Phase::Archiving | Phase::Archived => CellState::Archived,
            Phase::Cooling { again: false, .. } if self.archived_in().is_some() => CellState::Archived,
            Phase::Stopped
            | Phase::Killing
            | Phase::Removing
            | Phase::Gone
            | Phase::Cooling { again: false, .. } => CellState::Stopped,
            Phase::Starting(StartStep::Restoring) => CellState::Restoring,
            Phase::Queued | Phase::Starting(_) | Phase::Repairing | Phase::Cooling { again: true, .. } => {
                CellState::Starting
            }
            Phase::Running => CellState::Running,
            Phase::Resting { step: RestStep::Observing, .. } => CellState::Running,
            Phase::Resting { rest: Rest::Frozen, .. } => CellState::Freezing,
            Phase::Resting { rest: Rest::Stopped, .. } => CellState::Stopping,
            Phase::Frozen => CellState::Frozen,
            Phase::Thawing(_) => CellState::Thawing,
            Phase::Failed => CellState::Failed,
        }
    }

    /// Is it up, as far as is known, or on its way down with its processes still running?
    pub const fn runs(&self) -> bool {
        matches!(self.state(), CellState::Running | CellState::Freezing | CellState::Stopping)
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
        let due = matches!(self.phase, Phase::Running).then(|| self.rest_due_at()).flatten();
        due.map(|due| now.wall.after(due.since(now.boot)))
    }

    /// What is told of its sleep.
    pub fn sleep_status(&self, now: Now) -> SleepStatus {
        SleepStatus {
            cell: self.spec.cell,
            awake_because: self.busy_now(now),
            wakes_at: self.next_wake(now),
            stops_at: self.leaves_at().map(|due| now.wall.after(due.since(now.boot))),
            resident: self.resident,
            swapped: self.newest_push().map(|push| push.swapped),
            stopped_because: self.stopped_because.clone(),
            open_sockets: self.open_sockets,
            events: self.events.clone(),
        }
    }

    /// What its user should know, oldest first, at most [`berth_shared::cell::CELL_EVENTS_MAX`].
    pub fn events(&self) -> &[CellEvent] {
        &self.events
    }

    /// Why it is awake just now, if it is.
    pub(super) fn busy_now(&self, now: Now) -> Option<BusyReason> {
        if !matches!(self.phase, Phase::Running) {
            return None;
        }
        let refused_lately = || {
            let record = self.last_refusal.as_ref()?;
            (self.rest_not_before > now.boot || self.is_hold_told()).then(|| record.reason.clone())
        };
        let is_quiet = now.boot.since(self.last_active) >= self.idle_after();
        Some(if self.spec.rest.rest == IdleRest::AlwaysOn {
            BusyReason::AlwaysOn
        } else if let Some(hold) = self.hold(now) {
            hold
        } else if self.open_requests > 0 {
            BusyReason::OpenRequests { count: self.open_requests }
        } else if let Some(reason) = self.dial_out_reason() {
            reason
        } else if let Some(reason) = refused_lately().filter(|_| is_quiet) {
            reason
        } else {
            BusyReason::Active
        })
    }
}
