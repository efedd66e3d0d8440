//! When a running cell is due to rest, and why it is not: how long nobody has done anything, what holds it awake, and how
//! often it was woken again a moment after it had fallen asleep.

use berth_shared::cell::{
    BusyReason, CellEvent, CellEventKind, HOLD_MAX, IdleRest, SleepTerms, WakeCause, keep_event,
};
use berth_shared::door::CellActivity;
use berth_shared::time::{BootMs, Millis, UnixMs};
use berth_shared::units::Bytes;

use crate::ram::hurried;

use super::{Again, Cell, Effect, Note, Now, Observation, Phase, Rest, RestStep, Verb};

/// A running workload that says it may rest must not use more than this, in percent of one core, over the moment that it is
/// looked at. An idle OpenClaw gateway uses 1.4 (OPENCLAW.md, section 2), one that works for itself all of a core, or its
/// share of it where others work, too. A moment's work of an idle one only puts the rest off.
pub const UNDECLARED_PERCENT: u32 = 10;

/// The same on average since it was used last, of the last minutes, where it is due to rest by itself: work in bursts that
/// a moment's look does not meet, or that is small. Twice what an idle gateway uses, and more.
pub(super) const UNDECLARED_MEAN_PERCENT: u32 = 5;

/// A cell that is woken so soon after it fell asleep should not have.
pub const FLAP_SPAN: Millis = Millis::minutes(2);

/// For so long that is remembered.
pub const FLAP_MEMORY: Millis = Millis::minutes(60);

/// Each such wake doubles the time that nobody may have done anything, up to this often …
const FLAPS_MAX: usize = 3;

/// … and to this long, where the plan does not say more itself.
const DAMPED_IDLE_MAX: Millis = Millis::minutes(60);

/// From this part of its limit on a cell's memory is near it, in percent, and again far from it below the other.
const NEAR_PERCENT: u128 = 90;
const FAR_PERCENT: u128 = 80;

/// That the kernel has ended something of a cell is told once in this time.
const KILLS_EVERY: Millis = Millis::secs(1);

/// Most characters of an event's text.
const EVENT_CHARS_MAX: usize = 500;

/// A container that does nothing.
impl Default for Observation {
    fn default() -> Self {
        Self { cpu_percent: Some(0), cpu_used: None, busiest: String::new(), resident: None, thinned: None }
    }
}

impl Cell {
    pub(super) fn activity(&mut self, now: Now, activity: CellActivity) {
        self.open_requests = activity.open_requests;
        self.open_sockets = activity.open_sockets;
        if let Some(idle) = activity.idle {
            let active = BootMs(now.boot.0.saturating_sub(idle.0));
            self.last_active = self.last_active.max(active);
        }
        if activity.open_requests > 0 {
            self.last_active = now.boot;
        }
    }

    /// How long nobody may have done anything, just now.
    pub(super) fn idle_after(&self) -> Millis {
        let plan = self.spec.rest.idle_after;
        let plan = if self.hurries { hurried(plan) } else { plan };
        let damped = Millis(plan.0.saturating_mul(1 << self.flaps.len().min(FLAPS_MAX)));
        damped.min(DAMPED_IDLE_MAX).max(plan)
    }

    /// When somebody has used it last, for as long as it runs and is not being put to rest: then what it does not need may be
    /// pushed out ([`crate::cold`]).
    pub fn runs_unused_since(&self) -> Option<BootMs> {
        matches!(self.phase, Phase::Running).then_some(self.last_active)
    }

    /// Was it told that the node's memory is short?
    pub const fn hurries(&self) -> bool {
        self.hurries
    }

    /// When it would fall asleep if nothing happened any more; `None` when never.
    pub(super) fn rest_due_at(&self) -> Option<BootMs> {
        match self.spec.rest.rest {
            IdleRest::AlwaysOn => None,
            IdleRest::Stop | IdleRest::Freeze => {
                let quiet = self.last_active.after(self.idle_after());
                let idle = quiet.max(self.rest_not_before).max(self.held_until());
                // That its schedule or its channels keep it up is told when it would have fallen asleep.
                if !self.is_hold_told() {
                    return Some(idle);
                }
                let stays = self.dial_out_reason().is_some();
                (!stays).then(|| self.scheduled_hold().map_or(idle, |held| idle.max(held)))
            }
        }
    }

