//! What must be true of the world, whatever the agent believes. Letters name the rules, see `main.rs`.

use berth_node_agent_core::cell::Verb;
use berth_shared::door::RouteState;

use crate::ops::Running;
use crate::plan::{At, MINUTE, SECOND};
use crate::world::World;

/// The front door may take this long to hear that a container has ended, while every report comes through.
const DEAD_ROUTE_MAX: At = 5 * SECOND;

/// A workload that was paused in the middle of something goes on within this time, once no more faults come.
const CAUGHT_MAX: At = 20 * MINUTE;

impl World {
    /// What is under way in a cell, in words.
    fn under_way(&self, cell: usize) -> Option<String> {
        let truth = &self.truths[cell];
        let open = self.door.gates[cell].open.len();
        let busy = truth.container.as_ref().is_some_and(|container| container.work.busy_until > self.at);
        if open > 0 {
            Some(format!("{open} requests"))
        } else if busy && !truth.temper.liar && self.has_handshake(cell) {
            // A workload that says *ready* although it works, or that cannot say anything, has to live with it.
            Some("a turn of the workload".to_owned())
        } else {
            None
        }
    }

    fn has_handshake(&self, cell: usize) -> bool {
        self.workloads.get(cell).is_some_and(|kind| berth_node_agent_core::workload::has_handshake(*kind))
    }

    /// Had the workload said, when this operation began, that it may rest?
    fn consented_at(&self, cell: usize, begun: At) -> bool {
        !self.has_handshake(cell)
            || self.truths[cell].container.as_ref().is_some_and(|container| {
                container.work.suspended.is_some_and(|(_, until)| until > begun)
            })
    }

    /// An operation begins.
    pub(crate) fn check_begin(&mut self, running: &Running) {
        let (cell, verb) = (running.cell, running.verb);
        if let Some((id, until)) = self.truths[cell].operation {
            let before = &self.running[id];
            // These can be cut short by the container's end, which the engine reports.
            let cut_short = matches!(
                before.verb,
                Verb::AwaitReady | Verb::Resume | Verb::Unpause | Verb::Suspend
            ) && !self.truths[cell].is_up();
            if before.is_awaited(self.at, until) && !cut_short {
                let text = format!("cell {cell}: {verb:?} begins while {:?} is under way", before.verb);
                self.broken("a", &text);
            }
        }
        let truth = &self.truths[cell];
        if verb == Verb::Start && truth.is_up() && (!truth.looked || truth.told_up == Some(truth.run_number())) {
            self.broken("a", &format!("cell {cell} is started and it is up already"));
        }
    }

    /// A stop's first signal reaches the container.
    pub(crate) fn check_stop(&mut self, running: &Running) {
        let cell = running.cell;
        let late = self.is_late(running);
        if let Some(what) = self.under_way(cell)
            && !late
            && !self.truths[cell].retired
            && !(self.consented_at(cell, running.asked_at) && self.door.gates[cell].open.is_empty())
        {
            self.broken("b", &format!("cell {cell} is stopped in the middle of {what}"));
        }
    }

    /// A pause takes effect.
    pub(crate) fn check_pause(&mut self, running: &Running) {
        let cell = running.cell;
        let Some(what) = self.under_way(cell) else { return };
        // Nobody can call back a pause that the engine sat on until the consent was void. It has to be undone.
        if self.is_late(running) || (self.consented_at(cell, running.asked_at) && self.has_handshake(cell)) {
            self.note(|| format!("cell {cell} is paused too late, in the middle of {what}"));
            self.count("late pauses");
            self.truths[cell].caught_since = Some(self.at);
        } else {
            self.broken("b", &format!("cell {cell} is paused in the middle of {what}"));
        }
    }

    /// After every happening.
    pub(crate) fn watch(&mut self) {
        let all_reports_come = !self.engine_down
            && self.door.connection.is_some()
            && self.life.as_ref().is_some_and(|life| life.stream_up);
        for cell in 0..self.truths.len() {
            self.watch_route(cell, all_reports_come);
            let settled = self.plan.faults_until.max(self.truths[cell].caught_since.unwrap_or_default());
            if !self.truths[cell].is_paused() {
                self.truths[cell].caught_since = None;
            } else if self.truths[cell].caught_since.is_some() && self.at > settled + CAUGHT_MAX {
                self.broken("b", &format!("cell {cell} stays paused in the middle of something"));
            }
        }
    }

    fn watch_route(&mut self, cell: usize, all_reports_come: bool) {
        let believed_up = matches!(self.believed_route(cell), Some(RouteState::Up(_)));
        let truth = &mut self.truths[cell];
        if truth.runs() || !believed_up || !all_reports_come {
            truth.dead_route_since = None;
        } else {
            let since = *truth.dead_route_since.get_or_insert(self.at);
            if self.at > since + DEAD_ROUTE_MAX {
                self.broken("e", &format!("cell {cell} is up for the front door and does not run"));
            }
        }
    }
}
