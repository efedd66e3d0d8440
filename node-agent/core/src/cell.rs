//! The lifecycle of one cell: what to do next, given what has happened.
//!
//! ```text
//!                       +------------------------- Unknown (look) <---- any step that failed or took too long
//!                       v                             |  |
//!  Gone <- Removing <- Stopped -> Queued -> Starting -+--+-> Running -> Resting -> Stopped | Frozen
//!                       ^  ^         create, start,   |        ^          fence, suspend, pause | stop
//!                       |  |         get ready        v        |          (turned round: revive -> Running)
//!                       |  +--- Cooling / Failed / Repairing   +-- Thawing <- Frozen
//!                       +-- Killing <- Frozen                      unpause, resume, get ready
//!
//!  Stopped -> Archiving -> Archived -> Queued: `cell/archive.rs`
//!  Starting: what is on the disk is restored (`cell/data.rs`), or kept before another image has it (`cell/image.rs`)
//! ```
//!
//! Rules that hold everywhere:
//! - One operation at a time. It has a number and a bound; a report with another number is late and ignored, an
//!   operation that outlives its bound leads to a look. What is seen always beats what is believed (invariant 8).
//! - An intent is journaled before its operation, the result after.
//! - Rest needs, in this order: the fence confirmed, nothing under way, the workload's own *ready*, and the pause
//!   confirmed before the lease ends (invariant 6). A wake turns it round at every step.
//! - After every thaw, and whenever a container is found running, *resume* is called before requests go in.
//! - Any number of wakes cause one start; each waiter is answered exactly once (invariant 4).

mod archive;
mod bar;
mod cpu;
mod data;
mod frozen;
mod idle;
mod image;
mod limits;
mod phase;
mod rest;
mod scheduled;
mod seen;
mod start;
mod status;
mod terms;
mod wake;

#[cfg(test)]
mod tests;

pub use archive::{ARCHIVE_USEFUL, VERIFY_RETRY_FIRST, VERIFY_RETRY_MAX};
pub use frozen::THAW_TURN;
pub use idle::{FLAP_MEMORY, FLAP_SPAN, UNDECLARED_PERCENT};
pub use image::Making;
pub use limits::{
    CRASH_WINDOW, CRASHES_MAX, FIRST_START_RETRY_FIRST, FIRST_START_RETRY_MAX, LEASE_MARGIN,
    LOOK_RETRY_FIRST, LOOK_RETRY_MAX, PROBE_EVERY, REST_RETRY_FIRST, REST_RETRY_MAX, RESTART_FIRST,
    RESTART_MAX, SILENT_PROBES_MAX, START_TRIES_MAX, WAITERS_MAX,
};
pub(crate) use scheduled::CHANNELS_MAX;
pub use terms::{
    Data, Depth, Effect, Event, Leave, Note, Now, Observation, OpId, OtherImage, Outcome, Pushed, Rest,
    SHORT_BYTES, SHORT_PERCENT, Seen, SuspendAnswer, Verb, Waiter,
};

use phase::{Operation, Phase, RestStep, StartStep, ThawStep};
use rest::Again;

use std::net::SocketAddr;

use berth_shared::backoff::Backoff;
use berth_shared::cell::{
    Assignment, CellEvent, CellSpec, CpuNotice, IdleRest, ImageRef, RefusalRecord, SleepTerms, WakeCause,
    WakeRecord,
};
use berth_shared::door::RouteState;
use berth_shared::ids::Generation;
use berth_shared::problem::{Code, Problem};
use berth_shared::snapshot::{Paths, SnapshotId};
use berth_shared::time::{BootMs, UnixMs};
use berth_shared::units::Bytes;

use crate::burn::{Burn, Recent};
use crate::memory::{Intent, Remembered, Report};

