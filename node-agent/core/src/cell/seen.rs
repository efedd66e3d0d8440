//! What the container engine shows, asked for or not, and what follows from it.

use berth_shared::cell::{CellState, IdleRest, WakeCause};
use berth_shared::problem::{Code, Problem};

use super::{Cell, Effect, Note, Now, Outcome, Phase, RestStep, Seen};

impl Cell {
    /// A look ended.
    pub(super) fn looked(&mut self, now: Now, outcome: Outcome, random: u64, out: &mut Vec<Effect>) {
        match outcome {
            Outcome::Looked(Seen::Between) | Outcome::Failed(_) => {
                if let Outcome::Failed(problem) = outcome {
                    self.problem = Some(problem);
                }
                self.phase = Phase::Unknown { look_at: now.boot.after(self.look_backoff.next(random)) };
            }
            Outcome::Looked(seen) => {
                self.look_backoff.reset();
                if matches!(&self.problem, Some(problem) if problem.code == Code::DockerDown) {
                    self.problem = None;
                }
                self.settle(now, seen, random, out);
            }
            _ => self.phase = Phase::Unknown { look_at: now.boot },
        }
    }

    /// Nothing is under way and this is there: go on from here.
    fn settle(&mut self, now: Now, seen: Seen, random: u64, out: &mut Vec<Effect>) {
        match seen {
            Seen::Running { address, fits } => {
                self.container_fits = Some(fits);
                self.address = Some(address);
                self.goes_on_from_disk();
                if self.bar().is_some() {
                    return self.stop_for_good(now, out);
                }
                if self.wanted.is_none() {
                    self.want(now, WakeCause::Adopted);
                }
                self.resume(now, out);
            }
            Seen::Paused { address, fits } => {
                self.container_fits = Some(fits);
                self.address = Some(address);
                self.goes_on_from_disk();
                self.paused(now, out);
            }
            Seen::Absent => {
                self.container_fits = None;
                self.ended(now, None, random, out);
            }
            Seen::Exited { fits, code } => {
                self.container_fits = Some(fits);
                self.ended(now, Some(code), random, out);
            }
            // There is nothing of ours to be removed.
            Seen::Foreign { .. } if self.retired => self.phase = Phase::Gone,
            Seen::Foreign { detail } => self.give_up(now, Problem::new(Code::NotOurs, detail), out),
            Seen::Between => self.phase = Phase::Unknown { look_at: now.boot },
        }
    }

    /// It does not run. Was that meant to be?
    fn ended(&mut self, now: Now, code: Option<i64>, random: u64, out: &mut Vec<Effect>) {
        if let Some(problem) = self.pending_failure.take()
            && !self.retired
        {
            return self.start_failed(now, problem, random, out);
        }
        if self.was_up
            && self.wanted.is_none()
            && let Some(code) = code
        {
            // It ended while nobody was looking: the same as if it had ended under our eyes.
            return self.died(now, code, random, out);
        }
        self.stopped(now, out);
    }

    /// Was something else than a running container reported while the last step to *up* was under way?
    pub(super) fn is_doubted(&self) -> bool {
        self.noticed.as_ref().is_some_and(|seen| !matches!(seen, Seen::Running { .. }))
    }

    /// The container engine reported something unasked: an event, or a look of its own by the driver.
    pub(super) fn noticed(&mut self, now: Now, seen: Seen, random: u64, out: &mut Vec<Effect>) {
        let looked_at = matches!(self.phase, Phase::Resting { step: RestStep::Observing, .. });
        if looked_at && !matches!(seen, Seen::Running { .. } | Seen::Between) {
            // Requests go in still, so nobody waits for the look's own report.
            self.operation = None;
            if matches!(seen, Seen::Exited { .. }) && self.restart_wanted {
                return self.stopped(now, out);
            }
            self.phase = Phase::Running;
        }
        let expected = match (&self.phase, &seen) {
            // While an operation is under way, its own result tells, and this may be older than what that has done. It
            // is kept: before the cell counts as up or frozen it is looked at again.
            (
                Phase::Unknown { .. }
                | Phase::Starting(_)
                | Phase::Resting { .. }
                | Phase::Thawing(_)
                | Phase::Killing
                | Phase::Repairing
                | Phase::Archiving
                | Phase::Removing
                | Phase::Gone,
                _,
            ) => {
                self.noticed = Some(seen);
                return;
            }
            (_, Seen::Between) => true,
            (Phase::Running, Seen::Running { address, .. }) => Some(*address) == self.address,
            (Phase::Frozen, Seen::Paused { .. }) => true,
            (
                Phase::Stopped | Phase::Archived | Phase::Queued | Phase::Cooling { .. } | Phase::Failed,
                Seen::Exited { .. } | Seen::Absent | Seen::Foreign { .. },
            ) => true,
            (Phase::Running, Seen::Exited { code, .. }) => {
                let code = *code;
                return self.died(now, code, random, out);
            }
            (
                Phase::Running
                | Phase::Frozen
                | Phase::Stopped
                | Phase::Archived
                | Phase::Queued
                | Phase::Cooling { .. }
                | Phase::Failed,
                _,
            ) => false,
        };
        if expected {
            return;
        }
        out.push(Effect::Note(Note::Surprised { believed: self.state() }));
        let always_on = self.spec.rest.rest == IdleRest::AlwaysOn;
        if matches!(self.phase, Phase::Running) && always_on {
            self.want(now, WakeCause::Recovery);
        }
        if self.state() == CellState::Frozen {
            // Somebody thawed or killed it behind our back: its consent to rest is void.
            self.consent_until = None;
        }
        self.look(now, out);
    }
}
