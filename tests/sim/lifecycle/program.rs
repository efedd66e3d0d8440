//! What the program in a container answers: is it ready, may it rest, and how it ends when it is told to.

use berth_node_agent_core::cell::{Outcome, Seen, SuspendAnswer};
use berth_node_agent_core::workload;
use berth_shared::problem::Code;
use berth_shared::time::Millis;

use crate::ops::{Running, failed};
use crate::plan::{At, MINUTE, SECOND};
use crate::world::{Happening, World};

/// The lease of a *prepare* (OPENCLAW.md, section 4).
const LEASE: At = 2 * MINUTE;

/// How long `docker stop` lets the program finish, and how long readiness is asked for.
const STOP_GRACE: At = 330 * SECOND;
const READY_MAX: At = 175 * SECOND;

impl World {
    pub(crate) fn suspend(&mut self, running: &Running, seen: &Seen) -> SuspendAnswer {
        if !workload::has_handshake(running.workload) {
            return workload::silent_consent();
        }
        let unclear = || SuspendAnswer::Unclear { detail: "no answer".to_owned() };
        if !matches!(seen, Seen::Running { .. }) {
            return unclear();
        }
        let now = self.at;
        let open = self.door.gates[running.cell].open.len();
        let odd = self.strikes(30);
        let short = self.strikes(self.plan.short_leases);
        let lease = if short { self.dice.between(5, 40) * SECOND } else { LEASE };
        let truth = &mut self.truths[running.cell];
        let liar = truth.temper.liar;
        let Some(container) = &mut truth.container else { return unclear() };
        if container.work.ready_at > now || container.work.draining || odd {
            return unclear();
        }
        if !liar && (container.work.busy_until > now || open > 0) {
            let retry_after = Some(Millis(20 * SECOND));
            return SuspendAnswer::Busy { blockers: "embedded-run".to_owned(), retry_after };
        }
        container.work.suspended = Some((running.op.0, now + lease));
        self.plan_work_after(running.cell, lease);
        SuspendAnswer::Ready { lease: Millis(lease) }
    }

    pub(crate) fn resume(&mut self, running: &Running, seen: &Seen) {
        if !matches!(seen, Seen::Running { .. }) {
            return;
        }
        // Named by the suspension that the driver knows, or by asking the same *prepare* again.
        let named = running.suspension.or(running.last_suspend);
        let Some(container) = &mut self.truths[running.cell].container else { return };
        if container.work.suspended.is_some_and(|(op, _)| Some(op) == named) {
            container.work.suspended = None;
        }
    }

    pub(crate) fn await_ready(&mut self, running: &Running, seen: &Seen) -> Option<Outcome> {
        match seen {
            Seen::Exited { code, .. } => return Some(Outcome::Ended { code: *code }),
            Seen::Absent => return Some(failed(Code::CellExited)),
            Seen::Running { .. } => {
                let ready_at = self.truths[running.cell].container.as_ref().map(|c| c.work.ready_at);
                if ready_at.is_some_and(|ready_at| ready_at <= self.at) {
                    return Some(Outcome::Ready);
                }
            }
            Seen::Paused { .. } | Seen::Between | Seen::Foreign { .. } => {}
        }
        (self.at >= running.asked_at + READY_MAX).then(|| failed(Code::ImageNeverReady))
    }

    pub(crate) fn stop(&mut self, id: usize, running: &Running) -> Option<Outcome> {
        let (now, cell) = (self.at, running.cell);
        if !running.signalled {
            self.running[id].signalled = true;
            self.check_stop(running);
            let work = &mut self.truths[cell].container.as_mut()?.work;
            work.draining = true;
            let run = self.truths[cell].run_number();
            self.later(100, Happening::Drain { cell, run, until: now + STOP_GRACE });
        }
        None
    }
}