/// The machine. One per cell.
#[derive(Debug, Clone)]
pub struct Cell {
    spec: CellSpec,
    generation: Generation,
    phase: Phase,
    operation: Option<Operation>,
    last_op: OpId,
    /// Is there a container, and was it made from this spec?
    container_fits: Option<bool>,
    address: Option<SocketAddr>,
    shown_route: RouteState,
    /// Why it shall be up, when it is not: kept through everything until it is up or that has failed.
    wanted: Option<WakeCause>,
    wanted_since: BootMs,
    /// Does the ingress wait for the wake?
    door_waits: bool,
    up_waiters: Vec<Waiter>,
    rest_waiters: Vec<Waiter>,
    restart_waiters: Vec<Waiter>,
    /// Stop it and start it again: wakes wait for that and do not turn it round.
    restart_wanted: bool,
    /// A rest that was ordered, not found idle: the quiet time does not matter.
    ordered: bool,
    /// Stop it as soon as it is frozen: that was ordered while it froze.
    deeper: bool,
    retired: bool,
    /// The node may not work alone any longer.
    leaseless: bool,
    /// Why it shall come up by itself once the lease is held again.
    owed: Option<WakeCause>,
    /// It has been up, and an end of it is not meant: it comes up again by itself.
    was_up: bool,
    /// Until when the workload's consent holds for a pause: without end once the pause is confirmed, since it has not
    /// run since. `None`: a container found paused now was paused in the middle of something.
    consent_until: Option<BootMs>,
    /// What the engine reported unasked while an operation was under way that does not look for itself.
    noticed: Option<Seen>,
    last_active: BootMs,
    /// When it last had work that is no secret: its workload's own word, or its schedule. What it used until then says
    /// nothing of later.
    owned_up: BootMs,
    open_requests: u32,
    open_sockets: u32,
    rest_not_before: BootMs,
    rest_backoff: Backoff,
    look_backoff: Backoff,
    /// Kills and removals that have failed since it was up last. A look between two of them changes nothing.
    end_backoff: Backoff,
    /// Its place in swap is not asked for again before this: it could not be ended.
    leave_not_before: BootMs,
    leave_backoff: Backoff,
    /// Thaws that have failed since it was up last.
    thaw_tries: u32,
    thaw_backoff: Backoff,
    restart_backoff: Backoff,
    first_start_backoff: Backoff,
    start_tries: u32,
    crashes: Vec<BootMs>,
    silent_probes: u32,
    repaired: bool,
    /// The next permit is used for the repair: that costs as much as a start.
    repair_due: bool,
    pending_failure: Option<Problem>,
    since: UnixMs,
    last_wake: Option<WakeRecord>,
    last_refusal: Option<RefusalRecord>,
    problem: Option<Problem>,
    starts: u64,
    burn: Burn,
    recent: Recent,
    cpu_notice: Option<CpuNotice>,
    scheduled: scheduled::Scheduled,
    /// What its plan says of sleep.
    terms: SleepTerms,
    /// It does not fall asleep by itself before this …
    held_until: BootMs,
    /// … unless that is over by the wall clock, as of this step.
    hold_is_over: bool,
    /// When it fell asleep last, until it is up again.
    rested_at: Option<BootMs>,
    /// When it was woken a moment after it had fallen asleep, of late.
    flaps: Vec<BootMs>,
    /// How much memory one more cell may have to be frozen, as of this step; or why none can be.
    offer: Result<Bytes, String>,
    /// The node's swap has been promised to it.
    promised: bool,
    /// Memory that it was seen to hold last.
    resident: Option<Bytes>,
    frozen_since: BootMs,
    pushed: Option<Pushed>,
    granted_at: BootMs,
    /// How it rested that comes up.
    rose_from: Depth,
    /// What it needs and what not was told apart since it was started.
    thinned: bool,
    /// The node's memory is short.
    hurries: bool,
    /// Why it was stopped and not frozen, last time.
    stopped_because: Option<String>,
    events: Vec<CellEvent>,
    /// Its memory was almost at its limit at the last look.
    near_limit: bool,
    /// When it was told last that the kernel has ended something of it.
    killed_at: Option<BootMs>,
    data: Data,
    /// Put its data back to this snapshot when it is stopped, or these files and folders of it.
    restore_ordered: Option<(SnapshotId, Option<Paths>)>,
    /// The snapshot that is being proven to be what is on its disk.
    verifying: Option<SnapshotId>,
    archive_waiters: Vec<Waiter>,
    /// What it was started with last; `None` where that is not known.
    ran: Option<ImageRef>,
    /// What the next create does where the container that is there is of another image.
    other_image: OtherImage,
    making: Making,
    /// Why its container is of the image before the one that it is to run.
    image_left: Option<Problem>,
    /// It is archived, and could not be removed from the disk.
    left_over: bool,
    verify_not_before: BootMs,
    verify_backoff: Backoff,
}

