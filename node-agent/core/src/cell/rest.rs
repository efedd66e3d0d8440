//! The ways down: fence, suspend, then pause or stop. A wake turns it round at every step.

use berth_shared::cell::{BusyReason, CellEventKind, IdleRest, RefusalRecord, WakeCause};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;

use super::{
    Cell, Effect, Event, LEASE_MARGIN, LOOK_RETRY_MAX, Note, Now, Operation, OtherImage, Outcome, Phase,
    Rest, RestStep, StartStep, SuspendAnswer, ThawStep, Verb, WAITERS_MAX, Waiter,
};

/// When a rest that did not come about is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// Something refused it: ever more rarely.
    Rarely,
    /// The workload said when; and ever more rarely.
    Asked(Millis),
    /// Nothing refused it, the cell was in use a moment ago: as soon as it has been idle for long enough.
    WhenIdle,
}

impl Cell {
    pub(super) fn sleep(&mut self, now: Now, rest: Rest, waiter: Waiter, out: &mut Vec<Effect>) {
        let answer = |result| Effect::Answer { waiter, result };
        let refuse = |code, detail: &str| answer(Err(Problem::new(code, detail)));
        match (self.phase, rest) {
            (Phase::Frozen, Rest::Frozen)
            | (
                Phase::Stopped | Phase::Archiving | Phase::Archived | Phase::Cooling { again: false, .. },
                _,
            ) => {
                out.push(answer(Ok(())));
            }
            (Phase::Failed, _) => out.push(answer(Ok(()))),
            // It does not run, and an operator does not want it to be tried for ever.
            (Phase::Cooling { until, again: true }, _)
                if self.is_often_tried() && self.spec.rest.rest != IdleRest::AlwaysOn =>
            {
                self.wanted = None;
                self.phase = Phase::Cooling { until, again: false };
                out.push(answer(Ok(())));
            }
            (Phase::Unknown { .. }, _) => {
                out.push(refuse(Code::CellUnknown, "what the cell is doing is not known yet"));
            }
            (Phase::Removing | Phase::Gone, _) => {
                out.push(refuse(Code::UnknownUser, "the user is removed"));
            }
            (Phase::Running | Phase::Frozen | Phase::Resting { .. }, _)
                if self.rest_waiters.len() >= WAITERS_MAX =>
            {
                out.push(refuse(Code::WakeQueueFull, "too many callers wait for this cell"));
            }
            (Phase::Frozen, Rest::Stopped) => {
                if self.refuses_for_schedule(now, rest, waiter, out) {
                    return;
                }
                self.rest_waiters.push(waiter);
                self.kill_frozen(now, out);
            }
            (Phase::Running, rest) => {
                if self.refuses_for_schedule(now, rest, waiter, out) {
                    return;
                }
                self.rest_waiters.push(waiter);
                self.begin_rest(now, rest, true, out);
            }
            (Phase::Resting { rest: under_way, .. }, rest) => {
                self.deeper |= under_way == Rest::Frozen && rest == Rest::Stopped;
                self.rest_waiters.push(waiter);
            }
            (
                Phase::Cooling { again: true, .. }
                | Phase::Queued
                | Phase::Starting(_)
                | Phase::Thawing(_)
                | Phase::Killing
                | Phase::Repairing,
                _,
            ) => out.push(refuse(Code::CellBusy, "the cell is just being woken")),
        }
    }

    /// Has somebody asked for the cell since it began to fall asleep? A restart waits for its own stop.
    pub(super) fn turned(&self) -> bool {
        self.wanted.is_some() && !self.restart_wanted
    }