    /// It came up. Was that a moment after it had fallen asleep?
    pub(super) fn judge_flap(&mut self, now: Now, cause: WakeCause) {
        self.flaps.retain(|at| now.boot.since(*at) < FLAP_MEMORY);
        let is_soon = self.rested_at.take().is_some_and(|at| self.wanted_since.since(at) < FLAP_SPAN);
        // A job of its own comes when it comes.
        if is_soon && cause != WakeCause::Schedule {
            self.flaps.push(now.boot);
            if self.flaps.len() > FLAPS_MAX {
                self.flaps.remove(0);
            }
        }
    }

    /// Its plan, or an operator, says something new about sleep.
    pub(super) fn terms(&mut self, now: Now, terms: SleepTerms, out: &mut Vec<Effect>) {
        if self.terms != terms {
            self.set_terms(now, terms);
            out.push(Effect::Changed);
        }
    }

    /// With these terms, before anything happens to it.
    #[must_use]
    pub fn with_terms(mut self, now: Now, terms: SleepTerms) -> Self {
        self.set_terms(now, terms);
        self
    }

    fn set_terms(&mut self, now: Now, terms: SleepTerms) {
        self.terms = terms;
        // Counted on boot time from here on: a clock that is set back makes it no longer. And one that was far behind when this
        // was told makes a short hold no more than the longest.
        let left = |until: UnixMs| until.since(now.wall).min(HOLD_MAX);
        self.held_until = terms.awake_until.map_or(BootMs(0), |until| now.boot.after(left(until)));
        self.look_at_hold(now);
    }

    /// A clock that was behind when it was told, and is set right, ends it in time.
    pub(super) fn look_at_hold(&mut self, now: Now) {
        self.hold_is_over = self.terms.awake_until.is_some_and(|until| until <= now.wall);
    }

    /// Until when an operator holds it awake, as of this step.
    pub(super) const fn held_until(&self) -> BootMs {
        if self.hold_is_over { BootMs(0) } else { self.held_until }
    }

    /// `ordered`: by an operator, so that the quiet time does not matter. Work under way does, always.
    pub(super) fn begin_rest(&mut self, now: Now, rest: Rest, ordered: bool, out: &mut Vec<Effect>) {
        self.ordered = ordered;
        self.deeper = false;
        self.promised = false;
        self.phase = Phase::Resting { rest, step: RestStep::Observing };
        self.begin(now, Verb::Observe, out);
    }

    /// Is what it does not use to be pushed out while it runs? Then what it holds when it is paused is what it needs
    /// for a moment's work, and its first wake has that read back (docs/decisions/0005).
    ///
    /// No swap is promised for that: where it is full, nothing more goes out, and the look shows what is left.
    pub fn thins(&self) -> bool {
        let looked_at =
            matches!(self.phase, Phase::Resting { rest: Rest::Frozen, step: RestStep::Observing });
        looked_at && !self.thinned && !self.restart_wanted && self.may_freeze().is_ok()
    }