impl Cell {
    /// A cell whose container nobody has looked at yet; `remembered` is what the journal holds of it.
    ///
    /// A cell that was never started on this node is wanted up: it is new.
    pub fn new(now: Now, assignment: Assignment, remembered: &Remembered) -> Self {
        let wanted = if remembered.is_new() { Some(WakeCause::Created) } else { None };
        let making = Making { image: assignment.spec.image.clone(), other: OtherImage::Told };
        Self {
            spec: assignment.spec,
            generation: assignment.generation,
            phase: Phase::Unknown { look_at: now.boot },
            operation: None,
            last_op: OpId(remembered.last_op),
            container_fits: None,
            address: None,
            shown_route: RouteState::Down,
            wanted,
            wanted_since: now.boot,
            door_waits: false,
            up_waiters: vec![],
            rest_waiters: vec![],
            restart_waiters: vec![],
            restart_wanted: false,
            ordered: false,
            deeper: false,
            retired: false,
            leaseless: false,
            owed: None,
            // One that rested then has ended at rest, whatever ended it.
            was_up: remembered.up_this_boot && !remembered.frozen,
            consent_until: remembered.frozen.then_some(BootMs(u64::MAX)),
            noticed: None,
            last_active: now.boot,
            owned_up: now.boot,
            open_requests: 0,
            open_sockets: 0,
            rest_not_before: now.boot,
            rest_backoff: Backoff::new(REST_RETRY_FIRST, REST_RETRY_MAX),
            look_backoff: Backoff::new(LOOK_RETRY_FIRST, LOOK_RETRY_MAX),
            end_backoff: Backoff::new(LOOK_RETRY_FIRST, LOOK_RETRY_MAX),
            leave_not_before: now.boot,
            leave_backoff: Backoff::new(REST_RETRY_FIRST, REST_RETRY_MAX),
            thaw_tries: 0,
            thaw_backoff: Backoff::new(LOOK_RETRY_FIRST, LOOK_RETRY_MAX),
            restart_backoff: Backoff::new(RESTART_FIRST, RESTART_MAX),
            first_start_backoff: Backoff::new(FIRST_START_RETRY_FIRST, FIRST_START_RETRY_MAX),
            start_tries: 0,
            crashes: vec![],
            silent_probes: 0,
            repaired: false,
            repair_due: false,
            pending_failure: None,
            since: now.wall,
            last_wake: None,
            last_refusal: None,
            problem: None,
            starts: 0,
            burn: Burn::default(),
            recent: Recent::default(),
            cpu_notice: None,
            scheduled: scheduled::Scheduled::new(remembered.schedule.clone()),
            terms: SleepTerms::default(),
            held_until: BootMs(0),
            hold_is_over: false,
            rested_at: None,
            flaps: vec![],
            offer: Err("the node's swap was not looked at yet".to_owned()),
            promised: false,
            resident: None,
            frozen_since: remembered.frozen_at.map_or(now.boot, |at| at.min(now.boot)),
            pushed: None,
            granted_at: now.boot,
            rose_from: Depth::Stopped,
            thinned: false,
            hurries: false,
            stopped_because: None,
            events: remembered.events.clone(),
            near_limit: false,
            killed_at: None,
            data: Data::Here,
            restore_ordered: None,
            verifying: None,
            archive_waiters: vec![],
            ran: remembered.ran.clone(),
            other_image: OtherImage::Told,
            making,
            image_left: None,
            left_over: false,
            verify_not_before: now.boot,
            verify_backoff: Backoff::new(VERIFY_RETRY_FIRST, VERIFY_RETRY_MAX),
        }
    }

    /// The same with its data elsewhere.
    #[must_use]
    pub fn with_data(mut self, data: Data) -> Self {
        self.data = data;
        self
    }

    /// A cell whose removal was begun before the agent died: it goes on from whatever is there.
    pub fn retiring(now: Now, assignment: Assignment, remembered: &Remembered) -> Self {
        Self { retired: true, wanted: None, ..Self::new(now, assignment, remembered) }
    }

