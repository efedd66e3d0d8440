//! The ways up: from stopped (queue, create, start, get ready) and from frozen (unpause, resume, get ready), and what
//! happens when a start fails or a running container ends.

use berth_shared::cell::{CellEventKind, IdleRest, WakeCause};
use berth_shared::door::WakeStage;
use berth_shared::problem::{Code, Problem};
use berth_shared::time::Millis;

use super::{
    CRASH_WINDOW, CRASHES_MAX, Cell, Data, Depth, Effect, Note, Now, OtherImage, Outcome, Phase, Rest,
    START_TRIES_MAX, StartStep, ThawStep, Verb, Waiter,
};

/// OpenClaw's exit code for a configuration that cannot be used (OPENCLAW.md, section 1).
const EXIT_CONFIG: i64 = 78;

impl Cell {
    /// Waits for a start permit.
    pub(super) fn queue(&mut self, out: &mut Vec<Effect>) {
        self.keeps_disk(out);
        self.phase = Phase::Queued;
        if self.awaits_repository() {
            let text = "the node was not told yet whether there is a snapshot of the cell's data";
            self.problem = Some(Problem::new(Code::RepositoryUnknown, text));
        }
        out.push(Effect::Note(Note::Waking(self.wanted.unwrap_or(WakeCause::Recovery))));
    }

