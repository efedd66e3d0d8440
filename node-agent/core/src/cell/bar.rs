//! What bars a cell although its user lives here: the end of the node's lease, and a quarantine. It is stopped like one
//! whose user left, its container and data stay, and nothing brings it up before the bar is lifted.
//!
//! There is no handshake: its answer could not change anything. At the lease's end work under way may finish, as far as
//! the workload's own drain at a stop gives it time, and the coordinator's margin covers that; a quarantined cell is cut
//! off by the packet rules meanwhile. A frozen cell is killed frozen.

use berth_shared::cell::{IdleRest, WakeCause};
use berth_shared::door::RouteState;
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;

use super::{Cell, Effect, Now, Phase, ThawStep};

/// What keeps a cell down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bar {
    /// The node may not work alone any longer.
    Lease,
    /// An operator has cut it off.
    Quarantine,
}

impl Bar {
    pub(super) fn problem(self) -> Problem {
        match self {
            Self::Lease => Problem::new(
                Code::LeaseEnded,
                "the node has not heard its coordinator for as long as it may work alone",
            ),
            Self::Quarantine => Problem::new(Code::Quarantined, "the cell is quarantined by an operator"),
        }
    }

    /// When callers are told to try again. A node that can reach its coordinator dials at least so often; a quarantine
    /// is ended by a person.
    pub(super) const fn retry_after(self) -> Millis {
        match self {
            Self::Lease => berth_shared::link::REDIAL_MAX,
            Self::Quarantine => Millis::minutes(5),
        }
    }
}

impl Cell {
    /// A cell of a node whose lease is held, or is over already.
    #[must_use]
    pub fn under_lease(mut self, held: bool) -> Self {
        self.leaseless = !held;
        if self.bar().is_some() {
            self.owed = self.wanted.take();
        }
        self
    }

    /// What keeps it down, where that is not that its user left.
    pub(super) const fn bar(&self) -> Option<Bar> {
        if self.retired {
            None
        } else if self.spec.quarantined {
            Some(Bar::Quarantine)
        } else if self.leaseless {
            Some(Bar::Lease)
        } else {
            None
        }
    }

    /// Wherever it comes up, it is stopped at once.
    pub(super) const fn must_stay_down(&self) -> bool {
        self.retired || self.bar().is_some()
    }

    pub(super) fn lease(&mut self, now: Now, held: bool, out: &mut Vec<Effect>) {
        let before = self.bar();
        self.leaseless = !held;
        self.bar_changed(now, before, out);
    }

    /// To be called behind everything that may bar the cell or lift a bar.
    pub(super) fn bar_changed(&mut self, now: Now, before: Option<Bar>, out: &mut Vec<Effect>) {
        match (before, self.bar()) {
            (None, Some(bar)) => self.barred(now, bar, out),
            (Some(_), None) if !self.retired => self.bar_lifted(now, out),
            (None | Some(_), None) | (Some(_), Some(_)) => {}
        }
    }

    fn barred(&mut self, now: Now, bar: Bar, out: &mut Vec<Effect>) {
        // Whoever is new has not had the start that nobody asks for again.
        self.owed = self.wanted.filter(|cause| *cause == WakeCause::Created);
        self.refuse_all(&bar.problem(), bar.retry_after(), out);
        match self.phase {
            Phase::Running => self.stop_for_good(now, out),
            Phase::Frozen | Phase::Thawing(ThawStep::Queued) => self.kill_frozen(now, out),
            Phase::Queued | Phase::Cooling { .. } => self.stopped(now, out),
            // Those on their way end in `stopped`, `up`, `frozen` or a look, which all ask whether it must stay down.
            Phase::Unknown { .. }
            | Phase::Stopped
            | Phase::Archiving
            | Phase::Archived
            | Phase::Starting(_)
            | Phase::Resting { .. }
            | Phase::Thawing(_)
            | Phase::Killing
            | Phase::Repairing
            | Phase::Failed
            | Phase::Removing
            | Phase::Gone => {}
        }
    }

    fn bar_lifted(&mut self, now: Now, out: &mut Vec<Effect>) {
        let always_on = self.spec.rest.rest == IdleRest::AlwaysOn;
        let Some(cause) = self.owed.take().or(always_on.then_some(WakeCause::Recovery)) else { return };
        match self.phase {
            Phase::Stopped | Phase::Archived => {
                self.want(now, cause);
                self.queue(out);
            }
            Phase::Unknown { .. }
            | Phase::Archiving
            | Phase::Queued
            | Phase::Starting(_)
            | Phase::Resting { .. }
            | Phase::Thawing(_)
            | Phase::Killing
            | Phase::Repairing
            | Phase::Cooling { .. } => self.want(now, cause),
            Phase::Running | Phase::Frozen | Phase::Failed | Phase::Removing | Phase::Gone => {}
        }
    }

    /// Whoever comes from now on is held, and told why by a refused wake; who is in may finish.
    pub(super) fn shut_the_door(&mut self, out: &mut Vec<Effect>) {
        self.shown_route = RouteState::Down;
        out.push(Effect::Route(self.shown_route));
    }
}