    /// Is what lies on its disk its data? Not while that is elsewhere: nobody may take a snapshot of it then.
    pub const fn has_its_data(&self) -> bool {
        matches!(self.data, Data::Here)
    }

    /// Is it not known whether there is a snapshot of its data? Then it does not start.
    pub const fn awaits_repository(&self) -> bool {
        matches!(self.data, Data::Unknown)
    }

    /// From which snapshot its data is restored before it starts, and whether there is data that this is put in place of.
    pub const fn restores(&self) -> Option<(SnapshotId, bool)> {
        match self.data {
            Data::In { snapshot, over, .. } => Some((snapshot, over)),
            Data::Archived { snapshot, instead: None } | Data::Archived { instead: Some(snapshot), .. } => {
                Some((snapshot, false))
            }
            Data::Here | Data::Unknown => None,
        }
    }

    /// The files and folders that are restored, where that is not all.
    pub const fn restores_paths(&self) -> Option<&Paths> {
        match &self.data {
            Data::In { paths, .. } => paths.as_ref(),
            Data::Here | Data::Unknown | Data::Archived { .. } => None,
        }
    }

    /// When [`Event::Tick`] is due; `None` while only an event can change anything.
    pub fn next_deadline(&self) -> Option<BootMs> {
        let operation = self.operation.map(|operation| operation.until);
        let phase = match self.phase {
            Phase::Unknown { look_at } if self.operation.is_none() => Some(look_at),
            Phase::Cooling { until, again: true } => Some(until),
            Phase::Running => self.rest_due_at(),
            Phase::Frozen => self.leaves_at(),
            Phase::Unknown { .. }
            | Phase::Cooling { again: false, .. }
            | Phase::Stopped
            | Phase::Queued
            | Phase::Starting(_)
            | Phase::Resting { .. }
            | Phase::Thawing(_)
            | Phase::Killing
            | Phase::Repairing
            | Phase::Failed
            | Phase::Archiving
            | Phase::Archived
            | Phase::Removing
            | Phase::Gone => None,
        };
        operation.into_iter().chain(phase).chain(self.schedule_look_at()).min()
    }

    /// Takes an event in. `random` is fresh for each call.
    pub fn step(&mut self, now: Now, event: Event, random: u64) -> Vec<Effect> {
        let mut out = Vec::new();
        let (before, shown) = (self.phase, self.state());
        self.look_at_hold(now);
        match event {
            Event::Wake { cause, waiter } => self.wake(now, cause, waiter, &mut out),
            Event::Sleep { rest, waiter } => self.sleep(now, rest, waiter, &mut out),
            Event::Restart { waiter } => self.restart(now, waiter, &mut out),
            Event::Restore { snapshot, paths, waiter } => {
                self.restore(now, snapshot, paths, waiter, &mut out);
            }
            Event::Archive { snapshot, waiter } => self.archive(now, snapshot, waiter, &mut out),
            Event::Data(data) => self.data_told(data),
            Event::Activity(activity) => self.activity(now, activity),
            Event::Done { op, outcome } => self.done(now, op, outcome, random, &mut out),
            Event::Noticed(seen) => self.noticed(now, seen, random, &mut out),
            Event::Probed { alive } => self.probed(now, alive, &mut out),
            Event::CpuUsed { at, used, threshold } => self.cpu_used(now, at, used, threshold, &mut out),
            Event::MemoryUsed { anonymous } => self.memory_used(now, anonymous, &mut out),
            Event::OutOfMemory => self.out_of_memory(now, &mut out),
            Event::Granted => self.granted(now, &mut out),
            Event::SwapNeeded => self.leave(now, Leave::SwapShort, &mut out),
            Event::Hurry(hurries) => {
                self.hurries = hurries;
                out.push(Effect::Changed);
            }
            Event::Terms(terms) => self.terms(now, terms, &mut out),
            Event::Tick => {
                self.follow_schedule(now, &mut out);
                self.tick(now, random, &mut out);
            }
            Event::Assigned(assignment) => self.assigned(now, assignment, &mut out),
            Event::Retired => self.retire(now, &mut out),
            Event::Lease { held } => self.lease(now, held, &mut out),
            Event::Schedule(list) => self.schedule_heard(now, list, &mut out),
            Event::ScheduleDoubted => self.scheduled.agenda.doubt(),
            Event::DialsOut(channels) => self.channels_seen(channels, &mut out),
        }
        self.follow_schedule(now, &mut out);
        let down = matches!(
            self.phase,
            Phase::Stopped | Phase::Archived | Phase::Queued | Phase::Cooling { .. } | Phase::Failed
        );
        if down && matches!(self.noticed.take_if(|_| down), Some(Seen::Running { .. } | Seen::Paused { .. }))
        {
            // It came up while the last step to *down* was under way: a start that was given up came after all.
            self.look(now, &mut out);
        }
        self.cpu_rests(&mut out);
        // Some phases stand for more than one state.
        if std::mem::discriminant(&before) != std::mem::discriminant(&self.phase) || shown != self.state() {
            self.since = now.wall;
            out.push(Effect::Changed);
        }
        self.show_route(&mut out);
        if self.retired {
            // The ingress knows it no more, see `Effect::Withdraw`.
            out.retain(|effect| !matches!(effect, Effect::Route(_)));
        }
        out
    }

