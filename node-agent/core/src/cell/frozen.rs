//! Frozen: paused, its memory pushed out to swap, and how that ends.
//!
//! ```text
//!            wanted: waits for its turn, unpause …
//!  frozen --------------------------------------------> Thawing
//!    |  push, once: a wake cuts it short
//!    |
//!    +-- T2, swap runs short, out of date, stop ordered --> Killing (never thawed in order to be stopped)
//! ```
//!
//! A cell that rests here has the workload's consent, and has not run since: so it may be killed at any time. One that is
//! found paused without it is wanted up.

use berth_shared::cell::{CellEventKind, IdleRest, WakeCause};
use berth_shared::door::WakeStage;
use berth_shared::time::{BootMs, Millis};
use berth_shared::units::Bytes;

use super::{Cell, Depth, Effect, Leave, Note, Now, Outcome, Phase, Pushed, Rest, Seen, ThawStep, Verb};

/// A thaw that takes longer does not keep the next one waiting: it has its disk's attention already, or none.
pub const THAW_TURN: Millis = Millis::secs(5);

impl Cell {
    /// It is paused. Without the workload's consent it must not stay so, whoever paused it and whenever: it is
    /// wanted up until it is.
    pub(super) fn paused(&mut self, now: Now, out: &mut Vec<Effect>) {
        let goes_on = self.consent_until == Some(BootMs(u64::MAX));
        if !goes_on {
            // Also where its own pause was reported as failed, and the next look shows that it was none.
            self.frozen_since = now.boot;
        }
        if self.consent_until.is_some_and(|until| now.boot < until) {
            self.consent_until = Some(BootMs(u64::MAX));
            // Whatever ends it from here on ends it at rest, also where a kill of ours is told as failed.
            self.was_up = false;
        } else {
            self.consent_until = None;
            self.want(now, WakeCause::TurnedRound);
        }
        let always_on = self.spec.rest.rest == IdleRest::AlwaysOn;
        if always_on && !self.ordered {
            self.want(now, WakeCause::Recovery);
        }
        self.frozen(now, out);
    }

    fn frozen(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.noticed.as_ref().is_some_and(|seen| !matches!(seen, Seen::Paused { .. })) {
            return self.look(now, out);
        }
        self.phase = Phase::Frozen;
        self.pushed = None;
        let deeper = std::mem::take(&mut self.deeper) && !self.turned();
        if self.must_stay_down() || ((self.restart_wanted || deeper) && self.consent_until.is_some()) {
            return self.kill_frozen(now, out);
        }
        self.rest_backoff.reset();
        if self.wanted.is_some() {
            return self.queue_thaw(out);
        }
        out.push(Effect::Note(Note::Rested(Rest::Frozen)));
        self.rested_at = Some(now.boot);
        // The fence ends with this route: held requests ask for a wake.
        self.shown_route = self.route();
        out.push(Effect::Route(self.shown_route));
        if self.container_fits == Some(false) {
            self.leave(now, Leave::OutOfDate, out);
        }
        if matches!(self.phase, Phase::Frozen) {
            self.begin(now, Verb::Push, out);
        }
    }

    /// A push ended.
    pub(super) fn pushed(&mut self, outcome: Outcome, out: &mut Vec<Effect>) {
        if let Outcome::Pushed(pushed) = outcome {
            self.pushed = Some(pushed);
            self.resident = Some(pushed.resident);
            out.push(Effect::Note(Note::Pushed(pushed)));
            out.push(Effect::Changed);
        }
        // Whatever came of it, it is frozen.
        self.answer_rest(&Ok(()), out);
    }

    /// It is frozen and stays only as long as nobody needs its place, but over a job that is due in a moment, and for a while
    /// where it could not be ended.
    pub(super) fn leave(&mut self, now: Now, why: Leave, out: &mut Vec<Effect>) {
        let may_leave = now.boot >= self.leave_not_before && !self.is_too_late_to_stop(now);
        if matches!(self.phase, Phase::Frozen) && may_leave {
            out.push(Effect::Note(Note::LeftSwap(why)));
            self.kill_frozen(now, out);
        }
    }

    pub(super) fn kill_frozen(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.phase = Phase::Killing;
        self.begin(now, Verb::KillFrozen, out);
    }

    /// It could not be ended, or removed: looked at in a while, ever later, since that would fail again at once.
    pub(super) fn end_failed(&mut self, now: Now, random: u64) {
        self.phase = Phase::Unknown { look_at: now.boot.after(self.end_backoff.next(random)) };
    }

    /// It could not be ended for its place, and keeps that for a while: others leave meanwhile.
    pub(super) fn stays_in_swap(&mut self, now: Now, random: u64) {
        self.leave_not_before = now.boot.after(self.leave_backoff.next(random));
    }

