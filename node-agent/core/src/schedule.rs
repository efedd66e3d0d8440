//! A cell's own schedule: what of it counts, when the cell has to be woken for it, and how long it is kept up.
//!
//! ```text
//!            wake_at = due - learned boot or thaw time - margin
//!   asleep ----------------|                      due
//!                          +--- getting ready ---|-- runs --|- quiet -| may rest again
//! ```
//!
//! - Due is the time that the workload named last (`nextRunAtMs`, UTC), never worked out from an expression: time zones
//!   and daylight saving are the workload's own.
//! - A list replaces the one before it; the same list again changes nothing.
//! - The wall clock may be stepped at any moment, so it is read again at least every [`RECHECK`]; everything that lasts
//!   is counted on boot time. A due time is woken for until a newer list moves it, or until the cell has been up for
//!   [`RUN_MAX`] behind it without such a list: then it is *spent*, so that it does not wake the cell for ever. A clock
//!   that goes back before a spent time makes it due again.
//! - Many cells may be due in the same minute, and only a few come up at a time: the node wakes the first of them so much
//!   *ahead* of its own time that all are up in time ([`crowd`]).
//! - What is due already when it is noticed (the agent was away) wakes at once; OpenClaw runs missed jobs two minutes
//!   after its start, five seconds apart, so the cell is kept up for longer than that.

use berth_shared::time::{BootMs, Millis, UnixMs};
use serde::{Deserialize, Serialize};

use crate::cell::{Now, Rest};

pub mod crowd;
#[cfg(test)]
mod tests;

/// Most jobs of one list that are read.
pub const JOBS_MAX: usize = 1000;

/// So many due times of a list are kept, the earliest: whenever the cell is up, it tells the whole list anew.
pub const DUE_MAX: usize = 16;

/// How often the wall clock is read again while something is due later.
pub const RECHECK: Millis = Millis::minutes(1);

/// How long a due job may take to show as run in a newer list.
pub const RUN_MAX: Millis = Millis::minutes(10);

/// How long the cell is kept up once its due jobs have run.
pub const QUIET: Millis = Millis::secs(20);

/// How long the cell is kept up where jobs were due before it came up, and how much longer for each of them
/// (OPENCLAW.md, section 5: 120 s after the start, then 5 s apart).
pub const MISSED: Millis = Millis::minutes(3);
/// See [`MISSED`].
pub const MISSED_EACH: Millis = Millis::secs(5);
/// More missed jobs than this make the wait no longer.
pub const MISSED_JOBS_MAX: u32 = 120;

/// What a boot and a thaw are taken to need at least before five of them were seen.
pub const BOOT_FIRST: Millis = Millis::secs(20);
/// See [`BOOT_FIRST`].
pub const THAW_FIRST: Millis = Millis::secs(3);

/// The longest boot and thaw that are reckoned with.
pub const BOOT_MAX: Millis = Millis::minutes(3);
/// See [`BOOT_MAX`].
pub const THAW_MAX: Millis = Millis::secs(60);

/// What is added to a learned boot and thaw: the scheduler is up a moment behind the readiness probe.
pub const BOOT_MARGIN: Millis = Millis::secs(5);
/// See [`BOOT_MARGIN`].
pub const THAW_MARGIN: Millis = Millis::secs(2);

/// How long fetching an archived cell's data is taken to last before that was seen: a few hundred megabytes over a slow line.
pub const RESTORE_FIRST: Millis = Millis::minutes(5);
/// The longest fetch that is reckoned with.
pub const RESTORE_MAX: Millis = Millis::minutes(60);

/// A stop that would last no longer than this is not worth its boot.
pub const STOP_USEFUL: Millis = Millis::minutes(2);
/// The same of a freeze.
pub const FREEZE_USEFUL: Millis = Millis::secs(30);

/// How long after a wake for the schedule that did not bring the cell up the next is tried, first and at the most.
pub const RETRY_FIRST: Millis = Millis::minutes(1);
/// See [`RETRY_FIRST`].
pub const RETRY_MAX: Millis = Millis::minutes(16);

/// How many boots and thaws are remembered.
const SPANS_MAX: usize = 5;

/// What is kept of a list of jobs. Part of the node's journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// When the jobs that count are due, the earliest first, one for each job, at most [`DUE_MAX`].
    due: Vec<UnixMs>,
    /// How many jobs that count have such a time.
    jobs: u32,
    /// The earliest time of any job, whether or not it counts.
    next_of_any: Option<UnixMs>,
}

impl Schedule {
    /// Of jobs' due times; `counts`: the cell is woken for it. A job behind [`UnixMs::LAST_IN_WORDS`] is none: nobody could
    /// be told when the cell wakes.
    pub fn new(jobs: impl IntoIterator<Item = (UnixMs, bool)>) -> Self {
        let mut schedule = Self::default();
        let in_words = |(due, _): &(UnixMs, bool)| *due <= UnixMs::LAST_IN_WORDS;
        for (due, counts) in jobs.into_iter().take(JOBS_MAX).filter(in_words) {
            schedule.next_of_any = Some(schedule.next_of_any.map_or(due, |next| next.min(due)));
            if counts {
                schedule.jobs += 1;
                schedule.due.push(due);
            }
        }
        schedule.due.sort_unstable();
        schedule.due.truncate(DUE_MAX);
        schedule
    }

