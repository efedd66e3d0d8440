//! What a cell's own schedule and its channels do to its lifecycle: see [`crate::schedule`]. A cell at rest is woken for a
//! job before it is due, a running one is not put to rest over one; and one whose channels dial out rests only where its
//! owner accepted that nobody can wake it for them.

use berth_shared::cell::{BusyReason, CellEventKind, IdleRest, RefusalRecord, WakeCause};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::{BootMs, Millis, UnixMs};

use super::{Cell, Effect, Note, Now, Phase, Rest, Waiter};
use crate::schedule::crowd::Turn;
use crate::schedule::{Agenda, STOP_USEFUL, Schedule, Way};

/// Most names of channels that are kept.
pub(crate) const CHANNELS_MAX: usize = 32;

/// The part of the machine that is about the schedule.
#[derive(Debug, Clone, Default)]
pub(super) struct Scheduled {
    pub(super) agenda: Agenda,
    /// Channels that nobody outside can wake it for.
    dials_out: Vec<String>,
    /// At rest: when the schedule is looked at again.
    look_at: Option<BootMs>,
    /// Running: not put to rest before, for its schedule.
    hold_until: Option<BootMs>,
    /// Was the present hold told?
    told: bool,
    /// Frozen: its job is due so soon that it must not be stopped now.
    stays: bool,
}

impl Scheduled {
    pub(super) fn new(list: Option<Schedule>) -> Self {
        Self { agenda: Agenda::new(list), ..Self::default() }
    }
}

impl Cell {
    /// Channels of it that nobody outside can wake it for.
    pub fn dials_out(&self) -> &[String] {
        &self.scheduled.dials_out
    }

    /// Has its workload told its schedule since it was started?
    pub const fn is_schedule_heard(&self) -> bool {
        self.scheduled.agenda.is_heard()
    }

    /// Of a rest under way: would channels that dial out speak against it? Not where it was ordered, or accepted.
    pub const fn minds_channels(&self) -> bool {
        !self.ordered && !self.terms.dial_out_may_sleep
    }

    /// Of a rest under way: would its owner's word that it stays awake speak against it? Not where it was ordered.
    pub const fn minds_owner(&self) -> bool {
        !self.ordered
    }

    /// Of a rest under way: would its schedule speak against it? Not where the cell comes up again at once.
    pub const fn minds_schedule(&self) -> bool {
        !self.restart_wanted
    }

    /// When it will be woken for its schedule: the cause is [`WakeCause::Schedule`]. Of a running cell: when it would be if
    /// it fell asleep now. `None` where no job of it wakes it, or nothing may.
    pub fn next_wake(&self, now: Now) -> Option<UnixMs> {
        let stays_down = matches!(self.phase, Phase::Failed | Phase::Removing | Phase::Gone);
        if stays_down || self.must_stay_down() {
            return None;
        }
        self.scheduled.agenda.wake_at(now.wall, self.way_up())
    }

    /// When the first job that counts is due.
    pub fn next_due(&self, now: Now) -> Option<UnixMs> {
        self.scheduled.agenda.next_due(now.wall)
    }

    fn way_up(&self) -> Way {
        match self.phase {
            // A container of an older image is not thawed.
            Phase::Frozen if self.container_fits == Some(false) => Way::Boot,
            Phase::Frozen => Way::Thaw,
            Phase::Running => Way::from(self.ends_as(self.idle_rest())),
            _ if self.archived_in().is_some() => Way::Restore,
            _ => Way::Boot,
        }
    }

    const fn idle_rest(&self) -> Rest {
        match self.spec.rest.rest {
            IdleRest::Freeze => Rest::Frozen,
            IdleRest::Stop | IdleRest::AlwaysOn => Rest::Stopped,
        }
    }

    /// A container of an older image that is frozen is stopped at once, and comes up by a boot.
    fn ends_as(&self, rest: Rest) -> Rest {
        if self.container_fits == Some(false) { Rest::Stopped } else { rest }
    }

    pub(super) fn schedule_heard(&mut self, now: Now, list: Schedule, out: &mut Vec<Effect>) {
        if self.scheduled.agenda.list() != Some(&list) {
            out.push(Effect::Changed);
        }
        self.scheduled.agenda.hear(now, list);
    }