    #[expect(clippy::too_many_arguments, reason = "one step of one phase: everything that it depends on")]
    pub(super) fn rest_done(
        &mut self,
        now: Now,
        rest: Rest,
        step: RestStep,
        operation: Operation,
        outcome: Outcome,
        random: u64,
        out: &mut Vec<Effect>,
    ) {
        match (step, outcome) {
            (RestStep::Observing, Outcome::Observed(seen)) => self.observed(now, rest, seen, random, out),
            (RestStep::Observing, Outcome::Failed(problem)) => {
                let detail = problem.detail;
                self.stay_awake(now, BusyReason::RestFailed { detail }, Again::Rarely, random, out);
            }
            (RestStep::Fencing, Outcome::Fenced(activity)) => {
                self.step_activity(now, activity);
                let quiet = self.ordered || now.boot.since(self.last_active) >= self.idle_after();
                if activity.open_requests > 0 {
                    let reason = BusyReason::OpenRequests { count: activity.open_requests };
                    self.stay_awake(now, reason, Again::Rarely, random, out);
                } else if self.turned() || !quiet {
                    self.stay_awake(now, BusyReason::Active, Again::WhenIdle, random, out);
                } else if let Some(reason) = self.held(now) {
                    self.stay_awake(now, reason, Again::WhenIdle, random, out);
                } else {
                    self.phase = Phase::Resting { rest, step: RestStep::Suspending };
                    self.begin(now, Verb::Suspend, out);
                }
            }
            (RestStep::Fencing, _) => {
                self.stay_awake(now, BusyReason::FrontDoorSilent, Again::Rarely, random, out);
            }
            (RestStep::Suspending, Outcome::Suspend(SuspendAnswer::Ready { lease })) => {
                let lease_until = operation.begun.after(Millis(lease.0.saturating_sub(LEASE_MARGIN.0)));
                if self.turned() || now.boot >= lease_until {
                    // A lease that is over before it can be used will be so at the next try, too.
                    let again = if self.turned() { Again::WhenIdle } else { Again::Rarely };
                    self.refused(now, BusyReason::Active, again, random, out);
                    return self.revive(now, rest, out);
                }
                if let Some(reason) = self.held(now) {
                    self.refused(now, reason, Again::WhenIdle, random, out);
                    return self.revive(now, rest, out);
                }
                if !self.restart_wanted
                    && let Some(reason) = self.schedule_reason(now, rest)
                {
                    // The list was asked for again, or it has become late meanwhile.
                    self.refused(now, reason, Again::Rarely, random, out);
                    return self.revive(now, rest, out);
                }
                match rest {
                    Rest::Frozen => {
                        self.phase = Phase::Resting { rest, step: RestStep::Pausing { lease_until } };
                        self.consent_until = Some(lease_until);
                        self.begin(now, Verb::Pause, out);
                    }
                    Rest::Stopped => {
                        self.phase = Phase::Resting { rest, step: RestStep::Stopping };
                        self.begin(now, Verb::Stop, out);
                    }
                }
            }
            (RestStep::Suspending, Outcome::Suspend(SuspendAnswer::Busy { blockers, retry_after })) => {
                let again = retry_after.map_or(Again::Rarely, Again::Asked);
                self.stay_awake(now, BusyReason::Workload { blockers }, again, random, out);
            }
            (RestStep::Suspending, Outcome::Suspend(SuspendAnswer::NotAsked { reason })) => {
                self.stay_awake(now, reason, Again::Rarely, random, out);
            }
            // It may have been suspended all the same: resume before anything else.
            (RestStep::Suspending, Outcome::Suspend(SuspendAnswer::Unclear { detail })) => {
                self.refused(now, BusyReason::HandshakeUnclear { detail }, Again::Rarely, random, out);
                self.revive(now, rest, out);
            }
            (RestStep::Suspending, Outcome::Failed(problem)) => {
                let detail = problem.detail;
                self.refused(now, BusyReason::HandshakeUnclear { detail }, Again::Rarely, random, out);
                self.revive(now, rest, out);
            }
            (RestStep::Pausing { lease_until }, Outcome::Paused) => {
                if now.boot >= lease_until {
                    // Paused too late: the lease ended first, so work may have begun in between.
                    let detail = "the pause was not confirmed before the lease ended".to_owned();
                    self.refused(now, BusyReason::RestFailed { detail }, Again::Rarely, random, out);
                    self.consent_until = None;
                    self.paused(now, out);
                } else {
                    if self.turned() {
                        out.push(Effect::Note(Note::TurnedRound));
                    }
                    self.paused(now, out);
                }
            }
            (RestStep::Stopping, Outcome::Ended { .. }) => {
                out.push(Effect::Note(Note::Rested(Rest::Stopped)));
                self.rested_at = Some(now.boot);
                self.stopped(now, out);
            }
            (RestStep::Reviving, Outcome::Resumed) => self.up_again(now, out),
            (RestStep::Pausing { .. } | RestStep::Stopping, Outcome::Failed(problem)) => {
                let detail = problem.detail;
                if self.restart_wanted {
                    // Should it have ended all the same, it is not left down.
                    self.want(now, WakeCause::Operator);
                }
                self.refused(now, BusyReason::RestFailed { detail }, Again::Rarely, random, out);
                if self.must_stay_down() {
                    // It would be stopped again at once, and fail again at once.
                    self.phase = Phase::Unknown { look_at: now.boot.after(LOOK_RETRY_MAX) };
                } else {
                    self.look(now, out);
                }
            }
            (
                RestStep::Observing
                | RestStep::Suspending
                | RestStep::Pausing { .. }
                | RestStep::Stopping
                | RestStep::Reviving,
                _,
            ) => self.look(now, out),
        }
    }

    fn step_activity(&mut self, now: Now, activity: berth_shared::door::CellActivity) {
        // The same rules as for a report that came unasked.
        let _ = self.step(now, Event::Activity(activity), 0);
    }

    fn revive(&mut self, now: Now, rest: Rest, out: &mut Vec<Effect>) {
        self.phase = Phase::Resting { rest, step: RestStep::Reviving };
        self.begin(now, Verb::Resume, out);
    }

    /// Nothing was suspended: open the door again and go on.
    pub(super) fn stay_awake(
        &mut self,
        now: Now,
        reason: BusyReason,
        again: Again,
        random: u64,
        out: &mut Vec<Effect>,
    ) {
        self.refused(now, reason, again, random, out);
        self.up_again(now, out);
    }

