//! What must be true of the world, whatever the agent believes. Letters name the rules, see `main.rs`.

use berth_node_agent_core::cell::{FLAP_SPAN, Leave, THAW_TURN, Verb};
use berth_node_agent_core::front::{self, Kind};
use berth_node_agent_core::schedule::crowd::AHEAD_MAX;
use berth_node_agent_core::schedule::{BOOT_MARGIN, BOOT_MAX};
use berth_node_agent_core::swap::Limits;
use berth_shared::cell::{CellState, IdleRest, WakeCause};
use berth_shared::units::Bytes;
use berth_shared::wire::CommandVerb;

use crate::jobs::Job;
use crate::ops::Running;
use crate::plan::{At, HOUR, MINUTE, SECOND, cell_id};
use crate::truth::{Run, Truth};
use crate::world::{Happening, World};

/// How late a job may begin that was due while its cell rested, and behind an outage (with each job that was missed).
const LATE_MAX: At = 30 * SECOND;
const LATE_MISSED_MAX: At = 150 * SECOND;
const LATE_EACH: At = 5 * SECOND;

/// A cell that nobody uses rests after the longest damped quiet time, and the longest wait between two tries.
const AWAKE_MAX: At = 100 * MINUTE;

/// Cells with jobs this near in time are woken one ahead of the other.
const CROWD: At = 20 * MINUTE;

/// So many operations on one cell within so long are a spin.
const PACE_MAX: usize = 60;
const PACE_SPAN: At = 15 * SECOND;

/// So often may a cell be woken a moment after it fell asleep, within an hour.
const FLAPS_MAX: usize = 6;

/// The longest wait for a start, with other starts hanging.
const QUEUE_MAX: At = 2 * HOUR;

/// What an operator ordered may take so long to be done.
const ORDER: At = 10 * MINUTE;

impl World {
    /// What has just happened to a cell excuses delays for so long.
    pub(crate) fn excuse_cell(&mut self, cell: usize, span: At) {
        let watch = &mut self.cells[cell].watch;
        watch.excuse = watch.excuse.max(self.at + span);
    }

    pub(crate) fn excuse_node(&mut self, span: At) {
        self.excuse = self.excuse.max(self.at + span);
    }

    fn excuse_of(&self, cell: usize) -> At {
        self.cells[cell].watch.excuse.max(self.excuse)
    }

    /// Has anything happened since then that excuses a delay of this cell?
    pub(crate) fn excused(&self, cell: usize, since: At) -> bool {
        self.excuse_of(cell) >= since
    }

    pub(crate) fn used(&mut self, cell: usize, until: At) {
        let watch = &mut self.cells[cell].watch;
        watch.used_at = watch.used_at.max(until);
    }

    fn ordered(&self, cell: usize) -> bool {
        self.cells[cell].watch.ordered_at.is_some_and(|at| self.at < at + ORDER)
    }