    pub(super) fn channels_seen(&mut self, mut channels: Vec<String>, out: &mut Vec<Effect>) {
        channels.truncate(CHANNELS_MAX);
        if self.scheduled.dials_out != channels {
            self.scheduled.dials_out = channels;
            self.scheduled.told = false;
            out.push(Effect::Changed);
        }
    }

    /// Channels that keep it awake.
    pub(super) fn dial_out_reason(&self) -> Option<BusyReason> {
        let keeps = !self.scheduled.dials_out.is_empty() && !self.terms.dial_out_may_sleep;
        keeps.then(|| BusyReason::DialsOut { channels: self.scheduled.dials_out.join(", ") })
    }

    /// It is about to count as up, by the way that its phase tells.
    pub(super) fn schedule_up(&mut self, now: Now) {
        let took = match (self.phase, self.wanted) {
            // Found running, so that nothing was woken; or new: an image and a disk took their time, too.
            (_, None | Some(WakeCause::Adopted | WakeCause::TurnedRound | WakeCause::Created)) => None,
            // Not since it was wanted: how many waited before it says nothing about the next time.
            (Phase::Thawing(_), Some(_)) => Some((Way::Thaw, now.boot.since(self.granted_at))),
            (_, Some(_)) => Some((Way::Boot, now.boot.since(self.granted_at))),
        };
        self.scheduled.agenda.up(now, took);
    }

    /// Nobody but its schedule wanted it up: it need not be idle for as long as behind a person.
    pub(super) fn is_up_for_schedule_only(&self) -> bool {
        self.wanted == Some(WakeCause::Schedule) && !self.door_waits && self.up_waiters.is_empty()
    }

    /// Why its schedule keeps it from this rest.
    pub(super) fn schedule_reason(&mut self, now: Now, rest: Rest) -> Option<BusyReason> {
        let hold = self.scheduled.agenda.holds(now, self.ends_as(rest))?;
        let detail = match hold.first {
            Some(first) if first <= now.wall => format!("since {first}"),
            Some(first) => format!("at {first}"),
            None => "no more; the last ran a moment ago".to_owned(),
        };
        Some(BusyReason::ScheduleDue { count: hold.jobs, detail })
    }

    /// When its schedule may let it rest; `None`: now.
    pub(super) const fn scheduled_hold(&self) -> Option<BootMs> {
        self.scheduled.hold_until
    }

    /// Was it told that its schedule or its channels keep it up?
    pub(super) const fn is_hold_told(&self) -> bool {
        self.scheduled.told
    }

    /// To be called behind every event: what the schedule asks for at this moment.
    pub(super) fn follow_schedule(&mut self, now: Now, out: &mut Vec<Effect>) {
        (self.scheduled.look_at, self.scheduled.hold_until) = (None, None);
        self.scheduled.stays = false;
        match self.phase {
            Phase::Running if self.spec.rest.rest != IdleRest::AlwaysOn => {
                let hold = self.scheduled.agenda.holds(now, self.ends_as(self.idle_rest()));
                self.scheduled.hold_until = hold.map(|hold| hold.ask_at);
                self.tell_hold(now, out);
            }
            Phase::Stopped | Phase::Archived | Phase::Frozen | Phase::Cooling { again: false, .. }
                if !self.must_stay_down() =>
            {
                let is_due = self.scheduled.agenda.is_wake_due(now, self.way_up());
                if now.boot >= self.not_woken_before(now) && is_due {
                    self.wake_for_schedule(now, out);
                } else {
                    self.scheduled.look_at = self.next_schedule_look(now);
                    self.scheduled.stays =
                        matches!(self.phase, Phase::Frozen) && self.is_too_late_to_stop(now);
                }
            }
            _ => {}
        }
    }

    const fn not_woken_before(&self, now: Now) -> BootMs {
        if let Phase::Cooling { until, .. } = self.phase { until } else { now.boot }
    }