    fn up_again(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.is_doubted() {
            return self.look(now, out);
        }
        if self.turned() {
            out.push(Effect::Note(Note::TurnedRound));
        }
        self.phase = Phase::Running;
        self.door_waits = false;
        self.wanted = None;
        // Said even where the ingress believes it already: it ends the fence.
        out.push(Effect::Route(self.route()));
        self.shown_route = self.route();
        self.answer_up(&Ok(()), out);
        // Those who came after the refusal had been told, while the workload was being resumed.
        self.answer_rest(&Err(Problem::new(Code::CellBusy, "the cell has just been kept awake")), out);
        if self.must_stay_down() {
            self.stop_for_good(now, out);
        } else if self.restart_wanted {
            self.begin_rest(now, Rest::Stopped, true, out);
        }
    }

    fn refused(&mut self, now: Now, reason: BusyReason, again: Again, random: u64, out: &mut Vec<Effect>) {
        match again {
            Again::Rarely => self.rest_not_before = now.boot.after(self.rest_backoff.next(random)),
            Again::Asked(wait) => {
                self.rest_not_before = now.boot.after(self.rest_backoff.next(random).max(wait));
            }
            // Whoever turned it round has just used it, also where the ingress does not say so: an operator.
            Again::WhenIdle if self.turned() => self.last_active = now.boot,
            Again::WhenIdle => {}
        }
        if matches!(reason, BusyReason::Workload { .. }) {
            self.owned_up = now.boot;
        }
        self.last_refusal = Some(RefusalRecord { reason: reason.clone(), at: now.wall });
        if !matches!(reason, BusyReason::Active) {
            self.tell(now, CellEventKind::CouldNotSleep, reason.to_string());
        }
        let problem = Problem::new(Code::CellBusy, format!("the cell stays awake: {reason}"));
        self.answer_rest(&Err(problem.clone()), out);
        self.ordered = false;
        self.restart_wanted = false;
        self.restore_ordered = None;
        self.answer_restart(&Err(problem), out);
        out.push(Effect::Note(Note::RestRefused(reason)));
    }

    /// The container does not run and nothing is under way.
    pub(super) fn stopped(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.phase = Phase::Stopped;
        self.address = None;
        self.other_image = OtherImage::Told;
        self.was_up = false;
        self.rest_backoff.reset();
        self.answer_rest(&Ok(()), out);
        if self.retired {
            self.phase = Phase::Removing;
            return self.begin(now, Verb::Remove, out);
        }
        self.shown_route = berth_shared::door::RouteState::Down;
        out.push(Effect::Route(self.shown_route));
        if std::mem::take(&mut self.restart_wanted) {
            self.want(now, WakeCause::Operator);
        }
        if self.wanted.is_none() && self.spec.rest.rest == IdleRest::AlwaysOn {
            self.want(now, WakeCause::Recovery);
        }
        if self.wanted.is_some() {
            self.queue(out);
        } else if self.archived_in().is_some() {
            // An agent that died over it does not know how much of it is gone.
            self.leave_disk(now, out);
        }
    }

    /// The user does not live here any more, or the node may not work alone any longer: no handshake, but the workload may
    /// still finish what it does.
    pub(super) fn stop_for_good(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.shut_the_door(out);
        self.phase = Phase::Resting { rest: Rest::Stopped, step: RestStep::Stopping };
        self.begin(now, Verb::Stop, out);
    }

    pub(super) fn retire(&mut self, now: Now, out: &mut Vec<Effect>) {
        if std::mem::replace(&mut self.retired, true) {
            return;
        }
        self.wanted = None;
        // Whoever is held for it learns that its route is gone, and never that its wake was refused.
        self.door_waits = false;
        out.push(Effect::Withdraw);
        self.refuse_all(&Problem::new(Code::UnknownUser, "the user is removed"), Millis(0), out);
        match self.phase {
            Phase::Running => self.stop_for_good(now, out),
            Phase::Frozen | Phase::Thawing(ThawStep::Queued) => self.kill_frozen(now, out),
            Phase::Stopped | Phase::Archived | Phase::Queued | Phase::Cooling { .. } | Phase::Failed => {
                self.stopped(now, out);
            }
            // What is fetched is of no use any more.
            Phase::Starting(StartStep::Restoring | StartStep::Pulling) => self.look(now, out),
            // Each of these ends in `stopped`, `up`, `frozen`, `archived` or a look, which all ask whether it is retired.
            Phase::Unknown { .. }
            | Phase::Archiving
            | Phase::Starting(_)
            | Phase::Resting { .. }
            | Phase::Thawing(_)
            | Phase::Killing
            | Phase::Repairing
            | Phase::Removing
            | Phase::Gone => {}
        }
    }

    pub(super) fn answer_rest(&mut self, result: &Result<(), Problem>, out: &mut Vec<Effect>) {
        for waiter in self.rest_waiters.drain(..) {
            out.push(Effect::Answer { waiter, result: result.clone() });
        }
    }
}