    /// The earliest time of any job, built-in ones too: what the workload's own word on its next wake is compared with.
    pub const fn next_of_any(&self) -> Option<UnixMs> {
        self.next_of_any
    }

    /// Is the cell woken by both at the same times?
    pub fn wakes_as(&self, other: &Self) -> bool {
        (&self.due, self.jobs) == (&other.due, other.jobs)
    }

    /// How many jobs wake the cell.
    pub const fn jobs(&self) -> u32 {
        self.jobs
    }

    /// When the first of them is due.
    pub fn first(&self) -> Option<UnixMs> {
        self.due.first().copied()
    }

    /// How many are due by then; where more are kept than shown, all of them count.
    fn due_by(&self, by: UnixMs) -> u32 {
        let count = self.due.iter().filter(|due| **due <= by).count();
        if count == self.due.len() { self.jobs } else { u32::try_from(count).unwrap_or(u32::MAX) }
    }
}

/// From where a cell came up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It was started.
    Boot,
    /// It was thawed.
    Thaw,
    /// Its data was fetched from the store, and it was started.
    Restore,
}

impl Way {
    /// The way up from this rest.
    pub const fn from(rest: Rest) -> Self {
        match rest {
            Rest::Stopped => Self::Boot,
            Rest::Frozen => Self::Thaw,
        }
    }
}

/// Why a cell is not put to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// How many jobs are due by `first`; 0 while only the quiet time behind them is waited for.
    pub jobs: u32,
    /// When the first of them is due.
    pub first: Option<UnixMs>,
    /// When this is worth asking again, at the latest.
    pub ask_at: BootMs,
}

/// The last few spans of one kind.
#[derive(Debug, Clone, Default)]
struct Spans(Vec<Millis>);

impl Spans {
    fn add(&mut self, span: Millis) {
        if self.0.len() >= SPANS_MAX {
            self.0.remove(0);
        }
        self.0.push(span);
    }

    /// The longest. Until there are as many as are remembered, `first` counts as one of them: a single quick boot says
    /// little about the next.
    fn longest(&self, first: Millis) -> Millis {
        let first = (self.0.len() < SPANS_MAX).then_some(first);
        self.0.iter().copied().chain(first).max().unwrap_or_default()
    }
}

/// One cell's schedule, and what follows from it.
#[derive(Debug, Clone, Default)]
pub struct Agenda {
    list: Option<Schedule>,
    /// Was the list told by the workload as it runs now?
    heard: bool,
    boots: Spans,
    thaws: Spans,
    restores: Spans,
    /// Due times up to this one are not waited for any more.
    spent: Option<UnixMs>,
    /// Since when the cell has been up behind a due time that no newer list has moved.
    overdue_since: Option<BootMs>,
    /// Kept up at least so long.
    up_until: BootMs,
    /// The next wake is not tried before.
    not_before: BootMs,
    tries: u32,
    /// Woken so much earlier than on its own account, for the first due time: others come up then, too.
    ahead: Millis,
}

impl Agenda {
    /// What the journal holds of the cell, if anything.
    pub fn new(list: Option<Schedule>) -> Self {
        Self { list, ..Self::default() }
    }

    /// The newest list.
    pub const fn list(&self) -> Option<&Schedule> {
        self.list.as_ref()
    }

    /// Has the workload told its list since it was started?
    pub const fn is_heard(&self) -> bool {
        self.heard
    }

    /// The workload has told its list: it replaces the one before it.
    pub fn hear(&mut self, now: Now, list: Schedule) {
        let was_due = self.next_due(now.wall);
        self.heard = true;
        self.list = Some(list);
        let is_due = self.next_due(now.wall);
        if was_due != is_due {
            self.ahead = Millis(0);
        }
        let was_overdue = was_due.is_some_and(|due| due <= now.wall);
        let is_overdue = is_due.is_some_and(|due| due <= now.wall);
        if was_overdue && !is_overdue {
            self.overdue_since = None;
            self.up_until = self.up_until.max(now.boot.after(QUIET));
        }
    }

    /// The container is about to be started, or has told a list that could not be taken: what it told before is not its word any
    /// more. It is woken by that all the same.
    pub const fn doubt(&mut self) {
        self.heard = false;
    }