    fn next_schedule_look(&self, now: Now) -> Option<BootMs> {
        let look_at = self.scheduled.agenda.look_at(now, self.way_up())?;
        Some(look_at.max(self.not_woken_before(now)))
    }

    /// Is it frozen and a job of its own due so soon that it would come up too late if it had to be started for it? Then it
    /// stays, whatever its place is wanted for: it is thawed in a moment, and leaves when it rests again.
    pub const fn stays_for_schedule(&self) -> bool {
        self.scheduled.stays
    }

    /// The same at this moment.
    pub(super) fn is_too_late_to_stop(&self, now: Now) -> bool {
        let wake_at = self.scheduled.agenda.wake_at(now.wall, Way::Boot);
        !self.must_stay_down() && wake_at.is_some_and(|at| at.since(now.wall) < STOP_USEFUL)
    }

    /// The turn that its next wake for its schedule will take of the node; `None` where none is to come.
    pub fn schedule_turn(&self, now: Now) -> Option<Turn> {
        let at_rest = matches!(
            self.phase,
            Phase::Stopped | Phase::Archived | Phase::Frozen | Phase::Cooling { again: false, .. }
        );
        if !at_rest || self.must_stay_down() {
            return None;
        }
        let (agenda, way) = (&self.scheduled.agenda, self.way_up());
        let latest = UnixMs(agenda.next_due(now.wall)?.0.saturating_sub(agenda.lead(way).0));
        (latest > now.wall).then(|| Turn { cell: self.spec.cell, way, latest, span: agenda.learned(way) })
    }

    /// For others' sake it is woken so much earlier for its schedule.
    pub fn come_ahead(&mut self, now: Now, ahead: Millis) {
        if self.scheduled.agenda.ahead() != ahead {
            self.scheduled.agenda.come_ahead(ahead);
            self.scheduled.look_at = self.scheduled.look_at.and(self.next_schedule_look(now));
        }
    }

    /// When the schedule of a cell at rest is looked at again.
    pub(super) const fn schedule_look_at(&self) -> Option<BootMs> {
        self.scheduled.look_at
    }

    fn wake_for_schedule(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.scheduled.agenda.woken(now);
        self.want(now, WakeCause::Schedule);
        if matches!(self.phase, Phase::Frozen) {
            self.queue_thaw(out);
        } else {
            self.queue(out);
        }
        out.push(Effect::Changed);
    }

    /// An idle cell stays up for its schedule or its channels: recorded once for each time.
    fn tell_hold(&mut self, now: Now, out: &mut Vec<Effect>) {
        let is_held = self.scheduled_hold().is_some() || self.dial_out_reason().is_some();
        let is_idle = now.boot.since(self.last_active) >= self.idle_after() && now.boot >= self.held_until();
        if is_held || self.scheduled.told {
            self.owned_up = now.boot;
        }
        self.scheduled.told &= is_held;
        if !is_held || !is_idle || now.boot < self.rest_not_before {
            return;
        }
        if std::mem::replace(&mut self.scheduled.told, true) {
            return;
        }
        let rest = self.idle_rest();
        let Some(reason) = self.dial_out_reason().or_else(|| self.schedule_reason(now, rest)) else { return };
        self.last_refusal = Some(RefusalRecord { reason: reason.clone(), at: now.wall });
        self.tell(now, CellEventKind::CouldNotSleep, reason.to_string());
        out.push(Effect::Note(Note::RestRefused(reason)));
        out.push(Effect::Changed);
    }

    /// Refuses an ordered rest over a job that is due.
    pub(super) fn refuses_for_schedule(
        &mut self,
        now: Now,
        rest: Rest,
        waiter: Waiter,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(reason) = self.schedule_reason(now, rest) else { return false };
        let problem = Problem::new(Code::CellBusy, format!("the cell stays awake: {reason}"));
        self.last_refusal = Some(RefusalRecord { reason: reason.clone(), at: now.wall });
        self.tell(now, CellEventKind::CouldNotSleep, reason.to_string());
        out.push(Effect::Answer { waiter, result: Err(problem) });
        out.push(Effect::Note(Note::RestRefused(reason)));
        out.push(Effect::Changed);
        true
    }
}