    pub(super) fn granted(&mut self, now: Now, out: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Queued | Phase::Thawing(ThawStep::Queued)) {
            return;
        }
        self.granted_at = now.boot;
        if matches!(self.phase, Phase::Thawing(_)) {
            return self.thaw(now, out);
        }
        if self.fetches_data(now, out) {
            return out.push(Effect::Progress(WakeStage::Restoring));
        }
        out.push(Effect::Progress(WakeStage::Starting));
        if std::mem::take(&mut self.repair_due) {
            self.phase = Phase::Repairing;
            return self.begin(now, Verb::Repair, out);
        }
        if self.saves_first(now, out) {
            return;
        }
        self.makes();
        // The create operation also re-asserts disk, network and owned settings, and is quick when all is there.
        self.phase = Phase::Starting(StartStep::Creating);
        self.begin(now, Verb::Create, out);
    }

    pub(super) fn start_done(
        &mut self,
        now: Now,
        step: StartStep,
        outcome: Outcome,
        random: u64,
        out: &mut Vec<Effect>,
    ) {
        match (step, outcome) {
            (StartStep::Restoring, outcome) => self.restore_done(now, outcome, random, out),
            (StartStep::Creating, Outcome::NotPulled) => self.pull(now, out),
            (StartStep::Pulling, Outcome::Pulled) => self.pulled(now, out),
            (StartStep::Saving, outcome) => self.save_done(now, outcome, out),
            (StartStep::Creating, Outcome::OtherImage) if !self.must_stay_down() => self.save(now, out),
            (StartStep::Creating, Outcome::Created { .. }) => {
                self.made();
                if self.must_stay_down() {
                    return self.stopped(now, out);
                }
                self.phase = Phase::Starting(StartStep::Starting);
                // Before the start: a quick workload tells its list before the engine has answered.
                self.scheduled.agenda.doubt();
                self.runs_what_was_made();
                self.begin(now, Verb::Start, out);
            }
            (StartStep::Starting, Outcome::Started { address }) => {
                self.starts += 1;
                self.thinned = false;
                if self.rose_from == Depth::Frozen {
                    self.rose_from = Depth::Stopped;
                }
                self.address = Some(address);
                if self.bar().is_some() {
                    return self.stop_for_good(now, out);
                }
                self.phase = Phase::Starting(StartStep::GettingReady);
                out.push(Effect::Progress(WakeStage::GettingReady));
                self.begin(now, Verb::AwaitReady, out);
            }
            (StartStep::GettingReady, Outcome::Ready) => self.up(now, out),
            (StartStep::Starting | StartStep::GettingReady, Outcome::Ended { code }) => {
                self.died(now, code, random, out);
            }
            (StartStep::GettingReady, Outcome::Failed(problem)) => {
                // It runs and does not get ready: it must not go on eating CPU behind a refusal. Who waits for it has
                // waited for as long as a start may take, and is told now; another try would take as long again.
                self.start_tries = START_TRIES_MAX - 1;
                self.give_up_after_a_stop(now, problem, out);
            }
            (StartStep::GivingUp, Outcome::Ended { .. }) => {
                let problem = self.pending_failure.take().unwrap_or_else(|| {
                    Problem::new(Code::ImageNeverReady, "the readiness probe never succeeded")
                });
                self.start_failed(now, problem, random, out);
            }
            (StartStep::Creating | StartStep::Pulling, Outcome::Failed(problem)) => {
                if !self.starts_as_it_was(now, &problem, out) {
                    self.start_failed(now, problem, random, out);
                }
            }
            // A start that failed may have started all the same: look, with the failure at hand.
            (StartStep::Starting | StartStep::GivingUp, Outcome::Failed(problem)) => {
                self.pending_failure = Some(problem);
                self.look(now, out);
            }
            (_, _) => self.look(now, out),
        }
    }

    /// Its image is fetched, beside what others do meanwhile.
    fn pull(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.must_stay_down() {
            return self.stopped(now, out);
        }
        self.phase = Phase::Starting(StartStep::Pulling);
        self.begin(now, Verb::Pull, out);
    }

    fn pulled(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.must_stay_down() {
            return self.stopped(now, out);
        }
        // The same wake goes on when there is a permit again, with what was decided for it.
        self.other_image = self.making.other;
        self.phase = Phase::Queued;
    }

    pub(super) fn up(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.is_doubted() {
            return self.look(now, out);
        }
        self.consent_until = None;
        self.schedule_up(now);
        if !self.is_up_for_schedule_only() {
            self.last_active = self.last_active.max(now.boot);
        }
        self.phase = Phase::Running;
        // Whatever was thought of it: what is on the disk is its data from here on.
        self.data = Data::Here;
        self.was_up = true;
        self.start_tries = 0;
        self.repaired = false;
        self.repair_due = false;
        self.problem.clone_from(&self.image_left);
        self.other_image = OtherImage::Told;
        self.silent_probes = 0;
        self.pending_failure = None;
        self.door_waits = false;
        self.thaw_tries = 0;
        self.thaw_backoff.reset();
        self.end_backoff.reset();
        self.leave_backoff.reset();
        let from = std::mem::take(&mut self.rose_from);
        if from == Depth::Frozen {
            // What the push had left of it says nothing of what it holds now; what a wake needs is noted behind each.
            self.resident = None;
            self.thinned = true;
        }
        if let Some(cause) = self.wanted.take() {
            self.judge_flap(now, cause);
            out.push(Effect::Note(Note::Up { after: now.boot.since(self.wanted_since), from, cause }));
        }
        // A cell that was wanted asleep while it came up is not: the last word was a wake.
        self.answer_rest(&Err(Problem::new(Code::CellBusy, "the cell was woken meanwhile")), out);
        self.answer_up(&Ok(()), out);
        if self.must_stay_down() {
            return self.stop_for_good(now, out);
        }
        if self.restart_wanted {
            return self.begin_rest(now, Rest::Stopped, true, out);
        }
        self.answer_restart(&Ok(()), out);
    }

    /// A running container whose workload may be suspended: resume it, then make sure that it answers.
    pub(super) fn resume(&mut self, now: Now, out: &mut Vec<Effect>) {
        self.phase = Phase::Thawing(ThawStep::Resuming);
        self.begin(now, Verb::Resume, out);
    }

    pub(super) fn thaw_done(
        &mut self,
        now: Now,
        step: ThawStep,
        outcome: Outcome,
        random: u64,
        out: &mut Vec<Effect>,
    ) {
        match (step, outcome) {
            (ThawStep::Unpausing, Outcome::Unpaused) => self.resume(now, out),
            (ThawStep::Resuming, Outcome::Resumed) => {
                self.phase = Phase::Thawing(ThawStep::GettingReady);
                self.begin(now, Verb::AwaitReady, out);
            }
            (ThawStep::GettingReady, Outcome::Ready) => self.up(now, out),
            (ThawStep::GettingReady, Outcome::Ended { code }) => self.died(now, code, random, out),
            (ThawStep::GettingReady, Outcome::Failed(problem)) => {
                self.start_tries = START_TRIES_MAX - 1;
                self.give_up_after_a_stop(now, problem, out);
            }
            (ThawStep::Unpausing, Outcome::Failed(problem)) => self.thaw_failed(now, problem, random, out),
            (_, _) => self.look(now, out),
        }
    }

    /// It could not be unpaused, or nobody knows. It has to come up, since it has no consent any more to rest: so it is looked
    /// at and tried again, ever more rarely; who waits is told after as many tries as a start has.
    fn thaw_failed(&mut self, now: Now, problem: Problem, random: u64, out: &mut Vec<Effect>) {
        let wait = self.thaw_backoff.next(random);
        self.thaw_tries = self.thaw_tries.saturating_add(1);
        if self.thaw_tries == START_TRIES_MAX {
            self.tell(now, CellEventKind::CouldNotWake, problem.to_string());
        }
        if self.thaw_tries >= START_TRIES_MAX {
            // Who ordered either is told that it failed, and expects none of it later.
            self.restart_wanted = false;
            self.restore_ordered = None;
            self.refuse_waiting(&problem, wait, out);
        }
        self.problem = Some(problem);
        self.phase = Phase::Unknown { look_at: now.boot.after(wait) };
    }

    /// A running cell that does not answer any more is stopped, gently, and started again.
    pub(super) fn probed(&mut self, now: Now, alive: bool, out: &mut Vec<Effect>) {
        if alive || !matches!(self.phase, Phase::Running) {
            self.silent_probes = 0;
            return;
        }
        self.silent_probes += 1;
        if self.silent_probes < super::SILENT_PROBES_MAX {
            return;
        }
        self.silent_probes = 0;
        out.push(Effect::Note(Note::Silent));
        self.crashes.retain(|at| now.boot.since(*at) < CRASH_WINDOW);
        self.crashes.push(now.boot);
        let text = format!("it did not answer {} probes in a row", super::SILENT_PROBES_MAX);
        self.want(now, WakeCause::Recovery);
        self.give_up_after_a_stop(now, Problem::new(Code::ImageNeverReady, text), out);
    }

    /// What runs is stopped, and then its start has failed for this reason.
    fn give_up_after_a_stop(&mut self, now: Now, problem: Problem, out: &mut Vec<Effect>) {
        self.pending_failure = Some(problem);
        self.phase = Phase::Starting(StartStep::GivingUp);
        self.begin(now, Verb::Stop, out);
    }

    /// The container has ended without being told to.
    pub(super) fn died(&mut self, now: Now, code: i64, random: u64, out: &mut Vec<Effect>) {
        self.operation = None;
        // Whatever was reported before its end is of no use any more.
        self.noticed = None;
        self.address = None;
        out.push(Effect::Note(Note::Died { code }));
        let text = format!("the container ended by itself with code {code}");
        self.answer_rest(&Err(Problem::new(Code::CellExited, text.clone())), out);
        self.crashes.retain(|at| now.boot.since(*at) < CRASH_WINDOW);
        self.crashes.push(now.boot);
        if self.must_stay_down() {
            return self.stopped(now, out);
        }
        if code == EXIT_CONFIG {
            if self.repaired {
                return self.give_up(now, Problem::new(Code::CellConfig, text), out);
            }
            self.repaired = true;
            self.problem = Some(Problem::new(Code::CellConfig, text));
            self.repair_due = true;
            return self.queue(out);
        }
        self.start_failed(now, Problem::new(Code::CellExited, text), random, out);
    }

    pub(super) fn repaired(&mut self, now: Now, outcome: Outcome, out: &mut Vec<Effect>) {
        if self.must_stay_down() {
            return self.stopped(now, out);
        }
        match outcome {
            Outcome::Repaired => self.queue(out),
            Outcome::NotPulled => {
                self.repair_due = true;
                self.repairs();
                self.pull(now, out);
            }
            _ => {
                let problem = self.problem.clone();
                let problem = problem
                    .unwrap_or_else(|| Problem::new(Code::CellConfig, "its configuration is unusable"));
                self.give_up(now, problem, out);
            }
        }
    }

    /// A start failed, or a running container ended: try again soon, later, or not by itself.
    pub(super) fn start_failed(&mut self, now: Now, problem: Problem, random: u64, out: &mut Vec<Effect>) {
        self.address = None;
        if self.must_stay_down() {
            return self.stopped(now, out);
        }
        if self.crashes.len() >= CRASHES_MAX {
            let text = format!("ended {} times within {CRASH_WINDOW}; last: {}", CRASHES_MAX, problem.detail);
            return self.give_up(now, Problem::new(Code::CrashLoop, text), out);
        }
        self.start_tries += 1;
        // What was fetched is there from now on.
        self.rose_from = Depth::Stopped;
        self.problem = Some(problem.clone());
        // A new user expects it to come up, whether or not somebody asks: nobody would for one that never ran.
        let is_new = self.wanted == Some(WakeCause::Created);
        let wait = if self.start_tries <= START_TRIES_MAX {
            Millis(super::RESTART_FIRST.0 << (self.start_tries - 1))
        } else if is_new {
            self.first_start_backoff.next(random)
        } else {
            self.restart_backoff.next(random)
        };
        let until = now.boot.after(wait);
        let was_running = self.was_up && self.wanted.is_none();
        let goes_on = was_running
            || is_new
            || self.wanted == Some(WakeCause::Recovery)
            || self.spec.rest.rest == IdleRest::AlwaysOn;
        let awaited = self.wanted.is_some() || self.door_waits || !self.up_waiters.is_empty();
        if self.start_tries >= START_TRIES_MAX {
            self.tell(now, CellEventKind::CouldNotWake, problem.to_string());
            self.refuse_all(&problem, wait, out);
        }
        if goes_on {
            self.want(now, if is_new { WakeCause::Created } else { WakeCause::Recovery });
        }
        if self.start_tries >= START_TRIES_MAX && !goes_on {
            self.start_tries = 0;
            self.phase = Phase::Cooling { until, again: false };
        } else {
            self.phase = Phase::Cooling { until, again: awaited || goes_on };
        }
    }

    /// Not by itself any more: an operator has to act.
    pub(super) fn give_up(&mut self, now: Now, problem: Problem, out: &mut Vec<Effect>) {
        self.tell(now, CellEventKind::CouldNotWake, problem.to_string());
        self.phase = Phase::Failed;
        self.problem = Some(problem.clone());
        self.refuse_all(&problem, super::RESTART_MAX, out);
        self.answer_rest(&Err(problem), out);
    }

    pub(super) fn refuse_all(&mut self, problem: &Problem, retry_after: Millis, out: &mut Vec<Effect>) {
        self.wanted = None;
        self.was_up = false;
        self.restart_wanted = false;
        self.restore_ordered = None;
        self.refuse_waiting(problem, retry_after, out);
    }

    /// Who waits for it to be up is told why it is not. What is wanted of it stays.
    fn refuse_waiting(&mut self, problem: &Problem, retry_after: Millis, out: &mut Vec<Effect>) {
        self.answer_up(&Err(problem.clone()), out);
        self.answer_restart(&Err(problem.clone()), out);
        if std::mem::take(&mut self.door_waits) {
            out.push(Effect::Refuse { problem: problem.clone(), retry_after });
        }
    }

    pub(super) fn restart(&mut self, now: Now, waiter: Waiter, out: &mut Vec<Effect>) {
        if let Some(bar) = self.bar() {
            return out.push(Effect::Answer { waiter, result: Err(bar.problem()) });
        }
        if self.retired || self.restart_waiters.len() >= super::WAITERS_MAX {
            let problem = Problem::new(Code::WakeQueueFull, "too many callers wait for this cell");
            return out.push(Effect::Answer { waiter, result: Err(problem) });
        }
        self.crashes.clear();
        self.start_tries = 0;
        self.repaired = false;
        self.repair_due = false;
        self.restart_backoff.reset();
        self.first_start_backoff.reset();
        self.restart_waiters.push(waiter);
        match self.phase {
            Phase::Stopped | Phase::Archived | Phase::Cooling { .. } | Phase::Failed => {
                self.want(now, WakeCause::Operator);
                self.queue(out);
            }
            Phase::Running => {
                self.restart_wanted = true;
                self.begin_rest(now, Rest::Stopped, true, out);
            }
            Phase::Frozen | Phase::Thawing(ThawStep::Queued) if self.consent_until.is_some() => {
                self.want(now, WakeCause::Operator);
                self.kill_frozen(now, out);
            }
            // On its way somewhere: first it gets there, then it is restarted; a start under way is a restart. One that was
            // paused without consent may be in the middle of something, and is asked when it is up.
            Phase::Unknown { .. } | Phase::Resting { .. } | Phase::Frozen | Phase::Thawing(_) => {
                self.restart_wanted = true;
                self.want(now, WakeCause::Operator);
            }
            Phase::Queued | Phase::Starting(_) | Phase::Killing | Phase::Repairing | Phase::Archiving => {
                self.want(now, WakeCause::Operator);
            }
            Phase::Removing | Phase::Gone => {}
        }
    }

    pub(super) fn answer_restart(&mut self, result: &Result<(), Problem>, out: &mut Vec<Effect>) {
        for waiter in self.restart_waiters.drain(..) {
            out.push(Effect::Answer { waiter, result: result.clone() });
        }
    }
}