    /// When it has been frozen for as long as its plan lets it be, or is out of date, and may be ended for that.
    pub(super) fn leaves_at(&self) -> Option<BootMs> {
        let rests = matches!(self.phase, Phase::Frozen) && self.spec.rest.rest != IdleRest::AlwaysOn;
        if !rests || self.stays_for_schedule() {
            return None;
        }
        let is_old = self.container_fits == Some(false);
        let due = if is_old { self.frozen_since } else { self.frozen_since.after(self.terms.stop_after) };
        Some(due.max(self.leave_not_before))
    }

    /// Since when it is frozen, where it may leave for those who need its place; `None` also for a while where it could not be
    /// ended.
    pub fn leaves_since(&self, now: Now) -> Option<BootMs> {
        self.frozen_since().filter(|_| now.boot >= self.leave_not_before && !self.stays_for_schedule())
    }

    /// Since when it is frozen; `None` while it is not.
    pub const fn frozen_since(&self) -> Option<BootMs> {
        if matches!(self.phase, Phase::Frozen) { Some(self.frozen_since) } else { None }
    }

    /// Is it frozen and being ended?
    pub const fn is_killed_frozen(&self) -> bool {
        matches!(self.phase, Phase::Killing)
    }

    /// Does its user have a page open?
    pub const fn has_sockets(&self) -> bool {
        self.open_sockets > 0
    }

    /// What its newest push did; `None` while it is not frozen, or was not pushed yet.
    pub const fn newest_push(&self) -> Option<Pushed> {
        if matches!(self.phase, Phase::Frozen) { self.pushed } else { None }
    }

    /// Swap that it will need and does not have yet: it is being frozen.
    pub fn swap_promised(&self) -> Bytes {
        let is_on_its_way = match self.phase {
            Phase::Resting { rest: Rest::Frozen, .. } => self.promised,
            Phase::Frozen => self.operation.is_some(),
            Phase::Unknown { .. }
            | Phase::Stopped
            | Phase::Archiving
            | Phase::Archived
            | Phase::Queued
            | Phase::Starting(_)
            | Phase::Running
            | Phase::Resting { rest: Rest::Stopped, .. }
            | Phase::Thawing(_)
            | Phase::Killing
            | Phase::Repairing
            | Phase::Cooling { .. }
            | Phase::Failed
            | Phase::Removing
            | Phase::Gone => false,
        };
        if is_on_its_way { self.memory_needed() } else { Bytes::ZERO }
    }

    /// The memory that it was seen to hold last; its limit where nobody has seen any.
    pub(super) fn memory_needed(&self) -> Bytes {
        self.resident.unwrap_or(self.spec.size.memory)
    }

    /// Tells it before an event how much memory one more cell may have to be frozen now, or why none can be.
    pub fn offer_swap(&mut self, room: Result<Bytes, String>) {
        self.offer = room;
    }

    /// Whether it can be frozen, and what that is told as where it cannot.
    pub(super) fn may_freeze(&self) -> Result<(), String> {
        let room = self.offer.clone()?;
        let need = self.memory_needed();
        if need <= room {
            return Ok(());
        }
        Err(format!("it holds {need}, and the node's swap has room for {room}"))
    }

    /// It should be frozen and is stopped instead.
    pub(super) fn not_frozen(&mut self, now: Now, reason: String, out: &mut Vec<Effect>) {
        if self.stopped_because.as_ref() != Some(&reason) {
            self.tell(now, CellEventKind::NotFrozen, reason.clone());
            out.push(Effect::Note(Note::NotFrozen { reason: reason.clone() }));
        }
        self.stopped_because = Some(reason);
    }

    /// Waits for its turn: thaws go one by one, since they share the disk that their memory comes from.
    pub(super) fn queue_thaw(&mut self, out: &mut Vec<Effect>) {
        // Whoever had it frozen has that.
        self.answer_rest(&Ok(()), out);
        // A push that is under way is of no use any more; the unpause cuts it off.
        self.operation = None;
        out.push(Effect::Note(Note::Waking(self.wanted.unwrap_or(WakeCause::Recovery))));
        self.phase = Phase::Thawing(ThawStep::Queued);
    }

    /// Does it wait for its turn to be thawed?
    pub const fn waits_for_thaw(&self) -> bool {
        matches!(self.phase, Phase::Thawing(ThawStep::Queued))
    }

    /// Until when it keeps others from being thawed; `None` where it does not.
    pub fn thaw_turn_until(&self) -> Option<BootMs> {
        let under_way = matches!(self.phase, Phase::Thawing(ThawStep::Unpausing | ThawStep::Resuming));
        under_way.then(|| self.granted_at.after(THAW_TURN))
    }

    pub(super) fn thaw(&mut self, now: Now, out: &mut Vec<Effect>) {
        out.push(Effect::Progress(WakeStage::Starting));
        // Whatever becomes of it, it was wanted up: found paused after this, it does not rest.
        self.consent_until = None;
        self.rose_from = Depth::Frozen;
        self.phase = Phase::Thawing(ThawStep::Unpausing);
        self.begin(now, Verb::Unpause, out);
    }
}