    /// What it does was looked at: does it really rest, and how will it?
    pub(super) fn observed(
        &mut self,
        now: Now,
        rest: Rest,
        seen: Observation,
        random: u64,
        out: &mut Vec<Effect>,
    ) {
        self.resident = seen.resident.or(self.resident);
        if let Some(thinned) = seen.thinned {
            self.thinned = true;
            out.push(Effect::Note(Note::Thinned(thinned)));
        }
        let quiet = self.ordered || now.boot.since(self.last_active) >= self.idle_after();
        if self.turned() || !quiet {
            return self.stay_awake(now, BusyReason::Active, Again::WhenIdle, random, out);
        }
        if let Some(reason) = self.held(now) {
            return self.stay_awake(now, reason, Again::WhenIdle, random, out);
        }
        // A restart is for a cell that does what it should not.
        if !self.restart_wanted
            && let Some(detail) = self.undeclared(now, &seen)
        {
            return self.stay_awake(now, BusyReason::UndeclaredWork { detail }, Again::Rarely, random, out);
        }
        let rest = match (rest, self.may_freeze()) {
            (Rest::Frozen, Ok(())) => Rest::Frozen,
            (Rest::Frozen, Err(reason)) if self.ordered => {
                let detail = format!("it cannot be frozen: {reason}");
                return self.stay_awake(now, BusyReason::RestFailed { detail }, Again::Rarely, random, out);
            }
            (Rest::Frozen, Err(reason)) => {
                self.not_frozen(now, reason, out);
                Rest::Stopped
            }
            // Whoever has a page open would lose it, and types into it without being heard (OPENCLAW_UI.md, section 7).
            (Rest::Stopped, Ok(())) if self.open_sockets > 0 && !self.ordered => Rest::Frozen,
            (Rest::Stopped, _) => Rest::Stopped,
        };
        if rest == Rest::Frozen {
            self.stopped_because = None;
            self.promised = true;
        }
        self.phase = Phase::Resting { rest, step: RestStep::Fencing };
        self.begin(now, Verb::Fence, out);
    }

    /// What it does without owning up to it, if that cannot be excluded.
    fn undeclared(&self, now: Now, seen: &Observation) -> Option<String> {
        let Some(percent) = seen.cpu_percent else {
            return Some("not to be excluded, as its use of CPU cannot be read".to_owned());
        };
        if percent >= UNDECLARED_PERCENT {
            let by = if seen.busiest.is_empty() { "the workload itself" } else { seen.busiest.as_str() };
            return Some(format!("{percent} % of a core, by {by}"));
        }
        if self.ordered {
            return None; // Whoever orders it does not wait for a quiet time.
        }
        let since = self.last_active.max(self.owned_up);
        let mean = self.recent.percent(now.boot, seen.cpu_used?, since)?;
        (mean >= UNDECLARED_MEAN_PERCENT).then(|| format!("{mean} % of a core on average of late"))
    }

    /// So much memory it holds that cannot be taken back: its user is told before the kernel ends something.
    pub(super) fn memory_used(&mut self, now: Now, anonymous: Bytes, out: &mut Vec<Effect>) {
        let limit = self.spec.size.memory;
        let mark = if self.near_limit { FAR_PERCENT } else { NEAR_PERCENT };
        let is_near = u128::from(anonymous.0) * 100 >= u128::from(limit.0) * mark;
        if is_near && !self.near_limit {
            self.tell(now, CellEventKind::NearMemoryLimit, format!("it holds {anonymous} of {limit}"));
            out.push(Effect::Note(Note::NearMemoryLimit { anonymous, limit }));
            out.push(Effect::Changed);
        }
        self.near_limit = is_near;
    }

    /// The kernel may end a process of it as often as it begins one.
    pub(super) fn out_of_memory(&mut self, now: Now, out: &mut Vec<Effect>) {
        if self.killed_at.is_some_and(|at| now.boot.since(at) < KILLS_EVERY) {
            return;
        }
        self.killed_at = Some(now.boot);
        let limit = self.spec.size.memory;
        self.tell(now, CellEventKind::KilledByKernel, format!("its memory was at the limit of {limit}"));
        out.push(Effect::Note(Note::KilledByKernel));
        out.push(Effect::Changed);
    }

    /// Has an operator held it awake, maybe since it began to fall asleep? What an operator ordered goes on.
    pub(super) fn held(&self, now: Now) -> Option<BusyReason> {
        if self.ordered { None } else { self.hold(now) }
    }

    /// The word of an operator that it stays awake, for as long as that holds.
    pub(super) fn hold(&self, now: Now) -> Option<BusyReason> {
        let until = self.terms.awake_until.filter(|_| now.boot < self.held_until())?;
        Some(BusyReason::Held { until })
    }

    /// Keeps what its user should know, the newest of it.
    pub(super) fn tell(&mut self, now: Now, kind: CellEventKind, detail: String) {
        let detail: String = detail.chars().take(EVENT_CHARS_MAX).collect();
        keep_event(&mut self.events, CellEvent { at: now.wall, kind, detail });
    }
}