    fn show_route(&mut self, out: &mut Vec<Effect>) {
        let route = self.route();
        // While resting the fence holds requests; the route is told when it is decided where the cell ends up.
        let decided = match self.phase {
            Phase::Resting { step, .. } => step == RestStep::Observing,
            _ => true,
        };
        if decided && route != self.shown_route {
            self.shown_route = route;
            out.push(Effect::Route(route));
        }
    }

    fn begin(&mut self, now: Now, verb: Verb, out: &mut Vec<Effect>) {
        if !matches!(verb, Verb::Verify | Verb::Archive) {
            self.keeps_disk(out);
        }
        self.last_op = OpId(self.last_op.0 + 1);
        let id = self.last_op;
        // What these find there is newer than what was reported before they began.
        if !matches!(verb, Verb::Observe | Verb::Fence | Verb::Suspend | Verb::Push | Verb::Resume) {
            self.noticed = None;
        }
        if verb == Verb::Stop {
            // Its end is meant from here on, also where this is told as failed.
            self.was_up = false;
        }
        self.operation = Some(Operation { id, verb, begun: now.boot, until: now.boot.after(verb.limit()) });
        if let Some(intent) = Intent::of(self.spec.cell, id, verb) {
            out.push(Effect::Journal(intent));
        }
        out.push(Effect::Do { op: id, verb });
    }

    /// Nothing is certain any more: look.
    fn look(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.phase = Phase::Unknown { look_at: now.boot };
        self.begin(now, Verb::Look, out);
    }

    fn assigned(&mut self, now: Now, assignment: Assignment, out: &mut Vec<Effect>) {
        if assignment.generation < self.generation {
            return;
        }
        let bar = self.bar();
        let other_image = self.spec.image != assignment.spec.image;
        if self.spec != assignment.spec {
            // Whether the container still fits is seen at the next look; until then it is taken as it is.
            let same_container = self.spec.image == assignment.spec.image
                && self.spec.size == assignment.spec.size
                && self.spec.workload == assignment.spec.workload;
            if !same_container {
                self.container_fits = self.container_fits.map(|_| false);
                if let Phase::Cooling { until, again: true } = &mut self.phase {
                    // What failed was another container.
                    *until = now.boot;
                }
            }
            if assignment.spec.quarantined && !self.spec.quarantined {
                // Packets are dropped from now on, of which the client of an open socket would never hear.
                out.push(Effect::Withdraw);
            }
            self.spec = assignment.spec;
            out.push(Effect::Route(self.route()));
            self.shown_route = self.route();
        }
        self.generation = assignment.generation;
        out.push(Effect::Changed);
        if other_image && matches!(self.phase, Phase::Starting(StartStep::Pulling)) {
            // What is fetched is of no use any more.
            self.look(now, out);
        }
        self.bar_changed(now, bar, out);
        let at_rest = matches!(
            self.phase,
            Phase::Stopped | Phase::Archived | Phase::Frozen | Phase::Cooling { again: false, .. }
        );
        if at_rest && !self.must_stay_down() && self.spec.rest.rest == IdleRest::AlwaysOn {
            self.want(now, WakeCause::Recovery);
            if matches!(self.phase, Phase::Frozen) { self.queue_thaw(out) } else { self.queue(out) }
        } else if matches!(self.phase, Phase::Archiving) && self.spec.rest.rest == IdleRest::AlwaysOn {
            self.want(now, WakeCause::Recovery);
        } else if self.container_fits == Some(false) {
            self.leave(now, Leave::OutOfDate, out);
        }
    }