    /// The cell is up; `took`: by this way it took so long.
    pub fn up(&mut self, now: Now, took: Option<(Way, Millis)>) {
        match took {
            // What is measured is the boot behind the restore.
            Some((Way::Boot | Way::Restore, span)) => self.boots.add(span.min(BOOT_MAX)),
            Some((Way::Thaw, span)) => self.thaws.add(span.min(THAW_MAX)),
            None => {}
        }
        (self.tries, self.not_before, self.overdue_since) = (0, now.boot, None);
        if let Some(first) = self.next_due(now.wall).filter(|due| *due <= now.wall) {
            let missed = self.list.as_ref().map_or(0, |list| list.due_by(now.wall.max(first)));
            let each = u64::from(missed.min(MISSED_JOBS_MAX)) * MISSED_EACH.0;
            self.up_until = self.up_until.max(now.boot.after(Millis(MISSED.0 + each)));
        }
    }

    /// Its data was fetched; that took so long.
    pub fn restored(&mut self, span: Millis) {
        self.restores.add(span.min(RESTORE_MAX));
    }

    /// How long it has taken to come up by this way, at the most, once its data is there.
    pub fn learned(&self, way: Way) -> Millis {
        match way {
            Way::Boot | Way::Restore => self.boots.longest(BOOT_FIRST),
            Way::Thaw => self.thaws.longest(THAW_FIRST),
        }
    }

    /// How long before a due time the cell has to be woken on its own account.
    pub fn lead(&self, way: Way) -> Millis {
        let before = match way {
            Way::Boot => BOOT_MARGIN,
            Way::Restore => Millis(BOOT_MARGIN.0 + self.restores.longest(RESTORE_FIRST).0),
            Way::Thaw => THAW_MARGIN,
        };
        Millis(self.learned(way).0 + before.0)
    }

    /// So much earlier than that it is woken: others come up then, too.
    pub const fn come_ahead(&mut self, ahead: Millis) {
        self.ahead = ahead;
    }

    /// See [`Self::come_ahead`].
    pub const fn ahead(&self) -> Millis {
        self.ahead
    }

    /// The earliest due time that is still waited for.
    pub fn next_due(&self, wall: UnixMs) -> Option<UnixMs> {
        // A spent time lies in the past; where it does not, the clock was set back.
        let spent = self.spent.filter(|spent| *spent <= wall);
        let due = &self.list.as_ref()?.due;
        due.iter().copied().find(|due| spent.is_none_or(|spent| *due > spent))
    }

    /// When a cell at rest is woken for its schedule, by the wall clock.
    pub fn wake_at(&self, wall: UnixMs, way: Way) -> Option<UnixMs> {
        let due = self.next_due(wall)?;
        Some(UnixMs(due.0.saturating_sub(self.lead(way).0 + self.ahead.0)))
    }

    /// When a cell at rest has to be looked at for its schedule.
    pub fn look_at(&self, now: Now, way: Way) -> Option<BootMs> {
        let wait = self.wake_at(now.wall, way)?.since(now.wall).min(RECHECK);
        Some(now.boot.after(wait).max(self.not_before))
    }

    /// Is a cell at rest to be woken now?
    pub fn is_wake_due(&self, now: Now, way: Way) -> bool {
        now.boot >= self.not_before && self.wake_at(now.wall, way).is_some_and(|at| at <= now.wall)
    }

    /// It is being woken: should that fail, it is tried again only after a while.
    pub fn woken(&mut self, now: Now) {
        let wait = Millis((RETRY_FIRST.0 << self.tries.min(4)).min(RETRY_MAX.0));
        self.tries = self.tries.saturating_add(1);
        self.not_before = now.boot.after(wait);
    }

    /// Is a running cell kept from this rest? To be asked again whenever something has happened.
    pub fn holds(&mut self, now: Now, rest: Rest) -> Option<Hold> {
        let recheck = now.boot.after(RECHECK);
        while let Some(due) = self.next_due(now.wall) {
            if due <= now.wall {
                let since = *self.overdue_since.get_or_insert(now.boot);
                if now.boot.since(since) >= RUN_MAX && now.boot >= self.up_until {
                    // Nothing more was heard of it: whatever kept it from running, another wake would not help.
                    self.spent = Some(now.wall);
                    self.overdue_since = None;
                    continue;
                }
                let ask_at = since.after(RUN_MAX).max(self.up_until).min(recheck);
                return Some(self.hold(due, now.wall, ask_at.max(now.boot.after(Millis(1)))));
            }
            self.overdue_since = None;
            let (way, useful) = match rest {
                Rest::Stopped => (Way::Boot, STOP_USEFUL),
                Rest::Frozen => (Way::Thaw, FREEZE_USEFUL),
            };
            if due.since(now.wall).0 < self.lead(way).0 + self.ahead.0 + useful.0 {
                return Some(self.hold(due, due, now.boot.after(due.since(now.wall)).min(recheck)));
            }
            break;
        }
        let quiet = now.boot < self.up_until;
        quiet.then(|| Hold { jobs: 0, first: None, ask_at: self.up_until.min(recheck) })
    }

    fn hold(&self, first: UnixMs, by: UnixMs, ask_at: BootMs) -> Hold {
        let jobs = self.list.as_ref().map_or(0, |list| list.due_by(by));
        Hold { jobs, first: Some(first), ask_at }
    }
}
