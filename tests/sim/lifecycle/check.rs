//! What must be true of the world, whatever the agent believes. Letters name the rules, see `main.rs`.

use berth_node_agent_core::cell::Verb;
use berth_shared::door::RouteState;

use crate::ops::Running;
use crate::plan::{At, MINUTE, SECOND};
use crate::world::World;

/// The front door may take this long to hear that a container has ended, while every report comes through.
const DEAD_ROUTE_MAX: At = 5 * SECOND;

/// Somebody begins to thaw a workload that was paused in the middle of something within this time, the longest wait
/// between two looks included, unless the agent is dead or hears nothing.
const CAUGHT_MAX: At = MINUTE;

/// So many operations on one cell within so long are a spin.
const PACE_MAX: usize = 60;
const PACE_SPAN: At = 15 * SECOND;

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
            || self.truths[cell]
                .container
                .as_ref()
                .is_some_and(|container| container.work.suspended.is_some_and(|(_, until)| until > begun))
    }

    /// An operation begins.
    pub(crate) fn check_begin(&mut self, running: &Running) {
        let (cell, verb) = (running.cell, running.verb);
        if let Some((id, until)) = self.truths[cell].operation {
            let before = &self.running[id];
            // These can be cut short by the container's end, which the engine reports.
            let cut_short = matches!(
                before.verb,
                Verb::AwaitReady | Verb::Observe | Verb::Resume | Verb::Unpause | Verb::Suspend
            ) && !self.truths[cell].is_up();
            // A push is worth nothing to a cell that is wanted up, or down; nor a look at one that was paused or ended by
            // somebody else; nor a pull to one that is to have another image, or to go.
            let cut_short = cut_short || matches!(before.verb, Verb::Push | Verb::Observe | Verb::Pull);
            if before.is_awaited(self.at, until) && !cut_short {
                let text = format!("cell {cell}: {verb:?} begins while {:?} is under way", before.verb);
                self.broken("a", &text);
            }
        }
        let truth = &self.truths[cell];
        if verb == Verb::Start
            && truth.is_up()
            && (!truth.looked || truth.told_up == Some(truth.run_number()))
        {
            self.broken("a", &format!("cell {cell} is started and it is up already"));
        }
    }

    /// Nobody asks the engine the same thing again and again without a pause.
    pub(crate) fn check_pace(&mut self, cell: usize) {
        let now = self.at;
        let pace = &mut self.truths[cell].pace;
        pace.push_back(now);
        if pace.len() > PACE_MAX && pace.pop_front().is_some_and(|first| now < first + PACE_SPAN) {
            self.broken(
                "h",
                &format!("more than {PACE_MAX} operations on cell {cell} within {PACE_SPAN} ms"),
            );
        }
    }

    /// A container is started: it writes the disk from here on.
    pub(crate) fn check_image(&mut self, cell: usize) {
        let truth = &mut self.truths[cell];
        let Some(image) = truth.container.as_ref().map(|container| container.image.clone()) else { return };
        let kept = std::mem::take(&mut truth.kept);
        let before = truth.written_by.replace(image.clone()).filter(|before| *before != image);
        if let Some(before) = before {
            self.count("images changed");
            if !kept {
                self.broken("k", &format!("cell {cell} goes from {before} to {image} without a snapshot"));
            }
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
            self.truths[cell].caught = true;
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
            self.watch_caught(cell, all_reports_come);
        }
    }

    fn watch_caught(&mut self, cell: usize, all_reports_come: bool) {
        let now = self.at;
        let under_way =
            self.truths[cell].operation.is_some_and(|(id, until)| self.running[id].is_awaited(now, until));
        let truth = &mut self.truths[cell];
        truth.caught &= truth.is_paused();
        if !truth.caught || under_way || !all_reports_come {
            truth.caught_since = None;
        } else if now > *truth.caught_since.get_or_insert(now) + CAUGHT_MAX {
            self.broken("b", &format!("cell {cell} stays paused in the middle of something"));
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