    fn tick(&mut self, now: Now, random: u64, out: &mut Vec<Effect>) {
        if let Some(operation) = self.operation
            && now.boot >= operation.until
        {
            out.push(Effect::Note(Note::OperationLate(operation.verb)));
            let problem = Problem::new(Code::DockerFailed, format!("{:?} took too long", operation.verb));
            return self.done(now, operation.id, Outcome::Failed(problem), random, out);
        }
        match self.phase {
            Phase::Unknown { look_at } if self.operation.is_none() && now.boot >= look_at => {
                self.begin(now, Verb::Look, out);
            }
            Phase::Cooling { until, again: true } if now.boot >= until => self.queue(out),
            Phase::Running if self.rest_due_at().is_some_and(|due| now.boot >= due) => {
                let rest = match self.spec.rest.rest {
                    IdleRest::Freeze => Rest::Frozen,
                    IdleRest::Stop | IdleRest::AlwaysOn => Rest::Stopped,
                };
                self.begin_rest(now, rest, false, out);
            }
            Phase::Frozen if self.leaves_at().is_some_and(|due| now.boot >= due) => {
                let is_old = self.container_fits == Some(false);
                self.leave(now, if is_old { Leave::OutOfDate } else { Leave::Long }, out);
            }
            Phase::Unknown { .. }
            | Phase::Cooling { .. }
            | Phase::Running
            | Phase::Stopped
            | Phase::Queued
            | Phase::Starting(_)
            | Phase::Resting { .. }
            | Phase::Frozen
            | Phase::Thawing(_)
            | Phase::Killing
            | Phase::Repairing
            | Phase::Failed
            | Phase::Archiving
            | Phase::Archived
            | Phase::Removing
            | Phase::Gone => {}
        }
    }

    fn done(&mut self, now: Now, op: OpId, outcome: Outcome, random: u64, out: &mut Vec<Effect>) {
        let Some(operation) = self.operation.filter(|operation| operation.id == op) else {
            return; // A late report of an operation that was given up.
        };
        self.operation = None;
        if let Outcome::Failed(problem) = &outcome {
            out.push(Effect::Note(Note::OperationFailed { verb: operation.verb, problem: problem.clone() }));
        }
        if let Some(mut report) = Report::of(self.spec.cell, op, operation.verb, &outcome, now.boot) {
            if matches!(self.phase, Phase::Resting { step: RestStep::Pausing { lease_until }, .. } if now.boot >= lease_until)
            {
                report.ok = false;
            }
            out.push(Effect::Report(report));
        }
        match self.phase {
            Phase::Unknown { .. } => self.looked(now, outcome, random, out),
            Phase::Starting(step) => self.start_done(now, step, outcome, random, out),
            Phase::Thawing(step) => self.thaw_done(now, step, outcome, random, out),
            Phase::Resting { rest, step } => self.rest_done(now, rest, step, operation, outcome, random, out),
            Phase::Killing => match outcome {
                Outcome::Ended { .. } => self.stopped(now, out),
                outcome => {
                    if let Outcome::Failed(problem) = outcome {
                        self.answer_rest(&Err(problem), out);
                    }
                    self.stays_in_swap(now, random);
                    self.end_failed(now, random);
                }
            },
            Phase::Repairing => self.repaired(now, outcome, out),
            Phase::Removing => match outcome {
                Outcome::Removed => self.phase = Phase::Gone,
                _ => self.end_failed(now, random),
            },
            Phase::Frozen => self.pushed(outcome, out),
            Phase::Stopped => self.verified(now, outcome, random, out),
            Phase::Archiving => self.archive_done(now, outcome, out),
            // No operation is under way in these.
            Phase::Archived
            | Phase::Queued
            | Phase::Running
            | Phase::Cooling { .. }
            | Phase::Failed
            | Phase::Gone => {}
        }
    }
}