    /// What is under way in a cell, in words.
    fn under_way(&self, cell: usize) -> Option<&'static str> {
        let (now, truth) = (self.at, &self.cells[cell]);
        let (since, until) = truth.work.hidden;
        if !truth.gate.open.is_empty() {
            Some("a request")
        } else if truth.work.busy_until > now {
            Some("a turn")
        } else if now < until && since <= truth.watch.observed_at && !truth.watch.restart {
            Some("work that it does not own up to, and that could be seen")
        } else {
            None
        }
    }

    /// Had the workload said, when this operation began, that it may rest?
    fn consented_at(&self, cell: usize, begun: At) -> bool {
        self.cells[cell].work.suspended.is_some_and(|(_, until)| until > begun)
    }

    fn check_held(&mut self, cell: usize, begun: At) {
        let watch = &self.cells[cell].watch;
        let held = watch.held_since < begun && watch.held_until > self.at + 2 * SECOND;
        if held && !self.ordered(cell) && !self.excused(cell, self.at) {
            self.broken("m", &format!("cell {cell} is put to rest while an operator holds it awake"));
        }
    }

    /// A pause takes effect.
    pub(crate) fn check_rest(&mut self, running: &Running) {
        let cell = running.cell;
        let late = self.is_late(running);
        let consent = self.cells[cell].work.is_suspended(self.at);
        if !late {
            self.check_held(cell, running.asked_at);
        }
        if late || !consent {
            self.count("late pauses");
            self.cells[cell].watch.caught = self.under_way(cell).is_some();
        }
        let Some(what) = self.under_way(cell) else { return };
        // Nobody can call back a pause that the engine sat on until the consent was void. It has to be undone.
        if !late && !self.consented_at(cell, running.asked_at) || consent {
            self.broken("b", &format!("cell {cell} is paused in the middle of {what}"));
        }
    }

    /// A stop's first signal reaches the container.
    pub(crate) fn check_stop(&mut self, running: &Running) {
        let cell = running.cell;
        if self.is_late(running) {
            return;
        }
        self.check_held(cell, running.asked_at);
        if let Some(what) = self.under_way(cell)
            && !(self.consented_at(cell, running.asked_at) && self.cells[cell].gate.open.is_empty())
        {
            self.broken("b", &format!("cell {cell} is stopped in the middle of {what}"));
        }
        if self.cells[cell].watch.thawed_at.is_some() && !self.excused(cell, self.at) {
            self.broken("g", &format!("cell {cell} was thawed and is stopped"));
        }
    }

    /// A frozen container is killed.
    pub(crate) fn check_kill(&mut self, running: &Running) {
        let cell = running.cell;
        let truth = &self.cells[cell];
        if truth.watch.caught && !self.is_late(running) {
            self.broken("b", &format!("cell {cell} is killed in the middle of something"));
        }
    }

    /// An operation begins.
    pub(crate) fn check_turns(&mut self, cell: usize, verb: Verb) {
        let now = self.at;
        if verb == Verb::Unpause {
            let thaws = |other: &usize| {
                let turn = self.cells[*other].watch.thaw_turn;
                *other != cell && turn.is_some_and(|since| now < since + THAW_TURN.0)
            };
            if let Some(other) = (0..self.cells.len()).find(thaws) {
                self.broken("j", &format!("cells {other} and {cell} are thawed at a time"));
            }
            self.cells[cell].watch.thaw_turn = Some(now);
        }
        if matches!(verb, Verb::Create | Verb::Start | Verb::Repair) {
            let begun = |running: &&Running| {
                running.life == self.lives
                    && running.cell != cell
                    && matches!(running.verb, Verb::Create | Verb::Start | Verb::Repair)
                    && now < running.asked_at + running.verb.limit().0
                    && self.cells[running.cell].operation.is_some_and(|id| self.ops.contains_key(&id))
            };
            let count = 1 + self.ops.values().filter(begun).count();
            if count > self.plan.starts_max {
                self.broken("j", &format!("{count} cells start, {} may", self.plan.starts_max));
            }
        }
    }

    /// Nobody asks the engine the same thing again and again without a pause.
    pub(crate) fn check_pace(&mut self, cell: usize) {
        let now = self.at;
        let pace = &mut self.cells[cell].watch.pace;
        pace.push_back(now);
        if pace.len() > PACE_MAX && pace.pop_front().is_some_and(|first| now < first + PACE_SPAN) {
            self.broken(
                "h",
                &format!("more than {PACE_MAX} operations on cell {cell} within {PACE_SPAN} ms"),
            );
        }
    }

    /// Until when a job may begin that is due since then.
    fn late_bound(&self, cell: usize, since: At) -> At {
        let excuse = self.excuse_of(cell);
        if excuse + 10 * MINUTE >= since {
            let jobs = self.cells[cell].jobs.all.len() as u64;
            // A while of its own for each of those that came first in the queue of starts.
            let queue = 60 * SECOND;
            since.max(excuse) + LATE_MISSED_MAX + LATE_EACH * jobs + queue
        } else {
            since + LATE_MAX
        }
    }

    /// A job begins.
    pub(crate) fn check_late(&mut self, cell: usize, job: &Job) {
        let Some(since) = job.due_since.filter(|_| job.waits()) else { return };
        if self.at > self.late_bound(cell, since) {
            let late = (self.at - since) / SECOND;
            self.broken("c", &format!("a job of cell {cell} begins {late} s late"));
        }
    }

    /// What is promised to cells that are being frozen is there, the reserve aside: what they truly hold.
    pub(crate) fn check_promises(&mut self) {
        let Some(life) = &self.life else { return };
        let mut promised = Bytes::ZERO;
        for (cell, truth) in self.cells.iter().enumerate() {
            let Some(believed) = life.agent.cell(cell_id(cell)) else { continue };
            let is_frozen = believed.state() == CellState::Frozen;
            if believed.swap_promised() > Bytes::ZERO && !(is_frozen && truth.swapped > Bytes::ZERO) {
                promised = promised.saturating_add(truth.resident);
            }
        }
        let grown = promised > self.promised;
        self.promised = promised;
        let reserve = self.swap.total.0 / 100 * u64::from(Limits::default().reserve_percent);
        let room = self.swap.free().saturating_sub(Bytes(reserve));
        let room = room.saturating_add(self.swap.thinned_of_late(self.at));
        let taken = self.swap.taken_at + 5 * MINUTE > self.at && self.swap.taken_at > 0;
        if grown && promised > room && !taken {
            self.broken("k", &format!("{promised} of swap are promised, and there is room for {room}"));
        }
    }

    /// A push finds room.
    pub(crate) fn check_room(&mut self, running: &Running, needed: Bytes) {
        let taken = self.swap.taken_at + 5 * MINUTE > self.at && self.swap.taken_at > 0;
        let free = self.swap.free().saturating_add(self.swap.thinned_of_late(self.at));
        if needed > free && !taken && !self.is_late(running) {
            let text = format!(
                "cell {} is frozen with {needed} and {} of swap are free",
                running.cell,
                self.swap.free()
            );
            self.broken("k", &text);
        }
    }

    /// A frozen cell leaves swap.
    pub(crate) fn check_leave(&mut self, cell: usize, why: Leave) {
        let Some(life) = &self.life else { return };
        let truth = &self.cells[cell];
        let Some(frozen_at) = truth.watch.frozen_at else { return };
        match why {
            Leave::Long => {
                if self.at < frozen_at + self.terms[cell].stop_after.0 && !self.coordinator_away {
                    self.broken("l", &format!("cell {cell} leaves swap before its time"));
                }
            }
            Leave::OutOfDate => {
                let wanted = life.agent.cell(cell_id(cell)).map(|believed| believed.spec().image.clone());
                if wanted.as_ref() == Some(&truth.image) && !self.excused(cell, self.at) {
                    self.broken("l", &format!("cell {cell} leaves swap as out of date, and is not"));
                }
            }
            Leave::SwapShort => {
                let open = |truth: &Truth| truth.tabs.iter().any(|tab| tab.socket.is_some());
                let key = (open(truth), frozen_at);
                // Who was frozen when an agent that died, or the engine's silence, hid it from this one counts from then on.
                let known = |number: usize| {
                    let since = life.agent.cell(cell_id(number))?.frozen_since()?;
                    let (since, truly) = (since.0 + self.boot_base, self.cells[number].watch.frozen_at?);
                    (since < truly + 3 * MINUTE).then_some(truly)
                };
                let first = (0..self.cells.len()).find(|other| {
                    let truth = &self.cells[*other];
                    let mut jobs = truth.jobs.all.iter().filter(|job| job.waits());
                    let is_due = jobs.any(|job| job.next.since(self.now().wall).0 < 10 * MINUTE);
                    let is_told = !truth.gate.unreported && !self.cells[cell].gate.unreported;
                    let earlier = known(*other).is_some_and(|at| (open(truth), at + 3 * MINUTE) < key);
                    // One that could not be ended is left alone for a while.
                    let is_stuck = self.excused(*other, self.at);
                    earlier && is_told && !is_due && !is_stuck && known(cell).is_some()
                });
                let fill = self.swap.fill_percent();
                if let Some(first) = first {
                    self.broken("l", &format!("cell {cell} leaves swap before cell {first}"));
                } else if fill < 74 {
                    self.broken("l", &format!("cell {cell} leaves swap, which is filled to {fill} %"));
                }
            }
        }
    }

    /// A wake begins. Did anybody who may want it?
    pub(crate) fn check_reason(&mut self, cell: usize, cause: WakeCause) {
        let (now, wall) = (self.at, self.now().wall);
        let truth = &self.cells[cell];
        match cause {
            WakeCause::Session | WakeCause::Bearer | WakeCause::Operator => {
                let typed = truth
                    .tabs
                    .iter()
                    .filter_map(|tab| tab.socket.as_ref())
                    .any(|socket| !socket.typed.is_empty());
                if !typed
                    && truth.gate.held.is_empty()
                    && now > truth.watch.reason_at + 7 * MINUTE
                    && !self.excused(cell, now)
                {
                    self.broken("n", &format!("cell {cell} is woken for nobody, as {}", cause.as_str()));
                }
            }
            WakeCause::Schedule => {
                // Ahead of others, too, where there are others.
                let due_too = |other: &Truth| {
                    other.jobs.all.iter().any(|job| job.waits() && job.next.since(wall).0 <= CROWD)
                };
                let crowd = self.cells.iter().filter(|other| due_too(other)).count() > 1;
                let ahead = if crowd { AHEAD_MAX.0 } else { 0 };
                let soon = BOOT_MAX.0 + BOOT_MARGIN.0 + ahead;
                let due =
                    truth.jobs.all.iter().any(|job| {
                        job.waits() && (job.due_since.is_some() || job.next.since(wall).0 <= soon)
                    });
                if !due && truth.jobs.told == truth.jobs.version && !self.excused(cell, now) {
                    self.broken("n", &format!("cell {cell} is woken for its schedule, and nothing is due"));
                }
            }
            WakeCause::Recovery => {
                let meant = truth.watch.ends_as_meant && matches!(truth.run, Run::Exited { .. });
                if meant && !self.stays_on(cell) {
                    self.broken("n", &format!("cell {cell} is started again, and it had ended at rest"));
                }
            }
            WakeCause::Created | WakeCause::Adopted | WakeCause::TurnedRound => {}
        }
        // What follows from this wake is about this one.
        self.cells[cell].watch.ends_as_meant = false;
        let soon = truth_rested(self.cells[cell].watch.rested_at, now);
        if soon && matches!(cause, WakeCause::Session | WakeCause::Bearer) {
            self.cells[cell].watch.flaps.push_back(now);
        }
    }

    /// It came up. How often of late a moment after it had fallen asleep?
    pub(crate) fn check_flap(&mut self, cell: usize, _cause: WakeCause) {
        let now = self.at;
        let watch = &mut self.cells[cell].watch;
        watch.flaps.retain(|at| now < at + HOUR);
        watch.rested_at = None;
        let (often, quick) = (watch.flaps.len(), self.wanted[cell].spec.rest.idle_after.0 < 4 * MINUTE);
        if often > FLAPS_MAX && !quick && !self.ordered(cell) && !self.excused(cell, now) {
            self.broken(
                "m",
                &format!("cell {cell} was woken {often} times within an hour a moment after it fell asleep"),
            );
        }
    }

    /// A request was held in vain.
    pub(crate) fn check_timed_out(&mut self, cell: usize, kind: Kind, came_at: At) {
        if front::may_wake_stopped(kind) && !self.excused(cell, came_at) && !self.queue_is_long() {
            self.broken("a", &format!("a request for cell {cell} is not served in fair time"));
        }
    }

    pub(crate) fn check_refused(&mut self, cell: usize, came_at: At) {
        if !self.excused(cell, came_at) && self.believed(cell) != Some(CellState::Failed) {
            self.broken("a", &format!("a request for cell {cell} is refused in fair time"));
        }
    }

    fn queue_is_long(&self) -> bool {
        let waits =
            |life: &crate::driver::Life| life.agent.cells().filter(|cell| cell.waits_for_permit()).count();
        self.life.as_ref().is_none_or(|life| waits(life) > 0)
    }

    pub(crate) fn believed(&self, cell: usize) -> Option<CellState> {
        self.life.as_ref()?.agent.cell(cell_id(cell)).map(|believed| believed.state())
    }

    /// Once a minute: what should have happened and has not.
    pub(crate) fn audit(&mut self) {
        self.later(MINUTE, Happening::Audit);
        let now = self.at;
        if let Some((seq, at)) = self.commands.oldest()
            && now > at + 2 * HOUR
        {
            self.broken("f", &format!("command {seq} is not answered"));
        }
        let Some(began) = self.life.as_ref().map(|life| life.began) else { return };
        for cell in 0..self.cells.len() {
            let believed = self.believed(cell);
            if believed == Some(CellState::Failed) {
                // It needs an operator.
                self.excuse_cell(cell, 10 * MINUTE);
                self.order(cell, CommandVerb::Restart);
                continue;
            }
            self.audit_queue(cell);
            self.audit_jobs(cell);
            self.audit_pause(cell, believed);
            self.audit_frozen(cell, began);
            self.audit_awake(cell);
            self.audit_typed(cell);
        }
    }

    /// A create that hangs keeps its permit for as long as it takes to pull an image; nobody waits for ever.
    fn audit_queue(&mut self, cell: usize) {
        let now = self.at;
        let believed = self.life.as_ref().and_then(|life| life.agent.cell(cell_id(cell)));
        if !believed.is_some_and(berth_node_agent_core::cell::Cell::waits_for_permit) {
            self.cells[cell].watch.queued_since = None;
            return;
        }
        let since = *self.cells[cell].watch.queued_since.get_or_insert(now);
        self.excuse_cell(cell, 3 * MINUTE);
        if now > since + QUEUE_MAX {
            self.broken("j", &format!("cell {cell} waits for a start and gets none"));
        }
    }

    fn audit_jobs(&mut self, cell: usize) {
        for index in 0..self.cells[cell].jobs.all.len() {
            let job = self.cells[cell].jobs.all[index];
            let told = self.cells[cell].jobs.told > 0;
            if let Some(since) = job.due_since.filter(|_| job.waits() && told)
                && self.at > self.late_bound(cell, since) + MINUTE
            {
                let late = (self.at - since) / SECOND;
                self.broken("c", &format!("a job of cell {cell} is due since {late} s and does not run"));
            }
        }
    }

    fn audit_pause(&mut self, cell: usize, believed: Option<CellState>) {
        let now = self.at;
        let unfit = self.cells[cell].watch.caught
            || matches!(believed, Some(CellState::Running | CellState::Stopped | CellState::Starting));
        let idle = self.cells[cell].operation.is_none();
        let engine_down = self.engine_down;
        let truth = &mut self.cells[cell];
        let watch = &mut truth.watch;
        if truth.run != Run::Paused || !unfit || !idle || engine_down {
            watch.caught_since = None;
        } else if now > *watch.caught_since.get_or_insert(now) + 2 * MINUTE {
            self.broken("e", &format!("cell {cell} stays paused without its consent, believed {believed:?}"));
        }
    }

    fn audit_frozen(&mut self, cell: usize, began: At) {
        let now = self.at;
        let policy = self.wanted[cell].spec.rest.rest;
        let Some(frozen_at) = self.cells[cell].watch.frozen_at else { return };
        if policy == IdleRest::AlwaysOn || self.coordinator_away || self.excused(cell, now) {
            return;
        }
        let since = frozen_at.max(began + 5 * MINUTE);
        if now > since + self.terms[cell].stop_after.0 + 10 * MINUTE {
            self.broken("l", &format!("cell {cell} stays in swap beyond its time"));
        }
        let wanted = self.life.as_ref().and_then(|life| life.agent.cell(cell_id(cell)));
        let outdated = wanted.is_some_and(|believed| believed.spec().image != self.cells[cell].image);
        let watch = &mut self.cells[cell].watch;
        if !outdated {
            watch.outdated_since = None;
        } else if now > *watch.outdated_since.get_or_insert(now) + 5 * MINUTE {
            self.broken("l", &format!("cell {cell} stays frozen with an image that is out of date"));
        }
    }

    /// Is it always on? As this node was told last, too: what is ordered while nobody answers here is not known here.
    fn stays_on(&self, cell: usize) -> bool {
        let desired = self.life.as_ref().and_then(|life| life.memory.desired.as_ref());
        let told = desired.and_then(|desired| desired.assignments.get(cell)).map(|told| told.spec.rest.rest);
        [Some(self.wanted[cell].spec.rest.rest), told].contains(&Some(IdleRest::AlwaysOn))
    }

    fn audit_awake(&mut self, cell: usize) {
        let truth = &self.cells[cell];
        if !truth.runs() || self.stays_on(cell) || truth.watch.held_until > 0 {
            return;
        }
        let idle = self.wanted[cell].spec.rest.idle_after.0;
        let since = truth.watch.used_at.max(self.excuse_of(cell));
        if self.at > since + AWAKE_MAX + idle {
            let minutes = (self.at - since) / MINUTE;
            let believed = self.life.as_ref().and_then(|life| life.agent.cell(cell_id(cell)));
            let believed = believed.map(|believed| believed.sleep_status(self.now()));
            self.broken(
                "n",
                &format!("nobody uses cell {cell} for {minutes} minutes, and it is awake: {believed:?}"),
            );
        }
    }

    fn audit_typed(&mut self, cell: usize) {
        let typed = self.cells[cell]
            .tabs
            .iter()
            .filter_map(|tab| tab.socket.as_ref())
            .flat_map(|socket| &socket.typed);
        if let Some(first) = typed.min().copied()
            && self.at > first + MINUTE
            && !self.excused(cell, first)
            && !self.queue_is_long()
        {
            self.broken(
                "a",
                &format!("a message typed into a tab of cell {cell} is not delivered in fair time"),
            );
        }
    }
}

fn truth_rested(rested_at: Option<At>, now: At) -> bool {
    rested_at.is_some_and(|at| now < at + FLAP_SPAN.0)
}
